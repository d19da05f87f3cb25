/* What a report says of the results, read from the containers of a run. Local; private to this room. */
#ifndef CLOQWORK_REPORT_DATA_H
#define CLOQWORK_REPORT_DATA_H

#include <dirent.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "job/job.h"
#include "model/checkpoint.h"
#include "session/eval_results.h"

enum { MATRIX_ALL = LIN_COUNT, MATRIX_TYPES, ON_CALIBRATION = 0, ON_HELDOUT, GRAM_KINDS };

/* One matrix type of one setting, or all of them together. Arrays have a place per point: rank 0 and every listed rank. */
typedef struct matrix_report {
  int64_t count;            /* matrices: layers that hold this type */
  double seconds;           /* sum */
  double *loss[GRAM_KINDS]; /* [points] geometric mean of loss / reference; NaN where a matrix lacks it; owned */
  double adapter_size;      /* geometric mean of ||BA||_F / ||W||_F at the largest rank; NaN where a matrix lacks it */
  double *bits; /* [points] bits per weight: codes, grid (fp16 scales and zeros of `bits` bits; NF4: absmax), adapter in fp16; owned */
} matrix_report;

/* One matrix of one layer. Losses are over the reference, NaN where that is 0. */
typedef struct matrix_entry {
  linear_id linear;
  int64_t layer, out, in, code_bits, numerical_rank, tokens, raised_scales;
  double seconds, *loss[GRAM_KINDS]; /* [points]; owned */
  double *bits;                      /* [points] bits of the whole matrix; owned */
  /* Of the largest variant, at every rank; owned. tail: what its spectrum says the loss must be, NULL where that certifies a loss in another metric. */
  double *curve[GRAM_KINDS], *tail; /* [curve_length[0], curve_length[1], curve_length[0]]; curve NULL: no such loss */
  int64_t curve_length[GRAM_KINDS];
} matrix_entry;

typedef struct setting_report {
  char *name, *method;                    /* owned */
  int64_t bits, bits_most, group, layers; /* bits: the fewest and the most of any matrix */
  int *points;                            /* [point_count] ascending, points[0] = 0; owned */
  int *variants; /* [point_count] the rank whose codes serve a point, 0: codes are those of all ranks, or every matrix has its own; owned */
  bool refined;  /* codes were made for an adapter of such a rank, and may serve others */
  bool own_inputs; /* it follows its own prefix: its losses are those of its own inputs, and no others' */
  int point_count;
  matrix_report matrix[MATRIX_TYPES];
  char *metric;          /* in which the adapter is optimal: that of `verify`'s certificate; owned */
  matrix_entry *entries; /* by layer; owned */
  int entry_count, entry_room;
  eval_result eval; /* of RUN/eval, if it belongs to these very files and to the original's evaluation; else without points */
} setting_report;

typedef struct run_report {
  char *model, *model_fingerprint;        /* "" when RUN/run.h5 is not there yet; owned */
  int64_t layers, tokens, heldout_tokens; /* 0: unknown, or none */
  double per_column[IN_COUNT];            /* calibration tokens for a column of a Gram, the least of all files; NaN: unknown */
  eval_result original;                   /* without points: not evaluated */
  setting_report *settings;               /* sorted by name, numbers in names by value; owned */
  int setting_count;
} run_report;

/* pattern: of the settings to read, a shell pattern; NULL: all. E_DATA: no folder, no solutions, a damaged file. E_IO, E_MEMORY. */
status report_read(const char *run_folder, const job *asked, const char *pattern, run_report *r);
void report_free(run_report *r);

/* How far the stored losses are from the tail of the spectrum, at the worst rank: over the tail where that counts (above 1e-9 of the loss of the
 * codes alone), as verify does. NaN: no tail to hold them against. */
double entry_certificate(const matrix_entry *m);
int report_find_point(const setting_report *s, int rank); /* -1: none */
bool report_own_inputs(const run_report *r);              /* of any setting */

/* Sorted names of a folder, for report_list_free; a folder that is not there has none. */
status report_list(const char *path, int (*accept)(const struct dirent *), struct dirent ***names, int *count);
void report_list_free(struct dirent ***names, int count);
int report_is_layer_file(const struct dirent *e); /* layer-012.h5 */
int report_is_shown(const struct dirent *e);      /* no hidden one */

#endif
