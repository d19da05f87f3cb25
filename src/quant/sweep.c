#include "quant/sweep.h"

#include <math.h>
#include <string.h>

#include "base/blas.h"
#include "base/hot.h"
#include "base/memory.h"
#include "quant/refit.h"

enum {
  PANEL = 256, /* columns of R at a time */
  PASS = 512,  /* rows at most that share one reading of P */
  SKEW = 16,   /* added to row strides that would be multiples of 4 KiB */
  TILE = REFIT_ROWS,
};

/* 32 rows of a group wider than a panel: its sums, its candidates. */
typedef struct wide_tile {
  refit_sums sums;
  refit_changes changes;
  float scale[TILE], zero[TILE], best_scale[TILE], best_zero[TILE];
  double least[TILE];
} wide_tile;

/* Such a group, of all rows. */
typedef struct wide_group {
  wide_tile *tiles;    /* [ld / TILE + 1] */
  float *k;            /* (group, ld) code - zero; R while there are candidates */
  float *d;            /* (group, ld) what the values of a candidate are more than its own */
  uint8_t *own, *best; /* (group, ld) codes before, of the best candidate */
} wide_group;

/* Rows that go through the round together, and a panel of columns. The row index is contiguous. */
typedef struct slab {
  int first, rows;       /* of the request */
  int chunk, ld;         /* rows of one product, row stride */
  float *e;              /* (width, ld) W - Q; column j is row j of this array */
  uint8_t *code;         /* (width, ld) */
  float *r;              /* (PANEL, ld) E P */
  float *d;              /* (PANEL, ld) what the current block took from E */
  float *scale, *zero;   /* (groups, ld) */
  double *before, *gain; /* [ld] f, and its change */
  wide_group wide;
} slab;

static int group_columns(const sweep_request *q) { return q->width / grid_groups(&q->rule, q->width); }
static int least_of(int a, int b) { return a < b ? a : b; }

/* Whole groups, or part of one. */
static int panel_columns(const sweep_request *q, int first) {
  int size = group_columns(q);
  return size <= PANEL ? least_of(PANEL / size * size, q->width - first) : least_of(PANEL, size - first % size);
}

/* One tile of rows and one block of columns. */
typedef struct work {
  refit_block block;
  refit_tile tile;
  _Alignas(64) float was[PANEL][TILE]; /* weights; codes before a step */
  double one[PANEL];                   /* of a group wider than a panel: 1 P_gg */
} work;

static HOT void widen(int columns, int ld, const uint8_t *restrict byte, float (*restrict code)[TILE]) {
  for (int j = 0; j < columns; j++)
    for (int r = 0; r < TILE; r++) code[j][r] = byte[(int64_t)j * ld + r];
}

static HOT void narrow(int columns, int ld, const float (*restrict code)[TILE], uint8_t *restrict byte) {
  for (int j = 0; j < columns; j++)
    for (int r = 0; r < TILE; r++) byte[(int64_t)j * ld + r] = (uint8_t)(int)code[j][r];
}

/* e = w - q of a tile. */
static HOT void tile_errors(int columns, int ld, const float (*restrict w)[TILE], const uint8_t *restrict code, const float *restrict scale,
                            const float *restrict zero, float *restrict e) {
  for (int j = 0; j < columns; j++) {
    for (int r = 0; r < TILE; r++) {
      int64_t at = (int64_t)j * ld + r;
      e[at] = (float)((double)w[j][r] - (double)scale[r] * ((double)code[at] - (double)zero[r]));
    }
  }
}

