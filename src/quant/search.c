#include "quant/search.h"

#include <math.h>
#include <string.h>

#include "base/hot.h"
#include "base/memory.h"

enum { MSE_RANGES = 80, SCAN_SCALES = 60, REFIT_SCALES = 14, REFIT_ZEROS = 4, REFIT_TIMES = 3 };

/* A group in whole vectors: what pads it has no part. So no loop has a rest, and nothing depends on an address. */
enum { VECTOR = 16 };
struct search_room {
  int n;                           /* padded */
  float *w;                        /* [n] */
  double *part;                    /* [n] */
  double *x, *at;                  /* [n] w / scale, and the nearest integers */
  float *weight, *ratio, *nearest; /* [n] the same for refit */
};

static int padded(int columns) { return (columns + VECTOR - 1) / VECTOR * VECTOR; }

status search_new(search_room **room, int columns) {
  status st = OK;
  TRY(NEW(*room, 1, "grid: search"));
  TRY(NEW((*room)->w, padded(columns), "grid: search"));
  TRY(NEW((*room)->part, padded(columns), "grid: search"));
  TRY(NEW((*room)->x, padded(columns), "grid: search"));
  TRY(NEW((*room)->at, padded(columns), "grid: search"));
  TRY(NEW((*room)->weight, padded(columns), "grid: search"));
  TRY(NEW((*room)->ratio, padded(columns), "grid: search"));
  TRY(NEW((*room)->nearest, padded(columns), "grid: search"));
done:
  if (st != OK) search_free(room);
  return st;
}

void search_free(search_room **room) {
  if (!*room) return;
  FREE((*room)->w), FREE((*room)->part), FREE((*room)->x), FREE((*room)->at);
  FREE((*room)->weight), FREE((*room)->ratio), FREE((*room)->nearest);
  FREE(*room);
}

uint64_t search_bytes(int64_t columns) {
  search_room *m;
  return sizeof *m + (uint64_t)(columns + VECTOR) * (4 * sizeof *m->w + sizeof *m->part + sizeof *m->x + sizeof *m->at);
}

static void enter(const search_group *q, const float *weight, search_room *m) {
  m->n = padded(q->columns);
  for (int i = 0; i < m->n; i++) {
    m->w[i] = i < q->columns ? q->w[i] : 0;
    m->part[i] = i < q->columns ? (weight ? (double)weight[i] : 1) : 0;
  }
}

/* The scale of the range times p; 0 if it cannot be stored. */
static uint16_t scale_of(const search_group *q, double p) {
  double top = (1 << q->bits) - 1, a = q->hi > -q->lo ? q->hi : -q->lo;
  int64_t replaced = 0;
  uint16_t half = grid_scale(p * (q->symmetric ? 2 * a : q->hi - q->lo) / top, &replaced);
  return replaced ? 0 : half;
}

/* The code of x = w / scale. */
static inline __attribute__((always_inline)) double code_of(bool real, double x, double zero, double top) {
  double u = real ? rint(x + zero) : rint(x) + zero;
  u = u > 0 ? u : 0;
  return u < top ? u : top;
}

/* ---- mse ---- */

/* a^1.2 = (a y^2)^2 with y = a^(-1/5). The exponent and mantissa of a as one number are nearly its logarithm, which gives y to 4 %; a step
 * takes an error e to 3 e^2. 0 gives 0. */
static inline __attribute__((always_inline)) double power_1_2(double a) {
  union {
    float value;
    int32_t bits;
  } guess = {.value = (float)a};
  guess.bits = (int32_t)(1.27804e9f - 0.2f * (float)guess.bits);
  double y = guess.value;
  for (int step = 0; step < 4; step++) {
    double y2 = y * y;
    y *= 1.2 - 0.2 * a * (y2 * y2 * y);
  }
  double z = a * (y * y);
  return z * z;
}

/* sum |q - w|^2.4 in units of the scale. */
static inline __attribute__((always_inline)) double mse_sum(bool real, const search_room *m, double scale, double zero, double top) {
  const float *restrict w = m->w;
  const double *restrict part = m->part;
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < m->n; i++) {
    double x = w[i] / scale, d = code_of(real, x, zero, top) - zero - x;
    sum += part[i] * power_1_2(d * d);
  }
  return sum;
}

static HOT double mse_integer(const search_room *m, double scale, double zero, double top) { return mse_sum(false, m, scale, zero, top); }

static HOT double mse_real(const search_room *m, double scale, double zero, double top) { return mse_sum(true, m, scale, zero, top); }

static double mse_error(const search_group *q, const search_room *m, double scale, double zero) {
  return pow(scale, 2.4) * (q->real_zero ? mse_real : mse_integer)(m, scale, zero, (1 << q->bits) - 1);
}

void search_mse(const search_group *q, search_room *m, uint16_t *scale, double *zero) {
  double top = (1 << q->bits) - 1;
  enter(q, NULL, m);
  double least = mse_error(q, m, half_to_float(*scale), *zero);
  for (int k = 1; k < MSE_RANGES; k++) {
    double p = 1 - k / 100.0;
    uint16_t half = scale_of(q, p);
    if (half == 0) continue;
    double s = half_to_float(half), z = q->symmetric ? *zero : grid_stored_zero(q->real_zero, fmin(-p * q->lo / s, top), top);
    double error = mse_error(q, m, s, z);
    if (!(error < least)) continue;
    least = error;
    *scale = half;
    *zero = z;
  }
}

