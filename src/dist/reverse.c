/* Reverse Cholesky in shared memory, tile by tile: the same bits on any number of ranks.
 *
 * Right-looking, from the last block column k to the first: factor U_kk (rank 0), X = A_:k U_kk^-T (strips of rows), A -= X X^T on the
 * upper triangle that is left (pieces of block rows). Which BLAS calls are made, with which shapes, follows from n alone; who makes
 * them is decided as the ranks come (a ticket per phase), and cannot be seen in the result. The next diagonal block is updated and
 * factored first of all by rank 0, while the others update the rest. */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/blas.h"
#include "base/fault.h"
#include "base/hot.h"
#include "base/memory.h"
#include "dist/agree.h"
#include "dist/dlinalg.h"
#include "dist/probe.h"

enum { NB = 256, STRIP = 128, PIECE = 1024, FILL = 32 }; /* NB: below 256 summed over, BLIS leaves its fast path (1.7 times as long) */

/* Shared by the team. */
typedef struct ticket {
  _Alignas(64) atomic_int next;
} ticket;
typedef struct board {
  _Alignas(64) atomic_int failed_column; /* position + 1; 0: none */
  ticket tickets[];                      /* [0] filling, [1 + 2k] solving with block column k, [2 + 2k] updating after it */
} board;

typedef struct work {
  const team *t;
  int n, blocks;
  double *u, *block; /* block (NB, NB): the diagonal block with rows and columns reversed; private */
  board *b;
} work;

static double *at(const work *w, int i, int j) { return w->u + (size_t)i * (size_t)w->n + (size_t)j; }
static int take(ticket *k) { return atomic_fetch_add(&k->next, 1); }
static int smaller(int a, int b) { return a < b ? a : b; }

/* The matrix to be factored: (h + ridge I)[order, order], dead columns with 1 on the diagonal. */
typedef struct source {
  int n;
  const float *h;
  double ridge;
  const int32_t *order;
} source;

static int source_column(const source *s, int position) { return s->order ? s->order[position] : position; }
static double source_diagonal(const source *s, int position) {
  size_t c = (size_t)source_column(s, position);
  double v = (double)s->h[c * (size_t)s->n + c];
  return (v == 0 ? 1 : v) + s->ridge;
}

HOT static void widen(double *restrict out, const float *restrict in, int n) {
  for (int j = 0; j < n; j++) out[j] = (double)in[j];
}

static void gather(double *restrict out, const float *restrict in, const int32_t *restrict order, int n) {
  for (int j = 0; j < n; j++) out[j] = (double)in[order[j]];
}

static void fill(const work *w, const source *s) {
  for (int first; (first = take(&w->b->tickets[0]) * FILL) < w->n;)
    for (int i = first; i < smaller(first + FILL, w->n); i++) {
      const float *row = s->h + (size_t)source_column(s, i) * (size_t)s->n;
      memset(at(w, i, 0), 0, (size_t)i * sizeof(double));
      if (s->order)
        gather(at(w, i, i), row, s->order + i, w->n - i);
      else
        widen(at(w, i, i), row + i, w->n - i);
      *at(w, i, i) = source_diagonal(s, i);
    }
}

/* U_kk U_kk^T = A_kk: LAPACK's lower factor of the reversed block. */
static void factor_diagonal(const work *w, int k) {
  int first = k * NB, m = smaller(NB, w->n - first), last = m - 1;
  double *r = w->block;
  for (int i = 0; i < m; i++)
    for (int j = 0; j <= i; j++) r[i * m + j] = *at(w, first + last - i, first + last - j);
  int column = fault_here() ? 0 : dcholesky_column(m, r, m);
  if (column >= 0) {
    atomic_store(&w->b->failed_column, first + last - column + 1);
    return;
  }
  for (int i = 0; i < m; i++)
    for (int j = 0; j < m; j++) *at(w, first + i, first + j) = r[(last - i) * m + last - j];
}

static void solve(const work *w, int k) {
  int first = k * NB, width = smaller(NB, w->n - first);
  for (int row; (row = take(&w->b->tickets[1 + 2 * k]) * STRIP) < first;)
    dtrsm(true, false, true, smaller(STRIP, first - row), width, at(w, first, first), w->n, at(w, row, first), w->n);
}

/* The block row that starts at `row` is cut into pieces of columns from its diagonal block on. What the first piece leaves below the diagonal
 * is cleared when the block is factored. */
static void update_piece(const work *w, int k, int row, int col, int cols) {
  int first = k * NB, width = smaller(NB, w->n - first);
  dgemm(false, true, NB, cols, width, -1, at(w, row, first), w->n, at(w, col, first), w->n, 1, at(w, row, col), w->n);
}

