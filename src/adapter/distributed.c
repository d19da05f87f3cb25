#include <math.h>
#include <string.h>

#include "adapter/internal.h"
#include "adapter/mixed.h"
#include "base/memory.h"
#include "dist/agree.h"
#include "dist/dlinalg.h"

/* Collective. Sum of x over the ranks, entry by entry: every entry is nonzero on one rank, so nothing is rounded. */
static status gather(const grid *g, double *x, int64_t count) {
  enum { SLICE = 1 << 26 };
  for (int64_t i = 0; i < count; i += SLICE) {
    int part = (int)(count - i < SLICE ? count - i : SLICE);
    int rc = MPI_Allreduce(MPI_IN_PLACE, x + i, part, MPI_DOUBLE, MPI_SUM, g->comm);
    if (rc != MPI_SUCCESS) return mpi_check(rc, "adapter: sharing factors");
  }
  return OK;
}

/* Collective. tr(E H E^T), rows dealt, terms added in the order of rows on every rank. */
static status grid_trace(const adapter_request *q, const grid *g, double *trace) {
  status st = OK;
  double *terms = NULL, mine;
  int64_t begin, end;
  st = NEW(terms, q->n, "row losses");
  TRY(agree(g->comm, st));
  deal_range(q->n, g->size, g->rank, 1, &begin, &end);
  st = metric_trace(q, begin, end, terms + begin, &mine);
  TRY(agree(g->comm, st));
  TRY(gather(g, terms, q->n));
  *trace = 0;
  for (int64_t i = 0; i < q->n; i++) *trace += terms[i];
done:
  FREE(terms);
  return st;
}

/* Collective. Last `rank` columns of z (n, n) as descending rows, on every rank. */
static status replicate_leading(const dmat *z, int rank, double *rows) {
  int64_t n = z->m;
  memset(rows, 0, (size_t)rank * (size_t)n * sizeof *rows);
  for (int l = 0; l < z->nloc; l++) {
    int64_t r = z->n - 1 - dmat_col(z, l);
    if (r >= rank) continue;
    for (int k = 0; k < z->mloc; k++) rows[r * n + dmat_row(z, k)] = z->a[(size_t)l * (size_t)z->lld + (size_t)k];
  }
  return gather(z->g, rows, rank * n);
}

/* c = x M x^T: (p, p) from x (p, m); M the metric of the request. */
static status sandwich(const adapter_request *q, const dmat *x, dmat *c) {
  status st = OK;
  dmat h = {0}, xh = {0};
  TRY(dmat_new(x->g, x->m, x->m, DMAT_NB, "E H E^T", c));
  if (!metric_given(q)) {
    TRY(dmat_gemm(false, true, 1, x, x, 0, c));
  } else if (q->diagonal) {
    TRY(dmat_new(x->g, x->m, x->n, DMAT_NB, "E diag(d)", &xh));
    for (int l = 0; l < x->nloc; l++)
      for (int k = 0; k < x->mloc; k++) {
        size_t at = (size_t)l * (size_t)x->lld + (size_t)k;
        xh.a[at] = x->a[at] * (double)q->diagonal[dmat_col(x, l)];
      }
    TRY(dmat_gemm(false, true, 1, &xh, x, 0, c));
  } else {
    TRY(dmat_new(x->g, q->m, q->m, DMAT_NB, "Gram in double", &h));
    dmat_from_rows_float(&h, q->h, q->m, false);
    TRY(dmat_new(x->g, x->m, q->m, DMAT_NB, "E H", &xh));
    TRY(dmat_gemm(false, false, 1, x, &h, 0, &xh));
    dmat_free(&h);
    TRY(dmat_gemm(false, true, 1, &xh, x, 0, c));
  }
done:
  dmat_free(&h);
  dmat_free(&xh);
  return st;
}

