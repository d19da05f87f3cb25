/* Solution files, RUN/solutions/SETTING/layer-000.h5: a setting's results at one layer, written whole (solution/solution.h says how a linear lies in it). */
#ifndef CLOQWORK_LAYER_SOLUTION_FILE_H
#define CLOQWORK_LAYER_SOLUTION_FILE_H

#include "layer/solver.h"

/* Collective over the team. The results of setting `index` that the solver holds of a layer, as solved from those Grams. */
status solution_file_write(const layer_solver *s, int index, int64_t layer, const char *gram_fingerprint);

#endif
