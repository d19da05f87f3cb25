/* Checks for tests that run on several ranks: every rank counts its failures, MPI_Finalize's caller learns the sum.
 * CHECK never returns early, so that collective calls stay matched. */
#ifndef CLOQWORK_TESTS_MPI_CHECK_H
#define CLOQWORK_TESTS_MPI_CHECK_H

#include <mpi.h>
#include <stdio.h>

#include "base/status.h"

static int check_failures;

#define CHECK(condition, ...)                                                              \
  do {                                                                                     \
    if (!(condition)) {                                                                    \
      int check_rank;                                                                      \
      MPI_Comm_rank(MPI_COMM_WORLD, &check_rank);                                          \
      check_failures++;                                                                    \
      fprintf(stderr, "rank %d: %s:%d: %s: ", check_rank, __FILE__, __LINE__, #condition); \
      fprintf(stderr, __VA_ARGS__);                                                        \
      fprintf(stderr, "\n");                                                               \
    }                                                                                      \
  } while (0)

/* A call that must succeed. */
#define CHECK_OK(call)                                                       \
  do {                                                                       \
    status check_st = (call);                                                \
    CHECK(check_st == OK, "status %d: %s", (int)check_st, status_message()); \
    status_clear();                                                          \
  } while (0)

/* A call that must fail with this status; leaves no message behind. */
#define CHECK_FAILS(call, expected)                                                  \
  do {                                                                               \
    status check_st = (call);                                                        \
    CHECK(check_st == (expected), "status %d: %s", (int)check_st, status_message()); \
    status_clear();                                                                  \
  } while (0)

/* Collective over MPI_COMM_WORLD: prints the sum on rank 0, finalizes, gives the exit code. */
static inline int check_end(const char *name) {
  int rank, size, all = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  MPI_Allreduce(&check_failures, &all, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  if (rank == 0) printf("%s on %d ranks: %s (%d failures)\n", name, size, all ? "FAILED" : "ok", all);
  MPI_Finalize();
  return all != 0;
}

#endif