/* n <= m: eigenvectors of E H E^T itself; n > m: those of R H R^T with E = Q R, and V = Q U for the wanted columns, kept in rows. */
static status grid_spectrum(const adapter_request *q, const grid *g, double *rows, double *values) {
  status st = OK;
  bool inner = q->n > q->m;
  int64_t p = inner ? q->m : q->n;
  dmat e = {0}, r = {0}, c = {0}, z = {0}, u = {0}, v = {0};
  double *all = NULL, *small = NULL;
  st = NEW(all, p, "eigenvalues");
  if (st == OK && inner) st = NEW(small, q->rank * p, "eigenvectors");
  TRY(agree(g->comm, st));
  TRY(dmat_new(g, q->n, q->m, DMAT_NB, "residual in double", &e));
  dmat_from_rows_float(&e, q->e, q->m, false);
  if (inner) {
    TRY(dmat_new(g, p, p, DMAT_NB, "R of E", &r));
    TRY(dmat_qr(q->where, &e, &r));
    TRY(sandwich(q, &r, &c));
    dmat_free(&r);
  } else {
    TRY(sandwich(q, &e, &c));
    dmat_free(&e);
  }
  TRY(dmat_new(g, p, p, DMAT_NB, "eigenvectors", &z));
  TRY(dmat_eigen(q->where, &c, all, &z));
  dmat_free(&c);
  TRY(agree(g->comm, spectrum_check(q, all[0], all[p - 1])));
  for (int i = 0; i < q->rank; i++) values[i] = all[p - 1 - i];
  TRY(replicate_leading(&z, q->rank, inner ? small : rows));
  if (inner) {
    dmat_free(&z);
    TRY(dmat_new(g, p, q->rank, DMAT_NB, "leading eigenvectors", &u));
    dmat_from_rows(&u, small, p, true);
    TRY(dmat_new(g, q->n, q->rank, DMAT_NB, "leading eigenvectors", &v));
    TRY(dmat_gemm(false, false, 1, &e, &u, 0, &v));
    memset(rows, 0, (size_t)q->rank * (size_t)q->n * sizeof *rows);
    dmat_to_rows(&v, rows, q->n, true);
    TRY(gather(g, rows, q->rank * q->n));
  }
done:
  FREE(all);
  FREE(small);
  dmat_free(&e);
  dmat_free(&r);
  dmat_free(&c);
  dmat_free(&z);
  dmat_free(&u);
  dmat_free(&v);
  return st;
}

/* Collective. a = B^T E with the columns of E dealt to the ranks. */
static status grid_factor(const adapter_request *q, const grid *g, const double *rows, double *a) {
  status st = OK;
  int64_t begin, end;
  deal_range(q->m, g->size, g->rank, 8, &begin, &end);
  if (end > begin) st = mixed_gemm(false, q->rank, q->n, end - begin, 1, rows, q->n, q->e + begin, q->m, false, a + begin, q->m);
  TRY(agree(g->comm, st));
  TRY(gather(g, a, q->rank * q->m));
done:
  return st;
}

status adapter_grid(const adapter_request *q, const grid *g, adapter *out) {
  status st = OK;
  double *rows = NULL, *values = NULL, *a = NULL, trace = q->trace;
  int64_t shape[5] = {q->n, q->m, q->rank, q->h != NULL, q->diagonal != NULL};
  bool unknown = isnan(trace);
  *out = (adapter){0};
  TRY(agree(g->comm, adapter_check(q)));
  TRY(agree_same(g->comm, q->where, shape, sizeof shape));
  TRY(agree_same(g->comm, q->where, &unknown, sizeof unknown));
  st = NEW(rows, q->rank * q->n, "eigenvectors");
  if (st == OK) st = NEW(values, q->rank, "eigenvalues");
  if (st == OK) st = NEW(a, q->rank * q->m, "A in double");
  TRY(agree(g->comm, st));
  if (unknown) TRY(grid_trace(q, g, &trace));
  if (!isfinite(trace)) st = fail(E_NUMERICS, "%s: adapter: loss without adapter, expected a finite number, found %g", q->where, trace);
  TRY(agree(g->comm, st));
  TRY(grid_spectrum(q, g, rows, values));
  fix_signs_and_round(q->n, q->rank, rows);
  TRY(grid_factor(q, g, rows, a));
  st = factors_begin(q, rows, values, out);
  out->trace = trace;
  if (st == OK) {
    for (int64_t i = 0; i < q->rank * q->m; i++) out->a[i] = (float)a[i];
    st = factors_check(q, out);
  }
  TRY(agree(g->comm, st));
done:
  FREE(rows);
  FREE(values);
  FREE(a);
  if (st != OK) adapter_free(out);
  return st;
}
