/* The row-major wrappers against plain loops, and the property of BLIS on which equal Grams on any number of ranks rest: an entry of a
 * product depends on its row, its column and k alone. */
#include "check.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"

static blas_info bound;

static int setup(void **state) {
  (void)state;
  bound = blas_setup();
  return 0;
}

/* Reproducible numbers in (-1, 1) with full mantissas. */
static double next_number(uint64_t *x) {
  *x ^= *x << 13, *x ^= *x >> 7, *x ^= *x << 17;
  return (double)(*x >> 11) * 0x1p-52 - 1;
}

static double *doubles(size_t count, uint64_t seed) {
  double *p;
  assert_done(NEW(p, count, "numbers"));
  for (size_t i = 0; i < count; i++) p[i] = next_number(&seed);
  return p;
}

static float *floats(size_t count, uint64_t seed) {
  float *p;
  assert_done(NEW(p, count, "numbers"));
  for (size_t i = 0; i < count; i++) p[i] = (float)next_number(&seed);
  return p;
}

/* ---- wrappers against loops ---- */

enum { M = 23, N = 17, K = 31, WIDE = 40 }; /* every stride is WIDE: nothing is contiguous */

static void test_dgemm(void **state) {
  (void)state;
  double *a = doubles(WIDE * WIDE, 1), *b = doubles(WIDE * WIDE, 2);
  for (int t = 0; t < 4; t++) {
    bool ta = t & 1, tb = t & 2;
    double *c = doubles(WIDE * WIDE, 3), *before = doubles(WIDE * WIDE, 3);
    dgemm(ta, tb, M, N, K, 1.5, a, WIDE, b, WIDE, -0.5, c, WIDE);
    for (int i = 0; i < WIDE; i++)
      for (int j = 0; j < WIDE; j++) {
        double sum = before[i * WIDE + j];
        if (i < M && j < N) {
          sum *= -0.5;
          for (int k = 0; k < K; k++) sum += 1.5 * (ta ? a[k * WIDE + i] : a[i * WIDE + k]) * (tb ? b[j * WIDE + k] : b[k * WIDE + j]);
        }
        assert_true(fabs(c[i * WIDE + j] - sum) <= (i < M && j < N ? 1e-13 : 0)); /* what lies beside c is not touched */
      }
    FREE(c);
    FREE(before);
  }
  FREE(a);
  FREE(b);
}

static void test_sgemm(void **state) {
  (void)state;
  float *a = floats(WIDE * WIDE, 1), *b = floats(WIDE * WIDE, 2);
  for (int t = 0; t < 4; t++) {
    bool ta = t & 1, tb = t & 2;
    float *c = floats(WIDE * WIDE, 3), *before = floats(WIDE * WIDE, 3);
    sgemm(ta, tb, M, N, K, 1.5f, a, WIDE, b, WIDE, -0.5f, c, WIDE);
    for (int i = 0; i < WIDE; i++)
      for (int j = 0; j < WIDE; j++) {
        double sum = before[i * WIDE + j];
        if (i < M && j < N) {
          sum *= -0.5;
          for (int k = 0; k < K; k++)
            sum += 1.5 * (double)(ta ? a[k * WIDE + i] : a[i * WIDE + k]) * (double)(tb ? b[j * WIDE + k] : b[k * WIDE + j]);
        }
        assert_true(fabs(c[i * WIDE + j] - sum) <= (i < M && j < N ? 1e-5 : 0));
      }
    FREE(c);
    FREE(before);
  }
  FREE(a);
  FREE(b);
}

