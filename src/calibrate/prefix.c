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

pass_bytes prefix_memory(const arch *a, const windows *const sets[SET_COUNT], const bool wanted[IN_COUNT], int ranks, bool cross) {
  pass_bytes b = pass_memory(a, sets, wanted, ranks);
  b.private_most += b.streams + (uint64_t)(pass_segment_rows(sets) * (a->hidden + block_wide(a))) * sizeof(float);
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
      st = streams_room(scratch, (size_t)p->pass.sets[k].mine * segment_floats(&p->pass, &p->pass.sets[k]), &p->file[k], &p->original[k]);
  if (st == OK) st = NEW(p->n, p->pass.segment_rows * a->hidden, "activations");
  if (st == OK) st = NEW(p->wide, p->pass.segment_rows * block_wide(a), "activations");
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

/* ---- a segment ---- */

static float *original_stream(const prefix *p, const pass_step *w, int index) {
  const pass_set *s = w->s;
  return p->original[s - p->pass.sets] + (segment_stream(&p->pass, s, index) - s->x);
}

/* Collective. Keys and values of a step's rows, of the original or of the prefix: there for the whole team until the next ones. */
static void leave_keys(prefix *p, pass_step *w, const layer_weights *weights, bool original) {
  const arch *a = &p->pass.model->arch;
  team_barrier(p->pass.t); /* nobody reads the last ones */
  EACH_OF_MINE (w, i) {
    segment g = segment_at(w->s->w, i);
    block_attn_in(a, weights, g.count, original ? original_stream(p, w, i) : segment_stream(&p->pass, w->s, i), p->n);
    block_keys(a, weights, &p->pass.scratch, &g.rows, p->n, step_kv(w, &g));
  }
  team_barrier(p->pass.t);
}

/* x (rows, d) -> what the input's linears read, into `to`; of attn_out after leave_keys. n: scratch (rows, d). */
static void input_of(prefix *p, const pass_step *w, const segment *g, input_id input, const layer_weights *weights, const float *x,
                     float *n, float *to) {
  const arch *a = &p->pass.model->arch;
  float *normed = cross_of_outputs(input) ? n : to;
  if (input == IN_ATTN || input == IN_ATTN_OUT)
    block_attn_in(a, weights, g->count, x, normed);
  else
    block_mlp_in(a, weights, g->count, x, normed);
  if (input == IN_ATTN_OUT) block_attention(a, weights, p->layer, &p->pass.scratch, &g->rows, normed, step_kv(w, g), to);
  if (input == IN_MLP_OUT) block_mlp(a, weights, &p->pass.scratch, g->count, normed, to);
}

/* x += g W^T + b of the one linear that reads attn_out or mlp_out. */
static void add_output(const prefix *p, int64_t rows, input_id input, const layer_weights *weights, const float *g, float *x) {
  block_onto(&p->pass.model->arch, weights, input == IN_ATTN_OUT ? LIN_O : LIN_DOWN, rows, g, x);
}

/* The original's segment at an input: what its cross products are made of, into `left` (rows, d); at o and down it goes on. */
static void original_at(prefix *p, const pass_step *w, const segment *g, input_id input, float *x, float *left) {
  const layer_weights *own = &p->pass.layer;
  if (!cross_of_outputs(input)) {
    input_of(p, w, g, input, own, x, NULL, left);
    return;
  }
  layer_weights plain = *own; /* the bias is no part of X W^T */
  plain.bias[LIN_O] = plain.bias[LIN_DOWN] = NULL;
  input_of(p, w, g, input, own, x, p->n, p->wide);
  memset(left, 0, (size_t)(g->count * p->pass.model->arch.hidden) * sizeof *left);
  add_output(p, g->count, input, &plain, p->wide, left);
  add_output(p, g->count, input, own, p->wide, x);
}

/* A stream through the attention (with o) or the MLP (with down). */
static void through(prefix *p, pass_step *w, input_id input, const layer_weights *weights, bool original) {
  if (input == IN_ATTN_OUT) leave_keys(p, w, weights, original);
  EACH_OF_MINE (w, i) {
    segment g = segment_at(w->s->w, i);
    float *x = original ? original_stream(p, w, i) : segment_stream(&p->pass, w->s, i);
    input_of(p, w, &g, input, weights, x, p->n, p->wide);
    add_output(p, g.count, input, weights, p->wide, x);
  }
}

/* ---- a layer ---- */

status prefix_embed(prefix *p) {
  status st = OK;
  TRY(pass_embed(&p->pass));
  for (int k = 0; k < SET_COUNT; k++) {
    const pass_set *s = &p->pass.sets[k];
    if (s->w) memcpy(p->original[k], s->x, (size_t)s->mine * segment_floats(&p->pass, s) * sizeof(float));
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
  int64_t width = input_width(&p->pass.model->arch, input);
  if (x->rows) cross_gram_reset(x);
  for (int k = 0; k < SET_COUNT; k++) {
    pass_set *s = &p->pass.sets[k];
    gram *g = &s->grams[input];
    pass_step w;
    if (s->w && g->n) gram_reset(g);
    for (step_first(&p->pass, s, &w); w.count; step_next(&w)) {
      if (input == IN_ATTN_OUT) leave_keys(p, &w, &p->weights, false);
      EACH_OF_MINE (&w, i) {
        segment of = segment_at(s->w, i);
        input_of(p, &w, &of, input, &p->weights, segment_stream(&p->pass, s, i), p->n, step_slot(&w, panel, &of, width));
      }
      if (input == IN_ATTN_OUT) leave_keys(p, &w, &p->pass.layer, true);
      EACH_OF_MINE (&w, i) {
        segment of = segment_at(s->w, i);
        original_at(p, &w, &of, input, original_stream(p, &w, i), step_slot(&w, other, &of, p->pass.model->arch.hidden));
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
  pass_step w;
  for (int k = 0; k < SET_COUNT; k++)
    for (step_first(&p->pass, &p->pass.sets[k], &w); w.count; step_next(&w)) through(p, &w, input, &p->weights, false);
  team_barrier(p->pass.t);
}

void prefix_skip(prefix *p) {
  pass_step w;
  for (int k = 0; k < SET_COUNT; k++)
    for (step_first(&p->pass, &p->pass.sets[k], &w); w.count; step_next(&w))
      for (int original = 0; original < 2; original++) {
        through(p, &w, IN_ATTN_OUT, original ? &p->pass.layer : &p->weights, original);
        through(p, &w, IN_MLP_OUT, original ? &p->pass.layer : &p->weights, original);
      }
  team_barrier(p->pass.t);
}

/* ---- drift ---- */

static double drift_of(int64_t rows, int d, const float *z, const float *x) {
  double sum = 0;
  for (int64_t r = 0; r < rows; r++) {
    double off = 0, size = 0;
    for (int k = 0; k < d; k++) {
      double one = x[r * d + k], other = z[r * d + k];
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
    st = NEW(sums, s->segments, "drift of segments");
    TRY(agree(q->t->comm, st));
    for (step_first(q, s, &w); w.count; step_next(&w))
      EACH_OF_MINE (&w, i)
        sums[i] = drift_of(segment_at(s->w, i).count, (int)q->model->arch.hidden, segment_stream(q, s, i), original_stream(p, &w, i));
    MPI_Allreduce(MPI_IN_PLACE, sums, s->segments, MPI_DOUBLE, MPI_SUM, q->t->comm); /* each is one rank's: no order to choose */
    drift[k] = 0;
    for (int i = 0; i < s->segments; i++) drift[k] += sums[i];
    drift[k] /= (double)(s->w->count * s->w->length);
    FREE(sums);
  }
done:
  FREE(sums);
  return st;
}
