/* Dense linear algebra on block-cyclic matrices: ScaLAPACK called right. All Collective over the grid of their matrices.
 *
 * 1-based indices, workspaces (queried, padded) and info exist only in dlinalg.c; prototypes in dist/scalapack.h (private).
 * info == 0 is never believed: every factorization and decomposition is checked by its residual on a probe vector before it is
 * returned (E_NUMERICS with the size, the residual and the bound). pxerbla_ and xerbla_ (a wrong argument to ScaLAPACK or LAPACK) are
 * ours: they name the routine and abort the job with code 70. Arguments that differ between ranks are E_INTERNAL on all of them. */
#ifndef CLOQWORK_DIST_DLINALG_H
#define CLOQWORK_DIST_DLINALG_H

#include "dist/grid.h"
#include "dist/team.h"

/* c = alpha op(a) op(b) + beta c */
status dmat_gemm(bool ta, bool tb, double alpha, const dmat *a, const dmat *b, double beta, dmat *c);

/* a symmetric, lower triangle read -> its lower Cholesky factor (strict upper triangle zeroed). m^3/3 flops. */
status dmat_cholesky(const char *where, dmat *a);

/* a symmetric, both triangles filled, destroyed. values[n] ascending on every rank; z (n, n) eigenvectors in columns.
 * Sizes up to 512, or to one block for every grid column, go to LAPACK on one rank and are broadcast (the same bits on any grid;
 * pdsyevd is wrong there), others to pdsyevd. ~ 4/3 n^3 + … flops. */
status dmat_eigen(const char *where, dmat *a, double *values, dmat *z);

/* a (m, n), m >= n -> q in place of a (orthonormal columns), r (n, n) upper. */
status dmat_qr(const char *where, dmat *a, dmat *r);

/* Reverse Cholesky for OPTQ: u (n, n) row-major, UPPER (zeros below), in shared memory of t, u u^T = h + ridge I, where h (n, n) row-major
 * float, symmetric, both triangles, lies in shared memory (dead columns, h_jj == 0, count as h_jj = 1). order: NULL, or the processing
 * order p (position -> column), the same on every rank: then u u^T = (h + ridge I)[p, p]. Residual checked. E_NUMERICS names the column
 * (of h) that is not positive definite, on all ranks. n^3/3 flops; no memory but 2 n doubles a rank: factored where it stands.
 *
 * u has THE SAME BITS for any number of ranks, whatever BLAS is bound: the tiling depends on n alone, a tile's update is one BLAS call of
 * fixed shape, and ranks only decide who makes it. ScaLAPACK's pdpotrf has not this property (its local shapes follow the grid; measured
 * to differ from n = 65 on) and is the judge in the test. Collective over t. */
status reverse_cholesky(const char *where, const team *t, int64_t n, const float *h, double ridge, const int32_t *order, double *u);

#endif
