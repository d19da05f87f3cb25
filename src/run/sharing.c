#include "run/sharing.h"

#include "run/options.h"

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

bool same_codes(const setting *a, const setting *b, int64_t layer, linear_id l) {
  if (!setting_nests(a) || !setting_nests(b) || !same_magr(a, b, layer, l) || a->method->quantizer != b->method->quantizer) return false;
  grid_rule one = setting_rule(a, layer, l), other = setting_rule(b, layer, l);
  return same_rule(&one, &other) && (!method_quantizer(a->method)->factor || same_factor(a, b)) &&
         same_options(STAGE_CODES, a, b, layer, l);
}

bool same_fit(const setting *a, const setting *b, int64_t layer, linear_id l) {
  return same_codes(a, b, layer, l) && setting_scheme(a) == SCHEME_FIT && setting_scheme(b) == SCHEME_FIT &&
         method_init(a->method)->metric == method_init(b->method)->metric && same_options(STAGE_ADAPTER, a, b, layer, l);
}

typedef bool (*alike_at)(const setting *, const setting *, int64_t, linear_id);

/* Whether setting k is the first of the job's that is so at this matrix. */
static bool first_alike(const job *j, int k, int64_t layer, linear_id l, alike_at alike) {
  for (int e = 0; e < k; e++)
    if (alike(&j->settings[e], &j->settings[k], layer, l)) return false;
  return true;
}

static bool first_factor(const job *j, int k) {
  for (int e = 0; e < k; e++)
    if (same_factor(&j->settings[e], &j->settings[k])) return false;
  return true;
}

sharing sharing_count(const job *j, int64_t layer) {
  sharing n = {.settings = j->setting_count};
  for (int i = 0; i < IN_COUNT; i++) n.grams += job_uses_input(j, (input_id)i);
  for (int k = 0; k < j->setting_count; k++) {
    const setting *s = &j->settings[k];
    if (method_quantizer(s->method)->factor && first_factor(j, k)) n.factors += n.grams;
    for (int l = 0; l < LIN_COUNT; l++) {
      if (!j->target[l]) continue;
      if (!setting_nests(s)) {
        n.joint += s->rank_count;
        continue;
      }
      n.magrs_asked += s->method->magr;
      n.magrs += s->method->magr && first_alike(j, k, layer, (linear_id)l, same_magr);
      n.codes_asked++;
      n.codes += first_alike(j, k, layer, (linear_id)l, same_codes);
      if (setting_scheme(s) != SCHEME_FIT) continue;
      n.fits_asked++;
      n.fits += first_alike(j, k, layer, (linear_id)l, same_fit);
    }
  }
  return n;
}
