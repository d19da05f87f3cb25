/* OPTQ: the identity that proves the recursion, codes against the classic algorithm written plainly, dead columns, orders, singular
 * Grams, rows alone and in company, and what must be refused. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

#include "base/half.h"
#include "lack.h"
#include "layers.h"
#include "quant/codes.h"
#include "quant/optq.h"

/* One layer and everything that a call needs; arrays as optq wants them, and Hd = U U^T in processing order. */
typedef struct layer {
  grid_rule rule;
  int rows, width;
  float *w;
  double *h, *hd, *u; /* h in column order; hd, u in processing order */
  int32_t *order;     /* always filled; natural when not act */
  uint8_t *dead;
  code_grid grid;
  uint8_t *codes;
} layer;

typedef struct setting {
  int rows, width, tokens, bits, group;
  bool symmetric, act, dead, dead_rtn, real_zero, dynamic;
  const uint8_t *widths;
  grid_search search;
  double damping;
} setting;

static const double *sort_key;
static int sort_width;
static int by_diagonal(const void *a, const void *b) {
  int i = *(const int32_t *)a, j = *(const int32_t *)b;
  double x = sort_key[(int64_t)i * sort_width + i], y = sort_key[(int64_t)j * sort_width + j];
  return x > y ? -1 : x < y ? 1 : i - j;
}

static void layer_open(layer *l, const setting *s, uint64_t seed) {
  int rows = s->rows, width = s->width;
  int64_t square = (int64_t)width * width;
  *l = (layer){.rule = {.bits = s->bits,
                        .group = s->group,
                        .symmetric = s->symmetric,
                        .beta = 1,
                        .real_zero = s->real_zero,
                        .widths = s->widths,
                        .search = s->search},
               .rows = rows,
               .width = width};
  int64_t groups = grid_groups(&l->rule, width);
  assert_done(NEW(l->w, (int64_t)rows * width, "test"));
  assert_done(NEW(l->h, square, "test"));
  assert_done(NEW(l->hd, square, "test"));
  assert_done(NEW(l->u, square, "test"));
  assert_done(NEW(l->order, width, "test"));
  assert_done(NEW(l->dead, width, "test"));
  assert_done(NEW(l->grid.scales, rows * groups, "test"));
  assert_done(NEW(l->grid.zeros, rows * groups, "test"));
  assert_done(NEW(l->grid.real_zeros, rows * groups, "test"));
  assert_done(NEW(l->codes, (int64_t)rows * width, "test"));
  layer_weights(seed, rows, width, l->w);
  for (int j = 0; s->dead && j < width; j++) l->dead[j] = j % 17 == 3 || j == width - 1;
  assert_done(layer_gram(seed, s->tokens, width, l->dead, l->h));
  double mean = 0;
  for (int i = 0; i < width; i++) {
    l->order[i] = i;
    if (l->dead[i]) l->h[(int64_t)i * width + i] = 1;
    mean += l->h[(int64_t)i * width + i] / width;
  }
  sort_key = l->h;
  sort_width = width;
  if (s->act) qsort(l->order, (size_t)width, sizeof *l->order, by_diagonal);
  for (int i = 0; i < width; i++)
    for (int j = 0; j < width; j++)
      l->hd[i * width + j] = l->h[(int64_t)l->order[i] * width + l->order[j]] + (i == j ? s->damping * mean : 0);
  assert_int_equal(layer_factor(width, l->hd, l->u), -1);
  assert_done(grid_fit(&l->rule, rows, width, l->w, width, NULL, l->grid, NULL));
}

static void layer_close(layer *l) {
  FREE(l->w), FREE(l->h), FREE(l->hd), FREE(l->u), FREE(l->order), FREE(l->dead), FREE(l->grid.scales), FREE(l->grid.zeros),
      FREE(l->grid.real_zeros), FREE(l->codes);
}

static optq_request request(const layer *l, const setting *s) {
  return (optq_request){.rule = l->rule,
                        .rows = l->rows,
                        .width = l->width,
                        .w = l->w,
                        .ldw = l->width,
                        .u = l->u,
                        .order = s->act ? l->order : NULL,
                        .dead = s->dead ? l->dead : NULL,
                        .dead_rtn = s->dead_rtn,
                        .grid = l->grid,
                        .dynamic = s->dynamic};
}

static double value(const layer *l, int i, int j, int code) {
  int groups = grid_groups(&l->rule, l->width), g = i * groups + j / (l->width / groups);
  return (float)((double)half_to_float(l->grid.scales[g]) * (code - grid_zero(&l->rule, l->grid, g)));
}

