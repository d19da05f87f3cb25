/* Grids against a plain rendering of the rules, their bounds, and the corners: ties, zero, tiny and huge groups, NaN. */
#include <string.h>

#include "check.h"

#include "base/half.h"
#include "layers.h"
#include "quant/grid.h"

enum { ROWS = 13, WIDTH = 192, STRIDE = 200 };

static float w[ROWS * STRIDE];
static uint16_t scales[ROWS * WIDTH];
static uint8_t zeros[ROWS * WIDTH], codes[ROWS * WIDTH];
static const code_grid grid = {.scales = scales, .zeros = zeros};

static void fill(uint64_t seed) {
  dice d = {seed};
  for (int i = 0; i < ROWS * STRIDE; i++) w[i] = (float)(0.05 * dice_normal(&d));
  for (int i = 0; i < 64; i++) w[i] = fabsf(w[i]) + 0.01f;                    /* a positive group */
  for (int i = 0; i < 64; i++) w[STRIDE + i] = -fabsf(w[STRIDE + i]) - 0.01f; /* a negative one */
  for (int i = 0; i < WIDTH; i++) w[2 * STRIDE + i] = 0;                      /* a row of zeros */
  w[3 * STRIDE + 5] = 3;                                                      /* an outlier */
}

static double bounded(double x, double top) { return x < 0 ? 0 : x > top ? top : x; }

/* The rules of the specification, one group, word for word. */
static void plain_fit(const grid_rule *r, int n, const float *v, double *s, int *z) {
  double lo = 0, hi = 0, top = pow(2, r->bits) - 1;
  for (int i = 0; i < n; i++) lo = fmin(lo, v[i]), hi = fmax(hi, v[i]);
  if (lo == 0 && hi == 0) lo = -1, hi = 1;
  if (r->symmetric) {
    *s = half_to_float(float_to_half((float)(2 * r->beta * fmax(hi, -lo) / top)));
    *z = 1 << (r->bits - 1);
    return;
  }
  double unshrunk = half_to_float(float_to_half((float)((hi - lo) / top)));
  *s = half_to_float(float_to_half((float)(r->beta * (hi - lo) / top)));
  *z = (int)bounded(rint(-lo / (r->anchor_zero ? unshrunk : *s)), top);
}

static void every_rule(void (*check)(const grid_rule *)) {
  const int groups[] = {0, 64, 24, 8};
  for (int bits = 1; bits <= 8; bits++)
    for (int g = 0; g < 4; g++)
      for (int kind = 0; kind < 4; kind++)
        check(&(grid_rule){.bits = bits, .group = groups[g], .symmetric = kind == 1, .beta = kind < 2 ? 1 : 0.8, .anchor_zero = kind == 3});
}

static void check_fit(const grid_rule *r) {
  int groups = grid_groups(r, WIDTH), n = WIDTH / groups;
  fill(1);
  int64_t replaced;
  assert_done(grid_fit(r, ROWS, WIDTH, w, STRIDE, NULL, grid, &replaced));
  assert_int_equal(replaced, 0);
  for (int i = 0; i < ROWS; i++)
    for (int g = 0; g < groups; g++) {
      double s;
      int z;
      plain_fit(r, n, w + i * STRIDE + g * n, &s, &z);
      assert_true(s > 0 && s == half_to_float(scales[i * groups + g]));
      assert_int_equal(z, zeros[i * groups + g]);
    }
}

/* |q - w| <= s / 2 where nothing is clipped; with beta 1 the clipped ends miss by the rounding of zero and scale only. */
static void check_bound(const grid_rule *r) {
  int groups = grid_groups(r, WIDTH), n = WIDTH / groups, top = (1 << r->bits) - 1;
  fill(2);
  assert_done(grid_fit(r, ROWS, WIDTH, w, STRIDE, NULL, grid, NULL));
  grid_round(r, ROWS, WIDTH, w, STRIDE, grid, codes);
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < WIDTH; j++) {
      double v = w[i * STRIDE + j], s = half_to_float(scales[i * groups + j / n]);
      int z = zeros[i * groups + j / n], u = codes[i * WIDTH + j];
      assert_in_range(u, 0, top);
      assert_int_equal(u, grid_code(v, s, z, r->bits));
      double miss = fabs(s * (u - z) - v), inside = rint(v / s) + z;
      if (inside >= 0 && inside <= top)
        assert_true(miss <= s / 2 * (1 + 1e-12));
      else
        assert_int_equal(u, inside < 0 ? 0 : top);
      if (r->beta == 1 && !r->symmetric) assert_true(miss <= 0.65 * s);
    }
}

static void test_fit(void **state) { (void)state, every_rule(check_fit); }
static void test_bound(void **state) { (void)state, every_rule(check_bound); }

static void test_beta_anchor(void **state) {
  (void)state;
  const float v[4] = {-3.44f, 3.25f, 0.1f, 1};
  grid_rule r = {.bits = 4, .beta = 0.8};
  assert_done(grid_fit(&r, 1, 4, v, 4, NULL, grid, NULL));
  double s = half_to_float(scales[0]);
  assert_float_equal((float)(-zeros[0] * s), -3.57, 0.01); /* the low end stays */
  assert_float_equal((float)((15 - zeros[0]) * s), 1.78, 0.01);
  r.anchor_zero = true;
  assert_done(grid_fit(&r, 1, 4, v, 4, NULL, grid, NULL));
  s = half_to_float(scales[0]);
  assert_float_equal((float)(-zeros[0] * s), -2.85, 0.01); /* both ends shrink */
  assert_float_equal((float)((15 - zeros[0]) * s), 2.50, 0.01);
}

