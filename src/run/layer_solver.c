#include "run/layer_solver.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "adapter/adapter.h"
#include "base/clock.h"
#include "base/memory.h"
#include "dist/agree.h"
#include "dist/dlinalg.h"
#include "quant/codes.h"
#include "quant/nf4.h"
#include "quant/optq.h"
#include "run/unit.h"

enum { SLAB_ROWS = 256, RANK_BY_PIVOTS_MOST = 8192 };

/* My rows of a linear: whole slabs of the kernels, which pad what is less. */
static void my_rows(const session *c, int64_t out, int64_t in, int64_t *begin, int64_t *end) {
  int slab = optq_slab((int)in) > magr_slab((int)in) ? optq_slab((int)in) : magr_slab((int)in);
  deal_range(out, c->team.size, c->team.rank, slab, begin, end);
}

/* What is known of one input's Gram. Lies in shared memory, each part filled by one rank. */
typedef struct gram_facts {
  double mean_diag, lambda_max;
  int64_t numerical_rank, tokens, tokens_heldout;
} gram_facts;

/* One input at work: everything below is about its linears only. */
typedef struct input_work {
  layer_solver *s;
  int64_t layer;
  input_id input;
  int64_t m;
  linear_id linears[3];
  int64_t weight_at[3]; /* offset of each linear in w and v, in floats */
  int linear_count;
  gram_facts *facts;
  uint8_t *dead; /* [m] private */
  bool any_dead;
  const bool *pending;
  bool heldout;
  int start_rows; /* leading eigenvectors of H that the adapters of this input start from; 0: none needs them */
  int *group;     /* settings that share one MagR, indices; group_count of them */
  int group_count;
  const float *base; /* what is quantized: MagR's weights or the original */
} input_work;

/* ---- sizes ---- */

typedef struct sizes {
  size_t h, w, arrays, rows, slab, residual, start, private_most;
} sizes;

static const adapter_path solver_path[] = {
    [SOLVER_AUTO] = ADAPTER_AUTO, [SOLVER_DENSE] = ADAPTER_DENSE, [SOLVER_KRYLOV] = ADAPTER_KRYLOV, [SOLVER_GRID] = ADAPTER_DENSE};

/* The adapter of a linear as a question of cost: no numbers, but a Gram. */
static adapter_request adapter_shape(const setting *s, int64_t out, int64_t in) {
  static const float present = 1;
  return (adapter_request){.n = out, .m = in, .h = &present, .rank = s->rank_max, .path = solver_path[s->options.adapter_solver]};
}

/* What it asks of a rank's memory, its residual included. */
static size_t adapter_private(const setting *s, int64_t out, int64_t in) {
  adapter_request q = adapter_shape(s, out, in);
  return (size_t)adapter_bytes(&q) + (size_t)(out * in) * sizeof(float);
}

static int most_start_rows(const job *j, int64_t out, int64_t in) {
  int most = 0;
  for (int k = 0; k < j->setting_count; k++) {
    int rows = adapter_start_rows(out, in, j->settings[k].rank_max);
    if (rows > most) most = rows;
  }
  return most;
}

static sizes measure(const job *j, const arch *a, int ranks) {
  sizes z = {0};
  bool grid_path = false;
  for (int k = 0; k < j->setting_count; k++) grid_path |= j->settings[k].options.adapter_solver == SOLVER_GRID;
  for (int i = 0; i < IN_COUNT; i++) {
    if (!job_uses_input(j, i)) continue;
    size_t m = (size_t)input_width(a, i), all = 0, outs = 0;
    if (m * m > z.h) z.h = m * m;
    if (m * SLAB_ROWS > z.slab) z.slab = m * SLAB_ROWS;
    for (int l = 0; l < LIN_COUNT; l++) {
      int64_t out, in;
      if (!j->target[l] || (int)linear_input(l) != i) continue;
      linear_shape(a, l, &out, &in);
      size_t one = (size_t)(out * in);
      all += one;
      outs += (size_t)out;
      if (grid_path && one > z.residual) z.residual = one;
      size_t start = (size_t)most_start_rows(j, out, in) * (size_t)in;
      if (start > z.start) z.start = start;
      /* the largest moments of one rank: an adapter with its residual, or a slab of OPTQ or MagR with its codes */
      size_t codes = (size_t)((out + ranks - 1) / ranks) * (size_t)in;
      for (int k = 0; k < j->setting_count; k++) {
        const setting *s = &j->settings[k];
        size_t optq = s->method->quantizer == QUANT_OPTQ ? (size_t)optq_bytes(&s->rule, (int)in) : 0;
        size_t mine[] = {adapter_private(s, out, in), codes + optq, s->method->magr ? (size_t)magr_bytes((int)in, s->rule.group) : 0};
        for (int e = 0; e < 3; e++)
          if (mine[e] > z.private_most) z.private_most = mine[e];
      }
      size_t pivots = m <= RANK_BY_PIVOTS_MOST ? m * m * sizeof(double) : 0;
      if (pivots > z.private_most) z.private_most = pivots;
    }
    if (all > z.w) z.w = all;
    if (outs > z.rows) z.rows = outs;
  }
  z.private_most += z.slab * sizeof(float);
  for (int k = 0; k < j->setting_count; k++)
    for (int l = 0; l < LIN_COUNT; l++) {
      solution r = solution_shape(a, l, &j->settings[k].rule, j->settings[k].rank_max);
      if (j->target[l]) z.arrays += solution_place(&r, SOLUTION_ALL, NULL);
    }
  return z;
}

