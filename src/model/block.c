#include "model/block.h"

#include <limits.h>
#include <math.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "model/kernels.h"

enum {
  QUERIES = KERNEL_QUERIES, /* whose scores are held at a time: few enough for the second-level cache and little work above the diagonal */
  MLP_STRIP = 2048,         /* columns of gate and up at a time, so that up needs no (rows, f) array */
  ALIGN = 16                /* floats in a cache line */
};

static size_t padded(size_t floats) { return (floats + ALIGN - 1) / ALIGN * ALIGN; }

/* ---- a layer's weights in one allocation ---- */

typedef struct piece {
  int64_t rows, cols; /* rows 0: the architecture has none */
  size_t offset;      /* floats */
} piece;

/* The linears' weights, their biases, the norms. */
enum { BIASES = LIN_COUNT, NORMS = 2 * LIN_COUNT, PIECES = NORMS + 4 };
static const char *const norm_names[PIECES - NORMS] = {"input_layernorm.weight", "post_attention_layernorm.weight",
                                                       "self_attn.q_norm.weight", "self_attn.k_norm.weight"};

/* Returns the floats of all. */
static size_t lay_out(const arch *a, piece p[PIECES]) {
  for (int l = 0; l < LIN_COUNT; l++) {
    linear_shape(a, (linear_id)l, &p[l].rows, &p[l].cols);
    p[BIASES + l] = (piece){linear_has_bias(a, (linear_id)l), p[l].rows, 0};
  }
  p[NORMS] = p[NORMS + 1] = (piece){1, a->hidden, 0};
  p[NORMS + 2] = p[NORMS + 3] = (piece){a->qk_norm, a->head_dim, 0};
  size_t at = 0;
  for (int i = 0; i < PIECES; i++) {
    p[i].offset = at;
    at += padded((size_t)p[i].rows * (size_t)p[i].cols);
  }
  return at;
}

static tensor_ref find_piece(const checkpoint *c, int64_t layer, int i) {
  if (i >= NORMS) return checkpoint_layer_tensor(c, layer, norm_names[i - NORMS]);
  return i >= BIASES ? checkpoint_bias(c, layer, (linear_id)(i - BIASES)) : checkpoint_linear(c, layer, (linear_id)i);
}

size_t layer_weights_floats(const arch *a) {
  piece p[PIECES];
  return lay_out(a, p);
}

void layer_weights_place(const arch *a, float *base, layer_weights *w) {
  piece p[PIECES];
  const float *at[PIECES];
  lay_out(a, p);
  for (int i = 0; i < PIECES; i++) at[i] = p[i].rows ? base + p[i].offset : NULL;
  memcpy(w->linear, at, sizeof w->linear);
  memcpy(w->bias, at + BIASES, sizeof w->bias);
  w->input_norm = at[NORMS];
  w->post_norm = at[NORMS + 1];
  w->q_norm = at[NORMS + 2];
  w->k_norm = at[NORMS + 3];
}

void layer_weights_vary(const arch *a, const layer_weights *w, const bool targets[LIN_COUNT], float *base, layer_weights *variant,
                        float *target[LIN_COUNT]) {
  layer_weights there;
  layer_weights_place(a, base, &there);
  *variant = *w;
  for (int l = 0; l < LIN_COUNT; l++) {
    target[l] = targets[l] ? base + (there.linear[l] - base) : NULL;
    if (targets[l]) variant->linear[l] = target[l];
  }
}

status layer_weights_load(const checkpoint *c, int64_t layer, float *base, int index, int parts) {
  piece p[PIECES];
  status st = OK;
  lay_out(&c->arch, p);
  for (int i = 0; i < PIECES; i++) {
    if (!p[i].rows) continue;
    tensor_ref r = find_piece(c, layer, i);
    int64_t begin = p[i].rows * index / parts, end = p[i].rows * (index + 1) / parts;
    if (end > begin) TRY(tensor_rows(&r, begin, end, base + p[i].offset + (size_t)begin * (size_t)p[i].cols));
  }
done:
  return st;
}

