/* Block Krylov against operators whose spectrum is known: G = Z^T diag(d) Z with Z a product of reflections. */
#include "check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "dist/krylov.h"

#define assert_near(found, expected, slack)                                                                       \
  do {                                                                                                            \
    double near_f = (found), near_e = (expected);                                                                 \
    if (!(fabs(near_f - near_e) <= (slack))) fail_msg("%s: expected %.17g, found %.17g", #found, near_e, near_f); \
  } while (0)

enum { MIRRORS = 3 };

typedef struct known {
  int64_t n;
  double *d, *mirror, *row; /* [n], (MIRRORS, n) unit rows, [n] */
  int fail_at, calls;       /* the call that returns an error; 0: none */
} known;

static double entry(int64_t i) { return sin(12.9898 * (double)i + 1) * cos(3.7 * (double)(i * i % 1009)); }

static void known_new(known *g, int64_t n, double (*value)(int64_t i, int64_t n)) {
  *g = (known){.n = n};
  assert_done(NEW(g->d, n, "spectrum"));
  assert_done(NEW(g->mirror, MIRRORS * n, "mirrors"));
  assert_done(NEW(g->row, n, "row"));
  for (int64_t i = 0; i < n; i++) g->d[i] = value(i, n);
  for (int k = 0; k < MIRRORS; k++) {
    double sum = 0, *u = g->mirror + k * n;
    for (int64_t i = 0; i < n; i++) {
      u[i] = entry(i + 7919 * k);
      sum += u[i] * u[i];
    }
    for (int64_t i = 0; i < n; i++) u[i] /= sqrt(sum);
  }
}

static void known_free(known *g) {
  FREE(g->d);
  FREE(g->mirror);
  FREE(g->row);
}

static void reflect(const known *g, int k, double *x) {
  const double *u = g->mirror + k * g->n;
  double dot = 0;
  for (int64_t i = 0; i < g->n; i++) dot += u[i] * x[i];
  for (int64_t i = 0; i < g->n; i++) x[i] -= 2 * dot * u[i];
}

static void multiply(const known *g, const double *x, double *y) {
  memcpy(y, x, (size_t)g->n * sizeof *y);
  for (int k = 0; k < MIRRORS; k++) reflect(g, k, y);
  for (int64_t i = 0; i < g->n; i++) y[i] *= g->d[i];
  for (int k = MIRRORS - 1; k >= 0; k--) reflect(g, k, y);
}

static status apply(void *context, int b, int64_t n, const double *x, double *y) {
  known *g = context;
  if (++g->calls == g->fail_at) return status_fail("krylov.c", 1, E_IO, "operator: refused");
  for (int i = 0; i < b; i++) multiply(g, x + i * n, y + i * n);
  return OK;
}

static double trace(const known *g) {
  double sum = 0;
  for (int64_t i = 0; i < g->n; i++) sum += g->d[i];
  return sum;
}

/* sum of the k largest */
static double top(const known *g, int k) {
  double sum = 0;
  bool *used;
  assert_done(NEW(used, g->n, "used"));
  for (int r = 0; r < k; r++) {
    int64_t best = -1;
    for (int64_t i = 0; i < g->n; i++)
      if (!used[i] && (best < 0 || g->d[i] > g->d[best])) best = i;
    used[best] = true;
    sum += g->d[best];
  }
  FREE(used);
  return sum;
}

/* The result's own claims, checked from outside: orthonormal rows, values = Rayleigh quotients, excess of the tail within the tolerance. */
static void judge(known *g, const krylov_request *q) {
  krylov_result r;
  char name[64];
  snprintf(name, sizeof name, "spectrum of %g, %g", g->d[0], g->d[g->n / 2]);
  assert_done(krylov_top(name, q, &r));
  double captured = 0, total = trace(g), best = top(g, q->wanted), *y, largest = fabs(r.values[0]);
  assert_done(NEW(y, g->n, "image"));
  for (int i = 0; i < q->wanted; i++) {
    const double *v = r.vectors + i * g->n;
    for (int j = 0; j <= i; j++) {
      double dot = 0;
      for (int64_t c = 0; c < g->n; c++) dot += v[c] * r.vectors[j * g->n + c];
      assert_near(dot, i == j, 1e-12);
    }
    multiply(g, v, y);
    double quotient = 0;
    for (int64_t c = 0; c < g->n; c++) quotient += v[c] * y[c];
    assert_near(quotient, r.values[i], 1e-12 * (1 + largest));
    if (i) assert_true(r.values[i] <= r.values[i - 1]);
    captured += quotient;
  }
  assert_true(best - captured >= -1e-12 * total);
  if (best - captured > q->tolerance * (total - best) + 1e-12 * total)
    fail_msg("n %lld, %d wanted: excess %.3e of the tail, allowed %.1e", (long long)g->n, q->wanted, (best - captured) / (total - best),
             q->tolerance);
  FREE(y);
  krylov_result_free(&r);
}

static double decaying(int64_t i, int64_t n) { return i < 4 ? (double)(100 >> i) : 1 / (double)(i * 37 % n + 1); }
static double flat(int64_t i, int64_t n) { /* somewhat as of a square matrix of independent entries */
  return pow(1 + sqrt((double)(i + 1) / (double)n), 2);
}
static double clustered(int64_t i, int64_t n) { return i % 10 == 0 ? 3 : 1 + 1e-9 * (double)(i % (n / 2)); }
static double low_rank(int64_t i, int64_t n) { return i < n / 20 + 1 ? (double)(i + 1) : 0; }
static double plunging(int64_t i, int64_t n) { return (i < 5 ? 1000 : 1) / pow((double)(i + 1), 2) * (1 + 0.5 * entry(i + n)); }
static double exhausted(int64_t i, int64_t n) { return i < n / 3 ? 1 + (double)i / (double)n : 0; }
static double nothing(int64_t i, int64_t n) { return 0 * (double)(i + n); }
static double vast(int64_t i, int64_t n) { return 1e100 * decaying(i, n); }
static double steep(int64_t i, int64_t n) { return pow(10, -30.0 * (double)i / (double)n); }
static double ramp(int64_t i, int64_t n) { return 1 + pow((double)i / (double)n, 0.1); }

static void spectra(void **state) {
  (void)state;
  double (*const values[])(int64_t, int64_t) = {decaying, flat, clustered, low_rank, nothing, vast, steep};
  const int wanted[] = {1, 7, 20};
  for (size_t v = 0; v < sizeof values / sizeof *values; v++)
    for (size_t w = 0; w < 3; w++) {
      known g;
      known_new(&g, 333, values[v]);
      for (int loose = 0; loose < 2; loose++)
        judge(&g, &(krylov_request){.n = g.n, .wanted = wanted[w], .tolerance = loose ? 1e-3 : 1e-8, .apply = apply, .context = &g});
      known_free(&g);
    }
}

/* Fewer columns than a block, a block that does not divide, every pair wanted. */
static void sizes(void **state) {
  (void)state;
  for (int64_t n = 1; n < 60; n += n < 6 ? 1 : 17)
    for (int wanted = 1; wanted <= n; wanted += wanted < 4 ? 1 : 11)
      for (int block = 0; block <= 5; block += 5) {
        known g;
        known_new(&g, n, decaying);
        judge(&g, &(krylov_request){.n = n, .wanted = wanted, .block = block, .tolerance = 1e-6, .apply = apply, .context = &g});
        judge(&g, &(krylov_request){.n = n, .wanted = (int)n, .block = block, .tolerance = 1e-6, .apply = apply, .context = &g});
        known_free(&g);
      }
}

/* Outliers first, then values that come up slowly behind them: gains pause before the wanted vectors are found. */
static void pauses(void **state) {
  (void)state;
  for (int64_t n = 400; n < 1000; n += 59) {
    known g;
    known_new(&g, n, plunging);
    for (double tolerance = 1e-4; tolerance > 1e-9; tolerance *= 0.01)
      judge(&g, &(krylov_request){.n = n, .wanted = 8, .tolerance = tolerance, .apply = apply, .context = &g});
    known_free(&g);
  }
}

/* The space outgrows the rank of G: its newest residuals are rounding, and the rows made of them must still be orthonormal. */
static void rank_used_up(void **state) {
  (void)state;
  known g;
  known_new(&g, 900, exhausted);
  for (int wanted = 100; wanted <= 300; wanted += 100)
    judge(&g, &(krylov_request){.n = g.n, .wanted = wanted, .tolerance = 1e-8, .apply = apply, .context = &g});
  known_free(&g);
}

/* A start inside an invariant subspace of small values, a zero start, a start with equal rows: random rows take the place of what vanishes. */
static void poor_starts(void **state) {
  (void)state;
  enum { N = 300, ROWS = 16 };
  known g;
  double *start;
  known_new(&g, N, decaying);
  assert_done(NEW(start, ROWS * N, "start"));
  krylov_request q = {.n = N, .wanted = 10, .tolerance = 1e-6, .start = start, .start_rows = ROWS, .apply = apply, .context = &g};
  judge(&g, &q);
  for (int i = 0; i < ROWS; i++) { /* eigenvectors: the reflections undone */
    double *row = start + i * N;
    memset(row, 0, N * sizeof *row);
    row[200 + i] = 1e-5 * (i + 1);
    for (int k = MIRRORS - 1; k >= 0; k--) reflect(&g, k, row);
  }
  judge(&g, &q);
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < N; j++) start[i * N + j] = entry(j) * (i + 1) + 1e-14 * entry(i + j);
  judge(&g, &q);
  q.start_rows = 3; /* fewer rows than the block */
  judge(&g, &q);
  FREE(start);
  known_free(&g);
}

