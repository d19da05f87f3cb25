#include "run/eval_pass.h"

#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "dist/agree.h"

static double rows_flops(const arch *a, int64_t layer, const block_rows *r) {
  return block_flops_per_token(a) * (double)block_count(r) + block_attention_flops(a, layer, r->sequences, r->end) -
         block_attention_flops(a, layer, r->sequences, r->begin);
}

/* The first chunk of a team, one after the other in proportion to their ranks; index = the number of teams: all chunks. */
static int first_chunk(const team *t, const windows *w, int index) {
  int64_t ranks_before = 0;
  for (int i = 0; i < index; i++) ranks_before += t->sizes[i];
  return (int)(windows_chunks(w) * ranks_before / t->job_size);
}

static int team_chunks(const team *t, const windows *w) { return first_chunk(t, w, t->index + 1) - first_chunk(t, w, t->index); }

static int team_segments(const team *t, const windows *w) {
  return segments_before(w, first_chunk(t, w, t->index + 1)) - segments_before(w, first_chunk(t, w, t->index));
}

static size_t keys_bytes(const team *t, const arch *a, const windows *w) {
  return (size_t)block_kv_floats(a, team_chunks(t, w) * windows_chunk_rows(w)) * sizeof(float);
}

eval_bytes eval_pass_memory(const team *t, const arch *a, const windows *w) {
  eval_bytes b = {0};
  uint64_t rows = (uint64_t)segments_most_rows(w->length), most = (uint64_t)((team_segments(t, w) + t->size - 1) / t->size);
  if (most == 0) most = 1; /* a team that has nothing to do */
  b.variant = most * rows * ((uint64_t)a->hidden * sizeof(float) + sizeof(prediction));
  b.fixed = b.variant + rows * (uint64_t)(a->hidden + block_wide(a) + 1) * sizeof(float) +
            block_scratch_bytes(a, w->length, (int64_t)rows) + 3 * sizeof(float) * HEAD_ROWS * HEAD_COLUMNS;
  b.shared = 2 * (uint64_t)layer_weights_floats(a) * sizeof(float) + keys_bytes(t, a, w);
  return b;
}

/* The k-th of my segments. */
static segment my_segment(const eval_pass *p, int k) {
  return segment_at(p->w, segments_before(p->w, p->chunk) + segment_of_turn(k, p->t->rank, p->t->size));
}

static int64_t segment_rows(const eval_pass *p) { return segments_most_rows(p->w->length); }

static float *stream_of(const eval_pass *p, int v, int k) { return p->streams[v] + k * segment_rows(p) * p->model->arch.hidden; }

/* Keys and values from the window on at which the segment begins. */
static block_kv keys_of(const eval_pass *p, const segment *g) {
  const arch *a = &p->model->arch;
  const int64_t chunk_rows = windows_chunk_rows(p->w);
  float *chunk = (float *)p->keys.base + (g->chunk - p->chunk) * block_kv_floats(a, chunk_rows);
  return block_kv_from(a, block_kv_place(a, chunk_rows, chunk), g->window);
}

static const int32_t *ids_of(const eval_pass *p, const segment *g) { return windows_chunk_ids(p->w, g->chunk) + g->first; }

static status new_streams(eval_pass *p) {
  status st = OK;
  const arch *a = &p->model->arch;
  int64_t rows = segment_rows(p), all = p->mine * rows;
  TRY(NEW(p->streams, 1 + p->room, "residual streams"));
  TRY(NEW(p->predictions, 1 + p->room, "predictions"));
  for (int v = 0; v <= p->room; v++) {
    TRY(NEW(p->streams[v], all * a->hidden, "residual streams"));
    TRY(NEW(p->predictions[v], all, "predictions"));
  }
  TRY(NEW(p->n, rows * a->hidden, "activations"));
  TRY(NEW(p->wide, rows * block_wide(a), "activations"));
  TRY(NEW(p->next, rows, "tokens"));
  TRY(block_scratch_new(a, p->w->length, rows, &p->block));
  TRY(head_scratch_new(&p->head));
done:
  return st;
}

