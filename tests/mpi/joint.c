/* joint/ritz and joint/deflate: identities of spec methods 2.1, 2.3, 2.4 and 10, and the same bits on teams of any size. */
#include "check.h"

#include <math.h>
#include <string.h>

#include "../unit/problem.h"
#include "adapter/mixed.h"
#include "base/blas.h"
#include "dist/agree.h"
#include "joint/deflate.h"
#include "joint/ritz.h"

enum { FEW = 2 };

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* A problem in shared memory, and in double for judges. */
typedef struct layer {
  int64_t n, m;
  shared e, h, em;
  double *ed, *hd, *emd; /* (n, m), (m, m), (n, m): of the floats */
  double trace;          /* tr(E (E H)^T) of the floats */
} layer;

static double dot(int64_t n, const double *x, const double *y) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += x[i] * y[i];
  return sum;
}

/* Collective. E H rounded to float anew, and what follows from it. */
static void layer_renew(const team *t, layer *l) {
  int in = (int)l->n, im = (int)l->m;
  team_barrier(t);
  mixed_widen(l->n, l->m, l->e.base, l->m, l->ed);
  mixed_widen(l->m, l->m, l->h.base, l->m, l->hd);
  dgemm(false, false, in, im, im, 1, l->ed, im, l->hd, im, 0, l->emd, im);
  for (int64_t i = 0; t->rank == 0 && i < l->n * l->m; i++) ((float *)l->em.base)[i] = (float)l->emd[i];
  team_barrier(t);
  mixed_widen(l->n, l->m, l->em.base, l->m, l->emd);
  l->trace = dot(l->n * l->m, l->ed, l->emd);
}

static layer layer_new(const team *t, int64_t n, int64_t m, const float *e, const float *h) {
  layer l = {.n = n, .m = m};
  CHECK_OK(shared_new(t, (size_t)(n * m) * sizeof(float), "E", &l.e));
  CHECK_OK(shared_new(t, (size_t)(n * m) * sizeof(float), "E H", &l.em));
  CHECK_OK(shared_new(t, (size_t)(m * m) * sizeof(float), "H", &l.h));
  CHECK_OK(NEW(l.ed, n * m, "E"));
  CHECK_OK(NEW(l.emd, n * m, "E H"));
  CHECK_OK(NEW(l.hd, m * m, "H"));
  if (t->rank == 0) {
    memcpy(l.e.base, e, l.e.bytes);
    memcpy(l.h.base, h, l.h.bytes);
  }
  layer_renew(t, &l);
  return l;
}

static layer layer_of_kind(const team *t, problem_kind kind, int64_t n, int64_t m) {
  problem p;
  CHECK_OK(problem_new(&p, kind, n, m, 3));
  layer l = layer_new(t, n, m, p.e, p.h);
  problem_free(&p);
  return l;
}

/* Small whole numbers: E H is exact in float, so that losses can be compared to rounding. */
static layer layer_of_whole_numbers(const team *t, int64_t n, int64_t m) {
  float *e = NULL, *h = NULL;
  CHECK_OK(NEW(e, n * m, "E"));
  CHECK_OK(NEW(h, m * m, "H"));
  for (int64_t i = 0; i < n * m; i++) e[i] = (float)floor(4 * problem_entry(1, i));
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j <= i; j++) {
      float sum = 0;
      for (int64_t k = 0; k < 2 * m; k++)
        sum += (float)(floor(2 * problem_entry(2, k * m + i)) * (k < 5 ? 4 : 1) * floor(2 * problem_entry(2, k * m + j)) * (k < 5 ? 4 : 1));
      h[i * m + j] = h[j * m + i] = sum;
    }
  layer l = layer_new(t, n, m, e, h);
  FREE(e);
  FREE(h);
  return l;
}

static void layer_free(layer *l) {
  shared_free(&l->e);
  shared_free(&l->h);
  shared_free(&l->em);
  FREE(l->ed);
  FREE(l->hd);
  FREE(l->emd);
}

