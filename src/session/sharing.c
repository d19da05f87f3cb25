#include "session/sharing.h"

#include "base/memory.h"
#include "job/options.h"

bool setting_piece(const setting *s, int index, int v, piece *p) {
  int count = 0, last = 0;
  *p = (piece){s, index, 0, s->rank_max};
  if (setting_nests(s)) return v == 0;
  for (int k = 0; k < s->rank_count; k++) {
    int own = setting_variant(s, s->ranks[k]);
    if (own == last) continue;
    if (count == v) p->rank = own;
    if (count == v + 1) p->most = own - 1;
    last = own;
    count++;
  }
  if (setting_joint(s)) p->most = p->rank;
  return v < count;
}

int job_pieces(const job *j, piece *pieces) {
  int count = 0;
  piece p;
  for (int k = 0; k < j->setting_count; k++)
    for (int v = 0; setting_piece(&j->settings[k], k, v, &p); v++, count++)
      if (pieces) pieces[count] = p;
  return count;
}

int piece_rank(const piece *p, int64_t layer, linear_id l) {
  return p->rank && !setting_has_own_ranks(p->setting) ? p->most : setting_rank(p->setting, layer, l);
}

int piece_variant(const piece *p, int64_t layer, linear_id l) {
  return p->rank && setting_has_own_ranks(p->setting) ? setting_rank(p->setting, layer, l) : p->rank;
}

/* ---- what is equal ---- */

static bool same_options(option_stage stage, const setting *a, const setting *b, int64_t layer, linear_id l) {
  return options_equal(stage, a->method, setting_options(a, layer, l), setting_options(b, layer, l));
}

bool same_magr(const setting *a, const setting *b, int64_t layer, linear_id l) {
  if (a->method->magr != b->method->magr) return false;
  return !a->method->magr ||
         (setting_rule(a, layer, l).group == setting_rule(b, layer, l).group && same_options(STAGE_MAGR, a, b, layer, l));
}

bool same_factor(const setting *a, const setting *b) {
  return method_quantizer(a->method)->factor && method_quantizer(b->method)->factor &&
         options_equal(STAGE_FACTOR, a->method, &a->options, &b->options) && /* each by what it looks at: billm knows no order */
         options_equal(STAGE_FACTOR, b->method, &a->options, &b->options);
}

static bool same_rule(const grid_rule *a, const grid_rule *b) {
  return a->kind == b->kind && a->bits == b->bits && a->group == b->group && a->nested == b->nested && a->symmetric == b->symmetric &&
         a->beta == b->beta && a->anchor_zero == b->anchor_zero && a->search == b->search && a->real_zero == b->real_zero;
}

/* What a quantizer makes of the weights: the codes, or what they are refined from. */
static bool same_rounding(const setting *a, const setting *b, int64_t layer, linear_id l) {
  if (!same_magr(a, b, layer, l) || a->method->quantizer != b->method->quantizer) return false;
  grid_rule one = setting_rule(a, layer, l), other = setting_rule(b, layer, l);
  return same_rule(&one, &other) && (!method_quantizer(a->method)->factor || same_factor(a, b)) &&
         same_options(STAGE_CODES, a, b, layer, l);
}

bool same_codes(const setting *a, const setting *b, int64_t layer, linear_id l) {
  return setting_nests(a) && setting_nests(b) && same_rounding(a, b, layer, l);
}

bool same_refined(const piece *a, const piece *b, int64_t layer, linear_id l) {
  return setting_refines(a->setting) && a->setting->method->init == b->setting->method->init &&
         piece_variant(a, layer, l) == piece_variant(b, layer, l) && same_rounding(a->setting, b->setting, layer, l) &&
         same_options(STAGE_ADAPTER, a->setting, b->setting, layer, l);
}

bool same_fit(const setting *a, const setting *b, int64_t layer, linear_id l) {
  return same_codes(a, b, layer, l) && setting_fits(a) && setting_fits(b) &&
         method_init(a->method)->metric == method_init(b->method)->metric && same_options(STAGE_ADAPTER, a, b, layer, l);
}

bool share_magr(const job *j, const setting *a, const setting *b, int64_t layer, input_id input) {
  for (int l = 0; l < LIN_COUNT; l++)
    if (j->target[l] && linear_input((linear_id)l) == input && !same_magr(a, b, layer, (linear_id)l)) return false;
  return true;
}

/* ---- what is taken over from where ---- */

static bool equal_codes(const piece *a, const piece *b, int64_t layer, linear_id l) {
  return same_codes(a->setting, b->setting, layer, l) || same_refined(a, b, layer, l);
}

static bool equal_fit(const piece *a, const piece *b, int64_t layer, linear_id l) {
  return same_fit(a->setting, b->setting, layer, l) || same_refined(a, b, layer, l);
}

/* From settings that were finished earlier: codes, and perhaps the fit at a rank that holds this one. Whether all is found. */
static bool find_finished(const job *j, const piece *p, int64_t layer, linear_id l, const bool *pending, result_plan *plan) {
  piece other;
  for (int e = 0; e < j->setting_count; e++)
    for (int v = 0; !pending[e] && setting_piece(&j->settings[e], e, v, &other); v++) {
      if (!equal_codes(&other, p, layer, l)) continue;
      bool fit = equal_fit(&other, p, layer, l) && piece_rank(&other, layer, l) >= piece_rank(p, layer, l);
      if (plan->codes.how == PART_OWN || fit) plan->codes = (part_source){PART_STORED, e};
      if (!fit) continue;
      plan->fit = (part_source){PART_STORED, e};
      return true;
    }
  return false;
}