void layer_weights_ahead(const checkpoint *c, int64_t layer) {
  piece p[PIECES];
  lay_out(&c->arch, p);
  for (int i = 0; i < PIECES; i++) {
    if (!p[i].rows) continue;
    tensor_ref r = find_piece(c, layer, i);
    tensor_ahead(&r);
  }
}

/* ---- scratch ---- */

static int64_t kv_width(const arch *a) { return (int64_t)a->kv_heads * a->head_dim; }

/* Strips of equal width, so that none is too thin for sgemm. */
static int64_t mlp_strip(const arch *a) {
  int64_t strips = (a->intermediate + MLP_STRIP - 1) / MLP_STRIP;
  return (int64_t)padded((size_t)((a->intermediate + strips - 1) / strips));
}

/* Row stride of transposed keys: off the powers of two, whose rows would share one cache set. */
static size_t key_stride(int64_t length) { return padded((size_t)length) + ALIGN; }

/* Attention needs of one head the transposed keys, of a block its transposed queries and its scores. The MLP needs a strip of up. Never
 * both at once. */
static size_t work_floats(const arch *a, int64_t length, int64_t max_rows) {
  size_t D = (size_t)a->head_dim, attention = D * key_stride(length) + D * QUERIES + (size_t)length * QUERIES;
  size_t mlp = (size_t)max_rows * (size_t)mlp_strip(a);
  return attention > mlp ? attention : mlp;
}

static size_t table_floats(const arch *a, int64_t length) { return (size_t)length * (size_t)(a->head_dim / 2); }

size_t block_scratch_bytes(const arch *a, int64_t length, int64_t max_rows) {
  return (2 * table_floats(a, length) + work_floats(a, length, max_rows)) * sizeof(float);
}

/* inv_freq of pair i in fp32, as the libraries compute it (spec: rotary embedding; llama3: wavelengths above original/low are stretched
 * by the factor, below original/high kept, between them blended). */
static float inverse_frequency(const arch *a, int i) {
  const float two_pi = 6.283185307179586f;
  float f = 1 / powf((float)a->rope_theta, (float)(2 * i) / (float)a->head_dim), factor = (float)a->rope_factor;
  if (a->rope == ROPE_LINEAR) return f / factor;
  if (a->rope != ROPE_LLAMA3) return f;
  float wavelength = two_pi / f, original = (float)a->rope_original, low = (float)a->rope_low, high = (float)a->rope_high;
  if (wavelength > original / low) return f / factor;
  if (wavelength < original / high) return f;
  float s = (original / wavelength - low) / (high - low);
  return (1 - s) * f / factor + s * f;
}

status block_scratch_new(const arch *a, int64_t length, int64_t max_rows, block_scratch *s) {
  status st = OK;
  int half = a->head_dim / 2;
  *s = (block_scratch){.length = length, .max_rows = max_rows, .work_floats = work_floats(a, length, max_rows)};
  if (length < 1 || length > INT_MAX || max_rows < 1 || max_rows > INT_MAX)
    return fail(E_USAGE, "forward pass: expected 1 to %d rows of windows of as many tokens, found %lld of %lld", INT_MAX,
                (long long)max_rows, (long long)length);
  TRY(NEW(s->cosines, table_floats(a, length), "rotary table"));
  TRY(NEW(s->sines, table_floats(a, length), "rotary table"));
  TRY(NEW(s->work, s->work_floats, "forward scratch"));
  for (int i = 0; i < half; i++) {
    float frequency = inverse_frequency(a, i);
    for (int64_t t = 0; t < length; t++) {
      float angle = (float)t * frequency;
      s->cosines[t * half + i] = (float)cos((double)angle);
      s->sines[t * half + i] = (float)sin((double)angle);
    }
  }
done:
  if (st != OK) block_scratch_free(s);
  return st;
}

void block_scratch_free(block_scratch *s) {
  FREE(s->cosines);
  FREE(s->sines);
  FREE(s->work);
  *s = (block_scratch){0};
}

/* ---- the five parts ---- */