solver_bytes layer_solver_memory(const job *j, const arch *a, int ranks, bool heldout) {
  sizes z = measure(j, a, ranks);
  solver_bytes b = {.private_most = z.private_most};
  b.shared = z.h * (heldout ? 2 : 1) * sizeof(float) + z.h * sizeof(double) + 2 * z.w * sizeof(float) + z.arrays +
             z.rows * 2 * sizeof(double) + z.residual * sizeof(float) + z.start * sizeof(double);
  return b;
}

double layer_solver_flops(const job *j, const arch *a) {
  double flops = 0;
  for (int l = 0; l < LIN_COUNT; l++) {
    if (!j->target[l]) continue;
    int64_t out, in;
    linear_shape(a, l, &out, &in);
    double product = (double)out * (double)in * (double)in, sets = j->has_heldout ? 2 : 1;
    flops += product * sets; /* the reference */
    for (int k = 0; k < j->setting_count; k++) {
      const setting *s = &j->settings[k];
      bool repeated = false; /* MagR of an earlier setting serves this one too */
      for (int e = 0; e < k; e++)
        repeated |= j->settings[e].method->magr && j->settings[e].rule.group == s->rule.group &&
                    j->settings[e].options.magr_alpha == s->options.magr_alpha;
      if (s->method->magr && !repeated) flops += 2 * product * s->options.magr_K;
      if (s->method->quantizer == QUANT_OPTQ) flops += product;
      adapter_request q = adapter_shape(s, out, in);
      flops += product * sets + adapter_flops(&q);
    }
  }
  return flops;
}

/* ---- life ---- */

status layer_solver_new(session *c, layer_solver *s) {
  status st = OK;
  sizes z = measure(&c->job, &c->model.arch, c->team.size);
  *s = (layer_solver){.c = c};
  const team *t = &c->team;
  TRY(shared_new(t, z.h * sizeof(float), "a Gram", &s->h));
  if (c->sets[SET_HELDOUT]) TRY(shared_new(t, z.h * sizeof(float), "a held-out Gram", &s->h_heldout));
  TRY(shared_new(t, z.h * sizeof(double), "the factor of a Gram", &s->u));
  TRY(shared_new(t, z.w * sizeof(float), "weights of one input's linears", &s->w));
  TRY(shared_new(t, z.w * sizeof(float), "MagR's weights", &s->v));
  TRY(shared_new(t, z.residual * sizeof(float), "a residual", &s->residual));
  TRY(shared_new(t, z.start * sizeof(double), "leading eigenvectors of a Gram", &s->start));
  TRY(shared_new(t, z.arrays, "results of a layer", &s->arrays));
  TRY(shared_new(t, z.rows * 2 * sizeof(double), "losses of rows", &s->rows));
  TRY(shared_new(t, sizeof(gram_facts), "facts of a Gram", &s->facts));
  st = NEW(s->slab, z.slab, "a slab of residuals");
  if (st == OK) st = NEW(s->results, c->job.setting_count * LIN_COUNT, "results");
  TRY(agree(t->comm, st));
  char *at = s->arrays.base;
  for (int k = 0; k < c->job.setting_count; k++)
    for (int l = 0; l < LIN_COUNT; l++)
      if (c->job.target[l]) {
        const setting *which = &c->job.settings[k];
        result *r = layer_result(s, k, l);
        *r = (result){which, solution_shape(&c->model.arch, l, &which->rule, which->rank_max)};
        at += solution_place(&r->s, SOLUTION_ALL, at);
      }
done:
  if (st != OK) layer_solver_free(s);
  return st;
}

