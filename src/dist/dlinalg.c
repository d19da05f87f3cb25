#include "dist/dlinalg.h"

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/blas.h"
#include "base/fault.h"
#include "base/memory.h"
#include "dist/agree.h"
#include "dist/probe.h"
#include "dist/scalapack.h"

enum { DIRECT = 512 }; /* eigenproblems up to this order go whole to one rank's LAPACK */

static const int one = 1;

/* ---- What the libraries call when an argument is wrong --------------------------------------------------------------------------- */

/* ScaLAPACK's own versions print and go on, on the one rank that noticed, while the others wait inside the library for ever. */
static _Noreturn void abort_job(const char *routine, size_t length, int argument) {
  int up = 0;
  fprintf(stderr, "cloqwork: internal: %.*s: argument %d is wrong\n", (int)(length < 16 ? strnlen(routine, length) : strnlen(routine, 16)),
          routine, argument);
  MPI_Initialized(&up);
  if (up) MPI_Abort(MPI_COMM_WORLD, status_exit_code(E_INTERNAL));
  _Exit(status_exit_code(E_INTERNAL));
}

void pxerbla_(const int *context, const char *routine, const int *info, size_t length);
void pxerbla_(const int *context, const char *routine, const int *info, size_t length) {
  (void)context;
  abort_job(routine, length, *info);
}

void xerbla_(const char *routine, const int *info, size_t length);
void xerbla_(const char *routine, const int *info, size_t length) { abort_job(routine, length, *info); }

/* ---- Fences --------------------------------------------------------------------------------------------------------------------- */

/* Collective. The last fence before a library's collective call: after it every rank makes the call, or none. */
static status ready(const grid *g, const char *where, const char *routine, status st) {
  if (st == OK && fault_here()) st = fail(E_INTERNAL, "%s: %s: injected fault", where, routine);
  return agree(g->comm, st);
}

/* Collective. The largest info of all ranks (the library's promise that it is global is not relied on); negative infos abort in pxerbla_. */
static int largest_info(const grid *g, int info) {
  int largest;
  MPI_Allreduce(&info, &largest, 1, MPI_INT, MPI_MAX, g->comm);
  return largest;
}

/* Collective. A workspace that suffices on every rank: the largest query of all, and slack, since queries are too small where ranks hold
 * few columns (pdsyevd) and rounded where they are returned as a floating-point number. */
static status workspace(const grid *g, const char *where, double query, int *length) {
  double largest;
  MPI_Allreduce(&query, &largest, 1, MPI_DOUBLE, MPI_MAX, g->comm);
  double padded = largest * (1 + 1e-6) + (1 << 18);
  if (padded > INT_MAX)
    return fail(E_USAGE, "%s: the workspace of ScaLAPACK (%.3g numbers a rank) exceeds its 32-bit counts: use more ranks per team", where,
                padded);
  *length = (int)padded;
  return OK;
}

static status same_layout(const char *where, const dmat *a, const dmat *b, int64_t m, int64_t n) {
  if (b->g == a->g && b->nb == a->nb && b->m == m && b->n == n) return OK;
  return fail(E_INTERNAL, "%s: expected a %lld x %lld matrix in blocks of %d on the same grid, found %lld x %lld in blocks of %d%s", where,
              (long long)m, (long long)n, a->nb, (long long)b->m, (long long)b->n, b->nb, b->g == a->g ? "" : " on another grid");
}

static status square(const char *where, const dmat *a) {
  if (a->m == a->n) return OK;
  return fail(E_INTERNAL, "%s: expected a square matrix, found %lld x %lld", where, (long long)a->m, (long long)a->n);
}

/* ---- Probes --------------------------------------------------------------------------------------------------------------------- */

typedef enum part { WHOLE, LOWER, UPPER, SYMMETRIC } part; /* SYMMETRIC: its lower triangle is read, for both */

