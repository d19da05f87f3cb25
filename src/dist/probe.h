/* Random probes for residuals, and the vector kernels that they need. Local; private to dist. */
#ifndef CLOQWORK_DIST_PROBE_H
#define CLOQWORK_DIST_PROBE_H

#include <stdint.h>

double probe_sign(int64_t j); /* +1 or -1, fixed for every index, without pattern */

void probe_add(double *restrict y, double a, const double *restrict x, int n); /* y += a x */
double probe_dot(const double *restrict x, const double *restrict y, int n);
double probe_dot_float(const float *restrict x, const double *restrict y, int n);

#endif
