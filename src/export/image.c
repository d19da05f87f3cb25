#include "export/image.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fault.h"
#include "base/file.h"
#include "base/memory.h"
#include "model/safetensors.h"

enum { BEHIND = 8 << 20 };

static uint64_t file_bytes(const image *m, int file) { return m->files[file].data + m->files[file].bytes; }

status image_add_file(image *m, const char *name, int *index) {
  status st = OK;
  TRY(GROW(m->files, m->file_count, m->file_room, "files of an export"));
  image_file *f = &m->files[m->file_count];
  f->handle = -1;
  if (!(f->name = mem_format("%s", name))) return fail(E_MEMORY, "%s: no memory for a name", name);
  *index = m->file_count++;
done:
  return st;
}

status image_add_tensor(image *m, int file, const char *name, const char *type, int rank, const int64_t *shape, int *index) {
  status st = OK;
  uint64_t bytes = st_type_bits(type) / 8;
  TRY(GROW(m->tensors, m->count, m->room, "tensors of an export"));
  image_tensor *t = &m->tensors[m->count];
  *t = (image_tensor){.type = type, .rank = rank, .file = file};
  for (int k = 0; k < rank; k++) {
    t->shape[k] = shape[k];
    bytes *= (uint64_t)shape[k];
  }
  t->end = bytes;
  if (!(t->name = mem_format("%s", name))) return fail(E_MEMORY, "%s: no memory for a name", name);
  *index = m->count++;
done:
  return st;
}

static int by_width_and_name(const void *a, const void *b) {
  const image_tensor *x = *(const image_tensor *const *)a, *y = *(const image_tensor *const *)b;
  int order = st_type_order(y->type) - st_type_order(x->type);
  return order ? order : strcmp(x->name, y->name);
}

static json_t *entry(const image_tensor *t) {
  json_t *shape = json_array();
  for (int k = 0; k < t->rank; k++) json_array_append_new(shape, json_integer(t->shape[k]));
  return json_pack("{s:s, s:o, s:[I, I]}", "dtype", t->type, "shape", shape, "data_offsets", (json_int_t)t->begin, (json_int_t)t->end);
}

/* The header's text, padded so that the data begins at a multiple of eight. */
static status write_header(image_file *f, const json_t *head) {
  char *text = json_dumps(head, JSON_COMPACT | JSON_PRESERVE_ORDER);
  status st = OK;
  if (!text) return fail(E_MEMORY, "%s: no memory for its header", f->name);
  uint64_t length = strlen(text), padded = (length + 7) / 8 * 8;
  TRY(NEW(f->header, 8 + padded + 1, "header of a safetensors file"));
  memcpy(f->header, &padded, 8);
  memset(f->header + 8, ' ', padded);
  memcpy(f->header + 8, text, length);
  f->data = 8 + padded;
done:
  free(text);
  return st;
}

static status lay_out(image *m, int file, const json_t *metadata, image_tensor **sorted) {
  status st = OK;
  json_t *head = json_object();
  int n = 0;
  uint64_t at = 0;
  for (int i = 0; i < m->count; i++)
    if (m->tensors[i].file == file) sorted[n++] = &m->tensors[i];
  qsort(sorted, (size_t)n, sizeof *sorted, by_width_and_name);
  json_object_set(head, "__metadata__", (json_t *)metadata);
  for (int i = 0; i < n; i++) {
    uint64_t bytes = sorted[i]->end - sorted[i]->begin;
    sorted[i]->begin = at;
    sorted[i]->end = at += bytes;
    if (json_object_set_new(head, sorted[i]->name, entry(sorted[i])) != 0) {
      st = fail(E_MEMORY, "%s: no memory for its header", m->files[file].name);
      goto done;
    }
  }
  m->files[file].bytes = at;
  TRY(write_header(&m->files[file], head));
done:
  json_decref(head);
  return st;
}

