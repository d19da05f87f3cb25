/* Codes and adapter in turn: each method of the table against its own sentence, with a quantizer of three lines; what is kept belongs together. */
#include "check.h"

#include <math.h>
#include <string.h>

#include "joint/alternation.h"
#include "base/blas.h"
#include "base/memory.h"
#include "problem.h"

#define assert_near(found, expected, slack)                                                                       \
  do {                                                                                                            \
    double near_f = (found), near_e = (expected);                                                                 \
    if (!(fabs(near_f - near_e) <= (slack))) fail_msg("%s: expected %.17g, found %.17g", #found, near_e, near_f); \
  } while (0)

enum { N = 24, M = 36, SIZE = N * M };

/* Rounds to multiples of step within +-2 steps; step 0: exact. `worse`: from that call on with a step too large, as a grid that is fitted
 * anew may be. Fails at the call `fails`. */
typedef struct quantizer {
  float step, q[SIZE], kept[SIZE];
  int calls, keeps, kept_at, fails, worse;
} quantizer;

static float nearest(const quantizer *z, float x) { return z->step > 0 ? z->step * fminf(fmaxf(rintf(x / z->step), -2), 2) : x; }

static status round_it(void *context, const float *target, float *q) {
  quantizer *z = context;
  if (++z->calls == z->fails) return E_NUMERICS;
  if (z->calls == z->worse) z->step *= 1.5F;
  for (int i = 0; i < SIZE; i++) q[i] = z->q[i] = nearest(z, target[i]);
  return OK;
}

static void keep_it(void *context) {
  quantizer *z = context;
  memcpy(z->kept, z->q, sizeof z->kept);
  z->keeps++;
  z->kept_at = z->calls;
}

/* The weight of a problem (its "residual", about 0.01) and a request for a method without its row of the table. */
static alternation_request request_of(const problem *p, quantizer *z, int rank) {
  *z = (quantizer){.step = 0.007F};
  return (alternation_request){.fit = {.where = "layer", .n = p->n, .m = p->m, .rank = rank},
                               .w = p->e,
                               .judge = p->h,
                               .rounds = 1,
                               .round = round_it,
                               .keep = keep_it,
                               .context = z};
}

/* Listed losses belong to what was kept: the loss of the kept codes and factors, as it is written. */
static void check_kept(const problem *p, const quantizer *z, const alternation *a) {
  problem rest = *p;
  float e[SIZE];
  for (int i = 0; i < SIZE; i++) e[i] = p->e[i] - z->kept[i];
  rest.e = e;
  double direct = problem_loss(&rest, a->factors.b, a->factors.a, a->factors.rank, a->factors.rank);
  assert_near(a->losses[a->kept], direct, 1e-9 * direct + 1e-14 * problem_loss(p, a->factors.b, a->factors.a, a->factors.rank, 0));
}

/* LoftQ with T = 1 = LASQ-e = LR(W - q(W), I, r), to the last bit; its loss is the sum of the discarded squared singular values. */
static void one_round(void **state) {
  (void)state;
  problem p;
  quantizer z;
  alternation a;
  adapter plain;
  float e[SIZE];
  assert_done(problem_new(&p, PROBLEM_IDENTITY, N, M, 0));
  alternation_request q = request_of(&p, &z, 5);
  assert_done(alternate(&q, &a));
  for (int i = 0; i < SIZE; i++) e[i] = p.e[i] - nearest(&z, p.e[i]);
  adapter_request fit = {.where = "layer", .n = N, .m = M, .e = e, .rank = 5, .trace = NAN};
  assert_done(adapter_local(&fit, &plain));
  assert_memory_equal(a.factors.a, plain.a, 5 * M * sizeof(float));
  assert_memory_equal(a.factors.b, plain.b, N * 5 * sizeof(float));
  double tail = a.factors.trace;
  for (int r = 0; r < 5; r++) tail -= a.factors.values[r];
  assert_int_equal(a.count, 1);
  assert_near(a.losses[0], tail, 1e-10 * a.factors.trace);
  assert_true(z.calls == 1 && z.keeps == 1);
  check_kept(&p, &z, &a);
  adapter_free(&plain);
  alternation_free(&a);
  problem_free(&p);
}

/* LoftQ, T = 4: the rounds by hand; the last is the result, and losses in H are listed too. */
static void several_rounds(void **state) {
  (void)state;
  problem p;
  quantizer z;
  alternation a;
  float e[SIZE], product[SIZE] = {0};
  assert_done(problem_new(&p, PROBLEM_DECAYING, N, M, 2));
  alternation_request q = request_of(&p, &z, 6);
  q.rounds = 4;
  assert_done(alternate(&q, &a));
  assert_true(a.count == 4 && a.kept == 3 && z.calls == 4 && z.keeps == 4);
  for (int t = 0; t < 4; t++) {
    adapter plain;
    for (int i = 0; i < SIZE; i++) e[i] = p.e[i] - nearest(&z, p.e[i] - product[i]);
    adapter_request fit = {.where = "layer", .n = N, .m = M, .e = e, .rank = 6, .trace = NAN};
    assert_done(adapter_local(&fit, &plain));
    sgemm(false, false, N, M, 6, 1, plain.b, 6, plain.a, M, 0, product, M);
    problem rest = {.n = N, .m = M, .e = e, .h = p.h};
    double direct = problem_loss(&rest, plain.b, plain.a, 6, 6);
    assert_near(a.losses[t], direct, 1e-9 * direct);
    adapter_free(&plain);
  }
  check_kept(&p, &z, &a);
  alternation_free(&a);
  problem_free(&p);
}

static void lasq(void **state) {
  (void)state;
  problem p;
  quantizer z;
  alternation a;
  adapter w;
  float rounded[SIZE];
  assert_done(problem_new(&p, PROBLEM_DECAYING, N, M, 4));
  alternation_request q = request_of(&p, &z, 7);
  q.rounds = 0;
  q.start = START_WEIGHT;
  adapter_request fit = {.where = "layer", .n = N, .m = M, .e = p.e, .rank = 7, .trace = NAN};
  assert_done(adapter_local(&fit, &w));
  for (int base_first = 0; base_first < 2; base_first++) {
    q.base_first = base_first;
    z.keeps = 0;
    assert_done(alternate(&q, &a));
    assert_memory_equal(a.factors.a, w.a, 7 * M * sizeof(float));
    for (int i = 0; i < N; i++)
      for (int j = 0; j < M; j++) {
        double target = (double)p.e[i * M + j];
        for (int r = 0; r < 7 && !base_first; r++) target -= (double)w.b[i * 7 + r] * (double)w.a[r * M + j];
        assert_near((double)z.kept[i * M + j], fmin(fmax(target, -0.014), 0.014), 0.0035 + 1e-7);
        if (base_first) assert_near((double)z.kept[i * M + j], (double)nearest(&z, p.e[i * M + j]), 0);
      }
    assert_true(z.keeps == 1 && a.count == 1);
    check_kept(&p, &z, &a);
    alternation_free(&a);
  }
  q.base_first = false;
  z.step = 0; /* exact: nothing is lost */
  assert_done(alternate(&q, &a));
  assert_near(a.losses[0], 0, 1e-12 * problem_loss(&p, w.b, w.a, 7, 0));
  alternation_free(&a);
  z.step = 0.007F;
  q.start = START_ROUNDED;
  for (int i = 0; i < SIZE; i++) rounded[i] = nearest(&z, p.e[i]);
  fit.e = rounded;
  adapter_free(&w);
  assert_done(adapter_local(&fit, &w));
  assert_done(alternate(&q, &a));
  assert_memory_equal(a.factors.a, w.a, 7 * M * sizeof(float));
  check_kept(&p, &z, &a);
  alternation_free(&a);
  adapter_free(&w);
  problem_free(&p);
}

/* CALDERA and ODLRI: the least of the list is kept, with its codes. */
static void best_round(void **state) {
  (void)state;
  for (uint64_t seed = 0; seed < 6; seed++)
    for (int start = START_ZERO; start <= START_OUTLIERS; start++) {
      problem p;
      quantizer z;
      alternation a;
      assert_done(problem_new(&p, seed % 2 ? PROBLEM_DECAYING : PROBLEM_SINGULAR, N, M, seed));
      alternation_request q = request_of(&p, &z, 4);
      q.start = start;
      q.fit.h = p.h;
      q.rounds = 5;
      q.keep_best = true;
      z.worse = seed < 3 ? 4 : 0;
      assert_done(alternate(&q, &a));
      assert_int_equal(a.count, 5);
      for (int t = 0; t < 5; t++) assert_true(a.losses[a.kept] <= a.losses[t] && (t >= a.kept || a.losses[t] > a.losses[a.kept]));
      assert_int_equal(z.kept_at, a.kept + 1 + (start == START_ROUNDED));
      if (z.worse) assert_true(a.kept < 3);
      check_kept(&p, &z, &a);
      double tail = a.factors.trace; /* its factors are optimal for its codes */
      for (int r = 0; r < 4; r++) tail -= a.factors.values[r];
      assert_near(a.losses[a.kept], tail, 1e-5 * tail + 1e-7 * a.factors.trace);
      alternation_free(&a);
      problem_free(&p);
    }
}

/* P of the outlier start is W itself on the columns of largest diagonal, and the projection of W on them elsewhere. */
static void outliers(void **state) {
  (void)state;
  problem p;
  quantizer z;
  alternation a;
  assert_done(problem_new(&p, PROBLEM_DECAYING, N, M, 8));
  static const int loud[] = {3, 17, 18, 35};
  for (int k = 0; k < 4; k++) p.h[loud[k] * (M + 1)] += 1000;
  alternation_request q = request_of(&p, &z, 4);
  q.start = START_OUTLIERS;
  q.rounds = 0;
  assert_done(alternate(&q, &a));
  double rest[SIZE], scale = 0;
  for (int i = 0; i < SIZE; i++) {
    rest[i] = (double)p.e[i];
    scale = fmax(scale, fabs(rest[i]));
    for (int r = 0; r < 4; r++) rest[i] -= (double)a.factors.b[i / M * 4 + r] * (double)a.factors.a[r * M + i % M];
  }
  for (int j = 0; j < M; j++)
    for (int k = 0; k < 4; k++) {
      double inner = 0;
      for (int i = 0; i < N; i++) {
        inner += rest[i * M + j] * (double)p.e[i * M + loud[k]];
        if (j == loud[k]) assert_near(rest[i * M + j], 0, 1e-6 * scale);
      }
      assert_near(inner, 0, 1e-6 * scale * scale * N);
    }
  check_kept(&p, &z, &a);
  alternation_free(&a);
  problem_free(&p);
}

static void refusals(void **state) {
  (void)state;
  problem p;
  quantizer z;
  alternation a;
  assert_done(problem_new(&p, PROBLEM_DECAYING, N, M, 0));
  alternation_request q = request_of(&p, &z, 4);
  q.rounds = 3;
  q.fit.h = p.h;
  z.fails = 3;
  assert_int_equal(alternate(&q, &a), E_NUMERICS);
  assert_true(z.calls == 3 && !a.losses && !a.factors.b);
  q.rounds = 0;
  assert_int_equal(alternate(&q, &a), E_INTERNAL);
  status_clear();
  q.start = START_OUTLIERS;
  q.judge = NULL;
  assert_int_equal(alternate(&q, &a), E_INTERNAL);
  status_clear();
  q.judge = p.h;
  q.fit.rank = N + 1;
  assert_refused(alternate(&q, &a), E_USAGE, "layer: adapter: expected a rank of 1 to 24, found 25");
  p.e[7] = NAN;
  q.fit.rank = 2;
  assert_int_equal(alternate(&q, &a), E_NUMERICS);
  status_clear();
  problem_free(&p);
  assert_int_equal(mem_now(), 0);
}

/* More rounds cost more; a Gram that judges but does not fit costs its trace; the copies of W are counted. */
static void costs(void **state) {
  (void)state;
  float h = 0;
  alternation_request q = {.fit = {.n = 4096, .m = 4096, .rank = 64}, .rounds = 1};
  double one = alternation_flops(&q);
  q.rounds = 5;
  assert_near(alternation_flops(&q), 5 * one, 1e-9 * one);
  q.judge = &h;
  assert_true(alternation_flops(&q) > 5 * one + 5 * 4096. * 4096. * 4096.);
  q.fit.h = &h;
  q.start = START_WEIGHT;
  assert_true(alternation_flops(&q) > 5 * 4096. * 4096. * 4096.);
  assert_true(alternation_bytes(&q) > 8u * 4096 * 4096 && alternation_bytes(&q) < 20u * 4096 * 4096);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(one_round), cmocka_unit_test(several_rounds), cmocka_unit_test(lasq),  cmocka_unit_test(best_round),
      cmocka_unit_test(outliers),  cmocka_unit_test(refusals),       cmocka_unit_test(costs),
  };
  blas_setup();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
