#include "run/options.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/settings.h"

typedef enum option_kind { OPT_REAL, OPT_COUNT, OPT_CHOICE, OPT_FIXED } option_kind;
typedef enum option_reach { ALL, WITH_MAGR, WITH_OPTQ, WITH_UNIFORM, WITH_NF4 } option_reach;

typedef struct option_row {
  const char *name;
  option_kind kind;
  option_reach reach;
  size_t offset, size;     /* the member of struct options; FIXED: none */
  double standard, lo, hi; /* REAL, COUNT */
  const char *const *offered,
      *const *later; /* CHOICE, FIXED: ended by NULL, the default first; later: FIXED: known, but not in this version */
  double (*automatic)(const method *m, int bits, int group, const options *o); /* "auto" is the default */
} option_row;

static double auto_magr_alpha(const method *m, int bits, int group, const options *o) {
  (void)m, (void)bits, (void)o;
  return group ? 1e-4 : 1e-3;
}

static double auto_magr_steps(const method *m, int bits, int group, const options *o) {
  (void)m, (void)bits, (void)group;
  return o->magr_solver == MAGR_PG ? 150 : 60;
}

/* Spec methods section 4, quirk 3: the published table per channel; in groups what the reference code does. */
static double auto_grid_beta(const method *m, int bits, int group, const options *o) {
  (void)o;
  if (!m->magr) return 1;
  if (group) return group == 128 ? 0.95 : 1;
  return bits <= 2 ? 0.8 : bits == 3 ? 0.9 : 1;
}

#define WORDS(...) \
  (const char *const[]) { __VA_ARGS__, NULL }
