/* Targets of a quantized prefix: the loss of any weights against the original outputs is that of the targets up to a constant (O11), the targets solve their
 * equations, dead columns and alpha, and rows do not depend on who makes them. */
#include "check.h"

#include <math.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "calibrate/target.h"
#include "problem.h"

enum { N = 150, M = 40, TOKENS = 300 };

typedef struct streams {
  double x[TOKENS * M], xq[TOKENS * M]; /* of the original, of the prefix */
  float w[N * M];
  double gram[M * M], cross[M * M], outputs[N * M], factor[M * M];
  float h[M * M];
  double mu;
} streams;

/* H = Hq in float, u upper with u u^T = H + mu I: the Cholesky factor of the matrix turned by 180 degrees. */
static void factor(streams *s) {
  double turned[M * M];
  for (int i = 0; i < M; i++)
    for (int j = 0; j < M; j++)
      turned[(M - 1 - i) * M + M - 1 - j] = (double)s->h[i * M + j] + (i == j ? s->mu + (s->h[i * M + i] == 0) : 0);
  assert_done(dcholesky("test", M, turned, M));
  for (int i = 0; i < M; i++)
    for (int j = 0; j < M; j++) s->factor[i * M + j] = turned[(M - 1 - i) * M + M - 1 - j];
}

static streams *new_streams(double mu, int dead) {
  streams *s = NULL;
  double y[TOKENS];
  assert_done(NEW(s, 1, "streams"));
  for (int k = 0; k < TOKENS * M; k++) {
    s->x[k] = problem_entry(1, k) / (1 + k % M);
    s->xq[k] = s->x[k] + 0.2 * problem_entry(2, k) / (1 + k % M);
    if (k % M == dead) s->xq[k] = 0;
  }
  for (int k = 0; k < N * M; k++) s->w[k] = (float)problem_entry(3, k);
  dgemm(true, false, M, M, TOKENS, 1, s->xq, M, s->xq, M, 0, s->gram, M);
  dgemm(true, false, M, M, TOKENS, 1, s->x, M, s->xq, M, 0, s->cross, M);
  for (int i = 0; i < N; i++) {
    for (int t = 0; t < TOKENS; t++) {
      y[t] = 0;
      for (int k = 0; k < M; k++) y[t] += s->x[t * M + k] * (double)s->w[i * M + k];
    }
    for (int k = 0; k < M; k++)
      for (int t = 0; t < TOKENS; t++) s->outputs[i * M + k] += y[t] * s->xq[t * M + k];
  }
  for (int k = 0; k < M * M; k++) s->h[k] = (float)s->gram[k];
  s->mu = mu;
  factor(s);
  return s;
}

static target_request request(const streams *s, bool of_outputs, double alpha) {
  return (target_request){.where = "test",
                          .n = N,
                          .m = M,
                          .cross = of_outputs ? s->outputs : s->cross,
                          .of_outputs = of_outputs,
                          .h = s->h,
                          .factor = s->factor,
                          .mu = s->mu,
                          .alpha = alpha};
}

/* ||X W^T - Xq Z^T||^2 token by token. */
static double direct(const streams *s, const float *z) {
  double sum = 0;
  for (int t = 0; t < TOKENS; t++)
    for (int i = 0; i < N; i++) {
      double off = 0;
      for (int k = 0; k < M; k++) off += s->x[t * M + k] * (double)s->w[i * M + k] - s->xq[t * M + k] * (double)z[i * M + k];
      sum += off * off;
    }
  return sum;
}

/* tr((A - B) Hq (A - B)^T) */
static double between(const streams *s, const float *a, const float *b) {
  double sum = 0;
  for (int i = 0; i < N; i++)
    for (int k = 0; k < M; k++)
      for (int j = 0; j < M; j++)
        sum += ((double)a[i * M + k] - (double)b[i * M + k]) * s->gram[k * M + j] * ((double)a[i * M + j] - (double)b[i * M + j]);
  return sum;
}

