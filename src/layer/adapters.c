/* Losses of residuals, adapters that fit them, and curves from the stored numbers. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "adapter/pooled.h"
#include "adapter/zero.h"
#include "base/clock.h"
#include "base/memory.h"
#include "dist/agree.h"
#include "layer/work.h"

/* ---- losses of residuals ---- */

/* My rows' terms into shared memory, then the sum in the order of rows on every rank. s NULL: of the weights themselves. */
status team_trace(input_work *w, int k, const solution *s, const float *h, double *sum) {
  session *c = w->s->c;
  status st = OK;
  int64_t out, in, begin, end;
  double *rows = w->s->rows.base, part;
  linear_shape(&c->model.arch, w->linears[k], &out, &in);
  my_rows(c, out, in, &begin, &end);
  for (int64_t at = begin; at < end && st == OK; at += SLAB_ROWS) {
    int64_t upto = at + SLAB_ROWS < end ? at + SLAB_ROWS : end;
    const float *e = weights_of(w, k) + at * in;
    if (s) {
      solution_residual(s, weights_of(w, k), at, upto, w->s->slab);
      e = w->s->slab;
    }
    st = adapter_trace(in, e, h, 0, upto - at, rows + at, &part);
  }
  st = agree(c->team.comm, st);
  team_barrier(&c->team);
  *sum = 0;
  for (int64_t i = 0; i < out; i++) *sum += rows[i];
  team_barrier(&c->team); /* rows will be written again */
  w->s->spent.flops += (double)out * (double)in * (double)in;
  return st;
}

static status one_trace(input_work *w, int p, int k) {
  status st = OK;
  solution *to = result_of(w, p, k);
  double trace, heldout = NAN;
  TRY(team_trace(w, k, to, w->s->h.base, &trace));
  if (w->heldout) TRY(team_trace(w, k, to, w->s->second.base, &heldout));
  if (w->s->c->team.rank == 0) {
    to->facts->trace = trace;
    to->facts->trace_heldout = heldout;
  }
done:
  return st;
}

static status all_traces(input_work *w) {
  session *c = w->s->c;
  status st = OK;
  double start = clock_now();
  for (int g = 0; g < w->group_count; g++)
    for (int k = 0; k < w->linear_count; k++) {
      int p = w->group[g];
      const result_plan *plan = plan_of(w, p, k);
      solution_facts *f = result_of(w, p, k)->facts;
      if (plan->codes.how == PART_OWN) TRY(one_trace(w, p, k));
      if (c->team.rank == 0) {
        if (plan->codes.how == PART_COPY) {
          f->trace = result_of(w, plan->codes.from, k)->facts->trace;
          f->trace_heldout = result_of(w, plan->codes.from, k)->facts->trace_heldout;
        }
        f->reference = w->reference[k][0];
        f->reference_heldout = w->reference[k][1];
        f->numerical_rank = w->facts->numerical_rank;
        f->tokens = w->facts->tokens;
      }
    }
  team_barrier(&c->team);
done:
  w->s->spent.trace += clock_now() - start;
  return st;
}

/* ---- fits ---- */

static const adapter_path solver_path[] = {
    [SOLVER_AUTO] = ADAPTER_AUTO, [SOLVER_DENSE] = ADAPTER_DENSE, [SOLVER_KRYLOV] = ADAPTER_KRYLOV, [SOLVER_GRID] = ADAPTER_DENSE};

adapter_request adapter_shape(const setting *s, int rank, int64_t out, int64_t in) {
  static const float present = 1;
  metric in_which = method_init(s->method)->metric;
  bool whole = in_which == METRIC_GRAM || in_which == METRIC_POOLED, diagonal = in_which == METRIC_MEAN_ABS || in_which == METRIC_DIAGONAL;
  return (adapter_request){.n = out,
                           .m = in,
                           .h = whole ? &present : NULL,
                           .diagonal = diagonal ? &present : NULL,
                           .rank = rank,
                           .tolerance = s->options.adapter_tolerance,
                           .path = solver_path[s->options.adapter_solver]};
}

static bool pooled(const setting *s) { return method_init(s->method)->metric == METRIC_POOLED; }

double fit_flops(const setting *s, const adapter_request *q) {
  return pooled(s) ? adapter_pooled_flops(q, s->rule.group) : adapter_flops(q);
}

uint64_t fit_bytes(const setting *s, int rank, int64_t out, int64_t in) {
  adapter_request q = adapter_shape(s, rank, out, in);
  uint64_t fit = !setting_fits(s) ? 0 : pooled(s) ? adapter_pooled_bytes(&q, s->rule.group) : adapter_bytes(&q);
  return larger(fit, adapter_losses_bytes(out, in, rank)) + (uint64_t)(out * in) * sizeof(float);
}

