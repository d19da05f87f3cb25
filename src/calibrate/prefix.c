#include "calibrate/prefix.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "calibrate/steps.h"
#include "calibrate/streams.h"
#include "dist/agree.h"

/* Inputs and what the original has beside them lie in panels of their own, both of them at least d wide (calibrate/pass.c). */
static int panel_of(input_id input) { return cross_of_outputs(input) ? 1 : 0; }
static int other_panel(input_id input) { return 1 - panel_of(input); }

/* ---- sizes ---- */

static int64_t chunk_rows_most(const windows *const sets[SET_COUNT]) {
  int64_t most = 0;
  for (int k = 0; k < SET_COUNT; k++)
    if (sets[k] && windows_chunk_rows(sets[k]) > most) most = windows_chunk_rows(sets[k]);
  return most;
}

pass_bytes prefix_memory(const arch *a, const windows *const sets[SET_COUNT], const bool wanted[IN_COUNT], int ranks, bool cross) {
  pass_bytes b = pass_memory(a, sets, wanted, ranks);
  b.private_most += b.streams + (uint64_t)(chunk_rows_most(sets) * (a->hidden + block_wide(a))) * sizeof(float);
  b.streams *= 2;
  b.shared += (uint64_t)layer_weights_floats(a) * sizeof(float);
  for (int i = 0; cross && i < IN_COUNT; i++)
    if (wanted[i]) {
      b.shared += cross_gram_shared_bytes(a->hidden, input_width(a, i));
      b.private_most += cross_gram_private_bytes(input_width(a, i));
    }
  return b;
}

double prefix_layer_flops(const arch *a, const windows *const sets[SET_COUNT], const bool wanted[IN_COUNT], bool cross) {
  double tokens[SET_COUNT] = {0}, flops = pass_layer_flops(a, sets, wanted);
  for (int k = 0; k < SET_COUNT; k++)
    if (sets[k]) tokens[k] = (double)(sets[k]->count * sets[k]->length);
  flops += 2 * block_flops_per_token(a) * (tokens[SET_CALIBRATION] + tokens[SET_HELDOUT]);
  for (int i = 0; cross && i < IN_COUNT; i++)
    if (wanted[i]) flops += 2.0 * (double)a->hidden * (double)input_width(a, i) * tokens[SET_CALIBRATION];
  return flops;
}

/* ---- life ---- */

status prefix_new(const team *t, const checkpoint *model, const windows *const sets[SET_COUNT], const bool wanted[IN_COUNT],
                  const bool targets[LIN_COUNT], bool cross, const char *scratch, prefix *p) {
  status st = OK;
  const arch *a = &model->arch;
  *p = (prefix){0};
  TRY(pass_new(t, model, sets, wanted, scratch, &p->pass));
  for (int k = 0; k < SET_COUNT && st == OK; k++)
    if (sets[k])
      st = streams_room(scratch, (size_t)p->pass.sets[k].mine * chunk_floats(&p->pass, &p->pass.sets[k]), &p->file[k], &p->original[k]);
  if (st == OK) st = NEW(p->n, p->pass.chunk_rows * a->hidden, "activations");
  if (st == OK) st = NEW(p->wide, p->pass.chunk_rows * block_wide(a), "activations");
  TRY(agree(t->comm, st));
  for (int i = 0; i < IN_COUNT; i++)
    if (cross && wanted[i]) TRY(cross_gram_new(t, a->hidden, input_width(a, (input_id)i), &p->crosses[i]));
  TRY(shared_new(t, layer_weights_floats(a) * sizeof(float), "quantized weights of a layer", &p->changed));
  layer_weights_vary(a, &p->pass.layer, targets, p->changed.base, &p->weights, p->target);
done:
  if (st != OK) prefix_free(p);
  return st;
}

void prefix_free(prefix *p) {
  for (int i = 0; i < IN_COUNT; i++) cross_gram_free(&p->crosses[i]);
  for (int k = 0; k < SET_COUNT; k++) streams_give_back(&p->file[k], &p->original[k]);
  FREE(p->n);
  FREE(p->wide);
  shared_free(&p->changed);
  pass_free(&p->pass);
  *p = (prefix){0};
}

/* ---- a chunk ---- */

static float *original_stream(const prefix *p, const pass_step *w, int chunk) {
  const pass_set *s = w->s;
  return p->original[s - p->pass.sets] + (chunk_stream(&p->pass, s, chunk) - s->x);
}

/* x (rows, d) -> what the input's linears read, into `to`. n: scratch (rows, d). */
static void input_of(prefix *p, const pass_step *w, int chunk, input_id input, const layer_weights *weights, const float *x, float *n,
                     float *to) {
  const arch *a = &p->pass.model->arch;
  int rows = step_rows(w, chunk);
  float *normed = cross_of_outputs(input) ? n : to;
  if (input == IN_ATTN || input == IN_ATTN_OUT)
    block_attn_in(a, weights, rows, x, normed);
  else
    block_mlp_in(a, weights, rows, x, normed);
  if (input == IN_ATTN_OUT)
    block_attention(a, weights, p->layer, &p->pass.scratch, windows_in_chunk(w->s->w, chunk), w->s->w->length, normed, to);
  if (input == IN_MLP_OUT) block_mlp(a, weights, &p->pass.scratch, rows, normed, to);
}

/* x += g W^T + b of the one linear that reads attn_out or mlp_out. */
static void add_output(const prefix *p, int rows, input_id input, const layer_weights *weights, const float *g, float *x) {
  block_onto(&p->pass.model->arch, weights, input == IN_ATTN_OUT ? LIN_O : LIN_DOWN, rows, g, x);
}

