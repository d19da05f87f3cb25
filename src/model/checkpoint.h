/* A Hugging Face checkpoint folder: architecture from config.json, tensors from *.safetensors, checked against each other. Local.
 *
 * Everything that is not implemented is refused by name, before any work. No tensor is read here: only headers. */
#ifndef CLOQWORK_MODEL_CHECKPOINT_H
#define CLOQWORK_MODEL_CHECKPOINT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/hash.h"
#include "base/status.h"
#include "model/safetensors.h"

typedef enum arch_family { ARCH_LLAMA, ARCH_MISTRAL, ARCH_QWEN2, ARCH_QWEN3 } arch_family;

typedef enum rope_kind { ROPE_DEFAULT, ROPE_LINEAR, ROPE_LLAMA3 } rope_kind;

typedef struct arch {
  arch_family family;
  int64_t hidden, layers, intermediate, vocab; /* d, L, f, V */
  int heads, kv_heads, head_dim;               /* h, hk, D */
  float rms_eps;
  double rope_theta;
  rope_kind rope;
  double rope_factor, rope_low, rope_high, rope_original; /* linear: factor; llama3: all four */
  int64_t max_positions;
  int64_t sliding_window; /* 0: none */
  uint8_t *layer_slides;  /* [layers] 1 where the window applies; owned */
  bool qkv_bias, o_bias, mlp_bias, qk_norm, tied_head;
} arch;

/* The seven linears of a decoder layer, in the order of the pipeline. */
typedef enum linear_id { LIN_Q, LIN_K, LIN_V, LIN_O, LIN_GATE, LIN_UP, LIN_DOWN, LIN_COUNT } linear_id;
/* The four inputs they read: attn_in (q, k, v), attn_out (o), mlp_in (gate, up), mlp_out (down). */
typedef enum input_id { IN_ATTN, IN_ATTN_OUT, IN_MLP, IN_MLP_OUT, IN_COUNT } input_id;

const char *linear_path(linear_id l);  /* "self_attn.q_proj" … */
const char *linear_short(linear_id l); /* "q_proj" … */
const char *input_name(input_id i);    /* "attn_in" … */
input_id linear_input(linear_id l);
void linear_shape(const arch *a, linear_id l, int64_t *out, int64_t *in);
bool linear_has_bias(const arch *a, linear_id l);
int64_t input_width(const arch *a, input_id i);
int64_t arch_layer_params(const arch *a); /* weights of the seven linears */

/* A tensor found and checked, ready to convert. */
typedef struct tensor_ref {
  const st_file *file;
  const st_tensor *tensor;
  int64_t rows, cols; /* a vector is (1, n) */
} tensor_ref;

typedef struct checkpoint {
  char *folder;
  arch arch;
  st_file *files;
  size_t file_count;
  tensor_ref *tensors; /* what the architecture needs, no more: sorted by name */
  size_t tensor_count;
  /* config, names, dtypes, shapes and three samples of 4 KiB (begin, middle, end) of every tensor in the order of names: cheap at any
   * size, and the same however the tensors are dealt out to shards */
  char fingerprint[HASH_HEX];
} checkpoint;

/* Reads model.safetensors, else the shards that model.safetensors.index.json names. Every tensor the architecture needs must be there with
 * the shape config.json implies and a type that is read (F32, F16, BF16); a tensor that the architecture does not know is an error too,
 * because it would be left out of the arithmetic. E_DATA, E_IO, E_MEMORY; c is closed on failure. */
status checkpoint_open(const char *folder, checkpoint *c);
void checkpoint_close(checkpoint *c);

tensor_ref checkpoint_linear(const checkpoint *c, int64_t layer, linear_id l);
tensor_ref checkpoint_bias(const checkpoint *c, int64_t layer, linear_id l); /* tensor NULL when the architecture has none */
/* "input_layernorm.weight", "self_attn.q_norm.weight", "self_attn.q_proj.bias" …: tensor NULL when the architecture has none. */
tensor_ref checkpoint_layer_tensor(const checkpoint *c, int64_t layer, const char *name_with_suffix);
tensor_ref checkpoint_embedding(const checkpoint *c);
tensor_ref checkpoint_final_norm(const checkpoint *c);
tensor_ref checkpoint_head(const checkpoint *c); /* the embedding when tied */

/* Rows [begin, end) to float, row-major contiguous. E_DATA when a value is NaN or Inf (names tensor, row, column). */
status tensor_rows(const tensor_ref *r, int64_t begin, int64_t end, float *out);
/* Those bytes of the file will not be read again soon: drop them from memory. */
void tensor_done_with(const tensor_ref *r);
/* They will be read soon: the system may begin. */
void tensor_ahead(const tensor_ref *r);
/* SHA-256 of the tensor's raw bytes. */
status tensor_hash(const tensor_ref *r, char hex[HASH_HEX]);

#endif