#define MEMBER(field) offsetof(options, field), sizeof(((options *)0)->field)
#define REAL(name, reach, standard, lo, hi, automatic) \
  { #name, OPT_REAL, reach, MEMBER(name), standard, lo, hi, NULL, NULL, automatic }
#define COUNT(name, reach, standard, lo, hi, automatic) \
  { #name, OPT_COUNT, reach, MEMBER(name), standard, lo, hi, NULL, NULL, automatic }
#define CHOICE(name, reach, field, ...) \
  { #name, OPT_CHOICE, reach, MEMBER(field), 0, 0, 0, WORDS(__VA_ARGS__), NULL, NULL }
#define FIXED(name, reach, offered, ...) \
  { #name, OPT_FIXED, reach, 0, 0, 0, 0, 0, WORDS(#offered), WORDS(__VA_ARGS__), NULL }

static const option_row rows[] = {
    REAL(damping, WITH_OPTQ, 0.01, 0, 10, NULL),
    COUNT(damping_escalate, WITH_OPTQ, 0, 0, 3, NULL),
    CHOICE(residual, WITH_MAGR, residual_magr, "original", "magr"),
    REAL(adapter_damping, ALL, 0, 0, 10, NULL),
    REAL(adapter_tolerance, ALL, 1e-6, 1e-12, 1, NULL),
    CHOICE(adapter_solver, ALL, adapter_solver, "auto", "dense", "krylov", "grid"),
    CHOICE(magr_solver, WITH_MAGR, magr_solver, "fista", "pg"),
    REAL(magr_alpha, WITH_MAGR, 0, 0, 10, auto_magr_alpha),
    COUNT(magr_K, WITH_MAGR, 0, 1, 100000, auto_magr_steps),
    CHOICE(grid_type, WITH_UNIFORM, grid_symmetric, "asym", "sym"),
    REAL(grid_beta, WITH_UNIFORM, 0, 0.1, 1, auto_grid_beta),
    CHOICE(grid_beta_anchor, WITH_UNIFORM, grid_beta_anchor_zero, "low", "zero"),
    CHOICE(optq_order, WITH_OPTQ, optq_order_act, "natural", "act"),
    CHOICE(optq_dead, WITH_OPTQ, optq_dead_rtn, "zero", "rtn"),
    CHOICE(nf_double, WITH_NF4, nf_double, "off", "on"),
    FIXED(act_quantizer, ALL, fp, "prefix", "cross"),
    FIXED(act_adapter, ALL, fp, "prefix", "cross"),
    FIXED(optq_groups, WITH_OPTQ, static, "dynamic"),
    FIXED(magr_threshold, WITH_MAGR, normalised, "literal"),
    FIXED(grid_zero, WITH_UNIFORM, int, "real"),
    FIXED(grid_search, WITH_UNIFORM, none, "mse", "scan", "l4q"),
    FIXED(cd_pass, WITH_OPTQ, none, "comq"),
    FIXED(joint_method, ALL, none, "bidup", "intrinsic", "projq", "varpro", "caldera"),
    FIXED(split, ALL, cloq, "qera", "balanced"),
    FIXED(adapter_dtype, ALL, fp32, "fp16", "bf16"),
};
enum { ROWS = sizeof rows / sizeof *rows };
const int option_count = ROWS;
_Static_assert((int)ROWS <= (int)OPTION_MOST, "the sweep counts through the options in an array of OPTION_MOST");

/* Options of methods that this version does not have. */
static const char *const later_names[] = {"grid_weight", "loftq_T",     "loftq_parity_scale", "lasq_variant", "lasq_base",
                                          "lqer_stat",   "eora_gram",   "slim_salience",      "slim_score",   "joint_rounds",
                                          "joint_damp",  "xgram_alpha", "xgram_damp",         "lr_solver",    NULL};

const char *option_name(int i) { return rows[i].name; }

bool option_concerns(int i, const method *m) {
  switch (rows[i].reach) {
  case WITH_MAGR: return m->magr;
  case WITH_OPTQ: return m->quantizer == QUANT_OPTQ;
  case WITH_UNIFORM: return m->quantizer != QUANT_NF4;
  case WITH_NF4: return m->quantizer == QUANT_NF4;
  default: return true;
  }
}

static int word_index(const char *const *words, const char *word) {
  for (int i = 0; words && words[i]; i++)
    if (strcmp(words[i], word) == 0) return i;
  return -1;
}

static void list_words(const char *const *words, char *text, size_t size) {
  text[0] = 0;
  for (int i = 0; words[i]; i++) {
    size_t used = strlen(text);
    snprintf(text + used, size - used, "%s%s", i ? ", " : "", words[i]);
  }
}

/* One value of a row, checked; *kept is owned: numbers as real or integer after the row's kind, words as they are. */
static status check_value(const char *where, const option_row *r, const json_t *v, json_t **kept) {
  char found[SETTINGS_FOUND];
  settings_found(v, found);
  *kept = NULL;
  if (r->automatic && json_is_string(v) && strcmp(json_string_value(v), "auto") == 0) {
    *kept = json_string("auto");
  } else if (r->kind == OPT_REAL || r->kind == OPT_COUNT) {
    double x = json_number_value(v);
    if ((r->kind == OPT_REAL ? !json_is_number(v) : !json_is_integer(v)) || !(x >= r->lo && x <= r->hi)) {
      char lo[SETTINGS_REAL], hi[SETTINGS_REAL];
      settings_real(r->lo, lo);
      settings_real(r->hi, hi);
      return fail(E_USAGE, "%s: expected %s from %s to %s%s, found %s", where, r->kind == OPT_REAL ? "a number" : "an integer", lo, hi,
                  r->automatic ? " or auto" : "", found);
    }
    *kept = r->kind == OPT_REAL ? json_real(x) : json_integer((json_int_t)x);
  } else {
    const char *word = json_is_string(v) ? json_string_value(v) : "";
    char offered[96];
    list_words(r->offered, offered, sizeof offered);
    if (word_index(r->later, word) >= 0)
      return fail(E_USAGE, "%s: %s is not offered by this version yet, expected %s", where, word, offered);
    if (word_index(r->offered, word) < 0)
      return fail(E_USAGE, "%s: expected %s%s, found %s", where, r->offered[1] ? "one of " : "", offered, found);
    *kept = json_string(word);
  }
  return *kept ? OK : fail(E_MEMORY, "%s: no memory", where);
}

static status complete_row(const char *prefix, const option_row *r, const json_t *given, json_t *list) {
  status st = OK;
  json_t *kept;
  size_t count = json_is_array(given) ? json_array_size(given) : 1;
  char where[256];
  if (!given || json_is_null(given)) {
    kept = r->automatic           ? json_string("auto")
           : r->kind == OPT_REAL  ? json_real(r->standard)
           : r->kind == OPT_COUNT ? json_integer((json_int_t)r->standard)
                                  : json_string(r->offered[0]);
    return json_array_append_new(list, kept) == 0 ? OK : fail(E_MEMORY, "%s%s: no memory", prefix, r->name);
  }
  if (count == 0) return fail(E_USAGE, "%s%s: expected a value or a list of values, found an empty list", prefix, r->name);
  for (size_t i = 0; i < count; i++) {
    const json_t *v = json_is_array(given) ? json_array_get(given, i) : given;
    if (json_is_array(given))
      snprintf(where, sizeof where, "%s%s[%zu]", prefix, r->name, i);
    else
      snprintf(where, sizeof where, "%s%s", prefix, r->name);
    TRY(check_value(where, r, v, &kept));
    if (json_array_append_new(list, kept) != 0) return fail(E_MEMORY, "%s: no memory", where);
  }
done:
  return st;
}

static status check_names(const char *prefix, const json_t *given) {
  const char *key, *names[ROWS];
  json_t *value;
  for (int i = 0; i < ROWS; i++) names[i] = rows[i].name;
  json_object_foreach((json_t *)given, key, value) {
    int i = 0;
    while (i < ROWS && strcmp(names[i], key) != 0) i++;
    if (i < ROWS) continue;
    if (word_index(later_names, key) >= 0) return fail(E_USAGE, "%s%s: this option is not offered by this version yet", prefix, key);
    const char *near = settings_nearest(key, names, ROWS);
    return fail(E_USAGE, "%s%s: unknown option%s%s", prefix, key, near ? ", did you mean " : "", near ? near : "");
  }
  return OK;
}

status options_complete(const char *prefix, const json_t *given, json_t **whole) {
  status st = OK;
  *whole = json_object();
  if (!*whole) return fail(E_MEMORY, "%s: no memory", prefix);
  TRY(check_names(prefix, given));
  for (int i = 0; i < option_count; i++) {
    json_t *list = json_array();
    if (json_object_set_new(*whole, rows[i].name, list) != 0) {
      st = fail(E_MEMORY, "%s%s: no memory", prefix, rows[i].name);
      goto done;
    }
    TRY(complete_row(prefix, &rows[i], json_object_get(given, rows[i].name), list));
  }
done:
  if (st != OK) json_drop(whole);
  return st;
}

void option_resolve(int i, const json_t *value, const method *m, int bits, int group, options *o) {
  const option_row *r = &rows[i];
  char *member = (char *)o + r->offset;
  if (r->kind == OPT_FIXED) return;
  if (r->kind == OPT_CHOICE) {
    int word = value ? word_index(r->offered, json_string_value(value)) : 0;
    if (r->size == sizeof(bool))
      *(bool *)member = word == 1;
    else
      memcpy(member, &word, sizeof word);
    return;
  }
  double x = json_is_number(value) ? json_number_value(value) : r->automatic ? r->automatic(m, bits, group, o) : r->standard;
  if (r->kind == OPT_REAL)
    *(double *)(void *)member = x;
  else
    *(int *)(void *)member = (int)x;
}

void option_text(int i, const options *o, char text[OPTION_TEXT]) {
  const option_row *r = &rows[i];
  const char *member = (const char *)o + r->offset;
  if (r->kind == OPT_FIXED) {
    snprintf(text, OPTION_TEXT, "%s", r->offered[0]);
  } else if (r->kind == OPT_CHOICE) {
    int word = 0;
    if (r->size == sizeof(bool))
      word = *(const bool *)member;
    else
      memcpy(&word, member, sizeof word);
    snprintf(text, OPTION_TEXT, "%s", r->offered[word]);
  } else if (r->kind == OPT_REAL) {
    settings_real(*(const double *)(const void *)member, text);
  } else {
    snprintf(text, OPTION_TEXT, "%d", *(const int *)(const void *)member);
  }
}
