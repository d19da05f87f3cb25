/* Solves one decoder layer for a list of settings: the pipeline of the method, on one team.
 *
 *   for each of the four inputs:  H (and the held-out Gram) into shared memory; facts of H
 *     weights of its linears -> MagR (once per threshold) -> reverse Cholesky of H (once per damping) -> codes, rows dealt to ranks
 *     residual loss, rows dealt -> low-rank optimum, matrices dealt to ranks by flops -> loss curves from the stored numbers
 *
 * Tokens and the forward pass are never touched. Everything equal between settings is computed once. Results stay in memory that the
 * team shares until they are written. All functions are Collective over the team. */
#ifndef CLOQWORK_RUN_LAYER_SOLVER_H
#define CLOQWORK_RUN_LAYER_SOLVER_H

#include "run/session.h"
#include "solution/solution.h"

/* One (setting, linear): arrays in shared memory, borrowed from the solver. */
typedef struct result {
  const setting *setting;
  solution s;
} result;

typedef struct stage_seconds {
  double load, magr, factor, quantize, trace, adapter, losses;
  double flops;
} stage_seconds;

typedef struct layer_solver {
  session *c; /* borrowed */
  shared h, h_heldout, u, w, v, residual, arrays, facts, rows, start;
  float *slab;     /* private: rows of a residual */
  result *results; /* [settings][LIN_COUNT]; those of untargeted linears empty */
  stage_seconds spent;
} layer_solver;

typedef struct solver_bytes {
  uint64_t shared, private_most;
} solver_bytes;
solver_bytes layer_solver_memory(const job *j, const arch *a, int ranks, bool heldout); /* Local: for plan */
double layer_solver_flops(const job *j, const arch *a);                                 /* Local: one layer, all settings */

status layer_solver_new(session *c, layer_solver *s);
void layer_solver_free(layer_solver *s);

/* Solves the settings with pending[i]; progress as in calibrate/pass.h. E_NUMERICS, E_DATA, E_IO, E_MEMORY. */
status layer_solve(layer_solver *s, int64_t layer, const bool *pending, pass_progress progress, void *context);

static inline result *layer_result(const layer_solver *s, int setting_index, linear_id l) {
  return &s->results[setting_index * LIN_COUNT + l];
}

#endif
