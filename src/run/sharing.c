#include "run/sharing.h"

#include "run/options.h"

bool same_magr(const setting *a, const setting *b) {
  if (a->method->magr != b->method->magr) return false;
  return !a->method->magr || (a->rule.group == b->rule.group && options_equal(STAGE_MAGR, a->method, &a->options, &b->options));
}

bool same_factor(const setting *a, const setting *b) {
  return method_quantizer(a->method)->factor && method_quantizer(b->method)->factor &&
         options_equal(STAGE_FACTOR, a->method, &a->options, &b->options);
}

static bool same_rule(const grid_rule *a, const grid_rule *b) {
  return a->kind == b->kind && a->bits == b->bits && a->group == b->group && a->nested == b->nested && a->symmetric == b->symmetric &&
         a->beta == b->beta && a->anchor_zero == b->anchor_zero && a->search == b->search && a->real_zero == b->real_zero;
}

bool same_codes(const setting *a, const setting *b, int64_t layer, linear_id l) {
  if (!setting_nests(a) || !setting_nests(b) || !same_magr(a, b) || a->method->quantizer != b->method->quantizer) return false;
  grid_rule one = setting_rule(a, layer, l), other = setting_rule(b, layer, l);
  return same_rule(&one, &other) && (!method_quantizer(a->method)->factor || same_factor(a, b)) &&
         options_equal(STAGE_CODES, a->method, &a->options, &b->options);
}

bool same_fit(const setting *a, const setting *b, int64_t layer, linear_id l) {
  return same_codes(a, b, layer, l) && setting_scheme(a) == SCHEME_FIT && setting_scheme(b) == SCHEME_FIT &&
         method_init(a->method)->metric == method_init(b->method)->metric && options_equal(STAGE_ADAPTER, a->method, &a->options, &b->options);
}

/* Whether setting k is the first of the job's that is alike. */
static bool first_alike(const job *j, int k, bool (*alike)(const setting *, const setting *)) {
  for (int e = 0; e < k; e++)
    if (alike(&j->settings[e], &j->settings[k])) return false;
  return true;
}

static bool first_alike_at(const job *j, int k, int64_t layer, linear_id l,
                           bool (*alike)(const setting *, const setting *, int64_t, linear_id)) {
  for (int e = 0; e < k; e++)
    if (alike(&j->settings[e], &j->settings[k], layer, l)) return false;
  return true;
}

sharing sharing_count(const job *j, int64_t layer) {
  sharing n = {.settings = j->setting_count};
  for (int i = 0; i < IN_COUNT; i++) n.grams += job_uses_input(j, (input_id)i);
  for (int k = 0; k < j->setting_count; k++) {
    const setting *s = &j->settings[k];
    if (s->method->magr && first_alike(j, k, same_magr)) n.magrs += n.grams;
    if (method_quantizer(s->method)->factor && first_alike(j, k, same_factor)) n.factors += n.grams;
    for (int l = 0; l < LIN_COUNT; l++) {
      if (!j->target[l]) continue;
      if (!setting_nests(s)) {
        n.joint += s->rank_count;
        continue;
      }
      n.codes_asked++;
      n.codes += first_alike_at(j, k, layer, (linear_id)l, same_codes);
      if (setting_scheme(s) != SCHEME_FIT) continue;
      n.fits_asked++;
      n.fits += first_alike_at(j, k, layer, (linear_id)l, same_fit);
    }
  }
  return n;
}