/* Collective. y = op(part of d) x; x and y are whole vectors on every rank. */
static status apply(const dmat *d, part p, bool transpose, const double *x, double *y) {
  status st = OK;
  double *in = NULL;
  TRY(agree(d->g->comm, NEW(in, 2 * (size_t)d->lld, "probe")));
  double *out = in + d->lld;
  int64_t length = transpose ? d->n : d->m;
  memset(y, 0, (size_t)length * sizeof *y);
  if (transpose || p == SYMMETRIC)
    for (int k = 0; k < d->mloc; k++) in[k] = x[dmat_row(d, k)];
  for (int l = 0; l < d->nloc; l++) {
    int64_t j = dmat_col(d, l);
    const double *column = d->a + (size_t)l * (size_t)d->lld;
    int first = p == LOWER || p == SYMMETRIC ? dmat_rows_below(d, j) : 0, last = p == UPPER ? dmat_rows_below(d, j + 1) : d->mloc;
    if (last > d->mloc) last = d->mloc;
    if (first >= last) continue;
    if (!transpose) probe_add(out + first, x[j], column + first, last - first);
    if (p == SYMMETRIC && dmat_row(d, first) == j) first++;
    if (transpose || p == SYMMETRIC) y[j] += probe_dot(column + first, in + first, last - first);
  }
  if (!transpose)
    for (int k = 0; k < d->mloc; k++) y[dmat_row(d, k)] += out[k];
  MPI_Allreduce(MPI_IN_PLACE, y, (int)length, MPI_DOUBLE, MPI_SUM, d->g->comm);
done:
  FREE(in);
  return st;
}

/* Collective. The Frobenius norm. */
static double size_of(const dmat *d) {
  double sum = 0, all;
  for (int l = 0; l < d->nloc; l++) {
    const double *column = d->a + (size_t)l * (size_t)d->lld;
    sum += probe_dot(column, column, d->mloc);
  }
  MPI_Allreduce(&sum, &all, 1, MPI_DOUBLE, MPI_SUM, d->g->comm);
  return sqrt(all);
}

static double norm(const double *x, int64_t n) { return sqrt(probe_dot(x, x, (int)n)); }

/* Collective. ||x - y|| <= bound * scale, or E_NUMERICS with the size and both. (MPI does not promise that a sum has the same last bits on
 * every rank, so the verdict is agreed on.) */
static status near(const grid *g, const char *where, const char *what, int64_t n, const double *x, const double *y, double scale) {
  status st = OK;
  double error = 0, bound = 64 * DBL_EPSILON * ((double)n + 10);
  for (int64_t i = 0; i < n; i++) error += (x[i] - y[i]) * (x[i] - y[i]);
  error = scale > 0 ? sqrt(error) / scale : sqrt(error);
  if (!(error <= bound)) /* NaN too */
    st = fail(E_NUMERICS, "%s: %s of order %lld: expected a residual below %.1e, found %.1e", where, what, (long long)n, bound, error);
  return agree(g->comm, st);
}

/* ---- Products and factorizations ------------------------------------------------------------------------------------------------ */

status dmat_gemm(bool ta, bool tb, double alpha, const dmat *a, const dmat *b, double beta, dmat *c) {
  status st = OK;
  const grid *g = c->g;
  double arguments[] = {ta, tb, alpha, beta, (double)a->m, (double)a->n, (double)b->m, (double)b->n, (double)c->m, (double)c->n};
  TRY(agree_same(g->comm, "matrix product: arguments", arguments, sizeof arguments));
  int m = (int)c->m, n = (int)c->n, k = (int)(ta ? a->m : a->n);
  st = same_layout("matrix product", c, a, ta ? k : m, ta ? m : k);
  if (st == OK) st = same_layout("matrix product", c, b, tb ? n : k, tb ? k : n);
  TRY(ready(g, "matrix product", "pdgemm", st));
  pdgemm_(ta ? "T" : "N", tb ? "T" : "N", &m, &n, &k, &alpha, a->a, &one, &one, a->desc, b->a, &one, &one, b->desc, &beta, c->a, &one, &one,
          c->desc);
done:
  return st;
}

/* Local. Zeroes what is above (or below) the diagonal. */
static void clear_triangle(dmat *a, bool above) {
  for (int l = 0; l < a->nloc; l++) {
    int64_t j = dmat_col(a, l);
    int cut = above ? dmat_rows_below(a, j) : dmat_rows_below(a, j + 1);
    double *column = a->a + (size_t)l * (size_t)a->lld;
    if (above)
      memset(column, 0, (size_t)cut * sizeof *column);
    else if (cut < a->mloc)
      memset(column + cut, 0, (size_t)(a->mloc - cut) * sizeof *column);
  }
}

/* Collective. The first column whose diagonal is not a positive number, or n. */
static int64_t bad_diagonal(const dmat *a) {
  int64_t first = a->n, all;
  for (int l = 0; l < a->nloc; l++) {
    int64_t j = dmat_col(a, l);
    int k = dmat_rows_below(a, j);
    if (k >= a->mloc || dmat_row(a, k) != j) continue;
    double v = a->a[(size_t)l * (size_t)a->lld + (size_t)k];
    if (!(v > 0 && isfinite(v)) && j < first) first = j;
  }
  MPI_Allreduce(&first, &all, 1, MPI_INT64_T, MPI_MIN, a->g->comm);
  return all;
}

