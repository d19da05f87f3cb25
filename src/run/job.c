#include "run/job.h"

#include <fnmatch.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/settings.h"
#include "quant/nf4.h"
#include "run/options.h"

enum { PREFIX = 1024, MOST_SETTINGS = 4096, MOST_BITS = 8 };

/* A mapping of the job file while it is read. Every getter checks one key and records the resolved value, defaults included, in out. */
typedef struct section {
  char prefix[PREFIX]; /* "job.yaml: calibration." : what a message puts before the key */
  const json_t *given; /* borrowed; NULL or null: nothing was given */
  json_t *out;         /* owned by the tree that is being made */
} section;

static void compose(char prefix[PREFIX], const char *format, ...) __attribute__((format(printf, 2, 3)));
static void compose(char prefix[PREFIX], const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(prefix, PREFIX, format, arguments); /* a path that is longer is cut, in a message */
  va_end(arguments);
}

static const json_t *lookup(const section *s, const char *key) {
  const json_t *v = json_object_get(s->given, key);
  return json_is_null(v) ? NULL : v; /* `key:` with nothing behind it is a key that is not given */
}

/* Records value (taken over) under the key. */
static status keep(section *s, const char *key, json_t *value) {
  return value && json_object_set_new(s->out, key, value) == 0 ? OK : fail(E_MEMORY, "%s%s: no memory", s->prefix, key);
}

static status expected(const section *s, const char *key, const char *what, const json_t *found) {
  char text[SETTINGS_FOUND];
  settings_found(found, text);
  return fail(E_USAGE, "%s%s: expected %s, found %s", s->prefix, key, what, text);
}

static status only_keys(const section *s, const char *const *keys, int count) {
  const char *key;
  json_t *value;
  json_object_foreach((json_t *)s->given, key, value) {
    int i = 0;
    while (i < count && strcmp(keys[i], key) != 0) i++;
    if (i < count) continue;
    const char *near = settings_nearest(key, keys, count);
    return fail(E_USAGE, "%s%s: unknown key%s%s", s->prefix, key, near ? ", did you mean " : "", near ? near : "");
  }
  return OK;
}
#define ONLY_KEYS(s, ...) \
  only_keys((s), (const char *const[]){__VA_ARGS__}, (int)(sizeof((const char *const[]){__VA_ARGS__}) / sizeof(const char *)))

/* The mapping under a key of `outer` as a section of its own; out is put into the tree. */
static status open_section(section *outer, const char *key, const char *what, bool required, section *s) {
  const json_t *v = lookup(outer, key);
  if (v ? !json_is_object(v) : required) return expected(outer, key, what, v);
  compose(s->prefix, "%s%s.", outer->prefix, key);
  s->given = v;
  s->out = json_object();
  return keep(outer, key, s->out);
}

static status get_text(section *s, const char *key, const char *what, char **text) {
  const json_t *v = lookup(s, key);
  if (!json_is_string(v) || json_string_length(v) == 0) return expected(s, key, what, v);
  *text = mem_format("%s", json_string_value(v));
  if (!*text) return fail(E_MEMORY, "%s%s: no memory", s->prefix, key);
  return keep(s, key, json_string(*text));
}

/* word: an accepted text that stands for 0 ("auto", "node"), or NULL. */
static status get_int(section *s, const char *key, const char *what, int64_t lo, int64_t hi, const char *word, int64_t missing,
                      int64_t *value) {
  const json_t *v = lookup(s, key);
  if (word && (!v || (json_is_string(v) && strcmp(json_string_value(v), word) == 0))) {
    *value = 0;
    return keep(s, key, json_string(word));
  }
  if (v && (!json_is_integer(v) || json_integer_value(v) < lo || json_integer_value(v) > hi)) return expected(s, key, what, v);
  *value = v ? json_integer_value(v) : missing;
  return keep(s, key, json_integer(*value));
}

