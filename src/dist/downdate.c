/* The reverse Cholesky factor of a matrix less a few outer products, block by block: formulas and layout in dlinalg.h. */
#include <math.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "dist/agree.h"
#include "dist/dlinalg.h"
#include "dist/probe.h"

enum { NB = 192 };

/* Shared: y (n, r); parts [blocks], (r, r) each: Y_k^T Y_k; turn (r, n): of block k (r, NB) what G times it is C's part beside the diagonal; corner
 * [blocks], (NB, NB) each: C_kk. Private: the rest. */
typedef struct work {
  const team *t;
  int n, r, blocks;
  const double *u;
  double *y, *parts, *turn, *corner;
  double *tile, *sum, *small; /* two of (NB, NB); (NB, r); two of (r, r) */
} work;

static int width_of(const work *w, int k) { return k * NB + NB < w->n ? NB : w->n - k * NB; }
static bool mine(const work *w, int k) { return k % w->t->size == w->t->rank; }
static double *at(double *u, int64_t n, int64_t i, int64_t j) { return u + i * n + j; }

/* Collective. y = u^{-1} y, from the last block to the first; what a block takes from those above it is dealt by blocks of rows. */
static void solve(const work *w) {
  for (int k = w->blocks - 1; k >= 0; k--) {
    int first = k * NB, width = width_of(w, k);
    const double *column = w->u + first;
    if (mine(w, k)) dtrsm(false, false, false, width, w->r, column + (int64_t)first * w->n, w->n, w->y + (int64_t)first * w->r, w->r);
    team_barrier(w->t);
    for (int i = 0; i < k; i++)
      if (mine(w, i))
        dgemm(false, false, NB, w->r, width, -1, column + (int64_t)i * NB * w->n, w->n, w->y + (int64_t)first * w->r, w->r, 1,
              w->y + (int64_t)i * NB * w->r, w->r);
  }
}

/* C_kk and turn of my blocks. */
static status corners(const char *where, const work *w) {
  status st = OK;
  int r = w->r;
  size_t square = (size_t)r * (size_t)r;
  double *s = w->small, *l = s + square, *g = w->sum; /* l: Cholesky factor of S; g (r, width) = L^{-1} Y_k^T */
  memset(s, 0, square * sizeof *s);
  for (int i = 0; i < r; i++) s[i * r + i] = 1;
  for (int k = w->blocks - 1; k >= 0; k--) {
    int width = width_of(w, k), last = width - 1;
    double *c = w->corner + (size_t)k * NB * NB, *reversed = w->tile, *turn = w->turn + (int64_t)k * NB;
    if (mine(w, k)) {
      memcpy(l, s, square * sizeof *l);
      TRY(dcholesky(where, r, l, r));
      for (int i = 0; i < r; i++)
        for (int j = 0; j < width; j++) g[i * width + j] = w->y[((int64_t)k * NB + j) * r + i];
      dtrsm(false, true, false, r, width, l, r, g, width);
      dgemm(true, false, width, width, r, -1, g, width, g, width, 0, c, width);
      for (int i = 0; i < width; i++)
        for (int j = 0; j <= i; j++) reversed[i * width + j] = (i == j) + c[(last - i) * width + last - j];
      TRY(dcholesky(where, width, reversed, width));
      for (int i = 0; i < width; i++)
        for (int j = 0; j < width; j++) c[i * width + j] = reversed[(last - i) * width + last - j];
      dtrsm(false, true, true, r, width, l, r, g, width);     /* S^{-1} Y_k^T */
      dtrsm(true, false, true, r, width, c, width, g, width); /* … C_kk^{-T} */
      for (int i = 0; i < r; i++)
        for (int j = 0; j < width; j++) turn[(int64_t)i * w->n + j] = -g[i * width + j];
    }
    for (size_t i = 0; i < square; i++) s[i] -= w->parts[(size_t)k * square + i];
  }
done:
  return st;
}

/* D^T's blocks under my block rows of u, in place; the diagonal. */
static void multiply(const work *w, double *u, double *diagonal) {
  int n = w->n, r = w->r;
  for (int i = 0; i < w->blocks; i++) {
    int row = i * NB, height = width_of(w, i);
    if (!mine(w, i)) continue;
    const double *c = w->corner + (size_t)i * NB * NB;
    double *own = w->tile, *product = own + NB * NB;
    for (int a = 0; a < height; a++)
      for (int b = 0; b < height; b++) own[a * height + b] = b < a ? 0 : *at(u, n, row + a, row + b);
    dgemm(true, true, height, height, height, 1, c, height, own, height, 0, product, height);
    for (int a = 0; a < height; a++) {
      memcpy(at(u, n, row + a, row), product + a * height, (size_t)a * sizeof *u);
      diagonal[row + a] = product[a * height + a];
    }
    dgemm(false, false, height, r, height, 1, own, height, w->y + (int64_t)row * r, r, 0, w->sum, r);
    for (int k = i + 1; k < w->blocks; k++) {
      int first = k * NB, width = width_of(w, k);
      double *to = at(u, n, first, row);
      dgemm(true, true, width, height, width, 1, w->corner + (size_t)k * NB * NB, width, at(u, n, row, first), n, 0, to, n);
      dgemm(true, true, width, height, r, 1, w->turn + first, n, w->sum, r, 1, to, n);
      dgemm(false, false, height, r, width, 1, at(u, n, row, first), n, w->y + (int64_t)first * r, r, 1, w->sum, r);
    }
  }
}

