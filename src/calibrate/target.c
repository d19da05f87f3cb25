#include "calibrate/target.h"

#include <math.h>

#include "base/blas.h"
#include "base/memory.h"

uint64_t target_bytes(int64_t m) { return (uint64_t)(3 * TARGET_ROWS * m) * sizeof(double); }

double target_flops(int64_t n, int64_t m, bool of_outputs) { return (of_outputs ? 2.0 : 4.0) * (double)n * (double)m * (double)m; }

/* The first row of a slab: x (Hq + mu I) against its right side. */
static status check_row(const target_request *q, int64_t row, const double *x, const double *right) {
  double off = 0, size = 0;
  for (int64_t j = 0; j < q->m; j++) {
    double sum = (q->mu + (q->h[j * q->m + j] == 0)) * x[j];
    for (int64_t k = 0; k < q->m; k++) sum += x[k] * (double)q->h[j * q->m + k];
    off += (sum - right[j]) * (sum - right[j]);
    size += right[j] * right[j];
  }
  if (off <= 1e-16 * size) return OK;
  return fail(E_NUMERICS, "%s: row %lld of the target: expected a residual of at most 1e-08, found %.1e", q->where, (long long)row,
              sqrt(off / size));
}

/* One slab: right = W X^T Xq + mu W, x = right (u u^T)^-1. */
static status slab(const target_request *q, int64_t row, int rows, float *w, double *original, double *right, double *x) {
  int m = (int)q->m;
  int64_t count = rows * q->m;
  for (int64_t k = 0; k < count; k++) original[k] = w[k];
  if (q->of_outputs)
    for (int64_t k = 0; k < count; k++) right[k] = q->cross[row * m + k];
  else
    dgemm(false, false, rows, m, m, 1, original, m, q->cross, m, 0, right, m);
  for (int64_t k = 0; k < count; k++) x[k] = right[k] += q->mu * original[k];
  dtrsm(true, false, true, rows, m, q->factor, m, x, m);
  dtrsm(true, false, false, rows, m, q->factor, m, x, m);
  for (int64_t k = 0; k < count; k++)
    if (q->h[k % m * m + k % m] != 0) w[k] = (float)(original[k] + q->alpha * (x[k] - original[k]));
  return check_row(q, row, x, right);
}

status target_rows(const target_request *q, int64_t begin, int64_t end, float *w) {
  status st = OK;
  double *work = NULL;
  int64_t slab_count = TARGET_ROWS * q->m;
  TRY(NEW(work, 3 * slab_count, "a slab of target weights"));
  for (int64_t row = begin; row < end; row += TARGET_ROWS) {
    int rows = (int)(end - row < TARGET_ROWS ? end - row : TARGET_ROWS);
    TRY(slab(q, row, rows, w + row * q->m, work, work + slab_count, work + 2 * slab_count));
  }
done:
  FREE(work);
  return st;
}
