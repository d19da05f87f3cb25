/* Codes of rows by a setting's quantizer. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "dist/agree.h"
#include "layer/work.h"
#include "quant/billm.h"
#include "quant/codes.h"
#include "quant/descent.h"
#include "quant/nf.h"
#include "quant/optq.h"
#include "quant/slim.h"

/* ---- rows on a uniform grid ---- */

#ifdef CLOQWORK_DEBUG_CHECKS
/* The identity of OPTQ on these rows: tr(E Hd E^T) = sum (v - q)^2 U_jj^2, E against what was quantized. Dead columns count nowhere in the sum. */
static status check_optq(const rounding *r, const optq_request *q, const uint8_t *codes, double loss) {
  status st = OK;
  float *e = NULL;
  double sum;
  TRY(NEW(e, (int64_t)q->rows * q->width, "residual of the identity"));
  codes_bytes_values(&q->rule, q->rows, q->width, codes, q->grid, e);
  for (int64_t k = 0; k < (int64_t)q->rows * q->width; k++) e[k] = q->w[k] - e[k];
  TRY(adapter_trace(q->width, e, r->w->s->h.base, 0, q->rows, NULL, &sum));
  for (int64_t k = 0; k < (int64_t)q->rows * q->width; k++)
    if (!r->w->dead[k % q->width]) sum += r->w->ridge * (double)e[k] * (double)e[k];
  if (!(fabs(sum - loss) <= 1e-5 * fabs(loss)))
    st = fail(E_NUMERICS, "%s: identity of OPTQ: expected %.12g, found %.12g", r->setting->name, loss, sum);
done:
  FREE(e);
  return st;
}
#endif

/* The diagonal of H or its root as weights of squared errors; never 0. */
static status weigh_columns(const input_work *w, bool root, float **weight) {
  status st = NEW(*weight, w->m, "weights of a search");
  float least = (float)least_weight(w);
  for (int64_t k = 0; k < w->m && st == OK; k++) {
    float x = w->diagonal[k] > least ? w->diagonal[k] : least;
    (*weight)[k] = root ? sqrtf(x) : x;
  }
  return st;
}

static const double COMQ_RIDGE = 0.75; /* of mean(diag H): MagR's pass after OPTQ, spec methods section 5 */

bool uses_optq(const setting *s) { return s->method->quantizer == QUANT_OPTQ || s->method->quantizer == QUANT_SLIM; }

status fit_uniform(const rounding *r, const grid_rule *rule, int rows, int in, const float *x, code_grid g, int64_t *tiny) {
  status st = OK;
  float *weight = NULL, *diagonal = NULL;
  int64_t replaced = 0;
  if (r->options->grid_weight != WEIGHT_ONES) TRY(weigh_columns(r->w, r->options->grid_weight == WEIGHT_SQRT, &weight));
  TRY(grid_fit(rule, rows, in, x, in, weight, g, &replaced));
  *tiny += replaced;
  if (r->setting->method->quantizer != QUANT_SLIM) goto done;
  TRY(weigh_columns(r->w, false, &diagonal));
  slim_scale(rule, rows, in, x, in, diagonal, g);
done:
  FREE(weight);
  FREE(diagonal);
  return st;
}

status round_uniform(const rounding *r, const grid_rule *rule, int rows, int in, const float *x, const float *original, bool refit,
                     code_grid g, uint8_t *codes, int64_t *tiny) {
  const input_work *w = r->w;
  const options *o = r->options;
  bool dynamic = refit && o->optq_dynamic && uses_optq(r->setting);
  status st = OK;
  float *weight = NULL;
  int64_t replaced = 0;
  double loss;
  if (refit && !dynamic) TRY(fit_uniform(r, rule, rows, in, x, g, tiny));
  if (dynamic && o->grid_weight != WEIGHT_ONES) TRY(weigh_columns(w, o->grid_weight == WEIGHT_SQRT, &weight));
  if (!uses_optq(r->setting)) {
    grid_round(rule, rows, in, x, in, g, codes);
    goto done;
  }
  optq_request q = {.rule = *rule,
                    .rows = rows,
                    .width = in,
                    .w = x,
                    .ldw = in,
                    .u = w->s->u.base,
                    .order = r->order,
                    .dead = w->any_dead ? w->dead : NULL,
                    .dead_rtn = o->optq_dead_rtn,
                    .grid = g,
                    .dynamic = dynamic,
                    .weight = weight,
                    .replaced = &replaced};
  TRY(optq(&q, codes, &loss));
#ifdef CLOQWORK_DEBUG_CHECKS
  TRY(check_optq(r, &q, codes, loss));
#endif
  if (o->cd_pass && original) {
    descent_request d = {.rule = *rule,
                         .rows = rows,
                         .width = in,
                         .w = original,
                         .ldw = in,
                         .h = w->s->h.base,
                         .ridge = COMQ_RIDGE * w->facts->mean_diag,
                         .dead = q.dead,
                         .grid = g,
                         .passes = o->cd_rounds};
    TRY(descent(&d, codes, NULL));
  }
done:
  *tiny += replaced;
  FREE(weight);
  return st;
}

