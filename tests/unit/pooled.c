/* The closed form of the pooled adapter against alternating least squares (O13), against the plain closed form where a group is one column, and
 * against its own certificate: the loss of the stored factors is f0 - sum of the values, whatever the Gram's rank. */
#include "check.h"

#include <math.h>
#include <string.h>

#include "adapter/pooled.h"
#include "base/blas.h"
#include "base/memory.h"
#include "problem.h"

#define assert_near(found, expected, slack)                                                                       \
  do {                                                                                                            \
    double near_f = (found), near_e = (expected);                                                                 \
    if (!(fabs(near_f - near_e) <= (slack))) fail_msg("%s: expected %.17g, found %.17g", #found, near_e, near_f); \
  } while (0)

/* x (k, k) positive definite, y (k, n) -> x^{-1} y. */
static void solve(int k, int n, double *x, double *y) {
  assert_done(dcholesky("test", k, x, k));
  dtrsm(false, true, false, k, n, x, k, y, n);
  dtrsm(false, true, true, k, n, x, k, y, n);
}

/* Best loss of rank r by turns: B = K C^T (C HP C^T)^{-1}, then C = (B^T B)^{-1} B^T K HP^{-1}. Everything as in the definition, in double. */
static double by_turns(const problem *pr, int group, int r, double *loss_without) {
  int n = (int)pr->n, m = (int)pr->m, p = m / group;
  double *e, *eh, *k, *hp, *c, *b, *s, *t, *inverse, *square;
  assert_done(NEW(e, n * m, "E"));
  assert_done(NEW(eh, n * m, "E H"));
  assert_done(NEW(k, n * p, "K"));
  assert_done(NEW(hp, p * p, "HP"));
  assert_done(NEW(inverse, p * p, "HP^-1"));
  assert_done(NEW(square, p * p, "HP"));
  assert_done(NEW(c, r * p, "C"));
  assert_done(NEW(b, n * r, "B"));
  assert_done(NEW(s, r * r, "small"));
  assert_done(NEW(t, r * (n + p), "right side"));
  problem_product(pr, e, eh);
  double f0 = 0;
  for (int i = 0; i < n * m; i++) {
    f0 += e[i] * eh[i];
    k[i / m * p + i % m / group] += eh[i];
  }
  for (int i = 0; i < m; i++)
    for (int j = 0; j < m; j++) hp[i / group * p + j / group] += (double)pr->h[i * m + j];
  memcpy(square, hp, (size_t)(p * p) * sizeof *hp);
  for (int i = 0; i < p; i++) inverse[i * p + i] = 1;
  solve(p, p, square, inverse);
  for (int i = 0; i < r * p; i++) c[i] = problem_entry(77, i);
  double loss = f0, hc[400];
  for (int turn = 0; turn < 3000; turn++) {
    dgemm(false, false, r, p, p, 1, c, p, hp, p, 0, hc, p);
    dgemm(false, true, r, r, p, 1, hc, p, c, p, 0, s, r);
    dgemm(false, true, r, n, p, 1, c, p, k, p, 0, t, n);
    solve(r, n, s, t);
    for (int i = 0; i < n; i++)
      for (int j = 0; j < r; j++) b[i * r + j] = t[j * n + i];
    dgemm(true, false, r, r, n, 1, b, r, b, r, 0, s, r);
    dgemm(true, false, r, p, n, 1, b, r, k, p, 0, t, p);
    solve(r, p, s, t);
    dgemm(false, false, r, p, p, 1, t, p, inverse, p, 0, c, p);
  }
  loss = 0;
  for (int i = 0; i < n; i++)
    for (int j = 0; j < m; j++)
      for (int q = 0; q < r; q++) e[i * m + j] -= b[i * r + q] * c[q * p + j / group];
  problem_weigh(pr, n, e, eh);
  for (int i = 0; i < n * m; i++) loss += e[i] * eh[i];
  FREE(e);
  FREE(eh);
  FREE(k);
  FREE(hp);
  FREE(inverse);
  FREE(square);
  FREE(c);
  FREE(b);
  FREE(s);
  FREE(t);
  *loss_without = f0;
  return loss;
}

static void least_squares(void **state) {
  (void)state;
  static const int64_t shape[][2] = {{31, 48}, {5, 48}};
  for (size_t s = 0; s < 2; s++)
    for (int rank = 1; rank <= 4; rank++) {
      problem p;
      adapter a;
      double f0, f, curve[5];
      assert_done(problem_new(&p, PROBLEM_DECAYING, shape[s][0], shape[s][1], 3));
      adapter_request q = {.where = "test", .n = p.n, .m = p.m, .e = p.e, .h = p.h, .rank = rank, .trace = NAN};
      assert_done(adapter_pooled(&q, 8, &a));
      f = by_turns(&p, 8, rank, &f0);
      assert_near(a.trace, f0, 1e-12 * f0);
      double tail = f0;
      for (int r = 0; r < rank; r++) tail -= a.values[r];
      assert_near(tail, f, 1e-9 * f0);
      assert_done(adapter_losses(p.n, p.m, p.e, p.h, a.b, a.a, rank, a.trace, curve));
      assert_near(curve[rank], f, 1e-9 * f0);
      adapter_free(&a);
      problem_free(&p);
    }
}

/* The certificate at every rank, rows constant on groups, the sign rule; singular Grams and groups that are dead as well. */
static void certificate(void **state) {
  (void)state;
  static const int64_t shape[][3] = {{40, 60, 5}, {40, 60, 0}, {7, 96, 8}, {90, 36, 3}, {33, 30, 1}};
  for (size_t s = 0; s < sizeof shape / sizeof *shape; s++)
    for (int kind = 0; kind < PROBLEM_KINDS; kind++) {
      problem p;
      adapter a;
      int64_t n = shape[s][0], m = shape[s][1];
      int group = (int)shape[s][2], wide = group ? group : (int)m, groups = (int)m / wide, most = n < groups ? (int)n : groups;
      if (kind == PROBLEM_IDENTITY || kind == PROBLEM_DIAGONAL) continue;
      assert_done(problem_new(&p, kind, n, m, 1));
      if (kind == PROBLEM_DEAD) /* the second group as a whole */
        for (int64_t i = 0; i < m * m; i++)
          if (i % m / wide == 1 || i / m / wide == 1) p.h[i] = 0;
      adapter_request q = {.where = "test", .n = n, .m = m, .e = p.e, .h = p.h, .rank = most, .trace = NAN};
      assert_done(adapter_pooled(&q, group, &a));
      double *curve, tail = a.trace, slack = 1e-7 * a.trace;
      assert_done(NEW(curve, most + 1, "losses"));
      assert_done(adapter_losses(n, m, p.e, p.h, a.b, a.a, most, a.trace, curve));
      for (int r = 0; r <= most; r++) {
        if (r) tail -= a.values[r - 1];
        assert_near(curve[r], tail, slack);
        if (r) assert_true(curve[r] <= curve[r - 1] + slack);
      }
      for (int r = 0; r < most; r++)
        for (int64_t j = 0; j < m; j++) assert_true(a.a[r * m + j] == a.a[r * m + j / wide * wide]);
      if (group == 1) { /* no pooling at all */
        adapter plain;
        double *own;
        q.rank = 9;
        adapter_free(&a);
        assert_done(NEW(own, 10, "losses"));
        assert_done(adapter_pooled(&q, group, &a));
        assert_done(adapter_local(&q, &plain));
        assert_done(adapter_losses(n, m, p.e, p.h, a.b, a.a, 9, a.trace, curve));
        assert_done(adapter_losses(n, m, p.e, p.h, plain.b, plain.a, 9, a.trace, own));
        for (int r = 0; r <= 9; r++) assert_near(curve[r], own[r], 1e-7 * a.trace);
        if (kind == PROBLEM_DECAYING) assert_near(product_distance(&p, &plain, &a), 0, 1e-4);
        adapter_free(&plain);
        FREE(own);
      }
      FREE(curve);
      adapter_free(&a);
      problem_free(&p);
    }
}

static void refusals(void **state) {
  (void)state;
  problem p;
  adapter a;
  assert_done(problem_new(&p, PROBLEM_DECAYING, 20, 24, 0));
  adapter_request q = {.where = "layer", .n = p.n, .m = p.m, .e = p.e, .h = p.h, .rank = 4, .trace = NAN};
  assert_int_equal(adapter_pooled(&q, 7, &a), E_INTERNAL);
  status_clear();
  q.rank = 5;
  assert_int_equal(adapter_pooled(&q, 6, &a), E_INTERNAL);
  assert_non_null(strstr(status_message(), "layer: pooled adapter: expected a rank of 1 to 4, found 5"));
  status_clear();
  q.rank = 2;
  q.h = NULL;
  assert_int_equal(adapter_pooled(&q, 6, &a), E_INTERNAL);
  status_clear();
  q.h = p.h;
  p.e[3] = NAN;
  assert_int_equal(adapter_pooled(&q, 6, &a), E_NUMERICS);
  status_clear();
  p.e[3] = 0;
  p.h[25] = INFINITY;
  assert_int_equal(adapter_pooled(&q, 6, &a), E_NUMERICS);
  assert_null(a.b);
  status_clear();
  problem_free(&p);
  assert_int_equal(mem_now(), 0);
  q.n = q.m = 4096;
  assert_true(adapter_pooled_flops(&q, 64) < 2.0 * 4096 * 4096 * 4096);
  assert_true(adapter_pooled_bytes(&q, 64) > 8u * 64 * 4096);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(least_squares), cmocka_unit_test(certificate), cmocka_unit_test(refusals)};
  blas_setup();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
