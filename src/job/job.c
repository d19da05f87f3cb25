#include "job/job.h"

#include <fnmatch.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "base/settings.h"
#include "job/section.h"
#include "job/sweep.h"

/* ---- model, tokens, targets, parallel ---- */

/* What a section of tokens does not say is as in usual (path NULL: it must say that; windows 0: all that the file holds). */
static status read_windows(section *s, const window_request *usual, const char *windows_word, int64_t shortest, window_request *q) {
  status st = OK;
  char *path = NULL;
  TRY(ONLY_KEYS(s, "tokens", "windows", "length", "sampling", "seed"));
  if (usual->path && !section_lookup(s, "tokens")) {
    if (!(path = mem_format("%s", usual->path))) return fail(E_MEMORY, "%stokens: no memory", s->prefix);
    q->path = path;
    TRY(section_keep(s, "tokens", json_string(path)));
  } else {
    TRY(section_text(s, "tokens", "the path of a token file", &path));
    q->path = path;
  }
  bool all = windows_word && (section_lookup(s, "windows") || !usual->windows);
  TRY(section_int(s, "windows", windows_word ? "all or a count of at least 1" : "a count of at least 1", 1, 1 << 24,
                  all ? windows_word : NULL, usual->windows, &q->windows));
  TRY(section_int(s, "length", shortest > 1 ? "a count of tokens, 2 to 1048576" : "a count of tokens, 1 to 1048576", shortest, 1 << 20,
                  NULL, usual->length, &q->length));
  const json_t *v = section_lookup(s, "sampling");
  const char *word = v ? json_string_value(v) : usual->how == SAMPLE_RANDOM ? "random" : "sequential";
  bool random = word && strcmp(word, "random") == 0;
  if (!random && !(word && strcmp(word, "sequential") == 0)) {
    st = section_expected(s, "sampling", "random or sequential", v);
    goto done;
  }
  q->how = random ? SAMPLE_RANDOM : SAMPLE_SEQUENTIAL;
  if (random && q->windows == 0) {
    st = fail(E_USAGE, "%swindows: expected a count with sampling: random, found all", s->prefix);
    goto done;
  }
  TRY(section_keep(s, "sampling", json_string(word)));
  TRY(section_int(s, "seed", "an integer of at least 0", 0, INT64_MAX, NULL, 0, &q->seed));
done:
  return st;
}

