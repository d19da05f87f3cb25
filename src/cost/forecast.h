/* How long a job will take: counts of what the stages do, by the solver's own dealing of rows and matrices, over a machine's rates. Local.
 *
 * Of every step of a layer the time of the rank that has the most to do: rows are dealt in slabs and matrices whole, so that many ranks may wait
 * for one. A layer's steps follow one another; teams work side by side:
 *
 *   calibrate   layers go round the teams, each a step of windows behind the one before: with S steps a layer and T teams
 *               the l-th layer begins 1 / S of a layer's time behind the one before, and not before its team is done with layer l - T
 *   solve       the team with the most to do: equal shares of the layers that have any, and settings that follow their prefix dealt whole
 *   files       one file system for all teams: whatever they are, their bytes pass at its rate
 *
 * Methods that stop when a round gains little are counted with all their rounds: refine made 19 to 21 of its 21 (SmolLM2, 3 bits). */
#ifndef CLOQWORK_COST_FORECAST_H
#define CLOQWORK_COST_FORECAST_H

#include "cost/machine.h"

/* Steps as metrics.jsonl names them, parts of forward_and_grams and of the start told apart; and the stage that each belongs to. */
typedef enum forecast_step {
  STEP_SCAN, /* every weight is read once before anything begins */
  STEP_WEIGHTS,
  STEP_LINEARS,
  STEP_ATTENTION,
  STEP_GRAMS,
  STEP_GRAM_WRITE,
  STEP_LOAD,
  STEP_MAGR,
  STEP_FACTOR,
  STEP_QUANTIZE,
  STEP_REFINE,
  STEP_JOINT,
  STEP_TRACE,
  STEP_ADAPTER,
  STEP_LOSSES,
  STEP_WRITE,
  STEP_PREFIX, /* windows and Grams of settings that follow their prefix */
  STEP_COUNT
} forecast_step;
extern const char *const step_names[STEP_COUNT];
enum { STEP_SOLVE = STEP_LOAD }; /* the first that is not calibrate's */

typedef struct geometry {
  int nodes, ranks, team, teams; /* ranks of a node, and of a team */
} geometry;
/* together: ranks of a team as the job says, 0: all of a node. */
geometry geometry_of(int nodes, int ranks, int together);

/* flops and bytes of all ranks; busy: what every rank works of the seconds, on average; files: seconds of it that the file system takes. */
typedef struct forecast_part {
  double flops, bytes, seconds, busy, files;
} forecast_part;

/* What is missing: layer by layer, bits of sets without Grams, and of each view (session_split) the settings without solutions. */
typedef struct forecast_todo {
  const session *c;
  const session_views *views;
  const uint8_t *grams;  /* [layers] */
  bool *const *settings; /* [views] -> [layers][settings of the view] */
} forecast_todo;

typedef struct forecast {
  forecast_part steps[STEP_COUNT];
  double calibrate, solve; /* seconds; settings that follow their prefix are part of solve */
  int steps_a_layer;       /* S */
} forecast;

status forecast_make(const forecast_todo *todo, const machine *m, const geometry *g, forecast *f); /* E_MEMORY */

#endif
