/* MagR, the factor of the damped Gram, and who makes which codes when. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "dist/agree.h"
#include "dist/dlinalg.h"
#include "layer/work.h"
#include "quant/billm.h"
#include "quant/magr.h"
#include "quant/optq.h"
#include "quant/salience.h"
#include "quant/slim.h"
#include "session/sharing.h"
#include "session/unit.h"

/* ---- MagR ---- */

status codes_magr(input_work *w, const setting *s) {
  session *c = w->s->c;
  status st = OK;
  double start = clock_now(), before = start;
  w->base = w->s->w.base;
  if (!(w->facts->lambda_max > 0)) return OK; /* an input that is never used: nothing to trade the maxima against */
  w->base = w->s->v.base;
  for (int k = 0; k < w->linear_count && st == OK; k++) {
    int64_t out, in, begin, end;
    linear_shape(&c->model.arch, w->linears[k], &out, &in);
    my_rows(c, out, in, &begin, &end);
    const options *o = setting_options(s, w->layer, w->linears[k]);
    magr_request q = {.solver = o->magr_solver,
                      .steps = o->magr_K,
                      .alpha = o->magr_alpha,
                      .literal = o->magr_literal,
                      .group = setting_rule(s, w->layer, w->linears[k]).group,
                      .rows = (int)(end - begin),
                      .width = (int)in,
                      .w = weights_of(w, k) + begin * in,
                      .h = w->s->h.base,
                      .lambda_max = w->facts->lambda_max};
    if (end > begin) st = magr(&q, (float *)w->s->v.base + w->weight_at[k] + begin * in, NULL);
    q.rows = (int)out; /* the team's work, not mine */
    w->s->spent.flops += magr_flops(&q);
    w->magr_seconds[k] = c->team.size * (clock_now() - before) + w->facts->lambda_seconds / w->linear_count;
    before = clock_now();
  }
  st = agree(c->team.comm, st);
  team_barrier(&c->team);
  w->s->spent.magr += clock_now() - start;
  return st;
}

/* ---- the factor ---- */

/* Into shared memory, unless it is there already. */
static status factor(input_work *w, const setting *s) {
  session *c = w->s->c;
  char where[96];
  double start = clock_now();
  snprintf(where, sizeof where, "model.layers.%lld, %s", (long long)w->layer, input_name(w->input));
  status st = OK;
  if (w->factored && same_factor(w->factored, s)) return OK;
  w->factored = NULL;
  FREE(w->order);
  if (s->options.optq_order_act) {
    TRY(agree(c->team.comm, NEW(w->order, 2 * w->m, "order of columns")));
    optq_act_order(w->m, w->diagonal, w->order, w->order + w->m);
  }
  w->ridge = s->options.damping * w->facts->mean_diag;
  for (int attempt = 0; attempt <= s->options.damping_escalate && (attempt == 0 || st == E_NUMERICS); attempt++) {
    if (attempt) {
      status_clear();
      w->ridge *= 10;
    }
    st = reverse_cholesky(where, &c->team, w->m, w->s->h.base, w->ridge, w->order, w->s->u.base);
  }
  if (st == OK) w->factored = s;
  w->factor_seconds = c->team.size * (clock_now() - start);
  w->s->spent.factor += clock_now() - start;
  w->s->spent.flops += (double)w->m * (double)w->m * (double)w->m / 3;
done:
  return st;
}

/* ---- the group's results that share a factor ---- */

double base_seconds(const input_work *w, int p, int k) {
  bool factor = method_quantizer(setting_of(w, p)->method)->factor;
  return (w->base == w->s->w.base ? 0 : w->magr_seconds[k]) + (factor ? w->factor_seconds / w->linear_count : 0);
}

static bool makes_codes(const input_work *w, int p, int k) {
  return !setting_joint(setting_of(w, p)) && plan_of(w, p, k)->codes.how == PART_OWN;
}

/* The first piece of p's setting that makes codes of matrix k, which are refined for each variant's rank from the same start. */
static int start_of(const input_work *w, int p, int k) {
  int first = p;
  for (int e = p; e >= 0 && setting_refines(setting_of(w, p)) && w->s->pieces[e].index == w->s->pieces[p].index; e--)
    if (makes_codes(w, e, k)) first = e;
  return first;
}

static double starts_alike(const input_work *w, const void *with, int p, int k) {
  const solution *to = result_of(w, p, k);
  bool mine = ((const bool *)with)[p] && makes_codes(w, p, k) && start_of(w, p, k) != p;
  return mine ? (double)(to->out * to->in) : -1;
}

static status copy_start(input_work *w, void *with, int p, int k) {
  (void)with;
  solution_copy(result_of(w, start_of(w, p, k), k), SOLUTION_BASE, result_of(w, p, k));
  return OK;
}

static status quantize(input_work *w, const rounding *r, int p, int k) {
  solution *to = result_of(w, p, k);
  double start = clock_now();
  status st = round_rows(w, r, k, to);
  if (w->s->c->team.rank == 0) {
    to->facts->codes_seconds += base_seconds(w, p, k) + w->s->c->team.size * (clock_now() - start);
    to->facts->damping_used = method_quantizer(r->setting->method)->factor ? w->ridge : 0;
  }
  w->s->spent.flops += uses_optq(r->setting) ? optq_flops(to->out, to->in) : 0;
  return st;
}

