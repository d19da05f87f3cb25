/* What both ways of solving share: all settings of a layer on its stored Grams (solve.c), and one setting on the activations of its own
 * prefix (sequential.c). Private to them; Collective over the team. */
#ifndef CLOQWORK_RUN_SOLVE_H
#define CLOQWORK_RUN_SOLVE_H

#include "layer/solver.h"

/* Which settings of a layer are still to be solved. E_USAGE: a file that was made from something else. */
status solve_find_pending(const session *c, int64_t layer, const char *gram_fingerprint, bool *pending, int *count);

/* The solver's results of the pending settings as files, a line of metrics for each; warned: kinds of input whose tokens are too few have been told. */
status solve_write_layer(const layer_solver *s, int64_t layer, const bool *pending, int count, const char *gram_fingerprint,
                         bool warned[IN_COUNT]);

/* Of a view of a setting that follows its prefix (session_split), whole: its Grams and solutions of every layer that is not done yet, up to the last
 * of --layers. */
status sequential_solve(session *view, bool warned[IN_COUNT]);

#endif
