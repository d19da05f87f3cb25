/* bitsandbytes NF4, with and without double quantization. Spec formats.md, section 8. */
#include <stdio.h>
#include <string.h>

#include "base/hot.h"
#include "export/format.h"
#include "quant/nf.h"

enum { WEIGHT, ABSMAX, QUANT_MAP, STATE, NESTED_ABSMAX, NESTED_MAP, TENSORS };
enum { BITS = 4, LEVELS = 16, MAP = 256 };

static status check(const export_request *q) {
  const grid_rule *first = &q->matrices[0].shape.rule;
  for (int i = 0; i < q->count; i++) {
    const export_matrix *m = &q->matrices[i];
    const grid_rule *r = &m->shape.rule;
    if (r->kind == GRID_BINARY)
      return fail(E_USAGE, "export: bnb: %s: expected an NF4 grid, found a binary one: dense can hold it", m->module);
    if (r->kind != GRID_NF)
      return fail(E_USAGE, "export: bnb: %s: expected an NF4 grid (method nf4-cloq), found a uniform one of %d bits: %s can hold it",
                  m->module, r->bits, format_packs(r) ? "gptq" : "dense");
    if (r->bits != BITS)
      return fail(E_USAGE, "export: bnb: %s: expected NF4, found a normal float of %d bits: dense can hold it", m->module, r->bits);
    if (r->nested != first->nested)
      return fail(E_USAGE, "export: bnb: %s: expected double quantization in all matrices or in none, found both: dense can hold it",
                  m->module);
  }
  return OK;
}

static int tensors(const export_request *q, const export_matrix *m, format_tensor list[FORMAT_TENSORS]) {
  const solution *s = &m->shape;
  int64_t blocks = s->out * s->groups;
  (void)q;
  list[WEIGHT] = (format_tensor){".weight", "U8", 2, {s->out * s->in / 2, 1}};
  list[ABSMAX] = (format_tensor){".weight.absmax", s->rule.nested ? "U8" : "F32", 1, {blocks}};
  list[QUANT_MAP] = (format_tensor){".weight.quant_map", "F32", 1, {LEVELS}};
  list[STATE] = (format_tensor){".weight.quant_state.bitsandbytes__nf4", "U8", 1, {BNB_STATE_BYTES}};
  list[NESTED_ABSMAX] = (format_tensor){".weight.nested_absmax", "F32", 1, {nf_nests(blocks)}};
  list[NESTED_MAP] = (format_tensor){".weight.nested_quant_map", "F32", 1, {MAP}};
  return s->rule.nested ? TENSORS : TENSORS - 2;
}

/* Our stream has the first code in the low bits, the library in the high ones. */
static HOT void swap_nibbles(int64_t bytes, const uint8_t *restrict in, uint8_t *restrict out) {
  for (int64_t i = 0; i < bytes; i++) out[i] = (uint8_t)(in[i] << 4 | in[i] >> 4);
}

/* JSON of a fixed length: spaces behind it mean nothing, and offsets do not wait for numbers. */
static status write_state(const solution *s, char *text) {
  char nested[128] = "";
  if (s->rule.nested)
    snprintf(nested, sizeof nested, ", \"nested_blocksize\": %d, \"nested_dtype\": \"float32\", \"nested_offset\": %.9g", NF_NEST,
             (double)*s->nested_offset);
  char line[BNB_STATE_BYTES + 1];
  int n = snprintf(line, sizeof line, "{\"quant_type\": \"nf4\", \"blocksize\": %lld, \"dtype\": \"%s\", \"shape\": [%lld, %lld]%s}",
                   (long long)(s->in / s->groups), real_name(s->loaded), (long long)s->out, (long long)s->in, nested);
  if (n < 0 || n > BNB_STATE_BYTES) return fail(E_INTERNAL, "export: bnb: expected a quant_state of at most %d bytes", BNB_STATE_BYTES);
  memset(text, ' ', BNB_STATE_BYTES);
  memcpy(text, line, (size_t)n);
  return OK;
}

static status fill(const export_request *q, const export_matrix *m, const solution *s, void *const data[FORMAT_TENSORS]) {
  int64_t blocks = s->out * s->groups;
  (void)q, (void)m;
  swap_nibbles(s->out * s->in / 2, (const uint8_t *)s->codes, data[WEIGHT]);
  memcpy(data[QUANT_MAP], nf_levels(BITS), LEVELS * sizeof(float));
  if (s->rule.nested) {
    memcpy(data[ABSMAX], s->absmax_codes, (size_t)blocks);
    memcpy(data[NESTED_ABSMAX], s->nested_absmax, (size_t)nf_nests(blocks) * sizeof(float));
    nf_map(data[NESTED_MAP]);
  } else {
    memcpy(data[ABSMAX], s->absmax, (size_t)blocks * sizeof(float));
  }
  return write_state(s, data[STATE]);
}