static adapter_request request_of(const input_work *w, int p, int k, const char *where, const float *e) {
  const setting *s = setting_of(w, p);
  const solution *to = result_of(w, p, k);
  const options *o = &s->options;
  adapter_request q = adapter_shape(s, to->rank, to->out, to->in);
  bool plain = q.h && !o->residual_magr && o->adapter_damping == 0;
  int rows = q.h ? adapter_start_rows(to->out, to->in, to->rank) : 0;
  q.where = where;
  q.e = e;
  q.h = q.h ? w->s->h.base : NULL;
  q.diagonal = !q.diagonal                                         ? NULL
               : method_init(s->method)->metric == METRIC_DIAGONAL ? w->diagonal
               : o->lqer_mean                                      ? w->squares + w->m
                                                                   : w->squares;
  q.trace = plain ? to->facts->trace : NAN;
  q.start = rows ? w->s->start.base : NULL;
  q.start_rows = rows < w->start_rows ? rows : w->start_rows;
  return q;
}

/* Factors and values to their place; the last value is what all eigenvalues beyond the rank sum to, so that the tail at r is the sum from r on. */
void keep_adapter(solution *to, const adapter *a) {
  size_t rank = (size_t)a->rank;
  memcpy(to->lora_a, a->a, rank * (size_t)to->in * sizeof(float));
  memcpy(to->lora_b, a->b, rank * (size_t)to->out * sizeof(float));
  memcpy(to->values, a->values, rank * sizeof(double));
  double rest = a->trace;
  for (size_t k = 0; k < rank; k++) rest -= a->values[k];
  to->values[rank] = rest;
}

static const float *fitted_weights(const input_work *w, int p, int k) {
  return setting_of(w, p)->options.residual_magr ? w->base + w->weight_at[k] : weights_of(w, k);
}

static status fit_locally(input_work *w, void *context, int p, int k) {
  status st = OK;
  float *e = NULL;
  adapter a = {0};
  solution *to = result_of(w, p, k);
  char where[256];
  double start = clock_now();
  (void)context;
  name_result(w, p, k, where);
  TRY(NEW(e, to->out * to->in, "a residual"));
  solution_residual(to, fitted_weights(w, p, k), 0, to->out, e);
  adapter_request q = request_of(w, p, k, where, e);
  TRY(pooled(setting_of(w, p)) ? adapter_pooled(&q, to->rule.group, &a) : adapter_local(&q, &a));
  keep_adapter(to, &a);
  to->facts->adapter_seconds = clock_now() - start + (q.start ? start_seconds(w) : 0);
done:
  adapter_free(&a);
  FREE(e);
  return st;
}

static status fit_on_grid(input_work *w, int p, int k) {
  session *c = w->s->c;
  status st = OK;
  adapter a = {0};
  solution *to = result_of(w, p, k);
  char where[256];
  int64_t begin, end;
  double start = clock_now();
  name_result(w, p, k, where);
  deal_range(to->out, c->team.size, c->team.rank, 1, &begin, &end);
  solution_residual(to, fitted_weights(w, p, k), begin, end, (float *)w->s->residual.base + begin * to->in);
  team_barrier(&c->team);
  adapter_request q = request_of(w, p, k, where, w->s->residual.base);
  TRY(adapter_grid(&q, &c->grid, &a));
  if (c->team.rank == 0) {
    keep_adapter(to, &a);
    to->facts->adapter_seconds = c->team.size * (clock_now() - start) + (q.start ? start_seconds(w) : 0);
  }
  team_barrier(&c->team);
done:
  adapter_free(&a);
  return st;
}

/* What LoRA starts from, by the matrix's name. */
static status zero_adapter(input_work *w, void *context, int p, int k) {
  status st = OK;
  adapter a = {0};
  char where[256], name[128];
  (void)context;
  name_result(w, p, k, where);
  snprintf(name, sizeof name, "model.layers.%lld.%s", (long long)w->layer, linear_path(w->linears[k]));
  solution *to = result_of(w, p, k);
  adapter_request q = request_of(w, p, k, where, NULL);
  q.trace = to->facts->trace;
  TRY(adapter_zero(&q, name, (uint64_t)setting_of(w, p)->options.seed, &a));
  keep_adapter(to, &a);
done:
  adapter_free(&a);
  return st;
}

/* ---- who works at what ---- */

static bool fits_itself(const input_work *w, int p, int k) {
  return setting_fits(setting_of(w, p)) && plan_of(w, p, k)->fit.how == PART_OWN;
}

