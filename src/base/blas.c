#include "base/blas.h"

#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "base/memory.h"

/* The only Fortran prototypes outside dist/. Hidden string lengths are omitted, as every C caller of BLAS does. */
extern void sgemm_(const char *, const char *, const int *, const int *, const int *, const float *, const float *, const int *,
                   const float *, const int *, const float *, float *, const int *);
extern void dgemm_(const char *, const char *, const int *, const int *, const int *, const double *, const double *, const int *,
                   const double *, const int *, const double *, double *, const int *);
extern void ssyrk_(const char *, const char *, const int *, const int *, const float *, const float *, const int *, const float *, float *,
                   const int *);
extern void dsyrk_(const char *, const char *, const int *, const int *, const double *, const double *, const int *, const double *,
                   double *, const int *);
extern void dtrsm_(const char *, const char *, const char *, const char *, const int *, const int *, const double *, const double *,
                   const int *, double *, const int *);
extern void dpotrf_(const char *, const int *, double *, const int *, int *);
extern void dpstrf_(const char *, const int *, double *, const int *, int *, int *, const double *, double *, int *);
extern void dsyevd_(const char *, const char *, const int *, double *, const int *, double *, double *, const int *, int *, const int *,
                    int *);
extern void dgeqrf_(const int *, const int *, double *, const int *, double *, double *, const int *, int *);
extern void dgelqf_(const int *, const int *, double *, const int *, double *, double *, const int *, int *);
extern void dorglq_(const int *, const int *, const int *, double *, const int *, const double *, double *, const int *, int *);

static void library_of(void *symbol, char *path, size_t size) {
  Dl_info info;
  char real[4096];
  if (!symbol || !dladdr(symbol, &info) || !info.dli_fname)
    snprintf(path, size, "unknown");
  else
    snprintf(path, size, "%s", realpath(info.dli_fname, real) ? real : info.dli_fname);
}

/* BLIS 0.9 takes its kernel from the processor's brand string and may end at haswell on machines that hide it. There skx is number 0;
 * other versions number differently, so they are left alone. */
static void choose_blis_kernel(blas_info *info) {
  const char *(*version)(void) = (const char *(*)(void))dlsym(RTLD_DEFAULT, "bli_info_get_version_str");
  if (!version && strstr(info->library, "blis")) { /* a libblas.so.3 made of BLIS hides its other symbols; its sibling tells the version */
    void *sibling = dlopen("libblis.so.4", RTLD_LAZY | RTLD_LOCAL);
    if (sibling) version = (const char *(*)(void))dlsym(sibling, "bli_info_get_version_str");
  }
  const char *set = getenv("BLIS_ARCH_TYPE"), *text = version ? version() : NULL;
  if (set) {
    snprintf(info->kernel, sizeof info->kernel, "BLIS_ARCH_TYPE=%s (set by the user)", set);
    return;
  }
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl");
  if (text && strncmp(text, "0.9", 3) == 0 && avx512) {
    setenv("BLIS_ARCH_TYPE", "0", 1);
    snprintf(info->kernel, sizeof info->kernel, "BLIS %s, skx (chosen from cpuid)", text);
    return;
  }
#endif
  snprintf(info->kernel, sizeof info->kernel, text ? "BLIS %s, its own choice" : "the library's own choice", text);
}

blas_info blas_setup(void) {
  blas_info info = {.threads = 1};
  library_of((void *)dgemm_, info.library, sizeof info.library);
  library_of((void *)dpotrf_, info.lapack, sizeof info.lapack);
  choose_blis_kernel(&info);
  static const char *const variables[] = {"BLIS_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"};
  for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) {
    const char *text = getenv(variables[i]);
    if (text && atoi(text) > 0) {
      info.threads = atoi(text);
      break;
    }
  }
  return info;
}

/* Row-major c = a b is column-major c^T = b^T a^T: operands change places, flags stay with their matrices. */
void sgemm(bool ta, bool tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b, int ldb, float beta, float *c,
           int ldc) {
  sgemm_(tb ? "T" : "N", ta ? "T" : "N", &n, &m, &k, &alpha, b, &ldb, a, &lda, &beta, c, &ldc);
}

