#include "quant/optq.h"

#include <math.h>
#include <string.h>

#include "base/blas.h"
#include "base/half.h"
#include "base/hot.h"
#include "base/memory.h"

/* Everything is stored with the ROW index contiguous, so that the recursion over columns runs over rows in registers and the trailing
 * update is one dgemm without transposition. Rows are padded to whole tiles: there is no remainder loop whose rounding could differ,
 * and a row's arithmetic does not depend on its neighbours. The trailing update always has optq_slab rows (see the header). */
enum {
  BLOCK = 256, /* columns between two trailing updates: below about 200, BLIS leaves its fast path */
  PART = 32,   /* columns of a block between two updates inside a tile */
  QUAD = 4,    /* columns of such an update at a time */
  TILE = 32,   /* rows */
  PASS = 512,  /* rows at most that share one reading of u */
  SKEW = 8,    /* added to row strides that would be multiples of 4 KiB */
};

typedef double lanes __attribute__((vector_size(64), may_alias));

typedef struct slab {
  int first, rows;     /* of the request */
  int chunk, ld;       /* rows of one product, row stride */
  double *s;           /* (width + QUAD, ld) feedback of finished blocks; column j is row j of this array */
  double *e;           /* (BLOCK, ld) errors of the current block */
  float *scale, *zero; /* (groups, ld) */
} slab;

/* The diagonal block of u, in quads of columns. */
typedef struct panel {
  double u[BLOCK / QUAD][BLOCK][QUAD];  /* u[j / QUAD][i][j % QUAD] = U[j1 + i][j1 + j] */
  double inverse[BLOCK], square[BLOCK]; /* 1 / U_jj; U_jj^2 */
  double top[BLOCK];                    /* largest code */
  int column[BLOCK];                    /* original */
  int group[BLOCK];
} panel;

typedef struct tile {
  _Alignas(64) double e[BLOCK][TILE];
  _Alignas(64) double feedback[PART][TILE];
  _Alignas(64) float w[BLOCK][TILE];
  _Alignas(64) uint8_t code[BLOCK][TILE];
} tile;

/* feedback (QUAD, TILE) = s + the errors of columns 0 .. n - 1, for 16 rows: eight accumulators. */
static inline __attribute__((always_inline)) void add_quad(int n, const double (*restrict u)[QUAD], const double (*restrict error)[TILE],
                                                           const double *restrict s, int ld, double (*restrict feedback)[TILE]) {
  lanes a[QUAD][2];
  for (int j = 0; j < QUAD; j++) memcpy(a[j], s + (int64_t)j * ld, sizeof a[j]);
  for (int i = 0; i < n; i++) {
    const lanes *e = (const lanes *)error[i];
    for (int j = 0; j < QUAD; j++) {
      a[j][0] += e[0] * u[i][j];
      a[j][1] += e[1] * u[i][j];
    }
  }
  for (int j = 0; j < QUAD; j++) memcpy(feedback[j], a[j], sizeof a[j]);
}

/* f[TILE] += the errors of n columns of the same part; u walks one column of a quad. */
static inline __attribute__((always_inline)) void add_column(int n, const double *restrict u, const double (*restrict error)[TILE],
                                                             double *restrict f) {
  lanes *acc = (lanes *)f, a0 = acc[0], a1 = acc[1], a2 = acc[2], a3 = acc[3];
  for (int i = 0; i < n; i++) {
    const lanes *e = (const lanes *)error[i];
    double x = u[i * QUAD];
    a0 += e[0] * x;
    a1 += e[1] * x;
    a2 += e[2] * x;
    a3 += e[3] * x;
  }
  acc[0] = a0, acc[1] = a1, acc[2] = a2, acc[3] = a3;
}

/* One column of 32 rows: v -> code, error and loss. With real zeros the value is rounded to float, as it is loaded; with integer ones it is
 * a float already. */
static inline __attribute__((always_inline)) void round_column(bool real, const panel *restrict p, int j, const double *restrict f,
                                                               const float *restrict scale, const float *restrict zero, tile *restrict t,
                                                               double *restrict loss) {
  double inverse = p->inverse[j], square = p->square[j], top = p->top[j];
  for (int r = 0; r < TILE; r++) {
    double w = t->w[j][r], v = w + f[r] * inverse, step = scale[r], z = zero[r];
    double u = real ? rint(v / step + z) : rint(v / step) + z;
    u = u > 0 ? u : 0;
    u = u < top ? u : top;
    double q = step * (u - z);
    if (real) q = (float)q;
    t->code[j][r] = (uint8_t)(int)u;
    t->e[j][r] = w - q;
    loss[r] += (v - q) * (v - q) * square;
  }
}

