#include "job/sweep.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/settings.h"
#include "job/options.h"
#include "quant/nf.h"

enum { MOST_SETTINGS = 4096, MOST_BITS = 8, MOST_LABEL = 64 };

/* ---- the values of one key ---- */

/* The values of one sweep key, scalar or list, as a list that is recorded; missing: the default, NULL where the key must be given. */
static status read_axis(section *s, const char *key, const char *what, const json_t *missing, json_t **list) {
  const json_t *v = section_lookup(s, key);
  if (!v) v = missing;
  if (!v || (json_is_array(v) && json_array_size(v) == 0)) return section_expected(s, key, what, v);
  *list = json_is_array(v) ? json_copy((json_t *)v) : json_pack("[O]", v);
  return section_keep(s, key, *list);
}

typedef struct axis {
  matrix_numbers *values; /* owned */
  int count;
} axis;

static void axis_free(axis *a) {
  for (int i = 0; i < a->count; i++) numbers_free(&a->values[i]);
  FREE(a->values);
  *a = (axis){0};
}

static status read_numbers(section *s, const char *key, const char *what, int lo, int hi, const json_t *missing, const job *j, axis *a) {
  status st = OK;
  size_t i;
  json_t *list, *v;
  char where[SECTION_PREFIX];
  section_compose(where, "%s%s", s->prefix, key);
  TRY(read_axis(s, key, what, missing, &list));
  TRY(NEW(a->values, json_array_size(list), "values of a sweep"));
  json_array_foreach(list, i, v) {
    TRY(numbers_read(where, what, v, lo, hi, j->target, &a->values[a->count]));
    a->count++;
  }
done:
  return st;
}

/* ---- methods ---- */

/* One part of a method by its name. */
static status read_part(section *s, const char *key, const char *const *names, int count, int *index) {
  const json_t *v = section_lookup(s, key);
  const char *word = json_string_value(v);
  char what[256] = "one of ";
  for (int i = 0; i < count; i++) {
    size_t used = strlen(what);
    snprintf(what + used, sizeof what - used, "%s%s", i ? ", " : "", names[i]);
  }
  if (!word) return section_expected(s, key, what, v);
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
  section_compose(parts.prefix, "%smethod.", s->prefix);
  TRY(ONLY_KEYS(&parts, "quantizer", "init", "magr"));
  for (int k = 0; k < QUANT_COUNT; k++) names[k] = quantizers[k].name;
  TRY(read_part(&parts, "quantizer", names, QUANT_COUNT, &q));
  for (int k = 0; k < INIT_COUNT; k++) names[k] = initializations[k].name;
  TRY(read_part(&parts, "init", names, INIT_COUNT, &i));
  const json_t *magr = section_lookup(&parts, "magr");
  if (magr && !json_is_boolean(magr)) return section_expected(&parts, "magr", "true or false", magr);
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
  if (!json_is_string(v)) return section_expected(s, "method", "names of methods", v);
  const char *name = json_string_value(v);
  const method *near = method_nearest(name);
  *m = method_find(name);
  if (*m && (*m)->refused) return fail(E_USAGE, "%smethod: %s is not offered: %s", s->prefix, name, (*m)->refused);
  if (*m) return OK;
  if (near) return fail(E_USAGE, "%smethod: unknown method %s, did you mean %s", s->prefix, name, near->name);
  return fail(E_USAGE, "%smethod: unknown method %s: `cloqwork methods` lists those of this version", s->prefix, name);
}

/* ---- one setting ---- */

/* A row of the sweep that is being walked through: everything of a setting but its options. */
typedef struct combination {
  const section *map;
  const char *where; /* "job.yaml: sweep" */
  const char *label; /* NULL: none */
  const method *method;
  const matrix_numbers *bits, *group, *rank; /* rank NULL: the same everywhere, in turn those of `ranks` */
  const int *ranks;
  int rank_count;
} combination;

static grid_rule make_rule(const method *m, int bits, int group, const options *o) {
  return (grid_rule){.kind = method_quantizer(m)->grid,
                     .bits = bits,
                     .group = group,
                     .nested = o->nf_double,
                     .symmetric = o->grid_symmetric,
                     .beta = o->grid_beta,
                     .anchor_zero = o->grid_beta_anchor_zero,
                     .search = o->grid_search,
                     .real_zero = o->grid_real_zero};
}

