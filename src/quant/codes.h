/* Packed codes: code k of a row occupies bits [k b, (k+1) b) of the row's little-endian stream of 32-bit words (GPTQ, compressed-tensors).
 * Every width and every b of 1 .. 8; unused bits of the last word are 0. Local. Memory speed: eight codes move in a dozen instructions. */
#ifndef CLOQWORK_QUANT_CODES_H
#define CLOQWORK_QUANT_CODES_H

#include <stdint.h>

#include "quant/grid.h"

static inline int64_t codes_words(int64_t width, int bits) { return (width * bits + 31) / 32; }

/* codes (rows, width), one byte each, below 2^bits <-> words (rows, codes_words). No overlap. */
void codes_pack(int bits, int rows, int64_t width, const uint8_t *codes, uint32_t *words);
void codes_unpack(int bits, int rows, int64_t width, const uint32_t *words, uint8_t *codes);

/* The same of a matrix on the rule's grid. With r->widths every code has its group's width, and they follow one another in the row's stream,
 * codes_words(width, bits) words again: the widths are bits on average. */
void codes_pack_rule(const grid_rule *r, int rows, int width, const uint8_t *codes, uint32_t *words);
void codes_unpack_rule(const grid_rule *r, int rows, int width, const uint32_t *words, uint8_t *codes);

/* q (rows, width) = scale (code - zero) in float. Exact for integer zeros (11 significant bits times 8); with real ones the difference and
 * the product are exact in double, and the product is rounded once, to float. */
void codes_values(const grid_rule *r, int rows, int width, const uint32_t *words, code_grid g, float *q);

/* The same from codes of one byte each. */
void codes_bytes_values(const grid_rule *r, int rows, int width, const uint8_t *codes, code_grid g, float *q);

#endif
