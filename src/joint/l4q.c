#include "joint/l4q.h"

#include <math.h>
#include <string.h>

#include "adapter/zero.h"
#include "base/blas.h"
#include "base/hot.h"
#include "base/memory.h"
#include "quant/codes.h"

static int64_t entries(const l4q_request *q) { return q->n * grid_groups(&q->rule, (int)q->m); }

static status check(const l4q_request *q) {
  if (q->n < 1 || q->m < 1 || q->n > INT32_MAX || q->m > INT32_MAX || q->rank < 1 || q->steps < 0 || q->rule.kind != GRID_UNIFORM)
    return fail(E_INTERNAL, "%s: l4q: expected a matrix, a rank, steps and a uniform grid, found %lld x %lld, rank %d, %d steps", q->where,
                (long long)q->n, (long long)q->m, q->rank, q->steps);
  if (!(q->rate_adapter >= 0) || !(q->rate_grid >= 0) || !isfinite(q->rate_adapter + q->rate_grid))
    return fail(E_INTERNAL, "%s: l4q: expected rates >= 0, found %g and %g", q->where, q->rate_adapter, q->rate_grid);
  return OK;
}

HOT static double dot(int64_t n, const float *restrict x, const float *restrict y) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)y[i];
  return sum;
}

/* One group: y = Gr on entry, Gr.M on return; sums of ds and do. shift: what u counts from in ds outside M. */
HOT static void group_slopes(int64_t n, const float *restrict target, const uint8_t *restrict codes, double scale, double zero, double top,
                             double shift, float *restrict y, double *scale_slope, double *offset_slope) {
  double ds = 0, offset = 0;
#pragma omp simd reduction(+ : ds, offset)
  for (int64_t i = 0; i < n; i++) {
    double v = (double)target[i] / scale + zero, u = codes[i], slope = (double)y[i];
    bool inside = v >= 0 && v <= top;
    ds += slope * (u - (inside ? v : shift));
    offset += inside ? 0 : slope;
    y[i] = inside ? y[i] : 0;
  }
  *scale_slope = ds;
  *offset_slope = offset;
}

status l4q_evaluate(const l4q_request *q, const float *a, const float *b, code_grid g, float *target, float *e, float *y, uint8_t *codes,
                    double *loss, const l4q_slopes *slopes) {
  int n = (int)q->n, m = (int)q->m, groups = grid_groups(&q->rule, m), columns = m / groups;
  memcpy(target, q->w, (size_t)n * (size_t)m * sizeof *target);
  sgemm(false, false, n, m, q->rank, 1, b, q->rank, a, m, 1, target, m);
  grid_round(&q->rule, n, m, target, m, g, codes);
  codes_bytes_values(&q->rule, n, m, codes, g, e);
  for (int64_t i = 0; i < q->n * q->m; i++) e[i] -= q->w[i];
  sgemm(false, false, n, m, m, 2, e, m, q->h, m, 0, y, m);
  *loss = 0;
  for (int64_t i = 0; i < n; i++) *loss += 0.5 * dot(m, e + i * m, y + i * m);
  if (!isfinite(*loss)) return fail(E_NUMERICS, "%s: l4q: loss, expected a finite number, found %g", q->where, *loss);
  for (int64_t at = 0; at < entries(q); at++) {
    int bits = group_bits(&q->rule, (int)(at % groups));
    double zero = grid_zero(&q->rule, g, at), shift = q->rule.real_zero ? ldexp(1, bits - 1) : zero, offset;
    group_slopes(columns, target + at * columns, codes + at * columns, (double)half_to_float(g.scales[at]), zero, (1 << bits) - 1, shift,
                 y + at * columns, &slopes->scales[at], &offset);
    if (q->rule.real_zero) slopes->offsets[at] = offset;
  }
  sgemm(false, true, n, q->rank, m, 1, y, m, a, m, 0, slopes->b, q->rank);
  sgemm(true, false, q->rank, m, n, 1, b, q->rank, y, m, 0, slopes->a, m);
  return OK;
}

/* Adam on numbers in units of their own: one array of the state. */
typedef struct moments {
  double *mean, *square;
} moments;

static status moments_new(int64_t count, moments *s) {
  status st = NEW(s->mean, count, "means of slopes");
  return st == OK ? NEW(s->square, count, "squares of slopes") : st;
}

static void moments_free(moments *s) {
  FREE(s->mean);
  FREE(s->square);
}

/* The move of number i in units, at most about 1; the slope's own unit drops out. step from 1. */
static double move(moments *s, int64_t i, double slope, int step) {
  s->mean[i] = 0.9 * s->mean[i] + 0.1 * slope;
  s->square[i] = 0.999 * s->square[i] + 0.001 * slope * slope;
  double mean = s->mean[i] / (1 - pow(0.9, step)), root = sqrt(s->square[i] / (1 - pow(0.999, step)));
  return root > 0 ? -mean / root : 0;
}

static void move_factor(moments *s, int64_t count, double unit, int step, const float *slope, float *x) {
  for (int64_t i = 0; i < count; i++) x[i] += (float)(unit * move(s, i, (double)slope[i], step));
}

/* Scales and offsets in double, and the first scales; what the grid holds is their rounding. */
typedef struct grid_state {
  double *scale, *offset, *first;
  moments scales, offsets;
} grid_state;

static void grid_state_free(grid_state *t) {
  FREE(t->scale);
  FREE(t->offset);
  FREE(t->first);
  moments_free(&t->scales);
  moments_free(&t->offsets);
}