/* e (rows, width) = w - q in processing order; dead columns, which the quantizer takes as 0 and may keep rounded, count as 0. */
static double *errors(const layer *l, const uint8_t *codes) {
  double *e;
  assert_done(NEW(e, (int64_t)l->rows * l->width, "test"));
  for (int i = 0; i < l->rows; i++)
    for (int k = 0; k < l->width; k++) {
      int j = l->order[k];
      int64_t at = (int64_t)i * l->width + j;
      e[(int64_t)i * l->width + k] = l->dead[j] ? 0 : l->w[at] - value(l, i, j, codes[at]);
    }
  return e;
}

/* The published algorithm: Hd^-1 = F^T F, F upper; quantize a column, divide its error by F_jj, subtract it times row j of F from the
 * columns to come. Dynamic: at a group's first column its grid is fitted to the row as it stands. Returns the distance of the decision closest to a tie, of each row, in near[rows]. */
static void classic(const layer *l, bool dynamic, uint8_t *codes, double *near) {
  int n = l->width, groups = grid_groups(&l->rule, n);
  float now[1024];
  double *inverse, *f, *row;
  assert_done(NEW(inverse, (int64_t)n * n, "test"));
  assert_done(NEW(f, (int64_t)n * n, "test"));
  assert_done(NEW(row, n, "test"));
  /* inverse = Hd^-1 by Gauss-Jordan without pivots: Hd is positive definite */
  double *a = f;
  memcpy(a, l->hd, (size_t)n * (size_t)n * sizeof *a);
  for (int i = 0; i < n; i++) inverse[i * n + i] = 1;
  for (int p = 0; p < n; p++) {
    double d = 1 / a[p * n + p];
    for (int j = 0; j < n; j++) a[p * n + j] *= d, inverse[p * n + j] *= d;
    for (int i = 0; i < n; i++) {
      double t = a[i * n + p];
      if (i == p || t == 0) continue;
      for (int j = 0; j < n; j++) a[i * n + j] -= t * a[p * n + j], inverse[i * n + j] -= t * inverse[p * n + j];
    }
  }
  memset(f, 0, (size_t)n * (size_t)n * sizeof *f);
  for (int i = 0; i < n; i++)
    for (int j = i; j < n; j++) {
      double t = (inverse[i * n + j] + inverse[j * n + i]) / 2;
      for (int k = 0; k < i; k++) t -= f[k * n + i] * f[k * n + j];
      f[i * n + j] = i == j ? sqrt(t) : t / f[i * n + i];
    }
  for (int r = 0; r < l->rows; r++) {
    near[r] = 1;
    for (int k = 0; k < n; k++) row[k] = l->dead[l->order[k]] ? 0 : l->w[(int64_t)r * n + l->order[k]];
    for (int k = 0; k < n; k++) {
      int j = l->order[k], g = r * groups + j / (n / groups), size = n / groups;
      if (dynamic && k % size == 0) {
        grid_rule one = l->rule;
        one.bits = group_bits(&l->rule, k / size);
        one.group = 0;
        one.widths = NULL;
        for (int c = 0; c < size; c++) now[c] = (float)row[k + c];
        assert_done(grid_fit(&one, 1, size, now, size, NULL, grid_from(l->grid, g), NULL));
      }
      double s = half_to_float(l->grid.scales[g]), x = row[k] / s;
      double z = grid_zero(&l->rule, l->grid, g);
      int bits = group_bits(&l->rule, g % groups);
      int u = l->rule.real_zero ? grid_code_real(row[k], s, z, bits) : grid_code(row[k], s, z, bits);
      x += l->rule.real_zero ? z : 0;
      near[r] = fmin(near[r], fabs(fabs(x - rint(x)) - 0.5));
      codes[(int64_t)r * n + j] = (uint8_t)u;
      double e = (row[k] - value(l, r, j, u)) / f[k * n + k];
      for (int c = k + 1; c < n; c++) row[c] -= e * f[k * n + c];
    }
  }
  FREE(inverse), FREE(f), FREE(row);
}

