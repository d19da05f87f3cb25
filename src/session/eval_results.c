#include "session/eval_results.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"

typedef struct moments {
  double mean, se;
} moments;

/* Over windows, in their order; field: which double of a score; minus (may be NULL): paired with it. */
static moments over_windows(int64_t n, const prediction_score *score, const prediction_score *minus, size_t field) {
  double sum = 0, squares = 0;
#define VALUE(i)                                                          \
  (*(const double *)(const void *)((const char *)(score + (i)) + field) - \
   (minus ? *(const double *)(const void *)((const char *)(minus + (i)) + field) : 0))
  for (int64_t i = 0; i < n; i++) sum += VALUE(i);
  double mean = sum / (double)n;
  for (int64_t i = 0; i < n; i++) squares += (VALUE(i) - mean) * (VALUE(i) - mean);
#undef VALUE
  return (moments){mean, n > 1 ? sqrt(squares / (double)(n - 1) / (double)n) : NAN};
}

eval_point eval_point_of(int rank, int64_t count, int64_t length, const prediction_score *score, const prediction_score *original) {
  moments nll = over_windows(count, score, NULL, offsetof(prediction_score, nll)),
          gap = over_windows(count, score, original, offsetof(prediction_score, nll)),
          kl = over_windows(count, score, NULL, offsetof(prediction_score, kl)),
          agrees = over_windows(count, score, NULL, offsetof(prediction_score, agrees));
  return (eval_point){rank,      exp(nll.mean),       nll.mean, nll.se, gap.mean, gap.se, kl.mean, kl.se, agrees.mean,
                      agrees.se, count * (length - 1)};
}

const eval_point *eval_result_find(const eval_result *r, int rank) {
  for (int i = 0; i < r->count; i++)
    if (r->points[i].rank == rank) return &r->points[i];
  return NULL;
}

status eval_result_put(eval_result *r, const eval_point *p) {
  status st = OK;
  eval_point *all = NULL;
  int at = 0;
  bool there = eval_result_find(r, p->rank) != NULL;
  TRY(NEW(all, r->count + 1, "results of evaluation"));
  while (at < r->count && r->points[at].rank < p->rank) at++;
  if (at) memcpy(all, r->points, (size_t)at * sizeof *all);
  all[at] = *p;
  for (int i = at + there; i < r->count; i++) all[i + 1 - there] = r->points[i];
  r->count += !there;
  FREE(r->points);
  r->points = all;
done:
  return st;
}

void eval_result_free(eval_result *r) {
  FREE(r->points);
  *r = (eval_result){0};
}

const char *eval_identity_differs(const eval_identity *a, const eval_identity *b) {
  if (strcmp(a->model, b->model) != 0) return "model_fingerprint";
  if (strcmp(a->tokens, b->tokens) != 0) return "tokens_fingerprint";
  if (a->windows != b->windows) return "windows";
  if (a->length != b->length) return "length";
  if (strcmp(a->solution, b->solution) != 0) return "solution_fingerprint";
  return strcmp(a->program_version, b->program_version) == 0 ? NULL : "program_version";
}

/* ---- JSON: a list of keys for reading and writing ---- */

static const struct {
  const char *key;
  size_t field;
} numbers[] = {
    {"perplexity", offsetof(eval_point, perplexity)},
    {"nll", offsetof(eval_point, nll)},
    {"nll_se", offsetof(eval_point, nll_se)},
    {"nll_minus_original", offsetof(eval_point, nll_minus_original)},
    {"nll_minus_original_se", offsetof(eval_point, nll_minus_original_se)},
    {"kl", offsetof(eval_point, kl)},
    {"kl_se", offsetof(eval_point, kl_se)},
    {"top1_agreement", offsetof(eval_point, top1)},
    {"top1_agreement_se", offsetof(eval_point, top1_se)},
};
enum { NUMBERS = sizeof numbers / sizeof *numbers };

static double *number_of(eval_point *p, int k) { return (double *)(void *)((char *)p + numbers[k].field); }

json_t *eval_point_json(const eval_point *p) {
  eval_point copy = *p;
  json_t *o = json_object();
  json_object_set_new(o, "rank", p->rank == RANK_ORIGINAL ? json_null() : json_integer(p->rank));
  for (int k = 0; k < NUMBERS; k++) {
    double x = *number_of(&copy, k);
    json_object_set_new(o, numbers[k].key, isfinite(x) ? json_real(x) : json_null()); /* no standard error of one window */
  }
  json_object_set_new(o, "tokens", json_integer(p->tokens));
  return o;
}

