/* Normal floats of 2, 3 and 4 bits against their definition: levels, ties, blocks of zeros, nearest codes by brute force, what a loader
 * computes, double quantization. */
#include "check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "layers.h"
#include "quant/codes.h"
#include "quant/nf.h"

enum { ROWS = 7, WIDTH = 512, STRIDE = 520 };

static float w[ROWS * STRIDE], absmax[ROWS * WIDTH], q[ROWS * WIDTH];
static uint8_t codes[ROWS * WIDTH];
static uint32_t words[ROWS * WIDTH / 8];

static uint32_t bits_of(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}

static void fill(uint64_t seed) {
  dice d = {seed};
  for (int i = 0; i < ROWS * STRIDE; i++) w[i] = (float)(0.05 * dice_normal(&d));
  for (int i = 0; i < 64; i++) w[i] = 0;              /* two blocks of 32, or one of 64, without anything */
  for (int i = 0; i < 64; i++) w[STRIDE + i] *= 1e3f; /* large ones */
  w[2 * STRIDE + 5] = -3;                             /* an outlier */
}

/* The normal quantile of p, by bisection. */
static double quantile(double p) {
  double low = -9, high = 9;
  for (int k = 0; k < 200; k++) {
    double x = (low + high) / 2;
    if (erfc(-x / sqrt(2)) / 2 < p)
      low = x;
    else
      high = x;
  }
  return low;
}

/* The libraries' bits of NF4, and all tables by the construction: `count` quantiles from offset down to, and without, 1/2 on each side. */
static void test_levels(void **state) {
  (void)state;
  const uint32_t bits[16] = {0xbf800000, 0xbf3239b1, 0xbf066b30, 0xbeca32a0, 0xbe91a24d, 0xbe3d353f, 0xbdba7871, 0x00000000,
                             0x3da2faff, 0x3e24cae3, 0x3e7c04dd, 0x3ead033a, 0x3ee1a4b8, 0x3f1007ab, 0x3f3913b3, 0x3f800000};
  for (int k = 0; k < 16; k++) assert_int_equal(bits_of(nf_levels(4)[k]), bits[k]);
  for (int b = NF_BITS_LEAST; b <= NF_BITS_MOST; b++) {
    const double offset = 0.9677083, most = quantile(offset);
    int zero = (1 << (b - 1)) - 1, above = zero + 1;
    const float *level = nf_levels(b);
    assert_true(level[zero] == 0);
    for (int k = 0; k < above; k++)
      assert_true(fabs(level[zero + above - k] - quantile(offset + (0.5 - offset) * k / above) / most) < 4e-7);
    for (int k = 0; k < zero; k++) assert_true(fabs(level[k] + quantile(offset + (0.5 - offset) * k / zero) / most) < 4e-7);
  }
}

/* Every midpoint, its neighbours above and below, in a block whose absmax is a power of two so that nothing is rounded on the way. */
static void test_ties(void **state) {
  (void)state;
  const float scales[] = {1, 0.25f, 0x1p-20f, 0x1p30f};
  for (int t = 0; t < 12; t++) {
    int b = NF_BITS_LEAST + t / 4, top = (1 << b) - 1;
    float scale = scales[t % 4], block[64] = {scale}, a;
    for (int k = 0; k < top; k++) {
      float middle = (nf_levels(b)[k] + nf_levels(b)[k + 1]) / 2;
      block[3 * k + 1] = scale * middle;
      block[3 * k + 2] = scale * nextafterf(middle, -2);
      block[3 * k + 3] = scale * nextafterf(middle, 2);
    }
    assert_done(nf_absmax(64, 1, 64, block, 64, &a));
    assert_true(a == scale);
    nf_round(b, 64, 1, 64, block, 64, &a, codes);
    assert_int_equal(codes[0], top);
    for (int k = 0; k < top; k++) {
      assert_int_equal(codes[3 * k + 1], k); /* a tie takes the lower code */
      assert_int_equal(codes[3 * k + 2], k);
      assert_int_equal(codes[3 * k + 3], k + 1);
    }
    for (int k = 3 * top + 1; k < 64; k++) assert_int_equal(codes[k], top / 2);
  }
}

