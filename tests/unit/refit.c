/* One group of columns: its grid against all zeros tried in double, its sweep and its candidates against plain loops; what each step says it
 * gained is what the loss fell by. */
#include <stdio.h>
#include <string.h>

#include "check.h"

#include "base/half.h"
#include "layers.h"
#include "quant/refit.h"

enum { ROWS = REFIT_ROWS, MOST = REFIT_MOST };

/* A group alone: f = (W - Q) P (W - Q)^T, R = (W - Q) P. */
typedef struct group {
  grid_rule rule;
  int bits, n, top;
  float w[ROWS][MOST], p[MOST * MOST];
  uint8_t dead[MOST];
  double ridge;
} group;

static group g;
static refit_block block;
static refit_tile tile;

typedef struct row { /* of the plain loops */
  double scale, zero, code[MOST], r[MOST];
} row;

static void group_open(uint64_t seed, int n, int bits, bool symmetric, bool real_zero, bool dead) {
  static double h[MOST * MOST];
  uint16_t scale[ROWS], real[ROWS];
  uint8_t zero[ROWS], codes[ROWS * MOST];
  code_grid grid = {.scales = scale, .zeros = zero, .real_zeros = real};
  g = (group){
      .rule = {.bits = bits, .beta = 1, .symmetric = symmetric, .real_zero = real_zero}, .bits = bits, .n = n, .top = (1 << bits) - 1};
  layer_weights(seed, ROWS, MOST, g.w[0]);
  for (int j = 0; dead && j < n; j++) g.dead[j] = j % 7 == 3;
  assert_done(layer_gram(seed, 2 * n, n, NULL, h));
  for (int i = 0; i < n * n; i++) g.p[i] = (float)(h[i] / n);
  assert_done(grid_fit(&g.rule, ROWS, n, g.w[0], MOST, NULL, grid, NULL));
  grid_round(&g.rule, ROWS, n, g.w[0], MOST, grid, codes);
  refit_read(&block, &g.rule, bits, n, g.p, n, 0, dead ? g.dead : NULL);
  memset(&tile, 0, sizeof tile);
  for (int i = 0; i < ROWS; i++) {
    tile.scale[i] = half_to_float(scale[i]);
    tile.zero[i] = (float)grid_zero(&g.rule, grid, i);
    for (int j = 0; j < n; j++) tile.code[j][i] = codes[i * n + j];
  }
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < n; j++) {
      double r = 0;
      for (int k = 0; k < n; k++) r += (g.w[i][k] - tile.scale[i] * ((double)tile.code[k][i] - tile.zero[i])) * g.p[k * n + j];
      tile.r[j][i] = (float)r;
    }
}

static row row_of(const refit_tile *t, int i) {
  row a = {.scale = t->scale[i], .zero = t->zero[i]};
  for (int j = 0; j < g.n; j++) a.code[j] = t->code[j][i];
  return a;
}

/* f, and R. */
static double loss(int i, row *a) {
  double f = 0;
  for (int j = 0; j < g.n; j++) {
    a->r[j] = 0;
    for (int k = 0; k < g.n; k++) a->r[j] += (g.w[i][k] - a->scale * (a->code[k] - a->zero)) * g.p[k * g.n + j];
    f += a->r[j] * (g.w[i][j] - a->scale * (a->code[j] - a->zero));
  }
  return f;
}

static double stored(double s) { return half_to_float(float_to_half((float)s)); }

/* The best stored scale for the codes at this zero, if there is one; its f. */
static double rescaled(int i, row *a, bool needed) {
  double num = 0, den = 0;
  for (int j = 0; j < g.n; j++) {
    double wp = 0, kp = 0;
    for (int k = 0; k < g.n; k++) {
      wp += (double)g.w[i][k] * g.p[k * g.n + j];
      kp += (a->code[k] - a->zero) * g.p[k * g.n + j];
    }
    num += (a->code[j] - a->zero) * wp;
    den += (a->code[j] - a->zero) * kp;
  }
  double s = stored(num / den);
  if (s > 0 && s < 65505)
    a->scale = s;
  else if (needed)
    return INFINITY;
  return loss(i, a);
}

