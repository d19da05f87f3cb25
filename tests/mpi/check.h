/* Checks for tests that run on several ranks: every rank counts its failures, MPI_Finalize's caller learns the sum.
 * CHECK never returns early, so that collective calls stay matched. */
#ifndef CLOQWORK_TESTS_MPI_CHECK_H
#define CLOQWORK_TESTS_MPI_CHECK_H

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/fault.h"
#include "base/status.h"
#include "dist/agree.h"

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

/* The n-th fallible operation of my process fails if I am rank `bad`; 0: none. */
static inline void check_fault(int rank, int bad, int n) {
  char text[32];
  snprintf(text, sizeof text, "%d:%d", bad, n);
  if (n)
    setenv("CLOQWORK_FAULT", text, 1);
  else
    unsetenv("CLOQWORK_FAULT");
  fault_setup(rank);
}

/* Collective over comm. Rank `bad`'s fallible operations fail one after the other, until the statements, which set `st`, get through: each time all
 * ranks return the same, with a message, and nobody waits for anybody. There are fewer than `most`; beyond the `every`-th they are thinned out. */
#define CHECK_SURVIVES_FAULTS(comm, bad, every, most, what, ...)                                                                   \
  do {                                                                                                                             \
    int rank_;                                                                                                                     \
    MPI_Comm_rank(comm, &rank_);                                                                                                   \
    for (int n_ = 1, hit_ = 1; hit_; n_ += 1 + n_ / (every)) {                                                                     \
      status st = OK;                                                                                                              \
      check_fault(rank_, bad, n_);                                                                                                 \
      __VA_ARGS__;                                                                                                                 \
      hit_ = agree_any(comm, fault_count() >= (uint64_t)n_);                                                                       \
      check_fault(rank_, bad, 0);                                                                                                  \
      CHECK((st != OK) == (hit_ != 0) && (!hit_ || status_message()[0]), "%s, fault %d:%d: status %d: %s", what, bad, n_, (int)st, \
            status_message());                                                                                                     \
      status_clear();                                                                                                              \
      int code_ = (int)st;                                                                                                         \
      CHECK_OK(agree_same(comm, "status", &code_, sizeof code_));                                                                  \
      CHECK(n_ < (most), "%s: faults without end", what);                                                                          \
    }                                                                                                                              \
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
