#include "model/config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "base/memory.h"

static const size_t MAX_CONFIG = 16 << 20;

static const struct {
  arch_family family;
  const char *model_type, *architecture;
} families[] = {
    {ARCH_LLAMA, "llama", "LlamaForCausalLM"},
    {ARCH_MISTRAL, "mistral", "MistralForCausalLM"},
    {ARCH_QWEN2, "qwen2", "Qwen2ForCausalLM"},
    {ARCH_QWEN3, "qwen3", "Qwen3ForCausalLM"},
};

const char *arch_family_name(arch_family f) { return families[f].model_type; }

/* Keys that change the arithmetic when they are there and neither null, false nor 0. */
static const char *const refused[][2] = {
    {"num_local_experts", "mixture of experts"},
    {"num_experts", "mixture of experts"},
    {"n_routed_experts", "mixture of experts"},
    {"moe_intermediate_size", "mixture of experts"},
    {"attn_logit_softcapping", "softcapping of attention scores"},
    {"final_logit_softcapping", "softcapping of logits"},
    {"query_pre_attn_scalar", "its scale of attention scores"},
    {"attention_multiplier", "its scale of attention scores"},
    {"residual_multiplier", "scaled residuals"},
    {"embedding_multiplier", "scaled embeddings"},
    {"logits_scaling", "scaled logits"},
    {"clip_qkv", "clipped projections"},
    {"no_rope_layers", "layers without rotary embedding"},
    {"no_rope_layer_interval", "layers without rotary embedding"},
    {"attention_chunk_size", "chunked attention"},
    {"is_encoder_decoder", "an encoder"},
    {"add_cross_attention", "cross attention"},
};

static bool means_something(const json_t *v) {
  return v && !json_is_null(v) && !json_is_false(v) && !(json_is_number(v) && json_number_value(v) == 0);
}

static status need_positive(const json_t *o, const char *where, const char *key, double *value) {
  status st = json_get_real(o, where, key, NAN, value);
  if (st == OK && isnan(*value)) return fail(E_DATA, "%s: %s: expected a number, found none", where, key);
  if (st == OK && !(*value > 0 && isfinite(*value))) return fail(E_DATA, "%s: %s: expected a number above 0, found %g", where, key, *value);
  return st;
}

static status read_family(const json_t *o, const char *path, arch *a) {
  status st = OK;
  const char *type = NULL, *found;
  const json_t *quantized = json_object_get(o, "quantization_config");
  if (means_something(quantized)) {
    const char *method = json_string_value(json_object_get(quantized, "quant_method"));
    return fail(E_DATA, "%s: quantization_config: expected an unquantized model, found one quantized by %s", path,
                method ? method : "an unnamed method");
  }
  TRY(json_get_string(o, path, "model_type", NULL, &type));
  if (!type) return fail(E_DATA, "%s: model_type: expected llama, mistral, qwen2 or qwen3, found none", path);
  size_t i = 0, count = sizeof families / sizeof *families;
  while (i < count && strcmp(type, families[i].model_type) != 0) i++;
  if (i == count)
    return fail(E_DATA, "%s: model_type: expected llama, mistral, qwen2 or qwen3, found %s, which is not supported", path, type);
  a->family = families[i].family;
  const json_t *list = json_object_get(o, "architectures");
  if (means_something(list)) {
    found = json_string_value(json_array_get(list, 0));
    if (!found || strcmp(found, families[i].architecture) != 0)
      return fail(E_DATA, "%s: architectures: expected %s for model_type %s, found %s, which is not supported", path,
                  families[i].architecture, type, found ? found : "no name");
  }
  for (i = 0; i < sizeof refused / sizeof *refused; i++)
    if (means_something(json_object_get(o, refused[i][0])))
      return fail(E_DATA, "%s: %s: expected a plain %s model, found %s, which is not supported", path, refused[i][0], type, refused[i][1]);
  const char *activation = NULL, *other = NULL;
  TRY(json_get_string(o, path, "hidden_act", "silu", &activation));
  TRY(json_get_string(o, path, "hidden_activation", activation, &other));
  for (int k = 0; k < 2; k++) {
    found = k ? other : activation;
    if (strcmp(found, "silu") != 0 && strcmp(found, "swish") != 0)
      return fail(E_DATA, "%s: hidden_act%s: expected silu, found %s, which is not supported", path, k ? "ivation" : "", found);
  }
done:
  return st;
}

