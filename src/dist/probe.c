#include "dist/probe.h"

#include "base/hot.h"

/* The finalizer of splitmix64. */
double probe_sign(int64_t j) {
  uint64_t z = ((uint64_t)j + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return (z >> 63) ? -1 : 1;
}

HOT void probe_add(double *restrict y, double a, const double *restrict x, int n) {
  for (int j = 0; j < n; j++) y[j] += a * x[j];
}

HOT double probe_dot(const double *restrict x, const double *restrict y, int n) {
  double s = 0;
#pragma omp simd reduction(+ : s)
  for (int j = 0; j < n; j++) s += x[j] * y[j];
  return s;
}

HOT double probe_dot_float(const float *restrict x, const double *restrict y, int n) {
  double s = 0;
#pragma omp simd reduction(+ : s)
  for (int j = 0; j < n; j++) s += (double)x[j] * y[j];
  return s;
}
