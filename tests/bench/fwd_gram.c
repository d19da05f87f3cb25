/* Forward pass + Grams of one decoder block as a fraction of what BLAS sgemm itself reaches on the same ranks at the same time.
 *
 * usage: mpirun -n N bench_fwd_gram FOLDER smollm2|7b|70b [WINDOWS]
 * Makes a one-layer checkpoint of that shape with random bf16 weights in FOLDER (kept for the next call), runs the program's own pass over
 * WINDOWS x 2048 tokens, and 2048^3 products before and after. Counted: 2 params tokens + n^2 tokens per Gram. */
#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/blas.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/half.h"
#include "base/log.h"
#include "base/memory.h"
#include "calibrate/pass.h"
#include "dist/agree.h"

typedef struct shape {
  const char *name;
  int64_t hidden, intermediate, heads, kv_heads, head_dim;
} shape;

static const shape shapes[] = {{"smollm2", 576, 1536, 9, 3, 64}, {"7b", 4096, 11008, 32, 32, 128}, {"70b", 8192, 28672, 64, 8, 128}};

enum { VOCAB = 512, LENGTH = 2048, PEAK = 2048 };

typedef struct tensor {
  const char *name;
  int64_t rows, cols;
} tensor;

static int list_tensors(const shape *s, tensor *t) {
  int64_t d = s->hidden, f = s->intermediate, q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;
  const tensor all[] = {{"model.embed_tokens.weight", VOCAB, d},
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
static status write_model(const char *folder, const shape *s) {
  tensor t[16];
  int count = list_tensors(s, t);
  status st = OK;
  char *path = path_join(folder, "model.safetensors"), *temporary = path_join(folder, "model.safetensors.tmp"),
       *config = path_join(folder, "config.json");
  char text[1024], header[8192] = "{\"__metadata__\":{\"format\":\"pt\"}";
  uint64_t at = 0, random = 88172645463325252u;
  uint16_t *row = NULL;
  FILE *f = NULL;
  snprintf(text, sizeof text,
           "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": %lld, \"intermediate_size\": %lld, "
           "\"num_attention_heads\": %lld, "
           "\"num_key_value_heads\": %lld, \"num_hidden_layers\": 1, \"vocab_size\": %d, \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0, "
           "\"hidden_act\": \"silu\", "
           "\"max_position_embeddings\": 4096, \"tie_word_embeddings\": true, \"torch_dtype\": \"bfloat16\"}\n",
           (long long)s->hidden, (long long)s->intermediate, (long long)s->heads, (long long)s->kv_heads, VOCAB);
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
static double peak_rate(float *x) {
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

static status run(const char *folder, const shape *s, int count, int rank) {
  status st = OK;
  checkpoint model = {0};
  team t = {0};
  pass p = {0};
  windows w = {.count = count, .length = LENGTH};
  const windows *sets[SET_COUNT] = {&w, NULL};
  const bool wanted[IN_COUNT] = {true, true, true, true};
  float *x = NULL;
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", folder, s->name);
  st = rank == 0 ? write_model(path, s) : OK;
  TRY(agree(MPI_COMM_WORLD, st));
  TRY(checkpoint_open(path, &model));
  TRY(NEW(w.ids, count * LENGTH, "ids"));
  TRY(NEW(x, 3 * PEAK * PEAK, "products"));
  for (int k = 0; k < count * LENGTH; k++) w.ids[k] = (k * 7919 + k / 13) % VOCAB;
  for (int k = 0; k < 2 * PEAK * PEAK; k++) x[k] = (float)(k % 17) / 17 - 0.4f;
  TRY(team_new(MPI_COMM_WORLD, 0, &t));
  TRY(pass_new(&t, &model, sets, wanted, &p));
  TRY(pass_embed(&p));
  double flops = pass_layer_flops(&model.arch, sets, wanted), best = 0, peak = peak_rate(x);
  for (int repeat = 0; repeat < (s->hidden > 1000 ? 2 : 3); repeat++) {
    double loading = p.load_seconds, start = clock_now();
    TRY(pass_layer(&p, 0, true, NULL, NULL));
    double seconds = clock_now() - start - (p.load_seconds - loading);
    best = fmax(best, flops / seconds);
    peak = fmax(peak, peak_rate(x));
  }
  if (rank == 0) {
    printf("%-8s %d x %d tokens, %d ranks: %.1f GFLOP/s of %.1f in sgemm\n", s->name, count, LENGTH, t.size, 1e-9 * best, 1e-9 * peak);
    printf("BENCH fwd_gram_%s_of_peak %.3f\n", s->name, best / peak);
  }
done:
  pass_free(&p);
  team_free(&t);
  checkpoint_close(&model);
  FREE(w.ids);
  FREE(x);
  return st;
}

int main(int argc, char **argv) {
  int rank;
  blas_setup();
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  status st = fail(E_USAGE, "bench: expected FOLDER and smollm2, 7b or 70b");
  for (size_t k = 0; argc > 2 && k < sizeof shapes / sizeof *shapes; k++)
    if (strcmp(argv[2], shapes[k].name) == 0) {
      status_clear();
      st = run(argv[1], &shapes[k], argc > 3 ? atoi(argv[3]) : 8, rank);
    }
  if (st != OK && rank == 0) fprintf(stderr, "cloqwork: %s\n", status_message());
  MPI_Finalize();
  return status_exit_code(st);
}
