/* Small model folders for tests: safetensors files from a list of tensors, config.json from a text and changes to it. */
#ifndef CLOQWORK_TESTS_UNIT_MODEL_FILES_H
#define CLOQWORK_TESTS_UNIT_MODEL_FILES_H

#include "check.h"

#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/half.h"
#include "base/json.h"

static char test_folder[64];

static inline int folder_setup(void **state) {
  (void)state;
  snprintf(test_folder, sizeof test_folder, "/tmp/cloqwork-test-XXXXXX");
  return mkdtemp(test_folder) ? 0 : -1;
}

static inline const char *in_folder(const char *name) {
  static char path[2][512];
  static int turn;
  turn = !turn;
  snprintf(path[turn], sizeof path[turn], "%s/%s", test_folder, name);
  return path[turn];
}

static inline void folder_clear(void) {
  DIR *d = opendir(test_folder);
  for (struct dirent *e; d && (e = readdir(d));) unlink(in_folder(e->d_name));
  if (d) closedir(d);
}

static inline int folder_teardown(void **state) {
  (void)state;
  folder_clear();
  return rmdir(test_folder);
}

static inline void put_file(const char *name, const void *data, size_t bytes) {
  FILE *f = fopen(in_folder(name), "wb");
  assert_non_null(f);
  assert_int_equal(fwrite(data, 1, bytes, f), bytes);
  assert_int_equal(fclose(f), 0);
}

static inline void put_text(const char *name, const char *text) { put_file(name, text, strlen(text)); }

/* The call is refused with this status by one line that holds both parts. */
#define assert_refused_saying(call, expected_status, part, other)                                                                          \
  do {                                                                                                                                     \
    status check_st = (call);                                                                                                              \
    const char *check_line = status_message();                                                                                             \
    if (check_st != (expected_status) || !strstr(check_line, (part)) || !strstr(check_line, (other)) || strchr(check_line, '\n'))          \
      fail_msg("%s: expected status %d and one line with \"%s\" and \"%s\", found %d: %s", #call, (int)(expected_status), (part), (other), \
               (int)check_st, check_line);                                                                                                 \
    status_clear();                                                                                                                        \
  } while (0)

/* length (8 bytes, little-endian), header, data bytes 0, 1, 2 … */
static inline void put_safetensors_raw(const char *name, uint64_t length, const char *header, size_t header_bytes, size_t data_bytes) {
  size_t total = 8 + header_bytes + data_bytes;
  unsigned char *all = malloc(total + 1);
  assert_non_null(all);
  for (int i = 0; i < 8; i++) all[i] = (unsigned char)(length >> 8 * i);
  memcpy(all + 8, header, header_bytes);
  for (size_t i = 0; i < data_bytes; i++) all[8 + header_bytes + i] = (unsigned char)i;
  put_file(name, all, total);
  free(all);
}

typedef struct test_tensor {
  char name[96];
  const char *dtype; /* F32, F16, BF16; others are written as bytes of zeros */
  int rank;
  int64_t shape[3];
  float *values; /* owned */
  size_t count;
} test_tensor;

static inline size_t dtype_bytes(const char *type) {
  return strcmp(type, "F32") == 0 || strcmp(type, "I32") == 0 ? 4 : strcmp(type, "I8") == 0 ? 1 : 2;
}

static inline void put_value(const char *type, float value, unsigned char *out) {
  uint16_t half = strcmp(type, "BF16") == 0 ? float_to_bf16(value) : float_to_half(value);
  if (strcmp(type, "F32") == 0)
    memcpy(out, &value, 4);
  else if (strcmp(type, "F16") == 0 || strcmp(type, "BF16") == 0)
    memcpy(out, &half, 2);
}

/* Tensors in the given order; pad spaces after the header shift the data, so that any alignment can be had. */
static inline void put_safetensors(const char *name, const test_tensor *t, size_t count, size_t pad) {
  json_t *header = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
  size_t at = 0;
  for (size_t i = 0; i < count; i++) {
    json_t *shape = json_array();
    for (int k = 0; k < t[i].rank; k++) json_array_append_new(shape, json_integer(t[i].shape[k]));
    size_t bytes = t[i].count * dtype_bytes(t[i].dtype);
    json_object_set_new(
        header, t[i].name,
        json_pack("{s:s, s:o, s:[I,I]}", "dtype", t[i].dtype, "shape", shape, "data_offsets", (json_int_t)at, (json_int_t)(at + bytes)));
    at += bytes;
  }
  char *text = json_dumps(header, JSON_COMPACT);
  size_t n = strlen(text);
  unsigned char *all = calloc(8 + n + pad + at + 1, 1), *p = all + 8 + n + pad;
  for (int i = 0; i < 8; i++) all[i] = (unsigned char)((n + pad) >> 8 * i);
  memcpy(all + 8, text, n);
  memset(all + 8 + n, ' ', pad);
  for (size_t i = 0; i < count; i++)
    for (size_t k = 0; k < t[i].count; k++, p += dtype_bytes(t[i].dtype)) put_value(t[i].dtype, t[i].values[k], p);
  put_file(name, all, 8 + n + pad + at);
  free(all);
  free(text);
  json_decref(header);
}

/* config text changed by a JSON object: its members replace; the text "absent" removes a key. */
static inline void put_config(const char *base, const char *changes) {
  json_t *config = json_loads(base, 0, NULL), *change = json_loads(changes && *changes ? changes : "{}", 0, NULL), *value;
  const char *key;
  assert_non_null(config);
  if (!change) fail_msg("not JSON: %s", changes);
  json_object_foreach(change, key, value) {
    if (json_is_string(value) && strcmp(json_string_value(value), "absent") == 0)
      json_object_del(config, key);
    else
      json_object_set(config, key, value);
  }
  char *text = json_dumps(config, 0);
  put_text("config.json", text);
  free(text);
  json_decref(config);
  json_decref(change);
}

/* Uniform in (-1, 1), the same everywhere. */
static inline float test_value(uint64_t *state) {
  *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
  return (float)(int32_t)(*state >> 32) * 0x1p-31f;
}

/* The tensors of a small model: filled with values that bfloat16 holds exactly. */
typedef struct test_model {
  test_tensor t[64];
  size_t count;
} test_model;

static inline test_tensor *add_tensor(test_model *m, const char *name, int64_t rows, int64_t cols) {
  test_tensor *t = m->t + m->count++;
  uint64_t seed = m->count;
  *t =
      (test_tensor){.dtype = "F32", .rank = rows ? 2 : 1, .shape = {rows ? rows : cols, cols}, .count = (size_t)((rows ? rows : 1) * cols)};
  snprintf(t->name, sizeof t->name, "%s", name);
  t->values = malloc(t->count * sizeof *t->values);
  assert_non_null(t->values);
  for (size_t i = 0; i < t->count; i++) t->values[i] = bf16_to_float(float_to_bf16(test_value(&seed)));
  return t;
}

static inline test_tensor *the_tensor(test_model *m, const char *name) {
  for (size_t i = 0; i < m->count; i++)
    if (strcmp(m->t[i].name, name) == 0) return m->t + i;
  fail_msg("no tensor %s in the test's model", name);
  return NULL;
}

static inline void free_model(test_model *m) {
  for (size_t i = 0; i < m->count; i++) free(m->t[i].values);
  m->count = 0;
}

#endif
