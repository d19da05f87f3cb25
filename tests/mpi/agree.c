/* dist/agree: one failing rank, several, all of them; nested; on sub-communicators; sharing and dealing. */
#include "dist/agree.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "check.h"

static int rank, size;

static bool ends_with(const char *text, const char *end) {
  size_t n = strlen(text), m = strlen(end);
  return n >= m && strcmp(text + n - m, end) == 0;
}

static void one_rank_fails(void) {
  for (int bad = 0; bad < size; bad++) {
    char expected[128];
    status st = rank == bad ? fail(E_DATA, "shard: expected 4 bytes, found 3") : OK;
    st = agree(MPI_COMM_WORLD, st);
    snprintf(expected, sizeof expected, size > 1 ? "shard: expected 4 bytes, found 3; rank %d of %d" : "shard: expected 4 bytes, found 3",
             bad, size);
    CHECK(st == E_DATA, "status %d", (int)st);
    CHECK(strcmp(status_message(), expected) == 0, "%s", status_message());
    /* The status travels up through further fences: nothing is added again. */
    st = agree(MPI_COMM_WORLD, st);
    st = agree(MPI_COMM_WORLD, st);
    CHECK(st == E_DATA && strcmp(status_message(), expected) == 0, "%s", status_message());
    status_clear();
  }
}

static void several_fail(void) {
  if (size < 3) return;
  status st = OK;
  if (rank == 1) st = fail(E_NUMERICS, "eigen: no convergence");
  if (rank == 2) st = fail(E_MEMORY, "memory: refused");
  st = agree(MPI_COMM_WORLD, st);
  char expected[128];
  snprintf(expected, sizeof expected, "; rank 1 of %d, 1 other also failed [agree.c:", size);
  CHECK(st == E_NUMERICS, "status %d", (int)st);
  CHECK(strncmp(status_message(), "eigen: no convergence; rank 1", 29) == 0 && strstr(status_message(), expected) &&
            ends_with(status_message(), "]"),
        "%s", status_message());
  status_clear();
  if (rank > 0) st = fail(E_IO, "disk of rank %d: full", rank);
  CHECK(agree(MPI_COMM_WORLD, rank > 0 ? st : OK) == E_IO, "%s", status_message());
  snprintf(expected, sizeof expected, "disk of rank 1: full; rank 1 of %d, %d other%s also failed", size, size - 2, size == 3 ? "" : "s");
  CHECK(strcmp(status_message(), expected) == 0, "%s", status_message());
  status_clear();
}

static void all_fail_alike(void) {
  status st = agree(MPI_COMM_WORLD, fail(E_USAGE, "job: bits: expected 2 to 8, found 9"));
  CHECK(st == E_USAGE && strcmp(status_message(), "job: bits: expected 2 to 8, found 9") == 0, "%s", status_message());
  status_clear();
}

/* A team fails inside, the job agrees outside: the innermost rank is kept. */
static void nested(void) {
  MPI_Comm half;
  MPI_Comm_split(MPI_COMM_WORLD, rank % 2, rank, &half);
  int half_rank, half_size;
  MPI_Comm_rank(half, &half_rank);
  MPI_Comm_size(half, &half_size);
  status st = rank % 2 == 0 && half_rank == half_size - 1 ? fail(E_IO, "read: short") : OK;
  st = agree(half, st);
  CHECK(st == (rank % 2 ? OK : E_IO), "status %d", (int)st);
  st = agree(MPI_COMM_WORLD, st);
  CHECK(st == E_IO, "status %d", (int)st);
  int evens = (size + 1) / 2;
  char expected[64] = "read: short";
  if (evens > 1) snprintf(expected, sizeof expected, "read: short; rank %d of %d", evens - 1, evens);
  if (evens == 1 && size > 1) snprintf(expected, sizeof expected, "read: short; rank 0 of %d", size);
  CHECK(strcmp(status_message(), expected) == 0, "%s", status_message());
  status_clear();
  MPI_Comm_free(&half);
}

static void long_message(void) {
  char text[4096];
  memset(text, 'x', sizeof text - 1);
  text[sizeof text - 1] = 0;
  status st = agree(MPI_COMM_WORLD, rank == size - 1 ? fail(E_DATA, "%s", text) : OK);
  CHECK(st == E_DATA && strlen(status_message()) > 1000, "%zu", strlen(status_message()));
  if (size > 1) CHECK(strstr(status_message(), "; rank "), "the suffix is lost in a long message");
  status_clear();
}

