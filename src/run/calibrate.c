/* cloqwork calibrate: a Gram file per layer and set of tokens: by the pass over the model, teams side by side, layer after layer, or from
 * Grams that are there already (session/gram_take.h). */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "calibrate/ring.h"
#include "calibrate/streams.h"
#include "dist/agree.h"
#include "run/verbs.h"
#include "session/gram_file.h"
#include "session/gram_take.h"
#include "session/memory_watch.h"
#include "session/scratch.h"

/* Layers whose Gram files are still to be made: missing[layer] = bit per set. Local: one rank looks, not all at the same files. */
static status find_missing(const session *c, uint8_t *missing, int64_t *count) {
  status st = OK;
  attributes identity = {0};
  *count = 0;
  for (int64_t layer = c->layer_begin; layer < c->layer_end; layer++)
    for (int set = 0; set < SET_COUNT; set++) {
      if (!c->sets[set]) continue;
      char path[PATH_MOST];
      bool is_done;
      unit_gram_path(c, set, layer, path);
      TRY(unit_gram_identity(c, set, layer, &identity));
      TRY(unit_is_done(path, "grams", &identity, &is_done));
      attr_free(&identity);
      if (is_done) continue;
      if (!missing[layer]) (*count)++;
      missing[layer] |= (uint8_t)(1 << set);
    }
done:
  attr_free(&identity);
  return st;
}

/* Every weight once, tensors dealt to the ranks: NaN and Inf are found in the first minutes of a night, not in its last hour. */
static status scan_weights(const session *c) {
  enum { SLAB = 4 << 20 };
  status st = OK;
  float *slab = NULL;
  TRY(NEW(slab, SLAB, "a slab of weights"));
  for (size_t i = (size_t)c->rank; i < c->model.tensor_count; i += (size_t)c->size) {
    const tensor_ref *t = &c->model.tensors[i];
    int64_t step = t->cols < SLAB ? SLAB / t->cols : 1;
    if (t->cols > SLAB) continue; /* no tensor of a decoder is that wide; its rows are checked as they are used */
    for (int64_t at = 0; at < t->rows; at += step) TRY(tensor_rows(t, at, at + step < t->rows ? at + step : t->rows, slab));
  }
done:
  FREE(slab);
  return st;
}

static status write_grams(const session *c, pass *p, int set, int64_t layer, const shared *buffer, const size_t *offset) {
  status st = OK;
  gram_input list[IN_COUNT] = {0};
  for (int i = 0; i < IN_COUNT; i++) {
    gram *g = &p->sets[set].grams[i];
    if (g->n) TRY(gram_file_round(c, layer, (input_id)i, g, (float *)buffer->base + offset[i], &list[i]));
  }
  TRY(gram_file_write(c, set, layer, list));
done:
  return st;
}

typedef struct layer_seconds {
  double load, work, write;
} layer_seconds;

static status report_layer(const session *c, int64_t layer, const layer_seconds *spent, double flops, uint8_t sets) {
  if (c->team.rank != 0) return OK;
  char unit[32];
  snprintf(unit, sizeof unit, "grams/layer-%03lld", (long long)layer);
  int64_t tokens = 0;
  for (int k = 0; k < SET_COUNT; k++)
    if (c->sets[k]) tokens += c->sets[k]->count * c->sets[k]->length;
  json_t *o = json_pack("{s:s, s:I, s:I, s:i, s:{s:f, s:f, s:f}, s:f, s:I, s:I}", "unit", unit, "layer", (json_int_t)layer, "tokens",
                        (json_int_t)tokens, "sets", (int)sets, "seconds", "load", spent->load, "forward_and_grams", spent->work, "write",
                        spent->write, "gflops", 1e-9 * flops / spent->work, "private_bytes_peak", (json_int_t)memory_watch_private(),
                        "shared_bytes_peak", (json_int_t)memory_watch_shared());
  return o ? unit_metrics(c, o) : fail(E_MEMORY, "metrics.jsonl: no memory for a line");
}

