/* The decoder block in fp32, cut at the four places where the inputs of linears can be tapped. Local.
 *
 * A call works on some rows: whole windows, or a part of one. The parts are called in order; what flows between them is the residual
 * stream x and the tapped inputs, which the caller owns (in the team's panel):
 *     block_attn_in   x -> n            RMSNorm: input of q, k, v
 *     block_keys      n -> k, v         keys, rotated, and values: all that other rows of a window ask of these
 *     block_attention n, k, v -> a      q, rotary, causal softmax in blocks: input of o
 *     block_attn_out  a, x -> x, m      x += a Wo^T; RMSNorm: input of gate and up
 *     block_mlp       m -> g            silu(m Wg^T) * (m Wu^T): input of down
 *     block_mlp_out   g, x -> x         x += g Wd^T
 * Results for rows depend on them, how they are cut and the keys and values before them, never on the rank that computes them, nor on
 * the windows beside them. A window's rows may be dealt to ranks once the keys and values before them are there.
 *
 * Attention goes by blocks of query rows: scores of a block against the keys before it, for one head at a time, are all that is kept
 * of the T x T matrix. q is computed into `out` and each block of it is overwritten by its own result. */
#ifndef CLOQWORK_MODEL_BLOCK_H
#define CLOQWORK_MODEL_BLOCK_H

#include "base/status.h"
#include "model/checkpoint.h"

/* Weights of one layer in float; every pointer borrowed (they lie in the team's shared memory). NULL where the architecture has none. */
typedef struct layer_weights {
  const float *linear[LIN_COUNT];      /* (out, in) row-major */
  const float *bias[LIN_COUNT];        /* (out) */
  const float *input_norm, *post_norm; /* (d) */
  const float *q_norm, *k_norm;        /* (D) */
} layer_weights;

/* Floats that a layer's weights take in one allocation, and the pointers into such an allocation. */
size_t layer_weights_floats(const arch *a);
void layer_weights_place(const arch *a, float *base, layer_weights *w);
/* Fills part `index` of `parts` of that allocation from the checkpoint (rows dealt), so that ranks share the conversion. */
status layer_weights_load(const checkpoint *c, int64_t layer, float *base, int index, int parts);
/* The layer will be loaded soon: the system may begin to read its tensors. */
void layer_weights_ahead(const checkpoint *c, int64_t layer);

/* *variant = w with the weights of these linears in another allocation of the same layout, and target[l] where they are to be written; NULL for the others. */
void layer_weights_vary(const arch *a, const layer_weights *w, const bool targets[LIN_COUNT], float *base, layer_weights *variant,
                        float *target[LIN_COUNT]);

/* Rotary tables and scratch of one rank for at most max_rows rows at a time, of windows of `length` tokens. */
typedef struct block_scratch {
  float *cosines, *sines; /* (length, D/2) */
  float *work;
  size_t work_floats;
  int64_t length, max_rows;
} block_scratch;
size_t block_scratch_bytes(const arch *a, int64_t length, int64_t max_rows); /* what block_scratch_new will ask for: for plan */
/* E_USAGE when rows or windows are more than BLAS can count. */
status block_scratch_new(const arch *a, int64_t length, int64_t max_rows, block_scratch *s);
void block_scratch_free(block_scratch *s);

/* `sequences` whole windows of `length` tokens (begin 0, end length), or of one window its rows [begin, end); begin: a multiple of
 * KERNEL_QUERIES. */
typedef struct block_rows {
  int64_t sequences, length, begin, end;
} block_rows;
static inline block_rows block_windows(int64_t sequences, int64_t length) { return (block_rows){sequences, length, 0, length}; }
static inline int64_t block_count(const block_rows *r) { return r->sequences * (r->end - r->begin); }

/* Keys and values of whole windows: (sequences * length, kv_heads * D) each, contiguous. */
typedef struct block_kv {
  float *k, *v;
} block_kv;
int64_t block_kv_floats(const arch *a, int64_t rows); /* of both */
block_kv block_kv_place(const arch *a, int64_t rows, float *base);
block_kv block_kv_from(const arch *a, block_kv kv, int64_t row);

/* x (rows, d), n (rows, d), out and attended (rows, h*D), m (rows, d), g (rows, f): contiguous rows, at most max_rows of the scratch;
 * windows of at most the scratch's length. No two arguments of a call overlap. block_keys writes the rows r alone; block_attention reads
 * those before r's end. */
void block_attn_in(const arch *a, const layer_weights *w, int64_t rows, const float *x, float *n);
void block_keys(const arch *a, const layer_weights *w, const block_scratch *s, const block_rows *r, const float *n, block_kv kv);
void block_attention(const arch *a, const layer_weights *w, int64_t layer, block_scratch *s, const block_rows *r, const float *n,
                     block_kv kv, float *out);
void block_attn_out(const arch *a, const layer_weights *w, int64_t rows, const float *attended, float *x, float *m);
void block_mlp(const arch *a, const layer_weights *w, block_scratch *s, int64_t rows, const float *m, float *g);
void block_mlp_out(const arch *a, const layer_weights *w, int64_t rows, const float *g, float *x);
/* Pieces of these: block_attn_out is block_onto of o, then block_mlp_in; block_mlp_out is block_onto of down. */
void block_mlp_in(const arch *a, const layer_weights *w, int64_t rows, const float *x, float *m);
void block_onto(const arch *a, const layer_weights *w, linear_id l, int64_t rows, const float *y,
                float *x);         /* x (rows, out) += y W^T + b */
int64_t block_wide(const arch *a); /* the wider of `attended` and g, where one array is both */

/* x (count, d) = embedding rows of ids. E_DATA on NaN/Inf. */
status embed_tokens(const checkpoint *c, int64_t count, const int32_t *ids, float *x);

double block_flops_per_token(const arch *a); /* 2 * params of the seven linears */
/* Scores and weighted values of one layer over `sequences` windows: 4 h D for every pair of a query and a key it sees. */
double block_attention_flops(const arch *a, int64_t layer, int64_t sequences, int64_t length);

#endif
