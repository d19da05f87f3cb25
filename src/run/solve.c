/* cloqwork solve: every (layer, setting) that is not done yet; a solution file for each. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "dist/agree.h"
#include "job/few_tokens.h"
#include "layer/solution_file.h"
#include "run/solve.h"
#include "run/verbs.h"
#include "session/memory_watch.h"
#include "session/unit.h"

/* ---- units ---- */

/* Rank 0 of the team looks, all learn. */
status solve_find_pending(const session *c, int64_t layer, const char *gram_fingerprint, bool *pending, int *count) {
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

status solve_write_layer(const layer_solver *s, int64_t layer, const bool *pending, int count, const char *gram_fingerprint,
                         bool warned[IN_COUNT]) {
  session *c = s->c;
  status st = OK;
  memory_watch();
  if (c->team.rank == 0) note_gram_fingerprints(s, pending, gram_fingerprint);
  warn_of_few_tokens(s, pending, layer, warned);
  team_barrier(&c->team);
  for (int k = 0; k < c->job.setting_count; k++) {
    if (!pending[k]) continue;
    double start = clock_now();
    TRY(solution_file_write(s, k, layer, gram_fingerprint));
    st = c->team.rank == 0 ? report_unit(s, k, layer, count, clock_now() - start) : OK;
    TRY(agree(c->team.comm, st));
  }
done:
  return st;
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
  TRY(solve_find_pending(c, layer, gram_fingerprint, pending, &count));
  if (count == 0) goto done;
  int shown = 0;
  while (!pending[shown]) shown++;
  p->layer = layer;
  p->setting = c->job.settings[shown].name;
  p->more = count - 1;
  layer_progress_show(p, 0, -1);
  TRY(layer_solve(s, layer, pending, layer_progress_show, p));
  TRY(solve_write_layer(s, layer, pending, count, gram_fingerprint, warned));
  p->done++;
done:
  FREE(pending);
  return st;
}

/* Collective over the job. Layers that have something to do, ascending, found by all teams together before any of them begins; so the teams' shares
 * of them are equal however a run before was cut short. */
static status list_layers(session *c, int64_t *list, int64_t *count) {
  status st = OK;
  bool *pending = NULL;
  uint8_t *todo = NULL;
  char gram_fingerprint[HASH_HEX] = "";
  int settings;
  int64_t begin, end;
  session_team_layers(c, c->team.index, &begin, &end);
  st = NEW(pending, c->job.setting_count, "settings of a layer");
  if (st == OK) st = NEW(todo, c->model.arch.layers, "list of layers");
  TRY(agree(c->job_comm, st));
  for (int64_t layer = begin; layer < end && st == OK; layer++) {
    if (c->team.rank == 0) st = unit_gram_fingerprint(c, layer, gram_fingerprint);
    if ((st = agree(c->team.comm, st)) == OK) st = share_bytes(c->team.comm, gram_fingerprint, sizeof gram_fingerprint);
    if (st == OK) st = solve_find_pending(c, layer, gram_fingerprint, pending, &settings);
    todo[layer] = st == OK && settings > 0;
  }
  TRY(agree(c->job_comm, st));
  MPI_Allreduce(MPI_IN_PLACE, todo, (int)c->model.arch.layers, MPI_UINT8_T, MPI_MAX, c->job_comm);
  *count = 0;
  for (int64_t layer = c->layer_begin; layer < c->layer_end; layer++)
    if (todo[layer]) list[(*count)++] = layer;
done:
  FREE(pending);
  FREE(todo);
  return st;
}

/* The solver's large windows are made only where there is something to do. */
static status solve_layers(session *c, bool warned[IN_COUNT]) {
  status st = OK;
  layer_solver s = {0};
  layer_progress p = {.stage = "solve", .layers = c->model.arch.layers};
  int64_t *list = NULL, count, begin, end;
  TRY(agree(c->job_comm, NEW(list, c->model.arch.layers, "list of layers")));
  TRY(list_layers(c, list, &count));
  deal_range(count, c->team.count, c->team.index, 1, &begin, &end);
  p.todo = end - begin;
  if (p.todo == 0) goto done;
  TRY(layer_solver_new(c, &s));
  for (int64_t i = begin; i < end; i++) {
    if (session_should_stop(c, c->team.comm)) {
      st = fail(E_STOPPED, "solve: stopped on request before layer %lld of %lld; run again to go on", (long long)list[i] + 1,
                (long long)c->model.arch.layers);
      goto done;
    }
    TRY(solve_one_layer(&s, list[i], warned, &p));
  }
done:
  layer_solver_free(&s);
  FREE(list);
  return st;
}

/* Layers on common Grams are the teams' in equal shares; settings that follow their own prefix are dealt whole. */
static status solve_views(session_views *v) {
  status st = OK;
  bool warned[IN_COUNT] = {false};
  for (int i = 0, followers = 0; i < v->count; i++) {
    session *c = &v->list[i];
    if (!c->follower)
      TRY(solve_layers(c, warned));
    else if (followers++ % c->team.count == c->team.index)
      TRY(sequential_solve(c, warned));
  }
done:
  return st;
}

status verb_solve(session *c) {
  status st = OK;
  session_views views = {0};
  double per_column[IN_COUNT];
  char few[FEW_TOKENS_TEXT];
  double start = clock_now();
  log_info("solve: %d setting%s, %lld layers", c->job.setting_count, c->job.setting_count > 1 ? "s" : "",
           (long long)(c->layer_end - c->layer_begin));
  tokens_a_column(&c->model.arch, c->sets[SET_CALIBRATION], c->wanted, per_column);
  if (few_tokens(per_column, few)) log_info("solve: warning: %s", few);
  st = session_split(c, &views);
  TRY(agree(c->job_comm, st));
  st = solve_views(&views);
  TRY(agree(c->job_comm, st));
  char text[32];
  clock_duration(clock_now() - start, text);
  log_info("solve: done in %s", text);
done:
  session_views_free(&views);
  return st;
}
