/* The closed form against its own identities: the loss of the stored factors is the spectrum's tail, evaluated directly; a formula of another kind
 * (the generalized eigenproblem) gives the same product; the paths agree. Products and losses are compared, never factors. */
#include "check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "adapter/adapter.h"
#include "adapter/mixed.h"
#include "base/blas.h"
#include "base/memory.h"
#include "problem.h"

extern void dsygst_(const int *, const char *, const int *, double *, const int *, const double *, const int *, int *);

#define assert_near(found, expected, slack)                                                                       \
  do {                                                                                                            \
    double near_f = (found), near_e = (expected);                                                                 \
    if (!(fabs(near_f - near_e) <= (slack))) fail_msg("%s: expected %.17g, found %.17g", #found, near_e, near_f); \
  } while (0)

/* Eigenvalues of E H E^T in double, descending, straight from the definition. */
static void true_spectrum(const problem *p, double *values) {
  int n = (int)p->n, m = (int)p->m;
  double *e, *eh, *g;
  assert_done(NEW(e, n * m, "E"));
  assert_done(NEW(eh, n * m, "E H"));
  assert_done(NEW(g, n * n, "G"));
  problem_product(p, e, eh);
  dgemm(false, true, n, n, m, 1, eh, m, e, m, 0, g, n);
  assert_done(deigen("reference", n, g, n, values));
  for (int i = 0; i < n / 2; i++) {
    double v = values[i];
    values[i] = values[n - 1 - i];
    values[n - 1 - i] = v;
  }
  FREE(e);
  FREE(eh);
  FREE(g);
}

/* B^T B = I; A H A^T = Lambda; (E - BA) H A^T = 0, to what float factors hold (O5). */
static void check_structure(const problem *p, const adapter *a, bool exact) {
  int n = (int)p->n, m = (int)p->m, r = a->rank;
  double *aw, *bw, *e, *rest, *ah, *s, *c, *gram;
  assert_done(NEW(aw, r * m, "A"));
  assert_done(NEW(bw, n * r, "B"));
  assert_done(NEW(e, n * m, "E"));
  assert_done(NEW(rest, n * m, "E - B A"));
  assert_done(NEW(ah, r * m, "A H"));
  assert_done(NEW(s, r * r, "A H A^T"));
  assert_done(NEW(c, n * r, "(E - BA) H A^T"));
  assert_done(NEW(gram, r * r, "B^T B"));
  for (int i = 0; i < r * m; i++) aw[i] = (double)a->a[i];
  for (int i = 0; i < n * r; i++) bw[i] = (double)a->b[i];
  for (int i = 0; i < n * m; i++) rest[i] = (double)p->e[i];
  dgemm(true, false, r, r, n, 1, bw, r, bw, r, 0, gram, r);
  for (int i = 0; i < r; i++)
    for (int j = 0; j < r; j++) assert_near(gram[i * r + j], i == j, 1e-6);
  problem_weigh(p, r, aw, ah);
  dgemm(false, true, r, r, m, 1, ah, m, aw, m, 0, s, r);
  for (int i = 0; exact && i < r; i++)
    for (int j = 0; j < r; j++) assert_near(s[i * r + j], i == j ? a->values[i] : 0, 2e-6 * (a->values[0] + 1e-300));
  dgemm(false, false, n, m, r, -1, bw, r, aw, m, 1, rest, m);
  dgemm(false, true, n, r, m, 1, rest, m, ah, m, 0, c, r);
  for (int i = 0; exact && i < n * r; i++) assert_near(c[i], 0, 2e-6 * (a->values[0] + 1e-300));
  FREE(aw);
  FREE(bw);
  FREE(e);
  FREE(rest);
  FREE(ah);
  FREE(s);
  FREE(c);
  FREE(gram);
}

/* Every claim about one answer: O1 and O5 for all ranks up to its own, the loss curve against the direct loss, against the true tail. tolerance:
 * the excess allowed on the tail. */
static void check_answer(const problem *p, const adapter *a, const double *spectrum, double tolerance) {
  double total = 0, negative = 0, tail, trace, *loss, before = INFINITY;
  assert_done(NEW(loss, a->rank + 1, "loss"));
  for (int64_t i = 0; i < p->n; i++) {
    total += spectrum[i];
    negative -= fmin(spectrum[i], 0); /* a singular Gram rounded to float is a little indefinite */
  }
  assert_true(negative <= 1e-6 * total);
  assert_done(problem_losses(p, a->b, a->a, a->rank, &trace, loss));
  assert_near(trace, total, 1e-12 * total);
  assert_near(a->trace, total, 1e-12 * total);
  tail = total;
  for (int r = 0; r <= a->rank; r++) {
    if (r) tail = fmax(tail - fmax(spectrum[r - 1], 0), 0);
    double slack = 1e-12 * total + negative;
    if (loss[r] < tail - slack)
      fail_msg("rank %d of %lld x %lld: loss %.15g below the optimum %.15g", r, (long long)p->n, (long long)p->m, loss[r], tail);
    if (loss[r] > before + slack)
      fail_msg("rank %d of %lld x %lld: loss rises from %.15g to %.15g", r, (long long)p->n, (long long)p->m, before, loss[r]);
    if (tolerance == 0 || r == a->rank) {
      double excess = (tolerance + 1e-5) * tail + slack;
      if (loss[r] > tail + excess)
        fail_msg("rank %d of %lld x %lld: loss %.15g, optimum %.15g: excess %.3e", r, (long long)p->n, (long long)p->m, loss[r], tail,
                 loss[r] / tail - 1);
    }
    if (r == 0 || r == a->rank || r == a->rank / 2) assert_near(problem_loss(p, a->b, a->a, a->rank, r), loss[r], slack);
    before = loss[r];
  }
  for (int r = 0; r < a->rank; r++) assert_near(a->values[r], spectrum[r], (1e-12 + tolerance) * total + negative);
  for (int r = 0; r < a->rank; r++) { /* the sign rule, on the stored numbers */
    double largest = 0, at = 0;
    for (int64_t i = 0; i < p->n; i++)
      if (fabs((double)a->b[i * a->rank + r]) > largest) largest = fabs(at = (double)a->b[i * a->rank + r]);
    assert_true(at > 0);
  }
  check_structure(p, a, tolerance == 0);
  FREE(loss);
}

static void solve_and_check(const problem *p, int rank) {
  double *spectrum;
  assert_done(NEW(spectrum, p->n, "spectrum"));
  true_spectrum(p, spectrum);
  adapter_request q = {
      .where = "test", .n = p->n, .m = p->m, .e = p->e, .h = p->h, .diagonal = p->d, .rank = rank, .trace = NAN, .path = ADAPTER_DENSE};
  adapter dense, krylov;
  assert_done(adapter_local(&q, &dense));
  check_answer(p, &dense, spectrum, 0);
  q.path = ADAPTER_KRYLOV;
  q.tolerance = 1e-12;
  assert_done(adapter_local(&q, &krylov));
  check_answer(p, &krylov, spectrum, 1e-12);
  if (rank == p->n || spectrum[rank - 1] - spectrum[rank] > 1e-4 * spectrum[0]) /* a product that is determined at all */
    assert_near(product_distance(p, &dense, &krylov), 0, 1e-4);
  adapter_free(&krylov);
  q.tolerance = 1e-3;
  assert_done(adapter_local(&q, &krylov));
  check_answer(p, &krylov, spectrum, 1e-3);
  adapter_free(&krylov);
  adapter_free(&dense);
  FREE(spectrum);
}

static void shapes(void **state) {
  (void)state;
  static const int64_t shape[][2] = {{1, 1}, {1, 9}, {9, 1}, {5, 3}, {96, 96}, {61, 133}, {150, 70}, {33, 130}};
  for (size_t s = 0; s < sizeof shape / sizeof *shape; s++)
    for (int kind = 0; kind < PROBLEM_KINDS; kind++) {
      problem p;
      assert_done(problem_new(&p, kind, shape[s][0], shape[s][1], 0));
      int most = (int)(p.n < p.m ? p.n : p.m);
      solve_and_check(&p, 1);
      if (most > 2) solve_and_check(&p, most / 3 + 1);
      if (most > 1) solve_and_check(&p, most);
      problem_free(&p);
    }
}

/* Loss at full rank is rounding: what is left of E = B A is what float factors lose. */
static void full_rank(void **state) {
  (void)state;
  for (int tall = 0; tall < 2; tall++) {
    problem p;
    adapter a;
    double loss[41];
    assert_done(problem_new(&p, PROBLEM_DECAYING, tall ? 77 : 40, tall ? 40 : 77, 0));
    adapter_request q = {.where = "test", .n = p.n, .m = p.m, .e = p.e, .h = p.h, .rank = 40, .trace = NAN};
    assert_done(adapter_local(&q, &a));
    assert_done(adapter_losses(p.n, p.m, p.e, p.h, a.b, a.a, 40, a.trace, loss));
    assert_near(loss[40], 0, 1e-12 * a.trace);
    assert_near(problem_loss(&p, a.b, a.a, 40, 40), 0, 1e-12 * a.trace);
    adapter_free(&a);
    problem_free(&p);
  }
}

/* O4: (E^T E) H x = lambda x through H = L L^T and K = L^T (E^T E) L; B = E L Y Lambda^{-1/2}, A = B^T E. */
static void generalized_problem(void **state) {
  (void)state;
  static const int64_t shape[][2] = {{80, 50}, {50, 80}, {64, 64}};
  enum { RANK = 11 };
  for (size_t s = 0; s < 3; s++) {
    problem p;
    adapter a;
    assert_done(problem_new(&p, PROBLEM_DECAYING, shape[s][0], shape[s][1], 0));
    int n = (int)p.n, m = (int)p.m, type = 2, info = 0;
    double *e, *eh, *k, *l, *values, *el, *b, *product;
    assert_done(NEW(e, n * m, "E"));
    assert_done(NEW(eh, n * m, "E H"));
    assert_done(NEW(k, m * m, "K"));
    assert_done(NEW(l, m * m, "L"));
    assert_done(NEW(values, m, "values"));
    assert_done(NEW(el, n * m, "E L"));
    assert_done(NEW(b, n * RANK, "B"));
    assert_done(NEW(product, n * m, "B A"));
    problem_product(&p, e, eh);
    dgemm(true, false, m, m, n, 1, e, m, e, m, 0, k, m);
    for (int i = 0; i < m * m; i++) l[i] = (double)p.h[i];
    assert_done(dcholesky("test", m, l, m));
    dsygst_(&type, "U", &m, k, &m, l, &m, &info); /* row-major lower is column-major upper */
    assert_int_equal(info, 0);
    assert_done(deigen("test", m, k, m, values));
    dgemm(false, false, n, m, m, 1, e, m, l, m, 0, el, m);
    for (int r = 0; r < RANK; r++) {
      double *y = k + (m - 1 - r) * m;
      for (int i = 0; i < n; i++) {
        double sum = 0;
        for (int j = 0; j < m; j++) sum += el[i * m + j] * y[j];
        b[i * RANK + r] = sum / sqrt(values[m - 1 - r]);
      }
    }
    double *bt;
    assert_done(NEW(bt, RANK * m, "B^T E"));
    dgemm(true, false, RANK, m, n, 1, b, RANK, e, m, 0, bt, m);
    dgemm(false, false, n, m, RANK, 1, b, RANK, bt, m, 0, product, m);
    adapter_request q = {.where = "test", .n = n, .m = m, .e = p.e, .h = p.h, .rank = RANK, .trace = NAN, .path = ADAPTER_DENSE};
    assert_done(adapter_local(&q, &a));
    double worst = 0, size = 0;
    for (int i = 0; i < n; i++)
      for (int j = 0; j < m; j++) {
        double sum = 0;
        for (int r = 0; r < RANK; r++) sum += (double)a.b[i * RANK + r] * (double)a.a[r * m + j];
        worst = fmax(worst, fabs(sum - product[i * m + j]));
        size = fmax(size, fabs(product[i * m + j]));
      }
    assert_near(worst, 0, 2e-6 * size);
    for (int r = 0; r < RANK; r++) assert_near(a.values[r], values[m - 1 - r], 1e-10 * values[m - 1]);
    adapter_free(&a);
    problem_free(&p);
    FREE(e);
    FREE(eh);
    FREE(k);
    FREE(l);
    FREE(values);
    FREE(el);
    FREE(b);
    FREE(product);
    FREE(bt);
  }
}

/* QERA-approx and LQER as they are written: BA = SVD_r(E D) D^{-1}, D = diag(d)^{1/2}, by a one-sided Jacobi of nothing but E D. */
static void scaled_svd(void **state) {
  (void)state;
  static const int64_t shape[][2] = {{40, 60}, {60, 40}};
  enum { RANK = 7 };
  for (size_t s = 0; s < 2; s++)
    for (int path = ADAPTER_DENSE; path <= ADAPTER_KRYLOV; path++) {
      problem p;
      adapter a;
      double *x, *v, *product, *cut, worst = 0, size = 0;
      assert_done(problem_new(&p, PROBLEM_DIAGONAL, shape[s][0], shape[s][1], 5));
      int64_t n = p.n, m = p.m;
      for (int64_t j = 0; j < m; j++) p.d[j] = (float)exp(4 * problem_entry(9, j)); /* mean |x| squared, say */
      assert_done(NEW(x, m * n, "(E D)^T"));
      assert_done(NEW(v, m * m, "rotations"));
      assert_done(NEW(product, n * m, "SVD_r(E D) D^{-1}"));
      assert_done(NEW(cut, m, "norms"));
      for (int64_t j = 0; j < m; j++)
        for (int64_t i = 0; i < n; i++) x[j * n + i] = (double)p.e[i * m + j] * sqrt((double)p.d[j]); /* row j: column j of E D */
      for (int64_t j = 0; j < m; j++) v[j * m + j] = 1;
      for (int sweep = 0; sweep < 30; sweep++) /* until the columns E D v_j are orthogonal */
        for (int64_t j = 0; j < m; j++)
          for (int64_t k = j + 1; k < m; k++) {
            double jj = 0, kk = 0, jk = 0;
            for (int64_t i = 0; i < n; i++) {
              jj += x[j * n + i] * x[j * n + i];
              kk += x[k * n + i] * x[k * n + i];
              jk += x[j * n + i] * x[k * n + i];
            }
            if (fabs(jk) <= 1e-15 * sqrt(jj * kk)) continue;
            double angle = 0.5 * atan2(2 * jk, jj - kk), co = cos(angle), si = sin(angle);
            for (int64_t i = 0; i < n; i++) {
              double f = x[j * n + i], g = x[k * n + i];
              x[j * n + i] = co * f + si * g;
              x[k * n + i] = co * g - si * f;
            }
            for (int64_t i = 0; i < m; i++) {
              double f = v[j * m + i], g = v[k * m + i];
              v[j * m + i] = co * f + si * g;
              v[k * m + i] = co * g - si * f;
            }
          }
      for (int64_t j = 0; j < m; j++)
        for (int64_t i = 0; i < n; i++) cut[j] += x[j * n + i] * x[j * n + i];
      for (int r = 0; r < RANK; r++) {
        int64_t best = 0;
        for (int64_t j = 0; j < m; j++) best = cut[j] > cut[best] ? j : best;
        cut[best] = -1;
        for (int64_t i = 0; i < n; i++)
          for (int64_t j = 0; j < m; j++) product[i * m + j] += x[best * n + i] * v[best * m + j] / sqrt((double)p.d[j]);
      }
      adapter_request q = {.where = "test",
                           .n = n,
                           .m = m,
                           .e = p.e,
                           .diagonal = p.d,
                           .rank = RANK,
                           .trace = NAN,
                           .tolerance = 1e-12,
                           .path = (adapter_path)path};
      assert_done(adapter_local(&q, &a));
      for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < m; j++) {
          double sum = 0;
          for (int r = 0; r < RANK; r++) sum += (double)a.b[i * RANK + r] * (double)a.a[r * m + j];
          worst = fmax(worst, fabs(sum - product[i * m + j]));
          size = fmax(size, fabs(product[i * m + j]));
        }
      assert_near(worst, 0, (path == ADAPTER_DENSE ? 1e-6 : 1e-5) * size);
      adapter_free(&a);
      FREE(x);
      FREE(v);
      FREE(product);
      FREE(cut);
      problem_free(&p);
    }
}

