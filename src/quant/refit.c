#include "quant/refit.h"

#include <math.h>
#include <string.h>

#include "base/half.h"
#include "base/hot.h"

enum { QUAD = REFIT_QUAD, ROWS = REFIT_ROWS, PART = 16 /* columns between two updates inside a block */ };

/* Vectors of 32 bytes at most: see recursion.h. */
typedef float eight __attribute__((vector_size(32), may_alias));
typedef float four __attribute__((vector_size(16), may_alias));
typedef double wide __attribute__((vector_size(32), may_alias));
enum { EIGHT = 8, FOUR = 4 };

/* The symmetric block by rows: into quads of columns, and its sums. */
static HOT void read_block(int columns, int padded, const float *restrict p, int64_t ldp, float *restrict quads, double *restrict one) {
  for (int i = 0; i < columns; i++) {
    const float *restrict from = p + i * ldp;
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int j = 0; j < columns; j++) sum += from[j];
    one[i] = sum;
    for (int j = 0; j < columns; j++) quads[(j / QUAD * padded + i) * QUAD + j % QUAD] = from[j];
    for (int j = columns; j < padded; j++) quads[(j / QUAD * padded + i) * QUAD + j % QUAD] = 0;
  }
}

void refit_read(refit_block *b, const grid_rule *r, int bits, int columns, const float *p, int64_t ldp, double least, const uint8_t *dead) {
  b->columns = columns;
  b->padded = (columns + QUAD - 1) / QUAD * QUAD;
  b->top = (1 << bits) - 1;
  b->rule = *r;
  b->bits = bits;
  b->one_one = 0;
  read_block(columns, b->padded, p, ldp, b->p, b->one);
  for (int j = 0; j < columns; j++) {
    float diagonal = p[j * ldp + j];
    bool stays = diagonal <= least || (dead && dead[j]);
    b->inverse[j] = stays ? 0 : 1 / diagonal;
    b->square[j] = diagonal;
    b->one_one += b->one[j];
  }
}

/* y (QUAD columns) = from + sign sum_{i < n} p_i x_i, for 16 rows: eight accumulators. from NULL: 0. */
static inline __attribute__((always_inline)) void add_quad(int n, const float *restrict p, const float (*restrict x)[ROWS], bool minus,
                                                           const float (*from)[ROWS], float (*y)[ROWS]) {
  eight a[QUAD][2] = {{{0}}};
  for (int j = 0; from && j < QUAD; j++) memcpy(a[j], from[j], sizeof a[j]);
  for (int i = 0; i < n; i++) {
    const eight *e = (const eight *)x[i];
    for (int j = 0; j < QUAD; j++) {
      float f = p[i * QUAD + j];
      if (minus) {
        a[j][0] -= e[0] * f;
        a[j][1] -= e[1] * f;
      } else {
        a[j][0] += e[0] * f;
        a[j][1] += e[1] * f;
      }
    }
  }
  for (int j = 0; j < QUAD; j++) memcpy(y[j], a[j], sizeof a[j]);
}

/* y = x P_gg; columns up to the padding. */
static inline __attribute__((always_inline)) void times_p(const refit_block *b, const float (*x)[ROWS], float (*y)[ROWS]) {
  for (int j = 0; j < b->padded; j += QUAD)
    for (int part = 0; part < ROWS; part += 2 * EIGHT)
      add_quad(b->columns, b->p + j * b->padded, (const float(*)[ROWS])(x[0] + part), false, NULL, (float(*)[ROWS])(y[j] + part));
}

/* ---- grid ---- */

#define WIDEN(x) __builtin_convertvector(*(const four *)(x), wide) /* no function: vectors are returned as the plain clone would */

/* The sums of a tile whose k and kp are made. */
static inline __attribute__((always_inline)) void sum_up(int columns, const double *one, const refit_tile *t, refit_sums *restrict s) {
  for (int row = 0; row < ROWS; row += FOUR) {
    wide kr = {0}, r1 = {0}, kpk = {0}, kp = {0};
    for (int j = 0; j < columns; j++) {
      wide r = WIDEN(t->r[j] + row), k = WIDEN(t->k[j] + row);
      kr += k * r;
      r1 += r;
      kpk += k * WIDEN(t->kp[j] + row);
      kp += k * one[j];
    }
    *(wide *)(s->kr + row) += kr;
    *(wide *)(s->r + row) += r1;
    *(wide *)(s->kpk + row) += kpk;
    *(wide *)(s->kp + row) += kp;
  }
}