static const uint8_t several[6] = {2, 3, 1, 2, 3, 1};
static const setting settings[] = {
    {.rows = 37, .width = 150, .tokens = 900, .bits = 2, .group = 50, .damping = 0.01},
    {.rows = 33, .width = 192, .tokens = 900, .bits = 3, .group = 64, .damping = 0.01},
    {.rows = 20, .width = 300, .tokens = 900, .bits = 4, .group = 60, .damping = 0.01, .symmetric = true},
    {.rows = 20, .width = 257, .tokens = 900, .bits = 4, .damping = 0.01},
    {.rows = 20, .width = 300, .tokens = 900, .bits = 3, .group = 20, .damping = 0.01, .act = true},
    {.rows = 20, .width = 300, .tokens = 900, .bits = 2, .group = 60, .damping = 0.01, .dead = true},
    {.rows = 20, .width = 300, .tokens = 900, .bits = 2, .group = 60, .damping = 0.01, .dead = true, .act = true},
    {.rows = 9, .width = 290, .tokens = 100, .bits = 2, .group = 58, .damping = 0.01}, /* singular */
    {.rows = 9, .width = 290, .tokens = 100, .bits = 8, .damping = 0.05, .symmetric = true, .act = true, .dead = true},
    {.rows = 1, .width = 1, .tokens = 5, .bits = 1, .damping = 0.01},
    {.rows = 20, .width = 300, .tokens = 900, .bits = 3, .group = 60, .damping = 0.01, .real_zero = true},
    {.rows = 20, .width = 300, .tokens = 900, .bits = 2, .group = 50, .damping = 0.01, .act = true, .widths = several},
    {.rows = 37, .width = 300, .tokens = 900, .bits = 2, .group = 50, .damping = 0.01, .dynamic = true, .dead = true},
    {.rows = 20, .width = 300, .tokens = 900, .bits = 3, .group = 60, .damping = 0.01, .dynamic = true, .real_zero = true},
    {.rows = 20, .width = 300, .tokens = 900, .bits = 2, .group = 50, .damping = 0.01, .dynamic = true, .widths = several},
    {.rows = 20, .width = 600, .tokens = 900, .bits = 2, .group = 300, .damping = 0.01, .dynamic = true, .search = SEARCH_SCAN},
    {.rows = 20, .width = 290, .tokens = 900, .bits = 4, .damping = 0.01, .dynamic = true, .dead = true},
};
enum { SETTINGS = sizeof settings / sizeof *settings };

/* tr(E Hd E^T) = sum (v - q)^2 U_jj^2, and far below rounding to nearest. */
static void test_identity(void **state) {
  (void)state;
  for (int k = 0; k < SETTINGS; k++) {
    layer l;
    layer_open(&l, &settings[k], 100 + (uint64_t)k);
    optq_request q = request(&l, &settings[k]);
    double loss, sum = 0, *rows = NULL;
    assert_done(NEW(rows, l.rows, "test"));
    q.row_loss = rows;
    assert_done(optq(&q, l.codes, &loss));
    for (int i = 0; i < l.rows; i++) sum += rows[i];
    assert_true(sum == loss);
    FREE(rows);
    double *e = errors(&l, l.codes), direct = layer_loss(l.rows, l.width, e, l.hd);
    assert_true(fabs(loss - direct) <= 1e-10 * direct);
    FREE(e);
    if (settings[k].dynamic) assert_done(grid_fit(&l.rule, l.rows, l.width, l.w, l.width, NULL, l.grid, NULL));
    grid_round(&l.rule, l.rows, l.width, l.w, l.width, l.grid, l.codes);
    e = errors(&l, l.codes);
    double nearest = layer_loss(l.rows, l.width, e, l.hd);
    assert_true(loss <= nearest * (1 + 1e-12));
    if (l.width > 1) assert_true(loss <= 0.7 * nearest);
    FREE(e);
    layer_close(&l);
  }
}

/* The factor transposed below a diagonal of its own is the same factor. */
static void test_transposed(void **state) {
  (void)state;
  for (int k = 0; k < SETTINGS; k++) {
    layer l;
    double *lower = NULL, *diagonal = NULL, loss[2];
    uint8_t *codes = NULL;
    if (settings[k].dynamic) continue;
    layer_open(&l, &settings[k], 100 + (uint64_t)k);
    optq_request q = request(&l, &settings[k]);
    assert_done(NEW(lower, (int64_t)l.width * l.width, "test"));
    assert_done(NEW(diagonal, l.width, "test"));
    assert_done(NEW(codes, (int64_t)l.rows * l.width, "test"));
    assert_done(optq(&q, l.codes, &loss[0]));
    for (int i = 0; i < l.width; i++)
      for (int j = i; j < l.width; j++) {
        lower[j * l.width + i] = i == j ? NAN : q.u[i * l.width + j];
        if (i < j) lower[i * l.width + j] = NAN;
        diagonal[i] = q.u[i * l.width + i];
      }
    q.u = lower;
    q.diagonal = diagonal;
    assert_done(optq(&q, codes, &loss[1]));
    assert_memory_equal(codes, l.codes, (size_t)l.rows * (size_t)l.width);
    assert_true(fabs(loss[0] - loss[1]) <= 1e-12 * loss[0]);
    FREE(lower), FREE(diagonal), FREE(codes);
    layer_close(&l);
  }
}

