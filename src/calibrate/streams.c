#include "calibrate/streams.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"
#include "calibrate/steps.h"
#include "dist/agree.h"

status streams_room(const char *scratch, size_t floats, file_scratch *file, float **x) {
  if (!scratch) return NEW(*x, floats, "residual streams");
  status st = file_scratch_new(scratch, floats * sizeof(float), "residual streams", file);
  *x = file->base;
  return st;
}

void streams_give_back(file_scratch *file, float **x) {
  if (file->base)
    *x = NULL;
  else
    FREE(*x);
  file_scratch_free(file);
}

typedef struct state_header {
  char magic[16]; /* "cloqwork-state1" */
  char tag[80];
  int64_t layer, bytes;
} state_header;

static size_t set_offset(const pass *p, int64_t set) {
  size_t at = 4096;
  for (int k = 0; k < set; k++)
    if (p->sets[k].w) at += (size_t)p->sets[k].segments * segment_floats(p, &p->sets[k]) * sizeof(float);
  return at;
}

static size_t segment_offset(const pass *p, const pass_set *s, int index) {
  return set_offset(p, s - p->sets) + (size_t)index * segment_floats(p, s) * sizeof(float);
}

status streams_create(const pass *p, const char *path, const char *tag, int64_t layer, streams_file *f) {
  status st = OK;
  state_header h = {.magic = "cloqwork-state1", .layer = layer, .bytes = (int64_t)set_offset(p, SET_COUNT)};
  strncpy(h.tag, tag, sizeof h.tag - 1);
  *f = (streams_file){.p = p, .fd = -1, .path = mem_format("%s", path), .temporary = mem_format("%s.team%d.tmp", path, p->t->index)};
  if (!f->path || !f->temporary) st = fail(E_MEMORY, "%s: no memory for its temporary name", path);
  if (st == OK && p->t->rank == 0) {
    f->fd = open(f->temporary, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (f->fd < 0) st = fail(E_IO, "%s: cannot be made: %m", f->temporary);
    if (st == OK) st = file_write_at(f->fd, f->temporary, &h, sizeof h, 0);
  }
  TRY(agree(p->t->comm, st));
  if (p->t->rank != 0 && (f->fd = open(f->temporary, O_RDWR | O_CLOEXEC)) < 0) f->st = fail(E_IO, "%s: cannot be opened: %m", f->temporary);
  return OK;
done:
  f->st = st;
  return streams_publish(f);
}

void streams_write(streams_file *f, const pass_set *s, int index) {
  if (f->st == OK)
    f->st = file_write_at(f->fd, f->temporary, segment_stream(f->p, s, index), segment_floats(f->p, s) * sizeof(float),
                          segment_offset(f->p, s, index));
}

status streams_publish(streams_file *f) {
  const team *t = f->p->t;
  status st = f->st;
  if (st == OK && fsync(f->fd) != 0) st = fail(E_IO, "%s: cannot be synced: %m", f->temporary);
  TRY(agree(t->comm, st));
  if (t->rank == 0) st = file_publish(f->temporary, f->path);
  TRY(agree(t->comm, st));
done:
  if (f->fd >= 0) close(f->fd);
  if (st != OK && t->rank == 0 && f->temporary) unlink(f->temporary);
  FREE(f->temporary);
  FREE(f->path);
  *f = (streams_file){.fd = -1};
  return st;
}

static int64_t read_header(int fd, const char *tag, int64_t bytes) {
  state_header h;
  struct stat s;
  if (pread(fd, &h, sizeof h, 0) != (ssize_t)sizeof h || fstat(fd, &s) != 0) return -1;
  if (memcmp(h.magic, "cloqwork-state1", sizeof h.magic) != 0 || strncmp(h.tag, tag, sizeof h.tag - 1) != 0) return -1;
  if (s.st_size != h.bytes || (bytes && h.bytes != bytes)) return -1;
  return h.layer;
}

int64_t streams_peek(const char *path, const char *tag) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  int64_t layer = read_header(fd, tag, 0);
  close(fd);
  return layer;
}

static status read_segments(pass *p, int fd, const char *path) {
  status st = OK;
  for (int k = 0; k < SET_COUNT; k++) {
    const pass_set *s = &p->sets[k];
    for (int i = 0; i < s->mine && st == OK; i++) {
      int index = segment_of_turn(i, p->t->rank, p->t->size);
      st = file_read_at(fd, path, segment_stream(p, s, index), segment_floats(p, s) * sizeof(float), segment_offset(p, s, index));
    }
  }
  return st;
}

status streams_load(pass *p, const char *path, const char *tag, int64_t *layer) {
  status st = OK;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  *layer = fd < 0 ? -1 : read_header(fd, tag, (int64_t)set_offset(p, SET_COUNT));
  bool usable = !agree_any(p->t->comm, *layer < 0); /* all ranks see it, or none uses it */
  if (!usable)
    *layer = -1;
  else
    st = read_segments(p, fd, path);
  if (fd >= 0) close(fd);
  return agree(p->t->comm, st);
}
