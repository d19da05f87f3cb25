/* A few long rows that a team shares, cut into strips of columns that are dealt to its ranks: what subspace methods do with them beside the
 * products with a large matrix. Private to joint.
 *
 * The cut depends on the shape alone, and every library call is made on one whole strip: so a result has the same bits for any number of ranks.
 * Sums over all columns are left as one small matrix a strip, which every rank adds up in the order of strips. */
#ifndef CLOQWORK_JOINT_STRIPS_H
#define CLOQWORK_JOINT_STRIPS_H

#include <stdbool.h>

#include "dist/team.h"

typedef struct strips {
  int rows, count, width; /* strips of width columns, the last one of what is left */
  int64_t length;         /* columns of all */
  int first, last;        /* mine: [first, last) */
  int64_t begin, columns; /* mine, all together */
} strips;
strips strips_cut(const team *t, int rows, int64_t length); /* Local */
uint64_t strips_parts(int rows, int64_t length);            /* doubles of parts: at most 2 rows length + rows^2 */
uint64_t strips_bytes(int rows, int64_t length);            /* private: a strip, six small matrices and what products of a few rows pack */

/* Local, all of them on my strips. x, y, out (rows, length) contiguous. */
void strips_products(const strips *s, const double *x, const double *y, double *parts); /* parts[strip] (rows, rows) = x y^T */
/* out, its first `made` rows, = turn (made, rows) x; out may be x. work (made, width). */
void strips_turn(const strips *s, int made, const double *turn, const double *x, double *out, double *work);
/* x (rows, terms) times f, (terms, length) or transposed (length, terms), in float: into out (rows, length), or, where out is NULL, widened into wide.
 * work: rows width of the latter. */
void strips_times(const strips *s, bool transpose, int terms, const float *x, const float *f, float *out, double *wide, float *work);
/* sum (rows, rows), symmetric: the mean of what all ranks left in parts and its transpose. False: it is not finite. */
bool strips_sum(const strips *s, const double *parts, double *sum);

/* Collective. agree, and after it every rank sees what every rank wrote to shared memory before it. */
status strips_meet(const team *t, status st);

#endif
