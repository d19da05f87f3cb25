/* MagR: the proximal step against a sorted solution and Moreau's identity, optimality at convergence, descent, a plain rendering in double,
 * fista against pg, invariance, rows alone and in company, and what must be refused. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

#include "lack.h"
#include "layers.h"
#include "quant/magr.h"

/* ---- the proximal step ---- */

static int descending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x > y ? -1 : x < y;
}

/* The level c by sorting, in double. */
static double sorted_level(int n, const float *v, double alpha) {
  double *u, sum = 0, c = 0;
  assert_done(NEW(u, n, "test"));
  for (int i = 0; i < n; i++) u[i] = fabs(v[i]);
  qsort(u, (size_t)n, sizeof *u, descending);
  for (int k = 0; k < n; k++) {
    sum += u[k];
    if (u[k] > (sum - alpha) / (k + 1)) c = (sum - alpha) / (k + 1);
  }
  FREE(u);
  return c > 0 ? c : 0;
}

static void check_segment(int n, const float *v, const float *p, float alpha, double level) {
  double c = sorted_level(n, v, alpha), distance = 0, inner = 0, high = 0, norm = 0, size = 0;
  for (int i = 0; i < n; i++) {
    assert_true((double)p[i] == fmin(fmax(v[i], -level), level));
    size = fmax(size, fabs(v[i]));
    norm += fabs(v[i]);
    distance += fabs((double)v[i] - p[i]);
    inner += ((double)v[i] - p[i]) * p[i];
    high = fmax(high, fabs(p[i]));
  }
  assert_true(fabs(level - c) <= 3e-7 * size + 2e-5 * alpha / n); /* fp32, and a sum of up to n terms */
  /* Moreau: v - p is alpha times the projection of v / alpha on the 1-ball: v itself inside, else on the sphere and aligned with p */
  double rounding = 2e-7 * size * n;
  if (norm <= alpha * (1 - 1e-5)) {
    assert_true(high == 0);
  } else if (norm >= alpha * (1 + 1e-5)) {
    assert_true(fabs(distance - alpha) <= 2e-5 * alpha + rounding);
    assert_true(fabs(inner - (double)alpha * high) <= (2e-5 * alpha + rounding) * high);
  }
}

static double entry(dice *d, int kind, int i, int n) {
  double x = 0.04 * dice_normal(d);
  switch (kind) {
  case 1: return 0;
  case 2: return i % 2 ? 0.125 : -0.125;
  case 3: return i == n / 2 ? -7 : x;
  case 4: return fmin(fmax(x, -0.01), 0.01); /* many at the bound, as in the iteration */
  case 5: return i < 3 ? 0.5 : 1e-6 * x;
  default: return x;
  }
}

/* Sixteen segments at once, of every kind, from guesses that are far above, far below, and near. */
static void test_prox(void **state) {
  (void)state;
  const int sizes[] = {1, 2, 3, 17, 64, 576, 4097, 28672};
  const float alphas[] = {1e-9f, 1e-4f, 1e-3f, 0.1f, 1, 1000}, guesses[] = {1e38f, 0, 0.01f, 0.1f};
  float(*v)[MAGR_LANES], *segment, *clipped;
  assert_done(NEW(v, 28672, "test"));
  assert_done(NEW(segment, 28672, "test"));
  assert_done(NEW(clipped, 28672, "test"));
  for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
    for (size_t a = 0; a < sizeof alphas / sizeof *alphas; a++) {
      int n = sizes[s];
      float level[MAGR_LANES];
      for (int l = 0; l < MAGR_LANES; l++) {
        dice d = {(uint64_t)(100 * n + l)};
        level[l] = guesses[l % 4];
        for (int i = 0; i < n; i++) v[i][l] = (float)entry(&d, l % 6, i, n);
      }
      magr_prox(n, v, alphas[a], level);
      for (int l = 0; l < MAGR_LANES; l++) {
        dice d = {(uint64_t)(100 * n + l)};
        for (int i = 0; i < n; i++) {
          segment[i] = (float)entry(&d, l % 6, i, n);
          clipped[i] = v[i][l];
        }
        check_segment(n, segment, clipped, alphas[a], level[l]);
      }
    }
  FREE(v), FREE(segment), FREE(clipped);
}

/* ---- the solver ---- */

typedef struct problem {
  float *w, *h, *v;
  double lambda;
  magr_request q;
} problem;