void layer_solver_free(layer_solver *s) {
  shared *held[] = {&s->h, &s->h_heldout, &s->u, &s->w, &s->v, &s->residual, &s->arrays, &s->rows, &s->facts, &s->start};
  for (size_t i = 0; i < sizeof held / sizeof *held; i++) shared_free(held[i]);
  FREE(s->slab);
  FREE(s->results);
  *s = (layer_solver){0};
}

/* ---- input: Grams, facts, weights ---- */

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

static status find_start(const input_work *w) {
  double *start = NULL;
  char where[96];
  snprintf(where, sizeof where, "model.layers.%lld, %s", (long long)w->layer, input_name(w->input));
  status st = adapter_start(where, w->m, w->s->h.base, w->start_rows, &start);
  if (st == OK) memcpy(w->s->start.base, start, (size_t)w->start_rows * (size_t)w->m * sizeof *start);
  FREE(start);
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
    sum += h[k * w->m + k];
    w->dead[k] = h[k * w->m + k] == 0;
    w->any_dead |= w->dead[k];
  }
  if (c->team.rank == 0) w->facts->mean_diag = sum / (double)w->m;
  if (c->team.rank == turn++ % c->team.size) st = count_rank(w);
  if (wants_lambda && c->team.rank == turn++ % c->team.size && st == OK) st = magr_lambda_max((int)w->m, h, &w->facts->lambda_max);
  if (w->start_rows && c->team.rank == turn++ % c->team.size && st == OK) st = find_start(w);
  st = agree(c->team.comm, st);
  team_barrier(&c->team);
  return st;
}

static status load_weights(const input_work *w) {
  session *c = w->s->c;
  status st = OK;
  for (int k = 0; k < w->linear_count && st == OK; k++) {
    tensor_ref tensor = checkpoint_linear(&c->model, w->layer, w->linears[k]);
    int64_t begin, end;
    deal_range(tensor.rows, c->team.size, c->team.rank, 1, &begin, &end);
    st = tensor_rows(&tensor, begin, end, (float *)w->s->w.base + w->weight_at[k] + begin * w->m);
    tensor_done_with(&tensor);
  }
  st = agree(c->team.comm, st);
  team_barrier(&c->team);
  return st;
}

static const float *weights_of(const input_work *w, int k) { return (const float *)w->s->w.base + w->weight_at[k]; }

static int index_of(const input_work *w, linear_id l) {
  for (int k = 0; k < w->linear_count; k++)
    if (w->linears[k] == l) return k;
  return -1;
}

/* ---- quantize ---- */

static bool same_magr(const setting *a, const setting *b) {
  if (a->method->magr != b->method->magr) return false;
  return !a->method->magr || (a->options.magr_alpha == b->options.magr_alpha && a->options.magr_K == b->options.magr_K &&
                              a->options.magr_solver == b->options.magr_solver && a->rule.group == b->rule.group);
}

static bool same_factor(const setting *a, const setting *b) {
  return a->method->quantizer == QUANT_OPTQ && b->method->quantizer == QUANT_OPTQ && a->options.damping == b->options.damping &&
         a->options.optq_order_act == b->options.optq_order_act && a->options.damping_escalate == b->options.damping_escalate;
}

static status run_magr(input_work *w, const setting *s) {
  session *c = w->s->c;
  status st = OK;
  double start = clock_now();
  if (!(w->facts->lambda_max > 0)) { /* an input that is never used: nothing to trade the maxima against */
    w->base = w->s->w.base;
    return OK;
  }
  w->base = w->s->v.base;
  for (int k = 0; k < w->linear_count && st == OK; k++) {
    int64_t out, in, begin, end;
    linear_shape(&c->model.arch, w->linears[k], &out, &in);
    my_rows(c, out, in, &begin, &end);
    magr_request q = {.solver = s->options.magr_solver,
                      .steps = s->options.magr_K,
                      .alpha = s->options.magr_alpha,
                      .group = s->rule.group,
                      .rows = (int)(end - begin),
                      .width = (int)in,
                      .w = weights_of(w, k) + begin * in,
                      .h = w->s->h.base,
                      .lambda_max = w->facts->lambda_max};
    if (end > begin) st = magr(&q, (float *)w->s->v.base + w->weight_at[k] + begin * in, NULL);
    q.rows = (int)out; /* the team's work, not mine */
    w->s->spent.flops += magr_flops(&q);
  }
  st = agree(c->team.comm, st);
  team_barrier(&c->team);
  w->s->spent.magr += clock_now() - start;
  return st;
}