static inline __attribute__((always_inline)) void deviations(const refit_block *b, refit_tile *t) {
  for (int j = 0; j < b->columns; j++)
    for (int r = 0; r < ROWS; r++) t->k[j][r] = t->code[j][r] - t->zero[r];
}

/* The best scale for codes at a zero, as stored; 0: none. */
static double best_scale(double num, double den) {
  int64_t replaced = 0;
  if (!(num > 0 && den > 0)) return 0;
  double s = half_to_float(grid_scale(num / den, &replaced));
  return replaced ? 0 : s;
}

/* What the zero moves by: to the best integer one, or, if real, to that of the codes' best pair, unless it is so far away that fp16 spoils it. */
static double best_shift(const grid_rule *g, int bits, double one_one, double ky, double y, double kpk, double kp, double zero) {
  double best = 0, fall = ky > 0 && kpk > 0 ? ky * ky / kpk : 0; /* of the loss, from Q = 0 */
  if (g->symmetric) return 0;
  for (double z = 0; z < 1 << bits; z++) {
    double shift = z - zero, num = ky - shift * y, den = kpk - 2 * shift * kp + shift * shift * one_one;
    if (!(num > 0 && den > 0 && num * num > fall * den)) continue;
    best = shift;
    fall = num * num / den;
  }
  if (g->real_zero) {
    double a = ky * one_one - y * kp, c = y * kpk - ky * kp; /* s and - s shift, times the determinant */
    double shift = grid_stored_zero(true, zero - c / a, 0) - zero;
    double num = ky - shift * y, den = kpk - 2 * shift * kp + shift * shift * one_one, s = best_scale(num, den);
    if (2 * s * num - s * s * den > fall) best = shift;
  }
  return best;
}

void refit_choose(const grid_rule *g, int bits, double one_one, refit_sums *sums, float *scale, float *zero, double *gain) {
  for (int row = 0; row < ROWS; row++) {
    double kr = sums->kr[row], r = sums->r[row], kpk = sums->kpk[row], kp = sums->kp[row], s = scale[row];
    double ky = kr + s * kpk, y = r + s * kp, shift = best_shift(g, bits, one_one, ky, y, kpk, kp, zero[row]);
    double num = ky - shift * y, den = kpk - 2 * shift * kp + shift * shift * one_one;
    double next = best_scale(num, den);
    double a = next - s, b = -next * shift; /* the values change by a k + b */
    double change = a * (a * kpk + 2 * b * kp - 2 * kr) + b * (b * one_one - 2 * r);
    if (next == 0 || !(change < 0)) continue;
    scale[row] = (float)next;
    zero[row] = (float)(zero[row] + shift);
    gain[row] += change;
    sums->kpk[row] = den;
  }
}

HOT void refit_add_sums(int columns, const double *one, const refit_tile *t, refit_sums *s) { sum_up(columns, one, t, s); }

static HOT void grid_sums(const refit_block *b, refit_tile *t, refit_sums *s) {
  deviations(b, t);
  times_p(b, (const float(*)[ROWS])t->k, t->kp);
  memset(s, 0, sizeof *s);
  sum_up(b->columns, b->one, t, s);
}

/* R on another grid: R += s k P - s' (k P - (zero' - zero) 1 P). */
static HOT void move_grid(const refit_block *b, refit_tile *t, const float *restrict scale, const float *restrict zero) {
  for (int j = 0; j < b->columns; j++) {
    float one = (float)b->one[j];
    for (int r = 0; r < ROWS; r++) t->r[j][r] += (scale[r] - t->scale[r]) * t->kp[j][r] + t->scale[r] * ((t->zero[r] - zero[r]) * one);
  }
}

void refit_grid(const refit_block *b, refit_tile *t) {
  refit_sums s;
  float scale[ROWS], zero[ROWS];
  grid_sums(b, t, &s);
  memcpy(scale, t->scale, sizeof scale);
  memcpy(zero, t->zero, sizeof zero);
  refit_choose(&b->rule, b->bits, b->one_one, &s, t->scale, t->zero, t->gain);
  move_grid(b, t, scale, zero);
}

