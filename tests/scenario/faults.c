/* Every fallible operation of a verb made to fail, one after the other, on each rank: the verb is called again and again in one process, so
 * that thousands of faults take minutes.
 *
 *   mpirun -n 3 faults VERB TARGET FOLDER SECONDS SEED
 *
 * TARGET: a job file, or what else the verb takes. FOLDER is what it makes: gone before each fault. SECONDS 0: all faults; else as many, drawn, as that time allows.
 * After each fault: all ranks return the same status, that of the kind of operation, with one line; the memory and the files it opened
 * are given back; nothing else went to standard error; what stands under a final name is what the undisturbed verb made. Then the verb again,
 * without a fault: everything that the undisturbed one made, and no temporary file. A rank that waits longer than LIMIT seconds is a hang. */
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/memory.h"
#include "dist/agree.h"
#include "run/verbs.h"
#include "store/container.h"

enum { LIMIT = 120, FILES = 64, PLACES = 256 };

static int rank, size, failures;
static FILE *report;
static char now_at[160], message[256]; /* what is being tried; what the last attempt said */

typedef struct made {
  char path[512], hex[HASH_HEX];
} made;
typedef struct listing {
  made list[FILES];
  int count, temporaries, spoiled;
} listing;

static struct {
  char place[64];
  long faults;
} places[PLACES];

static void complain(const char *what, const char *detail) {
  failures++;
  fprintf(report, "FAILED: rank %d, %s: %s: %s\n", rank, now_at, what, detail);
  fflush(report);
}

static void hang(int signal_number) {
  (void)signal_number;
  dprintf(fileno(report), "FAILED: rank %d, %s: a hang\n", rank, now_at);
  _exit(1);
}

/* ---- What a verb leaves --------------------------------------------------------------------------------------------------------- */

static int remove_one(const char *path, const struct stat *s, int type, struct FTW *where) {
  (void)s, (void)type, (void)where;
  return remove(path);
}
static void clear(const char *folder) { nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS); }

/* The checksums of all datasets of a container that is whole: times of solving, among its attributes, differ from run to run. */
static status hash_container(const char *path, char hex[HASH_HEX]) {
  static const char *const names[] = {"tiles",  "mean_abs", "max_mean_abs", "codes",        "scales",      "zeros",
                                      "lora_A", "lora_B",   "loss",         "loss_heldout", "eigenvalues", "rounds"};
  status st = OK;
  container *file = NULL;
  hash *h = NULL;
  char **groups = NULL, inner[256];
  int count = 0;
  TRY(container_open(path, NULL, &file));
  TRY(container_verify(file, NULL));
  TRY(container_groups(file, &groups, &count));
  TRY(hash_new(&h));
  for (int g = 0; g < count; g++)
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
      attributes a = {0};
      snprintf(inner, sizeof inner, "%s/%s", groups[g], names[i]);
      if (!container_has(file, inner)) continue;
      st = container_attributes(file, inner, &a);
      if (st == OK) st = hash_add_text(h, inner);
      if (st == OK) st = hash_add_text(h, attr_get_text(&a, "sha256"));
      attr_free(&a);
      TRY(st);
    }
  TRY(hash_end(&h, hex));
done:
  hash_free(&h);
  container_names_free(&groups, count);
  container_close(&file);
  return st;
}

static status hash_file(const char *path, char hex[HASH_HEX]) {
  char *text = NULL;
  size_t bytes;
  status st = file_read(path, 1 << 30, &text, &bytes);
  if (st == OK) st = hash_bytes(text, bytes, hex);
  FREE(text);
  return st;
}

static listing *looking;

/* The log and what is only told are no results; the master file names what there is, so it differs between runs that got differently far. */
static int look_at(const char *path, const struct stat *s, int type, struct FTW *where) {
  (void)s;
  static const char *const told[] = {"run.log", "metrics.jsonl", "plan.json", "progress.json"};
  const char *name = path + where->base, *end = strrchr(name, '.');
  if (type != FTW_F) return 0;
  if (strstr(path, ".tmp")) looking->temporaries++;
  if (strstr(path, ".tmp") || strcmp(name, ".lock") == 0) return 0;
  for (size_t i = 0; i < sizeof told / sizeof *told; i++)
    if (strcmp(name, told[i]) == 0) return 0;
  if (looking->count == FILES) return -1;
  made *m = &looking->list[looking->count++];
  snprintf(m->path, sizeof m->path, "%s", path);
  if ((end && strcmp(end, ".h5") == 0 ? hash_container(path, m->hex) : hash_file(path, m->hex)) != OK) {
    looking->spoiled++;
    complain(path, status_message());
    status_clear();
  }
  return 0;
}

static void look(const char *folder, listing *l) {
  memset(l, 0, sizeof *l);
  looking = l;
  if (file_exists(folder) && nftw(folder, look_at, 16, FTW_PHYS) != 0)
    complain(folder, "cannot be walked, or has more files than expected");
}

