#include "cost/forecast.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "calibrate/prefix.h"
#include "calibrate/target.h"
#include "dist/agree.h"
#include "layer/sizes.h"
#include "layer/work.h"
#include "quant/billm.h"
#include "quant/descent.h"
#include "quant/magr.h"
#include "quant/optq.h"
#include "quant/salience.h"
#include "quant/slim.h"
#include "session/sharing.h"

const char *const step_names[STEP_COUNT] = {"scan",     "weights", "linears", "attention", "grams",   "write",  "load",  "magr",  "factor",
                                            "quantize", "refine",  "joint",   "trace",     "adapter", "losses", "write", "prefix"};

geometry geometry_of(int nodes, int ranks, int together) {
  geometry g = {.nodes = nodes, .ranks = ranks, .team = together && together < ranks ? together : ranks};
  g.teams = nodes * ((ranks + g.team - 1) / g.team);
  return g;
}

/* One layer on one team. */
typedef struct layer_cost {
  const session *c; /* a view */
  const machine *m;
  int ranks;
  forecast_part *steps;
} layer_cost;

static double square(int64_t m) { return (double)m * (double)m; }

static void spend(layer_cost *k, forecast_step s, double flops, double seconds, double busy) {
  forecast_part *p = &k->steps[s];
  p->flops += flops;
  p->seconds += seconds;
  p->busy += busy;
}

/* Files wait for no rank but for one another: their seconds are summed over all teams in the end. */
static void spend_bytes(layer_cost *k, forecast_step s, rate_id r, double bytes) {
  k->steps[s].files += bytes / machine_rate(k->m, r, (int64_t)bytes);
  k->steps[s].bytes += bytes;
}

static void add_files(forecast_part *p) {
  p->seconds += p->files;
  p->busy += p->files;
}

/* Work of the whole team, spread evenly. */
static void spend_team(layer_cost *k, forecast_step s, rate_id r, int64_t width, double flops) {
  double seconds = flops / k->ranks / machine_rate(k->m, r, width);
  spend(k, s, flops, seconds, seconds);
}

/* Rows dealt in slabs: what the rank with the most of them does. */
static void spend_rows(layer_cost *k, forecast_step s, rate_id r, int64_t out, int64_t in, double amount, bool flops) {
  int64_t begin, end, most = 0, slab = optq_slab(in);
  for (int i = 0; i < k->ranks; i++) {
    deal_range(out, k->ranks, i, rows_slab(in), &begin, &end);
    most = end - begin > most ? end - begin : most;
  }
  most = (most + slab - 1) / slab * slab;
  double one = amount / machine_rate(k->m, r, in);
  spend(k, s, flops ? amount : 0, one * (double)most / (double)out, one / k->ranks);
}

/* Matrices dealt whole: seconds[tasks]. */
static status spend_tasks(layer_cost *k, forecast_step s, const double *seconds, int tasks, double flops) {
  status st = OK;
  int *owner = NULL;
  double *load = NULL, most = 0, all = 0;
  TRY(NEW(owner, tasks + 1, "dealing of matrices"));
  TRY(NEW(load, k->ranks, "dealing of matrices"));
  TRY(deal_tasks(seconds, tasks, k->ranks, owner));
  for (int i = 0; i < tasks; i++) {
    load[owner[i]] += seconds[i];
    all += seconds[i];
    most = fmax(most, load[owner[i]]);
  }
  spend(k, s, flops, most, all / k->ranks);
done:
  FREE(owner);
  FREE(load);
  return st;
}

/* ---- calibrate ---- */

static double layer_bytes(const session *c) { /* 16 bits a weight where there are no weights to look at */
  double bytes = 0;
  for (size_t i = 0; i < c->model.tensor_count; i++) bytes += (double)(c->model.tensors[i].tensor->end - c->model.tensors[i].tensor->begin);
  if (c->model.tensor_count == 0) return 2.0 * (double)arch_layer_params(&c->model.arch);
  bytes -= (double)(checkpoint_embedding(&c->model).tensor->end - checkpoint_embedding(&c->model).tensor->begin);
  return bytes / (double)c->model.arch.layers;
}

