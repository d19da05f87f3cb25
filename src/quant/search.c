#include "quant/search.h"

#include <math.h>
#include <string.h>

#include "base/hot.h"
#include "base/memory.h"

enum { MSE_RANGES = 80, SCAN_SCALES = 60, REFIT_SCALES = 14, REFIT_ZEROS = 4, REFIT_TIMES = 3 };

/* A group in whole vectors: what pads it has no part. So no loop has a rest, and nothing depends on an address. */
enum { VECTOR = 16 };
struct search_room {
  int n;                /* padded */
  float *w;             /* [n] */
  double *part;         /* [n] */
  double *x, *at;       /* [n] w / scale, and the nearest integers */
  float *weight, *rows; /* refit: [columns], (columns, SEARCH_ROWS) */
};

static int padded(int columns) { return (columns + VECTOR - 1) / VECTOR * VECTOR; }

status search_new(search_room **room, int columns) {
  status st = OK;
  TRY(NEW(*room, 1, "grid: search"));
  TRY(NEW((*room)->w, padded(columns), "grid: search"));
  TRY(NEW((*room)->part, padded(columns), "grid: search"));
  TRY(NEW((*room)->x, padded(columns), "grid: search"));
  TRY(NEW((*room)->at, padded(columns), "grid: search"));
  TRY(NEW((*room)->weight, columns, "grid: search"));
  TRY(NEW((*room)->rows, (int64_t)columns * SEARCH_ROWS, "grid: search"));
done:
  if (st != OK) search_free(room);
  return st;
}

void search_free(search_room **room) {
  if (!*room) return;
  FREE((*room)->w), FREE((*room)->part), FREE((*room)->x), FREE((*room)->at);
  FREE((*room)->weight), FREE((*room)->rows);
  FREE(*room);
}

