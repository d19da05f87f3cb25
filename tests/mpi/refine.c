/* joint/refine: every row of its table on Grams of several kinds, judged by the exact adapter, by identities, and bit by bit on teams of other sizes. */
#include "joint/refine.h"

#include <math.h>
#include <string.h>

#include "../unit/problem.h"
#include "base/blas.h"
#include "check.h"
#include "dist/dlinalg.h"
#include "joint/ritz.h"
#include "quant/codes.h"
#include "quant/optq.h"

enum { GROUP = 16, RANK = 5, MOST_RANK = 13, FEW = 2, MOST_ROUNDS = 16 };

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

typedef struct row {
  const char *name;
  int rank;
  refine_plan plan;
} row;

/* ---- A matrix and its Gram, on a team ------------------------------------------------------------------------------------------- */

typedef struct layer {
  int64_t n, m;
  double mean_diag;
  shared w, h, start; /* start: (start_rows, m) */
  int start_rows;
  uint8_t *dead; /* [m]; NULL none */
} layer;

static layer layer_new(const team *t, problem_kind kind, int64_t n, int64_t m) {
  problem p;
  double *z = NULL, *sigma = NULL;
  CHECK_OK(problem_new(&p, kind, n, m, 3));
  layer l = {.n = n, .m = m, .start_rows = (int)least(ritz_columns(n, MOST_RANK), m)};
  CHECK_OK(shared_new(t, (size_t)(n * m) * sizeof(float), "W", &l.w));
  CHECK_OK(shared_new(t, (size_t)(m * m) * sizeof(float), "H", &l.h));
  CHECK_OK(shared_new(t, (size_t)(l.start_rows * m) * sizeof(double), "eigenvectors", &l.start));
  CHECK_OK(NEW(z, m * m, "eigenvectors"));
  CHECK_OK(NEW(sigma, m, "eigenvalues"));
  if (kind == PROBLEM_DEAD) CHECK_OK(NEW(l.dead, m, "dead columns"));
  for (int64_t j = 0; j < m; j++) {
    l.mean_diag += (double)p.h[j * m + j] / (double)m;
    if (l.dead) l.dead[j] = p.h[j * m + j] == 0;
  }
  for (int64_t i = 0; i < m * m; i++) z[i] = (double)p.h[i];
  CHECK_OK(deigen("H", (int)m, z, (int)m, sigma));
  if (t->rank == 0) {
    memcpy(l.w.base, p.e, l.w.bytes);
    memcpy(l.h.base, p.h, l.h.bytes);
    for (int64_t k = 0; k < l.start_rows; k++) memcpy((double *)l.start.base + k * m, z + (m - 1 - k) * m, (size_t)m * sizeof *z);
  }
  team_barrier(t);
  FREE(z);
  FREE(sigma);
  problem_free(&p);
  return l;
}

static void layer_free(layer *l) {
  shared_free(&l->w);
  shared_free(&l->h);
  shared_free(&l->start);
  FREE(l->dead);
}

/* Codes and grid of all rows, on every rank. */
typedef struct codes {
  shared bytes;
  uint8_t *codes;
  code_grid grid;
  double losses[MOST_ROUNDS];
  int rounds, kept;
  int64_t tiny;
} codes;

static codes codes_new(const team *t, const layer *l, const grid_rule *r) {
  codes c = {.tiny = -1};
  int64_t entries = l->n * l->m, grids = l->n * grid_groups(r, (int)l->m);
  CHECK_OK(shared_new(t, (size_t)(entries + 4 * grids), "codes", &c.bytes));
  c.grid.scales = c.bytes.base;
  c.grid.real_zeros = r->real_zero ? c.grid.scales + grids : NULL;
  c.grid.zeros = r->real_zero ? NULL : (uint8_t *)(c.grid.scales + grids);
  c.codes = (uint8_t *)(c.grid.scales + 2 * grids);
  return c;
}

static grid_rule rule_of(int bits, bool real_zero) {
  return (grid_rule){.kind = GRID_UNIFORM, .bits = bits, .group = GROUP, .beta = 1, .real_zero = real_zero};
}

/* Round to nearest. */
static void begin(const team *t, const layer *l, const grid_rule *r, codes *c) {
  if (t->rank == 0) {
    CHECK_OK(grid_fit(r, (int)l->n, (int)l->m, l->w.base, l->m, NULL, c->grid, NULL));
    grid_round(r, (int)l->n, (int)l->m, l->w.base, l->m, c->grid, c->codes);
  }
  team_barrier(t);
}

