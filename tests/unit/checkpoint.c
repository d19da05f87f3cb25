/* Checkpoints: configurations of every family and spelling, what is refused and by which words, config.json against the tensors, shards,
 * and conversion of rows. */
#include "check.h"

#include <math.h>

#include "base/fault.h"
#include "base/memory.h"
#include "model/checkpoint.h"
#include "model_files.h"

static const char llama[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":8,\"num_hidden_layers\":2,"
    "\"intermediate_size\":12,\"vocab_size\":11,\"num_attention_heads\":2,\"num_key_value_heads\":1,\"rms_norm_eps\":1e-5,"
    "\"hidden_act\":\"silu\",\"max_position_embeddings\":64,\"torch_dtype\":\"bfloat16\",\"eos_token_id\":[1,2]}";

enum { BIAS_QKV = 1, BIAS_O = 2, BIAS_MLP = 4, QK_NORM = 8, HEAD = 16 };

/* The tensors of `llama` above with D columns per head. */
static test_model make_model(int parts, int D) {
  static const char *const biased[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                                       "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};
  const int rows[] = {2 * D, D, D, 8, 12, 12, 8}, cols[] = {8, 8, 8, 2 * D, 8, 8, 12};
  test_model m = {0};
  char name[96];
  add_tensor(&m, "model.norm.weight", 0, 8);
  for (int layer = 1; layer >= 0; layer--) {
    for (int l = 0; l < 7; l++) {
      snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, biased[l]);
      add_tensor(&m, name, rows[l], cols[l]);
      if (!(parts & (l < 3 ? BIAS_QKV : l == 3 ? BIAS_O : BIAS_MLP))) continue;
      snprintf(name, sizeof name, "model.layers.%d.%s.bias", layer, biased[l]);
      add_tensor(&m, name, 0, rows[l]);
    }
    static const char *const norms[] = {"input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"};
    for (int i = 0; i < (parts & QK_NORM ? 4 : 2); i++) {
      snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, norms[i]);
      add_tensor(&m, name, 0, i < 2 ? 8 : D);
    }
  }
  add_tensor(&m, "model.embed_tokens.weight", 11, 8);
  if (parts & HEAD) add_tensor(&m, "lm_head.weight", 11, 8);
  return m;
}

static void put_model(test_model *m) { put_safetensors("model.safetensors", m->t, m->count, 0); }

static void reads_a_model(void **state) {
  (void)state;
  checkpoint c;
  int64_t out, in;
  float rows[16];
  test_model m = make_model(HEAD, 4);
  folder_clear();
  put_config(llama, "");
  put_model(&m);
  assert_done(checkpoint_open(test_folder, &c));
  assert_int_equal(c.arch.family, ARCH_LLAMA);
  assert_int_equal(c.arch.head_dim, 4);
  assert_int_equal(c.arch.max_positions, 64);
  assert_float_equal(c.arch.rms_eps, 1e-5f, 0);
  assert_true(c.arch.rope == ROPE_DEFAULT && c.arch.rope_theta == 10000);
  assert_int_equal(c.tensor_count, 3 + 2 * 9);
  linear_shape(&c.arch, LIN_K, &out, &in);
  assert_true(out == 4 && in == 8);
  linear_shape(&c.arch, LIN_DOWN, &out, &in);
  assert_true(out == 8 && in == 12);
  assert_int_equal(arch_layer_params(&c.arch), 8 * 8 + 2 * 4 * 8 + 8 * 8 + 3 * 8 * 12);
  assert_string_equal(linear_path(LIN_GATE), "mlp.gate_proj");
  assert_string_equal(linear_short(LIN_O), "o_proj");
  assert_string_equal(input_name(linear_input(LIN_UP)), "mlp_in");
  tensor_ref r = checkpoint_linear(&c, 1, LIN_K);
  assert_true(r.rows == 4 && r.cols == 8);
  assert_done(tensor_rows(&r, 2, 4, rows));
  assert_memory_equal(rows, the_tensor(&m, "model.layers.1.self_attn.k_proj.weight")->values + 16, sizeof rows);
  r = checkpoint_layer_tensor(&c, 0, "post_attention_layernorm.weight");
  assert_true(r.rows == 1 && r.cols == 8);
  assert_null(checkpoint_bias(&c, 0, LIN_Q).tensor);
  assert_null(checkpoint_layer_tensor(&c, 0, "self_attn.q_norm.weight").tensor);
  assert_null(checkpoint_layer_tensor(&c, 2, "input_layernorm.weight").tensor);
  assert_string_equal(checkpoint_head(&c).tensor->name, "lm_head.weight");
  assert_string_equal(checkpoint_final_norm(&c).tensor->name, "model.norm.weight");
  char hex[HASH_HEX], direct[HASH_HEX];
  r = checkpoint_embedding(&c);
  assert_done(tensor_hash(&r, hex));
  assert_done(hash_bytes(the_tensor(&m, "model.embed_tokens.weight")->values, 11 * 8 * 4, direct));
  assert_string_equal(hex, direct);
  tensor_done_with(&r);
  assert_done(tensor_hash(&r, direct)); /* dropped pages come back */
  assert_string_equal(hex, direct);
  checkpoint_close(&c);
  checkpoint_close(&c);
  free_model(&m);
}

