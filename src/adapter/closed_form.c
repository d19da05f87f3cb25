#include <math.h>
#include <string.h>

#include "adapter/internal.h"
#include "adapter/mixed.h"
#include "base/blas.h"
#include "base/memory.h"
#include "dist/krylov.h"

enum { BAND = 256 };

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* The last `rank` eigenvectors (rows of z, ascending values) as descending rows. */
static void take_leading(int64_t n, int rank, const double *z, const double *ascending, double *rows, double *values) {
  for (int r = 0; r < rank; r++) {
    values[r] = ascending[n - 1 - r];
    memcpy(rows + r * n, z + (n - 1 - r) * n, (size_t)n * sizeof *rows);
  }
}

/* n <= m: G = (E H) E^T by bands of rows, lower triangle. */
static status dense_outer(const adapter_request *q, double *rows, double *values, double *trace) {
  status st = OK;
  int64_t n = q->n, m = q->m;
  double *x = NULL, *y = NULL, *g = NULL, *all = NULL;
  TRY(NEW(x, least(BAND, n) * m, "residual rows"));
  if (metric_given(q)) TRY(NEW(y, least(BAND, n) * m, "rows of E H"));
  TRY(NEW(g, n * n, "E H E^T"));
  TRY(NEW(all, n, "eigenvalues"));
  for (int64_t i = 0; i < n; i += BAND) {
    int64_t band = least(BAND, n - i);
    mixed_widen(band, m, q->e + i * m, m, x);
    if (y) TRY(metric_apply(q, band, x, y));
    TRY(mixed_gemm(true, band, m, i + band, 1, y ? y : x, m, q->e, m, false, g + i * n, n));
  }
  *trace = 0;
  for (int64_t i = 0; i < n; i++) *trace += g[i * n + i];
  if (!isfinite(*trace)) {
    st = fail(E_NUMERICS, "%s: adapter: E H E^T, expected finite numbers, found NaN or Inf", q->where);
    goto done;
  }
  TRY(deigen(q->where, (int)n, g, (int)n, all));
  TRY(spectrum_check(q, all[0], all[n - 1]));
  take_leading(n, q->rank, g, all, rows, values);
done:
  FREE(x);
  FREE(y);
  FREE(g);
  FREE(all);
  return st;
}

/* n > m: E = Q R, G = Q (R H R^T) Q^T: the eigenproblem has order m, and a singular H does no harm. */
static status dense_inner(const adapter_request *q, double *rows, double *values, double *trace) {
  status st = OK;
  int64_t n = q->n, m = q->m;
  int in = (int)n, im = (int)m;
  double *e = NULL, *r = NULL, *rh = NULL, *k = NULL, *all = NULL, *small = NULL;
  TRY(NEW(e, n * m, "residual in double"));
  TRY(NEW(r, m * m, "R of E"));
  TRY(NEW(k, m * m, "R H R^T"));
  TRY(NEW(all, m, "eigenvalues"));
  TRY(NEW(small, q->rank * m, "eigenvectors"));
  mixed_widen(n, m, q->e, m, e);
  TRY(dqr(q->where, in, im, e, im, r, im));
  if (metric_given(q)) {
    TRY(NEW(rh, m * m, "R H"));
    TRY(metric_apply(q, m, r, rh));
  }
  dgemm(false, true, im, im, im, 1, rh ? rh : r, im, r, im, 0, k, im);
  *trace = 0;
  for (int64_t i = 0; i < m; i++) *trace += k[i * m + i];
  if (!isfinite(*trace)) {
    st = fail(E_NUMERICS, "%s: adapter: E H E^T, expected finite numbers, found NaN or Inf", q->where);
    goto done;
  }
  TRY(deigen(q->where, im, k, im, all));
  TRY(spectrum_check(q, all[0], all[m - 1]));
  take_leading(m, q->rank, k, all, small, values);
  dgemm(false, true, q->rank, in, im, 1, small, im, e, im, 0, rows, in);
done:
  FREE(e);
  FREE(r);
  FREE(rh);
  FREE(k);
  FREE(all);
  FREE(small);
  return st;
}

typedef struct factored { /* x -> ((x E) H) E^T with work rows for one block */
  const adapter_request *q;
  double *xe, *xeh;
} factored;