/* Streams belong to a model and to both sets of tokens. */
static void state_tag(const session *c, char tag[80]) {
  snprintf(tag, 80, "%.24s-%.24s-%.24s", c->model.fingerprint, c->windows[SET_CALIBRATION].fingerprint,
           c->sets[SET_HELDOUT] ? c->windows[SET_HELDOUT].fingerprint : "none");
}

/* The inputs of a layer that is not to be computed now: for the run that goes on. */
static status stop_before(pass *p, const char *path, const char *tag, int64_t layer) {
  status st = OK;
  streams_file file;
  TRY(streams_create(p, path, tag, layer, &file));
  p->keep = &file;
  pass_keep(p);
  p->keep = NULL;
  TRY(streams_publish(&file));
  st = fail(E_STOPPED, "calibrate: stopped on request before layer %lld of %lld; run again to go on", (long long)layer + 1,
            (long long)p->model->arch.layers);
done:
  return st;
}

/* My layers of the round. Between a promise and the last step of its layer nothing may fail. The first team keeps the streams on their way
 * every checkpoint_minutes. */
static status calibrate_layers(session *c, pass *p, ring *r, const uint8_t *missing, int64_t todo, const char *path, const char *tag) {
  status st = OK;
  shared tiles = {0};
  streams_file file;
  size_t offset[IN_COUNT], floats = 0;
  layer_progress progress = {.stage = "calibrate", .layers = c->model.arch.layers, .todo = todo ? todo : 1};
  double saved = clock_now();
  for (int i = 0; i < IN_COUNT; i++) {
    offset[i] = floats;
    if (c->wanted[i]) floats += (size_t)tiles_count(input_width(&c->model.arch, i), GRAM_TILE) * GRAM_TILE * GRAM_TILE;
  }
  TRY(shared_new(&c->team, floats * sizeof(float), "tiles of Grams", &tiles));
  for (; ring_has_layer(r); ring_next(r)) {
    int64_t layer = r->layer;
    TRY(ring_await(r));
    if (session_should_stop(c, c->team.comm)) TRY(stop_before(p, path, tag, layer));
    for (progress.done = 0, progress.layer = 0; progress.layer < layer; progress.layer++) progress.done += missing[progress.layer] != 0;
    layer_progress_show(&progress, 0, -1);
    layer_seconds spent = {.load = -p->load_seconds};
    TRY(pass_load_layer(p, layer));
    spent.load += p->load_seconds;
    bool keep =
        c->team.index == 0 && layer > r->first && agree_any(c->team.comm, clock_now() - saved > 60 * c->job.parallel.checkpoint_minutes);
    if (keep) TRY(streams_create(p, path, tag, layer, &file));
    p->keep = keep ? &file : NULL;
    ring_promise(r);
    double start = clock_now(), flops = p->flops;
    pass_layer(p, layer, missing[layer] != 0, layer_progress_show, &progress);
    spent.work = clock_now() - start;
    flops = p->flops - flops;
    memory_watch();
    p->keep = NULL;
    if (keep) TRY(streams_publish(&file));
    if (keep) saved = clock_now();
    if (!missing[layer]) continue;
    start = clock_now();
    for (int set = 0; set < SET_COUNT; set++)
      if (missing[layer] >> set & 1) TRY(write_grams(c, p, set, layer, &tiles, offset));
    spent.write = clock_now() - start;
    st = report_layer(c, layer, &spent, flops, missing[layer]);
    TRY(agree(c->team.comm, st));
  }
done:
  shared_free(&tiles);
  return st;
}

