/* What a setting says of one matrix, and in words. Declared in job/job.h. */
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "job/job.h"
#include "job/options.h"

bool setting_varies(const setting *s) { return s->bits.count || s->group.count || s->rank.count; }

/* The values at another pair of bits and group than the usual one; NULL: at the usual one. */
static const setting_values *other_values(const setting *s, int64_t layer, linear_id l) {
  if (!s->other_count) return NULL;
  int bits = numbers_at(&s->bits, layer, l), group = numbers_at(&s->group, layer, l);
  for (int i = 0; i < s->other_count; i++)
    if (s->others[i].rule.bits == bits && s->others[i].rule.group == group) return &s->others[i];
  return NULL;
}

grid_rule setting_rule(const setting *s, int64_t layer, linear_id l) {
  const setting_values *other = other_values(s, layer, l);
  return other ? other->rule : s->rule;
}

const options *setting_options(const setting *s, int64_t layer, linear_id l) {
  const setting_values *other = other_values(s, layer, l);
  return other ? &other->options : &s->options;
}

int setting_rank(const setting *s, int64_t layer, linear_id l) { return s->rank.count ? numbers_at(&s->rank, layer, l) : s->rank_max; }

scheme setting_scheme(const setting *s) {
  if (s->method->init == INIT_LOFTQ && s->options.loftq_T == 1 && !s->options.loftq_parity_scale) return SCHEME_FIT;
  return method_init(s->method)->scheme;
}

/* Going up the ranks: has this one codes of its own, where `last` is the one below it that has (0: none)? */
static bool own_codes(const setting *s, int rank, int last) {
  return last == 0 || setting_joint(s) || s->options.refine_ranks == RANKS_EACH ||
         (s->options.refine_ranks == RANKS_SPREAD && rank > 2 * last);
}

int setting_variants(const setting *s, int *ranks) {
  int count = 0, last = 0;
  for (int k = 0; k < s->rank_count && !setting_nests(s); k++) {
    if (!own_codes(s, s->ranks[k], last)) continue;
    last = s->ranks[k];
    if (ranks) ranks[count] = last;
    count++;
  }
  return count;
}

int setting_variant(const setting *s, int rank) {
  int last = 0;
  if (setting_nests(s)) return 0;
  for (int k = 0; k < s->rank_count && (last == 0 || s->ranks[k] <= rank); k++)
    if (own_codes(s, s->ranks[k], last)) last = s->ranks[k];
  return last;
}

bool setting_has_own_ranks(const setting *s) { return s->rank.count > 0; }

metric setting_metric(const setting *s) {
  bool plain = !s->options.residual_magr && !s->options.loftq_parity_scale;
  return plain ? method_init(s->method)->metric : METRIC_NONE;
}

void setting_free(setting *s) {
  numbers_free(&s->bits);
  numbers_free(&s->group);
  numbers_free(&s->rank);
  FREE(s->others);
  FREE(s->ranks);
  *s = (setting){0};
}

/* ---- in words ---- */

enum { ROW_BITS, ROW_GROUP, ROW_RANK, ROW_OPTIONS };

static void text_at(const setting *s, int row, int64_t layer, linear_id l, char text[OPTION_TEXT]) {
  grid_rule rule = setting_rule(s, layer, l);
  if (row >= ROW_OPTIONS)
    option_text(row - ROW_OPTIONS, setting_options(s, layer, l), text);
  else
    snprintf(text, OPTION_TEXT, "%d", row == ROW_BITS ? rule.bits : row == ROW_GROUP ? rule.group : setting_rank(s, layer, l));
}

static status describe_row(const setting *s, const bool target[LIN_COUNT], int64_t layer, int row, const char *key, option_sink sink,
                           void *context) {
  char list[LIN_COUNT * (OPTION_TEXT + 16)] = "", first[OPTION_TEXT] = "", text[OPTION_TEXT];
  bool differs = false;
  size_t used = 0;
  for (int l = 0; l < LIN_COUNT; l++) {
    if (!target[l]) continue;
    text_at(s, row, layer, (linear_id)l, text);
    if (!used) snprintf(first, sizeof first, "%s", text);
    differs |= strcmp(first, text) != 0;
    used += (size_t)snprintf(list + used, sizeof list - used, "%s%s %s", used ? ", " : "", linear_short((linear_id)l), text);
  }
  return sink(context, key, differs ? list : first);
}

status setting_describe(const setting *s, const bool target[LIN_COUNT], int64_t layer, option_sink sink, void *context) {
  status st = OK;
  char text[OPTION_TEXT];
  snprintf(text, sizeof text, "%d", s->method->version);
  TRY(sink(context, "method", s->method->name));
  TRY(sink(context, "method_version", text));
  TRY(describe_row(s, target, layer, ROW_BITS, "bits", sink, context));
  TRY(describe_row(s, target, layer, ROW_GROUP, "group", sink, context));
  TRY(describe_row(s, target, layer, ROW_RANK, "rank_max", sink, context));
  for (int i = 0; i < option_count; i++)
    if (option_matters(i, s->method, &s->options)) TRY(describe_row(s, target, layer, ROW_OPTIONS + i, option_name(i), sink, context));
done:
  return st;
}

status setting_describe_matrix(const setting *s, int64_t layer, linear_id l, option_sink sink, void *context) {
  bool alone[LIN_COUNT] = {false};
  alone[l] = true;
  return setting_describe(s, alone, layer, sink, context);
}
