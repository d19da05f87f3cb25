/* A number of a setting that need not be the same for every matrix: its bits, its group, its rank. Local.
 *
 * In the job file a number, or a mapping whose keys say where another value holds:
 *
 *     bits: { default: 2, down_proj: 4, layers 0-15: 3, layer 7: 4, layers 0-3 down_proj: 8, layers.3.mlp.down_proj: 8 }
 *
 * One rule decides between keys that speak of the same matrix: a key that names a target goes before one that names layers alone; of two
 * such keys the one with fewer layers; of two with as many the later one. */
#ifndef CLOQWORK_JOB_MATRIX_NUMBERS_H
#define CLOQWORK_JOB_MATRIX_NUMBERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/json.h"
#include "base/status.h"
#include "model/checkpoint.h"

typedef struct value_at {
  int64_t first, last; /* layers, both included; last ALL_LAYERS: whatever there is */
  int linear;          /* a linear_id; LIN_COUNT: all */
  int value;
} value_at;
enum { ALL_LAYERS = 1 << 20, LAYERS_MOST = 9999 };

typedef struct matrix_numbers {
  int usual;
  value_at *list; /* in the file's order; owned */
  int count;      /* 0: the same everywhere */
} matrix_numbers;

/* v: an integer from lo to hi or such a mapping, with `default` and no target but those of `target`; what says which values are expected.
 * where: "job.yaml: sweep.bits". E_USAGE names the key, and the target nearest to an unknown one. */
status numbers_read(const char *where, const char *what, const json_t *v, int lo, int hi, const bool target[LIN_COUNT], matrix_numbers *n);
status numbers_copy(const matrix_numbers *from, matrix_numbers *to);
void numbers_free(matrix_numbers *n);

int numbers_at(const matrix_numbers *n, int64_t layer, linear_id l);
bool numbers_equal(const matrix_numbers *a, const matrix_numbers *b);

/* From this layer on the number depends on the linear alone. */
int64_t numbers_layers(const matrix_numbers *n);

/* The first layer that an exception names and that does not exist in a model with so many: a text for a message; false: none. */
enum { NUMBERS_TEXT = 80 };
bool numbers_beyond(const matrix_numbers *n, int64_t layers, char text[NUMBERS_TEXT]);

/* Adds to a setting's name what the exceptions say, "-down_proj_b4-layers0-15_b3" for the letter b. Returns the length that the name
 * would have had with room enough. */
size_t numbers_tag(const matrix_numbers *n, char letter, char *name, size_t used, size_t size);

#endif
