/* What a machine does in a second: rates of the program's own kernels, so that the time of a job can be told, on this machine or from another.
 *
 * `plan --calibrate-machine` measures them (machine_measure) on the ranks of a node, all at work at once as they will be, and keeps them as
 * RUN/machine.json:
 *
 *   { "format": "cloqwork-machine", "format_version": 1, "program_version", "host", "time", "blas", "kernel", "ranks",
 *     "rates": { NAME: { "unit": "flop/s", "of": "rank", "at": [[width, rate], ...] }, ... } }
 *
 * A rate belongs to a width, of the input of a linear: at narrow ones what is not arithmetic tells. Between two widths it is taken linear in the
 * logarithm of the width, beyond the ends as at the end. The names, what they are measured with and their units stand in the table in machine.c,
 * and rates that are not of a width say width 0. All but machine_measure is Local. */
#ifndef CLOQWORK_COST_MACHINE_H
#define CLOQWORK_COST_MACHINE_H

#include "session/session.h"

typedef enum rate_id {
  RATE_GEMM,
  RATE_LINEARS,
  RATE_ATTENTION,
  RATE_GRAM,
  RATE_MAGR,
  RATE_FACTOR,
  RATE_OPTQ,
  RATE_SWEEP,
  RATE_CANDIDATES,
  RATE_RITZ,
  RATE_DEFLATE,
  RATE_TRACE,
  RATE_DENSE,
  RATE_KRYLOV,
  RATE_VECTORS,
  RATE_CURVES,
  RATE_FINISH,
  RATE_PIVOTS,
  RATE_GRID_RANGE,
  RATE_GRID_MSE,
  RATE_GRID_SCAN,
  RATE_GRID_REFIT,
  RATE_MEMORY,
  RATE_READ_MODEL,
  RATE_READ,
  RATE_WRITE,
  RATE_COUNT
} rate_id;

enum { RATE_WIDTHS = 4 };

typedef struct rate_curve {
  int count; /* 0: not known */
  int64_t width[RATE_WIDTHS];
  double rate[RATE_WIDTHS];
} rate_curve;

typedef struct machine {
  int ranks; /* of the node, that were at work together; 0: nothing is known */
  char host[64], time[32], blas[256], kernel[64];
  rate_curve rates[RATE_COUNT];
} machine;

const char *rate_name(rate_id r);
/* Of all ranks of a node together, not of one? */
bool rate_of_node(rate_id r);
double machine_rate(const machine *m, rate_id r, int64_t width); /* > 0 */
void machine_add(machine *m, rate_id r, int64_t width, double rate);

/* A machine of which one rate is known: products run at it, and every kernel at a fraction that is a guess. */
void machine_guess(double gemm_of_a_rank, machine *m);

status machine_read(const char *path, machine *m); /* E_DATA: no such file, or a rate is missing or not positive; E_IO, E_MEMORY */
status machine_write(const char *path, const machine *m);

/* Collective. On the session's first team, while others wait; wide matrices only as far as they are done in about so many seconds.
 * E_MEMORY, E_IO, E_NUMERICS. */
status machine_measure(session *c, double seconds, machine *m);

#endif