static status factor(input_work *w, const setting *s, const int32_t *order, double *ridge) {
  session *c = w->s->c;
  char where[96];
  double start = clock_now();
  snprintf(where, sizeof where, "model.layers.%lld, %s", (long long)w->layer, input_name(w->input));
  status st = E_NUMERICS;
  *ridge = s->options.damping * w->facts->mean_diag;
  for (int attempt = 0; attempt <= s->options.damping_escalate && st == E_NUMERICS; attempt++) {
    if (attempt) {
      status_clear();
      *ridge *= 10;
    }
    st = reverse_cholesky(where, &c->team, w->m, w->s->h.base, *ridge, order, w->s->u.base);
  }
  w->s->spent.factor += clock_now() - start;
  w->s->spent.flops += (double)w->m * (double)w->m * (double)w->m / 3;
  return st;
}

#ifdef CLOQWORK_DEBUG_CHECKS
/* The identity of OPTQ on my rows: tr(E Hd E^T) = sum (v - q)^2 U_jj^2, E against what was quantized. Dead columns count nowhere in the sum. */
static status check_optq(const input_work *w, const result *r, const float *x, int64_t begin, int64_t end, double ridge, double loss) {
  status st = OK;
  float *e = NULL;
  double sum;
  TRY(NEW(e, (end - begin) * r->s.in, "residual of the identity"));
  solution_residual(&r->s, x, begin, end, e);
  TRY(adapter_trace(r->s.in, e, w->s->h.base, 0, end - begin, NULL, &sum));
  for (int64_t k = 0; k < (end - begin) * r->s.in; k++)
    if (!w->dead[k % r->s.in]) sum += ridge * (double)e[k] * (double)e[k];
  if (!(fabs(sum - loss) <= 1e-5 * fabs(loss)))
    st = fail(E_NUMERICS, "%s: identity of OPTQ: expected %.12g, found %.12g", r->setting->name, loss, sum);
done:
  FREE(e);
  return st;
}
#endif

/* My rows of one (setting, linear): grid, codes, packed. */
static status quantize_rows(input_work *w, const setting *s, int k, result *r, const int32_t *order, double ridge) {
  session *c = w->s->c;
  status st = OK;
  uint8_t *codes = NULL;
  int64_t begin, end;
  my_rows(c, r->s.out, r->s.in, &begin, &end);
  int rows = (int)(end - begin), in = (int)r->s.in;
  const float *x = w->base + w->weight_at[k] + begin * in;
  code_grid codebook = grid_from((code_grid){.scales = r->s.scales, .zeros = r->s.zeros}, begin * r->s.groups);
  double start = clock_now(), loss = 0;
  if (rows == 0) return OK;
  TRY(NEW(codes, (size_t)rows * (size_t)in, "codes of my rows"));
  int64_t tiny;
  TRY(grid_fit(&s->rule, rows, in, x, in, NULL, codebook, &tiny));
  __atomic_add_fetch(&r->s.facts->tiny_scales, tiny, __ATOMIC_RELAXED);
  if (s->method->quantizer == QUANT_OPTQ) {
    optq_request q = {.rule = s->rule,
                      .rows = rows,
                      .width = in,
                      .w = x,
                      .ldw = in,
                      .u = w->s->u.base,
                      .order = order,
                      .dead = w->any_dead ? w->dead : NULL,
                      .dead_rtn = s->options.optq_dead_rtn,
                      .grid = codebook};
    TRY(optq(&q, codes, &loss));
  } else {
    grid_round(&s->rule, rows, in, x, in, codebook, codes);
  }
  codes_pack(s->rule.bits, rows, in, codes, r->s.codes + begin * r->s.words);
#ifdef CLOQWORK_DEBUG_CHECKS
  if (s->method->quantizer == QUANT_OPTQ) TRY(check_optq(w, r, w->base + w->weight_at[k], begin, end, ridge, loss));
#endif
  if (c->team.rank == 0) {
    r->s.facts->quantize_seconds = clock_now() - start;
    r->s.facts->damping_used = s->method->quantizer == QUANT_OPTQ ? ridge : 0;
  }
done:
  FREE(codes);
  return st;
}

