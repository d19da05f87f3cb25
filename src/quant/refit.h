/* Better codes and a better grid for one group of columns in the metric of its rows' errors. Local. Sources: refine, spec "refine" (ours);
 * methods section 10.
 *
 * With P_gg the group's block of the metric P, R = E P (E = W - Q of the whole row) and y = R_g + Q_g P_gg, the loss as a function of this
 * group's values q alone is  q P_gg q^T - 2 q y^T + const. Three steps lower it:
 *   grid        codes c stay. For a zero z the best scale is num / den, num = (c - z) y^T, den = (c - z) P_gg (c - z)^T, and the loss falls to
 *               -num^2 / den. Integer zeros: 0 .. 2^bits - 1, the largest num^2 / den with num > 0; a real one also by the 2 x 2 system of (s, s z);
 *               symmetric grids keep theirs. The pair counts as it is stored, fp16, and is taken only if the loss falls.
 *   codes       one exact cyclic sweep: c_j <- clamp(rint(c_j + R_j / (P_jj s))), the code nearest to the minimum, R -= (change of q_j) P_j.
 *               Columns that stay have no inverse and take no step.
 *   candidates  grids (s t, z) for t of 1, .94, .97, 1.03, 1.06, (s, z - 1), (s, z + 1): each takes the nearest codes of the present values,
 *               a sweep and the best scale of its codes; the best of them is taken if the loss falls. About 17 columns^2 products a row.
 *
 * 32 rows in lanes, column after column: products in float, sums that decide in double. What a row gets does not depend on the others. */
#ifndef CLOQWORK_QUANT_REFIT_H
#define CLOQWORK_QUANT_REFIT_H

#include "quant/grid.h"

enum { REFIT_MOST = 256 /* columns of a block */, REFIT_ROWS = 32, REFIT_QUAD = 4, REFIT_NEIGHBOURS = 7 };

/* What a block of columns is to all rows. */
typedef struct refit_block {
  int columns, padded; /* to quads */
  grid_rule rule;
  int bits;
  double top;                                    /* largest code */
  double one_one;                                /* 1 P_gg 1^T */
  double one[REFIT_MOST];                        /* 1 P_gg */
  float inverse[REFIT_MOST], square[REFIT_MOST]; /* 1 / P_jj or 0, P_jj */
  float p[REFIT_MOST * REFIT_MOST];              /* [j / QUAD][i][j % QUAD] */
} refit_block;

/* 32 rows of a block. r is R at the codes and grid of the tile before a sweep, which leaves it behind. */
typedef struct refit_tile {
  _Alignas(64) float code[REFIT_MOST][REFIT_ROWS];
  _Alignas(64) float r[REFIT_MOST][REFIT_ROWS];
  _Alignas(64) float k[REFIT_MOST][REFIT_ROWS];    /* code - zero */
  _Alignas(64) float kp[REFIT_MOST][REFIT_ROWS];   /* k P_gg */
  _Alignas(64) float step[REFIT_MOST][REFIT_ROWS]; /* change of q */
  _Alignas(64) float scale[REFIT_ROWS], zero[REFIT_ROWS];
  _Alignas(64) double gain[REFIT_ROWS]; /* what every step adds its change of the loss to */
  _Alignas(64) float own[REFIT_MOST][REFIT_ROWS], own_r[REFIT_MOST][REFIT_ROWS], best[REFIT_MOST][REFIT_ROWS]; /* of candidates */
} refit_tile;

/* Per row, k = code - zero: k R, 1 R, k P_gg k, k P_gg 1. */
typedef struct refit_sums {
  _Alignas(64) double kr[REFIT_ROWS], r[REFIT_ROWS], kpk[REFIT_ROWS], kp[REFIT_ROWS];
} refit_sums;

/* columns <= REFIT_MOST of the metric p (row stride ldp) from its diagonal entry on; a column with P_jj <= least, or marked in dead[columns]
 * (may be NULL), stays. */
void refit_read(refit_block *b, const grid_rule *r, int bits, int columns, const float *p, int64_t ldp, double least, const uint8_t *dead);

void refit_grid(const refit_block *b, refit_tile *t);
void refit_codes(const refit_block *b, refit_tile *t);
void refit_candidates(const refit_block *b, refit_tile *t);

/* The grid step of a group wider than a block, from sums over its parts: the tile's k, kp and r; one[columns] =
 * 1 P_gg. refit_choose: of 32 rows' scale and zero; gain is added to, and kpk becomes that of the zeros taken. */
void refit_add_sums(int columns, const double *one, const refit_tile *t, refit_sums *s);
void refit_choose(const grid_rule *g, int bits, double one_one, refit_sums *s, float *scale, float *zero, double *gain);

/* Candidates of such a group, n < REFIT_NEIGHBOURS. Per row, with d = what the values q are more than its own: the change of the loss
 * d P d - 2 d R and of q P q, and q R at the new R. */
typedef struct refit_changes {
  _Alignas(64) double loss[REFIT_ROWS], qpq[REFIT_ROWS], qr[REFIT_ROWS];
} refit_changes;
/* The grids s, z of 32 rows' n-th neighbours; where there is none, their own. */
void refit_neighbour(const grid_rule *g, int bits, int n, const float *scale, const float *zero, float *s, float *z);
/* The tile's codes: nearest to the values from_scale (own - from_zero) on its grid. */
void refit_snap(const refit_block *b, refit_tile *t, const float *from_scale, const float *from_zero);
/* Of a part: the tile's code, scale, zero, own_r, step = d and k = d P. */
void refit_add_changes(int columns, const refit_tile *t, refit_changes *s);
/* The change of a row's loss with the best scale for its codes, which is put in place if it can be stored; qpq: before the change. */
double refit_rescale(const refit_changes *s, int row, double qpq, float *scale);

#endif
