#include "model/head.h"

#include <math.h>

#include "base/blas.h"
#include "base/memory.h"
#include "model/kernels.h"

void head_norm(const arch *a, const float *norm, int64_t rows, float *x) { kernel_rms_norm(rows, a->hidden, a->rms_eps, x, norm, x); }

void predictions_start(int64_t rows, prediction *p) {
  for (int64_t i = 0; i < rows; i++) p[i] = (prediction){.most = -INFINITY, .best = -1};
}

status head_scratch_new(head_scratch *s) {
  status st = OK;
  *s = (head_scratch){0};
  TRY(NEW(s->original, HEAD_ROWS * HEAD_COLUMNS, "logits"));
  TRY(NEW(s->exponentials, HEAD_ROWS * HEAD_COLUMNS, "logits"));
  TRY(NEW(s->logits, HEAD_ROWS * HEAD_COLUMNS, "logits"));
  TRY(NEW(s->shrink, HEAD_ROWS, "logits"));
done:
  if (st != OK) head_scratch_free(s);
  return st;
}

void head_scratch_free(head_scratch *s) {
  FREE(s->original);
  FREE(s->exponentials);
  FREE(s->logits);
  FREE(s->shrink);
}

/* One row of a strip: the largest logit, where it is, and the logit of `next`. Returns by how much earlier exponentials shrink. */
static double see_row(int count, int64_t first, const float *l, int32_t next, prediction *p) {
  float most = kernel_max(count, l);
  if (next >= first && next < first + count) p->came = l[next - first];
  if (!(most > p->most)) return 1;
  double shrink = exp((double)p->most - (double)most); /* 0 at the first strip */
  int at = 0;
  while (at < count - 1 && l[at] != most) at++;
  p->most = most;
  p->best = (int32_t)(first + at);
  return shrink;
}

static void add_original(int rows, int count, int64_t first, const int32_t *next, head_scratch *s, prediction *p) {
  for (int i = 0; i < rows; i++) {
    const float *l = s->original + (int64_t)i * HEAD_COLUMNS;
    double shrink = see_row(count, first, l, next[i], &p[i]);
    p[i].sum = p[i].sum * shrink + kernel_exp_sum(count, l, p[i].most, s->exponentials + (int64_t)i * HEAD_COLUMNS);
    s->shrink[i] = shrink;
  }
}

static void add_variant(int rows, int count, int64_t first, const int32_t *next, const head_scratch *s, prediction *p) {
  for (int i = 0; i < rows; i++) {
    const float *l = s->logits + (int64_t)i * HEAD_COLUMNS;
    double shrink = see_row(count, first, l, next[i], &p[i]), cross;
    double sum =
        kernel_exp_cross(count, l, p[i].most, s->exponentials + (int64_t)i * HEAD_COLUMNS, s->original + (int64_t)i * HEAD_COLUMNS, &cross);
    p[i].sum = p[i].sum * shrink + sum;
    p[i].cross = p[i].cross * s->shrink[i] + cross;
  }
}

/* Equal cuts, so that no product is thin: the k-th of n things in parts of at most `most`. */
static int64_t cut(int64_t n, int64_t most, int64_t k) {
  int64_t parts = (n + most - 1) / most;
  return n * k / parts;
}

void head_add(int64_t d, int64_t rows, int64_t first, int64_t count, const float *head, const int32_t *next, head_scratch *s, int variants,
              const float *const *x, prediction *const *p) {
  for (int64_t c = 0, k = 0; c < count; k++) {
    int64_t end = cut(count, HEAD_COLUMNS, k + 1);
    int columns = (int)(end - c);
    for (int64_t r = 0, j = 0; r < rows; j++) {
      int64_t last = cut(rows, HEAD_ROWS, j + 1);
      int now = (int)(last - r);
      for (int v = 0; v < variants; v++) {
        float *l = v ? s->logits : s->original;
        sgemm(false, true, now, columns, (int)d, 1, x[v] + r * d, (int)d, head + c * d, (int)d, 0, l, HEAD_COLUMNS);
        if (v)
          add_variant(now, columns, first + c, next + r, s, p[v] + r);
        else
          add_original(now, columns, first + c, next + r, s, p[v] + r);
      }
      r = last;
    }
    c = end;
  }
}

double prediction_nll(const prediction *p) { return log(p->sum) + (double)p->most - (double)p->came; }

double prediction_kl(const prediction *original, const prediction *variant) {
  double p = log(original->sum) + (double)original->most, q = log(variant->sum) + (double)variant->most;
  return variant->cross / original->sum - (p - q);
}

prediction_score prediction_score_of(int64_t positions, const prediction *original, const prediction *p) {
  prediction_score s = {0};
  for (int64_t i = 0; i < positions; i++) {
    s.nll += prediction_nll(&p[i]);
    s.kl += prediction_kl(&original[i], &p[i]);
    s.agrees += p[i].best == original[i].best;
  }
  return s;
}

prediction_score prediction_score_mean(int parts, const prediction_score *sums, int64_t positions) {
  prediction_score s = sums[0];
  for (int k = 1; k < parts; k++) {
    s.nll += sums[k].nll;
    s.kl += sums[k].kl;
    s.agrees += sums[k].agrees;
  }
  return (prediction_score){s.nll / (double)positions, s.kl / (double)positions, s.agrees / (double)positions};
}
