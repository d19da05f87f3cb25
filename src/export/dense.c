/* Dequantized weights in a checkpoint like the original: for any tool. With merge the adapter is added: W = Q + B A. */
#include <stdio.h>

#include "base/memory.h"
#include "export/format.h"

enum { SLAB_ROWS = 256 };

static real_type stored_type(const export_request *q, const export_matrix *m) {
  return q->has_dtype ? q->dtype : solution_loaded(checkpoint_linear(q->model, m->layer, m->linear).tensor->type);
}

static status check(const export_request *q) {
  (void)q;
  return OK;
}

static int tensors(const export_request *q, const export_matrix *m, format_tensor list[FORMAT_TENSORS]) {
  list[0] = (format_tensor){".weight", format_type_name(stored_type(q, m)), 2, {m->shape.out, m->shape.in}};
  return 1;
}

static status fill(const export_request *q, const export_matrix *m, const solution *s, void *const data[FORMAT_TENSORS]) {
  status st = OK;
  float *slab = NULL;
  char where[96];
  snprintf(where, sizeof where, "export: %s", m->module);
  real_type type = stored_type(q, m);
  TRY(NEW(slab, SLAB_ROWS * s->in, "a slab of weights"));
  for (int64_t begin = 0; begin < s->out; begin += SLAB_ROWS) {
    int64_t end = begin + SLAB_ROWS < s->out ? begin + SLAB_ROWS : s->out, n = (end - begin) * s->in;
    solution_merged(s, q->merge ? m->rank : 0, begin, end, slab);
    TRY(format_narrow(where, type, slab, n, (char *)data[0] + (size_t)(begin * s->in) * real_bytes(type)));
  }
done:
  FREE(slab);
  return st;
}

static status config(const export_request *q, json_t **config) {
  (void)q;
  *config = NULL;
  return OK;
}

static const char *loading(const export_request *q) {
  (void)q;
  return "base = AutoModelForCausalLM.from_pretrained(\"BASE\", dtype=torch.float32)";
}

const export_format format_dense = {
    .name = "dense",
    .packages = "torch transformers accelerate peft",
    .loading = loading,
    .check = check,
    .tensors = tensors,
    .fill = fill,
    .config = config,
};
