#include "joint/alternation.h"

#include <math.h>
#include <string.h>

#include "adapter/mixed.h"
#include "base/blas.h"
#include "base/memory.h"

static status check(const alternation_request *q) {
  const char *where = q->fit.where;
  if (q->rounds < 0 || (q->rounds == 0 && q->start == START_ZERO) || (q->rounds > 0 && q->base_first))
    return fail(E_INTERNAL, "%s: alternation: expected rounds, or a start that stays, found %d rounds", where, q->rounds);
  if (q->start == START_OUTLIERS && !q->judge)
    return fail(E_INTERNAL, "%s: alternation: expected a Gram to find outliers with, found none", where);
  if (!q->w || !q->round || !q->keep) return fail(E_INTERNAL, "%s: alternation: expected a weight and a quantizer, found none", where);
  adapter_request r = q->fit;
  r.e = q->w;
  return adapter_check(&r);
}

/* The fit of the request, to e instead. */
static status fit_to(const alternation_request *q, const float *e, double trace, adapter *out) {
  adapter_request r = q->fit;
  r.e = e;
  r.trace = trace;
  return adapter_local(&r, out);
}

/* columns [rank], ascending: those of the largest diagonal entries of h. */
static status largest_columns(int64_t m, const float *h, int rank, int64_t *columns) {
  status st = OK;
  float *diagonal = NULL;
  int count = 0;
  TRY(NEW(diagonal, m, "diagonal"));
  for (int64_t j = 0; j < m; j++) diagonal[j] = h[j * m + j];
  for (int r = 0; r < rank; r++) {
    int64_t best = 0;
    for (int64_t j = 1; j < m; j++) best = diagonal[j] > diagonal[best] ? j : best;
    diagonal[best] = -INFINITY;
  }
  for (int64_t j = 0; j < m; j++)
    if (diagonal[j] == -INFINITY) columns[count++] = j;
done:
  FREE(diagonal);
  return st;
}

/* LR(W, H_o, r): the zero columns of H_o are left out of the decomposition; then A = B^T W over all columns. */
static status fit_outliers(const alternation_request *q, adapter *out) {
  status st = OK;
  int64_t n = q->fit.n, m = q->fit.m, rank = q->fit.rank, *columns = NULL;
  float *w = NULL, *h = NULL;
  double *bt = NULL, *a = NULL;
  adapter small = {0};
  TRY(NEW(columns, rank, "outliers"));
  TRY(NEW(w, n * rank, "outlier columns"));
  TRY(NEW(h, rank * rank, "Gram of the outliers"));
  TRY(NEW(bt, rank * n, "B^T"));
  TRY(NEW(a, rank * m, "A in double"));
  TRY(largest_columns(m, q->judge, q->fit.rank, columns));
  for (int64_t k = 0; k < rank; k++) {
    for (int64_t i = 0; i < n; i++) w[i * rank + k] = q->w[i * m + columns[k]];
    for (int64_t l = 0; l < rank; l++) h[k * rank + l] = q->judge[columns[k] * m + columns[l]];
  }
  adapter_request r = {.where = q->fit.where, .n = n, .m = rank, .e = w, .h = h, .rank = q->fit.rank, .trace = NAN, .path = ADAPTER_DENSE};
  TRY(adapter_local(&r, &small));
  *out = small;
  small = (adapter){0};
  FREE(out->a);
  out->m = m;
  TRY(NEW(out->a, rank * m, "lora_A"));
  for (int64_t i = 0; i < n; i++)
    for (int64_t k = 0; k < rank; k++) bt[k * n + i] = (double)out->b[i * rank + k];
  TRY(mixed_gemm(false, rank, n, m, 1, bt, n, q->w, m, false, a, m));
  for (int64_t i = 0; i < rank * m; i++) out->a[i] = (float)a[i];
done:
  FREE(columns);
  FREE(w);
  FREE(h);
  FREE(bt);
  FREE(a);
  return st;
}

static status first_fit(const alternation_request *q, float *rounded, adapter *out) {
  if (q->start == START_WEIGHT) return fit_to(q, q->w, NAN, out);
  if (q->start == START_OUTLIERS) return fit_outliers(q, out);
  status st = q->round(q->context, q->w, rounded);
  return st == OK ? fit_to(q, rounded, NAN, out) : st;
}