static status read_sizes(const json_t *o, const char *path, arch *a) {
  status st = OK;
  int64_t h = 0, hk = 0, D = 0;
  double eps;
  TRY(json_need_int(o, path, "hidden_size", 1, 1 << 22, &a->hidden));
  TRY(json_need_int(o, path, "num_hidden_layers", 1, 10000, &a->layers));
  TRY(json_need_int(o, path, "intermediate_size", 1, 1 << 24, &a->intermediate));
  TRY(json_need_int(o, path, "vocab_size", 1, 1 << 28, &a->vocab));
  TRY(json_need_int(o, path, "num_attention_heads", 1, 1 << 16, &h));
  TRY(json_get_int(o, path, "num_key_value_heads", 1, 1 << 16, h, &hk));
  /* Without the key transformers takes 128 for Qwen3 and hidden_size / num_attention_heads elsewhere. */
  TRY(json_get_int(o, path, "head_dim", 1, 1 << 14, a->family == ARCH_QWEN3 ? 128 : 0, &D));
  if (!D && a->hidden % h != 0)
    return fail(E_DATA, "%s: hidden_size: expected a multiple of num_attention_heads %lld (there is no head_dim), found %lld", path,
                (long long)h, (long long)a->hidden);
  if (!D) D = a->hidden / h;
  if (D % 2 != 0) return fail(E_DATA, "%s: head_dim: expected an even number, found %lld", path, (long long)D);
  if (h % hk != 0)
    return fail(E_DATA, "%s: num_key_value_heads: expected a divisor of num_attention_heads %lld, found %lld", path, (long long)h,
                (long long)hk);
  if (h * D > 1 << 24)
    return fail(E_DATA, "%s: num_attention_heads: expected heads of together at most 2^24 columns, found %lld", path, (long long)(h * D));
  a->heads = (int)h;
  a->kv_heads = (int)hk;
  a->head_dim = (int)D;
  TRY(need_positive(o, path, "rms_norm_eps", &eps));
  a->rms_eps = (float)eps;
  TRY(json_get_int(o, path, "max_position_embeddings", 1, INT64_C(1) << 40, 0, &a->max_positions));
done:
  return st;
}

static status read_biases(const json_t *o, const char *path, arch *a) {
  status st = OK;
  bool attention, mlp;
  TRY(json_get_bool(o, path, "tie_word_embeddings", false, &a->tied_head));
  TRY(json_get_bool(o, path, "attention_bias", false, &attention));
  TRY(json_get_bool(o, path, "mlp_bias", false, &mlp));
  bool may_attention = a->family == ARCH_LLAMA || a->family == ARCH_QWEN3;
  if (attention && a->family == ARCH_MISTRAL) return fail(E_DATA, "%s: attention_bias: expected false for mistral, found true", path);
  if (mlp && a->family != ARCH_LLAMA)
    return fail(E_DATA, "%s: mlp_bias: expected false for %s, found true", path, arch_family_name(a->family));
  a->qkv_bias = a->family == ARCH_QWEN2 || (may_attention && attention); /* Qwen2: always, and no key says so */
  a->o_bias = may_attention && attention;
  a->mlp_bias = mlp;
  a->qk_norm = a->family == ARCH_QWEN3;
done:
  return st;
}

/* One dictionary of rotary settings; outer is config.json, whose keys stand in for missing ones. */
static status read_rope(const json_t *o, const json_t *outer, const char *path, const char *key, arch *a) {
  status st = OK;
  const char *type = NULL, *old = NULL;
  double theta, partial;
  char *where = mem_format("%s: %s", path, key);
  if (!where) return fail(E_MEMORY, "%s: no memory for a name", path);
  TRY(json_get_real(outer, path, "rope_theta", 10000, &theta));
  TRY(json_get_real(o, where, "rope_theta", theta, &a->rope_theta));
  TRY(json_get_real(outer, path, "partial_rotary_factor", 1, &partial));
  TRY(json_get_real(o, where, "partial_rotary_factor", partial, &partial));
  TRY(json_get_string(o, where, "type", "default", &old));
  TRY(json_get_string(o, where, "rope_type", old, &type));
  if (!(a->rope_theta > 0 && isfinite(a->rope_theta))) {
    st = fail(E_DATA, "%s: rope_theta: expected a number above 0, found %g", where, a->rope_theta);
    goto done;
  }
  if (partial != 1) {
    st = fail(E_DATA, "%s: partial_rotary_factor: expected 1, found %g, which is not supported", where, partial);
    goto done;
  }
  a->rope_factor = 1;
  a->rope_low = a->rope_high = a->rope_original = 0;
  if (strcmp(type, "default") == 0) {
    a->rope = ROPE_DEFAULT;
  } else if (strcmp(type, "linear") == 0) {
    a->rope = ROPE_LINEAR;
    TRY(need_positive(o, where, "factor", &a->rope_factor));
  } else if (strcmp(type, "llama3") == 0) {
    a->rope = ROPE_LLAMA3;
    double original = a->max_positions ? (double)a->max_positions : NAN; /* transformers 5 falls back to it */
    TRY(need_positive(o, where, "factor", &a->rope_factor));
    TRY(need_positive(o, where, "low_freq_factor", &a->rope_low));
    TRY(need_positive(o, where, "high_freq_factor", &a->rope_high));
    TRY(json_get_real(outer, path, "original_max_position_embeddings", original, &original));
    TRY(json_get_real(o, where, "original_max_position_embeddings", original, &a->rope_original));
    if (!(a->rope_high > a->rope_low) || !(a->rope_original > 0))
      st = fail(E_DATA,
                "%s: llama3: expected low_freq_factor < high_freq_factor and original_max_position_embeddings above 0, found %g, %g and %g",
                where, a->rope_low, a->rope_high, a->rope_original);
  } else {
    st = fail(E_DATA, "%s: rope_type: expected default, linear or llama3, found %s, which is not supported", where, type);
  }
done:
  FREE(where);
  return st;
}

