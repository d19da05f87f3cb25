/* compressed-tensors, "pack-quantized". Spec formats.md, sections 6 and 9.1. Its stored bits are our unsigned codes and zeros as they are. */
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "export/format.h"
#include "quant/codes.h"

enum { PACKED, SCALE, SHAPE, ZERO_POINT, TENSORS };

static status check(const export_request *q) {
  status st = OK;
  const export_matrix *other;
  TRY(format_check_uniform(q));
  if (format_same(q, &other)) goto done;
  for (int i = 0; i < q->count; i++)
    if (!q->matrices[i].shape.rule.symmetric)
      return fail(E_USAGE,
                  "export: compressed-tensors: %s: expected symmetric codes (grid_type: sym) where matrices differ in bits or group "
                  "(transformers loads no others), found asymmetric ones: dense can hold it",
                  q->matrices[i].module);
done:
  return st;
}

static int tensors(const export_request *q, const export_matrix *m, format_tensor list[FORMAT_TENSORS]) {
  const solution *s = &m->shape;
  (void)q;
  list[PACKED] = (format_tensor){".weight_packed", "I32", 2, {s->out, s->words}};
  list[SCALE] = (format_tensor){".weight_scale", "F16", 2, {s->out, s->groups}};
  list[SHAPE] = (format_tensor){".weight_shape", "I64", 1, {2}};
  list[ZERO_POINT] = (format_tensor){".weight_zero_point", "I32", 2, {codes_words(s->out, s->rule.bits), s->groups}};
  return s->rule.symmetric ? TENSORS - 1 : TENSORS;
}

static status fill(const export_request *q, const export_matrix *m, const solution *s, void *const data[FORMAT_TENSORS]) {
  status st = OK;
  uint32_t *lines = NULL;
  const int64_t words = codes_words(s->out, s->rule.bits), shape[2] = {s->out, s->in};
  (void)q, (void)m;
  memcpy(data[PACKED], s->codes, (size_t)(s->out * s->words) * sizeof *s->codes);
  memcpy(data[SCALE], s->scales, (size_t)(s->out * s->groups) * sizeof *s->scales);
  memcpy(data[SHAPE], shape, sizeof shape);
  if (s->rule.symmetric) return OK;
  TRY(NEW(lines, s->groups * words, "zero points"));
  zeros_pack(s, 0, lines);
  transpose_words(s->groups, words, lines, data[ZERO_POINT]);
done:
  FREE(lines);
  return st;
}

static status decode(const char *module, const void *const data[FORMAT_TENSORS], solution *s) {
  status st = OK;
  uint32_t *lines = NULL;
  const int64_t words = codes_words(s->out, s->rule.bits), *shape = data[SHAPE];
  if (shape[0] != s->out || shape[1] != s->in)
    return fail(E_DATA, "%s.weight_shape: expected %lld x %lld, found %lld x %lld", module, (long long)s->out, (long long)s->in,
                (long long)shape[0], (long long)shape[1]);
  memcpy(s->codes, data[PACKED], (size_t)(s->out * s->words) * sizeof *s->codes);
  memcpy(s->scales, data[SCALE], (size_t)(s->out * s->groups) * sizeof *s->scales);
  if (s->rule.symmetric) {
    memset(s->zeros, 1 << (s->rule.bits - 1), (size_t)(s->out * s->groups));
    return OK;
  }
  TRY(NEW(lines, s->groups * words, "zero points"));
  transpose_words(words, s->groups, data[ZERO_POINT], lines);
  zeros_unpack(s, 0, lines, s->zeros);
done:
  FREE(lines);
  return st;
}

static json_t *scheme(const grid_rule *r) {
  return json_pack("{s:i, s:s, s:b, s:s, s:o, s:b, s:n, s:n, s:s, s:{}}", "num_bits", r->bits, "type", "int", "symmetric", r->symmetric,
                   "strategy", r->group ? "group" : "channel", "group_size", r->group ? json_integer(r->group) : json_null(), "dynamic", 0,
                   "actorder", "block_structure", "observer", "minmax", "observer_kwargs");
}

static bool same_scheme(const grid_rule *a, const grid_rule *b) {
  return a->bits == b->bits && a->group == b->group && a->symmetric == b->symmetric;
}

/* The matrices of one scheme by name; "Linear" where one scheme is everybody's. */
static json_t *targets(const export_request *q, const grid_rule *r) {
  const export_matrix *other;
  if (format_same(q, &other)) return json_pack("[s]", "Linear");
  json_t *list = json_array();
  for (int i = 0; i < q->count; i++)
    if (same_scheme(&q->matrices[i].shape.rule, r)) json_array_append_new(list, json_string(q->matrices[i].module));
  return list;
}

static status config(const export_request *q, json_t **config) {
  json_t *groups = json_object();
  for (int i = 0; i < q->count; i++) {
    const grid_rule *r = &q->matrices[i].shape.rule;
    bool seen = false;
    char name[32];
    for (int k = 0; k < i && !seen; k++) seen = same_scheme(&q->matrices[k].shape.rule, r);
    if (seen) continue;
    snprintf(name, sizeof name, "group_%zu", json_object_size(groups));
    json_object_set_new(
        groups, name,
        json_pack("{s:o, s:n, s:n, s:o}", "targets", targets(q, r), "input_activations", "output_activations", "weights", scheme(r)));
  }
  *config = json_pack("{s:s, s:s, s:s, s:n, s:n, s:o, s:o}", "quant_method", "compressed-tensors", "format", "pack-quantized",
                      "quantization_status", "compressed", "global_compression_ratio", "kv_cache_scheme", "ignore", format_kept_linears(q),
                      "config_groups", groups);
  return *config ? OK : fail(E_MEMORY, "quantization_config: no memory");
}

/* Where schemes differ, dequantize=True takes the first for every layer (transformers 5.23): the packed layers turn dense by themselves,
 * in the first forward pass. */
static const char *loading(const export_request *q) {
  const export_matrix *other;
  if (format_same(q, &other))
    return "from transformers import CompressedTensorsConfig\n"
           "base = AutoModelForCausalLM.from_pretrained(\"BASE\", dtype=torch.float32,\n"
           "                                            quantization_config=CompressedTensorsConfig(dequantize=True))";
  return "base = AutoModelForCausalLM.from_pretrained(\"BASE\", dtype=torch.float32)   # without dequantize=True: bits differ between "
         "matrices\n"
         "base(input_ids=torch.tensor([[0]]))                                        # one forward pass turns the packed layers into dense "
         "ones";
}

const export_format format_compressed = {
    .name = "compressed-tensors",
    .keeps_codes = true,
    .packages = "torch transformers accelerate peft compressed-tensors",
    .loading = loading,
    .notes = "A format for serving (vLLM: 4 and 8 bits). `dequantize=True` is needed for asymmetric codes and for an adapter on top:\n"
             "the weights are then held dense. Where bits differ between matrices it must not be given: transformers 5 would take the\n"
             "first scheme for all. Codes of 3 bits are packed without gaps, as compressed-tensors does from version 0.17.0 on; older\n"
             "versions cannot read them. For LoRA in vLLM the gptq export is the safer base.\n",
    .check = check,
    .tensors = tensors,
    .fill = fill,
    .decode = decode,
    .config = config,
};
