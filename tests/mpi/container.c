/* The container written by a team: round trip, equal bytes, and the ways a write can fail.
 *   mpi_container                  all tests
 *   mpi_container sample PATH      one file with every element type, for other readers, and a master run.h5 beside it
 *   mpi_container forever PATH     writes that file again and again, to be killed
 *   mpi_container check PATH       opens and verifies it; the program's exit codes
 *   mpi_container full FOLDER      FOLDER is on a small file system of its own: fills it */
#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/memory.h"
#include "check.h"
#include "store/container.h"

enum { SETS = 12, GROUPS = 4 };

/* Shapes that do not divide: fewer rows than ranks, one row, none. */
static dataset sets[SETS] = {
    {"attn_in/tiles", EL_F32, 3, {3, 5, 5}, NULL},
    {"attn_in/mean_abs", EL_F64, 1, {13}, NULL},
    {"self_attn.q_proj/codes", EL_U32, 2, {37, 12}, NULL},
    {"self_attn.q_proj/scales", EL_F16, 2, {37, 3}, NULL},
    {"self_attn.q_proj/zeros", EL_U8, 2, {37, 3}, NULL},
    {"self_attn.q_proj/rank-16/lora_A", EL_F32, 2, {7, 41}, NULL},
    {"empty/none", EL_F64, 1, {0}, NULL},
    {"empty/rows", EL_F32, 2, {0, 5}, NULL},
    {"empty/columns", EL_U8, 2, {4, 0}, NULL},
    {"one", EL_F64, 1, {1}, NULL},
    {"two_wide", EL_U8, 3, {2, 1, 100003}, NULL},
    {"large", EL_F32, 2, {1003, 257}, NULL},
};

typedef struct sample {
  shared memory; /* all data */
  attributes root, group, data;
  group_attributes groups[GROUPS];
} sample;

static size_t bytes_of(const dataset *s) {
  size_t bytes = element_bytes(s->type);
  for (int i = 0; i < s->rank; i++) bytes *= (size_t)s->dims[i];
  return bytes;
}

/* Any bits will do: nothing between memory and file may look at them as numbers. */
static void sample_new(const team *t, sample *s) {
  *s = (sample){0};
  size_t total = 0;
  for (int i = 0; i < SETS; i++) total += (bytes_of(&sets[i]) + 63) / 64 * 64;
  CHECK_OK(shared_new(t, total, "test data", &s->memory));
  unsigned char *at = s->memory.base;
  if (t->rank == 0)
    for (size_t i = 0; i < total; i++) at[i] = (unsigned char)((i * 2654435761u) >> 13);
  for (int i = 0; i < SETS; i++) {
    sets[i].data = bytes_of(&sets[i]) ? at : NULL;
    at += (bytes_of(&sets[i]) + 63) / 64 * 64;
  }
  team_barrier(t);

  CHECK_OK(attr_text(&s->root, "model_fingerprint", "überall – 模型"));
  CHECK_OK(attr_text(&s->root, "kind", "overruled"));
  CHECK_OK(attr_int(&s->root, "most", INT64_MAX));
  CHECK_OK(attr_text(&s->group, "empty", ""));
  CHECK_OK(attr_text(&s->group, "method", "cloq"));
  CHECK_OK(attr_int(&s->group, "bits", -2));
  CHECK_OK(attr_real(&s->group, "damping", 0.1));
  CHECK_OK(attr_real(&s->group, "tiny", 5e-324));
  for (int i = 0; i < 40; i++) {
    char name[48];
    snprintf(name, sizeof name, "option_%d", i);
    CHECK_OK(attr_int(&s->group, name, i));
  }
  CHECK_OK(attr_int(&s->data, "n", 10));
  CHECK_OK(attr_int(&s->data, "tile", 5));
  s->groups[0] = (group_attributes){"", &s->root};
  s->groups[1] = (group_attributes){"self_attn.q_proj", &s->group};
  s->groups[2] = (group_attributes){"attn_in/tiles", &s->data};
  s->groups[3] = (group_attributes){"bare", &s->data};
}

static void sample_free(sample *s) {
  attr_free(&s->root);
  attr_free(&s->group);
  attr_free(&s->data);
  shared_free(&s->memory);
}

static status write_sample(const team *t, const sample *s, const char *path) {
  return container_write(t, path, "7", "solution", sets, SETS, s->groups, GROUPS);
}

static int files_in(const char *folder) {
  int count = 0;
  DIR *d = opendir(folder);
  for (struct dirent *e; d && (e = readdir(d));) count += e->d_name[0] != '.';
  if (d) closedir(d);
  return count;
}