static status cost_pass(layer_cost *k, int64_t layer, uint8_t missing) {
  const session *c = k->c;
  const arch *a = &c->model.arch;
  status st = OK;
  double tokens = 0, busiest = 0, attention = 0, busiest_attention = 0, linears = block_flops_per_token(a), tiles = 0;
  for (int s = 0; s < SET_COUNT; s++) {
    const windows *w = c->sets[s];
    if (!w) continue;
    double all = (double)(w->count * w->length), most = (double)pass_busiest_rows(w, k->ranks),
           scores = block_attention_flops(a, layer, w->count, w->length);
    tokens += all;
    busiest += most;
    attention += scores;
    busiest_attention += scores * most / all;
  }
  double rate = machine_rate(k->m, RATE_LINEARS, a->hidden), attend = machine_rate(k->m, RATE_ATTENTION, a->hidden);
  spend(k, STEP_LINEARS, linears * tokens, linears * busiest / rate, linears * tokens / k->ranks / rate);
  spend(k, STEP_ATTENTION, attention, busiest_attention / attend, attention / k->ranks / attend);
  spend_bytes(k, STEP_WEIGHTS, RATE_READ_MODEL, layer_bytes(c));
  for (int i = 0; i < IN_COUNT; i++) {
    int64_t n = input_width(a, (input_id)i);
    double of_rank, rate_of_gram = machine_rate(k->m, RATE_GRAM, n);
    if (!c->wanted[i]) continue;
    TRY(gram_busiest(n, k->ranks, &of_rank));
    spend(k, STEP_GRAMS, square(n) * tokens, of_rank * tokens / rate_of_gram, square(n) * tokens / k->ranks / rate_of_gram);
    tiles += (double)tiles_count(n, GRAM_TILE) * GRAM_TILE * GRAM_TILE * sizeof(float);
  }
  for (int s = 0; s < SET_COUNT; s++)
    if (missing >> s & 1) spend_bytes(k, STEP_GRAM_WRITE, RATE_WRITE, tiles);
done:
  return st;
}

/* ---- solve ---- */

/* One input of a layer: as the solver goes through it (layer/solver.c, layer/codes.c, layer/adapters.c). */
typedef struct input_cost {
  layer_cost *k;
  const piece *pieces;
  int count;
  const bool *pending;
  int64_t layer, m;
  input_id input;
  linear_id linears[LINEARS_MOST];
  int linear_count, sets, leading;
  result_plan *plan;       /* [pieces][LINEARS_MOST] */
  bool *member, *handled;  /* [pieces] of the group at work; codes made */
  double *seconds;         /* [pieces * LINEARS_MOST] tasks */
  const setting *factored; /* whose factor stands there */
} input_cost;

static const result_plan *plan_at(const input_cost *w, int p, int l) { return &w->plan[p * LINEARS_MOST + l]; }
static void shape_at(const input_cost *w, int l, int64_t *out, int64_t *in) { linear_shape(&w->k->c->model.arch, w->linears[l], out, in); }

static bool makes_codes(const input_cost *w, int p, int l) {
  return !setting_joint(w->pieces[p].setting) && plan_at(w, p, l)->codes.how == PART_OWN;
}

/* Variants of a setting are refined from the same codes: the first one's. */
static bool makes_start(const input_cost *w, int p, int l) {
  if (!makes_codes(w, p, l)) return false;
  for (int e = 0; e < p && setting_refines(w->pieces[p].setting); e++)
    if (w->pieces[e].index == w->pieces[p].index && makes_codes(w, e, l)) return false;
  return true;
}

static rate_id grid_rate(const grid_rule *r) {
  return r->search == SEARCH_MSE     ? RATE_GRID_MSE
         : r->search == SEARCH_SCAN  ? RATE_GRID_SCAN
         : r->search == SEARCH_REFIT ? RATE_GRID_REFIT
                                     : RATE_GRID_RANGE;
}

/* Weights whose grid is chosen, a scan counted by the zeros it tries at 3 bits. */
static double grid_work(const grid_rule *r, double weights) { return r->search == SEARCH_SCAN ? weights * (1 << r->bits) / 8 : weights; }

static void cost_codes(input_cost *w, int p, int l) {
  layer_cost *k = w->k;
  const setting *s = w->pieces[p].setting;
  const options *o = setting_options(s, w->layer, w->linears[l]);
  grid_rule rule = setting_rule(s, w->layer, w->linears[l]);
  int64_t out, in;
  shape_at(w, l, &out, &in);
  double flops = uses_optq(s) ? optq_flops(out, in) : 0;
  if (s->method->quantizer == QUANT_BILLM) flops += billm_flops(&rule, out, in);
  if (s->method->quantizer == QUANT_SLIM) flops += slim_flops(out, in);
  if (s->method->quantizer == QUANT_BILLM || (s->method->quantizer == QUANT_SLIM && !o->slim_chol)) flops += salience_flops(in);
  if (o->cd_pass) flops += descent_flops(out, in, o->cd_rounds);
  spend_rows(k, STEP_QUANTIZE, RATE_OPTQ, out, in, flops, true);
  spend_rows(k, STEP_QUANTIZE, grid_rate(&rule), out, in, grid_work(&rule, (double)(out * in)), false);
}

