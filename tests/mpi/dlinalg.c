/* dist/dlinalg: products, factorizations and eigenvectors, judged by identities; reverse Cholesky, judged by ScaLAPACK and bit by bit. */
#include "base/blas.h"
#include "dist/dlinalg.h"

#include <dlfcn.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "check.h"

static int rank, size;

/* A number in [-1, 1) for every pair of indices. */
static double noise(int64_t i, int64_t j) {
  uint64_t z = (uint64_t)i * 0x9E3779B97F4A7C15u + (uint64_t)j * 0xC2B2AE3D27D4EB4Fu + 0x165667B19E3779F9u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return (double)(z >> 11) * 0x1p-52 - 1;
}

/* Symmetric, positive definite for n > 3, condition about 10; the diagonal is exact in float, and so is what is below it. */
static double definite(const void *context, int64_t i, int64_t j) {
  double n = (double)*(const int64_t *)context;
  if (i < j) return definite(context, j, i);
  return (double)(float)((i == j ? 2 * sqrt(n) : 0) + 0.5 * noise(i, j) + 1 / (1 + fabs((double)(i - j))));
}

static double general(const void *context, int64_t i, int64_t j) {
  (void)context;
  return noise(i, j) + (i == j);
}

/* Small whole numbers: sums of products are exact in any order. */
static double whole(const void *context, int64_t i, int64_t j) { return floor(8 * noise(i + *(const int *)context, j)); }

static double unit(const void *context, int64_t i, int64_t j) {
  (void)context;
  return i == j;
}

static double laplace(const void *context, int64_t i, int64_t j) {
  (void)context;
  return i == j ? 2 : llabs((long long)(i - j)) == 1 ? -1 : 0;
}

/* Collective over a's grid: the largest |a - b|. */
static double distance(const dmat *a, const dmat *b) {
  double worst = 0, all;
  for (int l = 0; l < a->nloc; l++)
    for (int k = 0; k < a->mloc; k++) {
      size_t at = (size_t)l * (size_t)a->lld + (size_t)k;
      double d = fabs(a->a[at] - b->a[at]);
      if (!(d <= worst)) worst = isnan(d) ? INFINITY : d;
    }
  MPI_Allreduce(&worst, &all, 1, MPI_DOUBLE, MPI_MAX, a->g->comm);
  return all;
}

static dmat make(const grid *g, int64_t m, int64_t n, dmat_entry entry, const void *context) {
  dmat d;
  CHECK_OK(dmat_new(g, m, n, DMAT_NB, "a test's matrix", &d));
  if (entry) dmat_fill(&d, entry, context);
  return d;
}

static void gemm(const grid *g, int64_t m, int64_t n, int64_t k) {
  static const int shift_a = 17, shift_b = 1000;
  for (int way = 0; way < 4; way++) {
    bool ta = way & 1, tb = way & 2;
    dmat a = make(g, ta ? k : m, ta ? m : k, whole, &shift_a), b = make(g, tb ? n : k, tb ? k : n, whole, &shift_b),
         c = make(g, m, n, unit, NULL);
    CHECK_OK(dmat_gemm(ta, tb, 2, &a, &b, 3, &c));
    int wrong = 0;
    for (int lj = 0; lj < c.nloc; lj++)
      for (int li = 0; li < c.mloc; li += 7) {
        int64_t i = dmat_row(&c, li), j = dmat_col(&c, lj);
        double sum = 0;
        for (int64_t l = 0; l < k; l++) sum += whole(&shift_a, ta ? l : i, ta ? i : l) * whole(&shift_b, tb ? j : l, tb ? l : j);
        wrong += c.a[(size_t)lj * (size_t)c.lld + (size_t)li] != 2 * sum + 3 * (i == j);
      }
    CHECK(wrong == 0, "%lld x %lld x %lld, way %d: %d entries", (long long)m, (long long)n, (long long)k, way, wrong);
    dmat_free(&c);
    dmat_free(&b);
    dmat_free(&a);
  }
}