/* y (rows, out) = x W^T + b */
static void project(const arch *a, const layer_weights *w, linear_id l, int64_t rows, const float *x, float *y) {
  int64_t out, in;
  linear_shape(a, l, &out, &in);
  if (w->bias[l]) kernel_set_rows(rows, out, w->bias[l], y);
  sgemm(false, true, (int)rows, (int)out, (int)in, 1, x, (int)in, w->linear[l], (int)in, w->bias[l] ? 1 : 0, y, (int)out);
}

void block_onto(const arch *a, const layer_weights *w, linear_id l, int64_t rows, const float *y, float *x) {
  int64_t out, in;
  linear_shape(a, l, &out, &in);
  if (w->bias[l]) kernel_add_rows(rows, out, w->bias[l], x);
  sgemm(false, true, (int)rows, (int)out, (int)in, 1, y, (int)in, w->linear[l], (int)in, 1, x, (int)out);
}

void block_attn_in(const arch *a, const layer_weights *w, int64_t rows, const float *x, float *n) {
  kernel_rms_norm(rows, a->hidden, a->rms_eps, x, w->input_norm, n);
}

int64_t block_kv_floats(const arch *a, int64_t rows) { return 2 * rows * kv_width(a); }

block_kv block_kv_place(const arch *a, int64_t rows, float *base) { return (block_kv){base, base + rows * kv_width(a)}; }

block_kv block_kv_from(const arch *a, block_kv kv, int64_t row) { return (block_kv){kv.k + row * kv_width(a), kv.v + row * kv_width(a)}; }

/* x (rows, heads*D) of the rows r by the angles of their positions. */
static void rotate(const arch *a, const block_scratch *s, const block_rows *r, int heads, const float *norm, float *x) {
  int64_t rows = r->end - r->begin, from = r->begin * (a->head_dim / 2);
  for (int64_t i = 0; i < r->sequences; i++)
    kernel_rotate(rows, heads, a->head_dim, x + i * rows * heads * a->head_dim, norm, a->rms_eps, s->cosines + from, s->sines + from);
}

void block_keys(const arch *a, const layer_weights *w, const block_scratch *s, const block_rows *r, const float *n, block_kv kv) {
  block_kv mine = block_kv_from(a, kv, r->begin);
  project(a, w, LIN_K, block_count(r), n, mine.k);
  project(a, w, LIN_V, block_count(r), n, mine.v);
  rotate(a, s, r, a->kv_heads, w->k_norm, mine.k);
}

/* One head of one window's rows [from, to). Their q (to - from, D) with row stride ldq is overwritten by softmax(q k^T / sqrt(D)) v; kt
 * (D, to) are the keys transposed, v (to, D) the values. window 0: a query sees every key up to its own place, else the last `window` of them.
 * Scores are kept as (keys, queries) and both factors of either product with the summed index outermost: the layout that BLIS packs
 * fastest (1.5 times the rate of q k^T as it stands, at 128 queries). */
static void attend(int64_t from, int64_t to, int D, int64_t window, float *q, int ldq, const float *kt, int ldk, const float *v, int ldv,
                   float *qt, float *scores) {
  const float scale = 1 / sqrtf((float)D);
  float sums[QUERIES];
  for (int64_t begin = from; begin < to; begin += QUERIES) {
    int64_t end = begin + QUERIES < to ? begin + QUERIES : to, first = window && begin + 1 > window ? begin + 1 - window : 0;
    int queries = (int)(end - begin), keys = (int)(end - first);
    float *block = q + (begin - from) * ldq;
    kernel_transpose(queries, D, block, ldq, qt, QUERIES);
    sgemm(true, false, keys, queries, D, scale, kt + first, ldk, qt, QUERIES, 0, scores, QUERIES);
    kernel_softmax_columns(keys, queries, begin - first, window, scores, QUERIES, sums);
    sgemm(true, false, queries, D, keys, 1, scores, QUERIES, v + first * ldv, ldv, 0, block, ldq);
    for (int i = 0; i < queries; i++) kernel_scale(D, 1 / sums[i], block + (int64_t)i * ldq);
  }
}