/* Collective. D D^T x - (u u^T - Z^T Z) x for a vector of signs. S^{-1} magnifies the rounding of doubles; what is allowed, relative to
 * sqrt(diag u u^T), is far below the rounding of the floats of a Gram. */
static status check(const char *where, const work *w, const int32_t *order, const double *z, const double *diagonal) {
  enum { VECTORS = 4 };
  const double bound = 1e-10;
  status st = OK;
  int n = w->n, r = w->r;
  double *memory = NULL, sum = 0, worst = 0, all;
  TRY(agree(w->t->comm, NEW(memory, VECTORS * (size_t)n + (size_t)r, "downdate residual")));
  double *x = memory, *y = x + n, *image = y + n, *size = image + n, *zx = size + n; /* signs; u^T x; D D^T x; lengths of u's rows; Z x */
  for (int i = 0; i < n; i++) x[i] = probe_sign(i);
  for (int i = w->t->rank; i < n; i += w->t->size) {
    const double *row = w->u + (int64_t)i * n;
    double along = probe_dot(row, x, i) + diagonal[i] * x[i];
    probe_add(y + i, x[i], row + i, n - i);
    probe_add(image, along, row, i);
    image[i] += along * diagonal[i];
    size[i] = sqrt(probe_dot(row + i, row + i, n - i));
  }
  MPI_Allreduce(MPI_IN_PLACE, y, 3 * n, MPI_DOUBLE, MPI_SUM, w->t->comm);
  for (int i = 0; i < n; i++) sum += size[i];
  for (int k = 0; k < r; k++)
    for (int i = 0; i < n; i++) zx[k] += z[(int64_t)k * n + (order ? order[i] : i)] * x[i];
  for (int i = w->t->rank; i < n; i += w->t->size) {
    double error = probe_dot(w->u + (int64_t)i * n + i, y + i, n - i) - image[i];
    for (int k = 0; k < r; k++) error -= z[(int64_t)k * n + (order ? order[i] : i)] * zx[k];
    error = fabs(error) / (size[i] * sum);
    if (!(error <= worst)) worst = isnan(error) ? INFINITY : error;
  }
  MPI_Allreduce(&worst, &all, 1, MPI_DOUBLE, MPI_MAX, w->t->comm);
  if (!(all <= bound))
    st = fail(E_NUMERICS, "%s: downdated Cholesky factor of order %d: expected a residual below %.1e, found %.1e", where, n, bound, all);
  st = agree(w->t->comm, st);
done:
  FREE(memory);
  return st;
}

status reverse_downdate(const char *where, const team *t, int64_t n, const int32_t *order, int r, const double *z, double *shared_work,
                        double *u, double *diagonal) {
  status st = OK;
  double arguments[] = {(double)n, r, order != NULL};
  work w = {.t = t, .n = (int)n, .r = r, .blocks = (int)((n + NB - 1) / NB), .u = u};
  size_t squares = (size_t)w.blocks * (size_t)r * (size_t)r;
  TRY(agree_same(t->comm, "downdate: arguments", arguments, sizeof arguments));
  if (n < 1 || n > INT32_MAX || r < 0)
    st = fail(E_INTERNAL, "%s: downdate: expected an order from 1 to %d, found %lld", where, INT32_MAX, (long long)n);
  if (st == OK) st = NEW(w.tile, 2 * NB * NB, "downdate block");
  if (st == OK) st = NEW(w.sum, NB * (r + 1), "downdate sums");
  if (st == OK) st = NEW(w.small, 2 * r * r + 1, "downdate matrices");
  TRY(agree(t->comm, st));
  w.y = shared_work;
  w.parts = w.y + n * r;
  w.turn = w.parts + squares;
  w.corner = w.turn + n * r;
  for (int k = 0; k < w.blocks; k++)
    for (int j = k * NB; mine(&w, k) && j < k * NB + width_of(&w, k); j++)
      for (int i = 0; i < r; i++) w.y[(int64_t)j * r + i] = z[(int64_t)i * n + (order ? order[j] : j)];
  solve(&w);
  for (int k = 0; k < w.blocks; k++) {
    const double *y = w.y + (int64_t)k * NB * r;
    if (mine(&w, k)) dgemm(true, false, r, r, width_of(&w, k), 1, y, r, y, r, 0, w.parts + (size_t)k * (size_t)r * (size_t)r, r);
  }
  team_barrier(t);
  TRY(agree(t->comm, corners(where, &w)));
  team_barrier(t);
  multiply(&w, u, diagonal);
  team_barrier(t);
  TRY(check(where, &w, order, z, diagonal));
done:
  FREE(w.tile);
  FREE(w.sum);
  FREE(w.small);
  return st;
}

uint64_t reverse_downdate_shared(int64_t n, int r) {
  uint64_t k = (uint64_t)r, blocks = ((uint64_t)n + NB - 1) / NB;
  return sizeof(double) * (2 * (uint64_t)n * k + blocks * (k * k + NB * NB));
}

uint64_t reverse_downdate_bytes(int64_t n, int r) {
  uint64_t k = (uint64_t)r;
  return sizeof(double) * (2 * NB * NB + NB * (k + 1) + 2 * k * k + 1 + 4 * (uint64_t)n + k);
}

double reverse_downdate_flops(int64_t n, int r) { return (double)n * (double)n * (3 * r + NB); }