static void test_unstorable_scales(void **state) {
  (void)state;
  for (int symmetric = 0; symmetric < 2; symmetric++) {
    grid_rule r = {.bits = 2, .group = 4, .symmetric = symmetric, .beta = 1};
    const float v[16] = {0, 0, 0, 0, 1e-9f, -1e-9f, 0, 0, 1e9f, -3, 0, 1, 1, -1, 0.5f, INFINITY};
    int64_t replaced;
    assert_done(grid_fit(&r, 1, 16, v, 16, NULL, grid, &replaced));
    assert_int_equal(replaced, 3);
    assert_float_equal(half_to_float(scales[0]), 2. / 3, 1e-3);
    assert_true(half_to_float(scales[1]) == 0x1p-14f);
    assert_true(half_to_float(scales[2]) == 65504);
    assert_true(half_to_float(scales[3]) == 65504);
    grid_round(&r, 1, 16, v, 16, grid, codes);
    for (int j = 0; j < 8; j++) assert_int_equal(codes[j], zeros[j / 4]); /* exactly zero */
    assert_int_equal(codes[8], 3);
  }
}

static void test_ties_and_nan(void **state) {
  (void)state;
  grid_rule r = {.bits = 4, .beta = 1};
  uint16_t one = float_to_half(1);
  uint8_t zero = 8;
  const float v[11] = {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 7.5f, 100, -100, NAN, 0.50000006f};
  const uint8_t expected[11] = {8, 10, 10, 8, 6, 6, 15, 15, 0, 0, 9};
  grid_round(&r, 1, 11, v, 11, (code_grid){.scales = &one, .zeros = &zero}, codes);
  assert_memory_equal(codes, expected, 11);
  for (int j = 0; j < 11; j++) assert_int_equal(grid_code(v[j], 1, 8, 4), expected[j]);
}

/* More groups in a row than are converted at a time. */
static void test_many_groups(void **state) {
  (void)state;
  enum { MANY = 2 * 333 };
  static float v[MANY];
  dice d = {5};
  for (int j = 0; j < MANY; j++) v[j] = (float)dice_normal(&d);
  grid_rule r = {.bits = 3, .group = 2, .beta = 1};
  assert_done(grid_fit(&r, 1, MANY, v, MANY, NULL, grid, NULL));
  grid_round(&r, 1, MANY, v, MANY, grid, codes);
  for (int j = 0; j < MANY; j++) assert_int_equal(codes[j], grid_code(v[j], half_to_float(scales[j / 2]), zeros[j / 2], 3));
}

/* A real zero puts the low end onto code 0 to what fp16 resolves, and codes are nearest: no entry misses by more than half a step. */
static void test_real_zero(void **state) {
  (void)state;
  static uint16_t real[ROWS * WIDTH];
  grid_rule r = {.bits = 3, .group = 24, .beta = 1, .real_zero = true};
  int groups = grid_groups(&r, WIDTH), between = 0;
  code_grid g = {.scales = scales, .real_zeros = real};
  fill(7);
  assert_done(grid_fit(&r, ROWS, WIDTH, w, STRIDE, NULL, g, NULL));
  grid_round(&r, ROWS, WIDTH, w, STRIDE, g, codes);
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < WIDTH; j++) {
      int at = i * groups + j / 24;
      double s = half_to_float(scales[at]), z = half_to_float(real[at]), v = w[i * STRIDE + j];
      int u = codes[i * WIDTH + j];
      assert_int_equal(u, grid_code_real(v, s, z, 3));
      assert_int_equal(u, (int)bounded(rint(v / s + z), 7));
      assert_true(fabs(s * (u - z) - v) <= s / 2 * 1.01);
      between += z != rint(z);
    }
  assert_true(between > 0);
  assert_int_equal(grid_code(0.5, 1, 1, 3), 1); /* an integer zero decides ties before it is added, a real one after */
  assert_int_equal(grid_code_real(0.5, 1, 1, 3), 2);
  assert_int_equal(grid_code_real(NAN, 1, 1, 3), 0);
}

/* Every group as if it were alone with its own bits. */
static void test_widths(void **state) {
  (void)state;
  const uint8_t widths[4] = {1, 4, 3, 8};
  for (int symmetric = 0; symmetric < 2; symmetric++) {
    grid_rule r = {.bits = 4, .group = WIDTH / 4, .beta = 1, .symmetric = symmetric, .widths = widths};
    fill(8);
    assert_done(grid_fit(&r, ROWS, WIDTH, w, STRIDE, NULL, grid, NULL));
    grid_round(&r, ROWS, WIDTH, w, STRIDE, grid, codes);
    for (int i = 0; i < ROWS; i++)
      for (int k = 0; k < 4; k++) {
        grid_rule one = {.bits = widths[k], .beta = 1, .symmetric = symmetric};
        uint16_t scale;
        uint8_t zero, alone[WIDTH / 4];
        code_grid g = {.scales = &scale, .zeros = &zero};
        const float *v = w + i * STRIDE + k * (WIDTH / 4);
        assert_done(grid_fit(&one, 1, WIDTH / 4, v, STRIDE, NULL, g, NULL));
        grid_round(&one, 1, WIDTH / 4, v, STRIDE, g, alone);
        assert_int_equal(scale, scales[i * 4 + k]);
        assert_int_equal(zero, zeros[i * 4 + k]);
        assert_memory_equal(alone, codes + i * WIDTH + k * (WIDTH / 4), WIDTH / 4);
      }
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_fit),          cmocka_unit_test(test_bound),
                                     cmocka_unit_test(test_beta_anchor),  cmocka_unit_test(test_unstorable_scales),
                                     cmocka_unit_test(test_ties_and_nan), cmocka_unit_test(test_many_groups),
                                     cmocka_unit_test(test_real_zero),    cmocka_unit_test(test_widths)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
