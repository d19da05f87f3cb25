/* Leading eigenvectors of G = E M E^T by subspace iteration with a warm start, and the loss they leave: an adapter good enough to go on from.
 * Source: spec "refine", step ritz; methods 2.1: for ANY orthonormal U the loss of U U^T E is tr G - tr(U^T G U), so the loss is an upper bound of
 * the optimum, exact for these factors, and a round needs no eigendecomposition. The exact optimum is adapter/adapter.h's.
 *
 *   steps times:  X = Y E (k, m),  Z = (X M) E^T = Y G,  Y = orth(Z);   then Rayleigh-Ritz in the last Y before its step.
 *
 * M = H + ridge I. E M, a product of all rows, is never made. The products of the last step, from which vectors, values and loss come, are in double; those before it only bring the basis nearer and are in float
 * (sgemm), at about twice the speed. Orthonormalising is in double throughout. */
#ifndef CLOQWORK_JOINT_RITZ_H
#define CLOQWORK_JOINT_RITZ_H

#include "dist/team.h"

enum { RITZ_EXTRA = 8 }; /* columns beyond the rank */

typedef struct ritz_request {
  const team *t;
  const char *where; /* for messages; borrowed */
  int64_t n, m;
  int rank;
  int steps;      /* >= 1 */
  const float *e; /* (n, m) contiguous, seen by the team; borrowed */
  const float *h; /* (m, m) symmetric, likewise */
  double ridge;   /* absolute: of M */
  double trace;   /* tr(E M E^T) */
} ritz_request;

static inline int ritz_columns(int64_t n, int rank) { return rank + RITZ_EXTRA < n ? rank + RITZ_EXTRA : (int)n; }

/* Collective over t; every argument and result is the same on all ranks, for any number of them. y (ritz_columns, n) rows: the start, any that
 * span something; on return the basis to start the next call from. u (rank, n): orthonormal rows, the top Ritz vectors; a (rank, m) = u E, in
 * double; values[rank] descending. *loss = trace - sum of values, not below 0. work: shared memory of ritz_shared bytes.
 * E_NUMERICS (NaN, Inf), E_MEMORY. */
status ritz(const ritz_request *q, double *y, double *work, double *u, double *a, double *values, double *loss);
uint64_t ritz_shared(int64_t n, int64_t m, int rank);
uint64_t ritz_bytes(int64_t n, int64_t m, int rank); /* private, of a rank */
double ritz_flops(int64_t n, int64_t m, int rank, int steps);

#endif
