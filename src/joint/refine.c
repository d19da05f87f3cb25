#include "joint/refine.h"

#include <math.h>
#include <string.h>

#include "adapter/mixed.h"
#include "base/blas.h"
#include "base/hot.h"
#include "base/memory.h"
#include "dist/agree.h"
#include "dist/dlinalg.h"
#include "joint/deflate.h"
#include "joint/ritz.h"
#include "joint/strips.h"
#include "quant/codes.h"
#include "quant/optq.h"

enum { STEPS_SHAPED = 3, STEPS_DESCENT = 2, STRIP = 1024 };

/* Codes and grid of my rows. */
typedef struct state {
  uint8_t *codes; /* (rows, m) */
  code_grid grid;
  int64_t tiny;
  double trace; /* tr(E H E^T) */
} state;

typedef struct work {
  const refine_request *q;
  int rows, m, slab, groups, columns; /* of mine; columns: of y */
  state now, *best;
  char *grid_memory; /* of now */
  /* seen by the team */
  float *e; /* (n, m): V of a round, then E */
  double *row_loss, *row_square, *diagonal, *first,
      *small; /* [n], [n], [m] of the round's factor, (columns, n), of ritz, deflate and downdate in turn */
  /* the same on every rank */
  double *y, *u, *a, *values; /* (columns, n), (rank, n), (rank, m), [rank] */
  /* mine */
  float *factor_u, *factor_a, *pad; /* (rows, rank), (rank, m): U and A; two padded slabs */
  float *weight;                    /* [m] of a search */
  int32_t *order;                   /* [2 m] columns as OPTQ takes them, and a buffer; NULL natural */
  double f, f_gram;                 /* of now, in the metric it was measured in and on H */
} work;

/* ---- life ---- */

static size_t part(size_t bytes) { return (bytes + 63) / 64 * 64; }

static uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

/* Deflate's Z comes first, and stays while a factor is made from it. */
static uint64_t directions_shared(int64_t m, int rank) { return part(deflate_shared(m, rank)); }

static uint64_t small_shared(int64_t n, int64_t m, int rank) {
  return larger(ritz_shared(n, m, rank), directions_shared(m, rank) + reverse_downdate_shared(m, rank));
}

static size_t grid_place(const refine_request *q, int64_t rows, char *at, code_grid *g) {
  size_t count = (size_t)(rows * grid_groups(&q->rule, (int)q->m)), scales = part(count * sizeof(uint16_t));
  if (at) {
    g->scales = (uint16_t *)(void *)at;
    if (q->rule.real_zero)
      g->real_zeros = (uint16_t *)(void *)(at + scales);
    else
      g->zeros = (uint8_t *)(at + scales);
  }
  return 2 * scales;
}

static void shared_place(work *c) {
  const refine_request *q = c->q;
  char *at = q->shared_memory;
  size_t n = (size_t)q->n, m = (size_t)q->m;
#define PLACE(field, count) (c->field = (void *)at, at += part((count) * sizeof *c->field))
  PLACE(e, n * m);
  PLACE(row_loss, n);
  PLACE(row_square, n);
  PLACE(diagonal, m);
  PLACE(first, (size_t)c->columns * n);
#undef PLACE
  c->small = (double *)(void *)at;
}

uint64_t refine_shared(int64_t n, int64_t m, int rank) {
  size_t x = (size_t)n, y = (size_t)m, columns = (size_t)ritz_columns(n, rank);
  return part(x * y * sizeof(float)) + 2 * part(x * sizeof(double)) + part(y * sizeof(double)) + part(columns * x * sizeof(double)) +
         small_shared(n, m, rank);
}

