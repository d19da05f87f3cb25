/* Solved linears through a file: every kind of grid, whole and by rows, at smaller ranks, and what must not be believed. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "check.h"
#include "quant/billm.h"
#include "quant/codes.h"
#include "quant/nf.h"
#include "solution/solution.h"

enum { RANK_MAX = 5, OUT = 96, IN = 128 };

static const arch model = {.hidden = IN, .layers = 1, .intermediate = 160, .vocab = 100, .heads = 6, .kv_heads = 2, .head_dim = 16};
static const linear_id which = LIN_Q; /* (96, 128) */
static char folder[64] = "/tmp/cloqwork-solution-XXXXXX", path[96];
static float w[OUT * IN], q[OUT * IN], again[OUT * IN];
static uint8_t codes[OUT * IN];
static double u[IN][IN];

static float entry(int64_t i) { return (float)((i * 7919 + 13) % 2003 - 1001) * 1e-3f; } /* the same on every rank */

/* A solution of w by rounding to nearest; the adapter and curves are any numbers. */
static void make(solution *s) {
  int group = s->rule.group ? s->rule.group : IN;
  for (int64_t i = 0; i < OUT * IN; i++) w[i] = entry(i) * (float)(1 + i / group % 5);
  if (s->rule.kind == GRID_NF) {
    CHECK_OK(nf_absmax(group, OUT, IN, w, IN, s->absmax));
    if (s->rule.nested) nf_nest(s->out * s->groups, s->absmax, s->absmax_codes, s->nested_absmax, s->nested_offset);
    nf_round(s->rule.bits, group, OUT, IN, w, IN, s->absmax, codes);
  } else if (s->rule.kind == GRID_BINARY) {
    double d[IN];
    for (int j = 0; j < IN; j++) u[j][j] = d[j] = 1;
    CHECK_OK(billm_choose(&s->rule, OUT, IN, w, IN, d, NULL, s->salient));
    billm_request b = {.rule = s->rule, .rows = OUT, .width = IN, .w = w, .ldw = IN, .u = u[0], .salient = s->salient};
    CHECK_OK(billm(&b, codes, s->magnitudes, NULL));
  } else {
    code_grid g = {.scales = s->scales, .zeros = s->zeros};
    CHECK_OK(grid_fit(&s->rule, OUT, IN, w, IN, NULL, g, NULL));
    grid_round(&s->rule, OUT, IN, w, IN, g, codes);
  }
  codes_pack(grid_code_bits(&s->rule), OUT, IN, codes, s->codes);
  for (int64_t i = 0; i < RANK_MAX * IN; i++) s->lora_a[i] = entry(i + 1);
  for (int64_t i = 0; i < OUT * RANK_MAX; i++) s->lora_b[i] = entry(i + 2);
  for (int r = 0; r <= RANK_MAX; r++) s->loss[r] = s->loss_heldout[r] = s->values[r] = 10 - r;
  CHECK_OK(solution_fingerprint(s, s->facts->base_fingerprint));
}

/* edit spoils the attributes of the group, or is NULL. */
static void write_file(const team *t, const solution *s, void (*edit)(attributes *)) {
  char paths[SOLUTION_DATASETS][SOLUTION_PATH];
  dataset sets[SOLUTION_DATASETS];
  attributes root = {0}, group = {0};
  int count = solution_datasets(s, true, paths, sets);
  CHECK_OK(attr_text(&root, "model_fingerprint", "abc"));
  CHECK_OK(attr_int(&group, "bits", s->rule.bits));
  CHECK_OK(attr_int(&group, "group", s->rule.group));
  CHECK_OK(attr_text(&group, "base_fingerprint", s->facts->base_fingerprint));
  CHECK_OK(solution_grid_attributes(s, &group));
  if (edit) edit(&group);
  group_attributes groups[] = {{"", &root}, {linear_path(which), &group}};
  CHECK_OK(container_write(t, path, "test", "solution", sets, count, groups, 2));
  attr_free(&root);
  attr_free(&group);
}

