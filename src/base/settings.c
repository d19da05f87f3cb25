#include "base/settings.h"

#include <ctype.h>
#include <errno.h>
#include <libfyaml.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"

enum { DEPTH = 32, FILE_LIMIT = 1 << 20 };

/* ---- scalars, YAML 1.2 core schema ---- */

static bool among(const char *text, const char *const *list, size_t count) {
  for (size_t i = 0; i < count; i++)
    if (strcmp(text, list[i]) == 0) return true;
  return false;
}
#define AMONG(text, ...) among((text), (const char *const[]){__VA_ARGS__}, sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *))

typedef enum number_form { NO_NUMBER, DECIMAL, OCTAL, HEXADECIMAL, REAL } number_form;

/* [-+]?[0-9]+ | 0o[0-7]+ | 0x[0-9a-fA-F]+ | [-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)? */
static number_form number_form_of(const char *text) {
  const char *p = text;
  if (p[0] == '0' && p[1] == 'o') return p[2] && p[2 + strspn(p + 2, "01234567")] == 0 ? OCTAL : NO_NUMBER;
  if (p[0] == '0' && p[1] == 'x') return p[2] && p[2 + strspn(p + 2, "0123456789abcdefABCDEF")] == 0 ? HEXADECIMAL : NO_NUMBER;
  if (*p == '+' || *p == '-') p++;
  size_t whole = strspn(p, "0123456789"), fraction = 0;
  p += whole;
  if (whole && !*p) return DECIMAL;
  if (*p == '.') fraction = strspn(++p, "0123456789"), p += fraction;
  if (!whole && !fraction) return NO_NUMBER;
  if (*p == 'e' || *p == 'E') {
    p++;
    if (*p == '+' || *p == '-') p++;
    size_t digits = strspn(p, "0123456789");
    if (!digits) return NO_NUMBER;
    p += digits;
  }
  return *p ? NO_NUMBER : REAL;
}

/* NULL with *problem set when the text is a number that cannot be held. */
static json_t *plain_scalar(const char *text, const char **problem) {
  if (AMONG(text, "", "~", "null", "Null", "NULL")) return json_null();
  if (AMONG(text, "true", "True", "TRUE")) return json_true();
  if (AMONG(text, "false", "False", "FALSE")) return json_false();
  const char *unsigned_text = text + (*text == '+' || *text == '-');
  if (AMONG(unsigned_text, ".inf", ".Inf", ".INF", ".nan", ".NaN", ".NAN")) {
    *problem = "expected a finite number";
    return NULL;
  }
  number_form form = number_form_of(text);
  if (form == NO_NUMBER) return json_string(text);
  errno = 0;
  if (form == REAL) {
    double value = strtod(text, NULL);
    if (!isfinite(value)) *problem = "expected a finite number";
    return *problem ? NULL : json_real(value);
  }
  bool based = form == OCTAL || form == HEXADECIMAL;
  long long value = strtoll(based ? text + 2 : text, NULL, form == OCTAL ? 8 : form == HEXADECIMAL ? 16 : 10);
  if (errno == ERANGE) *problem = "expected an integer of at most 64 bits";
  return *problem ? NULL : json_integer(value);
}

/* ---- events of the parser into a tree ---- */

typedef struct reader {
  const char *where;
  struct fy_parser *parser;
  struct fy_diag *diag;
} reader;

static status no_memory(const reader *r) { return fail(E_MEMORY, "%s: no memory for its contents", r->where); }

static status refuse(const reader *r, struct fy_event *e, const char *what) {
  const struct fy_mark *m = fy_event_start_mark(e);
  return fail(E_USAGE, "%s: line %d, column %d: %s", r->where, m ? m->line + 1 : 1, m ? m->column + 1 : 1, what);
}

/* The next event, to be given back with fy_parser_event_free. The text after a syntax error is the library's, cut to one line. */
static status next_event(reader *r, struct fy_event **e) {
  *e = fy_parser_parse(r->parser);
  if (*e) return OK;
  void *at = NULL;
  struct fy_diag_error *error = fy_diag_errors_iterate(r->diag, &at);
  if (!error) return fail(E_USAGE, "%s: expected more YAML, found the end", r->where);
  return fail(E_USAGE, "%s: line %d, column %d: not valid YAML: %.*s", r->where, error->line, error->column, (int)strcspn(error->msg, "\n"),
              error->msg);
}