static status work_new(const refine_request *q, state *best, work *c) {
  status st = OK;
  int rank = q->rank;
  *c = (work){.q = q, .rows = (int)(q->end - q->begin), .m = (int)q->m, .slab = optq_slab(q->m), .best = best};
  c->groups = grid_groups(&q->rule, c->m);
  c->columns = ritz_columns(q->n, rank);
  int64_t mine = (int64_t)c->rows * c->m;
  TRY(NEW(c->now.codes, mine, "codes of a round"));
  TRY(NEW(c->grid_memory, grid_place(q, c->rows, NULL, NULL), "grid of a round"));
  TRY(NEW(c->y, (int64_t)c->columns * q->n, "basis of a round"));
  TRY(NEW(c->u, rank * q->n, "U of a round"));
  TRY(NEW(c->a, rank * q->m, "A of a round"));
  TRY(NEW(c->values, rank, "Ritz values of a round"));
  TRY(NEW(c->factor_u, (int64_t)c->rows * rank, "U of my rows"));
  TRY(NEW(c->factor_a, rank * q->m, "A in float"));
  TRY(NEW(c->pad, 2 * (int64_t)c->slab * (q->m > rank ? q->m : rank), "slabs of rows"));
  TRY(NEW(c->weight, q->m, "weights of a search"));
  if (q->plan.act_order) TRY(NEW(c->order, 2 * q->m, "order of columns"));
  grid_place(q, c->rows, c->grid_memory, &c->now.grid);
  shared_place(c);
done:
  return st;
}

static void work_free(work *c) {
  FREE(c->now.codes), FREE(c->grid_memory);
  FREE(c->y), FREE(c->u), FREE(c->a), FREE(c->values);
  FREE(c->factor_u), FREE(c->factor_a), FREE(c->pad), FREE(c->weight), FREE(c->order);
}

static void copy_state(const work *c, const state *from, state *to) {
  size_t grids = (size_t)c->rows * (size_t)c->groups;
  memcpy(to->codes, from->codes, (size_t)c->rows * (size_t)c->m);
  memcpy(to->grid.scales, from->grid.scales, grids * sizeof *to->grid.scales);
  if (to->grid.zeros) memcpy(to->grid.zeros, from->grid.zeros, grids);
  if (to->grid.real_zeros) memcpy(to->grid.real_zeros, from->grid.real_zeros, grids * sizeof *to->grid.real_zeros);
  to->tiny = from->tiny;
  to->trace = from->trace;
}

/* ---- products of my rows, slab after slab ---- */

/* out (rows, m) = alpha x y + beta out, x (rows, k), y (k, m): every product has a slab's rows, so that a row's bits depend on its place there alone. */
static void slab_product(work *c, int k, float alpha, const float *x, const float *y, float beta, float *out) {
  int m = c->m;
  for (int row = 0; row < c->rows; row += c->slab) {
    int rows = c->rows - row < c->slab ? c->rows - row : c->slab;
    const float *from = x + (int64_t)row * k;
    float *to = out + (int64_t)row * m;
    if (rows == c->slab) {
      sgemm(false, false, rows, m, k, alpha, from, k, y, m, beta, to, m);
      continue;
    }
    float *px = c->pad, *pout = c->pad + (int64_t)c->slab * (m > k ? m : k);
    memset(px, 0, (size_t)c->slab * (size_t)k * sizeof *px);
    memset(pout, 0, (size_t)c->slab * (size_t)m * sizeof *pout);
    memcpy(px, from, (size_t)rows * (size_t)k * sizeof *px);
    memcpy(pout, to, (size_t)rows * (size_t)m * sizeof *pout);
    sgemm(false, false, c->slab, m, k, alpha, px, k, y, m, beta, pout, m);
    memcpy(to, pout, (size_t)rows * (size_t)m * sizeof *pout);
  }
}

static const float *my_weights(const work *c) { return c->q->w + c->q->begin * c->q->m; }
static float *my_errors(const work *c) { return c->e + c->q->begin * c->q->m; }

/* V = W - U A of my rows, where E will be. */
static void aim(work *c) {
  const refine_request *q = c->q;
  int rank = q->rank;
  float *v = my_errors(c);
  memcpy(v, my_weights(c), (size_t)c->rows * (size_t)c->m * sizeof *v);
  for (int64_t k = 0; k < rank * q->m; k++) c->factor_a[k] = (float)c->a[k];
  for (int i = 0; i < c->rows; i++)
    for (int k = 0; k < rank; k++) c->factor_u[(int64_t)i * rank + k] = (float)c->u[k * q->n + q->begin + i];
  slab_product(c, rank, -1, c->factor_u, c->factor_a, 1, v);
}