static void check_rows(container *file, const solution *s, int64_t begin, int64_t end, int rank, unsigned parts) {
  solution r;
  CHECK_OK(solution_load(file, "here", &model, which, begin, end, rank, parts, &r));
  if (end < 0) end = s->out;
  CHECK(r.rule.kind == s->rule.kind && r.rule.nested == s->rule.nested && r.rule.bits == s->rule.bits && r.loaded == s->loaded, "%d %d",
        (int)r.rule.kind, (int)r.loaded);
  CHECK(r.begin == begin && r.end == end && r.out == OUT && r.rank == (rank ? rank : RANK_MAX), "%d", r.rank);
  CHECK((r.codes != NULL) == ((parts & SOLUTION_BASE) != 0) && (r.loss != NULL) == ((parts & SOLUTION_CURVES) != 0), "%u", parts);
  if (parts & SOLUTION_BASE) {
    solution_values(&r, begin, end, again);
    CHECK(memcmp(again, q + begin * IN, (size_t)(end - begin) * IN * sizeof *q) == 0, "rows %d to %d", (int)begin, (int)end);
  }
  for (int64_t i = begin; (parts & SOLUTION_ADAPTER) && i < end; i++)
    CHECK(memcmp(r.lora_b + (i - begin) * r.rank, s->lora_b + i * RANK_MAX, (size_t)r.rank * sizeof *w) == 0, "row %d", (int)i);
  if (parts & SOLUTION_ADAPTER) CHECK(memcmp(r.lora_a, s->lora_a, (size_t)(r.rank * IN) * sizeof *w) == 0, "rank %d", r.rank);
  for (int k = 0; (parts & SOLUTION_CURVES) && k <= r.rank; k++) CHECK(r.loss[k] == 10 - k && r.loss_heldout[k] == 10 - k, "%d", k);
  if (parts == SOLUTION_ALL && begin == 0 && end == OUT) {
    char hex[HASH_HEX];
    CHECK_OK(solution_fingerprint(&r, hex));
    CHECK(strcmp(hex, s->facts->base_fingerprint) == 0 && strcmp(hex, r.facts->base_fingerprint) == 0, "%s", hex);
    CHECK_OK(solution_check_nested(&r, "here"));
  }
  solution_free(&r);
}

static void no_values(attributes *a) { CHECK_OK(attr_text(a, "values", "f64")); }
static void other_grid(attributes *a) { CHECK_OK(attr_text(a, "grid", "fp4")); }
static void other_group(attributes *a) { CHECK_OK(attr_int(a, "group", 48)); }

static void check_bad(const team *t, const solution *s) {
  void (*const edits[])(attributes *) = {other_grid, other_group, no_values};
  for (int k = 0; k < (s->rule.kind == GRID_NF ? 3 : 2); k++) {
    container *file = NULL;
    solution r;
    write_file(t, s, edits[k]);
    CHECK_OK(container_open(path, "solution", &file));
    CHECK_FAILS(solution_load(file, "here", &model, which, 0, -1, 0, SOLUTION_ALL, &r), E_DATA);
    container_close(&file);
    MPI_Barrier(t->comm);
  }
  if (!s->rule.nested) return;
  s->absmax_codes[3] ^= 1;
  CHECK_FAILS(solution_check_nested(s, "here"), E_DATA);
  s->absmax_codes[3] ^= 1;
  *s->nested_offset *= 1 + 1e-6f;
  CHECK_FAILS(solution_check_nested(s, "here"), E_DATA);
}

static void check_rule(const team *t, const grid_rule *rule, real_type loaded) {
  solution s = solution_shape(&model, which, rule, RANK_MAX);
  container *file = NULL;
  char *memory = NULL;
  s.loaded = loaded;
  CHECK_OK(NEW(memory, solution_place(&s, SOLUTION_ALL, NULL), "a solution"));
  solution_place(&s, SOLUTION_ALL, memory);
  CHECK((s.absmax != NULL) == (rule->kind == GRID_NF) && (s.scales != NULL) == (rule->kind == GRID_UNIFORM) &&
            (s.magnitudes != NULL) == (rule->kind == GRID_BINARY) && (s.absmax_codes != NULL) == (rule->kind == GRID_NF && rule->nested),
        "%d", (int)rule->kind);
  make(&s);
  solution_values(&s, 0, OUT, q);
  write_file(t, &s, NULL);
  CHECK_OK(container_open(path, "solution", &file));
  check_rows(file, &s, 0, -1, 0, SOLUTION_ALL);
  check_rows(file, &s, 0, OUT, 3, SOLUTION_ALL);
  check_rows(file, &s, 17, 64, 1, SOLUTION_BASE | SOLUTION_ADAPTER);
  check_rows(file, &s, OUT - 1, OUT, 0, SOLUTION_BASE);
  check_rows(file, &s, 5, 9, 2, SOLUTION_ADAPTER);
  check_rows(file, &s, 0, -1, 0, SOLUTION_CURVES);
  solution r;
  CHECK_FAILS(solution_load(file, "here", &model, which, 0, -1, RANK_MAX + 1, SOLUTION_ALL, &r), E_DATA);
  CHECK_FAILS(solution_load(file, "here", &model, LIN_K, 0, -1, 0, SOLUTION_ALL, &r), E_DATA);
  container_close(&file);
  MPI_Barrier(t->comm);
  check_bad(t, &s);
  FREE(memory);
}