/* Rule and options at one pair of bits and group; choice[i] is the place in option i's list of values. off[i]: it is not what it would be
 * by default, next to the options before it. */
static setting_values resolve(const combination *c, const json_t *option_lists, const size_t *choice, int bits, int group, bool *off) {
  setting_values v = {0};
  for (int i = 0; i < option_count; i++) {
    char text[OPTION_TEXT], usual[OPTION_TEXT];
    const json_t *list = json_object_get(option_lists, option_name(i));
    option_resolve(i, option_concerns(i, c->method) ? json_array_get(list, choice[i]) : NULL, c->method, bits, group, &v.options);
    options standard = v.options;
    option_resolve(i, NULL, c->method, bits, group, &standard);
    option_text(i, &v.options, text);
    option_text(i, &standard, usual);
    off[i] = off[i] || strcmp(text, usual) != 0;
  }
  v.rule = make_rule(c->method, bits, group, &v.options);
  return v;
}

/* Calls `look` for every target of every layer that a setting with these numbers may have: once where they do not differ. */
typedef status (*pair_visitor)(void *context, int bits, int group);
static status each_pair(const combination *c, const job *j, pair_visitor look, void *context) {
  status st = OK;
  int64_t bits_layers = numbers_layers(c->bits), group_layers = numbers_layers(c->group),
          layers = bits_layers > group_layers ? bits_layers : group_layers;
  if (!c->bits->count && !c->group->count) return look(context, c->bits->usual, c->group->usual);
  for (int64_t layer = 0; layer <= layers; layer++)
    for (int l = 0; l < LIN_COUNT; l++)
      if (j->target[l]) TRY(look(context, numbers_at(c->bits, layer, (linear_id)l), numbers_at(c->group, layer, (linear_id)l)));
done:
  return st;
}

typedef struct values_state {
  const combination *c;
  const json_t *option_lists;
  const size_t *choice;
  bool *off;
  setting *s;
} values_state;

static status add_values(void *context, int bits, int group) {
  status st = OK;
  values_state *a = context;
  setting *s = a->s;
  setting_values *all = NULL;
  if (bits == s->rule.bits && group == s->rule.group) return OK;
  for (int i = 0; i < s->other_count; i++)
    if (s->others[i].rule.bits == bits && s->others[i].rule.group == group) return OK;
  TRY(NEW(all, s->other_count + 1, "values of a setting"));
  if (s->other_count) memcpy(all, s->others, (size_t)s->other_count * sizeof *all);
  all[s->other_count++] = resolve(a->c, a->option_lists, a->choice, bits, group, a->off);
  FREE(s->others);
  s->others = all;
done:
  return st;
}

static status name_setting(const combination *c, const bool *off, setting *s) {
  const size_t room = sizeof s->name;
  size_t used = (size_t)snprintf(s->name, room, "%s-b%d-g%d", c->method->name, c->bits->usual, c->group->usual), plain;
  for (int i = 0; i < option_count; i++) {
    char text[OPTION_TEXT];
    option_text(i, &s->options, text);
    if (off[i]) used += (size_t)snprintf(s->name + used, room - used, "-%s_%s", option_name(i), text);
    if (used >= room)
      return fail(E_USAGE, "%s: the setting's name %s… is too long: expected fewer options off their default", c->where, s->name);
  }
  plain = used;
  if (c->label) {
    used += (size_t)snprintf(s->name + used, room - used, "-%s", c->label);
  } else {
    if (c->rank) used += (size_t)snprintf(s->name + used, room - used, "-r%d", c->rank->usual);
    used = numbers_tag(c->bits, 'b', s->name, used, room);
    used = numbers_tag(c->group, 'g', s->name, used, room);
    if (c->rank) used = numbers_tag(c->rank, 'r', s->name, used, room);
  }
  if (used < room) return OK;
  s->name[plain] = 0;
  return fail(E_USAGE, "%s: %s: the name of what differs between matrices would be %zu characters too long: expected %s", c->where, s->name,
              used - room + 1, c->label ? "a shorter label" : "a label: beside bits and rank");
}