/* NF4 of one (setting, linear). Collective: double quantization needs absmax of all rows, and the codes come after it. */
static status quantize_nf4(input_work *w, const setting *s, int k, result *r) {
  session *c = w->s->c;
  status st = OK;
  uint8_t *codes = NULL;
  int64_t begin, end;
  solution *to = &r->s;
  my_rows(c, to->out, to->in, &begin, &end);
  int rows = (int)(end - begin), in = (int)to->in, group = s->rule.group;
  const float *x = w->base + w->weight_at[k] + begin * in;
  float *absmax = to->absmax + begin * to->groups;
  double start = clock_now();
  to->loaded = solution_loaded(checkpoint_linear(&c->model, w->layer, w->linears[k]).tensor->type);
  st = NEW(codes, (size_t)rows * (size_t)in, "codes of my rows");
  if (st == OK) st = nf4_absmax(group, rows, in, x, in, absmax);
  TRY(agree(c->team.comm, st));
  if (s->rule.nested) {
    team_barrier(&c->team);
    if (c->team.rank == 0) nf4_nest(to->out * to->groups, to->absmax, to->absmax_codes, to->nested_absmax, to->nested_offset);
    team_barrier(&c->team);
  }
  nf4_round(group, rows, in, x, in, absmax, codes);
  codes_pack(s->rule.bits, rows, in, codes, to->codes + begin * to->words);
  if (c->team.rank == 0) to->facts->quantize_seconds = clock_now() - start;
done:
  FREE(codes);
  return st;
}

/* Descending diagonal, ties in natural order: the processing order of act. */
static void order_by_diagonal(int64_t m, const float *h, int32_t *order, int32_t *buffer) {
  for (int32_t k = 0; k < m; k++) order[k] = k;
  for (int64_t width = 1; width < m; width *= 2) { /* merge sort: stable, and the same on every rank */
    for (int64_t a = 0; a < m; a += 2 * width) {
      int64_t b = a + width < m ? a + width : m, end = a + 2 * width < m ? a + 2 * width : m, i = a, j = b, at = a;
      while (i < b || j < end) {
        bool left = j >= end || (i < b && h[order[i] * m + order[i]] >= h[order[j] * m + order[j]]);
        buffer[at++] = left ? order[i++] : order[j++];
      }
    }
    memcpy(order, buffer, (size_t)m * sizeof *order);
  }
}

/* All settings of the group whose factor equals that of setting `first`, or that alone when it needs none. */
static status quantize_with(input_work *w, int first, bool *handled) {
  session *c = w->s->c;
  const setting *lead = &c->job.settings[w->group[first]];
  status st = OK;
  int32_t *order = NULL;
  double ridge = 0;
  if (lead->method->quantizer == QUANT_OPTQ) {
    if (lead->options.optq_order_act) {
      st = NEW(order, 2 * w->m, "order of columns");
      TRY(agree(c->team.comm, st));
      order_by_diagonal(w->m, w->s->h.base, order, order + w->m);
    }
    TRY(factor(w, lead, order, &ridge));
  }
  double start = clock_now();
  for (int g = first; g < w->group_count && st == OK; g++) {
    const setting *s = &c->job.settings[w->group[g]];
    if (handled[g] || (g != first && !same_factor(lead, s))) continue;
    handled[g] = true;
    for (int k = 0; k < w->linear_count && st == OK; k++) {
      result *r = layer_result(w->s, w->group[g], w->linears[k]);
      st = s->method->quantizer == QUANT_NF4 ? quantize_nf4(w, s, k, r) : quantize_rows(w, s, k, r, order, ridge);
      w->s->spent.flops += s->method->quantizer == QUANT_OPTQ ? optq_flops(r->s.out, r->s.in) : 0;
    }
  }
  st = agree(c->team.comm, st);
  team_barrier(&c->team);
  w->s->spent.quantize += clock_now() - start;
done:
  FREE(order);
  return st;
}

/* ---- losses of residuals ---- */