static void cost_trace(input_cost *w, int l) {
  int64_t out, in;
  shape_at(w, l, &out, &in);
  for (int s = 0; s < w->sets; s++) spend_rows(w->k, STEP_TRACE, RATE_TRACE, out, in, (double)out * square(in), true);
}

static void cost_refine(input_cost *w, int p, int l) {
  layer_cost *k = w->k;
  const setting *s = w->pieces[p].setting;
  const options *o = setting_options(s, w->layer, w->linears[l]);
  grid_rule rule = setting_rule(s, w->layer, w->linears[l]);
  int rank = piece_variant(&w->pieces[p], w->layer, w->linears[l]), rows;
  int64_t out, in;
  shape_at(w, l, &out, &in);
  rows = refine_rows_of(out, in, rank);
  if (rows != w->leading) { /* one rank makes them */
    double flops = 4 * 2.0 * rows * square(in), seconds = flops / machine_rate(k->m, RATE_VECTORS, in);
    spend(k, STEP_REFINE, flops, seconds, seconds / k->ranks);
    w->leading = rows;
  }
  refine_cost x = refine_result_costs(s, o, &rule, rank, out, in);
  spend_rows(k, STEP_REFINE, RATE_GEMM, out, in, x.gemm, true);
  spend_team(k, STEP_REFINE, RATE_RITZ, in, x.ritz);
  spend_team(k, STEP_REFINE, RATE_DEFLATE, in, x.deflate);
  spend_team(k, STEP_REFINE, RATE_FACTOR, in, x.factor);
  spend_rows(k, STEP_REFINE, RATE_OPTQ, out, in, x.optq, true);
  spend_rows(k, STEP_REFINE, x.moves == SWEEP_GRID_CANDIDATES ? RATE_CANDIDATES : RATE_SWEEP, out, in, x.sweep, true);
  spend_rows(k, STEP_REFINE, grid_rate(&rule), out, in, grid_work(&rule, x.regridded), false);
  if (x.factor > 0 && o->optq_order_act) w->factored = NULL; /* else it stays beside what was made of it (dist/dlinalg.h) */
}

/* The group's pieces that share the factor of piece `first`, or that alone. */
static status cost_factor_group(input_cost *w, int first) {
  layer_cost *k = w->k;
  const setting *lead = w->pieces[first].setting;
  status st = OK;
  bool *with = NULL, any = false;
  int tasks = 0;
  double flops = 0;
  TRY(NEW(with, w->count, "settings of a factor"));
  for (int p = first; p < w->count; p++) {
    const setting *s = w->pieces[p].setting;
    with[p] = w->member[p] && !w->handled[p] && (p == first || same_factor(lead, s));
    w->handled[p] |= with[p];
    for (int l = 0; l < w->linear_count; l++)
      any |= with[p] && method_quantizer(s->method)->factor && plan_at(w, p, l)->codes.how == PART_OWN;
  }
  if (any && !(w->factored && same_factor(w->factored, lead))) {
    spend_team(k, STEP_FACTOR, RATE_FACTOR, w->m, square(w->m) * (double)w->m / 3);
    w->factored = lead;
  }
  for (int p = first; p < w->count; p++)
    for (int l = 0; l < w->linear_count && with[p]; l++)
      if (makes_start(w, p, l)) cost_codes(w, p, l);
  for (int p = first; p < w->count; p++)
    for (int l = 0; l < w->linear_count && with[p]; l++) {
      const setting *s = w->pieces[p].setting;
      int64_t out, in;
      shape_at(w, l, &out, &in);
      if (setting_joint(s)) {
        double of_one = joint_flops(s, w->pieces[p].rank, out, in);
        flops += of_one;
        w->seconds[tasks++] = of_one / machine_rate(k->m, RATE_DENSE, in);
      } else if (setting_refines(s) && makes_codes(w, p, l)) {
        cost_refine(w, p, l);
      }
    }
  TRY(spend_tasks(k, STEP_JOINT, w->seconds, tasks, flops));
done:
  FREE(with);
  return st;
}