static status get_real(section *s, const char *key, const char *what, double lo, double hi, const char *word, double missing,
                       double *value) {
  const json_t *v = lookup(s, key);
  if (word && (!v || (json_is_string(v) && strcmp(json_string_value(v), word) == 0))) {
    *value = 0;
    return keep(s, key, json_string(word));
  }
  if (v && (!json_is_number(v) || !(json_number_value(v) >= lo && json_number_value(v) <= hi))) return expected(s, key, what, v);
  *value = v ? json_number_value(v) : missing;
  return keep(s, key, json_real(*value));
}

/* ---- model, tokens, targets, parallel ---- */

/* What a section of tokens does not say is as in usual (path NULL: it must say that; windows 0: all that the file holds). */
static status read_windows(section *s, const window_request *usual, const char *windows_word, int64_t shortest, window_request *q) {
  status st = OK;
  char *path = NULL;
  TRY(ONLY_KEYS(s, "tokens", "windows", "length", "sampling", "seed"));
  if (usual->path && !lookup(s, "tokens")) {
    if (!(path = mem_format("%s", usual->path))) return fail(E_MEMORY, "%stokens: no memory", s->prefix);
    q->path = path;
    TRY(keep(s, "tokens", json_string(path)));
  } else {
    TRY(get_text(s, "tokens", "the path of a token file", &path));
    q->path = path;
  }
  bool all = windows_word && (lookup(s, "windows") || !usual->windows);
  TRY(get_int(s, "windows", windows_word ? "all or a count of at least 1" : "a count of at least 1", 1, 1 << 24, all ? windows_word : NULL,
              usual->windows, &q->windows));
  TRY(get_int(s, "length", shortest > 1 ? "a count of tokens, 2 to 1048576" : "a count of tokens, 1 to 1048576", shortest, 1 << 20, NULL,
              usual->length, &q->length));
  const json_t *v = lookup(s, "sampling");
  const char *word = v ? json_string_value(v) : usual->how == SAMPLE_RANDOM ? "random" : "sequential";
  bool random = word && strcmp(word, "random") == 0;
  if (!random && !(word && strcmp(word, "sequential") == 0)) {
    st = expected(s, "sampling", "random or sequential", v);
    goto done;
  }
  q->how = random ? SAMPLE_RANDOM : SAMPLE_SEQUENTIAL;
  if (random && q->windows == 0) {
    st = fail(E_USAGE, "%swindows: expected a count with sampling: random, found all", s->prefix);
    goto done;
  }
  TRY(keep(s, "sampling", json_string(word)));
  TRY(get_int(s, "seed", "an integer of at least 0", 0, INT64_MAX, NULL, 0, &q->seed));
done:
  return st;
}

/* calibration: { merge: [RUN, ...] } or { import: DIR, count: TOKENS }. */
static status read_gram_sources(section *s, job *j) {
  status st = OK;
  const char *key = lookup(s, "merge") ? "merge" : "import";
  const json_t *v = lookup(s, key);
  bool merge = strcmp(key, "merge") == 0;
  json_t *list = NULL;
  if (lookup(s, "tokens") || (merge && lookup(s, "import")))
    return fail(E_USAGE, "%s%s: expected Grams from one place, found %s as well", s->prefix, key,
                lookup(s, "tokens") ? "tokens" : "import");
  if (merge)
    TRY(ONLY_KEYS(s, "merge"));
  else
    TRY(ONLY_KEYS(s, "import", "count"));
  list = json_is_array(v) && merge ? json_incref((json_t *)v) : json_pack("[O]", v);
  if (!list || json_array_size(list) == 0) {
    st = expected(s, key, "at least one run directory", v);
    goto done;
  }
  j->grams.origin = merge ? GRAMS_MERGED : GRAMS_IMPORTED;
  TRY(NEW(j->grams.from, json_array_size(list), "sources of Grams"));
  for (size_t i = 0; i < json_array_size(list); i++) {
    const json_t *path = json_array_get(list, i);
    if (!json_is_string(path) || json_string_length(path) == 0) {
      st = expected(s, key, merge ? "paths of run directories" : "the path of a folder of Grams", path);
      goto done;
    }
    if (!(j->grams.from[i] = mem_format("%s", json_string_value(path)))) {
      st = fail(E_MEMORY, "%s%s: no memory", s->prefix, key);
      goto done;
    }
    j->grams.count++;
  }
  TRY(keep(s, key, merge ? json_incref(list) : json_string(j->grams.from[0])));
  if (lookup(s, "count")) TRY(get_int(s, "count", "a count of tokens, at least 1", 1, INT64_MAX, NULL, 0, &j->grams.tokens));
done:
  json_drop(&list);
  return st;
}

