#include "base/memory.h"

#include <malloc.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/fault.h"

static uint64_t now, peak;

enum { ALIGNMENT = 64, HUGE_PAGE = 2 << 20 };

status mem_new(void **p, size_t count, size_t size, const char *what) {
  size_t bytes, rounded;
  *p = NULL;
  if (__builtin_mul_overflow(count, size, &bytes) || __builtin_add_overflow(bytes, (size_t)ALIGNMENT, &rounded))
    return fail(E_MEMORY, "memory: %s: %zu elements of %zu bytes are more than an address can hold", what, count, size);
  rounded = rounded / ALIGNMENT * ALIGNMENT;
  size_t alignment = ALIGNMENT;
  if (bytes >= 4 * (size_t)HUGE_PAGE) { /* large arrays on huge pages: fewer faults, fewer TLB misses */
    alignment = HUGE_PAGE;
    rounded = (rounded + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  }
  void *block = fault_here() ? NULL : aligned_alloc(alignment, rounded);
  if (!block) return fail(E_MEMORY, "memory: %s: %.3f GiB refused by the system", what, (double)bytes / (1 << 30));
  if (alignment == HUGE_PAGE) madvise(block, rounded, MADV_HUGEPAGE);
  memset(block, 0, bytes);
  now += malloc_usable_size(block);
  if (now > peak) peak = now;
  *p = block;
  return OK;
}

status mem_grow(void **list, int count, int *room, size_t size, const char *what) {
  if (count < *room) return OK;
  void *wider = NULL;
  int more = *room ? 2 * *room : 32;
  status st = mem_new(&wider, (size_t)more, size, what);
  if (st != OK) return st;
  if (count) memcpy(wider, *list, (size_t)count * size);
  mem_free(list);
  *list = wider;
  *room = more;
  return OK;
}

void mem_free(void **p) {
  if (!*p) return;
  now -= malloc_usable_size(*p);
  free(*p);
  *p = NULL;
}

char *mem_format(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(NULL, 0, format, arguments);
  va_end(arguments);
  char *text;
  if (length < 0 || NEW(text, (size_t)length + 1, "text") != OK) return NULL;
  va_start(arguments, format);
  vsnprintf(text, (size_t)length + 1, format, arguments);
  va_end(arguments);
  return text;
}

uint64_t mem_now(void) { return now; }
uint64_t mem_peak(void) { return peak; }

mem_resident mem_resident_now(void) {
  mem_resident r = {0, 0};
  FILE *f = fopen("/proc/self/status", "r");
  if (!f) return r;
  char line[256];
  unsigned long long kib;
  while (fgets(line, sizeof line, f)) {
    if (sscanf(line, "RssAnon: %llu kB", &kib) == 1) r.private_bytes = kib << 10;
    if (sscanf(line, "RssShmem: %llu kB", &kib) == 1) r.shared_bytes = kib << 10;
  }
  fclose(f);
  return r;
}

uint64_t mem_machine_total(void) {
  long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  uint64_t total = pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : 0;
  FILE *f = fopen("/sys/fs/cgroup/memory.max", "r");
  if (f) {
    unsigned long long limit;
    if (fscanf(f, "%llu", &limit) == 1 && limit > 0 && (!total || limit < total)) total = limit;
    fclose(f);
  }
  return total;
}