/* ---- the loss of the codes as they are ---- */

/* e = w - value; |e|^2, and |v - value|^2 without dead columns. v may be e, or w. */
HOT static void row_errors(int m, const float *restrict w, const float *v, const float *restrict value, const uint8_t *dead, float *e,
                           double *square, double *aimed) {
  double sum = 0, off = 0;
  for (int j = 0; j < m; j++) {
    double f = (double)v[j] - (double)value[j];
    off += dead && dead[j] ? 0 : f * f;
    e[j] = w[j] - value[j];
    sum += (double)e[j] * (double)e[j];
  }
  *square = sum;
  *aimed = off;
}

/* E of my rows, |E|^2 of each; v (rows, m): what was quantized. row_loss -= lambda |V - Q|^2. */
static void errors(work *c, const float *v, double lambda) {
  const refine_request *q = c->q;
  float *e = my_errors(c), *value = c->pad;
  for (int row = 0; row < c->rows; row += c->slab) {
    int rows = c->rows - row < c->slab ? c->rows - row : c->slab;
    int64_t at = (int64_t)row * c->m;
    codes_bytes_values(&q->rule, rows, c->m, c->now.codes + at, grid_from(c->now.grid, (int64_t)row * c->groups), value);
    for (int i = 0; i < rows; i++, at += c->m) {
      double aimed;
      row_errors(c->m, my_weights(c) + at, v + at, value + (int64_t)i * c->m, q->dead, e + at, &c->row_square[q->begin + row + i], &aimed);
      c->row_loss[q->begin + row + i] -= lambda * aimed;
    }
  }
}

HOT static double dot(int n, const float *restrict x, const float *restrict y) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int j = 0; j < n; j++) sum += (double)x[j] * (double)y[j];
  return sum;
}

/* row_loss = tr(E H E^T) of my rows by products: a strip of columns needs only the rows of H from its own on, those below counted twice. */
static void losses_by_products(work *c) {
  const refine_request *q = c->q;
  int m = c->m;
  float *padded = c->pad, *r = c->pad + (int64_t)c->slab * m;
  for (int row = 0; row < c->rows; row += c->slab) {
    int rows = c->rows - row < c->slab ? c->rows - row : c->slab;
    const float *e = my_errors(c) + (int64_t)row * m;
    double *loss = c->row_loss + q->begin + row;
    if (rows < c->slab) {
      memset(padded, 0, (size_t)c->slab * (size_t)m * sizeof *padded);
      e = memcpy(padded, e, (size_t)rows * (size_t)m * sizeof *padded);
    }
    for (int i = 0; i < rows; i++) loss[i] = 0;
    for (int j = 0; j < m; j += STRIP) {
      int columns = m - j < STRIP ? m - j : STRIP, below = j + columns;
      const float *h = q->h + (int64_t)j * m + j;
      sgemm(false, false, c->slab, columns, columns, 1, e + j, m, h, m, 0, r, columns);
      if (below < m) sgemm(false, false, c->slab, columns, m - below, 2, e + below, m, h + (int64_t)columns * m, m, 1, r, columns);
      for (int i = 0; i < rows; i++) loss[i] += dot(columns, e + (int64_t)i * m + j, r + (int64_t)i * columns);
    }
  }
}

/* row_loss += |E Z^T|^2 of my rows: what the deflated directions hold. */
static status add_deflated(work *c, int kept) {
  const refine_request *q = c->q;
  status st = OK;
  if (c->rows == 0 || kept == 0) return OK;
  TRY(mixed_gemm(true, kept, q->m, c->rows, 1, c->small, q->m, my_errors(c), q->m, false, c->first + q->begin, q->n));
  for (int k = 0; k < kept; k++)
    for (int64_t i = q->begin; i < q->end; i++) c->row_loss[i] += c->first[k * q->n + i] * c->first[k * q->n + i];
done:
  return st;
}

/* Over all rows in order, the same on every rank. */
static double sum_rows(const work *c, const double *rows) {
  double sum = 0;
  for (int64_t i = 0; i < c->q->n; i++) sum += rows[i];
  return sum;
}