static void gemm_refusals(const grid *g) {
  dmat a = make(g, 10, 20, NULL, NULL), b = make(g, 20, 10, NULL, NULL), c = make(g, 10, 10, NULL, NULL);
  CHECK_FAILS(dmat_gemm(true, false, 1, &a, &b, 0, &c), E_INTERNAL);
  CHECK_FAILS(dmat_gemm(false, true, 1, &a, &b, 0, &c), E_INTERNAL);
  if (g->size > 1) CHECK_FAILS(dmat_gemm(false, false, g->rank ? 1 : 2, &a, &b, 0, &c), E_INTERNAL); /* a wrong argument on one rank */
  if (g->size > 1) CHECK_FAILS(dmat_gemm(false, g->rank == 0, 1, &a, &b, 0, &c), E_INTERNAL);
  CHECK_OK(dmat_gemm(false, false, 1, &a, &b, 0, &c));
  dmat_free(&c);
  dmat_free(&b);
  dmat_free(&a);
}

static void cholesky(const grid *g, int64_t n) {
  dmat l = make(g, n, n, definite, &n), a = make(g, n, n, definite, &n), product = make(g, n, n, NULL, NULL);
  for (int j = 0; j < l.nloc; j++) /* what is above the diagonal is not read */
    for (int k = 0; k < l.mloc; k++)
      if (dmat_row(&l, k) < dmat_col(&l, j)) l.a[(size_t)j * (size_t)l.lld + (size_t)k] = NAN;
  CHECK_OK(dmat_cholesky("cholesky", &l));
  int above = 0;
  for (int j = 0; j < l.nloc; j++)
    for (int k = 0; k < l.mloc; k++) above += dmat_row(&l, k) < dmat_col(&l, j) && l.a[(size_t)j * (size_t)l.lld + (size_t)k] != 0;
  CHECK(above == 0, "%d entries above the diagonal", above);
  CHECK_OK(dmat_gemm(false, true, 1, &l, &l, 0, &product));
  double d = distance(&product, &a);
  CHECK(d <= 8 * (double)n * DBL_EPSILON * sqrt((double)n), "n = %lld: |L L^T - A| = %.2e", (long long)n, d);
  dmat_free(&product);
  dmat_free(&a);
  dmat_free(&l);
}

/* One bad pivot, at a known column, held by one rank. */
typedef struct spoiled {
  int64_t n, column;
  double value;
} spoiled;
static double spoiled_entry(const void *context, int64_t i, int64_t j) {
  const spoiled *s = context;
  if (i == s->column && j == s->column) return s->value;
  return i == j ? 2 : 0;
}

static void cholesky_refusals(const grid *g) {
  static const spoiled cases[] = {{1, 0, -1}, {7, 3, 0}, {80, 79, -1e-30}, {200, 64, -5}, {200, 130, NAN}, {200, 131, INFINITY}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const spoiled *s = &cases[i];
    char expected[64];
    snprintf(expected, sizeof expected, "found column %lld dependent", (long long)s->column);
    dmat a = make(g, s->n, s->n, spoiled_entry, s);
    status st = dmat_cholesky("layer 3: o_proj", &a);
    CHECK(st == E_NUMERICS && strncmp(status_message(), "layer 3: o_proj: ", 17) == 0 && strstr(status_message(), expected), "%s: %s",
          expected, status_message());
    status_clear();
    dmat_free(&a);
  }
  dmat a = make(g, 7, 8, general, NULL);
  CHECK_FAILS(dmat_cholesky("not square", &a), E_INTERNAL);
  dmat_free(&a);
}

