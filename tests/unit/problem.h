/* Small layers for tests of the adapter, the same on every rank: a residual like a rounding error, and Grams of several kinds. */
#ifndef CLOQWORK_TESTS_PROBLEM_H
#define CLOQWORK_TESTS_PROBLEM_H

#include <math.h>
#include <stdint.h>

#include "adapter/adapter.h"
#include "base/blas.h"
#include "base/memory.h"

typedef enum problem_kind {
  PROBLEM_DECAYING, /* spectrum k^-1 with four outliers, full rank */
  PROBLEM_SINGULAR, /* fewer tokens than inputs */
  PROBLEM_DEAD,     /* inputs that are always zero */
  PROBLEM_IDENTITY, /* no Gram: the plain SVD */
  PROBLEM_DIAGONAL, /* a diagonal metric with zeros; powers of 4, so that scaling by its root is exact */
  PROBLEM_ZERO,     /* no residual */
  PROBLEM_KINDS
} problem_kind;

typedef struct problem {
  int64_t n, m;
  float *e, *h, *d; /* (n, m); the metric: (m, m), or [m], or both NULL */
} problem;

/* In (-1, 1), a function of stream and index alone (splitmix64). */
static inline double problem_entry(uint64_t stream, int64_t i) {
  uint64_t z = stream * 0x2545f4914f6cdd1du + (uint64_t)(i + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return (double)((z ^ (z >> 31)) >> 11) * 0x1p-52 - 1;
}

static inline void problem_free(problem *p) {
  FREE(p->e);
  FREE(p->h);
  FREE(p->d);
}

/* H = X^T X with X = (independent entries) diag(s) U: T = 3 m tokens, or m / 2. */
static inline status problem_gram(problem_kind kind, int64_t m, uint64_t seed, float *h) {
  status st = OK;
  int64_t tokens = kind == PROBLEM_SINGULAR ? m / 2 + 1 : 3 * m;
  double *u = NULL, *r = NULL, *z = NULL, *x = NULL, *gram = NULL;
  int im = (int)m, it = (int)tokens;
  TRY(NEW(u, m * m, "U"));
  TRY(NEW(r, m * m, "R"));
  TRY(NEW(z, tokens * m, "Z"));
  TRY(NEW(x, tokens * m, "X"));
  TRY(NEW(gram, m * m, "H"));
  for (int64_t i = 0; i < m * m; i++) u[i] = problem_entry(seed + 11, i);
  TRY(dqr("problem", im, im, u, im, r, im));
  for (int64_t i = 0; i < tokens * m; i++)
    z[i] = problem_entry(seed + 12, i) * sqrt(i % m < 4 ? 100. / (double)(1 + i % m) : 1. / (double)(1 + i % m));
  dgemm(false, false, it, im, im, 1, z, im, u, im, 0, x, im);
  for (int64_t i = 0; kind == PROBLEM_DEAD && i < tokens * m; i++)
    if (i % m % 3 == 1) x[i] = 0;
  dgemm(true, false, im, im, it, 1, x, im, x, im, 0, gram, im);
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j <= i; j++) h[i * m + j] = h[j * m + i] = (float)gram[i * m + j];
done:
  FREE(u);
  FREE(r);
  FREE(z);
  FREE(x);
  FREE(gram);
  return st;
}

static inline status problem_new(problem *p, problem_kind kind, int64_t n, int64_t m, uint64_t seed) {
  status st = OK;
  *p = (problem){.n = n, .m = m};
  TRY(NEW(p->e, n * m, "residual"));
  for (int64_t i = 0; kind != PROBLEM_ZERO && i < n * m; i++)
    p->e[i] = (float)(problem_entry(seed + 1, i) * exp(0.5 * problem_entry(seed + 2, i / m)) * 0.01);
  if (kind == PROBLEM_DIAGONAL) {
    TRY(NEW(p->d, m, "diagonal"));
    for (int64_t j = 0; j < m; j++) p->d[j] = j % 7 == 5 ? 0 : ldexpf(1, 2 * (int)(j * 5 % 9) - 6);
  } else if (kind != PROBLEM_IDENTITY) {
    TRY(NEW(p->h, m * m, "Gram"));
    TRY(problem_gram(kind, m, seed, p->h));
  }
done:
  if (st != OK) problem_free(p);
  return st;
}