/* ---- scan ---- */

static HOT void divide(search_room *m, double scale) {
  const float *restrict w = m->w;
  double *restrict x = m->x, *restrict at = m->at;
#pragma omp simd
  for (int i = 0; i < m->n; i++) {
    x[i] = w[i] / scale;
    at[i] = rint(x[i]);
  }
}

/* sum weight (q - w)^2 in units of the scale squared, if the codes reach from low to high times the scale. */
static HOT double scan_sum(const search_room *m, double low, double high) {
  const double *restrict x = m->x, *restrict at = m->at, *restrict part = m->part;
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < m->n; i++) {
    double q = at[i];
    q = q > low ? q : low;
    q = q < high ? q : high;
    sum += part[i] * ((q - x[i]) * (q - x[i]));
  }
  return sum;
}

/* Sums over a group on one grid. */
typedef struct tally {
  double error, one, shift; /* sum weight (q - w)^2; sum weight; sum weight (u - w / s) */
} tally;

static inline __attribute__((always_inline)) tally tally_sum(bool real, const search_room *m, double scale, double zero, double top) {
  const float *restrict w = m->w;
  const double *restrict part = m->part;
  double error = 0, one = 0, shift = 0;
#pragma omp simd reduction(+ : error, one, shift)
  for (int i = 0; i < m->n; i++) {
    double x = w[i] / scale, u = code_of(real, x, zero, top), d = scale * (u - zero) - w[i];
    error += part[i] * (d * d);
    one += part[i];
    shift += part[i] * (u - x);
  }
  return (tally){error, one, shift};
}

static HOT tally tally_integer(const search_room *m, double scale, double zero, double top) {
  return tally_sum(false, m, scale, zero, top);
}

static HOT tally tally_real(const search_room *m, double scale, double zero, double top) { return tally_sum(true, m, scale, zero, top); }

static tally tally_of(const search_group *q, const search_room *m, double scale, double zero) {
  return (q->real_zero ? tally_real : tally_integer)(m, scale, zero, (1 << q->bits) - 1);
}

/* *t: of *zero; both follow it down. */
static void settle_zero(const search_group *q, const search_room *m, double scale, double *zero, tally *t) {
  while (t->one > 0) {
    double next = grid_stored_zero(true, t->shift / t->one, 0);
    tally there = tally_of(q, m, scale, next);
    if (!(there.error < t->error)) return;
    *zero = next;
    *t = there;
  }
}

void search_scan(const search_group *q, search_room *m, uint16_t *scale, double *zero) {
  int top = (1 << q->bits) - 1, low = q->symmetric ? (int)*zero : 0, high = q->symmetric ? low : top;
  double least = INFINITY, found_zero = 0;
  uint16_t found = 0;
  enter(q, q->weight, m);
  for (int k = 0; k < SCAN_SCALES; k++) {
    uint16_t half = scale_of(q, 1 - 0.65 * k / (SCAN_SCALES - 1));
    if (half == 0) continue;
    double s = half_to_float(half);
    divide(m, s);
    for (int z = low; z <= high; z++) {
      double error = s * s * scan_sum(m, -z, top - z);
      if (!(error < least)) continue;
      least = error;
      found = half;
      found_zero = z;
    }
  }
  if (found == 0) return; /* a weight is not finite, or no scale can be stored */
  double start = half_to_float(*scale), end = half_to_float(found);
  tally range = tally_of(q, m, start, *zero), best = tally_of(q, m, end, found_zero);
  if (q->real_zero && !q->symmetric) {
    settle_zero(q, m, start, zero, &range);
    settle_zero(q, m, end, &found_zero, &best);
  }
  if (!(best.error < range.error)) return;
  *scale = found;
  *zero = found_zero;
}

/* ---- refit ---- */

static HOT void divide_float(search_room *m, float scale) {
  const float *restrict w = m->w;
  float *restrict ratio = m->ratio, *restrict nearest = m->nearest;
#pragma omp simd
  for (int i = 0; i < m->n; i++) {
    ratio[i] = w[i] / scale;
    nearest[i] = rintf(ratio[i]);
  }
}

static inline __attribute__((always_inline)) float miss(float nearest, float ratio, float weight, float zero, float top) {
  float q = nearest > -zero ? nearest : -zero;
  q = q < top - zero ? q : top - zero;
  return weight * ((q - ratio) * (q - ratio));
}

