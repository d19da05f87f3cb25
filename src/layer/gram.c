/* The start of an input's work: its Grams, what is known of them, the weights that read it; and how rows and matrices are dealt. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "calibrate/target.h"
#include "dist/agree.h"
#include "dist/dlinalg.h"
#include "layer/work.h"
#include "quant/magr.h"
#include "quant/optq.h"
#include "quant/sweep.h"
#include "session/unit.h"

/* ---- dealing ---- */

int64_t rows_slab(int64_t in) {
  int slab = optq_slab(in) > magr_slab((int)in) ? optq_slab(in) : magr_slab((int)in);
  return sweep_slab(in) > slab ? sweep_slab(in) : slab;
}

void my_rows(const session *c, int64_t out, int64_t in, int64_t *begin, int64_t *end) {
  deal_range(out, c->team.size, c->team.rank, rows_slab(in), begin, end);
}

void name_result(const input_work *w, int p, int k, char where[256]) {
  snprintf(where, 256, "model.layers.%lld.%s, %s", (long long)w->layer, linear_path(w->linears[k]), setting_of(w, p)->name);
}

bool any_chosen(const input_work *w, task_choice choice, const void *context) {
  for (int g = 0; g < w->group_count; g++)
    for (int k = 0; k < w->linear_count; k++)
      if (choice(w, context, w->group[g], k) >= 0) return true;
  return false;
}

status deal_matrices(input_work *w, task_choice choice, matrix_work work, void *context) {
  session *c = w->s->c;
  status st = OK;
  int *owner = NULL, count = 0, most = w->group_count * w->linear_count;
  double *cost = NULL;
  struct task {
    int piece, k;
  } *tasks = NULL;
  if (!any_chosen(w, choice, context)) return OK;
  st = NEW(owner, most, "dealing of matrices");
  if (st == OK) st = NEW(cost, most, "dealing of matrices");
  if (st == OK) st = NEW(tasks, most, "dealing of matrices");
  TRY(agree(c->team.comm, st));
  for (int g = 0; g < w->group_count; g++)
    for (int k = 0; k < w->linear_count; k++) {
      cost[count] = choice(w, context, w->group[g], k);
      if (cost[count] >= 0) tasks[count++] = (struct task){w->group[g], k};
    }
  st = deal_tasks(cost, count, c->team.size, owner);
  for (int i = 0; i < count && st == OK; i++)
    if (owner[i] == c->team.rank) st = work(w, context, tasks[i].piece, tasks[i].k);
  st = agree(c->team.comm, st);
  team_barrier(&c->team);
done:
  FREE(tasks);
  FREE(cost);
  FREE(owner);
  return st;
}

/* ---- facts of a Gram ---- */

static status count_rank(const input_work *w) {
  gram_facts *f = w->facts;
  const float *h = w->s->h.base;
  status st = OK;
  int64_t m = w->m, live = 0;
  double most = 0;
  for (int64_t k = 0; k < m; k++) {
    live += h[k * m + k] != 0;
    most = fmax(most, h[k * m + k]);
  }
  f->numerical_rank = live < f->tokens ? live : f->tokens;
  if (m > RANK_BY_PIVOTS_MOST) return OK; /* a bound: pivoting that size on one rank would take longer than the layer */
  double *copy = NULL;
  TRY(NEW(copy, m * m, "a Gram to count its rank"));
  for (int64_t k = 0; k < m * m; k++) copy[k] = h[k];
  int rank;
  TRY(drank((int)m, copy, (int)m, (double)m * 6e-8 * most, &rank)); /* below that a pivot is rounding of the stored floats */
  f->numerical_rank = rank;
done:
  FREE(copy);
  return st;
}

status find_vectors(const input_work *w, int rows, int blocks, double *to) {
  double *vectors = NULL;
  char where[96];
  snprintf(where, sizeof where, "model.layers.%lld, %s", (long long)w->layer, input_name(w->input));
  status st = adapter_start(where, w->m, w->s->h.base, rows, blocks, &vectors);
  if (st == OK) memcpy(to, vectors, (size_t)rows * (size_t)w->m * sizeof *to);
  FREE(vectors);
  return st;
}