/* Perplexity's tokens. Without tokens of its own: the held-out ones, as many windows; else all windows of its file. Never random unless
 * it says so: windows that overlap are not independent. */
static status read_eval(section *root, job *j) {
  status st = OK;
  section s;
  window_request usual = {.length = j->calibration.length, .how = SAMPLE_SEQUENTIAL};
  const json_t *given = lookup(root, "eval");
  if (j->has_heldout) {
    usual.length = j->heldout.length;
    if (!json_object_get(given, "tokens")) usual.path = j->heldout.path, usual.windows = j->heldout.windows;
  }
  j->has_eval = given || j->has_heldout;
  if (given) {
    TRY(open_section(root, "eval", "a mapping with tokens", false, &s));
    TRY(read_windows(&s, &usual, "all", 2, &j->eval));
  } else if (j->has_heldout) {
    j->eval = usual;
    if (!(j->eval.path = mem_format("%s", usual.path))) return fail(E_MEMORY, "%seval: no memory", root->prefix);
  }
done:
  return st;
}

static status read_target(section *root, const json_t *v, bool target[LIN_COUNT]) {
  const char *names[LIN_COUNT], *word = json_is_string(v) ? json_string_value(v) : NULL;
  if (!word) return expected(root, "targets", "names of linears", v);
  for (int l = 0; l < LIN_COUNT; l++) {
    names[l] = linear_short((linear_id)l);
    if (strcmp(word, names[l]) != 0) continue;
    if (target[l]) return fail(E_USAGE, "%stargets: %s is named twice", root->prefix, word);
    target[l] = true;
    return OK;
  }
  const char *near = settings_nearest(word, names, LIN_COUNT);
  return fail(E_USAGE, "%stargets: unknown linear %s%s%s", root->prefix, word, near ? ", did you mean " : "", near ? near : "");
}

static status read_targets(section *root, bool target[LIN_COUNT]) {
  status st = OK;
  const json_t *v = lookup(root, "targets");
  size_t count = json_is_array(v) ? json_array_size(v) : 1;
  if (count == 0) return expected(root, "targets", "at least one linear", v);
  if (v)
    for (size_t i = 0; i < count; i++) TRY(read_target(root, json_is_array(v) ? json_array_get(v, i) : v, target));
  json_t *list = json_array();
  TRY(keep(root, "targets", list));
  for (int l = 0; l < LIN_COUNT; l++) {
    if (!v) target[l] = true;
    if (target[l] && json_array_append_new(list, json_string(linear_short((linear_id)l))) != 0) {
      st = fail(E_MEMORY, "%stargets: no memory", root->prefix);
      goto done;
    }
  }
done:
  return st;
}

static status read_parallel(section *root, job *j) {
  status st = OK;
  section s;
  int64_t ranks = 0, teams = 0;
  TRY(open_section(root, "parallel", "a mapping with team, teams, memory_per_node, checkpoint_minutes", false, &s));
  TRY(ONLY_KEYS(&s, "team", "teams", "memory_per_node", "checkpoint_minutes"));
  TRY(get_int(&s, "team", "node or a count of ranks", 1, 1 << 24, "node", 0, &ranks));
  TRY(get_int(&s, "teams", "auto or a count", 1, 1 << 24, "auto", 0, &teams));
  TRY(get_real(&s, "memory_per_node", "auto or GiB, at least 0.001", 1e-3, 1e9, "auto", 0, &j->parallel.memory_per_node));
  TRY(get_real(&s, "checkpoint_minutes", "minutes, at least 0", 0, 1e9, NULL, 10, &j->parallel.checkpoint_minutes));
  j->parallel.team = (int)ranks;
  j->parallel.teams = (int)teams;
done:
  return st;
}

