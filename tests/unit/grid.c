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

/* ---- searches: by brute force, one group at a time ---- */

enum { GROUP = 37, GROUPS = 12 };

/* Groups of every kind, and what a column counts. */
static void fill_groups(float v[GROUPS * GROUP], float weight[GROUP]) {
  dice d = {40};
  for (int j = 0; j < GROUP; j++) weight[j] = (float)exp(3 * dice_normal(&d));
  for (int i = 0; i < GROUPS * GROUP; i++) {
    double x = 0.05 * dice_normal(&d);
    int k = i / GROUP;
    v[i] = (float)(k % 4 == 1 ? fabs(x) : k % 4 == 2 ? x * x * x * 400 : x);
    if (k == 8) v[i] = 0;
    if (k == 9) v[i] = 0.03f;
    if (k == 10) v[i] *= -3e-7f; /* scales at the end of fp16 */
    if (k == 11) v[i] *= 3e6f;
  }
}

static double stored(double s) { return half_to_float(float_to_half((float)s)); }

/* The error of a search on one grid; norm 2 weighs. */
static double group_error(const grid_rule *r, int bits, const float *v, const float *weight, double norm, double s, double z) {
  double sum = 0;
  for (int j = 0; j < GROUP; j++) {
    int u = r->real_zero ? grid_code_real(v[j], s, z, bits) : grid_code(v[j], s, z, bits);
    sum += (norm == 2 && weight ? weight[j] : 1) * pow(fabs(s * (u - z) - v[j]), norm);
  }
  return sum;
}

/* The least error of refit's candidates, and where; integer zeros. */
static double brute_refit(const grid_rule *r, int bits, const float *v, const float *weight, double lo, double hi, double *s, double *z) {
  double top = (1 << bits) - 1, least = INFINITY;
  for (int k = 0; k < 14; k++) {
    double scale = stored((0.4 + 0.05 * k) * (r->symmetric ? 2 * fmax(-lo, hi) : hi - lo) / top);
    if (!(scale > 0 && scale < 65505)) continue;
    for (int c = 0; c < (bits == 2 ? 4 : 3); c++) {
      double zero = bits == 2 ? c : bounded(rint(top / 2 - (lo + hi) / 2 / scale) + c - 1, top);
      if (r->symmetric) zero = 1 << (bits - 1);
      double error = group_error(r, bits, v, weight, 2, scale, zero);
      if (!(error < least)) continue;
      least = error;
      *s = scale;
      *z = zero;
    }
  }
  return least;
}

/* The least error of all candidates, as the specification lists them. */
static double brute_force(const grid_rule *r, int bits, const float *v, const float *weight) {
  double lo = 0, hi = 0, top = (1 << bits) - 1, least = INFINITY;
  for (int j = 0; j < GROUP; j++) lo = fmin(lo, v[j]), hi = fmax(hi, v[j]);
  if (lo == 0 && hi == 0) lo = -1, hi = 1;
  double width = r->symmetric ? 2 * fmax(-lo, hi) : hi - lo, s_there, z_there;
  if (r->search == SEARCH_REFIT) return brute_refit(r, bits, v, weight, lo, hi, &s_there, &z_there);
  bool mse = r->search == SEARCH_MSE;
  for (int k = 0; k < (mse ? 80 : 60); k++) {
    double p = mse ? 1 - k / 100. : 0.35 + 0.65 * (59 - k) / 59, s = stored(p * width / top);
    if (!(s > 0 && s < 65505)) continue;
    for (int z = 0; z <= top; z++) {
      double zero = mse ? bounded(-p * lo / s, top) : z;
      if (mse) zero = r->real_zero ? stored(zero) : rint(zero);
      if (r->symmetric) zero = 1 << (bits - 1);
      least = fmin(least, group_error(r, bits, v, weight, mse ? 2.4 : 2, s, zero));
    }
  }
  return least;
}