/* ---- codes ---- */

/* f[ROWS] -= the steps of n columns of the same part; p walks one column of a quad. */
static inline __attribute__((always_inline)) void add_column(int n, const float *restrict p, const float (*restrict step)[ROWS],
                                                             float *restrict f) {
  eight a[ROWS / EIGHT];
  memcpy(a, f, sizeof a);
  for (int i = 0; i < n; i++) {
    const eight *e = (const eight *)step[i];
    for (int l = 0; l < ROWS / EIGHT; l++) a[l] -= e[l] * p[i * QUAD];
  }
  memcpy(f, a, sizeof a);
}

/* One column of 32 rows: R -> code, step and change of the loss. */
static inline __attribute__((always_inline)) void step_column(float inverse, float square, float top, const float *restrict f,
                                                              const float *restrict scale, const float *restrict per_scale,
                                                              float *restrict code, float *restrict step, double *restrict gain) {
  for (int r = 0; r < ROWS; r++) {
    float u = rintf(code[r] + f[r] * inverse * per_scale[r]);
    u = u > 0 ? u : 0;
    u = u < top ? u : top;
    float d = scale[r] * (u - code[r]);
    gain[r] += d * (d * square - 2 * f[r]);
    code[r] = u;
    step[r] = d;
  }
}

static inline __attribute__((always_inline)) void sweep_tile(const refit_block *b, refit_tile *t, double *restrict gain) {
  float per_scale[ROWS];
  for (int r = 0; r < ROWS; r++) per_scale[r] = 1 / t->scale[r];
  for (int first = 0; first < b->columns; first += PART) {
    int end = first + PART < b->columns ? first + PART : b->columns;
    for (int j = first; j < end; j += QUAD)
      for (int part = 0; part < ROWS; part += 2 * EIGHT)
        add_quad(first, b->p + j * b->padded, (const float(*)[ROWS])(t->step[0] + part), true, (const float(*)[ROWS])(t->r[j] + part),
                 (float(*)[ROWS])(t->r[j] + part));
    for (int j = first; j < end; j++) {
      add_column(j - first, b->p + j / QUAD * QUAD * b->padded + first * QUAD + j % QUAD, (const float(*)[ROWS])t->step[first], t->r[j]);
      step_column(b->inverse[j], b->square[j], (float)b->top, t->r[j], t->scale, per_scale, t->code[j], t->step[j], gain);
    }
  }
}

HOT void refit_codes(const refit_block *b, refit_tile *t) { sweep_tile(b, t, t->gain); }

/* ---- candidates ---- */

static const struct {
  double scale;
  int zero;
} neighbours[REFIT_NEIGHBOURS] = {{1, 0}, {.94, 0}, {.97, 0}, {1.03, 0}, {1.06, 0}, {1, -1}, {1, 1}};

void refit_neighbour(const grid_rule *g, int bits, int n, const float *scale, const float *zero, float *s, float *z) {
  for (int r = 0; r < ROWS; r++) {
    int64_t replaced = 0;
    float near = half_to_float(grid_scale(neighbours[n].scale * scale[r], &replaced));
    double moved = grid_stored_zero(g->real_zero, (double)zero[r] + neighbours[n].zero, (1 << bits) - 1);
    s[r] = replaced ? scale[r] : near;
    z[r] = g->symmetric ? zero[r] : (float)moved;
  }
}

HOT void refit_snap(const refit_block *b, refit_tile *t, const float *restrict from_scale, const float *restrict from_zero) {
  float ratio[ROWS], top = (float)b->top;
  for (int r = 0; r < ROWS; r++) ratio[r] = from_scale[r] / t->scale[r];
  for (int j = 0; j < b->columns; j++) {
    bool stays = b->inverse[j] == 0;
    for (int r = 0; r < ROWS; r++) {
      float u = rintf((t->own[j][r] - from_zero[r]) * ratio[r] + t->zero[r]);
      u = u > 0 ? u : 0;
      u = u < top ? u : top;
      t->code[j][r] = stays ? t->own[j][r] : u;
    }
  }
}