static void same(void) {
  size_t bytes = 200001;
  unsigned char *data;
  CHECK_OK(NEW(data, bytes, "data"));
  for (size_t i = 0; i < bytes; i++) data[i] = (unsigned char)(i * 7);
  CHECK_OK(agree_same(MPI_COMM_WORLD, "data", data, bytes));
  CHECK_OK(agree_same(MPI_COMM_WORLD, "nothing", NULL, 0));
  if (size > 1) {
    if (rank == size - 1) data[bytes - 1] ^= 1;
    status st = agree_same(MPI_COMM_WORLD, "settings", data, bytes);
    CHECK(st == E_INTERNAL && strncmp(status_message(), "settings: ", 10) == 0, "%s", status_message());
    status_clear();
    CHECK_FAILS(agree_same(MPI_COMM_WORLD, "settings", data, rank == 0 ? 5 : 6), E_INTERNAL);
  }
  FREE(data);
  CHECK(!agree_any(MPI_COMM_WORLD, false), "any of nothing");
  CHECK(agree_any(MPI_COMM_WORLD, rank == size - 1), "any of the last");
}

static void share(void) {
  enum { N = 300000 };
  int32_t *data;
  CHECK_OK(NEW(data, N, "data"));
  for (int i = 0; i < N; i++) data[i] = rank == 0 ? i * 3 : -1;
  CHECK_OK(share_bytes(MPI_COMM_WORLD, data, N * sizeof *data));
  int wrong = 0;
  for (int i = 0; i < N; i++) wrong += data[i] != i * 3;
  CHECK(wrong == 0, "%d of %d", wrong, N);
  FREE(data);
  static const char *const texts[] = {"", "a job file\nwith lines\n"};
  for (int i = 0; i < 2; i++) {
    char *text = rank == 0 ? mem_format("%s", texts[i]) : NULL;
    CHECK_OK(share_text(MPI_COMM_WORLD, &text));
    CHECK(text && strcmp(text, texts[i]) == 0, "%s", text ? text : "NULL");
    FREE(text);
  }
}

static void deal(void) {
  static const int64_t sizes[] = {0, 1, 5, 64, 65, 1000, 28672, (int64_t)1 << 40};
  for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
    for (int parts = 1; parts <= 7; parts++)
      for (int64_t align = 1; align <= 64; align *= 8) {
        int64_t at = 0, least = INT64_MAX, most = 0;
        for (int i = 0; i < parts; i++) {
          int64_t begin, end;
          deal_range(sizes[s], parts, i, align, &begin, &end);
          CHECK(begin == at && end >= begin && (begin % align == 0 || begin == sizes[s]), "[%lld, %lld) after %lld", (long long)begin,
                (long long)end, (long long)at);
          at = end;
          if (end - begin < least) least = end - begin;
          if (end - begin > most) most = end - begin;
        }
        CHECK(at == sizes[s] && most - least < 2 * align, "%lld in %d parts: %lld to %lld", (long long)sizes[s], parts, (long long)least,
              (long long)most);
      }
  const double cost[] = {1, 8, 2, 7, 3, 3, 5, 1};
  int owner[8];
  double load[3] = {0};
  CHECK_OK(deal_tasks(cost, 8, 3, owner));
  for (int i = 0; i < 8; i++) load[owner[i]] += cost[i];
  CHECK(load[0] + load[1] + load[2] == 30, "%g %g %g", load[0], load[1], load[2]);
  for (int p = 0; p < 3; p++) CHECK(load[p] >= 9 && load[p] <= 11, "part %d has %g of 30", p, load[p]);
  CHECK(owner[1] == 0 && owner[3] == 1 && owner[6] == 2, "the dearest first, to the lowest part");
  CHECK_OK(deal_tasks(NULL, 0, 3, NULL));
  CHECK_OK(agree_same(MPI_COMM_WORLD, "owners", owner, sizeof owner));
}

int main(int argc, char **argv) {
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  CHECK(agree(MPI_COMM_WORLD, OK) == OK, "nothing happened");
  one_rank_fails();
  several_fail();
  all_fail_alike();
  nested();
  long_message();
  same();
  share();
  deal();
  return check_end("agree");
}
