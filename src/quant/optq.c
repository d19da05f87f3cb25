#include "quant/optq.h"

#include <math.h>
#include <string.h>

#include "base/blas.h"
#include "base/half.h"
#include "base/hot.h"
#include "base/memory.h"
#include "quant/recursion.h"

typedef struct slab {
  int first, rows;     /* of the request */
  int chunk, ld;       /* rows of one product, row stride */
  double *s;           /* (width + QUAD, ld) feedback of finished blocks; column j is row j of this array */
  double *e;           /* (BLOCK, ld) errors of the current block */
  float *scale, *zero; /* (groups, ld) */
  float *current;      /* (rows, group) dynamic groups: what a grid is fitted to */
  double *update;      /* (group, TILE) */
  code_grid fitted;    /* [rows] of one group */
} slab;

/* An entry on the factor's diagonal, or above it. */
static double factor_at(const optq_request *q, int i, int j) {
  if (!q->diagonal) return q->u[(int64_t)i * q->width + j];
  return i == j ? q->diagonal[i] : q->u[(int64_t)j * q->width + i];
}

static status read_panel(const optq_request *q, int first, int columns, panel *p) {
  int size = q->width / grid_groups(&q->rule, q->width);
  for (int j = 0; j < columns; j++) {
    int c = q->order ? q->order[first + j] : first + j;
    double diagonal = factor_at(q, first + j, first + j);
    if (!(diagonal > 0 && diagonal <= 1e300))
      return fail(E_NUMERICS, "optq: factor, expected a positive diagonal, found %g at position %d of %d", diagonal, first + j, q->width);
    p->inverse[j] = 1 / diagonal;
    p->square[j] = q->dead && q->dead[c] ? 0 : diagonal * diagonal;
    p->column[j] = c;
    p->group[j] = c / size;
    p->top[j] = (1 << group_bits(&q->rule, c / size)) - 1;
  }
  for (int i = 0; i < columns; i++)
    for (int j = i + 1; j < columns; j++) p->m[j / QUAD][i][j % QUAD] = factor_at(q, first + i, first + j);
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

static int padded(const slab *b) { return recursion_padded(b->rows, b->chunk); }

static void read_group(const grid_rule *r, slab *b, int g, code_grid from, int stride) {
  group_read(r, b->rows, padded(b), from, stride, b->scale + (int64_t)g * b->ld, b->zero + (int64_t)g * b->ld);
}

/* x (n, TILE) <- x T^-1 with T (n, n) upper, row stride ldt: one unknown after the other leaves the sums of those to come. */
static HOT void solve_tile(int n, const double *restrict t, int64_t ldt, double *restrict x) {
  for (int i = 0; i < n; i++) {
    lanes *xi = (lanes *)(x + (int64_t)i * TILE), inverse = 1 / (t[i * ldt + i] + (lanes){0});
    for (int l = 0; l < TILE / LANES; l++) xi[l] *= inverse;
    for (int k = i + 1; k < n; k++) {
      lanes *xk = (lanes *)(x + (int64_t)k * TILE);
      for (int l = 0; l < TILE / LANES; l++) xk[l] -= xi[l] * t[i * ldt + k];
    }
  }
}

/* current = the weights of group g as the columns before have left them. */
static void current_weights(const optq_request *q, slab *b, int g, int size) {
  int64_t first = (int64_t)g * size;
  for (int row = 0; row < b->rows; row += TILE) {
    int rows = b->rows - row < TILE ? b->rows - row : TILE;
    for (int k = 0; k < size; k++) memcpy(b->update + (int64_t)k * TILE, b->s + (first + k) * b->ld + row, TILE * sizeof *b->update);
    if (g) solve_tile(size, q->u + first * q->width + first, q->width, b->update);
    for (int r = 0; r < rows; r++) {
      const float *w = q->w + (int64_t)(b->first + row + r) * q->ldw + first;
      float *to = b->current + (int64_t)(row + r) * size;
      for (int k = 0; k < size; k++) to[k] = q->dead && q->dead[first + k] ? 0 : (float)(w[k] + b->update[(int64_t)k * TILE + r]);
    }
  }
}

/* The grid of a dynamic group, whose feedback is complete. */
static status fit_group(const optq_request *q, slab *b, int g, int64_t *replaced) {
  status st = OK;
  int groups = grid_groups(&q->rule, q->width), size = q->width / groups;
  grid_rule one = q->rule;
  int64_t count;
  one.group = 0;
  one.bits = group_bits(&q->rule, g);
  one.widths = NULL;
  current_weights(q, b, g, size);
  TRY(grid_fit(&one, b->rows, size, b->current, size, q->weight ? q->weight + (int64_t)g * size : NULL, b->fitted, &count));
  *replaced += count;
  read_group(&one, b, g, b->fitted, 1);
  for (int r = 0; r < b->rows; r++) {
    int64_t at = (int64_t)(b->first + r) * groups + g;
    q->grid.scales[at] = b->fitted.scales[r];
    if (q->rule.real_zero)
      q->grid.real_zeros[at] = b->fitted.real_zeros[r];
    else
      q->grid.zeros[at] = b->fitted.zeros[r];
  }
done:
  return st;
}

/* All columns of one slab; loss by row. */
static status run_slab(const optq_request *q, slab *b, panel *p, tile *t, uint8_t *codes, double *loss, int64_t *replaced) {
  status st = OK;
  int groups = grid_groups(&q->rule, q->width), size = q->width / groups, columns;
  for (int g = 0; g < groups && !q->dynamic; g++) read_group(&q->rule, b, g, grid_from(q->grid, (int64_t)b->first * groups + g), groups);
  memset(b->s, 0, (size_t)q->width * (size_t)b->ld * sizeof *b->s);
  memset(b->e, 0, BLOCK * (size_t)b->ld * sizeof *b->e);
  memset(loss, 0, (size_t)padded(b) * sizeof *loss);
  for (int first = 0; first < q->width; first += columns) {
    int end = q->dynamic ? first - first % size + size : q->width;
    columns = end - first < BLOCK ? end - first : BLOCK;
    int right = first + columns;
    if (q->dynamic && first % size == 0) TRY(fit_group(q, b, first / size, replaced));
    TRY(read_panel(q, first, columns, p));
    for (int row = 0; row < b->rows; row += TILE) {
      int rows = b->rows - row < TILE ? b->rows - row : TILE;
      read_weights(q, p, columns, b->first + row, rows, t);
      tile_block(columns, q->rule.real_zero, p, b->s + (int64_t)first * b->ld + row, b->scale + row, b->zero + row, b->ld, t, loss + row);
      for (int j = 0; j < columns; j++) memcpy(b->e + (int64_t)j * b->ld + row, t->e[j], sizeof t->e[j]);
      write_codes(q, p, columns, b->first + row, rows, t, codes);
    }
    for (int row = 0; right < q->width && row < b->rows; row += b->chunk)
      dgemm(!q->diagonal, false, q->width - right, b->chunk, columns, 1,
            q->diagonal ? q->u + (int64_t)right * q->width + first : q->u + (int64_t)first * q->width + right, q->width, b->e + row, b->ld,
            1, b->s + (int64_t)right * b->ld + row, b->ld);
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

int optq_slab(int64_t width) { return recursion_rows(width); }

static status slab_new(const optq_request *q, slab *b) {
  status st = OK;
  int groups = grid_groups(&q->rule, q->width), size = q->width / groups;
  TRY(NEW(b->s, ((int64_t)q->width + QUAD) * b->ld, "optq: feedback"));
  TRY(NEW(b->e, (int64_t)BLOCK * b->ld, "optq: errors of a block"));
  TRY(NEW(b->scale, (int64_t)groups * b->ld, "optq: scales"));
  TRY(NEW(b->zero, (int64_t)groups * b->ld, "optq: zeros"));
  if (q->dynamic) {
    TRY(NEW(b->current, (int64_t)b->rows * size, "optq: current weights of a group"));
    TRY(NEW(b->update, (int64_t)size * TILE, "optq: updates of a group"));
    TRY(NEW(b->fitted.scales, b->rows, "optq: grids of a group"));
    TRY(NEW(b->fitted.zeros, b->rows, "optq: grids of a group"));
    TRY(NEW(b->fitted.real_zeros, b->rows, "optq: grids of a group"));
  }
done:
  return st;
}

static void slab_free(slab *b) {
  FREE(b->s), FREE(b->e), FREE(b->scale), FREE(b->zero), FREE(b->current), FREE(b->update);
  FREE(b->fitted.scales), FREE(b->fitted.zeros), FREE(b->fitted.real_zeros);
}

status optq(const optq_request *q, uint8_t *codes, double *loss) {
  status st = OK;
  int most = q->rows < PASS ? q->rows : PASS;
  slab b = {.rows = most, .chunk = optq_slab(q->width)};
  panel *p = NULL;
  tile *t = NULL;
  double *row_loss = NULL, sum = 0;
  int64_t replaced = 0;
  b.ld = padded(&b) + SKEW;
  if (q->dynamic && q->diagonal) TRY(fail(E_INTERNAL, "optq: dynamic groups, expected the factor in the upper triangle"));
  if (q->dynamic && q->order) TRY(fail(E_USAGE, "optq: dynamic groups, expected the natural order, found another"));
  TRY(slab_new(q, &b));
  TRY(NEW(p, 1, "optq: block of the factor"));
  TRY(NEW(t, 1, "optq: tile"));
  TRY(NEW(row_loss, b.ld, "optq: losses"));
  for (b.first = 0; b.first < q->rows; b.first += most) {
    b.rows = q->rows - b.first < most ? q->rows - b.first : most;
    TRY(run_slab(q, &b, p, t, codes, row_loss, &replaced));
    for (int r = 0; r < b.rows; r++) {
      if (!isfinite(row_loss[r]))
        TRY(fail(E_NUMERICS, "optq: row %d, expected finite weights and factor, found a loss of %g", b.first + r, row_loss[r]));
      sum += row_loss[r];
      if (q->row_loss) q->row_loss[b.first + r] = row_loss[r];
    }
  }
  if (q->dead && q->dead_rtn) round_dead(q, codes);
  if (loss) *loss = sum;
  if (q->replaced) *q->replaced = replaced;
done:
  slab_free(&b);
  FREE(p), FREE(t), FREE(row_loss);
  return st;
}

double optq_flops(int64_t rows, int64_t width) { return (double)rows * (double)width * (double)width; }

uint64_t optq_bytes(const grid_rule *r, int64_t width) {
  uint64_t ld = PASS + SKEW, groups = (uint64_t)grid_groups(r, (int)width);
  return ld * (8 * ((uint64_t)width + QUAD + BLOCK + 1) + 8 * groups) + sizeof(panel) + sizeof(tile);
}

uint64_t optq_dynamic_bytes(const grid_rule *r, int64_t width) {
  uint64_t size = (uint64_t)(r->group ? r->group : width);
  return PASS * (4 * size + 5) + 8 * size * TILE + grid_bytes(r, width);
}

void optq_act_order(int64_t m, const float *diagonal, int32_t *order, int32_t *buffer) {
  for (int32_t k = 0; k < m; k++) order[k] = k;
  for (int64_t width = 1; width < m; width *= 2) { /* merge sort: stable, and the same on every rank */
    for (int64_t a = 0; a < m; a += 2 * width) {
      int64_t b = a + width < m ? a + width : m, end = a + 2 * width < m ? a + 2 * width : m, i = a, j = b, at = a;
      while (i < b || j < end) {
        bool left = j >= end || (i < b && diagonal[order[i]] >= diagonal[order[j]]);
        buffer[at++] = left ? order[i++] : order[j++];
      }
    }
    memcpy(order, buffer, (size_t)m * sizeof *order);
  }
}
