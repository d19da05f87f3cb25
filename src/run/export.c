/* cloqwork export: which setting and rank every matrix takes, then the folders. */
#include <dirent.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/settings.h"
#include "dist/agree.h"
#include "run/export_request.h"
#include "run/verbs.h"
#include "session/unit.h"

enum { SETTINGS_MOST = 4096 };

/* A setting as the container has it: what the job file says now does not matter. */
typedef struct solved {
  char name[160];
  char ranks[256];
  char split[16]; /* how its method splits a product */
  bool target[LIN_COUNT];
} solved;

/* ---- what was solved ---- */

static status read_solved(const session *c, solved *s) {
  status st = OK;
  container *file = NULL;
  attributes root = {0};
  char path[PATH_MOST], text[256], *rest = NULL;
  snprintf(path, sizeof path, "%s/solutions/%s/layer-000.h5", c->job.output, s->name);
  TRY(container_open(path, "solution", &file));
  TRY(container_attributes(file, "", &root));
  snprintf(s->ranks, sizeof s->ranks, "%.255s", attr_get_text(&root, "ranks"));
  snprintf(s->split, sizeof s->split, "%.15s", attr_get_text(&root, "split"));
  snprintf(text, sizeof text, "%.255s", attr_get_text(&root, "targets"));
  for (char *word = strtok_r(text, ",", &rest); word; word = strtok_r(NULL, ",", &rest))
    for (int l = 0; l < LIN_COUNT; l++) s->target[l] |= strcmp(word, linear_short((linear_id)l)) == 0;
done:
  attr_free(&root);
  container_close(&file);
  return st;
}

static int by_name(const void *a, const void *b) { return strcmp(((const solved *)a)->name, ((const solved *)b)->name); }

/* Local. The settings that have a solution of the first layer. */
static status list_solved(const session *c, solved *list, int *count) {
  status st = OK;
  char path[PATH_MOST];
  snprintf(path, sizeof path, "%s/solutions", c->job.output);
  DIR *d = opendir(path);
  if (!d) return fail(E_DATA, "%s: expected the solutions of a run, found none: cloqwork run makes them", path);
  for (struct dirent *e = readdir(d); e && *count < SETTINGS_MOST; e = readdir(d)) {
    if (e->d_name[0] == '.' || strlen(e->d_name) >= sizeof list->name) continue;
    snprintf(path, sizeof path, "%s/solutions/%s/layer-000.h5", c->job.output, e->d_name);
    if (file_exists(path)) snprintf(list[(*count)++].name, sizeof list->name, "%.159s", e->d_name);
  }
  closedir(d);
  if (*count == 0) return fail(E_DATA, "%s/solutions: expected the solutions of a run, found none: cloqwork run makes them", c->job.output);
  qsort(list, (size_t)*count, sizeof *list, by_name);
  for (int i = 0; i < *count; i++) TRY(read_solved(c, &list[i]));
done:
  return st;
}

/* ---- what was asked ---- */

/* [PATTERN=]VALUE */
typedef struct choice {
  char pattern[128];
  const char *value; /* borrowed */
  int index;         /* of the setting, or the rank itself */
  bool used;
} choice;

static status split_choice(const char *option, const char *text, choice *c) {
  const char *equals = strchr(text, '=');
  *c = (choice){.pattern = "*", .value = equals ? equals + 1 : text};
  if (equals && (equals == text || (size_t)(equals - text) >= sizeof c->pattern))
    return fail(E_USAGE, "%s: expected VALUE or PATTERN=VALUE, found %s", option, text);
  if (equals) snprintf(c->pattern, sizeof c->pattern, "%.*s", (int)(equals - text), text);
  return OK;
}

static bool matches(const choice *c, const export_matrix *m) {
  return fnmatch(c->pattern, linear_short(m->linear), 0) == 0 || fnmatch(c->pattern, m->module, 0) == 0;
}

/* The last choice that speaks of this matrix. */
static choice *choose(choice *list, int count, const export_matrix *m) {
  for (int i = count - 1; i >= 0; i--)
    if (matches(&list[i], m)) {
      list[i].used = true;
      return &list[i];
    }
  return NULL;
}