/* ---- Ritz ----------------------------------------------------------------------------------------------------------------------- */

typedef struct answer {
  int k;
  double *y, *u, *a, *values, loss;
} answer;

static answer answer_new(int64_t n, int64_t m, int rank) {
  answer x = {.k = ritz_columns(n, rank)};
  CHECK_OK(NEW(x.y, x.k * n, "y"));
  CHECK_OK(NEW(x.u, rank * n, "u"));
  CHECK_OK(NEW(x.a, rank * m, "a"));
  CHECK_OK(NEW(x.values, rank, "values"));
  for (int64_t i = 0; i < x.k * n; i++) x.y[i] = problem_entry(77, i);
  return x;
}

static void answer_free(answer *x) {
  FREE(x->y);
  FREE(x->u);
  FREE(x->a);
  FREE(x->values);
}

static status call(const team *t, const layer *l, int rank, int steps, answer *x) {
  ritz_request q = {
      .t = t, .where = "layer 4", .n = l->n, .m = l->m, .rank = rank, .steps = steps, .e = l->e.base, .em = l->em.base, .trace = l->trace};
  shared work;
  CHECK_OK(shared_new(t, ritz_shared(l->n, l->m, rank), "ritz", &work));
  status st = ritz(&q, x->y, work.base, x->u, x->a, x->values, &x->loss);
  shared_free(&work);
  return st;
}

static double defect(int rows, int64_t n, const double *x) {
  double worst = 0;
  for (int i = 0; i < rows; i++)
    for (int j = 0; j <= i; j++) worst = fmax(worst, fabs(dot(n, x + i * n, x + j * n) - (i == j)));
  return worst;
}

/* tr((E - U^T A) H (E - U^T A)^T) */
static double direct_loss(const layer *l, int rank, const double *u, const double *a) {
  double *r = NULL, *rh = NULL, sum = NAN;
  int in = (int)l->n, im = (int)l->m;
  CHECK_OK(NEW(r, l->n * l->m, "residual"));
  CHECK_OK(NEW(rh, l->n * l->m, "residual H"));
  memcpy(r, l->ed, (size_t)(l->n * l->m) * sizeof *r);
  dgemm(true, false, in, im, rank, -1, u, in, a, im, 1, r, im);
  dgemm(false, false, in, im, im, 1, r, im, l->hd, im, 0, rh, im);
  sum = dot(l->n * l->m, r, rh);
  FREE(r);
  FREE(rh);
  return sum;
}

/* tr of the optimum's loss, by the exact adapter. */
static double best_loss(const layer *l, int rank) {
  adapter_request q = {
      .where = "optimum", .n = l->n, .m = l->m, .e = l->e.base, .h = l->h.base, .rank = rank, .trace = NAN, .path = ADAPTER_DENSE};
  adapter best = {0};
  CHECK_OK(adapter_local(&q, &best));
  double loss = best.trace;
  for (int i = 0; i < rank && best.values; i++) loss -= best.values[i];
  adapter_free(&best);
  return loss;
}

static void same_on_few(const team *t, const layer *l, int rank, int steps, const answer *all) {
  for (int ranks = 1; ranks <= FEW; ranks++) {
    team few;
    answer x = answer_new(l->n, l->m, rank);
    CHECK_OK(team_new(t->comm, ranks, &few));
    CHECK_OK(call(&few, l, rank, steps, &x));
    bool same = memcmp(x.y, all->y, (size_t)(x.k * l->n) * sizeof *x.y) == 0 &&
                memcmp(x.u, all->u, (size_t)(rank * l->n) * sizeof *x.u) == 0 &&
                memcmp(x.a, all->a, (size_t)(rank * l->m) * sizeof *x.a) == 0 &&
                memcmp(x.values, all->values, (size_t)rank * sizeof *x.values) == 0 && x.loss == all->loss;
    CHECK(same, "%lld x %lld, rank %d: %d and %d ranks differ", (long long)l->n, (long long)l->m, rank, t->size, few.size);
    team_free(&few);
    answer_free(&x);
  }
}