static void check_file(const char *path) {
  container *c = NULL;
  attributes a = {0};
  uint64_t bytes = 0, expected = 0;
  CHECK_FAILS(container_open(path, "grams", &c), E_DATA);
  CHECK_OK(container_open(path, "solution", &c));
  if (!c) return;
  for (int i = 0; i < SETS; i++) {
    element type;
    int rank;
    int64_t dims[3];
    CHECK(container_has(c, sets[i].path), "%s", sets[i].path);
    CHECK_OK(container_shape(c, sets[i].path, &type, &rank, dims));
    CHECK(type == sets[i].type && rank == sets[i].rank && memcmp(dims, sets[i].dims, sizeof dims) == 0, "%s", sets[i].path);
    char *data = calloc(1, bytes_of(&sets[i]) + 1);
    int64_t half = dims[0] / 2;
    size_t row = dims[0] ? bytes_of(&sets[i]) / (size_t)dims[0] : 0;
    CHECK_OK(container_read(c, sets[i].path, type, half, dims[0], data + (size_t)half * row));
    CHECK_OK(container_read(c, sets[i].path, type, 0, half, data));
    CHECK(bytes_of(&sets[i]) == 0 || memcmp(data, sets[i].data, bytes_of(&sets[i])) == 0, "%s", sets[i].path);
    CHECK_FAILS(container_read(c, sets[i].path, type, 0, dims[0] + 1, data), E_DATA);
    CHECK_FAILS(container_read(c, sets[i].path, type == EL_F32 ? EL_F64 : EL_F32, 0, 0, data), E_DATA);
    free(data);
    expected += bytes_of(&sets[i]);
  }
  CHECK_OK(container_verify(c, &bytes));
  CHECK(bytes == expected, "%lu of %lu", (unsigned long)bytes, (unsigned long)expected);

  CHECK_OK(container_attributes(c, "", &a));
  CHECK(strcmp(attr_get_text(&a, "format"), "cloqwork") == 0 && attr_get_int(&a, "format_version", 0) == 1, "root");
  CHECK(strcmp(attr_get_text(&a, "kind"), "solution") == 0 && attr_get_int(&a, "complete", 0) == 1, "root");
  CHECK(strcmp(attr_get_text(&a, "model_fingerprint"), "überall – 模型") == 0 && attr_get_int(&a, "most", 0) == INT64_MAX, "root");
  CHECK(strcmp(attr_get_text(&a, "program_version"), CLOQWORK_VERSION) == 0, "root");
  attr_free(&a);
  CHECK_OK(container_attributes(c, "self_attn.q_proj", &a));
  CHECK(a.count == 45 && strcmp(a.list[0].name, "empty") == 0 && strcmp(a.list[44].name, "option_39") == 0, "order and number, %d",
        a.count);
  CHECK(attr_find(&a, "empty") && strcmp(attr_get_text(&a, "method"), "cloq") == 0 && attr_get_int(&a, "bits", 0) == -2, "group");
  CHECK(attr_get_real(&a, "damping", 0) == 0.1 && attr_get_real(&a, "tiny", 0) == 5e-324, "group");
  attr_free(&a);
  CHECK_OK(container_attributes(c, "attn_in/tiles", &a));
  CHECK(attr_get_int(&a, "tile", 0) == 5 && strlen(attr_get_text(&a, "sha256")) == 64, "dataset");
  attr_free(&a);

  char **names;
  int count;
  CHECK_OK(container_groups(c, &names, &count));
  CHECK(count == 4 && strcmp(names[0], "attn_in") == 0 && strcmp(names[1], "self_attn.q_proj") == 0 && strcmp(names[3], "bare") == 0,
        "%d groups", count);
  container_names_free(&names, count);
  CHECK(!container_has(c, "attn_in/none") && !container_has(c, "") && !container_has(c, "/attn_in") && !container_has(c, "one/more"),
        "has");
  CHECK_FAILS(container_attributes(c, "nothing", &a), E_DATA);
  container_close(&c);
}

static void equal_bytes(const char *one, const char *other) {
  file_map a, b;
  CHECK_OK(file_map_open(one, &a));
  CHECK_OK(file_map_open(other, &b));
  CHECK(a.bytes == b.bytes && memcmp(a.data, b.data, a.bytes) == 0, "%s and %s: %zu and %zu bytes", one, other, a.bytes, b.bytes);
  file_map_close(&a);
  file_map_close(&b);
}

