#include "quant/salience.h"

#include <string.h>

#include "base/blas.h"
#include "base/memory.h"

static status check_diagonal(int width, const double *u, int end) {
  for (int j = 0; j < end; j++) {
    double x = u[(int64_t)j * width + j];
    if (!(x > 0 && x <= 1e300))
      return fail(E_NUMERICS, "salience: factor, expected a positive diagonal, found %g at position %d of %d", x, j, width);
  }
  return OK;
}

/* Columns [first, first + SALIENCE_BLOCK) of U^-1 need the leading part of U alone: U X = I there, from the last row upwards. */
status salience_inverse(int width, const double *u, const int32_t *order, int begin, int end, double *d) {
  status st = OK;
  double *x = NULL;
  TRY(check_diagonal(width, u, end));
  TRY(NEW(x, (int64_t)width * SALIENCE_BLOCK, "salience: columns of the inverse"));
  for (int first = begin; first < end; first += SALIENCE_BLOCK) {
    int columns = end - first < SALIENCE_BLOCK ? end - first : SALIENCE_BLOCK, rows = first + columns;
    double sum[SALIENCE_BLOCK] = {0};
    memset(x, 0, (size_t)rows * (size_t)columns * sizeof *x);
    for (int j = 0; j < columns; j++) x[(int64_t)(first + j) * columns + j] = 1;
    dtrsm(false, false, false, rows, columns, u, width, x, columns);
    for (int i = 0; i < rows; i++)
      for (int j = 0; j < columns; j++) sum[j] += x[(int64_t)i * columns + j] * x[(int64_t)i * columns + j];
    for (int j = 0; j < columns; j++) d[order ? order[first + j] : first + j] = sum[j];
  }
done:
  FREE(x);
  return st;
}

status salience_factor(int width, const double *u, const int32_t *order, double *d) {
  status st = OK;
  TRY(check_diagonal(width, u, width));
  for (int j = 0; j < width; j++) d[order ? order[j] : j] = 1 / u[(int64_t)j * width + j];
done:
  return st;
}

double salience_flops(int64_t width) { return (double)width * (double)width * (double)width / 3; }

uint64_t salience_bytes(int64_t width) { return (uint64_t)width * SALIENCE_BLOCK * sizeof(double); }