/* step: what the values of t->code on its grid are more than its own; k: that times P_gg. So R is that of its own less k. */
static inline __attribute__((always_inline)) void changes(const refit_block *b, refit_tile *t, const float *restrict own_scale,
                                                          const float *restrict own_zero) {
  for (int j = 0; j < b->columns; j++)
    for (int r = 0; r < ROWS; r++) t->step[j][r] = t->scale[r] * (t->code[j][r] - t->zero[r]) - own_scale[r] * (t->own[j][r] - own_zero[r]);
  times_p(b, (const float(*)[ROWS])t->step, t->k);
}

static HOT void move_codes(const refit_block *b, refit_tile *t, const float *own_scale, const float *own_zero) {
  changes(b, t, own_scale, own_zero);
  for (int j = 0; j < b->columns; j++)
    for (int r = 0; r < ROWS; r++) t->r[j][r] = t->own_r[j][r] - t->k[j][r];
}

HOT void refit_add_changes(int columns, const refit_tile *t, refit_changes *s) {
  for (int row = 0; row < ROWS; row += FOUR) {
    wide loss = {0}, qpq = {0}, qr = {0};
    four scale = *(const four *)(t->scale + row), zero = *(const four *)(t->zero + row);
    for (int j = 0; j < columns; j++) {
      wide d = WIDEN(t->step[j] + row), dp = WIDEN(t->k[j] + row), r = WIDEN(t->own_r[j] + row);
      four values = scale * (*(const four *)(t->code[j] + row) - zero);
      wide q = __builtin_convertvector(values, wide);
      loss += d * (dp - 2 * r);
      qpq += (2 * q - d) * dp;
      qr += q * (r - dp);
    }
    *(wide *)(s->loss + row) += loss;
    *(wide *)(s->qpq + row) += qpq;
    *(wide *)(s->qr + row) += qr;
  }
}

static HOT void sweep_and_sum(const refit_block *b, refit_tile *t, const float *own_scale, const float *own_zero, refit_changes *s) {
  double ignored[ROWS] = {0};
  sweep_tile(b, t, ignored);
  changes(b, t, own_scale, own_zero);
  memset(s, 0, sizeof *s);
  refit_add_changes(b->columns, t, s);
}

/* q by 1 + a costs a^2 q P q - 2 a q R more. */
double refit_rescale(const refit_changes *s, int row, double qpq, float *scale) {
  int64_t replaced = 0;
  qpq += s->qpq[row];
  double qr = s->qr[row], next = half_to_float(grid_scale(*scale * (1 + qr / qpq), &replaced)), a = next / *scale - 1;
  double more = a * (a * qpq - 2 * qr);
  if (replaced || !(more < 0)) return s->loss[row];
  *scale = (float)next;
  return s->loss[row] + more;
}

void refit_candidates(const refit_block *b, refit_tile *t) {
  refit_sums own;
  refit_changes sums;
  float own_scale[ROWS], own_zero[ROWS], best_scale[ROWS], best_zero[ROWS];
  double least[ROWS] = {0};
  size_t grid = sizeof own_scale, codes = (size_t)b->columns * sizeof *t->code;
  grid_sums(b, t, &own);
  memcpy(own_scale, t->scale, grid), memcpy(own_zero, t->zero, grid), memcpy(t->own, t->code, codes), memcpy(t->own_r, t->r, codes);
  memcpy(best_scale, t->scale, grid), memcpy(best_zero, t->zero, grid), memcpy(t->best, t->code, codes);
  for (int n = 0; n < REFIT_NEIGHBOURS; n++) {
    refit_neighbour(&b->rule, b->bits, n, own_scale, own_zero, t->scale, t->zero);
    refit_snap(b, t, own_scale, own_zero);
    move_codes(b, t, own_scale, own_zero);
    sweep_and_sum(b, t, own_scale, own_zero, &sums);
    for (int r = 0; r < ROWS; r++) {
      float scale = t->scale[r];
      double s = own_scale[r], loss = refit_rescale(&sums, r, s * s * own.kpk[r], &scale);
      if (!(loss < least[r])) continue;
      least[r] = loss;
      best_scale[r] = scale;
      best_zero[r] = t->zero[r];
      for (int j = 0; j < b->columns; j++) t->best[j][r] = t->code[j][r];
    }
  }
  memcpy(t->code, t->best, codes), memcpy(t->scale, best_scale, grid), memcpy(t->zero, best_zero, grid);
  move_codes(b, t, own_scale, own_zero);
  for (int r = 0; r < ROWS; r++) t->gain[r] += least[r];
}
