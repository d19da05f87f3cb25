/* cloqwork solve: every (layer, setting) that is not done yet; a solution file for each. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "dist/agree.h"
#include "run/few_tokens.h"
#include "run/layer_solver.h"
#include "run/memory_watch.h"
#include "run/unit.h"
#include "run/verbs.h"

/* ---- the file of one (layer, setting) ---- */

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

static void option_to_group(void *context, const char *key, const char *text) {
  attributes *a = context;
  attr_text(a, key, text); /* out of memory shows at the next attribute set by the caller */
}

static status describe_result(const session *c, const setting *which, int64_t layer, const solution *r, attributes *a) {
  const solution_facts *f = r->facts;
  status st = OK;
  setting_describe_matrix(which, layer, r->linear, option_to_group, a);
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

static status write_solution(const layer_solver *s, int index, int64_t layer, const char *gram_fingerprint) {
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

/* ---- units ---- */

/* Which settings of a layer are still to be solved; rank 0 of the team looks, all learn. */
static status find_pending(const session *c, int64_t layer, const char *gram_fingerprint, bool *pending, int *count) {
  status st = OK;
  attributes identity = {0};
  *count = 0;
  for (int k = 0; k < c->job.setting_count && st == OK; k++) {
    char path[PATH_MOST];
    bool is_done = false;
    unit_solution_path(c, &c->job.settings[k], layer, path);
    st = unit_solution_identity(c, &c->job.settings[k], layer, gram_fingerprint, &identity);
    if (st == OK && c->team.rank == 0) st = unit_is_done(path, "solution", &identity, &is_done);
    attr_free(&identity);
    pending[k] = !is_done;
  }
  if ((st = agree(c->team.comm, st)) != OK) return st;
  st = share_bytes(c->team.comm, pending, (size_t)c->job.setting_count * sizeof *pending);
  for (int k = 0; k < c->job.setting_count; k++) *count += pending[k];
  return st;
}

/* Geometric means over the layer's matrices of loss / reference without adapter and at the largest rank: of the setting's last piece. */
static void relative_losses(const layer_solver *s, int index, double *without, double *with) {
  double sum0 = 0, sum1 = 0;
  int count = 0, last = s->piece_count - 1;
  while (s->pieces[last].index != index) last--;
  for (int l = 0; l < LIN_COUNT; l++) {
    const solution *r = layer_result(s, last, (linear_id)l);
    if (!s->c->job.target[l] || !(r->facts->reference > 0)) continue;
    sum0 += log(fmax(r->loss[0], 1e-300) / r->facts->reference);
    sum1 += log(fmax(r->loss[r->rank], 1e-300) / r->facts->reference);
    count++;
  }
  *without = count ? exp(sum0 / count) : 0;
  *with = count ? exp(sum1 / count) : 0;
}

/* What the setting would take one rank if it stood alone: all its pieces. */
static double seconds_alone(const layer_solver *s, int index) {
  double sum = 0;
  for (int p = 0; p < s->piece_count; p++)
    for (int l = 0; l < LIN_COUNT && s->pieces[p].index == index; l++) {
      if (!s->c->job.target[l]) continue;
      const solution_facts *f = layer_result(s, p, (linear_id)l)->facts;
      sum += f->codes_seconds + f->adapter_seconds;
    }
  return sum;
}

static status report_unit(const layer_solver *s, int index, int64_t layer, int solved, double write_seconds) {
  const session *c = s->c;
  const stage_seconds *t = &s->spent;
  double without, with, share = 1.0 / solved; /* of what the settings of this layer had in common */
  char unit[256];
  relative_losses(s, index, &without, &with);
  snprintf(unit, sizeof unit, "solutions/%s/layer-%03lld", c->job.settings[index].name, (long long)layer);
  double total = t->load + t->magr + t->factor + t->quantize + t->refine + t->joint + t->trace + t->adapter + t->losses;
  json_t *o = json_pack("{s:s, s:s, s:I, s:{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}, s:f, s:f, s:f, s:f, s:I, s:I}", "unit", unit,
                        "setting", c->job.settings[index].name, "layer", (json_int_t)layer, "seconds", "load", share * t->load, "magr",
                        share * t->magr, "factor", share * t->factor, "quantize", share * t->quantize, "refine", share * t->refine, "joint",
                        share * t->joint, "trace", share * t->trace, "adapter", share * t->adapter, "losses", share * t->losses, "write",
                        write_seconds, "rank_seconds_alone", seconds_alone(s, index), "gflops", 1e-9 * t->flops / total,
                        "relative_loss_without_adapter", without, "relative_loss", with, "private_bytes_peak",
                        (json_int_t)memory_watch_private(), "shared_bytes_peak", (json_int_t)memory_watch_shared());
  return o ? unit_metrics(c, o) : fail(E_MEMORY, "metrics.jsonl: no memory for a line");
}

static void note_gram_fingerprints(const layer_solver *s, const bool *pending, const char *gram_fingerprint) {
  for (int p = 0; p < s->piece_count; p++)
    for (int l = 0; l < LIN_COUNT; l++)
      if (pending[s->pieces[p].index] && s->c->job.target[l])
        snprintf(layer_result(s, p, (linear_id)l)->facts->gram_fingerprint, HASH_HEX, "%s", gram_fingerprint);
}

/* One line for each kind of input, at the first layer that shows it. */
static void warn_of_few_tokens(const layer_solver *s, const bool *pending, int64_t layer, bool warned[IN_COUNT]) {
  const session *c = s->c;
  int p = 0;
  while (!pending[s->pieces[p].index]) p++;
  for (int l = 0; l < LIN_COUNT; l++) {
    input_id input = linear_input(l);
    if (!c->job.target[l] || warned[input]) continue;
    const solution *r = layer_result(s, p, (linear_id)l);
    if (r->facts->tokens >= r->in) continue;
    warned[input] = true;
    log_info("solve: warning: %s of layer %lld: %lld tokens for %lld columns: numerical rank %lld; the solution is still optimal for these "
             "tokens, not for others",
             input_name(input), (long long)layer, (long long)r->facts->tokens, (long long)r->in, (long long)r->facts->numerical_rank);
  }
}

static status solve_one_layer(layer_solver *s, int64_t layer, bool warned[IN_COUNT], layer_progress *p) {
  session *c = s->c;
  status st = OK;
  bool *pending = NULL;
  char gram_fingerprint[HASH_HEX] = "";
  int count;
  st = NEW(pending, c->job.setting_count, "settings of a layer");
  if (st == OK && c->team.rank == 0) st = unit_gram_fingerprint(c, layer, gram_fingerprint);
  TRY(agree(c->team.comm, st));
  TRY(share_bytes(c->team.comm, gram_fingerprint, sizeof gram_fingerprint));
  TRY(find_pending(c, layer, gram_fingerprint, pending, &count));
  if (count == 0) goto done;
  int shown = 0;
  while (!pending[shown]) shown++;
  p->layer = layer;
  p->setting = c->job.settings[shown].name;
  p->more = count - 1;
  layer_progress_show(p, 0, -1);
  TRY(layer_solve(s, layer, pending, layer_progress_show, p));
  memory_watch();
  if (c->team.rank == 0) note_gram_fingerprints(s, pending, gram_fingerprint);
  warn_of_few_tokens(s, pending, layer, warned);
  team_barrier(&c->team);
  for (int k = 0; k < c->job.setting_count; k++) {
    if (!pending[k]) continue;
    double start = clock_now();
    TRY(write_solution(s, k, layer, gram_fingerprint));
    st = c->team.rank == 0 ? report_unit(s, k, layer, count, clock_now() - start) : OK;
    TRY(agree(c->team.comm, st));
  }
  p->done++;
done:
  FREE(pending);
  return st;
}

/* Is there anything to do in [begin, end)? Only then are the solver's large windows made. */
static status count_layers(session *c, int64_t begin, int64_t end, int64_t *todo) {
  status st = OK;
  bool *pending = NULL;
  char gram_fingerprint[HASH_HEX] = "";
  int count;
  *todo = 0;
  st = NEW(pending, c->job.setting_count, "settings of a layer");
  TRY(agree(c->team.comm, st));
  for (int64_t layer = begin; layer < end; layer++) {
    if (c->team.rank == 0) st = unit_gram_fingerprint(c, layer, gram_fingerprint);
    TRY(agree(c->team.comm, st));
    TRY(share_bytes(c->team.comm, gram_fingerprint, sizeof gram_fingerprint));
    TRY(find_pending(c, layer, gram_fingerprint, pending, &count));
    *todo += count > 0;
  }
done:
  FREE(pending);
  return st;
}

static status solve_layers(session *c, int64_t begin, int64_t end) {
  status st = OK;
  layer_solver s = {0};
  bool warned[IN_COUNT] = {false};
  layer_progress p = {.stage = "solve", .layers = c->model.arch.layers};
  TRY(count_layers(c, begin, end, &p.todo));
  if (p.todo == 0) goto done;
  TRY(layer_solver_new(c, &s));
  for (int64_t layer = begin; layer < end; layer++) {
    if (session_should_stop(c, c->team.comm)) {
      st = fail(E_STOPPED, "solve: stopped on request before layer %lld of %lld; run again to go on", (long long)layer + 1,
                (long long)c->model.arch.layers);
      goto done;
    }
    TRY(solve_one_layer(&s, layer, warned, &p));
  }
done:
  layer_solver_free(&s);
  return st;
}

status verb_solve(session *c) {
  status st = OK;
  int64_t begin, end;
  double per_column[IN_COUNT];
  char few[FEW_TOKENS_TEXT];
  session_team_layers(c, c->team.index, &begin, &end);
  double start = clock_now();
  log_info("solve: %d setting%s, %lld layers", c->job.setting_count, c->job.setting_count > 1 ? "s" : "",
           (long long)(c->layer_end - c->layer_begin));
  tokens_a_column(&c->model.arch, c->sets[SET_CALIBRATION], c->wanted, per_column);
  if (few_tokens(per_column, few)) log_info("solve: warning: %s", few);
  st = solve_layers(c, begin, end);
  TRY(agree(c->job_comm, st));
  char text[32];
  clock_duration(clock_now() - start, text);
  log_info("solve: done in %s", text);
done:
  return st;
}
