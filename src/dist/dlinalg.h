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

/* The same factor of a matrix that is less by r outer products: u, as reverse_cholesky left it -> beside it D, upper, with
 *     D D^T = u u^T - Z[:, order]^T Z[:, order],   z (r, n) by columns of h, seen by the team.
 * u's upper triangle stays; its strict lower triangle becomes that of D^T, D's diagonal goes to diagonal [n]; work: reverse_downdate_shared
 * bytes: both in memory of the team. (3 r + 192) n^2 flops.
 *
 * With Y = u^{-1} Z^T the factor is D = u C, C upper with C C^T = I - Y Y^T. From the last block k of rows of Y to the first, with
 * S_k = I - sum over l > k of Y_l^T Y_l (r, r):  C_kk C_kk^T = I - Y_k S_k^{-1} Y_k^T  and  C_ik = -Y_i S_k^{-1} Y_k^T C_kk^{-T}  for i < k,
 * so that a block row of D is made from u's and the running sum of u_ij Y_j (after Gill, Golub, Murray and Saunders 1974, in blocks).
 * THE SAME BITS for any number of ranks. The residual on a probe is checked. E_NUMERICS: what is left is not positive definite. */
status reverse_downdate(const char *where, const team *t, int64_t n, const int32_t *order, int r, const double *z, double *work, double *u,
                        double *diagonal);
uint64_t reverse_downdate_shared(int64_t n, int r);
uint64_t reverse_downdate_bytes(int64_t n, int r); /* private, of a rank */
double reverse_downdate_flops(int64_t n, int r);

#endif