/* error[z] = sum weight (q - w)^2 in units of the scale squared, for each of four zeros. */
static HOT void refit_sums(const search_room *m, const float zero[REFIT_ZEROS], float top, float error[REFIT_ZEROS]) {
  const float *restrict ratio = m->ratio, *restrict nearest = m->nearest, *restrict weight = m->weight;
  float a = 0, b = 0, c = 0, d = 0, za = zero[0], zb = zero[1], zc = zero[2], zd = zero[3];
#pragma omp simd reduction(+ : a, b, c, d)
  for (int i = 0; i < m->n; i++) {
    a += miss(nearest[i], ratio[i], weight[i], za, top);
    b += miss(nearest[i], ratio[i], weight[i], zb, top);
    c += miss(nearest[i], ratio[i], weight[i], zc, top);
    d += miss(nearest[i], ratio[i], weight[i], zd, top);
  }
  error[0] = a, error[1] = b, error[2] = c, error[3] = d;
}

/* Sums over a group on one grid, k = code - zero and x = w / scale: what the best scale (and zero) of its codes follow from. */
typedef struct moments {
  double error; /* sum weight (q - w)^2 */
  float kk, kx, k, x, one;
} moments;

static inline __attribute__((always_inline)) moments moments_sum(bool real, const search_room *m, float scale, float zero, float top) {
  const float *restrict w = m->w, *restrict weight = m->weight;
  float error = 0, kk = 0, kx = 0, k1 = 0, x1 = 0, one = 0;
#pragma omp simd reduction(+ : error, kk, kx, k1, x1, one)
  for (int i = 0; i < m->n; i++) {
    float x = w[i] / scale, u = real ? rintf(x + zero) : rintf(x) + zero;
    u = u > 0 ? u : 0;
    u = u < top ? u : top;
    float k = u - zero, h = weight[i];
    error += h * ((k - x) * (k - x));
    kk += h * (k * k);
    kx += h * (k * x);
    k1 += h * k;
    x1 += h * x;
    one += h;
  }
  return (moments){(double)scale * scale * error, kk, kx, k1, x1, one};
}

static HOT moments moments_integer(const search_room *m, float scale, float zero, float top) {
  return moments_sum(false, m, scale, zero, top);
}

static HOT moments moments_real(const search_room *m, float scale, float zero, float top) { return moments_sum(true, m, scale, zero, top); }

static moments moments_of(const search_group *q, const search_room *m, uint16_t scale, double zero) {
  return (q->real_zero ? moments_real : moments_integer)(m, half_to_float(scale), (float)zero, (float)((1 << q->bits) - 1));
}

/* The scale, and the real zero, that are best for the codes whose moments these are. False: none can be stored. */
static bool best_for_codes(const search_group *q, const moments *t, uint16_t *scale, double *zero) {
  double s = half_to_float(*scale), by = t->kx / t->kk;
  int64_t replaced = 0;
  if (q->real_zero && !q->symmetric) {
    double mean_k = t->k / t->one, mean_x = t->x / t->one, spread = t->kk / t->one - mean_k * mean_k;
    by = (t->kx / t->one - mean_k * mean_x) / spread;
    *zero = grid_stored_zero(true, *zero + mean_k - mean_x / by, 0); /* by (code - zero') = by (k - mean_k) + mean_x */
  }
  if (!(by > 0 && by < INFINITY)) return false;
  *scale = grid_scale(by * s, &replaced);
  return replaced == 0;
}

static int refit_zeros(const search_group *q, double scale, double zero, float list[REFIT_ZEROS]) {
  double top = (1 << q->bits) - 1, middle = rint(top / 2 - (q->hi + q->lo) / 2 / scale);
  for (int k = 0; k < REFIT_ZEROS; k++) {
    double z = q->bits == 2 ? k : middle - 1 + (k < 3 ? k : 0);
    list[k] = (float)(q->symmetric ? zero : grid_stored_zero(false, z, top));
  }
  return q->symmetric ? 1 : q->bits == 2 ? 4 : 3;
}

void search_refit(const search_group *q, search_room *m, uint16_t *scale, double *zero) {
  float top = (float)((1 << q->bits) - 1), zeros[REFIT_ZEROS], error[REFIT_ZEROS];
  m->n = padded(q->columns);
  for (int i = 0; i < m->n; i++) {
    m->w[i] = i < q->columns ? q->w[i] : 0;
    m->weight[i] = i < q->columns ? (q->weight ? q->weight[i] : 1) : 0;
  }
  double least = moments_of(q, m, *scale, *zero).error, range_zero = *zero;
  for (int k = 0; k < REFIT_SCALES; k++) {
    uint16_t half = scale_of(q, (40 + 5 * k) / 100.0);
    if (half == 0) continue;
    float s = half_to_float(half);
    int count = refit_zeros(q, s, range_zero, zeros);
    divide_float(m, s);
    refit_sums(m, zeros, top, error);
    for (int z = 0; z < count; z++) {
      if (!((double)s * s * error[z] < least)) continue;
      least = (double)s * s * error[z];
      *scale = half;
      *zero = zeros[z];
    }
  }
  moments t = moments_of(q, m, *scale, *zero);
  for (int k = 0; k < REFIT_TIMES; k++) {
    uint16_t next = *scale;
    double next_zero = *zero;
    if (!best_for_codes(q, &t, &next, &next_zero)) return;
    moments there = moments_of(q, m, next, next_zero);
    if (!(there.error < t.error)) return;
    *scale = next;
    *zero = next_zero;
    t = there;
  }
}
