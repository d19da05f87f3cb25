/* How the rows of a set are cut and dealt to the ranks of a team. Local.
 *
 * Sums go by chunks of about 2048 tokens (model/tokens.h), work by segments of at most about 512: of a long window a part, of short ones
 * several whole. So a team of 64 ranks is busy with 16 windows of 2048 tokens, not only with 64. Segments follow from the window length
 * alone, like chunks: what comes out of one has the same bits whoever works on it.
 *
 * They are dealt there and back, 0 1 2 2 1 0 0 1 …: a later part of a window has more keys to look at. */
#ifndef CLOQWORK_CALIBRATE_SEGMENTS_H
#define CLOQWORK_CALIBRATE_SEGMENTS_H

#include "model/block.h"
#include "model/tokens.h"

typedef struct segment {
  int chunk;
  int64_t window; /* row of the chunk at which its (first) window begins */
  int64_t first;  /* its own first row there */
  int part;       /* which of the window's parts; 0 where windows are not cut */
  int64_t count;  /* rows */
  block_rows rows;
} segment;

int segments_per_chunk(int64_t length); /* of a full one */
int segments_parts(int64_t length);     /* of a window; 1: a segment holds whole windows */
int64_t segments_most_rows(int64_t length);
int segments_count(const windows *w);
int segments_before(const windows *w, int chunk); /* of the chunks before it; chunk = all of them: segments_count */
segment segment_at(const windows *w, int index);

/* The one that a rank of a team takes in its turn 0, 1, …: ascending; whose it is; and how many of `count` are a rank's. */
int segment_of_turn(int turn, int rank, int ranks);
int segment_owner(int index, int ranks);
int segment_turns(int count, int rank, int ranks);
int segments_most_turns(const windows *w, int ranks); /* of any rank */

#endif
