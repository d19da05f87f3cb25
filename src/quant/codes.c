#include "quant/codes.h"

#include <string.h>

#include "base/half.h"
#include "base/hot.h"

/* Eight codes fill exactly `bits` bytes of the stream, so eight bytes of codes are folded to `bits` bytes in three steps that halve the
 * number of lanes; the same code serves every width of code. Bytes of a word in memory are taken in the stream's order: */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the stream is little-endian");

#define LANES16 0x00FF00FF00FF00FFu
#define LANES32 0x0000FFFF0000FFFFu
#define LANES64 0x00000000FFFFFFFFu

static inline uint64_t fold(uint64_t x, int bits) {
  x = (x & LANES16) | ((x >> 8 & LANES16) << bits);
  x = (x & LANES32) | ((x >> 16 & LANES32) << 2 * bits);
  return (x & LANES64) | ((x >> 32) << 4 * bits);
}

static inline uint64_t unfold(uint64_t x, int bits) {
  uint64_t four = (UINT64_C(1) << 4 * bits) - 1, two = ((UINT64_C(1) << 2 * bits) - 1) * 0x0000000100000001u,
           one = ((UINT64_C(1) << bits) - 1) * 0x0001000100010001u;
  x = (x & four) | (x >> 4 * bits & four) << 32;
  x = (x & two) | (x >> 2 * bits & two) << 16;
  return (x & one) | (x >> bits & one) << 8;
}

static void pack_row(int bits, int64_t width, const uint8_t *codes, uint8_t *stream, int64_t bytes) {
  memset(stream + bytes - 4, 0, 4);
  for (int64_t k = 0; k < width; k += 8, stream += bits, bytes -= bits) {
    uint64_t x = 0;
    if (width - k >= 8)
      memcpy(&x, codes + k, 8);
    else
      memcpy(&x, codes + k, (size_t)(width - k));
    x = fold(x, bits);
    if (bytes >= 8)
      memcpy(stream, &x, 8); /* the next eight codes overwrite the zeros beyond `bits` bytes */
    else
      memcpy(stream, &x, (size_t)(bytes < bits ? bytes : bits));
  }
}

static void unpack_row(int bits, int64_t width, const uint8_t *stream, int64_t bytes, uint8_t *codes) {
  for (int64_t k = 0; k < width; k += 8, stream += bits, bytes -= bits) {
    uint64_t x = 0;
    if (bytes >= 8)
      memcpy(&x, stream, 8);
    else
      memcpy(&x, stream, (size_t)bytes);
    x = unfold(x, bits);
    if (width - k >= 8)
      memcpy(codes + k, &x, 8);
    else
      memcpy(codes + k, &x, (size_t)(width - k));
  }
}

void codes_pack(int bits, int rows, int64_t width, const uint8_t *codes, uint32_t *words) {
  int64_t n = codes_words(width, bits);
  for (int i = 0; i < rows; i++) pack_row(bits, width, codes + i * width, (uint8_t *)(words + i * n), 4 * n);
}

void codes_unpack(int bits, int rows, int64_t width, const uint32_t *words, uint8_t *codes) {
  int64_t n = codes_words(width, bits);
  for (int i = 0; i < rows; i++) unpack_row(bits, width, (const uint8_t *)(words + i * n), 4 * n, codes + i * width);
}

/* ---- groups of several widths ---- */

/* `bit` runs through the stream; a code may lie across two words. */
static void pack_group(int bits, int columns, const uint8_t *codes, uint32_t *words, int64_t *bit) {
  for (int k = 0; k < columns; k++, *bit += bits) {
    uint32_t *word = words + *bit / 32;
    int shift = (int)(*bit % 32);
    word[0] |= (uint32_t)codes[k] << shift;
    if (shift + bits > 32) word[1] |= (uint32_t)codes[k] >> (32 - shift);
  }
}

