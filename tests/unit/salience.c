/* The diagonals that weigh columns, against inverses made plainly. */
#include "check.h"

#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "layers.h"
#include "quant/salience.h"

enum { WIDTH = 600 };

static double h[WIDTH * WIDTH], p[WIDTH * WIDTH], u[WIDTH * WIDTH], d[WIDTH], other[WIDTH];
static int32_t order[WIDTH];

/* Entry (first, first) of the inverse of a's trailing part from `first` on, by a Cholesky factor of its own: solve L L^T x = e_0. */
static double trailing_inverse(const double *a, int first, int at) {
  int n = WIDTH - first;
  double *l, *x, result;
  assert_done(NEW(l, n * n, "test"));
  assert_done(NEW(x, n, "test"));
  for (int i = 0; i < n; i++) memcpy(l + i * n, a + (int64_t)(first + i) * WIDTH + first, (size_t)n * sizeof *l);
  assert_done(dcholesky("test", n, l, n));
  x[at - first] = 1;
  for (int i = 0; i < n; i++) {
    for (int k = 0; k < i; k++) x[i] -= l[i * n + k] * x[k];
    x[i] /= l[i * n + i];
  }
  result = 0;
  for (int i = 0; i < n; i++) result += x[i] * x[i]; /* e^T L^-T L^-1 e */
  FREE(l), FREE(x);
  return result;
}

static void prepare(void) {
  double mean = 0;
  assert_done(layer_gram(5, 900, WIDTH, NULL, h));
  for (int i = 0; i < WIDTH; i++) mean += h[i * WIDTH + i] / WIDTH;
  for (int i = 0; i < WIDTH; i++) h[i * WIDTH + i] += 0.01 * mean;
  for (int i = 0; i < WIDTH; i++) order[i] = (i * 7 + 3) % WIDTH; /* 7 and 600 have no common divisor */
  for (int i = 0; i < WIDTH; i++)
    for (int j = 0; j < WIDTH; j++) p[i * WIDTH + j] = h[order[i] * WIDTH + order[j]];
}

static void test_inverse(void **state) {
  (void)state;
  prepare();
  assert_int_equal(layer_factor(WIDTH, h, u), -1);
  assert_done(salience_inverse(WIDTH, u, NULL, 0, WIDTH, d));
  for (int j = 0; j < WIDTH; j += 37) assert_true(fabs(d[j] / trailing_inverse(h, 0, j) - 1) < 1e-10);
  memset(other, 0, sizeof other);
  assert_done(salience_inverse(WIDTH, u, NULL, 256, 512, other)); /* parts have the bits of the whole */
  assert_true(other[255] == 0 && other[512] == 0);
  assert_done(salience_inverse(WIDTH, u, NULL, 512, WIDTH, other));
  assert_done(salience_inverse(WIDTH, u, NULL, 0, 256, other));
  assert_memory_equal(d, other, sizeof d);
  assert_int_equal(layer_factor(WIDTH, p, u), -1); /* knows no order */
  assert_done(salience_inverse(WIDTH, u, order, 0, WIDTH, other));
  for (int j = 0; j < WIDTH; j++) assert_true(fabs(d[j] / other[j] - 1) < 1e-10);
}

static void test_factor(void **state) {
  (void)state;
  prepare();
  assert_int_equal(layer_factor(WIDTH, p, u), -1);
  assert_done(salience_factor(WIDTH, u, order, d));
  for (int j = 0; j < WIDTH; j += 53) {
    double square = d[order[j]] * d[order[j]];
    assert_true(fabs(square / trailing_inverse(p, j, j) - 1) < 1e-10);
  }
}

static void test_refusals(void **state) {
  (void)state;
  prepare();
  assert_int_equal(layer_factor(WIDTH, h, u), -1);
  u[300 * (WIDTH + 1)] = 0;
  for (int k = 0; k < 2; k++) {
    assert_int_equal(k ? salience_inverse(WIDTH, u, NULL, 0, WIDTH, d) : salience_factor(WIDTH, u, NULL, d), E_NUMERICS);
    assert_non_null(strstr(status_message(), "salience: factor, expected a positive diagonal, found 0 at position 300 of 600"));
    status_clear();
  }
  assert_done(salience_inverse(WIDTH, u, NULL, 0, 256, d));
  uint64_t before = mem_now();
  setenv("CLOQWORK_FAULT", "0:1", 1);
  fault_setup(0);
  assert_int_equal(salience_inverse(WIDTH, u, NULL, 0, 256, d), E_MEMORY);
  unsetenv("CLOQWORK_FAULT");
  fault_setup(0);
  status_clear();
  assert_true(mem_now() == before);
}

int main(void) {
  blas_setup();
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_inverse), cmocka_unit_test(test_factor), cmocka_unit_test(test_refusals)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