/* target = W - B A, in float: what is aimed at decides the codes, not the truth of a loss. */
static void aim(const alternation_request *q, const adapter *p, float *target) {
  int n = (int)q->fit.n, m = (int)q->fit.m;
  memcpy(target, q->w, (size_t)n * (size_t)m * sizeof *target);
  if (p && !q->base_first) sgemm(false, false, n, m, p->rank, -1, p->b, p->rank, p->a, m, 1, target, m);
}

/* Loss of e - B A in the judge's metric; trace: that of e. */
static status judged(const alternation_request *q, const float *e, const adapter *p, double trace, double *curve, double *loss) {
  status st = adapter_losses(q->fit.n, q->fit.m, e, q->judge, p->b, p->a, p->rank, trace, curve);
  *loss = curve[p->rank];
  return st;
}

status alternate(const alternation_request *q, alternation *out) {
  status st = OK;
  int64_t n = q->fit.n, m = q->fit.m;
  float *target = NULL, *e = NULL;
  double *curve = NULL, trace;
  adapter last = {0}, fresh = {0};                      /* last: P of the round before where that is not the result so far */
  const adapter *p = NULL;                              /* P of the round before */
  bool same = q->fit.h == q->judge && !q->fit.diagonal; /* one metric fits and judges: its trace is computed once */
  *out = (alternation){.count = q->rounds ? q->rounds : 1, .kept = -1};
  TRY(check(q));
  TRY(NEW(target, n * m, "weight less adapter"));
  TRY(NEW(e, n * m, "residual"));
  TRY(NEW(curve, q->fit.rank + 1, "losses"));
  TRY(NEW(out->losses, out->count, "losses of the rounds"));
  if (q->start != START_ZERO) {
    TRY(first_fit(q, e, &last));
    p = &last;
  }
  for (int t = 0; t < out->count; t++) {
    aim(q, p, target);
    TRY(q->round(q->context, target, e));
    for (int64_t i = 0; i < n * m; i++) e[i] = q->w[i] - e[i];
    TRY(adapter_trace(m, e, q->judge, 0, n, NULL, &trace));
    if (q->rounds)
      TRY(fit_to(q, e, same ? trace : NAN, &fresh));
    else {
      fresh = last;
      last = (adapter){0};
    }
    TRY(judged(q, e, &fresh, trace, curve, &out->losses[t]));
    adapter *place = &last;
    if (out->kept < 0 || !q->keep_best || out->losses[t] < out->losses[out->kept]) {
      out->kept = t;
      place = &out->factors;
      q->keep(q->context);
    }
    adapter_free(place);
    *place = fresh;
    fresh = (adapter){0};
    p = place;
  }
done:
  FREE(target);
  FREE(e);
  FREE(curve);
  adapter_free(&last);
  adapter_free(&fresh);
  if (st != OK) alternation_free(out);
  return st;
}

void alternation_free(alternation *a) {
  adapter_free(&a->factors);
  FREE(a->losses);
  *a = (alternation){0};
}

double alternation_flops(const alternation_request *q) {
  double n = (double)q->fit.n, m = (double)q->fit.m, r = q->fit.rank, product = 2 * n * m * r;
  adapter_request fit = q->fit;
  fit.trace = q->fit.h == q->judge && !q->fit.diagonal ? 0 : NAN;
  double judging = q->judge ? n * m * m + 2 * m * m * r + product : product;
  double flops = q->rounds ? q->rounds * (adapter_flops(&fit) + judging + product) : judging + product;
  fit.trace = NAN;
  if (q->start == START_OUTLIERS) return flops + product + 15 * n * r * r;
  return q->start == START_ZERO ? flops : flops + adapter_flops(&fit);
}

uint64_t alternation_bytes(const alternation_request *q) {
  uint64_t n = (uint64_t)q->fit.n, m = (uint64_t)q->fit.m, r = (uint64_t)q->fit.rank;
  uint64_t fit = adapter_bytes(&q->fit), judging = 16 * r * (n + m) + (4u << 20) + 8 * 256 * (m + 288);
  return 8 * n * m + 8 * r * (n + m) + (fit > judging ? fit : judging);
}
