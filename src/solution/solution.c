#include "solution/solution.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "quant/billm.h"
#include "quant/codes.h"
#include "quant/nf.h"

/* ---- arrays ---- */

solution solution_of(int64_t out, int64_t in, const grid_rule *rule, int rank) {
  return (solution){.rule = *rule,
                    .out = out,
                    .in = in,
                    .end = out,
                    .groups = grid_groups(rule, (int)in),
                    .words = codes_words(in, grid_code_bits(rule)),
                    .rank = rank};
}

solution solution_shape(const arch *a, linear_id l, const grid_rule *rule, int rank) {
  int64_t out, in;
  linear_shape(a, l, &out, &in);
  solution s = solution_of(out, in, rule, rank);
  s.linear = l;
  return s;
}

real_type solution_loaded(dtype stored) { return stored == DT_BF16 ? REAL_BF16 : stored == DT_F16 ? REAL_F16 : REAL_F32; }

static int64_t nests(const solution *s) { return nf_nests(s->out * s->groups); }

static size_t round_up(size_t bytes) { return (bytes + 63) / 64 * 64; }

size_t solution_place(solution *s, unsigned parts, char *at) {
  size_t used = 0;
  int64_t rows = s->end - s->begin, points = s->rank + 1;
  unsigned uniform = s->rule.kind == GRID_UNIFORM ? SOLUTION_BASE : 0, nf = s->rule.kind == GRID_NF ? SOLUTION_BASE : 0,
           binary = s->rule.kind == GRID_BINARY ? SOLUTION_BASE : 0, nested = s->rule.nested ? nf : 0, mixed = s->rule.mixed ? uniform : 0,
           real = s->rule.real_zero ? uniform : 0;
#define PLACE(part, field, count)                                             \
  do {                                                                        \
    s->field = at && (parts & (part)) ? (void *)(at + used) : NULL;           \
    if (parts & (part)) used += round_up((size_t)(count) * sizeof *s->field); \
  } while (0)
  PLACE(SOLUTION_BASE, codes, rows * s->words);
  PLACE(uniform, scales, rows * s->groups);
  PLACE(uniform & ~real, zeros, rows * s->groups);
  PLACE(real, real_zeros, rows * s->groups);
  PLACE(mixed, widths, s->groups);
  PLACE(binary, magnitudes, rows * s->groups * BILLM_MAGNITUDES);
  PLACE(binary, salient, s->in);
  PLACE(nf, absmax, rows * s->groups);
  PLACE(nested, absmax_codes, rows * s->groups);
  PLACE(nested, nested_absmax, nests(s));
  PLACE(nested, nested_offset, 1);
  PLACE(SOLUTION_ADAPTER, lora_a, s->rank * s->in);
  PLACE(SOLUTION_ADAPTER, lora_b, rows * s->rank);
  PLACE(SOLUTION_CURVES, loss, points);
  PLACE(SOLUTION_CURVES, loss_heldout, points);
  PLACE(SOLUTION_CURVES, values, points);
  PLACE(SOLUTION_CURVES, rounds, s->round_count);
  PLACE(SOLUTION_ALL, facts, 1);
#undef PLACE
  s->rule.widths = s->widths;
  return used;
}

enum { TILE = 16 };

/* The terms (B'B)_kl (AA')_kl of a tile of columns k from a and l from b on. */
static double norm_tile(const solution *s, int a, int b) {
  double outer[TILE][TILE] = {{0}}, sum = 0;
  int as = s->rank - a < TILE ? s->rank - a : TILE, bs = s->rank - b < TILE ? s->rank - b : TILE;
  for (int64_t i = 0; i < s->out; i++) {
    const float *row = s->lora_b + i * s->rank;
    for (int k = 0; k < as; k++)
      for (int l = 0; l < bs; l++) outer[k][l] += (double)row[a + k] * (double)row[b + l];
  }
  for (int k = 0; k < as; k++)
    for (int l = 0; l < bs; l++) {
      const float *x = s->lora_a + (a + k) * s->in, *y = s->lora_a + (b + l) * s->in;
      double inner = 0;
      for (int64_t j = 0; j < s->in; j++) inner += (double)x[j] * (double)y[j];
      sum += outer[k][l] * inner;
    }
  return sum;
}

