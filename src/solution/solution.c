#include "solution/solution.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "quant/codes.h"
#include "quant/nf.h"

/* ---- arrays ---- */

solution solution_of(int64_t out, int64_t in, const grid_rule *rule, int rank) {
  return (solution){.rule = *rule,
                    .out = out,
                    .in = in,
                    .end = out,
                    .groups = grid_groups(rule, (int)in),
                    .words = codes_words(in, rule->bits),
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
  unsigned uniform = s->rule.kind == GRID_UNIFORM ? SOLUTION_BASE : 0, nf = SOLUTION_BASE & ~uniform, nested = s->rule.nested ? nf : 0;
#define PLACE(part, field, count)                                             \
  do {                                                                        \
    s->field = at && (parts & (part)) ? (void *)(at + used) : NULL;           \
    if (parts & (part)) used += round_up((size_t)(count) * sizeof *s->field); \
  } while (0)
  PLACE(SOLUTION_BASE, codes, rows * s->words);
  PLACE(uniform, scales, rows * s->groups);
  PLACE(uniform, zeros, rows * s->groups);
  PLACE(nf, absmax, rows * s->groups);
  PLACE(nested, absmax_codes, rows * s->groups);
  PLACE(nested, nested_absmax, nests(s));
  PLACE(nested, nested_offset, 1);
  PLACE(SOLUTION_ADAPTER, lora_a, s->rank * s->in);
  PLACE(SOLUTION_ADAPTER, lora_b, rows * s->rank);
  PLACE(SOLUTION_CURVES, loss, points);
  PLACE(SOLUTION_CURVES, loss_heldout, points);
  PLACE(SOLUTION_CURVES, values, points);
  PLACE(SOLUTION_ALL, facts, 1);
#undef PLACE
  return used;
}

void solution_values(const solution *s, int64_t begin, int64_t end, float *q) {
  int64_t first = begin - s->begin;
  int rows = (int)(end - begin), in = (int)s->in;
  const uint32_t *codes = s->codes + first * s->words;
  if (s->rule.kind == GRID_NF)
    nf_values(s->rule.bits, s->rule.group, rows, in, codes, s->absmax + first * s->groups, s->loaded, q);
  else
    codes_values(&s->rule, rows, in, codes, s->scales + first * s->groups, s->zeros + first * s->groups, q);
}

void solution_merged(const solution *s, int rank, int64_t begin, int64_t end, float *w) {
  solution_values(s, begin, end, w);
  if (rank)
    sgemm(false, false, (int)(end - begin), (int)s->in, rank, 1, s->lora_b + (begin - s->begin) * s->rank, s->rank, s->lora_a, (int)s->in,
          1, w, (int)s->in);
}

void solution_residual(const solution *s, const float *x, int64_t begin, int64_t end, float *e) {
  solution_values(s, begin, end, e);
  const float *from = x + begin * s->in;
  for (int64_t k = 0; k < (end - begin) * s->in; k++) e[k] = from[k] - e[k];
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
  bool uniform = s->rule.kind == GRID_UNIFORM, nested = !uniform && s->rule.nested;
  const struct {
    bool here;
    row row;
  } all[] = {
      {true, {"codes", SOLUTION_BASE, EL_U32, s->out, s->words, s->codes, true}},
      {uniform, {"scales", SOLUTION_BASE, EL_F16, s->out, s->groups, s->scales, true}},
      {uniform, {"zeros", SOLUTION_BASE, EL_U8, s->out, s->groups, s->zeros, true}},
      {!uniform, {"absmax", SOLUTION_BASE, EL_F32, s->out, s->groups, s->absmax, true}},
      {nested, {"absmax_codes", SOLUTION_BASE, EL_U8, s->out, s->groups, s->absmax_codes, true}},
      {nested, {"nested_absmax", SOLUTION_BASE, EL_F32, nests(s), 0, s->nested_absmax, false}},
      {nested, {"nested_offset", SOLUTION_BASE, EL_F32, 1, 0, s->nested_offset, false}},
      {true, {"lora_A", SOLUTION_ADAPTER, EL_F32, s->rank, s->in, s->lora_a, false}},
      {true, {"lora_B", SOLUTION_ADAPTER, EL_F32, s->out, s->rank, s->lora_b, true}},
      {true, {"loss", SOLUTION_CURVES, EL_F64, points, 0, s->loss, false}},
      {true, {"eigenvalues", SOLUTION_CURVES, EL_F64, points, 0, s->values, false}},
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

static void dataset_path(const solution *s, const row *r, char path[SOLUTION_PATH]) {
  snprintf(path, SOLUTION_PATH, "%s/%s", linear_path(s->linear), r->name);
}

int solution_datasets(const solution *s, bool heldout, char paths[SOLUTION_DATASETS][SOLUTION_PATH], dataset sets[SOLUTION_DATASETS]) {
  row list[SOLUTION_DATASETS];
  int all = rows_of(s, list), count = 0;
  for (int k = 0; k < all; k++) {
    const row *r = &list[k];
    if (r->data == s->loss_heldout && !heldout) continue;
    dataset_path(s, r, paths[count]);
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
  if (s->rule.kind == GRID_NF)
    TRY(attr_text(group, "values", loaded_words[s->loaded]));
  else
    TRY(attr_text(group, "zero", "int"));
done:
  return st;
}

/* The grid that a group's attributes speak of. */
static status read_grid(const attributes *g, const char *where, int64_t in, grid_rule *rule, real_type *loaded) {
  int64_t bits = attr_get_int(g, "bits", 0), width = attr_get_int(g, "group", -1);
  const char *grid = attr_get_text(g, "grid"), *values = attr_get_text(g, "values");
  *rule = (grid_rule){.bits = (int)bits, .group = (int)width, .beta = 1};
  *loaded = REAL_F32;
  if (!grid_named(grid, bits, &rule->kind))
    return fail(E_DATA, "%s: expected a grid uniform of 1 to 8 bits, nf2, nf3 or nf4, found %s of %lld bits", where,
                *grid ? grid : "nothing", (long long)bits);
  if (rule->kind == GRID_NF) {
    while (*loaded <= REAL_BF16 && strcmp(loaded_words[*loaded], values) != 0) ++*loaded;
    if (width < NF_GROUP_LEAST || width > NF_GROUP_MOST || width & (width - 1) || in % width || *loaded > REAL_BF16)
      return fail(E_DATA,
                  "%s: expected in a normal float a group of %d to %d that divides %lld, and values f32, f16 or bf16, found group %lld, "
                  "values %s",
                  where, NF_GROUP_LEAST, NF_GROUP_MOST, (long long)in, (long long)width, *values ? values : "nothing");
    return OK;
  }
  rule->symmetric = attr_get_int(g, "symmetric", 0) == 1;
  if (width < 0 || (width && in % width))
    return fail(E_DATA, "%s: expected a group that divides %lld, found %lld", where, (long long)in, (long long)width);
  return OK;
}

status solution_describe(container *file, const char *where, const arch *a, linear_id l, attributes *group, solution *s) {
  status st = OK;
  attributes own = {0}, *g = group ? group : &own;
  element type;
  int dims_count;
  int64_t dims[3] = {0};
  char path[SOLUTION_PATH];
  if (!container_has(file, linear_path(l))) return fail(E_DATA, "%s: expected a solved linear, found nothing", where);
  TRY(container_attributes(file, linear_path(l), g));
  int64_t out, in;
  grid_rule rule;
  real_type loaded;
  linear_shape(a, l, &out, &in);
  TRY(read_grid(g, where, in, &rule, &loaded));
  snprintf(path, sizeof path, "%s/absmax_codes", linear_path(l));
  rule.nested = rule.kind == GRID_NF && container_has(file, path);
  snprintf(path, sizeof path, "%s/lora_A", linear_path(l));
  TRY(container_shape(file, path, &type, &dims_count, dims));
  if (dims_count != 2 || dims[0] < 1 || dims[0] > (out < in ? out : in) || dims[1] != in) {
    st = fail(E_DATA, "%s: lora_A: expected at most %lld rows of %lld numbers, found %lld of %lld", where, (long long)(out < in ? out : in),
              (long long)in, (long long)dims[0], (long long)dims[1]);
    goto done;
  }
  *s = solution_shape(a, l, &rule, (int)dims[0]);
  s->loaded = loaded;
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
            rows = r->part == SOLUTION_CURVES ? stored + 1
                   : r->data == s->lora_a     ? stored
                                              : r->rows;
    dataset_path(s, r, path);
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
  f->numerical_rank = attr_get_int(g, "numerical_rank", 0);
  f->tokens = attr_get_int(g, "tokens", 0);
  f->tiny_scales = attr_get_int(g, "scales_raised_from_zero", 0);
  snprintf(f->base_fingerprint, HASH_HEX, "%s", attr_get_text(g, "base_fingerprint"));
  snprintf(f->gram_fingerprint, HASH_HEX, "%s", attr_get_text(g, "gram_fingerprint"));
}

status solution_arrays(container *file, const char *where, int64_t begin, int64_t end, int rank, unsigned parts, solution *s) {
  status st = OK;
  char *memory = NULL;
  int stored = s->rank;
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
  TRY(solution_describe(file, where, a, l, &g, s));
  TRY(solution_arrays(file, where, begin, end, rank, parts, s));
  solution_read_facts(&g, s->facts);
done:
  attr_free(&g);
  return st;
}

void solution_free(solution *s) {
  mem_free(&s->memory);
  *s = (solution){0};
}