/* An option that another one leaves without effect would be a name for what it is not. */
static status check_together(const combination *c, const bool *off, const setting *s) {
  const options *o = &s->options;
  initialization init = s->method->init;
  bool ranged = o->grid_search == SEARCH_NONE, frozen = (init == INIT_CALDERA || init == INIT_ODLRI) && !o->joint_refit;
  const struct {
    const char *name;
    bool wrong;
    const char *expected;
  } rules[] = {
      {"grid_zero", o->grid_real_zero && o->grid_symmetric, "int with grid_type: sym (its zero point is the middle code)"},
      {"grid_search", o->grid_search == SEARCH_ASYMM && o->grid_symmetric,
       "another one with grid_type: sym (its zero point is the middle code)"},
      {"grid_beta", !ranged && o->grid_beta != 1, "auto or 1 with a grid_search (it finds the range itself)"},
      {"grid_beta_anchor", !ranged || o->grid_symmetric, "low with a grid_search or grid_type: sym (no end of the range is cut alone)"},
      {"grid_weight", o->grid_search != SEARCH_SCAN && o->grid_search != SEARCH_REFIT,
       "ones unless grid_search is scan or refit (no other weighs)"},
      {"optq_groups", o->optq_dynamic && setting_refines(s),
       "static where codes are refined (their grids are searched for all groups at once)"},
      {"optq_groups", o->optq_dynamic && o->optq_order_act, "static with optq_order: act (a group's columns do not follow one another)"},
      {"optq_groups", o->optq_dynamic && s->method->quantizer == QUANT_SLIM, "static with slim (it searches scales before OPTQ)"},
      {"optq_groups", o->optq_dynamic && frozen, "static with joint_grid: frozen (its grid is fitted to W)"},
      {"cd_rounds", !o->cd_pass, "auto unless cd_pass is comq"},
  };
  for (size_t k = 0; k < sizeof rules / sizeof *rules; k++)
    for (int i = 0; i < option_count && rules[k].wrong; i++) {
      char found[OPTION_TEXT];
      if (!off[i] || strcmp(option_name(i), rules[k].name) != 0) continue;
      option_text(i, o, found);
      return fail(E_USAGE, "%s: %s: options.%s: expected %s, found %s", c->where, s->name, rules[k].name, rules[k].expected, found);
    }
  return OK;
}

/* name, rule and resolved options. On failure s is empty. */
static status make_setting(const combination *c, const json_t *option_lists, const size_t *choice, const job *j, setting *s) {
  status st = OK;
  bool off[OPTION_MOST] = {false};
  values_state state = {c, option_lists, choice, off, s};
  setting_values usual = resolve(c, option_lists, choice, c->bits->usual, c->group->usual, off);
  *s = (setting){.method = c->method, .rule = usual.rule, .options = usual.options, .labelled = c->label != NULL};
  TRY(numbers_copy(c->bits, &s->bits));
  TRY(numbers_copy(c->group, &s->group));
  if (c->rank) TRY(numbers_copy(c->rank, &s->rank));
  TRY(each_pair(c, j, add_values, &state));
  TRY(name_setting(c, off, s));
  TRY(check_together(c, off, s));
done:
  if (st != OK) setting_free(s);
  return st;
}