/* Codes equal the classic algorithm's, but for rows with a decision within 1e-9 of a tie, which are listed; and so do dynamic grids. */
static void test_classic(void **state) {
  (void)state;
  for (int k = 0; k < SETTINGS; k++) {
    layer l, reference;
    uint8_t *expected;
    double *near;
    layer_open(&l, &settings[k], 100 + (uint64_t)k);
    layer_open(&reference, &settings[k], 100 + (uint64_t)k);
    assert_done(NEW(expected, (int64_t)l.rows * l.width, "test"));
    assert_done(NEW(near, l.rows, "test"));
    optq_request q = request(&l, &settings[k]);
    assert_done(optq(&q, l.codes, NULL));
    classic(&reference, settings[k].dynamic, expected, near);
    int groups = grid_groups(&l.rule, l.width);
    for (int r = 0; r < l.rows; r++) {
      bool same = memcmp(l.codes + (int64_t)r * l.width, expected + (int64_t)r * l.width, (size_t)l.width) == 0;
      for (int g = r * groups; g < (r + 1) * groups; g++)
        same &= l.grid.scales[g] == reference.grid.scales[g] && grid_zero(&l.rule, l.grid, g) == grid_zero(&l.rule, reference.grid, g);
      if (same) continue;
      printf("setting %d, row %d: codes differ; closest decision is %.1e from a tie\n", k, r, near[r]);
      assert_true(near[r] <= 1e-9);
    }
    FREE(expected), FREE(near);
    layer_close(&l);
    layer_close(&reference);
  }
}

static void test_dead(void **state) {
  (void)state;
  setting s = settings[6];
  layer l;
  layer_open(&l, &s, 3);
  uint8_t *kept;
  double loss[2];
  assert_done(NEW(kept, (int64_t)l.rows * l.width, "test"));
  optq_request q = request(&l, &s);
  assert_done(optq(&q, l.codes, &loss[0]));
  q.dead_rtn = true;
  assert_done(optq(&q, kept, &loss[1]));
  assert_true(loss[0] == loss[1]);
  int rounded = 0;
  for (int i = 0; i < l.rows; i++)
    for (int j = 0; j < l.width; j++) {
      int64_t at = (int64_t)i * l.width + j;
      int g = i * grid_groups(&l.rule, l.width) + j / l.rule.group;
      if (!l.dead[j]) {
        assert_int_equal(l.codes[at], kept[at]);
        continue;
      }
      assert_int_equal(l.codes[at], l.grid.zeros[g]); /* the value 0 */
      assert_int_equal(kept[at], grid_code(l.w[at], half_to_float(l.grid.scales[g]), l.grid.zeros[g], l.rule.bits));
      rounded += kept[at] != l.codes[at];
    }
  assert_true(rounded > 0);
  FREE(kept);
  layer_close(&l);
}

/* The codes of a row do not depend on the rows it comes with: alone, in sevens, in three hundreds, in several slabs, from a strided matrix.
 * Any upper factor will do here. */
