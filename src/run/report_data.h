/* What report prints, read from the containers of a run. Local; private to report.c. */
#ifndef CLOQWORK_RUN_REPORT_DATA_H
#define CLOQWORK_RUN_REPORT_DATA_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "run/eval_results.h"
#include "run/job.h"
#include "model/checkpoint.h"

enum { MATRIX_ALL = LIN_COUNT, MATRIX_TYPES, ON_CALIBRATION = 0, ON_HELDOUT, GRAM_KINDS };

/* One matrix type of one setting, or all of them together. Arrays have a place per point: rank 0 and every listed rank. */
typedef struct matrix_report {
  int64_t count;            /* matrices: layers that hold this type */
  double seconds;           /* sum */
  double *loss[GRAM_KINDS]; /* [points] geometric mean of loss / reference; NaN where a matrix lacks it; owned */
  double adapter_size;      /* geometric mean of ||BA||_F / ||W||_F at the largest rank; NaN where a matrix lacks it */
  double *bits; /* [points] bits per weight: codes, grid (fp16 scales and zeros of `bits` bits; NF4: absmax), adapter in fp16; owned */
} matrix_report;

typedef struct setting_report {
  char *name, *method; /* owned */
  int64_t bits, group, layers;
  int *points;   /* [point_count] ascending, points[0] = 0; owned */
  int *variants; /* [point_count] the rank whose codes serve a point, 0: codes are those of all ranks, or every matrix has its own; owned */
  bool refined;  /* codes were made for an adapter of such a rank, and may serve others */
  int point_count;
  matrix_report matrix[MATRIX_TYPES];
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

#endif
