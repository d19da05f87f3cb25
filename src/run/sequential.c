/* A setting whose codes and adapters are fitted to the activations of its own quantized prefix: Grams and solutions in turn, input after
 * input, layer after layer (options.act_quantizer; spec methods.md, section 11).
 *
 *   prefix_input -> Gram and held-out Gram (and cross products) -> layer_solve_input -> Q + BA of its linears -> prefix_advance
 *
 * The prefix carries the adapter of the setting's largest rank. A layer's Grams, and the targets that cross products asked for, are
 * written beside its solution, so that verify finds what it needs. A layer that is done is not solved again: both streams go through it.
 * The streams themselves are not kept: a run that goes on makes them anew, in a fraction of the time that solving took. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "calibrate/prefix.h"
#include "dist/agree.h"
#include "run/solve.h"
#include "session/memory_watch.h"
#include "session/scratch.h"
#include "session/unit.h"

typedef struct sequence {
  session *c; /* a view of one setting */
  const setting *which;
  bool cross;
  prefix streams;
  layer_solver solver;
  shared tiles[SET_COUNT], targets; /* of a layer: what its Gram files will hold */
  int64_t tiles_at[IN_COUNT], target_at[LIN_COUNT];
  double forward_seconds, drift;
} sequence;

/* ---- what is done ---- */

/* A layer is done when its Grams and its solution are there. todo [layers]: those up to the end of --layers that are not. */
static status find_todo(session *c, bool *todo, layer_progress *p) {
  status st = OK;
  for (int64_t layer = 0; layer < c->layer_end; layer++) {
    char path[PATH_MOST], gram_fingerprint[HASH_HEX] = "";
    int count = 1;
    bool there = true;
    for (int set = 0; set < SET_COUNT; set++) {
      unit_gram_path(c, set, layer, path);
      there = there && (!c->sets[set] || file_exists(path));
    }
    todo[layer] = true;
    if (!agree_any(c->team.comm, !there)) {
      st = c->team.rank == 0 ? unit_gram_fingerprint(c, layer, gram_fingerprint) : OK;
      TRY(agree(c->team.comm, st));
      TRY(share_bytes(c->team.comm, gram_fingerprint, sizeof gram_fingerprint));
      TRY(solve_find_pending(c, layer, gram_fingerprint, &todo[layer], &count));
    }
    p->todo += count;
    if (count && layer < c->layer_begin)
      return fail(E_USAGE,
                  "--layers: %s follows its own prefix (options.act_quantizer): expected layer %lld to be done before layer %lld, found it "
                  "missing",
                  c->job.settings[0].name, (long long)layer, (long long)c->layer_begin);
  }
done:
  return st;
}

/* ---- life ---- */

static void sequence_free(sequence *q) {
  layer_solver_free(&q->solver);
  prefix_free(&q->streams);
  for (int set = 0; set < SET_COUNT; set++) shared_free(&q->tiles[set]);
  shared_free(&q->targets);
}

static status sequence_new(session *c, sequence *q) {
  status st = OK;
  int64_t tiles = 0, targets = 0;
  *q = (sequence){.c = c, .which = &c->job.settings[0]};
  q->cross = q->which->options.act_quantizer == INPUTS_CROSS;
  for (int i = 0; i < IN_COUNT; i++) {
    q->tiles_at[i] = tiles;
    if (c->wanted[i]) tiles += tiles_count(input_width(&c->model.arch, (input_id)i), GRAM_TILE) * GRAM_TILE * GRAM_TILE;
  }
  for (int l = 0; l < LIN_COUNT && q->cross; l++) {
    int64_t out, in;
    linear_shape(&c->model.arch, (linear_id)l, &out, &in);
    q->target_at[l] = targets;
    if (c->job.target[l]) targets += out * in;
  }
  TRY(prefix_new(&c->team, &c->model, c->sets, c->wanted, c->job.target, q->cross, scratch_folder(c), &q->streams));
  TRY(layer_solver_new(c, &q->solver));
  for (int set = 0; set < SET_COUNT; set++)
    if (c->sets[set]) TRY(shared_new(&c->team, (size_t)tiles * sizeof(float), "tiles of Grams", &q->tiles[set]));
  TRY(shared_new(&c->team, (size_t)targets * sizeof(float), "target weights of a layer", &q->targets));
done:
  if (st != OK) sequence_free(q);
  return st;
}