double solution_adapter_norm(const solution *s) {
  double sum = 0; /* ||BA||^2 = tr((B'B)(AA')) */
  for (int a = 0; a < s->rank; a += TILE)
    for (int b = a; b < s->rank; b += TILE) sum += (a == b ? 1 : 2) * norm_tile(s, a, b);
  return sqrt(fmax(sum, 0));
}

double solution_size(const solution *s, int rank) {
  double weights = (double)s->out * (double)s->in, groups = (double)(s->out * s->groups), grid = 0;
  switch (s->rule.kind) {
  case GRID_UNIFORM:
    grid = (16.0 + (s->rule.real_zero ? 16 : s->rule.bits)) * groups + (s->rule.mixed ? 8.0 * (double)s->groups : 0);
    break;
  case GRID_NF: grid = s->rule.nested ? 8 * groups + 32 * (double)nests(s) + 32 : 32 * groups; break;
  case GRID_BINARY: grid = 4 * 16 * groups + (double)s->in; break;
  }
  return weights * grid_code_bits(&s->rule) + grid + 16.0 * rank * (double)(s->out + s->in);
}

code_grid solution_code_grid(const solution *s, int64_t row) {
  return grid_from((code_grid){.scales = s->scales, .zeros = s->zeros, .real_zeros = s->real_zeros}, (row - s->begin) * s->groups);
}

void solution_values(const solution *s, int64_t begin, int64_t end, float *q) {
  int64_t first = begin - s->begin;
  int rows = (int)(end - begin), in = (int)s->in;
  const uint32_t *codes = s->codes + first * s->words;
  if (s->rule.kind == GRID_NF)
    nf_values(s->rule.bits, s->rule.group, rows, in, codes, s->absmax + first * s->groups, s->loaded, q);
  else if (s->rule.kind == GRID_BINARY)
    billm_values(&s->rule, rows, in, codes, s->magnitudes + first * s->groups * BILLM_MAGNITUDES, s->salient, q);
  else
    codes_values(&s->rule, rows, in, codes, solution_code_grid(s, begin), q);
}

void solution_merged(const solution *s, int rank, int64_t begin, int64_t end, float *w) {
  solution_values(s, begin, end, w);
  if (s->own_rank && rank > s->rank) rank = s->rank;
  if (rank)
    sgemm(false, false, (int)(end - begin), (int)s->in, rank, 1, s->lora_b + (begin - s->begin) * s->rank, s->rank, s->lora_a, (int)s->in,
          1, w, (int)s->in);
}

void solution_merge_into(const solution *s, int rank, int64_t begin, int64_t end, float *whole) {
  for (int64_t at = begin; at < end; at += SOLUTION_SLAB)
    solution_merged(s, rank, at, at + SOLUTION_SLAB < end ? at + SOLUTION_SLAB : end, whole + at * s->in);
}

void solution_residual(const solution *s, const float *x, int64_t begin, int64_t end, float *e) {
  solution_values(s, begin, end, e);
  const float *from = x + begin * s->in;
  for (int64_t k = 0; k < (end - begin) * s->in; k++) e[k] = from[k] - e[k];
}

void solution_copy(const solution *from, unsigned parts, solution *to) {
  int64_t rows = to->out;
  int rank = to->rank;
#define COPY(field, count)                                                              \
  do {                                                                                  \
    if (to->field) memcpy(to->field, from->field, (size_t)(count) * sizeof *to->field); \
  } while (0)
  if (parts & SOLUTION_BASE) {
    COPY(codes, rows * to->words);
    COPY(scales, rows * to->groups);
    COPY(zeros, rows * to->groups);
    COPY(real_zeros, rows * to->groups);
    COPY(widths, to->groups);
    COPY(magnitudes, rows * to->groups * BILLM_MAGNITUDES);
    COPY(salient, to->in);
    COPY(absmax, rows * to->groups);
    COPY(absmax_codes, rows * to->groups);
    COPY(nested_absmax, nests(to));
    COPY(nested_offset, 1);
    to->facts->trace = from->facts->trace;
    to->facts->trace_heldout = from->facts->trace_heldout;
    to->facts->damping_used = from->facts->damping_used;
    to->facts->ridge_used = from->facts->ridge_used;
    to->facts->round = from->facts->round;
    if (from->rounds) COPY(rounds, to->round_count); /* how the codes came about, where that is told */
    to->facts->tiny_scales = from->facts->tiny_scales;
    to->facts->codes_seconds = from->facts->codes_seconds;
    memcpy(to->facts->base_fingerprint, from->facts->base_fingerprint, HASH_HEX);
  }
  if (parts & SOLUTION_ADAPTER) {
    to->facts->adapter_seconds = from->facts->adapter_seconds;
    COPY(lora_a, rank * to->in);
    for (int64_t i = 0; i < rows; i++) memcpy(to->lora_b + i * rank, from->lora_b + i * from->rank, (size_t)rank * sizeof *to->lora_b);
    to->facts->adapter_size = from->facts->adapter_size;
    double whole = rank < from->rank ? solution_adapter_norm(from) : 0;
    if (whole > 0) to->facts->adapter_size *= solution_adapter_norm(to) / whole;
  }
  if (parts & SOLUTION_CURVES) {
    COPY(loss, rank + 1);
    COPY(loss_heldout, rank + 1);
    COPY(values, rank + 1);
    for (int k = rank + 1; k <= from->rank; k++) to->values[rank] += from->values[k]; /* the last is what all others sum to */
  }
#undef COPY
}