/* ---- ranks with codes of their own ---- */

static void check_choice(void) {
  static const struct {
    const char *list;
    int rank, serves;
  } cases[] = {{"4,16", 0, 16}, {"4,16", 1, 4}, {"4,16", 4, 4}, {"4,16", 15, 4}, {"4,16", 16, 16}, {"4,16", 17, 16},
               {"16,4", 3, 4},  {"8", 8, 8},    {"8", 0, 8},    {"", 0, 0},      {"", 3, 0}};
  for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
    int found = solution_variant(cases[k].list, cases[k].rank);
    CHECK(found == cases[k].serves, "%d of %s: %d", cases[k].rank, cases[k].list, found);
  }
}

enum { SMALL = 2, COLUMNS = 4, LARGE = RANK_MAX }; /* codes for 2 with 4 columns, codes for 5 with 5 */

/* The group of the linear lists two variants; codes differ, so that it shows whose they are. */
static void write_variants(const team *t, solution both[2], const char *ranks, bool extends, bool own_rank) {
  char paths[2 * SOLUTION_DATASETS][SOLUTION_PATH], groups[2][SOLUTION_PATH];
  dataset sets[2 * SOLUTION_DATASETS];
  attributes root = {0}, parent = {0}, of[2] = {{0}};
  int count = 0;
  CHECK_OK(attr_text(&root, "model_fingerprint", "abc"));
  CHECK_OK(attr_text(&parent, "ranks", ranks));
  if (extends) CHECK_OK(attr_int(&parent, "extends", 1));
  if (own_rank) CHECK_OK(attr_int(&parent, "own_rank", 1));
  for (int v = 0; v < 2; v++) {
    solution_group(&both[v], groups[v]);
    CHECK_OK(attr_int(&of[v], "bits", both[v].rule.bits));
    CHECK_OK(attr_int(&of[v], "group", both[v].rule.group));
    CHECK_OK(attr_real(&of[v], "adapter_size", 0.25 * (v + 1)));
    CHECK_OK(attr_real(&of[v], "ridge_used", 0.5 * v));
    both[v].own_rank = own_rank;
    CHECK_OK(solution_grid_attributes(&both[v], &of[v]));
    count += solution_datasets(&both[v], true, paths + count, sets + count);
  }
  group_attributes all[] = {{"", &root}, {linear_path(which), &parent}, {groups[0], &of[0]}, {groups[1], &of[1]}};
  CHECK_OK(container_write(t, path, "test", "solution", sets, count, all, 4));
  attr_free(&root);
  attr_free(&parent);
  for (int v = 0; v < 2; v++) attr_free(&of[v]);
}

/* Rank `rank` is the first columns of variant v. */
static void check_variant(const solution both[2], int rank, int v, bool extends) {
  container *file = NULL;
  solution r, d;
  const solution *from = &both[v];
  int expected = rank ? rank : from->rank;
  CHECK_OK(container_open(path, "solution", &file));
  CHECK_OK(solution_describe(file, "here", &model, which, rank, NULL, &d));
  CHECK(d.rank == from->rank && d.variant == from->variant && d.extends == extends && d.round_count == from->round_count,
        "rank %d: %d of %d", rank, d.rank, d.variant);
  CHECK_OK(solution_load(file, "here", &model, which, 0, -1, rank, SOLUTION_ALL, &r));
  CHECK(r.rank == expected && r.variant == from->variant, "rank %d: %d of %d", rank, r.rank, r.variant);
  CHECK(memcmp(r.codes, from->codes, (size_t)(OUT * r.words) * sizeof *r.codes) == 0, "rank %d: other codes", rank);
  CHECK(memcmp(r.lora_a, from->lora_a, (size_t)(r.rank * IN) * sizeof *w) == 0, "rank %d", rank);
  for (int64_t i = 0; i < OUT; i++)
    CHECK(memcmp(r.lora_b + i * r.rank, from->lora_b + i * from->rank, (size_t)r.rank * sizeof *w) == 0, "rank %d, row %d", rank, (int)i);
  for (int k = 0; k <= r.rank; k++) CHECK(r.loss[k] == from->loss[k], "rank %d, %d", rank, k);
  for (int k = 0; k < r.round_count; k++) CHECK(r.rounds[k] == from->rounds[k], "rank %d, round %d", rank, k);
  CHECK(r.facts->adapter_size == 0.25 * (v + 1) && r.facts->ridge_used == 0.5 * v, "%g", r.facts->adapter_size);
  solution_free(&r);
  container_close(&file);
}