static void sweep_row(int i, row *a) {
  loss(i, a);
  for (int j = 0; j < g.n; j++) {
    if (g.dead[j]) continue;
    double v = a->code[j] + a->r[j] / g.p[j * g.n + j] / a->scale, u = fmin(fmax(rint(v), 0), g.top), step = a->scale * (u - a->code[j]);
    for (int k = 0; k < g.n; k++) a->r[k] -= step * g.p[j * g.n + k];
    a->code[j] = u;
  }
}

static void every_kind(void (*check)(void)) {
  const int sizes[] = {6, 37, 64, 256};
  for (int bits = 1; bits <= 8; bits += bits < 4 ? 1 : 4)
    for (int size = 0; size < 4; size++)
      for (int kind = 0; kind < 4; kind++) {
        if (size == 3 && bits != 2) continue;
        group_open(10 + (uint64_t)(bits * 4 + size), sizes[size], bits, kind == 1, kind == 2, kind == 3);
        check();
      }
}

/* f of Q = 0. */
static double energy(int i) {
  double sum = 0;
  for (int j = 0; j < g.n; j++)
    for (int k = 0; k < g.n; k++) sum += (double)g.w[i][j] * g.w[i][k] * g.p[j * g.n + k];
  return sum;
}

/* The gain is the change of f, to what values in float allow; R is that of the new grid. */
static void check_told(int i, double before, row *now, bool r_too) {
  double after = loss(i, now), slack = 2e-5 * before + 0x1p-21 * sqrt(before * energy(i));
  assert_true(fabs(before + tile.gain[i] - after) <= slack);
  assert_true(after <= before + slack / 16);
  double most = 0;
  for (int k = 0; k < g.n; k++) most = fmax(most, g.p[k * g.n + k]);
  for (int j = 0; r_too && j < g.n; j++) assert_true(fabs(now->r[j] - tile.r[j][i]) <= 1e-4 * sqrt(g.p[j * g.n + j] * before));
}

static void check_grid(void) {
  double before[ROWS];
  row start[ROWS];
  for (int i = 0; i < ROWS; i++) {
    start[i] = row_of(&tile, i);
    before[i] = loss(i, start + i);
  }
  refit_grid(&block, &tile);
  for (int i = 0; i < ROWS; i++) {
    row now = row_of(&tile, i);
    double least = before[i], after = loss(i, &now);
    for (int z = 0; z <= g.top; z++) {
      row a = start[i];
      a.zero = z;
      if (g.rule.symmetric && z != start[i].zero) continue;
      least = fmin(least, rescaled(i, &a, true));
    }
    check_told(i, before[i], &now, true);
    for (int j = 0; j < g.n; j++) assert_true(now.code[j] == start[i].code[j]);
    assert_true(now.scale == stored(now.scale) && now.zero == stored(now.zero));
    /* the best pair is chosen before it is stored, so another zero can be better by what fp16 makes of their scales */
    double slack = 1e-5 * before[i];
    if (after > least + slack + energy(i) * 0x1p-22) fail_msg("bits %d, row %d: expected %.9g, found %.9g", g.bits, i, least, after);
  }
}

static void check_codes(void) {
  row start[ROWS];
  int same = 0;
  double before[ROWS];
  for (int i = 0; i < ROWS; i++) {
    start[i] = row_of(&tile, i);
    before[i] = loss(i, start + i);
  }
  refit_codes(&block, &tile);
  for (int i = 0; i < ROWS; i++) {
    row now = row_of(&tile, i), a = start[i];
    check_told(i, before[i], &now, false);
    sweep_row(i, &a);
    bool equal = true;
    for (int j = 0; j < g.n; j++) equal = equal && now.code[j] == a.code[j];
    for (int j = 0; j < g.n; j++)
      if (g.dead[j]) assert_true(now.code[j] == start[i].code[j]);
    same += equal;
  }
  assert_true(same >= ROWS - 2); /* but for ties */
}