/* A tile of codes and errors of a slab, of part of a group; 0 in padding. Eight rows at a time: as many streams as a prefetcher follows. */
static void start_tile(const sweep_request *q, slab *b, int first, int columns, int row, const uint8_t *codes, work *m) {
  int64_t g = first / group_columns(q), at = (int64_t)first * b->ld + row;
  uint8_t *code = b->code + at;
  for (int some = 0; some < TILE; some += 8) {
    if (row + some + 8 <= b->rows) {
      const uint8_t *c = codes + (int64_t)(b->first + row + some) * q->width + first;
      const float *w = q->w + (b->first + row + some) * q->ldw + first;
      for (int j = 0; j < columns; j++) {
        for (int r = 0; r < 8; r++) code[(int64_t)j * b->ld + some + r] = c[(int64_t)r * q->width + j];
        for (int r = 0; r < 8; r++) m->was[j][some + r] = w[r * q->ldw + j];
      }
    } else {
      for (int j = 0; j < columns; j++) {
        for (int r = some; r < some + 8; r++) {
          int64_t from = b->first + row + r;
          bool there = row + r < b->rows;
          code[(int64_t)j * b->ld + r] = there ? codes[from * q->width + first + j] : 0;
          m->was[j][r] = there ? q->w[from * q->ldw + first + j] : 0;
        }
      }
    }
  }
  tile_errors(columns, b->ld, (const float(*)[TILE])m->was, code, b->scale + g * b->ld + row, b->zero + g * b->ld + row, b->e + at);
}

/* The slab's grid, and W - Q; 0 in padding. */
static void start(const sweep_request *q, slab *b, const uint8_t *codes, work *m) {
  int size = group_columns(q), groups = q->width / size, columns;
  memset(b->before, 0, (size_t)b->ld * sizeof *b->before);
  memset(b->gain, 0, (size_t)b->ld * sizeof *b->gain);
  for (int r = 0; r < b->ld; r++) {
    for (int g = 0; g < groups; g++) {
      int64_t at = (int64_t)(b->first + r) * groups + g;
      b->scale[(int64_t)g * b->ld + r] = r < b->rows ? half_to_float(q->grid.scales[at]) : 1;
      b->zero[(int64_t)g * b->ld + r] = r < b->rows ? (float)grid_zero(&q->rule, q->grid, at) : 0;
    }
  }
  for (int first = 0; first < q->width; first += columns) {
    columns = least_of(size, panel_columns(q, first));
    for (int row = 0; row < b->ld - SKEW; row += TILE) start_tile(q, b, first, columns, row, codes, m);
  }
}

static void finish(const sweep_request *q, const slab *b, uint8_t *codes) {
  int groups = grid_groups(&q->rule, q->width);
  for (int r = 0; r < b->rows; r++) {
    for (int g = 0; g < groups; g++) {
      int64_t at = (int64_t)(b->first + r) * groups + g, from = (int64_t)g * b->ld + r;
      q->grid.scales[at] = float_to_half(b->scale[from]);
      if (q->rule.real_zero)
        q->grid.real_zeros[at] = float_to_half(b->zero[from]);
      else
        q->grid.zeros[at] = (uint8_t)(int)b->zero[from];
    }
  }
  for (int first = 0; first < q->width; first += PANEL)
    for (int r = 0; r < b->rows; r++)
      for (int j = first; j < least_of(first + PANEL, q->width); j++)
        codes[(int64_t)(b->first + r) * q->width + j] = b->code[(int64_t)j * b->ld + r];
}

/* r (+)= E[:, from .. end) P[from .. end, first ..). */
static void add_product(const sweep_request *q, slab *b, int first, int columns, int from, int end, bool anew) {
  for (int row = 0; row < b->rows; row += b->chunk) {
    if (from < end)
      sgemm(false, false, columns, b->chunk, end - from, 1, q->p + (int64_t)first * q->width + from, q->width,
            b->e + (int64_t)from * b->ld + row, b->ld, anew ? 0 : 1, b->r + row, b->ld);
    else
      for (int j = 0; anew && j < columns; j++) memset(b->r + (int64_t)j * b->ld + row, 0, (size_t)b->chunk * sizeof *b->r);
  }
}

/* before += E r of a panel, by row. */
static HOT void add_dots(int columns, int rows, int ld, const float *restrict e, const float *restrict r, double *restrict before) {
  for (int j = 0; j < columns; j++)
    for (int i = 0; i < rows; i++) before[i] += (double)e[(int64_t)j * ld + i] * (double)r[(int64_t)j * ld + i];
}

/* r = R of a panel that lies in columns begin .. end of which none has changed, while those before have. So f of the old codes is the sum over
 * panels of E r for r = E (begin .. end) P + 2 E (end ..) P. */