uint64_t search_bytes(int64_t columns) {
  search_room *m;
  return sizeof *m + (uint64_t)(columns + VECTOR) * ((2 + SEARCH_ROWS) * sizeof *m->w + sizeof *m->part + sizeof *m->x + sizeof *m->at);
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

enum { LANES = SEARCH_ROWS };

/* Rows of groups on grids of their own, row by row in lanes. */
typedef struct lanes {
  float error[LANES]; /* sum weight (q - w)^2 */
  float scale[LANES], zero[LANES];
} lanes;

enum { EIGHT = 8 }; /* lanes that go through a group together: their sums stay in registers */

/* Where one of the zeros rounds better with this scale, it and the scale become best. A scale of NaN never does. */
static inline __attribute__((always_inline)) void try_zeros(int zeros, int n, const float *restrict w, const float *restrict weight,
                                                            float top, const float *restrict scale, const float (*restrict zero)[LANES],
                                                            lanes *restrict best) {
  for (int part = 0; part < LANES; part += EIGHT) {
    float inverse[EIGHT], low[REFIT_ZEROS][EIGHT], high[REFIT_ZEROS][EIGHT], sum[REFIT_ZEROS][EIGHT];
    for (int r = 0; r < EIGHT; r++) {
      inverse[r] = 1 / scale[part + r];
      for (int z = 0; z < zeros; z++) low[z][r] = -zero[z][part + r], high[z][r] = top - zero[z][part + r], sum[z][r] = 0;
    }
    for (int i = 0; i < n; i++) {
      float h = weight[i];
      const float *restrict at = w + i * LANES + part;
      for (int r = 0; r < EIGHT; r++) {
        float x = at[r] * inverse[r], k = rintf(x);
        for (int z = 0; z < zeros; z++) {
          float q = k > low[z][r] ? k : low[z][r];
          q = (q < high[z][r] ? q : high[z][r]) - x;
          sum[z][r] += h * (q * q);
        }
      }
    }
    for (int r = 0; r < EIGHT; r++) {
      float s = scale[part + r];
      for (int z = 0; z < zeros; z++) {
        float error = s * s * sum[z][r];
        if (!(error < best->error[part + r])) continue;
        best->error[part + r] = error;
        best->scale[part + r] = s;
        best->zero[part + r] = -low[z][r];
      }
    }
  }
}

static HOT void try_one(int n, const float *w, const float *weight, float top, const float *s, const float (*z)[LANES], lanes *best) {
  try_zeros(1, n, w, weight, top, s, z, best);
}
static HOT void try_three(int n, const float *w, const float *weight, float top, const float *s, const float (*z)[LANES], lanes *best) {
  try_zeros(3, n, w, weight, top, s, z, best);
}
static HOT void try_four(int n, const float *w, const float *weight, float top, const float *s, const float (*z)[LANES], lanes *best) {
  try_zeros(2, n, w, weight, top, s, z, best); /* all four would not stay in AVX2's registers */
  try_zeros(2, n, w, weight, top, s, z + 2, best);
}

/* Sums over a group on its grid, k = code - zero and x = w / scale: what the best scale (and zero) of its codes follow from. */
typedef struct moments {
  float kk[LANES], kx[LANES], k[LANES], x[LANES];
} moments;

static inline __attribute__((always_inline)) void sum_moments(bool real, int n, const float *restrict w, const float *restrict weight,
                                                              float top, lanes *restrict g, moments *restrict m) {
  for (int part = 0; part < LANES; part += EIGHT) {
    float inverse[EIGHT], zero[EIGHT], error[EIGHT], kk[EIGHT], kx[EIGHT], k1[EIGHT], x1[EIGHT];
    for (int r = 0; r < EIGHT; r++) {
      inverse[r] = 1 / g->scale[part + r];
      zero[r] = g->zero[part + r];
      error[r] = kk[r] = kx[r] = k1[r] = x1[r] = 0;
    }
    for (int i = 0; i < n; i++) {
      float h = weight[i];
      const float *restrict at = w + i * LANES + part;
      for (int r = 0; r < EIGHT; r++) {
        float x = at[r] * inverse[r], u = real ? rintf(x + zero[r]) : rintf(x) + zero[r];
        u = u > 0 ? u : 0;
        u = u < top ? u : top;
        float k = u - zero[r], hk = h * k;
        error[r] += h * ((k - x) * (k - x));
        kk[r] += hk * k;
        kx[r] += hk * x;
        k1[r] += hk;
        x1[r] += h * x;
      }
    }
    for (int r = 0; r < EIGHT; r++) {
      float s = g->scale[part + r];
      g->error[part + r] = s * s * error[r];
      m->kk[part + r] = kk[r], m->kx[part + r] = kx[r], m->k[part + r] = k1[r], m->x[part + r] = x1[r];
    }
  }
}

static HOT void moments_integer(int n, const float *w, const float *weight, float top, lanes *g, moments *m) {
  sum_moments(false, n, w, weight, top, g, m);
}

static HOT void moments_real(int n, const float *w, const float *weight, float top, lanes *g, moments *m) {
  sum_moments(true, n, w, weight, top, g, m);
}

static void sums_on(const search_group *q, const search_room *m, lanes *g, moments *sums) {
  (q->real_zero ? moments_real : moments_integer)(q->columns, m->rows, m->weight, (float)((1 << q->bits) - 1), g, sums);
}

/* The scale, and the real zero, that are best for a row's codes; its own where none can be stored. */
static void best_for_codes(bool real, double one, const moments *m, int r, float *scale, float *zero) {
  double by = (double)m->kx[r] / m->kk[r], to = *zero;
  int64_t replaced = 0;
  if (real) {
    double k = m->k[r] / one, x = m->x[r] / one; /* x ~ by (k - its mean) + its mean */
    by = (m->kx[r] / one - k * x) / (m->kk[r] / one - k * k);
    to = grid_stored_zero(true, *zero + k - x / by, 0);
  }
  if (!(by > 0 && by < INFINITY)) return;
  double s = half_to_float(grid_scale(by * *scale, &replaced));
  if (replaced) return;
  *scale = (float)s;
  *zero = (float)to;
}

/* The shares of the ranges as they are stored; NaN for one that cannot be. */
static HOT void scales_of(const double *restrict range, double top, float (*restrict s)[LANES]) {
  float wanted[REFIT_SCALES][LANES];
  uint16_t half[REFIT_SCALES][LANES];
  for (int k = 0; k < REFIT_SCALES; k++) {
    double t = (40 + 5 * k) / 100.0;
    for (int r = 0; r < LANES; r++) wanted[k][r] = (float)(t * range[r] / top);
  }
  float_to_half_array(half[0], wanted[0], REFIT_SCALES * LANES);
  half_to_float_array(s[0], half[0], REFIT_SCALES * LANES);
  for (int k = 0; k < REFIT_SCALES; k++)
    for (int r = 0; r < LANES; r++) s[k][r] = s[k][r] > 0 && s[k][r] < INFINITY ? s[k][r] : NAN;
}

/* The three zeros about the middle of the range. */
static HOT void zeros_of(const float *restrict middle, float top, const float *restrict s, float (*restrict zero)[LANES]) {
  for (int r = 0; r < LANES; r++) {
    float z = rintf(top / 2 - middle[r] / s[r]);
    for (int k = 0; k < 3; k++) {
      float at = z + (float)(k - 1);
      at = at > 0 ? at : 0;
      zero[k][r] = at < top ? at : top;
    }
  }
}

void search_refit(const search_group *q, int rows, int64_t ldw, const double *lo, const double *hi, search_room *m, uint16_t *scale,
                  double *zero) {
  int n = q->columns;
  float top = (float)((1 << q->bits) - 1), middle[LANES], s[REFIT_SCALES][LANES], zeros[REFIT_ZEROS][LANES];
  double one = 0, range[LANES];
  bool done[LANES], real = q->real_zero && !q->symmetric;
  lanes best, next;
  moments sums, next_sums;
  for (int i = 0; i < n; i++) m->weight[i] = q->weight ? q->weight[i] : 1, one += m->weight[i];
  for (int r = 0; r < LANES; r++) {
    for (int i = 0; i < n; i++) m->rows[i * LANES + r] = r < rows ? q->w[r * ldw + i] : 0;
    best.scale[r] = r < rows ? half_to_float(scale[r]) : 1;
    best.zero[r] = r < rows ? (float)zero[r] : 0;
    range[r] = r >= rows ? 1 : q->symmetric ? 2 * fmax(-lo[r], hi[r]) : hi[r] - lo[r];
    middle[r] = r < rows ? (float)((lo[r] + hi[r]) / 2) : 0;
    done[r] = r >= rows;
    for (int z = 0; z < REFIT_ZEROS; z++) zeros[z][r] = q->symmetric ? best.zero[r] : (float)z;
  }
  scales_of(range, top, s);
  sums_on(q, m, &best, &sums);
  for (int k = 0; k < REFIT_SCALES; k++) {
    if (q->bits != 2 && !q->symmetric) zeros_of(middle, top, s[k], zeros);
    (q->symmetric ? try_one : q->bits == 2 ? try_four : try_three)(n, m->rows, m->weight, top, s[k], (const float(*)[LANES])zeros, &best);
  }
  sums_on(q, m, &best, &sums);
  for (int k = 0; k < REFIT_TIMES; k++) {
    next = best;
    for (int r = 0; r < rows; r++)
      if (!done[r]) best_for_codes(real, one, &sums, r, next.scale + r, next.zero + r);
    sums_on(q, m, &next, &next_sums);
    for (int r = 0; r < rows; r++) {
      done[r] = done[r] || !(next.error[r] < best.error[r]);
      if (done[r]) continue;
      best.error[r] = next.error[r], best.scale[r] = next.scale[r], best.zero[r] = next.zero[r];
      sums.kk[r] = next_sums.kk[r], sums.kx[r] = next_sums.kx[r], sums.k[r] = next_sums.k[r], sums.x[r] = next_sums.x[r];
    }
  }
  for (int r = 0; r < rows; r++) {
    scale[r] = float_to_half(best.scale[r]);
    zero[r] = best.zero[r];
  }
}
