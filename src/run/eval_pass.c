#include "run/eval_pass.h"

#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "dist/agree.h"

static double layer_flops(const arch *a, int64_t layer, int64_t sequences, int64_t length) {
  return block_flops_per_token(a) * (double)(sequences * length) + block_attention_flops(a, layer, sequences, length);
}

eval_bytes eval_pass_memory(const arch *a, const windows *w, int job_size) {
  eval_bytes b = {0};
  uint64_t rows = (uint64_t)windows_chunk_rows(w), mine = (uint64_t)((windows_chunks(w) + job_size - 1) / job_size);
  b.variant = mine * rows * ((uint64_t)a->hidden * sizeof(float) + sizeof(prediction));
  b.fixed = b.variant + (rows * (uint64_t)(a->hidden + block_wide(a) + 1) + (uint64_t)block_kv_floats(a, (int64_t)rows)) * sizeof(float) +
            block_scratch_bytes(a, w->length, (int64_t)rows) + 3 * sizeof(float) * HEAD_ROWS * HEAD_COLUMNS;
  b.shared = 2 * (uint64_t)layer_weights_floats(a) * sizeof(float);
  return b;
}

static int64_t chunk_floats(const eval_pass *p) { return windows_chunk_rows(p->w) * p->model->arch.hidden; }

/* Which of all chunks my k-th is. */
static int chunk_number(const eval_pass *p, int k) { return p->t->job_rank + k * p->t->job_size; }

static status new_streams(eval_pass *p) {
  status st = OK;
  const arch *a = &p->model->arch;
  int64_t rows = windows_chunk_rows(p->w), all = p->mine * rows;
  TRY(NEW(p->streams, 1 + p->room, "residual streams"));
  TRY(NEW(p->predictions, 1 + p->room, "predictions"));
  for (int v = 0; v <= p->room; v++) {
    TRY(NEW(p->streams[v], all * a->hidden, "residual streams"));
    TRY(NEW(p->predictions[v], all, "predictions"));
  }
  TRY(NEW(p->n, rows * a->hidden, "activations"));
  TRY(NEW(p->wide, rows * block_wide(a), "activations"));
  TRY(NEW(p->kv, block_kv_floats(a, rows), "keys and values"));
  TRY(NEW(p->next, rows, "tokens"));
  TRY(block_scratch_new(a, p->w->length, rows, &p->block));
  TRY(head_scratch_new(&p->head));
done:
  return st;
}

status eval_pass_new(const team *t, const checkpoint *model, const windows *w, const bool targets[LIN_COUNT], int room, eval_pass *p) {
  status st = OK;
  *p = (eval_pass){.t = t, .model = model, .w = w, .room = room};
  p->mine = (windows_chunks(w) - t->job_rank + t->job_size - 1) / t->job_size;
  st = new_streams(p);
  TRY(agree(t->comm, st));
  TRY(shared_new(t, layer_weights_floats(&model->arch) * sizeof(float), "weights of a layer", &p->weights));
  TRY(shared_new(t, layer_weights_floats(&model->arch) * sizeof(float), "quantized weights of a layer", &p->changed));
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
  FREE(p->kv);
  FREE(p->next);
  block_scratch_free(&p->block);
  head_scratch_free(&p->head);
  shared_free(&p->weights);
  shared_free(&p->changed);
  *p = (eval_pass){0};
}

/* Streams = embeddings, of the original where it still has to go along. */
status eval_pass_begin(eval_pass *p, int count) {
  status st = OK;
  p->count = count;
  for (int k = 0; k < p->mine && st == OK; k++) {
    int chunk = chunk_number(p, k);
    int64_t at = k * chunk_floats(p), rows = windows_in_chunk(p->w, chunk) * p->w->length;
    st = embed_tokens(p->model, rows, windows_chunk_ids(p->w, chunk), p->n);
    for (int v = p->original_done; v <= count && st == OK; v++)
      memcpy(p->streams[v] + at, p->n, (size_t)(rows * p->model->arch.hidden) * sizeof(float));
  }
  return agree(p->t->comm, st);
}

static void forward(eval_pass *p, int64_t layer, const layer_weights *w, float *stream) {
  const arch *a = &p->model->arch;
  block_kv kv = block_kv_place(a, windows_chunk_rows(p->w), p->kv);
  double start = clock_now();
  for (int k = 0; k < p->mine; k++) {
    int sequences = windows_in_chunk(p->w, chunk_number(p, k));
    block_forward(a, w, layer, &p->block, sequences, p->w->length, stream + k * chunk_floats(p), p->n, p->wide, kv);
    p->flops += layer_flops(a, layer, sequences, p->w->length);
  }
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
    forward(p, layer, v ? &p->variant : &p->original, p->streams[v]);
    start = clock_now();
    team_barrier(p->t); /* nobody reads these weights any more */
    p->forward_seconds += clock_now() - start;
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
  for (int v = p->original_done; v <= p->count && st == OK; v++) head_norm(a, p->wide, p->mine * windows_chunk_rows(p->w), p->streams[v]);
  p->original_done = true;
  return st;
}

static void head_strip(eval_pass *p, int64_t first, int64_t count, const float **x, prediction **out) {
  int64_t length = p->w->length;
  double start = clock_now();
  for (int k = 0; k < p->mine; k++) {
    int chunk = chunk_number(p, k), sequences = windows_in_chunk(p->w, chunk);
    int64_t rows = sequences * length;
    const int32_t *ids = windows_chunk_ids(p->w, chunk);
    for (int64_t i = 0; i < rows; i++) p->next[i] = (i + 1) % length ? ids[i + 1] : -1;
    for (int v = 0; v <= p->count; v++) {
      x[v] = p->streams[v] + k * chunk_floats(p);
      out[v] = p->predictions[v] + k * windows_chunk_rows(p->w);
    }
    head_add(p->model->arch.hidden, rows, first, count, p->weights.base, p->next, &p->head, 1 + p->count, x, out);
    p->flops += (1 + p->count) * 2.0 * (double)p->model->arch.hidden * (double)count * (double)rows;
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
  for (int v = 0; v <= p->count; v++) predictions_start(p->mine * windows_chunk_rows(p->w), p->predictions[v]);
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

status eval_pass_scores(const eval_pass *p, const char *const *names, window_score *score) {
  int64_t length = p->w->length;
  for (int v = 0; v <= p->count; v++)
    for (int k = 0; k < p->mine; k++) {
      int chunk = chunk_number(p, k), sequences = windows_in_chunk(p->w, chunk);
      for (int s = 0; s < sequences; s++) {
        int64_t window = (int64_t)chunk * windows_per_chunk(length) + s, at = k * windows_chunk_rows(p->w) + s * length;
        window_score now = window_score_of(length - 1, p->predictions[0] + at, p->predictions[v] + at);
        if (!isfinite(now.nll) || !isfinite(now.kl))
          return fail(E_NUMERICS, "eval: %s: window %lld: expected finite logits, found Inf or NaN", names[v], (long long)window);
        score[v * p->w->count + window] = now;
      }
    }
  return OK;
}