static void pull_and_measure(const sweep_request *q, slab *b, int first, int columns, int begin, int end) {
  const float *e = b->e + (int64_t)first * b->ld;
  add_product(q, b, first, columns, end, q->width, true);
  add_dots(columns, b->rows, b->ld, e, b->r, b->before);
  add_product(q, b, first, columns, begin, end, false);
  add_dots(columns, b->rows, b->ld, e, b->r, b->before);
  add_product(q, b, first, columns, 0, begin, false);
}

static void read_tile(const sweep_request *q, const slab *b, int panel, int first, int columns, int row, work *m) {
  int64_t g = first / group_columns(q);
  refit_tile *t = &m->tile;
  widen(columns, b->ld, b->code + (int64_t)first * b->ld + row, t->code);
  memcpy(m->was, t->code, (size_t)columns * sizeof *m->was);
  for (int j = 0; j < columns; j++) memcpy(t->r[j], b->r + (int64_t)(first - panel + j) * b->ld + row, sizeof t->r[j]);
  memcpy(t->scale, b->scale + g * b->ld + row, sizeof t->scale);
  memcpy(t->zero, b->zero + g * b->ld + row, sizeof t->zero);
  memcpy(t->gain, b->gain + row, sizeof t->gain);
}

/* e -= d, the change of the values between two codes on two grids. */
static HOT void move_errors(int columns, int ld, const refit_tile *restrict t, const float (*restrict was)[TILE],
                            const float *restrict scale, const float *restrict zero, float *restrict e, float *restrict d) {
  for (int j = 0; j < columns; j++) {
    for (int r = 0; r < TILE; r++) {
      double to = (double)t->scale[r] * ((double)t->code[j][r] - (double)t->zero[r]);
      double change = to - (double)scale[r] * ((double)was[j][r] - (double)zero[r]);
      d[(int64_t)j * ld + r] = (float)change;
      e[(int64_t)j * ld + r] = (float)((double)e[(int64_t)j * ld + r] - change);
    }
  }
}

static void write_tile(const sweep_request *q, slab *b, int first, int columns, int row, const work *m) {
  int64_t g = first / group_columns(q);
  const refit_tile *t = &m->tile;
  float *scale = b->scale + g * b->ld + row, *zero = b->zero + g * b->ld + row;
  move_errors(columns, b->ld, t, m->was, scale, zero, b->e + (int64_t)first * b->ld + row, b->d + row);
  memcpy(scale, t->scale, sizeof t->scale);
  memcpy(zero, t->zero, sizeof t->zero);
  memcpy(b->gain + row, t->gain, sizeof t->gain);
  narrow(columns, b->ld, (const float(*)[TILE])t->code, b->code + (int64_t)first * b->ld + row);
}

/* ---- a group wider than a panel: its grid before its codes ---- */

static bool is_wide(const sweep_request *q) { return group_columns(q) > PANEL && q->grid_moves != SWEEP_GRID_STAYS; }

/* out (columns, ld) = sign x P_gg of a panel from column first on, x (group, ld), added to what out holds if `add`. */
static void group_product(const sweep_request *q, const slab *b, int begin, int first, int columns, float sign, const float *x, bool add,
                          float *out) {
  for (int row = 0; row < b->rows; row += b->chunk)
    sgemm(false, false, columns, b->chunk, group_columns(q), sign, q->p + (int64_t)first * q->width + begin, q->width, x + row, b->ld,
          add ? 1 : 0, out + row, b->ld);
}

static HOT void deviations(int columns, int ld, const uint8_t *restrict code, const float *restrict zero, float *restrict k) {
  for (int j = 0; j < columns; j++)
    for (int r = 0; r < ld; r++) k[(int64_t)j * ld + r] = (float)code[(int64_t)j * ld + r] - zero[r];
}

/* A tile of an array of a slab. */
static void take(int columns, int ld, const float *from, float (*to)[TILE]) {
  for (int j = 0; j < columns; j++) memcpy(to[j], from + (int64_t)j * ld, sizeof to[j]);
}

