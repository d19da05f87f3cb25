/* Gram files from Grams that are there already: the calibrate stage of a job whose Grams come from elsewhere (session/gram_sources.h).
 *
 * Merging: entries are added in double in the order of the sources' fingerprints and rounded to float once. Each source was itself
 * rounded to float (2^-24 relative an entry), so a merge of parts and one calibration on the whole agree to float rounding, and a merge has
 * the same bits on any number of ranks and whatever the order in which sources were named. mean_abs is the mean over all tokens,
 * max_mean_abs the largest; a statistic that one source lacks is left out. */
#ifndef CLOQWORK_SESSION_GRAM_TAKE_H
#define CLOQWORK_SESSION_GRAM_TAKE_H

#include "session/session.h"

/* One rank's part of one input of a layer: tiles [begin, end), and the statistics whole. */
typedef struct gram_part {
  input_id input;
  int64_t n, begin, end;
  float *tiles;                        /* (end - begin, GRAM_TILE, GRAM_TILE), borrowed */
  double *mean_abs, *max_mean_abs;     /* [n], borrowed; NULL: another rank fills them in */
  bool has_mean_abs, has_max_mean_abs; /* on every rank */
} gram_part;

/* Collective over the job. Layers whose bit of a set is on in `missing`, layers dealt to teams. Stops between layers when asked. */
status gram_take(session *c, const uint8_t *missing, int64_t todo);

uint64_t gram_take_private_bytes(void); /* of a rank: for plan, which counts the shared tiles */

#endif