/* The basis to begin with: E V_H, V_H the leading eigenvectors of H. */
static status first_basis(work *c) {
  const refine_request *q = c->q;
  status st = OK;
  int rows = q->start_rows < c->columns ? q->start_rows : c->columns;
  if (c->rows)
    st = mixed_gemm(true, rows, q->m, c->rows, 1, q->start, q->m, c->e + q->begin * q->m, q->m, false, c->first + q->begin, q->n);
  TRY(agree(q->t->comm, st));
  team_barrier(q->t);
  memcpy(c->y, c->first, (size_t)rows * (size_t)q->n * sizeof *c->y);
done:
  return st;
}

/* Collective. The adapter of the codes as they are, in the metric M = H + ridge I: U, A, f. E stands there; trace: tr(E M E^T). */
static status fit(work *c, double ridge, int steps, double trace) {
  const refine_request *q = c->q;
  status st = OK;
  double covered = 0, square = sum_rows(c, c->row_square);
  ritz_request r = {.t = q->t,
                    .where = q->where,
                    .n = q->n,
                    .m = q->m,
                    .rank = q->rank,
                    .steps = steps,
                    .e = c->e,
                    .h = q->h,
                    .ridge = ridge,
                    .trace = trace};
  c->now.trace = trace - ridge * square;
  TRY(ritz(&r, c->y, c->small, c->u, c->a, c->values, &c->f));
  for (int64_t k = 0; k < q->rank * q->m; k++) covered += c->a[k] * c->a[k];
  c->f_gram = fmax(c->f - ridge * fmax(square - covered, 0), 0); /* U U^T E leaves so much of the ridge's part */
done:
  return st;
}

/* Collective. The same of codes of which nothing is known. */
static status fit_anew(work *c, int steps, bool first) {
  status st = OK;
  errors(c, my_weights(c), 0);
  losses_by_products(c);
  team_barrier(c->q->t);
  if (first) TRY(first_basis(c));
  TRY(fit(c, 0, steps, sum_rows(c, c->row_loss)));
done:
  return st;
}

/* Keeps what is better. Every rank decides the same. */
static void keep(work *c, double *least, int round, int *kept) {
  if (!(c->f < *least)) return;
  *least = c->f;
  *kept = round;
  copy_state(c, &c->now, c->best);
}

/* ---- shaping ---- */

static deflate_request deflation_by(const work *c, double ridge, double shrink) {
  const refine_request *q = c->q;
  return (deflate_request){
      .t = q->t, .where = q->where, .m = q->m, .rank = q->rank, .a = c->a, .h = q->h, .ridge = ridge, .shrink = shrink};
}

/* (rank, m) leading eigenvectors of H, unit rows. */
static void eigenvectors(work *c) {
  const refine_request *q = c->q;
  for (int k = 0; k < q->rank; k++) {
    const double *from = q->start + k * q->m;
    double sum = 0, *to = c->a + k * q->m;
    for (int64_t j = 0; j < q->m; j++) sum += from[j] * from[j];
    for (int64_t j = 0; j < q->m; j++) to[j] = sum > 0 ? from[j] / sqrt(sum) : 0;
  }
}

/* The grid of V, searched by the weights. */
static status grid_anew(work *c) {
  const refine_request *q = c->q;
  if (c->rows == 0) return OK;
  for (int64_t j = 0; j < q->m; j++) c->weight[j] = fmaxf(c->weight[j], (float)q->least_weight);
  return grid_fit(&q->rule, c->rows, c->m, my_errors(c), c->m, q->weigh_diagonal ? c->weight : NULL, c->now.grid, &c->now.tiny);
}

/* weight = diag P. */
static void weigh(work *c, int kept) {
  const refine_request *q = c->q;
  for (int64_t j = 0; j < q->m; j++) {
    double left = q->h[j * q->m + j];
    for (int k = 0; k < kept; k++) left -= c->small[k * q->m + j] * c->small[k * q->m + j];
    c->weight[j] = (float)left;
  }
}

