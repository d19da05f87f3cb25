/* Methods that refine codes for the rank of the adapter that follows: one matrix after the other, by the whole team. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "dist/agree.h"
#include "joint/refine.h"
#include "joint/ritz.h"
#include "layer/work.h"
#include "quant/codes.h"
#include "quant/optq.h"

/* Measured on SmolLM2 at 2 bits, held-out losses at 1.3, 2.7, 3.6 and 7.1 tokens for each input: the best ridges are about 1.5, 0.5, 0.4 and 0.1. */
static const double TOKENS_ENOUGH = 12, RAISED_MOST = 50;

double refine_ridge_at(const options *o, int64_t tokens, int64_t in) {
  double missing = TOKENS_ENOUGH * (double)in / (double)(tokens > 0 ? tokens : 1);
  return o->refine_ridge * fmin(fmax(1, missing * missing), RAISED_MOST);
}

static refine_plan rounds_at(const setting *s, const options *o) {
  static const struct {
    int shapes, descents;
  } rounds[] = {[ROUNDS_AUTO] = {12, 8}, [ROUNDS_3_2] = {3, 2}, [ROUNDS_6_4] = {6, 4}, [ROUNDS_12_4] = {12, 4}};
  switch (s->method->init) {
  case INIT_REFINE:
    return (refine_plan){.shapes = rounds[o->refine_rounds].shapes,
                         .eigenvectors = true,
                         .regrid = true,
                         .descents = rounds[o->refine_rounds].descents,
                         .deflated = true,
                         .grid_moves = o->refine_candidates ? SWEEP_GRID_CANDIDATES : SWEEP_GRID_REFIT,
                         .stop = o->refine_stop};
  case INIT_VARPRO:
    return (refine_plan){.descents = o->joint_rounds, .deflated = true, .grid_moves = o->joint_refit ? SWEEP_GRID_REFIT : SWEEP_GRID_STAYS};
  case INIT_PROJQ: return (refine_plan){.shapes = o->joint_rounds};
  case INIT_INTRINSIC: return (refine_plan){.shapes = 1, .eigenvectors = true, .shrink = true, .descents = o->joint_rounds};
  default: return (refine_plan){.descents = o->joint_rounds};
  }
}

static refine_plan plan_at(const setting *s, const options *o) {
  refine_plan p = rounds_at(s, o);
  p.act_order = p.shapes && o->optq_order_act;
  return p;
}

bool refine_needs_metric(const setting *s) {
  refine_plan p = plan_at(s, &s->options);
  return setting_refines(s) && (p.act_order || (p.descents && p.deflated));
}

int refine_rounds(const setting *s) {
  refine_plan p = plan_at(s, &s->options);
  return setting_refines(s) ? 1 + p.shapes + p.descents : 0;
}

int refine_rows_of(int64_t out, int64_t in, int rank) {
  int columns = ritz_columns(out, rank);
  return columns < in ? columns : (int)in;
}

int refine_start_rows(const input_work *w, int p, int k) {
  const solution *to = result_of(w, p, k);
  return refine_rows_of(to->out, to->in, to->variant);
}

int refine_start_rows_most(const setting *s, int64_t out, int64_t in) {
  return setting_refines(s) ? refine_rows_of(out, in, s->rank_max) : 0;
}

/* Collective. The leading eigenvectors of H into shared memory, unless they stand there. They come from a space that their number dictates: what
 * other settings ask for does not change a result. A space of four blocks holds them well enough to be eliminated. */
static status find_leading(input_work *w, int rows) {
  session *c = w->s->c;
  status st = OK;
  if (w->leading_rows == rows) return OK;
  double start = clock_now();
  w->leading_rows = 0;
  if (c->team.rank == 0) {
    st = find_vectors(w, rows, 4, w->s->leading.base);
    w->facts->leading_seconds = clock_now() - start;
  }
  TRY(agree(c->team.comm, st));
  team_barrier(&c->team);
  w->leading_rows = rows;
done:
  return st;
}

