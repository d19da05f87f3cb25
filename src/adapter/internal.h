/* What the paths of the closed form share. Private to the room. */
#ifndef CLOQWORK_ADAPTER_INTERNAL_H
#define CLOQWORK_ADAPTER_INTERNAL_H

#include <stdbool.h>

#include "adapter/adapter.h"

/* Local. Is there a metric other than the identity? Then y (rows, m) = x (rows, m) times it; no overlap. */
bool metric_given(const adapter_request *q);
status metric_apply(const adapter_request *q, int64_t rows, const double *x, double *y);

/* Local. adapter_trace in the request's metric. */
status metric_trace(const adapter_request *q, int64_t begin, int64_t end, double *row_loss, double *sum);

/* Local. Smallest eigenvalue met (lowest) against the largest: E_NUMERICS where G is not positive semidefinite to float rounding. */
status spectrum_check(const adapter_request *q, double lowest, double largest);

/* Local. rows (rank, n): orthonormal eigenvectors; signs fixed and rounded to float in place. */
void fix_signs_and_round(int64_t n, int rank, double *rows);

/* Local. Allocates out's arrays; b from the rounded rows, values clipped at 0. a stays zero. */
status factors_begin(const adapter_request *q, const double *rows, const double *values, adapter *out);

/* Local. E_NUMERICS unless every number of out is finite and the values do not exceed the trace. */
status factors_check(const adapter_request *q, const adapter *out);

#endif
