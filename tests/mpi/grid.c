/* dist/grid: process grids, and block-cyclic matrices whose every entry has one owner. */
#include "dist/grid.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "check.h"
#include "dist/agree.h"

static int rank, size;

static double entry(const void *context, int64_t i, int64_t j) {
  (void)context;
  return (double)(i * 1000 + j + 1);
}

/* One matrix: indices, filling, and the three copies. */
static void matrix(const grid *g, int64_t m, int64_t n, int nb) {
  dmat d;
  double *rows = NULL, *cols = NULL, *all = NULL;
  float *narrow = NULL;
  size_t count = (size_t)(m * n), wrong = 0;
  CHECK_OK(NEW(rows, count, "rows"));
  CHECK_OK(NEW(cols, count, "columns"));
  CHECK_OK(NEW(all, count, "sum"));
  CHECK_OK(NEW(narrow, count, "narrow"));
  CHECK_OK(dmat_new(g, m, n, nb, "a matrix", &d));
  CHECK(d.a && d.lld >= 1 && d.lld >= d.mloc, "%p, lld %d", (void *)d.a, d.lld);
  for (size_t k = 0; k < (size_t)d.lld * (size_t)d.nloc; k++) wrong += d.a[k] != 0;
  CHECK(wrong == 0, "%zu entries are not zero", wrong);
  long long mine = (long long)d.mloc * d.nloc, sum;
  MPI_Allreduce(&mine, &sum, 1, MPI_LONG_LONG, MPI_SUM, g->comm);
  CHECK(sum == m * n, "%lld of %lld entries are dealt", sum, (long long)(m * n));
  for (int l = 0; l < d.mloc; l++) {
    int64_t i = dmat_row(&d, l);
    CHECK(i >= 0 && i < m && i / nb % g->nprow == g->myrow, "local row %d is row %lld of %lld", l, (long long)i, (long long)m);
    CHECK(dmat_rows_below(&d, i) == l && dmat_rows_below(&d, i + 1) == l + 1, "row %lld", (long long)i);
  }
  CHECK(dmat_rows_below(&d, m) == d.mloc, "%d", d.mloc);
  for (int l = 0; l < d.nloc; l++) {
    int64_t j = dmat_col(&d, l);
    CHECK(j >= 0 && j < n && j / nb % g->npcol == g->mycol, "local column %d is column %lld of %lld", l, (long long)j, (long long)n);
  }

  /* Every entry arrives once: the others' zeros add nothing. */
  dmat_fill(&d, entry, NULL);
  dmat_to_rows(&d, rows, n, false);
  dmat_to_rows(&d, cols, m, true);
  MPI_Allreduce(MPI_IN_PLACE, rows, (int)count, MPI_DOUBLE, MPI_SUM, g->comm);
  MPI_Allreduce(MPI_IN_PLACE, cols, (int)count, MPI_DOUBLE, MPI_SUM, g->comm);
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) wrong += rows[i * n + j] != entry(NULL, i, j) || cols[j * m + i] != entry(NULL, i, j);
  CHECK(wrong == 0, "%zu of %zu entries of %lld x %lld", wrong, count, (long long)m, (long long)n);
  for (size_t k = 0; k < count; k++) narrow[k] = (float)rows[k];
  for (int way = 0; way < 4; way++) {
    memset(d.a, 0, (size_t)d.lld * (size_t)d.nloc * sizeof *d.a);
    if (way == 0) dmat_from_rows(&d, rows, n, false);
    if (way == 1) dmat_from_rows(&d, cols, m, true);
    if (way == 2) dmat_from_rows_float(&d, narrow, n, false);
    if (way == 3) {
      for (size_t k = 0; k < count; k++) narrow[k] = (float)cols[k];
      dmat_from_rows_float(&d, narrow, m, true);
    }
    for (int l = 0; l < d.nloc; l++)
      for (int k = 0; k < d.mloc; k++) wrong += d.a[(size_t)l * (size_t)d.lld + (size_t)k] != entry(NULL, dmat_row(&d, k), dmat_col(&d, l));
    CHECK(wrong == 0, "way %d: %zu of %zu entries", way, wrong, count);
  }
  dmat_free(&d);
  dmat_free(&d);
  FREE(narrow);
  FREE(all);
  FREE(cols);
  FREE(rows);
}

static void shapes(const grid *g) {
  static const int64_t sizes[] = {1, 7, 63, 64, 65, 80, 200};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    matrix(g, sizes[i], sizes[i], DMAT_NB);
    matrix(g, sizes[i], 5, 3);
    matrix(g, 1, sizes[i], DMAT_NB);
  }
}

static void refusals(const grid *g) {
  dmat d;
  CHECK_FAILS(dmat_new(g, 0, 5, DMAT_NB, "an empty matrix", &d), E_INTERNAL);
  status st = dmat_new(g, 1 << 18, 1 << 18, DMAT_NB, "a wide Gram", &d);
  CHECK(st == E_USAGE && strstr(status_message(), "a wide Gram") && strstr(status_message(), "262144 x 262144"), "%s", status_message());
  int needed = 0;
  const char *advice = strstr(status_message(), ": use ");
  CHECK(advice && sscanf(advice, ": use %d ranks", &needed) == 1 && needed == 33, "%s",
        status_message()); /* 3 x 11: 87424 x 23872 < 2^31 */
  status_clear();
  CHECK(d.a == NULL, "%p", (void *)d.a);
  CHECK_FAILS(dmat_new(g, (int64_t)1 << 40, 1, DMAT_NB, "a tall matrix", &d), E_USAGE);
  if (g->size > 1) CHECK_FAILS(dmat_new(g, g->rank ? 10 : 11, 10, DMAT_NB, "a torn matrix", &d), E_INTERNAL);
}

int main(int argc, char **argv) {
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  static const int rows_of[] = {0, 1, 1, 1, 2, 1, 2};
  grid g, part;
  CHECK_OK(grid_new(MPI_COMM_WORLD, &g));
  CHECK(g.size == size && g.nprow * g.npcol == size && (size > 6 || g.nprow == rows_of[size]), "%d x %d", g.nprow, g.npcol);
  CHECK(g.rank == rank && g.myrow * g.npcol + g.mycol == rank, "%d, %d", g.myrow, g.mycol);
  shapes(&g);
  refusals(&g);

  /* A second grid on part of the ranks, in another order, while the first one lives. */
  MPI_Comm some;
  MPI_Comm_split(MPI_COMM_WORLD, rank % 2, -rank, &some);
  CHECK_OK(grid_new(some, &part));
  MPI_Comm_free(&some);
  shapes(&part);
  refusals(&part);
  matrix(&g, 65, 80, DMAT_NB);
  grid_free(&part);
  matrix(&g, 65, 80, DMAT_NB);
  grid_free(&g);
  grid_free(&g);

  /* Grids come and go, and BLACS's tables do not grow. */
  int context = 0, handle = 0;
  for (int i = 0; i < 20; i++) {
    MPI_Comm other; /* takes the place of the last grid's communicator, so that the next one is new to BLACS */
    MPI_Comm_dup(MPI_COMM_WORLD, &other);
    CHECK_OK(grid_new(MPI_COMM_WORLD, &g));
    if (i == 0) context = g.context, handle = g.handle;
    CHECK(g.context == context && g.handle == handle, "grid %d: context %d, handle %d", i, g.context, g.handle);
    matrix(&g, 7, 7, 2);
    grid_free(&g);
    if (i % 2) MPI_Comm_free(&other);
  }
  return check_end("grid");
}