/* Collective. L L^T x against A x. */
static status cholesky_check(const char *where, const dmat *l, const double *x, const double *image, double *c, double *rebuilt) {
  status st = OK;
  TRY(apply(l, LOWER, true, x, c));
  TRY(apply(l, LOWER, false, c, rebuilt));
  TRY(near(l->g, where, "Cholesky factor", l->n, rebuilt, image, size_of(l) * norm(c, l->n)));
done:
  return st;
}

status dmat_cholesky(const char *where, dmat *a) {
  status st = OK;
  int n = (int)a->n, info = 0;
  double *x = NULL;
  TRY(agree(a->g->comm, square(where, a)));
  TRY(agree(a->g->comm, NEW(x, 4 * (size_t)n, "Cholesky probe")));
  double *image = x + n, *c = image + n, *rebuilt = c + n;
  for (int j = 0; j < n; j++) x[j] = probe_sign(j);
  TRY(apply(a, SYMMETRIC, false, x, image));
  TRY(ready(a->g, where, "pdpotrf", OK));
  pdpotrf_("L", &n, a->a, &one, &one, a->desc, &info);
  info = largest_info(a->g, info);
  int64_t column = info > 0 ? info - 1 : bad_diagonal(a);
  if (column < n)
    st = fail(E_NUMERICS, "%s: Cholesky: expected a positive definite matrix of order %d, found column %lld dependent or not finite", where,
              n, (long long)column);
  TRY(agree(a->g->comm, st));
  clear_triangle(a, true);
  TRY(cholesky_check(where, a, x, image, c, rebuilt));
done:
  FREE(x);
  return st;
}

/* ---- Eigenvectors --------------------------------------------------------------------------------------------------------------- */

/* Collective. One rank's LAPACK, and everybody gets its answer: the same bits for any number of ranks. */
static status eigen_direct(const char *where, const dmat *a, double *values, dmat *z) {
  status st = OK;
  int n = (int)a->n;
  double *whole = NULL;
  TRY(agree(a->g->comm, NEW(whole, (size_t)n * (size_t)n, "eigenvectors")));
  dmat_to_rows(a, whole, n, true);
  size_t count = (size_t)n * (size_t)n, slice = 1 << 20;
  for (size_t at = 0; at < count; at += slice) /* every entry has one owner, the others add zero */
    MPI_Allreduce(MPI_IN_PLACE, whole + at, (int)(count - at < slice ? count - at : slice), MPI_DOUBLE, MPI_SUM, a->g->comm);
  if (a->g->rank == 0) st = deigen(where, n, whole, n, values);
  TRY(agree(a->g->comm, st));
  TRY(share_bytes(a->g->comm, values, (size_t)n * sizeof *values));
  TRY(share_bytes(a->g->comm, whole, count * sizeof *whole));
  dmat_from_rows(z, whole, n, true);
done:
  FREE(whole);
  return st;
}

/* Collective. Z diag(values) Z^T x against A x, and Z Z^T x against x. */
static status eigen_check(const char *where, const dmat *z, const double *values, const double *x, const double *image, double *c,
                          double *back) {
  status st = OK;
  int64_t n = z->n;
  TRY(apply(z, WHOLE, true, x, c));
  TRY(apply(z, WHOLE, false, c, back));
  TRY(near(z->g, where, "orthogonality of eigenvectors", n, back, x, norm(x, n)));
  for (int64_t j = 0; j < n; j++) c[j] *= values[j];
  TRY(apply(z, WHOLE, false, c, back));
  TRY(near(z->g, where, "eigenvectors", n, back, image, fmax(fabs(values[0]), fabs(values[n - 1])) * norm(x, n)));
done:
  return st;
}

