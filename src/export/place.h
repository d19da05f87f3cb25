/* A folder that appears whole or not at all: made as FOLDER.tmp under a lock, renamed when everything in it is on the disk.
 * Local, on one rank. */
#ifndef CLOQWORK_EXPORT_PLACE_H
#define CLOQWORK_EXPORT_PLACE_H

#include <stdbool.h>

#include "base/status.h"

typedef struct place {
  char *folder, *making; /* owned */
  char *lock;            /* owned */
  int lock_file;         /* -1: not held */
  bool begun;            /* `making` is ours */
} place;

status place_name(const char *folder, place *p); /* E_MEMORY */
/* Makes the folder p->making, empty. What a killed job left in it is removed; a living one keeps its lock and is not disturbed (E_IO).
 * E_USAGE: there is something else at the place than an empty folder. */
status place_begin(place *p, const char *owner);
status place_publish(place *p); /* what is in p->making was synced, folders below it, too */
void place_abandon(place *p);   /* removes what was begun; nothing otherwise */
void place_forget(place *p);    /* frees the names; accepts an empty one */

#endif