/* The sums of every row over one panel of the group, whose R is in r and whose k P_gg is in d. */
static void add_sums(const slab *b, int columns, const float *k, work *m) {
  refit_tile *t = &m->tile;
  for (int row = 0; row < b->rows; row += TILE) {
    take(columns, b->ld, b->r + row, t->r);
    take(columns, b->ld, b->d + row, t->kp);
    take(columns, b->ld, k + row, t->k);
    refit_add_sums(columns, m->one, t, &b->wide.tiles[row / TILE].sums);
  }
}

static HOT void move_wide(int columns, int ld, const float *restrict k, const float *restrict scale, const float *restrict zero,
                          const float *restrict to_scale, const float *restrict to_zero, float *restrict e) {
  for (int j = 0; j < columns; j++) {
    for (int r = 0; r < TILE; r++) {
      int64_t at = (int64_t)j * ld + r;
      double to = (double)to_scale[r] * ((double)k[at] + ((double)zero[r] - (double)to_zero[r]));
      e[at] = (float)((double)e[at] - (to - (double)scale[r] * (double)k[at]));
    }
  }
}

static void refit_wide(const sweep_request *q, slab *b, int begin, work *m) {
  int size = group_columns(q), end = begin + size, columns;
  int64_t g = begin / size;
  double one_one = 0;
  float *k = b->wide.k;
  deviations(size, b->ld, b->code + (int64_t)begin * b->ld, b->zero + g * b->ld, k);
  for (int row = 0; row < b->rows; row += TILE) memset(&b->wide.tiles[row / TILE].sums, 0, sizeof b->wide.tiles->sums);
  for (int first = begin; first < end; first += columns) {
    columns = panel_columns(q, first);
    pull_and_measure(q, b, first, columns, begin, end);
    group_product(q, b, begin, first, columns, 1, k, false, b->d);
    for (int j = 0; j < columns; j++) {
      m->one[j] = 0;
      for (int i = begin; i < end; i++) m->one[j] += q->p[(int64_t)(first + j) * q->width + i];
      one_one += m->one[j];
    }
    add_sums(b, columns, k + (int64_t)(first - begin) * b->ld, m);
  }
  for (int row = 0; row < b->rows; row += TILE) {
    float *scale = b->scale + g * b->ld + row, *zero = b->zero + g * b->ld + row, old_scale[TILE], old_zero[TILE];
    memcpy(old_scale, scale, sizeof old_scale);
    memcpy(old_zero, zero, sizeof old_zero);
    refit_choose(&q->rule, group_bits(&q->rule, (int)g), one_one, &b->wide.tiles[row / TILE].sums, scale, zero, b->gain + row);
    move_wide(size, b->ld, k + row, old_scale, old_zero, scale, zero, b->e + (int64_t)begin * b->ld + row);
  }
}

/* ---- its candidates ---- */

/* d of a tile of the group: values of code on scale, zero less those of its own. */
static HOT void change_tile(int columns, int ld, const uint8_t *restrict code, const float *restrict scale, const float *restrict zero,
                            const uint8_t *restrict own, const float *restrict own_scale, const float *restrict own_zero,
                            float *restrict d) {
  for (int j = 0; j < columns; j++) {
    for (int r = 0; r < TILE; r++) {
      int64_t at = (int64_t)j * ld + r;
      double to = (double)scale[r] * ((double)code[at] - (double)zero[r]);
      d[at] = (float)(to - (double)own_scale[r] * ((double)own[at] - (double)own_zero[r]));
    }
  }
}

/* One panel of candidates: their codes snapped to their grids, or, where that is done, swept from R in r. d follows. */
static void try_panel(const sweep_request *q, slab *b, int begin, int first, int columns, bool snapped, double least, work *m) {
  int64_t g = begin / group_columns(q), within = (int64_t)(first - begin) * b->ld;
  refit_tile *t = &m->tile;
  refit_read(&m->block, &q->rule, group_bits(&q->rule, (int)g), columns, q->p + (int64_t)first * q->width + first, q->width, least,
             q->dead ? q->dead + first : NULL);
  memset(t->gain, 0, sizeof t->gain);
  for (int row = 0; row < b->rows; row += TILE) {
    const wide_tile *w = b->wide.tiles + row / TILE;
    const float *own_scale = b->scale + g * b->ld + row, *own_zero = b->zero + g * b->ld + row;
    const uint8_t *own = b->wide.own + within + row;
    uint8_t *code = b->code + (int64_t)first * b->ld + row;
    memcpy(t->scale, w->scale, sizeof t->scale);
    memcpy(t->zero, w->zero, sizeof t->zero);
    if (snapped) {
      widen(columns, b->ld, code, t->code);
      take(columns, b->ld, b->r + row, t->r);
      refit_codes(&m->block, t);
    } else {
      widen(columns, b->ld, own, t->own);
      refit_snap(&m->block, t, own_scale, own_zero);
    }
    narrow(columns, b->ld, (const float(*)[TILE])t->code, code);
    change_tile(columns, b->ld, code, w->scale, w->zero, own, own_scale, own_zero, b->wide.d + within + row);
  }
}