static status scalar_text(const reader *r, struct fy_event *e, char **text) {
  size_t length = 0;
  const char *raw = fy_token_get_text(e->scalar.value, &length);
  *text = NULL;
  if (length && !raw) return no_memory(r);
  if (length && memchr(raw, 0, length)) return refuse(r, e, "expected text, found a zero byte in it");
  *text = mem_format("%.*s", (int)length, raw ? raw : "");
  return *text ? OK : no_memory(r);
}

static status build_scalar(const reader *r, struct fy_event *e, json_t **value) {
  status st = OK;
  const char *problem = NULL;
  char *text = NULL, *message = NULL;
  TRY(scalar_text(r, e, &text));
  bool plain = fy_token_scalar_style(e->scalar.value) == FYSS_PLAIN;
  *value = plain ? plain_scalar(text, &problem) : json_string(text);
  if (problem) {
    message = mem_format("%s, found %.64s", problem, text);
    st = message ? refuse(r, e, message) : no_memory(r);
  } else if (!*value) {
    st = refuse(r, e, "expected text in UTF-8"); /* jansson's only other reason: an escape that is no character */
  }
done:
  FREE(message);
  FREE(text);
  return st;
}

static status build(reader *r, struct fy_event *e, int depth, json_t **value);

static status build_mapping(reader *r, int depth, json_t *map) {
  status st = OK;
  struct fy_event *e = NULL;
  char *key = NULL;
  json_t *value = NULL;
  for (;;) {
    TRY(next_event(r, &e));
    if (e->type == FYET_MAPPING_END) break;
    if (e->type != FYET_SCALAR || e->scalar.anchor || e->scalar.tag) {
      st = refuse(r, e, "expected a plain word as key, found something else");
      break;
    }
    TRY(scalar_text(r, e, &key));
    if (json_object_get(map, key)) {
      char what[128];
      snprintf(what, sizeof what, "%.64s: this key is given twice", key);
      st = refuse(r, e, what);
      break;
    }
    fy_parser_event_free(r->parser, e);
    e = NULL;
    TRY(next_event(r, &e));
    st = build(r, e, depth + 1, &value);
    e = NULL;
    if (st != OK) break;
    if (json_object_set_new(map, key, value) != 0) {
      st = no_memory(r);
      break;
    }
    FREE(key);
  }
done:
  if (e) fy_parser_event_free(r->parser, e);
  FREE(key);
  return st;
}

static status build_list(reader *r, int depth, json_t *list) {
  status st = OK;
  for (;;) {
    struct fy_event *e;
    json_t *value = NULL;
    TRY(next_event(r, &e));
    if (e->type == FYET_SEQUENCE_END) {
      fy_parser_event_free(r->parser, e);
      break;
    }
    TRY(build(r, e, depth + 1, &value));
    if (json_array_append_new(list, value) != 0) {
      st = no_memory(r);
      break;
    }
  }
done:
  return st;
}

/* The value that begins with event e, which is given back here. */
static status build(reader *r, struct fy_event *e, int depth, json_t **value) {
  status st = OK;
  *value = NULL;
  bool mapping = e->type == FYET_MAPPING_START, list = e->type == FYET_SEQUENCE_START, scalar = e->type == FYET_SCALAR;
  if (e->type == FYET_ALIAS || (mapping && e->mapping_start.anchor) || (list && e->sequence_start.anchor) || (scalar && e->scalar.anchor))
    st = refuse(r, e, "expected a value, found an anchor or alias (& or *): write the value out");
  else if ((mapping && e->mapping_start.tag) || (list && e->sequence_start.tag) || (scalar && e->scalar.tag))
    st = refuse(r, e, "expected a value, found a tag (!)");
  else if (depth > DEPTH)
    st = refuse(r, e, "expected at most 32 levels of nesting, found more");
  else if (scalar)
    st = build_scalar(r, e, value);
  else if (mapping || list)
    *value = mapping ? json_object() : json_array();
  else
    st = refuse(r, e, "expected a value");
  fy_parser_event_free(r->parser, e);
  if (st == OK && !*value) st = no_memory(r);
  if (st == OK && mapping) st = build_mapping(r, depth, *value);
  if (st == OK && list) st = build_list(r, depth, *value);
  if (st != OK) json_drop(value);
  return st;
}

