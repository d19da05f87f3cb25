#include "job/options.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/settings.h"

typedef enum option_kind { OPT_REAL, OPT_COUNT, OPT_CHOICE, OPT_FIXED } option_kind;

typedef struct option_row {
  const char *name;
  option_kind kind;
  option_stage stage;
  bool (*reach)(const method *m); /* does the method look at it? */
  size_t offset, size;            /* the member of struct options; FIXED: none */
  double standard, lo, hi;        /* REAL, COUNT */
  const char *const *offered,
      *const *later; /* CHOICE, FIXED: ended by NULL, the default first; later: FIXED: known, but not in this version */
  double (*automatic)(const method *m, int bits, int group, const options *o); /* "auto" is the default; CHOICE: the place of its word */
  bool (*within)(const options *o);                                            /* NULL, or when it changes anything */
} option_row;

/* ---- who looks at an option ---- */

static bool all(const method *m) { return m != NULL; }
static bool with_magr(const method *m) { return m->magr; }
static bool with_factor(const method *m) { return method_quantizer(m)->factor; }
static bool with_optq(const method *m) { return m->quantizer == QUANT_OPTQ || m->quantizer == QUANT_SLIM; }
static bool with_descent(const method *m) { return m->quantizer == QUANT_OPTQ && method_init(m)->scheme < SCHEME_REFINE; }
static bool with_uniform(const method *m) { return method_quantizer(m)->grid == GRID_UNIFORM; }
static bool with_nf(const method *m) { return method_quantizer(m)->grid == GRID_NF; }
static bool with_slim(const method *m) { return m->quantizer == QUANT_SLIM; }
static bool with_fit(const method *m) {
  return method_init(m)->scheme == SCHEME_FIT || method_init(m)->scheme == SCHEME_REFINE ||
         (method_init(m)->scheme == SCHEME_JOINT && m->init != INIT_L4Q);
}
static bool with_gram_fit(const method *m) {
  scheme s = method_init(m)->scheme;
  return (s == SCHEME_FIT || s == SCHEME_REFINE) && method_init(m)->metric == METRIC_GRAM;
}
static bool with_lqer(const method *m) { return m->init == INIT_LQER; }
static bool with_eora(const method *m) { return m->init == INIT_EORA; }
static bool with_loftq(const method *m) { return m->init == INIT_LOFTQ; }
static bool with_lasq_q(const method *m) { return m->init == INIT_LASQ_Q; }
static bool with_alternation(const method *m) { return m->init == INIT_CALDERA || m->init == INIT_ODLRI; }
static bool with_refine(const method *m) { return m->init == INIT_REFINE; }
static bool with_ranks(const method *m) { return method_init(m)->scheme == SCHEME_REFINE; }
static bool with_rounds(const method *m) { return with_alternation(m) || (with_ranks(m) && !with_refine(m)); }
static bool with_joint_grid(const method *m) { return with_alternation(m) || m->init == INIT_VARPRO; }
static bool with_ridge(const method *m) { return with_refine(m) || m->init == INIT_VARPRO; }
static bool with_caldera(const method *m) { return m->init == INIT_CALDERA; }
static bool with_l4q(const method *m) { return m->init == INIT_L4Q; }
static bool with_random(const method *m) { return m->init == INIT_ZERO || m->init == INIT_L4Q; }

static bool with_cross(const options *o) { return o->act_quantizer == INPUTS_CROSS; }

/* ---- defaults that depend on the setting ---- */

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

static double auto_grid_search(const method *m, int bits, int group, const options *o) {
  (void)bits, (void)group, (void)o;
  return m->init == INIT_L4Q ? SEARCH_L4Q : m->init == INIT_REFINE ? SEARCH_REFIT : SEARCH_NONE;
}

static double auto_grid_weight(const method *m, int bits, int group, const options *o) {
  (void)bits, (void)group;
  bool weighs = o->grid_search == SEARCH_SCAN || o->grid_search == SEARCH_REFIT;
  return weighs && (method_init(m)->scheme == SCHEME_ZERO || m->init == INIT_REFINE) ? WEIGHT_DIAGONAL : WEIGHT_ONES;
}

static double auto_refine_stop(const method *m, int bits, int group, const options *o) {
  (void)m, (void)bits, (void)group;
  return o->refine_rounds == ROUNDS_AUTO ? 0.003 : 0;
}

static double auto_candidates(const method *m, int bits, int group, const options *o) {
  (void)m, (void)bits, (void)group;
  return o->refine_rounds == ROUNDS_AUTO;
}

static double auto_optq_order(const method *m, int bits, int group, const options *o) {
  (void)bits, (void)group, (void)o;
  return m->init == INIT_REFINE;
}

static double auto_cd_rounds(const method *m, int bits, int group, const options *o) {
  (void)m, (void)group, (void)o;
  return bits == 2 ? 30 : 1;
}