/* A good start saves applications; a fixed number of blocks is kept. */
static void starts_and_blocks(void **state) {
  (void)state;
  enum { N = 400, WANTED = 32 };
  known g;
  krylov_result first, second;
  known_new(&g, N, decaying);
  krylov_request q = {.n = N, .wanted = WANTED, .tolerance = 1e-8, .apply = apply, .context = &g};
  assert_done(krylov_top("test", &q, &first));
  q.start = first.vectors;
  q.start_rows = krylov_block(N, WANTED);
  assert_true(2 * q.start_rows == WANTED);
  for (int64_t i = 0; i < q.start_rows * N; i++)
    first.vectors[i] += first.vectors[q.start_rows * N + i]; /* every wanted vector has its share */
  assert_done(krylov_top("test", &q, &second));
  assert_true(second.applications < first.applications);
  krylov_result_free(&second);
  q.start = NULL;
  q.block = 16;
  q.blocks = 3;
  assert_done(krylov_top("test", &q, &second));
  assert_int_equal(second.applications, 48 + KRYLOV_EXTRA);
  krylov_result_free(&first);
  krylov_result_free(&second);
  known_free(&g);
}

static void same_again(void **state) {
  (void)state;
  known g;
  krylov_result a, b;
  known_new(&g, 257, decaying);
  krylov_request q = {.n = 257, .wanted = 9, .tolerance = 1e-7, .apply = apply, .context = &g};
  assert_done(krylov_top("test", &q, &a));
  assert_done(krylov_top("test", &q, &b));
  assert_memory_equal(a.vectors, b.vectors, 9 * 257 * sizeof(double));
  assert_memory_equal(a.values, b.values, 9 * sizeof(double));
  krylov_result_free(&a);
  krylov_result_free(&b);
  known_free(&g);
}

