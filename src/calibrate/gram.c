#include "calibrate/gram.h"

#include <math.h>
#include <string.h>

#include "base/blas.h"
#include "base/hot.h"
#include "base/memory.h"
#include "dist/agree.h"

enum { T = GRAM_TILE, TT = GRAM_TILE * GRAM_TILE };

static int64_t tiles_of(int64_t n) {
  int64_t side = (n + T - 1) / T;
  return side * (side + 1) / 2;
}

/* Seconds of a unit in arbitrary measure: flops over the fraction of gemm's peak that such a side reaches (cluster.md B). */
static double unit_cost(int rows, int cols, bool diagonal) {
  double side = fmin(rows, cols), rate = side / (side + 40);
  return (diagonal ? 0.5 : 1.0) * rows * cols / rate;
}

static int units_of(int n, int side) {
  int blocks = (n + side - 1) / side;
  return blocks * (blocks + 1) / 2;
}

static void unit_at(int n, int side, int index, gram_unit *u) {
  int i = 0;
  while (index > i) index -= ++i;
  *u = (gram_unit){i * side, index * side, side, side};
  if (u->row + side > n) u->rows = n - u->row;
  if (u->col + side > n) u->cols = n - u->col;
}

/* Owners of the units of this side, and the load of the busiest rank. */
static status deal_units(int n, int side, int ranks, int *owner, double *cost, double *load, double *busiest) {
  int count = units_of(n, side);
  for (int i = 0; i < count; i++) {
    gram_unit u;
    unit_at(n, side, i, &u);
    cost[i] = unit_cost(u.rows, u.cols, u.row == u.col);
  }
  status st = deal_tasks(cost, count, ranks, owner);
  if (st != OK) return st;
  memset(load, 0, (size_t)ranks * sizeof *load);
  for (int i = 0; i < count; i++) load[owner[i]] += cost[i];
  *busiest = 0;
  for (int r = 0; r < ranks; r++) *busiest = fmax(*busiest, load[r]);
  return OK;
}

/* Large units run nearer the peak, small ones balance better: the side whose busiest rank is done first. */
static status choose_side(int n, int ranks, int *owner, double *cost, double *load, int *side) {
  double best = INFINITY;
  *side = T;
  for (int candidate = 16 * T; candidate >= T; candidate -= candidate > 8 * T ? 8 * T : T) {
    double busiest;
    if (candidate > T && candidate >= 2 * n) continue;
    status st = deal_units(n, candidate, ranks, owner, cost, load, &busiest);
    if (st != OK) return st;
    if (busiest < best) {
      best = busiest;
      *side = candidate;
    }
  }
  return OK;
}

uint64_t gram_shared_bytes(int64_t n) { return (uint64_t)tiles_of(n) * TT * sizeof(double) + (uint64_t)n * sizeof(double); }

uint64_t gram_private_bytes(int64_t n, int ranks) {
  int64_t most = n < 16 * T ? n : 16 * T;
  if (ranks > 1 && most > 8 * T) most = 8 * T;
  return (uint64_t)(most * most) * sizeof(float);
}

status gram_new(const team *t, int64_t n, gram *g) {
  status st = OK;
  int *owner = NULL;
  double *cost = NULL, *load = NULL;
  *g = (gram){.t = t, .n = (int)n};
  if (n > 46340) {
    st = fail(E_USAGE, "calibrate: a Gram of %lld columns: expected at most 46340, the limit of 32-bit BLAS", (long long)n);
    goto agreed;
  }
  int most = units_of((int)n, T);
  st = NEW(owner, most, "units of a Gram");
  if (st == OK) st = NEW(cost, most, "units of a Gram");
  if (st == OK) st = NEW(load, t->size, "units of a Gram");
  if (st == OK) st = choose_side((int)n, t->size, owner, cost, load, &g->side);
  double busiest;
  if (st == OK) st = deal_units((int)n, g->side, t->size, owner, cost, load, &busiest);
  if (st == OK) st = NEW(g->mine, units_of((int)n, g->side), "units of a Gram");
  if (st != OK) goto agreed;
  int side = g->side < (int)n ? g->side : (int)n;
  st = NEW(g->product, (size_t)side * (size_t)side, "product of a Gram unit");
  for (int i = 0; i < units_of((int)n, g->side); i++)
    if (owner[i] == t->rank) unit_at((int)n, g->side, i, &g->mine[g->unit_count++]);
agreed:
  TRY(agree(t->comm, st));
  TRY(shared_new(t, (size_t)tiles_of(n) * TT * sizeof(double), "sums of a Gram", &g->sums));
  TRY(shared_new(t, (size_t)n * sizeof(double), "mean |x|", &g->abs_sums));
done:
  FREE(load);
  FREE(cost);
  FREE(owner);
  if (st != OK) gram_free(g);
  return st;
}