static void check_search(const grid_rule *rule, const float *v, const float *weight, double *won, double *of) {
  static uint16_t real[GROUPS], range_scale[GROUPS], range_real[GROUPS];
  static uint8_t range_zero[GROUPS];
  grid_rule r = *rule, plain = *rule;
  code_grid g = {.scales = scales, .zeros = zeros, .real_zeros = real},
            from = {.scales = range_scale, .zeros = range_zero, .real_zeros = range_real};
  double norm = r.search == SEARCH_MSE ? 2.4 : 2, near = r.search == SEARCH_REFIT ? 1e-5 : 1e-12; /* refit: in float */
  plain.search = SEARCH_NONE;
  assert_done(grid_fit(&r, GROUPS, GROUP, v, GROUP, weight, g, NULL));
  assert_done(grid_fit(&plain, GROUPS, GROUP, v, GROUP, weight, from, NULL));
  for (int k = 0; k < GROUPS; k++) {
    const float *one = v + k * GROUP;
    double found = group_error(&r, r.bits, one, weight, norm, half_to_float(scales[k]), grid_zero(&r, g, k));
    double range = group_error(&r, r.bits, one, weight, norm, half_to_float(range_scale[k]), grid_zero(&r, from, k));
    double least = brute_force(&r, r.bits, one, weight);
    assert_true(found <= range * (1 + near));
    /* scan with real zeros, and refit, start from the best candidate and go below it */
    if (found > fmin(least, range) * (1 + near)) fail_msg("bits %d, group %d: expected %.17g, found %.17g", r.bits, k, least, found);
    if (r.search == SEARCH_MSE || (!r.real_zero && r.search == SEARCH_SCAN)) assert_true(found >= fmin(least, range) * (1 - 1e-12));
    *won += range > 0 ? found / range : 1;
    *of += 1;
  }
}

static void test_search(void **state) {
  (void)state;
  static float v[GROUPS * GROUP], weight[GROUP];
  fill_groups(v, weight);
  for (int search = SEARCH_MSE; search <= SEARCH_REFIT; search++)
    for (int kind = 0; kind < 3; kind++)
      for (int weighted = 0; weighted < 2; weighted++) {
        double won = 0, of = 0;
        for (int bits = 1; bits <= 5; bits += bits < 3 ? 1 : 2) {
          grid_rule r = {.bits = bits, .beta = 1, .search = (grid_search)search, .symmetric = kind == 1, .real_zero = kind == 2};
          check_search(&r, v, weighted ? weight : NULL, &won, &of);
        }
        assert_true(won < 0.95 * of); /* it does help */
      }
}

/* Refit word for word: its best candidate, then three scales from the codes, or the range if none is better. Few groups may differ, where two
 * grids are as good as float can tell. Every row alone finds what it finds in company. */
static void test_refit(void **state) {
  (void)state;
  static float v[GROUPS * GROUP], weight[GROUP];
  int same = 0, of = 0;
  fill_groups(v, weight);
  for (int bits = 1; bits <= 8; bits++)
    for (int kind = 0; kind < 4; kind++) {
      uint16_t range_scale[GROUPS];
      uint8_t range_zero[GROUPS];
      grid_rule r = {.bits = bits, .beta = 1, .search = SEARCH_REFIT, .symmetric = kind & 1},
                plain = {.bits = bits, .beta = 1, .symmetric = kind & 1};
      const float *h = kind & 2 ? weight : NULL;
      assert_done(grid_fit(&r, GROUPS, GROUP, v, GROUP, h, grid, NULL));
      assert_done(grid_fit(&plain, GROUPS, GROUP, v, GROUP, h, (code_grid){.scales = range_scale, .zeros = range_zero}, NULL));
      for (int g = 0; g < GROUPS; g++) {
        const float *one = v + g * GROUP;
        double lo = 0, hi = 0, s = 0, z = 0, least, range;
        for (int j = 0; j < GROUP; j++) lo = fmin(lo, one[j]), hi = fmax(hi, one[j]);
        if (lo == 0 && hi == 0) lo = -1, hi = 1;
        least = brute_refit(&r, bits, one, h, lo, hi, &s, &z);
        range = group_error(&r, bits, one, h, 2, half_to_float(range_scale[g]), range_zero[g]);
        if (!(least < range)) least = range, s = half_to_float(range_scale[g]), z = range_zero[g];
        for (int k = 0; k < 3; k++) {
          double num = 0, den = 0;
          for (int j = 0; j < GROUP; j++) {
            double c = grid_code(one[j], s, z, bits) - z;
            num += (h ? h[j] : 1) * c * one[j];
            den += (h ? h[j] : 1) * c * c;
          }
          double next = stored(num / den), error = group_error(&r, bits, one, h, 2, next, z);
          if (!(next > 0 && error < least)) break;
          least = error;
          s = next;
        }
        same += s == half_to_float(scales[g]) && z == zeros[g];
        of++;
        uint16_t scale;
        uint8_t zero;
        assert_done(grid_fit(&r, 1, GROUP, one, GROUP, h, (code_grid){.scales = &scale, .zeros = &zero}, NULL));
        assert_int_equal(scale, scales[g]);
        assert_int_equal(zero, zeros[g]);
      }
    }
  if (same < 0.95 * of) fail_msg("expected the plain search's grid, found it in %d of %d groups", same, of);
}