static void test_small_blocks(void **state) {
  (void)state;
  for (int b = NF_BITS_LEAST; b <= NF_BITS_MOST; b++) {
    float block[32] = {0}, a = -1, back[32];
    assert_done(nf_absmax(32, 1, 32, block, 32, &a));
    nf_round(b, 32, 1, 32, block, 32, &a, codes);
    assert_true(a == 0);
    for (int k = 0; k < 32; k++) assert_int_equal(codes[k], (1 << (b - 1)) - 1);
    codes_pack(b, 1, 32, codes, words);
    nf_values(b, 32, 1, 32, words, &a, REAL_BF16, back);
    for (int k = 0; k < 32; k++) assert_true(back[k] == 0);
    block[3] = 1e-41f; /* its reciprocal is infinite: nothing may become NaN, zeros stay zeros */
    assert_done(nf_absmax(32, 1, 32, block, 32, &a));
    nf_round(b, 32, 1, 32, block, 32, &a, codes);
    assert_int_equal(codes[0], (1 << (b - 1)) - 1);
  }
  const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
  for (int k = 0; k < 4; k++) {
    fill(3);
    w[4 * STRIDE + 130] = bad[k];
    assert_int_equal(nf_absmax(64, ROWS, WIDTH, w, STRIDE, absmax), E_NUMERICS);
    assert_non_null(strstr(status_message(), "nf: row 4, columns 128 to 191, expected finite weights, found NaN or infinity"));
    status_clear();
  }
}

static float loaded(float x, real_type t) {
  if (t == REAL_F16) return half_to_float(float_to_half(x));
  return t == REAL_BF16 ? bf16_to_float(float_to_bf16(x)) : x;
}

static void check_nearest(int bits, int group) {
  fill((uint64_t)group);
  int groups = WIDTH / group, count = 1 << bits;
  assert_done(nf_absmax(group, ROWS, WIDTH, w, STRIDE, absmax));
  nf_round(bits, group, ROWS, WIDTH, w, STRIDE, absmax, codes);
  codes_pack(bits, ROWS, WIDTH, codes, words);
  for (int t = REAL_F32; t <= REAL_BF16; t++) {
    nf_values(bits, group, ROWS, WIDTH, words, absmax, (real_type)t, q);
    for (int i = 0; i < ROWS * WIDTH; i++) {
      float a = absmax[i / WIDTH * groups + i % WIDTH / group], level = nf_levels(bits)[codes[i]] * a;
      assert_int_equal(bits_of(q[i]), bits_of(loaded(level, (real_type)t)));
    }
  }
  for (int i = 0; i < ROWS * WIDTH; i++) {
    int row = i / WIDTH, at = i % WIDTH;
    float most = 0, a = absmax[row * groups + at / group], x = w[row * STRIDE + at];
    double best = INFINITY;
    for (int k = 0; k < group; k++) most = fmaxf(most, fabsf(w[row * STRIDE + at / group * group + k]));
    assert_true(a == most);
    for (int k = 0; k < count; k++) best = fmin(best, fabs((double)nf_levels(bits)[k] * a - x));
    assert_true(fabs((double)nf_levels(bits)[codes[i]] * a - x) <= best + 1e-7 * a); /* the library's float midpoints decide */
  }
}

static void test_nearest_and_round_trip(void **state) {
  (void)state;
  for (int bits = NF_BITS_LEAST; bits <= NF_BITS_MOST; bits++)
    for (int group = NF_GROUP_LEAST; group <= WIDTH; group *= 2) check_nearest(bits, group);
}

/* ---- double quantization ---- */

static int by_value(const void *a, const void *b) {
  return (*(const float *)a > *(const float *)b) - (*(const float *)a < *(const float *)b);
}

static void test_map(void **state) {
  (void)state;
  float map[256], defined[256] = {0, 1};
  int count = 2;
  nf_map(map);
  for (int e = 0; e <= 6; e++)
    for (int k = 0; k < 1 << e; k++) {
      double middle = 0.1 + 0.9 * (k + 0.5) / (1 << e);
      defined[count] = (float)(pow(10, e - 6) * middle);
      defined[count + 1] = -defined[count];
      count += 2;
    }
  assert_int_equal(count, 256);
  qsort(defined, 256, sizeof *defined, by_value);
  for (int k = 0; k < 256; k++) {
    assert_true(fabsf(map[k] - defined[k]) <= 2e-7f * fabsf(defined[k]));
    assert_true(k == 0 || map[k] > map[k - 1]);
  }
  assert_true(map[127] == 0 && map[255] == 1);
  /* the library's own bits, where its float boundaries differ from the plain formula */
  assert_int_equal(bits_of(map[0]), 3212718899u);
  assert_int_equal(bits_of(map[224]), 1058157364);
  assert_int_equal(bits_of(map[229]), 1059337012);
  assert_int_equal(bits_of(map[254 - 236]), 0x80000000u + 1060988518);
}

