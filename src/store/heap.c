#include "store/heap.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fault.h"
#include "base/memory.h"

/* HDF5 file format specification 3.0, III.E, "Global Heap": "GCOL", version 1, 3 zeros, 8 bytes of size; then objects of 16 bytes
 * head (index, references, 4 zeros, size) and data padded to 8; index 0 is what is free and reaches to the end. */
enum { HEAD = 16, SMALLEST = 4096, LARGEST = 64 << 20, WINDOW = 256 << 10 };

typedef struct source {
  int fd;
  const char *path;
  unsigned char *window; /* (WINDOW) owned */
} source;

static uint64_t number(const unsigned char *p, int bytes) {
  uint64_t value = 0;
  for (int i = bytes - 1; i >= 0; i--) value = value << 8 | p[i];
  return value;
}

static status get(const source *s, void *to, uint64_t at, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    ssize_t n = fault_here() ? (errno = EIO, -1) : pread(s->fd, (char *)to + done, bytes - done, (off_t)(at + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(E_IO, "%s: cannot be read: %m", s->path);
    if (n == 0) return fail(E_DATA, "%s: expected a whole file, found that it became shorter", s->path);
    done += (size_t)n;
  }
  return OK;
}

/* As this program's files have them: indices count up from 1, text has no zero inside. A size that grew within its padding would
 * show as a zero, any larger change as an index out of order. */
static bool objects_fit(const unsigned char *c, uint64_t size) {
  uint64_t at = HEAD, last = 0;
  while (at + HEAD <= size) {
    uint64_t index = number(c + at, 2), length = number(c + at + 8, 8), left = size - at;
    if (index == 0) return length == left;
    uint64_t padded = (length + 7) / 8 * 8;
    if (index != ++last || length > left || HEAD + padded > left || memchr(c + at + HEAD, 0, length)) return false;
    at += HEAD + padded;
  }
  return true;
}

static status check_collection(const source *s, uint64_t at, uint64_t end, uint64_t *size) {
  status st = OK;
  unsigned char head[HEAD], *all = NULL;
  TRY(get(s, head, at, HEAD));
  *size = number(head + 8, 8);
  bool good = *size >= SMALLEST && *size <= LARGEST && *size <= end - at;
  if (good) {
    TRY(NEW(all, *size, "text of attributes"));
    TRY(get(s, all, at, *size));
    good = objects_fit(all, *size);
  }
  if (!good)
    st = fail(E_DATA, "%s: text of attributes at byte %" PRIu64 ": expected a whole heap collection, found one damaged or edited", s->path,
              at);
done:
  FREE(all);
  return st;
}

static status check_gap(const source *s, uint64_t begin, uint64_t end) {
  static const unsigned char mark[8] = {'G', 'C', 'O', 'L', 1, 0, 0, 0};
  status st = OK;
  while (begin + HEAD <= end) {
    size_t length = end - begin < WINDOW ? (size_t)(end - begin) : WINDOW;
    TRY(get(s, s->window, begin, length));
    const unsigned char *found = memmem(s->window, length, mark, sizeof mark);
    uint64_t at = found ? begin + (uint64_t)(found - s->window) : 0, size;
    if (found && at + HEAD <= end) {
      TRY(check_collection(s, at, end, &size));
      begin = at + size;
    } else {
      begin += length < WINDOW ? length : WINDOW - sizeof mark;
    }
  }
done:
  return st;
}

static int by_begin(const void *a, const void *b) {
  uint64_t x = ((const span *)a)->begin, y = ((const span *)b)->begin;
  return (x > y) - (x < y);
}

status heap_check(const char *path, uint64_t bytes, span *data, int count) {
  status st = OK;
  source s = {.fd = -1, .path = path};
  uint64_t at = 0;
  TRY(NEW(s.window, WINDOW, "window on a file"));
  s.fd = fault_here() ? (errno = EIO, -1) : open(path, O_RDONLY | O_CLOEXEC);
  if (s.fd < 0) {
    st = fail(E_IO, "%s: cannot be opened: %m", path);
    goto done;
  }
  if (count) qsort(data, (size_t)count, sizeof *data, by_begin);
  for (int i = 0; i <= count; i++) {
    uint64_t end = i < count ? data[i].begin : bytes;
    if (end > at) TRY(check_gap(&s, at, end));
    if (i < count && data[i].end > at) at = data[i].end;
  }
done:
  if (s.fd >= 0) close(s.fd);
  FREE(s.window);
  return st;
}
