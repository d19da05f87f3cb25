#include "dist/grid.h"

#include <limits.h>
#include <string.h>

#include "base/memory.h"
#include "dist/agree.h"
#include "dist/scalapack.h"

/* As square as size allows, nprow <= npcol. */
static void grid_shape(int size, int *nprow, int *npcol) {
  int p = 1;
  for (int d = 1; (int64_t)d * d <= size; d++)
    if (size % d == 0) p = d;
  *nprow = p;
  *npcol = size / p;
}

status grid_new(MPI_Comm comm, grid *g) {
  status st = OK;
  *g = (grid){.comm = MPI_COMM_NULL, .context = -1, .handle = -1};
  TRY(agree(comm, mpi_check(MPI_Comm_dup(comm, &g->comm), "process grid: communicator")));
  MPI_Comm_rank(g->comm, &g->rank);
  MPI_Comm_size(g->comm, &g->size);
  grid_shape(g->size, &g->nprow, &g->npcol);
  g->handle = Csys2blacs_handle(g->comm);
  g->context = g->handle;
  Cblacs_gridinit(&g->context, "Row", g->nprow, g->npcol);
  int nprow, npcol;
  Cblacs_gridinfo(g->context, &nprow, &npcol, &g->myrow, &g->mycol);
  if (nprow != g->nprow || npcol != g->npcol || g->myrow != g->rank / g->npcol || g->mycol != g->rank % g->npcol)
    st = fail(E_INTERNAL, "process grid: expected place %d, %d of %d x %d, found %d, %d of %d x %d", g->rank / g->npcol, g->rank % g->npcol,
              g->nprow, g->npcol, g->myrow, g->mycol, nprow, npcol);
  TRY(agree(g->comm, st));
done:
  if (st != OK) grid_free(g);
  return st;
}

void grid_free(grid *g) {
  if (g->size) { /* {0} is an empty grid too, and context 0 a real one */
    if (g->context >= 0) Cblacs_gridexit(g->context);
    if (g->handle >= 0) Cfree_blacs_system_handle(g->handle);
    if (g->comm != MPI_COMM_NULL) MPI_Comm_free(&g->comm);
  }
  *g = (grid){.comm = MPI_COMM_NULL, .context = -1, .handle = -1};
}

/* Rows (or columns) of n in blocks of nb that fall to process p of np (ScaLAPACK's numroc with source 0). */
static int64_t dealt(int64_t n, int nb, int p, int np) {
  int64_t blocks = n / nb, mine = blocks / np * nb;
  int extra = (int)(blocks % np);
  if (p < extra) mine += nb;
  if (p == extra) mine += n % nb;
  return mine;
}

/* ScaLAPACK counts the elements of a local array in 32 bits. */
static bool fits(int64_t m, int64_t n, int nb, int size) {
  int nprow, npcol;
  grid_shape(size, &nprow, &npcol);
  int64_t rows = dealt(m, nb, 0, nprow), cols = dealt(n, nb, 0, npcol), count;
  return !__builtin_mul_overflow(rows, cols, &count) && count <= INT_MAX;
}