/* One row per spelling: changes to `llama`, which tensors, head width, and what arch must say. */
typedef struct accepted {
  const char *changes;
  int parts, D;
  bool (*holds)(const arch *a);
} accepted;

#define HOLDS(name, expression) \
  static bool name(const arch *a) { return expression; }
HOLDS(as_llama1, a->kv_heads == 2 && a->rope_theta == 10000 && a->max_positions == 0)
HOLDS(theta_5e5, a->rope == ROPE_DEFAULT && a->rope_theta == 500000)
HOLDS(linear_4, a->rope == ROPE_LINEAR && a->rope_factor == 4 && a->rope_theta == 500000)
HOLDS(llama3_8, a->rope == ROPE_LLAMA3 && a->rope_factor == 8 && a->rope_low == 1 && a->rope_high == 4 && a->rope_original == 8192 &&
                    a->rope_theta == 500000)
HOLDS(llama3_fallback, a->rope == ROPE_LLAMA3 && a->rope_original == 64)
HOLDS(head_16, a->head_dim == 16 && input_width(a, IN_ATTN_OUT) == 32)
HOLDS(tied, a->tied_head)
HOLDS(all_biases, a->qkv_bias && a->o_bias && a->mlp_bias)
HOLDS(qkv_bias_only, a->qkv_bias && !a->o_bias && !a->mlp_bias && a->sliding_window == 0)
HOLDS(window_7, a->sliding_window == 7 && a->layer_slides[0] && a->layer_slides[1])
HOLDS(window_4096, a->sliding_window == 4096 && a->layer_slides[0])
HOLDS(no_window, a->sliding_window == 0 && !a->layer_slides[0] && !a->layer_slides[1])
HOLDS(second_slides, a->sliding_window == 5 && !a->layer_slides[0] && a->layer_slides[1])
HOLDS(first_slides, a->sliding_window == 5 && a->layer_slides[0] && !a->layer_slides[1])
HOLDS(qwen3, a->qk_norm && !a->qkv_bias && a->head_dim == 6)
HOLDS(qwen3_biased, a->qk_norm && a->qkv_bias && a->o_bias && !a->mlp_bias)
HOLDS(qwen3_default, a->head_dim == 128)

#define MISTRAL "\"model_type\":\"mistral\",\"architectures\":[\"MistralForCausalLM\"]"
#define QWEN2 "\"model_type\":\"qwen2\",\"architectures\":[\"Qwen2ForCausalLM\"]"
#define QWEN3 "\"model_type\":\"qwen3\",\"architectures\":[\"Qwen3ForCausalLM\"]"
#define LLAMA3 "\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0"

