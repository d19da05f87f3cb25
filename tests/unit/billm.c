/* BiLLM: the identity of the loss over groups of columns, thresholds and salient columns against everything tried plainly, magnitudes as
 * least-squares optima, never above plain binarization, rows alone and in company, and what must be refused. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

#include "base/half.h"
#include "lack.h"
#include "layers.h"
#include "quant/billm.h"
#include "quant/codes.h"
#include "quant/salience.h"

typedef struct layer {
  int rows, width, groups;
  grid_rule rule;
  float *w, *q;
  double *h, *u, *d;
  uint8_t *dead, *salient, *codes;
  uint16_t *magnitudes;
  uint32_t *words;
} layer;

/* Everything but the factor and what follows from it. */
static void layer_empty(layer *l, int rows, int width, int group, bool dead, uint64_t seed) {
  int64_t all = (int64_t)rows * width, square = (int64_t)width * width;
  *l = (layer){.rows = rows, .width = width, .rule = {.kind = GRID_BINARY, .bits = 1, .group = group}};
  l->groups = grid_groups(&l->rule, width);
  assert_done(NEW(l->w, all, "test"));
  assert_done(NEW(l->q, all, "test"));
  assert_done(NEW(l->h, square, "test"));
  assert_done(NEW(l->u, square, "test"));
  assert_done(NEW(l->d, width, "test"));
  assert_done(NEW(l->dead, width, "test"));
  assert_done(NEW(l->salient, width, "test"));
  assert_done(NEW(l->codes, all, "test"));
  assert_done(NEW(l->magnitudes, (int64_t)rows * l->groups * BILLM_MAGNITUDES, "test"));
  assert_done(NEW(l->words, (int64_t)rows * codes_words(width, 2), "test"));
  layer_weights(seed, rows, width, l->w);
  for (int j = 0; dead && j < width; j++) l->dead[j] = j % 17 == 3 || j == width - 1;
}

static void layer_open(layer *l, int rows, int width, int group, bool dead, uint64_t seed) {
  layer_empty(l, rows, width, group, dead, seed);
  assert_done(layer_gram(seed, width + width / 2, width, l->dead, l->h));
  double mean = 0;
  for (int i = 0; i < width; i++) {
    if (l->dead[i]) l->h[(int64_t)i * width + i] = 1;
    mean += l->h[(int64_t)i * width + i] / width;
  }
  for (int i = 0; i < width; i++) l->h[(int64_t)i * width + i] += 0.01 * mean;
  assert_int_equal(layer_factor(width, l->h, l->u), -1);
  assert_done(salience_inverse(width, l->u, NULL, 0, width, l->d));
  assert_done(billm_choose(&l->rule, rows, width, l->w, width, l->d, l->dead, l->salient));
}

static void layer_close(layer *l) {
  FREE(l->w), FREE(l->q), FREE(l->h), FREE(l->u), FREE(l->d), FREE(l->dead), FREE(l->salient), FREE(l->codes), FREE(l->magnitudes);
  FREE(l->words);
}

static billm_request request(const layer *l) {
  return (billm_request){
      .rule = l->rule, .rows = l->rows, .width = l->width, .w = l->w, .ldw = l->width, .u = l->u, .dead = l->dead, .salient = l->salient};
}

static void read_values(const layer *l) {
  codes_pack(2, l->rows, l->width, l->codes, l->words);
  billm_values(&l->rule, l->rows, l->width, l->words, l->magnitudes, l->salient, l->q);
}

/* The value of a code, from the header's words. */
static double value(const layer *l, int i, int j) {
  const uint16_t *m = l->magnitudes + ((int64_t)i * l->groups + j / (l->width / l->groups)) * BILLM_MAGNITUDES;
  int code = l->codes[(int64_t)i * l->width + j];
  double first = half_to_float(m[l->salient[j] ? 2 : code >> 1]), second = half_to_float(m[3]);
  first = code & 1 ? first : -first;
  return l->salient[j] ? (double)(float)(first + (code & 2 ? second : -second)) : first;
}

/* tr(E Hd E^T) of the values that are read back, dead columns left out. */
static double direct_loss(const layer *l) {
  double *e, loss;
  assert_done(NEW(e, (int64_t)l->rows * l->width, "test"));
  for (int64_t i = 0; i < (int64_t)l->rows * l->width; i++) e[i] = l->dead[i % l->width] ? 0 : (double)l->w[i] - (double)l->q[i];
  loss = layer_loss(l->rows, l->width, e, l->h);
  FREE(e);
  return loss;
}