void dgemm(bool ta, bool tb, int m, int n, int k, double alpha, const double *a, int lda, const double *b, int ldb, double beta, double *c,
           int ldc) {
  dgemm_(tb ? "T" : "N", ta ? "T" : "N", &n, &m, &k, &alpha, b, &ldb, a, &lda, &beta, c, &ldc);
}

/* The row-major lower triangle is the column-major upper one. */
void ssyrk_gram(int n, int k, float alpha, const float *a, int lda, float beta, float *c, int ldc) {
  ssyrk_("U", "N", &n, &k, &alpha, a, &lda, &beta, c, &ldc);
}

void dsyrk_outer(int n, int k, double alpha, const double *a, int lda, double beta, double *c, int ldc) {
  dsyrk_("U", "T", &n, &k, &alpha, a, &lda, &beta, c, &ldc);
}

void dtrsm(bool right, bool lower, bool transpose, int m, int n, const double *t, int ldt, double *x, int ldx) {
  double one = 1;
  dtrsm_(right ? "L" : "R", lower ? "U" : "L", transpose ? "T" : "N", "N", &n, &m, &one, t, &ldt, x, &ldx);
}

int dcholesky_column(int n, double *a, int lda) {
  int info = 0;
  dpotrf_("U", &n, a, &lda, &info);
  if (info != 0) return info > 0 ? info - 1 : 0;
  for (int i = 0; i < n; i++) {
    if (!isfinite(a[(size_t)i * (size_t)lda + (size_t)i])) return i;
    memset(a + (size_t)i * (size_t)lda + (size_t)i + 1, 0, (size_t)(n - 1 - i) * sizeof *a);
  }
  return -1;
}

status dcholesky(const char *where, int n, double *a, int lda) {
  if (fault_here()) return fail(E_NUMERICS, "%s: Cholesky: injected fault", where);
  int column = dcholesky_column(n, a, lda);
  if (column < 0) return OK;
  return fail(E_NUMERICS, "%s: Cholesky: expected a positive definite matrix of order %d, found column %d dependent or not finite", where,
              n, column);
}

/* ||A z - lambda z|| and ||z|| - 1 for a handful of pairs, against a copy of A's probe products: full products would cost as much again. */
static status eigen_check(const char *where, int n, const double *vectors, int lda, const double *values, const double *probe,
                          const double *image) {
  double scale = fmax(fabs(values[0]), fabs(values[n - 1])), norm = 0, error = 0, defect = 0;
  for (int i = 0; i < n; i++) norm += probe[i] * probe[i];
  double *c;
  status st = NEW(c, 3 * (size_t)n, "eigen check");
  if (st != OK) return st;
  double *rebuilt = c + n, *back = rebuilt + n; /* Z diag(values) Z^T p and Z Z^T p with rows of `vectors` as z */
  dgemm(false, false, n, 1, n, 1, vectors, lda, probe, 1, 0, c, 1);
  for (int i = 0; i < n; i++) c[i] *= values[i];
  dgemm(true, false, n, 1, n, 1, vectors, lda, c, 1, 0, rebuilt, 1);
  for (int i = 0; i < n; i++) error += (rebuilt[i] - image[i]) * (rebuilt[i] - image[i]);
  dgemm(false, false, n, 1, n, 1, vectors, lda, probe, 1, 0, c, 1);
  dgemm(true, false, n, 1, n, 1, vectors, lda, c, 1, 0, back, 1);
  for (int i = 0; i < n; i++) defect += (back[i] - probe[i]) * (back[i] - probe[i]);
  double bound = 1e-13 * (n + 10.0);
  if (!(sqrt(error) <= bound * scale * sqrt(norm)) || !(sqrt(defect) <= bound * sqrt(norm)))
    st = fail(E_NUMERICS, "%s: eigenvectors of order %d: expected residual and orthogonality defect below %.1e, found %.1e and %.1e", where,
              n, bound, sqrt(error) / (scale * sqrt(norm)), sqrt(defect / norm));
  FREE(c);
  return st;
}