/* Lower triangles only: what lies above the diagonal stays as it was, bit for bit. */
static void test_syrk(void **state) {
  (void)state;
  float *a = floats(WIDE * WIDE, 4), *c = floats(WIDE * WIDE, 5), *before = floats(WIDE * WIDE, 5);
  ssyrk_gram(N, K, 2, a, WIDE, 0.5f, c, WIDE);
  for (int i = 0; i < N; i++)
    for (int j = 0; j < N; j++) {
      double sum = 0.5 * (double)before[i * WIDE + j];
      for (int k = 0; k < K; k++) sum += 2 * (double)a[k * WIDE + i] * (double)a[k * WIDE + j];
      assert_true(j <= i ? fabs(c[i * WIDE + j] - sum) <= 1e-5 : c[i * WIDE + j] == before[i * WIDE + j]);
    }
  double *d = doubles(WIDE * WIDE, 6), *e = doubles(WIDE * WIDE, 7), *kept = doubles(WIDE * WIDE, 7);
  dsyrk_outer(N, K, 2, d, WIDE, 0.5, e, WIDE);
  for (int i = 0; i < N; i++)
    for (int j = 0; j < N; j++) {
      double sum = 0.5 * kept[i * WIDE + j];
      for (int k = 0; k < K; k++) sum += 2 * d[i * WIDE + k] * d[j * WIDE + k];
      assert_true(j <= i ? fabs(e[i * WIDE + j] - sum) <= 1e-13 : e[i * WIDE + j] == kept[i * WIDE + j]);
    }
  FREE(a);
  FREE(c);
  FREE(before);
  FREE(d);
  FREE(e);
  FREE(kept);
}

/* All eight variants: x is recovered from op(t) x or x op(t). Only the named triangle is read. */
static void test_dtrsm(void **state) {
  (void)state;
  for (int v = 0; v < 8; v++) {
    bool right = v & 1, lower = v & 2, transpose = v & 4;
    int order = right ? N : M;
    double *t = doubles(WIDE * WIDE, 8), *x = doubles(WIDE * WIDE, 9), *y = doubles(WIDE * WIDE, 10);
    for (int i = 0; i < order; i++) t[i * WIDE + i] += 8;
    for (int i = 0; i < M; i++)
      for (int j = 0; j < N; j++) {
        double sum = 0;
        for (int k = 0; k < order; k++) {
          int row = right ? k : i, column = right ? j : k; /* of op(t) */
          if (transpose) {
            int kept = row;
            row = column;
            column = kept;
          }
          if (lower ? column > row : column < row) continue;
          sum += t[row * WIDE + column] * (right ? x[i * WIDE + k] : x[k * WIDE + j]);
        }
        y[i * WIDE + j] = sum;
      }
    for (int i = 0; i < order; i++)
      for (int j = 0; j < order; j++)
        if (lower ? j > i : j < i) t[i * WIDE + j] = NAN;
    dtrsm(right, lower, transpose, M, N, t, WIDE, y, WIDE);
    for (int i = 0; i < M; i++)
      for (int j = 0; j < N; j++) assert_true(fabs(y[i * WIDE + j] - x[i * WIDE + j]) <= 1e-13);
    FREE(t);
    FREE(x);
    FREE(y);
  }
}

/* a a^T + shift I of order n, both triangles. */
static double *definite(int n, double shift) {
  double *a = doubles((size_t)n * (size_t)n, 11), *s = doubles((size_t)n * WIDE, 12);
  for (int i = 0; i < n; i++)
    for (int j = 0; j < n; j++) {
      double sum = i == j ? shift : 0;
      for (int k = 0; k < n; k++) sum += a[i * n + k] * a[j * n + k];
      s[i * WIDE + j] = sum;
    }
  FREE(a);
  return s;
}

static void spoil_upper(double *s, int n) {
  for (int i = 0; i < n; i++)
    for (int j = i + 1; j < n; j++) s[i * WIDE + j] = NAN;
}

static void test_dcholesky(void **state) {
  (void)state;
  double *s = definite(K, 1), *l = definite(K, 1);
  spoil_upper(l, K);
  assert_done(dcholesky("test", K, l, WIDE));
  for (int i = 0; i < K; i++)
    for (int j = 0; j < K; j++) {
      double sum = 0;
      for (int k = 0; k < K; k++) sum += l[i * WIDE + k] * l[j * WIDE + k];
      assert_true(fabs(sum - s[i * WIDE + j]) <= 1e-12);
      if (j > i) assert_true(l[i * WIDE + j] == 0);
    }
  s[6 * WIDE + 6] = -1;
  assert_int_equal(dcholesky("layer 3", K, s, WIDE), E_NUMERICS);
  assert_non_null(strstr(status_message(), "layer 3: Cholesky: expected a positive definite matrix of order 31, found column 6 dependent"));
  status_clear();
  FREE(s);
  s = definite(K, 1);
  s[0] = NAN;
  assert_int_equal(dcholesky_column(K, s, WIDE), 0);
  FREE(s);
  FREE(l);
}