/* The original's chunk at an input: what its cross products are made of, into `left` (rows, d); at o and down it goes on. */
static void original_at(prefix *p, const pass_step *w, int chunk, input_id input, float *left) {
  const layer_weights *own = &p->pass.layer;
  float *x = original_stream(p, w, chunk);
  int rows = step_rows(w, chunk);
  if (!cross_of_outputs(input)) {
    input_of(p, w, chunk, input, own, x, NULL, left);
    return;
  }
  layer_weights plain = *own; /* the bias is no part of X W^T */
  plain.bias[LIN_O] = plain.bias[LIN_DOWN] = NULL;
  size_t floats = (size_t)rows * (size_t)p->pass.model->arch.hidden;
  input_of(p, w, chunk, input, own, x, p->n, p->wide);
  memset(left, 0, floats * sizeof *left);
  add_output(p, rows, input, &plain, p->wide, left);
  add_output(p, rows, input, own, p->wide, x);
}

/* ---- a layer ---- */

status prefix_embed(prefix *p) {
  status st = OK;
  TRY(pass_embed(&p->pass));
  for (int k = 0; k < SET_COUNT; k++) {
    const pass_set *s = &p->pass.sets[k];
    if (s->w) memcpy(p->original[k], s->x, (size_t)s->mine * chunk_floats(&p->pass, s) * sizeof(float));
  }
done:
  return st;
}

status prefix_layer(prefix *p, int64_t layer) {
  p->layer = layer;
  return pass_load_layer(&p->pass, layer);
}

void prefix_input(prefix *p, input_id input) {
  cross_gram *x = &p->crosses[input];
  int panel = panel_of(input), other = other_panel(input);
  if (x->rows) cross_gram_reset(x);
  for (int k = 0; k < SET_COUNT; k++) {
    pass_set *s = &p->pass.sets[k];
    gram *g = &s->grams[input];
    pass_step w;
    if (s->w && g->n) gram_reset(g);
    for (step_first(&p->pass, s, &w); w.count; step_next(&w)) {
      EACH_OF_MINE (&w, c) {
        input_of(p, &w, c, input, &p->weights, chunk_stream(&p->pass, s, c), p->n, step_slot(&w, panel, c));
        original_at(p, &w, c, input, step_slot(&w, other, c));
      }
      step_add(&w, g, panel);
      if (x->rows && k == SET_CALIBRATION)
        cross_gram_add(x, p->pass.panels[other].base, step_stride(&w, other), p->pass.panels[panel].base, step_stride(&w, panel), w.rows,
                       w.count, step_product(&w));
      team_barrier(p->pass.t); /* the panels are free again */
    }
  }
}

void prefix_advance(prefix *p, input_id input) {
  for (int k = 0; k < SET_COUNT; k++) {
    pass_set *s = &p->pass.sets[k];
    pass_step w;
    for (step_first(&p->pass, s, &w); w.count; step_next(&w))
      EACH_OF_MINE (&w, c) {
        float *x = chunk_stream(&p->pass, s, c);
        input_of(p, &w, c, input, &p->weights, x, p->n, p->wide);
        add_output(p, step_rows(&w, c), input, &p->weights, p->wide, x);
      }
  }
  team_barrier(p->pass.t);
}

void prefix_skip(prefix *p) {
  const arch *a = &p->pass.model->arch;
  for (int k = 0; k < SET_COUNT; k++) {
    pass_set *s = &p->pass.sets[k];
    pass_step w;
    for (step_first(&p->pass, s, &w); w.count; step_next(&w))
      EACH_OF_MINE (&w, c)
        for (int of = 0; of < 2; of++)
          block_forward(a, of ? &p->weights : &p->pass.layer, p->layer, &p->pass.scratch, windows_in_chunk(s->w, c), s->w->length,
                        of ? chunk_stream(&p->pass, s, c) : original_stream(p, &w, c), p->n, p->wide);
  }
  team_barrier(p->pass.t);
}

/* ---- drift ---- */

static double drift_of(int rows, int d, const float *z, const float *x) {
  double sum = 0;
  for (int r = 0; r < rows; r++) {
    double off = 0, size = 0;
    for (int k = 0; k < d; k++) {
      double one = x[(int64_t)r * d + k], other = z[(int64_t)r * d + k];
      off += (other - one) * (other - one);
      size += one * one;
    }
    sum += size > 0 ? off / size : 0;
  }
  return sum;
}

status prefix_drift(prefix *p, double drift[SET_COUNT]) {
  status st = OK;
  pass *q = &p->pass;
  double *sums = NULL;
  for (int k = 0; k < SET_COUNT; k++) {
    pass_set *s = &q->sets[k];
    pass_step w;
    drift[k] = NAN;
    if (!s->w) continue;
    st = NEW(sums, s->chunks, "drift of chunks");
    TRY(agree(q->t->comm, st));
    for (step_first(q, s, &w); w.count; step_next(&w))
      EACH_OF_MINE (&w, c)
        sums[c] = drift_of(step_rows(&w, c), (int)q->model->arch.hidden, chunk_stream(q, s, c), original_stream(p, &w, c));
    MPI_Allreduce(MPI_IN_PLACE, sums, s->chunks, MPI_DOUBLE, MPI_SUM, q->t->comm); /* each is one rank's: no order to choose */
    drift[k] = 0;
    for (int c = 0; c < s->chunks; c++) drift[k] += sums[c];
    drift[k] /= (double)(s->w->count * s->w->length);
    FREE(sums);
  }
done:
  FREE(sums);
  return st;
}
