/* BiLLM (arXiv 2402.04291; spec methods section 12): signs and four magnitudes per row and group of columns (128 as published). Local.
 *
 * The grid GRID_BINARY, in a row's group with magnitudes m[0 .. 3], fp16:
 *   ordinary column:  q = +-m[0] (low) or +-m[1] (high)     code: bit 0 the sign (1: +), bit 1 low or high
 *   salient column:   q = +-m[2] +-m[3]                     code: bit 0 the first sign, bit 1 the second; the sum is rounded once, to float
 * A code is the one of least |v - q|, a tie the lower one: with magnitudes that are 0 or more, the sign of v, and for salient ones that of
 * the residual after the first term. Magnitudes are rounded to fp16 before codes and errors are taken.
 * Stored: 2 bits a weight (codes.h), 64 bits a group of a row, one byte a column: 2 + 64 / group bits per weight, 2.5 at 128. (The
 * published 1.1 bits leave out the map of low and high, and the magnitudes.)
 *
 * Which columns are salient is one choice per group for all rows, of the weights as they are: the 1 to 50 columns of largest
 * sum_i w_ij^2 / d_j^2 (quant/salience.h), their count such that two sets of columns, each with one magnitude per row, have the least
 * squared error (the paper's algorithm 2. It decides on one term for both sets, otherwise more salient columns would always be better).
 * Per row the ordinary magnitudes are the means of |v| below and above a threshold. Every threshold of the row is tried, exactly, by sums
 * over the sorted |v|; the paper tries 81 percentiles, one for all rows of a block. m[2] = mean |v|, m[3] = mean ||v| - m[2]|. A mean is
 * the least-squares optimum of its set.
 *
 * Between groups the errors are compensated as in OPTQ, by whole groups c (within one there is no compensation, as published): with
 * Hd = U U^T, E = w - q,
 *     v_c = w_c + S_c U_cc^-1,   S_c = sum over groups b before c of E_b U_bc,
 * which is exact: tr(E Hd E^T) = sum_c |(v_c - q_c) U_cc|^2, the oracle. Double precision.
 * A row's result is bit-identical in whatever rows it is called with, for the reason that stands in quant/optq.h: all products have shapes
 * that the width dictates (billm_slab rows, padded). */
#ifndef CLOQWORK_QUANT_BILLM_H
#define CLOQWORK_QUANT_BILLM_H

#include "quant/grid.h"

enum { BILLM_MAGNITUDES = 4, BILLM_SALIENT_MOST = 50 };

/* salient[width] (0 or 1) of the whole matrix w (rows, width), row stride ldw; d[width] from quant/salience.h; dead[width] (1: H_jj = 0,
 * counts nothing and is never salient; NULL none). A group with one live column has no salient one. rows * width * (3 + 50 * 5 / group)
 * flops. E_MEMORY; E_NUMERICS: NaN or Inf in a column. */
status billm_choose(const grid_rule *r, int rows, int width, const float *w, int64_t ldw, const double *d, const uint8_t *dead,
                    uint8_t *salient);

typedef struct billm_request {
  grid_rule rule; /* kind GRID_BINARY, group */
  int rows, width;
  const float *w; /* (rows, width) row-major, stride ldw; borrowed */
  int64_t ldw;
  const double *u;        /* (width, width) upper, row-major, in natural order (the strict lower triangle is not read); borrowed */
  const uint8_t *dead;    /* [width]; NULL none. Dead columns get codes, but no part in magnitudes, compensation and loss */
  const uint8_t *salient; /* [width] */
} billm_request;

/* codes (rows, width) one byte each, magnitudes (rows, groups, 4) fp16. *loss (may be NULL) = tr(E Hd E^T), E without dead columns.
 * E_MEMORY; E_NUMERICS when a diagonal entry of u is not positive, or a weight or u is NaN/Inf (names the row). */
status billm(const billm_request *q, uint8_t *codes, uint16_t *magnitudes, double *loss);

/* q (rows, width) in float, from packed codes of 2 bits. */
void billm_values(const grid_rule *r, int rows, int width, const uint32_t *words, const uint16_t *magnitudes, const uint8_t *salient,
                  float *q);

int billm_slab(int64_t width);                                       /* rows of one product: deal rows in multiples of it */
double billm_flops(const grid_rule *r, int64_t rows, int64_t width); /* of billm: rows (width^2 + 3 width group) */
uint64_t billm_bytes(const grid_rule *r, int64_t width);             /* workspace of billm with many rows, for plans */
uint64_t billm_choose_bytes(const grid_rule *r, int64_t width);

#endif