static status lopsided(void *context, int b, int64_t n, const double *x, double *y) { /* not symmetric: values alone would not tell */
  known *g = context;
  for (int i = 0; i < b; i++) {
    multiply(g, x + i * n, y + i * n);
    for (int64_t j = 0; j + 1 < n; j++) y[i * n + j] += x[i * n + j + 1];
  }
  return OK;
}

static status not_a_number(void *context, int b, int64_t n, const double *x, double *y) {
  status st = apply(context, b, n, x, y);
  y[0] = NAN;
  return st;
}

static void refusals(void **state) {
  (void)state;
  known g;
  krylov_result r;
  known_new(&g, 3000, ramp);
  krylov_request q = {.n = 3000, .wanted = 1, .tolerance = 1e-14, .apply = apply, .context = &g};
  assert_int_equal(krylov_top("a", &q, &r), E_NUMERICS);
  assert_non_null(strstr(status_message(), "a: block Krylov: 1 pairs of order 3000 did not converge to 1.0e-14 in a space of 528"));
  status_clear();
  known_free(&g);
  known_new(&g, 200, decaying);
  q = (krylov_request){.n = 200, .wanted = 4, .tolerance = 1e-6, .apply = lopsided, .context = &g};
  assert_int_equal(krylov_top("a", &q, &r), E_NUMERICS);
  status_clear();
  q.apply = not_a_number;
  assert_int_equal(krylov_top("a", &q, &r), E_NUMERICS);
  status_clear();
  q.apply = apply;
  for (int call = 1; call <= 3; call++) {
    g.calls = 0;
    g.fail_at = call;
    assert_refused(krylov_top("a", &q, &r), E_IO, "operator: refused");
    assert_null(r.vectors);
  }
  q.wanted = 201;
  assert_int_equal(krylov_top("a", &q, &r), E_INTERNAL);
  status_clear();
  q.wanted = 4;
  q.tolerance = 0;
  assert_int_equal(krylov_top("a", &q, &r), E_INTERNAL);
  status_clear();
  known_free(&g);
  assert_int_equal(mem_now(), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(spectra),      cmocka_unit_test(sizes),       cmocka_unit_test(pauses),
      cmocka_unit_test(rank_used_up), cmocka_unit_test(poor_starts), cmocka_unit_test(starts_and_blocks),
      cmocka_unit_test(same_again),   cmocka_unit_test(refusals),
  };
  blas_setup();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
