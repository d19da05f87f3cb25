#include "model/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"

enum { MAX_RANK = 8 };
static const uint64_t MAX_HEADER = 100000000;

/* Every dtype of the format: what we do not read must still be measured, or its neighbours' offsets could not be checked. */
static const struct {
  const char *name;
  unsigned bits;
  dtype type;
} dtypes[] = {
    {"BOOL", 8, DT_OTHER},    {"F4", 4, DT_OTHER},          {"F6_E2M3", 6, DT_OTHER},     {"F6_E3M2", 6, DT_OTHER},
    {"U8", 8, DT_OTHER},      {"I8", 8, DT_OTHER},          {"F8_E5M2", 8, DT_OTHER},     {"F8_E4M3", 8, DT_OTHER},
    {"F8_E8M0", 8, DT_OTHER}, {"F8_E4M3FNUZ", 8, DT_OTHER}, {"F8_E5M2FNUZ", 8, DT_OTHER}, {"I16", 16, DT_OTHER},
    {"U16", 16, DT_OTHER},    {"F16", 16, DT_F16},          {"BF16", 16, DT_BF16},        {"I32", 32, DT_OTHER},
    {"U32", 32, DT_OTHER},    {"F32", 32, DT_F32},          {"C64", 64, DT_OTHER},        {"F64", 64, DT_OTHER},
    {"I64", 64, DT_OTHER},    {"U64", 64, DT_OTHER},
};

const char *dtype_name(dtype t) {
  static const char *const names[] = {"F32", "F16", "BF16", "other"};
  return names[t];
}

int st_type_order(const char *type_text) {
  for (int i = 0; i < (int)(sizeof dtypes / sizeof *dtypes); i++)
    if (strcmp(type_text, dtypes[i].name) == 0) return i;
  return -1;
}

unsigned st_type_bits(const char *type_text) {
  int i = st_type_order(type_text);
  return i < 0 ? 0 : dtypes[i].bits;
}

static status read_metadata(const char *path, const json_t *o) {
  const char *key;
  json_t *value;
  if (!json_is_object(o)) return fail(E_DATA, "%s: __metadata__: expected an object of strings, found something else", path);
  json_object_foreach((json_t *)o, key, value) {
    if (!json_is_string(value)) return fail(E_DATA, "%s: __metadata__: %s: expected a string, found something else", path, key);
  }
  return OK;
}

static status read_shape(const char *path, const json_t *o, st_tensor *t) {
  const json_t *shape = json_object_get(o, "shape");
  if (!json_is_array(shape)) return fail(E_DATA, "%s: %s: shape: expected a list of integers, found none", path, t->name);
  size_t rank = json_array_size(shape);
  if (rank > MAX_RANK) return fail(E_DATA, "%s: %s: shape: expected at most %d dimensions, found %zu", path, t->name, MAX_RANK, rank);
  t->rank = (int)rank;
  for (size_t i = 0; i < rank; i++) {
    const json_t *n = json_array_get(shape, i);
    if (!json_is_integer(n) || json_integer_value(n) < 0)
      return fail(E_DATA, "%s: %s: shape: expected integers from 0 on, found something else in place %zu", path, t->name, i);
    t->shape[i] = json_integer_value(n);
  }
  return OK;
}

static status read_offsets(const char *path, const json_t *o, st_tensor *t) {
  const json_t *offsets = json_object_get(o, "data_offsets");
  const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
  if (!json_is_array(offsets) || json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end) ||
      json_integer_value(begin) < 0 || json_integer_value(end) < json_integer_value(begin))
    return fail(E_DATA, "%s: %s: data_offsets: expected two integers [begin, end] with 0 <= begin <= end, found something else", path,
                t->name);
  t->begin = (uint64_t)json_integer_value(begin);
  t->end = (uint64_t)json_integer_value(end);
  return OK;
}

static status read_dtype(const char *path, const json_t *o, st_tensor *t, unsigned *bits) {
  const char *text = json_string_value(json_object_get(o, "dtype"));
  if (!text) return fail(E_DATA, "%s: %s: dtype: expected a string, found none", path, t->name);
  int i = st_type_order(text);
  if (i >= 0) {
    t->type = dtypes[i].type;
    *bits = dtypes[i].bits;
    snprintf(t->type_text, sizeof t->type_text, "%s", text);
    return OK;
  }
  return fail(E_DATA, "%s: %s: dtype: expected one of the safetensors format, found \"%.32s\"", path, t->name, text);
}

static status read_tensor(const char *path, const char *name, const json_t *o, st_tensor *t) {
  status st = OK;
  unsigned bits = 0;
  uint64_t total = 1;
  t->name = mem_format("%s", name);
  if (!t->name) return fail(E_MEMORY, "%s: no memory for a tensor's name", path);
  if (!json_is_object(o))
    return fail(E_DATA, "%s: %s: expected an object with dtype, shape and data_offsets, found something else", path, name);
  TRY(read_dtype(path, o, t, &bits));
  TRY(read_shape(path, o, t));
  TRY(read_offsets(path, o, t));
  bool over = false;
  for (int i = 0; i < t->rank; i++) over |= __builtin_mul_overflow(total, (uint64_t)t->shape[i], &total);
  over |= __builtin_mul_overflow(total, (uint64_t)bits, &total);
  if (over) return fail(E_DATA, "%s: %s: shape: expected a size below 2^64 bits, found more", path, name);
  if (total % 8 != 0) return fail(E_DATA, "%s: %s: expected whole bytes, found %llu bits", path, name, (unsigned long long)total);
  if (t->end - t->begin != total / 8)
    return fail(E_DATA, "%s: %s: expected %llu bytes by dtype and shape, found data_offsets that hold %llu", path, name,
                (unsigned long long)total / 8, (unsigned long long)(t->end - t->begin));
done:
  return st;
}

