/* A better grid for one group of a row in the metric of its codes' errors. Local. Sources: refine, spec "refine" (ours); methods section 10.
 *
 * With P_gg the group's block of the metric, y = R_g + Q_g P_gg its pull (R = E P, E = W - Q of the whole row), the loss as a function of this
 * group's values q alone is  q P_gg q^T - 2 q y^T + const. For codes c and a zero z, the best scale is s = num / den with num = (c - z) y^T,
 * den = (c - z) P_gg (c - z)^T, and the loss falls to -num^2 / den. */
#ifndef CLOQWORK_QUANT_REFIT_H
#define CLOQWORK_QUANT_REFIT_H

#include "quant/grid.h"

enum { REFIT_MOST = 256 }; /* columns of a group */

/* What a group's block of the metric is to all rows. */
typedef struct refit_block {
  int columns, bits;
  bool symmetric, real_zero; /* symmetric: the zero stays */
  const float *p;            /* (columns, columns) P_gg, row stride ldp; borrowed */
  int64_t ldp;
} refit_block;

/* Codes stay, scale and zero move: integer zeros 0 .. 2^bits - 1 each with its scale, argmax of num^2 / den with num > 0; real ones by the 2 x 2
 * system of (s, s z). The new pair counts as stored (fp16), and is taken only if the loss falls. y [columns] double. True if it moved. */
bool refit_grid(const refit_block *b, const uint8_t *codes, const double *y, uint16_t *scale, double *zero);

/* Grid candidates: (s t, z) for t of 1, .94, .97, 1.03, 1.06, (s, z - 1), (s, z + 1): each snaps q (the current values) to its codes, makes one
 * sweep of them and rescales; the one of least loss is taken if it is below the present one. codes, scale, zero in and out. True if it moved. */
bool refit_candidates(const refit_block *b, const double *y, uint8_t *codes, uint16_t *scale, double *zero);

#endif
