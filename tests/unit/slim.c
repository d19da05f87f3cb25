/* SliM-LLM's choices against everything tried plainly: the score of every k is the trace, the widths keep their average and follow the
 * salience, a scale is the best of all its candidates. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

#include "base/half.h"
#include "lack.h"
#include "layers.h"
#include "quant/codes.h"
#include "quant/slim.h"

enum { ROWS = 300, WIDTH = 384, STRIDE = 390 };

static float w[ROWS * STRIDE], h[WIDTH * WIDTH], q[ROWS * WIDTH], weight[WIDTH];
static double gram[WIDTH * WIDTH], d[WIDTH], e[ROWS * WIDTH];
static uint8_t dead[WIDTH], widths[WIDTH], codes[ROWS * WIDTH], zeros[ROWS * WIDTH];
static uint16_t scales[ROWS * WIDTH], real_zeros[ROWS * WIDTH];
static const code_grid grid = {.scales = scales, .zeros = zeros, .real_zeros = real_zeros};

static void fill(bool with_dead, uint64_t seed) {
  static float dense[ROWS * WIDTH];
  dice x = {seed};
  layer_weights(seed, ROWS, WIDTH, dense);
  for (int j = 0; j < WIDTH; j++) dead[j] = with_dead && (j % 17 == 3 || j == WIDTH - 1);
  assert_done(layer_gram(seed, 700, WIDTH, dead, gram));
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < STRIDE; j++) w[i * STRIDE + j] = j < WIDTH ? dense[i * WIDTH + j] * (float)(1 + j / 16 % 4) : 1e9f;
  for (int k = 0; k < WIDTH * WIDTH; k++) gram[k] = h[k] = (float)gram[k];
  for (int j = 0; j < WIDTH; j++) {
    d[j] = (1 + 0.1 * dice_uniform(&x)) / (dead[j] ? 1e6 : gram[j * (WIDTH + 1)] + 1); /* dead ones seem to matter most */
    weight[j] = h[j * WIDTH + j];
  }
}

static slim_request request(int rows, grid_rule r) {
  return (slim_request){.rule = r, .rows = rows, .width = WIDTH, .w = w, .ldw = STRIDE, .weight = NULL, .h = h, .d = d, .dead = dead};
}

/* tr(E H E^T) of rounding to nearest with these widths. */
static double trace(const slim_request *s, const uint8_t *bits) {
  grid_rule r = s->rule;
  r.mixed = true;
  r.widths = bits;
  assert_done(grid_fit(&r, s->rows, WIDTH, w, STRIDE, NULL, grid, NULL));
  grid_round(&r, s->rows, WIDTH, w, STRIDE, grid, codes);
  codes_bytes_values(&r, s->rows, WIDTH, codes, grid, q);
  for (int i = 0; i < s->rows * WIDTH; i++) e[i] = (double)w[i / WIDTH * STRIDE + i % WIDTH] - (double)q[i];
  return layer_loss(s->rows, WIDTH, e, gram);
}

/* Every k plainly: groups in descending order of salience, the first k with one bit more, the last k with one less. */
static void check_choice(int rows, grid_rule rule, bool with_dead, bool somewhere) {
  fill(with_dead, (uint64_t)(rows + rule.group));
  slim_request s = request(rows, rule);
  int groups = grid_groups(&rule, WIDTH), size = WIDTH / groups, count = slim_scores(&rule, WIDTH), order[WIDTH], best = 0, sum = 0;
  double scores[WIDTH], salience[WIDTH], least = 0, base = 0;
  uint8_t tried[WIDTH];
  assert_done(slim_choose(&s, widths, scores));
  assert_true(count == 1 || count == groups / 2);
  for (int g = 0; g < groups; g++) {
    double x = 0;
    for (int i = 0; i < rows; i++)
      for (int j = g * size; j < (g + 1) * size; j++)
        if (!dead[j]) x += pow((double)w[i * STRIDE + j] / d[j], 2);
    int at = g;
    for (; at > 0 && salience[at - 1] < x; at--) salience[at] = salience[at - 1], order[at] = order[at - 1];
    salience[at] = x;
    order[at] = g;
  }
  for (int k = 0; k < count; k++) {
    for (int g = 0; g < groups; g++) tried[order[g]] = (uint8_t)(rule.bits + (g < k) - (g >= groups - k));
    double t = trace(&s, tried);
    if (k == 0) base = t;
    assert_true(fabs(scores[k] - (t - base)) <= 1e-11 * base);
    if (scores[k] < least) least = scores[k], best = k;
  }
  assert_true((best > 0) == somewhere);
  for (int g = 0; g < groups; g++) {
    sum += widths[g];
    assert_int_equal(widths[order[g]], rule.bits + (g < best) - (g >= groups - best));
  }
  assert_int_equal(sum, groups * rule.bits);
}