static void test_deigen(void **state) {
  (void)state;
  double values[K], *s = definite(K, 0), *z = definite(K, 0);
  spoil_upper(z, K);
  assert_done(deigen("test", K, z, WIDE, values));
  for (int i = 0; i < K; i++) {
    if (i) assert_true(values[i] >= values[i - 1]);
    for (int j = 0; j < K; j++) {
      double image = 0, dot = 0;
      for (int k = 0; k < K; k++) {
        image += s[j * WIDE + k] * z[i * WIDE + k]; /* s z_i = value z_i */
        dot += z[i * WIDE + k] * z[j * WIDE + k];
      }
      assert_true(fabs(image - values[i] * z[i * WIDE + j]) <= 1e-12 * values[K - 1]);
      assert_true(fabs(dot - (i == j)) <= 1e-13);
    }
  }
  s[3 * WIDE + 1] = NAN; /* status codes of the library are not enough: NaN must not pass */
  assert_int_equal(deigen("layer 3", K, s, WIDE, values), E_NUMERICS);
  assert_non_null(strstr(status_message(), "layer 3: "));
  status_clear();
  FREE(s);
  FREE(z);
}

static void test_dqr(void **state) {
  (void)state;
  double *a = doubles(M * WIDE, 13), *q = doubles(M * WIDE, 13), r[N * N];
  assert_done(dqr("test", M, N, q, WIDE, r, N));
  for (int i = 0; i < M; i++)
    for (int j = 0; j < N; j++) {
      double sum = 0, dot = 0;
      for (int k = 0; k < N; k++) sum += q[i * WIDE + k] * r[k * N + j];
      assert_true(fabs(sum - a[i * WIDE + j]) <= 1e-13);
      if (i >= N) continue;
      for (int k = 0; k < M; k++) dot += q[k * WIDE + i] * q[k * WIDE + j];
      assert_true(fabs(dot - (i == j)) <= 1e-13);
      if (i > j) assert_true(r[i * N + j] == 0);
    }
  FREE(a);
  FREE(q);
}

static void test_drank(void **state) {
  (void)state;
  static const int ranks[] = {0, 1, 5, 30, 31};
  for (size_t c = 0; c < sizeof ranks / sizeof *ranks; c++) {
    int rank = ranks[c], found;
    double *a = doubles(K * WIDE, 14), *s = doubles(K * WIDE, 15);
    for (int i = 0; i < K; i++)
      for (int j = 0; j < K; j++) {
        double sum = 0;
        for (int k = 0; k < rank; k++) sum += a[i * WIDE + k] * a[j * WIDE + k];
        s[i * WIDE + j] = sum;
      }
    assert_done(drank(K, s, WIDE, 1e-10, &found));
    assert_int_equal(found, rank);
    FREE(a);
    FREE(s);
  }
}

/* ---- an entry depends on its row, its column and k alone ---- */

/* The smallest side from which the promise is kept. With skx kernels BLIS 0.9 sends every product with two sides through one loop (a lone
 * row or column goes to gemv). Its other x86 kernels have a second way for thin matrices, which sums in another order. */
static int promised_side(void) {
  if (!strstr(bound.library, "blis")) {
    print_message("skipped: equal bits of products in tiles of any shape are known of BLIS only; bound is %s\n", bound.library);
    return 0;
  }
  if (strstr(bound.kernel, "skx")) return 2;
  print_message("only tiles of 512 and more are compared: %s\n", bound.kernel);
  return 512;
}

enum { SIDE = 1100, LONG = 520 };

static const struct {
  int i, j, m, n;
} tiles[] = {{0, 0, 128, 128},     {128, 256, 256, 128}, {0, 0, 1024, 64},  {0, 0, 64, 1024},     {512, 0, 512, 512},  {37, 411, 300, 77},
             {1000, 3, 100, 1000}, {5, 6, 7, 8},         {998, 0, 2, 1100}, {0, 77, 1100, 2},     {200, 200, 33, 3},   {3, 3, 2, 2},
             {640, 320, 16, 32},   {1, 1, 1099, 1099},   {1, 2, 700, 513},  {512, 512, 588, 588}, {60, 500, 1024, 600}};