status eval_pass_new(const team *t, const checkpoint *model, const windows *w, const bool targets[LIN_COUNT], int room, eval_pass *p) {
  status st = OK;
  *p = (eval_pass){.t = t, .model = model, .w = w, .room = room};
  p->chunk = first_chunk(t, w, t->index);
  p->segments = team_segments(t, w);
  p->mine = segment_turns(p->segments, t->rank, t->size);
  st = new_streams(p);
  TRY(agree(t->comm, st));
  TRY(shared_new(t, layer_weights_floats(&model->arch) * sizeof(float), "weights of a layer", &p->weights));
  TRY(shared_new(t, layer_weights_floats(&model->arch) * sizeof(float), "quantized weights of a layer", &p->changed));
  TRY(shared_new(t, keys_bytes(t, &model->arch, w), "keys and values", &p->keys));
  layer_weights_place(&model->arch, p->weights.base, &p->original);
  layer_weights_vary(&model->arch, &p->original, targets, p->changed.base, &p->variant, p->target);
done:
  if (st != OK) eval_pass_free(p);
  return st;
}

void eval_pass_free(eval_pass *p) {
  for (int v = 0; v <= p->room; v++) {
    if (p->streams) FREE(p->streams[v]);
    if (p->predictions) FREE(p->predictions[v]);
  }
  FREE(p->streams);
  FREE(p->predictions);
  FREE(p->n);
  FREE(p->wide);
  FREE(p->next);
  block_scratch_free(&p->block);
  head_scratch_free(&p->head);
  shared_free(&p->weights);
  shared_free(&p->changed);
  shared_free(&p->keys);
  *p = (eval_pass){0};
}

/* Streams = embeddings, of the original where it still has to go along. */
status eval_pass_begin(eval_pass *p, int count) {
  status st = OK;
  p->count = count;
  for (int k = 0; k < p->mine && st == OK; k++) {
    segment g = my_segment(p, k);
    st = embed_tokens(p->model, g.count, ids_of(p, &g), p->n);
    for (int v = p->original_done; v <= count && st == OK; v++)
      memcpy(stream_of(p, v, k), p->n, (size_t)(g.count * p->model->arch.hidden) * sizeof(float));
  }
  return agree(p->t->comm, st);
}

/* The block on stream v. Between its two parts and after them all ranks meet: then the keys are there, and nobody reads these weights and
 * keys any more. The first norm is made in both: to keep it would take a stream more. */
static void forward(eval_pass *p, int64_t layer, const layer_weights *w, int v) {
  const arch *a = &p->model->arch;
  double start = clock_now();
  for (int k = 0; k < p->mine; k++) {
    segment g = my_segment(p, k);
    block_attn_in(a, w, g.count, stream_of(p, v, k), p->n);
    block_keys(a, w, &p->block, &g.rows, p->n, keys_of(p, &g));
  }
  team_barrier(p->t);
  for (int k = 0; k < p->mine; k++) {
    segment g = my_segment(p, k);
    float *x = stream_of(p, v, k);
    block_attn_in(a, w, g.count, x, p->n);
    block_attention(a, w, layer, &p->block, &g.rows, p->n, keys_of(p, &g), p->wide);
    block_attn_out(a, w, g.count, p->wide, x, p->n);
    block_mlp(a, w, &p->block, g.count, p->n, p->wide);
    block_mlp_out(a, w, g.count, p->wide, x);
    p->flops += rows_flops(a, layer, &g.rows);
  }
  team_barrier(p->t);
  p->forward_seconds += clock_now() - start;
}

/* A fenced section that fills shared memory: everybody's part, agreed, seen by all. */
static status filled(eval_pass *p, double start, status st) {
  st = agree(p->t->comm, st);
  team_barrier(p->t);
  p->weights_seconds += clock_now() - start;
  return st;
}

status eval_pass_layer(eval_pass *p, int64_t layer, eval_fill fill, void *fill_context, pass_progress progress, void *context) {
  status st = OK;
  double start = clock_now(), flops = p->flops, begun = start;
  int variants = p->count + !p->original_done, done = 0;
  TRY(filled(p, start, layer_weights_load(p->model, layer, p->weights.base, p->t->rank, p->t->size)));
  for (int v = p->original_done; v <= p->count; v++) {
    start = clock_now();
    if (v) TRY(filled(p, start, fill(fill_context, layer, v - 1, p->target)));
    forward(p, layer, v ? &p->variant : &p->original, v);
    done++;
    if (progress) progress(context, (double)done / variants, 1e-9 * p->t->job_size * (p->flops - flops) / (clock_now() - begun));
  }
done:
  return st;
}

