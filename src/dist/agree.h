/* The one way ranks agree. */
#ifndef CLOQWORK_DIST_AGREE_H
#define CLOQWORK_DIST_AGREE_H

#include <mpi.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* Collective. OK if every rank is OK; otherwise every rank gets the status and the message of the lowest failing rank, with
 * "; rank R of N, K others also failed" added where N > 1 (and, when `st` differs between failing ranks, that of the lowest). */
status agree(MPI_Comm comm, status st);

/* Collective. OK if all ranks pass the same bytes (at most 2^30); else E_INTERNAL naming what. */
status agree_same(MPI_Comm comm, const char *what, const void *data, size_t bytes);

/* Collective. True on all ranks if true on any. */
bool agree_any(MPI_Comm comm, bool mine);

/* Collective. Rank 0's bytes to all, sliced under 1 GiB. */
status share_bytes(MPI_Comm comm, void *data, size_t bytes);

/* Collective. Rank 0's string to all: *text is owned and set on every rank (rank 0's own is kept). */
status share_text(MPI_Comm comm, char **text);

/* Local. Turns MPI's return code into a status with MPI's text. */
status mpi_check(int rc, const char *what);

/* Local. [*begin, *end) = part `index` of n things in `parts` parts as equal as can be, each cut at a multiple of `align`. */
void deal_range(int64_t n, int parts, int index, int64_t align, int64_t *begin, int64_t *end);

/* Local. Deals tasks of the given costs to parts, largest first to the least loaded (ties: lowest part): owner[i] in 0..parts-1.
 * Every rank computes the same answer. E_MEMORY. */
status deal_tasks(const double *cost, int tasks, int parts, int *owner);

#endif