static void unpack_group(int bits, int columns, const uint32_t *words, int64_t *bit, uint8_t *codes) {
  for (int k = 0; k < columns; k++, *bit += bits) {
    const uint32_t *word = words + *bit / 32;
    int shift = (int)(*bit % 32);
    uint64_t two = word[0] | (shift + bits > 32 ? (uint64_t)word[1] << 32 : 0);
    codes[k] = (uint8_t)(two >> shift & ((1u << bits) - 1));
  }
}

void codes_pack_rule(const grid_rule *r, int rows, int width, const uint8_t *codes, uint32_t *words) {
  if (!r->widths) {
    codes_pack(r->bits, rows, width, codes, words);
    return;
  }
  int groups = grid_groups(r, width), columns = width / groups;
  int64_t n = codes_words(width, r->bits);
  memset(words, 0, (size_t)(rows * n) * sizeof *words);
  for (int i = 0; i < rows; i++, words += n) {
    int64_t bit = 0;
    for (int k = 0; k < groups; k++, codes += columns) pack_group(r->widths[k], columns, codes, words, &bit);
  }
}

void codes_unpack_rule(const grid_rule *r, int rows, int width, const uint32_t *words, uint8_t *codes) {
  if (!r->widths) {
    codes_unpack(r->bits, rows, width, words, codes);
    return;
  }
  int groups = grid_groups(r, width), columns = width / groups;
  for (int i = 0; i < rows; i++, words += codes_words(width, r->bits)) {
    int64_t bit = 0;
    for (int k = 0; k < groups; k++, codes += columns) unpack_group(r->widths[k], columns, words, &bit, codes);
  }
}

/* ---- values ---- */

static HOT void values(int n, const uint8_t *restrict codes, float scale, int zero, float *restrict q) {
  for (int i = 0; i < n; i++) q[i] = scale * (float)(codes[i] - zero);
}

static HOT void values_real(int n, const uint8_t *restrict codes, double scale, double zero, float *restrict q) {
  for (int i = 0; i < n; i++) q[i] = (float)(scale * (codes[i] - zero));
}

/* n codes of the group whose entry is `at`. */
static void group_values(const grid_rule *r, int n, const uint8_t *codes, code_grid g, int64_t at, float *q) {
  if (r->real_zero)
    values_real(n, codes, half_to_float(g.scales[at]), half_to_float(g.real_zeros[at]), q);
  else
    values(n, codes, half_to_float(g.scales[at]), g.zeros[at], q);
}

void codes_bytes_values(const grid_rule *r, int rows, int width, const uint8_t *codes, code_grid g, float *q) {
  int groups = grid_groups(r, width), columns = width / groups;
  for (int64_t k = 0; k < (int64_t)rows * groups; k++) group_values(r, columns, codes + k * columns, g, k, q + k * columns);
}

void codes_values(const grid_rule *r, int rows, int width, const uint32_t *words, code_grid g, float *q) {
  enum { AT_ONCE = 4096 }; /* codes unpacked to the stack at a time: a whole number of words for every bits */
  int groups = grid_groups(r, width), columns = width / groups;
  int64_t n = codes_words(width, r->bits);
  uint8_t codes[AT_ONCE];
  for (int i = 0; i < rows; i++) {
    int64_t bit = 0;
    for (int first = 0; first < width; first += AT_ONCE) {
      int end = width - first < AT_ONCE ? width : first + AT_ONCE;
      if (!r->widths) codes_unpack(r->bits, 1, end - first, words + i * n + (int64_t)first * r->bits / 32, codes);
      for (int k = first; k < end;) {
        int group = k / columns, stop = (group + 1) * columns < end ? (group + 1) * columns : end;
        if (r->widths) unpack_group(r->widths[group], stop - k, words + i * n, &bit, codes + k - first);
        group_values(r, stop - k, codes + k - first, g, (int64_t)i * groups + group, q + (int64_t)i * width + k);
        k = stop;
      }
    }
  }
}