/* calibration: { merge: [RUN, ...] } or { import: DIR, count: TOKENS }. */
static status read_gram_sources(section *s, job *j) {
  status st = OK;
  const char *key = section_lookup(s, "merge") ? "merge" : "import";
  const json_t *v = section_lookup(s, key);
  bool merge = strcmp(key, "merge") == 0;
  json_t *list = NULL;
  if (section_lookup(s, "tokens") || (merge && section_lookup(s, "import")))
    return fail(E_USAGE, "%s%s: expected Grams from one place, found %s as well", s->prefix, key,
                section_lookup(s, "tokens") ? "tokens" : "import");
  if (merge)
    TRY(ONLY_KEYS(s, "merge"));
  else
    TRY(ONLY_KEYS(s, "import", "count"));
  list = json_is_array(v) && merge ? json_incref((json_t *)v) : json_pack("[O]", v);
  if (!list || json_array_size(list) == 0) {
    st = section_expected(s, key, "at least one run directory", v);
    goto done;
  }
  j->grams.origin = merge ? GRAMS_MERGED : GRAMS_IMPORTED;
  TRY(NEW(j->grams.from, json_array_size(list), "sources of Grams"));
  for (size_t i = 0; i < json_array_size(list); i++) {
    const json_t *path = json_array_get(list, i);
    if (!json_is_string(path) || json_string_length(path) == 0) {
      st = section_expected(s, key, merge ? "paths of run directories" : "the path of a folder of Grams", path);
      goto done;
    }
    if (!(j->grams.from[i] = mem_format("%s", json_string_value(path)))) {
      st = fail(E_MEMORY, "%s%s: no memory", s->prefix, key);
      goto done;
    }
    j->grams.count++;
  }
  TRY(section_keep(s, key, merge ? json_incref(list) : json_string(j->grams.from[0])));
  if (section_lookup(s, "count")) TRY(section_int(s, "count", "a count of tokens, at least 1", 1, INT64_MAX, NULL, 0, &j->grams.tokens));
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
  const json_t *given = section_lookup(root, "eval");
  if (j->has_heldout) {
    usual.length = j->heldout.length;
    if (!json_object_get(given, "tokens")) usual.path = j->heldout.path, usual.windows = j->heldout.windows;
  }
  j->has_eval = given || j->has_heldout;
  if (given) {
    TRY(section_open(root, "eval", "a mapping with tokens", false, &s));
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
  if (!word) return section_expected(root, "targets", "names of linears", v);
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
  const json_t *v = section_lookup(root, "targets");
  size_t count = json_is_array(v) ? json_array_size(v) : 1;
  if (count == 0) return section_expected(root, "targets", "at least one linear", v);
  if (v)
    for (size_t i = 0; i < count; i++) TRY(read_target(root, json_is_array(v) ? json_array_get(v, i) : v, target));
  json_t *list = json_array();
  TRY(section_keep(root, "targets", list));
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

static status keep_text(section *s, const char *key, const char *value, char **text) {
  *text = mem_format("%s", value);
  return *text ? section_keep(s, key, json_string(*text)) : fail(E_MEMORY, "%s%s: no memory", s->prefix, key);
}

static status read_parallel(section *root, job *j) {
  status st = OK;
  section s;
  int64_t ranks = 0, teams = 0;
  TRY(section_open(root, "parallel", "a mapping with team, teams, memory_per_node, checkpoint_minutes, scratch", false, &s));
  TRY(ONLY_KEYS(&s, "team", "teams", "memory_per_node", "checkpoint_minutes", "scratch"));
  TRY(section_int(&s, "team", "node or a count of ranks", 1, 1 << 24, "node", 0, &ranks));
  TRY(section_int(&s, "teams", "auto or a count", 1, 1 << 24, "auto", 0, &teams));
  TRY(section_real(&s, "memory_per_node", "auto or GiB, at least 0.001", 1e-3, 1e9, "auto", 0, &j->parallel.memory_per_node));
  TRY(section_real(&s, "checkpoint_minutes", "minutes, at least 0", 0, 1e9, NULL, 10, &j->parallel.checkpoint_minutes));
  if (section_lookup(&s, "scratch"))
    TRY(section_text(&s, "scratch", "auto, never or a folder", &j->parallel.scratch));
  else
    TRY(keep_text(&s, "scratch", "auto", &j->parallel.scratch));
  j->parallel.team = (int)ranks;
  j->parallel.teams = (int)teams;
done:
  return st;
}

static status pick_settings(const char *pattern, job *j) {
  int kept = 0;
  if (!pattern) return OK;
  for (int i = 0; i < j->setting_count; i++) {
    setting s = j->settings[i];
    if (fnmatch(pattern, s.name, 0) == 0)
      j->settings[kept++] = s;
    else
      setting_free(&s);
  }
  int all = j->setting_count;
  char first[sizeof j->settings->name];
  snprintf(first, sizeof first, "%s", j->settings[0].name);
  j->setting_count = kept;
  if (kept) return OK;
  return fail(E_USAGE, "--settings %s: expected to match one of the job's %d settings, the first of which is %s", pattern, all, first);
}

/* Settings that see the activations of their own prefix make their Grams from tokens, and see them with codes and adapter alike. */
static status check_inputs(const job *j) {
  static const char *const words[] = {[INPUTS_FULL] = "fp", [INPUTS_PREFIX] = "prefix", [INPUTS_CROSS] = "cross"};
  for (int i = 0; i < j->setting_count; i++) {
    const setting *s = &j->settings[i];
    if (s->options.act_adapter != s->options.act_quantizer)
      return fail(E_USAGE, "%s: options.act_adapter: expected %s with act_quantizer: %s (codes and adapter see the same inputs), found %s",
                  j->path, words[s->options.act_quantizer], words[s->options.act_quantizer], words[s->options.act_adapter]);
    if (setting_follows(s) && j->grams.origin != GRAMS_CALIBRATED)
      return fail(E_USAGE, "%s: options.act_quantizer: %s makes Grams of its own: expected calibration.tokens, found calibration.%s",
                  j->path, words[s->options.act_quantizer], j->grams.origin == GRAMS_MERGED ? "merge" : "import");
  }
  return OK;
}

/* ---- the whole ---- */

static status read_tree(section *root, const char *output, const char *pattern, job *j) {
  status st = OK;
  section s;
  TRY(ONLY_KEYS(root, "model", "output", "calibration", "heldout", "eval", "targets", "sweep", "options", "parallel"));
  TRY(section_text(root, "model", "the folder of a checkpoint", &j->model));
  TRY(section_text(root, "output", "the run directory", &j->output));
  if (output) {
    FREE(j->output);
    if (!(j->output = mem_format("%s", output))) return fail(E_MEMORY, "%soutput: no memory", root->prefix);
  }
  TRY(section_open(root, "calibration", "a mapping with tokens, merge or import", true, &s));
  const window_request usual = {.windows = 128, .length = 2048, .how = SAMPLE_RANDOM};
  j->calibration.length = usual.length; /* which other sections take for theirs */
  if (section_lookup(&s, "merge") || section_lookup(&s, "import"))
    TRY(read_gram_sources(&s, j));
  else
    TRY(read_windows(&s, &usual, NULL, 1, &j->calibration));
  j->has_heldout = section_lookup(root, "heldout") != NULL;
  if (j->has_heldout) {
    TRY(section_open(root, "heldout", "a mapping with tokens", true, &s));
    const window_request usual_heldout = {.windows = 32, .length = j->calibration.length, .how = SAMPLE_SEQUENTIAL};
    TRY(read_windows(&s, &usual_heldout, NULL, 1, &j->heldout));
  }
  TRY(read_eval(root, j));
  TRY(read_targets(root, j->target));
  TRY(sweep_read(root, j));
  TRY(read_parallel(root, j));
  TRY(pick_settings(pattern, j));
  TRY(check_inputs(j));
done:
  return st;
}

status job_read(const char *path, const char *const *overrides, int override_count, const char *output, const char *pattern, job *j) {
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
  section_compose(root.prefix, "%s: ", path);
  root.given = tree;
  root.out = j->tree;
  TRY(read_tree(&root, output, pattern, j));
done:
  json_drop(&tree);
  if (st != OK) job_free(j);
  return st;
}

void job_free(job *j) {
  FREE(j->path);
  FREE(j->model);
  FREE(j->output);
  FREE(j->parallel.scratch);
  char *tokens[] = {(char *)j->calibration.path, (char *)j->heldout.path, (char *)j->eval.path};
  for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++) FREE(tokens[i]);
  for (int i = 0; i < j->grams.count; i++) FREE(j->grams.from[i]);
  FREE(j->grams.from);
  for (int i = 0; i < j->setting_count; i++) setting_free(&j->settings[i]);
  FREE(j->settings);
  json_drop(&j->tree);
  memset(j, 0, sizeof *j);
}

static status check_layers(const job *j, const char *key, const matrix_numbers *n, int64_t layers) {
  char text[NUMBERS_TEXT];
  if (!numbers_beyond(n, layers, text)) return OK;
  return fail(E_USAGE, "%s: sweep.%s: expected layers within 0-%lld, found %s", j->path, key, (long long)layers - 1, text);
}

static status check_matrix(const job *j, const setting *s, int64_t layer, linear_id l, const arch *a) {
  int64_t out, in;
  linear_shape(a, l, &out, &in);
  int group = setting_rule(s, layer, l).group, rank = setting_rank(s, layer, l);
  int64_t most = out < in ? out : in;
  if (group && in % group != 0)
    return fail(E_USAGE, "%s: sweep.group: expected a divisor of %lld, the input width of %s, found %d", j->path, (long long)in,
                linear_short(l), group);
  if (rank > most)
    return fail(E_USAGE, "%s: sweep.rank: expected at most %lld, the smaller side of %s, found %d", j->path, (long long)most,
                linear_short(l), rank);
  if (s->method->init == INIT_QA_LORA && rank > (group ? in / group : 1))
    return fail(E_USAGE, "%s: sweep.rank: expected at most %lld with %s, whose adapter reads the groups of %s's input, found %d", j->path,
                (long long)(group ? in / group : 1), s->method->name, linear_short(l), rank);
  return OK;
}

status job_check_model(const job *j, const arch *a) {
  status st = OK;
  for (int i = 0; i < j->setting_count; i++) {
    const setting *s = &j->settings[i];
    TRY(check_layers(j, "bits", &s->bits, a->layers));
    TRY(check_layers(j, "group", &s->group, a->layers));
    TRY(check_layers(j, "rank", &s->rank, a->layers));
    for (int64_t layer = 0; layer < (setting_varies(s) ? a->layers : 1); layer++)
      for (int l = 0; l < LIN_COUNT; l++)
        if (j->target[l]) TRY(check_matrix(j, s, layer, (linear_id)l, a));
  }
done:
  return st;
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

bool job_uses_full_grams(const job *j) {
  bool any = false;
  for (int i = 0; i < j->setting_count; i++) any |= !setting_follows(&j->settings[i]);
  return any;
}
