/* What allocate decides on, and what it decided. Local; private to allocate.c and allocate_result.c. */
#ifndef CLOQWORK_RUN_ALLOCATE_H
#define CLOQWORK_RUN_ALLOCATE_H

#include "run/allocation.h"
#include "session/session.h"

enum { ALLOCATE_SETTINGS = 8, ALLOCATE_NAME = 64 };

/* One setting at one rank, for one matrix; beside candidate number i of the knapsack. */
typedef struct matrix_point {
  int setting, rank;          /* setting: a place in allocator.settings */
  double relative[SET_COUNT]; /* loss / reference on calibration and held-out tokens; NaN without these */
} matrix_point;

typedef struct matrix_points {
  int64_t layer;
  linear_id linear;
  double weights, factor; /* what its relative loss counts */
  candidate *list;        /* [count]; owned */
  matrix_point *points;   /* [count]; owned */
  int count;
} matrix_points;

/* A choice for every matrix in numbers: means of relative losses, weighted by the factors. */
typedef struct outcome {
  double bits_per_weight, relative[SET_COUNT];
} outcome;

typedef struct allocator {
  session *c;                                 /* borrowed */
  const setting *settings[ALLOCATE_SETTINGS]; /* by bits; of one method, that differ in bits alone */
  int setting_count;
  double asked;             /* bits per weight */
  char name[ALLOCATE_NAME]; /* the label */
  double factor[LIN_COUNT];
  matrix_points *list; /* [count] layer by layer, the targets in their order; owned */
  int count;
  int *choice; /* [count] owned */
  double gap;  /* of the sum of losses to the bound, relative */
  outcome ours, control;
  int control_setting, control_rank; /* the best setting that is the same everywhere and fits */
} allocator;

/* The choice as a map of a sweep in RUN/allocations/NAME.yaml; *path is owned. One that is there already must say the same: E_USAGE. */
status allocate_write(const allocator *a, char **path);

/* The table, or JSON. called: the name that the allocation has in the job. */
status allocate_print(const allocator *a, const char *called, const char *path, FILE *out);
status allocate_print_json(const allocator *a, const char *called, const char *path, FILE *out);

#endif
