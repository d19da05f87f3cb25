/* What `plan` found out, for its table and its JSON (plan_print.c). Private to plan*.c. */
#ifndef CLOQWORK_RUN_PLAN_H
#define CLOQWORK_RUN_PLAN_H

#include <stdio.h>

#include "cost/forecast.h"
#include "session/sharing.h"

typedef struct stage {
  int64_t units, missing;
  double flops, seconds; /* of what is missing */
  uint64_t rank;         /* bytes of a rank at its peak; 0: nothing is missing */
} stage;

/* A way to run the job, and what it takes. */
typedef struct plan_option {
  geometry g;
  forecast f;
  uint64_t node; /* bytes at the peak */
} plan_option;

enum { PLAN_OPTIONS = 8 };

typedef struct plan {
  int64_t layers;
  stage calibrate, solve;
  stage follow;  /* settings that follow their own prefix, with their Grams */
  uint64_t base; /* of a rank before any work: program and libraries */
  uint64_t rank_peak, node_peak, node_memory, disk_grams, disk_solutions, disk_free;
  sharing sharing;  /* of what is missing */
  double gemm_rate; /* flops/s of all ranks of this call, measured now */
  bool measured;    /* the rates are a machine's; else guesses from gemm_rate */
  bool given;       /* nodes or ranks a node were asked for; else the geometry is that of this call */
  machine machine;
  char machine_path[256];
  geometry geometry;
  forecast forecast;
  plan_option options[PLAN_OPTIONS]; /* other numbers of nodes, ascending */
  int option_count, recommended;     /* index; -1: none fits a node's memory */
  double night;                      /* hours that are allowed */
} plan;

static inline double plan_seconds(const forecast *f) { return f->calibrate + f->solve; }
static inline double plan_node_hours(const geometry *g, const forecast *f) { return g->nodes * plan_seconds(f) / 3600; }

void plan_print(const session *c, const plan *p, FILE *out);
json_t *plan_json(const session *c, const plan *p); /* owned; NULL: no memory */

#endif