static const accepted configs[] = {
    {"{\"num_key_value_heads\":\"absent\",\"hidden_act\":\"absent\",\"max_position_embeddings\":\"absent\"}", HEAD, 4, NULL},
    {"{\"rope_theta\":500000.0,\"rope_scaling\":null}", HEAD, 4, theta_5e5},
    {"{\"rope_theta\":500000,\"rope_scaling\":{\"rope_type\":\"default\"}}", HEAD, 4, theta_5e5},
    {"{\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":500000.0}}", HEAD, 4, theta_5e5},
    {"{\"rope_theta\":1.0,\"rope_parameters\":{\"rope_theta\":500000.0}}", HEAD, 4, theta_5e5},
    {"{\"rope_theta\":5e5,\"rope_scaling\":{\"type\":\"linear\",\"factor\":4.0}}", HEAD, 4, linear_4},
    {"{\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":4,\"rope_theta\":500000.0}}", HEAD, 4, linear_4},
    {"{\"rope_theta\":5e5,\"rope_scaling\":{\"rope_type\":\"llama3\"," LLAMA3 ",\"original_max_position_embeddings\":8192}}", HEAD, 4,
     llama3_8},
    {"{\"rope_parameters\":{\"rope_type\":\"llama3\",\"rope_theta\":5e5," LLAMA3 ",\"original_max_position_embeddings\":8192}}", HEAD, 4,
     llama3_8},
    {"{\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"llama3\",\"rope_theta\":5e5," LLAMA3
     ",\"original_max_position_embeddings\":8192}}}",
     HEAD, 4, llama3_8},
    {"{\"rope_scaling\":{\"rope_type\":\"llama3\"," LLAMA3 "}}", HEAD, 4, llama3_fallback},
    {"{\"head_dim\":16}", HEAD, 16, head_16},
    {"{\"head_dim\":null,\"partial_rotary_factor\":1.0,\"quantization_config\":null,\"attn_logit_softcapping\":null,\"num_local_experts\":"
     "0}",
     HEAD, 4, NULL},
    {"{\"tie_word_embeddings\":true}", 0, 4, tied},
    {"{\"attention_bias\":true,\"mlp_bias\":true}", HEAD | BIAS_QKV | BIAS_O | BIAS_MLP, 4, all_biases},
    {"{" MISTRAL ",\"sliding_window\":7}", HEAD, 4, window_7},
    {"{" MISTRAL ",\"sliding_window\":7,\"layer_types\":[\"sliding_attention\",\"sliding_attention\"]}", HEAD, 4, window_7},
    {"{" MISTRAL ",\"sliding_window\":null}", HEAD, 4, no_window},
    {"{" MISTRAL "}", HEAD, 4, window_4096},
    {"{" QWEN2 ",\"sliding_window\":7,\"use_sliding_window\":false,\"max_window_layers\":0}", HEAD | BIAS_QKV, 4, qkv_bias_only},
    {"{" QWEN2 ",\"sliding_window\":5,\"use_sliding_window\":true,\"max_window_layers\":1}", HEAD | BIAS_QKV, 4, second_slides},
    {"{" QWEN2 ",\"sliding_window\":5,\"use_sliding_window\":true}", HEAD | BIAS_QKV, 4, NULL},
    {"{" QWEN2 ",\"sliding_window\":5,\"use_sliding_window\":true,\"layer_types\":[\"sliding_attention\",\"full_attention\"]}",
     HEAD | BIAS_QKV, 4, first_slides},
    {"{" QWEN2 ",\"sliding_window\":null,\"use_sliding_window\":true,\"layer_types\":[\"sliding_attention\",\"full_attention\"]}",
     HEAD | BIAS_QKV, 4, no_window},
    {"{" QWEN3 ",\"head_dim\":6}", HEAD | QK_NORM, 6, qwen3},
    {"{" QWEN3 ",\"head_dim\":6,\"attention_bias\":true}", HEAD | QK_NORM | BIAS_QKV | BIAS_O, 6, qwen3_biased},
    {"{" QWEN3 "}", HEAD | QK_NORM, 128, qwen3_default},
};

static void reads_every_spelling(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof configs / sizeof *configs; i++) {
    checkpoint c;
    test_model m = make_model(configs[i].parts, configs[i].D);
    folder_clear();
    put_config(llama, configs[i].changes);
    if (i == 0) { /* a Llama 1 file: as many key heads as heads, frequencies among the tensors */
      for (int layer = 0; layer < 2; layer++) {
        char name[96];
        for (int l = 0; l < 2; l++) {
          snprintf(name, sizeof name, "model.layers.%d.self_attn.%c_proj.weight", layer, "kv"[l]);
          test_tensor *t = the_tensor(&m, name);
          free(t->values);
          *t = *add_tensor(&m, name, 8, 8);
          m.count--;
        }
        snprintf(name, sizeof name, "model.layers.%d.self_attn.rotary_emb.inv_freq", layer);
        add_tensor(&m, name, 0, 2);
      }
    }
    put_model(&m);
    status st = checkpoint_open(test_folder, &c);
    if (st != OK) fail_msg("%s: %s", configs[i].changes, status_message());
    bool (*holds)(const arch *) = i == 0 ? as_llama1 : configs[i].holds;
    if (holds && !holds(&c.arch)) fail_msg("%s: not read as meant", configs[i].changes);
    checkpoint_close(&c);
    free_model(&m);
  }
}