/* The whole of a variant, by its name; a rank that none has. */
static void check_whole(const solution both[2], bool extends) {
  container *file = NULL;
  solution r;
  CHECK_OK(container_open(path, "solution", &file));
  for (int v = 0; v < 2; v++) {
    CHECK_OK(solution_load_variant(file, "here", &model, which, both[v].variant, SOLUTION_ALL, &r));
    CHECK(r.rank == both[v].rank && r.variant == both[v].variant && r.extends == extends, "%d of %d", r.rank, r.variant);
    CHECK(memcmp(r.lora_b, both[v].lora_b, (size_t)(OUT * r.rank) * sizeof *w) == 0, "%d", r.variant);
    solution_free(&r);
  }
  CHECK_FAILS(solution_load_variant(file, "here", &model, which, SMALL + 1, SOLUTION_ALL, &r), E_DATA);
  CHECK_FAILS(solution_load(file, "here", &model, which, 0, -1, LARGE + 1, SOLUTION_ALL, &r), E_DATA);
  container_close(&file);
}

static void refuse_variant(int rank, status expected) {
  container *file = NULL;
  solution r;
  CHECK_OK(container_open(path, "solution", &file));
  CHECK_FAILS(solution_describe(file, "here", &model, which, rank, NULL, &r), expected);
  container_close(&file);
}

/* The norm of the first `rank` columns of B times the first rows of A, by the whole product. */
static double product_norm(const solution *s, int rank) {
  double all = 0;
  for (int64_t i = 0; i < s->out; i++)
    for (int64_t j = 0; j < s->in; j++) {
      double sum = 0;
      for (int k = 0; k < rank; k++) sum += (double)s->lora_b[i * s->rank + k] * (double)s->lora_a[k * s->in + j];
      all += sum * sum;
    }
  return sqrt(all);
}

static void check_norm(void) {
  enum { N = 7, M = 11, MOST = 37 };
  static float a[MOST * M], b[N * MOST];
  for (int k = 0; k < MOST * M; k++) a[k] = entry(k + 5);
  for (int k = 0; k < N * MOST; k++) b[k] = entry(k + 6);
  for (int rank = 1; rank <= MOST; rank++) {
    solution s = {.out = N, .in = M, .end = N, .rank = rank, .lora_a = a, .lora_b = b};
    double expected = product_norm(&s, rank), found = solution_adapter_norm(&s);
    CHECK(fabs(found - expected) <= 1e-10 * expected && expected > 0, "rank %d: %.17g, expected %.17g", rank, found, expected);
  }
}

/* A copy of the first columns has their size, and the rounds of the whole. */
static void check_copy(const solution *s) {
  solution to = *s;
  char *memory = NULL;
  to.rank = SMALL;
  CHECK_OK(NEW(memory, solution_place(&to, SOLUTION_ALL, NULL), "a solution"));
  solution_place(&to, SOLUTION_ALL, memory);
  s->facts->adapter_size = 0.5;
  s->facts->round = 2;
  solution_copy(s, SOLUTION_ALL, &to);
  double expected = 0.5 * product_norm(s, SMALL) / product_norm(s, s->rank);
  CHECK(fabs(to.facts->adapter_size - expected) <= 1e-10, "%g, expected %g", to.facts->adapter_size, expected);
  CHECK(to.facts->round == 2 && memcmp(to.rounds, s->rounds, (size_t)s->round_count * sizeof *s->rounds) == 0, "%d", to.facts->round);
  FREE(memory);
}

