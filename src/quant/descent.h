/* Cyclic exact coordinate descent of codes on a fixed grid, on a slab of rows that do not know each other. Local, no files.
 * Source: spec methods section 2.2. MagR's pass after OPTQ ("comq", arXiv 2406.00800) is this with ridge = 0.75 mean(diag H).
 *
 * Lowers f = tr((W - Q) P (W - Q)^T), P = H + ridge I, one column of codes after the other:
 *     D = (W - Q) P;  v = q_j + D_j / P_jj,  q_j' = grid(v),  D += (q_j - q_j') P_j
 * f never rises, but for rounding: old and new value are both on the grid, and the new one is the nearer to the minimum. A column with
 * P_jj <= 1e-12 of the mean stays as it is. Double precision; D is carried from pass to pass.
 * It is OPTQ's recursion (quant/recursion.h) with values for weights and P for its factor; after a block of 256 columns D is updated by one
 * product, whose shape the width dictates, so that a row's codes are bit-identical in whatever rows it is called with. */
#ifndef CLOQWORK_QUANT_DESCENT_H
#define CLOQWORK_QUANT_DESCENT_H

#include "quant/grid.h"

typedef struct descent_request {
  grid_rule rule; /* uniform */
  int rows, width;
  const float *w; /* (rows, width) row-major, stride ldw; borrowed: the target */
  int64_t ldw;
  const float *h;      /* (width, width) symmetric, contiguous, borrowed */
  double ridge;        /* >= 0, on the diagonal */
  const uint8_t *dead; /* [width], 1: the column keeps its codes; NULL none */
  code_grid grid;      /* borrowed */
  int passes;
} descent_request;

/* codes (rows, width), one byte each, on the grid -> better ones. losses[passes + 1] (may be NULL): f before the first pass and after each,
 * summed over the rows. A slab of rows whose codes a pass has left alone is done: the passes to come would leave them too.
 * E_MEMORY; E_NUMERICS when a row's f is NaN/Inf (names the row). */
status descent(const descent_request *q, uint8_t *codes, double *losses);

int descent_slab(int64_t width);                               /* rows of one product: deal rows in multiples of it, others are padded */
double descent_flops(int64_t rows, int64_t width, int passes); /* of one call, if every pass moves codes everywhere */
uint64_t descent_bytes(const grid_rule *r, int64_t width);     /* workspace of a call with many rows, for plans */

#endif
