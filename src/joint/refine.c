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
#include "quant/codes.h"
#include "quant/optq.h"

enum { STEPS_SHAPED = 3, STEPS_DESCENT = 2 };

/* Codes and grid of my rows. */
typedef struct state {
  uint8_t *codes; /* (rows, m) */
  code_grid grid;
  int64_t tiny;
} state;

typedef struct work {
  const refine_request *q;
  int rows, m, slab, groups, columns; /* of mine; columns: of y */
  state now, *best;
  char *grid_memory; /* of now */
  /* seen by the team */
  float *e, *em, *p;
  double *row_loss, *row_square, *first, *small; /* [n], [n], (columns, n), of ritz and deflate in turn */
  /* the same on every rank */
  double *y, *u, *a, *values; /* (columns, n), (rank, n), (rank, m), [rank] */
  /* mine */
  float *v, *factor_u, *factor_a, *pad; /* (rows, m): what is quantized; (rows, rank), (rank, m): U and A; two padded slabs */
  float *weight, *diagonal;             /* [m] of a search; of P */
  int32_t *order;                       /* [2 m] columns as OPTQ takes them, and a buffer; NULL natural */
  double f, f_gram;                     /* of now, in the metric it was measured in and on H */
} work;

/* ---- life ---- */

static size_t part(size_t bytes) { return (bytes + 63) / 64 * 64; }

static uint64_t larger(uint64_t a, uint64_t b) { return a > b ? a : b; }

static uint64_t small_shared(int64_t n, int64_t m, int rank) { return larger(ritz_shared(n, m, rank), deflate_shared(m, rank)); }

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
  PLACE(em, n * m);
  PLACE(p, m * m);
  PLACE(row_loss, n);
  PLACE(row_square, n);
  PLACE(first, (size_t)c->columns * n);
#undef PLACE
  c->small = (double *)(void *)at;
}

uint64_t refine_shared(int64_t n, int64_t m, int rank) {
  size_t x = (size_t)n, y = (size_t)m, columns = (size_t)ritz_columns(n, rank);
  return 2 * part(x * y * sizeof(float)) + part(y * y * sizeof(float)) + 2 * part(x * sizeof(double)) + part(columns * x * sizeof(double)) +
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
  TRY(NEW(c->v, mine, "weights less adapter"));
  TRY(NEW(c->factor_u, (int64_t)c->rows * rank, "U of my rows"));
  TRY(NEW(c->factor_a, rank * q->m, "A in float"));
  TRY(NEW(c->pad, 2 * (int64_t)c->slab * (q->m > rank ? q->m : rank), "slabs of rows"));
  TRY(NEW(c->weight, q->m, "weights of a search"));
  TRY(NEW(c->diagonal, q->m, "diagonal of P"));
  if (q->act_order) TRY(NEW(c->order, 2 * q->m, "order of columns"));
  grid_place(q, c->rows, c->grid_memory, &c->now.grid);
  shared_place(c);
done:
  return st;
}

static void work_free(work *c) {
  FREE(c->now.codes), FREE(c->grid_memory);
  FREE(c->y), FREE(c->u), FREE(c->a), FREE(c->values);
  FREE(c->v), FREE(c->factor_u), FREE(c->factor_a), FREE(c->pad), FREE(c->weight), FREE(c->diagonal), FREE(c->order);
}