static void eigen(const grid *g, int64_t n) {
  dmat a = make(g, n, n, laplace, NULL), z = make(g, n, n, NULL, NULL), product = make(g, n, n, NULL, NULL),
       identity = make(g, n, n, unit, NULL);
  double *values = NULL, worst = 0, tolerance = 64 * DBL_EPSILON * ((double)n + 10);
  CHECK_OK(NEW(values, n, "values"));
  CHECK_OK(dmat_eigen("eigen", &a, values, &z));
  for (int64_t k = 0; k < n; k++) worst = fmax(worst, fabs(values[k] - (2 - 2 * cos(M_PI * (double)(k + 1) / (double)(n + 1)))));
  CHECK(worst <= tolerance, "n = %lld: eigenvalues off by %.2e", (long long)n, worst);
  CHECK_OK(dmat_gemm(true, false, 1, &z, &z, 0, &product));
  double d = distance(&product, &identity);
  CHECK(d <= tolerance, "n = %lld: |Z^T Z - I| = %.2e", (long long)n, d);
  /* A Z = Z diag(values) */
  dmat_fill(&a, laplace, NULL);
  CHECK_OK(dmat_gemm(false, false, 1, &a, &z, 0, &product));
  for (int l = 0; l < z.nloc; l++)
    for (int k = 0; k < z.mloc; k++) z.a[(size_t)l * (size_t)z.lld + (size_t)k] *= values[dmat_col(&z, l)];
  d = distance(&product, &z);
  CHECK(d <= tolerance, "n = %lld: |A Z - Z diag| = %.2e", (long long)n, d);
  FREE(values);
  dmat_free(&identity);
  dmat_free(&product);
  dmat_free(&z);
  dmat_free(&a);
}

/* A dense one: A = Z diag(values) Z^T. */
static void eigen_dense(const grid *g, int64_t n) {
  dmat a = make(g, n, n, definite, &n), z = make(g, n, n, NULL, NULL), zd = make(g, n, n, NULL, NULL);
  double *values = NULL;
  CHECK_OK(NEW(values, n, "values"));
  CHECK_OK(dmat_eigen("eigen", &a, values, &z));
  memcpy(zd.a, z.a, (size_t)z.lld * (size_t)z.nloc * sizeof *z.a);
  for (int l = 0; l < z.nloc; l++)
    for (int k = 0; k < z.mloc; k++) zd.a[(size_t)l * (size_t)z.lld + (size_t)k] *= values[dmat_col(&z, l)];
  dmat_fill(&a, definite, &n);
  CHECK_OK(dmat_gemm(false, true, -1, &zd, &z, 1, &a));
  dmat zero = make(g, n, n, NULL, NULL);
  double d = distance(&a, &zero);
  CHECK(d <= 64 * DBL_EPSILON * ((double)n + 10) * values[n - 1], "n = %lld: |A - Z diag Z^T| = %.2e", (long long)n, d);
  for (int64_t k = 1; k < n; k++) CHECK(values[k] >= values[k - 1], "values[%lld]", (long long)k);
  FREE(values);
  dmat_free(&zero);
  dmat_free(&zd);
  dmat_free(&z);
  dmat_free(&a);
}

static void eigen_refusals(const grid *g) {
  int64_t n = 80;
  double values[80];
  dmat a = make(g, n, n, definite, &n), z = make(g, n, n, NULL, NULL), other = make(g, n, n + 1, NULL, NULL);
  CHECK_FAILS(dmat_eigen("layer 1", &a, values, &other), E_INTERNAL);
  for (int l = 0; l < a.nloc; l++)
    for (int k = 0; k < a.mloc; k++)
      if (dmat_row(&a, k) + dmat_col(&a, l) == 2 * 70) a.a[(size_t)l * (size_t)a.lld + (size_t)k] = NAN;
  CHECK_FAILS(dmat_eigen("layer 1", &a, values, &z), E_NUMERICS);
  dmat_free(&other);
  dmat_free(&z);
  dmat_free(&a);
}

