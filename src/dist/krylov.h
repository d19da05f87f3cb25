/* Leading eigenpairs of a symmetric positive semidefinite operator by block Krylov with full reorthogonalization. Local: one rank,
 * one operator (spec: one matrix per rank beats all ranks on one matrix). Judged by captured energy, never by angles: for any
 * orthonormal V the loss of the adapter it gives is trace - sum of V^T G V, exactly; the stop rule decides speed, never truth. */
#ifndef CLOQWORK_DIST_KRYLOV_H
#define CLOQWORK_DIST_KRYLOV_H

#include <stdint.h>

#include "base/status.h"

/* y (b, n) = x (b, n) G: vectors are ROWS, at most a block and KRYLOV_EXTRA of them. Must be symmetric positive semidefinite to rounding. */
enum { KRYLOV_EXTRA = 8 };
typedef status (*krylov_operator)(void *context, int b, int64_t n, const double *x, double *y);

typedef struct krylov_request {
  int64_t n;           /* order of G */
  int wanted;          /* pairs */
  int block;           /* 0: krylov_block */
  double tolerance;    /* excess of the tail over the optimal tail, relative to the tail: 1e-6. The tail of the stop rule is estimated (to a
                           few per cent, by random probes of the energy outside the space): no trace of G is asked for */
  int blocks;          /* > 0: stop after that many (or as soon as they hold `wanted` vectors), or the space is full, converged or not */
  const double *start; /* (start_rows, n) rows to start from, borrowed; NULL: seeded random */
  int start_rows;
  krylov_operator apply;
  void *context;
} krylov_request;

typedef struct krylov_result {
  double *values;   /* [wanted] descending; owned */
  double *vectors;  /* (wanted, n) rows orthonormal; owned */
  int applications; /* columns that went through the operator */
  double excess;    /* estimate at the stop, relative to the tail */
  double lowest;    /* smallest Ritz value met: below zero only as far as G is indefinite */
} krylov_result;

/* Rows per application: 3 sqrt(wanted) in eights, 16 to 128. Measured for the mixed products of the adapter (24 for 64, 48 for 256): wider
 * blocks run faster by the row and need more rows, and the projected problem grows with them. */
int krylov_block(int64_t n, int wanted);

/* E_NUMERICS when it does not converge within a space of min(n, 16 * wanted + 512) vectors, E_MEMORY. An eigenvalue of higher
 * multiplicity than the block is seen a block at a time: of exactly equal values some may be taken for missing (generic matrices have none). */
status krylov_top(const char *where, const krylov_request *q, krylov_result *r);
void krylov_result_free(krylov_result *r);

#endif