/* ---- the sweep ---- */

/* The values of one sweep key, scalar or list, as a list that is recorded; missing: the default, NULL where the key must be given. */
static status read_axis(section *s, const char *key, const char *what, const json_t *missing, json_t **list) {
  const json_t *v = lookup(s, key);
  if (!v) v = missing;
  if (!v || (json_is_array(v) && json_array_size(v) == 0)) return expected(s, key, what, v);
  *list = json_is_array(v) ? json_copy((json_t *)v) : json_pack("[O]", v);
  return keep(s, key, *list);
}

static status read_axis_int(section *s, const char *key, const char *what, int lo, int hi, const json_t *missing, json_t **list) {
  status st = OK;
  size_t i;
  json_t *v;
  TRY(read_axis(s, key, what, missing, list));
  json_array_foreach(*list, i, v) if (!json_is_integer(v) || json_integer_value(v) < lo ||
                                      json_integer_value(v) > hi) return expected(s, key, what, v);
done:
  return st;
}

/* One part of a method by its name. */
static status read_part(section *s, const char *key, const char *const *names, int count, int *index) {
  const json_t *v = lookup(s, key);
  const char *word = json_string_value(v);
  char what[256] = "one of ";
  for (int i = 0; i < count; i++) {
    size_t used = strlen(what);
    snprintf(what + used, sizeof what - used, "%s%s", i ? ", " : "", names[i]);
  }
  if (!word) return expected(s, key, what, v);
  for (*index = 0; *index < count; ++*index)
    if (strcmp(names[*index], word) == 0) return OK;
  const char *near = settings_nearest(word, names, count);
  if (near) return fail(E_USAGE, "%s%s: unknown %s %s, did you mean %s", s->prefix, key, key, word, near);
  return fail(E_USAGE, "%s%s: unknown %s %s, expected %s", s->prefix, key, key, word, what);
}

/* A method by its parts: its quantizer and initialization, and whether MagR comes before. */
static status read_parts(const section *s, const json_t *v, const method **m) {
  status st = OK;
  section parts = {.given = v};
  const char *names[(int)QUANT_COUNT > (int)INIT_COUNT ? (int)QUANT_COUNT : (int)INIT_COUNT], *why;
  int q = 0, i = 0;
  compose(parts.prefix, "%smethod.", s->prefix);
  TRY(ONLY_KEYS(&parts, "quantizer", "init", "magr"));
  for (int k = 0; k < QUANT_COUNT; k++) names[k] = quantizers[k].name;
  TRY(read_part(&parts, "quantizer", names, QUANT_COUNT, &q));
  for (int k = 0; k < INIT_COUNT; k++) names[k] = initializations[k].name;
  TRY(read_part(&parts, "init", names, INIT_COUNT, &i));
  const json_t *magr = lookup(&parts, "magr");
  if (magr && !json_is_boolean(magr)) return expected(&parts, "magr", "true or false", magr);
  *m = method_combine(json_is_true(magr), (quantizer)q, (initialization)i, &why);
  if (!*m)
    st = fail(E_USAGE, "%smethod: %s%s does not go with %s: %s", s->prefix, json_is_true(magr) ? "MagR and " : "", quantizers[q].name,
              initializations[i].name, why);
done:
  return st;
}

/* One entry of sweep.method: the name of a row, or its parts. */
static status read_method(const section *s, const json_t *v, const method **m) {
  if (json_is_object(v)) return read_parts(s, v, m);
  if (!json_is_string(v)) return expected(s, "method", "names of methods", v);
  const char *name = json_string_value(v);
  const method *near = method_nearest(name);
  *m = method_find(name);
  if (*m && (*m)->refused) return fail(E_USAGE, "%smethod: %s is not offered: %s", s->prefix, name, (*m)->refused);
  if (*m) return OK;
  if (near) return fail(E_USAGE, "%smethod: unknown method %s, did you mean %s", s->prefix, name, near->name);
  return fail(E_USAGE, "%smethod: unknown method %s: `cloqwork methods` lists those of this version", s->prefix, name);
}