status dmat_new(const grid *g, int64_t m, int64_t n, int nb, const char *what, dmat *d) {
  status st = OK;
  int64_t shape[3] = {m, n, nb};
  *d = (dmat){.g = g, .m = m, .n = n, .nb = nb};
  TRY(agree_same(g->comm, what, shape, sizeof shape));
  if (m < 1 || n < 1 || nb < 1) {
    st = fail(E_INTERNAL, "%s: expected a matrix with rows, columns and a block, found %lld x %lld in blocks of %d", what, (long long)m,
              (long long)n, nb);
    goto done;
  }
  if (m > INT_MAX || n > INT_MAX) {
    st = fail(E_USAGE, "%s: expected at most %d rows and columns, found %lld x %lld", what, INT_MAX, (long long)m, (long long)n);
    goto done;
  }
  if (!fits(m, n, nb, g->size)) {
    int needed = g->size;
    while (needed < 1 << 20 && !fits(m, n, nb, needed)) needed++;
    st = fail(E_USAGE, "%s: a %lld x %lld matrix on %d rank%s exceeds the 32-bit counts of ScaLAPACK: use %d ranks per team", what,
              (long long)m, (long long)n, g->size, g->size == 1 ? "" : "s", needed);
    goto done;
  }
  d->mloc = (int)dealt(m, nb, g->myrow, g->nprow);
  d->nloc = (int)dealt(n, nb, g->mycol, g->npcol);
  d->lld = d->mloc > 0 ? d->mloc : 1;
  int im = (int)m, in = (int)n, zero = 0, info = 0;
  descinit_(d->desc, &im, &in, &nb, &nb, &zero, &zero, &g->context, &d->lld, &info);
  if (info) st = fail(E_INTERNAL, "%s: descriptor: argument %d", what, -info);
  if (st == OK) st = NEW(d->a, (size_t)d->lld * (size_t)d->nloc, what);
  TRY(agree(g->comm, st));
done:
  if (st != OK) dmat_free(d);
  return st;
}

void dmat_free(dmat *d) {
  FREE(d->a);
  *d = (dmat){0};
}

int64_t dmat_row(const dmat *d, int l) { return ((int64_t)(l / d->nb) * d->g->nprow + d->g->myrow) * d->nb + l % d->nb; }
int64_t dmat_col(const dmat *d, int l) { return ((int64_t)(l / d->nb) * d->g->npcol + d->g->mycol) * d->nb + l % d->nb; }
int dmat_rows_below(const dmat *d, int64_t i) { return (int)dealt(i, d->nb, d->g->myrow, d->g->nprow); }

void dmat_fill(dmat *d, dmat_entry entry, const void *context) {
  for (int l = 0; l < d->nloc; l++)
    for (int k = 0; k < d->mloc; k++) d->a[(size_t)l * (size_t)d->lld + (size_t)k] = entry(context, dmat_row(d, k), dmat_col(d, l));
}

/* A local block: where it starts here and in the whole, and its extent (blocks at the end are smaller). */
typedef struct block {
  double *a;
  size_t row, col;
  int m, n;
} block;

static block block_at(const dmat *d, int k, int l) {
  return (block){.a = d->a + (size_t)l * (size_t)d->lld + (size_t)k,
                 .row = (size_t)dmat_row(d, k),
                 .col = (size_t)dmat_col(d, l),
                 .m = d->mloc - k < d->nb ? d->mloc - k : d->nb,
                 .n = d->nloc - l < d->nb ? d->nloc - l : d->nb};
}

/* Block by block: one of the two sides is always read across its stride, and a block of it stays in the cache. */
#define COPY_BLOCKS(d, STATEMENT)                                                              \
  for (int bl = 0; bl < (d)->nloc; bl += (d)->nb)                                              \
    for (int bk = 0; bk < (d)->mloc; bk += (d)->nb) {                                          \
      block b = block_at((d), bk, bl);                                                         \
      size_t lld = (size_t)(d)->lld, ld = (size_t)ldx;                                         \
      for (size_t l = 0; l < (size_t)b.n; l++)                                                 \
        for (size_t k = 0; k < (size_t)b.m; k++) {                                             \
          size_t at = transpose ? (b.col + l) * ld + b.row + k : (b.row + k) * ld + b.col + l; \
          STATEMENT;                                                                           \
        }                                                                                      \
    }

void dmat_from_rows(dmat *d, const double *x, int64_t ldx, bool transpose) { COPY_BLOCKS(d, b.a[l * lld + k] = x[at]) }
void dmat_from_rows_float(dmat *d, const float *x, int64_t ldx, bool transpose) { COPY_BLOCKS(d, b.a[l * lld + k] = (double)x[at]) }
void dmat_to_rows(const dmat *d, double *x, int64_t ldx, bool transpose) { COPY_BLOCKS(d, x[at] = b.a[l * lld + k]) }