static void problem_open(problem *p, uint64_t seed, int rows, int width, int group, magr_solver solver, int steps) {
  int64_t square = (int64_t)width * width;
  double *h;
  *p = (problem){0};
  assert_done(NEW(p->w, (int64_t)rows * width, "test"));
  assert_done(NEW(p->v, (int64_t)rows * width, "test"));
  assert_done(NEW(p->h, square, "test"));
  assert_done(NEW(h, square, "test"));
  layer_weights(seed, rows, width, p->w);
  assert_done(layer_gram(seed, width < 500 ? 3 * width : 1500, width, NULL, h));
  for (int64_t i = 0; i < square; i++) p->h[i] = (float)h[i];
  FREE(h);
  assert_done(magr_lambda_max(width, p->h, &p->lambda));
  p->q = (magr_request){.solver = solver,
                        .steps = steps,
                        .alpha = group ? 1e-4 : 1e-3,
                        .group = group,
                        .rows = rows,
                        .width = width,
                        .w = p->w,
                        .h = p->h,
                        .lambda_max = p->lambda};
}

static void problem_close(problem *p) { FREE(p->w), FREE(p->h), FREE(p->v); }

/* y (width) = (w - v) Hn of row r, in double. */
static void pull(const problem *p, int r, double *y) {
  int width = p->q.width;
  memset(y, 0, (size_t)width * sizeof *y);
  for (int i = 0; i < width; i++) {
    double d = ((double)p->w[(int64_t)r * width + i] - p->v[(int64_t)r * width + i]) / p->lambda;
    for (int j = 0; j < width; j++) y[j] += d * p->h[(int64_t)i * width + j];
  }
}

static double objective(const problem *p) {
  int width = p->q.width, n = p->q.group ? p->q.group : width;
  double sum = 0, *y;
  assert_done(NEW(y, width, "test"));
  for (int r = 0; r < p->q.rows; r++) {
    const float *w = p->w + (int64_t)r * width, *v = p->v + (int64_t)r * width;
    pull(p, r, y);
    for (int j = 0; j < width; j++) sum += 0.5 * y[j] * ((double)w[j] - v[j]);
    for (int k = 0; k < width; k += n) {
      double high = 0;
      for (int j = k; j < k + n; j++) high = fmax(high, fabs(v[j]));
      sum += p->q.alpha * high;
    }
  }
  FREE(y);
  return sum;
}

/* At convergence, on every segment that is not 0, y = (w - v) Hn has ||y||_1 = alpha and <y, v> = alpha ||v||_inf. Weights and products
 * are fp32, so both hold to what rounding v (2^-24 of about 0.1) leaves of y. */
static void test_optimality(void **state) {
  (void)state;
  const int groups[] = {0, 24};
  for (int k = 0; k < 2; k++) {
    problem p;
    double got;
    problem_open(&p, 11, 24, 192, groups[k], MAGR_FISTA, 1500);
    assert_done(magr(&p.q, p.v, &got));
    assert_true(fabs(got - objective(&p)) <= 1e-5 * got);
    int n = groups[k] ? groups[k] : 192;
    double y[192], before = 0, after = 0;
    for (int r = 0; r < 24; r++) {
      pull(&p, r, y);
      for (int s = 0; s < 192; s += n) {
        double norm = 0, inner = 0, high = 0, was = 0;
        for (int j = s; j < s + n; j++) {
          norm += fabs(y[j]);
          inner += y[j] * p.v[r * 192 + j];
          high = fmax(high, fabs(p.v[r * 192 + j]));
          was = fmax(was, fabs(p.w[r * 192 + j]));
        }
        assert_true(high > 0 && high <= was * 1.5);
        assert_true(fabs(norm - p.q.alpha) <= 3e-3 * p.q.alpha);
        assert_true(fabs(inner - p.q.alpha * high) <= 3e-3 * p.q.alpha * high);
        before += was;
        after += high;
      }
    }
    assert_true(after < 0.8 * before); /* it does shrink the maxima */
    problem_close(&p);
  }
}

/* One row of the specification's iteration, in double. */
enum { PLAIN = 150 };
typedef struct plain_row {
  double v[PLAIN], y[PLAIN], t;
  bool doubtful; /* a decision to restart was too close for fp32 to agree on; not compared from there */
} plain_row;

static void plain_step(const problem *p, int r, plain_row *x) {
  double next[PLAIN], turn = 0, back = 0, move = 0;
  int n = p->q.group ? p->q.group : PLAIN;
  for (int j = 0; j < PLAIN; j++) {
    double slope = 0;
    for (int i = 0; i < PLAIN; i++) slope += (x->y[i] - p->w[r * PLAIN + i]) / p->lambda * p->h[i * PLAIN + j];
    next[j] = x->y[j] - slope;
  }
  for (int s = 0; s < PLAIN; s += n) {
    float z[PLAIN];
    for (int j = 0; j < n; j++) z[j] = (float)next[s + j];
    double c = sorted_level(n, z, p->q.alpha);
    for (int j = s; j < s + n; j++) next[j] = fmin(fmax(next[j], -c), c);
  }
  for (int j = 0; j < PLAIN; j++) {
    turn += (x->y[j] - next[j]) * (next[j] - x->v[j]);
    back += (x->y[j] - next[j]) * (x->y[j] - next[j]);
    move += (next[j] - x->v[j]) * (next[j] - x->v[j]);
  }
  double t = (1 + sqrt(1 + 4 * x->t * x->t)) / 2, momentum = p->q.solver == MAGR_PG || turn > 0 ? 0 : (x->t - 1) / t;
  x->doubtful |= p->q.solver == MAGR_FISTA && fabs(turn) < 1e-2 * sqrt(back * move);
  x->t = turn > 0 ? 1 : t;
  for (int j = 0; j < PLAIN; j++) {
    x->y[j] = next[j] + momentum * (next[j] - x->v[j]);
    x->v[j] = next[j];
  }
}