/* The final norm, in place: what the head reads. */
static status normalize(eval_pass *p) {
  tensor_ref norm = checkpoint_final_norm(p->model);
  const arch *a = &p->model->arch;
  status st = tensor_rows(&norm, 0, 1, p->wide);
  for (int v = p->original_done; v <= p->count && st == OK; v++) head_norm(a, p->wide, p->mine * segment_rows(p), p->streams[v]);
  p->original_done = true;
  return st;
}

static void head_strip(eval_pass *p, int64_t first, int64_t count, const float **x, prediction **out) {
  int64_t length = p->w->length;
  double start = clock_now();
  for (int k = 0; k < p->mine; k++) {
    segment g = my_segment(p, k);
    const int32_t *ids = ids_of(p, &g);
    for (int64_t i = 0; i < g.count; i++) p->next[i] = (g.first + i + 1) % length ? ids[i + 1] : -1;
    for (int v = 0; v <= p->count; v++) {
      x[v] = stream_of(p, v, k);
      out[v] = p->predictions[v] + k * segment_rows(p);
    }
    head_add(p->model->arch.hidden, g.count, first, count, p->weights.base, p->next, &p->head, 1 + p->count, x, out);
    p->flops += (1 + p->count) * 2.0 * (double)p->model->arch.hidden * (double)count * (double)g.count;
  }
  p->head_seconds += clock_now() - start;
}

status eval_pass_head(eval_pass *p, pass_progress progress, void *context) {
  status st = OK;
  const arch *a = &p->model->arch;
  const float **x = NULL;
  prediction **out = NULL;
  tensor_ref head = checkpoint_head(p->model);
  int64_t strip = (int64_t)(p->weights.bytes / sizeof(float)) / a->hidden, begin, end;
  double begun = clock_now(), flops = p->flops;
  st = normalize(p);
  if (st == OK) st = NEW(x, 1 + p->count, "predictions");
  if (st == OK) st = NEW(out, 1 + p->count, "predictions");
  TRY(agree(p->t->comm, st));
  for (int v = 0; v <= p->count; v++) predictions_start(p->mine * segment_rows(p), p->predictions[v]);
  for (int64_t first = 0; first < a->vocab; first += strip) {
    int64_t count = a->vocab - first < strip ? a->vocab - first : strip;
    double start = clock_now();
    deal_range(count, p->t->size, p->t->rank, 1, &begin, &end);
    st = begin < end ? tensor_rows(&head, first + begin, first + end, (float *)p->weights.base + begin * a->hidden) : OK;
    TRY(filled(p, start, st));
    head_strip(p, first, count, x, out);
    start = clock_now();
    team_barrier(p->t);
    p->head_seconds += clock_now() - start;
    if (progress)
      progress(context, (double)(first + count) / (double)a->vocab, 1e-9 * p->t->job_size * (p->flops - flops) / (clock_now() - begun));
  }
done:
  FREE(x);
  FREE(out);
  return st;
}

status eval_pass_scores(const eval_pass *p, const char *const *names, prediction_score *sums) {
  const int64_t length = p->w->length;
  const int parts = segments_parts(length);
  for (int v = 0; v <= p->count; v++)
    for (int k = 0; k < p->mine; k++) {
      segment g = my_segment(p, k);
      const int64_t rows = g.rows.end - g.rows.begin, first = (int64_t)g.chunk * windows_per_chunk(length) + g.window / length;
      for (int64_t s = 0; s < g.rows.sequences; s++) {
        int64_t at = k * segment_rows(p) + s * rows;
        prediction_score now = prediction_score_of(rows - (g.rows.end == length), p->predictions[0] + at, p->predictions[v] + at);
        if (!isfinite(now.nll) || !isfinite(now.kl))
          return fail(E_NUMERICS, "eval: %s: window %lld: expected finite logits, found Inf or NaN", names[v], (long long)(first + s));
        sums[(v * p->w->count + first + s) * parts + g.part] = now;
      }
    }
  return OK;
}