static void test_identity(void **state) {
  (void)state;
  const struct {
    int rows, width, group;
    bool dead;
  } cases[] = {{70, 512, 128, false}, {70, 384, 128, true}, {3, 384, 64, true}, {64, 255, 51, true},
               {5, 96, 0, false},     {1, 40, 8, true},     {4, 12, 1, false}};
  for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
    layer l;
    double loss;
    layer_open(&l, cases[k].rows, cases[k].width, cases[k].group, cases[k].dead, k + 1);
    billm_request q = request(&l);
    assert_done(billm(&q, l.codes, l.magnitudes, &loss));
    read_values(&l);
    for (int i = 0; i < l.rows; i++)
      for (int j = 0; j < l.width; j++) assert_true((double)l.q[(int64_t)i * l.width + j] == value(&l, i, j));
    double direct = direct_loss(&l);
    assert_true(fabs(loss - direct) <= 1e-11 * direct);
    layer_close(&l);
  }
}

/* Compensation between groups pays: less loss than the same without. */
static void test_compensation(void **state) {
  (void)state;
  layer l;
  double with, *u;
  layer_open(&l, 64, 512, 64, false, 3);
  billm_request q = request(&l);
  assert_done(billm(&q, l.codes, l.magnitudes, &with));
  assert_done(NEW(u, 512 * 512, "test"));
  for (int i = 0; i < 512; i++) u[i * 513] = 1;
  q.u = u;
  assert_done(billm(&q, l.codes, l.magnitudes, NULL));
  read_values(&l);
  assert_true(with < 0.8 * direct_loss(&l));
  FREE(u);
  layer_close(&l);
}

static double square_error(int n, const double *a, double low, double high) {
  double sum = 0;
  for (int k = 0; k < n; k++) sum += fmin((a[k] - low) * (a[k] - low), (a[k] - high) * (a[k] - high));
  return sum;
}

/* Where nothing is fed back (one group), a row's ordinary columns have the error of the best of all thresholds, up to the rounding of two
 * magnitudes; each magnitude is the mean of the columns that use it; and neither they nor the salient ones are worse than one sign and
 * one magnitude. */
static void test_magnitudes(void **state) {
  (void)state;
  layer l;
  layer_open(&l, 50, 128, 0, true, 7);
  billm_request q = request(&l);
  assert_done(billm(&q, l.codes, l.magnitudes, NULL));
  read_values(&l);
  for (int i = 0; i < l.rows; i++) {
    const uint16_t *m = l.magnitudes + (int64_t)i * BILLM_MAGNITUDES;
    double a[2][128], sum[2] = {0}, part[2] = {0}, error[2] = {0}, plain[2] = {0}, best = INFINITY, rest = 0;
    int n[2] = {0}, count[2] = {0};
    for (int j = 0; j < 128; j++) {
      int64_t at = (int64_t)i * 128 + j;
      int kind = l.salient[j], high = l.codes[at] >> 1;
      double w = fabs((double)l.w[at]), e = (double)l.w[at] - (double)l.q[at];
      if (l.dead[j]) continue;
      a[kind][n[kind]++] = w;
      sum[kind] += w;
      error[kind] += e * e;
      if (kind == 0) part[high] += w, count[high]++;
    }
    for (int k = 0; k < n[0]; k++) { /* the threshold just above a[0][k] */
      double low = 0, large = 0;
      int below = 0;
      for (int x = 0; x < n[0]; x++) {
        if (a[0][x] <= a[0][k])
          low += a[0][x], below++;
        else
          large += a[0][x];
      }
      best = fmin(best, square_error(n[0], a[0], low / below, below < n[0] ? large / (n[0] - below) : 0));
    }
    for (int kind = 0; kind < 2; kind++) {
      double one = half_to_float(float_to_half((float)(sum[kind] / n[kind])));
      for (int k = 0; k < n[kind]; k++) plain[kind] += (a[kind][k] - one) * (a[kind][k] - one);
      assert_true(error[kind] <= plain[kind]);
    }
    assert_true(n[1] > 0 && error[0] <= best * (1 + 1e-5));
    for (int high = 0; high < 2; high++) assert_true(fabs(half_to_float(m[high]) / (part[high] / count[high]) - 1) < 6e-4);
    assert_int_equal(m[2], float_to_half((float)(sum[1] / n[1])));
    for (int k = 0; k < n[1]; k++) rest += fabs(a[1][k] - (double)half_to_float(m[2])) / n[1];
    assert_true(fabs(half_to_float(m[3]) / rest - 1) < 6e-4);
  }
  layer_close(&l);
}

static double best_one(int rows, int width, const float *w, const int *set, int count) {
  double error = 0;
  for (int i = 0; i < rows; i++) {
    double mean = 0;
    for (int k = 0; k < count; k++) mean += fabs((double)w[(int64_t)i * width + set[k]]) / count;
    for (int k = 0; k < count; k++) error += pow(fabs((double)w[(int64_t)i * width + set[k]]) - mean, 2);
  }
  return error;
}