static void copy_state(const work *c, const state *from, state *to) {
  size_t grids = (size_t)c->rows * (size_t)c->groups;
  memcpy(to->codes, from->codes, (size_t)c->rows * (size_t)c->m);
  memcpy(to->grid.scales, from->grid.scales, grids * sizeof *to->grid.scales);
  if (to->grid.zeros) memcpy(to->grid.zeros, from->grid.zeros, grids);
  if (to->grid.real_zeros) memcpy(to->grid.real_zeros, from->grid.real_zeros, grids * sizeof *to->grid.real_zeros);
  to->tiny = from->tiny;
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

/* v = W - U A of my rows. */
static void aim(work *c) {
  const refine_request *q = c->q;
  int rank = q->rank;
  memcpy(c->v, my_weights(c), (size_t)c->rows * (size_t)c->m * sizeof *c->v);
  for (int64_t k = 0; k < rank * q->m; k++) c->factor_a[k] = (float)c->a[k];
  for (int i = 0; i < c->rows; i++)
    for (int k = 0; k < rank; k++) c->factor_u[(int64_t)i * rank + k] = (float)c->u[k * q->n + q->begin + i];
  slab_product(c, rank, -1, c->factor_u, c->factor_a, 1, c->v);
}

/* ---- the loss of the codes as they are ---- */

HOT static void row_sums(int m, const float *restrict e, float *restrict em, float ridge, double *loss, double *square) {
  double sum = 0, own = 0;
#pragma omp simd reduction(+ : sum, own)
  for (int j = 0; j < m; j++) {
    em[j] += ridge * e[j];
    sum += (double)e[j] * (double)em[j];
    own += (double)e[j] * (double)e[j];
  }
  *loss = sum;
  *square = own;
}

/* E and E M into shared memory, M = H + ridge I; tr(E M E^T) and ||E||^2, the same on every rank. */
static void residual(work *c, double ridge, double *trace, double *square) {
  const refine_request *q = c->q;
  float *e = c->e + q->begin * q->m, *em = c->em + q->begin * q->m;
  const float *w = my_weights(c);
  codes_bytes_values(&q->rule, c->rows, c->m, c->now.codes, c->now.grid, e);
  for (int64_t k = 0; k < (int64_t)c->rows * c->m; k++) e[k] = w[k] - e[k];
  slab_product(c, c->m, 1, e, q->h, 0, em);
  for (int i = 0; i < c->rows; i++)
    row_sums(c->m, e + (int64_t)i * c->m, em + (int64_t)i * c->m, (float)ridge, c->row_loss + q->begin + i, c->row_square + q->begin + i);
  team_barrier(q->t);
  *trace = *square = 0;
  for (int64_t i = 0; i < q->n; i++) {
    *trace += c->row_loss[i];
    *square += c->row_square[i];
  }
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

/* The adapter of the codes as they are, in the metric H + ridge I: U, A, f. */
static status fit(work *c, double ridge, int steps, bool first) {
  const refine_request *q = c->q;
  status st = OK;
  double trace, square, covered = 0;
  residual(c, ridge, &trace, &square);
  if (first) TRY(first_basis(c));
  ritz_request r = {
      .t = q->t, .where = q->where, .n = q->n, .m = q->m, .rank = q->rank, .steps = steps, .e = c->e, .em = c->em, .trace = trace};
  TRY(ritz(&r, c->y, c->small, c->u, c->a, c->values, &c->f));
  for (int64_t k = 0; k < q->rank * q->m; k++) covered += c->a[k] * c->a[k];
  c->f_gram = fmax(c->f - ridge * fmax(square - covered, 0), 0); /* U U^T E leaves so much of the ridge's part */
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

static status deflate_by(work *c, const double *a, double ridge, double shrink) {
  const refine_request *q = c->q;
  deflate_request d = {.t = q->t, .where = q->where, .m = q->m, .rank = q->rank, .a = a, .h = q->h, .ridge = ridge, .shrink = shrink};
  return deflate(&d, c->small, c->p);
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

static status grid_anew(work *c) {
  const refine_request *q = c->q;
  if (c->rows == 0) return OK;
  for (int64_t j = 0; j < q->m; j++) c->weight[j] = fmaxf(c->diagonal[j], (float)q->least_weight);
  return grid_fit(&q->rule, c->rows, c->m, c->v, c->m, q->weigh_diagonal ? c->weight : NULL, c->now.grid, &c->now.tiny);
}

static status shape(work *c, bool from_gram) {
  const refine_request *q = c->q;
  status st = OK;
  bool regrid = q->plan.regrid && !from_gram;
  if (regrid)
    aim(c);
  else
    memcpy(c->v, my_weights(c), (size_t)c->rows * (size_t)c->m * sizeof *c->v);
  if (from_gram) eigenvectors(c);
  TRY(deflate_by(c, c->a, 0, q->plan.shrink ? q->damping : 0));
  for (int64_t j = 0; j < q->m; j++) c->diagonal[j] = c->p[j * q->m + j];
  if (c->order) optq_act_order(q->m, c->diagonal, c->order, c->order + q->m);
  if (regrid) TRY(agree(q->t->comm, grid_anew(c)));
  TRY(reverse_cholesky(q->where, q->t, q->m, c->p, q->damping, c->order, q->factor));
  optq_request r = {.rule = q->rule,
                    .rows = c->rows,
                    .width = c->m,
                    .w = c->v,
                    .ldw = q->m,
                    .u = q->factor,
                    .order = c->order,
                    .dead = q->dead,
                    .dead_rtn = q->dead_rtn,
                    .grid = c->now.grid};
  st = c->rows ? optq(&r, c->now.codes, NULL) : OK;
  TRY(agree(q->t->comm, st));
  TRY(fit(c, 0, STEPS_SHAPED, false));
done:
  return st;
}

/* ---- descent ---- */

static status descend(work *c) {
  const refine_request *q = c->q;
  const refine_plan *p = &q->plan;
  status st = OK;
  if (p->deflated)
    TRY(deflate_by(c, c->a, p->ridge, 0));
  else
    aim(c);
  sweep_request r = {.rule = q->rule,
                     .rows = c->rows,
                     .width = c->m,
                     .w = p->deflated ? my_weights(c) : c->v,
                     .ldw = q->m,
                     .p = p->deflated ? c->p : q->h,
                     .dead = q->dead,
                     .grid_moves = p->grid_moves,
                     .grid = c->now.grid};
  st = c->rows ? sweep(&r, c->now.codes, NULL) : OK;
  TRY(agree(q->t->comm, st));
  TRY(fit(c, p->ridge, STEPS_DESCENT, false));
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
  TRY(fit(c, p->ridge, STEPS_SHAPED, false));
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
  state best = {codes, g, *tiny};
  for (int k = 0; k < 1 + q->plan.shapes + q->plan.descents; k++) losses[k] = NAN;
  *kept = 0;
  TRY(agree(q->t->comm, work_new(q, &best, &c)));
  copy_state(&c, &best, &c.now);
  TRY(fit(&c, 0, STEPS_SHAPED, true));
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
  uint64_t held =
      mine * y * 5 + mine * groups * 4 + 8 * (columns + k) * x + 12 * k * y + 4 * mine * k + 8 * slab * (y > k ? y : k) + 16 * y;
  uint64_t most = larger(ritz_bytes(n, m, rank), deflate_bytes(m, rank));
  if (p->shapes) most = larger(most, larger(optq_bytes(r, m), grid_bytes(r, m)));
  if (p->descents) most = larger(most, sweep_bytes(r, m));
  return held + most;
}

refine_cost refine_costs(const refine_plan *p, const grid_rule *r, int64_t n, int64_t m, int rank) {
  double weights = (double)n * (double)m, product = 2 * weights * (double)m, cube = (double)m * (double)m * (double)m / 3;
  int fits = 1 + p->shapes + (p->descents ? 1 + p->descents : 0), eliminations = p->shapes + (p->deflated ? p->descents : 0);
  return (refine_cost){.gemm = fits * product,
                       .ritz = (fits - p->descents) * ritz_flops(n, m, rank, STEPS_SHAPED) +
                               p->descents * ritz_flops(n, m, rank, STEPS_DESCENT),
                       .deflate = eliminations * deflate_flops(m, rank),
                       .factor = p->shapes * cube,
                       .optq = p->shapes * optq_flops(n, m),
                       .sweep = p->descents * sweep_flops(r, p->grid_moves, n, m),
                       .regridded = p->regrid ? (p->shapes - p->eigenvectors) * weights : 0,
                       .moves = p->grid_moves};
}

double refine_flops(const refine_plan *p, const grid_rule *r, int64_t n, int64_t m, int rank) {
  refine_cost c = refine_costs(p, r, n, m, rank);
  return c.gemm + c.ritz + c.deflate + c.factor + c.optq + c.sweep;
}