/* ---- the file ---- */

/* Every dataset of a group: what part it belongs to and its second dimension (0: it has one). Curves are the same for all rows. */
typedef struct row {
  const char *name;
  unsigned part;
  element type;
  int64_t rows, cols;
  void *data;
  bool by_output; /* its rows are those of the output side */
} row;

static int rows_of(const solution *s, row list[SOLUTION_DATASETS]) {
  int64_t points = s->rank + 1;
  bool uniform = s->rule.kind == GRID_UNIFORM, nf = s->rule.kind == GRID_NF, binary = s->rule.kind == GRID_BINARY,
       nested = nf && s->rule.nested, real = s->rule.real_zero;
  const struct {
    bool here;
    row row;
  } all[] = {
      {true, {"codes", SOLUTION_BASE, EL_U32, s->out, s->words, s->codes, true}},
      {uniform, {"scales", SOLUTION_BASE, EL_F16, s->out, s->groups, s->scales, true}},
      {uniform && !real, {"zeros", SOLUTION_BASE, EL_U8, s->out, s->groups, s->zeros, true}},
      {uniform && real, {"zeros", SOLUTION_BASE, EL_F16, s->out, s->groups, s->real_zeros, true}},
      {uniform && s->rule.mixed, {"widths", SOLUTION_BASE, EL_U8, s->groups, 0, s->widths, false}},
      {binary, {"magnitudes", SOLUTION_BASE, EL_F16, s->out, s->groups * BILLM_MAGNITUDES, s->magnitudes, true}},
      {binary, {"salient", SOLUTION_BASE, EL_U8, s->in, 0, s->salient, false}},
      {nf, {"absmax", SOLUTION_BASE, EL_F32, s->out, s->groups, s->absmax, true}},
      {nested, {"absmax_codes", SOLUTION_BASE, EL_U8, s->out, s->groups, s->absmax_codes, true}},
      {nested, {"nested_absmax", SOLUTION_BASE, EL_F32, nests(s), 0, s->nested_absmax, false}},
      {nested, {"nested_offset", SOLUTION_BASE, EL_F32, 1, 0, s->nested_offset, false}},
      {true, {"lora_A", SOLUTION_ADAPTER, EL_F32, s->rank, s->in, s->lora_a, false}},
      {true, {"lora_B", SOLUTION_ADAPTER, EL_F32, s->out, s->rank, s->lora_b, true}},
      {true, {"loss", SOLUTION_CURVES, EL_F64, points, 0, s->loss, false}},
      {true, {"eigenvalues", SOLUTION_CURVES, EL_F64, points, 0, s->values, false}},
      {s->round_count > 0, {"rounds", SOLUTION_CURVES, EL_F64, s->round_count, 0, s->rounds, false}},
      {true, {"loss_heldout", SOLUTION_CURVES, EL_F64, points, 0, s->loss_heldout, false}},
  };
  _Static_assert(sizeof all / sizeof *all <= SOLUTION_DATASETS, "room for every dataset");
  int count = 0;
  for (size_t k = 0; k < sizeof all / sizeof *all; k++)
    if (all[k].here) list[count++] = all[k].row;
  return count;
}

