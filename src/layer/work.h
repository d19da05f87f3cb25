/* One input of a layer at work: what the stages of layer_solver hand on. Private to them; Collective over the team unless said otherwise. */
#ifndef CLOQWORK_LAYER_WORK_H
#define CLOQWORK_LAYER_WORK_H

#include "adapter/adapter.h"
#include "joint/refine.h"
#include "layer/solver.h"

enum { SLAB_ROWS = 256, LINEARS_MOST = 3, RANK_BY_PIVOTS_MOST = 8192 };

/* What is known of one input's Gram. Lies in shared memory, each part filled by one rank. */
typedef struct gram_facts {
  double mean_diag, lambda_max;
  int64_t numerical_rank, tokens, tokens_heldout;
  double lambda_seconds, start_seconds, leading_seconds; /* that finding lambda_max, the adapters' start, refine's start took one rank */
} gram_facts;

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
  const bool *pending;         /* [settings] */
  const given_input *given;    /* NULL: Grams are read from files */
  bool heldout, heldout_there; /* is there a held-out Gram; does it stand in shared memory */
  int start_rows;              /* leading eigenvectors of H that the adapters of this input start from; 0: none needs them */
  int leading_rows;            /* leading eigenvectors of H that stand in shared memory for refined codes to start from; 0: none */
  result_plan *plan;           /* [pieces][LINEARS_MOST] */
  int *group;                  /* pieces that share one MagR, indices; group_count of them */
  int group_count;
  const float *base;                 /* what is quantized: MagR's weights or the original */
  double magr_seconds[LINEARS_MOST]; /* work of one rank for it; 0: none */
  const setting *factored;           /* whose factor stands in shared memory; NULL: none */
  double ridge, factor_seconds;      /* it was made with, it took */
  int32_t *order;                    /* [2 m] it was made in; NULL natural */
  int codes_due, codes_done;         /* pieces of all groups, for the progress line */
} input_work;

/* ---- one matrix of one piece ---- */

static inline const setting *setting_of(const input_work *w, int p) { return w->s->pieces[p].setting; }
static inline solution *result_of(const input_work *w, int p, int k) { return layer_result(w->s, p, w->linears[k]); }
static inline result_plan *plan_of(const input_work *w, int p, int k) { return &w->plan[p * LINEARS_MOST + k]; }
static inline const float *weights_of(const input_work *w, int k) { return (const float *)w->s->w.base + w->weight_at[k]; }

/* Local. Rows are dealt in multiples of this: whole slabs of the kernels, which pad what is less. */
int64_t rows_slab(int64_t in);
/* Local. My rows of a matrix. */
void my_rows(const session *c, int64_t out, int64_t in, int64_t *begin, int64_t *end);

/* Local. "model.layers.3.mlp.down_proj, cloq-b2-g64" */
void name_result(const input_work *w, int p, int k, char where[256]);

/* Local. What a result's codes took before they were chosen: MagR, and its share of the factor. */
double base_seconds(const input_work *w, int p, int k);
/* Local. A linear's share of the leading eigenvectors that its fits on the Gram start from. */
static inline double start_seconds(const input_work *w) { return w->start_rows ? w->facts->start_seconds / w->linear_count : 0; }

/* Flops of a piece's matrix k that is chosen; < 0: it is not. Local. */
typedef double (*task_choice)(const input_work *w, const void *context, int p, int k);
bool any_chosen(const input_work *w, task_choice choice, const void *context); /* Local. Of the group's matrices */

/* Calls work, Local, for my share of the group's chosen matrices, dealt by their flops. */
typedef status (*matrix_work)(input_work *w, void *context, int p, int k);
status deal_matrices(input_work *w, task_choice choice, matrix_work work, void *context);

/* ---- stages ---- */

status gram_open(input_work *w);         /* Grams, their facts, weights */
void gram_close(input_work *w);          /* Local */
status gram_take_heldout(input_work *w); /* into shared memory, unless it stands there */
status find_vectors(const input_work *w, int rows, int blocks,
                    double *to); /* Local. Leading eigenvectors of H, of a space of so many blocks */

status codes_magr(input_work *w, const setting *s); /* MagR for the group: w->base */
/* Codes of the group's pieces that share piece `first`'s factor, or of it alone when it needs none; joint results of these. Marks them. */
status codes_make(input_work *w, int first, bool *handled);
status codes_take_over(input_work *w); /* those that are copied or stored */

