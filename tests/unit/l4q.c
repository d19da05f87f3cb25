/* The joint step of L4Q: its slopes against the formulas of the paper in double, those against differences of the loss with rounding held still;
 * where it starts, and that what it returns is what it claims. */
#include "check.h"

#include <math.h>
#include <string.h>

#include "joint/l4q.h"
#include "base/blas.h"
#include "base/memory.h"
#include "problem.h"
#include "quant/codes.h"

#define assert_near(found, expected, slack)                                                                       \
  do {                                                                                                            \
    double near_f = (found), near_e = (expected);                                                                 \
    if (!(fabs(near_f - near_e) <= (slack))) fail_msg("%s: expected %.17g, found %.17g", #found, near_e, near_f); \
  } while (0)

enum { N = 5, M = 12, GROUP = 4, GROUPS = M / GROUP, RANK = 2, SIZE = N * M, CELLS = N * GROUPS };

/* Everything in double: w, factors, scales and offsets; and the rounding u - v and the mask of the point where they were taken. */
typedef struct point {
  double w[SIZE], h[M * M], a[RANK * M], b[N * RANK], scale[CELLS], offset[CELLS];
  bool real; /* offsets are variables; else they follow the scales: z stays */
  double zero[CELLS], half, top, round[SIZE], code[SIZE];
  bool inside[SIZE];
} point;

static double merged(const point *p, int k) {
  double v = p->w[k];
  for (int r = 0; r < RANK; r++) v += p->b[k / M * RANK + r] * p->a[r * M + k % M];
  return v;
}

static int cell(int k) { return k / M * GROUPS + k % M / GROUP; }

/* o = s (half - z) where z stays. */
static double offset_of(const point *p, int c) { return p->real ? p->offset[c] : p->scale[c] * (p->half - p->zero[c]); }

/* W_q - W with the rounding of every entry held still: smooth in all variables. */
static void residual(const point *p, double *e) {
  for (int k = 0; k < SIZE; k++) {
    double s = p->scale[cell(k)], o = offset_of(p, cell(k));
    e[k] = (p->inside[k] ? merged(p, k) + s * p->round[k] : s * (p->code[k] - p->half) + o) - p->w[k];
  }
}

static double smooth_loss(const point *p) {
  double e[SIZE], sum = 0;
  residual(p, e);
  for (int i = 0; i < N; i++)
    for (int j = 0; j < M; j++)
      for (int k = 0; k < M; k++) sum += e[i * M + j] * p->h[j * M + k] * e[i * M + k];
  return sum;
}

/* d loss / d x by central differences: exact up to rounding, the loss being a polynomial of degree 4. */
static double difference(const point *p, double *x) {
  double keep = *x, step = 1e-3 * (fabs(keep) + 1e-3), f[4];
  for (int k = 0; k < 4; k++) {
    *x = keep + (k < 2 ? k - 2 : k - 1) * step;
    f[k] = smooth_loss(p);
  }
  *x = keep;
  return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * step);
}