/* A weight that is not finite leaves the range, and what the others of the row find is their own affair. */
static void test_search_of_the_unfit(void **state) {
  (void)state;
  for (int search = SEARCH_MSE; search <= SEARCH_REFIT; search++) {
    grid_rule r = {.bits = 2, .group = 8, .beta = 1, .search = (grid_search)search}, plain = {.bits = 2, .group = 8, .beta = 1};
    float v[24];
    uint16_t s[3];
    uint8_t z[3];
    for (int j = 0; j < 24; j++) v[j] = (float)(j % 8 == 7 ? 1 : 0.1 * (j % 8));
    v[3] = NAN;
    v[12] = INFINITY;
    assert_done(grid_fit(&r, 1, 24, v, 24, NULL, grid, NULL));
    assert_done(grid_fit(&plain, 1, 24, v, 24, NULL, (code_grid){.scales = s, .zeros = z}, NULL));
    assert_memory_equal(s, scales, 2 * sizeof *s);
    assert_memory_equal(z, zeros, 2);
    assert_true(s[2] != scales[2]);
  }
}

/* The starts of L4Q by their formulas in signed codes. */
static void test_starts(void **state) {
  (void)state;
  static float v[GROUPS * GROUP], weight[GROUP];
  static uint16_t real[GROUPS];
  fill_groups(v, weight);
  for (int search = SEARCH_LSQ; search <= SEARCH_L4Q; search++)
    for (int bits = 1; bits <= 8; bits++)
      for (int real_zero = 0; real_zero < 2; real_zero++) {
        grid_rule r = {.bits = bits, .beta = 1, .search = (grid_search)search, .real_zero = real_zero};
        code_grid g = {.scales = scales, .zeros = zeros, .real_zeros = real};
        assert_done(grid_fit(&r, GROUPS, GROUP, v, GROUP, NULL, g, NULL));
        for (int k = 0; k < GROUPS; k++) {
          double least = INFINITY, most = -INFINITY, mean = 0, square = 0, half = 1 << (bits - 1), s, o = 0;
          for (int j = 0; j < GROUP; j++) {
            double x = v[k * GROUP + j];
            least = fmin(least, x);
            most = fmax(most, x);
            mean += x / GROUP;
            square += x * x / GROUP;
          }
          if (k == 8 || k >= 10) continue; /* zeros and the ends of fp16 */
          double sd = sqrt(fmax(0, square - mean * mean));
          if (search == SEARCH_ASYMM && !real_zero) least = fmin(least, 0), most = fmax(most, 0);
          if (search == SEARCH_LSQ)
            s = fmax(fabs(mean - 3 * sd), fabs(mean + 3 * sd)) / half;
          else if (search == SEARCH_SYMM)
            s = fmax(-least, most) / half;
          else if (search == SEARCH_ASYMM)
            s = (most - least) / (2 * half - 1);
          else
            s = fmax(fabs(least / -half), bits > 1 ? fabs(most / (half - 1)) : 0);
          if (k == 9 && search == SEARCH_ASYMM && real_zero) s = 0x1p-14; /* all the same */
          s = stored(s);
          if (k != 9 || search != SEARCH_LSQ) assert_true(s == half_to_float(scales[k]));
          if (search == SEARCH_ASYMM) o = most - s * (half - 1);
          double z = half - o / s;
          assert_true(fabs(grid_zero(&r, g, k) - (real_zero ? z : rint(z))) <= fabs(z) * 0x1p-11);
          for (int j = 0; j < GROUP && search == SEARCH_L4Q && bits > 1; j++) { /* clips nothing */
            double x = rint(v[k * GROUP + j] / s);
            assert_true(x >= -half && x <= half - 1);
          }
        }
      }
  float same[4] = {0};
  for (int search = SEARCH_LSQ; search <= SEARCH_L4Q; search++) {
    grid_rule r = {.bits = 3, .beta = 1, .search = (grid_search)search};
    assert_done(grid_fit(&r, 1, 4, same, 4, NULL, grid, NULL));
    assert_true(half_to_float(scales[0]) > 0.2 && half_to_float(scales[0]) < 0.4); /* the range -1 .. 1 */
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_fit),
                                     cmocka_unit_test(test_bound),
                                     cmocka_unit_test(test_beta_anchor),
                                     cmocka_unit_test(test_unstorable_scales),
                                     cmocka_unit_test(test_ties_and_nan),
                                     cmocka_unit_test(test_many_groups),
                                     cmocka_unit_test(test_real_zero),
                                     cmocka_unit_test(test_widths),
                                     cmocka_unit_test(test_search),
                                     cmocka_unit_test(test_refit),
                                     cmocka_unit_test(test_search_of_the_unfit),
                                     cmocka_unit_test(test_starts)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
