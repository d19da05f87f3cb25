/* Products of a few double rows with a large float matrix, in double: E and H are stored in float, all arithmetic on them is double.
 *
 * Widening a whole matrix would double its memory, and a BLAS call per widened block packs it once more: here the widening IS the
 * packing. At 32 rows this is 1.5 times as fast as widening blocks for dgemm, from 256 rows on it is dgemm's own speed. Local. */
#ifndef CLOQWORK_ADAPTER_MIXED_H
#define CLOQWORK_ADAPTER_MIXED_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

/* c (b, n) = alpha x op(f), added to what c holds if `add`. x (b, k) double; f float, (k, n), or (n, k) if `transpose`; all row-major
 * with their row strides. An entry of c depends on its row of x, its column of op(f) and k alone, not on b or its place. 2 b k n flops; E_MEMORY. */
status mixed_gemm(bool transpose, int64_t b, int64_t k, int64_t n, double alpha, const double *x, int64_t ldx, const float *f, int64_t ldf,
                  bool add, double *c, int64_t ldc);

/* out (rows, cols) contiguous = a (rows, cols) with stride lda, widened. */
void mixed_widen(int64_t rows, int64_t cols, const float *a, int64_t lda, double *out);

#endif
