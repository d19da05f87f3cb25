#include "dist/agree.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

enum { TEXT = 2048, SLICE = 1 << 30, COMPARED = 1 << 16 };

status mpi_check(int rc, const char *what) {
  if (rc == MPI_SUCCESS) return OK;
  char text[MPI_MAX_ERROR_STRING] = "unknown error";
  int length = 0;
  MPI_Error_string(rc, text, &length);
  return fail(E_INTERNAL, "%s: %s", what, text);
}

/* An inner agree has already said which rank it was: the innermost knows best. */
static bool names_a_rank(const char *message) {
  int rank, size;
  const char *suffix = strstr(message, "; rank ");
  return suffix && sscanf(suffix, "; rank %d of %d", &rank, &size) == 2;
}

/* The suffix goes before a final " [file.c:123]". */
static void add_suffix(char text[TEXT], const char *suffix) {
  char place[TEXT] = "";
  size_t length = strlen(text), extra = strlen(suffix);
  char *bracket = strrchr(text, '[');
  if (length && text[length - 1] == ']' && bracket > text && bracket[-1] == ' ' && !strchr(bracket, ' ') && strchr(bracket, ':')) {
    snprintf(place, sizeof place, "%s", bracket - 1);
    bracket[-1] = 0;
  }
  size_t room = TEXT - 1 - extra - strlen(place);
  if (strlen(text) > room) text[room] = 0;
  strcat(text, suffix);
  strcat(text, place);
}

status agree(MPI_Comm comm, status st) {
  int rank, size, mine = st != OK, failed = 0;
  MPI_Allreduce(&mine, &failed, 1, MPI_INT, MPI_SUM, comm);
  if (!failed) return OK;

  MPI_Comm_rank(comm, &rank);
  MPI_Comm_size(comm, &size);
  int candidate = mine ? rank : size, lowest, code = (int)st, same, same_everywhere;
  MPI_Allreduce(&candidate, &lowest, 1, MPI_INT, MPI_MIN, comm);
  char text[TEXT] = "";
  if (rank == lowest) snprintf(text, sizeof text, "%s", status_message());
  MPI_Bcast(&code, 1, MPI_INT, lowest, comm);
  MPI_Bcast(text, TEXT, MPI_CHAR, lowest, comm);

  /* When all ranks say the same (one bad input, read by all), it is nobody's in particular. */
  same = mine && code == (int)st && strcmp(text, status_message()) == 0;
  MPI_Allreduce(&same, &same_everywhere, 1, MPI_INT, MPI_MIN, comm);
  if (size > 1 && !same_everywhere && !names_a_rank(text)) {
    char suffix[96];
    if (failed == 1)
      snprintf(suffix, sizeof suffix, "; rank %d of %d", lowest, size);
    else
      snprintf(suffix, sizeof suffix, "; rank %d of %d, %d other%s also failed", lowest, size, failed - 1, failed == 2 ? "" : "s");
    add_suffix(text, suffix);
  }
  status_set_message(text);
  return (status)code;
}

status agree_same(MPI_Comm comm, const char *what, const void *data, size_t bytes) {
  status st = OK;
  unsigned long long range[2] = {bytes, ~(unsigned long long)bytes}, most[2];
  MPI_Allreduce(range, most, 2, MPI_UNSIGNED_LONG_LONG, MPI_MAX, comm);
  if (most[0] != ~most[1] || bytes > SLICE) {
    /* Every rank knows that sizes differ; the one that differs from the largest says so. */
    if (bytes != most[0] || bytes > SLICE)
      st = fail(E_INTERNAL, "%s: expected the same on all ranks, found %zu bytes here and %llu elsewhere", what, bytes, most[0]);
    return agree(comm, st);
  }
  static unsigned char slice[COMPARED];
  int rank;
  MPI_Comm_rank(comm, &rank);
  const unsigned char *mine = data;
  for (size_t at = 0; at < bytes; at += COMPARED) {
    size_t n = bytes - at < COMPARED ? bytes - at : COMPARED;
    if (rank == 0) memcpy(slice, mine + at, n);
    MPI_Bcast(slice, (int)n, MPI_BYTE, 0, comm);
    if (st == OK && memcmp(slice, mine + at, n) != 0)
      st = fail(E_INTERNAL, "%s: expected the same on all ranks, found a difference from rank 0", what);
  }
  return agree(comm, st);
}

bool agree_any(MPI_Comm comm, bool mine) {
  int in = mine, out = 0;
  MPI_Allreduce(&in, &out, 1, MPI_INT, MPI_MAX, comm);
  return out != 0;
}

status share_bytes(MPI_Comm comm, void *data, size_t bytes) {
  status st = OK;
  for (size_t at = 0; at < bytes; at += SLICE) {
    size_t n = bytes - at < SLICE ? bytes - at : SLICE;
    status now = mpi_check(MPI_Bcast((unsigned char *)data + at, (int)n, MPI_BYTE, 0, comm), "broadcast");
    if (st == OK) st = now;
  }
  return agree(comm, st);
}

status share_text(MPI_Comm comm, char **text) {
  int rank;
  MPI_Comm_rank(comm, &rank);
  unsigned long long length = rank == 0 ? strlen(*text) : 0;
  MPI_Bcast(&length, 1, MPI_UNSIGNED_LONG_LONG, 0, comm);
  char *copy = NULL;
  status st = OK;
  if (rank != 0) st = NEW(copy, length + 1, "shared text");
  if ((st = agree(comm, st)) == OK) st = share_bytes(comm, rank == 0 ? *text : copy, length + 1);
  if (rank != 0) {
    if (st != OK) FREE(copy);
    *text = copy;
  }
  return st;
}

void deal_range(int64_t n, int parts, int index, int64_t align, int64_t *begin, int64_t *end) {
  int64_t units = (n + align - 1) / align, each = units / parts, more = units % parts;
  int64_t first = each * index + (index < more ? index : more), last = first + each + (index < more ? 1 : 0);
  *begin = first * align < n ? first * align : n;
  *end = last * align < n ? last * align : n;
}

typedef struct costed {
  double cost;
  int task;
} costed;

static int dearest_first(const void *pa, const void *pb) {
  const costed *a = pa, *b = pb;
  if (a->cost != b->cost) return a->cost > b->cost ? -1 : 1;
  return (a->task > b->task) - (a->task < b->task);
}

status deal_tasks(const double *cost, int tasks, int parts, int *owner) {
  status st = OK;
  costed *sorted = NULL;
  double *load = NULL;
  TRY(NEW(sorted, tasks, "dealing tasks"));
  TRY(NEW(load, parts, "dealing tasks"));
  for (int i = 0; i < tasks; i++) sorted[i] = (costed){cost[i], i};
  qsort(sorted, (size_t)tasks, sizeof *sorted, dearest_first);
  for (int i = 0; i < tasks; i++) {
    int least = 0;
    for (int p = 1; p < parts; p++)
      if (load[p] < load[least]) least = p;
    load[least] += sorted[i].cost;
    owner[sorted[i].task] = least;
  }
done:
  FREE(load);
  FREE(sorted);
  return st;
}