static void check_company(int rows, int width, int group, bool act, bool dynamic) {
  int stride = width + 13, groups = width / group;
  float *w, *dense;
  double *u;
  int32_t *order;
  uint16_t *scales;
  uint8_t *zeros, *codes, *some;
  assert_done(NEW(w, (int64_t)rows * stride, "test"));
  assert_done(NEW(dense, (int64_t)rows * width, "test"));
  assert_done(NEW(u, (int64_t)width * width, "test"));
  assert_done(NEW(order, width, "test"));
  assert_done(NEW(scales, (int64_t)rows * groups, "test"));
  assert_done(NEW(zeros, (int64_t)rows * groups, "test"));
  assert_done(NEW(codes, (int64_t)rows * width, "test"));
  assert_done(NEW(some, (int64_t)rows * width, "test"));
  layer_weights(7, rows, width, dense);
  for (int i = 0; i < rows; i++) memcpy(w + (int64_t)i * stride, dense + (int64_t)i * width, (size_t)width * sizeof *w);
  dice d = {8};
  for (int i = 0; i < width; i++) {
    order[i] = (int32_t)((int64_t)i * 577 % width);
    for (int j = i; j < width; j++) u[(int64_t)i * width + j] = i == j ? 1 + dice_uniform(&d) : (dice_uniform(&d) - 0.5) / sqrt(width);
  }
  grid_rule r = {.bits = 3, .group = group, .beta = 1};
  code_grid grid = {.scales = scales, .zeros = zeros};
  assert_done(grid_fit(&r, rows, width, w, stride, NULL, grid, NULL));
  optq_request q = {.rule = r,
                    .rows = rows,
                    .width = width,
                    .w = w,
                    .ldw = stride,
                    .u = u,
                    .order = act ? order : NULL,
                    .grid = grid,
                    .dynamic = dynamic};
  assert_done(optq(&q, codes, NULL));
  uint16_t *kept;
  assert_done(NEW(kept, (int64_t)rows * groups, "test"));
  memcpy(kept, scales, (size_t)rows * (size_t)groups * sizeof *kept);
  const int pieces[][2] = {{0, 1}, {17, 1}, {rows - 1, 1}, {30, 7}, {rows - 23, 7}, {90, 300}, {1, rows - 1}};
  for (size_t k = 0; k < sizeof pieces / sizeof *pieces; k++) {
    int first = pieces[k][0];
    optq_request p = q;
    p.rows = pieces[k][1];
    p.w = k % 2 ? dense + (int64_t)first * width : w + (int64_t)first * stride;
    p.ldw = k % 2 ? width : stride;
    p.grid = grid_from(grid, (int64_t)first * groups);
    assert_done(optq(&p, some, NULL));
    assert_memory_equal(some, codes + (int64_t)first * width, (size_t)p.rows * (size_t)width);
    assert_memory_equal(kept, scales, (size_t)rows * (size_t)groups * sizeof *kept);
  }
  FREE(kept);
  FREE(w), FREE(dense), FREE(u), FREE(order), FREE(scales), FREE(zeros), FREE(codes), FREE(some);
}

static void test_company(void **state) {
  (void)state;
  check_company(1100, 600, 40, false, false);
  check_company(700, 600, 60, true, false);
  check_company(400, 2050, 50, false, false);
  check_company(700, 600, 40, false, true);
  check_company(400, 2100, 350, false, true);
}

static void assert_numerics(const optq_request *q, uint8_t *codes, const char *words) {
  assert_int_equal(optq(q, codes, NULL), E_NUMERICS);
  assert_non_null(strstr(status_message(), words));
  status_clear();
}

static void test_refusals(void **state) {
  (void)state;
  setting s = {.rows = 40, .width = 520, .tokens = 700, .bits = 2, .group = 40, .damping = 0.01};
  layer l;
  layer_open(&l, &s, 9);
  optq_request q = request(&l, &s);
  float w = l.w[35 * 520 + 100];
  l.w[35 * 520 + 100] = NAN;
  assert_numerics(&q, l.codes, "row 35");
  l.w[35 * 520 + 100] = INFINITY;
  assert_numerics(&q, l.codes, "row 35");
  l.w[35 * 520 + 100] = w;
  double u = l.u[3 * 520 + 400];
  l.u[3 * 520 + 400] = NAN;
  assert_numerics(&q, l.codes, "row 0");
  l.u[3 * 520 + 400] = u;
  u = l.u[300 * 521];
  l.u[300 * 521] = 0;
  assert_numerics(&q, l.codes, "position 300");
  l.u[300 * 521] = u;

  q.order = l.order;
  q.dynamic = true;
  assert_refused(optq(&q, l.codes, NULL), E_USAGE, "optq: dynamic groups, expected the natural order, found another");
  q.order = NULL;

  /* every allocation refused once: the status is right, nothing is lost */
  ASSERT_SURVIVES_LACK_OF_MEMORY(10, st = optq(&q, l.codes, NULL));
  layer_close(&l);
}

int main(void) {
  blas_setup();
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_identity), cmocka_unit_test(test_transposed), cmocka_unit_test(test_classic),
                                     cmocka_unit_test(test_dead),     cmocka_unit_test(test_company),    cmocka_unit_test(test_refusals)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
