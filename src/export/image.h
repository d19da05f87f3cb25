/* Safetensors files that many ranks write together: sizes follow from shapes, so every offset is known before any data.
 *
 * Every rank builds the same image (files, tensors, layout). One rank creates the files at their full size with their headers; then
 * any rank puts any tensor at its place; then all sync what they wrote. The folder is a temporary one: whoever made it renames it. */
#ifndef CLOQWORK_EXPORT_IMAGE_H
#define CLOQWORK_EXPORT_IMAGE_H

#include <stdint.h>

#include "base/hash.h"
#include "base/json.h"
#include "base/status.h"

typedef struct image_tensor {
  char *name;       /* owned */
  const char *type; /* "BF16", "I32" …: static text */
  int rank;
  int64_t shape[8];
  int file;
  uint64_t begin, end;   /* in the data part of its file; after image_layout */
  char sha256[HASH_HEX]; /* of its bytes; "" until put, here or on another rank */
} image_tensor;

typedef struct image_file {
  char *name;           /* "model-00001-of-00002.safetensors"; owned */
  char *header;         /* with its length before it, padded; owned; after image_layout */
  uint64_t data, bytes; /* where data begins; of the whole file */
  int handle;           /* -1: not open on this rank */
} image_file;

typedef struct image {
  image_file *files;
  image_tensor *tensors;
  int file_count, file_room, count, room;
} image;

/* All Local. The type must be one of the format's. *index: for image_put. E_MEMORY. */
status image_add_file(image *m, const char *name, int *index);
status image_add_tensor(image *m, int file, const char *name, const char *type, int rank, const int64_t *shape, int *index);
/* Tensors by descending width of their type, then by name, each naturally aligned; metadata: strings for __metadata__, borrowed. */
status image_layout(image *m, const json_t *metadata);
/* Makes the files in the folder with headers and room for everything; image_sync brings the headers to the disk. E_IO: a full disk is
 * found here. */
status image_create(image *m, const char *folder);
/* The whole tensor: data has end - begin bytes. Sets its sha256. E_IO. */
status image_put(image *m, const char *folder, int index, const void *data);
/* What this rank has put is on disk afterwards, and its files are closed. E_IO. */
status image_sync(image *m, const char *folder);
void image_free(image *m); /* accepts an empty one */

/* What model.safetensors.index.json says, where there are several files; else NULL. Owned. */
status image_index(const image *m, json_t **index);

#endif
