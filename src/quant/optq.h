/* OPTQ / GPTQ (arXiv 2210.17323) in feedback form, on a slab of rows that do not know each other. Local, no files.
 *
 * Hd = H + damping mean(diag H) I = U U^T with U upper (dist/dlinalg.h: reverse_cholesky). Column by column
 *     v = w_j + (S_j + E[:, block] U[block, j]) / U_jj,  q_j = grid(v),  e_j = w_j - q_j,
 * after each block of 256 columns S += E[:, block] U[block, right]. No inverse. Double precision. rows * width^2 flops.
 * Dynamic groups: a group's grid is fitted when the recursion arrives at it, to the weights as its feedback has left them,
 *     W[:, group] + S[:, group] U[group, group]^-1
 * (the classic form's current weights), rounded to float. Then blocks end where groups do, and a group costs rows * group^2 flops more.
 * Identity that proves it: tr(E Hd E^T) = sum (v_ij - q_ij)^2 U_jj^2.
 * A row's codes are bit-identical in whatever rows it is called with. Libraries choose kernels, and so the order of a sum, by the SHAPE of a
 * product: therefore the trailing updates have shapes that the width dictates (optq_slab rows, padded), and all that is asked of the
 * library is that within one shape an entry does not depend on where its row stands (tests/unit/optq.c checks it). */
#ifndef CLOQWORK_QUANT_OPTQ_H
#define CLOQWORK_QUANT_OPTQ_H

#include "quant/grid.h"

typedef struct optq_request {
  grid_rule rule;
  int rows, width;
  const float *w; /* (rows, width) row-major, stride ldw; borrowed: what is quantized (dead columns are taken as 0) */
  int64_t ldw;
  const double *u; /* (width, width) upper, row-major (the strict lower triangle is not read); borrowed; in processing order */
  const double *
      diagonal; /* NULL; or [width] the factor's diagonal, and its other entries stand transposed in u's strict lower triangle (dist/dlinalg.h:
                             reverse_downdate). Not for dynamic groups */
  const int32_t *order; /* processing order: position -> column; NULL natural. Groups are those of the original columns */
  const uint8_t *dead;  /* [width], by original column, 1: H_jj == 0; NULL none */
  bool dead_rtn;        /* dead columns keep the rounded weight instead of 0 */
  code_grid grid;       /* from grid_fit on w; borrowed. Dynamic: written */
  bool dynamic;         /* grids are fitted here; expects the natural order, in which a group's columns follow one another */
  const float *weight;  /* dynamic: as in grid_fit */
  int64_t *replaced;    /* dynamic: receives what grid_fit counts; may be NULL */
  double *row_loss;     /* [rows] receives each row's part of the loss; NULL */
} optq_request;

/* codes (rows, width) one byte each, in the original column order. *loss (may be NULL) = sum (v - q)^2 U_jj^2; dead columns add nothing.
 * E_MEMORY; E_USAGE: dynamic groups in another order; E_NUMERICS when a diagonal entry of u is not positive, or a weight or u is NaN/Inf (names the row). */
status optq(const optq_request *q, uint8_t *codes, double *loss);

/* The processing order of act: order[m] = columns by descending diagonal, ties in natural order. buffer [m]. */
void optq_act_order(int64_t m, const float *diagonal, int32_t *order, int32_t *buffer);

int optq_slab(int64_t width);                                   /* rows of one update: deal rows in multiples of it, others are padded */
double optq_flops(int64_t rows, int64_t width);                 /* of one call, for rates */
uint64_t optq_bytes(const grid_rule *r, int64_t width);         /* workspace of a call with many rows, for plans */
uint64_t optq_dynamic_bytes(const grid_rule *r, int64_t width); /* what dynamic groups add to it */

#endif
