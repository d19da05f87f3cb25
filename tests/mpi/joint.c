/* joint/ritz and joint/deflate: identities of spec methods 2.1, 2.3, 2.4 and 10, and the same bits on teams of any size. */
#include "check.h"

#include <math.h>
#include <string.h>

#include "../unit/problem.h"
#include "adapter/mixed.h"
#include "base/blas.h"
#include "joint/deflate.h"
#include "joint/ritz.h"

enum { FEW = 2 };

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* A problem in shared memory, and in double for judges. */
typedef struct layer {
  int64_t n, m;
  shared e, h;
  double *ed, *hd; /* (n, m), (m, m): of the floats */
  double trace;    /* tr(E H E^T) of the floats */
} layer;

static double dot(int64_t n, const double *x, const double *y) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += x[i] * y[i];
  return sum;
}

static layer layer_new(const team *t, int64_t n, int64_t m, const float *e, const float *h) {
  layer l = {.n = n, .m = m};
  CHECK_OK(shared_new(t, (size_t)(n * m) * sizeof(float), "E", &l.e));
  CHECK_OK(shared_new(t, (size_t)(m * m) * sizeof(float), "H", &l.h));
  CHECK_OK(NEW(l.ed, n * m, "E"));
  CHECK_OK(NEW(l.hd, m * m, "H"));
  if (t->rank == 0) {
    memcpy(l.e.base, e, l.e.bytes);
    memcpy(l.h.base, h, l.h.bytes);
  }
  team_barrier(t);
  mixed_widen(n, m, e, m, l.ed);
  mixed_widen(m, m, h, m, l.hd);
  CHECK_OK(adapter_trace(m, e, h, 0, n, NULL, &l.trace));
  return l;
}

static layer layer_of_kind(const team *t, problem_kind kind, int64_t n, int64_t m) {
  problem p;
  CHECK_OK(problem_new(&p, kind, n, m, 3));
  layer l = layer_new(t, n, m, p.e, p.h);
  problem_free(&p);
  return l;
}

/* Small whole numbers, of which products are exact. */
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
  FREE(l->ed);
  FREE(l->hd);
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

/* work: seen by the team, of ritz_shared bytes. */
static status call_within(const team *t, const layer *l, int rank, int steps, double *work, answer *x) {
  ritz_request q = {
      .t = t, .where = "layer 4", .n = l->n, .m = l->m, .rank = rank, .steps = steps, .e = l->e.base, .h = l->h.base, .trace = l->trace};
  return ritz(&q, x->y, work, x->u, x->a, x->values, &x->loss);
}

