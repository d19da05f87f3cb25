/* Token ids from a .npy file, and the calibration windows drawn from them. Local. */
#ifndef CLOQWORK_MODEL_TOKENS_H
#define CLOQWORK_MODEL_TOKENS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/hash.h"
#include "base/status.h"

typedef enum sampling { SAMPLE_RANDOM, SAMPLE_SEQUENTIAL } sampling;

typedef struct window_request {
  const char *path; /* .npy, one dimension, any integer type */
  int64_t windows;  /* 0: all that the file holds, one after the other */
  int64_t length;
  sampling how;
  int64_t seed;
} window_request;

typedef struct windows {
  int64_t count, length;
  int32_t *ids;               /* (count, length); owned */
  int64_t *start;             /* [count] position of each window in the file; owned */
  char fingerprint[HASH_HEX]; /* of the ids (as little-endian int32) and the shape */
} windows;

/* E_DATA: not a .npy of integers, one dimension; an id anywhere in the file outside 0..vocab-1 (names position and id); too few ids.
 * SAMPLE_RANDOM draws random.Random(seed).randint(0, n - length - 1) as Python does, in order; SEQUENTIAL is consecutive, without overlap. */
status windows_draw(const window_request *q, int64_t vocab, windows *w);
void windows_free(windows *w);

/* A chunk is what one rank carries through the model at a time: a window, or as many short ones as make about 2048 tokens, so that no
 * product is thin. Chunks follow from the window length alone, never from the ranks: results that are summed by chunks are the same on
 * any number of them. */
int windows_per_chunk(int64_t length);
int windows_chunks(const windows *w);
int windows_in_chunk(const windows *w, int chunk);             /* the last chunk may hold fewer */
int64_t windows_chunk_rows(const windows *w);                  /* tokens of a full chunk */
const int32_t *windows_chunk_ids(const windows *w, int chunk); /* borrowed */

/* CPython's Mersenne Twister. */
typedef struct python_random {
  uint32_t state[624];
  int at;
} python_random;
void python_random_seed(python_random *r, int64_t seed);
uint32_t python_random_next32(python_random *r);
int64_t python_randint(python_random *r, int64_t lo, int64_t hi); /* both ends included; hi - lo < 2^63 - 1 */

#endif