static bool same_rope(const arch *a, const arch *b) {
  return a->rope == b->rope && a->rope_theta == b->rope_theta && a->rope_factor == b->rope_factor && a->rope_low == b->rope_low &&
         a->rope_high == b->rope_high && a->rope_original == b->rope_original;
}

/* The places where rotary settings stand: rope_scaling (v4), rope_parameters (v5), one dictionary per layer type (v5). All that are
 * there must say the same, since one table serves all layers. */
static status read_ropes(const json_t *o, const char *path, arch *a) {
  static const char *const outer[] = {"rope_scaling", "rope_parameters"}, *const inner[] = {"full_attention", "sliding_attention"};
  status st = OK;
  int found = 0;
  for (int i = 0; i < 2; i++) {
    const json_t *v = json_object_get(o, outer[i]);
    if (!v || json_is_null(v)) continue;
    if (!json_is_object(v)) return fail(E_DATA, "%s: %s: expected an object, found something else", path, outer[i]);
    const json_t *per[2] = {json_object_get(v, inner[0]), json_object_get(v, inner[1])};
    bool nested = json_is_object(per[0]) || json_is_object(per[1]);
    for (int k = 0; k < (nested ? 2 : 1); k++) {
      arch other = *a;
      if (nested && !json_is_object(per[k])) continue;
      TRY(read_rope(nested ? per[k] : v, o, path, outer[i], &other));
      if (found && !same_rope(a, &other))
        return fail(E_DATA, "%s: %s: expected one rotary embedding for all layers, found settings that differ, which is not supported",
                    path, outer[i]);
      *a = other;
      found++;
    }
  }
  if (!found) TRY(read_rope(NULL, o, path, "rope_parameters", a));
done:
  return st;
}

/* Which layers slide. Mistral: all, by a default of 4096 that only null switches off. Qwen: the layers of layer_types, or those from
 * max_window_layers on, and only when use_sliding_window. */
static status read_windows(const json_t *o, const char *path, arch *a) {
  status st = OK;
  bool qwen = a->family == ARCH_QWEN2 || a->family == ARCH_QWEN3, use = a->family == ARCH_MISTRAL;
  int64_t from = 0;
  int64_t missing = json_object_get(o, "sliding_window") || a->family == ARCH_LLAMA ? 0 : 4096;
  TRY(NEW(a->layer_slides, a->layers, "sliding layers"));
  TRY(json_get_int(o, path, "sliding_window", 1, INT64_C(1) << 40, missing, &a->sliding_window));
  if (qwen) TRY(json_get_bool(o, path, "use_sliding_window", false, &use));
  if (qwen) TRY(json_get_int(o, path, "max_window_layers", 0, INT64_C(1) << 40, 28, &from));
  if (a->family == ARCH_LLAMA && a->sliding_window)
    return fail(E_DATA, "%s: sliding_window: expected none for llama, found %lld, which is not supported", path,
                (long long)a->sliding_window);
  if (!use) a->sliding_window = 0;
  for (int64_t i = 0; i < a->layers; i++) a->layer_slides[i] = a->sliding_window > 0 && i >= from;
  const json_t *types = json_object_get(o, "layer_types");
  if (!types || json_is_null(types)) return OK;
  if (!json_is_array(types) || json_array_size(types) != (size_t)a->layers)
    return fail(E_DATA, "%s: layer_types: expected a list of %lld names, found something else", path, (long long)a->layers);
  for (int64_t i = 0; i < a->layers; i++) {
    const char *name = json_string_value(json_array_get(types, (size_t)i));
    bool slides = name && strcmp(name, "sliding_attention") == 0;
    if (!name || (!slides && strcmp(name, "full_attention") != 0))
      return fail(E_DATA, "%s: layer_types: layer %lld: expected full_attention or sliding_attention, found %s, which is not supported",
                  path, (long long)i, name ? name : "no name");
    slides = slides && use && a->sliding_window > 0;
    if (!qwen && slides != (a->layer_slides[i] != 0))
      return fail(E_DATA, "%s: layer_types: layer %lld: expected %s, as sliding_window says for %s, found %s", path, (long long)i,
                  slides ? "full_attention" : "sliding_attention", arch_family_name(a->family), name);
    a->layer_slides[i] = slides;
  }
done:
  return st;
}

status arch_read(const char *path, arch *a) {
  status st = OK;
  json_t *o = NULL;
  *a = (arch){0};
  TRY(json_read_file(path, MAX_CONFIG, &o));
  if (!json_is_object(o)) {
    st = fail(E_DATA, "%s: expected a JSON object, found something else", path);
    goto done;
  }
  TRY(read_family(o, path, a));
  TRY(read_sizes(o, path, a));
  TRY(read_biases(o, path, a));
  TRY(read_ropes(o, path, a));
  TRY(read_windows(o, path, a));
done:
  json_drop(&o);
  return st;
}

void arch_free(arch *a) {
  FREE(a->layer_slides);
  *a = (arch){0};
}