/* The iterates are the specification's; the objective of pg never rises. */
static void test_iterates(void **state) {
  (void)state;
  enum { ROWS = 19, STEPS = 60 };
  int restarts = 0;
  for (int kind = 0; kind < 4; kind++) {
    problem p;
    double last = INFINITY, got;
    plain_row *x;
    int compared = 0;
    problem_open(&p, 12, ROWS, PLAIN, kind % 2 ? 50 : 0, kind < 2 ? MAGR_PG : MAGR_FISTA, 0);
    assert_done(NEW(x, ROWS, "test"));
    for (int r = 0; r < ROWS; r++) {
      x[r].t = 1;
      for (int j = 0; j < PLAIN; j++) x[r].v[j] = x[r].y[j] = p.w[r * PLAIN + j];
    }
    for (p.q.steps = 0; p.q.steps <= STEPS; p.q.steps++) {
      assert_done(magr(&p.q, p.v, &got));
      assert_true(kind >= 2 || got <= last * (1 + 1e-6));
      last = got;
      for (int r = 0; r < ROWS; r++) {
        for (int j = 0; j < PLAIN && !x[r].doubtful; j++) assert_true(fabs(p.v[r * PLAIN + j] - x[r].v[j]) <= 1e-5);
        compared += !x[r].doubtful;
        plain_step(&p, r, &x[r]);
        restarts += kind >= 2 && x[r].t == 1 && !x[r].doubtful;
      }
    }
    assert_true(compared > ROWS * STEPS / 4);
    FREE(x);
    problem_close(&p);
  }
  assert_true(restarts > 0);
}

static void test_fista_beats_pg(void **state) {
  (void)state;
  const int groups[] = {0, 64};
  for (int k = 0; k < 2; k++) {
    problem p;
    double fast, slow, none;
    problem_open(&p, 13, 70, 320, groups[k], MAGR_FISTA, 60);
    assert_done(magr(&p.q, p.v, &fast));
    p.q.solver = MAGR_PG;
    p.q.steps = 150;
    assert_done(magr(&p.q, p.v, &slow));
    p.q.steps = 0;
    assert_done(magr(&p.q, p.v, &none));
    assert_memory_equal(p.v, p.w, 70 * 320 * sizeof(float));
    assert_true(fast <= slow && slow < none);
    problem_close(&p);
  }
}

/* H and its largest eigenvalue enter as a ratio: a power of two changes no bit. Neither does working in place. */
static void test_scale(void **state) {
  (void)state;
  problem p;
  problem_open(&p, 14, 10, 130, 0, MAGR_FISTA, 30);
  float *v;
  double lambda;
  assert_done(NEW(v, 10 * 130, "test"));
  assert_done(magr(&p.q, p.v, NULL));
  for (int i = 0; i < 130 * 130; i++) p.h[i] *= 1024;
  assert_done(magr_lambda_max(130, p.h, &lambda));
  assert_true(lambda == 1024 * p.lambda);
  p.q.lambda_max = lambda;
  assert_done(magr(&p.q, v, NULL));
  assert_memory_equal(v, p.v, 10 * 130 * sizeof *v);
  memcpy(v, p.w, 10 * 130 * sizeof *v); /* in place */
  p.q.w = v;
  assert_done(magr(&p.q, v, NULL));
  assert_memory_equal(v, p.v, 10 * 130 * sizeof *v);
  FREE(v);
  problem_close(&p);
}