/* tr(E H E^T) on the Gram h; s NULL: E = W. The same sum on every rank. */
status team_trace(input_work *w, int k, const solution *s, const float *h, double *sum);
status adapters_make(input_work *w); /* traces, fits and curves of the whole group */

/* ---- codes by the setting's quantizer, Local ---- */

typedef struct rounding {
  const input_work *w;
  const setting *setting;
  const options *options;  /* of the setting at this matrix */
  const int32_t *order;    /* of the factor; NULL natural */
  const double *salience;  /* [m] (quant/salience.h), where the quantizer looks at it */
  double salience_seconds; /* that finding it took one rank */
} rounding;

/* Rows of a uniform matrix: codes (rows, in), one byte each, of x (rows, in), row stride in. original (NULL: no descent): what the setting's
 * coordinate descent compares with. refit: the grid of these rows is fitted first, into g; else it is used as it is. Adds how many scales
 * were replaced to *tiny. E_MEMORY, E_NUMERICS. */
status round_uniform(const rounding *r, const grid_rule *rule, int rows, int in, const float *x, const float *original, bool refit,
                     code_grid g, uint8_t *codes, int64_t *tiny);
/* The grid alone, into g. E_MEMORY. */
status fit_uniform(const rounding *r, const grid_rule *rule, int rows, int in, const float *x, code_grid g, int64_t *tiny);
/* My rows of a result. Collective where absmax is quantized in turn, which needs all rows. */
status round_rows(input_work *w, const rounding *r, int k, solution *to);

bool uses_optq(const setting *s);                                                  /* for rows on a uniform grid */
uint64_t round_uniform_bytes(const setting *s, const grid_rule *rule, int64_t in); /* of its workspace */

/* What a column's weight in a search is at least. */
static inline double least_weight(const input_work *w) { return w->facts->mean_diag > 0 ? 1e-12 * w->facts->mean_diag : 1; }

/* ---- codes refined for the rank of their adapter ---- */

/* Those of matrix k of piece p that stand in the result, in place. */
status refine_result(input_work *w, int p, int k);
int refine_start_rows(const input_work *w, int p,
                      int k); /* Local. Leading eigenvectors that it starts from: pieces with as many in turn share them */

/* Local. The relative ridge of the descent's metric: refine_ridge, times (12 in / tokens)^2 where an input's Gram has fewer than twelve tokens for
 * each of its numbers, at most times 50. */
double refine_ridge_at(const options *o, int64_t tokens, int64_t in);
bool refine_needs_metric(const setting *s);            /* does it make P? Local */
int refine_rounds(const setting *s);                   /* entries of its list of losses; 0: it refines nothing. Local, as are these: */
int refine_rows_of(int64_t out, int64_t in, int rank); /* leading eigenvectors that a matrix starts from */
int refine_start_rows_most(const setting *s, int64_t out, int64_t in);
uint64_t refine_shared_bytes(const setting *s, int64_t out, int64_t in);
uint64_t refine_private_bytes(const setting *s, const grid_rule *rule, int64_t out, int64_t in, int ranks);
refine_cost refine_result_costs(const setting *s, const options *o, const grid_rule *r, int rank, int64_t out, int64_t in);

/* ---- costs, Local ---- */

static inline uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

adapter_request adapter_shape(const setting *s, int rank, int64_t out,
                              int64_t in);         /* a fit as a question of cost: no numbers, but a metric */
void keep_adapter(solution *to, const adapter *a); /* factors and values to their place */
double fit_flops(const setting *s, const adapter_request *q);
uint64_t fit_bytes(const setting *s, int rank, int64_t out, int64_t in); /* of a rank: a fit or the curve, the residual included */
int layer_start_rows(const job *j, int64_t out, int64_t in); /* leading eigenvectors of the Gram that fits of such a linear start from */

/* ---- codes and adapter of one result together, Local ---- */

int joint_rounds(const setting *s); /* entries of its list of losses; 0: it has none */

status joint_solve(input_work *w, const rounding *r, int p, int k);
double joint_flops(const setting *s, int rank, int64_t out, int64_t in);
uint64_t joint_bytes(const setting *s, int rank, int64_t out, int64_t in);

#endif