static void update(const work *w, int k) {
  int first = k * NB, seen = 0;
  if (w->t->rank == 0) {
    update_piece(w, k, first - NB, first - NB, NB);
    factor_diagonal(w, k - 1);
  }
  int mine = take(&w->b->tickets[2 + 2 * k]);
  for (int row = 0; row < first - NB; row += NB)
    for (int col = row; col < first; col += PIECE)
      if (seen++ == mine) {
        update_piece(w, k, row, col, smaller(PIECE, first - col));
        mine = take(&w->b->tickets[2 + 2 * k]);
      }
}

/* Collective over the team; false: board.failed_column says where. */
static bool factor(const work *w) {
  if (w->t->rank == 0) factor_diagonal(w, w->blocks - 1);
  team_barrier(w->t);
  for (int k = w->blocks - 1; k > 0 && atomic_load(&w->b->failed_column) == 0; k--) {
    solve(w, k);
    team_barrier(w->t);
    update(w, k);
    team_barrier(w->t);
  }
  return atomic_load(&w->b->failed_column) == 0;
}

/* ---- The residual --------------------------------------------------------------------------------------------------------------- */

/* Collective. r = U U^T x - A x for a vector of signs; rounding leaves |r_i| <= c n eps d_i sum_j d_j with d = sqrt(diag A), whatever the
 * condition (Higham, Accuracy and Stability, theorem 10.3: |A - U U^T| <= g |U| |U|^T). Not more than that is allowed. */
static status check(const char *where, const work *w, const source *s) {
  status st = OK;
  int n = w->n;
  double *x = NULL, sum = 0, worst = 0, all;
  const double bound = 4 * (n + 10.0) * 0x1p-53;
  TRY(agree(w->t->comm, NEW(x, 2 * (size_t)n, "Cholesky residual")));
  double *y = x + n; /* x by columns of h; y = U^T signs */
  for (int i = 0; i < n; i++) {
    x[source_column(s, i)] = probe_sign(i);
    sum += sqrt(source_diagonal(s, i));
  }
  for (int i = w->t->rank; i < n; i += w->t->size) probe_add(y + i, probe_sign(i), at(w, i, i), n - i);
  MPI_Allreduce(MPI_IN_PLACE, y, n, MPI_DOUBLE, MPI_SUM, w->t->comm);
  for (int i = w->t->rank; i < n; i += w->t->size) {
    size_t c = (size_t)source_column(s, i);
    double image = probe_dot_float(s->h + c * (size_t)n, x, n) + (source_diagonal(s, i) - (double)s->h[c * (size_t)n + c]) * probe_sign(i);
    double error = fabs(probe_dot(at(w, i, i), y + i, n - i) - image) / (sqrt(source_diagonal(s, i)) * sum);
    if (!(error <= worst)) worst = isnan(error) ? INFINITY : error;
  }
  MPI_Allreduce(&worst, &all, 1, MPI_DOUBLE, MPI_MAX, w->t->comm);
  if (!(all <= bound))
    st = fail(E_NUMERICS, "%s: Cholesky factor of order %d: expected a residual below %.1e, found %.1e", where, n, bound, all);
  st = agree(w->t->comm, st);
done:
  FREE(x);
  return st;
}

status reverse_cholesky(const char *where, const team *t, int64_t n, const float *h, double ridge, const int32_t *order, double *u) {
  status st = OK;
  shared common = {0};
  work w = {.t = t, .n = (int)n, .blocks = (int)((n + NB - 1) / NB), .u = u};
  source s = {.n = (int)n, .h = h, .ridge = ridge, .order = order};
  double arguments[] = {(double)n, ridge, order != NULL};
  TRY(agree_same(t->comm, "reverse Cholesky: arguments", arguments, sizeof arguments));
  if (order) TRY(agree_same(t->comm, "reverse Cholesky: order", order, (size_t)n * sizeof *order));
  if (n < 1 || n > INT32_MAX)
    st = fail(E_INTERNAL, "%s: Cholesky: expected an order from 1 to %d, found %lld", where, INT32_MAX, (long long)n);
  TRY(agree(t->comm, st));
  TRY(agree(t->comm, NEW(w.block, NB * NB, "Cholesky block")));
  TRY(shared_new(t, sizeof(board) + (1 + 2 * (size_t)w.blocks) * sizeof(ticket), "Cholesky tickets", &common));
  w.b = common.base;
  fill(&w, &s);
  team_barrier(t);
  if (!factor(&w)) {
    st = fail(E_NUMERICS,
              "%s: Cholesky: expected a positive definite matrix of order %lld, found column %d dependent or not finite (ridge %.3g)",
              where, (long long)n, source_column(&s, atomic_load(&w.b->failed_column) - 1), ridge);
    TRY(agree(t->comm, st));
  }
  TRY(check(where, &w, &s));
done:
  shared_free(&common);
  FREE(w.block);
  return st;
}