status solution_fingerprint(const solution *s, char hex[HASH_HEX]) {
  status st = OK;
  hash *h = NULL;
  row list[SOLUTION_DATASETS];
  int count = rows_of(s, list);
  TRY(hash_new(&h));
  for (int k = 0; k < count; k++)
    if (list[k].part == SOLUTION_BASE)
      TRY(hash_add(h, list[k].data, (size_t)(list[k].rows * (list[k].cols ? list[k].cols : 1)) * element_bytes(list[k].type)));
  TRY(hash_end(&h, hex));
done:
  hash_free(&h);
  return st;
}

status solution_check_nested(const solution *s, const char *where) {
  status st = OK;
  float *decoded = NULL;
  int64_t count = s->out * s->groups;
  if (s->rule.kind != GRID_NF || !s->rule.nested) return OK;
  TRY(NEW(decoded, count, "a decoded absmax"));
  nf_unnest(count, s->absmax_codes, s->nested_absmax, *s->nested_offset, decoded);
  for (int64_t i = 0; i < count; i++)
    if (memcmp(&decoded[i], &s->absmax[i], sizeof *decoded) != 0) {
      st = fail(E_DATA, "%s: absmax of row %lld, group %lld: expected %.9g from its double quantization, found %.9g", where,
                (long long)(i / s->groups), (long long)(i % s->groups), decoded[i], s->absmax[i]);
      goto done;
    }
done:
  FREE(decoded);
  return st;
}

int solution_variant(const char *ranks, int rank) {
  int below = 0, least = 0, largest = 0;
  for (const char *at = ranks; *at; at += strcspn(at, ",") + (at[strcspn(at, ",")] == ',')) {
    int one = atoi(at);
    if (one <= rank && one > below) below = one;
    if (least == 0 || one < least) least = one;
    if (one > largest) largest = one;
  }
  return rank == 0 ? largest : below ? below : least;
}

void solution_group(const solution *s, char path[SOLUTION_PATH]) {
  if (s->variant)
    snprintf(path, SOLUTION_PATH, "%s/rank-%d", linear_path(s->linear), s->variant);
  else
    snprintf(path, SOLUTION_PATH, "%s", linear_path(s->linear));
}

static void dataset_path(const solution *s, const char *name, char path[SOLUTION_PATH]) {
  solution_group(s, path);
  size_t used = strlen(path);
  snprintf(path + used, SOLUTION_PATH - used, "/%s", name);
}

int solution_datasets(const solution *s, bool heldout, char paths[SOLUTION_DATASETS][SOLUTION_PATH], dataset sets[SOLUTION_DATASETS]) {
  row list[SOLUTION_DATASETS];
  int all = rows_of(s, list), count = 0;
  for (int k = 0; k < all; k++) {
    const row *r = &list[k];
    if (r->data == s->loss_heldout && !heldout) continue;
    dataset_path(s, r->name, paths[count]);
    sets[count] = (dataset){paths[count], r->type, r->cols ? 2 : 1, {r->rows, r->cols}, r->data};
    count++;
  }
  return count;
}

static const char *const loaded_words[] = {[REAL_F32] = "f32", [REAL_F16] = "f16", [REAL_BF16] = "bf16"};

status solution_grid_attributes(const solution *s, attributes *group) {
  status st = OK;
  TRY(attr_text(group, "grid", grid_name(s->rule.kind, s->rule.bits)));
  TRY(attr_int(group, "symmetric", s->rule.symmetric));
  if (s->rule.kind == GRID_NF) TRY(attr_text(group, "values", loaded_words[s->loaded]));
  if (s->rule.kind == GRID_UNIFORM) TRY(attr_text(group, "zero", s->rule.real_zero ? "real" : "int"));
  if (s->own_rank) TRY(attr_int(group, "own_rank", 1));
done:
  return st;
}

