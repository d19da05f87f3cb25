/* NF4 (QLoRA, arXiv 2305.14314) as bitsandbytes stores and reads it: 16 levels times one absmax per block of `group` consecutive columns
 * of a row. Local. Source: spec formats section 8, methods section 3.
 *
 * Codes belong to the absmax that will be loaded: with double quantization nf4_nest comes before nf4_round. A loader computes
 * level * absmax in float and rounds it to the type of the original weight; nf4_values does the same, so that a residual is taken
 * against what is loaded. */
#ifndef CLOQWORK_QUANT_NF4_H
#define CLOQWORK_QUANT_NF4_H

#include <stdint.h>

#include "base/half.h"
#include "base/status.h"

enum {
  NF4_BITS = 4,
  NF4_GROUP_LEAST = 32, /* groups are powers of two from here */
  NF4_GROUP_MOST = 4096,
  NF4_NEST = 256, /* values of absmax that share one nested_absmax */
};

extern const float nf4_levels[16]; /* ascending; code 7 is 0 */

/* absmax (rows, width / group) = max |w| of every block of w (rows, width), row stride ldw. E_NUMERICS: NaN or Inf (names the row). */
status nf4_absmax(int group, int rows, int width, const float *w, int64_t ldw, float *absmax);

/* codes (rows, width), one byte each: the count of midpoints of levels strictly below w (1 / absmax), in float: a tie takes the lower
 * code, a block of zeros code 7. */
void nf4_round(int group, int rows, int width, const float *w, int64_t ldw, const float *absmax, uint8_t *codes);

/* q (rows, width) = level absmax in float, rounded to the type, from codes packed as in quant/codes.h. */
void nf4_values(int group, int rows, int width, const uint32_t *words, const float *absmax, real_type type, float *q);

/* Double quantization: absmax[count] of a whole matrix, flattened, becomes one byte each, nested[nf4_nests(count)] and an offset, the
 * mean. The byte is the nearest entry of nf4_map to (absmax - offset) / nested, a tie the lower one. absmax is replaced by what
 * nf4_unnest makes of them. */
static inline int64_t nf4_nests(int64_t count) { return (count + NF4_NEST - 1) / NF4_NEST; }
void nf4_nest(int64_t count, float *absmax, uint8_t *codes, float *nested, float *offset);

/* absmax[count] = map[code] nested + offset, product and sum each rounded to float. */
void nf4_unnest(int64_t count, const uint8_t *codes, const float *nested, float offset, float *absmax);

/* The signed dynamic map of 8 bits, ascending: 0, 1 and, for e = 0 .. 6, +-10^(e-6) times the midpoints of 2^e equal cells of [0.1, 1]. */
void nf4_map(float map[256]);

#endif