/* A row of the sweep that is being walked through: everything of a setting but its options and rank. */
typedef struct combination {
  const char *where; /* "job.yaml: sweep" */
  const method *method;
  int bits, group;
  const json_t *ranks;
} combination;

/* name, rule and resolved options; choice[i] is the place in option i's list of values. */
static status make_setting(const combination *c, const json_t *option_lists, const size_t *choice, setting *s) {
  *s = (setting){.method = c->method};
  size_t used = (size_t)snprintf(s->name, sizeof s->name, "%s-b%d-g%d", c->method->name, c->bits, c->group);
  for (int i = 0; i < option_count; i++) {
    char text[OPTION_TEXT], usual[OPTION_TEXT];
    const json_t *list = json_object_get(option_lists, option_name(i));
    option_resolve(i, option_concerns(i, c->method) ? json_array_get(list, choice[i]) : NULL, c->method, c->bits, c->group, &s->options);
    options standard = s->options; /* what "auto" would be next to the options before it */
    option_resolve(i, NULL, c->method, c->bits, c->group, &standard);
    option_text(i, &s->options, text);
    option_text(i, &standard, usual);
    if (strcmp(text, usual) != 0) used += (size_t)snprintf(s->name + used, sizeof s->name - used, "-%s_%s", option_name(i), text);
    if (used >= sizeof s->name)
      return fail(E_USAGE, "%s: the setting's name %s… is too long: expected fewer options off their default", c->where, s->name);
  }
  if (s->options.grid_real_zero && s->options.grid_symmetric)
    return fail(E_USAGE, "%s: %s: options.grid_zero: expected int with grid_type: sym (its zero point is the middle code), found real",
                c->where, s->name);
  s->rule = (grid_rule){.kind = method_quantizer(c->method)->grid,
                        .bits = c->bits,
                        .group = c->group,
                        .nested = s->options.nf_double,
                        .symmetric = s->options.grid_symmetric,
                        .beta = s->options.grid_beta,
                        .anchor_zero = s->options.grid_beta_anchor_zero,
                        .search = s->options.grid_search,
                        .real_zero = s->options.grid_real_zero};
  return OK;
}

/* Adds ranks to the setting, ascending. A rank that is there already means that two combinations of the sweep coincide. */
static status add_ranks(const combination *c, setting *s) {
  status st = OK;
  int *all = NULL, count = s->rank_count;
  size_t k;
  json_t *v;
  TRY(NEW(all, (size_t)count + json_array_size(c->ranks), "ranks of a setting"));
  if (count) memcpy(all, s->ranks, (size_t)count * sizeof *all);
  json_array_foreach(c->ranks, k, v) {
    int rank = (int)json_integer_value(v), at = count;
    for (int i = 0; i < count; i++)
      if (all[i] == rank) {
        st = fail(E_USAGE, "%s: %s with rank %d is asked for twice", c->where, s->name, rank);
        goto done;
      }
    for (; at > 0 && all[at - 1] > rank; at--) all[at] = all[at - 1];
    all[at] = rank;
    count++;
  }
  FREE(s->ranks);
  s->ranks = all;
  all = NULL;
  s->rank_count = count;
  s->rank_max = s->ranks[count - 1];
done:
  FREE(all);
  return st;
}

/* Bits that the quantizer has, and groups that the loaders of normal floats know. */
static status check_quantizer(const section *s, const combination *c) {
  const char *name = c->method->name;
  const quantizer_row *q = method_quantizer(c->method);
  if (c->bits < q->bits_least || c->bits > q->bits_most) {
    char range[32];
    snprintf(range, sizeof range, q->bits_least == q->bits_most ? "%d" : "%d to %d", q->bits_least, q->bits_most);
    return fail(E_USAGE, "%sbits: expected %s with %s (a list of sweeps gives every method its own bits), found %d", s->prefix, range, name,
                c->bits);
  }
  if (q->grid != GRID_NF) return OK;
  if (c->group == 0)
    return fail(E_USAGE, "%sgroup: expected a power of two from %d to %d with %s (NF4 knows no block of a whole row), found 0", s->prefix,
                NF4_GROUP_LEAST, NF4_GROUP_MOST, name);
  if (c->group < NF4_GROUP_LEAST || c->group > NF4_GROUP_MOST || (c->group & (c->group - 1)))
    return fail(E_USAGE, "%sgroup: expected a power of two from %d to %d with %s, found %d", s->prefix, NF4_GROUP_LEAST, NF4_GROUP_MOST,
                name, c->group);
  return OK;
}

