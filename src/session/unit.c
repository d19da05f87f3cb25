#include "session/unit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "dist/agree.h"
#include "session/sharing.h"
#include "solution/solution.h"

static const char RANKS[] = "ranks", VARIANTS[] = "variants";

void unit_gram_path(const session *c, int set, int64_t layer, char path[PATH_MOST]) {
  if (c->follower)
    snprintf(path, PATH_MOST, "%s/solutions/%s/%s/layer-%03lld.h5", c->job.output, c->follower->name, set_folder(set), (long long)layer);
  else
    snprintf(path, PATH_MOST, "%s/%s/layer-%03lld.h5", c->job.output, set_folder(set), (long long)layer);
}

void unit_solution_path(const session *c, const setting *s, int64_t layer, char path[PATH_MOST]) {
  snprintf(path, PATH_MOST, "%s/solutions/%s/layer-%03lld.h5", c->job.output, s->name, (long long)layer);
}

void unit_run_path(const session *c, const char *name, char path[PATH_MOST]) { snprintf(path, PATH_MOST, "%s/%s", c->job.output, name); }

static status add_option(void *context, const char *key, const char *text) { return attr_text(context, key, text); }

/* Of a setting that refines: which ranks have codes of their own, "4,16". (Of one that is joint all that the file lists as its ranks.) */
static status add_variants(const setting *s, attributes *a) {
  char text[RANKS_TEXT] = "";
  piece p;
  if (setting_nests(s)) return OK;
  for (int v = 0; setting_piece(s, 0, v, &p); v++) {
    size_t used = strlen(text);
    snprintf(text + used, sizeof text - used, "%s%d", used ? "," : "", p.rank);
  }
  return attr_text(a, setting_joint(s) ? RANKS : VARIANTS, text);
}

/* Everything of a setting that decides the numbers of a layer. */
static status describe_setting(const session *c, const setting *s, int64_t layer, attributes *a) {
  status st = OK;
  char targets[256] = "";
  for (int l = 0; l < LIN_COUNT; l++)
    if (c->job.target[l]) {
      if (targets[0]) strcat(targets, ",");
      strcat(targets, linear_short(l));
    }
  TRY(attr_text(a, "targets", targets));
  TRY(attr_int(a, "rank_max", s->rank_max));
  TRY(add_variants(s, a));
  TRY(setting_describe(s, c->job.target, layer, add_option, a));
done:
  return st;
}

status unit_gram_identity(const session *c, int set, int64_t layer, attributes *a) {
  const pedigree *of = &c->unions[set].of;
  const window_request *q = set == SET_CALIBRATION ? &c->job.calibration : &c->job.heldout;
  status st = OK;
  TRY(attr_text(a, "model_fingerprint", c->model.fingerprint));
  TRY(attr_text(a, "tokens_fingerprint", c->windows[set].fingerprint));
  TRY(attr_int(a, "layer", layer));
  if (of->count) {
    TRY(attr_text(a, "origin", c->job.grams.origin == GRAMS_MERGED ? "merged" : "imported"));
    TRY(pedigree_write(of, a));
  } else {
    TRY(attr_int(a, "windows", q->windows));
    TRY(attr_int(a, "length", q->length));
  }
  TRY(attr_text(a, "activations", c->follower ? "prefix" : "full"));
  TRY(attr_int(a, "gram_version", GRAM_VERSION));
  if (c->follower) TRY(describe_setting(c, c->follower, layer, a));
done:
  return st;
}

status unit_solution_identity(const session *c, const setting *s, int64_t layer, const char *gram_fingerprint, attributes *a) {
  status st = OK;
  TRY(attr_text(a, "model_fingerprint", c->model.fingerprint));
  TRY(attr_text(a, "gram_fingerprint", gram_fingerprint));
  TRY(attr_int(a, "layer", layer));
  TRY(describe_setting(c, s, layer, a));
done:
  return st;
}

status unit_gram_fingerprint(const session *c, int64_t layer, char hex[HASH_HEX]) {
  status st = OK;
  container *file = NULL;
  hash *h = NULL;
  attributes a = {0};
  TRY(hash_new(&h));
  for (int set = 0; set < SET_COUNT; set++) {
    if (!c->sets[set]) continue;
    char path[PATH_MOST], name[64];
    unit_gram_path(c, set, layer, path);
    TRY(container_open(path, "grams", &file));
    for (int i = 0; i < IN_COUNT; i++) {
      if (!c->wanted[i]) continue;
      snprintf(name, sizeof name, "%s/tiles", input_name(i));
      TRY(container_attributes(file, name, &a));
      TRY(hash_add_text(h, attr_get_text(&a, "sha256")));
      attr_free(&a);
    }
    for (int l = 0; l < LIN_COUNT; l++) {
      unit_target_name((linear_id)l, name);
      if (!c->job.target[l] || !container_has(file, name)) continue;
      TRY(container_attributes(file, name, &a));
      TRY(hash_add_text(h, attr_get_text(&a, "sha256")));
      attr_free(&a);
    }
    container_close(&file);
  }
  TRY(hash_end(&h, hex));
done:
  attr_free(&a);
  hash_free(&h);
  container_close(&file);
  return st;
}

