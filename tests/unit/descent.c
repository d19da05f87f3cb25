/* Coordinate descent: codes against the sweep written plainly, f from its own list against f written out, never rising; where it ends, rows
 * alone and in company, and what must be refused. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

#include "base/half.h"
#include "lack.h"
#include "layers.h"
#include "quant/descent.h"

enum { PASSES = 6 };

typedef struct setting {
  int rows, width, tokens, bits, group;
  bool symmetric, real_zero, dead;
  const uint8_t *widths;
  double ridge; /* times the mean diagonal */
} setting;

typedef struct layer {
  descent_request q;
  float *w, *h;
  uint8_t *dead, *codes;
} layer;

static void layer_open(layer *l, const setting *s, uint64_t seed) {
  int64_t square = (int64_t)s->width * s->width;
  double *h, mean = 0;
  *l = (layer){.q = {.rule = {.bits = s->bits, .group = s->group, .beta = 1}, .rows = s->rows, .width = s->width, .passes = PASSES}};
  descent_request *q = &l->q;
  q->rule.symmetric = s->symmetric;
  q->rule.real_zero = s->real_zero;
  q->rule.widths = s->widths;
  int64_t entries = (int64_t)s->rows * grid_groups(&q->rule, s->width);
  assert_done(NEW(l->w, (int64_t)s->rows * s->width, "test"));
  assert_done(NEW(l->h, square, "test"));
  assert_done(NEW(h, square, "test"));
  assert_done(NEW(l->dead, s->width, "test"));
  assert_done(NEW(l->codes, (int64_t)s->rows * s->width, "test"));
  assert_done(NEW(q->grid.scales, entries, "test"));
  assert_done(NEW(q->grid.zeros, entries, "test"));
  assert_done(NEW(q->grid.real_zeros, entries, "test"));
  layer_weights(seed, s->rows, s->width, l->w);
  for (int j = 0; s->dead && j < s->width; j++) l->dead[j] = j % 17 == 3 || j == s->width - 1;
  assert_done(layer_gram(seed, s->tokens, s->width, l->dead, h));
  for (int64_t i = 0; i < square; i++) l->h[i] = (float)h[i];
  for (int j = 0; j < s->width; j++) mean += h[(int64_t)j * s->width + j] / s->width;
  FREE(h);
  q->w = l->w;
  q->ldw = s->width;
  q->h = l->h;
  q->ridge = s->ridge * mean;
  q->dead = s->dead && s->ridge > 0 ? l->dead : NULL; /* without a ridge, their diagonal says it */
  assert_done(grid_fit(&q->rule, s->rows, s->width, l->w, s->width, NULL, q->grid, NULL));
  grid_round(&q->rule, s->rows, s->width, l->w, s->width, q->grid, l->codes);
}

static void layer_close(layer *l) {
  FREE(l->w), FREE(l->h), FREE(l->dead), FREE(l->codes);
  FREE(l->q.grid.scales), FREE(l->q.grid.zeros), FREE(l->q.grid.real_zeros);
}

static double value(const layer *l, int i, int j, int code) {
  int groups = grid_groups(&l->q.rule, l->q.width), g = i * groups + j / (l->q.width / groups);
  return (float)((double)half_to_float(l->q.grid.scales[g]) * (code - grid_zero(&l->q.rule, l->q.grid, g)));
}

static double entry(const layer *l, int i, int j) { return (double)l->h[(int64_t)i * l->q.width + j] + (i == j ? l->q.ridge : 0); }

/* d = (w - q) P of row i. */
static void gradient(const layer *l, int i, const uint8_t *codes, double *d) {
  int n = l->q.width;
  memset(d, 0, (size_t)n * sizeof *d);
  for (int k = 0; k < n; k++) {
    double e = l->w[(int64_t)i * n + k] - value(l, i, k, codes[(int64_t)i * n + k]);
    for (int j = 0; j < n; j++) d[j] += e * entry(l, k, j);
  }
}

static double loss_of(const layer *l, const uint8_t *codes) {
  int n = l->q.width;
  double sum = 0, *d;
  assert_done(NEW(d, n, "test"));
  for (int i = 0; i < l->q.rows; i++) {
    gradient(l, i, codes, d);
    for (int j = 0; j < n; j++) sum += d[j] * (l->w[(int64_t)i * n + j] - value(l, i, j, codes[(int64_t)i * n + j]));
  }
  FREE(d);
  return sum;
}