/* The grid that a group's attributes speak of. */
static status read_grid(const attributes *g, const char *where, int64_t in, grid_rule *rule, real_type *loaded) {
  int64_t bits = attr_get_int(g, "bits", 0), width = attr_get_int(g, "group", -1);
  const char *grid = attr_get_text(g, "grid"), *values = attr_get_text(g, "values");
  grid_kind kind;
  *loaded = REAL_F32;
  if (!grid_named(grid, bits, &kind) || width < 0 || (width && in % width))
    return fail(E_DATA,
                "%s: expected a grid uniform, nf2, nf3, nf4 or binary with its bits and a group that divides %lld, found grid %s, %lld "
                "bits, group %lld",
                where, (long long)in, *grid ? grid : "nothing", (long long)bits, (long long)width);
  *rule = (grid_rule){.kind = kind,
                      .bits = (int)bits,
                      .group = (int)width,
                      .beta = 1,
                      .symmetric = attr_get_int(g, "symmetric", 0) == 1,
                      .real_zero = strcmp(attr_get_text(g, "zero"), "real") == 0};
  if (rule->kind != GRID_NF) return OK;
  while (*loaded <= REAL_BF16 && strcmp(loaded_words[*loaded], values) != 0) ++*loaded;
  if (width < NF_GROUP_LEAST || width > NF_GROUP_MOST || width & (width - 1) || *loaded > REAL_BF16)
    return fail(E_DATA, "%s: expected a normal float with a group of %d to %d and values f32, f16 or bf16, found group %lld, values %s",
                where, NF_GROUP_LEAST, NF_GROUP_MOST, (long long)width, *values ? values : "nothing");
  return OK;
}

/* The variant for a rank, to s->variant. One that is alone serves larger ranks, too, where it has a rank of its own. */
static status find_variant(container *file, const char *where, linear_id l, const attributes *parent, int rank, solution *s) {
  const char *list = attr_get_text(parent, "ranks");
  int found = solution_variant(list, rank);
  bool alone = !strchr(list, ',') && attr_get_int(parent, "own_rank", 0) == 1;
  s->linear = l;
  s->extends = attr_get_int(parent, "extends", 0) == 1;
  s->variant = rank == 0 || found == rank || s->extends || (alone && found < rank) ? found : 0;
  if (s->variant == 0)
    return fail(E_USAGE, "%s: expected one of the ranks that it was solved for, %s, found %d", where, *list ? list : "none", rank);
  char path[SOLUTION_PATH];
  solution_group(s, path);
  return container_has(file, path) ? OK : fail(E_DATA, "%s: expected the group rank-%d, found nothing", where, s->variant);
}

status solution_describe(container *file, const char *where, const arch *a, linear_id l, int rank, attributes *group, solution *s) {
  status st = OK;
  attributes own = {0}, *g = group ? group : &own;
  element type;
  int dims_count;
  int64_t dims[3] = {0};
  char path[SOLUTION_PATH];
  solution which = {.linear = l};
  if (!container_has(file, linear_path(l))) return fail(E_DATA, "%s: expected a solved linear, found nothing", where);
  TRY(container_attributes(file, linear_path(l), g));
  if (*attr_get_text(g, "ranks")) {
    TRY(find_variant(file, where, l, g, rank, &which));
    attr_free(g);
    solution_group(&which, path);
    TRY(container_attributes(file, path, g));
  }
  int64_t out, in;
  grid_rule rule;
  real_type loaded;
  linear_shape(a, l, &out, &in);
  TRY(read_grid(g, where, in, &rule, &loaded));
  dataset_path(&which, "absmax_codes", path);
  rule.nested = rule.kind == GRID_NF && container_has(file, path);
  dataset_path(&which, "widths", path);
  rule.mixed = rule.kind == GRID_UNIFORM && container_has(file, path);
  dataset_path(&which, "lora_A", path);
  TRY(container_shape(file, path, &type, &dims_count, dims));
  if (dims_count != 2 || dims[0] < 1 || dims[0] > (out < in ? out : in) || dims[1] != in) {
    st = fail(E_DATA, "%s: lora_A: expected at most %lld rows of %lld numbers, found %lld of %lld", where, (long long)(out < in ? out : in),
              (long long)in, (long long)dims[0], (long long)dims[1]);
    goto done;
  }
  *s = solution_shape(a, l, &rule, (int)dims[0]);
  s->loaded = loaded;
  s->variant = which.variant;
  s->extends = which.extends;
  s->own_rank = attr_get_int(g, "own_rank", 0) == 1;
  dataset_path(&which, "rounds", path);
  if (container_has(file, path)) {
    TRY(container_shape(file, path, &type, &dims_count, dims));
    s->round_count = (int)dims[0];
  }
done:
  attr_free(&own);
  return st;
}

/* lora_B of all stored columns: the rows, then their first columns. */
static status load_first_columns(container *file, const char *path, const solution *s, int stored) {
  status st = OK;
  float *whole = NULL;
  int64_t rows = s->end - s->begin;
  TRY(NEW(whole, rows * stored, "factors of an adapter"));
  TRY(container_read_rows(file, path, EL_F32, s->out, stored, s->begin, s->end, whole));
  for (int64_t i = 0; i < rows; i++) memcpy(s->lora_b + i * s->rank, whole + i * stored, (size_t)s->rank * sizeof *whole);
done:
  FREE(whole);
  return st;
}