void plan_results(const job *j, const piece *pieces, int count, int64_t layer, linear_id l, const bool *pending, result_plan *plan,
                  int stride) {
  for (int p = 0; p < count; p++) {
    const setting *s = pieces[p].setting;
    result_plan *to = &plan[p * stride];
    *to = (result_plan){0};
    if (!pending[pieces[p].index] || find_finished(j, &pieces[p], layer, l, pending, to)) continue;
    for (int e = 0; e < p; e++) { /* made here by a piece before this one, of the same group: others may have their turn later */
      const setting *other = pieces[e].setting;
      if (!pending[pieces[e].index] || !share_magr(j, other, s, layer, linear_input(l))) continue;
      if (!equal_codes(&pieces[e], &pieces[p], layer, l)) continue;
      if (to->codes.how == PART_OWN) to->codes = (part_source){PART_COPY, e};
      if (plan[e * stride].fit.how != PART_OWN || !equal_fit(&pieces[e], &pieces[p], layer, l)) continue;
      if (piece_rank(&pieces[e], layer, l) != piece_rank(&pieces[p], layer, l)) continue;
      to->fit = (part_source){PART_COPY, e};
      break;
    }
  }
}

bool needs_magr(const setting *s, const result_plan *plan) {
  return s->method->magr && (plan->codes.how == PART_OWN || (s->options.residual_magr && plan->fit.how == PART_OWN));
}

/* ---- how much is distinct ---- */

static void count_part(part_source from, step_count *n) {
  n->asked++;
  n->computed += from.how == PART_OWN;
  n->finished += from.how == PART_STORED;
}

/* What the count walks through: one input of a layer, the plans of the linears that read it. */
typedef struct walk {
  const job *j;
  int64_t layer;
  const piece *pieces;
  int count, linears;
  const bool *pending;
  result_plan *plan; /* [LIN_COUNT][pieces], the input's linears first */
  const setting *factored;
} walk;

static bool any_own_codes(const walk *w, int p) {
  for (int k = 0; k < w->linears; k++)
    if (w->plan[k * w->count + p].codes.how == PART_OWN) return true;
  return false;
}

/* The group of piece `first`: MagR once for all its linears, and each factor once, but for the one that stands there. */
static void count_group(walk *w, const bool *member, int first, sharing *n) {
  bool magr = false;
  const setting *last = NULL;
  for (int p = first; p < w->count; p++) {
    const setting *s = w->pieces[p].setting;
    bool seen = w->factored && same_factor(w->factored, s);
    if (!member[p]) continue;
    for (int k = 0; k < w->linears; k++) {
      n->magr.asked += s->method->magr;
      n->magr.finished += s->method->magr && w->plan[k * w->count + p].codes.how == PART_STORED;
      magr |= needs_magr(s, &w->plan[k * w->count + p]);
    }
    if (!method_quantizer(s->method)->factor) continue;
    n->factors.asked++;
    for (int e = first; e < p && !seen; e++) seen = member[e] && any_own_codes(w, e) && same_factor(w->pieces[e].setting, s);
    if (seen || !any_own_codes(w, p)) continue;
    n->factors.computed++;
    last = s;
  }
  n->magr.computed += magr ? w->linears : 0;
  if (last) w->factored = last;
}

static void count_input(walk *w, input_id input, bool *left, bool *member, sharing *n) {
  w->linears = 0;
  w->factored = NULL;
  for (int l = 0; l < LIN_COUNT; l++)
    if (w->j->target[l] && linear_input((linear_id)l) == input)
      plan_results(w->j, w->pieces, w->count, w->layer, (linear_id)l, w->pending, w->plan + w->linears++ * w->count, 1);
  for (int p = 0; p < w->count; p++) {
    left[p] = w->pending[w->pieces[p].index];
    for (int k = 0; k < w->linears && left[p]; k++) {
      const result_plan *plan = &w->plan[k * w->count + p];
      const setting *s = w->pieces[p].setting;
      count_part(plan->codes, setting_nests(s) ? &n->codes : setting_refines(s) ? &n->refined : &n->joint);
      if (setting_fits(w->pieces[p].setting)) count_part(plan->fit, &n->fits);
    }
  }
  for (int p = 0; p < w->count; p++) {
    if (!left[p]) continue;
    for (int e = 0; e < w->count; e++) {
      member[e] = left[e] && share_magr(w->j, w->pieces[p].setting, w->pieces[e].setting, w->layer, input);
      left[e] = left[e] && !member[e];
    }
    count_group(w, member, p, n);
  }
}

status sharing_count(const job *j, int64_t layer, const bool *pending, sharing *n) {
  status st = OK;
  piece *pieces = NULL;
  result_plan *plan = NULL;
  bool *left = NULL, *member = NULL;
  int count = job_pieces(j, NULL);
  TRY(NEW(pieces, count, "settings"));
  TRY(NEW(plan, count * LIN_COUNT, "settings"));
  TRY(NEW(left, count, "settings"));
  TRY(NEW(member, count, "settings"));
  job_pieces(j, pieces);
  walk w = {.j = j, .layer = layer, .pieces = pieces, .count = count, .pending = pending, .plan = plan};
  for (int i = 0; i < IN_COUNT; i++)
    if (job_uses_input(j, (input_id)i)) count_input(&w, (input_id)i, left, member, n);
done:
  FREE(pieces);
  FREE(plan);
  FREE(left);
  FREE(member);
  return st;
}
