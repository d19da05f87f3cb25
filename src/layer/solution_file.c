#include "layer/solution_file.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "dist/agree.h"
#include "session/unit.h"

/* One group of the file: a linear, or one rank's variant of it. */
typedef struct file_group {
  char path[SOLUTION_PATH];
  char names[SOLUTION_DATASETS][SOLUTION_PATH];
  attributes attributes;
} file_group;

typedef struct solution_file {
  file_group *groups; /* owned; group_count of group_room */
  dataset *sets;      /* owned */
  int group_count, group_room, set_count;
} solution_file;

static status option_to_group(void *context, const char *key, const char *text) { return attr_text(context, key, text); }

static status describe_result(const session *c, const setting *which, int64_t layer, const solution *r, attributes *a) {
  const solution_facts *f = r->facts;
  status st = OK;
  TRY(setting_describe_matrix(which, layer, r->linear, option_to_group, a));
  TRY(attr_text(a, "method", which->method->name));
  TRY(attr_text(a, "certificate", metric_names[setting_metric(which)]));
  TRY(attr_int(a, "bits", r->rule.bits));
  TRY(attr_int(a, "group", r->rule.group));
  TRY(solution_grid_attributes(r, a));
  if (method_quantizer(which->method)->factor) TRY(attr_real(a, "damping", which->options.damping));
  TRY(attr_real(a, "damping_used", f->damping_used));
  if (f->ridge_used > 0) TRY(attr_real(a, "ridge_used", f->ridge_used));
  TRY(attr_int(a, "numerical_rank", f->numerical_rank));
  TRY(attr_int(a, "tokens", f->tokens));
  TRY(attr_int(a, "scales_raised_from_zero", f->tiny_scales));
  if (r->round_count) TRY(attr_int(a, "round", f->round));
  TRY(attr_real(a, "seconds", f->codes_seconds + f->adapter_seconds));
  TRY(attr_real(a, "seconds_codes", f->codes_seconds));
  TRY(attr_real(a, "reference", f->reference));
  if (c->sets[SET_HELDOUT]) TRY(attr_real(a, "reference_heldout", f->reference_heldout));
  if (isfinite(f->adapter_size)) TRY(attr_real(a, "adapter_size", f->adapter_size));
  TRY(attr_text(a, "base_fingerprint", f->base_fingerprint));
  TRY(attr_text(a, "gram_fingerprint", f->gram_fingerprint));
done:
  return st;
}

static status add_result(const session *c, const setting *which, int64_t layer, const solution *r, solution_file *f) {
  status st = OK;
  file_group *g = &f->groups[f->group_count++];
  solution_group(r, g->path);
  TRY(describe_result(c, which, layer, r, &g->attributes));
  f->set_count += solution_datasets(r, c->sets[SET_HELDOUT] != NULL, g->names, f->sets + f->set_count);
done:
  return st;
}

/* The linear's own group where ranks have variants: which there are. */
static status add_parent(const setting *which, const solution *r, const char *ranks, solution_file *f) {
  status st = OK;
  file_group *g = &f->groups[f->group_count++];
  snprintf(g->path, sizeof g->path, "%s", linear_path(r->linear));
  TRY(attr_text(&g->attributes, "method", which->method->name));
  TRY(attr_int(&g->attributes, "bits", r->rule.bits));
  TRY(attr_int(&g->attributes, "group", r->rule.group));
  TRY(attr_text(&g->attributes, "ranks", ranks));
  if (setting_refines(which)) TRY(attr_int(&g->attributes, "extends", 1));
  if (r->own_rank) TRY(attr_int(&g->attributes, "own_rank", 1));
done:
  return st;
}

static void add_rank(char text[RANKS_TEXT], int rank) {
  size_t used = strlen(text);
  snprintf(text + used, RANKS_TEXT - used, "%s%d", used ? "," : "", rank);
}

static status gather_file(const layer_solver *s, int index, int64_t layer, solution_file *f) {
  status st = OK;
  const session *c = s->c;
  const setting *which = &c->job.settings[index];
  int first = 0, count = 0;
  while (s->pieces[first].index != index) first++;
  while (first + count < s->piece_count && s->pieces[first + count].index == index) count++;
  TRY(NEW(f->groups, (count + 1) * LIN_COUNT, "groups of a file"));
  f->group_room = (count + 1) * LIN_COUNT;
  TRY(NEW(f->sets, count * LIN_COUNT * SOLUTION_DATASETS, "datasets of a file"));
  for (int l = 0; l < LIN_COUNT; l++) {
    if (!c->job.target[l]) continue;
    const solution *r = layer_result(s, first, (linear_id)l);
    char ranks[RANKS_TEXT] = "";
    for (int v = 0; v < count; v++) add_rank(ranks, layer_result(s, first + v, (linear_id)l)->variant);
    if (r->variant) TRY(add_parent(which, r, ranks, f));
    for (int v = 0; v < count; v++) TRY(add_result(c, which, layer, layer_result(s, first + v, (linear_id)l), f));
  }
done:
  return st;
}

status solution_file_write(const layer_solver *s, int index, int64_t layer, const char *gram_fingerprint) {
  session *c = s->c;
  const setting *which = &c->job.settings[index];
  status st = OK;
  solution_file f = {0};
  group_attributes *groups = NULL;
  attributes root = {0};
  char path[PATH_MOST], ranks[RANKS_TEXT] = "";
  unit_solution_path(c, which, layer, path);
  for (int k = 0; k < which->rank_count; k++) add_rank(ranks, which->ranks[k]);
  st = gather_file(s, index, layer, &f);
  if (st == OK) st = NEW(groups, f.group_count + 1, "groups of a file");
  if (st == OK) st = unit_solution_identity(c, which, layer, gram_fingerprint, &root);
  if (st == OK) st = attr_text(&root, "setting", which->name);
  if (st == OK) st = attr_text(&root, "ranks", ranks);
  for (int g = 0; g < f.group_count && st == OK; g++) groups[g + 1] = (group_attributes){f.groups[g].path, &f.groups[g].attributes};
  TRY(agree(c->team.comm, st));
  groups[0] = (group_attributes){"", &root};
  TRY(container_write(&c->team, path, c->job_tag, "solution", f.sets, f.set_count, groups, f.group_count + 1));
done:
  attr_free(&root);
  for (int g = 0; g < f.group_count; g++) attr_free(&f.groups[g].attributes);
  FREE(groups);
  FREE(f.groups);
  FREE(f.sets);
  return st;
}