/* From the streams that were saved, if they are inputs of the first missing layer or one before it; else from the embedding. */
static status calibrate_team(session *c, pass *p, const uint8_t *missing, int64_t todo, const char *path) {
  status st = OK;
  ring r = {0};
  char tag[80];
  int64_t first_missing = c->layer_begin, end = c->layer_end, state = -1;
  while (!missing[first_missing]) first_missing++;
  while (!missing[end - 1]) end--;
  state_tag(c, tag);
  if (c->rank == 0) state = streams_peek(path, tag);
  MPI_Bcast(&state, 1, MPI_INT64_T, 0, c->job_comm);
  if (state > first_missing) state = -1;
  TRY(ring_open(p, state < 0 ? 0 : state, end, &r));
  if (c->team.index == 0 && state >= 0) {
    TRY(streams_load(p, path, tag, &state));
    if (state != r.first) {
      st = fail(E_IO, "%s: changed while it was read", path);
      goto done;
    }
    log_info("calibrate: going on at layer %lld from saved streams", (long long)state);
  } else if (c->team.index == 0) {
    TRY(pass_embed(p));
  }
  st = calibrate_layers(c, p, &r, missing, todo, path, tag);
done:
  return ring_close(&r, st);
}

/* Collective. The missing Grams from tokens. */
static status run_pass(session *c, const uint8_t *missing, int64_t todo) {
  status st = OK;
  pass p = {0};
  char path[PATH_MOST], text[32];
  const char *scratch = scratch_folder(c);
  double start = clock_now();
  st = scan_weights(c);
  TRY(agree(c->job_comm, st));
  if (scratch)
    log_info("calibrate: residual streams lie in a file in %s: %s", scratch,
             scratch == c->job.output ? "beside them a node's memory does not hold the rest" : "parallel.scratch says so");
  st = pass_new(&c->team, &c->model, c->sets, c->wanted, scratch, &p);
  TRY(agree(c->job_comm, st));
  unit_run_path(c, "grams/streams.state", path);
  st = calibrate_team(c, &p, missing, todo, path);
  TRY(agree(c->job_comm, st));
  double seconds = clock_now() - start;
  double flops = c->team.rank == 0 ? p.flops : 0;
  MPI_Allreduce(MPI_IN_PLACE, &flops, 1, MPI_DOUBLE, MPI_SUM, c->job_comm);
  clock_duration(seconds, text);
  log_info("calibrate: done in %s, %.0f GFLOP/s", text, 1e-9 * flops / seconds);
  if (c->rank == 0 && c->layer_begin == 0 && c->layer_end == c->model.arch.layers) st = file_remove(path);
  TRY(agree(c->job_comm, st));
done:
  pass_free(&p);
  return st;
}

status verb_calibrate(session *c) {
  static const char *const stages[] = {[GRAMS_CALIBRATED] = "calibrate", [GRAMS_MERGED] = "merge", [GRAMS_IMPORTED] = "import"};
  const char *stage = stages[c->job.grams.origin];
  status st = OK;
  uint8_t *missing = NULL;
  int64_t todo = 0, layers = c->layer_end - c->layer_begin;
  st = NEW(missing, c->model.arch.layers, "list of layers");
  if (st == OK && c->rank == 0) st = find_missing(c, missing, &todo);
  TRY(agree(c->job_comm, st));
  TRY(share_bytes(c->job_comm, missing, (size_t)c->model.arch.layers));
  TRY(share_bytes(c->job_comm, &todo, sizeof todo));
  if (!job_uses_full_grams(&c->job)) {
    log_info("%s: nothing to do: every setting makes Grams of its own prefix", stage);
    goto done;
  }
  if (todo == 0) {
    log_info("%s: all %lld layers are done", stage, (long long)layers);
    goto done;
  }
  log_info("%s: %lld of %lld layers to do, %d team%s of %d rank%s", stage, (long long)todo, (long long)layers, c->team.count,
           c->team.count > 1 ? "s" : "", c->team.size, c->team.size > 1 ? "s" : "");
  if (c->job.grams.origin == GRAMS_CALIBRATED)
    TRY(run_pass(c, missing, todo));
  else
    TRY(gram_take(c, missing, todo));
done:
  FREE(missing);
  return st;
}