static status build_document(reader *r, json_t **tree) {
  status st = OK;
  struct fy_event *e = NULL;
  while (!*tree) {
    TRY(next_event(r, &e));
    if (e->type == FYET_STREAM_END) {
      *tree = json_null();
      goto done;
    }
    if (e->type == FYET_STREAM_START || e->type == FYET_DOCUMENT_START) {
      fy_parser_event_free(r->parser, e);
      e = NULL;
      continue;
    }
    st = build(r, e, 1, tree);
    e = NULL;
    if (st != OK) goto done;
  }
  do {
    if (e) fy_parser_event_free(r->parser, e);
    TRY(next_event(r, &e));
    if (e->type == FYET_DOCUMENT_START) {
      st = refuse(r, e, "expected one document, found a second");
      goto done;
    }
  } while (e->type != FYET_STREAM_END);
done:
  if (e) fy_parser_event_free(r->parser, e);
  return st;
}

status settings_parse(const char *where, const char *text, json_t **tree) {
  status st = OK;
  *tree = NULL;
  json_t *probe = json_string(text); /* libfyaml ends quietly at a byte that is no UTF-8; jansson checks */
  if (!probe) return fail(E_USAGE, "%s: expected text in UTF-8, found other bytes", where);
  json_decref(probe);
  struct fy_diag_cfg quiet;
  fy_diag_cfg_default(&quiet);
  quiet.fp = NULL;
  reader r = {where, NULL, fy_diag_create(&quiet)};
  if (!r.diag) return no_memory(&r);
  fy_diag_set_collect_errors(r.diag, true);
  struct fy_parse_cfg config = {.flags = FYPCF_QUIET | FYPCF_COLLECT_DIAG | FYPCF_DEFAULT_VERSION_1_2 | FYPCF_JSON_NONE, .diag = r.diag};
  r.parser = fy_parser_create(&config);
  if (!r.parser || fy_parser_set_string(r.parser, text, strlen(text)) != 0) {
    st = no_memory(&r);
    goto done;
  }
  TRY(build_document(&r, tree));
done:
  if (r.parser) fy_parser_destroy(r.parser);
  fy_diag_destroy(r.diag);
  if (st != OK) json_drop(tree);
  return st;
}

status settings_read(const char *path, json_t **tree) {
  char *text = NULL;
  size_t bytes = 0;
  *tree = NULL;
  status st = file_read(path, FILE_LIMIT, &text, &bytes);
  if (st == E_DATA) st = E_USAGE; /* the message stays: for a job file a wrong name is wrong usage */
  if (st == OK && strlen(text) != bytes) st = fail(E_USAGE, "%s: expected text, found a zero byte in it", path);
  if (st == OK) st = settings_parse(path, text, tree);
  FREE(text);
  return st;
}

/* ---- overrides ---- */

/* One step of the path, a word or an index in brackets. Moves *p behind it and its dot. */
typedef struct step {
  char word[64]; /* "" for an index */
  size_t index;
} step;
static bool path_step(const char **p, step *s) {
  const char *at = *p;
  *s = (step){{0}, 0};
  if (*at == '[') {
    char *end;
    if (!isdigit((unsigned char)at[1])) return false;
    s->index = strtoul(at + 1, &end, 10);
    if (*end != ']') return false;
    at = end + 1;
  } else {
    size_t n = strcspn(at, ".[]");
    if (n == 0 || n >= sizeof s->word) return false;
    memcpy(s->word, at, n);
    at += n;
  }
  if (*at == '.') {
    if (!at[1] || at[1] == '[') return false;
    at++;
  } else if (*at && *at != '[') {
    return false;
  }
  *p = at;
  return true;
}

/* The member or item of `at` that the step names (NULL when there is none), and putting one there. */
static json_t *step_into(json_t *at, const step *s) { return s->word[0] ? json_object_get(at, s->word) : json_array_get(at, s->index); }
static int step_put(json_t *at, const step *s, json_t *put) {
  if (s->word[0]) return json_object_set(at, s->word, put);
  return s->index < json_array_size(at) ? json_array_set(at, s->index, put) : json_array_append(at, put);
}

