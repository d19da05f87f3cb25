#include "quant/descent.h"

#include <math.h>
#include <string.h>

#include "base/blas.h"
#include "base/hot.h"
#include "base/memory.h"
#include "quant/recursion.h"

/* Rows that go through all passes together, and the part of P that meets them. */
typedef struct slab {
  int first, rows;     /* of the request */
  int chunk, ld;       /* rows of one product, row stride */
  double *d;           /* (width + QUAD, ld) (W - Q) P; column j is row j of this array */
  double *e;           /* (BLOCK, ld) what is added to W - Q in the current block */
  double *p;           /* (BLOCK, width) of P */
  float *scale, *zero; /* (groups, ld) */
} slab;

static int padded(const slab *b) { return recursion_padded(b->rows, b->chunk); }

static HOT void widen(int64_t n, const float *restrict from, double *restrict to) {
  for (int64_t i = 0; i < n; i++) to[i] = from[i];
}

static void read_rows_of_p(const descent_request *q, int first, int columns, double *p) {
  widen((int64_t)columns * q->width, q->h + (int64_t)first * q->width, p);
  for (int j = 0; j < columns; j++) p[(int64_t)j * q->width + first + j] += q->ridge;
}

static void name_columns(const descent_request *q, int first, int columns, panel *p) {
  int size = q->width / grid_groups(&q->rule, q->width);
  for (int j = 0; j < columns; j++) {
    p->column[j] = first + j;
    p->group[j] = (first + j) / size;
    p->top[j] = (1 << group_bits(&q->rule, p->group[j])) - 1;
    p->square[j] = 0;
  }
}

/* A column that stays has no step: the grid value nearest to its own is its own. */
static void read_panel(const descent_request *q, const double *rows_of_p, double least, int first, int columns, panel *p) {
  for (int j = 0; j < columns; j++) {
    double diagonal = rows_of_p[(int64_t)j * q->width + first + j];
    bool stays = diagonal <= least || (q->dead && q->dead[first + j]);
    p->inverse[j] = stays ? 0 : 1 / diagonal;
  }
  for (int i = 0; i < columns; i++)
    for (int j = i + 1; j < columns; j++) p->m[j / QUAD][i][j % QUAD] = rows_of_p[(int64_t)i * q->width + first + j];
}

static HOT void tile_values(int columns, const panel *restrict p, const float *restrict scale, const float *restrict zero, int ld,
                            tile *restrict t) {
  for (int j = 0; j < columns; j++) {
    const float *s = scale + (int64_t)p->group[j] * ld, *z = zero + (int64_t)p->group[j] * ld;
    for (int r = 0; r < TILE; r++) t->w[j][r] = (float)((double)s[r] * ((double)t->code[j][r] - (double)z[r]));
  }
}

/* Codes and values of a tile from row `row` of the slab on; padding has code 0, whose value is 0. */
static void read_tile(const slab *b, const panel *p, int width, int columns, int row, int rows, const uint8_t *codes, tile *t) {
  if (rows < TILE) memset(t->code, 0, sizeof t->code);
  for (int some = 0; some < columns; some += PART) { /* few enough lines of the tile to stay in the first cache */
    int end = some + PART < columns ? some + PART : columns;
    for (int r = 0; r < rows; r++) {
      const uint8_t *from = codes + (int64_t)(b->first + row + r) * width + p->column[0];
      for (int j = some; j < end; j++) t->code[j][r] = from[j];
    }
  }
  tile_values(columns, p, b->scale + row, b->zero + row, b->ld, t);
}

static void write_codes(const slab *b, const panel *p, int width, int columns, int row, int rows, const tile *t, uint8_t *codes) {
  for (int r = 0; r < rows; r++) {
    uint8_t *to = codes + (int64_t)(b->first + row + r) * width + p->column[0];
    for (int j = 0; j < columns; j++) to[j] = t->code[j][r];
  }
}