/* slack: relative to the trace, what the rounding of E H to float does to losses. */
static void ritz_of(const team *t, const layer *l, int rank, double slack) {
  enum { CALLS = 12, STEPS = 3 };
  answer x = answer_new(l->n, l->m, rank);
  double best = best_loss(l, rank), before = INFINITY, allowed = slack * l->trace + 1e-300, length = sqrt(dot(l->n * l->m, l->ed, l->ed));
  for (int i = 0; i < CALLS; i++) {
    CHECK_OK(call(t, l, rank, STEPS, &x));
    if (i == 0) same_on_few(t, l, rank, STEPS, &x);
    CHECK(defect(rank, l->n, x.u) < 1e-13 && defect(x.k, l->n, x.y) < 1e-13, "%lld x %lld, rank %d: u %.1e, y %.1e from orthonormal",
          (long long)l->n, (long long)l->m, rank, defect(rank, l->n, x.u), defect(x.k, l->n, x.y));
    double off = 0;
    for (int r = 0; r < rank; r++)
      for (int64_t j = 0; j < l->m; j++) {
        double sum = 0;
        for (int64_t k = 0; k < l->n; k++) sum += x.u[r * l->n + k] * l->ed[k * l->m + j];
        off = fmax(off, fabs(sum - x.a[r * l->m + j]));
      }
    CHECK(off <= 1e-14 * length, "a differs from u E by %.1e of %.1e", off, length);
    for (int r = 1; r < rank; r++) CHECK(x.values[r] <= x.values[r - 1], "value %d", r);
    double direct = direct_loss(l, rank, x.u, x.a);
    CHECK(fabs(direct - x.loss) <= allowed, "%lld x %lld, rank %d: loss %.15g, direct %.15g", (long long)l->n, (long long)l->m, rank,
          x.loss, direct);
    CHECK(x.loss >= best - allowed && x.loss <= before + allowed, "loss %.15g, before %.15g, best %.15g", x.loss, before, best);
    before = x.loss;
  }
  CHECK(before - best <= 1e-3 * best + allowed, "%lld x %lld, rank %d: loss %.15g stays above %.15g", (long long)l->n, (long long)l->m,
        rank, before, best);
  CHECK_OK(agree_same(t->comm, "u", x.u, (size_t)(rank * l->n) * sizeof *x.u));
  CHECK_OK(agree_same(t->comm, "y", x.y, (size_t)(x.k * l->n) * sizeof *x.y));
  answer_free(&x);
}

static void ritz_shapes(const team *t) {
  static const int64_t shape[][2] = {{130, 130}, {403, 77}, {70, 290}, {5, 3}, {1, 8}, {12, 60}};
  static const problem_kind kinds[] = {PROBLEM_DECAYING, PROBLEM_SINGULAR, PROBLEM_DEAD, PROBLEM_ZERO};
  for (size_t s = 0; s < sizeof shape / sizeof *shape; s++) {
    int64_t n = shape[s][0], m = shape[s][1];
    int most = (int)least(n, m);
    for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++) {
      layer l = layer_of_kind(t, kinds[kind], n, m);
      ritz_of(t, &l, 1, 1e-7);
      if (most > 8) ritz_of(t, &l, 9, 1e-7);
      if (kinds[kind] == PROBLEM_DECAYING) ritz_of(t, &l, most, 1e-7);
      layer_free(&l);
    }
    layer l = layer_of_whole_numbers(t, n, m);
    ritz_of(t, &l, (most + 3) / 4, 1e-12);
    layer_free(&l);
  }
}

int main(int argc, char **argv) {
  MPI_Init(&argc, &argv);
  team t;
  blas_setup();
  CHECK_OK(team_new(MPI_COMM_WORLD, 0, &t));
  ritz_shapes(&t);
  team_free(&t);
  CHECK(mem_now() == 0, "%llu bytes not freed", (unsigned long long)mem_now());
  return check_end("joint");
}
