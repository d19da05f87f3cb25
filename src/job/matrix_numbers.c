#include "job/matrix_numbers.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/settings.h"

static int find_linear(const char *word, const char *(*name)(linear_id)) {
  int l = 0;
  while (l < LIN_COUNT && strcmp(word, name((linear_id)l)) != 0) l++;
  return l;
}

/* ---- a key ---- */

/* Digits alone, up to LAYERS_MOST; *p goes behind them. */
static bool take_layer(const char **p, int64_t *layer) {
  char *end;
  if (!isdigit((unsigned char)**p)) return false;
  *layer = strtoll(*p, &end, 10);
  *p = end;
  return *layer <= LAYERS_MOST;
}

static bool take(const char **p, const char *word) {
  size_t length = strlen(word);
  if (strncmp(*p, word, length) != 0) return false;
  *p += length;
  return true;
}

/* "layers 0-15", "layer 7": *p goes to what stands behind it. */
static bool take_layers(const char **p, value_at *e) {
  bool one = take(p, "layer ");
  if (!one && !take(p, "layers ")) return false;
  if (!take_layer(p, &e->first)) return false;
  e->last = e->first;
  if (!one && (!take(p, "-") || !take_layer(p, &e->last) || e->last < e->first)) return false;
  return **p == 0 || take(p, " ");
}

/* The target that a key ends with; LIN_COUNT when there is no such target. where and key are for the message. */
static status read_target(const char *where, const char *key, const char *word, const bool target[LIN_COUNT], value_at *e) {
  const char *names[LIN_COUNT + 1];
  int count = 0;
  e->linear = find_linear(word, linear_short);
  if (e->linear < LIN_COUNT && target[e->linear]) return OK;
  if (e->linear < LIN_COUNT) return fail(E_USAGE, "%s.%s: expected one of the job's targets, found %s, which is none", where, key, word);
  for (int l = 0; l < LIN_COUNT; l++)
    if (target[l]) names[count++] = linear_short((linear_id)l);
  names[count++] = "default";
  const char *near = settings_nearest(word, names, count);
  if (near) return fail(E_USAGE, "%s.%s: unknown key, did you mean %s", where, key, near);
  return fail(
      E_USAGE,
      "%s.%s: unknown key, expected default, a target such as %s, layers 0-15, layer 7, layers 0-15 %s or layers.7.%s, layers up to %d",
      where, key, names[0], names[0], linear_path((linear_id)find_linear(names[0], linear_short)), LAYERS_MOST);
}

static status read_key(const char *where, const char *key, const bool target[LIN_COUNT], value_at *e) {
  const char *p = key;
  *e = (value_at){.linear = LIN_COUNT};
  take(&p, "model."); /* the tensor's name in the checkpoint is as good */
  if (take(&p, "layers.") && take_layer(&p, &e->first) && take(&p, ".")) {
    int l = find_linear(p, linear_path);
    const char *dot = strrchr(p, '.'), *last = dot ? dot + 1 : p;
    e->last = e->first;
    if (l < LIN_COUNT) return read_target(where, key, linear_short((linear_id)l), target, e);
    return read_target(where, key, find_linear(last, linear_short) < LIN_COUNT ? p : last, target,
                       e); /* the target of another module is none */
  }
  p = key;
  if (!take_layers(&p, e)) {
    p = key;
    *e = (value_at){.last = ALL_LAYERS};
  }
  return p != key && *p == 0 ? OK : read_target(where, key, p, target, e);
}

/* ---- life ---- */

static status check_value(const char *where, const char *key, const char *what, const json_t *v, int lo, int hi) {
  char found[SETTINGS_FOUND];
  if (json_is_integer(v) && json_integer_value(v) >= lo && json_integer_value(v) <= hi) return OK;
  settings_found(v, found);
  return fail(E_USAGE, "%s%s%s: expected %s, found %s", where, key ? "." : "", key ? key : "", what, found);
}