static const struct {
  const char *changes, *says, *names;
} refusals[] = {
    {"{\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4}}", "quantization_config", "gptq"},
    {"{\"quantization_config\":{}}", "quantization_config", "unnamed"},
    {"{\"model_type\":\"absent\"}", "model_type", "found none"},
    {"{\"model_type\":\"gemma2\"}", "model_type", "gemma2"},
    {"{\"model_type\":\"phi3\"}", "model_type", "phi3"},
    {"{\"model_type\":\"mixtral\"}", "model_type", "mixtral"},
    {"{\"model_type\":\"qwen3_moe\"}", "model_type", "qwen3_moe"},
    {"{\"model_type\":5}", "model_type", "expected a string"},
    {"{\"architectures\":[\"LlamaForSequenceClassification\"]}", "architectures", "LlamaForSequenceClassification"},
    {"{\"architectures\":[\"MistralForCausalLM\"]}", "architectures", "MistralForCausalLM"},
    {"{\"num_local_experts\":8}", "num_local_experts", "mixture of experts"},
    {"{\"num_experts\":8}", "num_experts", "mixture of experts"},
    {"{\"attn_logit_softcapping\":50.0}", "attn_logit_softcapping", "softcapping"},
    {"{\"final_logit_softcapping\":30.0}", "final_logit_softcapping", "softcapping"},
    {"{\"query_pre_attn_scalar\":256}", "query_pre_attn_scalar", "not supported"},
    {"{\"residual_multiplier\":0.2}", "residual_multiplier", "not supported"},
    {"{\"hidden_act\":\"gelu\"}", "hidden_act", "gelu"},
    {"{\"hidden_activation\":\"gelu_pytorch_tanh\"}", "hidden_activation", "gelu_pytorch_tanh"},
    {"{\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4.0}}", "rope_type", "yarn"},
    {"{\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":4.0}}", "rope_type", "dynamic"},
    {"{\"rope_parameters\":{\"rope_type\":\"longrope\"}}", "rope_type", "longrope"},
    {"{\"rope_scaling\":{\"mrope_section\":[1],\"type\":\"mrope\"}}", "rope_type", "mrope"},
    {"{\"rope_scaling\":{\"type\":\"linear\"}}", "rope_scaling: factor", "expected a number"},
    {"{\"rope_scaling\":{\"type\":\"linear\",\"factor\":0}}", "rope_scaling: factor", "above 0"},
    {"{\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8.0}}", "low_freq_factor", "expected a number"},
    {"{\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":4.0,\"high_freq_factor\":4.0}}", "llama3",
     "low_freq_factor < high_freq_factor"},
    {"{\"rope_scaling\":\"linear\"}", "rope_scaling", "expected an object"},
    {"{\"rope_theta\":1.0,\"rope_scaling\":{\"type\":\"default\"},\"rope_parameters\":{\"rope_theta\":2.0}}", "rope_parameters", "differ"},
    {"{\"rope_parameters\":{\"full_attention\":{\"rope_theta\":1e6},\"sliding_attention\":{\"rope_theta\":1e4}}}", "rope_parameters",
     "differ"},
    {"{\"rope_theta\":-1.0}", "rope_theta", "above 0"},
    {"{\"partial_rotary_factor\":0.5}", "partial_rotary_factor", "0.5"},
    {"{\"rope_parameters\":{\"partial_rotary_factor\":0.25}}", "partial_rotary_factor", "0.25"},
    {"{\"hidden_size\":\"absent\"}", "hidden_size", "expected an integer"},
    {"{\"hidden_size\":8.5}", "hidden_size", "expected an integer"},
    {"{\"hidden_size\":0}", "hidden_size", "found 0"},
    {"{\"vocab_size\":1000000000000}", "vocab_size", "1000000000000"},
    {"{\"num_attention_heads\":3}", "hidden_size", "multiple of num_attention_heads"},
    {"{\"num_key_value_heads\":3}", "num_key_value_heads", "divisor"},
    {"{\"head_dim\":5}", "head_dim", "even"},
    {"{\"rms_norm_eps\":\"absent\"}", "rms_norm_eps", "expected a number"},
    {"{\"rms_norm_eps\":0}", "rms_norm_eps", "above 0"},
    {"{\"tie_word_embeddings\":\"yes\"}", "tie_word_embeddings", "true or false"},
    {"{\"sliding_window\":4096}", "sliding_window", "not supported"},
    {"{" MISTRAL ",\"attention_bias\":true}", "attention_bias", "mistral"},
    {"{" QWEN2 ",\"mlp_bias\":true}", "mlp_bias", "qwen2"},
    {"{" QWEN2 ",\"layer_types\":[\"full_attention\"]}", "layer_types", "list of 2"},
    {"{" QWEN2 ",\"layer_types\":[\"full_attention\",\"linear_attention\"]}", "layer_types", "linear_attention"},
    {"{" MISTRAL ",\"sliding_window\":7,\"layer_types\":[\"sliding_attention\",\"full_attention\"]}", "layer_types", "layer 1"},
    {"{\"attention_bias\":true}", "model.layers.0.self_attn.k_proj.bias", "found none"},
    {"{" QWEN2 "}", "expected tensor model.layers.0.self_attn.k_proj.bias", "found none"},
    {"{" QWEN3 ",\"head_dim\":4}", "expected tensor model.layers.0.self_attn.k_norm.weight", "found none"},
    {"{\"vocab_size\":12}", "lm_head.weight: expected shape (12, 8) by config.json, found (11, 8)", "model.safetensors"},
    {"{\"head_dim\":6}", "model.layers.0.self_attn.k_proj.weight: expected shape (6, 8) by config.json, found (4, 8)", ""},
    {"{\"num_key_value_heads\":\"absent\"}", "k_proj.weight: expected shape (8, 8) by config.json, found (4, 8)", ""},
    {"{\"num_hidden_layers\":3}", "expected tensor model.layers.2.", "found none"},
    {"{\"num_hidden_layers\":1}", "model.layers.1.", "found this one too"},
    {"{\"tie_word_embeddings\":true}", "lm_head.weight: expected a copy of model.embed_tokens.weight", ""},
};