/* Larger than every cache block, by Krylov with a start from the Gram: the loss stays within the default tolerance, with any deal of rows. */
static void larger(void **state) {
  (void)state;
  static const int64_t shape[][2] = {{301, 700}, {700, 301}};
  enum { RANK = 20 };
  for (size_t s = 0; s < 2; s++) {
    problem p;
    adapter a;
    double *spectrum, *start, *rows, *again, sum, part;
    assert_done(problem_new(&p, PROBLEM_DECAYING, shape[s][0], shape[s][1], 0));
    assert_done(NEW(spectrum, p.n, "spectrum"));
    assert_done(NEW(rows, p.n, "row losses"));
    assert_done(NEW(again, p.n, "row losses"));
    true_spectrum(&p, spectrum);
    assert_done(adapter_start("test", p.m, p.h, 24, 2, &start));
    assert_done(adapter_trace(p.m, p.e, p.h, 0, p.n, rows, &sum));
    for (int64_t i = 0; i < p.n; i += 37) assert_done(adapter_trace(p.m, p.e, p.h, i, i + 37 < p.n ? i + 37 : p.n, again + i, &part));
    assert_memory_equal(rows, again, (size_t)p.n * sizeof *rows);
    adapter_request q = {.where = "test",
                         .n = p.n,
                         .m = p.m,
                         .e = p.e,
                         .h = p.h,
                         .rank = RANK,
                         .trace = sum,
                         .path = ADAPTER_KRYLOV,
                         .start = start,
                         .start_rows = 24};
    assert_done(adapter_local(&q, &a));
    check_answer(&p, &a, spectrum, 1e-6);
    adapter_free(&a);
    FREE(start);
    FREE(spectrum);
    FREE(rows);
    FREE(again);
    problem_free(&p);
  }
}

