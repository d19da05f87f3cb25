#include "quant/magr.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "base/blas.h"
#include "base/hot.h"
#include "base/memory.h"

/* Rows of one product. Few rows leave the packing of H unpaid, many push the row's arrays out of the caches; the answer does not depend on it. */
enum { SLAB_LEAST = 256, SLAB_MOST = 1024, SLAB_FLOATS = 2 << 20, LINE = 16 /* floats */ };

typedef struct shape {
  int width, segments, length; /* width = segments * length */
  int padded;                  /* length rounded up to a line: segments of the scratch row start on lines, their tails stay 0 */
  float alpha, step;           /* step = 1 / lambda_max */
  bool accelerate;
} shape;

/* One row's scratch, (segments, padded) each: sums over it run over whole lines in one fixed order. */
typedef struct scratch {
  float *z;    /* gradient step, then its clipped value v+ */
  float *back; /* y - v+ */
  float *move; /* v+ - v */
} scratch;

/* ---- the proximal step ---- */

static inline __attribute__((always_inline)) float excess(int n, const float *restrict z, float c, int *count) {
  float sum = 0;
  int k = 0;
#pragma omp simd reduction(+ : sum, k)
  for (int i = 0; i < n; i++) {
    float d = fabsf(z[i]) - c;
    sum += d > 0 ? d : 0;
    k += d > 0;
  }
  *count = k;
  return sum;
}

static inline __attribute__((always_inline)) float peak(int n, const float *restrict z) {
  float high = 0;
  for (int i = 0; i < n; i++) high = fabsf(z[i]) > high ? fabsf(z[i]) : high;
  return high;
}

/* c >= 0 with sum max(|z_i| - c, 0) = alpha, 0 when the sum of all |z_i| is not above alpha. The sum is convex, decreasing and piecewise linear
 * in c: Newton's step from anywhere lands left of the root or on it, climbs from there, and is exact once the set of |z_i| > c repeats.
 * guess: any level, best the previous step's. */
static inline __attribute__((always_inline)) float clip_level(int n, const float *restrict z, float alpha, float guess) {
  float c = guess;
  for (int before = 0;;) {
    int count;
    float sum = excess(n, z, c, &count);
    if (count == 0) { /* above all of them; the peak less alpha is left of the root */
      float high = peak(n, z), left = high > alpha ? high - alpha : 0;
      if (left >= high || left >= c) return high;
      c = left;
      continue;
    }
    if (count == before || (c <= 0 && sum <= alpha)) return c;
    float next = c + (sum - alpha) / (float)count;
    if (next < 0) next = 0;
    if (before && next <= c) return c; /* the root to the last bit */
    c = next;
    before = count;
  }
}

HOT float magr_prox(int n, float *v, float alpha) {
  float c = clip_level(n, v, alpha, FLT_MAX);
  for (int i = 0; i < n; i++) v[i] = v[i] > c ? c : v[i] < -c ? -c : v[i];
  return c;
}

/* ---- one step of one row ---- */