typedef struct room {
  shared memory, factor, p;
} room;

/* The factor stands in it. */
static room room_new(const team *t, const layer *l, int rank) {
  room x;
  CHECK_OK(shared_new(t, refine_shared(l->n, l->m, rank), "refine", &x.memory));
  CHECK_OK(shared_new(t, (size_t)(l->m * l->m) * sizeof(double), "factor", &x.factor));
  CHECK_OK(shared_new(t, (size_t)(l->m * l->m) * sizeof(float), "P", &x.p));
  CHECK_OK(reverse_cholesky("layer 4", t, l->m, l->h.base, 0.01 * l->mean_diag, NULL, x.factor.base));
  return x;
}

static void room_free(room *x) {
  shared_free(&x->memory);
  shared_free(&x->factor);
  shared_free(&x->p);
}

static status call_within(const team *t, const layer *l, const grid_rule *r, const row *w, const room *x, codes *c) {
  refine_request q = {.t = t,
                      .where = "layer 4",
                      .plan = w->plan,
                      .rule = *r,
                      .n = l->n,
                      .m = l->m,
                      .rank = w->rank,
                      .w = l->w.base,
                      .h = l->h.base,
                      .dead = l->dead,
                      .damping = 0.01 * l->mean_diag,
                      .weigh_diagonal = true,
                      .least_weight = 1e-6 * l->mean_diag,
                      .start = l->start.base,
                      .start_rows = l->start_rows,
                      .shared_memory = x->memory.base,
                      .factor = x->factor.base,
                      .p = x->p.base};
  int64_t slab = optq_slab(l->m) > sweep_slab(l->m) ? optq_slab(l->m) : sweep_slab(l->m);
  deal_range(l->n, t->size, t->rank, slab, &q.begin, &q.end);
  c->rounds = 1 + w->plan.shapes + w->plan.descents;
  status st = refine(&q, c->codes + q.begin * l->m, grid_from(c->grid, q.begin * grid_groups(r, (int)l->m)), c->losses, &c->kept, &c->tiny);
  team_barrier(t);
  return st;
}

static status call(const team *t, const layer *l, const grid_rule *r, const row *w, codes *c) {
  room x = room_new(t, l, w->rank);
  status st = call_within(t, l, r, w, &x, c);
  room_free(&x);
  return st;
}

/* ---- Judges --------------------------------------------------------------------------------------------------------------------- */

/* The least loss that an adapter of the codes leaves in H + ridge I; trace (may be NULL): what they leave without. */
static double best_loss(const layer *l, const grid_rule *r, const codes *c, int rank, double ridge, double *trace) {
  float *e = NULL, *h = NULL;
  CHECK_OK(NEW(e, l->n * l->m, "E"));
  CHECK_OK(NEW(h, l->m * l->m, "H"));
  codes_bytes_values(r, (int)l->n, (int)l->m, c->codes, c->grid, e);
  for (int64_t i = 0; i < l->n * l->m; i++) e[i] = ((float *)l->w.base)[i] - e[i];
  memcpy(h, l->h.base, l->h.bytes);
  for (int64_t j = 0; j < l->m; j++) h[j * l->m + j] += (float)ridge;
  adapter_request q = {.where = "judge", .n = l->n, .m = l->m, .e = e, .h = h, .rank = rank, .trace = NAN, .path = ADAPTER_DENSE};
  adapter best = {0};
  CHECK_OK(adapter_local(&q, &best));
  double loss = best.trace;
  if (trace) *trace = best.trace;
  for (int i = 0; i < rank && best.values; i++) loss -= best.values[i];
  adapter_free(&best);
  FREE(e);
  FREE(h);
  return loss;
}

/* Method rows of joint/refine.h; without ridge, so that losses on H are those that are compared. Codes can move in H itself only where the adapter
 * leaves large directions: at rank 1 of these Grams, which have four outliers. */