/* A corner of a stored factor is the adapter of a smaller rank: solving for it anew gives the same loss. */
static void nested_ranks(void **state) {
  (void)state;
  problem p;
  adapter big, small;
  double loss[25], own[10];
  assert_done(problem_new(&p, PROBLEM_DECAYING, 90, 110, 0));
  adapter_request q = {.where = "test", .n = p.n, .m = p.m, .e = p.e, .h = p.h, .rank = 24, .trace = NAN};
  assert_done(adapter_local(&q, &big));
  q.rank = 9;
  assert_done(adapter_local(&q, &small));
  assert_done(adapter_losses(p.n, p.m, p.e, p.h, big.b, big.a, 24, big.trace, loss));
  assert_done(adapter_losses(p.n, p.m, p.e, p.h, small.b, small.a, 9, small.trace, own));
  for (int r = 0; r <= 9; r++) assert_near(own[r], loss[r], 1e-6 * loss[r] + 1e-12 * loss[0]);
  adapter_free(&big);
  adapter_free(&small);
  problem_free(&p);
}

static void mixed_products(void **state) {
  (void)state;
  static const int64_t size[][3] = {{1, 1, 1},     {8, 512, 24},   {9, 513, 25}, {3, 7, 100},
                                    {300, 40, 97}, {17, 1100, 50}, {24, 0, 30},  {5, 520, 193}};
  for (size_t s = 0; s < sizeof size / sizeof *size; s++)
    for (int transpose = 0; transpose < 2; transpose++) {
      int64_t b = size[s][0], k = size[s][1], n = size[s][2], ldf = (transpose ? k : n) + 3, rows = transpose ? n : k, ldc = n + 2;
      double *x, *c, *d;
      float *f;
      assert_done(NEW(x, b * (k + 1), "x"));
      assert_done(NEW(c, b * ldc, "c"));
      assert_done(NEW(d, b * ldc, "c again"));
      assert_done(NEW(f, rows * ldf + 1, "f"));
      for (int64_t i = 0; i < b * (k + 1); i++) x[i] = problem_entry(1, i);
      for (int64_t i = 0; i < rows * ldf; i++) f[i] = (float)problem_entry(2, i);
      for (int64_t i = 0; i < b * ldc; i++) c[i] = d[i] = 100;
      assert_done(mixed_gemm(transpose, b, k, n, -0.5, x, k + 1, f, ldf, true, c, ldc));
      for (int64_t i = 0; i < b; i++)
        for (int64_t j = 0; j < ldc; j++) {
          double sum = 100;
          for (int64_t p = 0; j < n && p < k; p++) sum -= 0.5 * x[i * (k + 1) + p] * (double)(transpose ? f[j * ldf + p] : f[p * ldf + j]);
          assert_near(c[i * ldc + j], sum, 1e-12 * (1 + (double)k));
        }
      for (int64_t i = 0; i < b; i++)
        assert_done(mixed_gemm(transpose, 1, k, n, -0.5, x + i * (k + 1), k + 1, f, ldf, true, d + i * ldc, ldc));
      assert_memory_equal(c, d, (size_t)(b * ldc) * sizeof *c);
      assert_done(mixed_gemm(transpose, b, k, n, 1, x, k + 1, f, ldf, false, c, ldc));
      assert_done(mixed_gemm(transpose, b, k, n, -1, x, k + 1, f, ldf, true, c, ldc));
      for (int64_t i = 0; i < b; i++)
        for (int64_t j = 0; j < n; j++) assert_near(c[i * ldc + j], 0, 1e-12 * (1 + (double)k));
      FREE(x);
      FREE(c);
      FREE(d);
      FREE(f);
    }
}

