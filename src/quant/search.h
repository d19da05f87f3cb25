/* Searches for the scale and zero of one group that round its weights best. Local. Source: spec methods section 3.
 *
 * Both start from the range lo .. hi of the group and 0, and never leave a worse grid than that range gives, by their own error:
 *   mse   GPTQ: ranges shrunk to p = 1, 0.99 .. 0.21 of both ends, the least sum |q - w|^2.4. 80 evaluations a weight, each some forty
 *         operations in double: the power comes from four Newton steps for a fifth root, good to 1e-14.
 *   scan  60 scales of p = 1 .. 0.35 of the range and every integer zero, the least sum weight (q - w)^2. 60 2^bits evaluations a weight of
 *         five operations: nearest integers of w / s serve every zero of a scale.
 *   refit 14 scales of 1.05 .. 0.40 of the range, zeros beside the middle of it (all four at 2 bits), the least sum weight (q - w)^2; then three
 *         times the scale that is best for the codes, as long as the error falls. In float. Spec "refine", search.
 * A symmetric grid keeps its zero. With real zeros scan goes on from its integer zero: zero = sum weight (u - w / s) / sum weight for the
 * codes u, rounded to fp16, as long as the error falls; refit with the pair (s, s z) that is best for the codes. */
#ifndef CLOQWORK_QUANT_SEARCH_H
#define CLOQWORK_QUANT_SEARCH_H

#include "quant/grid.h"

typedef struct search_room search_room; /* memory for groups of up to `columns` weights */
status search_new(search_room **room, int columns);
void search_free(search_room **room); /* accepts an empty one */
uint64_t search_bytes(int64_t columns);

typedef struct search_group {
  int bits;
  bool symmetric, real_zero;
  int columns;
  const float *w;      /* [columns], borrowed; with one that is not finite, the range stays */
  const float *weight; /* [columns] >= 0, borrowed; NULL: 1 each. mse does not look */
  double lo, hi;       /* lo <= 0 <= hi, lo < hi */
} search_group;

/* On entry *scale and *zero are those of the range, as stored; on return the best. */
void search_mse(const search_group *q, search_room *room, uint16_t *scale, double *zero);
void search_scan(const search_group *q, search_room *room, uint16_t *scale, double *zero);

/* The same for up to SEARCH_ROWS rows at once, ldw apart, with ranges, scales and zeros of their own [rows]; q->lo and q->hi are not read. What a
 * row gets does not depend on the others. */
enum { SEARCH_ROWS = 16 };
void search_refit(const search_group *q, int rows, int64_t ldw, const double *lo, const double *hi, search_room *room, uint16_t *scale,
                  double *zero);

#endif
