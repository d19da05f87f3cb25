/* GPTQ checkpoints, v1 for symmetric codes (it stores zero - 1) and v2 for others. Spec formats.md, sections 6 and 7. */
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "export/format.h"

enum { QWEIGHT, QZEROS, SCALES, G_IDX, TENSORS };

static bool symmetric(const export_request *q) { return q->matrices[0].shape.rule.symmetric; }
/* v1 holds zero - 1: loaders add it back with a whole-word add, which a zero of 0 would carry into its neighbour. */
static int stored_offset(const solution *s) { return s->rule.symmetric ? 1 : 0; }

static status check(const export_request *q) {
  status st = OK;
  const export_matrix *other;
  TRY(format_check_uniform(q));
  for (int i = 0; i < q->count; i++) {
    const solution *s = &q->matrices[i].shape;
    if (s->out % 32 || s->in % 32)
      return fail(E_USAGE, "export: gptq: %s: expected sides that are multiples of 32, found %lld x %lld: compressed-tensors can hold it",
                  q->matrices[i].module, (long long)s->out, (long long)s->in);
  }
  if (!format_same(q, &other))
    st = fail(E_USAGE,
              "export: gptq: %s: expected the same bits, group and symmetry in all matrices (transformers knows no others), found %d bits, "
              "group %d beside %d bits, group %d: compressed-tensors (if symmetric) or dense can hold it",
              other->module, other->shape.rule.bits, other->shape.rule.group, q->matrices[0].shape.rule.bits,
              q->matrices[0].shape.rule.group);
done:
  return st;
}

static int tensors(const export_request *q, const export_matrix *m, format_tensor list[FORMAT_TENSORS]) {
  const solution *s = &m->shape;
  (void)q;
  list[QWEIGHT] = (format_tensor){".qweight", "I32", 2, {s->words, s->out}};
  list[QZEROS] = (format_tensor){".qzeros", "I32", 2, {s->groups, s->out * s->rule.bits / 32}};
  list[SCALES] = (format_tensor){".scales", "F16", 2, {s->groups, s->out}};
  list[G_IDX] = (format_tensor){".g_idx", "I32", 1, {s->in}};
  return TENSORS;
}

static status fill(const export_request *q, const export_matrix *m, const solution *s, void *const data[FORMAT_TENSORS]) {
  int32_t *group = data[G_IDX];
  (void)q, (void)m;
  transpose_words(s->out, s->words, s->codes, data[QWEIGHT]);
  zeros_pack(s, stored_offset(s), data[QZEROS]);
  transpose_halves(s->out, s->groups, s->scales, data[SCALES]);
  for (int64_t i = 0; i < s->in; i++) group[i] = (int32_t)(i / (s->in / s->groups));
  return OK;
}

static status decode(const char *module, const void *const data[FORMAT_TENSORS], solution *s) {
  const int32_t *group = data[G_IDX];
  for (int64_t i = 0; i < s->in; i++)
    if (group[i] != i / (s->in / s->groups))
      return fail(E_DATA, "%s.g_idx: input %lld: expected group %lld, found %d", module, (long long)i, (long long)(i / (s->in / s->groups)),
                  group[i]);
  transpose_words(s->words, s->out, data[QWEIGHT], s->codes);
  zeros_unpack(s, stored_offset(s), data[QZEROS], s->zeros);
  transpose_halves(s->groups, s->out, data[SCALES], s->scales);
  return OK;
}

/* Lists of modules that were quantized, where these are not all: optimum replaces every linear of a layer otherwise. */
static json_t *modules_of_a_block(const export_request *q) {
  if (format_all_linears(q)) return json_null();
  json_t *list = json_array();
  for (int i = 0; i < q->count && q->matrices[i].layer == q->matrices[0].layer; i++)
    json_array_append_new(list, json_pack("[s]", linear_path(q->matrices[i].linear)));
  return list;
}

static status config(const export_request *q, json_t **config) {
  const solution *s = &q->matrices[0].shape;
  const char *version = symmetric(q) ? "gptq" : "gptq_v2";
  char quantizer[64];
  snprintf(quantizer, sizeof quantizer, "cloqwork:%s", CLOQWORK_VERSION);
  *config = json_pack("{s:s, s:s, s:i, s:i, s:b, s:b, s:b, s:s, s:s, s:s, s:f, s:b, s:o, s:{s:[s], s:s}}", "quant_method", "gptq", "method",
                      "gptq", "bits", s->rule.bits, "group_size", s->rule.group ? s->rule.group : -1, "desc_act", 0, "sym", symmetric(q),
                      "lm_head", 0, "checkpoint_format", version, "format", version, "pack_dtype", "int32", "damp_percent", 0.01,
                      "true_sequential", 1, "modules_in_block_to_quantize", modules_of_a_block(q), "meta", "quantizer", quantizer,
                      "setting", q->setting);
  return *config ? OK : fail(E_MEMORY, "quantization_config: no memory");
}

static const char *loading(const export_request *q) {
  (void)q;
  return "from transformers import GPTQConfig\n"
         "# gptq_torch: the kernel that can be trained on any machine; on GPUs leave quantization_config out\n"
         "base = AutoModelForCausalLM.from_pretrained(\"BASE\", dtype=torch.float32,\n"
         "                                            quantization_config=GPTQConfig(bits=BITS, backend=\"gptq_torch\"))";
}

const export_format format_gptq = {
    .name = "gptq",
    .keeps_codes = true,
    .bias_as_half = true,
    .packages = "torch transformers accelerate peft optimum gptqmodel",
    .loading = loading,
    .notes = "Loads in transformers (with optimum and gptqmodel), gptqmodel and vLLM. gptqmodel's own 4-bit kernel for CPUs rounds\n"
             "scales to bfloat16 and can stop gradients: choose `gptq_torch` for training on CPUs. It compiles in its first passes, up to\n"
             "a minute per shape; the environment variable `TORCHDYNAMO_DISABLE=1` avoids that. Asymmetric codes are stored as\n"
             "version 2 of the format (`gptq_v2`), which vLLM reads since late 2025; symmetric ones as version 1, which all read.\n",
    .check = check,
    .tensors = tensors,
    .fill = fill,
    .decode = decode,
    .config = config,
};