/* A file depends on its data only: not on the number of ranks, not on the hour. */
static void test_round_trip(const team *t, const sample *s, const char *folder) {
  char *path = path_join(folder, "layer-000.h5"), *alone = path_join(folder, "alone.h5");
  team single;
  CHECK_OK(write_sample(t, s, path));
  CHECK(files_in(folder) == 1, "%d files", files_in(folder));
  check_file(path);
  CHECK_OK(team_new(MPI_COMM_SELF, 1, &single));
  if (t->rank == t->size - 1) {
    sleep(1);
    CHECK_OK(write_sample(&single, s, alone));
    equal_bytes(path, alone);
    CHECK_OK(file_remove(alone));
    CHECK_OK(file_remove(path));
  }
  team_free(&single);
  team_barrier(t);
  FREE(path);
  FREE(alone);
}

/* Every rank the same status and text, and not a trace in the folder. */
static void check_failed(const team *t, status st, status expected, const char *words, const char *folder) {
  int code[2] = {(int)st, -(int)st}, most[2];
  MPI_Allreduce(code, most, 2, MPI_INT, MPI_MAX, t->comm);
  CHECK(most[0] == -most[1], "ranks disagree: %d and %d", most[0], -most[1]);
  CHECK(st == expected, "status %d instead of %d: %s", (int)st, (int)expected, status_message());
  CHECK(strstr(status_message(), words), "expected \"%s\" in: %s", words, status_message());
  CHECK(!strchr(status_message(), '\n'), "one line");
  team_barrier(t);
  CHECK(files_in(folder) == 0, "%d files left after: %s", files_in(folder), status_message());
  status_clear();
  team_barrier(t);
}

static void test_bad_arguments(const team *t, const sample *s, const char *folder) {
  char *path = path_join(folder, "bad.h5"), *nowhere = path_join(folder, "none/x.h5");
  dataset kept = sets[2];
  check_failed(t, write_sample(t, s, nowhere), E_IO, "No such file", folder);

  if (t->rank == t->size - 1) sets[2].dims[1]--;
  if (t->size > 1) check_failed(t, write_sample(t, s, path), E_INTERNAL, "expected the same", folder);
  sets[2] = kept;
  sets[2].path = sets[3].path;
  check_failed(t, write_sample(t, s, path), E_INTERNAL, "found two", folder);
  sets[2].path = "attn_in/../x";
  check_failed(t, write_sample(t, s, path), E_INTERNAL, "plain names", folder);
  sets[2].path = "one/more";
  sets[2].dims[0] = 1;
  sets[2] = kept;
  sets[2].rank = 4;
  check_failed(t, write_sample(t, s, path), E_INTERNAL, "rank 4", folder);
  sets[2] = kept;
  sets[9].path = "attn_in/tiles/x";
  check_failed(t, write_sample(t, s, path), E_INTERNAL, "to be a group", folder);
  sets[9].path = "one";
  sets[2].dims[1] = (int64_t)1 << 40;
  check_failed(t, write_sample(t, s, path), E_INTERNAL, "rows of at most", folder);
  sets[2] = kept;
  FREE(path);
  FREE(nowhere);
}

/* A limit on the size of files stands for a full disk: on rank 0 while blocks are reserved, on another one inside MPI. */
static void test_limits(const team *t, const sample *s, const char *folder) {
  char *path = path_join(folder, "limited.h5");
  struct rlimit old, low;
  getrlimit(RLIMIT_FSIZE, &old);
  signal(SIGXFSZ, SIG_IGN);
  for (int who = 0; who<t->size; who += t->size> 1 ? t->size - 1 : 1) {
    low = (struct rlimit){100000, old.rlim_max};
    if (t->rank == who) setrlimit(RLIMIT_FSIZE, &low);
    status st = write_sample(t, s, path);
    setrlimit(RLIMIT_FSIZE, &old);
    check_failed(t, st, E_IO, "File too large", folder);
  }
  CHECK_OK(write_sample(t, s, path));
  check_file(path);
  team_barrier(t);
  if (t->rank == 0) CHECK_OK(file_remove(path));
  team_barrier(t);
  FREE(path);
}