/* The run's setting nearest to a name: one that begins with it (options behind it were left out), else by letters. */
static status unknown_setting(const solved *list, int count, const char *name) {
  const char *names[SETTINGS_MOST], *near = NULL;
  for (int i = 0; i < count; i++) {
    names[i] = list[i].name;
    if (!near && strncmp(names[i], name, strlen(name)) == 0) near = names[i];
  }
  if (!near) near = settings_nearest(name, names, count);
  return fail(E_USAGE, "export: --setting: unknown setting %s, %s %s", name, near ? "did you mean" : "the run has", near ? near : names[0]);
}

static status read_settings(const arguments *a, const solved *list, int count, choice *choices) {
  status st = OK;
  for (int i = 0; i < a->setting_choice_count; i++) {
    choice *c = &choices[i];
    TRY(split_choice("--setting", a->setting_choices[i], c));
    for (c->index = 0; c->index < count && strcmp(list[c->index].name, c->value) != 0;) c->index++;
    if (c->index == count) return unknown_setting(list, count, c->value);
  }
done:
  return st;
}

static status read_ranks(const arguments *a, choice *choices) {
  status st = OK;
  for (int i = 0; i < a->rank_choice_count; i++) {
    char *end;
    TRY(split_choice("--rank", a->rank_choices[i], &choices[i]));
    long rank = strtol(choices[i].value, &end, 10);
    if (end == choices[i].value || *end || rank < 0 || rank > 1 << 24)
      return fail(E_USAGE, "export: --rank: expected a rank of at least 0, found %s", choices[i].value);
    choices[i].index = (int)rank;
  }
done:
  return st;
}

static status all_used(const char *option, const choice *list, int count) {
  for (int i = 0; i < count; i++)
    if (!list[i].used) return fail(E_USAGE, "export: %s: expected a linear or module that matches %s, found none", option, list[i].pattern);
  return OK;
}

/* ---- the request ---- */

static void name_module(export_matrix *m) {
  snprintf(m->module, sizeof m->module, "model.layers.%lld.%s", (long long)m->layer, linear_path(m->linear));
}

status export_request_add(const session *c, int64_t layer, linear_id l, const char *setting_name, int rank, export_request *q) {
  export_matrix *m = &q->matrices[q->count];
  *m = (export_matrix){.layer = layer, .linear = l, .setting = setting_name, .rank = rank};
  name_module(m);
  m->file = mem_format("%s/solutions/%s/layer-%03lld.h5", c->job.output, setting_name, (long long)layer);
  if (!m->file) return fail(E_MEMORY, "%s: no memory for a path", setting_name);
  q->count++;
  return OK;
}

void export_request_free(export_request *q) {
  for (int i = 0; q->matrices && i < q->count; i++) FREE(q->matrices[i].file);
  FREE(q->matrices);
  q->count = 0;
}

/* Every linear of every layer that its setting has quantized. */
static status add_matrices(const session *c, const solved *list, choice *settings, int setting_count, choice *ranks, int rank_count,
                           export_request *q) {
  status st = OK;
  TRY(NEW(q->matrices, c->model.arch.layers * LIN_COUNT, "matrices of an export"));
  for (int64_t layer = 0; layer < c->model.arch.layers; layer++)
    for (int l = 0; l < LIN_COUNT; l++) {
      export_matrix m = {.layer = layer, .linear = (linear_id)l};
      name_module(&m);
      const choice *s = choose(settings, setting_count, &m);
      if (!s || !list[s->index].target[l]) continue;
      const choice *r = choose(ranks, rank_count, &m);
      if (!r) return fail(E_USAGE, "export: --rank: %s: expected a rank, such as %s, found none", m.module, list[s->index].ranks);
      TRY(export_request_add(c, layer, (linear_id)l, list[s->index].name, r->index, q));
    }
  TRY(all_used("--setting", settings, setting_count));
  TRY(all_used("--rank", ranks, rank_count));
  if (q->count == 0) st = fail(E_USAGE, "export: --setting: expected a setting for some linear, found none");
done:
  return st;
}

status export_request_real_type(const char *option, const char *text, real_type *type) {
  for (int k = REAL_F32; k <= REAL_BF16; k++)
    if (strcmp(text, real_name((real_type)k)) == 0) {
      *type = (real_type)k;
      return OK;
    }
  return fail(E_USAGE, "%s: expected float32, float16 or bfloat16, found %s", option, text);
}