static void refusals(void **state) {
  (void)state;
  for (int path = ADAPTER_DENSE; path <= ADAPTER_KRYLOV; path++)
    for (int tall = 0; tall < 2; tall++) {
      problem p;
      adapter a;
      double sum, loss[4];
      assert_done(problem_new(&p, PROBLEM_DECAYING, tall ? 90 : 40, tall ? 40 : 90, 0));
      adapter_request q = {.where = "layer", .n = p.n, .m = p.m, .e = p.e, .h = p.h, .rank = 3, .trace = NAN, .path = (adapter_path)path};
      float *h = (float *)(uintptr_t)p.h, *e = (float *)(uintptr_t)p.e, keep = h[7 * p.m + 7];
      h[7 * p.m + 7] = -1e4F; /* not a Gram */
      assert_int_equal(adapter_local(&q, &a), E_NUMERICS);
      assert_null(a.b);
      status_clear();
      h[7 * p.m + 7] = -keep; /* nearly one */
      if (path == ADAPTER_DENSE) {
        assert_int_equal(adapter_local(&q, &a), E_NUMERICS);
        assert_non_null(strstr(status_message(), "layer: adapter: E H E^T, expected no eigenvalue below"));
        status_clear();
      }
      h[7 * p.m + 7] = NAN;
      assert_int_equal(adapter_local(&q, &a), E_NUMERICS);
      status_clear();
      h[7 * p.m + 7] = keep;
      keep = e[5];
      e[5] = INFINITY;
      assert_int_equal(adapter_local(&q, &a), E_NUMERICS);
      status_clear();
      e[5] = keep;
      q.trace = 1e-3; /* a wrong sum from the caller */
      assert_int_equal(adapter_local(&q, &a), E_NUMERICS);
      status_clear();
      q.trace = NAN;
      float diagonal[90] = {1, 2, -1e-3F};
      q.diagonal = diagonal;
      assert_int_equal(adapter_local(&q, &a), E_INTERNAL);
      status_clear();
      q.h = NULL;
      assert_int_equal(adapter_local(&q, &a), E_NUMERICS);
      assert_non_null(strstr(status_message(), "layer: adapter: diagonal metric, expected numbers >= 0, found -0.001 in column 2"));
      status_clear();
      q.diagonal = NULL;
      q.h = p.h;
      q.rank = 41;
      assert_refused(adapter_local(&q, &a), E_USAGE, "layer: adapter: expected a rank of 1 to 40, found 41");
      q.rank = 0;
      assert_int_equal(adapter_local(&q, &a), E_USAGE);
      status_clear();
      q.rank = 3;
      assert_done(adapter_local(&q, &a));
      a.a[1] = NAN;
      assert_done(adapter_trace(p.m, p.e, p.h, 0, p.n, NULL, &sum));
      assert_int_equal(adapter_losses(p.n, p.m, p.e, p.h, a.b, a.a, 3, sum, loss), E_NUMERICS);
      status_clear();
      adapter_free(&a);
      problem_free(&p);
    }
  assert_int_equal(mem_now(), 0);
}

