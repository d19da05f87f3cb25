/* The Gram matrix H = X^T X of one linear's input, summed by a team. How it will be used is not known here.
 *
 * Precision and order. Tokens come in chunks of fixed composition; about GRAM_TOKENS worth of chunks are multiplied in float and the
 * product is added to sums in double, in the order of the chunks. The lower triangle is cut into square units whose side depends on n
 * alone; each belongs to one rank. So every product is the same BLAS call whoever makes it, and the sums are bit-identical for any
 * number of ranks. syrk on the diagonal, gemm below it: n^2 tokens flops in all, half of a full product.
 *
 * Beside it, of every column, two statistics of |x| that methods with a diagonal metric ask for: its mean over all tokens, and the
 * largest of its means over single windows (LQER's scale, arXiv 2402.02446; spec methods.md, section 8). */
#ifndef CLOQWORK_CALIBRATE_GRAM_H
#define CLOQWORK_CALIBRATE_GRAM_H

#include <stdint.h>

#include "base/status.h"
#include "dist/team.h"

enum { GRAM_TILE = 128, GRAM_TOKENS = 4096 };

typedef struct gram_unit {
  int row, col, rows, cols; /* global place; row == col: on the diagonal */
} gram_unit;

typedef struct gram {
  const team *t; /* borrowed */
  int n;
  shared sums;     /* doubles: [tiles][GRAM_TILE][GRAM_TILE], lower triangle of tiles, tile (i, j) at i (i + 1) / 2 + j */
  shared abs_sums; /* doubles: [n] sums of |x| */
  shared abs_most; /* doubles: [n] the largest mean of |x| over a window */
  int64_t tokens;
  gram_unit *mine; /* units of this rank */
  int unit_count;
  float *product; /* one unit's product */
} gram;

int gram_unit_side(int64_t n);          /* of a unit: for sums that are cut alike */
uint64_t gram_shared_bytes(int64_t n);  /* of all sums: for plan */
uint64_t gram_private_bytes(int64_t n); /* of one rank's product */
/* For plan: flops a token of the rank that has the most to do, of n^2 of all. E_MEMORY. */
status gram_busiest(int64_t n, int ranks, double *flops);

status gram_new(const team *t, int64_t n, gram *g); /* Collective. E_MEMORY; E_USAGE over 46340 columns */
void gram_free(gram *g);                            /* Collective; accepts an empty one */
void gram_reset(gram *g);                           /* Collective: sums back to zero */

/* Collective in effect: every rank adds its own entries of these chunks. panel: chunk c is (rows[c], n) floats at panel + c * stride,
 * whole windows of `length` rows, visible to all ranks and not written until the next team_barrier. Every per_product chunks, from the
 * first on, make one product. */
void gram_add(gram *g, const float *panel, int64_t stride, const int *rows, int length, int chunks, int per_product);

/* Local. Tiles [begin, end) rounded to float, after a team_barrier. E_NUMERICS when a sum is not finite. */
status gram_tiles(const gram *g, const char *where, int64_t begin, int64_t end, float *tiles);

#endif