/* The recursion for 32 rows through one block. s, scale, zero start at the tile's first row; loss[TILE] is added to. */
static HOT void tile_block(int columns, bool real, const panel *restrict p, const double *restrict s, const float *restrict scale,
                           const float *restrict zero, int ld, tile *restrict t, double *restrict loss) {
  for (int first = 0; first < columns; first += PART) {
    int end = first + PART < columns ? first + PART : columns;
    for (int j = first; j < end; j += QUAD)
      for (int half = 0; half < TILE; half += TILE / 2)
        add_quad(first, p->u[j / QUAD], (const double(*)[TILE])(t->e[0] + half), s + (int64_t)j * ld + half, ld,
                 (double(*)[TILE])(t->feedback[j - first] + half));
    for (int j = first; j < end; j++) {
      double *f = t->feedback[j - first];
      add_column(j - first, p->u[j / QUAD][first] + j % QUAD, (const double(*)[TILE])t->e[first], f);
      const float *sj = scale + (int64_t)p->group[j] * ld, *zj = zero + (int64_t)p->group[j] * ld;
      if (real)
        round_column(true, p, j, f, sj, zj, t, loss);
      else
        round_column(false, p, j, f, sj, zj, t, loss);
    }
  }
}

static status read_panel(const optq_request *q, int first, int columns, panel *p) {
  int size = q->width / grid_groups(&q->rule, q->width);
  for (int j = 0; j < columns; j++) {
    int c = q->order ? q->order[first + j] : first + j;
    double diagonal = q->u[(int64_t)(first + j) * q->width + first + j];
    if (!(diagonal > 0 && diagonal <= 1e300))
      return fail(E_NUMERICS, "optq: factor, expected a positive diagonal, found %g at position %d of %d", diagonal, first + j, q->width);
    p->inverse[j] = 1 / diagonal;
    p->square[j] = q->dead && q->dead[c] ? 0 : diagonal * diagonal;
    p->column[j] = c;
    p->group[j] = c / size;
    p->top[j] = (1 << group_bits(&q->rule, c / size)) - 1;
  }
  for (int i = 0; i < columns; i++)
    for (int j = i + 1; j < columns; j++) p->u[j / QUAD][i][j % QUAD] = q->u[(int64_t)(first + i) * q->width + first + j];
  return OK;
}

static void read_weights(const optq_request *q, const panel *p, int columns, int first, int rows, tile *t) {
  if (rows < TILE) memset(t->w, 0, sizeof t->w);
  for (int some = 0; some < columns; some += PART) { /* few enough lines of the tile to stay in the first cache */
    int end = some + PART < columns ? some + PART : columns;
    for (int r = 0; r < rows; r++) {
      const float *w = q->w + (int64_t)(first + r) * q->ldw;
      for (int j = some; j < end; j++) t->w[j][r] = w[p->column[j]];
    }
  }
  for (int j = 0; q->dead && j < columns; j++)
    if (q->dead[p->column[j]]) memset(t->w[j], 0, sizeof t->w[j]);
}

static void write_codes(const optq_request *q, const panel *p, int columns, int first, int rows, const tile *t, uint8_t *codes) {
  for (int r = 0; r < rows; r++) {
    uint8_t *c = codes + (int64_t)(first + r) * q->width;
    for (int j = 0; j < columns; j++) c[p->column[j]] = t->code[j][r];
  }
}

static int padded(const slab *b) { return (b->rows + b->chunk - 1) / b->chunk * b->chunk; }

/* Rows of padding get the grid of integers, on which the weight 0 has no error. */
static void read_grid(const optq_request *q, slab *b) {
  int groups = grid_groups(&q->rule, q->width);
  for (int r = 0; r < padded(b); r++) {
    int64_t at = (int64_t)(b->first + r) * groups;
    for (int g = 0; g < groups; g++) {
      b->scale[(int64_t)g * b->ld + r] = r < b->rows ? half_to_float(q->grid.scales[at + g]) : 1;
      b->zero[(int64_t)g * b->ld + r] = r < b->rows ? (float)grid_zero(&q->rule, q->grid, at + g) : 0;
    }
  }
}

