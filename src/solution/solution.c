#include "solution/solution.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "quant/codes.h"

/* ---- arrays ---- */

solution solution_shape(const arch *a, linear_id l, const grid_rule *rule, int rank) {
  solution s = {.linear = l, .rule = *rule, .rank = rank};
  linear_shape(a, l, &s.out, &s.in);
  s.end = s.out;
  s.groups = grid_groups(rule, (int)s.in);
  s.words = codes_words(s.in, rule->bits);
  return s;
}

static size_t round_up(size_t bytes) { return (bytes + 63) / 64 * 64; }

size_t solution_place(solution *s, unsigned parts, char *at) {
  size_t used = 0;
  int64_t rows = s->end - s->begin, points = s->rank + 1;
#define PLACE(part, field, count)                                             \
  do {                                                                        \
    s->field = at && (parts & (part)) ? (void *)(at + used) : NULL;           \
    if (parts & (part)) used += round_up((size_t)(count) * sizeof *s->field); \
  } while (0)
  PLACE(SOLUTION_BASE, codes, rows * s->words);
  PLACE(SOLUTION_BASE, scales, rows * s->groups);
  PLACE(SOLUTION_BASE, zeros, rows * s->groups);
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
  codes_values(&s->rule, (int)(end - begin), (int)s->in, s->codes + first * s->words, s->scales + first * s->groups,
               s->zeros + first * s->groups, q);
}

void solution_residual(const solution *s, const float *x, int64_t begin, int64_t end, float *e) {
  solution_values(s, begin, end, e);
  const float *from = x + begin * s->in;
  for (int64_t k = 0; k < (end - begin) * s->in; k++) e[k] = from[k] - e[k];
}

