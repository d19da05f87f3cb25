/* The joint step of L4Q (arXiv 2402.04902), layer by layer in the Gram: adapter and grid are trained together with the adapter merged BEFORE it
 * is quantized, so that nothing of it remains but codes. Spec methods section 12; the loss is ours in place of a trainer's.
 *
 *   minimise tr((W_q - W) H (W_q - W)^T),  W_q = s (u - z),  u = codes of W + B A on the grid (s, z)
 *
 * by straight-through gradients: with Gr = 2 (W_q - W) H, v = (W + B A) / s + z, M = [0 <= v <= 2^b - 1] and o = s (2^(b-1) - z),
 *   dB = (Gr.M) A^T,  dA = B^T (Gr.M),  ds = sum over a group of Gr.(u - v where M, else u - 2^(b-1)),  do = sum of Gr.(1 - M).
 * An integer zero stays what it is, so o follows s: outside M, ds counts u - z instead, and there is no do.
 * A starts as Kaiming's (adapter/zero.h), B as 0. Codes and losses always belong to scales (and real zeros) rounded to fp16, as stored.
 *
 * Optimiser (the paper's trainer uses AdamW): Adam without decay, beta 0.9 and 0.999, its rate falling linearly to zero. It is free of units,
 * so the rates are in natural ones: a scale and an offset move by rate_grid times the group's first scale, A by rate_adapter / sqrt(m), B by so much
 * that B A alone would move by rate_adapter times the mean scale. A scale stays within 1/16 and 16 of its start. Not monotone: the best of all
 * iterates is the result. Local; a matrix's result depends on it alone. */
#ifndef CLOQWORK_JOINT_L4Q_H
#define CLOQWORK_JOINT_L4Q_H

#include "base/status.h"
#include "quant/grid.h"

typedef struct l4q_request {
  const char *where; /* for messages; borrowed */
  int64_t n, m;
  const float *w;                 /* (n, m) contiguous, borrowed */
  const float *h;                 /* (m, m) symmetric, contiguous, borrowed */
  grid_rule rule;                 /* a uniform grid */
  int rank;                       /* of the adapter that is merged: 4 in the paper */
  int steps;                      /* >= 0; 0: rounds to the grid as it is */
  double rate_adapter, rate_grid; /* L4Q_RATE_ADAPTER, L4Q_RATE_GRID */
  const char *name;               /* of the tensor, and a seed: the start of A; borrowed */
  uint64_t seed;
} l4q_request;

/* Rates from runs on data/tiny and a SmolLM2 layer at 2 and 3 bits, 100 steps: a tenth of either leaves two to three times the loss at 2 bits. */
enum { L4Q_STEPS = 100 };
#define L4Q_RATE_ADAPTER 0.05
#define L4Q_RATE_GRID 0.03

/* g: the start (grid_fit), on return that of the result. codes (n, m) one byte each. losses [steps + 1] of all iterates, by float products
 * added in double; losses[0] is that of rounding to the start. *best: the result's. E_INTERNAL out of range, E_NUMERICS (NaN, Inf), E_MEMORY. */
status l4q(const l4q_request *q, code_grid g, uint8_t *codes, double *losses, int *best);
double l4q_flops(const l4q_request *q); /* 2 n m^2 a step in float, and small products */
uint64_t l4q_bytes(const l4q_request *q);

/* One evaluation, by which l4q steps. scales, offsets (n, groups); offsets only for real zeros. */
typedef struct l4q_slopes {
  float *a, *b; /* (rank, m), (n, rank) */
  double *scales, *offsets;
} l4q_slopes;
/* At a (rank, m), b (n, rank) and g: codes, loss and slopes. target, e, y: work (n, m). E_NUMERICS. */
status l4q_evaluate(const l4q_request *q, const float *a, const float *b, code_grid g, float *target, float *e, float *y, uint8_t *codes,
                    double *loss, const l4q_slopes *slopes);

#endif