static void slopes(void **state) {
  (void)state;
  for (int real = 0; real < 2; real++)
    for (int bits = 2; bits < 4; bits++) {
      problem pr;
      point p = {.real = real, .half = ldexp(1, bits - 1), .top = (1 << bits) - 1};
      float a[RANK * M], b[N * RANK], target[SIZE], e[SIZE], y[SIZE], da[RANK * M], db[N * RANK];
      uint16_t scales[CELLS], reals[CELLS];
      uint8_t zeros[CELLS], codes[SIZE], again[SIZE];
      double ds[CELLS], offsets[CELLS], loss;
      assert_done(problem_new(&pr, PROBLEM_DECAYING, N, M, (uint64_t)bits));
      l4q_request q = {.where = "layer",
                       .n = N,
                       .m = M,
                       .w = pr.e,
                       .h = pr.h,
                       .rule = {.kind = GRID_UNIFORM, .bits = bits, .group = GROUP, .beta = 0.7, .real_zero = real},
                       .rank = RANK};
      code_grid g = {.scales = scales, .zeros = real ? NULL : zeros, .real_zeros = real ? reals : NULL};
      assert_done(grid_fit(&q.rule, N, M, pr.e, M, NULL, g, NULL)); /* a grid that clips */
      for (int k = 0; k < RANK * M; k++) p.a[k] = (double)(a[k] = (float)(problem_entry(5, k) * 0.1));
      for (int k = 0; k < N * RANK; k++) p.b[k] = (double)(b[k] = (float)(problem_entry(6, k) * 0.05));
      for (int k = 0; k < SIZE; k++) p.w[k] = (double)pr.e[k];
      for (int k = 0; k < M * M; k++) p.h[k] = (double)pr.h[k];
      for (int c = 0; c < CELLS; c++) {
        p.scale[c] = (double)half_to_float(scales[c]);
        p.zero[c] = grid_zero(&q.rule, g, c);
        p.offset[c] = p.scale[c] * (p.half - p.zero[c]);
      }
      assert_done(l4q_evaluate(&q, a, b, g, target, e, y, codes, &loss, &(l4q_slopes){da, db, ds, offsets}));
      int clipped = 0;
      for (int k = 0; k < SIZE; k++) {
        int c = cell(k);
        double v = merged(&p, k) / p.scale[c] + p.zero[c];
        again[k] = (real ? grid_code_real : grid_code)(merged(&p, k), p.scale[c], p.zero[c], bits);
        p.code[k] = again[k];
        p.round[k] = p.code[k] - v;
        p.inside[k] = v >= 0 && v <= p.top;
        clipped += !p.inside[k];
      }
      assert_true(clipped > 3);
      assert_memory_equal(codes, again, sizeof codes);
      assert_near(loss, smooth_loss(&p), 1e-5 * loss);
      /* The formulas of the paper, and the differences. */
      double rest[SIZE], gr[SIZE] = {0}, gm[SIZE], fa[RANK * M] = {0}, fb[N * RANK] = {0}, fs[CELLS] = {0}, fo[CELLS] = {0};
      residual(&p, rest);
      for (int k = 0; k < SIZE; k++) {
        for (int j = 0; j < M; j++) gr[k] += 2 * rest[k / M * M + j] * p.h[j * M + k % M];
        gm[k] = p.inside[k] ? gr[k] : 0;
        int c = cell(k);
        fs[c] += gr[k] * (p.inside[k] ? p.round[k] : p.code[k] - (real ? p.half : p.zero[c]));
        fo[c] += p.inside[k] ? 0 : gr[k];
        for (int r = 0; r < RANK; r++) {
          fb[k / M * RANK + r] += gm[k] * p.a[r * M + k % M];
          fa[r * M + k % M] += gm[k] * p.b[k / M * RANK + r];
        }
      }
      double size_a = 0, size_b = 0, size_s = 0;
      for (int k = 0; k < RANK * M; k++) size_a = fmax(size_a, fabs(fa[k]));
      for (int k = 0; k < N * RANK; k++) size_b = fmax(size_b, fabs(fb[k]));
      for (int c = 0; c < CELLS; c++) size_s = fmax(size_s, fabs(fs[c]));
      for (int k = 0; k < RANK * M; k++) {
        assert_near(fa[k], difference(&p, &p.a[k]), 1e-8 * size_a);
        assert_near((double)da[k], fa[k], 1e-5 * size_a);
      }
      for (int k = 0; k < N * RANK; k++) {
        assert_near(fb[k], difference(&p, &p.b[k]), 1e-8 * size_b);
        assert_near((double)db[k], fb[k], 1e-5 * size_b);
      }
      for (int c = 0; c < CELLS; c++) {
        assert_near(fs[c], difference(&p, &p.scale[c]), 1e-8 * size_s);
        assert_near(ds[c], fs[c], 1e-5 * size_s);
        if (!real) continue;
        assert_near(fo[c], difference(&p, &p.offset[c]), 1e-8 * size_s);
        assert_near(offsets[c], fo[c], 1e-5 * size_s);
      }
      problem_free(&pr);
    }
}