static void qr(const grid *g, int64_t m, int64_t n) {
  dmat q = make(g, m, n, general, NULL), a = make(g, m, n, general, NULL), r = make(g, n, n, general, NULL);
  dmat qr = make(g, m, n, NULL, NULL), qq = make(g, n, n, NULL, NULL), identity = make(g, n, n, unit, NULL);
  CHECK_OK(dmat_qr("qr", &q, &r));
  int below = 0;
  for (int l = 0; l < r.nloc; l++)
    for (int k = 0; k < r.mloc; k++) below += dmat_row(&r, k) > dmat_col(&r, l) && r.a[(size_t)l * (size_t)r.lld + (size_t)k] != 0;
  CHECK(below == 0, "%d entries below the diagonal", below);
  CHECK_OK(dmat_gemm(false, false, 1, &q, &r, 0, &qr));
  CHECK_OK(dmat_gemm(true, false, 1, &q, &q, 0, &qq));
  double tolerance = 64 * DBL_EPSILON * ((double)m + 10), d = distance(&qr, &a), e = distance(&qq, &identity);
  CHECK(d <= tolerance && e <= tolerance, "%lld x %lld: |Q R - A| = %.2e, |Q^T Q - I| = %.2e", (long long)m, (long long)n, d, e);
  dmat_free(&identity);
  dmat_free(&qq);
  dmat_free(&qr);
  dmat_free(&r);
  dmat_free(&a);
  dmat_free(&q);
}

static void qr_refusals(const grid *g) {
  dmat a = make(g, 7, 8, general, NULL), b = make(g, 80, 8, general, NULL), r = make(g, 8, 8, NULL, NULL), s = make(g, 7, 7, NULL, NULL);
  CHECK_FAILS(dmat_qr("wide", &a, &r), E_INTERNAL);
  CHECK_FAILS(dmat_qr("small r", &b, &s), E_INTERNAL);
  if (b.mloc > 0 && b.nloc > 0) b.a[0] = NAN;
  CHECK_FAILS(dmat_qr("not a number", &b, &r), E_NUMERICS);
  dmat_free(&s);
  dmat_free(&r);
  dmat_free(&b);
  dmat_free(&a);
}

/* ---- Reverse Cholesky ----------------------------------------------------------------------------------------------------------- */

/* A Gram in shared memory, and a factor of it for every team that takes part. */
typedef struct problem {
  int64_t n;
  shared h;
  int32_t *order;
} problem;

static problem gram(const team *t, int64_t n) {
  problem p = {.n = n};
  CHECK_OK(shared_new(t, (size_t)(n * n) * sizeof(float), "a Gram", &p.h));
  CHECK_OK(NEW(p.order, n, "order"));
  float *h = p.h.base;
  for (int64_t i = t->rank; i < n; i += t->size)
    for (int64_t j = 0; j < n; j++) h[i * n + j] = (float)definite(&n, i, j);
  for (int64_t i = 0; i < n; i++) p.order[i] = (int32_t)i;
  for (int64_t i = n - 1; i > 0; i--) { /* a fixed shuffle */
    int64_t k = (int64_t)((noise(i, n) + 1) / 2 * (double)(i + 1));
    int32_t swap = p.order[i];
    p.order[i] = p.order[k];
    p.order[k] = swap;
  }
  team_barrier(t);
  return p;
}

static void gram_free(problem *p) {
  FREE(p->order);
  shared_free(&p->h);
}

/* ScaLAPACK's answer to the same question: M M^T = J A J by pdpotrf, u = J M J. Largest difference, relative to the largest entry. */
typedef struct reversed {
  const problem *p;
  double ridge;
  bool ordered;
} reversed;
static double reversed_entry(const void *context, int64_t i, int64_t j) {
  const reversed *r = context;
  int64_t n = r->p->n, a = n - 1 - i, b = n - 1 - j;
  const float *h = r->p->h.base;
  if (r->ordered) a = r->p->order[a], b = r->p->order[b];
  double v = (double)h[a * n + b];
  return i == j ? (v == 0 ? 1 : v) + r->ridge : v;
}

