#include "calibrate/pass.h"

#include "base/clock.h"
#include "calibrate/ring.h"
#include "calibrate/streams.h"
#include "dist/agree.h"

const char *set_folder(int set) { return set == SET_CALIBRATION ? "grams" : "heldout"; }

/* Like the windows of a chunk, its chunks per product depend on the window length alone: they fix the order of summation. */
static int chunks_per_product(int64_t length) {
  int64_t rows = length * windows_per_chunk(length);
  return rows >= GRAM_TOKENS ? 1 : (int)(GRAM_TOKENS / rows);
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

static int64_t chunk_rows(const windows *const sets[SET_COUNT]) {
  int64_t most = 0;
  for (int s = 0; s < SET_COUNT; s++)
    if (sets[s]) most = larger(most, windows_chunk_rows(sets[s]));
  return most;
}

int64_t pass_segment_rows(const windows *const sets[SET_COUNT]) {
  int64_t most = 0;
  for (int s = 0; s < SET_COUNT; s++)
    if (sets[s]) most = larger(most, segments_most_rows(sets[s]->length));
  return most;
}

/* A step must hold whole products of every set, and equal work for every rank. */
static bool is_step(const windows *const sets[SET_COUNT], int ranks, int step) {
  for (int s = 0; s < SET_COUNT; s++)
    if (sets[s] && (step % chunks_per_product(sets[s]->length) || step * segments_per_chunk(sets[s]->length) % ranks)) return false;
  return true;
}

static int step_chunks(const windows *const sets[SET_COUNT], int ranks) {
  int step = 1;
  while (!is_step(sets, ranks, step)) step++;
  return step;
}

int pass_steps(const windows *const sets[SET_COUNT], int ranks) {
  int step = step_chunks(sets, ranks), steps = 0;
  for (int s = 0; s < SET_COUNT; s++)
    if (sets[s]) steps += (windows_chunks(sets[s]) + step - 1) / step;
  return steps;
}

int64_t pass_busiest_rows(const windows *w, int ranks) {
  int64_t rows = segments_most_turns(w, ranks) * segments_most_rows(w->length), all = w->count * w->length;
  return rows < all ? rows : all;
}

static int64_t longest(const windows *const sets[SET_COUNT]) {
  return sets[1] ? larger(sets[0]->length, sets[1]->length) : sets[0]->length;
}

static int64_t panel_width(const arch *a, int panel) {
  int64_t first = input_width(a, panel == 0 ? IN_ATTN : IN_ATTN_OUT), second = input_width(a, panel == 0 ? IN_MLP : IN_MLP_OUT);
  return larger(larger(first, second), a->hidden);
}

pass_bytes pass_memory(const arch *a, const windows *const sets[SET_COUNT], const bool wanted[IN_COUNT], int ranks) {
  pass_bytes b = {0};
  int64_t rows = chunk_rows(sets), step = step_chunks(sets, ranks);
  for (int p = 0; p < 2; p++) b.panels += (uint64_t)(step * rows * panel_width(a, p)) * sizeof(float);
  b.panels += (uint64_t)(step * block_kv_floats(a, rows)) * sizeof(float);
  b.weights = (uint64_t)layer_weights_floats(a) * sizeof(float);
  b.private_most = block_scratch_bytes(a, longest(sets), pass_segment_rows(sets));
  for (int s = 0; s < SET_COUNT; s++) {
    if (!sets[s]) continue;
    int64_t mine = segments_most_turns(sets[s], ranks);
    b.streams += (uint64_t)(mine * segments_most_rows(sets[s]->length) * a->hidden) * sizeof(float);
    for (int i = 0; i < IN_COUNT; i++)
      if (wanted[i]) {
        b.sums += gram_shared_bytes(input_width(a, i));
        b.private_most += gram_private_bytes(input_width(a, i));
      }
  }
  b.private_most += b.streams;
  b.shared = b.panels + b.weights + b.sums;
  return b;
}

static double set_tokens(const windows *w) { return w ? (double)w->count * (double)w->length : 0; }

double pass_layer_flops(const arch *a, const windows *const sets[SET_COUNT], const bool wanted[IN_COUNT]) {
  double per_token = block_flops_per_token(a);
  for (int i = 0; i < IN_COUNT; i++)
    if (wanted[i]) per_token += (double)input_width(a, i) * (double)input_width(a, i);
  return per_token * (set_tokens(sets[0]) + set_tokens(sets[1]));
}

size_t segment_floats(const pass *p, const pass_set *s) { return (size_t)segments_most_rows(s->w->length) * (size_t)p->model->arch.hidden; }

float *segment_stream(const pass *p, const pass_set *s, int index) { return s->x + (size_t)(index / p->t->size) * segment_floats(p, s); }

status pass_new(const team *t, const checkpoint *model, const windows *const sets[SET_COUNT], const bool wanted[IN_COUNT],
                const char *scratch, pass *p) {
  const arch *a = &model->arch;
  status st = OK;
  *p = (pass){.t = t, .model = model, .step = step_chunks(sets, t->size)};
  p->chunk_rows = (int)chunk_rows(sets);
  p->segment_rows = (int)pass_segment_rows(sets);
  if (p->step > STEP_MOST)
    return fail(E_USAGE,
                "calibrate: a team of %d ranks: expected at most %d chunks side by side, found %d: choose smaller teams (parallel.team)",
                t->size, STEP_MOST, p->step);
  for (int k = 0; k < SET_COUNT; k++) {
    pass_set *s = &p->sets[k];
    s->w = sets[k];
    if (!s->w) continue;
    s->chunks = windows_chunks(s->w);
    s->segments = segments_count(s->w);
    s->mine = segment_turns(s->segments, t->rank, t->size);
    if (st == OK) st = streams_room(scratch, (size_t)s->mine * segment_floats(p, s), &s->file, &s->x);
  }
  if (st == OK) st = block_scratch_new(a, longest(sets), p->segment_rows, &p->scratch);
  TRY(agree(t->comm, st));
  for (int k = 0; k < SET_COUNT; k++)
    for (int i = 0; i < IN_COUNT; i++)
      if (sets[k] && wanted[i]) TRY(gram_new(t, input_width(a, i), &p->sets[k].grams[i]));
  for (int k = 0; k < 2; k++)
    TRY(shared_new(t, (size_t)(p->step * (int64_t)p->chunk_rows * panel_width(a, k)) * sizeof(float), "panel of activations",
                   &p->panels[k]));
  TRY(shared_new(t, (size_t)(p->step * block_kv_floats(a, p->chunk_rows)) * sizeof(float), "panel of keys and values", &p->keys));
  TRY(shared_new(t, layer_weights_floats(a) * sizeof(float), "weights of a layer", &p->weights));
  layer_weights_place(a, p->weights.base, &p->layer);
done:
  if (st != OK) pass_free(p);
  return st;
}

void pass_free(pass *p) {
  for (int k = 0; k < SET_COUNT; k++) {
    for (int i = 0; i < IN_COUNT; i++) gram_free(&p->sets[k].grams[i]);
    streams_give_back(&p->sets[k].file, &p->sets[k].x);
  }
  shared_free(&p->panels[0]);
  shared_free(&p->panels[1]);
  shared_free(&p->keys);
  shared_free(&p->weights);
  block_scratch_free(&p->scratch);
  *p = (pass){0};
}

status pass_embed(pass *p) {
  status st = OK;
  for (int k = 0; k < SET_COUNT && st == OK; k++) {
    pass_set *s = &p->sets[k];
    if (!s->w) continue;
    for (int i = 0; i < s->mine && st == OK; i++) {
      int index = segment_of_turn(i, p->t->rank, p->t->size);
      segment g = segment_at(s->w, index);
      st = embed_tokens(p->model, g.count, windows_chunk_ids(s->w, g.chunk) + g.first, segment_stream(p, s, index));
    }
  }
  return agree(p->t->comm, st);
}

/* ---- steps ---- */

static void step_at(pass_step *w, int first) {
  const pass_set *s = w->s;
  int left = s->w ? s->chunks - first : 0;
  w->first = first;
  w->count = left < w->p->step ? left : w->p->step;
  w->begin = w->end = 0;
  if (!s->w) return;
  w->begin = first * segments_per_chunk(s->w->length);
  w->end = w->begin + w->count * segments_per_chunk(s->w->length);
  if (w->end > s->segments) w->end = s->segments;
  for (int c = 0; c < w->count; c++) w->rows[c] = (int)(windows_in_chunk(s->w, first + c) * s->w->length);
}

void step_first(pass *p, pass_set *s, pass_step *w) {
  w->p = p;
  w->s = s;
  step_at(w, 0);
}

void step_next(pass_step *w) { step_at(w, w->first + w->count); }

int64_t step_tokens(const pass_step *w) {
  int64_t tokens = 0;
  for (int c = 0; c < w->count; c++) tokens += w->rows[c];
  return tokens;
}

int64_t step_stride(const pass_step *w, int panel) { return w->p->chunk_rows * panel_width(&w->p->model->arch, panel); }

float *step_slot(const pass_step *w, int panel, const segment *g, int64_t width) {
  return (float *)w->p->panels[panel].base + (g->chunk - w->first) * step_stride(w, panel) + g->first * width;
}

block_kv step_kv(const pass_step *w, const segment *g) {
  const arch *a = &w->p->model->arch;
  float *chunk = (float *)w->p->keys.base + (g->chunk - w->first) * block_kv_floats(a, w->p->chunk_rows);
  return block_kv_from(a, block_kv_place(a, w->p->chunk_rows, chunk), g->window);
}

int step_product(const pass_step *w) { return chunks_per_product(w->s->w->length); }

void step_add(pass_step *w, gram *g, int panel) {
  team_barrier(w->p->t);
  if (g && g->n) gram_add(g, w->p->panels[panel].base, step_stride(w, panel), w->rows, (int)w->s->w->length, w->count, step_product(w));
}

/* ---- a layer ---- */

/* One step through the parts of the block. Between them all ranks meet: then the inputs (and the keys and values) are there, and nobody
 * still reads what their panel held before. Each tapped input is added to its Gram. */
static void run_step(pass_step *w, int64_t layer, bool with_grams) {
  pass *p = w->p;
  pass_set *s = w->s;
  const arch *a = &p->model->arch;
  const layer_weights *l = &p->layer;
  const int64_t d = a->hidden, attended = input_width(a, IN_ATTN_OUT), f = a->intermediate;
#define TAP(input, panel) step_add(w, with_grams ? &s->grams[input] : NULL, panel)
  EACH_OF_MINE (w, i) {
    segment g = segment_at(s->w, i);
    block_attn_in(a, l, g.count, segment_stream(p, s, i), step_slot(w, 0, &g, d));
    block_keys(a, l, &p->scratch, &g.rows, step_slot(w, 0, &g, d), step_kv(w, &g));
  }
  TAP(IN_ATTN, 0);
  EACH_OF_MINE (w, i) {
    segment g = segment_at(s->w, i);
    block_attention(a, l, layer, &p->scratch, &g.rows, step_slot(w, 0, &g, d), step_kv(w, &g), step_slot(w, 1, &g, attended));
  }
  TAP(IN_ATTN_OUT, 1);
  EACH_OF_MINE (w, i) {
    segment g = segment_at(s->w, i);
    block_attn_out(a, l, g.count, step_slot(w, 1, &g, attended), segment_stream(p, s, i), step_slot(w, 0, &g, d));
  }
  TAP(IN_MLP, 0);
  EACH_OF_MINE (w, i) {
    segment g = segment_at(s->w, i);
    block_mlp(a, l, &p->scratch, g.count, step_slot(w, 0, &g, d), step_slot(w, 1, &g, f));
  }
  TAP(IN_MLP_OUT, 1);
  EACH_OF_MINE (w, i) {
    segment g = segment_at(s->w, i);
    block_mlp_out(a, l, g.count, step_slot(w, 1, &g, f), segment_stream(p, s, i));
  }
#undef TAP
}

status pass_load_layer(pass *p, int64_t layer) {
  double start = clock_now();
  status st = layer_weights_load(p->model, layer, p->weights.base, p->t->rank, p->t->size);
  if ((st = agree(p->t->comm, st)) != OK) return st;
  team_barrier(p->t);
  if (p->t->rank == 0 && layer + p->t->count < p->model->arch.layers) layer_weights_ahead(p->model, layer + p->t->count);
  p->load_seconds += clock_now() - start;
  return OK;
}

void pass_layer(pass *p, int64_t layer, bool with_grams, pass_progress progress, void *context) {
  const arch *a = &p->model->arch;
  double start = clock_now(), flops = 0, tokens_all = set_tokens(p->sets[0].w) + set_tokens(p->sets[1].w), tokens = 0;
  for (int k = 0; k < SET_COUNT; k++) {
    pass_set *s = &p->sets[k];
    double per_token = block_flops_per_token(a);
    for (int i = 0; with_grams && i < IN_COUNT; i++)
      if (s->grams[i].n) {
        gram_reset(&s->grams[i]);
        per_token += (double)s->grams[i].n * s->grams[i].n;
      }
    pass_step w;
    for (step_first(p, s, &w); w.count; step_next(&w)) {
      if (p->ring) ring_take(p->ring, &w);
      if (p->keep)
        EACH_OF_MINE (&w, i) streams_write(p->keep, s, i);
      run_step(&w, layer, with_grams);
      if (p->ring) ring_give(p->ring, &w);
      tokens += (double)step_tokens(&w);
      flops += per_token * (double)step_tokens(&w);
      if (progress) progress(context, tokens / tokens_all, 1e-9 * flops / (clock_now() - start));
    }
  }
  p->flops += flops;
  team_barrier(p->t);
}

void pass_keep(pass *p) {
  pass_step w;
  for (int k = 0; k < SET_COUNT; k++)
    for (step_first(p, &p->sets[k], &w); w.count; step_next(&w)) {
      if (p->ring) ring_take(p->ring, &w);
      EACH_OF_MINE (&w, i) streams_write(p->keep, w.s, i);
    }
}
