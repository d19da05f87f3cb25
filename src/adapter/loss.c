#include <math.h>

#include "adapter/internal.h"
#include "adapter/mixed.h"
#include "base/blas.h"
#include "base/hot.h"
#include "base/memory.h"

enum { BAND = 256, STRIP = 288 };

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

HOT static double dot(int64_t n, const double *restrict x, const double *restrict y) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += x[i] * y[i];
  return sum;
}

/* Sum of x^2 d. */
HOT static double weighted_square(int64_t n, const double *restrict x, const float *restrict d) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += x[i] * x[i] * (double)d[i];
  return sum;
}

HOT void adapter_scale(int64_t rows, int64_t m, const float *x, const float *diagonal, float *out) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < m; j++) out[i * m + j] = x[i * m + j] * sqrtf(diagonal[j]);
}

status metric_trace(const adapter_request *q, int64_t begin, int64_t end, double *row_loss, double *sum) {
  status st = OK;
  double *x = NULL;
  if (!q->diagonal) return adapter_trace(q->m, q->e, q->h, begin, end, row_loss, sum);
  *sum = 0;
  TRY(NEW(x, q->m, "a residual row"));
  for (int64_t i = begin; i < end; i++) {
    mixed_widen(1, q->m, q->e + i * q->m, q->m, x);
    double term = weighted_square(q->m, x, q->diagonal);
    if (row_loss) row_loss[i - begin] = term;
    *sum += term;
  }
done:
  FREE(x);
  return st;
}

/* H is symmetric: a strip J of columns needs only the rows of H from J on, those below its diagonal block counted twice. Half the flops of E H. */
status adapter_trace(int64_t m, const float *e, const float *h, int64_t begin, int64_t end, double *row_loss, double *sum) {
  status st = OK;
  double *x = NULL, *y = NULL, terms[BAND];
  *sum = 0;
  TRY(NEW(x, BAND * m, "residual rows"));
  if (h) TRY(NEW(y, BAND * STRIP, "rows of E H"));
  for (int64_t i0 = begin; i0 < end; i0 += BAND) {
    int64_t rows = least(BAND, end - i0);
    mixed_widen(rows, m, e + i0 * m, m, x);
    for (int64_t i = 0; i < rows; i++) terms[i] = h ? 0 : dot(m, x + i * m, x + i * m);
    for (int64_t j = 0; h && j < m; j += STRIP) {
      int64_t columns = least(STRIP, m - j), below = j + columns;
      TRY(mixed_gemm(false, rows, columns, columns, 1, x + j, m, h + j * m + j, m, false, y, STRIP));
      if (below < m) TRY(mixed_gemm(false, rows, m - below, columns, 2, x + below, m, h + below * m + j, m, true, y, STRIP));
      for (int64_t i = 0; i < rows; i++) terms[i] += dot(columns, x + i * m + j, y + i * STRIP);
    }
    for (int64_t i = 0; i < rows; i++) {
      if (row_loss) row_loss[i0 - begin + i] = terms[i];
      *sum += terms[i];
    }
  }
done:
  FREE(x);
  FREE(y);
  return st;
}

/* With P = B^T B, S = A H A^T and C = A H E^T B, all r x r:  f(r) = trace - 2 sum_{i<=r} C_ii + sum_{i,j<=r} P_ij S_ij. */
status adapter_losses(int64_t n, int64_t m, const float *e, const float *h, const float *b, const float *a, int rank, double trace,
                      double *loss) {
  status st = OK;
  int64_t r = rank;
  double *aw = NULL, *bw = NULL, *ah = NULL, *ahe = NULL, *p = NULL, *s = NULL;
  TRY(NEW(aw, r * m, "A in double"));
  TRY(NEW(bw, n * r, "B in double"));
  TRY(NEW(ah, r * m, "A H"));
  TRY(NEW(ahe, r * n, "A H E^T"));
  TRY(NEW(p, r * r, "B^T B"));
  TRY(NEW(s, r * r, "A H A^T"));
  mixed_widen(r, m, a, m, aw);
  mixed_widen(n, r, b, r, bw);
  if (h) TRY(mixed_gemm(false, r, m, m, 1, aw, m, h, m, false, ah, m));
  const double *weighted = h ? ah : aw;
  TRY(mixed_gemm(true, r, m, n, 1, weighted, m, e, m, false, ahe, n));
  dgemm(true, false, rank, rank, (int)n, 1, bw, rank, bw, rank, 0, p, rank);
  dgemm(false, true, rank, rank, (int)m, 1, weighted, (int)m, aw, (int)m, 0, s, rank);
  loss[0] = trace;
  double kept = 0; /* trace - f */
  for (int64_t i = 0; i < r; i++) {
    double cross = 0, own = p[i * r + i] * s[i * r + i];
    for (int64_t k = 0; k < n; k++) cross += ahe[i * n + k] * bw[k * r + i];
    for (int64_t j = 0; j < i; j++) own += p[i * r + j] * s[i * r + j] + p[j * r + i] * s[j * r + i];
    kept += 2 * cross - own;
    loss[i + 1] = fmax(trace - kept, 0); /* below zero is rounding: the true value is a sum of squares */
  }
  if (!isfinite(kept) || !isfinite(trace))
    st = fail(E_NUMERICS, "adapter: loss of the stored factors: expected a finite number, found NaN or Inf");
done:
  FREE(aw);
  FREE(bw);
  FREE(ah);
  FREE(ahe);
  FREE(p);
  FREE(s);
  return st;
}

uint64_t adapter_losses_bytes(int64_t n, int64_t m, int rank) {
  uint64_t r = (uint64_t)rank;
  return 16 * r * ((uint64_t)(n + m) + r);
}
