#include "adapter/mixed.h"

#include <string.h>

#include "base/hot.h"
#include "base/memory.h"

/* A tile of c is TR x TC; a panel of f is TC columns of op(f) over KC terms, widened (24 x 256 doubles: 48 KiB, in the second-level cache);
 * x is packed by TR rows, at most ROWS of them at once. Where f is read along its rows, four panels are packed together so that a row
 * gives six whole cache lines, not one and a half. */
enum { TR = 8, TC = 24, KC = 256, ROWS = 256, PANELS = 4 };

typedef double wide __attribute__((vector_size(64)));
typedef double narrow __attribute__((vector_size(32)));
typedef double wide_any __attribute__((vector_size(64), aligned(8), may_alias));
typedef double narrow_any __attribute__((vector_size(32), aligned(8), may_alias));

typedef void (*tile_kernel)(int64_t k, const double *restrict x, const double *restrict f, double *restrict c, int64_t ldc);

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(CLOQWORK_NO_CLONES)
#define WIDE_KERNEL 1
/* c (8, 24) += x^T f, x packed (k, 8), f packed (k, 24): 24 accumulators of 8 doubles, which AVX-512 has registers for. */
__attribute__((target("arch=x86-64-v4"))) static void tile_wide(int64_t k, const double *restrict x, const double *restrict f,
                                                                double *restrict c, int64_t ldc) {
  wide sum[TR][3] = {0};
  for (int64_t p = 0; p < k; p++, x += TR, f += TC) {
    const wide *row = (const wide *)f;
    wide f0 = row[0], f1 = row[1], f2 = row[2];
#pragma GCC unroll 8
    for (int i = 0; i < TR; i++) {
      sum[i][0] += x[i] * f0;
      sum[i][1] += x[i] * f1;
      sum[i][2] += x[i] * f2;
    }
  }
  for (int i = 0; i < TR; i++)
    for (int j = 0; j < 3; j++) *(wide_any *)(c + i * ldc + 8 * j) += sum[i][j];
}
#endif

/* The same packed operands for sixteen registers of 4 doubles: four tiles of 4 x 12. */
HOT static void tile_narrow(int64_t k, const double *restrict x, const double *restrict f, double *restrict c, int64_t ldc) {
  for (int i0 = 0; i0 < TR; i0 += 4)
    for (int j0 = 0; j0 < TC; j0 += 12) {
      narrow sum[4][3] = {0};
      for (int64_t p = 0; p < k; p++) {
        const narrow *row = (const narrow *)(f + p * TC + j0);
        narrow f0 = row[0], f1 = row[1], f2 = row[2];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
          double s = x[p * TR + i0 + i];
          sum[i][0] += s * f0;
          sum[i][1] += s * f1;
          sum[i][2] += s * f2;
        }
      }
      for (int i = 0; i < 4; i++)
        for (int j = 0; j < 3; j++) *(narrow_any *)(c + (i0 + i) * ldc + j0 + 4 * j) += sum[i][j];
    }
}

static tile_kernel choose_kernel(void) {
#ifdef WIDE_KERNEL
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd"))
    return tile_wide;
#endif
  return tile_narrow;
}

/* panel q (k, 24) = columns [24 q, 24 q + 24) of f (k, columns), zeros beyond. */
HOT static void pack_columns(int64_t k, int64_t columns, const float *restrict f, int64_t ldf, double *restrict panels) {
  for (int64_t p = 0; p < k; p++, f += ldf) {
    if (p + 4 < k)
      for (int64_t j = 0; j < columns; j += 16) __builtin_prefetch(f + 4 * ldf + j);
    for (int64_t j0 = 0; j0 < columns; j0 += TC) {
      double *restrict row = panels + j0 * k + p * TC;
      if (j0 + TC <= columns)
        for (int j = 0; j < TC; j++) row[j] = (double)f[j0 + j];
      else
        for (int64_t j = 0; j < TC; j++) row[j] = j0 + j < columns ? (double)f[j0 + j] : 0;
    }
  }
}