/* No steps: round to nearest. Steps: the least of the list; codes and grid returned have that loss; integer zeros stay. The same call gives the same bits. */
static void training(void **state) {
  (void)state;
  enum { ROWS = 24, WIDTH = 64, PER = 32, COUNT = ROWS * WIDTH, STEPS = 60 };
  static const uint8_t widths[] = {2, 4};
  for (int kind = 0; kind < 4; kind++) {
    problem p;
    uint16_t scales[2][ROWS * 2], reals[2][ROWS * 2];
    uint8_t zeros[ROWS * 2], kept[ROWS * 2], codes[2][COUNT], plain[COUNT];
    float e[COUNT];
    double losses[2][STEPS + 1], direct;
    int best[2];
    bool real = kind == 1;
    assert_done(problem_new(&p, PROBLEM_DECAYING, ROWS, WIDTH, 1));
    l4q_request q = {
        .where = "layer",
        .n = ROWS,
        .m = WIDTH,
        .w = p.e,
        .h = p.h,
        .rule = {.kind = GRID_UNIFORM, .bits = 3, .group = PER, .beta = 1, .real_zero = real, .symmetric = kind == 2},
        .rank = 4,
        .rate_adapter = L4Q_RATE_ADAPTER,
        .rate_grid = L4Q_RATE_GRID,
        .name = "q_proj",
    };
    if (kind == 3) q.rule.widths = widths;
    for (int run = 0; run < 2; run++) {
      code_grid g = {.scales = scales[run], .zeros = real ? NULL : zeros, .real_zeros = real ? reals[run] : NULL};
      assert_done(grid_fit(&q.rule, ROWS, WIDTH, p.e, WIDTH, NULL, g, NULL));
      memcpy(kept, zeros, sizeof kept);
      q.steps = 0;
      grid_round(&q.rule, ROWS, WIDTH, p.e, WIDTH, g, plain);
      assert_done(l4q(&q, g, codes[run], losses[run], &best[run]));
      assert_memory_equal(codes[run], plain, sizeof plain);
      codes_bytes_values(&q.rule, ROWS, WIDTH, plain, g, e);
      for (int i = 0; i < COUNT; i++) e[i] = p.e[i] - e[i];
      assert_done(adapter_trace(WIDTH, e, p.h, 0, ROWS, NULL, &direct));
      assert_near(losses[run][0], direct, 1e-5 * direct);
      q.steps = STEPS;
      assert_done(l4q(&q, g, codes[run], losses[run], &best[run]));
      codes_bytes_values(&q.rule, ROWS, WIDTH, codes[run], g, e);
      for (int i = 0; i < COUNT; i++) e[i] = p.e[i] - e[i];
      assert_done(adapter_trace(WIDTH, e, p.h, 0, ROWS, NULL, &direct));
      assert_near(losses[run][best[run]], direct, 1e-5 * direct);
      for (int t = 0; t <= STEPS; t++) assert_true(losses[run][best[run]] <= losses[run][t]);
      assert_true(losses[run][best[run]] < 0.7 * losses[run][0]);
      if (!real) assert_memory_equal(zeros, kept, sizeof kept);
    }
    assert_memory_equal(codes[0], codes[1], sizeof codes[0]);
    assert_memory_equal(scales[0], scales[1], sizeof scales[0]);
    assert_memory_equal(losses[0], losses[1], sizeof losses[0]);
    problem_free(&p);
  }
  assert_int_equal(mem_now(), 0);
}

static void refusals(void **state) {
  (void)state;
  problem p;
  uint16_t scales[N];
  uint8_t zeros[N], codes[SIZE];
  double losses[3];
  int best;
  code_grid g = {.scales = scales, .zeros = zeros};
  assert_done(problem_new(&p, PROBLEM_DECAYING, N, M, 0));
  l4q_request q = {
      .where = "layer", .n = N, .m = M, .w = p.e, .h = p.h, .rule = {.bits = 4, .beta = 1}, .rank = 0, .steps = 2, .name = "x"};
  assert_done(grid_fit(&q.rule, N, M, p.e, M, NULL, g, NULL));
  assert_int_equal(l4q(&q, g, codes, losses, &best), E_INTERNAL);
  status_clear();
  q.rank = 2;
  q.rate_grid = NAN;
  assert_int_equal(l4q(&q, g, codes, losses, &best), E_INTERNAL);
  status_clear();
  q.rate_grid = 0;
  p.h[M + 1] = INFINITY;
  assert_int_equal(l4q(&q, g, codes, losses, &best), E_NUMERICS);
  status_clear();
  p.h[M + 1] = 1;
  scales[1] = 0;
  assert_int_equal(l4q(&q, g, codes, losses, &best), E_NUMERICS);
  assert_non_null(strstr(status_message(), "layer: l4q: expected a finite positive scale to start from, found 0"));
  status_clear();
  problem_free(&p);
  assert_int_equal(mem_now(), 0);
  q.n = q.m = 4096;
  assert_true(l4q_flops(&q) > 3 * 2. * 4096 * 4096 * 4096 && l4q_bytes(&q) > 13u * 4096 * 4096);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(slopes), cmocka_unit_test(training), cmocka_unit_test(refusals)};
  blas_setup();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
