/* Memory of one process: checked, aligned to 64 bytes, counted. Local.
 *
 * Every array of the program comes from here (shared windows: dist/team.h), so that the high-water mark that `plan`
 * predicts is the one that is measured. Sizes are overflow-checked; a refusal names what was wanted and how many bytes. */
#ifndef CLOQWORK_BASE_MEMORY_H
#define CLOQWORK_BASE_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* NEW(p, count, what): p = count zeroed elements of *p. E_MEMORY. count 0 gives a valid pointer. */
#define NEW(p, count, what) mem_new((void **)&(p), (size_t)(count), sizeof *(p), (what))
status mem_new(void **p, size_t count, size_t size, const char *what);

/* A list that grows: room for one more element behind `count`, zeroed; it may move. E_MEMORY leaves it as it was. */
#define GROW(list, count, room, what) mem_grow((void **)&(list), (count), &(room), sizeof *(list), (what))
status mem_grow(void **list, int count, int *room, size_t size, const char *what);

#define FREE(p) mem_free((void **)&(p))
void mem_free(void **p); /* frees and sets to NULL; accepts NULL inside */

char *mem_format(const char *format, ...) __attribute__((format(printf, 1, 2))); /* owned string; NULL on failure */

uint64_t mem_now(void);  /* bytes allocated here and not freed */
uint64_t mem_peak(void); /* the largest mem_now so far */

/* Resident bytes of this process as the kernel counts them: private, and shared memory. The mapped checkpoint is in neither. */
typedef struct mem_resident {
  uint64_t private_bytes, shared_bytes;
} mem_resident;
mem_resident mem_resident_now(void);
uint64_t mem_machine_total(void); /* bytes of memory of this node (cgroup limit if lower); 0 = unknown */

#endif
