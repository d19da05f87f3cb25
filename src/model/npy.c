#include "model/npy.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

/* A .npy file: magic, version, length, a Python dictionary, data. */

static const char *skip_space(const char *p) {
  while (isspace((unsigned char)*p)) p++;
  return p;
}

/* The value that follows 'key': in the dictionary's text; NULL when the key is not there. */
static const char *dictionary_value(const char *text, const char *key) {
  size_t n = strlen(key);
  for (const char *p = text; (p = strstr(p, key)); p += n) {
    bool quoted = p > text && (p[-1] == '\'' || p[-1] == '"') && p[n] == p[-1];
    const char *colon = quoted ? skip_space(p + n + 1) : NULL;
    if (colon && *colon == ':') return skip_space(colon + 1);
  }
  return NULL;
}

static status read_descr(const char *path, const char *text, const npy_wish *wish, npy *f) {
  const char *p = dictionary_value(text, "descr");
  if (!p || (*p != '\'' && *p != '"')) return fail(E_DATA, "%s: .npy header: expected a descr of %s, found none", path, wish->kinds_text);
  size_t n = strcspn(p + 1, "'\"");
  snprintf(f->descr, sizeof f->descr, "%.*s", (int)(n < 15 ? n : 15), p + 1);
  const char *d = f->descr;
  bool order = d[0] == '<' || d[0] == '|' || d[0] == '>', known = order && d[1] && strchr(wish->kinds, d[1]) && d[2] && d[3] == 0;
  if (!known || !strchr("1248", d[2])) return fail(E_DATA, "%s: expected %s, found elements of type %s", path, wish->kinds_text, d);
  if (d[0] == '>') return fail(E_DATA, "%s: expected little-endian %s, found big-endian ones (%s)", path, wish->kinds_text, d);
  f->kind = d[1];
  f->bytes = d[2] - '0';
  return OK;
}

static status read_shape(const char *path, const char *text, int rank, npy *f) {
  const char *p = dictionary_value(text, "shape"), *start = p, *order = dictionary_value(text, "fortran_order");
  char *end;
  int commas = 0, numbers = 0;
  if (!p || *p != '(') return fail(E_DATA, "%s: .npy header: expected a shape, found none", path);
  f->fortran = order && *order == 'T';
  for (p = skip_space(p + 1); *p && *p != ')'; p = skip_space(p)) {
    if (*p == ',') {
      commas++, p++;
      continue;
    }
    int64_t n = isdigit((unsigned char)*p) ? strtoll(p, &end, 10) : -1;
    if (n < 0) return fail(E_DATA, "%s: .npy header: expected a shape of integers, found %.40s", path, start);
    if (numbers < NPY_RANK) f->shape[numbers] = n;
    numbers++;
    p = end;
  }
  if (*p == ')' && numbers == rank && (commas == 1 || commas == rank)) return OK;
  return fail(E_DATA, "%s: expected %s, found shape %.*s", path, rank == 1 ? "one dimension" : "two dimensions",
              (int)(p - start < 60 ? p - start + (*p == ')') : 60), start);
}

status npy_open(const char *path, const npy_wish *wish, npy *f) {
  status st = OK;
  char *text = NULL;
  *f = (npy){0};
  TRY(file_map_open(path, &f->map));
  const unsigned char *d = f->map.data;
  size_t size = f->map.bytes;
  if (size < 12 || memcmp(d, "\x93NUMPY", 6) != 0) {
    st = fail(E_DATA, "%s: expected a .npy file, found something else", path);
    goto done;
  }
  if (d[6] < 1 || d[6] > 3) {
    st = fail(E_DATA, "%s: expected .npy version 1, 2 or 3, found %d", path, d[6]);
    goto done;
  }
  size_t start = d[6] == 1 ? 10 : 12;
  size_t header =
      d[6] == 1 ? (size_t)d[8] | (size_t)d[9] << 8 : (size_t)d[8] | (size_t)d[9] << 8 | (size_t)d[10] << 16 | (size_t)d[11] << 24;
  if (header > size - start || header > 1 << 20) {
    st = fail(E_DATA, "%s: .npy header: expected %zu bytes, found %zu (cut off)", path, header, size - start);
    goto done;
  }
  TRY(NEW(text, header + 1, path));
  for (size_t i = 0; i < header; i++) text[i] = isprint(d[start + i]) ? (char)d[start + i] : ' '; /* messages quote it */
  TRY(read_descr(path, text, wish, f));
  TRY(read_shape(path, text, wish->rank, f));
  f->data = d + start + header;
  uint64_t bytes = (uint64_t)f->bytes, count = 1, found = size - start - header;
  bool over = false;
  for (int k = 0; k < wish->rank; k++) over |= __builtin_mul_overflow(count, (uint64_t)f->shape[k], &count);
  over |= __builtin_mul_overflow(bytes, count, &bytes);
  if (over || bytes != found)
    st = fail(E_DATA, "%s: expected %llu %s of %d bytes by the header, found %llu bytes of data", path, (unsigned long long)count,
              wish->what, f->bytes, (unsigned long long)found);
done:
  FREE(text);
  if (st != OK) npy_close(f);
  return st;
}

void npy_close(npy *f) {
  file_map_close(&f->map);
  *f = (npy){0};
}

void npy_header(const char *descr, int rank, const int64_t *shape, char header[NPY_HEADER]) {
  char text[NPY_HEADER];
  int used = snprintf(text, sizeof text, "{'descr': '%s', 'fortran_order': False, 'shape': (%lld,", descr, (long long)shape[0]);
  if (rank == 2) used += snprintf(text + used, sizeof text - (size_t)used, " %lld", (long long)shape[1]);
  used += snprintf(text + used, sizeof text - (size_t)used, "), }");
  const int start = 10, length = NPY_HEADER - start;
  memcpy(header, "\x93NUMPY\1", 7);
  header[7] = 0;
  header[8] = (char)length;
  header[9] = 0;
  memset(header + start, ' ', (size_t)length);
  memcpy(header + start, text, (size_t)used);
  header[NPY_HEADER - 1] = '\n';
}