/* Which path, and that the costs are in order: a larger matrix or rank is never cheaper. */
static void choice(void **state) {
  (void)state;
  float h = 0;
  adapter_request q = {.where = "test", .n = 4096, .m = 4096, .h = &h, .rank = 64, .trace = 1};
  assert_int_equal(adapter_choice(&q), ADAPTER_KRYLOV);
  assert_int_equal(adapter_start_rows(4096, 4096, 64), 24);
  double flops = adapter_flops(&q);
  assert_true(flops < 2e11 && flops > 2e10);
  assert_true(adapter_bytes(&q) < 100u << 20);
  q.rank = 2048;
  assert_int_equal(adapter_choice(&q), ADAPTER_DENSE);
  assert_true(adapter_flops(&q) > flops);
  q = (adapter_request){.where = "test", .n = 192, .m = 576, .h = &h, .rank = 64, .trace = 1};
  assert_int_equal(adapter_choice(&q), ADAPTER_DENSE);
  assert_int_equal(adapter_start_rows(192, 576, 64), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(mixed_products),      cmocka_unit_test(shapes),     cmocka_unit_test(full_rank),
      cmocka_unit_test(generalized_problem), cmocka_unit_test(scaled_svd), cmocka_unit_test(larger),
      cmocka_unit_test(nested_ranks),        cmocka_unit_test(choice),     cmocka_unit_test(refusals),
  };
  blas_setup();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