/* Collective. The factor of P + lambda I: where columns go by diag P its own, else by what Z takes from the one that stands there. */
static status factor(work *c, const deflate_request *d, int kept) {
  const refine_request *q = c->q;
  status st = OK;
  double *down = c->small + directions_shared(q->m, q->rank) / sizeof *down;
  if (!q->plan.act_order) return reverse_downdate(q->where, q->t, q->m, NULL, kept, c->small, down, q->factor, c->diagonal);
  optq_act_order(q->m, c->weight, c->order, c->order + q->m);
  TRY(deflate_gram(d, c->small, kept, q->p));
  TRY(reverse_cholesky(q->where, q->t, q->m, q->p, q->damping, c->order, q->factor));
done:
  return st;
}

static status shape(work *c, bool from_gram) {
  const refine_request *q = c->q;
  status st = OK;
  int kept = 0;
  bool regrid = q->plan.regrid && !from_gram;
  const float *v = regrid ? my_errors(c) : my_weights(c);
  if (regrid) aim(c);
  if (from_gram) eigenvectors(c);
  deflate_request d = deflation_by(c, 0, q->plan.shrink ? q->damping : 0);
  TRY(deflate(&d, c->small, &kept));
  weigh(c, kept);
  TRY(factor(c, &d, kept));
  if (regrid) TRY(agree(q->t->comm, grid_anew(c)));
  optq_request r = {.rule = q->rule,
                    .rows = c->rows,
                    .width = c->m,
                    .w = v,
                    .ldw = q->m,
                    .u = q->factor,
                    .diagonal = c->order ? NULL : c->diagonal,
                    .order = c->order,
                    .dead = q->dead,
                    .dead_rtn = q->dead_rtn,
                    .grid = c->now.grid,
                    .row_loss = c->row_loss + q->begin};
  st = c->rows ? optq(&r, c->now.codes, NULL) : OK;
  if (st == OK) {
    errors(c, v, q->damping);
    st = add_deflated(c, kept);
  }
  TRY(strips_meet(q->t, st));
  TRY(fit(c, 0, STEPS_SHAPED, sum_rows(c, c->row_loss)));
done:
  return st;
}

/* ---- descent ---- */

static status descend(work *c) {
  const refine_request *q = c->q;
  const refine_plan *p = &q->plan;
  status st = OK;
  int kept = 0;
  deflate_request d = deflation_by(c, p->ridge, 0);
  if (p->deflated) {
    TRY(deflate(&d, c->small, &kept));
    TRY(deflate_gram(&d, c->small, kept, q->p));
  } else {
    aim(c);
  }
  sweep_request r = {.rule = q->rule,
                     .rows = c->rows,
                     .width = c->m,
                     .w = p->deflated ? my_weights(c) : my_errors(c),
                     .ldw = q->m,
                     .p = p->deflated ? q->p : q->h,
                     .dead = q->dead,
                     .grid_moves = p->grid_moves,
                     .grid = c->now.grid,
                     .row_loss = c->row_loss + q->begin};
  st = c->rows ? sweep(&r, c->now.codes, NULL) : OK;
  if (!p->deflated) {
    TRY(agree(q->t->comm, st));
    return fit_anew(c, STEPS_DESCENT, false); /* the sweep's loss is of W - B A */
  }
  if (st == OK) {
    errors(c, my_weights(c), 0);
    st = add_deflated(c, kept);
  }
  TRY(strips_meet(q->t, st));
  TRY(fit(c, p->ridge, STEPS_DESCENT, sum_rows(c, c->row_loss)));
done:
  return st;
}

/* ---- the loop ---- */

static bool gained(const refine_plan *p, double before, double after) { return before - after >= p->stop * before; }

static status shape_all(work *c, double *losses, double *least, int *kept) {
  const refine_plan *p = &c->q->plan;
  status st = OK;
  for (int t = 0; t < p->shapes; t++) {
    double before = *least;
    TRY(shape(c, p->eigenvectors && t == 0));
    losses[1 + t] = c->f_gram;
    keep(c, least, 1 + t, kept);
    if (t > 0 && !gained(p, before, *least)) break; /* the first round alone gains little: it turns the codes towards the next */
  }
done:
  return st;
}

