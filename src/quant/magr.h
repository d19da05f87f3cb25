/* MagR (arXiv 2406.00800): pulls in the maxima before quantization. Local, on rows that do not know each other. fp32 products,
 * 2 rows width^2 flops per step.
 *
 * Per row (or per segment of `group` columns) v:  min 1/2 (v - w) Hn (v - w)^T + alpha ||v||_inf,  Hn = H / lambda_max(H).
 * pg: proximal gradient as published (150 steps). fista: accelerated with per-row restart (spec methods section 4); 60 steps reach
 * a lower objective than 150 of pg. The number of steps is fixed: nothing stops early.
 *
 * A row's result is bit-identical in whatever rows it is called with. Libraries choose kernels, and so the order of a sum, by the SHAPE of a
 * product: therefore every product here has the one shape that the width dictates (magr_slab rows, padded with zeros), and all that is
 * asked of the library is that within one shape an entry does not depend on where its row stands (tests/unit/magr.c checks it). */
#ifndef CLOQWORK_QUANT_MAGR_H
#define CLOQWORK_QUANT_MAGR_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

typedef enum magr_solver { MAGR_FISTA, MAGR_PG } magr_solver;

typedef struct magr_request {
  magr_solver solver;
  int steps;    /* 60 fista, 150 pg */
  double alpha; /* 1e-3 per channel, 1e-4 per group */
  bool literal; /* alpha beside H as it is, as the paper prints: alpha / lambda_max beside Hn, which does next to nothing */
  int group;    /* 0: the whole row; else divides the width */
  int rows, width;
  const float *w;    /* (rows, width) contiguous, borrowed */
  const float *h;    /* (width, width) symmetric, contiguous, borrowed: H, not normalised */
  double lambda_max; /* of h, an upper estimate (magr_lambda_max) */
} magr_request;

/* v (rows, width) contiguous; may be w itself. objective (may be NULL; costs one more product): sum over rows of the final objective.
 * E_MEMORY; E_NUMERICS when lambda_max is not positive or a result is NaN/Inf (names the row). */
status magr(const magr_request *q, float *v, double *objective);

int magr_slab(int64_t width); /* rows of one product: deal rows in multiples of it, others are padded */
double magr_flops(const magr_request *q);
uint64_t magr_bytes(int64_t width, int group); /* workspace of one call, for plans */

/* Largest eigenvalue of symmetric PSD h by power iteration, rounded up by 2 %. Deterministic. E_MEMORY, E_NUMERICS. 2 width^2 flops per
 * step, at the speed of memory; a few tens of steps. */
status magr_lambda_max(int width, const float *h, double *lambda);

/* The proximal step of alpha ||.||_inf on sixteen segments of n side by side: v[i][l] is element i of segment l, 64-byte aligned. Clips to
 * [-c, c], sum max(|v_i| - c, 0) = alpha, 0 when ||v||_1 <= alpha. level[l]: a guess of c (anything >= 0) -> c. */
enum { MAGR_LANES = 16 };
void magr_prox(int n, float (*v)[MAGR_LANES], float alpha, float level[MAGR_LANES]);

#endif