/* What candidates change in one panel, whose d P_gg is in d. */
static void add_changes(slab *b, int begin, int first, int columns, work *m) {
  int64_t within = (int64_t)(first - begin) * b->ld;
  refit_tile *t = &m->tile;
  for (int row = 0; row < b->rows; row += TILE) {
    wide_tile *w = b->wide.tiles + row / TILE;
    widen(columns, b->ld, b->code + (int64_t)first * b->ld + row, t->code);
    take(columns, b->ld, b->wide.k + within + row, t->own_r);
    take(columns, b->ld, b->wide.d + within + row, t->step);
    take(columns, b->ld, b->d + row, t->k);
    memcpy(t->scale, w->scale, sizeof t->scale);
    memcpy(t->zero, w->zero, sizeof t->zero);
    refit_add_changes(columns, t, &w->changes);
  }
}

/* Of 32 rows, those whose candidate is the best as yet. */
static void keep_better(int columns, int ld, const float *own_scale, const uint8_t *code, uint8_t *best, wide_tile *w) {
  bool better[TILE];
  for (int r = 0; r < TILE; r++) {
    double s = own_scale[r], loss = refit_rescale(&w->changes, r, s * s * w->sums.kpk[r], &w->scale[r]);
    better[r] = loss < w->least[r];
    if (!better[r]) continue;
    w->least[r] = loss;
    w->best_scale[r] = w->scale[r];
    w->best_zero[r] = w->zero[r];
  }
  for (int j = 0; j < columns; j++)
    for (int r = 0; r < TILE; r++)
      if (better[r]) best[(int64_t)j * ld + r] = code[(int64_t)j * ld + r];
}

/* As refit_candidates, by products of panels: what a candidate changes of the group's values is in d, and E stays until the best is known. */
static void candidates_wide(const sweep_request *q, slab *b, int begin, double least, work *m) {
  int size = group_columns(q), end = begin + size, columns;
  int64_t g = begin / size;
  wide_group *w = &b->wide;
  uint8_t *code = b->code + (int64_t)begin * b->ld;
  float *scale = b->scale + g * b->ld, *zero = b->zero + g * b->ld;
  memcpy(w->own, code, (size_t)size * (size_t)b->ld);
  memcpy(w->best, code, (size_t)size * (size_t)b->ld);
  for (int first = begin; first < end; first += columns) {
    columns = panel_columns(q, first);
    add_product(q, b, first, columns, 0, q->width, true);
    memcpy(w->k + (int64_t)(first - begin) * b->ld, b->r, (size_t)columns * (size_t)b->ld * sizeof *b->r);
  }
  for (int row = 0; row < b->rows; row += TILE) {
    wide_tile *t = w->tiles + row / TILE;
    memcpy(t->best_scale, scale + row, sizeof t->best_scale);
    memcpy(t->best_zero, zero + row, sizeof t->best_zero);
    memset(t->least, 0, sizeof t->least);
  }
  for (int n = 0; n < REFIT_NEIGHBOURS; n++) {
    for (int row = 0; row < b->rows; row += TILE) {
      wide_tile *t = w->tiles + row / TILE;
      refit_neighbour(&q->rule, group_bits(&q->rule, (int)g), n, scale + row, zero + row, t->scale, t->zero);
      memset(&t->changes, 0, sizeof t->changes);
    }
    for (int first = begin; first < end; first += columns) {
      columns = panel_columns(q, first);
      try_panel(q, b, begin, first, columns, false, least, m);
    }
    for (int first = begin; first < end; first += columns) {
      columns = panel_columns(q, first);
      memcpy(b->r, w->k + (int64_t)(first - begin) * b->ld, (size_t)columns * (size_t)b->ld * sizeof *b->r);
      group_product(q, b, begin, first, columns, -1, w->d, true, b->r);
      try_panel(q, b, begin, first, columns, true, least, m);
    }
    for (int first = begin; first < end; first += columns) {
      columns = panel_columns(q, first);
      group_product(q, b, begin, first, columns, 1, w->d, false, b->d);
      add_changes(b, begin, first, columns, m);
    }
    for (int row = 0; row < b->rows; row += TILE) keep_better(size, b->ld, scale + row, code + row, w->best + row, w->tiles + row / TILE);
  }
  memcpy(code, w->best, (size_t)size * (size_t)b->ld);
  for (int row = 0; row < b->rows; row += TILE) {
    const wide_tile *t = w->tiles + row / TILE;
    float *e = b->e + (int64_t)begin * b->ld + row, *d = w->d + row;
    change_tile(size, b->ld, code + row, t->best_scale, t->best_zero, w->own + row, scale + row, zero + row, d);
    for (int j = 0; j < size; j++)
      for (int r = 0; r < TILE; r++) e[(int64_t)j * b->ld + r] -= d[(int64_t)j * b->ld + r];
    memcpy(scale + row, t->best_scale, sizeof t->best_scale);
    memcpy(zero + row, t->best_zero, sizeof t->best_zero);
    for (int r = 0; r < TILE; r++) b->gain[row + r] += t->least[r];
  }
}