static void test_loss(void **state) {
  (void)state;
  streams *s = new_streams(1e-9, -1);
  float target[N * M], z[N * M];
  memcpy(target, s->w, sizeof target);
  target_request q = request(s, false, 1);
  assert_done(target_rows(&q, 0, N, target));
  double least = direct(s, target);
  assert_true(least < 0.9 * direct(s, s->w));
  for (int trial = 0; trial < 3; trial++) {
    for (int k = 0; k < N * M; k++) z[k] = target[k] + (float)(pow(10, -trial) * problem_entry(7 + (uint64_t)trial, k));
    double all = direct(s, z), parts = least + between(s, target, z);
    if (!(fabs(all - parts) <= 1e-6 * all)) fail_msg("expected a loss of %.12g, found %.12g", all, parts);
  }
  FREE(s);
}

/* Both forms of the cross products, and the equation W1 (Hq + mu I) = right side. */
static void test_equation(void **state) {
  (void)state;
  streams *s = new_streams(0.5, -1);
  float one[N * M], other[N * M];
  memcpy(one, s->w, sizeof one);
  memcpy(other, s->w, sizeof other);
  target_request q = request(s, false, 1);
  assert_done(target_rows(&q, 0, N, one));
  q = request(s, true, 1);
  assert_done(target_rows(&q, 0, N, other));
  for (int i = 0; i < N; i++)
    for (int j = 0; j < M; j++) {
      double left = s->mu * (double)one[i * M + j], right = s->outputs[i * M + j] + s->mu * (double)s->w[i * M + j];
      for (int k = 0; k < M; k++) left += (double)one[i * M + k] * s->gram[k * M + j];
      if (!(fabs(left - right) <= 1e-4)) fail_msg("row %d, column %d: expected %.9g, found %.9g", i, j, right, left);
      if (!(fabs((double)one[i * M + j] - (double)other[i * M + j]) <= 1e-5)) fail_msg("the two forms differ at %d, %d", i, j);
    }
  FREE(s);
}

static void test_alpha_and_dead(void **state) {
  (void)state;
  streams *s = new_streams(0.1, 7);
  float none[N * M], half[N * M], full[N * M];
  memcpy(none, s->w, sizeof none);
  memcpy(half, s->w, sizeof half);
  memcpy(full, s->w, sizeof full);
  target_request q = request(s, false, 0);
  assert_done(target_rows(&q, 0, N, none));
  assert_memory_equal(none, s->w, sizeof none);
  q.alpha = 0.5;
  assert_done(target_rows(&q, 0, N, half));
  q.alpha = 1;
  assert_done(target_rows(&q, 0, N, full));
  for (int k = 0; k < N * M; k++) {
    if (k % M == 7) assert_true(full[k] == s->w[k]);
    if (!(fabs((double)half[k] - 0.5 * ((double)s->w[k] + (double)full[k])) <= 1e-6)) fail_msg("entry %d is not half of the way", k);
  }
  FREE(s);
}

static void test_rows(void **state) {
  (void)state;
  streams *s = new_streams(0.1, -1);
  float whole[N * M], parts[N * M];
  memcpy(whole, s->w, sizeof whole);
  memcpy(parts, s->w, sizeof parts);
  target_request q = request(s, false, 0.5);
  assert_done(target_rows(&q, 0, N, whole));
  assert_done(target_rows(&q, 128, N, parts));
  assert_done(target_rows(&q, 0, 64, parts));
  assert_done(target_rows(&q, 64, 128, parts));
  assert_memory_equal(whole, parts, sizeof whole);
  FREE(s);
}

static void test_wrong_factor(void **state) {
  (void)state;
  streams *s = new_streams(0.1, -1);
  float w[N * M];
  memcpy(w, s->w, sizeof w);
  s->factor[3 * M + 5] *= 1.001;
  target_request q = request(s, false, 0.5);
  assert_int_equal(target_rows(&q, 0, N, w), E_NUMERICS);
  assert_non_null(strstr(status_message(), "row 0 of the target: expected a residual of at most 1e-08"));
  status_clear();
  FREE(s);
}

int main(void) {
  blas_setup();
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_loss), cmocka_unit_test(test_equation), cmocka_unit_test(test_alpha_and_dead),
                                     cmocka_unit_test(test_rows), cmocka_unit_test(test_wrong_factor)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
