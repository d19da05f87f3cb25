/* Methods that make codes and adapter together, for one rank: one matrix on one rank of the team. */
#include <stdio.h>
#include <string.h>

#include "adapter/zero.h"
#include "base/clock.h"
#include "base/memory.h"
#include "joint/alternation.h"
#include "joint/l4q.h"
#include "layer/work.h"
#include "quant/codes.h"
#include "quant/nf.h"
#include "quant/optq.h"

/* The whole matrix being rounded again and again: codes and grid of the latest round, and where the kept ones go. */
typedef struct joint_codes {
  const rounding *r;
  solution *to;   /* the result */
  solution draft; /* arrays of the base, in private memory, with facts of its own */
  solution_facts facts;
  char *memory;
  uint8_t *codes; /* (out, in) one byte each */
  bool refit;     /* the grid is fitted to every target; else to W, once */
  bool fitted;
} joint_codes;

static status joint_codes_new(const rounding *r, solution *to, bool refit, joint_codes *j) {
  status st = OK;
  *j = (joint_codes){.r = r, .to = to, .refit = refit};
  j->draft = *to;
  j->draft.memory = NULL;
  j->draft.facts = &j->facts;
  solution measured = j->draft;
  TRY(NEW(j->memory, solution_place(&measured, SOLUTION_BASE, NULL), "codes of a round"));
  solution_place(&j->draft, SOLUTION_BASE, j->memory);
  TRY(NEW(j->codes, to->out * to->in, "codes of a round"));
done:
  return st;
}

static void joint_codes_free(joint_codes *j) {
  FREE(j->memory);
  FREE(j->codes);
}

static status round_target(void *context, const float *target, float *q) {
  joint_codes *j = context;
  solution *d = &j->draft;
  status st = OK;
  int rows = (int)d->out, in = (int)d->in;
  if (d->rule.kind == GRID_NF) {
    TRY(nf_absmax(d->rule.group, rows, in, target, in, d->absmax));
    if (d->rule.nested) nf_nest(d->out * d->groups, d->absmax, d->absmax_codes, d->nested_absmax, d->nested_offset);
    nf_round(d->rule.bits, d->rule.group, rows, in, target, in, d->absmax, j->codes);
  } else {
    if (j->refit) d->facts->tiny_scales = 0;
    TRY(round_uniform(j->r, &d->rule, rows, in, target, NULL, j->refit || !j->fitted, solution_code_grid(d, 0), j->codes,
                      &d->facts->tiny_scales));
    j->fitted = true;
  }
  codes_pack_rule(&d->rule, rows, in, j->codes, d->codes);
  solution_values(d, 0, d->out, q);
done:
  return st;
}

static void keep_codes(void *context) {
  joint_codes *j = context;
  solution_copy(&j->draft, SOLUTION_BASE, j->to);
}

/* ---- alternations ---- */

/* The loop of a setting as a question; h: present or not decides costs too. */
static alternation_request alternation_of(const setting *s, int rank, int64_t out, int64_t in, const float *h) {
  const options *o = &s->options;
  initialization init = s->method->init;
  bool on_gram = init == INIT_CALDERA || init == INIT_ODLRI;
  alternation_request q = {.fit = adapter_shape(s, rank, out, in), .judge = h};
  q.fit.h = on_gram ? h : NULL;
  q.rounds = on_gram ? o->joint_rounds : init == INIT_LOFTQ ? o->loftq_T : 0;
  q.keep_best = on_gram;
  q.start = init == INIT_LOFTQ       ? START_ZERO
            : init == INIT_LASQ_W    ? START_WEIGHT
            : init == INIT_LASQ_Q    ? START_ROUNDED
            : init == INIT_ODLRI     ? START_OUTLIERS
            : o->joint_adapter_first ? START_WEIGHT
                                     : START_ZERO;
  q.base_first = init == INIT_LASQ_Q && o->lasq_base_q0;
  return q;
}

static void keep_factors(const setting *s, const alternation *a, solution *to) {
  keep_adapter(to, &a->factors);
  if (s->options.loftq_parity_scale)
    for (int64_t k = 0; k < to->rank * to->out; k++) to->lora_b[k] *= 16.0f / (float)to->rank;
  for (int k = 0; k < to->round_count; k++) to->rounds[k] = a->losses[k];
  to->facts->round = a->kept + 1;
}

static status solve_alternation(input_work *w, const rounding *r, int p, int k, const char *where) {
  status st = OK;
  const setting *s = r->setting;
  solution *to = result_of(w, p, k);
  joint_codes codes = {0};
  alternation a = {0};
  alternation_request q = alternation_of(s, to->rank, to->out, to->in, w->s->h.base);
  bool refit = s->method->init != INIT_CALDERA && s->method->init != INIT_ODLRI ? true : s->options.joint_refit;
  TRY(joint_codes_new(r, to, refit, &codes));
  if (!refit) { /* the grid is W's, whatever is rounded first */
    TRY(fit_uniform(r, &to->rule, (int)to->out, (int)to->in, weights_of(w, k), solution_code_grid(&codes.draft, 0),
                    &codes.facts.tiny_scales));
    codes.fitted = true;
  }
  int rows = q.fit.h ? adapter_start_rows(to->out, to->in, to->rank) : 0;
  q.fit.where = where;
  q.fit.start = rows ? w->s->start.base : NULL;
  q.fit.start_rows = rows < w->start_rows ? rows : w->start_rows;
  q.w = weights_of(w, k);
  q.round = round_target;
  q.keep = keep_codes;
  q.context = &codes;
  TRY(alternate(&q, &a));
  keep_factors(s, &a, to);
done:
  alternation_free(&a);
  joint_codes_free(&codes);
  return st;
}