/* Every fallible operation of a rank fails once. n beyond the last one: the file is written. */
static void test_faults(const team *t, const sample *s, const char *folder) {
  char *path = path_join(folder, "fault.h5");
  dataset all[SETS];
  memcpy(all, sets, sizeof all);
  for (int who = 0; who<t->size; who += t->size> 1 ? t->size - 1 : 1) {
    int n = 1, failures = 0;
    for (;; n++) {
      check_fault(t->rank, who, n);
      /* few things, and one of each kind: the number of operations is what this test costs */
      status st = container_write(t, path, "7", "solution", (dataset[]){sets[0], sets[4], sets[6]}, 3, s->groups + 2, 1);
      unsigned long long done = t->rank == who ? fault_count() : 0;
      MPI_Bcast(&done, 1, MPI_UNSIGNED_LONG_LONG, who, t->comm);
      check_fault(t->rank, who, 0);
      if (done < (unsigned long long)n) {
        CHECK_OK(st);
        break;
      }
      CHECK(st == E_IO || st == E_MEMORY || st == E_DATA, "fault %d gave status %d", n, (int)st);
      failures += st != OK;
      check_failed(t, st, st, st == E_MEMORY ? "" : folder, folder);
      if (n > 2000) break;
    }
    CHECK(failures > 20, "only %d operations could fail", failures);
    container *c = NULL;
    CHECK_OK(container_open(path, "solution", &c));
    if (c) CHECK_OK(container_verify(c, NULL));
    container_close(&c);
    team_barrier(t);
    if (t->rank == 0) CHECK_OK(file_remove(path));
    team_barrier(t);
  }
  FREE(path);
}

/* Sizes from "fits easily" down to "not even the metadata": one clear line, or a whole file. */
static void test_full(const team *t, const sample *s, const char *folder) {
  char *path = path_join(folder, "layer.h5"), *filler = path_join(folder, ".filler");
  int failed = 0, whole = 0;
  for (long left = 4 << 20; left >= 0; left = left > 65536 ? left - 262144 : left - 4096) {
    if (t->rank == 0) {
      int fd = open(filler, O_WRONLY | O_CREAT | O_TRUNC, 0600);
      uint64_t space;
      CHECK_OK(file_free_space(folder, &space));
      CHECK((uint64_t)left <= space && posix_fallocate(fd, 0, (off_t)(space - (uint64_t)left)) == 0, "filling to %ld", left);
      close(fd);
    }
    team_barrier(t);
    status st = write_sample(t, s, path);
    if (st == OK) {
      whole++;
      check_file(path);
      team_barrier(t);
      if (t->rank == 0) CHECK_OK(file_remove(path));
      team_barrier(t);
    } else {
      failed++;
      check_failed(t, st, E_IO, "No space left on device", folder);
    }
  }
  CHECK(failed > 0 && whole > 0, "%d failed, %d written", failed, whole);
  team_barrier(t);
  if (t->rank == 0) CHECK_OK(file_remove(filler));
  FREE(path);
  FREE(filler);
}

static void write_for_others(const team *t, const sample *s, const char *path) {
  const char *slash = strrchr(path, '/');
  char *master = mem_format("%.*srun.h5", slash ? (int)(slash - path + 1) : 0, path);
  CHECK_OK(write_sample(t, s, path));
  if (t->rank == 0)
    CHECK_OK(container_write_master(master, "7", &s->root, &(master_link){"layers/layer-000", slash ? slash + 1 : path}, 1));
  FREE(master);
}

/* One line on standard error, one exit code: how the program itself answers. */
static int check_for_others(const char *path) {
  container *c = NULL;
  status st = container_open(path, NULL, &c);
  if (st == OK) st = container_verify(c, NULL);
  container_close(&c);
  if (st != OK) fprintf(stderr, "%s\n", status_message());
  return status_exit_code(st);
}

int main(int argc, char **argv) {
  if (argc == 3 && strcmp(argv[1], "check") == 0) return check_for_others(argv[2]);
  container_choose_io();
  MPI_Init(&argc, &argv);
  team t;
  sample s;
  char folder[256] = "";
  CHECK_OK(team_new(MPI_COMM_WORLD, 0, &t));
  sample_new(&t, &s);
  if (argc == 3 && strcmp(argv[1], "sample") == 0) {
    write_for_others(&t, &s, argv[2]);
  } else if (argc == 3 && strcmp(argv[1], "forever") == 0) {
    while (check_failures == 0) CHECK_OK(write_sample(&t, &s, argv[2]));
  } else if (argc == 3 && strcmp(argv[1], "full") == 0) {
    test_full(&t, &s, argv[2]);
  } else {
    if (t.rank == 0) {
      snprintf(folder, sizeof folder, "%s/cloqwork-container-XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
      CHECK(mkdtemp(folder), "%s", folder);
    }
    MPI_Bcast(folder, sizeof folder, MPI_CHAR, 0, MPI_COMM_WORLD);
    test_round_trip(&t, &s, folder);
    test_bad_arguments(&t, &s, folder);
    test_limits(&t, &s, folder);
    test_faults(&t, &s, folder);
    team_barrier(&t);
    if (t.rank == 0) CHECK(rmdir(folder) == 0, "%s not empty", folder);
  }
  sample_free(&s);
  team_free(&t);
  CHECK(mem_now() == 0, "%lu bytes leaked", (unsigned long)mem_now());
  return check_end("container");
}