static status call(const team *t, const layer *l, int rank, int steps, answer *x) {
  shared work;
  CHECK_OK(shared_new(t, ritz_shared(l->n, l->m, rank), "ritz", &work));
  status st = call_within(t, l, rank, steps, work.base, x);
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

/* slack: relative to the trace. */
static void ritz_of(const team *t, const layer *l, int rank, double slack) {
  enum { CALLS = 8, STEPS = 4 };
  answer x = answer_new(l->n, l->m, rank);
  double best = best_loss(l, rank), before = INFINITY, allowed = slack * l->trace + 1e-300, length = sqrt(dot(l->n * l->m, l->ed, l->ed)),
         *ue = NULL;
  CHECK_OK(NEW(ue, rank * l->m, "u E"));
  for (int i = 0; i < CALLS; i++) {
    CHECK_OK(call(t, l, rank, STEPS, &x));
    if (i == 0) same_on_few(t, l, rank, STEPS, &x);
    CHECK(defect(rank, l->n, x.u) < 1e-13 && defect(x.k, l->n, x.y) < 1e-13, "%lld x %lld, rank %d: u %.1e, y %.1e from orthonormal",
          (long long)l->n, (long long)l->m, rank, defect(rank, l->n, x.u), defect(x.k, l->n, x.y));
    memcpy(ue, x.a, (size_t)(rank * l->m) * sizeof *ue);
    dgemm(false, false, rank, (int)l->m, (int)l->n, -1, x.u, (int)l->n, l->ed, (int)l->m, 1, ue, (int)l->m);
    double off = 0;
    for (int64_t j = 0; j < rank * l->m; j++) off = fmax(off, fabs(ue[j]));
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
  FREE(ue);
  answer_free(&x);
}

static void ritz_shapes(const team *t) {
  static const int64_t shape[][2] = {{130, 130}, {403, 77}, {70, 290}, {5, 3}, {1, 8}, {12, 60}};
  static const problem_kind kinds[] = {PROBLEM_DECAYING, PROBLEM_SINGULAR, PROBLEM_DEAD, PROBLEM_ZERO};
  for (size_t s = 0; s < sizeof shape / sizeof *shape; s++) {
    int64_t n = shape[s][0], m = shape[s][1];
    int most = (int)least(n, m);
    for (size_t kind = 0; kind < (most > 8 ? sizeof kinds / sizeof *kinds : 1); kind++) {
      layer l = layer_of_kind(t, kinds[kind], n, m);
      ritz_of(t, &l, 1, 1e-12);
      if (most > 8) ritz_of(t, &l, 9, 1e-12);
      if (kinds[kind] == PROBLEM_DECAYING) ritz_of(t, &l, most, 1e-12);
      layer_free(&l);
    }
    layer l = layer_of_whole_numbers(t, n, m);
    ritz_of(t, &l, (most + 3) / 4, 1e-12);
    layer_free(&l);
  }
}

/* ---- Deflation ------------------------------------------------------------------------------------------------------------------ */

typedef struct deflation {
  int64_t m;
  int rank;
  double *a; /* (rank, m) */
  double ridge, shrink;
} deflation;

static status deflate_within(const team *t, const layer *l, const deflation *d, double *work, float *p) {
  deflate_request q = {
      .t = t, .where = "layer 4", .m = d->m, .rank = d->rank, .a = d->a, .h = l->h.base, .ridge = d->ridge, .shrink = d->shrink};
  int kept = 0;
  status st = deflate(&q, work, &kept);
  return st == OK ? deflate_gram(&q, work, kept, p) : st;
}

static status call_deflate(const team *t, const layer *l, const deflation *d, float *p) {
  shared work;
  CHECK_OK(shared_new(t, deflate_shared(d->m, d->rank), "deflation", &work));
  status st = deflate_within(t, l, d, work.base, p);
  shared_free(&work);
  return st;
}

/* (m, m) P by Cholesky, for independent rows and no shrink: M - M A^T (A M A^T)^{-1} A M. am (rank, m): A M. */
static void expected_p(const layer *l, const deflation *d, double *am, double *p) {
  int m = (int)d->m, r = d->rank;
  double *g = NULL, *z = NULL;
  CHECK_OK(NEW(g, r * r, "A M A^T"));
  CHECK_OK(NEW(z, r * m, "Z"));
  memcpy(p, l->hd, (size_t)(d->m * d->m) * sizeof *p);
  for (int64_t j = 0; j < m; j++) p[j * m + j] += d->ridge;
  dgemm(false, false, r, m, m, 1, d->a, m, p, m, 0, am, m);
  dgemm(false, true, r, r, m, 1, am, m, d->a, m, 0, g, r);
  memcpy(z, am, (size_t)(r * m) * sizeof *z);
  CHECK_OK(dcholesky("A M A^T", r, g, r));
  dtrsm(false, true, false, r, m, g, r, z, m);
  dgemm(true, false, m, m, r, -1, z, m, z, m, 1, p, m);
  FREE(g);
  FREE(z);
}

/* Largest |p - expected| beyond the rounding of p to float, relative to the largest entry of H. */
static double p_distance(const layer *l, const float *p, const double *expected) {
  double worst = 0, size = 0;
  for (int64_t i = 0; i < l->m * l->m; i++) {
    double off = fabs((double)p[i] - expected[i]) - 0x1p-24 * fabs(expected[i]);
    worst = fmax(worst, isnan(off) ? INFINITY : off);
    size = fmax(size, fabs(l->hd[i]));
  }
  return worst / fmax(size, 1e-300);
}

/* tr(X P X^T) of (n, m) X. */
static double loss_in(int64_t n, int64_t m, const double *x, const double *p) {
  double *y = NULL, sum;
  CHECK_OK(NEW(y, n * m, "X P"));
  dgemm(false, false, (int)n, (int)m, (int)m, 1, x, (int)m, p, (int)m, 0, y, (int)m);
  sum = dot(n * m, x, y);
  FREE(y);
  return sum;
}

/* O9: tr(E P E^T) is what the best B for A leaves, for any E; O10: E and E - B A have the same loss in P for any B; P A^T = 0. */
static void identities(const layer *l, const deflation *d, const double *am, const double *exact, const float *p) {
  int n = (int)l->n, m = (int)l->m, r = d->rank;
  double *x = NULL, *b = NULL, *g = NULL, *big = NULL, *rounded = NULL, *metric = NULL;
  CHECK_OK(NEW(x, n * m, "E - B A"));
  CHECK_OK(NEW(big, n * m, "E - B A"));
  CHECK_OK(NEW(b, n * r, "B"));
  CHECK_OK(NEW(g, r * r, "A M A^T"));
  CHECK_OK(NEW(rounded, m * m, "P"));
  CHECK_OK(NEW(metric, m * m, "M"));
  mixed_widen(m, m, p, m, rounded);
  memcpy(metric, l->hd, (size_t)(m * m) * sizeof *metric);
  for (int j = 0; j < m; j++) metric[j * m + j] += d->ridge;
  dgemm(false, true, n, r, m, 1, l->ed, m, am, m, 0, b, r);
  dgemm(false, true, r, r, m, 1, am, m, d->a, m, 0, g, r);
  CHECK_OK(dcholesky("A M A^T", r, g, r));
  dtrsm(true, true, true, n, r, g, r, b, r); /* B = (E M A^T) L^{-T} L^{-1} */
  dtrsm(true, true, false, n, r, g, r, b, r);
  memcpy(x, l->ed, (size_t)(n * m) * sizeof *x);
  dgemm(false, false, n, m, r, -1, b, r, d->a, m, 1, x, m);
  double whole = loss_in(n, m, l->ed, metric), best = loss_in(n, m, x, metric), by_p = loss_in(n, m, l->ed, exact),
         by_float = loss_in(n, m, l->ed, rounded);
  CHECK(fabs(by_p - best) <= 1e-11 * whole, "O9: %.15g in P, %.15g after the best B", by_p, best);
  CHECK(fabs(by_float - best) <= 1e-6 * whole, "O9: %.10g in P as stored, %.10g after the best B", by_float, best);
  for (int i = 0; i < n * r; i++) b[i] = problem_entry(5, i);
  memcpy(big, l->ed, (size_t)(n * m) * sizeof *big);
  dgemm(false, false, n, m, r, -1, b, r, d->a, m, 1, big, m);
  double moved = loss_in(n, m, big, rounded), size = loss_in(n, m, big, metric);
  CHECK(fabs(moved - by_float) <= 1e-6 * size, "O10: %.10g, with any B %.10g, of %.3g", by_float, moved, size);
  double left = 0, entry = 0;
  for (int i = 0; i < r; i++)
    for (int j = 0; j < m; j++) {
      double sum = 0, sizes = 0;
      for (int k = 0; k < m; k++) {
        sum += d->a[i * m + k] * (double)p[k * m + j];
        sizes += fabs(d->a[i * m + k] * metric[k * m + j]);
      }
      left = fmax(left, fabs(sum));
      entry = fmax(entry, sizes);
    }
  CHECK(left <= 1e-6 * entry, "P A^T = %.3g of %.3g", left, entry);
  FREE(x);
  FREE(big);
  FREE(b);
  FREE(g);
  FREE(rounded);
  FREE(metric);
}

static int unequal(int64_t m, const float *p) {
  int count = 0;
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < i; j++) count += memcmp(&p[i * m + j], &p[j * m + i], sizeof *p) != 0;
  return count;
}

/* The same P by a team of one and of two; p: shared. */
static void same_p_on_few(const team *t, const layer *l, const deflation *d, const float *p) {
  for (int ranks = 1; ranks <= FEW; ranks++) {
    team few;
    shared other;
    CHECK_OK(team_new(t->comm, ranks, &few));
    CHECK_OK(shared_new(&few, (size_t)(d->m * d->m) * sizeof *p, "P", &other));
    CHECK_OK(call_deflate(&few, l, d, other.base));
    CHECK(memcmp(p, other.base, other.bytes) == 0, "order %lld, rank %d: P of %d and %d ranks differ", (long long)d->m, d->rank, t->size,
          few.size);
    shared_free(&other);
    team_free(&few);
  }
}

static void deflate_by_rows(const team *t, const layer *l, int rank, double ridge) {
  deflation d = {.m = l->m, .rank = rank, .ridge = ridge};
  double *am = NULL, *exact = NULL;
  shared p;
  CHECK_OK(NEW(d.a, (rank + 1) * l->m, "A"));
  CHECK_OK(NEW(am, rank * l->m, "A M"));
  CHECK_OK(NEW(exact, l->m * l->m, "P"));
  CHECK_OK(shared_new(t, (size_t)(l->m * l->m) * sizeof(float), "P", &p));
  for (int64_t i = 0; i < rank * l->m; i++) d.a[i] = problem_entry(9, i) * (1 + (double)(i / l->m) * 3);
  expected_p(l, &d, am, exact);
  CHECK_OK(call_deflate(t, l, &d, p.base));
  same_p_on_few(t, l, &d, p.base);
  CHECK(p_distance(l, p.base, exact) <= 1e-12, "order %lld, rank %d: P is off by %.1e", (long long)l->m, rank,
        p_distance(l, p.base, exact));
  CHECK(unequal(l->m, p.base) == 0, "order %lld: %d pairs differ", (long long)l->m, unequal(l->m, p.base));
  identities(l, &d, am, exact, p.base);
  team_barrier(t);
  for (int64_t j = 0; j < l->m; j++) d.a[rank * l->m + j] = d.a[j] - 2 * d.a[(rank - 1) * l->m + j]; /* a row that says nothing new */
  d.rank = rank + 1;
  CHECK_OK(call_deflate(t, l, &d, p.base));
  CHECK(p_distance(l, p.base, exact) <= 1e-11, "order %lld, dependent rows: P is off by %.1e", (long long)l->m,
        p_distance(l, p.base, exact));
  team_barrier(t);
  for (int64_t j = 0; j < l->m; j++) d.a[rank * l->m + j] += 1e-7 * problem_entry(10, j); /* next to nothing */
  CHECK_OK(call_deflate(t, l, &d, p.base));
  CHECK(p_distance(l, p.base, exact) <= 1e-4, "order %lld, all but dependent rows: P is off by %.1e", (long long)l->m,
        p_distance(l, p.base, exact));
  team_barrier(t);
  memset(d.a, 0, (size_t)(d.rank * l->m) * sizeof *d.a);
  CHECK_OK(call_deflate(t, l, &d, p.base));
  int wrong = 0;
  for (int64_t i = 0; i < l->m * l->m; i++) wrong += ((float *)p.base)[i] != (float)(l->hd[i] + (i / l->m == i % l->m ? ridge : 0));
  CHECK(wrong == 0, "order %lld: A = 0 moves %d entries", (long long)l->m, wrong);
  shared_free(&p);
  FREE(d.a);
  FREE(am);
  FREE(exact);
}

/* A = V_r^T of H: P = H - V diag(sigma) V^T; with a shrink, GPTQ-intrinsic's H' less its lambda I (methods 10). */
static void deflate_eigenvectors(const team *t, const layer *l, int rank) {
  int m = (int)l->m;
  double *z = NULL, *sigma = NULL, *expected = NULL;
  shared p;
  CHECK_OK(NEW(z, m * m, "eigenvectors"));
  CHECK_OK(NEW(sigma, m, "eigenvalues"));
  CHECK_OK(NEW(expected, m * m, "P"));
  CHECK_OK(shared_new(t, (size_t)(m * m) * sizeof(float), "P", &p));
  memcpy(z, l->hd, (size_t)(m * m) * sizeof *z);
  CHECK_OK(deigen("H", m, z, m, sigma));
  double lambda = 0.3 * sigma[m - rank];
  for (int shrunk = 0; shrunk < 2; shrunk++) {
    deflation d = {.m = m, .rank = rank, .a = z + (m - rank) * m, .shrink = shrunk ? lambda : 0};
    memcpy(expected, l->hd, (size_t)(m * m) * sizeof *expected);
    for (int k = m - rank; k < m; k++) {
      double part = shrunk ? sigma[k] - lambda * sigma[k] / (sigma[k] + lambda) : sigma[k];
      for (int i = 0; i < m; i++)
        for (int j = 0; j < m; j++) expected[i * m + j] -= part * z[k * m + i] * z[k * m + j];
    }
    CHECK_OK(call_deflate(t, l, &d, p.base));
    CHECK(p_distance(l, p.base, expected) <= 1e-12, "order %d, shrink %g: P is off by %.1e", m, d.shrink, p_distance(l, p.base, expected));
    team_barrier(t);
  }
  shared_free(&p);
  FREE(z);
  FREE(sigma);
  FREE(expected);
}

static void deflate_shapes(const team *t) {
  static const int64_t orders[] = {1, 5, 48, 97, 290};
  for (size_t i = 0; i < sizeof orders / sizeof *orders; i++) {
    int64_t m = orders[i];
    layer l = layer_of_kind(t, PROBLEM_DECAYING, 31, m);
    deflate_by_rows(t, &l, 1, 0);
    deflate_by_rows(t, &l, (int)((m + 4) / 5), 0.03 * l.hd[0]);
    deflate_eigenvectors(t, &l, (int)((m + 9) / 10));
    layer_free(&l);
  }
  layer l = layer_of_kind(t, PROBLEM_DEAD, 31, 60);
  deflate_by_rows(t, &l, 7, 0);
  layer_free(&l);
}

/* ---- Refusals ------------------------------------------------------------------------------------------------------------------- */

static void refusals(const team *t) {
  enum { N = 40, M = 60, RANK = 4 };
  layer l = layer_of_kind(t, PROBLEM_DECAYING, N, M);
  answer x = answer_new(N, M, RANK);
  deflation d = {.m = M, .rank = RANK};
  shared p;
  CHECK_OK(NEW(d.a, RANK * M, "A"));
  for (int i = 0; i < RANK * M; i++) d.a[i] = problem_entry(9, i);
  CHECK_OK(shared_new(t, M * M * sizeof(float), "P", &p));
  static const float wrong[] = {NAN, INFINITY};
  for (int i = 0; i < 2; i++)
    for (int which = 0; which < 2; which++) {
      float *at = which == 0 ? (float *)l.e.base + 30 * M + 50 : (float *)l.h.base + 59 * M + 59, kept = *at;
      team_barrier(t);
      if (t->rank == 0) *at = wrong[i];
      team_barrier(t);
      status st = which == 0 ? call(t, &l, RANK, 2, &x) : call_deflate(t, &l, &d, p.base);
      CHECK(st == E_NUMERICS && strncmp(status_message(), "layer 4: ", 9) == 0 && strstr(status_message(), "NaN or Inf"), "%d: %s", which,
            status_message());
      status_clear();
      team_barrier(t);
      if (t->rank == 0) *at = kept;
      team_barrier(t);
    }
  for (int64_t i = 0; i < x.k * N; i++) x.y[i] = problem_entry(77, i);
  CHECK_OK(call(t, &l, RANK, 2, &x));
  CHECK_FAILS(call(t, &l, RANK, 0, &x), E_INTERNAL);
  l.trace = NAN;
  CHECK_FAILS(call(t, &l, RANK, 1, &x), E_NUMERICS);
  d.shrink = -1;
  CHECK_FAILS(call_deflate(t, &l, &d, p.base), E_INTERNAL);
  d.shrink = 0;
  if (t->size > 1) { /* ranks that do not agree */
    l.trace = t->rank ? 1 : 2;
    CHECK_FAILS(call(t, &l, RANK, 1, &x), E_INTERNAL);
    d.ridge = t->rank ? 1 : 2;
    CHECK_FAILS(call_deflate(t, &l, &d, p.base), E_INTERNAL);
  }
  shared_free(&p);
  FREE(d.a);
  answer_free(&x);
  layer_free(&l);
}

static void faults(const team *t) {
  enum { N = 40, M = 60, RANK = 4 };
  layer l = layer_of_kind(t, PROBLEM_SINGULAR, N, M);
  answer x = answer_new(N, M, RANK);
  deflation d = {.m = M, .rank = RANK};
  shared p, work;
  CHECK_OK(NEW(d.a, RANK * M, "A"));
  for (int i = 0; i < RANK * M; i++) d.a[i] = problem_entry(9, i);
  CHECK_OK(shared_new(t, M * M * sizeof(float), "P", &p));
  CHECK_OK(shared_new(t, ritz_shared(N, M, RANK) + deflate_shared(M, RANK), "work", &work));
  for (int which = 0; which < 2; which++)
    for (int bad = 0; bad<t->size; bad += t->size> 1 ? t->size - 1 : 1)
      CHECK_SURVIVES_FAULTS(t->comm, bad, 200, 200, which ? "deflate" : "ritz",
                            st = which ? deflate_within(t, &l, &d, work.base, p.base) : call_within(t, &l, RANK, 2, work.base, &x));
  shared_free(&work);
  shared_free(&p);
  FREE(d.a);
  answer_free(&x);
  layer_free(&l);
}

int main(int argc, char **argv) {
  MPI_Init(&argc, &argv);
  team t;
  blas_setup();
  CHECK_OK(team_new(MPI_COMM_WORLD, 0, &t));
  ritz_shapes(&t);
  deflate_shapes(&t);
  refusals(&t);
  faults(&t);
  team_free(&t);
  CHECK(mem_now() == 0, "%llu bytes not freed", (unsigned long long)mem_now());
  return check_end("joint");
}