static double auto_nf_double(const method *m, int bits, int group, const options *o) {
  (void)bits, (void)group, (void)o;
  return m->init == INIT_ZERO;
}

static double auto_act_adapter(const method *m, int bits, int group, const options *o) {
  (void)m, (void)bits, (void)group;
  return o->act_quantizer;
}

static double auto_split(const method *m, int bits, int group, const options *o) {
  (void)bits, (void)group, (void)o;
  return method_init(m)->split;
}

#define WORDS(...) \
  (const char *const[]) { __VA_ARGS__, NULL }
#define MEMBER(field) offsetof(options, field), sizeof(((options *)0)->field)
#define REAL(name, stage, reach, standard, lo, hi, automatic) \
  { #name, OPT_REAL, stage, reach, MEMBER(name), standard, lo, hi, NULL, NULL, automatic, NULL }
#define COUNT(name, stage, reach, field, standard, lo, hi, automatic) \
  { #name, OPT_COUNT, stage, reach, MEMBER(field), standard, lo, hi, NULL, NULL, automatic, NULL }
#define CHOICE(name, stage, reach, field, automatic, ...) \
  { #name, OPT_CHOICE, stage, reach, MEMBER(field), 0, 0, 0, WORDS(__VA_ARGS__), NULL, automatic, NULL }
#define FIXED(name, reach, offered, ...) \
  { #name, OPT_FIXED, STAGE_NONE, reach, 0, 0, 0, 0, 0, WORDS(#offered), WORDS(__VA_ARGS__), NULL, NULL }

static const option_row rows[] = {
    REAL(damping, STAGE_FACTOR, with_factor, 0.01, 0, 10, NULL),
    COUNT(damping_escalate, STAGE_FACTOR, with_factor, damping_escalate, 0, 0, 3, NULL),
    CHOICE(residual, STAGE_ADAPTER, with_magr, residual_magr, NULL, "original", "magr"),
    REAL(adapter_damping, STAGE_ADAPTER, with_gram_fit, 0, 0, 10, NULL),
    REAL(adapter_tolerance, STAGE_ADAPTER, with_fit, 1e-6, 1e-12, 1, NULL),
    CHOICE(adapter_solver, STAGE_ADAPTER, with_gram_fit, adapter_solver, NULL, "auto", "dense", "krylov", "grid"),
    CHOICE(magr_solver, STAGE_MAGR, with_magr, magr_solver, NULL, "fista", "pg"),
    REAL(magr_alpha, STAGE_MAGR, with_magr, 0, 0, 10, auto_magr_alpha),
    COUNT(magr_K, STAGE_MAGR, with_magr, magr_K, 0, 1, 100000, auto_magr_steps),
    CHOICE(magr_threshold, STAGE_MAGR, with_magr, magr_literal, NULL, "normalised", "literal"),
    CHOICE(grid_type, STAGE_CODES, with_uniform, grid_symmetric, NULL, "asym", "sym"),
    CHOICE(grid_zero, STAGE_CODES, with_uniform, grid_real_zero, NULL, "int", "real"),
    REAL(grid_beta, STAGE_CODES, with_uniform, 0, 0.1, 1, auto_grid_beta),
    CHOICE(grid_beta_anchor, STAGE_CODES, with_uniform, grid_beta_anchor_zero, NULL, "low", "zero"),
    CHOICE(grid_search, STAGE_CODES, with_uniform, grid_search, auto_grid_search, "none", "mse", "scan", "refit", "lsq", "symm", "asymm",
           "l4q"),
    CHOICE(grid_weight, STAGE_CODES, with_uniform, grid_weight, auto_grid_weight, "ones", "sqrt", "diag"),
    CHOICE(optq_order, STAGE_FACTOR, with_optq, optq_order_act, auto_optq_order, "natural", "act"),
    CHOICE(optq_groups, STAGE_CODES, with_optq, optq_dynamic, NULL, "static", "dynamic"),
    CHOICE(optq_dead, STAGE_CODES, with_optq, optq_dead_rtn, NULL, "zero", "rtn"),
    CHOICE(cd_pass, STAGE_CODES, with_descent, cd_pass, NULL, "none", "comq"),
    COUNT(cd_rounds, STAGE_CODES, with_descent, cd_rounds, 0, 1, 1000, auto_cd_rounds),
    CHOICE(nf_double, STAGE_CODES, with_nf, nf_double, auto_nf_double, "off", "on"),
    CHOICE(slim_salience, STAGE_CODES, with_slim, slim_chol, NULL, "inv", "chol"),
    CHOICE(lqer_stat, STAGE_ADAPTER, with_lqer, lqer_mean, NULL, "max", "mean"),
    COUNT(loftq_T, STAGE_ADAPTER, with_loftq, loftq_T, 5, 1, 1000, NULL),
    CHOICE(loftq_parity_scale, STAGE_ADAPTER, with_loftq, loftq_parity_scale, NULL, "off", "on"),
    CHOICE(lasq_base, STAGE_ADAPTER, with_lasq_q, lasq_base_q0, NULL, "residual", "q0"),
    COUNT(joint_rounds, STAGE_ADAPTER, with_rounds, joint_rounds, 2, 1, 1000, NULL),
    CHOICE(joint_grid, STAGE_ADAPTER, with_joint_grid, joint_refit, NULL, "frozen", "refit"),
    CHOICE(joint_start, STAGE_ADAPTER, with_caldera, joint_adapter_first, NULL, "quantize", "adapter"),
    CHOICE(refine_rounds, STAGE_ADAPTER, with_refine, refine_rounds, NULL, "auto", "3+2", "6+4", "12+4"),
    REAL(refine_stop, STAGE_ADAPTER, with_refine, 0, 0, 1, auto_refine_stop),
    REAL(refine_ridge, STAGE_ADAPTER, with_ridge, 0.03, 0, 10, NULL),
    CHOICE(refine_candidates, STAGE_ADAPTER, with_refine, refine_candidates, auto_candidates, "off", "on"),
    CHOICE(refine_ranks, STAGE_NONE, with_ranks, refine_ranks, NULL, "spread", "each", "smallest"),
    COUNT(l4q_steps, STAGE_ADAPTER, with_l4q, l4q_steps, 100, 1, 100000, NULL),
    COUNT(adapter_seed, STAGE_ADAPTER, with_random, seed, 0, 0, 1000000000, NULL),
    CHOICE(split, STAGE_NONE, all, split, auto_split, "cloq", "qera", "balanced"),
    CHOICE(act_quantizer, STAGE_CODES, all, act_quantizer, NULL, "fp", "prefix", "cross"),
    CHOICE(act_adapter, STAGE_ADAPTER, all, act_adapter, auto_act_adapter, "fp", "prefix", "cross"),
    {"xgram_alpha", OPT_REAL, STAGE_CODES, all, MEMBER(xgram_alpha), 0.5, 0, 1, NULL, NULL, NULL, with_cross},
    FIXED(slim_score, with_slim, gram, "outputs"),
    FIXED(eora_gram, with_eora, sum, "recent"),
    FIXED(adapter_dtype, all, fp32, "fp16", "bf16"),
};
enum { ROWS = sizeof rows / sizeof *rows };
const int option_count = ROWS;
_Static_assert((int)ROWS <= (int)OPTION_MOST, "the sweep counts through the options in an array of OPTION_MOST");

/* Names of the literature that are something else here, or nothing yet. */
static const struct {
  const char *name, *instead;
} elsewhere[] = {
    {"lasq_variant", "the variants are methods: lasq-w, lasq-q, lasq-e"},
    {"joint_method", "they are methods: refine, varpro, bidup, projq, gptq-intrinsic, caldera"},
    {"lr_solver", "it is called adapter_solver"},
    {"joint_damp", "the joint methods take options.damping"},
    {"xgram_damp", "a cross-Gram target is damped on both sides, with 0.01 of the Gram's mean diagonal"},
};

const char *option_name(int i) { return rows[i].name; }

bool option_concerns(int i, const method *m) { return rows[i].reach(m); }

bool option_matters(int i, const method *m, const options *o) { return rows[i].reach(m) && (!rows[i].within || rows[i].within(o)); }

bool options_equal(option_stage stage, const method *m, const options *a, const options *b) {
  for (int i = 0; i < ROWS; i++) {
    const option_row *r = &rows[i];
    if (r->stage == stage && r->kind != OPT_FIXED && r->reach(m) &&
        memcmp((const char *)a + r->offset, (const char *)b + r->offset, r->size))
      return false;
  }
  return true;
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
    char offered[128];
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
    for (size_t e = 0; e < sizeof elsewhere / sizeof *elsewhere; e++)
      if (strcmp(elsewhere[e].name, key) == 0) return fail(E_USAGE, "%s%s: unknown option: %s", prefix, key, elsewhere[e].instead);
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
    int word = value ? word_index(r->offered, json_string_value(value)) : -1;
    if (word < 0) word = r->automatic ? (int)r->automatic(m, bits, group, o) : 0; /* "auto" is no word of the row */
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

bool option_is_automatic(int i, const method *m, int bits, int group, const options *o) {
  char text[OPTION_TEXT], usual[OPTION_TEXT];
  options automatic = *o;
  if (!rows[i].automatic) return false;
  option_resolve(i, NULL, m, bits, group, &automatic);
  option_text(i, o, text);
  option_text(i, &automatic, usual);
  return strcmp(text, usual) == 0;
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
