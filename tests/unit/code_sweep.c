/* A round of descent over codes and grid: against plain loops in double, its losses against f written out, never rising by row; rows alone and
 * in company, wide groups, columns that stay, and what must be refused. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

#include "base/half.h"
#include "lack.h"
#include "layers.h"
#include "quant/sweep.h"

typedef struct setting {
  int rows, width, tokens, bits, group;
  bool symmetric, real_zero, dead;
  sweep_grid moves;
} setting;

typedef struct layer {
  sweep_request q;
  float *w, *p;
  uint8_t *dead, *codes;
} layer;

static void layer_open(layer *l, const setting *s, uint64_t seed) {
  int64_t square = (int64_t)s->width * s->width;
  double *h, mean = 0;
  *l = (layer){.q = {.rule = {.bits = s->bits, .group = s->group, .beta = 1}, .rows = s->rows, .width = s->width, .grid_moves = s->moves}};
  sweep_request *q = &l->q;
  q->rule.symmetric = s->symmetric;
  q->rule.real_zero = s->real_zero;
  int64_t entries = (int64_t)s->rows * grid_groups(&q->rule, s->width);
  assert_done(NEW(l->w, (int64_t)s->rows * s->width, "test"));
  assert_done(NEW(l->p, square, "test"));
  assert_done(NEW(h, square, "test"));
  assert_done(NEW(l->dead, s->width, "test"));
  assert_done(NEW(l->codes, (int64_t)s->rows * s->width, "test"));
  assert_done(NEW(q->grid.scales, entries, "test"));
  assert_done(NEW(q->grid.zeros, entries, "test"));
  assert_done(NEW(q->grid.real_zeros, entries, "test"));
  layer_weights(seed, s->rows, s->width, l->w);
  for (int j = 0; s->dead && j < s->width; j++) l->dead[j] = j % 17 == 3 || j == s->width - 1;
  assert_done(layer_gram(seed, s->tokens, s->width, l->dead, h));
  for (int j = 0; j < s->width; j++) mean += h[(int64_t)j * s->width + j] / s->width;
  for (int64_t i = 0; i < square; i++) l->p[i] = (float)(h[i] / mean);
  for (int j = 0; j < s->width; j++) l->p[(int64_t)j * s->width + j] += s->dead ? 0 : 0.03f; /* else their diagonal says it */
  FREE(h);
  q->w = l->w;
  q->ldw = s->width;
  q->p = l->p;
  assert_done(grid_fit(&q->rule, s->rows, s->width, l->w, s->width, NULL, q->grid, NULL));
  grid_round(&q->rule, s->rows, s->width, l->w, s->width, q->grid, l->codes);
}

static void layer_close(layer *l) {
  FREE(l->w), FREE(l->p), FREE(l->dead), FREE(l->codes);
  FREE(l->q.grid.scales), FREE(l->q.grid.zeros), FREE(l->q.grid.real_zeros);
}

/* ---- the specification's round, one row at a time ---- */

typedef struct plain {
  int n, groups, size, top;
  const float *w, *p;
  double *scale, *zero, *e, *r; /* [groups], [groups], [n], [n] */
  int *code;                    /* [n] */
} plain;

static void plain_open(const layer *l, int row, plain *a) {
  const sweep_request *q = &l->q;
  int n = q->width, groups = grid_groups(&q->rule, n);
  *a = (plain){.n = n, .groups = groups, .size = n / groups, .top = (1 << q->rule.bits) - 1, .w = l->w + (int64_t)row * n, .p = l->p};
  assert_done(NEW(a->scale, groups, "test"));
  assert_done(NEW(a->zero, groups, "test"));
  assert_done(NEW(a->e, n, "test"));
  assert_done(NEW(a->r, n, "test"));
  assert_done(NEW(a->code, n, "test"));
  for (int g = 0; g < groups; g++) {
    a->scale[g] = half_to_float(q->grid.scales[(int64_t)row * groups + g]);
    a->zero[g] = grid_zero(&q->rule, q->grid, (int64_t)row * groups + g);
  }
  for (int j = 0; j < n; j++) a->code[j] = l->codes[(int64_t)row * n + j];
}

static void plain_close(plain *a) { FREE(a->scale), FREE(a->zero), FREE(a->e), FREE(a->r), FREE(a->code); }

