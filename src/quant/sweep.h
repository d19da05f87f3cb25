/* A round of descent over codes and grid, group after group, on a slab of rows that do not know each other. Local, no files.
 * Source: spec "refine", step 3 (ours; cf. VarPro and SchurQuant in methods section 10).
 *
 * Lowers f = tr((W - Q) P (W - Q)^T) at a fixed P: for each group of columns
 *     R = E P[:, group] anew;  grid of the group refitted to its codes (quant/refit.h);  one exact cyclic sweep of its codes:
 *     q_j <- the grid value nearest to q_j + R_j / P_jj,  R -= (change of q_j) P_j,group.
 * A step is taken where f falls by it, measured in double from R as it stands; so a row's f rises by no more than the rounding of the floats that R
 * is made of. Columns with P_jj <= 1e-12 max diag P stay.
 * Products are in float (2 rows width^2 flops a round), by sgemm on panels of whole groups up to 256 columns, in which what a group took from E is
 * taken from R of those to come; sums that decide are in double. Inside a group rows are in registers.
 * Groups wider than 256 columns: the grid is refitted to the whole group from fresh products, then the codes are swept by 256 columns with R anew;
 * that takes up to twice the flops more. Each of their seven candidates is tried in the same way, for two products of the group with its own columns.
 * quant/descent.h is the same idea at a fixed grid in double, for methods that are compared to the bit.
 * A row's result is bit-identical in whatever rows it is called with. */
#ifndef CLOQWORK_QUANT_SWEEP_H
#define CLOQWORK_QUANT_SWEEP_H

#include "quant/grid.h"

typedef enum sweep_grid { SWEEP_GRID_STAYS, SWEEP_GRID_REFIT, SWEEP_GRID_CANDIDATES } sweep_grid;

typedef struct sweep_request {
  grid_rule rule; /* uniform, a width of its own for no group */
  int rows, width;
  const float *w; /* (rows, width) row-major, stride ldw; borrowed: the target */
  int64_t ldw;
  const float *p;      /* (width, width) symmetric, contiguous, borrowed: the metric, ridge included */
  const uint8_t *dead; /* [width], 1: the column keeps its codes; NULL none */
  sweep_grid grid_moves;
  code_grid grid;   /* in and out */
  double *row_loss; /* [rows] receives f after, row by row; NULL */
} sweep_request;

/* codes (rows, width), one byte each, in and out. losses[2] (may be NULL): f before and after, summed over the rows: of the old codes from R, in
 * double, and what the steps changed of it.
 * E_MEMORY; E_NUMERICS when a row's f is NaN/Inf (names the row). */
status sweep(const sweep_request *q, uint8_t *codes, double *losses);

int sweep_slab(int64_t width); /* rows of one product: deal rows in multiples of it, others are padded */
double sweep_flops(const grid_rule *r, sweep_grid moves, int64_t rows, int64_t width); /* of one round, its products */
uint64_t sweep_bytes(const grid_rule *r, int64_t width);                               /* workspace of a call with many rows, for plans */

#endif
