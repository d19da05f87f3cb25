#include "base/json.h"

#include "base/file.h"
#include "base/memory.h"

static const char *kind(const json_t *v) {
  static const char *const names[] = {"an object", "a list", "a string", "an integer", "a real number", "true", "false", "null"};
  return v ? names[json_typeof(v)] : "nothing";
}

status json_parse(const char *where, const char *text, size_t bytes, json_t **tree) {
  json_error_t error;
  *tree = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
  if (!*tree) return fail(E_DATA, "%s: line %d: not valid JSON: %s", where, error.line, error.text);
  return OK;
}

status json_read_file(const char *path, size_t limit, json_t **tree) {
  char *text = NULL;
  size_t bytes;
  status st = OK;
  *tree = NULL;
  TRY(file_read(path, limit, &text, &bytes));
  TRY(json_parse(path, text, bytes, tree));
done:
  FREE(text);
  return st;
}

void json_drop(json_t **tree) {
  json_decref(*tree);
  *tree = NULL;
}

static const json_t *member(const json_t *o, const char *key) {
  const json_t *v = json_object_get(o, key);
  return json_is_null(v) ? NULL : v;
}

status json_need_int(const json_t *o, const char *where, const char *key, int64_t lo, int64_t hi, int64_t *value) {
  const json_t *v = member(o, key);
  if (!json_is_integer(v)) return fail(E_DATA, "%s: %s: expected an integer, found %s", where, key, kind(v));
  *value = json_integer_value(v);
  if (*value < lo || *value > hi)
    return fail(E_DATA, "%s: %s: expected %lld to %lld, found %lld", where, key, (long long)lo, (long long)hi, (long long)*value);
  return OK;
}

status json_get_int(const json_t *o, const char *where, const char *key, int64_t lo, int64_t hi, int64_t missing, int64_t *value) {
  if (member(o, key)) return json_need_int(o, where, key, lo, hi, value);
  *value = missing;
  return OK;
}

status json_get_real(const json_t *o, const char *where, const char *key, double missing, double *value) {
  const json_t *v = member(o, key);
  if (v && !json_is_number(v)) return fail(E_DATA, "%s: %s: expected a number, found %s", where, key, kind(v));
  *value = v ? json_number_value(v) : missing;
  return OK;
}

status json_get_bool(const json_t *o, const char *where, const char *key, bool missing, bool *value) {
  const json_t *v = member(o, key);
  if (v && !json_is_boolean(v)) return fail(E_DATA, "%s: %s: expected true or false, found %s", where, key, kind(v));
  *value = v ? json_is_true(v) : missing;
  return OK;
}

status json_get_string(const json_t *o, const char *where, const char *key, const char *missing, const char **value) {
  const json_t *v = member(o, key);
  if (v && !json_is_string(v)) return fail(E_DATA, "%s: %s: expected a string, found %s", where, key, kind(v));
  *value = v ? json_string_value(v) : missing;
  return OK;
}
