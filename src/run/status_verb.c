/* cloqwork status: what is done, counted from the files that stand under their final names. Rank 0 looks. */
#include <stdio.h>

#include "base/file.h"
#include "base/json.h"
#include "dist/agree.h"
#include "run/unit.h"
#include "run/verbs.h"

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

static status look(const session *c) {
  status st = OK;
  bool record;
  int64_t missing = 0;
  json_t *o = c->arguments.json ? json_object() : NULL;
  const char *names[SET_COUNT] = {"grams", "held-out grams"};
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
    json_dumpf(o, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    printf("\n");
  } else {
    printf("%s\n", complete ? "complete" : "not complete: run the job again to go on");
  }
  if (c->arguments.complete && !complete)
    st = fail(E_STOPPED, "%s: expected a complete run, found %lld units missing%s", c->job.output, (long long)missing,
              record ? "" : " and no completion record");
done:
  json_decref(o);
  return st;
}

status verb_status(session *c) {
  status st = c->rank == 0 ? look(c) : OK;
  return agree(c->job_comm, st);
}
