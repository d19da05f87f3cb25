#include "adapter/pooled.h"

#include <math.h>
#include <string.h>

#include "adapter/internal.h"
#include "adapter/mixed.h"
#include "base/blas.h"
#include "base/hot.h"
#include "base/memory.h"

static int64_t groups_of(const adapter_request *q, int group) { return group ? q->m / group : 1; }

static status check(const adapter_request *q, int group) {
  int64_t p = group > 0 ? q->m / group : 1;
  if (group < 0 || (group && q->m % group) || !q->h || q->diagonal)
    return fail(E_INTERNAL, "%s: pooled adapter: expected a Gram and groups that divide %lld columns, found %d", q->where, (long long)q->m,
                group);
  if (q->rank > p) return fail(E_INTERNAL, "%s: pooled adapter: expected a rank of 1 to %lld, found %d", q->where, (long long)p, q->rank);
  return adapter_check(q);
}

/* ph (p, m) = Pool H, row after row of H. */
HOT static void pool_rows(int64_t p, int64_t m, const float *restrict h, double *restrict ph) {
  for (int64_t c = 0; c < p; c++)
    for (int64_t i = c * m / p; i < (c + 1) * m / p; i++)
      for (int64_t j = 0; j < m; j++) ph[c * m + j] += (double)h[i * m + j];
}

/* root (p, p): row i is eigenvector u_i of HP times values_i^{-1/2}, zero where the value counts as zero: root^T root = HP^+. */
static status inverse_root(const adapter_request *q, int64_t p, const double *ph, double *root) {
  status st = OK;
  double *values = NULL;
  TRY(NEW(values, p, "eigenvalues of the pooled Gram"));
  for (int64_t c = 0; c < p; c++)
    for (int64_t j = 0; j < q->m; j++) root[c * p + j * p / q->m] += ph[c * q->m + j];
  for (int64_t c = 0; c < p * p; c++)
    if (!isfinite(root[c])) {
      st = fail(E_NUMERICS, "%s: pooled adapter: expected a finite Gram, found NaN or Inf", q->where);
      goto done;
    }
  TRY(deigen(q->where, (int)p, root, (int)p, values));
  for (int64_t i = 0; i < p; i++) {
    double scale = values[i] > 1e-7 * values[p - 1] ? 1 / sqrt(values[i]) : 0;
    for (int64_t c = 0; c < p; c++) root[i * p + c] *= scale;
  }
done:
  FREE(values);
  return st;
}

/* Leading eigenvectors of Y Y^T, y (n, p) destroyed, as descending rows (rank, n): of Y Y^T itself, or of R R^T with Y = Q R. */
static status leading_left(const adapter_request *q, int64_t p, double *y, double *rows, double *values) {
  status st = OK;
  bool tall = q->n > p;
  int64_t k = tall ? p : q->n;
  int n = (int)q->n, ip = (int)p, ik = (int)k;
  double *r = NULL, *g = NULL, *all = NULL;
  TRY(NEW(g, k * k, "pooled E H E^T"));
  TRY(NEW(all, k, "eigenvalues"));
  if (tall) {
    TRY(NEW(r, p * p, "R"));
    TRY(dqr(q->where, n, ip, y, ip, r, ip));
  }
  const double *factor = tall ? r : y;
  dgemm(false, true, ik, ik, ip, 1, factor, ip, factor, ip, 0, g, ik);
  double trace = 0;
  for (int64_t i = 0; i < k; i++) trace += g[i * k + i];
  if (!isfinite(trace)) {
    st = fail(E_NUMERICS, "%s: pooled adapter: E H E^T, expected finite numbers, found NaN or Inf", q->where);
    goto done;
  }
  TRY(deigen(q->where, ik, g, ik, all));
  TRY(spectrum_check(q, all[0], all[k - 1]));
  for (int64_t i = 0; i < q->rank; i++) {
    values[i] = all[k - 1 - i];
    const double *vector = g + (k - 1 - i) * k;
    if (tall)
      dgemm(false, true, 1, n, ik, 1, vector, ik, y, ip, 0, rows + i * q->n, n);
    else
      memcpy(rows + i * q->n, vector, (size_t)k * sizeof *rows);
  }
done:
  FREE(r);
  FREE(g);
  FREE(all);
  return st;
}

status adapter_pooled(const adapter_request *q, int group, adapter *out) {
  status st = OK;
  int64_t n = q->n, m = q->m, rank = q->rank, p = groups_of(q, group);
  int in = (int)n, ip = (int)p, ir = q->rank;
  double *ph = NULL, *kt = NULL, *root = NULL, *y = NULL, *rows = NULL, *values = NULL, *u = NULL, *c = NULL, trace = q->trace;
  *out = (adapter){0};
  TRY(check(q, group));
  if (isnan(trace)) TRY(metric_trace(q, 0, n, NULL, &trace));
  TRY(NEW(ph, p * m, "Pool H"));
  TRY(NEW(kt, p * n, "Pool H E^T"));
  TRY(NEW(root, p * p, "root of the pooled Gram"));
  TRY(NEW(y, n * p, "pooled residual"));
  TRY(NEW(rows, rank * n, "eigenvectors"));
  TRY(NEW(values, rank, "eigenvalues"));
  TRY(NEW(u, rank * p, "B^T Y"));
  TRY(NEW(c, rank * p, "C"));
  pool_rows(p, m, q->h, ph);
  TRY(mixed_gemm(true, p, m, n, 1, ph, m, q->e, m, false, kt, n));
  TRY(inverse_root(q, p, ph, root));
  dgemm(true, true, in, ip, ip, 1, kt, in, root, ip, 0, y, ip); /* Y Y^T = K HP^+ K^T */
  TRY(leading_left(q, p, y, rows, values));
  fix_signs_and_round(n, ir, rows);
  TRY(factors_begin(q, rows, values, out));
  out->trace = trace;
  dgemm(false, true, ir, ip, in, 1, rows, in, kt, in, 0, c, ip); /* B^T K, … */
  dgemm(false, true, ir, ip, ip, 1, c, ip, root, ip, 0, u, ip);  /* … times root^T root */
  dgemm(false, false, ir, ip, ip, 1, u, ip, root, ip, 0, c, ip);
  for (int64_t r = 0; r < rank; r++)
    for (int64_t j = 0; j < m; j++) out->a[r * m + j] = (float)c[r * p + j * p / m];
  TRY(factors_check(q, out));
done:
  FREE(ph);
  FREE(kt);
  FREE(root);
  FREE(y);
  FREE(rows);
  FREE(values);
  FREE(u);
  FREE(c);
  if (st != OK) adapter_free(out);
  return st;
}

double adapter_pooled_flops(const adapter_request *q, int group) {
  double n = (double)q->n, m = (double)q->m, p = (double)groups_of(q, group), k = fmin(n, p);
  double small = 2 * n * p * p + (n > p ? 4 * n * p * p : 0) + 2 * k * k * p + 9 * (k * k * k + p * p * p);
  return 2 * n * m * p + m * m + small + 2 * n * p * q->rank + (isnan(q->trace) ? n * m * m : 0);
}

uint64_t adapter_pooled_bytes(const adapter_request *q, int group) {
  double n = (double)q->n, m = (double)q->m, p = (double)groups_of(q, group), r = q->rank, k = fmin(n, p);
  double work = 8 * (p * m + 2 * n * p + 2 * p * p + 3 * k * k + r * (n + 2 * p)) + 4 * r * (n + m);
  double trace = isnan(q->trace) ? 8 * 256 * (m + 288) : 0, bands = 4e6; /* of mixed products */
  return (uint64_t)(fmax(work, trace) + bands);
}
