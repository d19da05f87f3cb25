#include "joint/deflate.h"

#include <math.h>
#include <string.h>

#include "adapter/mixed.h"
#include "base/blas.h"
#include "base/hot.h"
#include "base/memory.h"
#include "dist/agree.h"
#include "joint/strips.h"

enum { TILE = 192, SMALL_TILE = 96, MANY_TILES = 10, BLOCK = 16 };
#define VANISHED 1e-12 /* of the largest eigenvalue of A M A^T */

static int tile_size(int64_t m) { return m < MANY_TILES * (int64_t)TILE ? SMALL_TILE : TILE; }
static int smaller(int a, int b) { return a < b ? a : b; }

/* g = A M A^T (rank, rank), destroyed -> turn (*kept, rank), its rows: Z = turn A M. */
static status deflated_directions(const deflate_request *q, double *g, double *values, double *turn, int *kept) {
  status st = OK;
  int rank = q->rank;
  *kept = 0;
  TRY(deigen(q->where, rank, g, rank, values));
  for (int i = rank - 1; i >= 0 && values[i] > 0 && values[i] >= VANISHED * values[rank - 1]; i--, (*kept)++)
    for (int j = 0; j < rank; j++) turn[*kept * rank + j] = g[i * rank + j] / sqrt(values[i] + q->shrink);
done:
  return st;
}

/* Of a tile of Z^T Z below the diagonal (rows from i0, columns from j0) to P, there and mirrored. On the diagonal only j <= i counts. */
HOT static void place_tile(int64_t m, int i0, int j0, int rows, int columns, double ridge, const float *restrict h,
                           const double *restrict zz, float *restrict p) {
  float corner[BLOCK * BLOCK];
  for (int ib = 0; ib < rows; ib += BLOCK)
    for (int jb = 0; jb < columns && j0 + jb <= i0 + ib; jb += BLOCK) {
      int high = smaller(BLOCK, rows - ib), wide = smaller(BLOCK, columns - jb);
      const float *from = h + (int64_t)(i0 + ib) * m + j0 + jb;
      float *below = p + (int64_t)(i0 + ib) * m + j0 + jb, *above = p + (int64_t)(j0 + jb) * m + i0 + ib;
      bool diagonal = i0 + ib == j0 + jb;
      for (int i = 0; i < high; i++)
        for (int j = 0; j < wide; j++)
          corner[i * BLOCK + j] = (float)((double)from[i * m + j] + (diagonal && i == j ? ridge : 0) - zz[(ib + i) * columns + jb + j]);
      for (int i = 0; i < high; i++)
        for (int j = 0; j < (diagonal ? i + 1 : wide); j++) below[i * m + j] = corner[i * BLOCK + j];
      for (int j = 0; j < wide; j++)
        for (int i = diagonal ? j : 0; i < high; i++) above[j * m + i] = corner[i * BLOCK + j];
    }
}

/* My tiles of P = M - Z^T Z. zz: room for one. */
static void subtract(const deflate_request *q, int kept, const double *z, double *zz, float *p) {
  int m = (int)q->m, size = tile_size(m), high = (m + size - 1) / size;
  int64_t seen = 0, begin, end;
  deal_range((int64_t)high * (high + 1) / 2, q->t->size, q->t->rank, 1, &begin, &end);
  for (int i = 0; i < m; i += size)
    for (int j = 0; j <= i; j += size, seen++)
      if (seen >= begin && seen < end) {
        int rows = smaller(size, m - i), columns = smaller(size, m - j);
        if (kept)
          dgemm(true, false, rows, columns, kept, 1, z + i, m, z + j, m, 0, zz, columns);
        else
          memset(zz, 0, (size_t)rows * (size_t)columns * sizeof *zz);
        place_tile(m, i, j, rows, columns, q->ridge, q->h, zz, p);
      }
}

static status check_request(const deflate_request *q) {
  if (q->m < 1 || q->m > INT32_MAX || q->rank < 1 || !(q->ridge >= 0) || !(q->shrink >= 0))
    return fail(E_INTERNAL, "%s: deflated Gram: expected order and rank from 1, ridge and shrink from 0, found %lld, %d, %g, %g", q->where,
                (long long)q->m, q->rank, q->ridge, q->shrink);
  return OK;
}

status deflate(const deflate_request *q, double *work, int *kept) {
  status st = OK;
  double *g = NULL, *values = NULL, *turn = NULL, *turned = NULL;
  double arguments[] = {(double)q->m, q->rank, q->ridge, q->shrink};
  int rank = q->rank;
  int64_t m = q->m;
  TRY(agree_same(q->t->comm, "deflated Gram: arguments", arguments, sizeof arguments));
  TRY(check_request(q));
  strips s = strips_cut(q->t, rank, m);
  double *z = work, *parts = work + rank * m; /* z: A M, then Z, (rank, m) */
  st = NEW(g, rank * rank, "A M A^T");
  if (st == OK) st = NEW(values, rank, "A M A^T");
  if (st == OK) st = NEW(turn, rank * rank, "A M A^T");
  if (st == OK) st = NEW(turned, rank * s.width, "rows of Z");
  if (st == OK) st = mixed_gemm(true, rank, m, s.columns, 1, q->a, m, q->h + s.begin * m, m, false, z + s.begin, m);
  if (st == OK) {
    for (int r = 0; r < rank; r++)
      for (int64_t j = s.begin; j < s.begin + s.columns; j++) z[r * m + j] += q->ridge * q->a[r * m + j];
    strips_products(&s, z, q->a, parts);
  }
  TRY(strips_meet(q->t, st));
  if (!strips_sum(&s, parts, g)) st = fail(E_NUMERICS, "%s: deflated Gram: A M A^T, expected finite numbers, found NaN or Inf", q->where);
  if (st == OK) st = deflated_directions(q, g, values, turn, kept);
  if (st == OK && *kept) strips_turn(&s, *kept, turn, z, z, turned);
  TRY(strips_meet(q->t, st));
done:
  FREE(turned);
  FREE(turn);
  FREE(values);
  FREE(g);
  return st;
}

status deflate_gram(const deflate_request *q, const double *work, int kept, float *p) {
  status st = OK;
  double *zz = NULL;
  int size = tile_size(q->m);
  TRY(agree(q->t->comm, NEW(zz, size * size, "tile of Z^T Z")));
  subtract(q, kept, work, zz, p);
  team_barrier(q->t);
done:
  FREE(zz);
  return st;
}

uint64_t deflate_shared(int64_t m, int rank) { return sizeof(double) * ((uint64_t)rank * (uint64_t)m + strips_parts(rank, m)); }

uint64_t deflate_bytes(int64_t m, int rank) {
  uint64_t size = (uint64_t)tile_size(m);
  return strips_bytes(rank, m) + sizeof(double) * size * size;
}

double deflate_flops(int64_t m, int rank) {
  double r = rank, d = (double)m;
  return 2 * r * d * d + 4 * r * r * d;
}

double deflate_gram_flops(int64_t m, int rank) { return (double)rank * (double)m * (double)m; }
