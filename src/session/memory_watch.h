/* Resident memory seen at the stages' fullest moments, to be held against plan's prediction. Local. */
#ifndef CLOQWORK_SESSION_MEMORY_WATCH_H
#define CLOQWORK_SESSION_MEMORY_WATCH_H

#include <stdint.h>

void memory_watch(void);             /* samples now: call while a stage still holds its arrays */
uint64_t memory_watch_private(void); /* most private bytes of this rank so far */
uint64_t memory_watch_shared(void);  /* most shared bytes of this team so far, counted once */

#endif