/* The printed formula on the raw Gram is the normalised one with alpha over its largest eigenvalue, and leaves the maxima where they are. */
static void test_literal(void **state) {
  (void)state;
  for (int group = 0; group <= 26; group += 26) {
    problem p;
    float *v;
    double objective, same, high = 0;
    problem_open(&p, 16, 10, 130, group, MAGR_FISTA, 60);
    assert_done(NEW(v, 10 * 130, "test"));
    p.q.literal = true;
    assert_done(magr(&p.q, p.v, &objective));
    p.q.literal = false;
    p.q.alpha /= p.lambda;
    assert_done(magr(&p.q, v, &same));
    assert_memory_equal(v, p.v, 10 * 130 * sizeof *v);
    assert_true(objective == same);
    for (int i = 0; i < 10 * 130; i++) high = fmax(high, fabs(v[i] - p.w[i]));
    assert_true(high < 1e-3);
    p.q.alpha *= p.lambda;
    assert_done(magr(&p.q, v, NULL));
    same = 0;
    for (int i = 0; i < 10 * 130; i++) same = fmax(same, fabs(v[i] - p.w[i]));
    assert_true(same > 20 * high);
    FREE(v);
    problem_close(&p);
  }
}

static void test_lambda_max(void **state) {
  (void)state;
  for (int kind = 0; kind < 4; kind++) {
    int width = kind == 3 ? 1 : 150;
    double *h, values[150], lambda;
    float *f;
    assert_done(NEW(h, width * width, "test"));
    assert_done(NEW(f, width * width, "test"));
    if (kind != 1)
      assert_done(layer_gram(20, kind == 2 ? 40 : 600, width, NULL, h));
    else
      for (int i = 0; i < width; i++) h[i * width + i] = 1 + i / 1000.; /* nearly equal eigenvalues: slow, yet within the margin */
    for (int i = 0; i < width * width; i++) f[i] = (float)h[i];
    assert_done(deigen("test", width, h, width, values));
    assert_done(magr_lambda_max(width, f, &lambda));
    assert_true(lambda >= values[width - 1] && lambda <= 1.0201 * values[width - 1]);
    FREE(h), FREE(f);
  }
}

/* A row's result does not depend on the rows it comes with. */
static void test_company(void **state) {
  (void)state;
  const struct {
    int rows, width, group;
    magr_solver solver;
  } cases[] = {{1100, 203, 29, MAGR_FISTA}, {300, 203, 0, MAGR_PG}, {300, 900, 0, MAGR_FISTA}, {300, 2050, 50, MAGR_FISTA}};
  for (size_t k = 0; k < sizeof cases / sizeof *cases; k++) {
    problem p;
    int rows = cases[k].rows, width = cases[k].width;
    float *some;
    problem_open(&p, 15, rows, width, cases[k].group, cases[k].solver, width < 2048 ? 12 : 4);
    assert_done(NEW(some, (int64_t)rows * width + 5, "test"));
    assert_done(magr(&p.q, p.v, NULL));
    const int pieces[][2] = {{0, 1}, {rows - 1, 1}, {30, 7}, {0, 299}, {rows - 280, 280}};
    for (size_t i = 0; i < sizeof pieces / sizeof *pieces; i++) {
      magr_request q = p.q;
      float *v = some + i; /* at any address */
      q.rows = pieces[i][1];
      q.w += (int64_t)pieces[i][0] * width;
      assert_done(magr(&q, v, NULL));
      assert_memory_equal(v, p.v + (int64_t)pieces[i][0] * width, (size_t)q.rows * (size_t)width * sizeof *v);
    }
    FREE(some);
    problem_close(&p);
  }
}

static void assert_numerics(const problem *p, const char *words) {
  assert_int_equal(magr(&p->q, p->v, NULL), E_NUMERICS);
  assert_non_null(strstr(status_message(), words));
  status_clear();
}

static void test_refusals(void **state) {
  (void)state;
  problem p;
  problem_open(&p, 16, 9, 70, 10, MAGR_FISTA, 5);
  const double lambdas[] = {0, -1, NAN, INFINITY};
  for (int i = 0; i < 4; i++) {
    p.q.lambda_max = lambdas[i];
    assert_numerics(&p, "largest eigenvalue");
  }
  p.q.lambda_max = p.lambda;
  float w = p.w[4 * 70 + 3];
  p.w[4 * 70 + 3] = NAN;
  assert_numerics(&p, "row 4");
  p.w[4 * 70 + 3] = w;
  p.h[17] = NAN;
  assert_numerics(&p, "row 0");
  double lambda;
  assert_int_equal(magr_lambda_max(70, p.h, &lambda), E_NUMERICS);
  status_clear();
  p.h[17] = 0;

  ASSERT_SURVIVES_LACK_OF_MEMORY(8, st = magr(&p.q, p.v, NULL); if (st == OK) st = magr_lambda_max(70, p.h, &lambda));
  problem_close(&p);
}

int main(void) {
  blas_setup();
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_prox),       cmocka_unit_test(test_optimality),     cmocka_unit_test(test_iterates),
      cmocka_unit_test(test_lambda_max), cmocka_unit_test(test_fista_beats_pg), cmocka_unit_test(test_scale),
      cmocka_unit_test(test_literal),    cmocka_unit_test(test_company),        cmocka_unit_test(test_refusals)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