static const row rows[] = {
    {"refine", RANK, {.shapes = 4, .eigenvectors = true, .regrid = true, .descents = 3, .deflated = true, .grid_moves = SWEEP_GRID_REFIT}},
    {"act order",
     RANK,
     {.shapes = 3,
      .eigenvectors = true,
      .regrid = true,
      .act_order = true,
      .descents = 1,
      .deflated = true,
      .grid_moves = SWEEP_GRID_REFIT}},
    {"candidates",
     RANK,
     {.shapes = 1, .eigenvectors = true, .regrid = true, .descents = 3, .deflated = true, .grid_moves = SWEEP_GRID_CANDIDATES}},
    {"varpro", RANK, {.descents = 4, .deflated = true}},
    {"varpro+refit", RANK, {.descents = 4, .deflated = true, .grid_moves = SWEEP_GRID_REFIT}},
    {"projq", RANK, {.shapes = 3}},
    {"gptq-intrinsic", 1, {.shapes = 1, .eigenvectors = true, .shrink = true, .descents = 3}},
    {"bidup", 1, {.descents = 4}},
};
enum { ROWS = sizeof rows / sizeof *rows };

static void same_on_few(const team *t, const layer *l, const grid_rule *r, const row *w, const codes *all) {
  for (int ranks = 1; ranks <= FEW; ranks++) {
    team few;
    CHECK_OK(team_new(t->comm, ranks, &few));
    codes c = codes_new(&few, l, r);
    begin(&few, l, r, &c);
    CHECK_OK(call(&few, l, r, w, &c));
    CHECK(memcmp(c.bytes.base, all->bytes.base, c.bytes.bytes) == 0 && c.kept == all->kept &&
              memcmp(c.losses, all->losses, (size_t)c.rounds * sizeof *c.losses) == 0,
          "%s: %d and %d ranks differ", w->name, t->size, few.size);
    shared_free(&c.bytes);
    team_free(&few);
  }
}

/* Losses fall round by round of descent, the kept one is the least of all, and it is what the result has. gain: what must come of it. */
static void judge(const team *t, const layer *l, const grid_rule *r, const row *w, bool few, double gain) {
  codes c = codes_new(t, l, r), before = codes_new(t, l, r);
  begin(t, l, r, &c);
  begin(t, l, r, &before);
  double trace, at_start = best_loss(l, r, &before, w->rank, 0, &trace);
  team_barrier(t);
  CHECK_OK(call(t, l, r, w, &c));
  if (few) same_on_few(t, l, r, w, &c);
  double at_end = best_loss(l, r, &c, w->rank, 0, NULL), lowest = INFINITY, slack = 1e-6 * trace; /* of E H in float */
  for (int k = 0; k < c.rounds; k++) {
    CHECK(isfinite(c.losses[k]), "%s: round %d of %d was not made", w->name, k, c.rounds);
    if (k > w->plan.shapes && k > 0)
      CHECK(c.losses[k] <= lowest + slack, "%s: descent %d: %.9g after %.9g", w->name, k - w->plan.shapes, c.losses[k], lowest);
    lowest = fmin(lowest, c.losses[k]);
  }
  double kept = c.losses[c.kept];
  CHECK(kept <= lowest * (1 + 1e-4) + slack, "%s: kept round %d with %.9g, least %.9g", w->name, c.kept, kept, lowest);
  CHECK(at_start <= c.losses[0] + slack && c.losses[0] <= 1.02 * at_start + slack, "%s: start %.9g, exact %.9g", w->name, c.losses[0],
        at_start);
  CHECK(at_end <= kept + slack && kept <= 1.02 * at_end + slack, "%s: result %.9g, exact %.9g", w->name, kept, at_end);
  CHECK(at_end <= gain * at_start, "%s: from %.9g to %.9g only", w->name, at_start, at_end);
  CHECK(t->rank > 0 || (c.tiny >= 0) == (w->plan.regrid && w->plan.shapes > 1 && c.kept > 1), "%s: kept round %d with %lld scales replaced",
        w->name, c.kept, (long long)c.tiny);
  int moved = 0, out = 0;
  for (int64_t i = 0; i < l->n * l->m; i++) {
    moved += l->dead && l->dead[i % l->m] && w->plan.shapes == 0 && c.codes[i] != before.codes[i];
    out += c.codes[i] >> r->bits;
  }
  CHECK(moved == 0 && out == 0, "%s: %d codes of dead columns moved, %d out of range", w->name, moved, out);
  CHECK_OK(agree_same(t->comm, "losses", c.losses, (size_t)c.rounds * sizeof *c.losses));
  shared_free(&c.bytes);
  shared_free(&before.bytes);
}