static status descend_all(work *c, double *losses, int *kept) {
  const refine_plan *p = &c->q->plan;
  status st = OK;
  int first = 1 + p->shapes;
  if (p->descents == 0) return OK;
  copy_state(c, c->best, &c->now);
  errors(c, my_weights(c), 0);
  team_barrier(c->q->t);
  TRY(fit(c, p->ridge, STEPS_SHAPED, c->now.trace + p->ridge * sum_rows(c, c->row_square)));
  double least = c->f;
  for (int t = 0; t < p->descents; t++) {
    double before = least;
    TRY(descend(c));
    losses[first + t] = c->f_gram;
    keep(c, &least, first + t, kept);
    if (!gained(p, before, least)) break;
  }
done:
  return st;
}

status refine(const refine_request *q, uint8_t *codes, code_grid g, double *losses, int *kept, int64_t *tiny) {
  status st = OK;
  work c;
  state best = {codes, g, *tiny, 0};
  for (int k = 0; k < 1 + q->plan.shapes + q->plan.descents; k++) losses[k] = NAN;
  *kept = 0;
  TRY(agree(q->t->comm, work_new(q, &best, &c)));
  copy_state(&c, &best, &c.now);
  TRY(fit_anew(&c, STEPS_SHAPED, true));
  best.trace = c.now.trace;
  losses[0] = c.f_gram;
  double least = c.f;
  TRY(shape_all(&c, losses, &least, kept));
  TRY(descend_all(&c, losses, kept));
  *tiny = best.tiny;
done:
  work_free(&c);
  return st;
}

/* ---- costs ---- */

uint64_t refine_bytes(const refine_plan *p, const grid_rule *r, int64_t n, int64_t m, int rank, int ranks) {
  uint64_t x = (uint64_t)n, y = (uint64_t)m, k = (uint64_t)rank, slab = (uint64_t)optq_slab(m), columns = (uint64_t)ritz_columns(n, rank);
  uint64_t mine = ((x + (uint64_t)ranks - 1) / (uint64_t)ranks + slab - 1) / slab * slab, groups = (uint64_t)grid_groups(r, (int)m);
  mine = mine < x ? mine : x;
  uint64_t held = mine * y + mine * groups * 4 + 8 * (columns + k) * x + 12 * k * y + 4 * mine * k + 8 * slab * (y > k ? y : k) + 12 * y;
  uint64_t most = larger(ritz_bytes(n, m, rank), deflate_bytes(m, rank));
  if (p->shapes) most = larger(most, larger(reverse_downdate_bytes(m, rank), larger(optq_bytes(r, m), grid_bytes(r, m))));
  if (p->descents) most = larger(most, sweep_bytes(r, m));
  return held + most;
}

refine_cost refine_costs(const refine_plan *p, const grid_rule *r, int64_t n, int64_t m, int rank) {
  double weights = (double)n * (double)m, product = weights * (double)m, cube = (double)m * (double)m * (double)m / 3;
  int fits = 1 + p->shapes + (p->descents > 0), metrics = p->deflated ? p->descents : 0, eliminations = p->shapes + metrics;
  return (refine_cost){.gemm = (1 + p->descents - metrics) * product + eliminations * 2 * rank * weights,
                       .ritz = fits * ritz_flops(n, m, rank, STEPS_SHAPED) + p->descents * ritz_flops(n, m, rank, STEPS_DESCENT),
                       .deflate =
                           eliminations * deflate_flops(m, rank) + (metrics + (p->act_order ? p->shapes : 0)) * deflate_gram_flops(m, rank),
                       .factor = p->shapes * (p->act_order ? cube : reverse_downdate_flops(m, rank)),
                       .optq = p->shapes * optq_flops(n, m),
                       .sweep = p->descents * sweep_flops(r, p->grid_moves, n, m),
                       .regridded = p->regrid ? (p->shapes - p->eigenvectors) * weights : 0,
                       .moves = p->grid_moves};
}

double refine_flops(const refine_plan *p, const grid_rule *r, int64_t n, int64_t m, int rank) {
  refine_cost c = refine_costs(p, r, n, m, rank);
  return c.gemm + c.ritz + c.deflate + c.factor + c.optq + c.sweep;
}