static status grid_state_new(const l4q_request *q, code_grid g, grid_state *t) {
  status st = OK;
  int groups = grid_groups(&q->rule, (int)q->m);
  TRY(NEW(t->scale, entries(q), "scales"));
  TRY(NEW(t->offset, entries(q), "offsets"));
  TRY(NEW(t->first, entries(q), "first scales"));
  TRY(moments_new(entries(q), &t->scales));
  if (q->rule.real_zero) TRY(moments_new(entries(q), &t->offsets));
  for (int64_t at = 0; at < entries(q); at++) {
    t->first[at] = t->scale[at] = (double)half_to_float(g.scales[at]);
    t->offset[at] = t->scale[at] * (ldexp(1, group_bits(&q->rule, (int)(at % groups)) - 1) - grid_zero(&q->rule, g, at));
    if (!(t->scale[at] > 0) || !isfinite(t->scale[at] + t->offset[at])) {
      st = fail(E_NUMERICS, "%s: l4q: expected a finite positive scale to start from, found %g", q->where, t->scale[at]);
      break;
    }
  }
done:
  return st;
}

static void move_grid(const l4q_request *q, grid_state *t, double rate, int step, const l4q_slopes *slopes, code_grid g) {
  int groups = grid_groups(&q->rule, (int)q->m);
  for (int64_t at = 0; at < entries(q); at++) {
    double s = t->scale[at] + rate * t->first[at] * move(&t->scales, at, slopes->scales[at], step);
    t->scale[at] = fmin(fmax(s, fmax(t->first[at] / 16, 0x1p-24)), fmin(16 * t->first[at], 65504));
    g.scales[at] = float_to_half((float)t->scale[at]);
    if (!q->rule.real_zero) continue;
    t->offset[at] += rate * t->first[at] * move(&t->offsets, at, slopes->offsets[at], step);
    double zero = ldexp(1, group_bits(&q->rule, (int)(at % groups)) - 1) - t->offset[at] / (double)half_to_float(g.scales[at]);
    g.real_zeros[at] = float_to_half((float)fmin(fmax(zero, -65504), 65504));
  }
}

static void copy_grid(const l4q_request *q, code_grid from, code_grid to) {
  size_t bytes = (size_t)entries(q) * sizeof(uint16_t);
  memcpy(to.scales, from.scales, bytes);
  if (q->rule.real_zero) memcpy(to.real_zeros, from.real_zeros, bytes);
}

status l4q(const l4q_request *q, code_grid g, uint8_t *codes, double *losses, int *best) {
  status st = OK;
  int64_t n = q->n, m = q->m, rank = q->rank;
  float *target = NULL, *e = NULL, *y = NULL;
  uint8_t *trial = NULL;
  adapter p = {0};
  l4q_slopes slopes = {0};
  moments of_a = {0}, of_b = {0};
  grid_state state = {0};
  code_grid now = {.zeros = g.zeros};
  double mean_scale = 0;
  TRY(check(q));
  adapter_request start = {.where = q->where, .n = n, .m = m, .rank = q->rank};
  TRY(adapter_zero(&start, q->name, q->seed, &p));
  TRY(NEW(target, n * m, "weight and adapter"));
  TRY(NEW(e, n * m, "residual"));
  TRY(NEW(y, n * m, "residual times Gram"));
  TRY(NEW(trial, n * m, "codes"));
  TRY(NEW(slopes.a, rank * m, "slopes of A"));
  TRY(NEW(slopes.b, n * rank, "slopes of B"));
  TRY(NEW(slopes.scales, entries(q), "slopes of scales"));
  TRY(NEW(slopes.offsets, entries(q), "slopes of offsets"));
  TRY(moments_new(rank * m, &of_a));
  TRY(moments_new(n * rank, &of_b));
  TRY(NEW(now.scales, entries(q), "scales of a step"));
  TRY(NEW(now.real_zeros, entries(q), "zeros of a step"));
  TRY(grid_state_new(q, g, &state));
  copy_grid(q, g, now);
  for (int64_t at = 0; at < entries(q); at++) mean_scale += state.first[at] / (double)entries(q);
  double unit_a = 1 / sqrt((double)m), unit_b = mean_scale * sqrt(3 * (double)m / (double)rank); /* entries of A have variance 1 / (3 m) */
  *best = -1;
  for (int step = 0;; step++) {
    TRY(l4q_evaluate(q, p.a, p.b, now, target, e, y, trial, &losses[step], &slopes));
    if (*best < 0 || losses[step] < losses[*best]) {
      *best = step;
      memcpy(codes, trial, (size_t)n * (size_t)m);
      copy_grid(q, now, g);
    }
    if (step == q->steps) break;
    double left = 1 - (double)step / q->steps;
    move_factor(&of_a, rank * m, left * q->rate_adapter * unit_a, step + 1, slopes.a, p.a);
    move_factor(&of_b, n * rank, left * q->rate_adapter * unit_b, step + 1, slopes.b, p.b);
    move_grid(q, &state, left * q->rate_grid, step + 1, &slopes, now);
  }
done:
  FREE(target);
  FREE(e);
  FREE(y);
  FREE(trial);
  adapter_free(&p);
  FREE(slopes.a);
  FREE(slopes.b);
  FREE(slopes.scales);
  FREE(slopes.offsets);
  moments_free(&of_a);
  moments_free(&of_b);
  grid_state_free(&state);
  FREE(now.scales);
  FREE(now.real_zeros);
  return st;
}

double l4q_flops(const l4q_request *q) {
  double n = (double)q->n, m = (double)q->m;
  return (q->steps + 1) * (2 * n * m * m + 6 * n * m * q->rank);
}

uint64_t l4q_bytes(const l4q_request *q) {
  uint64_t n = (uint64_t)q->n, m = (uint64_t)q->m, r = (uint64_t)q->rank;
  return 13 * n * m + 24 * r * (n + m) + 76 * (uint64_t)entries(q);
}