/* The datasets of one group that decide what the model computes. */
static status hash_group(container *file, const char *group, hash *h) {
  static const char *const names[] = {"codes", "scales", "zeros", "widths", "magnitudes", "salient", "absmax", "lora_A", "lora_B"};
  status st = OK;
  attributes a = {0};
  char path[160];
  for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
    snprintf(path, sizeof path, "%.140s/%s", group, names[k]);
    if (!container_has(file, path)) continue;
    TRY(container_attributes(file, path, &a));
    TRY(hash_add_text(h, path));
    TRY(hash_add_text(h, attr_get_text(&a, "sha256")));
    attr_free(&a);
  }
done:
  attr_free(&a);
  return st;
}

status unit_hash_solution(container *file, hash *h) {
  status st = OK;
  attributes a = {0};
  char **groups = NULL;
  int count = 0;
  TRY(container_groups(file, &groups, &count));
  for (int i = 0; i < count; i++) {
    TRY(hash_group(file, groups[i], h));
    TRY(container_attributes(file, groups[i], &a));
    const char *at = attr_get_text(&a, "ranks"); /* of variants */
    while (*at) {
      char variant[160];
      size_t length = strcspn(at, ",");
      snprintf(variant, sizeof variant, "%.100s/rank-%.*s", groups[i], (int)length, at);
      TRY(hash_group(file, variant, h));
      at += length + (at[length] == ',');
    }
    attr_free(&a);
  }
done:
  attr_free(&a);
  container_names_free(&groups, count);
  return st;
}

status unit_read_gram(const session *c, int set, int64_t layer, input_id input, int part, int parts, float *full, int64_t *tokens) {
  status st = OK;
  container *file = NULL;
  attributes a = {0};
  float *tiles = NULL;
  char path[PATH_MOST], name[64];
  int64_t begin, end, dims[3] = {0}, m = input_width(&c->model.arch, input);
  int rank;
  element type;
  unit_gram_path(c, set, layer, path);
  snprintf(name, sizeof name, "%s/tiles", input_name(input));
  TRY(container_open(path, "grams", &file));
  TRY(container_attributes(file, input_name(input), &a));
  *tokens = attr_get_int(&a, "tokens", 0);
  TRY(container_shape(file, name, &type, &rank, dims));
  int64_t t = dims[2];
  if (rank != 3 || t < 1 || dims[1] != t || dims[0] != tiles_count(m, t)) {
    st = fail(E_DATA, "%s: %s: expected the tiles of %lld columns, found %lld tiles of %lld x %lld", path, name, (long long)m,
              (long long)dims[0], (long long)dims[1], (long long)dims[2]);
    goto done;
  }
  deal_range(dims[0], parts, part, 1, &begin, &end);
  const int64_t slice = (64 << 20) / (t * t * (int64_t)sizeof(float)) + 1; /* 64 MiB at a time */
  TRY(NEW(tiles, (end - begin < slice ? end - begin : slice) * t * t, "tiles"));
  for (int64_t at = begin; at < end; at += slice) {
    int64_t upto = at + slice < end ? at + slice : end;
    TRY(container_read(file, name, EL_F32, at, upto, tiles));
    tiles_expand(m, t, at, upto, tiles, full);
  }
done:
  FREE(tiles);
  attr_free(&a);
  container_close(&file);
  return st;
}

void unit_target_name(linear_id l, char name[64]) { snprintf(name, 64, "%s/target_%s", input_name(linear_input(l)), linear_short(l)); }

status unit_read_weights(const session *c, int64_t layer, linear_id l, int64_t begin, int64_t end, float *w) {
  status st = OK;
  container *file = NULL;
  char path[PATH_MOST], name[64];
  if (!c->follower || c->follower->options.act_quantizer != INPUTS_CROSS) {
    tensor_ref tensor = checkpoint_linear(&c->model, layer, l);
    st = tensor_rows(&tensor, begin, end, w);
    tensor_done_with(&tensor);
    return st;
  }
  int64_t out, in;
  linear_shape(&c->model.arch, l, &out, &in);
  unit_gram_path(c, SET_CALIBRATION, layer, path);
  unit_target_name(l, name);
  TRY(container_open(path, "grams", &file));
  TRY(container_read_rows(file, name, EL_F32, out, in, begin, end, w));
done:
  container_close(&file);
  return st;
}

/* One vector of an input's group; to NULL: not asked for. */
static status read_vector(container *file, const char *path, input_id input, const char *name, int64_t m, double *to) {
  char full[64];
  if (!to) return OK;
  snprintf(full, sizeof full, "%s/%s", input_name(input), name);
  if (!container_has(file, full))
    return fail(E_DATA, "%s: %s: expected this statistic of the inputs, found none: calibrate anew to have it", path, full);
  return container_read_rows(file, full, EL_F64, m, 0, 0, m, to);
}

