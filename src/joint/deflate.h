/* The Gram with the adapter eliminated. Source: spec methods 2.3, oracles O9 and O10; prior art: "Deflating the Hessian" (2026), H-SVDQuant.
 *
 * For fixed A (r, m) the best B is E H A^T (A H A^T)^{-1}, and what is left is tr(E P E^T) with
 *     P(A) = M - M A^T (A M A^T)^{-1} A M = M - Z^T Z,   M = H + ridge I,
 * which depends on the row space of A alone: W and W - B A have the same loss in P for any B. */
#ifndef CLOQWORK_JOINT_DEFLATE_H
#define CLOQWORK_JOINT_DEFLATE_H

#include "dist/team.h"

typedef struct deflate_request {
  const team *t;
  const char *where; /* for messages; borrowed */
  int64_t m;
  int rank;
  const double *a; /* (rank, m) contiguous; the same on every rank; borrowed */
  const float *h;  /* (m, m) symmetric, contiguous, seen by the team; borrowed */
  double ridge;    /* absolute, >= 0: of M */
  double shrink;   /* >= 0: an eigenvalue d of A M A^T is deflated by the part d / (d + shrink): GPTQ-intrinsic LoRA's H' (methods 10) */
} deflate_request;

/* Collective over t, both of them; the same bits for any number of ranks. work: memory the team shares, of deflate_shared bytes. E_NUMERICS, E_MEMORY.
 *
 * deflate leaves Z (*kept, m) at the start of work. Directions of A whose eigenvalue of A M A^T is below 1e-12 of the largest are left out.
 * 2 rank m^2 flops, in double.
 * deflate_gram: p (m, m) row-major float in memory the team shares, both triangles equal to the bit, from the Z there, complete on return. rank m^2
 * flops. */
status deflate(const deflate_request *q, double *work, int *kept);
status deflate_gram(const deflate_request *q, const double *work, int kept, float *p);
uint64_t deflate_shared(int64_t m, int rank);
uint64_t deflate_bytes(int64_t m, int rank); /* private, of a rank */
double deflate_flops(int64_t m, int rank);   /* of the team */
double deflate_gram_flops(int64_t m, int rank);

#endif
