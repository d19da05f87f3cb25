/* Cross products L^T X of two panels of activations over the same tokens, summed by a team: what an input of the quantized prefix has to do
 * with the original model.
 *
 * Precision, order and dealing are those of a Gram (calibrate/gram.h): products in float, sums in double in the order of the chunks, cut
 * into units whose side depends on the widths alone; so the sums have the same bits for any number of ranks. 2 rows cols tokens flops. */
#ifndef CLOQWORK_CALIBRATE_CROSS_GRAM_H
#define CLOQWORK_CALIBRATE_CROSS_GRAM_H

#include <stdint.h>

#include "base/status.h"
#include "dist/team.h"

typedef struct cross_gram {
  const team *t;  /* borrowed */
  int rows, cols; /* widths of L and X; 0: there is none */
  shared sums;    /* doubles (rows, cols) */
  float *product; /* one unit's; private */
} cross_gram;

uint64_t cross_gram_shared_bytes(int64_t rows, int64_t cols); /* for plan */
uint64_t cross_gram_private_bytes(int64_t cols);

status cross_gram_new(const team *t, int64_t rows, int64_t cols, cross_gram *x); /* Collective. E_MEMORY */
void cross_gram_free(cross_gram *x);                                             /* Collective; accepts an empty one */
void cross_gram_reset(cross_gram *x);                                            /* Collective: sums back to zero */

/* Collective in effect: every rank adds its own units of these chunks. Chunk c is (tokens[c], rows) floats at left + c left_stride and
 * (tokens[c], cols) at right + c right_stride, seen by all ranks and not written until the next team_barrier. */
void cross_gram_add(cross_gram *x, const float *left, int64_t left_stride, const float *right, int64_t right_stride, const int *tokens,
                    int chunks, int per_product);

#endif
