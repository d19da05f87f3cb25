/* Units of work and of restart: where a unit's file is, what identifies it, whether it is done. Local. */
#ifndef CLOQWORK_SESSION_UNIT_H
#define CLOQWORK_SESSION_UNIT_H

#include "base/hash.h"
#include "session/session.h"
#include "store/container.h"

enum {
  PATH_MOST = 4096,
  RANKS_TEXT = 256, /* of a list of ranks such as 4,16 */
  GRAM_VERSION = 1  /* raised when the numbers of a Gram of the same inputs change */
};

/* RUN/grams/layer-000.h5, RUN/solutions/SETTING/layer-000.h5 …; of a view of a setting that follows its own prefix
 * RUN/solutions/SETTING/grams/layer-000.h5. */
void unit_gram_path(const session *c, int set, int64_t layer, char path[PATH_MOST]);
void unit_solution_path(const session *c, const setting *s, int64_t layer, char path[PATH_MOST]);
void unit_run_path(const session *c, const char *name, char path[PATH_MOST]);

/* Everything that decides a unit's numbers, as attributes of its file's root. */
status unit_gram_identity(const session *c, int set, int64_t layer, attributes *a);
/* gram_fingerprint: of the Grams it was computed from (unit_gram_fingerprint). */
status unit_solution_identity(const session *c, const setting *s, int64_t layer, const char *gram_fingerprint, attributes *a);

/* SHA-256 over the checksums of the Gram files (calibration and held-out) of a layer, inputs that targets read. E_DATA. */
status unit_gram_fingerprint(const session *c, int64_t layer, char hex[HASH_HEX]);

/* Adds the checksums of a solution file's codes, grids and factors to h: what its numbers are, whoever made them when. E_DATA. */
status unit_hash_solution(container *file, hash *h);

/* Local. Part `part` of `parts` of the tiles of one input's Gram, expanded into full (m, m); all parts together fill it. E_DATA, E_IO. */
status unit_read_gram(const session *c, int set, int64_t layer, input_id input, int part, int parts, float *full, int64_t *tokens);

/* Local. Rows [begin, end) of what a linear's codes and adapter are fitted to, (end - begin, in): the model's weights, or of a view whose inputs are those of a
 * prefix with cross products the target that its Gram file holds (calibrate/target.h). E_DATA, E_IO. */
status unit_read_weights(const session *c, int64_t layer, linear_id l, int64_t begin, int64_t end, float *w);
/* The dataset of such a target, "attn_in/target_q_proj". */
void unit_target_name(linear_id l, char name[64]);

/* Local. The statistics of |x| of one input, [m] each; NULL: not asked for. E_DATA: a file without them (made by an older version, or from
 * Grams that came without). */
status unit_read_input_stats(const session *c, int set, int64_t layer, input_id input, double *mean_abs, double *max_mean_abs);

/* done: the file is there, complete, and has the same identity, of variants at least those. A file with another identity is an error that names the
 * first difference (E_USAGE). */
status unit_is_done(const char *path, const char *kind, const attributes *identity, bool *done);

/* Where a stage stands among its layers, for the progress line; a pass_progress. */
typedef struct layer_progress {
  const char *stage; /* "calibrate" */
  int64_t layer, layers, done, todo;
  const char *setting; /* NULL: none; borrowed */
  int more;            /* settings of the layer beside it */
} layer_progress;
void layer_progress_show(void *layer_progress, double fraction, double gflops);

/* A line for RUN/metrics.jsonl, and a shorter one for the log, with ranks, host, version and time added; consumes fields. Local (call on one rank). */
status unit_metrics(const session *c, json_t *fields);

#endif