/* Adds ranks to the setting, ascending. A rank that is there already means that two combinations of the sweep coincide. */
static status add_ranks(const combination *c, setting *s) {
  status st = OK;
  int *all = NULL, count = s->rank_count;
  TRY(NEW(all, count + c->rank_count, "ranks of a setting"));
  if (count) memcpy(all, s->ranks, (size_t)count * sizeof *all);
  for (int k = 0; k < c->rank_count; k++) {
    int rank = c->ranks[k], at = count;
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

/* The largest rank of a setting with a rank for every matrix. */
static int largest_rank(const matrix_numbers *rank, const job *j) {
  int most = 0;
  for (int64_t layer = 0; layer <= numbers_layers(rank); layer++)
    for (int l = 0; l < LIN_COUNT; l++) {
      int r = numbers_at(rank, layer, (linear_id)l);
      if (j->target[l] && r > most) most = r;
    }
  return most;
}

static bool same_numbers(const setting *a, const setting *b) {
  return numbers_equal(&a->bits, &b->bits) && numbers_equal(&a->group, &b->group) && numbers_equal(&a->rank, &b->rank);
}

/* Puts the setting (taken over) into the job, or its ranks to those of the setting that it is. */
static status add_setting(const combination *c, setting *s, job *j) {
  status st = OK;
  setting *same = NULL;
  for (int i = 0; i < j->setting_count && !same; i++)
    if (strcmp(j->settings[i].name, s->name) == 0) same = &j->settings[i];
  if (same && !same_numbers(same, s)) {
    st = fail(E_USAGE, "%s: %s would be the name of two settings: expected a label of its own for each", c->where, s->name);
  } else if (same && c->rank) {
    st = fail(E_USAGE, "%s: %s is asked for twice", c->where, s->name);
  } else if (!same && j->setting_count == MOST_SETTINGS) {
    st = fail(E_USAGE, "%s: expected at most %d settings, found more", c->where, MOST_SETTINGS);
  } else if (!same) {
    same = &j->settings[j->setting_count++];
    *same = *s;
    *s = (setting){0};
  }
  if (st == OK) st = add_ranks(c, same);
  setting_free(s);
  return st;
}

/* ---- what cannot be ---- */

/* Bits that the quantizer has, and groups that the loaders of normal floats know. */
static status check_quantizer(void *context, int bits, int group) {
  const combination *c = context;
  const char *name = c->method->name, *prefix = c->map->prefix;
  const quantizer_row *q = method_quantizer(c->method);
  if (bits < q->bits_least || bits > q->bits_most) {
    char range[32];
    snprintf(range, sizeof range, q->bits_least == q->bits_most ? "%d" : "%d to %d", q->bits_least, q->bits_most);
    return fail(E_USAGE, "%sbits: expected %s with %s (a list of sweeps gives every method its own bits), found %d", prefix, range, name,
                bits);
  }
  if (c->method->quantizer == QUANT_SLIM && group == 0)
    return fail(E_USAGE, "%sgroup: expected a count of columns with %s (groups differ in bits), found 0", prefix, name);
  if (q->grid != GRID_NF) return OK;
  if (group == 0)
    return fail(E_USAGE, "%sgroup: expected a power of two from %d to %d with %s (NF4 knows no block of a whole row), found 0", prefix,
                NF_GROUP_LEAST, NF_GROUP_MOST, name);
  if (group < NF_GROUP_LEAST || group > NF_GROUP_MOST || (group & (group - 1)))
    return fail(E_USAGE, "%sgroup: expected a power of two from %d to %d with %s, found %d", prefix, NF_GROUP_LEAST, NF_GROUP_MOST, name,
                group);
  return OK;
}

/* ---- one map of the sweep ---- */

/* Every choice of options for one method, bits, group and rank; options that the method does not look at stay at their first place. */
static status add_combination(const combination *c, const json_t *option_lists, job *j) {
  status st = OK;
  size_t choice[OPTION_MOST] = {0};
  for (;;) {
    setting s;
    TRY(make_setting(c, option_lists, choice, j, &s));
    TRY(add_setting(c, &s, j));
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

/* The listed ranks as one combination, then one for every value that differs between matrices. */
static status add_all_ranks(combination c, const axis *ranks, const json_t *option_lists, job *j) {
  status st = OK;
  int *same = NULL;
  TRY(NEW(same, ranks->count, "ranks of a sweep"));
  for (int i = 0; i < ranks->count; i++)
    if (!ranks->values[i].count) same[c.rank_count++] = ranks->values[i].usual;
  c.ranks = same;
  if (c.rank_count) TRY(add_combination(&c, option_lists, j));
  for (int i = 0; i < ranks->count; i++) {
    if (!ranks->values[i].count) continue;
    int most = largest_rank(&ranks->values[i], j);
    c.rank = &ranks->values[i];
    c.ranks = &most;
    c.rank_count = 1;
    TRY(add_combination(&c, option_lists, j));
  }
done:
  FREE(same);
  return st;
}

static status read_label(section *s, const char **label) {
  const json_t *v = section_lookup(s, "label");
  const char *text = json_string_value(v);
  *label = text;
  if (!v) return OK;
  size_t good = text ? strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") : 0;
  if (!good || text[good] || good > MOST_LABEL || !isalnum((unsigned char)text[0]))
    return section_expected(s, "label", "up to 64 letters, digits, dots, dashes and underscores that begin with a letter or digit", v);
  return section_keep(s, "label", json_string(text));
}

/* The map's own options over the job's, completed: *lists is owned, an object of lists. */
static status read_map_options(section *s, const json_t *of_job, const method *const *used, int used_count, json_t **lists) {
  status st = OK;
  const json_t *given = section_lookup(s, "options");
  json_t *all = json_object();
  char prefix[SECTION_PREFIX];
  section_compose(prefix, "%soptions.", s->prefix);
  if (given && !json_is_object(given)) {
    st = section_expected(s, "options", "a mapping of options", given);
    goto done;
  }
  if (!all || (of_job && json_object_update(all, (json_t *)of_job) != 0) || (given && json_object_update(all, (json_t *)given) != 0)) {
    st = fail(E_MEMORY, "%s: no memory", prefix);
    goto done;
  }
  TRY(options_complete(prefix, all, lists));
  for (int i = 0; i < option_count; i++) {
    bool concerned = false;
    for (int k = 0; k < used_count; k++) concerned |= option_concerns(i, used[k]);
    if (concerned || !section_lookup(&(section){.given = given}, option_name(i))) continue;
    st = fail(E_USAGE, "%s%s: no method of this sweep uses this option", prefix, option_name(i));
    goto done;
  }
  if (given) TRY(section_keep(s, "options", json_deep_copy(given)));
done:
  json_decref(all);
  if (st != OK) json_drop(lists);
  return st;
}

/* One map of the sweep: s->given is it, s->out records it; of_job: the job's options as given, or NULL. */
static status add_map(section *s, const char *where, const json_t *of_job, job *j) {
  status st = OK;
  size_t k;
  json_t *method_list, *m, *usual_method = json_string("refine"), *usual_group = json_integer(64), *option_lists = NULL;
  axis bits = {0}, groups = {0}, ranks = {0};
  const method **used = NULL;
  combination c = {.map = s, .where = where};
  TRY(ONLY_KEYS(s, "method", "bits", "group", "rank", "options", "label"));
  TRY(read_axis(s, "method", "names of methods", usual_method, &method_list));
  TRY(read_numbers(s, "bits", "1 to 8", 1, MOST_BITS, NULL, j, &bits));
  TRY(read_numbers(s, "group", "0 (one scale per row) or a count of columns", 0, 1 << 24, usual_group, j, &groups));
  TRY(read_numbers(s, "rank", "ranks of at least 1", 1, 1 << 24, NULL, j, &ranks));
  TRY(read_label(s, &c.label));
  TRY(NEW(used, json_array_size(method_list), "methods of a sweep"));
  json_array_foreach(method_list, k, m) TRY(read_method(s, m, &used[k]));
  TRY(read_map_options(s, of_job, used, (int)json_array_size(method_list), &option_lists));
  for (size_t i = 0; i < json_array_size(method_list); i++)
    for (int b = 0; b < bits.count; b++)
      for (int g = 0; g < groups.count; g++) {
        c.method = used[i];
        c.bits = &bits.values[b];
        c.group = &groups.values[g];
        TRY(each_pair(&c, j, check_quantizer, &c));
        TRY(add_all_ranks(c, &ranks, option_lists, j));
      }
done:
  FREE(used);
  axis_free(&bits);
  axis_free(&groups);
  axis_free(&ranks);
  json_drop(&option_lists);
  json_decref(usual_method);
  json_decref(usual_group);
  return st;
}

/* A map that stands in a file of its own; out is made for it. */
static status add_file(const char *path, const char *where, const json_t *of_job, json_t *out, job *j) {
  status st = OK;
  json_t *tree = NULL;
  section s = {.out = out};
  section_compose(s.prefix, "%s: ", path);
  TRY(settings_read(path, &tree));
  s.given = tree;
  if (!json_is_object(tree))
    st = section_expected(&(section){.prefix = ""}, path, "a mapping with bits and rank (and method, group)", tree);
  else
    st = add_map(&s, where ? where : path, of_job, j);
done:
  json_drop(&tree);
  return st;
}

/* ---- the whole ---- */

static status read_sweep(section *root, const json_t *of_job, job *j) {
  status st = OK;
  static const char what[] = "a mapping with bits and rank (and method, group), or a list of such mappings or of files that hold one";
  const json_t *v = section_lookup(root, "sweep");
  section s;
  char where[SECTION_PREFIX];
  section_compose(where, "%ssweep", root->prefix);
  if (!json_is_array(v)) {
    TRY(section_open(root, "sweep", what, true, &s));
    TRY(add_map(&s, where, of_job, j));
  } else {
    json_t *list = json_array(), *map;
    size_t i;
    TRY(section_keep(root, "sweep", list));
    if (json_array_size(v) == 0) return section_expected(root, "sweep", what, v);
    json_array_foreach(v, i, map) {
      section_compose(s.prefix, "%s[%zu].", where, i);
      s.given = map;
      s.out = json_object();
      if (!json_is_object(map) && !json_is_string(map)) st = section_expected(root, "sweep", what, map);
      if (!s.out || json_array_append_new(list, s.out) != 0) st = fail(E_MEMORY, "%s: no memory", where);
      if (st != OK) goto done;
      TRY(json_is_string(map) ? add_file(json_string_value(map), where, of_job, s.out, j) : add_map(&s, where, of_job, j));
    }
  }
done:
  return st;
}

/* Lists of one become their value again. An option that no method of the sweep looks at must not have been given, and is not recorded:
 * what is recorded can be read back. */
static status keep_options(section *root, json_t *option_lists, const job *j) {
  const json_t *given = section_lookup(root, "options");
  for (int i = 0; i < option_count; i++) {
    const char *name = option_name(i);
    bool used = false;
    for (int k = 0; k < j->setting_count; k++) used = used || option_matters(i, j->settings[k].method, &j->settings[k].options);
    const json_t *v = json_object_get(given, name);
    if (v && !json_is_null(v) && !used) return fail(E_USAGE, "%soptions.%s: no method of this sweep uses this option", root->prefix, name);
    json_t *list = json_object_get(option_lists, name);
    if (!used)
      json_object_del(option_lists, name);
    else if (json_array_size(list) == 1 && json_object_set(option_lists, name, json_array_get(list, 0)) != 0)
      return fail(E_MEMORY, "%soptions: no memory", root->prefix);
  }
  return section_keep(root, "options", json_incref(option_lists));
}

static int is_yaml(const struct dirent *e) {
  size_t length = strlen(e->d_name);
  return e->d_name[0] != '.' && length > 5 && strcmp(e->d_name + length - 5, ".yaml") == 0;
}

/* What `allocate` left: each file's map has all options that concern its method. */
static status add_allocations(job *j) {
  status st = OK;
  struct dirent **names = NULL;
  char *folder = path_join(j->output, "allocations"), *path = NULL;
  if (!folder) return fail(E_MEMORY, "%s: no memory for a name", j->output);
  int count = scandir(folder, &names, is_yaml, alphasort);
  if (count < 0 && errno != ENOENT && errno != ENOTDIR) st = fail(E_IO, "%s: cannot be listed: %m", folder);
  for (int i = 0; i < count && st == OK; i++) {
    json_t *out = json_object();
    path = path_join(folder, names[i]->d_name);
    st = path && out ? add_file(path, NULL, NULL, out, j) : fail(E_MEMORY, "%s: no memory for a name", folder);
    json_decref(out);
    FREE(path);
  }
  for (int i = 0; i < count; i++) free(names[i]);
  free(names);
  FREE(folder);
  return st;
}

status sweep_read(section *root, job *j) {
  status st = OK;
  json_t *option_lists = NULL;
  const json_t *given = section_lookup(root, "options");
  char prefix[SECTION_PREFIX];
  if (given && !json_is_object(given)) return section_expected(root, "options", "a mapping of options", given);
  section_compose(prefix, "%soptions.", root->prefix);
  TRY(options_complete(prefix, given, &option_lists));
  TRY(NEW(j->settings, MOST_SETTINGS, "settings"));
  TRY(read_sweep(root, given, j));
  TRY(keep_options(root, option_lists, j));
  TRY(add_allocations(j));
done:
  json_drop(&option_lists);
  return st;
}
