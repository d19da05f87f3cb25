/* Code grids. The rule says which; normal floats (NF2, NF3, NF4) are computed in quant/nf.h, everything else here is about uniform grids:
 * q = scale * (code - zero), code in 0 .. 2^bits - 1, one scale and zero per row and group of columns. Local.
 * Source: spec methods section 3. The scale is rounded to fp16 BEFORE zero and codes are chosen, because the rounded one is what
 * will be loaded: codes and residual must belong to it. */
#ifndef CLOQWORK_QUANT_GRID_H
#define CLOQWORK_QUANT_GRID_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

typedef enum grid_kind { GRID_UNIFORM, GRID_NF } grid_kind;

typedef enum grid_search { SEARCH_NONE, SEARCH_MSE, SEARCH_SCAN, SEARCH_LSQ, SEARCH_SYMM, SEARCH_ASYMM, SEARCH_L4Q } grid_search;

typedef struct grid_rule {
  grid_kind kind;
  int bits;              /* 1 .. 8; GRID_NF: 2 .. 4 */
  int group;             /* columns per scale; divides the width; 0: one group per row */
  bool nested;           /* GRID_NF: double quantization of absmax. Uniform, and so are the members below: */
  bool symmetric;        /* zero = 2^(bits-1), scale = beta 2 max|w| / (2^bits - 1) */
  double beta;           /* 1; MagR's shrink of the range */
  bool anchor_zero;      /* beta shrinks both ends (zero from the unshrunk scale) instead of the published quirk: low end kept, top cut */
  grid_search search;    /* how a group's scale and zero are chosen */
  bool real_zero;        /* zero points are fp16 numbers instead of codes */
  const uint8_t *widths; /* [groups] bits of each group of columns, bits on average; NULL: bits everywhere; borrowed */
} grid_rule;

/* The grid of a slab of rows beside its codes. Borrowed; what the rule does not use is NULL. */
typedef struct code_grid {
  uint16_t *scales;     /* (rows, groups) fp16 */
  uint8_t *zeros;       /* (rows, groups) */
  uint16_t *real_zeros; /* (rows, groups) fp16: instead of zeros with real_zero */
} code_grid;

/* What files call a grid: "uniform", "nf2", "nf3", "nf4"; and the grid of so many bits that has this name (false: there is none). */
const char *grid_name(grid_kind kind, int bits);
bool grid_named(const char *name, int64_t bits, grid_kind *kind);

static inline int grid_groups(const grid_rule *r, int width) { return r->group ? width / r->group : 1; }

/* scales (fp16), zeros (rows, groups) of w (rows, width), row stride ldw. Every scale is finite and positive: one that rounds to 0
 * becomes 2^-14, one beyond fp16 becomes 65504 (the weights past its reach are clipped). Returns how many were replaced so.
 * A group of zeros takes the range -1 .. 1; NaN is passed over here (optq reports it). */
int64_t grid_fit(const grid_rule *r, int rows, int width, const float *w, int64_t ldw, uint16_t *scales, uint8_t *zeros);

/* One code: clamp(rint(w / s) + z, 0, 2^bits - 1), ties to even, in double. NaN gives 0. */
uint8_t grid_code(double w, double scale, int zero, int bits);

/* Round to nearest: codes (rows, width), one byte each, of w on the given grid: exactly grid_code of every entry. */
void grid_round(const grid_rule *r, int rows, int width, const float *w, int64_t ldw, const uint16_t *scales, const uint8_t *zeros,
                uint8_t *codes);

#endif
