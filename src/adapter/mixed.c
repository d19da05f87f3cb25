#include "adapter/mixed.h"

#include <string.h>

#include "base/hot.h"
#include "base/memory.h"

/* A tile of c is as large as registers allow; a panel of f is a tile's columns of op(f) over KC terms, widened (24 x 256 doubles are 48 KiB, in the
 * second-level cache, which AVX-512's 24 products a load can wait for; 12 x 256 stay in the first); x is packed by a tile's rows, at most ROWS
 * of them at once. Where f is read along its rows, TOGETHER columns are packed together so that a row gives six whole cache lines, not one and a half. */
enum { KC = 256, ROWS = 256, TOGETHER = 96 };
enum { WIDE_ROWS = 8, WIDE_COLUMNS = 24, NARROW_ROWS = 4, NARROW_COLUMNS = 12 };

typedef double wide __attribute__((vector_size(64)));
typedef double narrow __attribute__((vector_size(32)));
typedef double wide_any __attribute__((vector_size(64), aligned(8), may_alias));
typedef double narrow_any __attribute__((vector_size(32), aligned(8), may_alias));

typedef void (*tile_kernel)(int64_t k, const double *restrict x, const double *restrict f, double *restrict c, int64_t ldc);

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(CLOQWORK_NO_CLONES)
#define WIDE_KERNEL 1
/* c (8, 24) += x^T f, x packed (k, 8), f packed (k, 24): 24 accumulators of 8 doubles. */
__attribute__((target("arch=x86-64-v4"))) static void tile_wide(int64_t k, const double *restrict x, const double *restrict f,
                                                                double *restrict c, int64_t ldc) {
  wide sum[WIDE_ROWS][3] = {0};
  for (int64_t p = 0; p < k; p++, x += WIDE_ROWS, f += WIDE_COLUMNS) {
    const wide *row = (const wide *)f;
    wide f0 = row[0], f1 = row[1], f2 = row[2];
#pragma GCC unroll 8
    for (int i = 0; i < WIDE_ROWS; i++) {
      sum[i][0] += x[i] * f0;
      sum[i][1] += x[i] * f1;
      sum[i][2] += x[i] * f2;
    }
  }
  for (int i = 0; i < WIDE_ROWS; i++)
    for (int j = 0; j < 3; j++) *(wide_any *)(c + i * ldc + 8 * j) += sum[i][j];
}
#endif

/* c (4, 12) += x^T f likewise: 12 of sixteen registers of 4 doubles. */
HOT static void tile_narrow(int64_t k, const double *restrict x, const double *restrict f, double *restrict c, int64_t ldc) {
  narrow sum[NARROW_ROWS][3] = {0};
  for (int64_t p = 0; p < k; p++, x += NARROW_ROWS, f += NARROW_COLUMNS) {
    const narrow *row = (const narrow *)f;
    narrow f0 = row[0], f1 = row[1], f2 = row[2];
#pragma GCC unroll 4
    for (int i = 0; i < NARROW_ROWS; i++) {
      sum[i][0] += x[i] * f0;
      sum[i][1] += x[i] * f1;
      sum[i][2] += x[i] * f2;
    }
  }
  for (int i = 0; i < NARROW_ROWS; i++)
    for (int j = 0; j < 3; j++) *(narrow_any *)(c + i * ldc + 4 * j) += sum[i][j];
}

/* panel q (k, tc) = columns [tc q, tc q + tc) of f (k, columns), zeros beyond. */
static inline __attribute__((always_inline)) void columns_to_panels(int tc, int64_t k, int64_t columns, const float *restrict f,
                                                                    int64_t ldf, double *restrict panels) {
  for (int64_t p = 0; p < k; p++, f += ldf) {
    if (p + 4 < k)
      for (int64_t j = 0; j < columns; j += 16) __builtin_prefetch(f + 4 * ldf + j);
    for (int64_t j0 = 0; j0 < columns; j0 += tc) {
      double *restrict row = panels + j0 * k + p * tc;
      if (j0 + tc <= columns)
        for (int j = 0; j < tc; j++) row[j] = (double)f[j0 + j];
      else
        for (int64_t j = 0; j < tc; j++) row[j] = j0 + j < columns ? (double)f[j0 + j] : 0;
    }
  }
}

/* panel (k, tc) = transpose of rows of f (columns <= tc, k), zeros beyond. */
static inline __attribute__((always_inline)) void rows_to_panel(int tc, int64_t k, int64_t columns, const float *restrict f, int64_t ldf,
                                                                double *restrict panel) {
  int64_t p = 0;
  if (columns == tc)
    for (; p + 8 <= k; p += 8)
      for (int j = 0; j < tc; j++)
        for (int q = 0; q < 8; q++) panel[(p + q) * tc + j] = (double)f[j * ldf + p + q];
  for (; p < k; p++)
    for (int64_t j = 0; j < tc; j++) panel[p * tc + j] = j < columns ? (double)f[j * ldf + p] : 0;
}

