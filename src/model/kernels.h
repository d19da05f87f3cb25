/* The elementwise arithmetic of a decoder block: one pass over memory each, vectorized. Local. Private to this room.
 * Rows are summed in an order that depends on their length alone, so a row's result is the same wherever it lies. */
#ifndef CLOQWORK_MODEL_KERNELS_H
#define CLOQWORK_MODEL_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* out = x / sqrt(mean(x^2) + eps) * weight, per row of d; out may be x. */
void kernel_rms_norm(int64_t rows, int64_t d, float eps, const float *x, const float *weight, float *out);

/* Adds bias (cols) to every row of y (rows, cols); kernel_set_rows overwrites y with it. */
void kernel_add_rows(int64_t rows, int64_t cols, const float *bias, float *y);
void kernel_set_rows(int64_t rows, int64_t cols, const float *bias, float *y);

/* g = silu(g) * up, silu(x) = x / (1 + exp(-x)). g has row stride ldg, up ldu. */
void kernel_silu_mul(int64_t rows, int64_t cols, float *g, int64_t ldg, const float *up, int64_t ldu);

/* x (rows, heads*D): per head an optional RMSNorm with weight norm (D), then the rotation by the row's angle, "rotate half" layout.
 * Row i is at position i; cosines and sines are (rows, D/2). */
void kernel_rotate(int64_t rows, int heads, int head_dim, float *x, const float *norm, float eps, const float *cosines, const float *sines);

/* s (keys, queries) by row stride ld, queries <= KERNEL_QUERIES: softmax down each column, unnormalized: s = exp(s - max), sums (queries)
 * what to divide by. Query i sees the keys up to its own, number i + own, and of those the last `window` (0: all); the rest becomes 0. */
enum { KERNEL_QUERIES = 128 };
void kernel_softmax_columns(int64_t keys, int queries, int64_t own, int64_t window, float *s, int64_t ld, float *sums);

/* out (cols, rows) = in (rows, cols) transposed; row strides ldi, ldo. */
void kernel_transpose(int64_t rows, int64_t cols, const float *in, int64_t ldi, float *out, int64_t ldo);

/* x *= factor over n. */
void kernel_scale(int64_t n, float factor, float *x);

/* out = exp(x), within 1 ulp or so for -87.3 <= x <= 88.3 and clamped beyond: the exponential of silu and softmax, for tests. */
void kernel_exp(int64_t n, const float *x, float *out);

float kernel_max(int64_t n, const float *x); /* NaNs are passed over; n >= 1 */

/* A piece of a softmax in one pass, sums in double: e = exp(x - shift), returns their sum (kernel_exp_sum); the same without keeping
 * them, and *cross = sum of weight (reference - x) (kernel_exp_cross). */
double kernel_exp_sum(int64_t n, const float *x, float shift, float *e);
double kernel_exp_cross(int64_t n, const float *x, float shift, const float *weight, const float *reference, double *cross);

bool kernel_all_finite(size_t n, const float *x);

#endif
