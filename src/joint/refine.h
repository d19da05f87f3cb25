/* Codes and grids of one matrix made for the rank-r adapter that follows them, on one team. Spec "refine" (ours), methods section 10.
 *
 * One loop, of which the methods are rows (refine_plan). With P(A) = M - M A^T (A M A^T)^{-1} A M the Gram with the adapter eliminated (joint/deflate.h):
 *
 *   start     codes and grid as they came;  ritz (joint/ritz.h) -> U, A, f;  best = these
 *   shape     times: A = V_r^T or the last round's;  V = W - U A and its grid anew, or W on the grid as it is;  Q = OPTQ(V, P(A) + lambda I);  ritz
 *   descend   from the best, times: a sweep (quant/sweep.h) of codes and grid in P(A), or of the codes towards W - B A in H;  ritz
 *   the codes and grid of least f are the result; a kind of round ends early when the f it keeps fell by less than `stop`.
 *
 *   method          shape  A of the first   grid      descend   metric          grid
 *   refine          S      eigenvectors     anew      D         P, with ridge   refit, or candidates   S+D: 12+8, 6+4, ...
 *   varpro          0                                 T         P, with ridge   stays or refit
 *   projq           T      fit              stays     0
 *   gptq-intrinsic  1      eigenvectors *   stays     T         H, W - B A      stays      * deflated by d / (d + lambda): shrink
 *   bidup           0                                 T         H, W - B A      stays
 *
 * E H, a product as large as a round of descent, is made once, for what the start leaves (half of it, its trace alone). Afterwards the steps know:
 * tr(E M E^T) = tr(E P E^T) + |E Z^T|^2 with P = M - Z^T Z, where OPTQ's own loss sum (v - q)^2 U_jj^2 is tr(F (P + lambda I) F^T), F = V - Q, and W and
 * V = W - U A have equal loss in P; and a sweep counts what it changes. In the natural order P + lambda I is not factored either: its factor follows from that of
 * H + lambda I (dist/dlinalg.h: reverse_downdate), which serves all matrices on the Gram.
 *
 * The adapter of the result is the caller's: the exact fit of what the codes leave. Everything is Collective over the team and has the same bits on
 * any number of its ranks: rows are dealt in slabs, products of a few rows with a whole matrix do not depend on their place. */
#ifndef CLOQWORK_JOINT_REFINE_H
#define CLOQWORK_JOINT_REFINE_H

#include "dist/team.h"
#include "quant/grid.h"
#include "quant/sweep.h"

typedef struct refine_plan {
  int shapes;
  bool eigenvectors; /* the first round's A = V_r^T; else the adapter's */
  bool shrink, regrid;
  bool act_order; /* shaped rounds take columns by descending diag P, and P + lambda I is factored anew for each */
  int descents;
  bool deflated; /* descent in P(A); else in H towards W - B A */
  sweep_grid grid_moves;
  double stop;  /* relative */
  double ridge; /* absolute, of the descent's metric */
} refine_plan;

typedef struct refine_request {
  const team *t;
  const char *where; /* for messages; borrowed */
  refine_plan plan;
  grid_rule rule;
  int64_t n, m, begin, end; /* rows [begin, end) are mine, in slabs */
  int rank;
  const float *w;      /* (n, m) seen by the team, and so is h; borrowed */
  const float *h;      /* (m, m) */
  const uint8_t *dead; /* [m]; NULL none */
  bool dead_rtn;
  double damping;      /* absolute: lambda, of the factor */
  bool weigh_diagonal; /* a grid anew is searched by diag P; else by ones */
  double least_weight; /* what a weight is at least */
  const double *start; /* (>= rank + RITZ_EXTRA rows where there are as many, m) leading eigenvectors of h, seen by the team; borrowed */
  int start_rows;
  void *shared_memory; /* refine_shared bytes, seen by the team */
  double *
      factor; /* (m, m), likewise: of H + lambda I by reverse_cholesky. Shaped rounds spend its strict lower triangle, with act_order all of it */
  float *p; /* (m, m), likewise: room for P. Not written without descents in it or act_order */
} refine_request;

/* codes (end - begin, m), one byte each, and g, their grid: of my rows, in and out. losses [1 + shapes + descents]: f after the start and each round on H
 * (descents: of their own basis), NaN for those that were not made; *kept: the index of the result. *tiny: scales replaced in the kept grid.
 * Collective. E_MEMORY, E_NUMERICS. */
status refine(const refine_request *q, uint8_t *codes, code_grid g, double *losses, int *kept, int64_t *tiny);

uint64_t refine_shared(int64_t n, int64_t m, int rank);
uint64_t refine_bytes(const refine_plan *p, const grid_rule *r, int64_t n, int64_t m, int rank, int ranks); /* private, of a rank */
/* Flops of the team by what they are spent in, all rounds made: products of rows with the Gram, the warm iterations, eliminating adapters, factors,
 * OPTQ, sweeps, which move grids so; and weights whose grid is searched anew. */
typedef struct refine_cost {
  double gemm, ritz, deflate, factor, optq, sweep, regridded;
  sweep_grid moves;
} refine_cost;
refine_cost refine_costs(const refine_plan *p, const grid_rule *r, int64_t n, int64_t m, int rank);
double refine_flops(const refine_plan *p, const grid_rule *r, int64_t n, int64_t m, int rank); /* their sum */

#endif