/* All columns of one slab; loss by row. */
static status run_slab(const optq_request *q, slab *b, panel *p, tile *t, uint8_t *codes, double *loss) {
  status st = OK;
  read_grid(q, b);
  memset(b->s, 0, (size_t)q->width * (size_t)b->ld * sizeof *b->s);
  memset(b->e, 0, BLOCK * (size_t)b->ld * sizeof *b->e);
  memset(loss, 0, (size_t)padded(b) * sizeof *loss);
  for (int first = 0; first < q->width; first += BLOCK) {
    int columns = q->width - first < BLOCK ? q->width - first : BLOCK, right = first + columns;
    TRY(read_panel(q, first, columns, p));
    for (int row = 0; row < b->rows; row += TILE) {
      int rows = b->rows - row < TILE ? b->rows - row : TILE;
      read_weights(q, p, columns, b->first + row, rows, t);
      tile_block(columns, q->rule.real_zero, p, b->s + (int64_t)first * b->ld + row, b->scale + row, b->zero + row, b->ld, t, loss + row);
      for (int j = 0; j < columns; j++) memcpy(b->e + (int64_t)j * b->ld + row, t->e[j], sizeof t->e[j]);
      write_codes(q, p, columns, b->first + row, rows, t, codes);
    }
    for (int row = 0; right < q->width && row < b->rows; row += b->chunk)
      dgemm(true, false, q->width - right, b->chunk, columns, 1, q->u + (int64_t)first * q->width + right, q->width, b->e + row, b->ld, 1,
            b->s + (int64_t)right * b->ld + row, b->ld);
  }
done:
  return st;
}

static void round_dead(const optq_request *q, uint8_t *codes) {
  int groups = grid_groups(&q->rule, q->width), size = q->width / groups;
  for (int j = 0; j < q->width; j++) {
    int bits = group_bits(&q->rule, j / size);
    for (int i = 0; q->dead[j] && i < q->rows; i++) {
      int64_t at = (int64_t)i * groups + j / size;
      double scale = half_to_float(q->grid.scales[at]), zero = grid_zero(&q->rule, q->grid, at);
      codes[(int64_t)i * q->width + j] = (q->rule.real_zero ? grid_code_real : grid_code)(q->w[i * q->ldw + j], scale, zero, bits);
    }
  }
}

int optq_slab(int64_t width) { return width < 2048 ? 64 : 256; }

status optq(const optq_request *q, uint8_t *codes, double *loss) {
  status st = OK;
  int groups = grid_groups(&q->rule, q->width), most = q->rows < PASS ? q->rows : PASS;
  slab b = {.rows = most, .chunk = optq_slab(q->width)};
  panel *p = NULL;
  tile *t = NULL;
  double *row_loss = NULL, sum = 0;
  b.ld = padded(&b) + SKEW;
  TRY(NEW(b.s, ((int64_t)q->width + QUAD) * b.ld, "optq: feedback"));
  TRY(NEW(b.e, (int64_t)BLOCK * b.ld, "optq: errors of a block"));
  TRY(NEW(b.scale, (int64_t)groups * b.ld, "optq: scales"));
  TRY(NEW(b.zero, (int64_t)groups * b.ld, "optq: zeros"));
  TRY(NEW(p, 1, "optq: block of the factor"));
  TRY(NEW(t, 1, "optq: tile"));
  TRY(NEW(row_loss, b.ld, "optq: losses"));
  for (b.first = 0; b.first < q->rows; b.first += most) {
    b.rows = q->rows - b.first < most ? q->rows - b.first : most;
    TRY(run_slab(q, &b, p, t, codes, row_loss));
    for (int r = 0; r < b.rows; r++) {
      if (!isfinite(row_loss[r]))
        TRY(fail(E_NUMERICS, "optq: row %d, expected finite weights and factor, found a loss of %g", b.first + r, row_loss[r]));
      sum += row_loss[r];
    }
  }
  if (q->dead && q->dead_rtn) round_dead(q, codes);
  if (loss) *loss = sum;
done:
  FREE(b.s), FREE(b.e), FREE(b.scale), FREE(b.zero), FREE(p), FREE(t), FREE(row_loss);
  return st;
}

double optq_flops(int64_t rows, int64_t width) { return (double)rows * (double)width * (double)width; }

uint64_t optq_bytes(const grid_rule *r, int64_t width) {
  uint64_t ld = PASS + SKEW, groups = (uint64_t)grid_groups(r, (int)width);
  return ld * (8 * ((uint64_t)width + QUAD + BLOCK + 1) + 8 * groups) + sizeof(panel) + sizeof(tile);
}
