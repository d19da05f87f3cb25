/* Gram files, RUN/grams/layer-000.h5 and RUN/heldout/layer-000.h5 (of a setting that follows its prefix in its own folder): one layer's inputs, written whole, whoever made the numbers. */
#ifndef CLOQWORK_SESSION_GRAM_FILE_H
#define CLOQWORK_SESSION_GRAM_FILE_H

#include "session/unit.h"

/* One input of a layer. All arrays are seen by every rank of the team and borrowed. */
typedef struct gram_input {
  int64_t n, tokens;                     /* n 0: this input is not there */
  const float *tiles;                    /* (tiles_count(n, GRAM_TILE), GRAM_TILE, GRAM_TILE) */
  const double *mean_abs, *max_mean_abs; /* [n]; NULL: not known, and not in the file */
  const float *target[LIN_COUNT];        /* (out, n) what those that read it are fitted to, where that is not their weights; else NULL */
} gram_input;

/* Collective over the team: what a pass summed, to be written or used. Its tiles as float into `tiles` (shared, of the size above), mean |x| in
 * place of its sum. E_NUMERICS names layer and input. */
status gram_file_round(const session *c, int64_t layer, input_id input, gram *g, float *tiles, gram_input *to);

/* Collective over the team. Identity and provenance are the session's (unit_gram_identity). */
status gram_file_write(const session *c, int set, int64_t layer, const gram_input list[IN_COUNT]);

#endif