/* ---- l4q ---- */

static l4q_request l4q_of(const setting *s, int rank, int64_t out, int64_t in) {
  return (l4q_request){.n = out,
                       .m = in,
                       .rule = s->rule,
                       .rank = rank,
                       .steps = s->options.l4q_steps,
                       .rate_adapter = L4Q_RATE_ADAPTER,
                       .rate_grid = L4Q_RATE_GRID,
                       .seed = (uint64_t)s->options.seed};
}

/* The adapter is merged: what is left of it is the start of another one, A random and B = 0. */
static status leave_zero(const char *where, const char *name, const setting *s, solution *to) {
  status st = OK;
  adapter a = {0};
  adapter_request q = {.where = where, .n = to->out, .m = to->in, .rank = to->rank, .trace = 0};
  TRY(adapter_zero(&q, name, (uint64_t)s->options.seed, &a));
  keep_adapter(to, &a); /* the last value is the whole loss: adapters.c */
done:
  adapter_free(&a);
  return st;
}

static status solve_l4q(input_work *w, const rounding *r, int p, int k, const char *where) {
  status st = OK;
  const setting *s = r->setting;
  solution *to = result_of(w, p, k);
  uint8_t *codes = NULL;
  double *losses = NULL;
  int best;
  char name[128];
  code_grid g = solution_code_grid(to, 0);
  l4q_request q = l4q_of(s, to->rank, to->out, to->in);
  snprintf(name, sizeof name, "model.layers.%lld.%s", (long long)w->layer, linear_path(w->linears[k]));
  q.where = where;
  q.name = name;
  q.rule = to->rule;
  q.w = weights_of(w, k);
  q.h = w->s->h.base;
  TRY(NEW(codes, to->out * to->in, "codes"));
  TRY(NEW(losses, q.steps + 1, "losses of steps"));
  TRY(round_uniform(r, &to->rule, (int)to->out, (int)to->in, q.w, NULL, true, g, codes, &to->facts->tiny_scales));
  TRY(l4q(&q, g, codes, losses, &best));
  codes_pack_rule(&to->rule, (int)to->out, (int)to->in, codes, to->codes);
  memcpy(to->rounds, losses, (size_t)to->round_count * sizeof *losses);
  to->facts->round = best + 1;
  TRY(leave_zero(where, name, s, to));
done:
  FREE(codes);
  FREE(losses);
  return st;
}

/* ---- all ---- */

static bool is_l4q(const setting *s) { return s->method->init == INIT_L4Q; }

int joint_rounds(const setting *s) {
  if (!setting_joint(s)) return 0;
  alternation_request q = alternation_of(s, 1, 1, 1, NULL);
  return is_l4q(s) ? s->options.l4q_steps + 1 : q.rounds ? q.rounds : 1;
}

status joint_solve(input_work *w, const rounding *r, int p, int k) {
  char where[256];
  double start = clock_now();
  solution *to = result_of(w, p, k);
  name_result(w, p, k, where);
  status st = is_l4q(r->setting) ? solve_l4q(w, r, p, k, where) : solve_alternation(w, r, p, k, where);
  to->facts->codes_seconds = base_seconds(w, p, k) + clock_now() - start;
  to->facts->adapter_seconds = method_init(r->setting->method)->metric == METRIC_GRAM ? start_seconds(w) : 0;
  to->facts->damping_used = method_quantizer(r->setting->method)->factor ? w->ridge : 0;
  return st;
}

double joint_flops(const setting *s, int rank, int64_t out, int64_t in) {
  static const float present = 1;
  l4q_request l = l4q_of(s, rank, out, in);
  if (is_l4q(s)) return l4q_flops(&l);
  alternation_request q = alternation_of(s, rank, out, in, &present);
  double codes = s->method->quantizer == QUANT_OPTQ ? optq_flops(out, in) : 0;
  return alternation_flops(&q) + (q.rounds + 1) * codes;
}

uint64_t joint_bytes(const setting *s, int rank, int64_t out, int64_t in) {
  static const float present = 1;
  l4q_request l = l4q_of(s, rank, out, in);
  uint64_t codes = (uint64_t)(out * in) + round_uniform_bytes(s, &s->rule, in);
  if (is_l4q(s)) return l4q_bytes(&l) + codes;
  alternation_request q = alternation_of(s, rank, out, in, &present);
  solution draft = solution_of(out, in, &s->rule, rank);
  return alternation_bytes(&q) + solution_place(&draft, SOLUTION_BASE, NULL) + codes;
}
