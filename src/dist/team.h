/* A team: the ranks that share memory (a node's, or part of them), and memory that they share.
 *
 * The job's ranks form `count` teams. Teams own contiguous ranges of layers. One team of one rank is the same code. */
#ifndef CLOQWORK_DIST_TEAM_H
#define CLOQWORK_DIST_TEAM_H

#include <mpi.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct team {
  MPI_Comm job;  /* all ranks; a private copy of the communicator given */
  MPI_Comm comm; /* this team's ranks; owned */
  int job_rank, job_size;
  int rank, size;   /* in comm */
  int index, count; /* this team among the teams, ordered by their lowest job rank */
  int node_ranks;   /* of this node, in all its teams */
  int *sizes;       /* [count] ranks of every team; owned */
  int *first;       /* [count] job rank of every team's rank 0; owned */
  int *links;       /* sockets: [size] to every rank on rank 0, [1] to rank 0 elsewhere (-1: none); owned, private to team.c */
} team;

/* Collective over job. ranks_per_team 0: one team per shared-memory node; otherwise nodes are cut into teams of at most that many.
 * The ranks of a team meet through an abstract socket (same network namespace). E_IO, E_MEMORY. */
status team_new(MPI_Comm job, int ranks_per_team, team *t);
void team_free(team *t); /* Collective; accepts an empty one */

/* Memory seen by every rank of the team at (possibly) different addresses. Zeroed. Pages are first touched in equal parts by the
 * ranks, so that they spread over the NUMA nodes. Page-aligned. It is anonymous (memfd): bounded by the node's memory, not by the size
 * of /dev/shm, and gone with its last rank, however that ends. */
typedef struct shared {
  void *base;
  size_t bytes;
} shared;

/* Collective over the team. E_MEMORY names what and how many bytes, on all ranks: every page is allocated here, so that a lack of
 * memory is an error and never a SIGBUS. bytes may be 0 (base is then NULL). */
status shared_new(const team *t, size_t bytes, const char *what, shared *s);
void shared_free(shared *s); /* Collective; accepts an empty one */

/* Collective over the team. After it every rank sees what every rank wrote to shared memory before it. */
void team_barrier(const team *t);

/* Local. High-water marks of shared bytes of this team (whole windows, counted once). */
uint64_t shared_now(void);
uint64_t shared_peak(void);

#endif