/* d = y - w and g = d H of the row -> the next v and d. level[segments] and *t are the row's own memory. */
static HOT void step_row(const shape *restrict s, const float *restrict w, const float *restrict g, float *restrict d, float *restrict v,
                         scratch buffer, float *restrict level, double *restrict t) {
  float *z = __builtin_assume_aligned(buffer.z, 64), *back = __builtin_assume_aligned(buffer.back, 64),
        *move = __builtin_assume_aligned(buffer.move, 64);
  float step = s->step;
  int n = s->length;
  for (int k = 0; k < s->segments; k++) {
    int at = k * n, to = k * s->padded;
    for (int i = 0; i < n; i++) z[to + i] = w[at + i] + (d[at + i] - step * g[at + i]);
    /* aligned whole lines: no loop is peeled by address, so the order of the sum is the same for every row */
    float c = level[k] = clip_level(s->padded, __builtin_assume_aligned(z + to, 64), s->alpha, level[k]);
    for (int i = 0; i < n; i++) {
      float p = z[to + i];
      p = p > c ? c : p;
      p = p < -c ? -c : p;
      z[to + i] = p;
      back[to + i] = w[at + i] + d[at + i] - p;
      move[to + i] = p - v[at + i];
    }
  }
  float momentum = 0;
  if (s->accelerate) {
    float turn = 0;
#pragma omp simd reduction(+ : turn)
    for (int i = 0; i < s->segments * s->padded; i++) turn += back[i] * move[i];
    double next = (1 + sqrt(1 + 4 * *t * *t)) / 2;
    momentum = turn > 0 ? 0 : (float)((*t - 1) / next);
    *t = turn > 0 ? 1 : next;
  }
  for (int k = 0; k < s->segments; k++) {
    int at = k * n, to = k * s->padded;
    for (int i = 0; i < n; i++) {
      d[at + i] = (z[to + i] - w[at + i]) + momentum * move[to + i];
      v[at + i] = z[to + i];
    }
  }
}

/* ---- the solver ---- */

static int slab_rows(int64_t rows, int64_t width) {
  int64_t most = SLAB_FLOATS / width;
  if (most < SLAB_LEAST) most = SLAB_LEAST;
  if (most > SLAB_MOST) most = SLAB_MOST;
  int64_t slabs = (rows + most - 1) / most;
  return (int)(slabs ? (rows + slabs - 1) / slabs : 0);
}

static double row_objective(const shape *s, const float *d, const float *g, const float *v) {
  double quadratic = 0, peaks = 0;
  for (int i = 0; i < s->width; i++) quadratic += (double)d[i] * g[i];
  for (int k = 0; k < s->segments; k++) peaks += peak(s->length, v + (int64_t)k * s->length);
  return 0.5 * s->step * quadratic + s->alpha * peaks;
}

static bool finite_row(int n, const float *v) {
  float sum = 0;
  for (int i = 0; i < n; i++) sum += v[i] * 0;
  return sum == 0;
}

static void product(const magr_request *q, int rows, const float *d, float *g) {
  sgemm(false, false, rows, q->width, q->width, 1, d, q->width, q->h, q->width, 0, g, q->width);
}

static shape shape_of(const magr_request *q) {
  int length = q->group ? q->group : q->width;
  return (shape){.width = q->width, .segments = q->width / length, .length = length, .padded = (length + LINE - 1) / LINE * LINE,
                 .alpha = (float)q->alpha, .step = (float)(1 / q->lambda_max), .accelerate = q->solver == MAGR_FISTA};
}

