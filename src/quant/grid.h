/* Code grids. The rule says which; normal floats (NF2, NF3, NF4) are computed in quant/nf.h, everything else here is about uniform grids:
 * q = scale * (code - zero), code in 0 .. 2^bits - 1, one scale and zero per row and group of columns. Local.
 * Source: spec methods section 3. The scale is rounded to fp16 BEFORE zero and codes are chosen, because the rounded one is what
 * will be loaded: codes and residual must belong to it. */
#ifndef CLOQWORK_QUANT_GRID_H
#define CLOQWORK_QUANT_GRID_H

#include <stdbool.h>
#include <stdint.h>

#include "base/half.h"
#include "base/status.h"

typedef enum grid_kind { GRID_UNIFORM, GRID_NF, GRID_BINARY } grid_kind;

/* How a group's scale and zero are chosen. none: from its range; mse, scan, refit: quant/search.h. The others are the starts of L4Q (arXiv
 * 2402.04902), which the spec's section 12 defines for signed codes QN = -2^(bits-1) .. QP = 2^(bits-1) - 1 and an offset o; here
 * zero = 2^(bits-1) - o / scale, and 2^(bits-1) for all but asymm:
 *   lsq    scale = max(|mean - 3 sd|, |mean + 3 sd|) / 2^(bits-1), sd of the population
 *   symm   scale = max|w| / 2^(bits-1), clips the largest positive weights
 *   asymm  scale = (max - min) / (QP - QN), zero = 2^bits - 1 - max / scale. Not for symmetric rules. Integer zeros: min and max are taken
 *          with 0, which they must reach; real ones may lie outside of the codes
 *   l4q    scale = max(|min / QN|, |max / QP|), clips nothing (1 bit: QP = 0, and the positive weights are) */
typedef enum grid_search {
  SEARCH_NONE,
  SEARCH_MSE,
  SEARCH_SCAN,
  SEARCH_REFIT,
  SEARCH_LSQ,
  SEARCH_SYMM,
  SEARCH_ASYMM,
  SEARCH_L4Q
} grid_search;

typedef struct grid_rule {
  grid_kind kind;
  int bits;              /* 1 .. 8; GRID_NF: 2 .. 4; GRID_BINARY: 1 */
  int group;             /* columns per scale; divides the width; 0: one group per row */
  bool nested;           /* GRID_NF: double quantization of absmax. Uniform, and so are the members below: */
  bool symmetric;        /* zero = 2^(bits-1), scale = beta 2 max|w| / (2^bits - 1) */
  double beta;           /* 1; MagR's shrink of the range. This and the next: SEARCH_NONE alone */
  bool anchor_zero;      /* beta shrinks both ends (zero from the unshrunk scale) instead of the published quirk: low end kept, top cut */
  grid_search search;    /* how a group's scale and zero are chosen */
  bool real_zero;        /* zero points are fp16 numbers instead of codes */
  bool mixed;            /* groups of columns have widths of their own, bits on average */
  const uint8_t *widths; /* [groups] mixed: bits of each group of columns; NULL: bits everywhere; borrowed */
} grid_rule;

/* The grid of a slab of rows beside its codes. Borrowed; what the rule does not use is NULL. */
typedef struct code_grid {
  uint16_t *scales;     /* (rows, groups) fp16 */
  uint8_t *zeros;       /* (rows, groups) */
  uint16_t *real_zeros; /* (rows, groups) fp16: instead of zeros with real_zero */
} code_grid;

/* What files call a grid: "uniform", "nf2", "nf3", "nf4", "binary"; and the grid of so many bits that has this name (false: there is none). */
const char *grid_name(grid_kind kind, int bits);
bool grid_named(const char *name, int64_t bits, grid_kind *kind);

/* Bits that a stored code takes, on average: billm's codes say sign and magnitude. */
static inline int grid_code_bits(const grid_rule *r) { return r->kind == GRID_BINARY ? 2 : r->bits; }

static inline int grid_groups(const grid_rule *r, int width) { return r->group ? width / r->group : 1; }

/* s >= 0 as it is stored: finite and positive; counts a replacement. */
uint16_t grid_scale(double s, int64_t *replaced);

/* A zero point as it is stored: rounded to a code of 0 .. top, or, if real, to fp16, within what is finite. */
double grid_stored_zero(bool real, double zero, double top);

static inline int group_bits(const grid_rule *r, int group) { return r->widths ? r->widths[group] : r->bits; }

static inline double grid_zero(const grid_rule *r, code_grid g, int64_t at) {
  return r->real_zero ? (double)half_to_float(g.real_zeros[at]) : g.zeros[at];
}

/* The same grid from its entry `at` on: row * groups for the rows from there. */
static inline code_grid grid_from(code_grid g, int64_t at) {
  return (code_grid){.scales = g.scales ? g.scales + at : NULL,
                     .zeros = g.zeros ? g.zeros + at : NULL,
                     .real_zeros = g.real_zeros ? g.real_zeros + at : NULL};
}

/* g: scale and zero of every group of w (rows, width), row stride ldw, each a function of its own weights alone. weight[width] > 0: what
 * a column's squared error counts in a search that weighs (NULL: 1 each). Every scale is finite and positive: one that rounds to 0
 * becomes 2^-14, one beyond fp16 becomes 65504 (the weights past its reach are clipped). *replaced (may be NULL): how many were replaced
 * so. A group of zeros takes the range -1 .. 1; NaN is passed over here (optq reports it). E_MEMORY. */
status grid_fit(const grid_rule *r, int rows, int width, const float *w, int64_t ldw, const float *weight, code_grid g, int64_t *replaced);
uint64_t grid_bytes(const grid_rule *r, int64_t width); /* workspace of one call, for plans */

/* One code, in double, ties to even. An integer zero: clamp(rint(w / s) + z, 0, 2^bits - 1). A real one: clamp(rint(w / s + z), ...).
 * NaN gives 0. The value of code u is float(s (u - z)): s (u - z) is exact in double, and in float too for an integer zero. */
uint8_t grid_code(double w, double scale, double zero, int bits);
uint8_t grid_code_real(double w, double scale, double zero, int bits);

/* Round to nearest: codes (rows, width), one byte each, of w on the given grid: exactly grid_code or grid_code_real of every entry. */
void grid_round(const grid_rule *r, int rows, int width, const float *w, int64_t ldw, code_grid g, uint8_t *codes);

#endif
