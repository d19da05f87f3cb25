/* Predictions by strips against plain softmaxes in double: NLL, KL and the likeliest token, for any cut of the vocabulary. */
#include "check.h"

#include <math.h>
#include <stdlib.h>

#include "base/blas.h"
#include "base/memory.h"
#include "model/head.h"
#include "model_files.h"

enum { D = 24, ROWS = 700, VOCAB = 2500, VARIANTS = 3 };

typedef struct model {
  float *x[VARIANTS], *head;
  prediction *p[VARIANTS];
  int32_t *next;
  head_scratch scratch;
} model;

/* Variant 0 the original, 1 near to it, 2 far from it; the first rows have large logits, so that maxima rise from strip to strip. */
static void make(model *m) {
  uint64_t seed = 7;
  assert_done(NEW(m->head, VOCAB * D, "head"));
  assert_done(NEW(m->next, ROWS, "next"));
  assert_done(head_scratch_new(&m->scratch));
  for (int k = 0; k < VOCAB * D; k++) m->head[k] = test_value(&seed) * (1 + 2.0f * (float)k / (VOCAB * D));
  for (int v = 0; v < VARIANTS; v++) {
    assert_done(NEW(m->x[v], ROWS * D, "x"));
    assert_done(NEW(m->p[v], ROWS, "p"));
    for (int k = 0; k < ROWS * D; k++)
      m->x[v][k] = v ? m->x[0][k] + (v == 1 ? 1e-3f : 1) * test_value(&seed) : (k < 50 * D ? 12 : 2) * test_value(&seed);
  }
  for (int i = 0; i < ROWS; i++) m->next[i] = i % 10 == 9 ? -1 : (int32_t)((i * 7919) % VOCAB);
}

static void drop(model *m) {
  for (int v = 0; v < VARIANTS; v++) {
    FREE(m->x[v]);
    FREE(m->p[v]);
  }
  FREE(m->head);
  FREE(m->next);
  head_scratch_free(&m->scratch);
}

static void predict(model *m, int strip) {
  for (int v = 0; v < VARIANTS; v++) predictions_start(ROWS, m->p[v]);
  for (int first = 0; first < VOCAB; first += strip)
    head_add(D, ROWS, first, first + strip < VOCAB ? strip : VOCAB - first, m->head + first * D, m->next, &m->scratch, VARIANTS,
             (const float *const *)m->x, m->p);
}

/* log softmax of one row in double, the logits as the program has them; returns the likeliest. */
static int plain(const model *m, int v, int row, float *logits, double *logp) {
  double sum = 0;
  int best = 0;
  sgemm(false, true, 2, VOCAB, D, 1, m->x[v] + (row < ROWS - 1 ? row : row - 1) * D, D, m->head, D, 0, logits, VOCAB);
  const float *l = row < ROWS - 1 ? logits : logits + VOCAB;
  for (int k = 1; k < VOCAB; k++)
    if (l[k] > l[best]) best = k;
  for (int k = 0; k < VOCAB; k++) sum += exp((double)l[k] - (double)l[best]);
  for (int k = 0; k < VOCAB; k++) logp[k] = (double)l[k] - (double)l[best] - log(sum);
  return best;
}

static void equals_plain_softmax(void **state) {
  (void)state;
  model m = {0};
  make(&m);
  predict(&m, 1100);
  float *logits = malloc(2 * VOCAB * sizeof *logits);
  double *p = malloc(VOCAB * sizeof *p), *q = malloc(VOCAB * sizeof *q), worst_nll = 0, worst_kl = 0;
  for (int i = 0; i < ROWS; i++) {
    int best = plain(&m, 0, i, logits, p);
    for (int v = 0; v < VARIANTS; v++) {
      double kl = 0;
      int here = plain(&m, v, i, logits, q);
      for (int k = 0; k < VOCAB; k++) kl += exp(p[k]) * (p[k] - q[k]);
      if (q[here] - q[m.p[v][i].best] > 1e-5) fail_msg("row %d of %d: expected token %d, found %d", i, v, here, m.p[v][i].best);
      if (m.next[i] >= 0) worst_nll = fmax(worst_nll, fabs(prediction_nll(&m.p[v][i]) + q[m.next[i]]) / (1 - q[m.next[i]]));
      worst_kl = fmax(worst_kl, fabs(prediction_kl(&m.p[0][i], &m.p[v][i]) - kl) / (kl + 1e-1));
    }
    assert_true(prediction_kl(&m.p[0][i], &m.p[0][i]) == 0);
    (void)best;
  }
  if (!(worst_nll < 3e-6 && worst_kl < 3e-6)) fail_msg("NLL off by %g, KL by %g", worst_nll, worst_kl);
  free(logits);
  free(p);
  free(q);
  drop(&m);
}

/* Where the strips are cut changes rounding alone. */
static void cuts_do_not_matter(void **state) {
  (void)state;
  model m = {0};
  make(&m);
  prediction whole[VARIANTS][ROWS];
  predict(&m, VOCAB);
  for (int v = 0; v < VARIANTS; v++) memcpy(whole[v], m.p[v], sizeof whole[v]);
  predict(&m, 333);
  for (int v = 0; v < VARIANTS; v++)
    for (int i = 0; i < ROWS; i++) {
      double kl = prediction_kl(&whole[0][i], &whole[v][i]);
      assert_true(fabs(prediction_kl(&m.p[0][i], &m.p[v][i]) - kl) <= 1e-6 * (kl + 0.1));
      if (m.next[i] >= 0) assert_true(fabs(prediction_nll(&m.p[v][i]) - prediction_nll(&whole[v][i])) <= 1e-5);
    }
  prediction_score s = prediction_score_of(9, m.p[0], m.p[0]), t = prediction_score_of(9, m.p[0], m.p[2]);
  assert_true(s.kl == 0 && s.agrees == 9 && t.kl > 0 && t.agrees < 9 && t.nll > 0);
  prediction_score parts[] = {prediction_score_of(4, m.p[0], m.p[2]), prediction_score_of(5, m.p[0] + 4, m.p[2] + 4)};
  prediction_score mean = prediction_score_mean(1, &t, 9), joined = prediction_score_mean(2, parts, 9);
  assert_true(mean.nll == t.nll / 9 && mean.agrees == t.agrees / 9 && joined.agrees == mean.agrees);
  assert_true(fabs(joined.nll - mean.nll) <= 1e-14 * mean.nll && fabs(joined.kl - mean.kl) <= 1e-14 * mean.kl);
  drop(&m);
}

static void shows_what_is_not_finite(void **state) {
  (void)state;
  const float bad[] = {NAN, INFINITY, -INFINITY};
  for (int k = 0; k < 3; k++) {
    model m = {0};
    make(&m);
    m.x[2][5 * D + 3] = bad[k];
    predict(&m, VOCAB);
    assert_true(isfinite(prediction_kl(&m.p[0][5], &m.p[1][5])) && !isfinite(prediction_kl(&m.p[0][5], &m.p[2][5])));
    drop(&m);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(equals_plain_softmax), cmocka_unit_test(cuts_do_not_matter),
                                     cmocka_unit_test(shows_what_is_not_finite)};
  blas_setup();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