/* f, and R. */
static double plain_loss(plain *a) {
  double f = 0;
  for (int j = 0; j < a->n; j++) a->e[j] = a->w[j] - a->scale[j / a->size] * (a->code[j] - a->zero[j / a->size]);
  for (int j = 0; j < a->n; j++) {
    a->r[j] = 0;
    for (int i = 0; i < a->n; i++) a->r[j] += a->e[i] * a->p[(int64_t)i * a->n + j];
    f += a->e[j] * a->r[j];
  }
  return f;
}

/* num and den of group g at a zero. */
static void plain_ratio(const plain *a, int g, double zero, double *num, double *den) {
  int first = g * a->size;
  *num = *den = 0;
  for (int j = first; j < first + a->size; j++) {
    double y = a->r[j], kp = 0;
    for (int i = first; i < first + a->size; i++) {
      double p = a->p[(int64_t)i * a->n + j];
      y += a->scale[g] * (a->code[i] - a->zero[g]) * p;
      kp += (a->code[i] - zero) * p;
    }
    *num += (a->code[j] - zero) * y;
    *den += (a->code[j] - zero) * kp;
  }
}

static double stored(double s) { return half_to_float(float_to_half((float)s)); }

/* How close x lies to the middle of two halves, in their distance. */
static double half_tie(double x) {
  uint16_t h = float_to_half((float)x);
  double at = half_to_float(h), next = half_to_float((uint16_t)(x > at ? h + 1 : h - 1));
  return fabs(fabs(x - at) / fabs(next - at) - 0.5);
}

/* The best (s, z), f falling: of all integer zeros, or the one that stays. Returns how close to a tie it was. */
static double plain_refit(plain *a, int g, bool symmetric) {
  double now_num, now_den, best = 0, best_num = 0, best_den = 1, best_zero = a->zero[g], s = a->scale[g], num, den;
  plain_loss(a);
  plain_ratio(a, g, a->zero[g], &now_num, &now_den);
  for (int z = 0; z <= a->top; z++) {
    if (symmetric && z != a->zero[g]) continue;
    plain_ratio(a, g, z, &num, &den);
    if (!(num > 0 && num * num / den > best)) continue;
    best = num * num / den;
    best_num = num;
    best_den = den;
    best_zero = z;
  }
  double next = stored(best_num / best_den);
  if (!(next > 0 && next * next * best_den - 2 * next * best_num < s * s * now_den - 2 * s * now_num)) return 1;
  a->scale[g] = next;
  a->zero[g] = best_zero;
  return half_tie(best_num / best_den);
}

/* Returns how close to a tie a decision came, in codes. */
static double plain_sweep(const layer *l, plain *a, int g) {
  double near = 1, most = 0;
  plain_loss(a);
  for (int j = 0; j < a->n; j++) most = fmax(most, a->p[(int64_t)j * a->n + j]);
  for (int j = g * a->size; j < (g + 1) * a->size; j++) {
    double diagonal = a->p[(int64_t)j * a->n + j];
    if (diagonal <= 1e-12 * most || (l->q.dead && l->q.dead[j])) continue;
    double v = a->code[j] + a->r[j] / diagonal / a->scale[g], u = fmin(fmax(rint(v), 0), a->top);
    if (v > -0.6 && v < a->top + 0.6) near = fmin(near, fabs(fabs(v - rint(v)) - 0.5));
    for (int i = 0; i < a->n; i++) a->r[i] -= a->scale[g] * (u - a->code[j]) * a->p[(int64_t)j * a->n + i];
    a->code[j] = (int)u;
  }
  return near;
}