status settings_set(json_t *tree, const char *assignment) {
  status st = OK;
  char *where = NULL, *key = NULL;
  json_t *value = NULL, *at = tree;
  const char *equals = strchr(assignment, '=');
  if (!equals || equals == assignment) return fail(E_USAGE, "--set %s: expected key=value", assignment);
  where = mem_format("--set %s", assignment);
  key = mem_format("%.*s", (int)(equals - assignment), assignment);
  if (!where || !key) {
    st = fail(E_MEMORY, "--set: no memory");
    goto done;
  }
  TRY(settings_parse(where, equals + 1, &value));
  for (const char *p = key; *p;) {
    step s;
    if (!path_step(&p, &s)) {
      st = fail(E_USAGE, "%s: expected key=value with a key like a.b or a[0].b", where);
      goto done;
    }
    if (s.word[0] ? !json_is_object(at) : !json_is_array(at)) {
      st = fail(E_USAGE, "%s: expected a %s that holds %s, found a %s", where, s.word[0] ? "mapping" : "list",
                s.word[0] ? s.word : "this index",
                json_is_object(at)  ? "mapping"
                : json_is_array(at) ? "list"
                                    : "single value");
      goto done;
    }
    if (!s.word[0] && s.index > json_array_size(at)) {
      st = fail(E_USAGE, "%s: expected an index of at most %zu, found %zu", where, json_array_size(at), s.index);
      goto done;
    }
    json_t *next = step_into(at, &s);
    if (!*p || !next || json_is_null(next)) {
      json_t *put = !*p ? json_incref(value) : *p == '[' ? json_array() : json_object();
      int failed = step_put(at, &s, put);
      json_decref(put);
      if (failed) {
        st = fail(E_MEMORY, "%s: no memory", where);
        goto done;
      }
      next = step_into(at, &s);
    }
    at = next;
  }
done:
  json_drop(&value);
  FREE(key);
  FREE(where);
  return st;
}

/* ---- writing ---- */

void settings_real(double value, char text[SETTINGS_REAL]) {
  for (int digits = 15; digits <= 17; digits++) { /* 15 digits always survive text; %g drops their trailing zeros */
    snprintf(text, SETTINGS_REAL, "%.*g", digits, value);
    if (strtod(text, NULL) == value) break;
  }
  char *e = strchr(text, 'e');
  if (!e) return;
  char sign = e[1], *digits = e + 2; /* printf's exponent is a sign and at least two digits: "e-05" becomes "e-5", "e+20" becomes "e20" */
  while (digits[0] == '0' && digits[1]) digits++;
  char kept[8];
  snprintf(kept, sizeof kept, "%s%.5s", sign == '-' ? "-" : "", digits);
  snprintf(e + 1, (size_t)(text + SETTINGS_REAL - e - 1), "%s", kept);
}

static void write_text(FILE *f, const char *text) {
  const char *problem = NULL;
  json_t *typed = plain_scalar(text, &problem);
  bool plain = json_is_string(typed) && (isalpha((unsigned char)*text) || isdigit((unsigned char)*text) || *text == '_' || *text == '/');
  for (const char *p = text; plain && *p; p++) plain = isalnum((unsigned char)*p) || strchr("_./+-", *p);
  json_decref(typed);
  if (plain) {
    fputs(text, f);
    return;
  }
  fputc('"', f); /* YAML's double quotes; controls, which JSON would leave as they are above 0x7e, are escaped */
  for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
    if (*p == '"' || *p == '\\')
      fprintf(f, "\\%c", *p);
    else if (*p < 0x20 || *p == 0x7f)
      fprintf(f, "\\x%02x", *p);
    else
      fputc(*p, f);
  }
  fputc('"', f);
}

static void write_scalar(FILE *f, const json_t *v) {
  char text[SETTINGS_REAL];
  switch (json_typeof(v)) {
  case JSON_STRING: write_text(f, json_string_value(v)); break;
  case JSON_INTEGER: fprintf(f, "%lld", (long long)json_integer_value(v)); break;
  case JSON_REAL:
    settings_real(json_real_value(v), text);
    fprintf(f, "%s%s", text, strpbrk(text, ".e") ? "" : ".0");
    break;
  case JSON_TRUE: fputs("true", f); break;
  case JSON_FALSE: fputs("false", f); break;
  default: fputs("null", f); break;
  }
}