static void refuses_by_name(void **state) {
  (void)state;
  test_model m = make_model(HEAD, 4);
  checkpoint c;
  folder_clear();
  put_model(&m);
  for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
    put_config(llama, refusals[i].changes);
    if (checkpoint_open(test_folder, &c) == OK) fail_msg("accepted: %s", refusals[i].changes);
    status_clear();
    assert_refused_saying(checkpoint_open(test_folder, &c), E_DATA, refusals[i].says, refusals[i].names);
    assert_null(c.files);
  }
  put_text("config.json", "{\"model_type\":");
  assert_refused_saying(checkpoint_open(test_folder, &c), E_DATA, "config.json", "not valid JSON");
  put_text("config.json", "[]");
  assert_refused_saying(checkpoint_open(test_folder, &c), E_DATA, "config.json", "expected a JSON object");
  put_text("config.json", "{\"model_type\":\"llama\",\"model_type\":\"llama\"}");
  assert_refused_saying(checkpoint_open(test_folder, &c), E_DATA, "config.json", "duplicate");
  unlink(in_folder("config.json"));
  assert_refused_saying(checkpoint_open(test_folder, &c), E_DATA, "config.json", "No such file");
  put_config(llama, "");
  unlink(in_folder("model.safetensors"));
  assert_refused_saying(checkpoint_open(test_folder, &c), E_DATA, "expected model.safetensors or model.safetensors.index.json",
                        "found neither");
  free_model(&m);
}

static void refuses_tensors_that_differ(void **state) {
  (void)state;
  checkpoint c;
  folder_clear();
  put_config(llama, "");
  test_model m = make_model(HEAD, 4);
  test_tensor *up = the_tensor(&m, "model.layers.1.mlp.up_proj.weight");
  up->dtype = "I8";
  put_model(&m);
  assert_refused_saying(checkpoint_open(test_folder, &c), E_DATA,
                        "model.layers.1.mlp.up_proj.weight: expected dtype F32, F16 or BF16, found I8", "");
  up->dtype = "F32";
  up->shape[0] = 8, up->shape[1] = 12;
  put_model(&m);
  assert_refused_saying(checkpoint_open(test_folder, &c), E_DATA,
                        "model.layers.1.mlp.up_proj.weight: expected shape (12, 8) by config.json, found (8, 12)", "");
  up->rank = 3, up->shape[0] = 1, up->shape[1] = 12, up->shape[2] = 8;
  put_model(&m);
  assert_refused_saying(checkpoint_open(test_folder, &c), E_DATA, "expected shape (12, 8) by config.json, found (1, 12, 8)", "");
  up->rank = 1, up->shape[0] = 96;
  put_model(&m);
  assert_refused_saying(checkpoint_open(test_folder, &c), E_DATA, "expected shape (12, 8) by config.json, found (96)", "");
  up->rank = 2, up->shape[0] = 12, up->shape[1] = 8;
  test_tensor *norm = the_tensor(&m, "model.layers.0.input_layernorm.weight");
  norm->rank = 2, norm->shape[0] = 1, norm->shape[1] = 8;
  put_model(&m);
  assert_refused_saying(checkpoint_open(test_folder, &c), E_DATA,
                        "model.layers.0.input_layernorm.weight: expected shape (8) by config.json, found (1, 8)", "");
  norm->rank = 1, norm->shape[0] = 8;
  /* what the arithmetic would silently leave out */
  add_tensor(&m, "model.layers.0.self_attn.q_proj.bias", 0, 8);
  put_model(&m);
  assert_refused_saying(checkpoint_open(test_folder, &c), E_DATA, "model.layers.0.self_attn.q_proj.bias", "found this one too");
  free_model(&m);
}

