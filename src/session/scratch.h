/* Where the residual streams of a stage lie: in memory, or in a file where memory does not hold them (parallel.scratch). Local; the same
 * answer on every rank of a node, and in plan. */
#ifndef CLOQWORK_SESSION_SCRATCH_H
#define CLOQWORK_SESSION_SCRATCH_H

#include "session/session.h"

uint64_t node_memory(const session *c); /* bytes: parallel.memory_per_node, or what the system says; 0: unknown */

/* A folder, borrowed, or NULL: memory. `auto` takes the run directory when all teams of a node together would need more than nine tenths of its
 * memory with their streams. Of a view of a setting that follows its prefix (session_split): with both its streams. */
const char *scratch_folder(const session *c);
const char *scratch_at(const session *c, int team, int ranks,
                       uint64_t memory); /* the same for teams of so many ranks on nodes of so many, and bytes */

#endif
