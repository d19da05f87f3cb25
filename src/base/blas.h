/* BLAS and LAPACK on one process, row-major, and which library answered. Local.
 *
 * All prototypes of the Fortran libraries (BLAS, LAPACK) stand in blas.c; ScaLAPACK's are in dist. Matrices here are ROW-major:
 * a is (rows, cols) with row stride lda. Dimensions are int as the library's are; callers check.
 * Bit-identity: with BLIS 0.9's skx kernels every entry of a gemm or syrk product depends only on its row of a, its column of b and k,
 * not on the shape or position of the tile it is computed in, as long as the tile has at least two rows and two columns (one alone goes
 * to gemv). With its other x86 kernels gemm does so from 512 rows and columns on (thin ones take a second path), syrk always.
 * tests/unit/blas.c asserts it for the library that is bound. */
#ifndef CLOQWORK_BASE_BLAS_H
#define CLOQWORK_BASE_BLAS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

/* Chooses BLIS's kernel from cpuid before the first product (its own detection can fall back to a kernel 1.75x slower on virtual
 * machines), and describes what the loader bound. Call once, before any product; never changes a user's own BLIS_ARCH_TYPE. */
typedef struct blas_info {
  char library[4096]; /* file that holds dgemm_ */
  char lapack[4096];  /* file that holds dpotrf_ */
  char kernel[64];    /* "skx (chosen from cpuid)", … */
  int threads;
} blas_info;
blas_info blas_setup(void);

/* c = alpha op(a) op(b) + beta c;  op(a) is (m, k), op(b) is (k, n), c is (m, n). 2mnk flops. */
void sgemm(bool ta, bool tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b, int ldb, float beta, float *c,
           int ldc);
void dgemm(bool ta, bool tb, int m, int n, int k, double alpha, const double *a, int lda, const double *b, int ldb, double beta, double *c,
           int ldc);

/* Lower triangle of c (n, n) = alpha a^T a + beta c with a (k, n): the Gram update. n^2 k flops. The strict upper triangle is not touched. */
void ssyrk_gram(int n, int k, float alpha, const float *a, int lda, float beta, float *c, int ldc);
/* Lower triangle of c (n, n) = alpha a a^T + beta c with a (n, k). */
void dsyrk_outer(int n, int k, double alpha, const double *a, int lda, double beta, double *c, int ldc);

/* x (m, n) <- x op(t)^{-1} (right) or op(t)^{-1} x (left), t triangular lower or upper, row-major. */
void dtrsm(bool right, bool lower, bool transpose, int m, int n, const double *t, int ldt, double *x, int ldx);

/* a (n, n) symmetric, lower triangle read -> a = L (lower; the strict upper triangle is zeroed). E_NUMERICS names the column when not positive definite. */
status dcholesky(const char *where, int n, double *a, int lda);
/* The same without words, for callers who know the column by another name: -1, or the first column (from 0) that is dependent or not finite. */
int dcholesky_column(int n, double *a, int lda);

/* a (n, n) symmetric, lower triangle read. values ascending; vectors: row i of a is eigenvector i on return. Residual and orthogonality are checked. */
status deigen(const char *where, int n, double *a, int lda, double *values);
/* Its eigenvalues alone, ascending; a is destroyed. */
status deigenvalues(const char *where, int n, double *a, int lda, double *values);

/* a (m, n), m >= n -> q (m, n) orthonormal in place, r (n, n) upper: a = q r. */
status dqr(const char *where, int m, int n, double *a, int lda, double *r, int ldr);

/* Pivoted Cholesky of symmetric a (destroyed): how many columns are independent to tolerance tol (absolute, on the diagonal). */
status drank(int n, double *a, int lda, double tol, int *rank);

#endif
