/* A .npy file, mapped: its header checked, its data as bytes. Local. */
#ifndef CLOQWORK_MODEL_NPY_H
#define CLOQWORK_MODEL_NPY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/file.h"
#include "base/status.h"

enum { NPY_RANK = 2, NPY_HEADER = 128 };

typedef struct npy {
  file_map map;
  const unsigned char *data; /* borrowed from map; any alignment */
  char descr[16];            /* "<f4" as the file says it */
  char kind;                 /* 'i', 'u', 'f' …: descr's second letter */
  int bytes;                 /* per element: 1, 2, 4, 8 */
  bool fortran;              /* columns one after the other */
  int64_t shape[NPY_RANK];
} npy;

/* What a caller takes. */
typedef struct npy_wish {
  const char *kinds, *kinds_text; /* letters of descr, "iu", and what they are: "integers" */
  int rank;                       /* 1 or 2 */
  const char *what;               /* elements in messages: "ids" */
} npy_wish;

/* Little-endian numbers as wished, with a shape that agrees with the file's length. E_DATA. */
status npy_open(const char *path, const npy_wish *wish, npy *f);
void npy_close(npy *f); /* accepts an empty one */

/* What stands before the data of a little-endian array in C order, version 1, 128 bytes: as numpy writes it. descr "<f4"; rank 1 or 2. */
void npy_header(const char *descr, int rank, const int64_t *shape, char header[NPY_HEADER]);

#endif
