/* Lists of attributes, and one digest for all of a file's. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "store/h5.h"

const attribute *attr_find(const attributes *a, const char *name) {
  for (int i = 0; i < a->count; i++)
    if (strcmp(a->list[i].name, name) == 0) return &a->list[i];
  return NULL;
}

/* The attribute of that name, new or with its old value dropped. */
static status attr_place(attributes *a, const char *name, attribute **place) {
  status st = OK;
  size_t length = strlen(name);
  *place = (attribute *)attr_find(a, name);
  if (*place) {
    FREE((*place)->text);
    goto done;
  }
  if (length == 0 || length >= sizeof(*place)->name) {
    st = fail(E_INTERNAL, "attribute %s: expected a name of 1 to %zu bytes, found %zu", name, sizeof(*place)->name - 1, length);
    goto done;
  }
  TRY(GROW(a->list, a->count, a->room, "attributes"));
  *place = &a->list[a->count++];
  memcpy((*place)->name, name, length + 1);
done:
  return st;
}

status attr_text(attributes *a, const char *name, const char *value) {
  status st = OK;
  attribute *place = NULL;
  char *copy = NULL;
  size_t length = strlen(value);
  TRY(NEW(copy, length + 1, "attribute"));
  memcpy(copy, value, length);
  TRY(attr_place(a, name, &place));
  place->kind = ATTR_TEXT;
  place->text = copy;
  copy = NULL;
done:
  FREE(copy);
  return st;
}

status attr_int(attributes *a, const char *name, int64_t value) {
  attribute *place = NULL;
  status st = attr_place(a, name, &place);
  if (st != OK) return st;
  place->kind = ATTR_INT;
  place->integer = value;
  return OK;
}

status attr_real(attributes *a, const char *name, double value) {
  attribute *place = NULL;
  status st = attr_place(a, name, &place);
  if (st != OK) return st;
  place->kind = ATTR_REAL;
  place->real = value;
  return OK;
}

status attr_copy(attributes *to, const attributes *from) {
  status st = OK;
  for (int i = 0; i < from->count; i++) {
    const attribute *a = &from->list[i];
    TRY(a->kind == ATTR_TEXT  ? attr_text(to, a->name, a->text)
        : a->kind == ATTR_INT ? attr_int(to, a->name, a->integer)
                              : attr_real(to, a->name, a->real));
  }
done:
  return st;
}

const char *attr_get_text(const attributes *a, const char *name) {
  const attribute *found = attr_find(a, name);
  return found && found->kind == ATTR_TEXT ? found->text : "";
}

int64_t attr_get_int(const attributes *a, const char *name, int64_t missing) {
  const attribute *found = attr_find(a, name);
  return found && found->kind == ATTR_INT ? found->integer : missing;
}

double attr_get_real(const attributes *a, const char *name, double missing) {
  const attribute *found = attr_find(a, name);
  if (!found || found->kind == ATTR_TEXT) return missing;
  return found->kind == ATTR_INT ? (double)found->integer : found->real;
}

void attr_free(attributes *a) {
  for (int i = 0; i < a->count; i++) FREE(a->list[i].text);
  FREE(a->list);
  a->count = a->room = 0;
}

static status digest_one(const char *object, const attribute *a, char hex[HASH_HEX]) {
  status st = OK;
  hash *h = NULL;
  char number[64] = "";
  if (a->kind == ATTR_INT) snprintf(number, sizeof number, "%" PRId64, a->integer);
  if (a->kind == ATTR_REAL) snprintf(number, sizeof number, "%a", a->real);
  TRY(hash_new(&h));
  TRY(hash_add_text(h, object));
  TRY(hash_add_text(h, a->name));
  TRY(hash_add_text(h, a->kind == ATTR_TEXT ? "text" : a->kind == ATTR_INT ? "int" : "real"));
  TRY(hash_add_text(h, a->kind == ATTR_TEXT ? a->text : number));
  TRY(hash_end(&h, hex));
done:
  hash_free(&h);
  return st;
}

status attributes_digest_add(attributes_digest *d, const char *object, const attributes *a) {
  status st = OK;
  char(*wider)[HASH_HEX] = NULL;
  if (d->count + a->count > d->room) {
    int room = 2 * (d->count + a->count);
    TRY(NEW(wider, room, "digests of attributes"));
    if (d->count) memcpy(wider, d->each, (size_t)d->count * sizeof *wider);
    FREE(d->each);
    d->each = wider;
    d->room = room;
  }
  for (int i = 0; i < a->count; i++) {
    bool changes = *object == 0 && (strcmp(a->list[i].name, "complete") == 0 || strcmp(a->list[i].name, ATTRIBUTES_SHA) == 0);
    if (changes) continue;
    TRY(digest_one(object, &a->list[i], d->each[d->count]));
    d->count++;
  }
done:
  return st;
}

static int by_text(const void *a, const void *b) { return memcmp(a, b, HASH_HEX); }

status attributes_digest_end(attributes_digest *d, char hex[HASH_HEX]) {
  if (d->count) qsort(d->each, (size_t)d->count, sizeof *d->each, by_text);
  status st = hash_bytes(d->each ? (const void *)d->each : "", (size_t)d->count * sizeof *d->each, hex);
  attributes_digest_free(d);
  return st;
}

void attributes_digest_free(attributes_digest *d) {
  FREE(d->each);
  d->count = d->room = 0;
}