static void everything(const team *t) {
  static const problem_kind kinds[] = {PROBLEM_DECAYING, PROBLEM_SINGULAR, PROBLEM_DEAD};
  for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
    layer l = layer_new(t, kinds[k], 150, 96);
    for (int real = kinds[k] == PROBLEM_DEAD; real < (kinds[k] == PROBLEM_SINGULAR ? 1 : 2); real++)
      for (int w = 0; w < ROWS; w++) {
        grid_rule r = rule_of(2 + real, real);
        judge(t, &l, &r, &rows[w], kinds[k] == PROBLEM_DECAYING, 0.97);
      }
    layer_free(&l);
  }
  layer small = layer_new(t, PROBLEM_DECAYING, 6, 48); /* fewer rows than columns of the basis, than ranks have slabs */
  grid_rule r = rule_of(2, false);
  for (int w = 0; w < ROWS; w++) judge(t, &small, &r, &rows[w], w == 0, 1 + 1e-6);
  layer_free(&small);
}

/* More rounds of descent in H + ridge I never have a larger loss there, whatever they do on H. */
static void ridges(const team *t) {
  enum { ROUNDS = 3 };
  layer l = layer_new(t, PROBLEM_SINGULAR, 150, 96);
  grid_rule r = rule_of(2, false);
  double ridge = 0.03 * l.mean_diag, before = INFINITY, first = 0;
  for (int d = 0; d <= ROUNDS; d++) {
    row w = {"ridge",
             RANK,
             {.shapes = 1, .eigenvectors = true, .descents = d, .deflated = true, .grid_moves = SWEEP_GRID_REFIT, .ridge = ridge}};
    codes c = codes_new(t, &l, &r);
    begin(t, &l, &r, &c);
    CHECK_OK(call(t, &l, &r, &w, &c));
    double loss = best_loss(&l, &r, &c, RANK, ridge, NULL), on_gram = best_loss(&l, &r, &c, RANK, 0, NULL);
    CHECK(loss <= before * (1 + 1e-4), "%d rounds: %.9g after %.9g", d, loss, before);
    CHECK(fabs(on_gram - c.losses[c.kept]) <= 0.02 * on_gram, "%d rounds: %.9g on H, listed %.9g", d, on_gram, c.losses[c.kept]);
    if (d == 0) first = loss;
    before = loss;
    team_barrier(t);
    shared_free(&c.bytes);
  }
  CHECK(before < 0.9 * first, "descent from %.9g to %.9g only", first, before);
  layer_free(&l);
}

/* A kind of round ends with the first that gains less than `stop`; of shaped ones never with the first of all. */
static void stops(const team *t) {
  static const struct {
    int first, made; /* round whose gain counts; rounds that there are at least */
    row row;
  } cases[] = {{2, 3, {"shapes", RANK, {.shapes = 12, .eigenvectors = true, .regrid = true, .stop = 0.02}}},
               {2, 2, {"first shape", RANK, {.shapes = 4, .eigenvectors = true, .regrid = true, .stop = 0.35}}},
               {1, 3, {"descents", RANK, {.descents = 12, .deflated = true, .grid_moves = SWEEP_GRID_REFIT, .stop = 0.03}}}};
  layer l = layer_new(t, PROBLEM_DECAYING, 150, 96);
  grid_rule r = rule_of(2, false);
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const row *w = &cases[i].row;
    codes c = codes_new(t, &l, &r);
    begin(t, &l, &r, &c);
    CHECK_OK(call(t, &l, &r, w, &c));
    int made = 0;
    double lowest = c.losses[0];
    while (made + 1 < c.rounds && isfinite(c.losses[made + 1])) {
      double gain = 1 - c.losses[++made] / lowest;
      lowest = fmin(lowest, c.losses[made]);
      bool last = made + 1 == c.rounds || isnan(c.losses[made + 1]);
      if (made >= cases[i].first) CHECK((gain < w->plan.stop) == last, "%s: round %d gains %.4f", w->name, made, gain);
    }
    CHECK(made >= cases[i].made && made < c.rounds - 1 && c.kept <= made, "%s: %d rounds made, kept %d", w->name, made, c.kept);
    for (int k = made + 1; k < c.rounds; k++) CHECK(isnan(c.losses[k]), "%s: round %d after the last", w->name, k);
    shared_free(&c.bytes);
  }
  layer_free(&l);
}

/* O12: the intrinsic method's codes are those of OPTQ on W with `rank` columns of zeros more, of which the first m are rounded, in the Gram
 * [[H, H V], [V^T H, V^T H V]] + lambda I, all of it in double and as it is written (methods 10). */