/* panel (k, 24) = transpose of rows of f (columns <= 24, k), zeros beyond. */
HOT static void pack_rows(int64_t k, int64_t columns, const float *restrict f, int64_t ldf, double *restrict panel) {
  int64_t p = 0;
  if (columns == TC)
    for (; p + 8 <= k; p += 8)
      for (int j = 0; j < TC; j++)
        for (int q = 0; q < 8; q++) panel[(p + q) * TC + j] = (double)f[j * ldf + p + q];
  for (; p < k; p++)
    for (int64_t j = 0; j < TC; j++) panel[p * TC + j] = j < columns ? (double)f[j * ldf + p] : 0;
}

/* x (rows, k) by bands of 8 rows, each (k, 8), scaled; zeros beyond the last row. */
HOT static void pack_x(int64_t rows, int64_t k, double alpha, const double *restrict x, int64_t ldx, double *restrict packed) {
  for (int64_t i0 = 0; i0 < rows; i0 += TR) {
    double *restrict band = packed + i0 * k;
    int64_t p = 0;
    if (i0 + TR <= rows)
      for (; p + 8 <= k; p += 8)
        for (int i = 0; i < TR; i++)
          for (int q = 0; q < 8; q++) band[(p + q) * TR + i] = alpha * x[(i0 + i) * ldx + p + q];
    for (; p < k; p++)
      for (int64_t i = 0; i < TR; i++) band[p * TR + i] = i0 + i < rows ? alpha * x[(i0 + i) * ldx + p] : 0;
  }
}

static void add_tile(tile_kernel kernel, int64_t rows, int64_t columns, int64_t k, const double *x, const double *f, double *c,
                     int64_t ldc) {
  if (rows >= TR && columns >= TC) {
    kernel(k, x, f, c, ldc);
    return;
  }
  double tile[TR * TC] __attribute__((aligned(64))) = {0};
  kernel(k, x, f, tile, TC);
  for (int64_t i = 0; i < rows && i < TR; i++)
    for (int64_t j = 0; j < columns && j < TC; j++) c[i * ldc + j] += tile[i * TC + j];
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

status mixed_gemm(bool transpose, int64_t b, int64_t k, int64_t n, double alpha, const double *x, int64_t ldx, const float *f, int64_t ldf,
                  bool add, double *c, int64_t ldc) {
  status st = OK;
  double *xs = NULL, *panels = NULL;
  int64_t together = transpose ? TC : PANELS * TC; /* columns of op(f) packed at once */
  tile_kernel kernel = choose_kernel();
  TRY(NEW(xs, (least(b, ROWS) + TR) * least(k, KC), "packed rows"));
  TRY(NEW(panels, together * least(k, KC), "packed panels"));
  if (!add)
    for (int64_t i = 0; i < b; i++) memset(c + i * ldc, 0, (size_t)n * sizeof *c);
  for (int64_t b0 = 0; b0 < b; b0 += ROWS)
    for (int64_t k0 = 0; k0 < k; k0 += KC) {
      int64_t rows = least(ROWS, b - b0), terms = least(KC, k - k0);
      pack_x(rows, terms, alpha, x + b0 * ldx + k0, ldx, xs);
      for (int64_t n0 = 0; n0 < n; n0 += together) {
        int64_t columns = least(together, n - n0);
        if (transpose)
          pack_rows(terms, columns, f + n0 * ldf + k0, ldf, panels);
        else
          pack_columns(terms, columns, f + k0 * ldf + n0, ldf, panels);
        for (int64_t j = 0; j < columns; j += TC)
          for (int64_t i = 0; i < rows; i += TR)
            add_tile(kernel, rows - i, columns - j, terms, xs + i * terms, panels + j * terms, c + (b0 + i) * ldc + n0 + j, ldc);
      }
    }
done:
  FREE(panels);
  FREE(xs);
  return st;
}

HOT void mixed_widen(int64_t rows, int64_t cols, const float *a, int64_t lda, double *out) {
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < cols; j++) out[i * cols + j] = (double)a[i * lda + j];
}