/* ---- what is chosen for a whole matrix before its codes: the widths of slim's groups, billm's salient columns ---- */

static bool chooses(const setting *s) { return s->method->quantizer == QUANT_SLIM || s->method->quantizer == QUANT_BILLM; }

/* Every rank gets all of d: blocks of positions are dealt in turn, and what others made is added to zeros. */
static status find_salience(input_work *w, const rounding *r, bool chol, double *d) {
  session *c = w->s->c;
  status st = OK;
  int m = (int)w->m;
  if (chol) return salience_factor(m, w->s->u.base, r->order, d);
  memset(d, 0, (size_t)m * sizeof *d);
  for (int block = 0; block * SALIENCE_BLOCK < m && st == OK; block++) {
    int begin = block * SALIENCE_BLOCK, end = begin + SALIENCE_BLOCK < m ? begin + SALIENCE_BLOCK : m;
    if (block % c->team.size == c->team.rank) st = salience_inverse(m, w->s->u.base, r->order, begin, end, d);
  }
  TRY(agree(c->team.comm, st));
  MPI_Allreduce(MPI_IN_PLACE, d, m, MPI_DOUBLE, MPI_SUM, c->team.comm);
done:
  return st;
}

/* Whole matrices of the pieces that `with` marks [pieces]. */
typedef struct whole_matrices {
  rounding *r;
  const bool *with;
  bool chol; /* which salience */
} whole_matrices;

static double chosen_by_salience(const input_work *w, const void *context, int p, int k) {
  const whole_matrices *m = context;
  const setting *s = setting_of(w, p);
  const solution *to = result_of(w, p, k);
  bool mine = m->with[p] && chooses(s) && s->options.slim_chol == m->chol && makes_codes(w, p, k);
  return mine ? slim_flops(to->out, to->in) : -1;
}

static status choose(input_work *w, void *context, int p, int k) {
  const rounding *r = ((const whole_matrices *)context)->r;
  solution *to = result_of(w, p, k);
  const float *x = w->base + w->weight_at[k];
  const uint8_t *dead = w->any_dead ? w->dead : NULL;
  double start = clock_now();
  status st;
  if (to->rule.kind == GRID_BINARY) {
    st = billm_choose(&to->rule, (int)to->out, (int)to->in, x, to->in, r->salience, dead, to->salient);
  } else {
    slim_request q = {.rule = to->rule,
                      .rows = (int)to->out,
                      .width = (int)to->in,
                      .w = x,
                      .ldw = to->in,
                      .h = w->s->h.base,
                      .d = r->salience,
                      .dead = dead};
    q.rule.widths = NULL;
    st = slim_choose(&q, to->widths, NULL);
  }
  to->facts->codes_seconds = clock_now() - start + r->salience_seconds / w->linear_count;
  return st;
}

static status make_choices(input_work *w, rounding *r, const bool *with, bool chol) {
  status st = OK;
  double *d = NULL, start = clock_now();
  whole_matrices these = {r, with, chol};
  if (!any_chosen(w, chosen_by_salience, &these)) return OK;
  st = NEW(d, w->m, "salience of columns");
  TRY(agree(w->s->c->team.comm, st));
  TRY(agree(w->s->c->team.comm, find_salience(w, r, chol, d)));
  r->salience = d;
  r->salience_seconds = w->s->c->team.size * (clock_now() - start);
  TRY(deal_matrices(w, chosen_by_salience, choose, &these));
done:
  r->salience = NULL;
  FREE(d);
  return st;
}

/* ---- codes and adapter together ---- */

static double joint_cost(const input_work *w, const void *context, int p, int k) {
  const whole_matrices *m = context;
  const solution *to = result_of(w, p, k);
  return m->with[p] && setting_joint(setting_of(w, p)) ? joint_flops(setting_of(w, p), to->rank, to->out, to->in) : -1;
}

static status solve_joint(input_work *w, void *context, int p, int k) {
  rounding r = *((const whole_matrices *)context)->r;
  r.setting = setting_of(w, p);
  r.options = setting_options(r.setting, w->layer, w->linears[k]);
  return joint_solve(w, &r, p, k);
}

static bool refined_here(const input_work *w, const bool *with, int p, int k) {
  return with[p] && setting_refines(setting_of(w, p)) && makes_codes(w, p, k);
}

/* How many leading eigenvectors those start from that need the fewest, but more than `rows`; 0: there are none. */
static int next_start(const input_work *w, const bool *with, int rows) {
  int next = 0;
  for (int g = 0; g < w->group_count; g++)
    for (int k = 0; k < w->linear_count; k++) {
      if (!refined_here(w, with, w->group[g], k)) continue;
      int needed = refine_start_rows(w, w->group[g], k);
      if (needed > rows && (next == 0 || needed < next)) next = needed;
    }
  return next;
}