static status eigen_scalapack(const char *where, dmat *a, double *values, dmat *z) {
  status st = OK;
  const grid *g = a->g;
  int n = (int)a->n, info = 0, query = -1, lwork = 0, liwork = 0, isize = 0;
  double size = 0, *x = NULL, *work = NULL;
  int *iwork = NULL;
  TRY(ready(g, where, "pdsyevd", NEW(x, 4 * (size_t)n, "eigen probe")));
  double *image = x + n, *c = image + n, *back = c + n;
  for (int j = 0; j < n; j++) x[j] = probe_sign(j);
  TRY(apply(a, SYMMETRIC, false, x, image));

  pdsyevd_("V", "L", &n, a->a, &one, &one, a->desc, values, z->a, &one, &one, z->desc, &size, &query, &isize, &query, &info);
  double np = a->mloc, nq = a->nloc, nb = a->nb; /* the manual's formulas: the query alone is too small on ranks with few columns */
  double needed = fmax(size, fmax(6.0 * n + 2 * np * nq, np * (nb + nq) + 6.0 * n)) + 2.0 * n;
  st = workspace(g, where, needed, &lwork);
  if (st == OK) st = workspace(g, where, fmax(isize, 7.0 * n + 8.0 * g->npcol + 2), &liwork);
  if (st == OK) st = NEW(work, lwork, "eigen workspace");
  if (st == OK) st = NEW(iwork, liwork, "eigen workspace");
  TRY(agree(g->comm, st));
  pdsyevd_("V", "L", &n, a->a, &one, &one, a->desc, values, z->a, &one, &one, z->desc, work, &lwork, iwork, &liwork, &info);
  info = largest_info(g, info);
  if (info > 0) st = fail(E_NUMERICS, "%s: eigensolver of order %d did not converge (info=%d)", where, n, info);
  TRY(agree(g->comm, st));
  TRY(eigen_check(where, z, values, x, image, c, back));
done:
  FREE(iwork);
  FREE(work);
  FREE(x);
  return st;
}

status dmat_eigen(const char *where, dmat *a, double *values, dmat *z) {
  status st = square(where, a);
  if (st == OK) st = same_layout(where, a, z, a->m, a->n);
  TRY(agree(a->g->comm, st));
  /* pdsyevd gives wrong vectors with info = 0 where ranks hold few columns or none. */
  bool direct = a->n <= DIRECT || a->n <= (int64_t)a->nb * a->g->npcol;
  st = direct ? eigen_direct(where, a, values, z) : eigen_scalapack(where, a, values, z);
done:
  return st;
}

/* ---- QR ------------------------------------------------------------------------------------------------------------------------- */

/* Local. The top of a is where r is: blocks are dealt alike from the same corner. */
static void copy_upper(const dmat *a, dmat *r) {
  for (int l = 0; l < r->nloc; l++)
    memcpy(r->a + (size_t)l * (size_t)r->lld, a->a + (size_t)l * (size_t)a->lld, (size_t)r->mloc * sizeof *r->a);
  clear_triangle(r, false);
}

/* Collective. Q R x against A x, and Q^T Q x against x. */
static status qr_check(const char *where, const dmat *q, const dmat *r, const double *x, const double *image, double *c,
                       double *long_vector) {
  status st = OK;
  TRY(apply(q, WHOLE, false, x, long_vector));
  TRY(apply(q, WHOLE, true, long_vector, c));
  TRY(near(q->g, where, "orthogonality of QR", q->n, c, x, norm(x, q->n)));
  TRY(apply(r, UPPER, false, x, c));
  TRY(apply(q, WHOLE, false, c, long_vector));
  TRY(near(q->g, where, "QR", q->m, long_vector, image, size_of(r) * norm(x, q->n)));
done:
  return st;
}

status dmat_qr(const char *where, dmat *a, dmat *r) {
  status st = OK;
  const grid *g = a->g;
  int m = (int)a->m, n = (int)a->n, info = 0, query = -1, lwork = 0;
  double size = 0, size2 = 0, *x = NULL, *tau = NULL, *work = NULL;
  st = m >= n ? same_layout(where, a, r, n, n)
              : fail(E_INTERNAL, "%s: QR: expected at least as many rows as columns, found %d x %d", where, m, n);
  TRY(agree(g->comm, st));
  st = NEW(x, 2 * (size_t)n + 2 * (size_t)m, "QR probe");
  if (st == OK) st = NEW(tau, (size_t)a->nloc + (size_t)a->nb, "QR");
  TRY(ready(g, where, "pdgeqrf", st));
  double *c = x + n, *image = c + n, *back = image + m;
  for (int j = 0; j < n; j++) x[j] = probe_sign(j);
  TRY(apply(a, WHOLE, false, x, image));

  pdgeqrf_(&m, &n, a->a, &one, &one, a->desc, tau, &size, &query, &info);
  pdorgqr_(&m, &n, &n, a->a, &one, &one, a->desc, tau, &size2, &query, &info);
  st = workspace(g, where, fmax(size, size2), &lwork);
  if (st == OK) st = NEW(work, lwork, "QR workspace");
  TRY(agree(g->comm, st));
  pdgeqrf_(&m, &n, a->a, &one, &one, a->desc, tau, work, &lwork, &info);
  copy_upper(a, r);
  pdorgqr_(&m, &n, &n, a->a, &one, &one, a->desc, tau, work, &lwork, &info);
  TRY(qr_check(where, a, r, x, image, c, back));
done:
  FREE(work);
  FREE(tau);
  FREE(x);
  return st;
}
