/* The weights that an input of the quantized prefix asks for: they give the original model's outputs as well as can be. Local.
 *
 * min ||X W^T - Xq W1^T||^2 + mu ||W - W1||^2 has the solution W1 (Hq + mu I) = W X^T Xq + mu W (spec methods.md, section 11; QEP, arXiv
 * 2504.09629). What is to be quantized is part of the way there: W + alpha (W1 - W). */
#ifndef CLOQWORK_CALIBRATE_TARGET_H
#define CLOQWORK_CALIBRATE_TARGET_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

enum { TARGET_ROWS = 64 }; /* ranks take rows in such slabs, counted from the first: a row's bits do not depend on who makes it */

typedef struct target_request {
  const char *where;
  int64_t n, m;         /* W is (n, m) */
  const double *cross;  /* X^T Xq (m, m), or (X W^T)^T Xq (n, m) */
  bool of_outputs;      /* the latter */
  const float *h;       /* Hq (m, m) */
  const double *factor; /* u (m, m) upper, u u^T = Hq + mu I (dist/dlinalg.h) */
  double mu;            /* absolute */
  double alpha;         /* 0 to 1 */
} target_request;

/* Rows [begin, end) of w (n, m), in place. Columns that no token of the prefix reaches (h_jj = 0) keep their weights. A row of every slab is held against
 * its equation. 2 to 4 n m^2 flops, in double. E_MEMORY, E_NUMERICS. */
status target_rows(const target_request *q, int64_t begin, int64_t end, float *w);

uint64_t target_bytes(int64_t m); /* of its workspace */
double target_flops(int64_t n, int64_t m, bool of_outputs);

#endif
