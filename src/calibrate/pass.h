/* The full-precision model run over all windows, layer after layer, leaving a Gram for each of the four inputs of a layer.
 *
 * The rows of chunks of windows (model/tokens.h) are dealt in segments (calibrate/segments.h). The residual stream of a segment stays at its
 * rank between layers, in memory or in a scratch file, unless teams work side by side (calibrate/ring.h). In a step the ranks run `step`
 * chunks side by side, leave keys and values and the inputs of each linear in panels the team shares, and then each adds its own entries
 * of the Gram. Two panels of inputs take turns, so one barrier per input suffices. Weights of a layer are converted once per team, dealt
 * over its ranks. */
#ifndef CLOQWORK_CALIBRATE_PASS_H
#define CLOQWORK_CALIBRATE_PASS_H

#include <stdbool.h>

#include "base/file.h"
#include "calibrate/gram.h"
#include "calibrate/segments.h"
#include "model/block.h"
#include "model/checkpoint.h"
#include "model/tokens.h"

enum { SET_CALIBRATION, SET_HELDOUT, SET_COUNT };
const char *set_folder(int set); /* "grams", "heldout" */

typedef struct pass_set {
  const windows *w;     /* borrowed; NULL: this set is absent */
  int chunks, segments; /* in all */
  int mine;             /* segments of this rank */
  float *x;             /* their residual streams, each (rows, d), in order; owned */
  file_scratch file;    /* what x lies in, where it is no memory; owned */
  gram grams[IN_COUNT]; /* empty where the input is not wanted */
} pass_set;

typedef struct pass {
  const team *t; /* borrowed */
  const checkpoint *model;
  pass_set sets[SET_COUNT];
  int step;         /* chunks per step: whole products, and their segments whole turns */
  int chunk_rows;   /* the most rows of a chunk */
  int segment_rows; /* of a segment */
  shared panels[2]; /* inputs */
  shared keys;      /* and values */
  shared weights;
  layer_weights layer;
  block_scratch scratch;
  struct ring *ring;         /* how streams come and go between teams; NULL: they stay. Borrowed */
  struct streams_file *keep; /* the inputs of a layer are written there on their way; NULL: nowhere. Borrowed */
  double flops;              /* forward (2 params tokens) and Grams (n^2 tokens) of the team so far */
  double load_seconds;
} pass;

/* Memory that pass_new will take: shared by the team, and of one rank. For plan. */
typedef struct pass_bytes {
  uint64_t shared, private_most, panels, weights, sums, streams;
} pass_bytes;
pass_bytes pass_memory(const arch *a, const windows *const sets[SET_COUNT], const bool wanted[IN_COUNT], int ranks);
int pass_steps(const windows *const sets[SET_COUNT], int ranks); /* of a layer */
int64_t pass_busiest_rows(const windows *w, int ranks);          /* at most so many are one rank's */
int64_t pass_segment_rows(const windows *const sets[SET_COUNT]); /* at most so many are carried at a time */
double pass_layer_flops(const arch *a, const windows *const sets[SET_COUNT],
                        const bool wanted[IN_COUNT]); /* one layer, all sets, with Grams */

/* Collective. scratch: a folder for the residual streams, NULL: they lie in memory. */
status pass_new(const team *t, const checkpoint *model, const windows *const sets[SET_COUNT], const bool wanted[IN_COUNT],
                const char *scratch, pass *p);
void pass_free(pass *p); /* Collective */

status pass_embed(pass *p); /* Collective: streams = embeddings */

status pass_load_layer(pass *p, int64_t layer); /* Collective: p->layer, of the model's own weights */

/* Collective. All windows through the layer that is loaded; with grams, the Grams of that layer are there afterwards (reset before).
 * progress (may be NULL) is called by every rank after each step with the fraction done. Cannot fail: what others were promised comes. */
typedef void (*pass_progress)(void *context, double fraction, double gflops);
void pass_layer(pass *p, int64_t layer, bool with_grams, pass_progress progress, void *context);
void pass_keep(pass *p); /* Collective. The inputs of a layer to p->keep, and no more */

#endif