static void judge(const grid *g, const problem *p, double ridge, bool ordered, const double *u) {
  reversed r = {p, ridge, ordered};
  dmat l = make(g, p->n, p->n, reversed_entry, &r);
  CHECK_OK(dmat_cholesky("judge", &l));
  double worst = 0, all, largest = 0;
  for (int k = 0; k < l.nloc; k++)
    for (int i = 0; i < l.mloc; i++) {
      int64_t row = p->n - 1 - dmat_row(&l, i), col = p->n - 1 - dmat_col(&l, k);
      worst = fmax(worst, fabs(u[row * p->n + col] - l.a[(size_t)k * (size_t)l.lld + (size_t)i]));
    }
  for (int64_t i = 0; i < p->n; i++) largest = fmax(largest, u[i * p->n + i]);
  MPI_Allreduce(&worst, &all, 1, MPI_DOUBLE, MPI_MAX, g->comm);
  CHECK(all <= 16 * (double)p->n * DBL_EPSILON * largest, "n = %lld: differs from pdpotrf by %.2e", (long long)p->n, all);
  dmat_free(&l);
}

/* The whole team's factor is right, and has the bits of the factor that one rank alone makes, and that teams of two make. */
static void reverse(const team *t, const grid *g, int64_t n) {
  problem p = gram(t, n);
  shared u, v;
  size_t bytes = (size_t)(n * n) * sizeof(double);
  CHECK_OK(shared_new(t, bytes, "a factor", &u));
  for (int ordered = 0; ordered < 2; ordered++) {
    const int32_t *order = ordered ? p.order : NULL;
    CHECK_OK(reverse_cholesky("reverse", t, n, p.h.base, 0.25, order, u.base));
    judge(g, &p, 0.25, ordered, u.base);
    for (int ranks = 1; ranks <= 2; ranks++) {
      team few;
      CHECK_OK(team_new(t->comm, ranks, &few));
      CHECK_OK(shared_new(&few, bytes, "a factor", &v));
      CHECK_OK(reverse_cholesky("reverse", &few, n, p.h.base, 0.25, order, v.base));
      CHECK(memcmp(u.base, v.base, bytes) == 0, "n = %lld: the factor of %d and of %d ranks differ", (long long)n, t->size, few.size);
      shared_free(&v);
      team_free(&few);
    }
  }
  shared_free(&u);
  gram_free(&p);
}

static void reverse_refusals(const team *t, const grid *g) {
  int64_t n = 300;
  problem p = gram(t, n);
  shared u;
  float *h = p.h.base;
  CHECK_OK(shared_new(t, (size_t)(n * n) * sizeof(double), "a factor", &u));
  if (t->rank == 0) /* two dead columns */
    for (int64_t j = 0; j < n; j++) h[17 * n + j] = h[j * n + 17] = h[299 * n + j] = h[j * n + 299] = 0;
  team_barrier(t);
  CHECK_OK(reverse_cholesky("dead", t, n, h, 0.5, NULL, u.base));
  judge(g, &p, 0.5, false, u.base);
  CHECK(((double *)u.base)[17 * n + 17] == sqrt(1.5) && ((double *)u.base)[17 * n + 18] == 0, "a dead column counts as 1");

  static const int64_t columns[] = {0, 40, 255, 256, 298};
  for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
    for (int kind = 0; kind < 2; kind++) {
      int64_t c = columns[i];
      float kept = h[c * n + c];
      char expected[64];
      team_barrier(t);
      if (t->rank == 0) h[c * n + c] = kind ? NAN : -1000;
      team_barrier(t);
      snprintf(expected, sizeof expected, "found column %lld dependent", (long long)c);
      for (int ordered = 0; ordered < 2; ordered++) {
        status st = reverse_cholesky("layer 2: down_proj", t, n, h, 0.5, ordered ? p.order : NULL, u.base);
        CHECK(st == E_NUMERICS && strncmp(status_message(), "layer 2: down_proj: ", 20) == 0 && strstr(status_message(), expected) &&
                  !strstr(status_message(), "rank"),
              "%s: %s", expected, status_message());
        status_clear();
      }
      team_barrier(t);
      if (t->rank == 0) h[c * n + c] = kept;
    }
  team_barrier(t);
  CHECK_FAILS(reverse_cholesky("empty", t, 0, h, 0.5, NULL, u.base), E_INTERNAL);
  if (t->size > 1) { /* a wrong argument on one rank */
    CHECK_FAILS(reverse_cholesky("torn", t, t->rank ? n : n - 1, h, 0.5, NULL, u.base), E_INTERNAL);
    CHECK_FAILS(reverse_cholesky("torn", t, n, h, t->rank ? 0.5 : 0.25, NULL, u.base), E_INTERNAL);
    CHECK_FAILS(reverse_cholesky("torn", t, n, h, 0.5, t->rank ? NULL : p.order, u.base), E_INTERNAL);
    if (t->rank) p.order[5] = p.order[6];
    CHECK_FAILS(reverse_cholesky("torn", t, n, h, 0.5, p.order, u.base), E_INTERNAL);
  }
  shared_free(&u);
  gram_free(&p);
}