static void reads_tied_heads(void **state) {
  (void)state;
  checkpoint c;
  test_model m = make_model(HEAD, 4);
  float *head = the_tensor(&m, "lm_head.weight")->values;
  folder_clear();
  put_config(llama, "{\"tie_word_embeddings\":true}");
  memcpy(head, the_tensor(&m, "model.embed_tokens.weight")->values, 88 * sizeof *head);
  put_model(&m);
  assert_done(checkpoint_open(test_folder, &c));
  assert_string_equal(checkpoint_head(&c).tensor->name, "model.embed_tokens.weight");
  checkpoint_close(&c);
  head[87] += 1;
  put_model(&m);
  assert_refused_saying(checkpoint_open(test_folder, &c), E_DATA, "lm_head.weight: expected a copy", "");
  free_model(&m);
}

static void put_index(const test_model *m, size_t first_of_second, const char *tensor, const char *file) {
  json_t *map = json_object(), *index = json_pack("{s:{s:i},s:o}", "metadata", "total_size", 0, "weight_map", map);
  for (size_t i = 0; i < m->count; i++)
    json_object_set_new(map, m->t[i].name,
                        json_string(i < first_of_second ? "model-00001-of-00002.safetensors" : "model-00002-of-00002.safetensors"));
  if (tensor && file) json_object_set_new(map, tensor, json_string(file));
  if (tensor && !file) json_object_del(map, tensor);
  char *text = json_dumps(index, 0);
  put_text("model.safetensors.index.json", text);
  free(text);
  json_decref(index);
}

static void reads_shards(void **state) {
  (void)state;
  checkpoint c;
  char single[HASH_HEX];
  test_model m = make_model(HEAD, 4);
  const size_t half = m.count / 2;
  folder_clear();
  put_config(llama, "");
  put_model(&m);
  assert_done(checkpoint_open(test_folder, &c));
  memcpy(single, c.fingerprint, sizeof single);
  checkpoint_close(&c);
  unlink(in_folder("model.safetensors"));
  put_safetensors("model-00001-of-00002.safetensors", m.t, half, 3);
  put_safetensors("model-00002-of-00002.safetensors", m.t + half, m.count - half, 0);
  put_index(&m, half, NULL, NULL);
  assert_done(checkpoint_open(test_folder, &c));
  assert_int_equal(c.file_count, 2);
  assert_string_equal(c.fingerprint, single); /* the model, not its files */
  checkpoint_close(&c);

  static const char *const outside[] = {"../x.safetensors", "/etc/passwd", "a/../../x.safetensors", "..", "", "a//b", "a/.."};
  for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) {
    put_index(&m, half, "model.norm.weight", outside[i]);
    assert_refused_saying(checkpoint_open(test_folder, &c), E_DATA,
                          "weight_map: model.norm.weight: expected a file inside the model's folder", outside[i]);
  }
  put_index(&m, half, "model.norm.weight", "model-00003-of-00003.safetensors");
  assert_refused_saying(checkpoint_open(test_folder, &c), E_DATA, "model-00003-of-00003.safetensors: expected the shard", "no such file");
  put_index(&m, half, m.t[half].name, "model-00001-of-00002.safetensors");
  assert_refused_saying(checkpoint_open(test_folder, &c), E_DATA, m.t[half].name, "expected the tensor in this shard");
  put_index(&m, half, "lm_head.weight", NULL);
  assert_refused_saying(checkpoint_open(test_folder, &c), E_DATA, "index.json: expected tensor lm_head.weight", "found none");
  put_text("model.safetensors.index.json", "{\"weight_map\":[]}");
  assert_refused_saying(checkpoint_open(test_folder, &c), E_DATA, "weight_map", "expected an object");
  put_text("model.safetensors.index.json", "{\"weight_map\":{}}");
  assert_refused_saying(checkpoint_open(test_folder, &c), E_DATA, "expected tensor", "found none");
  put_text("model.safetensors.index.json", "{\"weight_map\":{\"a\":1}}");
  assert_refused_saying(checkpoint_open(test_folder, &c), E_DATA, "weight_map: a: expected a file name", "");
  free_model(&m);
}

