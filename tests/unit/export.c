/* Foreign formats against the words of spec formats.md, bit by bit, and safetensors images as the reader sees them. */
#include "check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/memory.h"
#include "export/format.h"
#include "export/image.h"
#include "quant/codes.h"
#include "quant/nf4.h"

enum { OUT = 96, IN = 128, GROUP = 32 };

typedef struct sample {
  checkpoint model;
  export_matrix m;
  export_request q;
  solution s; /* with base arrays */
  char *memory;
  uint8_t codes[OUT][IN];
} sample;

static uint32_t random_bits(uint32_t *state) {
  *state = *state * 1664525u + 1013904223u;
  return *state >> 8;
}

static void make(sample *x, const export_format *format, const grid_rule *rule) {
  uint32_t seed = 7u + (uint32_t)rule->bits;
  memset(x, 0, sizeof *x);
  x->model.arch.layers = 1;
  x->m = (export_matrix){.module = "model.layers.0.mlp.up_proj", .linear = LIN_UP, .shape = solution_of(OUT, IN, rule, 4)};
  x->q = (export_request){.model = &x->model, .format = format, .matrices = &x->m, .count = 1, .setting = "sample", .rank = "4"};
  x->s = x->m.shape;
  assert_done(mem_new((void **)&x->memory, 1, solution_place(&x->s, SOLUTION_BASE, NULL), "a sample"));
  solution_place(&x->s, SOLUTION_BASE, x->memory);
  for (int o = 0; o < OUT; o++)
    for (int i = 0; i < IN; i++) x->codes[o][i] = (uint8_t)(random_bits(&seed) & ((1u << rule->bits) - 1));
  codes_pack(rule->bits, OUT, IN, x->codes[0], x->s.codes);
  for (int k = 0; k < OUT * IN / GROUP; k++) {
    if (rule->kind == GRID_NF) {
      x->s.absmax[k] = 0.01f + (float)random_bits(&seed) * 0x1p-26f;
    } else {
      x->s.scales[k] = (uint16_t)(0x2000 + random_bits(&seed) % 0x1000);
      x->s.zeros[k] = (uint8_t)(rule->symmetric ? 1u << (rule->bits - 1) : random_bits(&seed) & ((1u << rule->bits) - 1));
    }
  }
  if (rule->nested) nf4_nest(OUT * IN / GROUP, x->s.absmax, x->s.absmax_codes, x->s.nested_absmax, x->s.nested_offset);
}

static void drop(sample *x) { FREE(x->memory); }

/* Field `index` of b bits in a little-endian stream of words `stride` apart. */
static unsigned field(const uint32_t *words, int64_t stride, int64_t index, int bits) {
  unsigned value = 0;
  for (int k = 0; k < bits; k++) {
    int64_t at = index * bits + k;
    value |= (words[at / 32 * stride] >> (at % 32) & 1u) << k;
  }
  return value;
}

/* Fills, decodes again, and holds the fingerprint of what comes back against that of what went in. */
static void fill_and_return(sample *x, void *data[FORMAT_TENSORS]) {
  format_tensor list[FORMAT_TENSORS];
  const void *read[FORMAT_TENSORS];
  char before[HASH_HEX], after[HASH_HEX], *memory = NULL;
  int count = x->q.format->tensors(&x->q, &x->m, list);
  for (int k = 0; k < count; k++) {
    size_t bytes = st_type_bits(list[k].type) / 8;
    for (int d = 0; d < list[k].rank; d++) bytes *= (size_t)list[k].shape[d];
    assert_done(mem_new(&data[k], 1, bytes, list[k].suffix));
    read[k] = data[k];
  }
  assert_done(x->q.format->check(&x->q));
  assert_done(x->q.format->fill(&x->q, &x->m, &x->s, data));
  solution s = x->m.shape;
  assert_done(mem_new((void **)&memory, 1, solution_place(&s, SOLUTION_BASE, NULL), "a copy"));
  solution_place(&s, SOLUTION_BASE, memory);
  assert_done(x->q.format->decode(x->m.module, read, &s));
  assert_done(solution_fingerprint(&x->s, before));
  assert_done(solution_fingerprint(&s, after));
  assert_string_equal(before, after);
  FREE(memory);
}

static void drop_data(void *data[FORMAT_TENSORS]) {
  for (int k = 0; k < FORMAT_TENSORS; k++) mem_free(&data[k]);
}

static const int widths[] = {2, 3, 4, 8};

