#include "quant/nf.h"

#include <math.h>
#include <string.h>

#include "base/hot.h"
#include "quant/codes.h"

/* Nine digits tell every float apart: these are the libraries' bits (tests/unit/nf.c). */
static const float nf2[4] = {-1, 0, 0.337915242f, 1};
static const float nf3[8] = {-1, -0.478629202f, -0.217141792f, 0, 0.160930201f, 0.337915242f, 0.562617004f, 1};
static const float nf4[16] = {-1,
                              -0.696192801f,
                              -0.525073051f,
                              -0.394917488f,
                              -0.284441382f,
                              -0.184773430f,
                              -0.0910500363f,
                              0,
                              0.0795802996f,
                              0.160930201f,
                              0.246112302f,
                              0.337915242f,
                              0.440709829f,
                              0.562617004f,
                              0.722956836f,
                              1};

const float *nf_levels(int bits) { return bits == 2 ? nf2 : bits == 3 ? nf3 : nf4; }

/* The largest |w| as bits, which order as magnitudes do; NaN is above all. */
static HOT uint32_t largest_magnitude(int n, const float *restrict w) {
  uint32_t most = 0;
  for (int i = 0; i < n; i++) {
    uint32_t u;
    memcpy(&u, w + i, sizeof u);
    u &= 0x7fffffff;
    most = u > most ? u : most;
  }
  return most;
}

status nf_absmax(int group, int rows, int width, const float *w, int64_t ldw, float *absmax) {
  for (int i = 0; i < rows; i++) {
    for (int k = 0; k < width; k += group, absmax++) {
      uint32_t most = largest_magnitude(group, w + i * ldw + k);
      if (most >= 0x7f800000)
        return fail(E_NUMERICS, "nf: row %d, columns %d to %d, expected finite weights, found NaN or infinity", i, k, k + group - 1);
      memcpy(absmax, &most, sizeof most);
    }
  }
  return OK;
}

static inline __attribute__((always_inline)) void count_below(int middles, int n, const float *restrict middle, const float *restrict w,
                                                              float reciprocal, uint8_t *restrict codes) {
  for (int i = 0; i < n; i++) {
    float x = w[i] * reciprocal;
    int code = 0;
    for (int k = 0; k < middles; k++) code += x > middle[k];
    codes[i] = (uint8_t)code;
  }
}

/* A constant count of midpoints each: the inner loop is unrolled. */
static HOT void round_block(int bits, int n, const float *restrict middle, const float *restrict w, float reciprocal,
                            uint8_t *restrict codes) {
  if (bits == 2)
    count_below(3, n, middle, w, reciprocal, codes);
  else if (bits == 3)
    count_below(7, n, middle, w, reciprocal, codes);
  else
    count_below(15, n, middle, w, reciprocal, codes);
}

/* The library's guard: a block of zeros must not divide by 0. A nested absmax can be a little below 0. */
static float reciprocal_of(float absmax) {
  float magnitude = fabsf(absmax) > 1e-38f ? fabsf(absmax) : 1e-38f;
  return absmax < 0 ? -1 / magnitude : 1 / magnitude;
}

void nf_round(int bits, int group, int rows, int width, const float *w, int64_t ldw, const float *absmax, uint8_t *codes) {
  const float *level = nf_levels(bits);
  float middle[15];
  for (int k = 0; k < (1 << bits) - 1; k++) middle[k] = (level[k] + level[k + 1]) / 2;
  for (int i = 0; i < rows; i++)
    for (int k = 0; k < width; k += group, codes += group)
      round_block(bits, group, middle, w + i * ldw + k, reciprocal_of(*absmax++), codes);
}

/* The values of a block, as loaded. */
static void block_levels(int bits, float absmax, real_type type, float level[16]) {
  const float *unit = nf_levels(bits);
  uint16_t stored[16];
  size_t count = (size_t)1 << bits;
  for (size_t k = 0; k < count; k++) level[k] = unit[k] * absmax;
  if (type == REAL_F32) return;
  float_to_real_array(type, stored, level, count);
  if (type == REAL_BF16)
    bf16_to_float_array(level, stored, count);
  else
    half_to_float_array(level, stored, count);
}

static HOT void look_up(int n, const float *restrict level, const uint8_t *restrict codes, float *restrict q) {
  for (int i = 0; i < n; i++) q[i] = level[codes[i]];
}

void nf_values(int bits, int group, int rows, int width, const uint32_t *words, const float *absmax, real_type type, float *q) {
  int64_t blocks = (int64_t)rows * (width / group), block_words = codes_words(group, bits); /* a group fills its words */
  uint8_t codes[NF_GROUP_MOST];
  float level[16];
  for (int64_t b = 0; b < blocks; b++) {
    block_levels(bits, absmax[b], type, level);
    codes_unpack(bits, 1, group, words + b * block_words, codes);
    look_up(group, level, codes, q + b * group);
  }
}

/* ---- double quantization ---- */

/* Cell k of 0 .. cells, evenly from 0.1 to 1, counted from the nearer end and rounded once, as the library's are. */
static float boundary(int k, int cells) {
  float step = (1 - 0.1f) / (float)cells;
  return (float)(k < (cells + 1) / 2 ? (double)0.1f + (double)step * k : 1 - (double)step * (cells - k));
}

void nf_map(float map[256]) {
  enum { ZERO = 127 };
  float *up = map + ZERO, *down = map + ZERO;
  *up = 0;
  for (int e = 0; e <= 6; e++)
    for (int k = 0; k < 1 << e; k++) {
      float middle = (boundary(k, 1 << e) + boundary(k + 1, 1 << e)) / 2;
      *++up = (float)pow(10, e - 6) * middle;
      *--down = -*up;
    }
  *++up = 1;
}

/* The nearest entry of the ascending map, a tie the lower one. */
static uint8_t nearest(const float map[256], double x) {
  int low = 0, high = 255; /* x lies between the entries low and high, or beyond an end */
  while (high - low > 1) {
    int half = (low + high) / 2;
    if (x < map[half])
      high = half;
    else
      low = half;
  }
  return (uint8_t)(x - map[low] <= map[high] - x ? low : high);
}

void nf_nest(int64_t count, float *absmax, uint8_t *codes, float *nested, float *offset) {
  float map[256];
  double sum = 0;
  nf_map(map);
  for (int64_t i = 0; i < count; i++) sum += absmax[i];
  *offset = count ? (float)(sum / (double)count) : 0;
  for (int64_t b = 0; b < nf_nests(count); b++) {
    int64_t end = (b + 1) * NF_NEST < count ? (b + 1) * NF_NEST : count;
    float most = 0;
    for (int64_t i = b * NF_NEST; i < end; i++) most = fmaxf(most, fabsf(absmax[i] - *offset));
    for (int64_t i = b * NF_NEST; i < end; i++) codes[i] = nearest(map, most > 0 ? ((double)absmax[i] - *offset) / most : 0);
    nested[b] = most;
  }
  nf_unnest(count, codes, nested, *offset, absmax);
}

void nf_unnest(int64_t count, const uint8_t *codes, const float *nested, float offset, float *absmax) {
  float map[256];
  nf_map(map);
  for (int64_t i = 0; i < count; i++) {
    float product = (float)((double)map[codes[i]] * (double)nested[i / NF_NEST]); /* the conversion keeps a fused multiply-add away */
    absmax[i] = product + offset;
  }
}
