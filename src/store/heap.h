/* Text of attributes lies in HDF5's global heap, which has no checksum: the library (1.10 at least) believes it and can overrun its
 * buffers when a byte of it has changed. So it is looked at here before HDF5 may read text. Private to store. Local. */
#ifndef CLOQWORK_STORE_HEAP_H
#define CLOQWORK_STORE_HEAP_H

#include <stdint.h>

#include "base/status.h"

typedef struct span {
  uint64_t begin, end; /* bytes of the file */
} span;

/* Checks every heap collection of the file outside the given spans (raw data; sorted here). E_DATA: one is damaged. E_IO, E_MEMORY. */
status heap_check(const char *path, uint64_t bytes, span *data, int count);

#endif