static status refine_rows(input_work *w, const setting *s, const options *o, int p, int k, uint8_t *codes, int64_t begin, int64_t end) {
  status st = OK;
  solution *to = result_of(w, p, k);
  char where[256];
  int kept, rows = (int)(end - begin), in = (int)to->in;
  int64_t tiny = -1;
  refine_plan plan = plan_at(s, o);
  double ridge = s->method->init == INIT_REFINE || s->method->init == INIT_VARPRO ? refine_ridge_at(o, w->facts->tokens, to->in) : 0;
  plan.ridge = ridge * w->facts->mean_diag;
  name_result(w, p, k, where);
  refine_request q = {.t = &w->s->c->team,
                      .where = where,
                      .plan = plan,
                      .rule = to->rule,
                      .n = to->out,
                      .m = to->in,
                      .begin = begin,
                      .end = end,
                      .rank = to->variant,
                      .w = weights_of(w, k),
                      .h = w->s->h.base,
                      .dead = w->any_dead ? w->dead : NULL,
                      .dead_rtn = o->optq_dead_rtn,
                      .damping = w->ridge,
                      .weigh_diagonal = o->grid_weight == WEIGHT_DIAGONAL,
                      .least_weight = least_weight(w),
                      .start = w->s->leading.base,
                      .start_rows = w->leading_rows,
                      .shared_memory = w->s->refining.base,
                      .factor = w->s->u.base,
                      .p = w->s->second.base};
  codes_unpack_rule(&to->rule, rows, in, to->codes + begin * to->words, codes);
  TRY(refine(&q, codes, solution_code_grid(to, begin), to->rounds, &kept, &tiny));
  codes_pack_rule(&to->rule, rows, in, codes, to->codes + begin * to->words);
  if (w->s->c->team.rank == 0) {
    to->facts->round = kept + 1;
    to->facts->ridge_used = plan.ridge;
    if (tiny >= 0) to->facts->tiny_scales = 0;
  }
  team_barrier(&w->s->c->team);
  if (tiny > 0) __atomic_add_fetch(&to->facts->tiny_scales, tiny, __ATOMIC_RELAXED);
done:
  return st;
}

/* Collective. Codes that stand in the result become better ones. */
status refine_result(input_work *w, int p, int k) {
  session *c = w->s->c;
  const setting *s = setting_of(w, p);
  const options *o = setting_options(s, w->layer, w->linears[k]);
  status st = OK;
  uint8_t *codes = NULL;
  int64_t begin, end;
  solution *to = result_of(w, p, k);
  refine_plan plan = plan_at(s, o);
  TRY(find_leading(w, refine_start_rows(w, p, k)));
  double start = clock_now();
  my_rows(c, to->out, to->in, &begin, &end);
  st = NEW(codes, (end - begin) * to->in, "codes of my rows");
  TRY(agree(c->team.comm, st));
  if (plan.act_order) w->factored = NULL;
  w->heldout_there = w->heldout_there && !refine_needs_metric(s);
  TRY(refine_rows(w, s, o, p, k, codes, begin, end));
  w->s->spent.flops += refine_flops(&plan, &to->rule, to->out, to->in, to->variant);
  if (c->team.rank == 0) to->facts->codes_seconds += c->team.size * (clock_now() - start) + w->facts->leading_seconds / w->linear_count;
done:
  FREE(codes);
  return st;
}

uint64_t refine_shared_bytes(const setting *s, int64_t out, int64_t in) {
  return setting_refines(s) ? refine_shared(out, in, s->rank_max) : 0;
}

uint64_t refine_private_bytes(const setting *s, const grid_rule *rule, int64_t out, int64_t in, int ranks) {
  refine_plan p = plan_at(s, &s->options);
  uint64_t slab = (uint64_t)optq_slab(in), mine = (((uint64_t)out + (uint64_t)ranks - 1) / (uint64_t)ranks + slab - 1) / slab * slab;
  return setting_refines(s) ? mine * (uint64_t)in + refine_bytes(&p, rule, out, in, s->rank_max, ranks) : 0;
}

refine_cost refine_result_costs(const setting *s, const options *o, const grid_rule *r, int rank, int64_t out, int64_t in) {
  refine_plan p = plan_at(s, o);
  return refine_costs(&p, r, out, in, rank);
}