static status apply_factored(void *context, int b, int64_t n, const double *x, double *y) {
  status st = OK;
  factored *f = context;
  int64_t m = f->q->m;
  TRY(mixed_gemm(false, b, n, m, 1, x, n, f->q->e, m, false, f->xe, m));
  if (f->xeh) TRY(metric_apply(f->q, b, f->xe, f->xeh));
  TRY(mixed_gemm(true, b, m, n, 1, f->xeh ? f->xeh : f->xe, m, f->q->e, m, false, y, n));
done:
  return st;
}

static status by_krylov(const adapter_request *q, double *rows, double *values) {
  status st = OK;
  int64_t n = q->n, m = q->m;
  int block = krylov_block(n, q->rank), given = q->start ? (int)least(q->start_rows, block) : 0;
  factored f = {.q = q};
  krylov_result r = {0};
  double *start = NULL;
  TRY(NEW(f.xe, (block + KRYLOV_EXTRA) * m, "x E"));
  if (metric_given(q)) TRY(NEW(f.xeh, (block + KRYLOV_EXTRA) * m, "x E H"));
  if (given) {
    TRY(NEW(start, given * n, "start block"));
    TRY(mixed_gemm(true, given, m, n, 1, q->start, m, q->e, m, false, start, n));
  }
  krylov_request k = {.n = n,
                      .wanted = q->rank,
                      .block = block,
                      .tolerance = q->tolerance > 0 ? q->tolerance : 1e-6,
                      .start = start,
                      .start_rows = given,
                      .apply = apply_factored,
                      .context = &f};
  TRY(krylov_top(q->where, &k, &r));
  TRY(spectrum_check(q, r.lowest, r.values[0]));
  memcpy(rows, r.vectors, (size_t)q->rank * (size_t)n * sizeof *rows);
  memcpy(values, r.values, (size_t)q->rank * sizeof *values);
done:
  krylov_result_free(&r);
  FREE(start);
  FREE(f.xe);
  FREE(f.xeh);
  return st;
}

status adapter_local(const adapter_request *q, adapter *out) {
  status st = OK;
  double *rows = NULL, *values = NULL, *a = NULL, trace = q->trace, found = NAN;
  *out = (adapter){0};
  TRY(adapter_check(q));
  TRY(NEW(rows, q->rank * q->n, "eigenvectors"));
  TRY(NEW(values, q->rank, "eigenvalues"));
  if (adapter_choice(q) == ADAPTER_DENSE) {
    TRY(q->n <= q->m ? dense_outer(q, rows, values, &found) : dense_inner(q, rows, values, &found));
    if (isnan(trace)) trace = found;
  } else {
    TRY(by_krylov(q, rows, values));
    if (isnan(trace)) TRY(metric_trace(q, 0, q->n, NULL, &trace));
  }
  fix_signs_and_round(q->n, q->rank, rows);
  TRY(factors_begin(q, rows, values, out));
  out->trace = trace;
  TRY(NEW(a, q->rank * q->m, "A in double"));
  TRY(mixed_gemm(false, q->rank, q->n, q->m, 1, rows, q->n, q->e, q->m, false, a, q->m));
  for (int64_t i = 0; i < q->rank * q->m; i++) out->a[i] = (float)a[i];
  TRY(factors_check(q, out));
done:
  FREE(rows);
  FREE(values);
  FREE(a);
  if (st != OK) adapter_free(out);
  return st;
}

static status apply_gram(void *context, int b, int64_t m, const double *x, double *y) {
  return mixed_gemm(false, b, m, m, 1, x, m, context, m, false, y, m);
}

status adapter_start(const char *where, int64_t m, const float *h, int rows, int blocks, double **start) {
  status st = OK;
  krylov_result r = {0};
  *start = NULL;
  krylov_request k = {.n = m,
                      .wanted = (int)least(rows, m),
                      .block = rows,
                      .blocks = blocks,
                      .tolerance = 1,
                      .apply = apply_gram,
                      .context = (void *)(uintptr_t)h};
  TRY(NEW(*start, rows * m, "start vectors"));
  TRY(krylov_top(where, &k, &r));
  for (int i = 0; i < k.wanted; i++) {
    double root = sqrt(fmax(r.values[i], 0));
    for (int64_t j = 0; j < m; j++) (*start)[i * m + j] = root * r.vectors[i * m + j];
  }
done:
  krylov_result_free(&r);
  if (st != OK) FREE(*start);
  return st;
}