/* The specification's sweep over row i; returns the distance of the decision closest to a tie. */
static double plain_pass(const layer *l, int i, uint8_t *codes) {
  const descent_request *q = &l->q;
  int n = q->width, groups = grid_groups(&q->rule, n), size = n / groups;
  double *d, near = 1, mean = 0;
  assert_done(NEW(d, n, "test"));
  gradient(l, i, codes, d);
  for (int j = 0; j < n; j++) mean += entry(l, j, j) / n;
  for (int j = 0; j < n; j++) {
    if (entry(l, j, j) <= 1e-12 * mean || (q->dead && q->dead[j])) continue;
    int g = i * groups + j / size, bits = group_bits(&q->rule, j / size);
    uint8_t *code = codes + (int64_t)i * n + j;
    double s = half_to_float(q->grid.scales[g]), z = grid_zero(&q->rule, q->grid, g), old = value(l, i, j, *code);
    double v = old + d[j] / entry(l, j, j), x = v / s + (q->rule.real_zero ? z : 0);
    near = fmin(near, fabs(fabs(x - rint(x)) - 0.5));
    *code = q->rule.real_zero ? grid_code_real(v, s, z, bits) : grid_code(v, s, z, bits);
    double move = value(l, i, j, *code) - old;
    for (int k = 0; k < n; k++) d[k] -= move * entry(l, j, k);
  }
  FREE(d);
  return near;
}

static const uint8_t several[6] = {2, 3, 1, 2, 3, 1};
static const setting settings[] = {
    {.rows = 37, .width = 150, .tokens = 900, .bits = 2, .group = 50, .ridge = 0.75},
    {.rows = 33, .width = 192, .tokens = 900, .bits = 3, .group = 64, .ridge = 0.75, .real_zero = true},
    {.rows = 20, .width = 300, .tokens = 900, .bits = 4, .group = 60, .ridge = 0.01, .symmetric = true},
    {.rows = 20, .width = 290, .tokens = 900, .bits = 2},
    {.rows = 20, .width = 300, .tokens = 900, .bits = 2, .group = 50, .ridge = 0.1, .widths = several},
    {.rows = 20, .width = 300, .tokens = 900, .bits = 2, .group = 60, .ridge = 0.75, .dead = true},
    {.rows = 20, .width = 300, .tokens = 900, .bits = 2, .group = 60, .dead = true, .real_zero = true},
    {.rows = 9, .width = 290, .tokens = 100, .bits = 2, .group = 58}, /* singular */
    {.rows = 1, .width = 1, .tokens = 5, .bits = 1, .ridge = 0.75},
};
enum { SETTINGS = sizeof settings / sizeof *settings };

/* After one pass and after several: the plain sweep's codes, but for rows with a decision within 1e-9 of a tie, which are listed. */
static void test_plain(void **state) {
  (void)state;
  for (int k = 0; k < SETTINGS; k++) {
    layer l;
    uint8_t *expected;
    layer_open(&l, &settings[k], 200 + (uint64_t)k);
    size_t bytes = (size_t)l.q.rows * (size_t)l.q.width;
    assert_done(NEW(expected, bytes, "test"));
    memcpy(expected, l.codes, bytes);
    double near[64];
    for (int i = 0; i < l.q.rows; i++) near[i] = 1;
    for (int pass = 0; pass < 3; pass++) {
      l.q.passes = pass == 0 ? 1 : 2;
      if (pass < 2) assert_done(descent(&l.q, l.codes, NULL)); /* one, then two more */
      for (int i = 0; i < l.q.rows; i++) {
        near[i] = fmin(near[i], plain_pass(&l, i, expected));
        if (pass == 1) continue;
        if (memcmp(l.codes + (int64_t)i * l.q.width, expected + (int64_t)i * l.q.width, (size_t)l.q.width) == 0) continue;
        printf("setting %d, row %d: codes differ; closest decision is %.1e from a tie\n", k, i, near[i]);
        assert_true(near[i] <= 1e-9);
      }
    }
    FREE(expected);
    layer_close(&l);
  }
}