static bool is_block(const json_t *v) {
  if (json_is_object(v)) return json_object_size(v) > 0;
  size_t i;
  json_t *item;
  json_array_foreach(v, i, item) if (json_is_object(item) || json_is_array(item)) return true;
  return false;
}

/* Mappings and lists of them as blocks, lists of scalars in brackets. The cursor stands where the value begins: behind "key:" or "- ". */
static void write_value(FILE *f, const json_t *v, int indent, bool after_key) {
  if (!is_block(v)) {
    if (after_key) fputc(' ', f);
    if (json_is_array(v)) {
      fputc('[', f);
      for (size_t i = 0; i < json_array_size(v); i++) {
        if (i) fputs(", ", f);
        write_scalar(f, json_array_get(v, i));
      }
      fputc(']', f);
    } else if (json_is_object(v)) {
      fputs("{}", f);
    } else {
      write_scalar(f, v);
    }
    fputc('\n', f);
    return;
  }
  bool fresh = !after_key; /* the first line of a block in a list stands behind its dash */
  if (after_key) fputc('\n', f);
  if (json_is_object(v)) {
    const char *key;
    json_t *item;
    json_object_foreach((json_t *)v, key, item) {
      if (!fresh) fprintf(f, "%*s", indent, "");
      fresh = false;
      write_text(f, key);
      fputc(':', f);
      write_value(f, item, indent + 2, true);
    }
  } else {
    size_t i;
    json_t *item;
    json_array_foreach(v, i, item) {
      if (!fresh) fprintf(f, "%*s", indent, "");
      fresh = false;
      fputs("- ", f);
      write_value(f, item, indent + 2, false);
    }
  }
}

status settings_write(const json_t *tree, char **text) {
  char *buffer = NULL;
  size_t bytes = 0;
  *text = NULL;
  FILE *f = open_memstream(&buffer, &bytes);
  if (!f) return fail(E_MEMORY, "settings: no memory for their text");
  write_value(f, tree, 0, false);
  bool written = !ferror(f);
  if (fclose(f) == 0 && written) *text = mem_format("%s", buffer);
  free(buffer);
  return *text ? OK : fail(E_MEMORY, "settings: no memory for their text");
}

/* ---- words for messages ---- */

void settings_found(const json_t *value, char text[SETTINGS_FOUND]) {
  char number[SETTINGS_REAL];
  if (json_is_string(value))
    snprintf(text, SETTINGS_FOUND, "the text %.64s%s", json_string_value(value), json_string_length(value) ? "" : "\"\"");
  else if (json_is_integer(value))
    snprintf(text, SETTINGS_FOUND, "%lld", (long long)json_integer_value(value));
  else if (json_is_real(value)) {
    settings_real(json_real_value(value), number);
    snprintf(text, SETTINGS_FOUND, "%s", number);
  } else
    snprintf(text, SETTINGS_FOUND, "%s",
             json_is_object(value)  ? "a mapping"
             : json_is_array(value) ? "a list"
             : json_is_true(value)  ? "true"
             : json_is_false(value) ? "false"
                                    : "nothing");
}

static int distance(const char *a, const char *b) {
  enum { MAX = 63 };
  size_t n = strlen(a), m = strlen(b);
  if (n > MAX || m > MAX) return MAX + 1;
  int rows[3][MAX + 1];
  int *two_ago = rows[0], *before = rows[1], *now = rows[2];
  for (size_t j = 0; j <= m; j++) before[j] = (int)j;
  for (size_t i = 1; i <= n; i++) {
    now[0] = (int)i;
    for (size_t j = 1; j <= m; j++) {
      int best = before[j - 1] + (a[i - 1] != b[j - 1]);
      if (before[j] + 1 < best) best = before[j] + 1;
      if (now[j - 1] + 1 < best) best = now[j - 1] + 1;
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && two_ago[j - 2] + 1 < best) best = two_ago[j - 2] + 1;
      now[j] = best;
    }
    int *reused = two_ago;
    two_ago = before;
    before = now;
    now = reused;
  }
  return before[m];
}

const char *settings_nearest(const char *word, const char *const *list, int count) {
  const char *nearest = NULL;
  int least = ((int)strnlen(word, 64) + 2) / 3 + 1;
  for (int i = 0; i < count; i++) {
    int d = distance(word, list[i]);
    if (d < least) {
      least = d;
      nearest = list[i];
    }
  }
  return nearest;
}