static void check_variants(const team *t) {
  grid_rule rule = {.bits = 3, .group = 64, .beta = 1};
  solution both[2];
  char *memory[2] = {NULL, NULL};
  for (int v = 0; v < 2; v++) {
    both[v] = solution_shape(&model, which, &rule, RANK_MAX);
    both[v].round_count = 3;
    CHECK_OK(NEW(memory[v], solution_place(&both[v], SOLUTION_ALL, NULL), "a solution"));
    solution_place(&both[v], SOLUTION_ALL, memory[v]);
    make(&both[v]);
    both[v].codes[7] ^= (uint32_t)(v + 1);
    for (int k = 0; k < 3; k++) both[v].rounds[k] = 10 * v + k;
    for (int k = 0; k <= RANK_MAX; k++) both[v].loss[k] = 100 * v + 10 - k;
  }
  check_copy(&both[1]);
  both[0].rank = COLUMNS; /* of RANK_MAX columns the first; rows lie closer */
  both[0].variant = SMALL;
  both[1].variant = LARGE;
  for (int64_t i = 0; i < OUT * COLUMNS; i++) both[0].lora_b[i] = entry(i + 3);
  write_variants(t, both, "2,5", true, false);
  for (int rank = 0; rank <= LARGE; rank++) check_variant(both, rank, rank == 0 || rank == LARGE, true);
  check_whole(both, true);
  MPI_Barrier(t->comm);
  write_variants(t, both, "2,5", false, false); /* each for its own rank */
  check_variant(both, 0, 1, false);
  check_variant(both, SMALL, 0, false);
  check_variant(both, LARGE, 1, false);
  refuse_variant(1, E_USAGE);
  refuse_variant(3, E_USAGE);
  refuse_variant(LARGE + 1, E_USAGE);
  MPI_Barrier(t->comm);
  write_variants(t, both, "5", true, true); /* a matrix with a rank of its own */
  check_variant(both, 0, 1, true);
  check_variant(both, 4, 1, true);
  container *file = NULL;
  solution r;
  CHECK_OK(container_open(path, "solution", &file));
  CHECK_OK(solution_load(file, "here", &model, which, 0, -1, LARGE + 3, SOLUTION_ADAPTER, &r));
  CHECK(r.rank == LARGE, "%d", r.rank);
  solution_free(&r);
  container_close(&file);
  MPI_Barrier(t->comm);
  write_variants(t, both, "2,3,5", true, false); /* one that is not there */
  refuse_variant(4, E_DATA);
  MPI_Barrier(t->comm);
  for (int v = 0; v < 2; v++) FREE(memory[v]);
}

int main(int argc, char **argv) {
  team t;
  int rank;
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (rank == 0) CHECK(mkdtemp(folder), "%s", folder);
  MPI_Bcast(folder, sizeof folder, MPI_CHAR, 0, MPI_COMM_WORLD);
  snprintf(path, sizeof path, "%s/layer-000.h5", folder);
  CHECK_OK(team_new(MPI_COMM_WORLD, 0, &t));
  check_rule(&t, &(grid_rule){.bits = 3, .group = 64, .beta = 1}, REAL_F32);
  check_rule(&t, &(grid_rule){.bits = 8, .group = 0, .symmetric = true, .beta = 1}, REAL_F32);
  check_rule(&t, &(grid_rule){.kind = GRID_NF, .bits = 4, .group = 64}, REAL_BF16);
  check_rule(&t, &(grid_rule){.kind = GRID_NF, .bits = 4, .group = 32, .nested = true}, REAL_F16); /* 384 of absmax: two nests */
  check_rule(&t, &(grid_rule){.kind = GRID_NF, .bits = 4, .group = 128, .nested = true}, REAL_F32);
  check_rule(&t, &(grid_rule){.kind = GRID_NF, .bits = 2, .group = 32, .nested = true}, REAL_BF16);
  check_rule(&t, &(grid_rule){.kind = GRID_NF, .bits = 3, .group = 64}, REAL_F16);
  check_rule(&t, &(grid_rule){.kind = GRID_BINARY, .bits = 1, .group = 32}, REAL_F32);
  check_choice();
  check_norm();
  check_variants(&t);
  if (rank == 0) {
    unlink(path);
    CHECK(rmdir(folder) == 0, "%s", folder);
  }
  team_free(&t);
  return check_end("solution");
}
