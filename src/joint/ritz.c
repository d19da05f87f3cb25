#include "joint/ritz.h"

#include <math.h>
#include <string.h>

#include "adapter/mixed.h"
#include "base/blas.h"
#include "base/memory.h"
#include "dist/agree.h"
#include "joint/strips.h"

enum { PASSES = 8 };

/* Shared: y and z (k, n), x and its product with M (k, m), and the small matrices that ranks leave to each other, those of orthonormalising twice: one is read while the
 * next is written. Private: the rest. */
typedef struct space {
  const ritz_request *q;
  strips out, in; /* of rows of length n and m */
  int k;
  double *y, *z, *x, *xm, *parts[2], *projected;
  double *small, *turn, *values, *scale, *work;
  bool *refilled; /* [k] rows that vanished */
} space;

static double random_entry(uint64_t i) { /* splitmix64, uniform in (-1, 1) */
  uint64_t z = i * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return (double)((z ^ (z >> 31)) >> 11) * 0x1p-52 - 1;
}

/* small = x x^T -> turn, whose rows make x orthonormal up to eps cond(x)^2, by Cholesky (Cholesky-QR), or by eigenvectors where rows depend on each
 * other: what vanishes is refilled. *done: x was so near to orthonormal that turn x is so to rounding. */
static status orthonormal_turn(space *s, bool *done) {
  enum { EIGEN, CHOLESKY };
  status st = OK;
  int k = s->k, way = CHOLESKY;
  double *c = s->small, far = 0;
  for (int i = 0; i < k; i++) {
    double square = c[i * k + i];
    s->refilled[i] = false;
    s->scale[i] = square > 1e-280 ? 1 / sqrt(square) : 0;
    if (s->scale[i] == 0) way = EIGEN;
  }
  for (int i = 0; i < k; i++) {
    double others = 0;
    for (int j = 0; j < k; j++) {
      c[i * k + j] *= s->scale[i] * s->scale[j];
      if (j != i) others += fabs(c[i * k + j]);
    }
    far = fmax(far, others);
  }
  *done = way == CHOLESKY && far < 0.9; /* Gershgorin: no eigenvalue below 0.1 */
  memset(s->turn, 0, (size_t)k * (size_t)k * sizeof *s->turn);
  if (way == CHOLESKY) {
    double *l = s->turn + (size_t)k * (size_t)k;
    memcpy(l, c, (size_t)k * (size_t)k * sizeof *l);
    if (dcholesky_column(k, l, k) >= 0) way = EIGEN;
    for (int i = 0; i < k && way == CHOLESKY; i++)
      if (l[i * k + i] < 1e-4) way = EIGEN;
    for (int i = 0; i < k; i++) s->turn[i * k + i] = s->scale[i];
    if (way == CHOLESKY) dtrsm(false, true, false, k, k, l, k, s->turn, k);
  }
  if (way == EIGEN) {
    TRY(deigen(s->q->where, k, c, k, s->values));
    for (int i = 0; i < k; i++) {
      s->refilled[i] = !(s->values[i] > 1e-12);
      for (int j = 0; j < k; j++) s->turn[i * k + j] = s->refilled[i] ? 0 : c[i * k + j] * s->scale[j] / sqrt(s->values[i]);
    }
  }
done:
  return st;
}

static status expect_finite(const space *s, bool yes) {
  return yes ? OK : fail(E_NUMERICS, "%s: Ritz vectors: expected finite numbers, found NaN or Inf", s->q->where);
}

/* Collective. z (k, n), whose products with itself are in parts[0], -> orthonormal rows with the same span, every rank's part seen by all on return.
 * st: how my rank fared since the last meeting. */
static status orthonormalise(space *s, double *z, status st) {
  bool done = false;
  for (int pass = 0; pass < PASSES && !done; pass++) {
    if (st == OK) st = expect_finite(s, strips_sum(&s->out, s->parts[pass % 2], s->small));
    if (st == OK) st = orthonormal_turn(s, &done);
    if (st == OK) {
      strips_turn(&s->out, s->k, s->turn, z, z, s->work);
      for (int i = 0; i < s->k; i++)
        for (int64_t j = s->out.begin; s->refilled[i] && j < s->out.begin + s->out.columns; j++)
          z[i * s->q->n + j] = random_entry((uint64_t)((pass * s->k + i) * s->q->n + j + 1));
      if (!done) strips_products(&s->out, z, z, s->parts[(pass + 1) % 2]);
    }
    TRY(strips_meet(s->q->t, st));
  }
  if (!done) st = fail(E_NUMERICS, "%s: Ritz vectors: %d rows of %lld do not become orthonormal", s->q->where, s->k, (long long)s->q->n);
done:
  return st;
}