status solution_fingerprint(const solution *s, char hex[HASH_HEX]) {
  status st = OK;
  hash *h = NULL;
  TRY(hash_new(&h));
  TRY(hash_add(h, s->codes, (size_t)(s->out * s->words) * sizeof *s->codes));
  TRY(hash_add(h, s->scales, (size_t)(s->out * s->groups) * sizeof *s->scales));
  TRY(hash_add(h, s->zeros, (size_t)(s->out * s->groups) * sizeof *s->zeros));
  TRY(hash_end(&h, hex));
done:
  hash_free(&h);
  return st;
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
  const row all[] = {
      {"codes", SOLUTION_BASE, EL_U32, s->out, s->words, s->codes, true},
      {"scales", SOLUTION_BASE, EL_F16, s->out, s->groups, s->scales, true},
      {"zeros", SOLUTION_BASE, EL_U8, s->out, s->groups, s->zeros, true},
      {"lora_A", SOLUTION_ADAPTER, EL_F32, s->rank, s->in, s->lora_a, false},
      {"lora_B", SOLUTION_ADAPTER, EL_F32, s->out, s->rank, s->lora_b, true},
      {"loss", SOLUTION_CURVES, EL_F64, points, 0, s->loss, false},
      {"eigenvalues", SOLUTION_CURVES, EL_F64, points, 0, s->values, false},
      {"loss_heldout", SOLUTION_CURVES, EL_F64, points, 0, s->loss_heldout, false},
  };
  int count = (int)(sizeof all / sizeof *all);
  memcpy(list, all, sizeof all);
  return count;
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

status solution_describe(container *file, const char *where, const arch *a, linear_id l, attributes *group, solution *s) {
  status st = OK;
  attributes own = {0}, *g = group ? group : &own;
  element type;
  int dims_count;
  int64_t dims[3] = {0};
  char path[SOLUTION_PATH];
  if (!container_has(file, linear_path(l))) return fail(E_DATA, "%s: expected a solved linear, found nothing", where);
  TRY(container_attributes(file, linear_path(l), g));
  int64_t bits = attr_get_int(g, "bits", 0), width = attr_get_int(g, "group", -1), out, in;
  linear_shape(a, l, &out, &in);
  if (strcmp(attr_get_text(g, "grid"), "uniform") != 0 || bits < 1 || bits > 8 || width < 0 || (width && in % width)) {
    st = fail(E_DATA, "%s: expected a uniform grid of 1 to 8 bits whose group divides %lld, found grid %s, %lld bits, group %lld", where,
              (long long)in, attr_get_text(g, "grid"), (long long)bits, (long long)width);
    goto done;
  }
  grid_rule rule = {.bits = (int)bits, .group = (int)width, .symmetric = attr_get_int(g, "symmetric", 0) == 1, .beta = 1};
  snprintf(path, sizeof path, "%s/lora_A", linear_path(l));
  TRY(container_shape(file, path, &type, &dims_count, dims));
  if (dims_count != 2 || dims[0] < 1 || dims[0] > (out < in ? out : in) || dims[1] != in) {
    st = fail(E_DATA, "%s: lora_A: expected at most %lld rows of %lld numbers, found %lld of %lld", where, (long long)(out < in ? out : in),
              (long long)in, (long long)dims[0], (long long)dims[1]);
    goto done;
  }
  *s = solution_shape(a, l, &rule, (int)dims[0]);
done:
  attr_free(&own);
  return st;
}

/* lora_B of rank_max columns: the rows, then their first columns. */
static status load_first_columns(container *file, const char *path, const solution *s, int stored) {
  status st = OK;
  float *whole = NULL;
  int64_t rows = s->end - s->begin;
  TRY(NEW(whole, rows * stored, "factors of an adapter"));
  TRY(container_read(file, path, EL_F32, s->begin, s->end, whole));
  for (int64_t i = 0; i < rows; i++) memcpy(s->lora_b + i * s->rank, whole + i * stored, (size_t)s->rank * sizeof *whole);
done:
  FREE(whole);
  return st;
}

static status load_rows(container *file, const char *where, const solution *s, int stored, unsigned parts) {
  status st = OK;
  row list[SOLUTION_DATASETS];
  char path[SOLUTION_PATH];
  int count = rows_of(s, list);
  for (int k = 0; k < count; k++) {
    const row *r = &list[k];
    element type;
    int dims_count;
    int64_t dims[3] = {0}, rows = r->part == SOLUTION_CURVES ? stored + 1 : r->rows, cols = r->data == s->lora_b ? stored : r->cols;
    dataset_path(s, r, path);
    if (!(parts & r->part) || (r->data == s->loss_heldout && !container_has(file, path))) continue;
    if (r->data == s->lora_a) rows = stored;
    TRY(container_shape(file, path, &type, &dims_count, dims));
    if (type != r->type || dims_count != (cols ? 2 : 1) || dims[0] != rows || (cols && dims[1] != cols)) {
      st = fail(E_DATA, "%s: %s: expected %lld x %lld numbers of %zu bytes, found %lld x %lld of %zu", where, r->name, (long long)rows,
                (long long)(cols ? cols : 1), element_bytes(r->type), (long long)dims[0], (long long)(dims_count > 1 ? dims[1] : 1),
                element_bytes(type));
      goto done;
    }
    if (cols != r->cols)
      TRY(load_first_columns(file, path, s, stored));
    else
      TRY(container_read(file, path, r->type, r->by_output ? s->begin : 0, r->by_output ? s->end : r->rows, r->data));
  }
done:
  return st;
}

static void read_facts(const attributes *g, solution_facts *f) {
  f->reference = attr_get_real(g, "reference", NAN);
  f->reference_heldout = attr_get_real(g, "reference_heldout", NAN);
  f->damping_used = attr_get_real(g, "damping_used", NAN);
  f->numerical_rank = attr_get_int(g, "numerical_rank", 0);
  f->tokens = attr_get_int(g, "tokens", 0);
  f->tiny_scales = attr_get_int(g, "scales_raised_from_zero", 0);
  snprintf(f->base_fingerprint, HASH_HEX, "%s", attr_get_text(g, "base_fingerprint"));
  snprintf(f->gram_fingerprint, HASH_HEX, "%s", attr_get_text(g, "gram_fingerprint"));
}

status solution_load(container *file, const char *where, const arch *a, linear_id l, int64_t begin, int64_t end, int rank, unsigned parts,
                     solution *s) {
  status st = OK;
  attributes g = {0};
  char *memory = NULL;
  *s = (solution){0};
  TRY(solution_describe(file, where, a, l, &g, s));
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
  TRY(load_rows(file, where, s, stored, parts));
  read_facts(&g, s->facts);
done:
  attr_free(&g);
  if (st != OK) solution_free(s);
  return st;
}

void solution_free(solution *s) {
  mem_free(&s->memory);
  *s = (solution){0};
}