status unit_read_input_stats(const session *c, int set, int64_t layer, input_id input, double *mean_abs, double *max_mean_abs) {
  status st = OK;
  container *file = NULL;
  char path[PATH_MOST];
  int64_t m = input_width(&c->model.arch, input);
  unit_gram_path(c, set, layer, path);
  TRY(container_open(path, "grams", &file));
  TRY(read_vector(file, path, input, "mean_abs", m, mean_abs));
  TRY(read_vector(file, path, input, "max_mean_abs", m, max_mean_abs));
done:
  container_close(&file);
  return st;
}

static void attribute_text(const attribute *a, char text[256]) {
  if (!a)
    snprintf(text, 256, "nothing");
  else if (a->kind == ATTR_TEXT)
    snprintf(text, 256, "%.200s", a->text);
  else if (a->kind == ATTR_INT)
    snprintf(text, 256, "%lld", (long long)a->integer);
  else
    snprintf(text, 256, "%.17g", a->real);
}

/* Is every rank of a list such as 4,16 in another one? */
static bool holds_ranks(const char *list, const char *wanted) {
  for (const char *at = wanted; *at; at += strcspn(at, ",") + (at[strcspn(at, ",")] == ','))
    if (solution_variant(list, atoi(at)) != atoi(at)) return false;
  return true;
}

static bool same_text(const char *name, const char *expected, const char *found) {
  bool list = strcmp(name, RANKS) == 0 || strcmp(name, VARIANTS) == 0;
  return list ? holds_ranks(found, expected) : strcmp(expected, found) == 0;
}

static const char *remedy(const char *name) {
  bool ranks = strcmp(name, "rank_max") == 0 || strcmp(name, RANKS) == 0 || strcmp(name, VARIANTS) == 0;
  return ranks ? "more ranks are a setting of their own, with a label: sweep: [..., {rank: 64, label: NAME}]"
               : "choose another output or remove it";
}

status unit_is_done(const char *path, const char *kind, const attributes *identity, bool *done) {
  status st = OK;
  container *file = NULL;
  attributes there = {0};
  *done = false;
  if (!file_exists(path)) return OK;
  TRY(container_open(path, kind, &file));
  TRY(container_attributes(file, "", &there));
  for (int i = 0; i < identity->count; i++) {
    char expected[256], found[256];
    attribute_text(&identity->list[i], expected);
    attribute_text(attr_find(&there, identity->list[i].name), found);
    if (same_text(identity->list[i].name, expected, found)) continue;
    st = fail(E_USAGE, "%s: this run directory was made from something else: %s: expected %s, found %s; %s", path, identity->list[i].name,
              expected, found, remedy(identity->list[i].name));
    goto done;
  }
  *done = true;
done:
  attr_free(&there);
  container_close(&file);
  return st;
}

void layer_progress_show(void *context, double fraction, double gflops) {
  const layer_progress *l = context;
  char what[128], settings[64] = "";
  if (l->setting && l->more)
    snprintf(settings, sizeof settings, ", %d settings", l->more + 1);
  else if (l->setting)
    snprintf(settings, sizeof settings, ", %.48s", l->setting);
  snprintf(what, sizeof what, "%s layer %lld of %lld%s, %lld of %lld done", l->stage, (long long)l->layer + 1, (long long)l->layers,
           settings, (long long)l->done, (long long)l->todo);
  log_progress(what, ((double)l->done + fraction) / (double)l->todo, gflops);
}

/* "grams/layer-003: 12.1 s, 51 GFLOP/s" and, of a solution, what is left of its loss. */
static void log_fields(const json_t *fields) {
  double seconds = 0;
  const char *key;
  char rate[32] = "", loss[64] = "";
  const json_t *spent = json_object_get(fields, "seconds"), *all = json_object_get(spent, "all"), *each,
               *gflops = json_object_get(fields, "gflops"), *left = json_object_get(fields, "relative_loss");
  json_object_foreach((json_t *)spent, key, each) seconds += json_number_value(each);
  if (all) seconds = json_number_value(all); /* of which the others are parts */
  if (gflops) snprintf(rate, sizeof rate, ", %.0f GFLOP/s", json_number_value(gflops));
  if (left)
    snprintf(loss, sizeof loss, ", relative loss %.3g, %.3g with the adapter",
             json_number_value(json_object_get(fields, "relative_loss_without_adapter")), json_number_value(left));
  log_unit("%s: %.2f s%s%s", json_string_value(json_object_get(fields, "unit")), seconds, rate, loss);
}

status unit_metrics(const session *c, json_t *fields) {
  char host[256] = "", stamp[32], path[PATH_MOST];
  gethostname(host, sizeof host - 1);
  clock_stamp(stamp);
  log_fields(fields);
  json_object_set_new(fields, "ranks", json_integer(c->team.size));
  json_object_set_new(fields, "teams", json_integer(c->team.count));
  json_object_set_new(fields, "host", json_string(host));
  json_object_set_new(fields, "version", json_string(CLOQWORK_VERSION));
  json_object_set_new(fields, "time", json_string(stamp));
  char *line = json_dumps(fields, JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(6));
  json_decref(fields);
  if (!line) return fail(E_MEMORY, "metrics.jsonl: no memory for a line");
  unit_run_path(c, "metrics.jsonl", path);
  status st = file_append_line(path, line);
  free(line);
  return st;
}