static const setting settings[] = {
    {.rows = 37, .width = 150, .tokens = 900, .bits = 2, .group = 50, .moves = SWEEP_GRID_REFIT},
    {.rows = 33, .width = 320, .tokens = 900, .bits = 3, .group = 64, .moves = SWEEP_GRID_REFIT},
    {.rows = 33, .width = 320, .tokens = 900, .bits = 2, .group = 64, .moves = SWEEP_GRID_STAYS},
    {.rows = 20, .width = 300, .tokens = 900, .bits = 4, .group = 60, .symmetric = true, .moves = SWEEP_GRID_REFIT},
    {.rows = 20, .width = 290, .tokens = 900, .bits = 2, .moves = SWEEP_GRID_REFIT}, /* wider than a panel */
    {.rows = 20, .width = 300, .tokens = 900, .bits = 3, .moves = SWEEP_GRID_STAYS},
    {.rows = 20, .width = 580, .tokens = 900, .bits = 4, .group = 290, .moves = SWEEP_GRID_REFIT},
    {.rows = 20, .width = 300, .tokens = 900, .bits = 8, .group = 50, .moves = SWEEP_GRID_REFIT},
    {.rows = 20, .width = 300, .tokens = 900, .bits = 1, .group = 50, .moves = SWEEP_GRID_REFIT},
    {.rows = 20, .width = 300, .tokens = 900, .bits = 2, .group = 60, .dead = true, .moves = SWEEP_GRID_REFIT},
    {.rows = 20, .width = 300, .tokens = 900, .bits = 2, .group = 60, .real_zero = true, .moves = SWEEP_GRID_STAYS},
    {.rows = 20, .width = 300, .tokens = 900, .bits = 2, .group = 60, .moves = SWEEP_GRID_CANDIDATES},
    {.rows = 20, .width = 300, .tokens = 900, .bits = 2, .group = 60, .real_zero = true, .moves = SWEEP_GRID_CANDIDATES},
    {.rows = 20, .width = 300, .tokens = 900, .bits = 2, .group = 60, .moves = SWEEP_GRID_REFIT},
    {.rows = 1, .width = 1, .tokens = 5, .bits = 1, .moves = SWEEP_GRID_STAYS},
};
enum { SETTINGS = sizeof settings / sizeof *settings };

/* One round: the codes and the grid of the plain loops, but for rows in which a decision is close to a tie; f of all rows. */
static void test_plain(void **state) {
  (void)state;
  for (int k = 0; k < SETTINGS; k++) {
    layer l;
    plain a;
    int differ = 0;
    layer_open(&l, &settings[k], 200 + (uint64_t)k);
    layer before = l;
    sweep_request *q = &l.q;
    int n = q->width, groups = grid_groups(&q->rule, n), size = n / groups;
    int64_t entries = (int64_t)q->rows * groups;
    assert_done(NEW(l.codes, (int64_t)q->rows * n, "test"));
    assert_done(NEW(q->grid.scales, entries, "test"));
    assert_done(NEW(q->grid.zeros, entries, "test"));
    memcpy(l.codes, before.codes, (size_t)q->rows * (size_t)n);
    memcpy(q->grid.scales, before.q.grid.scales, (size_t)entries * 2);
    assert_done(NEW(q->grid.real_zeros, entries, "test"));
    memcpy(q->grid.real_zeros, before.q.grid.real_zeros, (size_t)entries * 2);
    assert_done(NEW(q->grid.zeros, entries, "test"));
    memcpy(q->grid.zeros, before.q.grid.zeros, (size_t)entries);
    double losses[2], first = 0, second = 0;
    assert_done(sweep(q, l.codes, losses));
    for (int i = 0; i < q->rows; i++) {
      plain_open(&l, i, &a);
      double after = plain_loss(&a);
      plain_close(&a);
      plain_open(&before, i, &a);
      double old = plain_loss(&a), near = 1, tie = 1;
      for (int g = 0; g < groups; g++) {
        if (q->grid_moves == SWEEP_GRID_REFIT) tie = fmin(tie, plain_refit(&a, g, q->rule.symmetric));
        near = fmin(near, plain_sweep(&l, &a, g));
      }
      first += old;
      second += after;
      bool same = true;
      for (int j = 0; j < n; j++) same = same && a.code[j] == l.codes[(int64_t)i * n + j];
      for (int g = 0; g < groups; g++) same = same && a.scale[g] == half_to_float(q->grid.scales[i * groups + g]);
      for (int g = 0; g < groups; g++) same = same && a.zero[g] == grid_zero(&q->rule, q->grid, i * groups + g);
      double expected = plain_loss(&a);
      plain_close(&a);
      assert_true(after <= old * (1 + 1e-6));
      if (same) continue;
      printf("setting %d, row %d: codes differ; closest decisions %.1e, %.1e from a tie, f %.9g %.9g\n", k, i, near, tie, after, expected);
      differ++;
    }
    printf("%d: %g %g (%g %g) differ %d of %d, size %d\n", k, losses[0], losses[1], losses[0] / first - 1, losses[1] / second - 1, differ,
           q->rows, size);
    FREE(l.codes), FREE(q->grid.scales), FREE(q->grid.zeros), FREE(q->grid.real_zeros);
    layer_close(&before);
  }
}

int main(void) {
  blas_setup();
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_plain)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
