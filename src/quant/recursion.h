/* The recursion that OPTQ and coordinate descent share, inside this room: 32 rows through a block of columns, one column after the other,
 *     v = w_j + (S_j + E[:, block before j] M[block before j, j]) inverse_j,  q_j = grid(v),  e_j = w_j - q_j.
 * OPTQ: w the weights, M = U and inverse_j = 1 / U_jj. Descent: w the values so far, S = (T - Q) P, M = P and inverse_j = 1 / P_jj.
 *
 * Everything is stored with the ROW index contiguous, so that the recursion over columns runs over rows in registers and the update of S
 * after a block is one dgemm without transposition. Rows are padded to whole tiles: there is no remainder loop whose rounding could differ,
 * and a row's arithmetic does not depend on its neighbours. That dgemm always has recursion_rows rows: libraries choose kernels, and so the
 * order of a sum, by the SHAPE of a product, and the width alone may dictate it. */
#ifndef CLOQWORK_QUANT_RECURSION_H
#define CLOQWORK_QUANT_RECURSION_H

#include "quant/grid.h"

enum {
  BLOCK = 256, /* columns between two updates of S: below about 200, BLIS leaves its fast path */
  PART = 32,   /* columns of a block between two updates inside a tile */
  QUAD = 4,    /* columns of such an update at a time: S has as many more columns than the matrix, to be read, not used */
  TILE = 32,   /* rows */
  PASS = 512,  /* rows at most that share one reading of M */
  SKEW = 8,    /* added to row strides that would be multiples of 4 KiB */
};

/* Half of AVX-512's registers: on AVX2, which has no wider ones, gcc 12 takes vectors of 64 bytes apart through memory, ten times as slow. */
typedef double lanes __attribute__((vector_size(32), may_alias));
enum { LANES = sizeof(lanes) / sizeof(double) };

/* What the columns of a block are to all rows; M in quads of columns. */
typedef struct panel {
  double m[BLOCK / QUAD][BLOCK][QUAD];  /* m[j / QUAD][i][j % QUAD] = M[j1 + i][j1 + j], i < j */
  double inverse[BLOCK], square[BLOCK]; /* square: what (v - q)^2 counts in the loss */
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

static inline int recursion_rows(int64_t width) { return width < 2048 ? 64 : 256; }
static inline int recursion_padded(int rows, int chunk) { return (rows + chunk - 1) / chunk * chunk; }

/* t->w -> t->code, t->e. s (columns, ld), scale and zero (groups, ld) start at the tile's first row; real: real zeros; loss[TILE] is added to. */
void tile_block(int columns, bool real, const panel *p, const double *s, const float *scale, const float *zero, int ld, tile *t,
                double *loss);

/* scale[padded], zero[padded]: the grid of one group, whose entries lie `stride` apart. Rows of padding get the grid of integers, on which the
 * weight 0 has no error. */
void group_read(const grid_rule *r, int rows, int padded, code_grid from, int stride, float *scale, float *zero);

#endif
