/* One input of a layer at work: what the stages of layer_solver hand on. Private to them; Collective over the team unless said otherwise. */
#ifndef CLOQWORK_RUN_LAYER_WORK_H
#define CLOQWORK_RUN_LAYER_WORK_H

#include "adapter/adapter.h"
#include "run/layer_solver.h"

enum { SLAB_ROWS = 256, LINEARS_MOST = 3 };

/* What is known of one input's Gram. Lies in shared memory, each part filled by one rank. */
typedef struct gram_facts {
  double mean_diag, lambda_max;
  int64_t numerical_rank, tokens, tokens_heldout;
} gram_facts;

/* Where a part of a result comes from: another piece of this run, the file of a finished setting, or work of its own. */
typedef struct part_source {
  enum { PART_OWN, PART_COPY, PART_STORED } how;
  int from; /* COPY: a piece; STORED: a setting */
} part_source;

typedef struct result_plan {
  part_source codes, fit; /* joint: both OWN */
} result_plan;

typedef struct input_work {
  layer_solver *s;
  int64_t layer;
  input_id input;
  int64_t m;
  linear_id linears[LINEARS_MOST];
  int64_t weight_at[LINEARS_MOST]; /* offset of each linear in w and v, in floats */
  int linear_count;
  double reference[LINEARS_MOST][2]; /* tr(W H W^T), calibration and held-out */
  gram_facts *facts;
  float *diagonal; /* [m] of H; private, and so are the next */
  float *squares;  /* [2][m] squared mean |x|, max over windows and mean, where a method needs it */
  uint8_t *dead;   /* [m] */
  bool any_dead;
  const bool *pending; /* [settings] */
  bool heldout;
  int start_rows;    /* leading eigenvectors of H that the adapters of this input start from; 0: none needs them */
  result_plan *plan; /* [pieces][LINEARS_MOST] */
  int *group;        /* pieces that share one MagR, indices; group_count of them */
  int group_count;
  const float *base; /* what is quantized: MagR's weights or the original */
} input_work;

/* ---- one matrix of one piece ---- */

typedef struct matrix_task {
  int piece, k; /* k: which of the input's linears */
  double cost;  /* flops */
} matrix_task;

static inline const setting *setting_of(const input_work *w, int p) { return w->s->pieces[p].setting; }
static inline solution *result_of(const input_work *w, int p, int k) { return layer_result(w->s, p, w->linears[k]); }
static inline result_plan *plan_of(const input_work *w, int p, int k) { return &w->plan[p * LINEARS_MOST + k]; }
static inline const float *weights_of(const input_work *w, int k) { return (const float *)w->s->w.base + w->weight_at[k]; }

/* Local. My rows of a matrix: whole slabs of the kernels, which pad what is less. */
void my_rows(const session *c, int64_t out, int64_t in, int64_t *begin, int64_t *end);

/* Local. "model.layers.3.mlp.down_proj, cloq-b2-g64" */
void name_result(const input_work *w, int p, int k, char where[256]);

/* Calls work for my share of the tasks, dealt by their cost: Local work on one matrix. */
status deal_matrices(input_work *w, const matrix_task *tasks, int count, status (*work)(input_work *, int p, int k));

/* ---- stages ---- */

status gram_open(input_work *w);        /* Grams, their facts, weights, references */
void gram_close(input_work *w);         /* Local */
status codes_magr(input_work *w, const setting *s); /* w->base */

/* Codes of the group's own results that need the factor of piece p's setting (or none), and the joint results that do. handled: marks them. */
status codes_quantize(input_work *w, int first, bool *handled);
status codes_take_over(input_work *w);   /* those that are copied or stored */
status adapters_solve(input_work *w);    /* traces, fits, curves of the whole group */

/* Local. Codes and adapter of one result together, on this rank alone; u: the factor in shared memory, where its quantizer needs one. */
status joint_solve(input_work *w, int p, int k);
double joint_flops(const setting *s, int rank, int64_t out, int64_t in);
uint64_t joint_bytes(const setting *s, int rank, int64_t out, int64_t in);

/* Local. The grid and codes of rows [row, row + rows) of a target, as the setting's quantizer makes them from x (rows, in); the result's
 * own arrays, without packing the codes; fitted: the grid is there already. codes (rows, in) one byte each. E_MEMORY, E_NUMERICS. */
typedef struct rounding {
  const input_work *w;
  const setting *setting;
  const grid_rule *rule;
  const int32_t *order; /* of the factor; NULL natural */
  double ridge;
} rounding;

#endif