/* y (rows, m) = x M in double, by plain dgemm; M the metric. */
static inline void problem_weigh(const problem *p, int64_t rows, const double *x, double *y) {
  int m = (int)p->m;
  double *h;
  for (int64_t i = 0; i < rows * m; i++) y[i] = p->d ? x[i] * (double)p->d[i % m] : x[i];
  if (!p->h || NEW(h, p->m * p->m, "H") != OK) return;
  for (int64_t i = 0; i < p->m * p->m; i++) h[i] = (double)p->h[i];
  dgemm(false, false, (int)rows, m, m, 1, x, m, h, m, 0, y, m);
  FREE(h);
}

/* e (n, m) and eh = e M in double. */
static inline void problem_product(const problem *p, double *e, double *eh) {
  for (int64_t i = 0; i < p->n * p->m; i++) e[i] = (double)p->e[i];
  problem_weigh(p, p->n, e, eh);
}

/* adapter_trace and adapter_losses in the problem's metric. b (n, rank), a (rank, m). */
static inline status problem_losses(const problem *p, const float *b, const float *a, int rank, double *trace, double *loss) {
  status st = OK;
  float *e = NULL, *as = NULL;
  TRY(NEW(e, p->n * p->m, "scaled residual"));
  TRY(NEW(as, rank * p->m, "scaled A"));
  for (int64_t i = 0; i < p->n * p->m; i++) e[i] = p->e[i];
  for (int64_t i = 0; i < rank * p->m; i++) as[i] = a[i];
  if (p->d) {
    adapter_scale(p->n, p->m, e, p->d, e);
    adapter_scale(rank, p->m, a, p->d, as);
  }
  TRY(adapter_trace(p->m, e, p->h, 0, p->n, NULL, trace));
  TRY(adapter_losses(p->n, p->m, e, p->h, b, as, rank, *trace, loss));
done:
  FREE(e);
  FREE(as);
  return st;
}

/* tr((E - B_r A_r) M (E - B_r A_r)^T), as it is written. b (n, stride), a (stride, m). */
static inline double problem_loss(const problem *p, const float *b, const float *a, int stride, int r) {
  double *eh = NULL, *d = NULL, sum = 0;
  if (NEW(eh, p->n * p->m, "E H") != OK || NEW(d, p->n * p->m, "E - B A") != OK) return NAN;
  for (int64_t i = 0; i < p->n; i++)
    for (int64_t j = 0; j < p->m; j++) {
      double v = (double)p->e[i * p->m + j];
      for (int k = 0; k < r; k++) v -= (double)b[i * stride + k] * (double)a[k * p->m + j];
      d[i * p->m + j] = v;
    }
  problem_weigh(p, p->n, d, eh);
  for (int64_t i = 0; i < p->n * p->m; i++) sum += eh[i] * d[i];
  FREE(eh);
  FREE(d);
  return sum;
}

/* Largest difference of the two products B A over their largest entry. */
static inline double product_distance(const problem *p, const adapter *x, const adapter *y) {
  double worst = 0, size = 0;
  for (int64_t i = 0; i < p->n; i++)
    for (int64_t j = 0; j < p->m; j++) {
      double u = 0, v = 0;
      for (int k = 0; k < x->rank; k++) u += (double)x->b[i * x->rank + k] * (double)x->a[k * p->m + j];
      for (int k = 0; k < y->rank; k++) v += (double)y->b[i * y->rank + k] * (double)y->a[k * p->m + j];
      worst = fmax(worst, fabs(u - v));
      size = fmax(size, fabs(u));
    }
  return size > 0 ? worst / size : worst;
}

#endif
