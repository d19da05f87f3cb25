/* Where the residual streams of a stage lie: in memory, or in a file where memory does not hold them (parallel.scratch). Local; the same
 * answer on every rank of a node, and in plan. */
#ifndef CLOQWORK_RUN_SCRATCH_H
#define CLOQWORK_RUN_SCRATCH_H

#include "run/session.h"

uint64_t node_memory(const session *c); /* bytes: parallel.memory_per_node, or what the system says; 0: unknown */

/* A folder, borrowed, or NULL: memory. `auto` takes the run directory when memory holds all of the stage but not the streams beside it. Of
 * a view of a setting that follows its prefix (session_split): that of both its streams. */
const char *scratch_folder(const session *c);

#endif