/* tr(E H E^T) for the Gram h: my rows' terms into shared memory, then the sum in the order of rows on every rank. r NULL: E = W. */
static status team_trace(input_work *w, int k, const result *r, const float *h, double *sum) {
  session *c = w->s->c;
  status st = OK;
  int64_t out, in, begin, end;
  double *rows = w->s->rows.base, part;
  linear_shape(&c->model.arch, w->linears[k], &out, &in);
  my_rows(c, out, in, &begin, &end);
  for (int64_t at = begin; at < end && st == OK; at += SLAB_ROWS) {
    int64_t upto = at + SLAB_ROWS < end ? at + SLAB_ROWS : end;
    const float *e = weights_of(w, k) + at * in;
    if (r) {
      solution_residual(&r->s, weights_of(w, k), at, upto, w->s->slab);
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

static status all_traces(input_work *w, const double reference[3][2]) {
  session *c = w->s->c;
  status st = OK;
  double start = clock_now();
  for (int g = 0; g < w->group_count; g++)
    for (int k = 0; k < w->linear_count; k++) {
      result *r = layer_result(w->s, w->group[g], w->linears[k]);
      double trace, heldout = NAN;
      TRY(team_trace(w, k, r, w->s->h.base, &trace));
      if (w->heldout) TRY(team_trace(w, k, r, w->s->h_heldout.base, &heldout));
      if (c->team.rank == 0) {
        r->s.facts->trace = trace;
        r->s.facts->trace_heldout = heldout;
        r->s.facts->reference = reference[k][0];
        r->s.facts->reference_heldout = reference[k][1];
        r->s.facts->numerical_rank = w->facts->numerical_rank;
        r->s.facts->tokens = w->facts->tokens;
      }
    }
  team_barrier(&c->team);
done:
  w->s->spent.trace += clock_now() - start;
  return st;
}

/* ---- adapters ---- */

static void name_result(const input_work *w, const result *r, char where[256]) {
  snprintf(where, 256, "model.layers.%lld.%s, %s", (long long)w->layer, linear_path(r->s.linear), r->setting->name);
}

static void request_of(const input_work *w, const result *r, const char *where, const float *e, adapter_request *q) {
  const options *o = &r->setting->options;
  bool plain = !o->residual_magr && o->adapter_damping == 0;
  int rows = adapter_start_rows(r->s.out, r->s.in, r->setting->rank_max);
  *q = (adapter_request){.where = where,
                         .n = r->s.out,
                         .m = r->s.in,
                         .e = e,
                         .h = w->s->h.base,
                         .rank = r->setting->rank_max,
                         .trace = plain ? r->s.facts->trace : NAN,
                         .tolerance = o->adapter_tolerance,
                         .path = solver_path[o->adapter_solver],
                         .start = rows ? w->s->start.base : NULL,
                         .start_rows = rows < w->start_rows ? rows : w->start_rows};
}

/* Factors and values to their place; the last value is what all eigenvalues beyond rank_max sum to, so that the tail at r is the sum from r on. */
static void keep_adapter(result *r, const adapter *a) {
  size_t rank = (size_t)a->rank;
  memcpy(r->s.lora_a, a->a, rank * (size_t)r->s.in * sizeof(float));
  memcpy(r->s.lora_b, a->b, rank * (size_t)r->s.out * sizeof(float));
  memcpy(r->s.values, a->values, rank * sizeof(double));
  double rest = a->trace;
  for (size_t k = 0; k < rank; k++) rest -= a->values[k];
  r->s.values[rank] = rest;
}

static status solve_locally(input_work *w, result *r) {
  status st = OK;
  float *e = NULL;
  adapter a = {0};
  adapter_request q;
  char where[256];
  double start = clock_now();
  name_result(w, r, where);
  TRY(NEW(e, r->s.out * r->s.in, "a residual"));
  solution_residual(
      &r->s, r->setting->options.residual_magr ? w->base + w->weight_at[index_of(w, r->s.linear)] : weights_of(w, index_of(w, r->s.linear)),
      0, r->s.out, e);
  request_of(w, r, where, e, &q);
  TRY(adapter_local(&q, &a));
  keep_adapter(r, &a);
  r->s.facts->adapter_seconds = clock_now() - start;
done:
  adapter_free(&a);
  FREE(e);
  return st;
}

static status solve_on_grid(input_work *w, result *r) {
  session *c = w->s->c;
  status st = OK;
  adapter a = {0};
  adapter_request q;
  char where[256];
  int64_t begin, end;
  double start = clock_now();
  int k = index_of(w, r->s.linear);
  name_result(w, r, where);
  deal_range(r->s.out, c->team.size, c->team.rank, 1, &begin, &end);
  solution_residual(&r->s, r->setting->options.residual_magr ? w->base + w->weight_at[k] : weights_of(w, k), begin, end,
                    (float *)w->s->residual.base + begin * r->s.in);
  team_barrier(&c->team);
  request_of(w, r, where, w->s->residual.base, &q);
  TRY(adapter_grid(&q, &c->grid, &a));
  if (c->team.rank == 0) {
    keep_adapter(r, &a);
    r->s.facts->adapter_seconds = clock_now() - start;
  }
  team_barrier(&c->team);
done:
  adapter_free(&a);
  return st;
}

static status finish_result(input_work *w, result *r) {
  status st = OK;
  float *e = NULL;
  TRY(NEW(e, r->s.out * r->s.in, "a residual"));
  solution_residual(&r->s, weights_of(w, index_of(w, r->s.linear)), 0, r->s.out, e);
  TRY(adapter_losses(r->s.out, r->s.in, e, w->s->h.base, r->s.lora_b, r->s.lora_a, r->setting->rank_max, r->s.facts->trace, r->s.loss));
  if (w->heldout)
    TRY(adapter_losses(r->s.out, r->s.in, e, w->s->h_heldout.base, r->s.lora_b, r->s.lora_a, r->setting->rank_max,
                       r->s.facts->trace_heldout, r->s.loss_heldout));
  TRY(solution_fingerprint(&r->s, r->s.facts->base_fingerprint));
done:
  FREE(e);
  return st;
}

/* Calls work on my share of the group's results, dealt by flops. */
static status deal_results(input_work *w, bool (*chosen)(const setting *, double), double ridge, status (*work)(input_work *, result *)) {
  session *c = w->s->c;
  status st = OK;
  int count = w->group_count * w->linear_count, *owner = NULL;
  double *cost = NULL;
  st = NEW(owner, count, "dealing of matrices");
  if (st == OK) st = NEW(cost, count, "dealing of matrices");
  TRY(agree(c->team.comm, st));
  for (int i = 0; i < count; i++) {
    result *r = layer_result(w->s, w->group[i / w->linear_count], w->linears[i % w->linear_count]);
    adapter_request q;
    request_of(w, r, "", NULL, &q);
    cost[i] = chosen(r->setting, ridge) ? adapter_flops(&q) : 0;
  }
  st = deal_tasks(cost, count, c->team.size, owner);
  for (int i = 0; i < count && st == OK; i++) {
    result *r = layer_result(w->s, w->group[i / w->linear_count], w->linears[i % w->linear_count]);
    if (owner[i] == c->team.rank && chosen(r->setting, ridge)) st = work(w, r);
  }
  st = agree(c->team.comm, st);
  team_barrier(&c->team);
done:
  FREE(cost);
  FREE(owner);
  return st;
}

static bool any_setting(const setting *s, double ridge) {
  (void)s;
  (void)ridge;
  return true;
}

static bool local_with_ridge(const setting *s, double ridge) {
  return s->options.adapter_solver != SOLVER_GRID && s->options.adapter_damping == ridge;
}

/* The adapter's metric may be damped: the ridge stands on the shared diagonal while those settings are solved. */
static void put_diagonal(const input_work *w, const float *diagonal, double ridge) {
  float *h = w->s->h.base;
  team_barrier(&w->s->c->team);
  if (w->s->c->team.rank == 0)
    for (int64_t k = 0; k < w->m; k++) h[k * w->m + k] = (float)(diagonal[k] + ridge * w->facts->mean_diag);
  team_barrier(&w->s->c->team);
}

static status all_adapters(input_work *w) {
  session *c = w->s->c;
  status st = OK;
  float *diagonal = NULL;
  const float *h = w->s->h.base;
  double start = clock_now();
  st = NEW(diagonal, w->m, "a diagonal");
  TRY(agree(c->team.comm, st));
  for (int64_t k = 0; k < w->m; k++) diagonal[k] = h[k * w->m + k];
  for (int g = 0; g < w->group_count; g++) {
    double ridge = c->job.settings[w->group[g]].options.adapter_damping;
    bool seen = false;
    for (int e = 0; e < g; e++) seen |= c->job.settings[w->group[e]].options.adapter_damping == ridge;
    if (seen) continue;
    if (ridge > 0) put_diagonal(w, diagonal, ridge);
    TRY(deal_results(w, local_with_ridge, ridge, solve_locally));
    for (int e = g; e < w->group_count; e++) {
      const setting *s = &c->job.settings[w->group[e]];
      if (s->options.adapter_solver != SOLVER_GRID || s->options.adapter_damping != ridge) continue;
      for (int k = 0; k < w->linear_count; k++) TRY(solve_on_grid(w, layer_result(w->s, w->group[e], w->linears[k])));
    }
    if (ridge > 0) put_diagonal(w, diagonal, 0);
  }
  w->s->spent.adapter += clock_now() - start;
  start = clock_now();
  TRY(deal_results(w, any_setting, 0, finish_result));
  w->s->spent.losses += clock_now() - start;
done:
  FREE(diagonal);
  return st;
}

/* ---- the pipeline of one input ---- */

static status solve_group(input_work *w, const double reference[3][2]) {
  session *c = w->s->c;
  status st = OK;
  const setting *lead = &c->job.settings[w->group[0]];
  bool *handled = NULL;
  st = NEW(handled, w->group_count, "settings done");
  TRY(agree(c->team.comm, st));
  w->base = w->s->w.base;
  if (lead->method->magr) TRY(run_magr(w, lead));
  for (int g = 0; g < w->group_count; g++)
    if (!handled[g]) TRY(quantize_with(w, g, handled));
  TRY(all_traces(w, reference));
  TRY(all_adapters(w));
done:
  FREE(handled);
  return st;
}

static status open_input(input_work *w) {
  session *c = w->s->c;
  status st = OK;
  bool wants_lambda = false;
  double start = clock_now();
  int64_t at = 0;
  w->m = input_width(&c->model.arch, w->input);
  for (int l = 0; l < LIN_COUNT; l++) {
    int64_t out, in;
    if (!c->job.target[l] || linear_input(l) != w->input) continue;
    linear_shape(&c->model.arch, l, &out, &in);
    int rows = most_start_rows(&c->job, out, in);
    if (rows > w->start_rows) w->start_rows = rows;
    w->weight_at[w->linear_count] = at;
    w->linears[w->linear_count++] = l;
    at += out * in;
  }
  for (int k = 0; k < c->job.setting_count; k++) wants_lambda |= w->pending[k] && c->job.settings[k].method->magr;
  w->facts = w->s->facts.base;
  w->heldout = c->sets[SET_HELDOUT] != NULL;
  st = NEW(w->dead, w->m, "dead columns");
  int64_t tokens = 0, tokens_heldout = 0;
  if (st == OK) st = unit_read_gram(c, SET_CALIBRATION, w->layer, w->input, c->team.rank, c->team.size, w->s->h.base, &tokens);
  if (st == OK && w->heldout)
    st = unit_read_gram(c, SET_HELDOUT, w->layer, w->input, c->team.rank, c->team.size, w->s->h_heldout.base, &tokens_heldout);
  if (c->team.rank == 0) *w->facts = (gram_facts){.tokens = tokens, .tokens_heldout = tokens_heldout};
  TRY(agree(c->team.comm, st));
  team_barrier(&c->team);
  TRY(gather_facts(w, wants_lambda));
  TRY(load_weights(w));
done:
  w->s->spent.load += clock_now() - start;
  return st;
}

static status solve_input(input_work *w) {
  session *c = w->s->c;
  status st = OK;
  bool *left = NULL;
  double reference[3][2];
  st = NEW(w->group, c->job.setting_count, "settings");
  if (st == OK) st = NEW(left, c->job.setting_count, "settings");
  TRY(agree(c->team.comm, st));
  TRY(open_input(w));
  double start = clock_now();
  for (int k = 0; k < w->linear_count; k++) {
    TRY(team_trace(w, k, NULL, w->s->h.base, &reference[k][0]));
    reference[k][1] = NAN;
    if (w->heldout) TRY(team_trace(w, k, NULL, w->s->h_heldout.base, &reference[k][1]));
  }
  w->s->spent.trace += clock_now() - start;
  memcpy(left, w->pending, (size_t)c->job.setting_count * sizeof *left);
  for (int k = 0; k < c->job.setting_count; k++) {
    if (!left[k]) continue;
    w->group_count = 0;
    for (int e = k; e < c->job.setting_count; e++)
      if (left[e] && same_magr(&c->job.settings[k], &c->job.settings[e])) {
        w->group[w->group_count++] = e;
        left[e] = false;
      }
    TRY(solve_group(w, reference));
  }
done:
  FREE(left);
  FREE(w->group);
  FREE(w->dead);
  return st;
}

status layer_solve(layer_solver *s, int64_t layer, const bool *pending, pass_progress progress, void *context) {
  session *c = s->c;
  status st = OK;
  s->spent = (stage_seconds){0};
  double start = clock_now();
#ifdef CLOQWORK_DEBUG_CHECKS
  TRY(agree_same(c->team.comm, "the layer to solve", &layer, sizeof layer));
  TRY(agree_same(c->team.comm, "the settings to solve", pending, (size_t)c->job.setting_count * sizeof *pending));
#endif
  team_barrier(&c->team);
  if (c->team.rank == 0)
    for (int k = 0; k < c->job.setting_count; k++)
      for (int l = 0; l < LIN_COUNT; l++)
        if (pending[k] && c->job.target[l]) *layer_result(s, k, l)->s.facts = (solution_facts){0};
  team_barrier(&c->team);
  for (int i = 0; i < IN_COUNT; i++) {
    if (!c->wanted[i]) continue;
    input_work w = {.s = s, .layer = layer, .input = i, .pending = pending};
    TRY(solve_input(&w));
    if (progress) progress(context, (i + 1.0) / IN_COUNT, 1e-9 * s->spent.flops / (clock_now() - start));
  }
done:
  return st;
}