static void intrinsic(const team *t, int rank) {
  layer l = layer_new(t, PROBLEM_DECAYING, 150, 96);
  grid_rule r = rule_of(3, false);
  row w = {"O12", rank, {.shapes = 1, .eigenvectors = true, .shrink = true}};
  int m = (int)l.m, all = m + rank;
  double *basis = NULL, *big = NULL, *image = NULL, *u = NULL;
  uint8_t *expected = NULL;
  codes c = codes_new(t, &l, &r);
  begin(t, &l, &r, &c);
  team_barrier(t);
  if (t->rank == 0) memset(c.codes, 0, (size_t)(l.n * l.m)); /* nothing to be proud of: the round is kept */
  team_barrier(t);
  CHECK_OK(call(t, &l, &r, &w, &c));
  CHECK(c.kept == 1, "kept %d", c.kept);
  CHECK_OK(NEW(basis, all * m, "[I; V^T]"));
  CHECK_OK(NEW(image, all * m, "[I; V^T] H"));
  CHECK_OK(NEW(big, all * all, "augmented Gram"));
  CHECK_OK(NEW(u, m * m, "factor"));
  CHECK_OK(NEW(expected, l.n * l.m, "codes"));
  for (int i = 0; i < m; i++) basis[i * m + i] = 1;
  memcpy(basis + m * m, l.start.base, (size_t)(rank * m) * sizeof *basis);
  double *h = NULL;
  CHECK_OK(NEW(h, m * m, "H"));
  for (int i = 0; i < m * m; i++) h[i] = (double)((float *)l.h.base)[i];
  dgemm(false, false, all, m, m, 1, basis, m, h, m, 0, image, m);
  dgemm(false, true, all, all, m, 1, image, m, basis, m, 0, big, all);
  for (int i = 0; i < all; i++) big[i * all + i] += 0.01 * l.mean_diag;
  for (int i = 0; i < all * all / 2; i++) { /* rows and columns in reverse */
    double x = big[i];
    big[i] = big[all * all - 1 - i];
    big[all * all - 1 - i] = x;
  }
  CHECK_OK(dcholesky("augmented Gram", all, big, all));
  for (int i = 0; i < m; i++)
    for (int j = i; j < m; j++) u[i * m + j] = big[(all - 1 - i) * all + all - 1 - j];
  optq_request o = {.rule = r, .rows = (int)l.n, .width = m, .w = l.w.base, .ldw = m, .u = u, .grid = c.grid};
  CHECK_OK(optq(&o, expected, NULL));
  int differ = 0;
  for (int64_t i = 0; i < l.n * l.m; i++) differ += expected[i] != c.codes[i];
  CHECK(differ == 0, "O12, rank %d: %d codes differ", rank, differ);
  FREE(h);
  FREE(basis);
  FREE(image);
  FREE(big);
  FREE(u);
  FREE(expected);
  shared_free(&c.bytes);
  layer_free(&l);
}

/* NaN where it matters: all ranks say so. */
static void failures(const team *t) {
  static const row w = {
      "failures",
      RANK,
      {.shapes = 2, .eigenvectors = true, .regrid = true, .descents = 1, .deflated = true, .grid_moves = SWEEP_GRID_REFIT}};
  layer l = layer_new(t, PROBLEM_DECAYING, 70, 48);
  grid_rule r = rule_of(2, false);
  codes c = codes_new(t, &l, &r);
  room x = room_new(t, &l, RANK);
  for (int which = 0; which < 2; which++) {
    float *at = which ? (float *)l.h.base + 40 * l.m + 40 : (float *)l.w.base + 69 * l.m, kept = *at;
    begin(t, &l, &r, &c);
    team_barrier(t);
    if (t->rank == 0) *at = NAN;
    team_barrier(t);
    CHECK_FAILS(call_within(t, &l, &r, &w, &x, &c), E_NUMERICS);
    if (t->rank == 0) *at = kept;
    team_barrier(t);
  }
  begin(t, &l, &r, &c);
  CHECK_SURVIVES_FAULTS(t->comm, t->size - 1, 4, 2000, "refine", st = call_within(t, &l, &r, &w, &x, &c));
  room_free(&x);
  shared_free(&c.bytes);
  layer_free(&l);
}

int main(int argc, char **argv) {
  MPI_Init(&argc, &argv);
  team t;
  blas_setup();
  CHECK_OK(team_new(MPI_COMM_WORLD, 0, &t));
  everything(&t);
  ridges(&t);
  stops(&t);
  intrinsic(&t, 1);
  intrinsic(&t, 13);
  failures(&t);
  team_free(&t);
  CHECK(mem_now() == 0, "%llu bytes not freed", (unsigned long long)mem_now());
  return check_end("refine");
}