/* ---- Downdates ------------------------------------------------------------------------------------------------------------------ */

/* What a downdate reads and writes, on a team; z (r, n): r eliminated directions of a Gram, H - Z^T Z >= 0 to rounding. */
typedef struct downdate {
  int64_t n;
  int r;
  shared u, z, work, diagonal;
} downdate;

static downdate downdate_new(const team *t, const problem *p, int r, const int32_t *order) {
  downdate d = {.n = p->n, .r = r};
  double *h = NULL, *a = NULL, *ah = NULL, *g = NULL;
  int n = (int)p->n;
  CHECK_OK(shared_new(t, (size_t)(n * n) * sizeof(double), "a factor", &d.u));
  CHECK_OK(shared_new(t, (size_t)(r * n) * sizeof(double), "Z", &d.z));
  CHECK_OK(shared_new(t, (size_t)n * sizeof(double), "diagonal", &d.diagonal));
  CHECK_OK(shared_new(t, reverse_downdate_shared(n, r), "work", &d.work));
  CHECK_OK(NEW(h, n * n, "H"));
  CHECK_OK(NEW(a, r * n, "A"));
  CHECK_OK(NEW(ah, r * n, "A H"));
  CHECK_OK(NEW(g, r * r, "A H A^T"));
  for (int64_t i = 0; i < n * n; i++) h[i] = (double)((float *)p->h.base)[i];
  for (int64_t i = 0; i < r * n; i++) a[i] = noise(i, 77);
  dgemm(false, false, r, n, n, 1, a, n, h, n, 0, ah, n);
  dgemm(false, true, r, r, n, 1, ah, n, a, n, 0, g, r);
  CHECK_OK(dcholesky("A H A^T", r, g, r));
  dtrsm(false, true, false, r, n, g, r, ah, n);
  if (t->rank == 0) memcpy(d.z.base, ah, d.z.bytes);
  CHECK_OK(reverse_cholesky("downdate", t, n, p->h.base, 0.01, order, d.u.base));
  FREE(h);
  FREE(a);
  FREE(ah);
  FREE(g);
  return d;
}

static status downdate_call(const team *t, const downdate *d, const int32_t *order) {
  return reverse_downdate("layer 2", t, d->n, order, d->r, d->z.base, d->work.base, d->u.base, d->diagonal.base);
}

static void downdate_free(downdate *d) {
  shared_free(&d->u);
  shared_free(&d->z);
  shared_free(&d->diagonal);
  shared_free(&d->work);
}

