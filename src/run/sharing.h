/* What settings have in common: the steps of the work at one matrix whose results one setting takes over from another. Local.
 * Settings agree in a step when everything that changes its result is equal; codes and fits are those of settings whose ranks nest. */
#ifndef CLOQWORK_RUN_SHARING_H
#define CLOQWORK_RUN_SHARING_H

#include "run/job.h"

bool same_factor(const setting *a, const setting *b);                           /* of the damped Gram */
bool same_magr(const setting *a, const setting *b, int64_t layer, linear_id l); /* both without, or with the same weights out of it */
bool same_codes(const setting *a, const setting *b, int64_t layer, linear_id l);
bool same_fit(const setting *a, const setting *b, int64_t layer, linear_id l); /* up to the rank: the smaller one is a part of the larger */

/* How much work is distinct at one layer: for plan. */
typedef struct sharing {
  int settings, grams, factors;             /* factors: of Grams */
  int magrs, codes, fits, joint;            /* of matrices */
  int magrs_asked, codes_asked, fits_asked; /* by the settings, before sharing */
} sharing;
sharing sharing_count(const job *j, int64_t layer);

#endif