static void gptq_words(void **state) {
  (void)state;
  for (int w = 0; w < 8; w++) {
    grid_rule rule = {.bits = widths[w / 2], .group = GROUP, .symmetric = w % 2, .beta = 1};
    void *data[FORMAT_TENSORS] = {0};
    sample x;
    make(&x, &format_gptq, &rule);
    fill_and_return(&x, data);
    const uint32_t *qweight = data[0], *qzeros = data[1];
    const uint16_t *scales = data[2];
    const int32_t *g_idx = data[3];
    for (int o = 0; o < OUT; o++)
      for (int i = 0; i < IN; i++) assert_int_equal(field(qweight + o, OUT, i, rule.bits), x.codes[o][i]);
    for (int g = 0; g < IN / GROUP; g++)
      for (int o = 0; o < OUT; o++) {
        assert_int_equal(field(qzeros + g * OUT * rule.bits / 32, 1, o, rule.bits),
                         x.s.zeros[o * (IN / GROUP) + g] - (rule.symmetric ? 1 : 0));
        assert_int_equal(scales[g * OUT + o], x.s.scales[o * (IN / GROUP) + g]);
      }
    for (int i = 0; i < IN; i++) assert_int_equal(g_idx[i], i / GROUP);
    drop_data(data);
    drop(&x);
  }
}

/* The words that symmetric files consist of, as the specification prints them. */
static void gptq_symmetric_words(void **state) {
  (void)state;
  static const uint32_t words[4][3] = {{0x55555555, 0x55555555, 0x55555555},
                                       {0xDB6DB6DB, 0xB6DB6DB6, 0x6DB6DB6D},
                                       {0x77777777, 0x77777777, 0x77777777},
                                       {0x7F7F7F7F, 0x7F7F7F7F, 0x7F7F7F7F}};
  for (int w = 0; w < 4; w++) {
    grid_rule rule = {.bits = widths[w], .group = GROUP, .symmetric = true, .beta = 1};
    void *data[FORMAT_TENSORS] = {0};
    sample x;
    make(&x, &format_gptq, &rule);
    fill_and_return(&x, data);
    for (int k = 0; k < IN / GROUP * OUT * rule.bits / 32; k++) assert_int_equal(((const uint32_t *)data[1])[k], words[w][k % 3]);
    drop_data(data);
    drop(&x);
  }
}

static void compressed_words(void **state) {
  (void)state;
  for (int w = 0; w < 8; w++) {
    grid_rule rule = {.bits = widths[w / 2], .group = GROUP, .symmetric = w % 2, .beta = 1};
    void *data[FORMAT_TENSORS] = {0};
    sample x;
    make(&x, &format_compressed, &rule);
    fill_and_return(&x, data);
    const uint32_t *packed = data[0], *zero_point = data[3];
    const int64_t *shape = data[2];
    int groups = IN / GROUP;
    assert_int_equal(shape[0], OUT);
    assert_int_equal(shape[1], IN);
    for (int o = 0; o < OUT; o++)
      for (int i = 0; i < IN; i++) assert_int_equal(field(packed + o * IN * rule.bits / 32, 1, i, rule.bits), x.codes[o][i]);
    for (int g = 0; g < groups && !rule.symmetric; g++)
      for (int o = 0; o < OUT; o++) assert_int_equal(field(zero_point + g, groups, o, rule.bits), x.s.zeros[o * groups + g]);
    drop_data(data);
    drop(&x);
  }
}

static void bnb_bytes(void **state) {
  (void)state;
  for (int nested = 0; nested < 2; nested++) {
    grid_rule rule = {.kind = GRID_NF, .bits = 4, .group = GROUP, .nested = nested, .beta = 1};
    void *data[FORMAT_TENSORS] = {0};
    json_t *quant_state;
    sample x;
    make(&x, &format_bnb, &rule);
    fill_and_return(&x, data);
    const uint8_t *weight = data[0];
    for (int k = 0; k < OUT * IN; k++) /* the first element of a pair lies in the high nibble */
      assert_int_equal(k % 2 ? weight[k / 2] & 15 : weight[k / 2] >> 4, x.codes[k / IN][k % IN]);
    assert_done(json_parse("state", data[3], BNB_STATE_BYTES, &quant_state));
    assert_int_equal(json_integer_value(json_object_get(quant_state, "blocksize")), GROUP);
    assert_int_equal(json_object_size(quant_state), nested ? 7 : 4); /* any further key trips the library */
    json_drop(&quant_state);
    drop_data(data);
    drop(&x);
  }
}

