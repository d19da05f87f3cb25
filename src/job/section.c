#include "job/section.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "base/settings.h"

void section_compose(char prefix[SECTION_PREFIX], const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(prefix, SECTION_PREFIX, format, arguments);
  va_end(arguments);
}

const json_t *section_lookup(const section *s, const char *key) {
  const json_t *v = json_object_get(s->given, key);
  return json_is_null(v) ? NULL : v;
}

status section_keep(section *s, const char *key, json_t *value) {
  return value && json_object_set_new(s->out, key, value) == 0 ? OK : fail(E_MEMORY, "%s%s: no memory", s->prefix, key);
}

status section_expected(const section *s, const char *key, const char *what, const json_t *found) {
  char text[SETTINGS_FOUND];
  settings_found(found, text);
  return fail(E_USAGE, "%s%s: expected %s, found %s", s->prefix, key, what, text);
}

status section_only_keys(const section *s, const char *const *keys, int count) {
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

status section_open(section *outer, const char *key, const char *what, bool required, section *s) {
  const json_t *v = section_lookup(outer, key);
  if (v ? !json_is_object(v) : required) return section_expected(outer, key, what, v);
  section_compose(s->prefix, "%s%s.", outer->prefix, key);
  s->given = v;
  s->out = json_object();
  return section_keep(outer, key, s->out);
}

status section_text(section *s, const char *key, const char *what, char **text) {
  const json_t *v = section_lookup(s, key);
  if (!json_is_string(v) || json_string_length(v) == 0) return section_expected(s, key, what, v);
  *text = mem_format("%s", json_string_value(v));
  if (!*text) return fail(E_MEMORY, "%s%s: no memory", s->prefix, key);
  return section_keep(s, key, json_string(*text));
}

static bool stands_for_zero(const json_t *v, const char *word) {
  return word && (!v || (json_is_string(v) && strcmp(json_string_value(v), word) == 0));
}

status section_int(section *s, const char *key, const char *what, int64_t lo, int64_t hi, const char *word, int64_t missing,
                   int64_t *value) {
  const json_t *v = section_lookup(s, key);
  if (stands_for_zero(v, word)) {
    *value = 0;
    return section_keep(s, key, json_string(word));
  }
  if (v && (!json_is_integer(v) || json_integer_value(v) < lo || json_integer_value(v) > hi)) return section_expected(s, key, what, v);
  *value = v ? json_integer_value(v) : missing;
  return section_keep(s, key, json_integer(*value));
}

status section_real(section *s, const char *key, const char *what, double lo, double hi, const char *word, double missing, double *value) {
  const json_t *v = section_lookup(s, key);
  if (stands_for_zero(v, word)) {
    *value = 0;
    return section_keep(s, key, json_string(word));
  }
  if (v && (!json_is_number(v) || !(json_number_value(v) >= lo && json_number_value(v) <= hi))) return section_expected(s, key, what, v);
  *value = v ? json_number_value(v) : missing;
  return section_keep(s, key, json_real(*value));
}