/* t->e = W - Q; 0 in padding. */
static void tile_errors(const descent_request *q, const slab *b, const panel *p, int columns, int row, int rows, tile *t) {
  if (rows < TILE) memset(t->e, 0, sizeof t->e);
  for (int r = 0; r < rows; r++) {
    const float *w = q->w + (b->first + row + r) * q->ldw + p->column[0];
    for (int j = 0; j < columns; j++) t->e[j][r] = (double)w[j] - (double)t->w[j][r];
  }
}

static void write_errors(const slab *b, int columns, int row, const tile *t) {
  for (int j = 0; j < columns; j++) memcpy(b->e + (int64_t)j * b->ld + row, t->e[j], sizeof t->e[j]);
}

static bool any(const slab *b, int columns, int row) {
  for (int j = 0; j < columns; j++)
    for (int r = 0; r < b->chunk; r++)
      if (b->e[(int64_t)j * b->ld + row + r] != 0) return true;
  return false;
}

/* D += E P; whether there was anything to add. */
static bool add_errors(const descent_request *q, slab *b, int columns) {
  bool moved = false;
  for (int row = 0; row < b->rows; row += b->chunk) {
    if (!any(b, columns, row)) continue;
    dgemm(true, false, q->width, b->chunk, columns, 1, b->p, q->width, b->e + row, b->ld, 1, b->d + row, b->ld);
    moved = true;
  }
  return moved;
}

static int block_columns(const descent_request *q, int first) { return q->width - first < BLOCK ? q->width - first : BLOCK; }
static int tile_rows(const slab *b, int row) { return b->rows - row < TILE ? b->rows - row : TILE; }

/* D of the codes as they are. */
static void start(const descent_request *q, slab *b, panel *p, tile *t, const uint8_t *codes) {
  memset(b->d, 0, (size_t)q->width * (size_t)b->ld * sizeof *b->d);
  memset(b->e, 0, BLOCK * (size_t)b->ld * sizeof *b->e);
  for (int first = 0; first < q->width; first += BLOCK) {
    int columns = block_columns(q, first);
    read_rows_of_p(q, first, columns, b->p);
    name_columns(q, first, columns, p);
    for (int row = 0; row < b->rows; row += TILE) {
      int rows = tile_rows(b, row);
      read_tile(b, p, q->width, columns, row, rows, codes, t);
      tile_errors(q, b, p, columns, row, rows, t);
      write_errors(b, columns, row, t);
    }
    add_errors(q, b, columns);
  }
}

/* One pass; whether a code moved. */
static bool descend(const descent_request *q, slab *b, double least, panel *p, tile *t, uint8_t *codes) {
  bool moved = false;
  double none[TILE] = {0};
  for (int first = 0; first < q->width; first += BLOCK) {
    int columns = block_columns(q, first);
    read_rows_of_p(q, first, columns, b->p);
    name_columns(q, first, columns, p);
    read_panel(q, b->p, least, first, columns, p);
    for (int row = 0; row < b->rows; row += TILE) {
      int rows = tile_rows(b, row);
      read_tile(b, p, q->width, columns, row, rows, codes, t);
      tile_block(columns, q->rule.real_zero, p, b->d + (int64_t)first * b->ld + row, b->scale + row, b->zero + row, b->ld, t, none);
      write_errors(b, columns, row, t);
      write_codes(b, p, q->width, columns, row, rows, t, codes);
    }
    moved |= add_errors(q, b, columns);
  }
  return moved;
}

/* loss[padded] = f of each row, from D. */
static void measure(const descent_request *q, const slab *b, panel *p, tile *t, const uint8_t *codes, double *loss) {
  memset(loss, 0, (size_t)padded(b) * sizeof *loss);
  for (int first = 0; first < q->width; first += BLOCK) {
    int columns = block_columns(q, first);
    name_columns(q, first, columns, p);
    for (int row = 0; row < b->rows; row += TILE) {
      int rows = tile_rows(b, row);
      read_tile(b, p, q->width, columns, row, rows, codes, t);
      tile_errors(q, b, p, columns, row, rows, t);
      for (int j = 0; j < columns; j++)
        for (int r = 0; r < rows; r++) loss[row + r] += t->e[j][r] * b->d[(int64_t)(first + j) * b->ld + row + r];
    }
  }
}