/* Collective. x = y E, z = (x M) E^T; z's products with itself are left in parts[0], those with y in projected. */
static status apply(space *s) {
  status st = OK;
  const ritz_request *q = s->q;
  int64_t n = q->n, m = q->m;
  TRY(strips_meet(q->t, mixed_gemm(false, s->k, n, s->in.columns, 1, s->y, n, q->e + s->in.begin, m, false, s->x + s->in.begin, m)));
  st = mixed_gemm(true, s->k, m, s->in.columns, 1, s->x, m, q->h + s->in.begin * m, m, false, s->xm + s->in.begin, m);
  for (int i = 0; i < s->k; i++)
    for (int64_t j = s->in.begin; j < s->in.begin + s->in.columns; j++) s->xm[i * m + j] += q->ridge * s->x[i * m + j];
  TRY(strips_meet(q->t, st));
  st = mixed_gemm(true, s->k, m, s->out.columns, 1, s->xm, m, q->e + s->out.begin * m, m, false, s->z + s->out.begin, n);
  if (st == OK) {
    strips_products(&s->out, s->z, s->z, s->parts[0]);
    strips_products(&s->out, s->z, s->y, s->projected);
  }
  TRY(strips_meet(q->t, st));
done:
  return st;
}

/* Collective. The same in float, without projected: the next basis need not be more than near. y, x and x M are rounded to where z, x and x M
 * lie. */
static status apply_in_float(space *s) {
  status st = OK;
  const ritz_request *q = s->q;
  float *y = (float *)(void *)s->z, *x = (float *)(void *)s->x, *xm = (float *)(void *)s->xm, ridge = (float)q->ridge;
  for (int i = 0; i < s->k; i++)
    for (int64_t j = s->out.begin; j < s->out.begin + s->out.columns; j++) y[i * q->n + j] = (float)s->y[i * q->n + j];
  TRY(strips_meet(q->t, OK));
  strips_times(&s->in, false, (int)q->n, y, q->e, x, NULL, NULL);
  TRY(strips_meet(q->t, OK));
  strips_times(&s->in, true, (int)q->m, x, q->h, xm, NULL, NULL);
  for (int i = 0; i < s->k; i++)
    for (int64_t j = s->in.begin; j < s->in.begin + s->in.columns; j++) xm[i * q->m + j] += ridge * x[i * q->m + j];
  TRY(strips_meet(q->t, OK));
  strips_times(&s->out, true, (int)q->m, xm, q->e, NULL, s->z, (float *)(void *)s->work);
  strips_products(&s->out, s->z, s->z, s->parts[0]);
  TRY(strips_meet(q->t, OK));
done:
  return st;
}

/* Rayleigh-Ritz in y: my parts of the vectors in place of y's first rows, and of vectors E in place of x's. */
static status rayleigh_ritz(space *s, double *values, double *loss) {
  status st = OK;
  int k = s->k, rank = s->q->rank;
  double sum = 0;
  TRY(expect_finite(s, strips_sum(&s->out, s->projected, s->small)));
  TRY(deigen(s->q->where, k, s->small, k, s->values));
  for (int i = 0; i < rank; i++) {
    sum += values[i] = s->values[k - 1 - i];
    memcpy(s->turn + (size_t)i * (size_t)k, s->small + (size_t)(k - 1 - i) * (size_t)k, (size_t)k * sizeof *s->turn);
  }
  *loss = fmax(s->q->trace - sum, 0);
  strips_turn(&s->out, rank, s->turn, s->y, s->y, s->work);
  strips_turn(&s->in, rank, s->turn, s->x, s->x, s->work);
done:
  return st;
}

