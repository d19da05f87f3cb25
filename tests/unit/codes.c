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
      codes_values(&r, ROWS, width, words, scales, zeros, q);
      codes_bytes_values(&r, ROWS, width, codes, scales, zeros, same);
      for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < width; j++) {
          int g = i * groups + j / n;
          double expected = (double)half_to_float(scales[g]) * (codes[i * width + j] - zeros[g]);
          assert_true((double)q[i * width + j] == expected);
          assert_true((double)same[i * width + j] == expected);
        }
    }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_round_trip), cmocka_unit_test(test_gptq_words), cmocka_unit_test(test_values)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