/* ---- a round ---- */

/* One block of columns: a group, or a panel of a wide one. */
static void step(const sweep_request *q, slab *b, int panel, int first, int columns, double least, work *m) {
  bool moves = q->grid_moves != SWEEP_GRID_STAYS && !is_wide(q);
  int64_t diagonal = (int64_t)first * q->width + first;
  refit_read(&m->block, &q->rule, group_bits(&q->rule, first / group_columns(q)), columns, q->p + diagonal, q->width, least,
             q->dead ? q->dead + first : NULL);
  for (int row = 0; row < b->rows; row += TILE) {
    read_tile(q, b, panel, first, columns, row, m);
    if (moves) refit_grid(&m->block, &m->tile);
    if (moves && q->grid_moves == SWEEP_GRID_CANDIDATES) refit_candidates(&m->block, &m->tile);
    refit_codes(&m->block, &m->tile);
    write_tile(q, b, first, columns, row, m);
  }
}

static void round_of(const sweep_request *q, slab *b, double least, work *m) {
  int size = group_columns(q), columns;
  bool wide = is_wide(q);
  for (int first = 0; first < q->width; first += columns) {
    columns = panel_columns(q, first);
    int end = first + columns, block = least_of(size, columns);
    if (wide && first % size == 0) refit_wide(q, b, first, m);
    if (wide && first % size == 0 && q->grid_moves == SWEEP_GRID_CANDIDATES) candidates_wide(q, b, first, least, m);
    if (wide)
      add_product(q, b, first, columns, 0, q->width, true);
    else
      pull_and_measure(q, b, first, columns, first, end);
    for (int at = first; at < end; at += block) {
      int next = at + block;
      step(q, b, first, at, block, least, m);
      for (int row = 0; next < end && row < b->rows; row += b->chunk)
        sgemm(false, false, end - next, b->chunk, block, -1, q->p + (int64_t)next * q->width + at, q->width, b->d + row, b->ld, 1,
              b->r + (int64_t)(next - first) * b->ld + row, b->ld);
    }
  }
}

static status add_losses(const sweep_request *q, const slab *b, double sums[2]) {
  for (int r = 0; r < b->rows; r++) {
    double after = b->before[r] + b->gain[r];
    if (!isfinite(after))
      return fail(E_NUMERICS, "sweep: row %d, expected finite weights and metric, found a loss of %g", b->first + r, after);
    sums[0] += b->before[r];
    sums[1] += after;
    if (q->row_loss) q->row_loss[b->first + r] = after;
  }
  return OK;
}

