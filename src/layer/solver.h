/* Solves one decoder layer for a list of settings: the pipeline of the methods, on one team.
 *
 *   for each of the four inputs:  H (and the held-out Gram) into shared memory; facts of H           gram.c
 *     weights of its linears -> MagR (once per threshold) -> reverse Cholesky of H (once per damping)
 *     -> codes, rows dealt to ranks                                                                  codes.c, round.c
 *     -> codes refined for the rank of their adapter, rows dealt                                     refine.c
 *     -> methods that make codes and adapter together, matrices dealt                                joint.c
 *     -> residual loss, rows dealt -> low-rank optimum, matrices dealt to ranks by flops
 *     -> loss curves from the stored numbers                                                         adapters.c
 *
 * Tokens and the forward pass are never touched. Everything equal between settings is computed once (session/sharing.h), also when the other one
 * was finished earlier: then it is read from its file. Results stay in memory that the team shares until they are written. All functions
 * are Collective over the team unless they say otherwise. */
#ifndef CLOQWORK_LAYER_SOLVER_H
#define CLOQWORK_LAYER_SOLVER_H

#include "session/gram_file.h"
#include "session/session.h"
#include "session/sharing.h"
#include "solution/solution.h"

typedef struct stage_seconds {
  double load, magr, factor, quantize, refine, joint, trace, adapter, losses;
  double flops;
} stage_seconds;

typedef struct layer_solver {
  session *c; /* borrowed */
  piece *pieces;
  int piece_count;
  shared h, second, u, w, v, residual, arrays, facts, rows, start, leading, refining;
  /* h: a Gram; second: the held-out Gram, or the metric of a descent: they take turns; u: a factor */
  float *slab;                  /* private: rows of a residual */
  solution *results;            /* [pieces][LIN_COUNT], arrays in shared memory; those of untargeted linears empty */
  int64_t weight_at[LIN_COUNT]; /* of the linears of the input at work, in w */
  stage_seconds spent;
  struct {
    pass_progress show; /* NULL: nobody looks */
    void *context;
    double start;
  } watch;
} layer_solver;

typedef struct solver_bytes {
  uint64_t shared, private_most;
} solver_bytes;
solver_bytes layer_solver_memory(const job *j, const arch *a, int ranks, bool heldout); /* Local: for plan */
uint64_t layer_solver_file_bytes(const job *j, const arch *a, int index);               /* Local: of one layer's file of a setting */

status layer_solver_new(session *c, layer_solver *s);
void layer_solver_free(layer_solver *s);

/* Solves the settings with pending[i]; progress as in calibrate/pass.h. E_NUMERICS, E_DATA, E_IO, E_MEMORY. */
status layer_solve(layer_solver *s, int64_t layer, const bool *pending, pass_progress progress, void *context);

/* The same input by input, in their order, after layer_begin. given: the input's Grams, of which no file has to be there; NULL: they are read. What results
 * hold of an input is there when it is solved. */
typedef struct given_input {
  gram_input gram[SET_COUNT];
  const double *cross; /* cross products of the input (calibrate/target.h), shared; NULL: there are none */
  bool of_outputs;
  double alpha;
} given_input;
status layer_begin(layer_solver *s, int64_t layer, const bool *pending);
status layer_solve_input(layer_solver *s, int64_t layer, input_id input, const bool *pending, const given_input *given);
/* Local. The share of a layer's work that is done before this input, by the flops of factors and codes, m^2 (m / 3 + rows) each; IN_COUNT: 1. */
double layer_share(const session *c, int input);
/* Local. What the input's linears are fitted to, until the next input: weights, or the targets of `given`. (out, in), shared */
const float *layer_weights_of(const layer_solver *s, linear_id l);

static inline solution *layer_result(const layer_solver *s, int piece_index, linear_id l) {
  return &s->results[piece_index * LIN_COUNT + l];
}

#endif