static void check_candidates(void) {
  const double times[] = {1, .94, .97, 1.03, 1.06, 1, 1}, shift[] = {0, 0, 0, 0, 0, -1, 1};
  double before[ROWS];
  row start[ROWS];
  int same = 0;
  for (int i = 0; i < ROWS; i++) {
    start[i] = row_of(&tile, i);
    before[i] = loss(i, start + i);
  }
  refit_candidates(&block, &tile);
  for (int i = 0; i < ROWS; i++) {
    row now = row_of(&tile, i);
    double least = before[i], after = loss(i, &now);
    for (int n = 0; n < 7; n++) {
      row a = start[i];
      a.scale = stored(times[n] * a.scale);
      a.zero = g.rule.symmetric ? a.zero : g.rule.real_zero ? stored(a.zero + shift[n]) : fmin(fmax(a.zero + shift[n], 0), g.top);
      for (int j = 0; j < g.n; j++)
        if (!g.dead[j]) a.code[j] = fmin(fmax(rint(start[i].scale * (start[i].code[j] - start[i].zero) / a.scale + a.zero), 0), g.top);
      sweep_row(i, &a);
      least = fmin(least, rescaled(i, &a, false));
    }
    check_told(i, before[i], &now, true);
    for (int j = 0; j < g.n; j++)
      if (g.dead[j]) assert_true(now.code[j] == start[i].code[j]);
    assert_true(now.zero >= 0 || g.rule.real_zero);
    same += fabs(after - least) <= 1e-4 * before[i];
  }
  assert_true(same >= ROWS - 2); /* but for ties */
}

static void test_grid(void **state) { (void)state, every_kind(check_grid); }
static void test_codes(void **state) { (void)state, every_kind(check_codes); }
static void test_candidates(void **state) { (void)state, every_kind(check_candidates); }

/* Sums over parts of a group choose as the whole group does. */
static void test_parts(void **state) {
  (void)state;
  static refit_tile half, whole;
  static double one[MOST];
  refit_sums sums;
  double gain[ROWS] = {0}, one_one = 0;
  group_open(3, 120, 3, false, false, false);
  whole = tile;
  refit_grid(&block, &whole);
  memset(&sums, 0, sizeof sums);
  for (int first = 0; first < 120; first += 80) {
    int columns = first ? 40 : 80;
    for (int j = 0; j < columns; j++) {
      one[j] = 0;
      for (int k = 0; k < 120; k++) one[j] += g.p[k * 120 + first + j];
      one_one += one[j];
      for (int i = 0; i < ROWS; i++) {
        double kp = 0;
        for (int k = 0; k < 120; k++) kp += ((double)tile.code[k][i] - tile.zero[i]) * g.p[k * 120 + first + j];
        half.k[j][i] = tile.code[first + j][i] - tile.zero[i];
        half.kp[j][i] = (float)kp;
        half.r[j][i] = tile.r[first + j][i];
      }
    }
    refit_add_sums(columns, one, &half, &sums);
  }
  refit_choose(&g.rule, 3, one_one, &sums, tile.scale, tile.zero, gain);
  int same = 0;
  for (int i = 0; i < ROWS; i++) {
    same += tile.scale[i] == whole.scale[i] && tile.zero[i] == whole.zero[i];
    assert_true(fabs(gain[i] - whole.gain[i]) <= 1e-4 * fabs(whole.gain[i]));
  }
  assert_true(same >= ROWS - 1); /* but for ties */
}

int main(void) {
  blas_setup();
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_grid), cmocka_unit_test(test_codes), cmocka_unit_test(test_candidates),
                                     cmocka_unit_test(test_parts)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
