/* A process grid for ScaLAPACK, and a block-cyclic matrix on it: separate lives. */
#ifndef CLOQWORK_DIST_GRID_H
#define CLOQWORK_DIST_GRID_H

#include <mpi.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

/* Owns its communicator and BLACS context. Row-major over the ranks of comm; as square as size allows, nprow <= npcol. */
typedef struct grid {
  MPI_Comm comm;
  int context, handle; /* BLACS: the grid, and the communicator as BLACS knows it */
  int nprow, npcol, myrow, mycol;
  int rank, size;
} grid;
status grid_new(MPI_Comm comm, grid *g); /* Collective */
void grid_free(grid *g);                 /* Collective; accepts an empty one */

/* An (m, n) matrix of doubles in blocks of nb x nb, dealt cyclically; local part column-major (lld, nloc). Borrows g. */
typedef struct dmat {
  const grid *g;
  int64_t m, n;
  int nb, mloc, nloc, lld;
  int desc[9];
  double *a; /* owned, zeroed; never NULL */
} dmat;
/* Collective. m, n, nb >= 1. E_MEMORY; E_USAGE where a local part exceeds what ScaLAPACK's 32-bit integers hold (names the size and the ranks needed). */
status dmat_new(const grid *g, int64_t m, int64_t n, int nb, const char *what, dmat *d);
void dmat_free(dmat *d); /* Local */

/* Local: my entries from a function of global 0-based indices. */
typedef double (*dmat_entry)(const void *context, int64_t i, int64_t j);
void dmat_fill(dmat *d, dmat_entry entry, const void *context);

/* Local: my entries from / into a ROW-major matrix that every rank can see (shared or replicated). transpose: d(i,j) = x[j*ldx+i]. */
void dmat_from_rows(dmat *d, const double *x, int64_t ldx, bool transpose);
void dmat_from_rows_float(dmat *d, const float *x, int64_t ldx, bool transpose);
void dmat_to_rows(const dmat *d, double *x, int64_t ldx, bool transpose);

/* Local index arithmetic: global index of local row/column l. */
int64_t dmat_row(const dmat *d, int l);
int64_t dmat_col(const dmat *d, int l);
/* Local: how many of my rows have a global index below i: the local rows [0, that) are exactly those. */
int dmat_rows_below(const dmat *d, int64_t i);

enum { DMAT_NB = 64 };

#endif