status magr(const magr_request *q, float *v, double *objective) {
  status st = OK;
  shape s = shape_of(q);
  int most = slab_rows(q->rows, q->width);
  int64_t width = q->width;
  float *d = NULL, *g = NULL, *level = NULL;
  double *t = NULL, sum = 0;
  scratch row = {0};
  if (!(q->lambda_max > 0 && q->lambda_max <= FLT_MAX && s.step > 0 && s.step <= FLT_MAX))
    TRY(fail(E_NUMERICS, "magr: largest eigenvalue of the Gram, expected positive and finite, found %g", q->lambda_max));
  TRY(NEW(d, most * width, "magr: displacement"));
  TRY(NEW(g, most * width, "magr: gradient"));
  TRY(NEW(level, (int64_t)most * s.segments, "magr: clip levels"));
  TRY(NEW(t, most, "magr: momenta"));
  TRY(NEW(row.z, (int64_t)s.segments * s.padded, "magr: a row"));
  TRY(NEW(row.back, (int64_t)s.segments * s.padded, "magr: a row"));
  TRY(NEW(row.move, (int64_t)s.segments * s.padded, "magr: a row"));

  for (int first = 0; first < q->rows; first += most) {
    int rows = q->rows - first < most ? q->rows - first : most;
    const float *w = q->w + first * width;
    float *x = v + first * width;
    memcpy(x, w, (size_t)(rows * width) * sizeof *x);
    memset(d, 0, (size_t)(rows * width) * sizeof *d);
    memset(g, 0, (size_t)(rows * width) * sizeof *g); /* the first product is 0 H */
    for (int64_t i = 0; i < (int64_t)rows * s.segments; i++) level[i] = FLT_MAX;
    for (int r = 0; r < rows; r++) t[r] = 1;
    for (int k = 0; k < q->steps; k++) {
      if (k > 0) product(q, rows, d, g);
      for (int r = 0; r < rows; r++)
        step_row(&s, w + r * width, g + r * width, d + r * width, x + r * width, row, level + (int64_t)r * s.segments, &t[r]);
    }
    for (int r = 0; r < rows; r++)
      if (!finite_row(q->width, x + r * width)) TRY(fail(E_NUMERICS, "magr: row %d, expected finite values, found NaN or Inf", first + r));
    if (objective) {
      for (int64_t i = 0; i < rows * width; i++) d[i] = x[i] - w[i];
      product(q, rows, d, g);
      for (int r = 0; r < rows; r++) sum += row_objective(&s, d + r * width, g + r * width, x + r * width);
    }
  }
  if (objective) *objective = sum;
done:
  FREE(d), FREE(g), FREE(level), FREE(t), FREE(row.z), FREE(row.back), FREE(row.move);
  return st;
}

double magr_flops(const magr_request *q) {
  double width = q->width;
  return 2.0 * q->rows * width * width * (q->steps > 0 ? q->steps - 1 : 0);
}

uint64_t magr_bytes(int64_t rows, int64_t width, int group) {
  magr_request q = {.width = (int)width, .group = group, .lambda_max = 1};
  shape s = shape_of(&q);
  uint64_t most = (uint64_t)slab_rows(rows, width);
  return most * (8 * (uint64_t)width + 4 * (uint64_t)s.segments + 8) + 12 * (uint64_t)s.segments * (uint64_t)s.padded;
}

/* ---- the largest eigenvalue ---- */

static HOT double dot_row(int n, const float *restrict h, const double *restrict x) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; i++) sum += h[i] * x[i];
  return sum;
}

status magr_lambda_max(int width, const float *h, double *lambda) {
  enum { STEPS_LEAST = 8, STEPS_MOST = 300 };
  status st = OK;
  double *x = NULL, *y = NULL, norm = 0, value = 0;
  TRY(NEW(x, width, "magr: power iteration"));
  TRY(NEW(y, width, "magr: power iteration"));
  /* the diagonal finds outlier channels at once; the signs of a multiplicative hash keep x off every subspace a model may have */
  for (int i = 0; i < width; i++) {
    double size = sqrt(fmax(0, h[(int64_t)i * width + i]));
    x[i] = (uint32_t)(i + 1) * 2654435761u >> 31 ? size : -size;
    norm += size * size;
  }
  for (int step = 0; step < STEPS_MOST && norm > 0; step++) {
    double scale = 1 / sqrt(norm), before = value;
    value = norm = 0;
    for (int i = 0; i < width; i++) x[i] *= scale;
    for (int i = 0; i < width; i++) {
      y[i] = dot_row(width, h + (int64_t)i * width, x);
      value += x[i] * y[i];
      norm += y[i] * y[i];
    }
    double *swap = x;
    x = y, y = swap;
    /* Rayleigh's quotient only grows; at this pace what is missing is well inside the 2 % */
    if (step >= STEPS_LEAST && value - before <= 1e-4 * value) break;
  }
  if (!isfinite(value)) TRY(fail(E_NUMERICS, "magr: Gram, expected finite entries, found a power iteration of %g", value));
  *lambda = 1.02 * value;
done:
  FREE(x), FREE(y);
  return st;
}