static status cost_adapters(input_cost *w) {
  layer_cost *k = w->k;
  status st = OK;
  int fits = 0, curves = 0;
  double *curve = w->seconds + w->count * LINEARS_MOST, fit_sum = 0, curve_sum = 0;
  for (int p = 0; p < w->count; p++)
    for (int l = 0; l < w->linear_count && w->member[p]; l++) {
      const setting *s = w->pieces[p].setting;
      const result_plan *plan = plan_at(w, p, l);
      int rank = piece_rank(&w->pieces[p], w->layer, w->linears[l]);
      int64_t out, in;
      shape_at(w, l, &out, &in);
      if (plan->codes.how == PART_OWN) cost_trace(w, l);
      if (plan->fit.how != PART_OWN) continue;
      adapter_request q = adapter_shape(s, rank, out, in);
      double flops = setting_fits(s) ? fit_flops(s, &q) : 0, losses = 2.0 * rank * (double)in * (double)(in + out) * w->sets;
      fit_sum += flops;
      curve_sum += losses;
      w->seconds[fits++] = flops / machine_rate(k->m, adapter_choice(&q) == ADAPTER_DENSE ? RATE_DENSE : RATE_KRYLOV, in);
      curve[curves++] = losses / machine_rate(k->m, RATE_CURVES, in) + (double)(out * in) / machine_rate(k->m, RATE_FINISH, in);
    }
  TRY(spend_tasks(k, STEP_ADAPTER, w->seconds, fits, fit_sum));
  TRY(spend_tasks(k, STEP_LOSSES, curve, curves, curve_sum));
done:
  return st;
}

static status cost_group(input_cost *w, int first) {
  layer_cost *k = w->k;
  const setting *lead = w->pieces[first].setting;
  status st = OK;
  bool magr = false;
  for (int p = first; p < w->count; p++)
    for (int l = 0; l < w->linear_count && w->member[p]; l++) magr |= needs_magr(w->pieces[p].setting, plan_at(w, p, l));
  for (int l = 0; l < w->linear_count && magr; l++) {
    int64_t out, in;
    shape_at(w, l, &out, &in);
    magr_request q = {.steps = setting_options(lead, w->layer, w->linears[l])->magr_K, .rows = (int)out, .width = (int)in};
    spend_rows(k, STEP_MAGR, RATE_MAGR, out, in, magr_flops(&q), true);
  }
  memset(w->handled, 0, (size_t)w->count * sizeof *w->handled);
  for (int p = first; p < w->count; p++) /* first those whose factor another group has left */
    if (w->member[p] && !w->handled[p] && w->factored && same_factor(w->factored, w->pieces[p].setting)) TRY(cost_factor_group(w, p));
  for (int p = first; p < w->count; p++)
    if (w->member[p] && !w->handled[p]) TRY(cost_factor_group(w, p));
  TRY(cost_adapters(w));
done:
  return st;
}

/* Grams, weights and facts; each fact by the rank whose turn it is. */
static status cost_start(input_cost *w) {
  layer_cost *k = w->k;
  const session *c = k->c;
  double facts[3] = {0}, flops = 0, weights = 0, tiles = (double)tiles_count(w->m, GRAM_TILE) * GRAM_TILE * GRAM_TILE * sizeof(float);
  int rows = 0;
  bool lambda = false;
  for (int l = 0; l < w->linear_count; l++) {
    int64_t out, in;
    shape_at(w, l, &out, &in);
    int own = layer_start_rows(&c->job, out, in);
    rows = own > rows ? own : rows;
    weights += 2.0 * (double)(out * in);
    cost_trace(w, l);
  }
  for (int i = 0; i < c->job.setting_count; i++)
    lambda |= w->pending[i] && (c->job.settings[i].method->magr || c->job.settings[i].method->init == INIT_L4Q);
  for (int s = 0; s < w->sets; s++) spend_bytes(k, STEP_LOAD, RATE_READ, tiles);
  spend_bytes(k, STEP_LOAD, RATE_READ_MODEL, weights);
  if (w->m <= RANK_BY_PIVOTS_MOST) flops += square(w->m) * (double)w->m / 3, facts[0] = flops / machine_rate(k->m, RATE_PIVOTS, w->m);
  enum { POWER_STEPS = 20 };
  if (lambda) facts[1] = POWER_STEPS * square(w->m) * sizeof(float) / machine_rate(k->m, RATE_MEMORY, 0);
  if (rows) {
    double of_start = 2 * 2.0 * rows * square(w->m);
    flops += of_start;
    facts[2] = of_start / machine_rate(k->m, RATE_VECTORS, w->m);
  }
  return spend_tasks(k, STEP_LOAD, facts, 3, flops);
}