/* Largest difference to LAPACK's factor of u u^T - Z^T Z, relative to the largest entry. */
static double downdate_distance(const downdate *d, const int32_t *order) {
  double *left = NULL, *z = NULL, worst = 0, largest = 0;
  int n = (int)d->n, r = d->r;
  const double *u = d->u.base;
  CHECK_OK(NEW(left, n * n, "what is left"));
  CHECK_OK(NEW(z, r * n, "Z"));
  for (int i = 0; i < n; i++) /* u in reverse: lower */
    for (int j = i; j < n; j++) left[(n - 1 - i) * n + n - 1 - j] = u[i * n + j];
  double *m = NULL;
  CHECK_OK(NEW(m, n * n, "what is left"));
  dgemm(false, true, n, n, n, 1, left, n, left, n, 0, m, n);
  for (int k = 0; k < r; k++)
    for (int i = 0; i < n; i++) z[k * n + n - 1 - i] = ((double *)d->z.base)[k * n + (order ? order[i] : i)];
  dgemm(true, false, n, n, r, -1, z, n, z, n, 1, m, n);
  CHECK_OK(dcholesky("judge", n, m, n));
  for (int i = 0; i < n; i++)
    for (int j = i; j < n; j++) {
      double found = i == j ? ((double *)d->diagonal.base)[i] : u[j * n + i], expected = m[(n - 1 - i) * n + n - 1 - j];
      worst = fmax(worst, isnan(found) ? INFINITY : fabs(found - expected));
      largest = fmax(largest, fabs(expected));
    }
  FREE(m);
  FREE(z);
  FREE(left);
  return worst / largest;
}

/* The factor is LAPACK's, u stays, and teams of one and two make the same bits. */
static void downdates(const team *t, int64_t n, int r) {
  problem p = gram(t, n);
  for (int ordered = 0; ordered < 2; ordered++) {
    const int32_t *order = ordered ? p.order : NULL;
    downdate d = downdate_new(t, &p, r, order);
    CHECK_OK(downdate_call(t, &d, order));
    double off = downdate_distance(&d, order);
    CHECK(off <= 1e-9, "n = %lld, r = %d: the factor is off by %.1e", (long long)n, r, off);
    for (int ranks = 1; ranks <= 2; ranks++) {
      team few;
      CHECK_OK(team_new(t->comm, ranks, &few));
      downdate e = downdate_new(&few, &p, r, order);
      CHECK_OK(downdate_call(&few, &e, order));
      CHECK(memcmp(d.u.base, e.u.base, d.u.bytes) == 0 && memcmp(d.diagonal.base, e.diagonal.base, d.diagonal.bytes) == 0,
            "n = %lld, r = %d: factors of %d and of %d ranks differ", (long long)n, r, t->size, few.size);
      downdate_free(&e);
      team_free(&few);
    }
    team_barrier(t);
    for (int i = 0; t->rank == 0 && i < n; i++) ((double *)d.z.base)[i] *= 3; /* more than there is */
    team_barrier(t);
    CHECK_FAILS(downdate_call(t, &d, order), E_NUMERICS);
    team_barrier(t);
    if (t->rank == 0) ((double *)d.z.base)[n - 1] = NAN;
    team_barrier(t);
    CHECK_FAILS(downdate_call(t, &d, order), E_NUMERICS);
    downdate_free(&d);
  }
  gram_free(&p);
}

static status one_call(int which, const team *t, const grid *g, const problem *p, double *u) {
  status st = OK;
  double values[80];
  dmat a = {0}, b = {0};
  TRY(dmat_new(g, 80, 80, DMAT_NB, "a matrix", &a));
  TRY(dmat_new(g, 80, 80, DMAT_NB, "a matrix", &b));
  dmat_fill(&a, definite, &a.n);
  dmat_fill(&b, unit, NULL);
  if (which == 0) st = dmat_gemm(false, false, 1, &a, &a, 0, &b);
  if (which == 1) st = dmat_cholesky("faults", &a);
  if (which == 2) st = dmat_eigen("faults", &a, values, &b);
  if (which == 3) st = dmat_qr("faults", &a, &b);
  if (which == 4) st = reverse_cholesky("faults", t, p->n, p->h.base, 0.5, p->order, u);
done:
  dmat_free(&b);
  dmat_free(&a);
  return st;
}