/* Every file of l is one of `expected`; with `all` the other way round, too. */
static void compare(const listing *l, const listing *expected, bool all) {
  for (int i = 0; i < l->count; i++) {
    int k = 0;
    while (k < expected->count && strcmp(expected->list[k].path, l->list[i].path) != 0) k++;
    if (k == expected->count)
      complain(l->list[i].path, "the undisturbed verb does not make it");
    else if (strcmp(expected->list[k].hex, l->list[i].hex) != 0)
      complain(l->list[i].path, "differs from what the undisturbed verb made");
  }
  if (all && l->count != expected->count) complain("the verb after it", "did not make every file");
  if (all && l->temporaries) complain("the verb after it", "temporary files are left");
}

/* The same files with the same content: a run that goes on from there is the same run. */
static bool same(const listing *a, const listing *b) {
  bool equal = a->count == b->count && a->temporaries == b->temporaries;
  for (int i = 0; equal && i < a->count; i++)
    equal = strcmp(a->list[i].path, b->list[i].path) == 0 && strcmp(a->list[i].hex, b->list[i].hex) == 0;
  return equal;
}

/* ---- A verb, with or without a fault -------------------------------------------------------------------------------------------- */

typedef struct call {
  const verb *v;
  arguments a;
  blas_info blas;
  const char *io;
} call;

typedef struct resources {
  uint64_t memory, shared;
  int files;
} resources;

static resources held(void) {
  resources r = {mem_now(), shared_now(), 0};
  DIR *d = opendir("/proc/self/fd");
  while (d && readdir(d)) r.files++;
  if (d) closedir(d);
  return r;
}

static off_t said(void) {
  struct stat s;
  fflush(stderr);
  return fstat(STDERR_FILENO, &s) == 0 ? s.st_size : 0;
}

/* Collective. n 0: only counted. *hit: the operation was reached. */
static status attempt(const call *c, int bad, unsigned long long n, bool *hit, unsigned long long *count) {
  char text[32];
  snprintf(text, sizeof text, "%d:%llu", bad, n);
  setenv("CLOQWORK_FAULT", text, 1);
  status_clear();
  alarm(LIMIT);
  fault_setup(rank);
  resources before = held();
  log_speaker(rank == 0, true);
  status st = verb_perform(MPI_COMM_WORLD, c->v, &c->a, &c->blas, c->io);
  *count = fault_count();
  *hit = *fault_place();
  unsetenv("CLOQWORK_FAULT");
  resources after = held();
  char differs[128];
  snprintf(message, sizeof message, "%s", status_message());
  snprintf(differs, sizeof differs, "%lld bytes, %lld shared, %d files", (long long)(after.memory - before.memory),
           (long long)(after.shared - before.shared), after.files - before.files);
  if (after.memory != before.memory || after.shared != before.shared || after.files != before.files) complain("not given back", differs);
  if (rank == 0 && (st == OK) != !*message) complain("status and message disagree", message);
  if (strchr(message, '\n')) complain("more than one line", message);
  if (said()) {
    complain("standard error", "something was printed");
    if (ftruncate(STDERR_FILENO, 0) != 0) complain("standard error", "cannot be emptied");
  }
  int code = (int)st;
  status_clear();
  if (agree_same(MPI_COMM_WORLD, "the status", &code, sizeof code) != OK) complain("ranks disagree", status_message());
  status_clear();
  alarm(0);
  if (st != OK && n == 0) complain("failed without a fault", message);
  return st;
}

/* Codes that tell of such a fault: memory 4; a library's call 5, 70; reading and writing 6, or 3 where the file is an input. */
static bool right_code(const char *place, status st) {
  if (strstr(place, "memory.c")) return st == E_MEMORY;
  if (strstr(place, "team.c")) return st == E_MEMORY || st == E_INTERNAL || st == E_IO;
  if (strstr(place, "blas.c") || strstr(place, "reverse.c")) return st == E_NUMERICS;
  if (strstr(place, "dlinalg.c")) return st == E_INTERNAL;
  return st == E_IO || st == E_DATA || (strstr(place, "store/") && st == E_MEMORY);
}

/* Collective: the place's name stands on rank `bad`. */
static void note_place(int bad, bool hit, status st) {
  char place[64];
  snprintf(place, sizeof place, "%s", fault_place());
  MPI_Bcast(place, sizeof place, MPI_CHAR, bad, MPI_COMM_WORLD);
  if (rank != 0 || !hit) return;
  size_t used = strlen(now_at);
  snprintf(now_at + used, sizeof now_at - used, " (%s)", place);
  int i = 0;
  while (i < PLACES - 1 && *places[i].place && strcmp(places[i].place, place) != 0) i++;
  snprintf(places[i].place, sizeof places[i].place, "%s", place);
  places[i].faults++;
  char code[32];
  snprintf(code, sizeof code, "exit code %d", status_exit_code(st));
  if (!right_code(place, st)) complain(code, message);
}

