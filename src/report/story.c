#include "report/story.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"
#include "report/data.h"

enum { STAGES = 5, LINES_MOST = 1 << 30 };

/* A unit is of the first stage whose prefix its name begins with and whose part it has; the keys are plan.json's. */
static const struct {
  const char *name, *prefix, *part, *seconds, *units, *bytes;
} stages[STAGES] = {{"calibrate", "grams/", "", "calibrate_seconds", "gram_units_to_do", "rank_bytes_calibrate"},
                    {"Grams of prefixes", "solutions/", "/grams/", NULL, NULL, NULL},
                    {"solve", "solutions/", "", "solve_seconds", "solution_units_to_do", "rank_bytes_solve"},
                    {"eval", "eval/", "", NULL, NULL, NULL},
                    {"export", "", "", NULL, NULL, NULL}};

typedef struct totals {
  int64_t units, planned_units; /* planned_units: as the plan counts, a set of Grams each */
  double seconds, flops, of_peak, private_bytes, shared_bytes;
  json_t *steps; /* owned */
} totals;

static double real_of(const json_t *o, const char *key) { return json_number_value(json_object_get(o, key)); }

static json_t *real_or_null(double x, bool there) { return there && isfinite(x) ? json_real(x) : json_null(); }

/* Adds a text to a list of distinct ones, or a number. */
static void add_distinct(json_t *list, json_t *value) {
  size_t i;
  const json_t *each;
  json_array_foreach(list, i, each) if (json_equal(each, value)) return;
  if (value) json_array_append(list, value);
}

static void add_unit(const json_t *line, const char *unit, totals all[STAGES]) {
  int k = 0;
  double seconds = 0;
  const char *key;
  json_t *each, *spent = json_object_get(line, "seconds"), *whole = json_object_get(spent, "all");
  while (strncmp(unit, stages[k].prefix, strlen(stages[k].prefix)) != 0 || !strstr(unit, stages[k].part)) k++;
  totals *t = &all[k];
  json_object_foreach(spent, key, each) {
    if (each == whole) continue;
    seconds += json_number_value(each);
    json_object_set_new(t->steps, key, json_real(real_of(t->steps, key) + json_number_value(each)));
  }
  if (whole) seconds = json_number_value(whole);
  t->units++;
  int64_t sets = json_integer_value(json_object_get(line, "sets")); /* a bit each */
  t->planned_units += sets ? __builtin_popcountll((unsigned long long)sets) : 1;
  t->seconds += seconds;
  t->flops += seconds * real_of(line, "gflops");
  t->of_peak += seconds * real_of(line, "fraction_of_gemm");
  t->private_bytes = fmax(t->private_bytes, real_of(line, "private_bytes_peak"));
  t->shared_bytes = fmax(t->shared_bytes, real_of(line, "shared_bytes_peak"));
}

static status read_metrics(const char *run_folder, json_t *story, totals all[STAGES]) {
  status st = OK;
  char *path = path_join(run_folder, "metrics.jsonl"), *text = NULL;
  size_t bytes;
  int64_t unread = 0;
  json_t *versions = json_array(), *hosts = json_array(), *ranks = json_array(), *begun = NULL, *ended = NULL;
  json_object_set_new(story, "program", versions);
  json_object_set_new(story, "hosts", hosts);
  json_object_set_new(story, "ranks", ranks);
  if (!path) return fail(E_MEMORY, "report: no memory");
  if (file_exists(path)) TRY(file_read(path, LINES_MOST, &text, &bytes));
  for (char *at = text, *next; at && *at; at = next) {
    next = at + strcspn(at, "\n");
    if (*next) *next++ = 0;
    json_t *line = json_loads(at, 0, NULL);
    const char *unit = json_string_value(json_object_get(line, "unit"));
    if (unit) {
      add_unit(line, unit, all);
      add_distinct(versions, json_object_get(line, "version"));
      add_distinct(hosts, json_object_get(line, "host"));
      add_distinct(ranks, json_object_get(line, "ranks"));
      if (!begun) begun = json_incref(json_object_get(line, "time"));
      json_decref(ended);
      ended = json_incref(json_object_get(line, "time"));
    }
    unread += !unit;
    json_decref(line);
  }
  json_object_set_new(story, "unread_lines", json_integer(unread));
done:
  json_object_set_new(story, "begun", begun ? begun : json_null());
  json_object_set_new(story, "ended", ended ? ended : json_null());
  FREE(text);
  FREE(path);
  return st;
}

/* The last line of run.log that has these words, from them on. */
static void note_line(json_t *story, const char *key, const char *log, const char *words) {
  const char *last = NULL;
  for (const char *at = log; at && (at = strstr(at, words)); at++) last = at;
  json_object_set_new(story, key, last ? json_stringn(last, strcspn(last, "\n")) : json_null());
}