static status add_losses(const slab *b, const double *loss, double *sum) {
  for (int r = 0; r < b->rows; r++) {
    if (!isfinite(loss[r]))
      return fail(E_NUMERICS, "descent: row %d, expected finite weights and Gram, found a loss of %g", b->first + r, loss[r]);
    *sum += loss[r];
  }
  return OK;
}

static double least_diagonal(const descent_request *q) {
  double sum = 0;
  for (int64_t j = 0; j < q->width; j++) sum += (double)q->h[j * q->width + j] + q->ridge;
  return 1e-12 * sum / q->width;
}

static status slab_new(const descent_request *q, slab *b) {
  status st = OK;
  int groups = grid_groups(&q->rule, q->width);
  TRY(NEW(b->d, ((int64_t)q->width + QUAD) * b->ld, "descent: (W - Q) P"));
  TRY(NEW(b->e, (int64_t)BLOCK * b->ld, "descent: steps of a block"));
  TRY(NEW(b->p, (int64_t)BLOCK * q->width, "descent: rows of P"));
  TRY(NEW(b->scale, (int64_t)groups * b->ld, "descent: scales"));
  TRY(NEW(b->zero, (int64_t)groups * b->ld, "descent: zeros"));
done:
  return st;
}

static void slab_free(slab *b) { FREE(b->d), FREE(b->e), FREE(b->p), FREE(b->scale), FREE(b->zero); }

int descent_slab(int64_t width) { return recursion_rows(width); }

status descent(const descent_request *q, uint8_t *codes, double *losses) {
  status st = OK;
  int groups = grid_groups(&q->rule, q->width), most = q->rows < PASS ? q->rows : PASS;
  slab b = {.rows = most, .chunk = descent_slab(q->width)};
  panel *p = NULL;
  tile *t = NULL;
  double *loss = NULL, *sums = NULL, least = least_diagonal(q);
  b.ld = padded(&b) + SKEW;
  TRY(slab_new(q, &b));
  TRY(NEW(p, 1, "descent: block of P"));
  TRY(NEW(t, 1, "descent: tile"));
  TRY(NEW(loss, b.ld, "descent: losses of rows"));
  TRY(NEW(sums, q->passes + 1, "descent: losses of passes"));
  for (b.first = 0; b.first < q->rows; b.first += most) {
    b.rows = q->rows - b.first < most ? q->rows - b.first : most;
    for (int g = 0; g < groups; g++)
      group_read(&q->rule, b.rows, padded(&b), grid_from(q->grid, (int64_t)b.first * groups + g), groups, b.scale + (int64_t)g * b.ld,
                 b.zero + (int64_t)g * b.ld);
    start(q, &b, p, t, codes);
    bool moves = true;
    for (int k = 0; k <= q->passes; k++) {
      if (k > 0 && moves) moves = descend(q, &b, least, p, t, codes);
      if (moves) measure(q, &b, p, t, codes, loss);
      TRY(add_losses(&b, loss, sums + k));
    }
  }
  if (losses) memcpy(losses, sums, ((size_t)q->passes + 1) * sizeof *losses);
done:
  slab_free(&b);
  FREE(p), FREE(t), FREE(loss), FREE(sums);
  return st;
}

double descent_flops(int64_t rows, int64_t width, int passes) { return 2.0 * (double)rows * (double)width * (double)width * (passes + 1); }

uint64_t descent_bytes(const grid_rule *r, int64_t width) {
  uint64_t ld = PASS + SKEW, m = (uint64_t)width, groups = (uint64_t)grid_groups(r, (int)width);
  return ld * (8 * (m + QUAD + BLOCK + 1) + 8 * groups) + 8 * BLOCK * m + sizeof(panel) + sizeof(tile);
}