static status read_format(const arguments *a, export_request *q) {
  status st = OK;
  const char *name = a->to ? a->to : a->merge ? "dense" : NULL;
  if (!name) return fail(E_USAGE, "export: --to: expected %s, found nothing", export_format_list());
  q->format = export_format_find(name);
  q->merge = a->merge;
  const char *near = q->format ? NULL : export_format_nearest(name);
  if (near) return fail(E_USAGE, "export: --to: unknown format %s, did you mean %s", name, near);
  if (!q->format) return fail(E_USAGE, "export: --to: expected %s, found %s", export_format_list(), name);
  bool dense = q->format == export_format_find("dense");
  if (a->merge && !dense) return fail(E_USAGE, "export: --merge: %s cannot hold W = Q + BA: dense can", name);
  if (a->dtype && !dense) return fail(E_USAGE, "export: --dtype: %s has types of its own; it is for dense", name);
  q->has_dtype = a->dtype != NULL;
  if (a->dtype) TRY(export_request_real_type("export: --dtype", a->dtype, &q->dtype));
  if (a->adapter_dtype) TRY(export_request_real_type("export: --adapter-dtype", a->adapter_dtype, &q->adapter_dtype));
done:
  return st;
}

/* The split as asked for, else that of the first matrix's setting. */
static status read_split(const arguments *a, const solved *list, int count, export_request *q) {
  if (a->split) return split_find("export: --split", a->split, &q->split);
  for (int i = 0; i < count; i++)
    if (strcmp(list[i].name, q->matrices[0].setting) == 0 && *list[i].split)
      return split_find(list[i].name, list[i].split, &q->split);
  return OK;
}

/* Of the chosen setting, for one that has only this rank. */
static void default_rank(const solved *s, choice *ranks, int *count) {
  if (*count || strchr(s->ranks, ',')) return;
  ranks[0] = (choice){.pattern = "*", .value = s->ranks, .index = atoi(s->ranks)};
  *count = 1;
}

static void join(char *text, size_t size, const char *const *parts, int count) {
  text[0] = 0;
  for (int i = 0; i < count; i++) {
    size_t used = strlen(text);
    snprintf(text + used, size - used, "%s%s", i ? " " : "", parts[i]);
  }
}

typedef struct request_text {
  char setting[512], rank[256], folder[PATH_MOST];
} request_text;

/* Settings, ranks, format and names of the request from the command line. Local, the same on every rank. */
static status make_request(const session *c, const solved *list, int count, request_text *t, export_request *q) {
  const arguments *a = &c->arguments;
  status st = OK;
  choice *settings = NULL, *ranks = NULL;
  int setting_count = a->setting_choice_count, rank_count = a->rank_choice_count;
  TRY(read_format(a, q));
  TRY(NEW(settings, setting_count + 1, "choices"));
  TRY(NEW(ranks, rank_count + 1, "choices"));
  TRY(read_settings(a, list, count, settings));
  TRY(read_ranks(a, ranks));
  if (setting_count == 0 && count > 1) {
    st = fail(E_USAGE, "export: --setting: expected one of the run's %d settings, such as %s, found none", count, list[0].name);
    goto done;
  }
  if (setting_count == 0) settings[setting_count++] = (choice){.pattern = "*", .value = list[0].name};
  default_rank(&list[settings[0].index], ranks, &rank_count);
  TRY(add_matrices(c, list, settings, setting_count, ranks, rank_count, q));
  TRY(read_split(a, list, count, q));
  join(t->setting, sizeof t->setting, a->setting_choices, a->setting_choice_count);
  join(t->rank, sizeof t->rank, a->rank_choices, a->rank_choice_count);
  if (!t->setting[0]) snprintf(t->setting, sizeof t->setting, "%s", list[0].name);
  if (!t->rank[0]) snprintf(t->rank, sizeof t->rank, "%s", ranks[0].value);
  bool mixed = setting_count > 1 || rank_count > 1;
  if (a->out)
    snprintf(t->folder, sizeof t->folder, "%s", a->out);
  else
    snprintf(t->folder, sizeof t->folder, "%s/export/%s%s%s-%s", c->job.output, list[settings[0].index].name, mixed ? "-mixed-r" : "-r",
             ranks[0].value, q->merge ? "merged" : export_format_name(q->format));
  q->setting = t->setting;
  q->rank = t->rank;
  q->folder = t->folder;
done:
  FREE(settings);
  FREE(ranks);
  return st;
}

