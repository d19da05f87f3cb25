#include "model/kernels.h"

#include <math.h>
#include <string.h>

#include "base/hot.h"

/* exp(x) = 2^n exp(r), |r| <= ln 2 / 2: n by adding 1.5 * 2^23, whose last bits then hold it; r by ln 2 in two parts; exp(r) by the
 * polynomial of Cephes. No branch and no table, so that it vectorizes; clamped where 2^n would leave the normal numbers. */
static inline float exponential(float x) {
  const float magic = 0x1.8p23f;
  x = x < -87.3f ? -87.3f : x;
  x = x > 88.3f ? 88.3f : x;
  float t = x * 1.44269504088896341f + magic, n = t - magic, r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1;
  uint32_t u;
  memcpy(&u, &t, sizeof u);
  u = (u + 127) << 23;
  float scale;
  memcpy(&scale, &u, sizeof scale);
  return p * scale;
}

HOT void kernel_exp(int64_t n, const float *restrict x, float *restrict out) {
#pragma omp simd
  for (int64_t i = 0; i < n; i++) out[i] = exponential(x[i]);
}

HOT void kernel_rms_norm(int64_t rows, int64_t d, float eps, const float *x, const float *restrict weight, float *out) {
  for (int64_t i = 0; i < rows; i++, x += d, out += d) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t k = 0; k < d; k++) sum += x[k] * x[k];
    float scale = 1 / sqrtf(sum / (float)d + eps);
#pragma omp simd
    for (int64_t k = 0; k < d; k++) out[k] = x[k] * scale * weight[k];
  }
}

HOT void kernel_add_rows(int64_t rows, int64_t cols, const float *restrict bias, float *restrict y) {
  for (int64_t i = 0; i < rows; i++, y += cols)
    for (int64_t k = 0; k < cols; k++) y[k] += bias[k];
}

void kernel_set_rows(int64_t rows, int64_t cols, const float *bias, float *y) {
  for (int64_t i = 0; i < rows; i++) memcpy(y + i * cols, bias, (size_t)cols * sizeof *y);
}

HOT void kernel_silu_mul(int64_t rows, int64_t cols, float *restrict g, int64_t ldg, const float *restrict up, int64_t ldu) {
  for (int64_t i = 0; i < rows; i++, g += ldg, up += ldu) {
#pragma omp simd
    for (int64_t k = 0; k < cols; k++) g[k] = g[k] / (1 + exponential(-g[k])) * up[k];
  }
}

HOT void kernel_rotate(int64_t rows, int heads, int head_dim, float *restrict x, const float *restrict norm, float eps,
                       const float *restrict cosines, const float *restrict sines) {
  const int half = head_dim / 2;
  for (int64_t i = 0; i < rows; i++, cosines += half, sines += half) {
    for (int h = 0; h < heads; h++, x += head_dim) {
      if (norm) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int k = 0; k < head_dim; k++) sum += x[k] * x[k];
        float scale = 1 / sqrtf(sum / (float)head_dim + eps);
#pragma omp simd
        for (int k = 0; k < head_dim; k++) x[k] = x[k] * scale * norm[k];
      }
#pragma omp simd
      for (int k = 0; k < half; k++) {
        float a = x[k], b = x[k + half];
        x[k] = a * cosines[k] - b * sines[k];
        x[k + half] = b * cosines[k] + a * sines[k];
      }
    }
  }
}

/* Columns, not rows: the queries of a key lie side by side, so the passes vectorize over queries and no sum runs across a vector.
 * Sums go by groups of 32 keys, which keeps their rounding error near that of a pairwise sum. */
HOT void kernel_softmax_columns(int64_t keys, int queries, int64_t own, int64_t window, float *restrict s, int64_t ld,
                                float *restrict sums) {
  float largest[KERNEL_QUERIES], part[KERNEL_QUERIES];
  for (int i = 0; i < queries; i++) largest[i] = -INFINITY, sums[i] = 0;
  for (int64_t j = 0; j < keys; j++) {
    const float *row = s + j * ld;
    int low = j > own ? (int)(j - own) : 0, high = window && j - own + window < queries ? (int)(j - own + window) : queries;
#pragma omp simd
    for (int i = low; i < high; i++) largest[i] = row[i] > largest[i] ? row[i] : largest[i];
  }
  for (int64_t group = 0; group < keys; group += 32) {
    memset(part, 0, sizeof part);
    for (int64_t j = group; j < keys && j < group + 32; j++) {
      float *row = s + j * ld;
      int low = j > own ? (int)(j - own) : 0, high = window && j - own + window < queries ? (int)(j - own + window) : queries;
      for (int i = 0; i < low; i++) row[i] = 0;
#pragma omp simd
      for (int i = low; i < high; i++) {
        float e = exponential(row[i] - largest[i]);
        row[i] = e;
        part[i] += e;
      }
      for (int i = high; i < queries; i++) row[i] = 0;
    }
    for (int i = 0; i < queries; i++) sums[i] += part[i];
  }
}

HOT void kernel_transpose(int64_t rows, int64_t cols, const float *restrict in, int64_t ldi, float *restrict out, int64_t ldo) {
  enum { TILE = 16 };
  for (int64_t r = 0; r < rows; r += TILE)
    for (int64_t c = 0; c < cols; c += TILE)
      for (int64_t k = c; k < cols && k < c + TILE; k++)
        for (int64_t i = r; i < rows && i < r + TILE; i++) out[k * ldo + i] = in[i * ldi + k];
}

HOT void kernel_scale(int64_t n, float factor, float *x) {
  for (int64_t k = 0; k < n; k++) x[k] *= factor;
}

HOT float kernel_max(int64_t n, const float *x) {
  float most = -INFINITY;
#pragma omp simd reduction(max : most)
  for (int64_t k = 0; k < n; k++) most = x[k] > most ? x[k] : most;
  return most;
}

HOT double kernel_exp_sum(int64_t n, const float *restrict x, float shift, float *restrict e) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < n; k++) {
    e[k] = exponential(x[k] - shift);
    sum += (double)e[k];
  }
  return sum;
}

HOT double kernel_exp_cross(int64_t n, const float *restrict x, float shift, const float *restrict weight, const float *restrict reference,
                            double *cross) {
  double sum = 0, weighted = 0;
#pragma omp simd reduction(+ : sum, weighted)
  for (int64_t k = 0; k < n; k++) {
    sum += (double)exponential(x[k] - shift);
    weighted += (double)weight[k] * (double)(reference[k] - x[k]);
  }
  *cross = weighted;
  return sum;
}

HOT bool kernel_all_finite(size_t n, const float *x) {
  uint32_t bad = 0;
  for (size_t i = 0; i < n; i++) {
    uint32_t u;
    memcpy(&u, x + i, sizeof u);
    bad |= (u << 1) >= 0xff000000u;
  }
  return !bad;
}