/* Each fact by the rank whose turn it is, at the same time. */
static status gather_facts(input_work *w, bool wants_lambda) {
  session *c = w->s->c;
  const float *h = w->s->h.base;
  status st = OK;
  int turn = 0;
  double sum = 0;
  for (int64_t k = 0; k < w->m; k++) {
    w->diagonal[k] = h[k * w->m + k];
    sum += w->diagonal[k];
    w->dead[k] = w->diagonal[k] == 0;
    w->any_dead |= w->dead[k];
  }
  if (c->team.rank == 0) w->facts->mean_diag = sum / (double)w->m;
  if (c->team.rank == turn++ % c->team.size) st = count_rank(w);
  double start = clock_now();
  if (wants_lambda && c->team.rank == turn++ % c->team.size && st == OK) {
    st = magr_lambda_max((int)w->m, h, &w->facts->lambda_max);
    w->facts->lambda_seconds = clock_now() - start;
  }
  start = clock_now();
  if (w->start_rows && c->team.rank == turn++ % c->team.size && st == OK) {
    st = find_vectors(w, w->start_rows, 2, w->s->start.base);
    w->facts->start_seconds = clock_now() - start;
  }
  st = agree(c->team.comm, st);
  team_barrier(&c->team);
  return st;
}

/* Local. This rank's part of one Gram, expanded. */
static status take_gram(const input_work *w, int set, float *full, int64_t *tokens) {
  const team *t = &w->s->c->team;
  int64_t begin, end;
  if (!w->given) return unit_read_gram(w->s->c, set, w->layer, w->input, t->rank, t->size, full, tokens);
  const gram_input *g = &w->given->gram[set];
  deal_range(tiles_count(w->m, GRAM_TILE), t->size, t->rank, 1, &begin, &end);
  tiles_expand(w->m, GRAM_TILE, begin, end, g->tiles + begin * GRAM_TILE * GRAM_TILE, full);
  *tokens = g->tokens;
  return OK;
}

/* Squares of the mean magnitudes of this input, for lqer's metric. Every rank reads its own. */
static status read_magnitudes(input_work *w, bool with_max) {
  status st = OK;
  double *magnitudes = NULL;
  TRY(NEW(magnitudes, 2 * w->m, "magnitudes of an input"));
  TRY(NEW(w->squares, 2 * w->m, "magnitudes of an input"));
  if (w->given) {
    memcpy(magnitudes + w->m, w->given->gram[SET_CALIBRATION].mean_abs, (size_t)w->m * sizeof *magnitudes);
    memcpy(magnitudes, w->given->gram[SET_CALIBRATION].max_mean_abs, (size_t)w->m * sizeof *magnitudes);
  } else {
    TRY(unit_read_input_stats(w->s->c, SET_CALIBRATION, w->layer, w->input, magnitudes + w->m, with_max ? magnitudes : NULL));
  }
  for (int64_t k = 0; k < 2 * w->m; k++) w->squares[k] = (float)(magnitudes[k] * magnitudes[k]);
done:
  FREE(magnitudes);
  return st;
}

/* Weights become what the inputs of the prefix ask for. The factor of the Gram is spent for it. */
static status aim_weights(input_work *w) {
  session *c = w->s->c;
  status st = OK;
  char where[96];
  double mu = 0.01 * w->facts->mean_diag;
  snprintf(where, sizeof where, "model.layers.%lld, %s", (long long)w->layer, input_name(w->input));
  TRY(reverse_cholesky(where, &c->team, w->m, w->s->h.base, mu, NULL, w->s->u.base));
  for (int k = 0; k < w->linear_count && st == OK; k++) {
    int64_t out, in, begin, end;
    linear_shape(&c->model.arch, w->linears[k], &out, &in);
    deal_range(out, c->team.size, c->team.rank, TARGET_ROWS, &begin, &end);
    target_request q = {.where = where,
                        .n = out,
                        .m = in,
                        .cross = w->given->cross,
                        .of_outputs = w->given->of_outputs,
                        .h = w->s->h.base,
                        .factor = w->s->u.base,
                        .mu = mu,
                        .alpha = w->given->alpha};
    st = target_rows(&q, begin, end, (float *)w->s->w.base + w->weight_at[k]);
    w->s->spent.flops += target_flops(out, in, q.of_outputs);
  }
  st = agree(c->team.comm, st);
  team_barrier(&c->team);
done:
  return st;
}

