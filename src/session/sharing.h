/* What settings have in common: where each part of a result comes from, and how much of the work at a layer is distinct. Local.
 * Settings agree in a step when everything that changes its result is equal; where codes belong to a rank, that too. */
#ifndef CLOQWORK_SESSION_SHARING_H
#define CLOQWORK_SESSION_SHARING_H

#include "job/job.h"

/* A setting, or one of its variants: a rank that has codes of its own. */
typedef struct piece {
  const setting *setting;
  int index; /* of the setting in the job */
  int rank;  /* that its codes are made for; 0: for all */
  int most;  /* the largest rank of its adapter: up to the next variant's */
} piece;

/* The v-th piece of a setting, ranks ascending; false: it has no more. */
bool setting_piece(const setting *s, int index, int v, piece *p);
int job_pieces(const job *j, piece *pieces);                   /* fills in pieces (NULL: none) and returns how many */
int piece_rank(const piece *p, int64_t layer, linear_id l);    /* of its adapter of that matrix */
int piece_variant(const piece *p, int64_t layer, linear_id l); /* that its codes of that matrix are made for; 0: for all */

/* Where a part of a result comes from: another piece of this run, the file of a finished setting, or work of its own. */
typedef struct part_source {
  enum { PART_OWN, PART_COPY, PART_STORED } how;
  int from; /* COPY: a piece; STORED: a setting */
} part_source;

typedef struct result_plan {
  part_source codes, fit; /* joint: both OWN */
} result_plan;

bool same_factor(const setting *a, const setting *b);                            /* of the damped Gram */
bool same_magr(const setting *a, const setting *b, int64_t layer, linear_id l);  /* both without, or with the same weights out of it */
bool same_codes(const setting *a, const setting *b, int64_t layer, linear_id l); /* of settings that nest */
bool same_fit(const setting *a, const setting *b, int64_t layer,
              linear_id l); /* likewise, up to the rank: the smaller one is a part of the larger */
/* Of variants that are refined from the same start for the same rank: codes, and the fit up to the rank. */
bool same_refined(const piece *a, const piece *b, int64_t layer, linear_id l);

/* Whether two settings quantize the same weights, of every target that reads the input: such pieces are worked at together. */
bool share_magr(const job *j, const setting *a, const setting *b, int64_t layer, input_id input);

/* plan[p * stride] of all pieces whose setting is pending, for one matrix. */
void plan_results(const job *j, const piece *pieces, int count, int64_t layer, linear_id l, const bool *pending, result_plan *plan,
                  int stride);
bool needs_magr(const setting *s, const result_plan *plan); /* for this matrix */

/* How much the pending settings ask for and how much of it is computed: of matrices, factors of Grams. */
typedef struct step_count {
  int64_t asked, computed, finished; /* finished: taken from settings that are */
} step_count;
typedef struct sharing {
  step_count magr, factors, codes, refined, fits, joint; /* refined: codes for one rank; joint: codes and adapter of one rank together */
} sharing;

/* Adds those of a layer. E_MEMORY. */
status sharing_count(const job *j, int64_t layer, const bool *pending, sharing *n);

#endif
