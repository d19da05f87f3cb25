#include <math.h>
#include <string.h>

#include "adapter/internal.h"
#include "adapter/mixed.h"
#include "base/memory.h"

status adapter_check(const adapter_request *q) {
  int64_t small = q->n < q->m ? q->n : q->m;
  if (q->n < 1 || q->m < 1 || q->n > INT32_MAX || q->m > INT32_MAX || !q->e)
    return fail(E_INTERNAL, "%s: adapter: expected a residual with rows and columns, found %lld x %lld", q->where, (long long)q->n,
                (long long)q->m);
  if (q->rank < 1 || q->rank > small)
    return fail(E_USAGE, "%s: adapter: expected a rank of 1 to %lld, found %d", q->where, (long long)small, q->rank);
  if (!(q->tolerance >= 0)) return fail(E_INTERNAL, "%s: adapter: expected a tolerance >= 0, found %g", q->where, q->tolerance);
  if (q->diagonal && q->h) return fail(E_INTERNAL, "%s: adapter: expected one metric, found a Gram and a diagonal", q->where);
  for (int64_t j = 0; q->diagonal && j < q->m; j++)
    if (!(q->diagonal[j] >= 0))
      return fail(E_NUMERICS, "%s: adapter: diagonal metric, expected numbers >= 0, found %g in column %lld", q->where,
                  (double)q->diagonal[j], (long long)j);
  return OK;
}

bool metric_given(const adapter_request *q) { return q->h || q->diagonal; }

status metric_apply(const adapter_request *q, int64_t rows, const double *x, double *y) {
  int64_t m = q->m;
  if (q->h) return mixed_gemm(false, rows, m, m, 1, x, m, q->h, m, false, y, m);
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < m; j++) y[i * m + j] = x[i * m + j] * (double)q->diagonal[j];
  return OK;
}

/* How far rounding H to float can lower an eigenvalue of E H E^T: 6e-8 ||H||_F ||E||_2^2 with a margin of 4; the spectral norm of E as
 * that of noise of the same Frobenius norm. */
static double gram_rounding(const adapter_request *q) {
  double h = 0, e = 0, n = (double)q->n, m = (double)q->m;
  for (int64_t i = 0; q->h && i < q->m * q->m; i++) h += (double)q->h[i] * (double)q->h[i];
  for (int64_t i = 0; i < q->n * q->m; i++) e += (double)q->e[i] * (double)q->e[i];
  return 4 * 6e-8 * sqrt(h) * e * (sqrt(n) + sqrt(m)) * (sqrt(n) + sqrt(m)) / (n * m);
}

status spectrum_check(const adapter_request *q, double lowest, double largest) {
  if (!isfinite(lowest) || !isfinite(largest))
    return fail(E_NUMERICS, "%s: adapter: expected finite eigenvalues, found NaN or Inf", q->where);
  if (lowest >= -1e-6 * fmax(largest, 0)) return OK;
  /* A quantizer turns E away from H's large directions, so the rounding of H to float (6e-8 of its norm) may outweigh 1e-6 of E H E^T. */
  double rounding = gram_rounding(q);
  if (lowest < -1e-6 * fmax(largest, 0) - rounding)
    return fail(E_NUMERICS,
                "%s: adapter: E H E^T, expected no eigenvalue below -%.1e, found %.3e beside a largest of %.3e: the Gram is not positive "
                "semidefinite",
                q->where, 1e-6 * fmax(largest, 0) + rounding, lowest, largest);
  return OK;
}

void fix_signs_and_round(int64_t n, int rank, double *rows) {
  for (int r = 0; r < rank; r++) {
    double *row = rows + (int64_t)r * n, largest = 0, sign = 1;
    for (int64_t i = 0; i < n; i++)
      if (fabs(row[i]) > largest) {
        largest = fabs(row[i]);
        sign = row[i] < 0 ? -1 : 1;
      }
    for (int64_t i = 0; i < n; i++) row[i] = (double)(float)(sign * row[i]);
  }
}

status factors_begin(const adapter_request *q, const double *rows, const double *values, adapter *out) {
  status st = OK;
  int64_t n = q->n, rank = q->rank;
  out->n = n;
  out->m = q->m;
  out->rank = q->rank;
  TRY(NEW(out->b, n * rank, "lora_B"));
  TRY(NEW(out->a, rank * q->m, "lora_A"));
  TRY(NEW(out->values, rank, "eigenvalues"));
  for (int64_t r = 0; r < rank; r++) {
    out->values[r] = values[r];
    for (int64_t i = 0; i < n; i++) out->b[i * rank + r] = (float)rows[r * n + i];
  }
done:
  return st;
}

status factors_check(const adapter_request *q, const adapter *out) {
  double sum = 0, captured = 0;
  for (int64_t i = 0; i < out->n * out->rank; i++) sum += 0 * (double)out->b[i];
  for (int64_t i = 0; i < out->m * out->rank; i++) sum += 0 * (double)out->a[i];
  for (int r = 0; r < out->rank; r++) captured += out->values[r];
  if (sum != 0 || !isfinite(captured) || !isfinite(out->trace))
    return fail(E_NUMERICS, "%s: adapter: expected finite factors, found NaN or Inf", q->where);
  double slack = 1e-6 * fabs(out->trace);
  if (captured > out->trace + slack && captured > out->trace + slack + (double)out->n * gram_rounding(q))
    return fail(E_NUMERICS, "%s: adapter: expected eigenvalues that sum to at most the loss without adapter, %.9e, found %.9e", q->where,
                out->trace, captured);
  return OK;
}

void adapter_free(adapter *a) {
  FREE(a->b);
  FREE(a->a);
  FREE(a->values);
  *a = (adapter){0};
}