/* Every choice of options for one method, bits and group; options that the method does not look at stay at their first place. */
static status add_combination(const combination *c, const json_t *option_lists, job *j) {
  status st = OK;
  size_t choice[OPTION_MOST] = {0};
  for (;;) {
    setting s, *same = NULL;
    TRY(make_setting(c, option_lists, choice, &s));
    for (int i = 0; i < j->setting_count && !same; i++)
      if (strcmp(j->settings[i].name, s.name) == 0) same = &j->settings[i];
    if (!same) {
      if (j->setting_count == MOST_SETTINGS) return fail(E_USAGE, "%s: expected at most %d settings, found more", c->where, MOST_SETTINGS);
      same = &j->settings[j->setting_count++];
      *same = s;
    }
    TRY(add_ranks(c, same));
    int i = option_count - 1; /* the next choice, like an odometer */
    for (; i >= 0; i--) {
      size_t values = option_concerns(i, c->method) ? json_array_size(json_object_get(option_lists, option_name(i))) : 1;
      if (++choice[i] < values) break;
      choice[i] = 0;
    }
    if (i < 0) return OK;
  }
done:
  return st;
}

/* One map of the sweep: s.given is it, s.out records it. */
static status add_map(section *s, const char *where, const json_t *option_lists, job *j) {
  status st = OK;
  size_t a, b, g;
  json_t *method_list, *bits_list, *group_list, *rank_list, *m, *bits, *group;
  json_t *usual_method = json_string("cloq"), *usual_group = json_integer(64);
  TRY(ONLY_KEYS(s, "method", "bits", "group", "rank"));
  TRY(read_axis(s, "method", "names of methods", usual_method, &method_list));
  TRY(read_axis_int(s, "bits", "1 to 8", 1, MOST_BITS, NULL, &bits_list));
  TRY(read_axis_int(s, "group", "0 (one scale per row) or a count of columns", 0, 1 << 24, usual_group, &group_list));
  TRY(read_axis_int(s, "rank", "ranks of at least 1", 1, 1 << 24, NULL, &rank_list));
  json_array_foreach(method_list, a, m) json_array_foreach(bits_list, b, bits) json_array_foreach(group_list, g, group) {
    combination c = {where, NULL, (int)json_integer_value(bits), (int)json_integer_value(group), rank_list};
    TRY(read_method(s, m, &c.method));
    TRY(check_quantizer(s, &c));
    TRY(add_combination(&c, option_lists, j));
  }
done:
  json_decref(usual_method);
  json_decref(usual_group);
  return st;
}

static status read_sweep(section *root, const json_t *option_lists, job *j) {
  status st = OK;
  static const char what[] = "a mapping with bits and rank (and method, group), or a list of such mappings";
  const json_t *v = lookup(root, "sweep");
  section s;
  char where[PREFIX];
  compose(where, "%ssweep", root->prefix);
  if (!json_is_array(v)) {
    TRY(open_section(root, "sweep", what, true, &s));
    TRY(add_map(&s, where, option_lists, j));
  } else {
    json_t *list = json_array(), *map;
    size_t i;
    TRY(keep(root, "sweep", list));
    if (json_array_size(v) == 0) return expected(root, "sweep", what, v);
    json_array_foreach(v, i, map) {
      compose(s.prefix, "%s[%zu].", where, i);
      s.given = map;
      s.out = json_object();
      if (!json_is_object(map)) st = expected(root, "sweep", what, map);
      if (!s.out || json_array_append_new(list, s.out) != 0) st = fail(E_MEMORY, "%s: no memory", where);
      if (st != OK) goto done;
      TRY(add_map(&s, where, option_lists, j));
    }
  }
done:
  return st;
}

