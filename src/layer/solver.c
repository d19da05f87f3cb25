#include "layer/solver.h"

#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "dist/agree.h"
#include "layer/sizes.h"
#include "layer/work.h"
#include "session/sharing.h"

/* ---- life ---- */

status layer_solver_new(session *c, layer_solver *s) {
  status st = OK;
  const team *t = &c->team;
  layer_sizes z = layer_measure(&c->job, &c->model.arch, t->size);
  *s = (layer_solver){.c = c, .piece_count = job_pieces(&c->job, NULL)};
  TRY(shared_new(t, z.h * sizeof(float), "a Gram", &s->h));
  if (c->sets[SET_HELDOUT] || z.metric) TRY(shared_new(t, z.h * sizeof(float), "a second Gram", &s->second));
  if (z.factor) TRY(shared_new(t, z.h * sizeof(double), "the factor of a Gram", &s->u));
  TRY(shared_new(t, z.w * sizeof(float), "weights of one input's linears", &s->w));
  if (z.magr) TRY(shared_new(t, z.w * sizeof(float), "MagR's weights", &s->v));
  TRY(shared_new(t, z.residual * sizeof(float), "a residual", &s->residual));
  TRY(shared_new(t, z.start * sizeof(double), "leading eigenvectors of a Gram", &s->start));
  TRY(shared_new(t, z.leading * sizeof(double), "leading eigenvectors of a Gram", &s->leading));
  TRY(shared_new(t, z.refining, "a matrix that is refined", &s->refining));
  TRY(shared_new(t, z.arrays, "results of a layer", &s->arrays));
  TRY(shared_new(t, z.rows * 2 * sizeof(double), "losses of rows", &s->rows));
  TRY(shared_new(t, sizeof(gram_facts), "facts of a Gram", &s->facts));
  st = NEW(s->slab, z.slab, "a slab of residuals");
  if (st == OK) st = NEW(s->pieces, s->piece_count, "settings");
  if (st == OK) st = NEW(s->results, s->piece_count * LIN_COUNT, "results");
  TRY(agree(t->comm, st));
  job_pieces(&c->job, s->pieces);
done:
  if (st != OK) layer_solver_free(s);
  return st;
}

void layer_solver_free(layer_solver *s) {
  shared *held[] = {&s->h,      &s->second, &s->u,     &s->w,     &s->v,       &s->residual,
                    &s->arrays, &s->rows,   &s->facts, &s->start, &s->leading, &s->refining};
  for (size_t i = 0; i < sizeof held / sizeof *held; i++) shared_free(held[i]);
  FREE(s->slab);
  FREE(s->pieces);
  FREE(s->results);
  *s = (layer_solver){0};
}

/* Results get their arrays: shapes may differ from layer to layer. */
static void place_results(layer_solver *s, int64_t layer) {
  const session *c = s->c;
  char *at = s->arrays.base;
  for (int p = 0; p < s->piece_count; p++)
    for (int l = 0; l < LIN_COUNT; l++) {
      solution *to = layer_result(s, p, (linear_id)l);
      if (!c->job.target[l]) continue;
      *to = layer_solution(&c->model.arch, &s->pieces[p], layer, (linear_id)l);
      to->loaded = solution_loaded(checkpoint_linear(&c->model, layer, (linear_id)l).tensor->type);
      at += solution_place(to, SOLUTION_ALL, at);
    }
}

static bool group_needs_magr(const input_work *w) {
  for (int g = 0; g < w->group_count; g++)
    for (int k = 0; k < w->linear_count; k++)
      if (needs_magr(setting_of(w, w->group[g]), plan_of(w, w->group[g], k))) return true;
  return false;
}

/* ---- the pipeline of one input ---- */

double layer_share(const session *c, int input) {
  double before = 0, all = 0;
  for (int i = 0; i < IN_COUNT; i++) {
    double m = (double)input_width(&c->model.arch, (input_id)i), n = 0;
    if (!c->wanted[i]) continue;
    for (int l = 0; l < LIN_COUNT; l++) {
      int64_t out, in;
      linear_shape(&c->model.arch, (linear_id)l, &out, &in);
      if (c->job.target[l] && linear_input((linear_id)l) == (input_id)i) n += (double)out;
    }
    all += m * m * (m / 3 + n);
    if (i < input) before += m * m * (m / 3 + n);
  }
  return before / all;
}

/* After some codes; an input's adapters count like the codes of one piece more. */
static void show_progress(const input_work *w) {
  const layer_solver *s = w->s;
  double before = layer_share(s->c, w->input), after = layer_share(s->c, w->input + 1), part = w->codes_done / (w->codes_due + 1.0);
  if (s->watch.show)
    s->watch.show(s->watch.context, before + part * (after - before), 1e-9 * s->spent.flops / (clock_now() - s->watch.start));
}