static void check_nest(int64_t count, float *a) {
  static float before[3000], again[3000], nested[12], map[256];
  static uint8_t bytes[3000];
  float offset;
  double sum = 0, reach = 0;
  memcpy(before, a, (size_t)count * sizeof *a);
  nf_map(map);
  nf_nest(count, a, bytes, nested, &offset);
  for (int64_t i = 0; i < count; i++) sum += before[i];
  assert_true(fabs(offset - sum / (double)count) <= 1e-6 * fabs(offset));
  for (int64_t i = 0; i < count; i++) {
    volatile float product = map[bytes[i]] * nested[i / NF_NEST]; /* rounded on its own */
    double best = INFINITY;
    assert_true(a[i] == product + offset);
    for (int k = 0; k < 256; k++) best = fmin(best, fabs((double)map[k] * nested[i / NF_NEST] + offset - before[i]));
    reach = fmax(fabs(before[i] - (double)offset), nested[i / NF_NEST]);
    assert_true(fabs((double)map[bytes[i]] * nested[i / NF_NEST] + offset - before[i]) <= best + 1e-6 * reach);
  }
  for (int64_t b = 0; b < nf_nests(count); b++) {
    float most = 0;
    for (int64_t i = b * NF_NEST; i < count && i < (b + 1) * NF_NEST; i++) most = fmaxf(most, fabsf(before[i] - offset));
    assert_true(nested[b] == most);
  }
  nf_unnest(count, bytes, nested, offset, again);
  assert_memory_equal(again, a, (size_t)count * sizeof *a);
}

static void test_nest(void **state) {
  (void)state;
  static float a[3000];
  const int counts[] = {1, 2, 255, 256, 257, 3000};
  for (int c = 0; c < 6; c++) {
    dice d = {(uint64_t)c};
    for (int i = 0; i < counts[c]; i++) a[i] = (float)(0.1 + 0.03 * fabs(dice_normal(&d)));
    a[0] = 0;
    check_nest(counts[c], a);
  }
  for (int i = 0; i < 3000; i++) a[i] = 0.375f; /* all equal: exact */
  check_nest(3000, a);
  for (int i = 0; i < 3000; i++) assert_true(a[i] == 0.375f);
}

/* Codes are the nearest for the absmax that will be loaded, also where that is a little below 0. */
static void test_codes_of_nested(void **state) {
  (void)state;
  fill(9);
  float a[ROWS * WIDTH / 32], nested[1], offset;
  uint8_t bytes[ROWS * WIDTH / 32];
  assert_done(nf_absmax(32, ROWS, WIDTH, w, STRIDE, a));
  nf_nest(ROWS * WIDTH / 32, a, bytes, nested, &offset);
  a[7] = -1e-3f;
  for (int b = NF_BITS_LEAST; b <= NF_BITS_MOST; b++) {
    nf_round(b, 32, ROWS, WIDTH, w, STRIDE, a, codes);
    for (int i = 0; i < ROWS * WIDTH; i++) {
      double level = a[i / 32], x = w[i / WIDTH * STRIDE + i % WIDTH], best = INFINITY;
      for (int k = 0; k < 1 << b; k++) best = fmin(best, fabs(nf_levels(b)[k] * level - x));
      assert_true(fabs(nf_levels(b)[codes[i]] * level - x) <= best + 1e-6 * (fabs(level) + fabs(x)));
    }
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_levels),
                                     cmocka_unit_test(test_ties),
                                     cmocka_unit_test(test_small_blocks),
                                     cmocka_unit_test(test_nearest_and_round_trip),
                                     cmocka_unit_test(test_map),
                                     cmocka_unit_test(test_nest),
                                     cmocka_unit_test(test_codes_of_nested)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