static status read_state(const char *module, const char *text, solution *s) {
  status st = OK;
  json_t *o = NULL;
  int64_t block, out, in;
  double offset;
  char where[128];
  snprintf(where, sizeof where, "%s.weight.quant_state", module);
  TRY(json_parse(where, text, BNB_STATE_BYTES, &o));
  const json_t *shape = json_object_get(o, "shape");
  TRY(json_need_int(o, where, "blocksize", 1, INT32_MAX, &block));
  out = json_integer_value(json_array_get(shape, 0));
  in = json_integer_value(json_array_get(shape, 1));
  if (block != s->in / s->groups || out != s->out || in != s->in) {
    st = fail(E_DATA, "%s: expected %lld x %lld in blocks of %lld, found %lld x %lld of %lld", where, (long long)s->out, (long long)s->in,
              (long long)(s->in / s->groups), (long long)out, (long long)in, (long long)block);
    goto done;
  }
  TRY(json_get_real(o, where, "nested_offset", 0, &offset));
  if (s->rule.nested) *s->nested_offset = (float)offset;
done:
  json_drop(&o);
  return st;
}

static status decode(const char *module, const void *const data[FORMAT_TENSORS], solution *s) {
  status st = OK;
  float map[MAP];
  int64_t blocks = s->out * s->groups;
  if (memcmp(data[QUANT_MAP], nf_levels(BITS), LEVELS * sizeof(float)) != 0)
    return fail(E_DATA, "%s.weight.quant_map: expected the 16 levels of NF4, found others", module);
  swap_nibbles(s->out * s->in / 2, data[WEIGHT], (uint8_t *)s->codes);
  TRY(read_state(module, data[STATE], s));
  if (s->rule.nested) {
    nf_map(map);
    if (memcmp(data[NESTED_MAP], map, sizeof map) != 0)
      return fail(E_DATA, "%s.weight.nested_quant_map: expected the signed dynamic map, found another", module);
    memcpy(s->absmax_codes, data[ABSMAX], (size_t)blocks);
    memcpy(s->nested_absmax, data[NESTED_ABSMAX], (size_t)nf_nests(blocks) * sizeof(float));
    nf_unnest(blocks, s->absmax_codes, s->nested_absmax, *s->nested_offset, s->absmax);
  } else {
    memcpy(s->absmax, data[ABSMAX], (size_t)blocks * sizeof(float));
  }
done:
  return st;
}

static status config(const export_request *q, json_t **config) {
  tensor_ref first = checkpoint_linear(q->model, q->matrices[0].layer, q->matrices[0].linear);
  *config =
      json_pack("{s:s, s:b, s:b, s:b, s:b, s:s, s:b, s:s, s:s, s:o, s:f, s:b, s:b}", "quant_method", "bitsandbytes", "load_in_4bit", 1,
                "load_in_8bit", 0, "_load_in_4bit", 1, "_load_in_8bit", 0, "bnb_4bit_quant_type", "nf4", "bnb_4bit_use_double_quant",
                q->matrices[0].shape.rule.nested, "bnb_4bit_compute_dtype", real_name(solution_loaded(first.tensor->type)),
                "bnb_4bit_quant_storage", "uint8", "llm_int8_skip_modules", format_kept_linears(q), "llm_int8_threshold", 6.0,
                "llm_int8_has_fp16_weight", 0, "llm_int8_enable_fp32_cpu_offload", 0);
  return *config ? OK : fail(E_MEMORY, "quantization_config: no memory");
}

static const char *loading(const export_request *q) {
  (void)q;
  return "base = AutoModelForCausalLM.from_pretrained(\"BASE\")";
}

const export_format format_bnb = {
    .name = "bnb",
    .keeps_codes = true,
    .packages = "torch transformers accelerate peft bitsandbytes",
    .loading = loading,
    .notes = "Loads in transformers with bitsandbytes, on GPUs and CPUs; weights are computed with in the checkpoint's own type.",
    .check = check,
    .tensors = tensors,
    .fill = fill,
    .decode = decode,
    .config = config,
};