/* What must change the fingerprint, and what must not. */
static void fingerprints_the_model(void **state) {
  (void)state;
  char first[HASH_HEX];
  checkpoint c;
  test_model m = make_model(HEAD, 4);
  folder_clear();
  put_model(&m);
  static const struct {
    const char *changes;
    bool same;
  } cases[] = {
      {"", true},
      {"{\"use_cache\":false,\"torch_dtype\":\"float32\",\"eos_token_id\":3}", true},
      {"{\"rope_parameters\":{\"rope_theta\":10000.0,\"rope_type\":\"default\"}}", true},
      {"{\"rope_theta\":500000.0}", false},
      {"{\"rms_norm_eps\":1e-6}", false},
      {"{\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.0}}", false},
      {"{" MISTRAL ",\"sliding_window\":7}", false},
      {"{" MISTRAL ",\"sliding_window\":null}", false},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    put_config(llama, cases[i].changes);
    assert_done(checkpoint_open(test_folder, &c));
    if (i == 0) memcpy(first, c.fingerprint, sizeof first);
    assert_int_equal(strlen(c.fingerprint), 64);
    if ((strcmp(first, c.fingerprint) == 0) != cases[i].same)
      fail_msg("%s: fingerprint %s", cases[i].changes, cases[i].same ? "differs" : "is the same");
    checkpoint_close(&c);
  }
  put_config(llama, "");
  static const char *const changed[] = {"model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight",
                                        "model.layers.0.input_layernorm.weight"};
  for (size_t i = 0; i < 3; i++) {
    float *value = the_tensor(&m, changed[i])->values + 5, kept = *value;
    *value += 0.5f;
    put_model(&m);
    *value = kept;
    assert_done(checkpoint_open(test_folder, &c));
    assert_string_not_equal(first, c.fingerprint);
    checkpoint_close(&c);
  }
  for (size_t i = 0; i < m.count; i++) m.t[i].dtype = "BF16";
  put_model(&m);
  assert_done(checkpoint_open(test_folder, &c));
  assert_string_not_equal(first, c.fingerprint);
  checkpoint_close(&c);
  free_model(&m);
}

/* Large tensors are sampled: 4 KiB at the begin, in the middle and at the end. */
static void fingerprints_by_samples(void **state) {
  (void)state;
  char first[HASH_HEX];
  checkpoint c;
  test_model m = make_model(0, 4);
  m.count--;
  free(m.t[m.count].values);
  test_tensor *e = add_tensor(&m, "model.embed_tokens.weight", 900, 8);
  static const struct {
    size_t at;
    bool sampled;
  } places[] = {{0, true},    {1023, true},  {1024, false}, {3087, false}, {3088, true},
                {4111, true}, {4112, false}, {6175, false}, {6176, true},  {7199, true}};
  folder_clear();
  put_config(llama, "{\"vocab_size\":900,\"tie_word_embeddings\":true}");
  put_model(&m);
  assert_done(checkpoint_open(test_folder, &c));
  memcpy(first, c.fingerprint, sizeof first);
  checkpoint_close(&c);
  for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
    float kept = e->values[places[i].at];
    e->values[places[i].at] += 0.5f;
    put_model(&m);
    e->values[places[i].at] = kept;
    assert_done(checkpoint_open(test_folder, &c));
    if ((strcmp(first, c.fingerprint) != 0) != places[i].sampled) fail_msg("value %zu: sampled, or not, against expectation", places[i].at);
    checkpoint_close(&c);
  }
  free_model(&m);
}

