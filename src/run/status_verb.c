/* cloqwork status: what is done, counted from the files that stand under their final names; what the job that holds the run directory says of itself
 * in progress.json, and whether it is still there. Rank 0 looks. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "dist/agree.h"
#include "run/verbs.h"
#include "session/unit.h"

typedef struct tally {
  int64_t done, all;
} tally;

static tally count_grams(const session *c, int set) {
  tally t = {0, c->layer_end - c->layer_begin};
  char path[PATH_MOST];
  for (int64_t layer = c->layer_begin; layer < c->layer_end; layer++) {
    unit_gram_path(c, set, layer, path);
    t.done += file_exists(path);
  }
  return t;
}

static tally count_solutions(const session *c, const setting *s) {
  tally t = {0, c->layer_end - c->layer_begin};
  char path[PATH_MOST];
  for (int64_t layer = c->layer_begin; layer < c->layer_end; layer++) {
    unit_solution_path(c, s, layer, path);
    t.done += file_exists(path);
  }
  return t;
}

/* The completion record: the master file, written last, says that every unit of its job is there (of the layers that were asked for). */
static status recorded(const session *c, bool *complete) {
  status st = OK;
  container *file = NULL;
  attributes a = {0};
  char path[PATH_MOST];
  *complete = false;
  unit_run_path(c, "run.h5", path);
  if (!file_exists(path)) return OK;
  TRY(container_open(path, "run", &file));
  TRY(container_attributes(file, "", &a));
  *complete = attr_get_int(&a, "units_done", 0) == attr_get_int(&a, "units_expected", -1);
done:
  attr_free(&a);
  container_close(&file);
  return st;
}

/* ---- the job ---- */

enum { SIGN_OF_LIFE = 15 * 60 }; /* seconds without one after which a job on another host, whose lock is not seen, counts as gone */

static double seconds_since(const char *stamp) {
  struct tm parts = {0};
  return strptime(stamp, "%Y-%m-%dT%H:%M:%SZ", &parts) ? difftime(time(NULL), timegm(&parts)) : 1e9;
}

/* progress.json, owned, NULL: none; a job that ended without a word is "dead". */
static status read_progress(const session *c, json_t **progress) {
  status st = OK;
  const char *state, *updated;
  char path[PATH_MOST];
  *progress = NULL;
  unit_run_path(c, "progress.json", path);
  if (!file_exists(path)) return OK;
  TRY(json_read_file(path, 1 << 20, progress));
  TRY(json_get_string(*progress, path, "state", "", &state));
  TRY(json_get_string(*progress, path, "updated", "", &updated));
  unit_run_path(c, ".lock", path);
  lock_state lock = file_lock_look(path);
  if (strcmp(state, "running") == 0 && (lock == LOCK_FREE || (lock == LOCK_UNKNOWN && seconds_since(updated) > SIGN_OF_LIFE)))
    json_object_set_new(*progress, "state", json_string("dead"));
done:
  return st;
}

/* "running     run by vm-4711 since 2026-…: solve layer 3 of 30, … */
static void print_progress(json_t *o) {
  const char *state = "", *doing = "", *owner = "", *what = "", *message = "", *started = "", *updated = "";
  double fraction = 0, gflops = -1, peak = 0, left = -1, memory = 0;
  if (json_unpack(o, "{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:F, s:F, s:F, s:F, s:F}", "state", &state, "verb", &doing, "owner", &owner,
                  "what", &what, "message", &message, "started", &started, "updated", &updated, "fraction", &fraction, "gflops", &gflops,
                  "peak_gflops", &peak, "seconds_left", &left, "memory_bytes", &memory) != 0)
    return;
  printf("%-11s %s by %s, begun %s, last sign of life %s\n", state, doing, owner, started, updated);
  if (*what) printf("%-11s %s: %.0f %%", "", what, 100 * fraction);
  if (*what && gflops >= 0) printf(", %.0f GFLOP/s", gflops);
  if (*what && gflops >= 0 && peak > 0) printf(" (%.2f of a short product's)", gflops / peak);
  if (*what) printf(", %.2f GiB in rank 0\n", memory / (1 << 30));
  if (strcmp(state, "running") == 0 && left >= 0) {
    char text[32], end[32];
    time_t then = time(NULL) + (time_t)fmax(0, left - seconds_since(updated));
    struct tm parts;
    clock_duration(fmax(0, left - seconds_since(updated)), text);
    strftime(end, sizeof end, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&then, &parts));
    printf("%-11s this stage ends in about %s, at %s\n", "", text, end);
  }
  if (*message) printf("%-11s %s\n", "", message);
  if (strcmp(state, "dead") == 0) printf("%-11s the job ended without a word: killed, or its machine went down\n", "");
}

static status look(const session *c) {
  status st = OK;
  bool record;
  int64_t missing = 0;
  json_t *progress = NULL;
  json_t *o = c->arguments.json ? json_object() : NULL;
  const char *names[SET_COUNT] = {"grams", "held-out grams"};
  TRY(read_progress(c, &progress));
  TRY(recorded(c, &record));
  for (int k = -SET_COUNT; k < c->job.setting_count; k++) {
    int set = k + SET_COUNT;
    if (k < 0 && (!c->sets[set] || !job_uses_full_grams(&c->job))) continue;
    tally t = k < 0 ? count_grams(c, set) : count_solutions(c, &c->job.settings[k]);
    const char *name = k < 0 ? names[set] : c->job.settings[k].name;
    missing += t.all - t.done;
    if (o)
      json_object_set_new(o, name, json_pack("{s:I, s:I}", "done", (json_int_t)t.done, "all", (json_int_t)t.all));
    else
      printf("%-40s %4lld of %lld layers%s\n", name, (long long)t.done, (long long)t.all, t.done == t.all ? "" : "  (to do)");
  }
  bool complete = record && missing == 0;
  if (o) {
    json_object_set_new(o, "complete", json_boolean(complete));
    json_object_set_new(o, "job", progress ? json_incref(progress) : json_null());
    json_dumpf(o, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    printf("\n");
  } else {
    if (progress) print_progress(progress);
    bool running = progress && strcmp(json_string_value(json_object_get(progress, "state")), "running") == 0;
    printf("%s\n", complete ? "complete" : running ? "not complete yet" : "not complete: run the job again to go on");
  }
  if (c->arguments.complete && !complete)
    st = fail(E_STOPPED, "%s: expected a complete run, found %lld units missing%s", c->job.output, (long long)missing,
              record ? "" : " and no completion record");
done:
  json_drop(&progress);
  json_decref(o);
  return st;
}

status verb_status(session *c) {
  status st = c->rank == 0 ? look(c) : OK;
  return agree(c->job_comm, st);
}