static void test_choice(void **state) {
  (void)state;
  check_choice(ROWS, (grid_rule){.bits = 3, .group = 16, .beta = 1}, false, true);
  check_choice(70, (grid_rule){.bits = 4, .group = 32, .beta = 1, .symmetric = true}, true, true);
  check_choice(40, (grid_rule){.bits = 3, .group = 24, .beta = 1, .real_zero = true}, true, true);
  check_choice(64, (grid_rule){.bits = 2, .group = 64, .beta = 1}, false, true);
  check_choice(33, (grid_rule){.bits = 7, .group = 48, .beta = 1}, false, true);
  check_choice(5, (grid_rule){.bits = 3, .group = 128, .beta = 1}, false, false); /* three groups, or one: nothing to choose */
  check_choice(5, (grid_rule){.bits = 3, .group = 0, .beta = 1}, false, false);
}

static double plain_error(const grid_rule *r, int row, int group, int size, double scale) {
  int64_t at = (int64_t)row * (WIDTH / size) + group;
  double sum = 0, zero = grid_zero(r, grid, at);
  for (int j = group * size; j < (group + 1) * size; j++) {
    double x = w[row * STRIDE + j];
    int bits = group_bits(r, group), code = r->real_zero ? grid_code_real(x, scale, zero, bits) : grid_code(x, scale, zero, bits);
    sum += (double)weight[j] * pow(scale * (code - zero) - x, 2);
  }
  return sum;
}

static void check_scale(grid_rule r) {
  static uint16_t before[ROWS * WIDTH];
  const int rows = 40;
  int groups = grid_groups(&r, WIDTH), size = WIDTH / groups, moved = 0;
  fill(false, 21);
  for (int g = 0; g < groups; g++) widths[g] = (uint8_t)(r.bits + (g % 3 == 0) - (g % 3 == 1));
  if (r.mixed) r.widths = widths;
  assert_done(grid_fit(&r, rows, WIDTH, w, STRIDE, NULL, grid, NULL));
  scales[0] = 0x7B80; /* a tenth more would be infinite */
  memcpy(before, scales, sizeof before);
  slim_scale(&r, rows, WIDTH, w, STRIDE, weight, grid);
  for (int i = 0; i < rows; i++)
    for (int g = 0; g < groups; g++) {
      int64_t at = (int64_t)i * groups + g;
      double start = half_to_float(before[at]), least = plain_error(&r, i, g, size, start),
             chosen = plain_error(&r, i, g, size, half_to_float(scales[at]));
      bool candidate = false;
      assert_true(chosen <= least * (1 + 1e-12));
      for (int k = -50; k <= 50; k++) {
        uint16_t s = float_to_half((float)(start * (1 + 0.1 * k / 50)));
        if (s < 0x7C00) least = fmin(least, plain_error(&r, i, g, size, half_to_float(s)));
        candidate |= s == scales[at];
      }
      assert_true(candidate && chosen <= least * (1 + 1e-12));
      moved += scales[at] != before[at];
    }
  assert_true(moved > rows * groups / 2);
}

static void test_scale(void **state) {
  (void)state;
  check_scale((grid_rule){.bits = 3, .group = 48, .beta = 1});
  check_scale((grid_rule){.bits = 3, .group = 24, .beta = 1, .mixed = true});
  check_scale((grid_rule){.bits = 2, .group = 0, .beta = 1, .symmetric = true});
  check_scale((grid_rule){.bits = 4, .group = 16, .beta = 1, .real_zero = true, .mixed = true});
}

static void test_refusals(void **state) {
  (void)state;
  fill(true, 3);
  slim_request s = request(50, (grid_rule){.bits = 3, .group = 32, .beta = 1});
  w[40 * STRIDE + 100] = NAN;
  assert_int_equal(slim_choose(&s, widths, NULL), E_NUMERICS);
  assert_non_null(
      strstr(status_message(), "slim: columns 96 to 127, expected finite weights and a positive diagonal, found a salience of"));
  status_clear();
  w[40 * STRIDE + 100] = 0;
  for (int j = 0; j < WIDTH; j++) h[7 * WIDTH + j] = NAN;
  assert_int_equal(slim_choose(&s, widths, NULL), E_NUMERICS);
  assert_non_null(strstr(status_message(), "slim: expected finite weights and Gram"));
  status_clear();
  for (int j = 0; j < WIDTH; j++) h[7 * WIDTH + j] = (float)gram[7 * WIDTH + j];
  ASSERT_SURVIVES_LACK_OF_MEMORY(8, st = slim_choose(&s, widths, NULL));
}

int main(void) {
  blas_setup();
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_choice), cmocka_unit_test(test_scale), cmocka_unit_test(test_refusals)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