/* ---- a layer ---- */

/* My rows of a linear, in the slabs that make its merged weights. */
static void merged_rows(const session *c, linear_id l, int64_t *begin, int64_t *end) {
  int64_t out, in;
  linear_shape(&c->model.arch, l, &out, &in);
  deal_range(out, c->team.size, c->team.rank, SOLUTION_SLAB, begin, end);
}

/* The prefix gets Q + BA of the linears that read an input; their targets are kept for the file. */
static void use_results(sequence *q, input_id input) {
  session *c = q->c;
  for (int l = 0; l < LIN_COUNT; l++) {
    int64_t begin, end;
    if (!c->job.target[l] || linear_input((linear_id)l) != input) continue;
    const solution *r = layer_result(&q->solver, q->solver.piece_count - 1, (linear_id)l);
    merged_rows(c, (linear_id)l, &begin, &end);
    solution_merge_into(r, r->rank, begin, end, q->streams.target[l]);
    if (q->cross && end > begin)
      memcpy((float *)q->targets.base + q->target_at[l] + begin * r->in, layer_weights_of(&q->solver, (linear_id)l) + begin * r->in,
             (size_t)((end - begin) * r->in) * sizeof(float));
  }
  team_barrier(&c->team);
}

static status solve_input(sequence *q, int64_t layer, input_id input, gram_input list[SET_COUNT][IN_COUNT]) {
  session *c = q->c;
  status st = OK;
  const bool pending = true;
  double start = clock_now();
  prefix_input(&q->streams, input);
  q->forward_seconds += clock_now() - start;
  if (c->wanted[input]) {
    given_input given = {.of_outputs = cross_of_outputs(input), .alpha = q->which->options.xgram_alpha};
    if (q->cross) given.cross = q->streams.crosses[input].sums.base;
    for (int set = 0; set < SET_COUNT; set++) {
      if (!c->sets[set]) continue;
      gram_input *g = &list[set][input];
      TRY(gram_file_round(c, layer, input, &q->streams.pass.sets[set].grams[input], (float *)q->tiles[set].base + q->tiles_at[input], g));
      given.gram[set] = *g;
    }
    TRY(layer_solve_input(&q->solver, layer, input, &pending, &given));
    use_results(q, input);
    for (int l = 0; l < LIN_COUNT; l++)
      if (q->cross && c->job.target[l] && linear_input((linear_id)l) == input)
        list[SET_CALIBRATION][input].target[l] = (const float *)q->targets.base + q->target_at[l];
  }
  start = clock_now();
  if (cross_of_outputs(input)) prefix_advance(&q->streams, input);
  q->forward_seconds += clock_now() - start;
done:
  return st;
}

static status report_grams(sequence *q, int64_t layer, double write_seconds) {
  const session *c = q->c;
  status st = OK;
  double drift[SET_COUNT];
  char unit[256];
  TRY(prefix_drift(&q->streams, drift));
  q->drift = drift[c->sets[SET_HELDOUT] ? SET_HELDOUT : SET_CALIBRATION];
  if (c->team.rank != 0) return OK;
  snprintf(unit, sizeof unit, "solutions/%s/grams/layer-%03lld", q->which->name, (long long)layer);
  json_t *o = json_pack("{s:s, s:s, s:I, s:{s:f, s:f}, s:f, s:I, s:I}", "unit", unit, "setting", q->which->name, "layer", (json_int_t)layer,
                        "seconds", "forward_and_grams", q->forward_seconds, "write", write_seconds, "drift", drift[SET_CALIBRATION],
                        "private_bytes_peak", (json_int_t)memory_watch_private(), "shared_bytes_peak", (json_int_t)memory_watch_shared());
  if (o && c->sets[SET_HELDOUT]) json_object_set_new(o, "drift_heldout", json_real(drift[SET_HELDOUT]));
  st = o ? unit_metrics(c, o) : fail(E_MEMORY, "metrics.jsonl: no memory for a line");
done:
  return st;
}