static status cost_input(input_cost *w, bool *left) {
  status st = OK;
  const job *j = &w->k->c->job;
  w->linear_count = 0;
  w->factored = NULL;
  w->leading = 0;
  w->m = input_width(&w->k->c->model.arch, w->input);
  for (int l = 0; l < LIN_COUNT; l++)
    if (j->target[l] && linear_input((linear_id)l) == w->input) w->linears[w->linear_count++] = (linear_id)l;
  TRY(cost_start(w));
  for (int l = 0; l < w->linear_count; l++)
    plan_results(j, w->pieces, w->count, w->layer, w->linears[l], w->pending, w->plan + l, LINEARS_MOST);
  for (int p = 0; p < w->count; p++) left[p] = w->pending[w->pieces[p].index];
  for (int p = 0; p < w->count; p++) {
    if (!left[p]) continue;
    for (int e = 0; e < w->count; e++) {
      w->member[e] = e >= p && left[e] && share_magr(j, w->pieces[p].setting, w->pieces[e].setting, w->layer, w->input);
      left[e] &= !w->member[e];
    }
    TRY(cost_group(w, p));
  }
done:
  return st;
}

/* Windows, Grams and targets of a setting's own. */
static void cost_prefix(layer_cost *k) {
  const session *c = k->c;
  const arch *a = &c->model.arch;
  bool cross = c->follower->options.act_quantizer == INPUTS_CROSS;
  double bytes = 0;
  spend_team(k, STEP_PREFIX, RATE_LINEARS, a->hidden, prefix_layer_flops(a, c->sets, c->wanted, cross));
  for (int l = 0; l < LIN_COUNT; l++) {
    int64_t out, in;
    if (!c->job.target[l] || !cross) continue;
    linear_shape(a, (linear_id)l, &out, &in);
    spend_team(k, STEP_PREFIX, RATE_FACTOR, in, target_flops(out, in, cross_of_outputs(linear_input((linear_id)l))));
    bytes += (double)(out * in) * sizeof(float);
  }
  for (int i = 0; i < IN_COUNT; i++)
    if (c->wanted[i])
      bytes += (double)tiles_count(input_width(a, (input_id)i), GRAM_TILE) * GRAM_TILE * GRAM_TILE * sizeof(float) *
               (c->sets[SET_HELDOUT] ? 2 : 1);
  spend_bytes(k, STEP_PREFIX, RATE_WRITE, bytes);
}

static status cost_layer(layer_cost *k, int64_t layer, const bool *pending) {
  const session *c = k->c;
  const job *j = &c->job;
  status st = OK;
  int count = job_pieces(j, NULL), missing = 0;
  piece *pieces = NULL;
  bool *left = NULL;
  input_cost w = {.k = k, .count = count, .pending = pending, .layer = layer, .sets = c->sets[SET_HELDOUT] ? 2 : 1};
  for (int i = 0; i < j->setting_count; i++) missing += pending[i];
  if (missing == 0) goto done;
  TRY(NEW(pieces, count, "settings"));
  TRY(NEW(left, count, "settings"));
  TRY(NEW(w.member, count, "settings"));
  TRY(NEW(w.handled, count, "settings"));
  TRY(NEW(w.plan, count * LINEARS_MOST, "settings"));
  TRY(NEW(w.seconds, 2 * count * LINEARS_MOST, "settings"));
  job_pieces(j, pieces);
  w.pieces = pieces;
  for (int i = 0; i < IN_COUNT; i++) {
    w.input = (input_id)i;
    if (c->wanted[i]) TRY(cost_input(&w, left));
  }
  for (int i = 0; i < j->setting_count; i++)
    if (pending[i]) spend_bytes(k, STEP_WRITE, RATE_WRITE, (double)layer_solver_file_bytes(j, &c->model.arch, i));
  if (c->follower) cost_prefix(k);
done:
  FREE(pieces);
  FREE(left);
  FREE(w.member);
  FREE(w.handled);
  FREE(w.plan);
  FREE(w.seconds);
  return st;
}

/* ---- teams ---- */

static double sum_seconds(const forecast_part *steps, int begin, int end) {
  double sum = 0;
  for (int s = begin; s < end; s++) sum += steps[s].seconds;
  return sum;
}