void gram_free(gram *g) {
  shared_free(&g->sums);
  shared_free(&g->abs_sums);
  FREE(g->mine);
  FREE(g->product);
  *g = (gram){0};
}

void gram_reset(gram *g) {
  int64_t begin, end;
  team_barrier(g->t);
  deal_range(tiles_of(g->n), g->t->size, g->t->rank, 1, &begin, &end);
  memset((double *)g->sums.base + begin * TT, 0, (size_t)(end - begin) * TT * sizeof(double));
  if (g->t->rank == 0) memset(g->abs_sums.base, 0, (size_t)g->n * sizeof(double));
  g->tokens = 0;
  team_barrier(g->t);
}

/* The unit's product (rows, ld) into the tiles it covers; units start at multiples of the tile. */
HOT static void add_product(double *restrict sums, const gram_unit *u, const float *restrict product, int ld) {
  for (int r = 0; r < u->rows; r++) {
    int64_t i = (u->row + r) / T, limit = u->row == u->col ? r + 1 : u->cols;
    for (int64_t c = 0; c < limit; c += T) {
      int64_t j = (u->col + c) / T, width = limit - c < T ? limit - c : T;
      double *restrict to = sums + (i * (i + 1) / 2 + j) * TT + (int64_t)((u->row + r) % T) * T;
      const float *restrict from = product + (int64_t)r * ld + c;
      for (int64_t k = 0; k < width; k++) to[k] += (double)from[k];
    }
  }
}

HOT static void add_magnitudes(double *restrict sums, const float *restrict x, int64_t ld, int rows, int begin, int end) {
  for (int r = 0; r < rows; r++)
    for (int k = begin; k < end; k++) sums[k] += (double)fabsf(x[(int64_t)r * ld + k]);
}

void gram_add(gram *g, const float *panel, int64_t stride, const int *rows, int chunks, int per_product) {
  int64_t begin, end;
  for (int first = 0; first < chunks;) {
    int last = first + per_product < chunks ? first + per_product : chunks;
    for (int k = 0; k < g->unit_count; k++) {
      const gram_unit *u = &g->mine[k];
      for (int c = first; c < last; c++) {
        const float *x = panel + c * stride;
        float beta = c == first ? 0.0f : 1.0f;
        if (u->row == u->col)
          ssyrk_gram(u->rows, rows[c], 1, x + u->row, g->n, beta, g->product, u->cols);
        else
          sgemm(true, false, u->rows, u->cols, rows[c], 1, x + u->row, g->n, x + u->col, g->n, beta, g->product, u->cols);
      }
      add_product(g->sums.base, u, g->product, u->cols);
    }
    for (int c = first; c < last; c++) g->tokens += rows[c];
    first = last;
  }
  deal_range(g->n, g->t->size, g->t->rank, 16, &begin, &end);
  for (int c = 0; c < chunks; c++) add_magnitudes(g->abs_sums.base, panel + c * stride, g->n, rows[c], (int)begin, (int)end);
}

status gram_tiles(const gram *g, const char *where, int64_t begin, int64_t end, float *tiles) {
  const double *sums = (const double *)g->sums.base + begin * TT;
  size_t count = (size_t)(end - begin) * TT;
  double check = 0; /* any Inf or NaN makes it NaN */
  for (size_t k = 0; k < count; k++) {
    tiles[k] = (float)sums[k];
    check += 0.0 * (double)tiles[k];
  }
  /* diagonal tiles hold their lower triangle only: mirror it, so that a tile is the matrix's own block */
  for (int64_t i = 0; i * (i + 3) / 2 < end; i++) {
    int64_t index = i * (i + 3) / 2; /* tile (i, i) */
    if (index < begin) continue;
    float *tile = tiles + (index - begin) * TT;
    for (int r = 0; r < T; r++)
      for (int c = 0; c < r; c++) tile[c * T + r] = tile[r * T + c];
  }
  if (isnan(check)) return fail(E_NUMERICS, "%s: expected finite sums of products of activations, found Inf or NaN", where);
  return OK;
}
