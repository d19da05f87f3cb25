/* What the benchmarks of blocks share: made-up checkpoints of one layer, and the rate of BLAS sgemm itself. */
#ifndef CLOQWORK_TESTS_BENCH_BLOCK_MODEL_H
#define CLOQWORK_TESTS_BENCH_BLOCK_MODEL_H

#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <string.h>

#include "base/blas.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/half.h"
#include "base/memory.h"

typedef struct shape {
  const char *name;
  int64_t hidden, intermediate, heads, kv_heads, head_dim, vocab;
} shape;

enum { LENGTH = 2048, PEAK = 2048 };

typedef struct tensor {
  const char *name;
  int64_t rows, cols;
} tensor;

static inline int list_tensors(const shape *s, tensor *t) {
  int64_t d = s->hidden, f = s->intermediate, q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;
  const tensor all[] = {{"model.embed_tokens.weight", s->vocab, d},
                        {"model.layers.0.self_attn.q_proj.weight", q, d},
                        {"model.layers.0.self_attn.k_proj.weight", kv, d},
                        {"model.layers.0.self_attn.v_proj.weight", kv, d},
                        {"model.layers.0.self_attn.o_proj.weight", d, q},
                        {"model.layers.0.mlp.gate_proj.weight", f, d},
                        {"model.layers.0.mlp.up_proj.weight", f, d},
                        {"model.layers.0.mlp.down_proj.weight", d, f},
                        {"model.layers.0.input_layernorm.weight", 0, d},
                        {"model.layers.0.post_attention_layernorm.weight", 0, d},
                        {"model.norm.weight", 0, d}};
  memcpy(t, all, sizeof all);
  return (int)(sizeof all / sizeof *all);
}

/* Weights of variance 1 / columns, norms 1: activations stay of order one. */
static inline status write_model(const char *folder, const shape *s) {
  tensor t[16];
  int count = list_tensors(s, t);
  status st = OK;
  char *path = path_join(folder, "model.safetensors"), *temporary = path_join(folder, "model.safetensors.tmp"),
       *config = path_join(folder, "config.json");
  char text[1024], header[8192] = "{\"__metadata__\":{\"format\":\"pt\"}";
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
    uint64_t bytes = (uint64_t)((t[k].rows ? t[k].rows : 1) * t[k].cols * 2);
    size_t used = strlen(header);
    if (t[k].rows)
      snprintf(header + used, sizeof header - used, ",\"%s\":{\"dtype\":\"BF16\",\"shape\":[%lld,%lld],\"data_offsets\":[%llu,%llu]}",
               t[k].name, (long long)t[k].rows, (long long)t[k].cols, (unsigned long long)at, (unsigned long long)(at + bytes));
    else
      snprintf(header + used, sizeof header - used, ",\"%s\":{\"dtype\":\"BF16\",\"shape\":[%lld],\"data_offsets\":[%llu,%llu]}", t[k].name,
               (long long)t[k].cols, (unsigned long long)at, (unsigned long long)(at + bytes));
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
    for (int64_t r = 0; r < (t[k].rows ? t[k].rows : 1); r++) {
      for (int64_t c = 0; c < t[k].cols; c++) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        row[c] = float_to_bf16(t[k].rows ? (float)((double)(random >> 11) * 0x1p-53 - 0.5) * sqrtf(12.0f / (float)t[k].cols) : 1.0f);
      }
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

/* Collective: flops/s of all ranks together in 2048^3 products. */
static inline double peak_rate(float *x) {
  MPI_Barrier(MPI_COMM_WORLD);
  double best = 0, sum;
  for (int k = 0; k < 4; k++) {
    double start = clock_now();
    sgemm(false, false, PEAK, PEAK, PEAK, 1, x, PEAK, x + PEAK * PEAK, PEAK, 0, x + 2 * PEAK * PEAK, PEAK);
    best = fmax(best, 2.0 * PEAK * PEAK * PEAK / (clock_now() - start));
  }
  MPI_Allreduce(&best, &sum, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
  return sum;
}

#endif