/* Lists of one become their value again. An option that no method of the sweep looks at must not have been given, and is not recorded:
 * what is recorded can be read back. */
static status keep_options(section *root, json_t *option_lists, const job *j) {
  const json_t *given = lookup(root, "options");
  for (int i = 0; i < option_count; i++) {
    const char *name = option_name(i);
    bool used = false;
    for (int k = 0; k < j->setting_count; k++) used = used || option_concerns(i, j->settings[k].method);
    const json_t *v = json_object_get(given, name);
    if (v && !json_is_null(v) && !used) return fail(E_USAGE, "%soptions.%s: no method of this sweep uses this option", root->prefix, name);
    json_t *list = json_object_get(option_lists, name);
    if (!used)
      json_object_del(option_lists, name);
    else if (json_array_size(list) == 1 && json_object_set(option_lists, name, json_array_get(list, 0)) != 0)
      return fail(E_MEMORY, "%soptions: no memory", root->prefix);
  }
  return keep(root, "options", json_incref(option_lists));
}

static status pick_settings(const char *pattern, job *j) {
  int kept = 0;
  if (!pattern) return OK;
  for (int i = 0; i < j->setting_count; i++) {
    setting s = j->settings[i];
    if (fnmatch(pattern, s.name, 0) == 0)
      j->settings[kept++] = s;
    else
      FREE(s.ranks);
  }
  int all = j->setting_count;
  char first[sizeof j->settings->name];
  snprintf(first, sizeof first, "%s", j->settings[0].name);
  j->setting_count = kept;
  if (kept) return OK;
  return fail(E_USAGE, "--settings %s: expected to match one of the job's %d settings, the first of which is %s", pattern, all, first);
}

/* ---- the whole ---- */

static status read_tree(section *root, const char *pattern, job *j) {
  status st = OK;
  section s;
  json_t *option_lists = NULL;
  char prefix[PREFIX];
  TRY(ONLY_KEYS(root, "model", "output", "calibration", "heldout", "eval", "targets", "sweep", "options", "parallel"));
  TRY(get_text(root, "model", "the folder of a checkpoint", &j->model));
  TRY(get_text(root, "output", "the run directory", &j->output));
  TRY(open_section(root, "calibration", "a mapping with tokens, merge or import", true, &s));
  const window_request usual = {.windows = 128, .length = 2048, .how = SAMPLE_RANDOM};
  j->calibration.length = usual.length; /* which other sections take for theirs */
  if (lookup(&s, "merge") || lookup(&s, "import"))
    TRY(read_gram_sources(&s, j));
  else
    TRY(read_windows(&s, &usual, NULL, 1, &j->calibration));
  j->has_heldout = lookup(root, "heldout") != NULL;
  if (j->has_heldout) {
    TRY(open_section(root, "heldout", "a mapping with tokens", true, &s));
    const window_request usual_heldout = {.windows = 32, .length = j->calibration.length, .how = SAMPLE_SEQUENTIAL};
    TRY(read_windows(&s, &usual_heldout, NULL, 1, &j->heldout));
  }
  TRY(read_eval(root, j));
  TRY(read_targets(root, j->target));
  const json_t *given = lookup(root, "options");
  if (given && !json_is_object(given)) {
    st = expected(root, "options", "a mapping of options", given);
    goto done;
  }
  compose(prefix, "%soptions.", root->prefix);
  TRY(options_complete(prefix, given, &option_lists));
  TRY(NEW(j->settings, MOST_SETTINGS, "settings"));
  TRY(read_sweep(root, option_lists, j));
  TRY(keep_options(root, option_lists, j));
  TRY(read_parallel(root, j));
  TRY(pick_settings(pattern, j));
done:
  json_drop(&option_lists);
  return st;
}