static status read_log(const char *run_folder, json_t *story) {
  status st = OK;
  char *path = path_join(run_folder, "run.log"), *text = NULL;
  size_t bytes;
  if (!path) return fail(E_MEMORY, "report: no memory");
  if (file_exists(path)) TRY(file_read(path, LINES_MOST, &text, &bytes));
  note_line(story, "blas", text, "BLAS /");
  note_line(story, "libraries", text, "Open MPI ");
done:
  FREE(text);
  FREE(path);
  return st;
}

static json_t *stage_json(int k, const totals *t, const json_t *plan, double peak) {
  double units = stages[k].units ? real_of(plan, stages[k].units) : 0,
         of_peak = t->of_peak > 0 ? t->of_peak / t->seconds : t->flops / t->seconds / peak;
  bool planned = units > 0 && t->units > 0;
  return json_pack("{s:s, s:I, s:f, s:O, s:o, s:o, s:f, s:f, s:o, s:o}", "stage", stages[k].name, "units", (json_int_t)t->units, "seconds",
                   t->seconds, "steps", t->steps, "gflops", real_or_null(t->flops / t->seconds, t->flops > 0), "of_peak",
                   real_or_null(of_peak, t->flops > 0 && (peak > 0 || t->of_peak > 0)), "private_bytes", t->private_bytes, "shared_bytes",
                   t->shared_bytes, "planned_seconds",
                   real_or_null(planned ? real_of(plan, stages[k].seconds) * (double)t->planned_units / units : 0, planned),
                   "planned_bytes", real_or_null(planned ? real_of(plan, stages[k].bytes) : 0, planned));
}

static status add_stages(const char *run_folder, json_t *story) {
  status st = OK;
  char *path = path_join(run_folder, "plan.json");
  json_t *plan = NULL, *list = json_array();
  totals all[STAGES] = {{0}};
  for (int k = 0; k < STAGES; k++) all[k].steps = json_object();
  json_object_set_new(story, "stages", list);
  if (!path) st = fail(E_MEMORY, "report: no memory");
  if (st == OK) st = read_metrics(run_folder, story, all);
  if (st == OK && file_exists(path)) st = json_read_file(path, 1 << 24, &plan);
  double peak = 1e-9 * real_of(plan, "gemm_flops_per_second");
  json_object_set_new(story, "peak_gflops", real_or_null(peak, peak > 0));
  for (int k = 0; k < STAGES; k++) {
    if (all[k].units) json_array_append_new(list, stage_json(k, &all[k], plan, peak));
    json_decref(all[k].steps);
  }
  json_drop(&plan);
  FREE(path);
  return st;
}

/* The lines between ```python and ``` of the adapter's model card; JSON null without. */
static status read_snippet(const char *path, json_t **snippet) {
  status st = OK;
  char *text = NULL, *begin = NULL, *end = NULL;
  size_t bytes;
  *snippet = json_null();
  if (!file_exists(path)) return OK;
  TRY(file_read(path, 1 << 24, &text, &bytes));
  begin = strstr(text, "```python\n");
  end = begin ? strstr(begin + 10, "```") : NULL;
  if (end) *snippet = json_stringn(begin + 10, (size_t)(end - begin - 10));
done:
  FREE(text);
  return st;
}

static status add_exports(const char *run_folder, json_t *story) {
  status st = OK;
  struct dirent **names = NULL;
  int count = 0;
  json_t *list = json_array(), *snippet = NULL;
  char *folder = path_join(run_folder, "export");
  json_object_set_new(story, "exports", list);
  if (!folder) return fail(E_MEMORY, "report: no memory");
  TRY(report_list(folder, report_is_shown, &names, &count));
  for (int i = 0; i < count && st == OK; i++) {
    char *card = mem_format("%s/%s/adapter/README.md", folder, names[i]->d_name);
    st = card ? read_snippet(card, &snippet) : fail(E_MEMORY, "report: no memory");
    FREE(card);
    if (st == OK) json_array_append_new(list, json_pack("{s:s, s:o}", "folder", names[i]->d_name, "snippet", snippet));
  }
done:
  report_list_free(&names, count);
  FREE(folder);
  return st;
}

/* What training from the run's exports came to (tests/bench/finetune.py). */
static status add_training(const char *run_folder, json_t *story) {
  status st = OK;
  char *path = path_join(run_folder, "finetune/results.json");
  json_t *found = NULL;
  if (!path) st = fail(E_MEMORY, "report: no memory");
  if (st == OK && file_exists(path)) st = json_read_file(path, 1 << 26, &found);
  json_object_set_new(story, "training", found ? found : json_null());
  FREE(path);
  return st;
}

status report_story(const char *run_folder, json_t **story) {
  status st = OK;
  *story = json_object();
  TRY(add_stages(run_folder, *story));
  TRY(read_log(run_folder, *story));
  TRY(add_exports(run_folder, *story));
  TRY(add_training(run_folder, *story));
done:
  if (st != OK) json_drop(story);
  return st;
}