/* Every solution file that will be read must be there. */
static status check_files(const export_request *q) {
  for (int i = 0; i < q->count; i++)
    if (!file_exists(q->matrices[i].file))
      return fail(E_DATA, "%s: expected the solution of layer %lld, found none: cloqwork solve makes what is missing", q->matrices[i].file,
                  (long long)q->matrices[i].layer);
  return OK;
}

/* Local. What the first solution file says of its making, and the calibration of the job. */
static status how_it_was_made(const session *c, const export_request *q, attributes *how) {
  static const char *const kept_back[] = {"model_fingerprint", "gram_fingerprint", "targets",         "setting", "ranks", "format", "kind",
                                          "attributes_sha256", "rank_max",         "program_version", "bits",    "group"};
  status st = OK;
  container *file = NULL;
  attributes root = {0};
  char text[1024];
  const window_request *w = &c->job.calibration;
  if (c->job.grams.origin == GRAMS_CALIBRATED)
    snprintf(text, sizeof text, "%lld windows of %lld tokens, %s, seed %lld", (long long)w->windows, (long long)w->length,
             w->how == SAMPLE_RANDOM ? "random" : "sequential", (long long)w->seed);
  else
    snprintf(text, sizeof text, "Grams %s", c->job.grams.origin == GRAMS_MERGED ? "merged from several runs" : "imported from files");
  TRY(attr_text(how, "calibration", text));
  TRY(container_open(q->matrices[0].file, "solution", &file));
  TRY(container_attributes(file, "", &root));
  for (int i = 0; i < root.count; i++) {
    bool keep = root.list[i].kind == ATTR_TEXT;
    for (size_t k = 0; k < sizeof kept_back / sizeof *kept_back; k++) keep = keep && strcmp(root.list[i].name, kept_back[k]) != 0;
    if (keep) TRY(attr_text(how, root.list[i].name, root.list[i].text));
  }
done:
  attr_free(&root);
  container_close(&file);
  return st;
}

static status report_export(session *c, const export_request *q, const export_result *r) {
  if (c->rank != 0) return OK;
  if (c->arguments.json) {
    json_t *o =
        json_pack("{s:s, s:s, s:s, s:I, s:f, s:s}", "folder", q->folder, "setting", q->setting, "format", export_format_name(q->format),
                  "bytes", (json_int_t)r->bytes, "seconds", r->seconds, "base_fingerprint", r->base_fingerprint);
    if (o) json_dumpf(o, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    printf("\n");
    json_decref(o);
  } else {
    printf("%-44s %s, %.1f MB in %.2f s (README.md says how to load it)\n", q->folder,
           q->merge ? "base with the adapter merged" : "base and adapter", (double)r->bytes / 1e6, r->seconds);
  }
  if (access(c->job.output, W_OK) != 0) return OK; /* a run that may only be read can be exported */
  json_t *line = json_pack("{s:s, s:s, s:I, s:{s:f}, s:f}", "unit", q->folder, "setting", q->setting, "bytes", (json_int_t)r->bytes,
                           "seconds", "write", r->seconds, "gigabytes_per_second", 1e-9 * (double)r->bytes / r->seconds);
  return line ? unit_metrics(c, line) : fail(E_MEMORY, "metrics.jsonl: no memory for a line");
}

status verb_export(session *c) {
  status st = OK;
  solved *list = NULL;
  int count = 0;
  request_text text = {0};
  attributes how = {0};
  export_result r;
  export_request q = {
      .comm = c->job_comm, .model = &c->model, .run = c->job.output, .tag = c->job_tag, .how = &how, .stop = session_stop_asked};
  st = NEW(list, SETTINGS_MOST, "settings of a run");
  if (st == OK && c->rank == 0) st = list_solved(c, list, &count);
  TRY(agree(c->job_comm, st));
  TRY(share_bytes(c->job_comm, &count, sizeof count));
  TRY(share_bytes(c->job_comm, list, (size_t)count * sizeof *list));
  st = make_request(c, list, count, &text, &q);
  if (st == OK && c->rank == 0) st = check_files(&q);
  TRY(agree(c->job_comm, st));
  TRY(export_describe(&q));
  TRY(export_check(&q));
  st = c->rank == 0 ? how_it_was_made(c, &q, &how) : OK; /* one rank writes it down */
  TRY(agree(c->job_comm, st));
  TRY(export_write(&q, &r));
  st = report_export(c, &q, &r);
  TRY(agree(c->job_comm, st));
done:
  export_request_free(&q);
  attr_free(&how);
  FREE(list);
  return st;
}
