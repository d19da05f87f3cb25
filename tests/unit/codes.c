/* Packing against a packer that sets one bit at a time, the words that GPTQ files are known to hold, and exact values. */
#include <stdlib.h>
#include <string.h>

#include "check.h"

#include "base/half.h"
#include "layers.h"
#include "quant/codes.h"

enum { ROWS = 3, MOST = 4200 };

static uint8_t codes[ROWS * MOST], back[ROWS * MOST + 8];
static uint32_t words[ROWS * MOST + 1], plain[ROWS * MOST + 1];

static void roll(uint64_t seed, int bits, int64_t n) {
  dice d = {seed};
  for (int64_t i = 0; i < n; i++) codes[i] = (uint8_t)(dice_bits(&d) & ((1u << bits) - 1));
}

static void pack_plainly(int bits, int64_t width) {
  int64_t n = codes_words(width, bits);
  memset(plain, 0, sizeof plain);
  for (int r = 0; r < ROWS; r++)
    for (int64_t k = 0; k < width; k++)
      for (int b = 0; b < bits; b++) {
        int64_t bit = k * bits + b;
        if (codes[r * width + k] >> b & 1) plain[r * n + bit / 32] |= UINT32_C(1) << bit % 32;
      }
}

static void test_round_trip(void **state) {
  (void)state;
  static const int widths[] = {1,  2,  3,  5,  7,  8,  9,  10,  11,  13,  15,   16,   17,  21,
                               22, 31, 32, 33, 63, 64, 65, 127, 129, 576, 1023, 4096, 4101};
  for (int bits = 1; bits <= 8; bits++)
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
      int64_t width = widths[i], n = codes_words(width, bits);
      assert_int_equal(n, (width * bits + 31) / 32);
      roll((uint64_t)(bits * 10000 + width), bits, ROWS * width);
      pack_plainly(bits, width);
      memset(words, 0xA5, sizeof words); /* old contents must not show, nothing beyond the end may change */
      codes_pack(bits, ROWS, width, codes, words);
      assert_memory_equal(words, plain, (size_t)(ROWS * n) * 4);
      assert_int_equal(words[ROWS * n], 0xA5A5A5A5);
      memset(back, 0x5A, sizeof back);
      codes_unpack(bits, ROWS, width, words, back);
      assert_memory_equal(back, codes, (size_t)(ROWS * width));
      assert_int_equal(back[ROWS * width], 0x5A);
    }
}

/* Zero points of symmetric GPTQ files: the fields all hold z - 1 (v1) or z (v2). */
static void test_gptq_words(void **state) {
  (void)state;
  static const struct {
    int bits, code;
    uint32_t words[3];
  } known[] = {{2, 1, {0x55555555, 0x55555555, 0x55555555}},   {2, 2, {0xAAAAAAAA, 0xAAAAAAAA, 0xAAAAAAAA}},
               {4, 7, {0x77777777, 0x77777777, 0x77777777}},   {4, 8, {0x88888888, 0x88888888, 0x88888888}},
               {8, 127, {0x7F7F7F7F, 0x7F7F7F7F, 0x7F7F7F7F}}, {8, 128, {0x80808080, 0x80808080, 0x80808080}},
               {3, 3, {0xDB6DB6DB, 0xB6DB6DB6, 0x6DB6DB6D}},   {3, 4, {0x24924924, 0x49249249, 0x92492492}}};
  for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
    memset(codes, known[i].code, sizeof codes);
    codes_pack(known[i].bits, 1, 96 / known[i].bits, codes, words);
    assert_memory_equal(words, known[i].words, 12);
  }
}

/* Exactly scale (code - zero), in double, for groups that no word and no buffer divides. */
static void test_values(void **state) {
  (void)state;
  static float q[ROWS * MOST], same[ROWS * MOST];
  static uint16_t scales[ROWS * MOST];
  static uint8_t zeros[ROWS * MOST];
  const int widths[] = {4200, 4200, 4200, 4100, 35}, group[] = {0, 60, 1, 4100, 5};
  for (int bits = 1; bits <= 8; bits++)
    for (int k = 0; k < 5; k++) {
      int width = widths[k];
      grid_rule r = {.bits = bits, .group = group[k], .beta = 1};
      int groups = grid_groups(&r, width), n = width / groups;
      dice d = {(uint64_t)bits};
      roll((uint64_t)k, bits, ROWS * width);
      for (int i = 0; i < ROWS * groups; i++) {
        scales[i] = float_to_half((float)(0.01 + dice_uniform(&d)));
        zeros[i] = (uint8_t)(dice_bits(&d) & ((1u << bits) - 1));
      }
      codes_pack(bits, ROWS, width, codes, words);
      code_grid g = {.scales = scales, .zeros = zeros};
      codes_values(&r, ROWS, width, words, g, q);
      codes_bytes_values(&r, ROWS, width, codes, g, same);
      for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < width; j++) {
          int at = i * groups + j / n;
          double expected = (double)half_to_float(scales[at]) * (codes[i * width + j] - zeros[at]);
          assert_true((double)q[i * width + j] == expected);
          assert_true((double)same[i * width + j] == expected);
        }
    }
}