static void faults(const team *t, const grid *g) {
  problem p = gram(t, 300);
  shared u;
  CHECK_OK(shared_new(t, 300 * 300 * sizeof(double), "a factor", &u));
  static const char *const calls[] = {"gemm", "cholesky", "eigen", "qr", "reverse_cholesky"};
  for (int which = 0; which < 5; which++)
    for (int bad = 0; bad<t->size; bad += t->size> 1 ? t->size - 1 : 1)
      CHECK_SURVIVES_FAULTS(t->comm, bad, 100, 100, calls[which], st = one_call(which, t, g, &p, u.base));
  shared_free(&u);
  downdate d = downdate_new(t, &p, 40, p.order);
  for (int bad = 0; bad<t->size; bad += t->size> 1 ? t->size - 1 : 1)
    CHECK_SURVIVES_FAULTS(t->comm, bad, 100, 100, "reverse_downdate", st = downdate_call(t, &d, p.order));
  downdate_free(&d);
  gram_free(&p);
}

static void everything(MPI_Comm comm, bool large) {
  static const int64_t sizes[] = {1, 7, 63, 64, 65, 80, 200, 777};
  team t;
  grid g;
  CHECK_OK(team_new(comm, 0, &t));
  CHECK_OK(grid_new(t.comm, &g));
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes - !large; i++) {
    int64_t n = sizes[i];
    gemm(&g, n, n > 200 ? 65 : n, n > 200 ? 80 : n + 3);
    cholesky(&g, n);
    eigen(&g, n);
    eigen_dense(&g, n);
    qr(&g, n, n > 200 ? 80 : n);
    qr(&g, n + 70, (n + 1) / 2);
    reverse(&t, &g, n);
  }
  for (int64_t n = 255; large && n <= 257; n++) reverse(&t, &g, n); /* its blocks */
  gemm_refusals(&g);
  cholesky_refusals(&g);
  eigen_refusals(&g);
  qr_refusals(&g);
  reverse_refusals(&t, &g);
  static const int64_t orders[][2] = {{4, 1}, {63, 8}, {192, 7}, {193, 7}, {500, 40}};
  for (size_t i = 0; i < sizeof orders / sizeof *orders; i++) downdates(&t, orders[i][0], (int)orders[i][1]);
  if (large) faults(&t, &g);
  grid_free(&g);
  team_free(&t);
}

/* ScaLAPACK's calls for help must end in our pxerbla_, not in its own, which prints and goes on. */
static void help(void) {
  Dl_info ours, theirs;
  void *symbol = dlsym(RTLD_DEFAULT, "pxerbla_");
  CHECK(symbol && dladdr(symbol, &theirs) && dladdr((void *)(uintptr_t)everything, &ours) && theirs.dli_fbase == ours.dli_fbase,
        "pxerbla_ is the library's");
  symbol = dlsym(RTLD_DEFAULT, "xerbla_");
  CHECK(symbol && dladdr(symbol, &theirs) && theirs.dli_fbase == ours.dli_fbase, "xerbla_ is the library's");
}

int main(int argc, char **argv) {
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  help();
  everything(MPI_COMM_WORLD, true);
  if (size > 2) { /* all but one, in reverse */
    MPI_Comm some;
    MPI_Comm_split(MPI_COMM_WORLD, rank == 0 ? MPI_UNDEFINED : 1, -rank, &some);
    if (some != MPI_COMM_NULL) {
      everything(some, false);
      MPI_Comm_free(&some);
    }
  }
  return check_end("dlinalg");
}
