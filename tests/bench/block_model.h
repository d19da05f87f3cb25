/* What the benchmarks of blocks share: made-up checkpoints of one layer, and the rate of BLAS sgemm itself. */
#ifndef CLOQWORK_TESTS_BENCH_BLOCK_MODEL_H
#define CLOQWORK_TESTS_BENCH_BLOCK_MODEL_H

#include <math.h>
#include <mpi.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/blas.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/half.h"
#include "base/memory.h"

/* heavy: embeddings with heavy tails (a Gaussian times a lognormal) and a few outlier channels in the norms, as trained models have them. */
typedef struct shape {
  const char *name;
  int64_t hidden, intermediate, heads, kv_heads, head_dim, vocab;
  bool heavy;
} shape;

enum { LENGTH = 2048, PEAK = 2048, TENSORS_MOST = 16 };

typedef enum tensor_kind { EMBEDDING, LINEAR, NORM } tensor_kind;

typedef struct tensor {
  const char *name;
  tensor_kind kind;
  int64_t rows, cols;
} tensor;

/* t [TENSORS_MOST]. */
static inline int list_tensors(const shape *s, tensor *t) {
  int64_t d = s->hidden, f = s->intermediate, q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;
  const tensor all[] = {{"model.embed_tokens.weight", EMBEDDING, s->vocab, d},
                        {"model.layers.0.self_attn.q_proj.weight", LINEAR, q, d},
                        {"model.layers.0.self_attn.k_proj.weight", LINEAR, kv, d},
                        {"model.layers.0.self_attn.v_proj.weight", LINEAR, kv, d},
                        {"model.layers.0.self_attn.o_proj.weight", LINEAR, d, q},
                        {"model.layers.0.mlp.gate_proj.weight", LINEAR, f, d},
                        {"model.layers.0.mlp.up_proj.weight", LINEAR, f, d},
                        {"model.layers.0.mlp.down_proj.weight", LINEAR, d, f},
                        {"model.layers.0.input_layernorm.weight", NORM, 1, d},
                        {"model.layers.0.post_attention_layernorm.weight", NORM, 1, d},
                        {"model.norm.weight", NORM, 1, d}};
  memcpy(t, all, sizeof all);
  return (int)(sizeof all / sizeof *all);
}

/* Uniform in [0, 1); and four of them as nearly a Gaussian. */
static inline double random_next(uint64_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return (double)(*state >> 11) * 0x1p-53;
}

static inline double random_normal(uint64_t *state) {
  double sum = -2;
  for (int k = 0; k < 4; k++) sum += random_next(state);
  return sum * sqrt(3.0);
}

/* Linears: variance 1 / columns, so that activations stay of order one. Outliers: a channel of 512, 8 to 24 times as large. */
static inline float random_weight(const shape *s, tensor_kind kind, int64_t cols, int64_t c, uint64_t *state) {
  if (kind == LINEAR || !s->heavy) return kind == NORM ? 1.0f : (float)(random_next(state) - 0.5) * sqrtf(12.0f / (float)cols);
  if (kind == EMBEDDING) return (float)(random_normal(state) * exp(0.7 * random_normal(state)));
  double weight = exp(0.2 * random_normal(state));
  return (float)(c % 512 == 77 ? (8 + 16 * random_next(state)) * weight : weight);
}

/* A Llama checkpoint of random bf16 weights in folder; one that is there is kept. */
static inline status write_model(const char *folder, const shape *s) {
  enum { HEADER = 8192 };
  tensor t[TENSORS_MOST];
  int count = list_tensors(s, t);
  status st = OK;
  char *path = path_join(folder, "model.safetensors"), *temporary = path_join(folder, "model.safetensors.tmp"),
       *config = path_join(folder, "config.json");
  char text[1024], header[HEADER] = "{\"__metadata__\":{\"format\":\"pt\"}";
  uint64_t at = 0, random = 88172645463325252u;
  uint16_t *row = NULL;
  FILE *f = NULL;
  snprintf(
      text, sizeof text,
      "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": %lld, \"intermediate_size\": %lld, "
      "\"num_attention_heads\": %lld, "
      "\"num_key_value_heads\": %lld, \"num_hidden_layers\": 1, \"vocab_size\": %lld, \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0, "
      "\"hidden_act\": \"silu\", "
      "\"max_position_embeddings\": 4096, \"tie_word_embeddings\": true, \"torch_dtype\": \"bfloat16\"}\n",
      (long long)s->hidden, (long long)s->intermediate, (long long)s->heads, (long long)s->kv_heads, (long long)s->vocab);
  TRY(file_make_folders(folder));
  if (file_exists(path)) goto done;
  TRY(file_write_atomic(config, text, strlen(text)));
  for (int k = 0; k < count; k++) {
    uint64_t bytes = (uint64_t)(t[k].rows * t[k].cols * 2);
    size_t used = strlen(header);
    char dims[64];
    if (t[k].kind == NORM)
      snprintf(dims, sizeof dims, "%lld", (long long)t[k].cols);
    else
      snprintf(dims, sizeof dims, "%lld,%lld", (long long)t[k].rows, (long long)t[k].cols);
    snprintf(header + used, sizeof header - used, ",\"%s\":{\"dtype\":\"BF16\",\"shape\":[%s],\"data_offsets\":[%llu,%llu]}", t[k].name,
             dims, (unsigned long long)at, (unsigned long long)(at + bytes));
    at += bytes;
  }
  strcat(header, "}");
  while (strlen(header) % 8) strcat(header, " ");
  uint64_t length = strlen(header);
  TRY(NEW(row, s->intermediate > s->hidden ? s->intermediate : s->hidden, "a row"));
  if (!(f = fopen(temporary, "wb"))) {
    st = fail(E_IO, "%s: cannot be made: %m", temporary);
    goto done;
  }
  fwrite(&length, 8, 1, f);
  fwrite(header, 1, length, f);
  for (int k = 0; k < count; k++)
    for (int64_t r = 0; r < t[k].rows; r++) {
      for (int64_t c = 0; c < t[k].cols; c++) row[c] = float_to_bf16(random_weight(s, t[k].kind, t[k].cols, c, &random));
      fwrite(row, 2, (size_t)t[k].cols, f);
    }
  if (fclose(f) != 0) st = fail(E_IO, "%s: cannot be written: %m", temporary);
  if (st == OK) st = file_publish(temporary, path);
done:
  FREE(row);
  FREE(path);
  FREE(temporary);
  FREE(config);
  return st;
}

/* Order of the products that rates are taken from; BENCH_SMALL: tests/bench/run.sh tries whether everything runs. */
static inline int peak_order(void) { return getenv("BENCH_SMALL") ? PEAK / 16 : PEAK; }

/* Collective: flops/s of all ranks together in such products; x holds three squares of PEAK. */
#define RATE(name, type, product)                                                             \
  static inline double name(type *x) {                                                        \
    int n = peak_order();                                                                     \
    double best = 0, sum;                                                                     \
    MPI_Barrier(MPI_COMM_WORLD);                                                              \
    for (int k = 0; k < 4; k++) {                                                             \
      double start = clock_now();                                                             \
      product(false, false, n, n, n, 1, x, n, x + PEAK * PEAK, n, 0, x + 2 * PEAK * PEAK, n); \
      best = fmax(best, 2.0 * n * n * n / (clock_now() - start));                             \
    }                                                                                         \
    MPI_Allreduce(&best, &sum, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);                       \
    return sum;                                                                               \
  }
RATE(peak_rate, float, sgemm)
RATE(peak_rate_double, double, dgemm)
#undef RATE

#endif