status job_read(const char *path, const char *const *overrides, int override_count, const char *pattern, job *j) {
  status st = OK;
  json_t *tree = NULL;
  section root;
  memset(j, 0, sizeof *j);
  j->path = mem_format("%s", path);
  j->tree = json_object();
  if (!j->path || !j->tree) {
    st = fail(E_MEMORY, "%s: no memory", path);
    goto done;
  }
  TRY(settings_read(path, &tree));
  if (!json_is_object(tree)) {
    char found[SETTINGS_FOUND];
    settings_found(tree, found);
    st = fail(E_USAGE, "%s: expected a mapping with model, output, calibration and sweep, found %s", path, found);
    goto done;
  }
  for (int i = 0; i < override_count; i++) TRY(settings_set(tree, overrides[i]));
  compose(root.prefix, "%s: ", path);
  root.given = tree;
  root.out = j->tree;
  TRY(read_tree(&root, pattern, j));
done:
  json_drop(&tree);
  if (st != OK) job_free(j);
  return st;
}

void job_free(job *j) {
  FREE(j->path);
  FREE(j->model);
  FREE(j->output);
  char *tokens[] = {(char *)j->calibration.path, (char *)j->heldout.path, (char *)j->eval.path};
  for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) FREE(tokens[i]);
  for (int i = 0; i < j->grams.count; i++) FREE(j->grams.from[i]);
  FREE(j->grams.from);
  for (int i = 0; i < j->setting_count; i++) FREE(j->settings[i].ranks);
  FREE(j->settings);
  json_drop(&j->tree);
  memset(j, 0, sizeof *j);
}

grid_rule setting_rule(const setting *s, int64_t layer, linear_id l) {
  (void)layer, (void)l;
  return s->rule;
}

int setting_rank(const setting *s, int64_t layer, linear_id l) {
  (void)layer, (void)l;
  return s->rank_max;
}

scheme setting_scheme(const setting *s) {
  if (s->method->init == INIT_LOFTQ && s->options.loftq_T == 1 && !s->options.loftq_parity_scale) return SCHEME_FIT;
  return method_init(s->method)->scheme;
}

metric setting_metric(const setting *s) {
  bool plain = !s->options.residual_magr && !s->options.loftq_parity_scale;
  return plain ? method_init(s->method)->metric : METRIC_NONE;
}

status job_check_model(const job *j, const arch *a) {
  for (int i = 0; i < j->setting_count; i++) {
    const setting *s = &j->settings[i];
    for (int l = 0; l < LIN_COUNT; l++) {
      int64_t out, in;
      if (!j->target[l]) continue;
      linear_shape(a, (linear_id)l, &out, &in);
      const char *name = linear_short((linear_id)l);
      if (s->rule.group && in % s->rule.group != 0)
        return fail(E_USAGE, "%s: sweep.group: expected a divisor of %lld, the input width of %s, found %d", j->path, (long long)in, name,
                    s->rule.group);
      int64_t most = out < in ? out : in;
      if (s->rank_max > most)
        return fail(E_USAGE, "%s: sweep.rank: expected at most %lld, the smaller side of %s, found %d", j->path, (long long)most, name,
                    s->rank_max);
    }
  }
  return OK;
}

void setting_describe(const setting *s, option_sink sink, void *context) {
  char text[OPTION_TEXT];
  const struct {
    const char *key;
    int value;
  } numbers[] = {{"method_version", s->method->version}, {"bits", s->rule.bits}, {"group", s->rule.group}, {"rank_max", s->rank_max}};
  sink(context, "method", s->method->name);
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
    snprintf(text, sizeof text, "%d", numbers[i].value);
    sink(context, numbers[i].key, text);
  }
  for (int i = 0; i < option_count; i++) {
    if (!option_concerns(i, s->method)) continue;
    option_text(i, &s->options, text);
    sink(context, option_name(i), text);
  }
}

int job_target_count(const job *j) {
  int count = 0;
  for (int l = 0; l < LIN_COUNT; l++) count += j->target[l];
  return count;
}

bool job_uses_input(const job *j, input_id i) {
  for (int l = 0; l < LIN_COUNT; l++)
    if (j->target[l] && linear_input((linear_id)l) == i) return true;
  return false;
}