/* One embedding larger than a conversion block, in each type, at every alignment. */
static void converts_rows(void **state) {
  (void)state;
  static const char *const types[] = {"F32", "BF16", "F16"};
  enum { V = 300, D8 = 8 };
  float rows[V * D8];
  test_model m = make_model(HEAD, 4);
  m.count -= 2;
  free(m.t[m.count].values), free(m.t[m.count + 1].values);
  test_tensor *e = add_tensor(&m, "model.embed_tokens.weight", 900, 8);
  add_tensor(&m, "lm_head.weight", 900, 8);
  folder_clear();
  put_config(llama, "{\"vocab_size\":900}");
  for (int type = 0; type < 3; type++)
    for (size_t pad = 0; pad < 5; pad++) {
      checkpoint c;
      for (size_t i = 0; i < m.count; i++) m.t[i].dtype = types[type];
      put_safetensors("model.safetensors", m.t, m.count, pad);
      assert_done(checkpoint_open(test_folder, &c));
      tensor_ref r = checkpoint_embedding(&c);
      for (int64_t begin = 0; begin < 900; begin += V) {
        assert_done(tensor_rows(&r, begin, begin + V, rows));
        for (int64_t i = 0; i < V * D8; i++) {
          float value = e->values[begin * D8 + i];
          assert_true(rows[i] == (type == 2 ? half_to_float(float_to_half(value)) : value)); /* F16 has no 2^-15 * 1.0000001b */
        }
      }
      float *all = malloc(900 * 8 * sizeof *all);
      assert_done(tensor_rows(&r, 0, 900, all));
      assert_memory_equal(all + 600 * 8, rows, sizeof rows);
      assert_done(tensor_rows(&r, 7, 7, all));
      free(all);
      checkpoint_close(&c);
    }
  free_model(&m);
}

static void names_what_is_not_finite(void **state) {
  (void)state;
  static const char *const types[] = {"F32", "BF16", "F16"};
  static const float values[] = {NAN, INFINITY, -INFINITY};
  float rows[8];
  test_model m = make_model(HEAD, 4);
  folder_clear();
  put_config(llama, "");
  for (int type = 0; type < 3; type++)
    for (int i = 0; i < 3; i++) {
      checkpoint c;
      test_tensor *t = the_tensor(&m, "model.layers.1.self_attn.v_proj.weight");
      for (size_t k = 0; k < m.count; k++) m.t[k].dtype = types[type];
      float kept = t->values[3 * 8 + 5];
      t->values[3 * 8 + 5] = values[i];
      put_model(&m);
      t->values[3 * 8 + 5] = kept;
      assert_done(checkpoint_open(test_folder, &c));
      tensor_ref r = checkpoint_linear(&c, 1, LIN_V);
      assert_done(tensor_rows(&r, 2, 3, rows));
      assert_refused_saying(tensor_rows(&r, 3, 4, rows), E_DATA,
                            "model.layers.1.self_attn.v_proj.weight: row 3, column 5: expected a finite number", "");
      checkpoint_close(&c);
    }
  free_model(&m);
}

/* The n-th operation fails, for every n: an error each time, and nothing left behind. */
static void survives_injected_faults(void **state) {
  (void)state;
  checkpoint c;
  test_model m = make_model(HEAD, 4);
  folder_clear();
  put_config(llama, "");
  put_safetensors("model-00001-of-00002.safetensors", m.t, 9, 0);
  put_safetensors("model-00002-of-00002.safetensors", m.t + 9, m.count - 9, 0);
  put_index(&m, 9, NULL, NULL);
  uint64_t before = mem_now();
  for (int n = 1;; n++) {
    char text[32];
    snprintf(text, sizeof text, "0:%d", n);
    setenv("CLOQWORK_FAULT", text, 1);
    fault_setup(0);
    status st = checkpoint_open(test_folder, &c);
    bool reached = fault_count() >= (uint64_t)n;
    unsetenv("CLOQWORK_FAULT");
    fault_setup(0);
    if (st == OK) {
      assert_false(reached);
      assert_true(n > 20);
      checkpoint_close(&c);
      break;
    }
    assert_true(strlen(status_message()) > 0);
    status_clear();
    assert_int_equal(mem_now(), before);
  }
  assert_int_equal(mem_now(), before);
  free_model(&m);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(reads_a_model),
      cmocka_unit_test(reads_every_spelling),
      cmocka_unit_test(refuses_by_name),
      cmocka_unit_test(reads_shards),
      cmocka_unit_test(refuses_tensors_that_differ),
      cmocka_unit_test(reads_tied_heads),
      cmocka_unit_test(converts_rows),
      cmocka_unit_test(fingerprints_the_model),
      cmocka_unit_test(fingerprints_by_samples),
      cmocka_unit_test(names_what_is_not_finite),
      cmocka_unit_test(survives_injected_faults),
  };
  return cmocka_run_group_tests_name("checkpoint", tests, folder_setup, folder_teardown);
}
