/* The solver's pieces and sizes, from the job and the model's shapes alone. Private to its stages. Local. */
#ifndef CLOQWORK_LAYER_SIZES_H
#define CLOQWORK_LAYER_SIZES_H

#include "layer/solver.h"

/* Counts of numbers in shared memory; bytes of arrays and of a rank's private memory at its peak. */
typedef struct layer_sizes {
  size_t h, w, arrays, rows, slab, residual, start, leading, private_most;
  size_t refining;           /* bytes */
  bool factor, magr, metric; /* is there any? metric: of a descent */
} layer_sizes;
layer_sizes layer_measure(const job *j, const arch *a, int ranks);

/* The result of a piece at a matrix: shape, grid, rank and variant, without arrays. */
solution layer_solution(const arch *a, const piece *p, int64_t layer, linear_id l);

#endif
