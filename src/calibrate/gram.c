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

/* The side of a unit depends on n alone: then every unit is the same BLAS call whoever makes it, and the sums have the same bits for any
 * number of ranks with any BLAS. Large sides run nearer gemm's peak (cluster.md B), small ones leave enough units to balance. */
int gram_unit_side(int64_t n) { return n <= 768 ? T : n <= 2048 ? 2 * T : n <= 8192 ? 4 * T : 8 * T; }

/* Flops over the fraction of gemm's peak that such a unit reaches. */
static double unit_cost(const gram_unit *u) {
  double smaller = u->rows < u->cols ? u->rows : u->cols;
  return (u->row == u->col ? 0.5 : 1.0) * u->rows * u->cols * (smaller + 40) / smaller;
}

static int units_of(int64_t n) {
  int64_t blocks = (n + gram_unit_side(n) - 1) / gram_unit_side(n);
  return (int)(blocks * (blocks + 1) / 2);
}

static gram_unit unit_at(int n, int index) {
  int i = 0, side = gram_unit_side(n);
  while (index > i) index -= ++i;
  gram_unit u = {i * side, index * side, side, side};
  if (u.row + side > n) u.rows = n - u.row;
  if (u.col + side > n) u.cols = n - u.col;
  return u;
}

uint64_t gram_shared_bytes(int64_t n) { return ((uint64_t)tiles_of(n) * TT + 2 * (uint64_t)n) * sizeof(double); }

uint64_t gram_private_bytes(int64_t n) {
  int64_t side = gram_unit_side(n) < n ? gram_unit_side(n) : n;
  return (uint64_t)(side * side) * sizeof(float);
}

/* Local. Units dealt by cost, the same on every rank: owner[unit], owned by the caller. */
static status deal_units(int n, int ranks, int **owner) {
  status st = OK;
  int count = units_of(n);
  double *cost = NULL;
  TRY(NEW(*owner, count, "units of a Gram"));
  TRY(NEW(cost, count, "units of a Gram"));
  for (int i = 0; i < count; i++) {
    gram_unit u = unit_at(n, i);
    cost[i] = unit_cost(&u);
  }
  TRY(deal_tasks(cost, count, ranks, *owner));
done:
  FREE(cost);
  return st;
}

static status take_units(gram *g) {
  status st = OK;
  int count = units_of(g->n), *owner = NULL;
  TRY(NEW(g->mine, count, "units of a Gram"));
  TRY(deal_units(g->n, g->t->size, &owner));
  for (int i = 0; i < count; i++)
    if (owner[i] == g->t->rank) g->mine[g->unit_count++] = unit_at(g->n, i);
  TRY(NEW(g->product, gram_private_bytes(g->n) / sizeof(float), "product of a Gram unit"));
done:
  FREE(owner);
  return st;
}

status gram_busiest(int64_t n, int ranks, double *flops) {
  status st = OK;
  int *owner = NULL;
  double *sum = NULL;
  *flops = 0;
  TRY(NEW(sum, ranks, "flops of ranks"));
  TRY(deal_units((int)n, ranks, &owner));
  for (int i = 0; i < units_of(n); i++) {
    gram_unit u = unit_at((int)n, i);
    sum[owner[i]] += (u.row == u.col ? 1.0 : 2.0) * u.rows * u.cols;
    *flops = fmax(*flops, sum[owner[i]]);
  }
done:
  FREE(owner);
  FREE(sum);
  return st;
}

status gram_new(const team *t, int64_t n, gram *g) {
  status st = OK;
  *g = (gram){.t = t, .n = (int)n};
  if (n > 46340)
    st = fail(E_USAGE, "calibrate: a Gram of %lld columns: expected at most 46340, the limit of 32-bit BLAS", (long long)n);
  else
    st = take_units(g);
  TRY(agree(t->comm, st));
  TRY(shared_new(t, (size_t)tiles_of(n) * TT * sizeof(double), "sums of a Gram", &g->sums));
  TRY(shared_new(t, (size_t)n * sizeof(double), "mean |x|", &g->abs_sums));
  TRY(shared_new(t, (size_t)n * sizeof(double), "largest mean |x|", &g->abs_most));
done:
  if (st != OK) gram_free(g);
  return st;
}

void gram_free(gram *g) {
  shared_free(&g->sums);
  shared_free(&g->abs_sums);
  shared_free(&g->abs_most);
  FREE(g->mine);
  FREE(g->product);
  *g = (gram){0};
}

void gram_reset(gram *g) {
  int64_t begin, end;
  team_barrier(g->t);
  deal_range(tiles_of(g->n), g->t->size, g->t->rank, 1, &begin, &end);
  memset((double *)g->sums.base + begin * TT, 0, (size_t)(end - begin) * TT * sizeof(double));
  if (g->t->rank == 0) {
    memset(g->abs_sums.base, 0, (size_t)g->n * sizeof(double));
    memset(g->abs_most.base, 0, (size_t)g->n * sizeof(double));
  }
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

/* Columns [begin, end) of one window x (rows, ld), a few at a time so that their sums stay in the nearest cache. */
HOT static void add_magnitudes(double *restrict sums, double *restrict most, const float *restrict x, int64_t ld, int rows, int begin,
                               int end) {
  enum { COLUMNS = 128 };
  for (int at = begin; at < end; at += COLUMNS) {
    double window[COLUMNS] = {0};
    int width = end - at < COLUMNS ? end - at : COLUMNS;
    for (int r = 0; r < rows; r++)
      for (int k = 0; k < width; k++) window[k] += (double)fabsf(x[(int64_t)r * ld + at + k]);
    for (int k = 0; k < width; k++) {
      double mean = window[k] / rows;
      sums[at + k] += window[k];
      most[at + k] = mean > most[at + k] ? mean : most[at + k];
    }
  }
}

void gram_add(gram *g, const float *panel, int64_t stride, const int *rows, int length, int chunks, int per_product) {
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
  for (int c = 0; c < chunks; c++)
    for (int r = 0; r < rows[c]; r += length)
      add_magnitudes(g->abs_sums.base, g->abs_most.base, panel + c * stride + (int64_t)r * g->n, g->n, length, (int)begin, (int)end);
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