/* f never rises; its list is f written out; columns that must stay do. */
static void test_losses(void **state) {
  (void)state;
  for (int k = 0; k < SETTINGS; k++) {
    layer l;
    uint8_t *before;
    double losses[PASSES + 1];
    layer_open(&l, &settings[k], 300 + (uint64_t)k);
    size_t bytes = (size_t)l.q.rows * (size_t)l.q.width;
    assert_done(NEW(before, bytes, "test"));
    memcpy(before, l.codes, bytes);
    double first = loss_of(&l, l.codes);
    assert_done(descent(&l.q, l.codes, losses));
    assert_true(fabs(losses[0] - first) <= 1e-11 * first);
    assert_true(fabs(losses[PASSES] - loss_of(&l, l.codes)) <= 1e-11 * first);
    for (int pass = 1; pass <= PASSES; pass++) assert_true(losses[pass] <= losses[pass - 1] + 1e-12 * first);
    if (l.q.width > 1) assert_true(losses[PASSES] < 0.9 * first);
    for (size_t i = 0; i < bytes && settings[k].dead; i++)
      if (l.dead[i % (size_t)l.q.width]) assert_int_equal(before[i], l.codes[i]);
    FREE(before);
    layer_close(&l);
  }
}

/* Where it ends no code has a better one, and further passes change nothing and say so. */
static void test_end(void **state) {
  (void)state;
  layer l;
  enum { MANY = 60 };
  double losses[MANY + 1], *d;
  layer_open(&l, &settings[0], 7);
  int n = l.q.width, rows = l.q.rows;
  l.q.passes = MANY;
  assert_done(NEW(d, n, "test"));
  assert_done(descent(&l.q, l.codes, losses));
  assert_true(losses[MANY] == losses[MANY - 1] && losses[5] > losses[MANY]);
  for (int i = 0; i < rows; i++) {
    gradient(&l, i, l.codes, d);
    for (int j = 0; j < n; j++) {
      int code = l.codes[i * n + j];
      for (int other = code - 1; other <= code + 1; other += 2) {
        if (other < 0 || other > 3) continue;
        double step = value(&l, i, j, other) - value(&l, i, j, code);
        assert_true(-2 * step * d[j] + step * step * entry(&l, j, j) >= -1e-9 * losses[MANY]); /* change of f */
      }
    }
  }
  FREE(d);
  layer_close(&l);
}

/* The codes of a row do not depend on the rows it comes with. */
static void check_company(int rows, int width, int group) {
  setting s = {.rows = rows, .width = width, .tokens = 200, .bits = 2, .group = group, .ridge = 0.75};
  layer l;
  uint8_t *start, *some;
  layer_open(&l, &s, 8);
  size_t bytes = (size_t)rows * (size_t)width;
  assert_done(NEW(start, bytes, "test"));
  assert_done(NEW(some, bytes, "test"));
  memcpy(start, l.codes, bytes);
  l.q.passes = 2;
  assert_done(descent(&l.q, l.codes, NULL));
  const int pieces[][2] = {{0, 1}, {17, 1}, {rows - 1, 1}, {30, 7}, {rows - 23, 7}, {1, rows - 1}};
  for (size_t k = 0; k < sizeof pieces / sizeof *pieces; k++) {
    int64_t first = pieces[k][0];
    descent_request q = l.q;
    q.rows = pieces[k][1];
    q.w += first * width;
    q.grid = grid_from(q.grid, first * (width / group));
    memcpy(some, start + first * width, (size_t)q.rows * (size_t)width);
    assert_done(descent(&q, some, NULL));
    assert_memory_equal(some, l.codes + first * width, (size_t)q.rows * (size_t)width);
  }
  FREE(start), FREE(some);
  layer_close(&l);
}

static void test_company(void **state) {
  (void)state;
  check_company(700, 600, 40);
  check_company(300, 2050, 50);
}

static void assert_numerics(const descent_request *q, uint8_t *codes, const char *words) {
  assert_int_equal(descent(q, codes, NULL), E_NUMERICS);
  assert_non_null(strstr(status_message(), words));
  status_clear();
}

static void test_refusals(void **state) {
  (void)state;
  setting s = {.rows = 40, .width = 520, .tokens = 200, .bits = 2, .group = 40, .ridge = 0.75};
  layer l;
  layer_open(&l, &s, 9);
  l.q.passes = 1;
  float kept = l.w[35 * 520 + 100];
  l.w[35 * 520 + 100] = NAN;
  assert_numerics(&l.q, l.codes, "row 35");
  l.w[35 * 520 + 100] = kept;
  kept = l.h[300 * 520 + 3];
  l.h[300 * 520 + 3] = INFINITY;
  assert_numerics(&l.q, l.codes, "row 0");
  l.h[300 * 520 + 3] = kept;

  ASSERT_SURVIVES_LACK_OF_MEMORY(8, st = descent(&l.q, l.codes, NULL));
  layer_close(&l);
}

int main(void) {
  blas_setup();
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_plain), cmocka_unit_test(test_losses), cmocka_unit_test(test_end),
                                     cmocka_unit_test(test_company), cmocka_unit_test(test_refusals)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