/* x (rows, k) by bands of tr rows, each (k, tr), scaled; zeros beyond the last row. */
static inline __attribute__((always_inline)) void rows_to_bands(int tr, int64_t rows, int64_t k, double alpha, const double *restrict x,
                                                                int64_t ldx, double *restrict packed) {
  for (int64_t i0 = 0; i0 < rows; i0 += tr) {
    double *restrict band = packed + i0 * k;
    int64_t p = 0;
    if (i0 + tr <= rows)
      for (; p + 8 <= k; p += 8)
        for (int i = 0; i < tr; i++)
          for (int q = 0; q < 8; q++) band[(p + q) * tr + i] = alpha * x[(i0 + i) * ldx + p + q];
    for (; p < k; p++)
      for (int64_t i = 0; i < tr; i++) band[p * tr + i] = i0 + i < rows ? alpha * x[(i0 + i) * ldx + p] : 0;
  }
}

/* A tile and what packs for it; rows and columns are constants where they are compiled. */
typedef struct tile_kind {
  int rows, columns;
  tile_kernel kernel;
  void (*pack_columns)(int64_t k, int64_t columns, const float *restrict f, int64_t ldf, double *restrict panels);
  void (*pack_rows)(int64_t k, int64_t columns, const float *restrict f, int64_t ldf, double *restrict panel);
  void (*pack_x)(int64_t rows, int64_t k, double alpha, const double *restrict x, int64_t ldx, double *restrict packed);
} tile_kind;
#define KIND(name, how, tr, tc)                                                                                                     \
  how static void name##_columns(int64_t k, int64_t columns, const float *restrict f, int64_t ldf, double *restrict panels) {       \
    columns_to_panels(tc, k, columns, f, ldf, panels);                                                                              \
  }                                                                                                                                 \
  how static void name##_rows(int64_t k, int64_t columns, const float *restrict f, int64_t ldf, double *restrict panel) {           \
    rows_to_panel(tc, k, columns, f, ldf, panel);                                                                                   \
  }                                                                                                                                 \
  how static void name##_x(int64_t rows, int64_t k, double alpha, const double *restrict x, int64_t ldx, double *restrict packed) { \
    rows_to_bands(tr, rows, k, alpha, x, ldx, packed);                                                                              \
  }                                                                                                                                 \
  static const tile_kind kind_##name = {tr, tc, tile_##name, name##_columns, name##_rows, name##_x};
KIND(narrow, HOT, NARROW_ROWS, NARROW_COLUMNS)
#ifdef WIDE_KERNEL
KIND(wide, __attribute__((target("arch=x86-64-v4"))), WIDE_ROWS, WIDE_COLUMNS)
#endif

static const tile_kind *choose_kind(void) {
#ifdef WIDE_KERNEL
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd"))
    return &kind_wide;
#endif
  return &kind_narrow;
}

static void add_tile(const tile_kind *t, int64_t rows, int64_t columns, int64_t k, const double *x, const double *f, double *c,
                     int64_t ldc) {
  if (rows >= t->rows && columns >= t->columns) {
    t->kernel(k, x, f, c, ldc);
    return;
  }
  double tile[WIDE_ROWS * WIDE_COLUMNS] __attribute__((aligned(64))) = {0};
  t->kernel(k, x, f, tile, t->columns);
  for (int64_t i = 0; i < rows && i < t->rows; i++)
    for (int64_t j = 0; j < columns && j < t->columns; j++) c[i * ldc + j] += tile[i * t->columns + j];
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

status mixed_gemm(bool transpose, int64_t b, int64_t k, int64_t n, double alpha, const double *x, int64_t ldx, const float *f, int64_t ldf,
                  bool add, double *c, int64_t ldc) {
  status st = OK;
  double *xs = NULL, *panels = NULL;
  const tile_kind *t = choose_kind();
  int64_t together = transpose ? t->columns : TOGETHER; /* columns of op(f) packed at once */
  TRY(NEW(xs, (least(b, ROWS) + t->rows) * least(k, KC), "packed rows"));
  TRY(NEW(panels, together * least(k, KC), "packed panels"));
  if (!add)
    for (int64_t i = 0; i < b; i++) memset(c + i * ldc, 0, (size_t)n * sizeof *c);
  for (int64_t b0 = 0; b0 < b; b0 += ROWS)
    for (int64_t k0 = 0; k0 < k; k0 += KC) {
      int64_t rows = least(ROWS, b - b0), terms = least(KC, k - k0);
      t->pack_x(rows, terms, alpha, x + b0 * ldx + k0, ldx, xs);
      for (int64_t n0 = 0; n0 < n; n0 += together) {
        int64_t columns = least(together, n - n0);
        if (transpose)
          t->pack_rows(terms, columns, f + n0 * ldf + k0, ldf, panels);
        else
          t->pack_columns(terms, columns, f + k0 * ldf + n0, ldf, panels);
        for (int64_t j = 0; j < columns; j += t->columns)
          for (int64_t i = 0; i < rows; i += t->rows)
            add_tile(t, rows - i, columns - j, terms, xs + i * terms, panels + j * terms, c + (b0 + i) * ldc + n0 + j, ldc);
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