status image_layout(image *m, const json_t *metadata) {
  status st = OK;
  image_tensor **sorted = NULL;
  TRY(NEW(sorted, m->count, "order of tensors"));
  for (int f = 0; f < m->file_count; f++) TRY(lay_out(m, f, metadata, sorted));
done:
  FREE(sorted);
  return st;
}

static status open_file(image_file *f, const char *folder, int flags) {
  char *path = path_join(folder, f->name);
  if (!path) return fail(E_MEMORY, "%s: no memory for its path", f->name);
  f->handle = fault_here() ? (errno = EIO, -1) : open(path, flags | O_CLOEXEC, 0666);
  status st = f->handle < 0 ? fail(E_IO, "%s: cannot be opened: %m", path) : OK;
  FREE(path);
  return st;
}

/* Blocks for the whole file, so that a full disk is found before the work. Where the file system cannot promise that, writing will tell. */
static status reserve(const image *m, int file) {
  int fd = m->files[file].handle, reason;
  off_t bytes = (off_t)file_bytes(m, file);
  do reason = fault_here() ? ENOSPC : fallocate(fd, 0, 0, bytes) == 0 ? 0 : errno;
  while (reason == EINTR);
  if ((reason == EOPNOTSUPP || reason == ENOSYS || reason == EINVAL) && ftruncate(fd, bytes) == 0) reason = 0;
  if (!reason) return OK;
  errno = reason;
  return fail(E_IO, "%s: %.3f MB cannot be written: %m", m->files[file].name, (double)bytes / 1e6);
}

status image_create(image *m, const char *folder) {
  status st = OK;
  for (int i = 0; i < m->file_count && st == OK; i++) {
    image_file *f = &m->files[i];
    st = open_file(f, folder, O_WRONLY | O_CREAT | O_TRUNC);
    if (st == OK) st = reserve(m, i);
    if (st == OK) st = file_write_at(f->handle, f->name, f->header, f->data, 0);
  }
  return st;
}

status image_put(image *m, const char *folder, int index, const void *data) {
  status st = OK;
  image_tensor *t = &m->tensors[index];
  image_file *f = &m->files[t->file];
  uint64_t bytes = t->end - t->begin;
  if (f->handle < 0) TRY(open_file(f, folder, O_WRONLY));
  TRY(file_write_at(f->handle, f->name, data, bytes, f->data + t->begin));
  if (bytes >= BEHIND) /* the disk begins while we go on; for small pieces the call itself would be what takes time */
    sync_file_range(f->handle, (off_t)(f->data + t->begin), (off_t)bytes, SYNC_FILE_RANGE_WRITE);
  TRY(hash_bytes(data, bytes, t->sha256));
done:
  return st;
}

status image_sync(image *m, const char *folder) {
  status st = OK;
  for (int i = 0; i < m->file_count; i++) {
    image_file *f = &m->files[i];
    if (f->handle < 0) continue;
    if ((fault_here() || fsync(f->handle) != 0) && st == OK) st = fail(E_IO, "%s/%s: cannot be synced: %m", folder, f->name);
    if (close(f->handle) != 0 && st == OK) st = fail(E_IO, "%s/%s: cannot be closed: %m", folder, f->name);
    f->handle = -1;
  }
  return st;
}

void image_free(image *m) {
  for (int i = 0; i < m->file_count; i++) {
    if (m->files[i].handle >= 0) close(m->files[i].handle);
    FREE(m->files[i].name);
    FREE(m->files[i].header);
  }
  for (int i = 0; i < m->count; i++) FREE(m->tensors[i].name);
  FREE(m->files);
  FREE(m->tensors);
  *m = (image){0};
}

status image_index(const image *m, json_t **index) {
  *index = NULL;
  if (m->file_count < 2) return OK;
  json_t *map = json_object();
  uint64_t total = 0;
  for (int i = 0; i < m->count; i++) {
    json_object_set_new(map, m->tensors[i].name, json_string(m->files[m->tensors[i].file].name));
    total += m->tensors[i].end - m->tensors[i].begin;
  }
  *index = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)total, "weight_map", map);
  return *index ? OK : fail(E_MEMORY, "model.safetensors.index.json: no memory");
}
