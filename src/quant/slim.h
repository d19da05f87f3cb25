/* SliM-LLM (arXiv 2405.14917; spec methods section 12): groups of columns with b - 1, b or b + 1 bits, b on average, and scales that are
 * searched a little around their start. Local. The result is an ordinary uniform grid with widths of its own (quant/grid.h), for OPTQ.
 *
 * Groups are ordered by salience, sum of w_ij^2 / d_j^2 over their columns (quant/salience.h). For k = 1 .. groups / 2 - 1 the k most
 * salient get b + 1 bits and the k least b - 1; the best k by score is kept. The paper scores a divergence of outputs, which needs
 * activations; here, from the Gram alone, it is tr(E H E^T) of rounding to nearest. k = 0, b bits everywhere, is a candidate, too: the
 * choice is never worse than that by its own score. */
#ifndef CLOQWORK_QUANT_SLIM_H
#define CLOQWORK_QUANT_SLIM_H

#include "quant/grid.h"

typedef struct slim_request {
  grid_rule rule; /* uniform, bits 2 .. 7, a group; its widths are not read */
  int rows, width;
  const float *w; /* (rows, width), row stride ldw: the whole matrix; this and all below borrowed */
  int64_t ldw;
  const float *weight; /* [width] for grid_fit; NULL: 1 each */
  const float *h;      /* (width, width) symmetric, contiguous */
  const double *d;     /* [width] */
  const uint8_t *dead; /* [width], 1: H_jj = 0, not salient; NULL none */
} slim_request;

/* widths[groups]. scores (may be NULL) [slim_scores]: of every k, tr(E H E^T) less that of k = 0. From k to k + 1 only two groups change:
 * with D their change of E, the score changes by 2 tr(D H (E + D / 2)^T), where H has the columns of a group alone. Every group changes
 * once: 2 rows width^2 flops in all. Double precision. E_MEMORY; E_NUMERICS: NaN or Inf in w, h or d. */
status slim_choose(const slim_request *q, uint8_t *widths, double *scores);
int slim_scores(const grid_rule *r, int width); /* how many k, with 0 */

/* Per row and group the factor of the scale, 1 +- 0.1 i / 50 for i = 0 .. 50, that has the least sum of weight[j] (q_j - w_j)^2 with q the
 * nearest values; the scale is rounded to fp16 first, zeros stay, a tie keeps the factor nearer to 1, then the larger. g (rows, groups) is
 * a fitted grid of w (rows, width), row stride ldw; weight[width]. Rows are independent. 101 roundings a weight. */
void slim_scale(const grid_rule *r, int rows, int width, const float *w, int64_t ldw, const float *weight, code_grid g);

double slim_flops(int64_t rows, int64_t width);         /* of slim_choose */
uint64_t slim_bytes(const grid_rule *r, int64_t width); /* its workspace */

#endif
