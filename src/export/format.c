#include "export/format.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/hot.h"
#include "base/settings.h"
#include "quant/codes.h"

static const export_format *const formats[] = {&format_gptq, &format_bnb, &format_compressed, &format_dense};
enum { FORMATS = sizeof formats / sizeof *formats };

const export_format *export_format_find(const char *name) {
  for (int i = 0; i < FORMATS; i++)
    if (strcmp(formats[i]->name, name) == 0) return formats[i];
  return NULL;
}

const char *export_format_nearest(const char *name) {
  const char *names[FORMATS];
  for (int i = 0; i < FORMATS; i++) names[i] = formats[i]->name;
  return settings_nearest(name, names, FORMATS);
}

const char *export_format_name(const export_format *f) { return f->name; }
const char *export_format_list(void) { return "gptq, bnb, compressed-tensors or dense"; }

status export_check(const export_request *q) { return q->format->check(q); }

bool format_all_linears(const export_request *q) { return q->count == LIN_COUNT * q->model->arch.layers; }

json_t *format_kept_linears(const export_request *q) {
  json_t *list = json_pack("[s]", "lm_head");
  int at = 0;
  for (int64_t layer = 0; layer < q->model->arch.layers; layer++)
    for (int l = 0; l < LIN_COUNT; l++) {
      char module[64];
      if (at < q->count && q->matrices[at].layer == layer && (int)q->matrices[at].linear == l) {
        at++;
        continue;
      }
      snprintf(module, sizeof module, "model.layers.%lld.%s", (long long)layer, linear_path((linear_id)l));
      json_array_append_new(list, json_string(module));
    }
  return list;
}

bool format_same(const export_request *q, const export_matrix **other) {
  const grid_rule *first = &q->matrices[0].shape.rule;
  for (int i = 1; i < q->count; i++) {
    const grid_rule *r = &q->matrices[i].shape.rule;
    *other = &q->matrices[i];
    if (r->bits != first->bits || r->group != first->group || r->symmetric != first->symmetric) return false;
  }
  return true;
}

bool format_packs(const grid_rule *r) {
  bool width = r->bits == 2 || r->bits == 3 || r->bits == 4 || r->bits == 8;
  return r->kind == GRID_UNIFORM && width && !r->mixed && !r->real_zero;
}

status format_check_uniform(const export_request *q) {
  for (int i = 0; i < q->count; i++) {
    const export_matrix *m = &q->matrices[i];
    const grid_rule *r = &m->shape.rule;
    if (format_packs(r)) continue;
    if (r->kind != GRID_UNIFORM)
      return fail(E_USAGE, "export: %s: %s: expected a uniform grid, found %s can hold it", q->format->name, m->module,
                  r->kind == GRID_BINARY ? "a binary one: dense"
                  : r->bits == 4         ? "NF4: bnb"
                                         : "a normal float of less than 4 bits: dense");
    if (r->mixed || r->real_zero)
      return fail(E_USAGE, "export: %s: %s: expected %s, found %s: dense can hold it", q->format->name, m->module,
                  r->mixed ? "one width of codes in a matrix" : "integer zero points", r->mixed ? "several" : "real ones");
    return fail(E_USAGE, "export: %s: %s: expected 2, 3, 4 or 8 bits, found %d: dense can hold it", q->format->name, m->module, r->bits);
  }
  return OK;
}

const char *format_type_name(real_type t) {
  static const char *const names[] = {[REAL_F32] = "F32", [REAL_F16] = "F16", [REAL_BF16] = "BF16"};
  return names[t];
}

static HOT float largest_magnitude(int64_t n, const float *x) {
  float most[16] = {0};
  int64_t k = 0;
  for (; k + 16 <= n; k += 16)
    for (int l = 0; l < 16; l++) most[l] = fabsf(x[k + l]) > most[l] || x[k + l] != x[k + l] ? fabsf(x[k + l]) : most[l];
  for (; k < n; k++) most[0] = fabsf(x[k]) > most[0] || x[k] != x[k] ? fabsf(x[k]) : most[0];
  for (int l = 1; l < 16; l++) most[0] = most[l] > most[0] || most[l] != most[l] ? most[l] : most[0];
  return most[0];
}

status format_narrow(const char *where, real_type t, const float *x, int64_t n, void *out) {
  static const float reach[] = {[REAL_F32] = 3.4028235e38f, [REAL_F16] = 65504, [REAL_BF16] = 3.3895314e38f};
  float most = largest_magnitude(n, x);
  if (!(most <= reach[t]))
    return fail(E_NUMERICS, "%s: expected numbers of at most %g for %s, found %g", where, (double)reach[t], format_type_name(t),
                (double)most);
  float_to_real_array(t, out, x, (size_t)n);
  return OK;
}

/* Tiles of 16 x 16: a tile's lines of both sides stay in the first-level cache. */
#define TRANSPOSE(rows, cols, in, out)                   \
  for (int64_t r = 0; r < (rows); r += 16)               \
    for (int64_t c = 0; c < (cols); c += 16)             \
      for (int64_t k = c; k < (cols) && k < c + 16; k++) \
        for (int64_t i = r; i < (rows) && i < r + 16; i++) (out)[k * (rows) + i] = (in)[i * (cols) + k]

HOT void transpose_words(int64_t rows, int64_t cols, const uint32_t *restrict in, uint32_t *restrict out) {
  TRANSPOSE(rows, cols, in, out);
}

HOT void transpose_halves(int64_t rows, int64_t cols, const uint16_t *restrict in, uint16_t *restrict out) {
  TRANSPOSE(rows, cols, in, out);
}

enum { AT_ONCE = 4096 }; /* zeros on the stack: a whole number of words for every width of code */

void zeros_pack(const solution *s, int offset, uint32_t *words) {
  uint8_t line[AT_ONCE];
  const int64_t row = codes_words(s->out, s->rule.bits);
  for (int64_t g = 0; g < s->groups; g++)
    for (int64_t first = 0; first < s->out; first += AT_ONCE) {
      int64_t n = s->out - first < AT_ONCE ? s->out - first : AT_ONCE;
      for (int64_t i = 0; i < n; i++) line[i] = (uint8_t)(s->zeros[(first + i) * s->groups + g] - offset);
      codes_pack(s->rule.bits, 1, n, line, words + g * row + first * s->rule.bits / 32);
    }
}

void zeros_unpack(const solution *s, int offset, const uint32_t *words, uint8_t *zeros) {
  uint8_t line[AT_ONCE];
  const int64_t row = codes_words(s->out, s->rule.bits);
  const int most = (1 << s->rule.bits) - 1;
  for (int64_t g = 0; g < s->groups; g++)
    for (int64_t first = 0; first < s->out; first += AT_ONCE) {
      int64_t n = s->out - first < AT_ONCE ? s->out - first : AT_ONCE;
      codes_unpack(s->rule.bits, 1, n, words + g * row + first * s->rule.bits / 32, line);
      for (int64_t i = 0; i < n; i++) zeros[(first + i) * s->groups + g] = (uint8_t)((line[i] + offset) & most);
    }
}
