/* dist/team: how ranks are cut into teams, and memory that they share. */
#include "dist/team.h"

#include <dirent.h>
#include <string.h>

#include "check.h"

static int rank, size;

static int open_files(void) {
  int n = 0;
  DIR *folder = opendir("/proc/self/fd");
  while (folder && readdir(folder)) n++;
  if (folder) closedir(folder);
  return n;
}

/* What must hold for any cut: teams are contiguous, cover the job, and know each other. */
static void shape(const team *t, int at_most) {
  int sum = 0, job_rank = -1;
  CHECK(t->job_rank == rank && t->job_size == size, "%d of %d", t->job_rank, t->job_size);
  for (int k = 0; k < t->count; k++) {
    CHECK(t->first[k] == sum, "team %d starts at %d", k, t->first[k]);
    CHECK(t->sizes[k] >= 1 && (!at_most || t->sizes[k] <= at_most), "team %d has %d ranks", k, t->sizes[k]);
    sum += t->sizes[k];
  }
  CHECK(sum == size, "%d of %d ranks are in teams", sum, size);
  CHECK(t->sizes[t->index] == t->size && t->first[t->index] + t->rank == rank, "team %d, rank %d", t->index, t->rank);
  MPI_Allreduce(&rank, &job_rank, 1, MPI_INT, MPI_MIN, t->comm);
  CHECK(job_rank == t->first[t->index], "%d", job_rank);
}

/* Everybody writes its share, everybody reads all of it; several windows live at once. */
static void share(const team *t) {
  static const size_t sizes[] = {1, 63, 4096, 100003, 5 << 20};
  shared s[5], none;
  uint64_t before = shared_now();
  for (int i = 0; i < 5; i++) {
    CHECK_OK(shared_new(t, sizes[i], "a window", &s[i]));
    CHECK(s[i].bytes == sizes[i] && (uintptr_t)s[i].base % 64 == 0, "%zu at %p", s[i].bytes, s[i].base);
    unsigned char *data = s[i].base;
    size_t dirty = 0;
    for (size_t k = 0; k < sizes[i]; k++) dirty += data[k] != 0;
    CHECK(dirty == 0, "%zu bytes are not zero", dirty);
    team_barrier(t);
    for (size_t k = (size_t)t->rank; k < sizes[i]; k += (size_t)t->size) data[k] = (unsigned char)(k % 251 + (size_t)i);
  }
  CHECK(shared_now() - before == 1 + 63 + 4096 + 100003 + (5 << 20) && shared_peak() >= shared_now(), "%llu",
        (unsigned long long)shared_now());
  team_barrier(t);
  for (int i = 0; i < 5; i++) {
    const unsigned char *data = s[i].base;
    size_t wrong = 0;
    for (size_t k = 0; k < sizes[i]; k++) wrong += data[k] != (unsigned char)(k % 251 + (size_t)i);
    CHECK(wrong == 0, "%zu of %zu bytes", wrong, sizes[i]);
  }
  for (int i = 0; i < 5; i++) shared_free(&s[i]);
  shared_free(&s[0]);
  CHECK(shared_now() == before, "%llu", (unsigned long long)shared_now());
  CHECK_OK(shared_new(t, 0, "nothing", &none));
  CHECK(none.base == NULL, "%p", none.base);
  shared_free(&none);
}

/* Ping-pong through memory: what was written before a barrier is seen after it. */
static void barrier(const team *t) {
  shared s;
  CHECK_OK(shared_new(t, (size_t)t->size * sizeof(int), "numbers", &s));
  int *numbers = s.base, wrong = 0;
  for (int round = 1; round <= 200; round++) {
    numbers[t->rank] = round * 1000 + t->rank;
    team_barrier(t);
    for (int r = 0; r < t->size; r++) wrong += numbers[r] != round * 1000 + r;
    team_barrier(t);
  }
  CHECK(wrong == 0, "%d stale numbers", wrong);
  shared_free(&s);
}

static void refusals(const team *t) {
  shared s;
  status st = shared_new(t, (size_t)1 << 46, "a huge window", &s);
  CHECK(st == E_MEMORY && strstr(status_message(), "a huge window") && strstr(status_message(), "65536.000 GiB"), "%s", status_message());
  CHECK(s.base == NULL, "%p", s.base);
  status_clear();
  if (t->size > 1) CHECK_FAILS(shared_new(t, t->rank ? 64 : 128, "unlike sizes", &s), E_INTERNAL);
}

/* More than 2 GiB: the last byte is as good as the first. */
static void large(const team *t) {
  shared s;
  size_t bytes = ((size_t)2 << 30) + 12345;
  CHECK_OK(shared_new(t, bytes, "a large window", &s));
  unsigned char *data = s.base;
  if (data && t->rank == 0) data[bytes - 1] = 17, data[((size_t)1 << 31) - 1] = 18;
  team_barrier(t);
  CHECK(data && data[bytes - 1] == 17 && data[((size_t)1 << 31) - 1] == 18 && data[0] == 0, "lost");
  shared_free(&s);
}

/* Nothing is kept, and the next try works. */
static void faults(void) {
  for (int bad = 0; bad<size; bad += size> 1 ? size - 1 : 1)
    CHECK_SURVIVES_FAULTS(MPI_COMM_WORLD, bad, 100, 100, "team", {
      team t = {0};
      shared s = {0};
      st = team_new(MPI_COMM_WORLD, 0, &t);
      if (st == OK) st = shared_new(&t, 10000, "a window", &s);
      shared_free(&s);
      team_free(&t);
    });
}

int main(int argc, char **argv) {
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  team t;
  for (int at_most = 0; at_most <= 3; at_most++) {
    CHECK_OK(team_new(MPI_COMM_WORLD, at_most, &t));
    shape(&t, at_most);
    if (at_most == 0) CHECK(t.count == 1 || t.size < size, "one node, %d teams", t.count);
    share(&t);
    barrier(&t);
    refusals(&t);
    team_free(&t);
  }
  team_free(&t);
  if (size > 1) CHECK_FAILS(team_new(MPI_COMM_WORLD, rank, &t), E_INTERNAL); /* ranks that disagree */

  /* A communicator with its ranks the other way round, and one that not everybody is in. */
  MPI_Comm some;
  MPI_Comm_split(MPI_COMM_WORLD, rank == 0 && size > 1, -rank, &some);
  CHECK_OK(team_new(some, 0, &t));
  share(&t);
  team_free(&t);
  MPI_Comm_free(&some);

  faults();
  int before = open_files();
  for (int i = 0; i < 50; i++) {
    shared s;
    CHECK_OK(team_new(MPI_COMM_WORLD, i % 3, &t));
    CHECK_OK(shared_new(&t, 4096, "a window", &s));
    shared_free(&s);
    team_free(&t);
  }
  CHECK(open_files() == before, "%d files open, %d before", open_files(), before);
  if (size == 2) {
    CHECK_OK(team_new(MPI_COMM_WORLD, 0, &t));
    large(&t);
    team_free(&t);
  }
  return check_end("team");
}