status numbers_read(const char *where, const char *what, const json_t *v, int lo, int hi, const bool target[LIN_COUNT], matrix_numbers *n) {
  status st = OK;
  const char *key;
  json_t *value;
  *n = (matrix_numbers){0};
  if (!json_is_object(v)) {
    TRY(check_value(where, NULL, what, v, lo, hi));
    n->usual = (int)json_integer_value(v);
    goto done;
  }
  TRY(check_value(where, "default", what, json_object_get(v, "default"), lo, hi));
  n->usual = (int)json_integer_value(json_object_get(v, "default"));
  TRY(NEW(n->list, json_object_size(v), "values of a mapping"));
  json_object_foreach((json_t *)v, key, value) {
    if (strcmp(key, "default") == 0) continue;
    value_at *e = &n->list[n->count];
    TRY(read_key(where, key, target, e));
    TRY(check_value(where, key, what, value, lo, hi));
    e->value = (int)json_integer_value(value);
    n->count++;
  }
done:
  if (st != OK) numbers_free(n);
  return st;
}

status numbers_copy(const matrix_numbers *from, matrix_numbers *to) {
  status st = OK;
  *to = (matrix_numbers){.usual = from->usual};
  if (!from->count) return OK;
  TRY(NEW(to->list, from->count, "values of a mapping"));
  memcpy(to->list, from->list, (size_t)from->count * sizeof *from->list);
  to->count = from->count;
done:
  return st;
}

void numbers_free(matrix_numbers *n) {
  FREE(n->list);
  *n = (matrix_numbers){0};
}

/* ---- what it says ---- */

static bool goes_before(const value_at *later, const value_at *e) {
  bool targeted = later->linear < LIN_COUNT;
  if (targeted != (e->linear < LIN_COUNT)) return targeted;
  return later->last - later->first <= e->last - e->first;
}

int numbers_at(const matrix_numbers *n, int64_t layer, linear_id l) {
  const value_at *best = NULL;
  for (int i = 0; i < n->count; i++) {
    const value_at *e = &n->list[i];
    if (layer < e->first || layer > e->last || (e->linear < LIN_COUNT && e->linear != (int)l)) continue;
    if (!best || goes_before(e, best)) best = e;
  }
  return best ? best->value : n->usual;
}

bool numbers_equal(const matrix_numbers *a, const matrix_numbers *b) {
  if (a->usual != b->usual || a->count != b->count) return false;
  for (int i = 0; i < a->count; i++) {
    const value_at *x = &a->list[i], *y = &b->list[i];
    if (x->first != y->first || x->last != y->last || x->linear != y->linear || x->value != y->value) return false;
  }
  return true;
}

int64_t numbers_layers(const matrix_numbers *n) {
  int64_t layers = 0;
  for (int i = 0; i < n->count; i++)
    if (n->list[i].last < ALL_LAYERS && n->list[i].last >= layers) layers = n->list[i].last + 1;
  return layers;
}

bool numbers_beyond(const matrix_numbers *n, int64_t layers, char text[NUMBERS_TEXT]) {
  for (int i = 0; i < n->count; i++) {
    const value_at *e = &n->list[i];
    if (e->last >= ALL_LAYERS || e->last < layers) continue;
    if (e->first == e->last)
      snprintf(text, NUMBERS_TEXT, "layer %lld", (long long)e->first);
    else
      snprintf(text, NUMBERS_TEXT, "layers %lld-%lld", (long long)e->first, (long long)e->last);
    return true;
  }
  return false;
}

size_t numbers_tag(const matrix_numbers *n, char letter, char *name, size_t used, size_t size) {
  for (int i = 0; i < n->count; i++) {
    const value_at *e = &n->list[i];
    char layers[48] = "";
    if (e->last < ALL_LAYERS && e->first == e->last)
      snprintf(layers, sizeof layers, "layer%lld", (long long)e->first);
    else if (e->last < ALL_LAYERS)
      snprintf(layers, sizeof layers, "layers%lld-%lld", (long long)e->first, (long long)e->last);
    const char *target = e->linear < LIN_COUNT ? linear_short((linear_id)e->linear) : "";
    used += (size_t)snprintf(used < size ? name + used : NULL, used < size ? size - used : 0, "-%s%s%s_%c%d", layers,
                             *layers && *target ? "_" : "", target, letter, e->value);
  }
  return used;
}