/* Layers go round: every team has its turn in each round. */
static status forecast_calibrate(const forecast_todo *todo, const machine *m, const geometry *g, forecast *f) {
  const session *c = todo->c;
  status st = OK;
  int64_t layers = 0;
  forecast_part all[STEP_COUNT] = {0};
  layer_cost k = {.c = c, .m = m, .ranks = g->team, .steps = all};
  for (int64_t layer = c->layer_begin; layer < c->layer_end; layer++)
    if (todo->grams[layer]) {
      TRY(cost_pass(&k, layer, todo->grams[layer]));
      layers++;
    }
  f->steps_a_layer = pass_steps(c->sets, g->team);
  if (layers == 0) goto done;
  int64_t behind = layers - 1; /* the last layer is so many behind the first */
  double steps = f->steps_a_layer, teams = g->teams;
  double times = 1 + (steps < teams ? (double)behind / steps : (double)(behind / g->teams) + (double)(behind % g->teams) / steps);
  for (int s = 0; s < STEP_SOLVE; s++) {
    f->steps[s] = all[s];
    f->steps[s].seconds *= times / (double)layers;
    f->steps[s].busy /= teams;
    add_files(&f->steps[s]);
  }
  double scan = layer_bytes(c) * (double)c->model.arch.layers, seconds = scan / machine_rate(m, RATE_READ_MODEL, 0);
  f->steps[STEP_SCAN] = (forecast_part){.bytes = scan, .seconds = seconds, .busy = seconds, .files = seconds};
  f->calibrate = sum_seconds(f->steps, 0, STEP_SOLVE);
done:
  return st;
}

/* Layers of a view that have something to do, ascending; their number. */
static int64_t list_layers(const session *c, const bool *pending, int64_t *list) {
  int64_t count = 0;
  for (int64_t layer = c->layer_begin; layer < c->layer_end; layer++) {
    bool any = false;
    for (int i = 0; i < c->job.setting_count; i++) any |= pending[layer * c->job.setting_count + i];
    if (any) list[count++] = layer;
  }
  return count;
}

/* The team with the most to do of all. */
static status forecast_solve(const forecast_todo *todo, const machine *m, const geometry *g, forecast *f) {
  status st = OK;
  forecast_part *teams = NULL, *one;
  int64_t *list = NULL;
  TRY(NEW(teams, g->teams * STEP_COUNT, "steps of teams"));
  TRY(NEW(list, todo->c->model.arch.layers, "list of layers"));
  for (int v = 0, followers = 0; v < todo->views->count; v++) {
    const session *c = &todo->views->list[v];
    int whole = c->follower ? followers++ % g->teams : -1;
    const bool *pending = todo->settings[v];
    int64_t begin, end, layers = list_layers(c, pending, list);
    for (int t = 0; t < g->teams; t++) {
      if (whole >= 0 && whole != t) continue;
      deal_range(layers, whole >= 0 ? 1 : g->teams, whole >= 0 ? 0 : t, 1, &begin, &end);
      layer_cost k = {.c = c, .m = m, .ranks = g->team, .steps = teams + t * STEP_COUNT};
      for (int64_t i = begin; i < end; i++) TRY(cost_layer(&k, list[i], pending + list[i] * c->job.setting_count));
    }
  }
  one = teams;
  for (int t = 1; t < g->teams; t++)
    if (sum_seconds(teams + t * STEP_COUNT, STEP_SOLVE, STEP_COUNT) > sum_seconds(one, STEP_SOLVE, STEP_COUNT))
      one = teams + t * STEP_COUNT;
  for (int s = STEP_SOLVE; s < STEP_COUNT; s++) {
    f->steps[s].seconds = one[s].seconds;
    for (int t = 0; t < g->teams; t++) {
      f->steps[s].busy += teams[t * STEP_COUNT + s].busy / g->teams;
      f->steps[s].flops += teams[t * STEP_COUNT + s].flops;
      f->steps[s].bytes += teams[t * STEP_COUNT + s].bytes;
      f->steps[s].files += teams[t * STEP_COUNT + s].files;
    }
    add_files(&f->steps[s]);
  }
  f->solve = sum_seconds(f->steps, STEP_SOLVE, STEP_COUNT);
done:
  FREE(teams);
  FREE(list);
  return st;
}

status forecast_make(const forecast_todo *todo, const machine *m, const geometry *g, forecast *f) {
  status st = OK;
  *f = (forecast){0};
  if (job_uses_full_grams(&todo->c->job) && todo->c->job.grams.origin == GRAMS_CALIBRATED) TRY(forecast_calibrate(todo, m, g, f));
  TRY(forecast_solve(todo, m, g, f));
done:
  return st;
}