/* One after the other: each has the whole team. Those that start from the same eigenvectors follow one another. */
static status make_refined(input_work *w, const bool *with) {
  status st = OK;
  double start = clock_now();
  for (int rows = next_start(w, with, 0); rows; rows = next_start(w, with, rows))
    for (int g = 0; g < w->group_count; g++)
      for (int k = 0; k < w->linear_count; k++)
        if (refined_here(w, with, w->group[g], k) && refine_start_rows(w, w->group[g], k) == rows) TRY(refine_result(w, w->group[g], k));
done:
  w->s->spent.refine += clock_now() - start;
  return st;
}

static status make_joint(input_work *w, rounding *r, const bool *with) {
  whole_matrices these = {r, with, false};
  double start = clock_now();
  for (int g = 0; g < w->group_count; g++)
    for (int k = 0; k < w->linear_count; k++) w->s->spent.flops += fmax(0, joint_cost(w, &these, w->group[g], k));
  status st = deal_matrices(w, joint_cost, solve_joint, &these);
  w->s->spent.joint += clock_now() - start;
  return st;
}

static bool needs_factor(const input_work *w, int p) {
  if (!method_quantizer(setting_of(w, p)->method)->factor) return false;
  for (int k = 0; k < w->linear_count; k++)
    if (plan_of(w, p, k)->codes.how == PART_OWN) return true;
  return false;
}

status codes_make(input_work *w, int first, bool *handled) {
  session *c = w->s->c;
  const setting *lead = setting_of(w, w->group[first]);
  status st = OK;
  bool *with = NULL, any = false;
  rounding r = {.w = w, .setting = lead};
  st = NEW(with, w->s->piece_count, "settings of a factor");
  TRY(agree(c->team.comm, st));
  for (int g = first; g < w->group_count; g++) {
    int p = w->group[g];
    with[p] = !handled[g] && (g == first || same_factor(lead, setting_of(w, p)));
    handled[g] |= with[p];
    any |= with[p] && needs_factor(w, p);
  }
  if (any) TRY(factor(w, lead));
  r.order = any ? w->order : NULL;
  double start = clock_now();
  TRY(make_choices(w, &r, with, false));
  TRY(make_choices(w, &r, with, true));
  for (int g = first; g < w->group_count && st == OK; g++)
    for (int k = 0; k < w->linear_count && st == OK && with[w->group[g]]; k++) {
      r.setting = setting_of(w, w->group[g]);
      r.options = setting_options(r.setting, w->layer, w->linears[k]);
      if (makes_codes(w, w->group[g], k) && start_of(w, w->group[g], k) == w->group[g]) st = quantize(w, &r, w->group[g], k);
    }
  st = agree(c->team.comm, st);
  team_barrier(&c->team);
  if (st == OK) st = deal_matrices(w, starts_alike, copy_start, with);
  w->s->spent.quantize += clock_now() - start;
  if (st == OK) st = make_joint(w, &r, with); /* these look at the factor, refining may destroy it */
  if (st == OK) st = make_refined(w, with);
done:
  FREE(with);
  return st;
}

/* ---- results that somebody else made ---- */

/* From the file of a finished setting: codes and, where it has the same fit, all. */
static status read_stored(input_work *w, void *context, int p, int k) {
  status st = OK;
  container *file = NULL;
  solution from = {0}, *to = result_of(w, p, k);
  const result_plan *plan = plan_of(w, p, k);
  const session *c = w->s->c;
  char path[PATH_MOST], where[PATH_MOST + 64];
  (void)context;
  bool all = plan->fit.how == PART_STORED;
  unit_solution_path(c, &c->job.settings[plan->codes.from], w->layer, path);
  snprintf(where, sizeof where, "%s: %s", path, linear_path(w->linears[k]));
  TRY(container_open(path, "solution", &file));
  TRY(solution_load_variant(file, where, &c->model.arch, w->linears[k], to->variant, all ? SOLUTION_ALL : SOLUTION_BASE | SOLUTION_CURVES,
                            &from));
  from.facts->trace = from.loss[0];
  from.facts->trace_heldout = w->heldout ? from.loss_heldout[0] : NAN;
  solution_copy(&from, all ? SOLUTION_ALL : SOLUTION_BASE, to);
done:
  solution_free(&from);
  container_close(&file);
  return st;
}

static status copy_codes(input_work *w, void *context, int p, int k) {
  (void)context;
  solution_copy(result_of(w, plan_of(w, p, k)->codes.from, k), SOLUTION_BASE, result_of(w, p, k));
  return OK;
}

static double taken_over(const input_work *w, const void *context, int p, int k) {
  const solution *to = result_of(w, p, k);
  return (int)plan_of(w, p, k)->codes.how == *(const int *)context ? (double)(to->out * to->in) : -1;
}

status codes_take_over(input_work *w) {
  status st = OK;
  double start = clock_now();
  int stored = PART_STORED, copied = PART_COPY;
  TRY(deal_matrices(w, taken_over, read_stored, &stored));
  TRY(deal_matrices(w, taken_over, copy_codes, &copied));
done:
  w->s->spent.load += clock_now() - start;
  return st;
}