static status slab_new(const sweep_request *q, slab *b) {
  status st = OK;
  int groups = grid_groups(&q->rule, q->width);
  TRY(NEW(b->e, (int64_t)q->width * b->ld, "sweep: W - Q"));
  TRY(NEW(b->code, (int64_t)q->width * b->ld, "sweep: codes"));
  TRY(NEW(b->r, (int64_t)PANEL * b->ld, "sweep: (W - Q) P of a panel"));
  TRY(NEW(b->d, (int64_t)PANEL * b->ld, "sweep: steps of a panel"));
  TRY(NEW(b->scale, (int64_t)groups * b->ld, "sweep: scales"));
  TRY(NEW(b->zero, (int64_t)groups * b->ld, "sweep: zeros"));
  TRY(NEW(b->before, b->ld, "sweep: losses"));
  TRY(NEW(b->gain, b->ld, "sweep: losses"));
  if (is_wide(q)) {
    int64_t entries = (int64_t)group_columns(q) * b->ld;
    TRY(NEW(b->wide.tiles, b->ld / TILE + 1, "sweep: sums of a wide group"));
    TRY(NEW(b->wide.k, entries, "sweep: codes of a wide group"));
    if (q->grid_moves == SWEEP_GRID_CANDIDATES) {
      TRY(NEW(b->wide.d, entries, "sweep: candidates of a wide group"));
      TRY(NEW(b->wide.own, entries, "sweep: codes of a wide group"));
      TRY(NEW(b->wide.best, entries, "sweep: codes of a wide group"));
    }
  }
done:
  return st;
}

static void slab_free(slab *b) {
  FREE(b->e), FREE(b->code), FREE(b->r), FREE(b->d), FREE(b->scale), FREE(b->zero), FREE(b->before), FREE(b->gain);
  FREE(b->wide.tiles), FREE(b->wide.k), FREE(b->wide.d), FREE(b->wide.own), FREE(b->wide.best);
}

int sweep_slab(int64_t width) { return width < 2048 ? 64 : 256; }

status sweep(const sweep_request *q, uint8_t *codes, double *losses) {
  status st = OK;
  int most = least_of(q->rows, PASS);
  slab b = {.rows = most, .chunk = sweep_slab(q->width)};
  work *m = NULL;
  double sums[2] = {0}, most_diagonal = 0;
  b.ld = (most + b.chunk - 1) / b.chunk * b.chunk + SKEW;
  for (int64_t j = 0; j < q->width; j++) most_diagonal = fmax(most_diagonal, q->p[j * q->width + j]);
  TRY(slab_new(q, &b));
  TRY(NEW(m, 1, "sweep: tile"));
  for (b.first = 0; b.first < q->rows; b.first += most) {
    b.rows = least_of(q->rows - b.first, most);
    start(q, &b, codes, m);
    round_of(q, &b, 1e-12 * most_diagonal, m);
    finish(q, &b, codes);
    TRY(add_losses(q, &b, sums));
  }
  if (losses) memcpy(losses, sums, sizeof sums);
done:
  slab_free(&b);
  FREE(m);
  return st;
}

double sweep_flops(const grid_rule *r, sweep_grid moves, int64_t rows, int64_t width) {
  double round = 2.0 * (double)rows * (double)width * (double)width, size = (double)width / grid_groups(r, (int)width);
  double within = 2.0 * (double)rows * (double)width * size; /* of every group with its own columns */
  if (size <= PANEL || moves == SWEEP_GRID_STAYS) return round;
  double refit = round + within;
  return round + refit + (moves == SWEEP_GRID_CANDIDATES ? round + REFIT_NEIGHBOURS * 2 * within : 0);
}

uint64_t sweep_bytes(const grid_rule *r, int64_t width) {
  uint64_t ld = PASS + SKEW, groups = (uint64_t)grid_groups(r, (int)width), size = (uint64_t)width / groups;
  return ld * (5 * (uint64_t)width + 4 * (2 * PANEL + 2 * groups) + 16) +
         (size > PANEL ? ld * 10 * size + (ld / TILE + 1) * sizeof(wide_tile) : 0) + sizeof(work);
}