void block_attention(const arch *a, const layer_weights *w, int64_t layer, block_scratch *s, const block_rows *r, const float *n,
                     block_kv kv, float *out) {
  const int64_t window = a->layer_slides[layer] ? a->sliding_window : 0, rows = r->end - r->begin;
  const int D = a->head_dim, group = a->heads / a->kv_heads, ldq = a->heads * D, ldv = (int)kv_width(a), ldk = (int)key_stride(s->length);
  float *kt = s->work, *qt = kt + D * ldk, *scores = qt + D * QUERIES;
  project(a, w, LIN_Q, block_count(r), n, out);
  rotate(a, s, r, a->heads, w->q_norm, out);
  for (int64_t i = 0; i < r->sequences; i++) {
    block_kv of = block_kv_from(a, kv, i * r->length);
    for (int h = 0; h < a->heads; h++) {
      const int at = h / group * D;
      if (h % group == 0) kernel_transpose(r->end, D, of.k + at, ldv, kt, ldk);
      attend(r->begin, r->end, D, window, out + i * rows * ldq + h * D, ldq, kt, ldk, of.v + at, ldv, qt, scores);
    }
  }
}

void block_mlp_in(const arch *a, const layer_weights *w, int64_t rows, const float *x, float *m) {
  kernel_rms_norm(rows, a->hidden, a->rms_eps, x, w->post_norm, m);
}

void block_attn_out(const arch *a, const layer_weights *w, int64_t rows, const float *attended, float *x, float *m) {
  block_onto(a, w, LIN_O, rows, attended, x);
  block_mlp_in(a, w, rows, x, m);
}

void block_mlp(const arch *a, const layer_weights *w, block_scratch *s, int64_t rows, const float *m, float *g) {
  const int d = (int)a->hidden, f = (int)a->intermediate;
  const int64_t strip = mlp_strip(a);
  for (int64_t at = 0; at < f; at += strip) {
    int cols = (int)(f - at < strip ? f - at : strip);
    const float *gate_bias = w->bias[LIN_GATE], *up_bias = w->bias[LIN_UP];
    for (int64_t i = 0; i < rows && gate_bias; i++) kernel_set_rows(1, cols, gate_bias + at, g + i * f + at);
    if (up_bias) kernel_set_rows(rows, cols, up_bias + at, s->work);
    sgemm(false, true, (int)rows, cols, d, 1, m, d, w->linear[LIN_GATE] + at * d, d, gate_bias ? 1 : 0, g + at, f);
    sgemm(false, true, (int)rows, cols, d, 1, m, d, w->linear[LIN_UP] + at * d, d, up_bias ? 1 : 0, s->work, cols);
    kernel_silu_mul(rows, cols, g + at, f, s->work, cols);
  }
}

void block_mlp_out(const arch *a, const layer_weights *w, int64_t rows, const float *g, float *x) {
  block_onto(a, w, LIN_DOWN, rows, g, x);
}

int64_t block_wide(const arch *a) {
  int64_t attended = input_width(a, IN_ATTN_OUT);
  return attended > a->intermediate ? attended : a->intermediate;
}

/* ---- what enters, and what it costs ---- */

status embed_tokens(const checkpoint *c, int64_t count, const int32_t *ids, float *x) {
  status st = OK;
  tensor_ref table = checkpoint_embedding(c);
  for (int64_t i = 0; i < count; i++) TRY(tensor_rows(&table, ids[i], ids[i] + 1, x + i * c->arch.hidden));
done:
  return st;
}

double block_flops_per_token(const arch *a) { return 2.0 * (double)arch_layer_params(a); }

double block_attention_flops(const arch *a, int64_t layer, int64_t sequences, int64_t length) {
  double T = (double)length, W = a->layer_slides[layer] ? fmin(T, (double)a->sliding_window) : T;
  double pairs = W * (W + 1) / 2 + (T - W) * W; /* the first W queries see 1 … W keys, the others W */
  return 4.0 * a->heads * a->head_dim * (double)sequences * pairs;
}