static status load_weights(input_work *w) {
  session *c = w->s->c;
  status st = OK;
  for (int k = 0; k < w->linear_count && st == OK; k++) {
    tensor_ref tensor = checkpoint_linear(&c->model, w->layer, w->linears[k]);
    int64_t begin, end;
    deal_range(tensor.rows, c->team.size, c->team.rank, 1, &begin, &end);
    st = tensor_rows(&tensor, begin, end, (float *)w->s->w.base + w->weight_at[k] + begin * w->m);
    tensor_done_with(&tensor);
  }
  TRY(agree(c->team.comm, st));
  team_barrier(&c->team);
  if (w->given && w->given->cross) TRY(aim_weights(w));
done:
  return st;
}

/* What the pending pieces want to know of this input. */
typedef struct wants {
  bool lambda, magnitudes, max_magnitudes;
} wants;

static wants list_linears(input_work *w) {
  session *c = w->s->c;
  wants x = {0};
  int64_t at = 0;
  w->m = input_width(&c->model.arch, w->input);
  for (int l = 0; l < LIN_COUNT; l++) {
    int64_t out, in;
    if (!c->job.target[l] || linear_input(l) != w->input) continue;
    linear_shape(&c->model.arch, l, &out, &in);
    int rows = layer_start_rows(&c->job, out, in);
    if (rows > w->start_rows) w->start_rows = rows;
    w->weight_at[w->linear_count] = w->s->weight_at[l] = at;
    w->linears[w->linear_count++] = l;
    at += out * in;
  }
  for (int k = 0; k < c->job.setting_count; k++) {
    const setting *s = &c->job.settings[k];
    if (!w->pending[k]) continue;
    x.lambda |= s->method->magr || s->method->init == INIT_L4Q;
    x.magnitudes |= s->method->init == INIT_LQER;
    x.max_magnitudes |= s->method->init == INIT_LQER && !s->options.lqer_mean;
  }
  return x;
}

status gram_open(input_work *w) {
  session *c = w->s->c;
  status st = OK;
  double start = clock_now();
  wants x = list_linears(w);
  int64_t tokens = 0, tokens_heldout = 0;
  w->facts = w->s->facts.base;
  w->heldout = c->sets[SET_HELDOUT] != NULL;
  st = NEW(w->dead, w->m, "dead columns");
  if (st == OK) st = NEW(w->diagonal, w->m, "a diagonal");
  if (st == OK && x.magnitudes) st = read_magnitudes(w, x.max_magnitudes);
  if (st == OK) st = take_gram(w, SET_CALIBRATION, w->s->h.base, &tokens);
  if (st == OK && w->heldout) st = take_gram(w, SET_HELDOUT, w->s->second.base, &tokens_heldout);
  w->heldout_there = w->heldout;
  if (c->team.rank == 0) *w->facts = (gram_facts){.tokens = tokens, .tokens_heldout = tokens_heldout};
  TRY(agree(c->team.comm, st));
  team_barrier(&c->team);
  TRY(gather_facts(w, x.lambda));
  TRY(load_weights(w));
done:
  w->s->spent.load += clock_now() - start;
  return st;
}

status gram_take_heldout(input_work *w) {
  status st = OK;
  int64_t tokens;
  double start = clock_now();
  if (!w->heldout || w->heldout_there) return OK;
  TRY(agree(w->s->c->team.comm, take_gram(w, SET_HELDOUT, w->s->second.base, &tokens)));
  team_barrier(&w->s->c->team);
  w->heldout_there = true;
done:
  w->s->spent.load += clock_now() - start;
  return st;
}

void gram_close(input_work *w) {
  FREE(w->order);
  FREE(w->dead);
  FREE(w->diagonal);
  FREE(w->squares);
}