static status solve_layer(sequence *q, int64_t layer, bool warned[IN_COUNT], layer_progress *p) {
  session *c = q->c;
  status st = OK;
  const bool pending = true;
  gram_input list[SET_COUNT][IN_COUNT] = {0};
  char gram_fingerprint[HASH_HEX] = "";
  q->forward_seconds = 0;
  TRY(prefix_layer(&q->streams, layer));
  TRY(layer_begin(&q->solver, layer, &pending));
  for (int i = 0; i < IN_COUNT; i++) {
    TRY(solve_input(q, layer, (input_id)i, list));
    layer_progress_show(p, layer_share(c, i + 1), -1);
  }
  double start = clock_now();
  for (int set = 0; set < SET_COUNT; set++)
    if (c->sets[set]) TRY(gram_file_write(c, set, layer, list[set]));
  double write_seconds = clock_now() - start;
  st = c->team.rank == 0 ? unit_gram_fingerprint(c, layer, gram_fingerprint) : OK;
  TRY(agree(c->team.comm, st));
  TRY(share_bytes(c->team.comm, gram_fingerprint, sizeof gram_fingerprint));
  TRY(solve_write_layer(&q->solver, layer, &pending, 1, gram_fingerprint, warned));
  st = report_grams(q, layer, write_seconds);
  TRY(agree(c->team.comm, st));
done:
  return st;
}

/* A layer that is done: weights from its file, and both streams through it. */
static status pass_through(sequence *q, int64_t layer) {
  session *c = q->c;
  status st = OK;
  container *file = NULL;
  char path[PATH_MOST], where[PATH_MOST + 64];
  solution r = {0};
  TRY(prefix_layer(&q->streams, layer));
  unit_solution_path(c, q->which, layer, path);
  st = container_open(path, "solution", &file);
  for (int l = 0; l < LIN_COUNT && st == OK; l++) {
    int64_t begin, end;
    merged_rows(c, (linear_id)l, &begin, &end);
    if (!c->job.target[l] || begin == end) continue;
    snprintf(where, sizeof where, "%s: %s", path, linear_path((linear_id)l));
    st = solution_load(file, where, &c->model.arch, (linear_id)l, begin, end, 0, SOLUTION_BASE | SOLUTION_ADAPTER, &r);
    if (st == OK) solution_merge_into(&r, r.rank, begin, end, q->streams.target[l]);
    solution_free(&r);
  }
  TRY(agree(c->team.comm, st));
  team_barrier(&c->team);
  prefix_skip(&q->streams);
done:
  container_close(&file);
  return st;
}

/* ---- the setting ---- */

static status solve_setting(sequence *q, const bool *todo, layer_progress *p, bool warned[IN_COUNT]) {
  session *c = q->c;
  status st = OK;
  TRY(prefix_embed(&q->streams));
  for (p->layer = 0; p->done < p->todo; p->layer++) {
    if (session_should_stop(c, c->team.comm)) {
      st = fail(E_STOPPED, "solve: %s: stopped on request before layer %lld of %lld; run again to go on", q->which->name,
                (long long)p->layer + 1, (long long)p->layers);
      goto done;
    }
    if (!todo[p->layer]) {
      TRY(pass_through(q, p->layer));
      continue;
    }
    TRY(solve_layer(q, p->layer, warned, p));
    p->done++;
  }
  log_info("solve: %s: after %lld layers the prefix is %.4f of the activations' squares away from the original%s", q->which->name,
           (long long)p->layer, q->drift, c->sets[SET_HELDOUT] ? ", on held-out tokens" : "");
done:
  return st;
}

status sequential_solve(session *c, bool warned[IN_COUNT]) {
  status st = OK;
  bool *todo = NULL;
  sequence q = {0};
  layer_progress p = {.stage = "solve", .layers = c->model.arch.layers, .setting = c->job.settings[0].name};
  st = NEW(todo, c->model.arch.layers, "layers of a setting");
  TRY(agree(c->team.comm, st));
  TRY(find_todo(c, todo, &p));
  if (p.todo == 0) goto done;
  TRY(sequence_new(c, &q));
  TRY(solve_setting(&q, todo, &p, warned));
done:
  sequence_free(&q);
  FREE(todo);
  return st;
}