uint64_t round_uniform_bytes(const setting *s, const grid_rule *rule, int64_t in) {
  uint64_t weights = (uint64_t)in * sizeof(float), bytes = weights + larger(weights, grid_bytes(rule, in));
  if (!uses_optq(s)) return bytes;
  bytes = larger(bytes, optq_bytes(rule, in) + (s->options.optq_dynamic ? weights + optq_dynamic_bytes(rule, in) : 0));
  return s->options.cd_pass ? larger(bytes, descent_bytes(rule, in)) : bytes;
}

/* My rows of one (piece, linear). */
static status quantize_uniform(input_work *w, const rounding *r, int k, solution *to) {
  status st = OK;
  uint8_t *codes = NULL;
  int64_t begin, end, tiny = 0;
  my_rows(w->s->c, to->out, to->in, &begin, &end);
  int rows = (int)(end - begin), in = (int)to->in;
  if (rows == 0) return OK;
  TRY(NEW(codes, (size_t)rows * (size_t)in, "codes of my rows"));
  TRY(round_uniform(r, &to->rule, rows, in, w->base + w->weight_at[k] + begin * in, weights_of(w, k) + begin * in, true,
                    solution_code_grid(to, begin), codes, &tiny));
  __atomic_add_fetch(&to->facts->tiny_scales, tiny, __ATOMIC_RELAXED);
  codes_pack_rule(&to->rule, rows, in, codes, to->codes + begin * to->words);
done:
  FREE(codes);
  return st;
}

static status quantize_binary(input_work *w, int k, solution *to) {
  status st = OK;
  uint8_t *codes = NULL;
  int64_t begin, end;
  my_rows(w->s->c, to->out, to->in, &begin, &end);
  int rows = (int)(end - begin), in = (int)to->in;
  if (rows == 0) return OK;
  TRY(NEW(codes, (size_t)rows * (size_t)in, "codes of my rows"));
  billm_request q = {.rule = to->rule,
                     .rows = rows,
                     .width = in,
                     .w = w->base + w->weight_at[k] + begin * in,
                     .ldw = in,
                     .u = w->s->u.base,
                     .dead = w->any_dead ? w->dead : NULL,
                     .salient = to->salient};
  TRY(billm(&q, codes, to->magnitudes + begin * to->groups * BILLM_MAGNITUDES, NULL));
  codes_pack(grid_code_bits(&to->rule), rows, in, codes, to->codes + begin * to->words);
done:
  FREE(codes);
  return st;
}

/* Normal floats. Collective: double quantization needs absmax of all rows, and the codes come after it. */
static status quantize_nf(input_work *w, int k, solution *to) {
  session *c = w->s->c;
  status st = OK;
  uint8_t *codes = NULL;
  int64_t begin, end;
  my_rows(c, to->out, to->in, &begin, &end);
  int rows = (int)(end - begin), in = (int)to->in, group = to->rule.group;
  const float *x = w->base + w->weight_at[k] + begin * in;
  float *absmax = to->absmax + begin * to->groups;
  st = NEW(codes, (size_t)rows * (size_t)in, "codes of my rows");
  if (st == OK) st = nf_absmax(group, rows, in, x, in, absmax);
  TRY(agree(c->team.comm, st));
  if (to->rule.nested) {
    team_barrier(&c->team);
    if (c->team.rank == 0) nf_nest(to->out * to->groups, to->absmax, to->absmax_codes, to->nested_absmax, to->nested_offset);
    team_barrier(&c->team);
  }
  nf_round(to->rule.bits, group, rows, in, x, in, absmax, codes);
  codes_pack(to->rule.bits, rows, in, codes, to->codes + begin * to->words);
done:
  FREE(codes);
  return st;
}

status round_rows(input_work *w, const rounding *r, int k, solution *to) {
  if (to->rule.kind == GRID_NF) return quantize_nf(w, k, to);
  return to->rule.kind == GRID_BINARY ? quantize_binary(w, k, to) : quantize_uniform(w, r, k, to);
}