static void refusals(void **state) {
  (void)state;
  const struct {
    const export_format *format;
    grid_rule rule;
    const char *says;
  } cases[] = {{&format_gptq, {.bits = 5, .group = GROUP}, "dense can hold it"},
               {&format_gptq, {.kind = GRID_NF, .bits = 4, .group = GROUP}, "bnb can hold it"},
               {&format_compressed, {.bits = 6, .group = GROUP}, "dense can hold it"},
               {&format_compressed, {.kind = GRID_NF, .bits = 4, .group = GROUP}, "bnb can hold it"},
               {&format_bnb, {.bits = 4, .group = GROUP}, "gptq can hold it"},
               {&format_bnb, {.bits = 7, .group = GROUP}, "dense can hold it"}};
  for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
    sample x;
    make(&x, cases[k].format, &cases[k].rule);
    assert_int_equal(x.q.format->check(&x.q), E_USAGE);
    assert_non_null(strstr(status_message(), cases[k].says));
    status_clear();
    drop(&x);
  }
}

static void an_image_is_a_safetensors_file(void **state) {
  (void)state;
  char folder[] = "/tmp/cloqwork-image.XXXXXX", path[64];
  assert_non_null(mkdtemp(folder));
  snprintf(path, sizeof path, "%s/a.safetensors", folder);
  image m = {0};
  st_file f;
  int file, index[4];
  const int64_t shapes[4][2] = {{3, 5}, {2}, {7, 1}, {0}};
  const char *const names[] = {"byte \"quoted\" \\ name", "long", "half", "empty"}, *const types[] = {"U8", "I64", "F16", "F32"};
  const int ranks[] = {2, 1, 2, 1};
  json_t *metadata = json_pack("{s:s}", "format", "pt");
  unsigned char data[64];
  assert_done(image_add_file(&m, "a.safetensors", &file));
  for (int k = 0; k < 4; k++) assert_done(image_add_tensor(&m, file, names[k], types[k], ranks[k], shapes[k], &index[k]));
  assert_done(image_layout(&m, metadata));
  assert_done(image_create(&m, folder));
  for (int k = 3; k >= 0; k--) {
    for (int i = 0; i < 64; i++) data[i] = (unsigned char)(16 * k + i);
    assert_done(image_put(&m, folder, index[k], data));
  }
  assert_done(image_sync(&m, folder));
  assert_done(st_open(path, &f));
  assert_int_equal(f.count, 4);
  assert_int_equal(f.data_offset % 8, 0);
  for (int k = 0; k < 4; k++) {
    const st_tensor *t = st_find(&f, names[k]);
    assert_non_null(t);
    assert_string_equal(t->type_text, types[k]);
    assert_int_equal(t->rank, ranks[k]);
    assert_int_equal(t->begin % (st_type_bits(types[k]) / 8), 0); /* naturally aligned */
    for (uint64_t i = 0; i < t->end - t->begin; i++) assert_int_equal(st_data(&f, t)[i], 16 * (uint64_t)k + i);
  }
  st_close(&f);
  json_drop(&metadata);
  image_free(&m);
  unlink(path);
  rmdir(folder);
}

static void narrowing(void **state) {
  (void)state;
  float x[40], wide[40];
  uint16_t half[40];
  for (int i = 0; i < 40; i++) x[i] = (i % 2 ? -1.0f : 1.0f) * ldexpf(1 + (float)i / 41, i - 28);
  assert_done(format_narrow("x", REAL_F16, x, 40, half));
  for (int i = 0; i < 40; i++) assert_int_equal(half[i], float_to_half(x[i]));
  assert_done(format_narrow("x", REAL_BF16, x, 40, half));
  for (int i = 0; i < 40; i++) assert_int_equal(half[i], float_to_bf16(x[i]));
  assert_done(format_narrow("x", REAL_F32, x, 40, wide));
  assert_memory_equal(x, wide, sizeof x);
  x[37] = 70000;
  assert_int_equal(format_narrow("x", REAL_F16, x, 40, half), E_NUMERICS);
  assert_non_null(strstr(status_message(), "x: expected numbers of at most 65504 for F16, found 70000"));
  status_clear();
  x[3] = NAN;
  assert_int_equal(format_narrow("x", REAL_F32, x, 40, wide), E_NUMERICS);
  status_clear();
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(gptq_words),       cmocka_unit_test(gptq_symmetric_words),
      cmocka_unit_test(compressed_words), cmocka_unit_test(bnb_bytes),
      cmocka_unit_test(refusals),         cmocka_unit_test(an_image_is_a_safetensors_file),
      cmocka_unit_test(narrowing),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