static int by_name(const void *a, const void *b) { return strcmp(((const st_tensor *)a)->name, ((const st_tensor *)b)->name); }

static int by_offset(const void *a, const void *b) {
  const st_tensor *s = *(st_tensor *const *)a, *t = *(st_tensor *const *)b;
  if (s->begin != t->begin) return s->begin < t->begin ? -1 : 1;
  if (s->end != t->end) return s->end < t->end ? -1 : 1;
  return strcmp(s->name, t->name);
}

/* In order of offsets each tensor begins where the one before ended, and the last one ends with the file. */
static status check_tiling(const st_file *f) {
  status st = OK;
  const st_tensor **order = NULL;
  uint64_t at = 0, data = f->map.bytes - f->data_offset;
  TRY(NEW(order, f->count, f->path));
  for (size_t i = 0; i < f->count; i++) order[i] = f->tensors + i;
  qsort(order, f->count, sizeof *order, by_offset);
  for (size_t i = 0; i < f->count; i++) {
    if (order[i]->begin != at) {
      st = fail(E_DATA, "%s: %s: expected its data to begin at %llu, where the tensor before ends, found %llu", f->path, order[i]->name,
                (unsigned long long)at, (unsigned long long)order[i]->begin);
      goto done;
    }
    at = order[i]->end;
  }
  if (at != data)
    st = fail(E_DATA, "%s: expected %llu bytes of data by the header, found %llu (%s)", f->path, (unsigned long long)at,
              (unsigned long long)data, data < at ? "the file is cut off" : "trailing bytes");
done:
  FREE(order);
  return st;
}

static status read_header(st_file *f, const char *text, size_t bytes) {
  status st = OK;
  json_t *header = NULL;
  const char *name;
  json_t *entry;
  TRY(json_parse(f->path, text, bytes, &header));
  if (!json_is_object(header)) {
    st = fail(E_DATA, "%s: header: expected a JSON object, found something else", f->path);
    goto done;
  }
  TRY(NEW(f->tensors, json_object_size(header), f->path));
  json_object_foreach(header, name, entry) {
    if (strcmp(name, "__metadata__") == 0)
      TRY(read_metadata(f->path, entry));
    else
      TRY(read_tensor(f->path, name, entry, f->tensors + f->count++));
  }
  qsort(f->tensors, f->count, sizeof *f->tensors, by_name);
  TRY(check_tiling(f));
done:
  json_drop(&header);
  return st;
}

status st_open(const char *path, st_file *f) {
  status st = OK;
  *f = (st_file){.path = mem_format("%s", path)};
  if (!f->path) return fail(E_MEMORY, "%s: no memory for its name", path);
  TRY(file_map_open(path, &f->map));
  if (f->map.bytes < 8) {
    st = fail(E_DATA, "%s: expected a safetensors file of at least 8 bytes, found %zu", path, f->map.bytes);
    goto done;
  }
  uint64_t n = 0;
  for (int i = 7; i >= 0; i--) n = n << 8 | f->map.data[i];
  if (n > MAX_HEADER)
    st = fail(E_DATA, "%s: header: expected at most %llu bytes, found a length of %llu", path, (unsigned long long)MAX_HEADER,
              (unsigned long long)n);
  else if (n > f->map.bytes - 8)
    st = fail(E_DATA, "%s: header: expected %llu bytes, found a file that ends after %zu (cut off)", path, (unsigned long long)n,
              f->map.bytes - 8);
  else if (n == 0 || f->map.data[8] != '{')
    st = fail(E_DATA, "%s: header: expected it to begin with {, found something else", path);
  if (st != OK) goto done;
  f->data_offset = 8 + n;
  TRY(read_header(f, (const char *)f->map.data + 8, (size_t)n));
done:
  if (st != OK) st_close(f);
  return st;
}

void st_close(st_file *f) {
  for (size_t i = 0; i < f->count; i++) FREE(f->tensors[i].name);
  FREE(f->tensors);
  FREE(f->path);
  file_map_close(&f->map);
  *f = (st_file){0};
}

const st_tensor *st_find(const st_file *f, const char *name) {
  st_tensor key = {.name = (char *)name};
  return f->count ? bsearch(&key, f->tensors, f->count, sizeof *f->tensors, by_name) : NULL;
}

const unsigned char *st_data(const st_file *f, const st_tensor *t) { return f->map.data + f->data_offset + t->begin; }

void st_shape_text(const st_tensor *t, char text[192]) {
  int at = snprintf(text, 192, "(");
  for (int i = 0; i < t->rank; i++) at += snprintf(text + at, (size_t)(192 - at), "%s%lld", i ? ", " : "", (long long)t->shape[i]);
  snprintf(text + at, (size_t)(192 - at), ")");
}
