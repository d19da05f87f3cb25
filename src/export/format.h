/* What a foreign format is: a row of the table. Private to export. Everything here is Local.
 *
 * A linear becomes a few tensors whose names, types and shapes follow from its shape and grid; filling them is memory work on arrays
 * that are all in hand. */
#ifndef CLOQWORK_EXPORT_FORMAT_H
#define CLOQWORK_EXPORT_FORMAT_H

#include "base/json.h"
#include "export/export.h"

enum { FORMAT_TENSORS = 8, BNB_STATE_BYTES = 256 };

typedef struct format_tensor {
  char suffix[48];  /* behind the module's name: ".qweight" */
  const char *type; /* "I32" */
  int rank;
  int64_t shape[2];
} format_tensor;

struct export_format {
  const char *name;
  bool keeps_codes;                                /* decode is there */
  bool bias_as_half;                               /* biases of its linears are F16 */
  const char *(*loading)(const export_request *q); /* Python lines that make `base` from a folder named BASE, for the model card */
  const char *packages;
  const char *notes; /* more lines of the model card; may be NULL */
  status (*check)(const export_request *q);
  int (*tensors)(const export_request *q, const export_matrix *m, format_tensor list[FORMAT_TENSORS]);
  /* data[k]: the bytes of tensor k, zeroed. s holds the base (and the adapter, to be merged). */
  status (*fill)(const export_request *q, const export_matrix *m, const solution *s, void *const data[FORMAT_TENSORS]);
  /* The opposite: codes and grid into s, whose base arrays are placed. E_DATA where the bytes cannot be a linear of this format. */
  status (*decode)(const char *module, const void *const data[FORMAT_TENSORS], solution *s);
  status (*config)(const export_request *q, json_t **config); /* quantization_config; owned; NULL: none */
};

extern const export_format format_gptq, format_bnb, format_compressed, format_dense;

bool format_all_linears(const export_request *q);     /* every linear of every layer is here */
json_t *format_kept_linears(const export_request *q); /* names of those that are not, and lm_head: owned */
/* Bits, group and symmetry are the same for all; else *other is the first that differs from the first one. */
bool format_same(const export_request *q, const export_matrix **other);

/* Uniform grids of 2, 3, 4 or 8 bits with integer zero points: what the packed integer formats can hold. E_USAGE names the format that can hold
 * another. */
bool format_packs(const grid_rule *r);
status format_check_uniform(const export_request *q);

const char *format_type_name(real_type t); /* "BF16" */
/* x (n) rounded to the type. E_NUMERICS where a number is beyond its reach; where: "export: model.layers.3.mlp.down_proj". */
status format_narrow(const char *where, real_type t, const float *x, int64_t n, void *out);

/* out (cols, rows) = in (rows, cols) transposed. Memory speed. */
void transpose_words(int64_t rows, int64_t cols, const uint32_t *in, uint32_t *out);
void transpose_halves(int64_t rows, int64_t cols, const uint16_t *in, uint16_t *out);

/* zeros (out, groups), less `offset`, as streams along the output side: words (groups, codes_words(out)) and back. */
void zeros_pack(const solution *s, int offset, uint32_t *words);
void zeros_unpack(const solution *s, int offset, const uint32_t *words, uint8_t *zeros);

#endif