static double local_fit(const input_work *w, const void *context, int p, int k) {
  const setting *s = setting_of(w, p);
  double ridge = *(const double *)context;
  if (!fits_itself(w, p, k) || s->options.adapter_solver == SOLVER_GRID || s->options.adapter_damping != ridge) return -1;
  adapter_request q = request_of(w, p, k, "", NULL);
  return fit_flops(s, &q);
}

static double own_zero(const input_work *w, const void *context, int p, int k) {
  (void)context;
  const solution *to = result_of(w, p, k);
  return setting_scheme(setting_of(w, p)) == SCHEME_ZERO ? (double)to->rank * (double)to->in : -1;
}

static double own_curves(const input_work *w, const void *context, int p, int k) {
  (void)context;
  const solution *to = result_of(w, p, k);
  return plan_of(w, p, k)->fit.how == PART_OWN ? 2.0 * (double)to->rank * (double)to->in * (double)(to->in + to->out) : -1;
}

static double taken_over(const input_work *w, const void *context, int p, int k) {
  (void)context;
  const solution *to = result_of(w, p, k);
  return plan_of(w, p, k)->fit.how == PART_COPY ? (double)to->rank * (double)(to->in + to->out) : -1;
}

/* The adapter's metric may be damped: the ridge stands on the shared diagonal while those settings are solved. */
static void put_diagonal(const input_work *w, double ridge) {
  float *h = w->s->h.base;
  team_barrier(&w->s->c->team);
  if (w->s->c->team.rank == 0)
    for (int64_t k = 0; k < w->m; k++) h[k * w->m + k] = (float)(w->diagonal[k] + ridge * w->facts->mean_diag);
  team_barrier(&w->s->c->team);
}

static status all_fits(input_work *w) {
  status st = OK;
  for (int g = 0; g < w->group_count; g++) {
    double ridge = setting_of(w, w->group[g])->options.adapter_damping;
    bool seen = false;
    for (int e = 0; e < g; e++) seen |= setting_of(w, w->group[e])->options.adapter_damping == ridge;
    if (seen) continue;
    if (ridge > 0) put_diagonal(w, ridge);
    TRY(deal_matrices(w, local_fit, fit_locally, &ridge));
    for (int e = g; e < w->group_count; e++) {
      const setting *s = setting_of(w, w->group[e]);
      if (s->options.adapter_solver != SOLVER_GRID || s->options.adapter_damping != ridge) continue;
      for (int k = 0; k < w->linear_count; k++)
        if (fits_itself(w, w->group[e], k)) TRY(fit_on_grid(w, w->group[e], k));
    }
    if (ridge > 0) put_diagonal(w, 0);
  }
done:
  return st;
}

/* ---- curves ---- */

/* ||BA||_F / ||W||_F */
static double adapter_size(const solution *s, const float *w) {
  double sum = 0;
  for (int64_t i = 0; i < s->out * s->in; i++) sum += (double)w[i] * (double)w[i];
  return solution_adapter_norm(s) / sqrt(sum);
}

static status make_curves(input_work *w, void *context, int p, int k) {
  status st = OK;
  float *e = NULL;
  solution *to = result_of(w, p, k);
  (void)context;
  TRY(NEW(e, to->out * to->in, "a residual"));
  solution_residual(to, weights_of(w, k), 0, to->out, e);
  if (setting_of(w, p)->method->init == INIT_L4Q) to->values[to->rank] = to->facts->trace; /* nothing is left to explain it */
  TRY(adapter_losses(to->out, to->in, e, w->s->h.base, to->lora_b, to->lora_a, to->rank, to->facts->trace, to->loss));
  if (w->heldout)
    TRY(adapter_losses(to->out, to->in, e, w->s->second.base, to->lora_b, to->lora_a, to->rank, to->facts->trace_heldout,
                       to->loss_heldout));
  to->facts->adapter_size = adapter_size(to, weights_of(w, k));
  TRY(solution_fingerprint(to, to->facts->base_fingerprint));
done:
  FREE(e);
  return st;
}

static status copy_fit(input_work *w, void *context, int p, int k) {
  (void)context;
  solution_copy(result_of(w, plan_of(w, p, k)->fit.from, k), SOLUTION_ALL, result_of(w, p, k));
  return OK;
}

status adapters_make(input_work *w) {
  status st = OK;
  TRY(gram_take_heldout(w));
  TRY(all_traces(w));
  double start = clock_now();
  TRY(all_fits(w));
  TRY(deal_matrices(w, own_zero, zero_adapter, NULL));
  w->s->spent.adapter += clock_now() - start;
  start = clock_now();
  TRY(deal_matrices(w, own_curves, make_curves, NULL));
  TRY(deal_matrices(w, taken_over, copy_fit, NULL));
  w->s->spent.losses += clock_now() - start;
done:
  return st;
}