static void begin_anew(const char *folder) {
  if (rank == 0) clear(folder);
  MPI_Barrier(MPI_COMM_WORLD);
}

/* Collective. The verb without a fault, from what is there to the end. */
static void go_on(const call *c, const char *folder, const listing *expected) {
  static listing found;
  unsigned long long count;
  bool hit;
  attempt(c, 0, 0, &hit, &count);
  if (rank != 0) return;
  look(folder, &found);
  compare(&found, expected, true);
}

int main(int argc, char **argv) {
  const char *io = container_choose_io(), *one_rank[] = {"4"};
  call c = {.blas = blas_setup(), .io = io};
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (argc != 6) return 2;
  const char *folder = argv[3];
  double seconds = atof(argv[4]);
  srand48(atol(argv[5]));
  c.a = (arguments){.verb = argv[1], .target = argv[2], .last_layer = -1, .quiet = true};
  if (strcmp(argv[1], "export") == 0) {
    c.a.rank_choices = one_rank;
    c.a.rank_choice_count = 1;
    c.a.to = "gptq";
    c.a.out = folder;
  }
  for (int i = 0; i < verb_count; i++)
    if (strcmp(verbs[i].name, argv[1]) == 0) c.v = &verbs[i];
  if (!c.v) return 2;

  report = fdopen(dup(STDOUT_FILENO), "w");
  FILE *nothing = tmpfile();
  if (!report || !nothing || !freopen("/dev/null", "w", stdout) || dup2(fileno(nothing), STDERR_FILENO) < 0) return 1;
  signal(SIGALRM, hang);

  static listing expected, found, resumed;
  unsigned long long total[64] = {0}, sum = 0, tried = 0, missed = 0, reruns = 0, all_counts[64];
  bool hit;
  for (int r = 0; r < size && r < 64; r++) {
    snprintf(now_at, sizeof now_at, "%s undisturbed", argv[1]);
    begin_anew(folder);
    attempt(&c, r, 0, &hit, &total[r]);
    MPI_Allgather(&total[r], 1, MPI_UNSIGNED_LONG_LONG, all_counts, 1, MPI_UNSIGNED_LONG_LONG, MPI_COMM_WORLD);
    total[r] = all_counts[r];
    sum += total[r];
  }
  if (rank == 0) look(folder, &expected);

  bool able = !agree_any(MPI_COMM_WORLD, failures > 0);
  resumed.count = -1; /* nothing yet, not even from an empty folder */
  double end = clock_now() + seconds;
  for (unsigned long long k = 0; able; k++) {
    unsigned long long at = seconds > 0 ? (unsigned long long)(drand48() * (double)sum) : k;
    int over = failures > 50 || (seconds > 0 ? clock_now() > end : k == sum), bad = 0;
    MPI_Bcast(&over, 1, MPI_INT, 0, MPI_COMM_WORLD);
    if (over || at >= sum) break;
    while (at >= total[bad]) at -= total[bad++];
    begin_anew(folder);
    unsigned long long count;
    snprintf(now_at, sizeof now_at, "%s, fault %d:%llu", argv[1], bad, at + 1);
    status st = attempt(&c, bad, at + 1, &hit, &count);
    hit = agree_any(MPI_COMM_WORLD, hit);
    note_place(bad, hit, st);
    missed += !hit;
    tried += hit;
    if (hit && st == OK) complain("a fault", "had no effect");
    if (rank == 0) look(folder, &found);
    if (rank == 0) compare(&found, &expected, false);
    int known = rank == 0 && (same(&found, &resumed) || (expected.count && same(&found, &expected))); /* or all is there */
    MPI_Bcast(&known, 1, MPI_INT, 0, MPI_COMM_WORLD);
    if (known) continue;
    resumed = found;
    go_on(&c, folder, &expected);
    reruns++;
  }
  begin_anew(folder);
  if (able) go_on(&c, folder, &expected); /* and the next verb has what it needs */

  int all = 0;
  MPI_Allreduce(&failures, &all, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  if (rank == 0) {
    fprintf(report, "%s: operations that can fail:", argv[1]);
    for (int r = 0; r < size && r < 64; r++) fprintf(report, " %llu", total[r]);
    fprintf(report, " (by rank); seed %s: %llu faults, %llu not reached, %llu runs after them, %d wrong\n", argv[5], tried, missed, reruns,
            all);
    for (int i = 0; i < PLACES && *places[i].place; i++) fprintf(report, "  %6ld %s\n", places[i].faults, places[i].place);
  }
  fclose(report);
  MPI_Finalize();
  return all != 0;
}
