/* The triangle of tiles and the full matrix. */
#include <string.h>

#include "base/hot.h"
#include "store/container.h"

/* 16 floats are a cache line: a block is read and written in whole lines, and turned in between. */
enum { BLOCK = 16 };

/* to (columns, rows) at stride n <- transpose of from (rows, columns) at stride t */
HOT static void turn(int64_t rows, int64_t columns, const float *restrict from, int64_t t, float *restrict to, int64_t n) {
  float block[BLOCK][BLOCK];
  for (int64_t c = 0; c < columns; c += BLOCK) { /* rows inside: what is written then grows line by line */
    int64_t wide = columns - c < BLOCK ? columns - c : BLOCK;
    for (int64_t r = 0; r < rows; r += BLOCK) {
      int64_t high = rows - r < BLOCK ? rows - r : BLOCK;
      if (high == BLOCK && wide == BLOCK) { /* constant bounds: unrolled and vectorized */
        for (int i = 0; i < BLOCK; i++)
          for (int j = 0; j < BLOCK; j++) block[j][i] = from[(r + i) * t + c + j];
        for (int j = 0; j < BLOCK; j++) memcpy(to + (c + j) * n + r, block[j], sizeof block[j]);
      } else {
        for (int64_t i = 0; i < high; i++)
          for (int64_t j = 0; j < wide; j++) to[(c + j) * n + r + i] = from[(r + i) * t + c + j];
      }
    }
  }
}

void tiles_expand(int64_t n, int64_t t, int64_t begin, int64_t end, const float *tiles, float *full) {
  int64_t i = 0;
  while (tile_index(i + 1, 0) <= begin) i++;
  int64_t j = begin - tile_index(i, 0);
  for (int64_t k = begin; k < end; k++) {
    const float *tile = tiles + (k - begin) * t * t;
    int64_t top = i * t, left = j * t, rows = n - top < t ? n - top : t, columns = n - left < t ? n - left : t;
    if (i == j) { /* what stands above the diagonal of a tile is not trusted */
      for (int64_t r = 0; r < rows; r++) {
        memcpy(full + (top + r) * n + left, tile + r * t, (size_t)(r + 1) * sizeof *full);
        for (int64_t c = 0; c < r; c++) full[(top + c) * n + left + r] = tile[r * t + c];
      }
    } else {
      for (int64_t r = 0; r < rows; r++) memcpy(full + (top + r) * n + left, tile + r * t, (size_t)columns * sizeof *full);
      turn(rows, columns, tile, t, full + left * n + top, n);
    }
    if (++j > i) {
      i++;
      j = 0;
    }
  }
}
