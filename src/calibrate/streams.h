/* Where residual streams lie, and how they outlive a run. */
#ifndef CLOQWORK_CALIBRATE_STREAMS_H
#define CLOQWORK_CALIBRATE_STREAMS_H

#include "base/file.h"
#include "calibrate/pass.h"

/* Local. Room for `floats` numbers: memory, or, where a folder is given, a file in it without a name (base/file.h). */
status streams_room(const char *scratch, size_t floats, file_scratch *file, float **x);
void streams_give_back(file_scratch *file, float **x); /* accepts what was never taken */

/* The inputs of a layer as a file, from which a stopped run goes on: header, then every segment at its place, whoever writes it. It has a
 * temporary name until it is whole. */
typedef struct streams_file {
  const pass *p;          /* borrowed */
  char *path, *temporary; /* owned */
  int fd;
  status st; /* of the writes so far, on this rank */
} streams_file;

status streams_create(const pass *p, const char *path, const char *tag, int64_t layer, streams_file *f); /* Collective over the team */
void streams_write(streams_file *f, const pass_set *s,
                   int index);           /* Local: a segment that is mine; a failure is kept for streams_publish */
status streams_publish(streams_file *f); /* Collective: synced and renamed, if all writes of all ranks went well; f is empty afterwards */

/* Collective over the team. *layer = the layer they are inputs of, -1 when there is no file or it belongs to another run (tag). */
status streams_load(pass *p, const char *path, const char *tag, int64_t *layer);
int64_t streams_peek(const char *path, const char *tag); /* Local: the layer such a file holds, or -1 */

#endif