static status check_request(const ritz_request *q) {
  if (q->n < 1 || q->m < 1 || q->n > INT32_MAX || q->m > INT32_MAX || q->rank < 1 || q->rank > q->n || q->rank > q->m || q->steps < 1)
    return fail(E_INTERNAL, "%s: Ritz vectors: expected rank from 1 to the smaller of %lld and %lld and steps from 1, found %d and %d",
                q->where, (long long)q->n, (long long)q->m, q->rank, q->steps);
  if (!isfinite(q->trace)) return fail(E_NUMERICS, "%s: Ritz vectors: expected a finite trace, found %g", q->where, q->trace);
  return OK;
}

static status space_new(space *s, double *work) {
  status st = OK;
  int64_t n = s->q->n, m = s->q->m, k = s->k;
  size_t square = (size_t)k * (size_t)k, parts = (size_t)strips_parts(s->k, n);
  s->y = work;
  s->z = s->y + k * n;
  s->x = s->z + k * n;
  s->xm = s->x + k * m;
  s->parts[0] = s->xm + k * m;
  s->parts[1] = s->parts[0] + parts;
  s->projected = s->parts[1] + parts;
  TRY(NEW(s->small, square, "Ritz matrix"));
  TRY(NEW(s->turn, 2 * square, "Ritz matrix"));
  TRY(NEW(s->values, k, "Ritz values"));
  TRY(NEW(s->scale, k, "Ritz values"));
  TRY(NEW(s->refilled, k, "Ritz values"));
  TRY(NEW(s->work, k * (s->out.width > s->in.width ? s->out.width : s->in.width), "Ritz strip"));
done:
  return st;
}

static void space_free(space *s) {
  FREE(s->small);
  FREE(s->turn);
  FREE(s->values);
  FREE(s->scale);
  FREE(s->refilled);
  FREE(s->work);
}

status ritz(const ritz_request *q, double *y, double *work, double *u, double *a, double *values, double *loss) {
  status st = OK;
  double arguments[] = {(double)q->n, (double)q->m, q->rank, q->steps, q->ridge, q->trace};
  space s = {.q = q, .k = ritz_columns(q->n, q->rank)};
  TRY(agree_same(q->t->comm, "Ritz vectors: arguments", arguments, sizeof arguments));
  TRY(check_request(q));
  s.out = strips_cut(q->t, s.k, q->n);
  s.in = strips_cut(q->t, s.k, q->m);
  st = space_new(&s, work);
  if (st == OK) {
    for (int i = 0; i < s.k; i++) memcpy(s.y + i * q->n + s.out.begin, y + i * q->n + s.out.begin, (size_t)s.out.columns * sizeof *y);
    strips_products(&s.out, s.y, s.y, s.parts[0]);
  }
  TRY(strips_meet(q->t, st));
  TRY(orthonormalise(&s, s.y, OK));
  for (int step = 1; step <= q->steps; step++) {
    if (step > 1) { /* the image is the next basis */
      double *image = s.z;
      s.z = s.y;
      s.y = image;
    }
    bool last = step == q->steps;
    TRY(last ? apply(&s) : apply_in_float(&s));
    TRY(orthonormalise(&s, s.z, last ? rayleigh_ritz(&s, values, loss) : OK));
  }
  memcpy(y, s.z, (size_t)s.k * (size_t)q->n * sizeof *y);
  memcpy(u, s.y, (size_t)q->rank * (size_t)q->n * sizeof *u);
  memcpy(a, s.x, (size_t)q->rank * (size_t)q->m * sizeof *a);
  team_barrier(q->t); /* work is the caller's again */
done:
  space_free(&s);
  return st;
}

uint64_t ritz_shared(int64_t n, int64_t m, int rank) {
  int k = ritz_columns(n, rank);
  return sizeof(double) * ((uint64_t)k * 2 * (uint64_t)(n + m) + 3 * strips_parts(k, n));
}

uint64_t ritz_bytes(int64_t n, int64_t m, int rank) { return strips_bytes(ritz_columns(n, rank), n > m ? n : m); }

double ritz_flops(int64_t n, int64_t m, int rank, int steps) {
  double k = ritz_columns(n, rank), d = (double)n;
  return steps * (2 * k * (double)m * (2 * d + (double)m) + 12 * k * k * d) + 2 * rank * k * (d + (double)m);
}