static status load_rows(container *file, const solution *s, int stored, unsigned parts) {
  status st = OK;
  row list[SOLUTION_DATASETS];
  char path[SOLUTION_PATH];
  int count = rows_of(s, list);
  for (int k = 0; k < count && st == OK; k++) {
    const row *r = &list[k];
    int64_t begin = r->by_output ? s->begin : 0, end = r->by_output ? s->end : r->rows,
            rows = r->part == SOLUTION_CURVES && r->data != s->rounds ? stored + 1
                   : r->data == s->lora_a                             ? stored
                                                                      : r->rows;
    dataset_path(s, r->name, path);
    if (!(parts & r->part) || (r->data == s->loss_heldout && !container_has(file, path))) continue;
    st = r->data == s->lora_b && s->rank < stored ? load_first_columns(file, path, s, stored)
                                                  : container_read_rows(file, path, r->type, rows, r->cols, begin, end, r->data);
  }
  return st;
}

void solution_read_facts(const attributes *g, solution_facts *f) {
  f->reference = attr_get_real(g, "reference", NAN);
  f->reference_heldout = attr_get_real(g, "reference_heldout", NAN);
  f->damping_used = attr_get_real(g, "damping_used", NAN);
  f->ridge_used = attr_get_real(g, "ridge_used", 0);
  f->adapter_size = attr_get_real(g, "adapter_size", NAN);
  f->numerical_rank = attr_get_int(g, "numerical_rank", 0);
  f->tokens = attr_get_int(g, "tokens", 0);
  f->tiny_scales = attr_get_int(g, "scales_raised_from_zero", 0);
  f->round = (int)attr_get_int(g, "round", 0);
  f->codes_seconds = attr_get_real(g, "seconds_codes", 0);
  f->adapter_seconds = attr_get_real(g, "seconds", 0) - f->codes_seconds;
  snprintf(f->base_fingerprint, HASH_HEX, "%s", attr_get_text(g, "base_fingerprint"));
  snprintf(f->gram_fingerprint, HASH_HEX, "%s", attr_get_text(g, "gram_fingerprint"));
}

status solution_arrays(container *file, const char *where, int64_t begin, int64_t end, int rank, unsigned parts, solution *s) {
  status st = OK;
  char *memory = NULL;
  int stored = s->rank;
  if (rank > stored && s->own_rank) rank = stored;
  if (rank > stored) {
    st = fail(E_DATA, "%s: expected a rank of at most %d, the largest stored, found %d", where, stored, rank);
    goto done;
  }
  if (rank) s->rank = rank;
  s->begin = begin;
  s->end = end < 0 ? s->out : end;
  TRY(NEW(memory, solution_place(s, parts, NULL), "a solved linear"));
  solution_place(s, parts, memory);
  s->memory = memory;
  TRY(load_rows(file, s, stored, parts));
done:
  if (st != OK) solution_free(s);
  return st;
}

status solution_load(container *file, const char *where, const arch *a, linear_id l, int64_t begin, int64_t end, int rank, unsigned parts,
                     solution *s) {
  status st = OK;
  attributes g = {0};
  *s = (solution){0};
  TRY(solution_describe(file, where, a, l, rank, &g, s));
  TRY(solution_arrays(file, where, begin, end, rank, parts, s));
  solution_read_facts(&g, s->facts);
done:
  attr_free(&g);
  return st;
}

status solution_load_variant(container *file, const char *where, const arch *a, linear_id l, int variant, unsigned parts, solution *s) {
  status st = OK;
  attributes g = {0};
  *s = (solution){0};
  TRY(solution_describe(file, where, a, l, variant, &g, s));
  if (s->variant != variant) {
    st = fail(E_DATA, "%s: expected codes of rank %d, found rank %d", where, variant, s->variant);
    goto done;
  }
  TRY(solution_arrays(file, where, 0, -1, 0, parts, s));
  solution_read_facts(&g, s->facts);
done:
  attr_free(&g);
  return st;
}

void solution_free(solution *s) {
  mem_free(&s->memory);
  *s = (solution){0};
}