/* Salient columns of every group, with everything tried plainly. */
static void check_choice(int rows, int width, int group, bool dead, int most) {
  layer l;
  layer_open(&l, rows, width, group, dead, 11);
  for (int first = 0; first < width; first += group) {
    int set[256], n = 0, best = 0, chosen = 0;
    double score[256], least = INFINITY;
    for (int j = first; j < first + group; j++) {
      if (l.dead[j]) {
        assert_int_equal(l.salient[j], 0);
        continue;
      }
      double s = 0;
      for (int i = 0; i < rows; i++) s += pow((double)l.w[(int64_t)i * width + j] / l.d[j], 2);
      int at = n++;
      for (; at > 0 && score[at - 1] < s; at--) score[at] = score[at - 1], set[at] = set[at - 1];
      score[at] = s;
      set[at] = j;
    }
    for (int k = 1; k < n && k <= BILLM_SALIENT_MOST; k++) {
      double error = best_one(rows, width, l.w, set, k) + best_one(rows, width, l.w, set + k, n - k);
      if (error < least) least = error, best = k;
    }
    for (int k = 0; k < n; k++) chosen += l.salient[set[k]];
    assert_int_equal(chosen, best);
    assert_true(best > 0 && best <= most);
    for (int k = 0; k < n; k++) assert_int_equal(l.salient[set[k]], k < best);
  }
  layer_close(&l);
}

static void test_choice(void **state) {
  (void)state;
  check_choice(40, 384, 128, false, BILLM_SALIENT_MOST);
  check_choice(33, 200, 25, true, 24);
  check_choice(7, 64, 2, false, 1);
}

/* A row's bits do not depend on the rows it comes with, nor on where it stands among them. Any upper factor will do here. */
static void check_company(int rows, int width, int group) {
  layer l;
  uint8_t *codes;
  uint16_t *magnitudes;
  layer_empty(&l, rows, width, group, true, 13);
  dice d = {8};
  for (int i = 0; i < width; i++) {
    l.salient[i] = !l.dead[i] && i % 9 == 2;
    for (int j = i; j < width; j++) l.u[(int64_t)i * width + j] = i == j ? 1 + dice_uniform(&d) : (dice_uniform(&d) - 0.5) / sqrt(width);
  }
  billm_request q = request(&l);
  int64_t of_row = (int64_t)l.groups * BILLM_MAGNITUDES;
  assert_done(NEW(codes, (int64_t)rows * width, "test"));
  assert_done(NEW(magnitudes, rows * of_row, "test"));
  assert_done(billm(&q, l.codes, l.magnitudes, NULL));
  const int parts[][2] = {{0, 1}, {rows - 1, 1}, {rows / 3, 5}, {1, rows - 1}, {rows / 2, 2}, {7, 31}};
  for (size_t k = 0; k < sizeof parts / sizeof *parts; k++) {
    int first = parts[k][0];
    q.w = l.w + (int64_t)first * width;
    q.rows = parts[k][1];
    assert_done(billm(&q, codes, magnitudes, NULL));
    assert_memory_equal(codes, l.codes + (int64_t)first * width, (size_t)q.rows * (size_t)width);
    assert_memory_equal(magnitudes, l.magnitudes + first * of_row, (size_t)(q.rows * of_row) * sizeof *magnitudes);
  }
  FREE(codes), FREE(magnitudes);
  layer_close(&l);
}

static void test_company(void **state) {
  (void)state;
  check_company(150, 640, 128);
  check_company(100, 300, 25);
  check_company(300, 2176, 128);
}

static void assert_numerics(const billm_request *q, const layer *l, const char *words) {
  assert_int_equal(billm(q, l->codes, l->magnitudes, NULL), E_NUMERICS);
  assert_non_null(strstr(status_message(), words));
  status_clear();
}

static void test_refusals(void **state) {
  (void)state;
  layer l;
  layer_open(&l, 90, 256, 64, true, 17);
  billm_request q = request(&l);
  const float bad[] = {NAN, INFINITY};
  for (int k = 0; k < 2; k++) {
    float w = l.w[80 * 256 + 100];
    l.w[80 * 256 + 100] = bad[k];
    assert_numerics(&q, &l, "row 80, expected finite weights");
    assert_int_equal(billm_choose(&l.rule, 90, 256, l.w, 256, l.d, l.dead, l.salient), E_NUMERICS);
    assert_non_null(strstr(status_message(), "billm: column 100, expected finite weights"));
    status_clear();
    l.w[80 * 256 + 100] = w;
  }
  assert_done(billm_choose(&l.rule, 90, 256, l.w, 256, l.d, l.dead, l.salient));
  l.u[200 * 257] *= -1;
  assert_numerics(&q, &l, "position 200 of 256");
  l.u[200 * 257] *= -1;
  ASSERT_SURVIVES_LACK_OF_MEMORY(8, st = billm_choose(&l.rule, 90, 256, l.w, 256, l.d, l.dead, l.salient);
                                 if (st == OK) st = billm(&q, l.codes, l.magnitudes, NULL));
  layer_close(&l);
}

int main(void) {
  blas_setup();
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_identity),   cmocka_unit_test(test_compensation),
                                     cmocka_unit_test(test_magnitudes), cmocka_unit_test(test_choice),
                                     cmocka_unit_test(test_company),    cmocka_unit_test(test_refusals)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