/* The product is exact in double, even for a tiny zero, and rounded once. */
static void test_real_values(void **state) {
  (void)state;
  enum { WIDTH = 60, GROUP = 5, GROUPS = ROWS * WIDTH / GROUP };
  static float q[ROWS * WIDTH], same[ROWS * WIDTH];
  static uint16_t scales[GROUPS], zeros[GROUPS];
  grid_rule r = {.bits = 8, .group = GROUP, .beta = 1, .real_zero = true};
  code_grid g = {.scales = scales, .real_zeros = zeros};
  dice d = {3};
  roll(4, 8, ROWS * WIDTH);
  for (int i = 0; i < GROUPS; i++) {
    scales[i] = float_to_half((float)(0.01 + dice_uniform(&d)));
    zeros[i] = float_to_half((float)(300 * dice_uniform(&d) - 20));
  }
  zeros[0] = 1; /* the least subnormal */
  codes_pack(8, ROWS, WIDTH, codes, words);
  codes_values(&r, ROWS, WIDTH, words, g, q);
  codes_bytes_values(&r, ROWS, WIDTH, codes, g, same);
  for (int i = 0; i < ROWS * WIDTH; i++) {
    long double exact =
        (long double)half_to_float(scales[i / GROUP]) * ((long double)codes[i] - (long double)half_to_float(zeros[i / GROUP]));
    assert_true(exact == (double)exact);
    assert_true(q[i] == (float)exact && same[i] == q[i]);
  }
}

/* Groups of several widths: one bit at a time again. The whole is as long as the average says. */
static void test_widths(void **state) {
  (void)state;
  static const struct {
    int width, group, bits;
    uint8_t widths[6];
  } cases[] = {{4200, 700, 4, {3, 5, 4, 1, 8, 3}}, {30, 5, 3, {4, 2, 3, 3, 1, 5}}, {6, 1, 2, {1, 3, 2, 2, 1, 3}}, {4200, 4200, 8, {8}}};
  static float q[ROWS * MOST], same[ROWS * MOST];
  for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
    int width = cases[c].width, group = cases[c].group;
    grid_rule r = {.bits = cases[c].bits, .group = group, .beta = 1, .widths = cases[c].widths};
    int64_t n = codes_words(width, r.bits);
    dice d = {c};
    memset(plain, 0, sizeof plain);
    for (int i = 0; i < ROWS; i++)
      for (int64_t k = 0, bit = 0; k < width; k++)
        for (int b = codes[i * width + k] = (uint8_t)(dice_bits(&d) & ((1u << r.widths[k / group]) - 1)), left = r.widths[k / group]; left;
             b >>= 1, left--, bit++)
          plain[i * n + bit / 32] |= (uint32_t)(b & 1) << bit % 32;
    memset(words, 0xA5, sizeof words);
    codes_pack_rule(&r, ROWS, width, codes, words);
    assert_memory_equal(words, plain, (size_t)(ROWS * n) * 4);
    assert_int_equal(words[ROWS * n], 0xA5A5A5A5);
    memset(back, 0x5A, sizeof back);
    codes_unpack_rule(&r, ROWS, width, words, back);
    assert_memory_equal(back, codes, (size_t)(ROWS * width));
    assert_int_equal(back[ROWS * width], 0x5A);
    uint16_t scales[ROWS * 6];
    uint8_t zeros[ROWS * 6];
    for (int i = 0; i < ROWS * 6; i++) {
      scales[i] = float_to_half((float)(0.01 + dice_uniform(&d)));
      zeros[i] = (uint8_t)(i % 2);
    }
    codes_values(&r, ROWS, width, words, (code_grid){.scales = scales, .zeros = zeros}, q);
    codes_bytes_values(&r, ROWS, width, codes, (code_grid){.scales = scales, .zeros = zeros}, same);
    assert_memory_equal(q, same, (size_t)(ROWS * width) * sizeof *q);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_round_trip), cmocka_unit_test(test_gptq_words), cmocka_unit_test(test_values),
                                     cmocka_unit_test(test_real_values), cmocka_unit_test(test_widths)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