static void test_gemm_bits(void **state) {
  (void)state;
  int side = promised_side();
  if (!side) skip();
  float *x = floats((size_t)LONG * SIDE, 20), *y = floats((size_t)SIDE * LONG, 21), *c, *part;
  assert_done(NEW(c, (size_t)SIDE * SIDE, "product"));
  assert_done(NEW(part, (size_t)SIDE * SIDE, "product"));
  for (int t = 0; t < 4; t++) { /* Grams are the transposed kind, activations times weights the others */
    bool ta = t & 1, tb = t & 2;
    const float *a = ta ? x : y, *b = tb ? y : x;
    int lda = ta ? SIDE : LONG, ldb = tb ? LONG : SIDE;
    for (int turn = 0; turn < 2; turn++) sgemm(ta, tb, SIDE, SIDE, LONG, 1, a, lda, b, ldb, (float)turn, c, SIDE); /* chunks are added up */
    for (size_t k = 0; k < sizeof tiles / sizeof *tiles; k++) {
      int i = tiles[k].i, j = tiles[k].j, m = tiles[k].m, n = tiles[k].n;
      if (m < side || n < side) continue;
      for (int turn = 0; turn < 2; turn++)
        sgemm(ta, tb, m, n, LONG, 1, ta ? a + i : a + (size_t)i * LONG, lda, tb ? b + (size_t)j * LONG : b + j, ldb, (float)turn, part, n);
      for (int row = 0; row < m; row++)
        if (memcmp(part + (size_t)row * n, c + (size_t)(i + row) * SIDE + j, (size_t)n * sizeof *c) != 0)
          fail_msg("ta %d, tb %d: tile of %d x %d at (%d, %d): row %d differs from the whole product", ta, tb, m, n, i, j, row);
    }
  }
  FREE(x);
  FREE(y);
  FREE(c);
  FREE(part);
}

/* The diagonal tiles of a Gram come from syrk, the others from gemm, and which is which depends on the number of ranks. */
static void test_syrk_bits(void **state) {
  (void)state;
  if (!promised_side()) skip();
  float *x = floats((size_t)LONG * SIDE, 22), *c, *part;
  assert_done(NEW(c, (size_t)SIDE * SIDE, "product"));
  assert_done(NEW(part, (size_t)SIDE * SIDE, "product"));
  static const int sizes[] = {1, 2, 7, 16, 33, 64, 100, 128, 256, 300, 512, 1000, 1100};
  for (int turn = 0; turn < 2; turn++) sgemm(true, false, SIDE, SIDE, LONG, 1, x, SIDE, x, SIDE, (float)turn, c, SIDE);
  for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
    int n = sizes[k], at = (SIDE - n) * 3 / 4;
    for (int turn = 0; turn < 2; turn++) ssyrk_gram(n, LONG, 1, x + at, SIDE, (float)turn, part, n);
    for (int i = 0; i < n; i++)
      if (memcmp(part + (size_t)i * n, c + (size_t)(at + i) * SIDE + at, (size_t)(i + 1) * sizeof *c) != 0)
        fail_msg("syrk of order %d at %d: row %d differs from gemm", n, at, i);
  }
  FREE(x);
  FREE(c);
  FREE(part);
}

static void test_setup(void **state) {
  (void)state;
  assert_true(bound.library[0] == '/' && bound.lapack[0] == '/' && bound.kernel[0] && bound.threads >= 1);
  setenv("BLIS_ARCH_TYPE", "3", 1); /* a user's own choice stays */
  blas_info again = blas_setup();
  assert_string_equal(getenv("BLIS_ARCH_TYPE"), "3");
  assert_non_null(strstr(again.kernel, "set by the user"));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_dgemm),     cmocka_unit_test(test_sgemm),     cmocka_unit_test(test_syrk),   cmocka_unit_test(test_dtrsm),
      cmocka_unit_test(test_dqr),       cmocka_unit_test(test_dcholesky), cmocka_unit_test(test_deigen), cmocka_unit_test(test_drank),
      cmocka_unit_test(test_gemm_bits), cmocka_unit_test(test_syrk_bits), cmocka_unit_test(test_setup),
  };
  return cmocka_run_group_tests(tests, setup, NULL);
}