status deigen(const char *where, int n, double *a, int lda, double *values) {
  status st = OK;
  double *work = NULL, *probe = NULL;
  int *iwork = NULL, info = 0;
  if (n == 0) return OK;
  /* dsyevd needs 1 + 6n + 2n^2 and 3 + 5n: known exactly, no query. */
  if (n > 32000) return fail(E_USAGE, "%s: eigenvectors of order %d do not fit one rank's LAPACK: use more ranks", where, n);
  int lwork = 1 + 6 * n + 2 * n * n, liwork = 3 + 5 * n;
  TRY(NEW(work, lwork, "eigen workspace"));
  TRY(NEW(iwork, liwork, "eigen workspace"));
  TRY(NEW(probe, 2 * (size_t)n, "eigen probe"));
  for (int i = 0; i < n; i++) probe[i] = 1 + 0.5 * sin(1.7 * i);
  double *image = probe + n;
  for (int i = 0; i < n; i++)
    for (int j = 0; j <= i; j++) {
      double v = a[(size_t)i * (size_t)lda + (size_t)j];
      image[i] += v * probe[j];
      if (j < i) image[j] += v * probe[i];
    }
  if (fault_here())
    info = 1;
  else
    dsyevd_("V", "U", &n, a, &lda, values, work, &lwork, iwork, &liwork, &info);
  if (info) {
    st = fail(info > 0 ? E_NUMERICS : E_INTERNAL, "%s: eigensolver of order %d did not converge (info=%d)", where, n, info);
    goto done;
  }
  TRY(eigen_check(where, n, a, lda, values, probe, image));
done:
  FREE(probe);
  FREE(iwork);
  FREE(work);
  return st;
}

status deigenvalues(const char *where, int n, double *a, int lda, double *values) {
  status st = OK;
  double *work = NULL;
  int lwork = 1 + 2 * n, iwork[1], liwork = 1, info = 0;
  TRY(NEW(work, lwork, "eigen workspace"));
  dsyevd_("N", "U", &n, a, &lda, values, work, &lwork, iwork, &liwork, &info);
  if (info) st = fail(info > 0 ? E_NUMERICS : E_INTERNAL, "%s: eigenvalues of order %d did not converge (info=%d)", where, n, info);
done:
  FREE(work);
  return st;
}

/* Row-major (m, n) is column-major (n, m): its LQ factorization is ours transposed. */
status dqr(const char *where, int m, int n, double *a, int lda, double *r, int ldr) {
  status st = OK;
  double *tau = NULL, *work = NULL, size = 0, size2 = 0;
  int query = -1, info = 0;
  TRY(NEW(tau, n + 1, "QR"));
  dgelqf_(&n, &m, a, &lda, tau, &size, &query, &info);
  dorglq_(&n, &m, &n, a, &lda, tau, &size2, &query, &info);
  int lwork = (int)fmax(size, size2) + 64;
  TRY(NEW(work, lwork, "QR workspace"));
  if (fault_here()) {
    st = fail(E_NUMERICS, "%s: QR: injected fault", where);
    goto done;
  }
  dgelqf_(&n, &m, a, &lda, tau, work, &lwork, &info);
  if (info) {
    st = fail(E_INTERNAL, "%s: dgelqf: argument %d", where, -info);
    goto done;
  }
  for (int i = 0; i < n; i++) /* column-major lower L(j, i) = a[i ld + j], j >= i, is row-major upper R(i, j) */
    for (int j = 0; j < n; j++) r[(size_t)i * (size_t)ldr + (size_t)j] = j >= i ? a[(size_t)i * (size_t)lda + (size_t)j] : 0;
  dorglq_(&n, &m, &n, a, &lda, tau, work, &lwork, &info);
  if (info) st = fail(E_INTERNAL, "%s: dorglq: argument %d", where, -info);
done:
  FREE(work);
  FREE(tau);
  return st;
}

status drank(int n, double *a, int lda, double tol, int *rank) {
  status st = OK;
  int *pivots = NULL, info = 0;
  double *work = NULL;
  *rank = 0;
  if (n == 0) return OK;
  TRY(NEW(pivots, n, "pivots"));
  TRY(NEW(work, 2 * (size_t)n, "pivoted Cholesky workspace"));
  dpstrf_("U", &n, a, &lda, pivots, rank, &tol, work, &info);
  if (info < 0) st = fail(E_INTERNAL, "rank: dpstrf: argument %d", -info);
done:
  FREE(work);
  FREE(pivots);
  return st;
}