static status make_codes(input_work *w, int first, bool *handled) {
  for (int g = first; g < w->group_count; g++) w->codes_done -= handled[g];
  status st = codes_make(w, first, handled);
  for (int g = first; g < w->group_count; g++) w->codes_done += handled[g];
  show_progress(w);
  return st;
}

static status solve_group(input_work *w) {
  status st = OK;
  bool *handled = NULL;
  st = NEW(handled, w->group_count, "settings done");
  TRY(agree(w->s->c->team.comm, st));
  w->base = w->s->w.base;
  if (group_needs_magr(w)) TRY(codes_magr(w, setting_of(w, w->group[0])));
  for (int g = 0; g < w->group_count; g++) /* first those whose factor another group has left */
    if (!handled[g] && w->factored && same_factor(w->factored, setting_of(w, w->group[g]))) TRY(make_codes(w, g, handled));
  for (int g = 0; g < w->group_count; g++)
    if (!handled[g]) TRY(make_codes(w, g, handled));
  TRY(codes_take_over(w));
  TRY(adapters_make(w));
done:
  FREE(handled);
  return st;
}

static status find_references(input_work *w) {
  status st = OK;
  double start = clock_now();
  for (int k = 0; k < w->linear_count; k++) {
    TRY(team_trace(w, k, NULL, w->s->h.base, &w->reference[k][0]));
    w->reference[k][1] = NAN;
    if (w->heldout) TRY(team_trace(w, k, NULL, w->s->second.base, &w->reference[k][1]));
  }
done:
  w->s->spent.trace += clock_now() - start;
  return st;
}

status layer_solve_input(layer_solver *s, int64_t layer, input_id input, const bool *pending, const given_input *given) {
  status st = OK;
  input_work all = {.s = s, .layer = layer, .input = input, .pending = pending, .given = given}, *w = &all;
  bool *left = NULL;
  st = NEW(w->group, s->piece_count, "settings");
  if (st == OK) st = NEW(left, s->piece_count, "settings");
  if (st == OK) st = NEW(w->plan, s->piece_count * LINEARS_MOST, "settings");
  TRY(agree(s->c->team.comm, st));
  TRY(gram_open(w));
  TRY(find_references(w));
  for (int k = 0; k < w->linear_count; k++)
    plan_results(&s->c->job, s->pieces, s->piece_count, w->layer, w->linears[k], w->pending, w->plan + k, LINEARS_MOST);
  for (int p = 0; p < s->piece_count; p++) w->codes_due += left[p] = w->pending[s->pieces[p].index];
  for (int p = 0; p < s->piece_count; p++) {
    if (!left[p]) continue;
    w->group_count = 0;
    for (int e = p; e < s->piece_count; e++)
      if (left[e] && share_magr(&s->c->job, s->pieces[p].setting, s->pieces[e].setting, w->layer, w->input)) {
        w->group[w->group_count++] = e;
        left[e] = false;
      }
    TRY(solve_group(w));
  }
done:
  FREE(left);
  FREE(w->group);
  FREE(w->plan);
  gram_close(w);
  return st;
}

/* All ranks must mean the same work. */
static status check_same(const session *c, const int64_t *layer, const bool *pending) {
  status st = OK;
#ifdef CLOQWORK_DEBUG_CHECKS
  st = agree_same(c->team.comm, "the layer to solve", layer, sizeof *layer);
  if (st == OK) st = agree_same(c->team.comm, "the settings to solve", pending, (size_t)c->job.setting_count * sizeof *pending);
#else
  (void)c, (void)layer, (void)pending;
#endif
  return st;
}

status layer_begin(layer_solver *s, int64_t layer, const bool *pending) {
  session *c = s->c;
  status st = OK;
  s->spent = (stage_seconds){0};
  TRY(check_same(c, &layer, pending));
  place_results(s, layer);
  team_barrier(&c->team);
  if (c->team.rank == 0)
    for (int p = 0; p < s->piece_count; p++)
      for (int l = 0; l < LIN_COUNT; l++)
        if (pending[s->pieces[p].index] && c->job.target[l]) *layer_result(s, p, (linear_id)l)->facts = (solution_facts){0};
  team_barrier(&c->team);
done:
  return st;
}

status layer_solve(layer_solver *s, int64_t layer, const bool *pending, pass_progress progress, void *context) {
  status st = OK;
  s->watch.show = progress;
  s->watch.context = context;
  s->watch.start = clock_now();
  TRY(layer_begin(s, layer, pending));
  for (int i = 0; i < IN_COUNT; i++) {
    if (!s->c->wanted[i]) continue;
    TRY(layer_solve_input(s, layer, (input_id)i, pending, NULL));
    if (progress) progress(context, layer_share(s->c, i + 1), 1e-9 * s->spent.flops / (clock_now() - s->watch.start));
  }
done:
  s->watch.show = NULL;
  return st;
}

const float *layer_weights_of(const layer_solver *s, linear_id l) { return (const float *)s->w.base + s->weight_at[l]; }
