/* Normal float of 2, 3 and 4 bits: 2^bits levels times one absmax per block of `group` consecutive columns of a row. Local.
 * Source: spec methods section 3, formats section 8. NF4 (QLoRA, arXiv 2305.14314) is bitsandbytes' as it stores and reads it; NF2 and NF3
 * (LoftQ, arXiv 2310.08659) are the same construction with 4 and 8 levels, as PEFT's LoftQ makes them.
 *
 * Codes belong to the absmax that will be loaded: with double quantization nf_nest comes before nf_round. A loader computes
 * level * absmax in float and rounds it to the type of the original weight; nf_values does the same, so that a residual is taken
 * against what is loaded. */
#ifndef CLOQWORK_QUANT_NF_H
#define CLOQWORK_QUANT_NF_H

#include <stdint.h>

#include "base/half.h"
#include "base/status.h"

enum {
  NF_BITS_LEAST = 2,
  NF_BITS_MOST = 4,
  NF_GROUP_LEAST = 32, /* groups are powers of two from here */
  NF_GROUP_MOST = 4096,
  NF_NEST = 256, /* values of absmax that share one nested_absmax */
};

/* The 2^bits levels, ascending from -1 to 1: normal quantiles at even steps of probability up to offset 0.9677083, divided by the largest,
 * one more above 0 than below; code 2^(bits-1) - 1 is 0. */
const float *nf_levels(int bits);

/* absmax (rows, width / group) = max |w| of every block of w (rows, width), row stride ldw. E_NUMERICS: NaN or Inf (names the row). */
status nf_absmax(int group, int rows, int width, const float *w, int64_t ldw, float *absmax);

/* codes (rows, width), one byte each: the count of midpoints of levels strictly below w (1 / absmax), in float: a tie takes the lower
 * code, a block of zeros that of 0. */
void nf_round(int bits, int group, int rows, int width, const float *w, int64_t ldw, const float *absmax, uint8_t *codes);

/* q (rows, width) = level absmax in float, rounded to the type, from codes packed as in quant/codes.h. */
void nf_values(int bits, int group, int rows, int width, const uint32_t *words, const float *absmax, real_type type, float *q);

/* Double quantization: absmax[count] of a whole matrix, flattened, becomes one byte each, nested[nf_nests(count)] and an offset, the
 * mean. The byte is the nearest entry of nf_map to (absmax - offset) / nested, a tie the lower one. absmax is replaced by what
 * nf_unnest makes of them. */
static inline int64_t nf_nests(int64_t count) { return (count + NF_NEST - 1) / NF_NEST; }
void nf_nest(int64_t count, float *absmax, uint8_t *codes, float *nested, float *offset);

/* absmax[count] = map[code] nested + offset, product and sum each rounded to float. */
void nf_unnest(int64_t count, const uint8_t *codes, const float *nested, float offset, float *absmax);

/* The signed dynamic map of 8 bits, ascending: 0, 1 and, for e = 0 .. 6, +-10^(e-6) times the midpoints of 2^e equal cells of [0.1, 1]. */
void nf_map(float map[256]);

#endif