static status read_point(const json_t *o, const char *path, eval_point *p) {
  status st = OK;
  int64_t rank = RANK_ORIGINAL;
  TRY(json_get_int(o, path, "rank", 0, 1 << 24, RANK_ORIGINAL, &rank));
  p->rank = (int)rank;
  for (int k = 0; k < NUMBERS; k++) TRY(json_get_real(o, path, numbers[k].key, NAN, number_of(p, k)));
  TRY(json_need_int(o, path, "tokens", 0, INT64_MAX, &p->tokens));
done:
  return st;
}

static status read_identity(const json_t *o, const char *path, eval_identity *id) {
  status st = OK;
  const struct {
    const char *key;
    char *text;
    size_t room;
  } texts[] = {{"program_version", id->program_version, sizeof id->program_version},
               {"model_fingerprint", id->model, HASH_HEX},
               {"tokens_fingerprint", id->tokens, HASH_HEX},
               {"solution_fingerprint", id->solution, HASH_HEX}};
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
    const char *text;
    TRY(json_get_string(o, path, texts[i].key, "", &text));
    snprintf(texts[i].text, texts[i].room, "%s", text);
  }
  TRY(json_need_int(o, path, "windows", 1, INT64_MAX, &id->windows));
  TRY(json_need_int(o, path, "length", 1, INT64_MAX, &id->length));
done:
  return st;
}

/* The text of o, owned by free(); NULL: no memory. */
static char *text_of(const json_t *o) { return json_dumps(o, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(17)); }

/* SHA-256 of all members but sha256 itself. */
static status digest_of(const json_t *o, const char *path, char hex[HASH_HEX]) {
  json_t *others = json_copy((json_t *)o);
  if (others) json_object_del(others, "sha256");
  char *text = others ? text_of(others) : NULL;
  status st = text ? hash_bytes(text, strlen(text), hex) : fail(E_MEMORY, "%s: no memory", path);
  free(text);
  json_decref(others);
  return st;
}

/* Files of earlier versions have no digest. */
static status check_digest(const json_t *o, const char *path) {
  status st = OK;
  const char *expected;
  char found[HASH_HEX];
  TRY(json_get_string(o, path, "sha256", NULL, &expected));
  if (!expected) goto done;
  TRY(digest_of(o, path, found));
  if (strcmp(expected, found) != 0) st = fail(E_DATA, "%s: damaged or edited: expected SHA-256 %.64s, found %.16s…", path, expected, found);
done:
  return st;
}

status eval_result_read(const char *path, eval_result *r) {
  status st = OK;
  json_t *tree = NULL, *o;
  size_t i;
  *r = (eval_result){0};
  if (!file_exists(path)) return OK;
  TRY(json_read_file(path, 64 << 20, &tree));
  if (!json_is_object(tree) || !json_is_array(json_object_get(tree, "points"))) {
    st = fail(E_DATA, "%s: expected an object with points, found something else", path);
    goto done;
  }
  TRY(check_digest(tree, path));
  TRY(read_identity(tree, path, &r->identity));
  json_array_foreach(json_object_get(tree, "points"), i, o) {
    eval_point p;
    TRY(read_point(o, path, &p));
    TRY(eval_result_put(r, &p));
  }
done:
  json_drop(&tree);
  if (st != OK) eval_result_free(r);
  return st;
}

status eval_result_write(const char *path, const char *name, const eval_result *r) {
  status st = OK;
  char hex[HASH_HEX], *text = NULL, *lines = NULL;
  const eval_identity *id = &r->identity;
  json_t *points = json_array(),
         *o = json_pack("{s:s, s:s, s:s, s:s, s:I, s:I}", "setting", name, "program_version", id->program_version, "model_fingerprint",
                        id->model, "tokens_fingerprint", id->tokens, "windows", (json_int_t)id->windows, "length", (json_int_t)id->length);
  if (*id->solution) json_object_set_new(o, "solution_fingerprint", json_string(id->solution));
  for (int i = 0; i < r->count; i++) json_array_append_new(points, eval_point_json(&r->points[i]));
  json_object_set_new(o, "points", points);
  TRY(digest_of(o, path, hex));
  json_object_set_new(o, "sha256", json_string(hex));
  text = text_of(o);
  lines = text ? mem_format("%s\n", text) : NULL;
  st = lines ? file_write_atomic(path, lines, strlen(lines)) : fail(E_MEMORY, "%s: no memory", path);
done:
  json_decref(o);
  FREE(lines);
  free(text);
  return st;
}
