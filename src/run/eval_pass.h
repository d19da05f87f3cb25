/* The original model and variants of its linears over the same windows, side by side, layer after layer, to what each of them predicts.
 *
 * Chunks of windows (model/tokens.h) are dealt to the teams by their ranks, and a team's chunks to its ranks by segments
 * (calibrate/segments.h). A rank keeps the residual streams of its segments, one set for the original and one for each variant of a batch.
 * In a layer the team holds the original's weights and one variant's, and the keys and values of its windows, in memory its ranks share;
 * variants take turns in the latter two. The original goes along with the first batch alone: its final hidden states are kept. The head is
 * walked in strips that fit the weights' memory (model/head.h).
 * What a window scores depends on the window length, the weights and the tokens alone: the same bits on any number of ranks and teams. */
#ifndef CLOQWORK_RUN_EVAL_PASS_H
#define CLOQWORK_RUN_EVAL_PASS_H

#include <stdbool.h>

#include "calibrate/pass.h"
#include "calibrate/segments.h"
#include "dist/team.h"
#include "model/block.h"
#include "model/head.h"
#include "model/tokens.h"

typedef struct eval_pass {
  const team *t; /* borrowed, like model and w */
  const checkpoint *model;
  const windows *w;
  int room, count;          /* variants: there is room for; of this batch */
  int chunk;                /* the team's first */
  int segments, mine;       /* from that chunk's first: the team's; of this rank */
  bool original_done;       /* streams[0] holds final hidden states */
  float **streams;          /* [1 + room] (mine * rows of a segment, d): 0 the original's */
  prediction **predictions; /* [1 + room] (mine * rows of a segment) */
  float *n, *wide;          /* (rows of a segment, d) and (…, block_wide) */
  int32_t *next;            /* (rows of a segment) */
  block_scratch block;
  head_scratch head;
  shared weights, changed; /* of a layer: the original's; a variant's targets */
  shared keys;             /* and values of the team's chunks */
  layer_weights original, variant;
  float *target[LIN_COUNT]; /* where a variant's targets are to be written: in `changed`; NULL: not a target */
  double weights_seconds, forward_seconds, head_seconds,
      flops; /* of this rank so far; flops: of its own segments: linears 2 params a token, scores and values 4 h D a visible pair, the head 2 d V */
} eval_pass;

/* Memory of one rank: whatever the variants, and for each; and what its team shares. */
typedef struct eval_bytes {
  uint64_t fixed, variant, shared;
} eval_bytes;
eval_bytes eval_pass_memory(const team *t, const arch *a, const windows *w); /* the same for every rank of a team */

/* Collective over the team (and all teams alike). targets: which linears variants replace. E_MEMORY. */
status eval_pass_new(const team *t, const checkpoint *model, const windows *w, const bool targets[LIN_COUNT], int room, eval_pass *p);
void eval_pass_free(eval_pass *p); /* Collective; accepts an empty one */

/* Local: this rank's rows of a variant's targets into target[l] (out, in), which are shared. */
typedef status (*eval_fill)(void *context, int64_t layer, int variant, float *const target[LIN_COUNT]);

status eval_pass_begin(eval_pass *p, int count); /* Collective over the team: a batch of so many variants, at most `room` */
/* Collective over the team. progress (may be NULL) is called by every rank after each variant. */
status eval_pass_layer(eval_pass *p, int64_t layer, eval_fill fill, void *fill_context, pass_progress progress, void *context);
/* Collective over the team, after the last layer. */
status eval_pass_head(eval_pass *p, pass_progress progress, void *context);
/* Local. sums [1 + count][windows * segments_parts]: those of my segments; the others stay as they are. names [1 + count] for messages:
 * E_NUMERICS where a logit is not finite. */
status eval_pass_scores(const eval_pass *p, const char *const *names, prediction_score *sums);

#endif
