#include "calibrate/cross_gram.h"

#include <string.h>

#include "base/blas.h"
#include "base/hot.h"
#include "base/memory.h"
#include "calibrate/gram.h"
#include "dist/agree.h"

uint64_t cross_gram_shared_bytes(int64_t rows, int64_t cols) { return (uint64_t)(rows * cols) * sizeof(double); }

uint64_t cross_gram_private_bytes(int64_t cols) {
  uint64_t side = (uint64_t)gram_unit_side(cols);
  return side * side * sizeof(float);
}

status cross_gram_new(const team *t, int64_t rows, int64_t cols, cross_gram *x) {
  status st = OK;
  *x = (cross_gram){.t = t, .rows = (int)rows, .cols = (int)cols};
  st = NEW(x->product, cross_gram_private_bytes(cols) / sizeof(float), "product of two streams");
  TRY(agree(t->comm, st));
  TRY(shared_new(t, cross_gram_shared_bytes(rows, cols), "cross products of two streams", &x->sums));
done:
  if (st != OK) cross_gram_free(x);
  return st;
}

void cross_gram_free(cross_gram *x) {
  shared_free(&x->sums);
  FREE(x->product);
  *x = (cross_gram){0};
}

/* Units are as good as equal, so that turns balance them. */
static int mine(const cross_gram *x, int index) { return index % x->t->size == x->t->rank; }

void cross_gram_reset(cross_gram *x) {
  int64_t begin, end;
  team_barrier(x->t);
  deal_range(x->rows, x->t->size, x->t->rank, 1, &begin, &end);
  memset((double *)x->sums.base + begin * x->cols, 0, (size_t)((end - begin) * x->cols) * sizeof(double));
  team_barrier(x->t);
}

HOT static void add_product(int rows, int cols, const float *restrict product, double *restrict sums, int64_t ld) {
  for (int r = 0; r < rows; r++)
    for (int k = 0; k < cols; k++) sums[r * ld + k] += (double)product[r * cols + k];
}

void cross_gram_add(cross_gram *x, const float *left, int64_t left_stride, const float *right, int64_t right_stride, const int *tokens,
                    int chunks, int per_product) {
  int side = gram_unit_side(x->cols), index = 0;
  for (int row = 0; row < x->rows; row += side)
    for (int col = 0; col < x->cols; col += side) {
      int rows = x->rows - row < side ? x->rows - row : side, cols = x->cols - col < side ? x->cols - col : side;
      if (!mine(x, index++)) continue;
      double *to = (double *)x->sums.base + (int64_t)row * x->cols + col;
      for (int first = 0; first < chunks; first += per_product) {
        for (int c = first; c < chunks && c < first + per_product; c++)
          sgemm(true, false, rows, cols, tokens[c], 1, left + c * left_stride + row, x->rows, right + c * right_stride + col, x->cols,
                c > first, x->product, cols);
        add_product(rows, cols, x->product, to, x->cols);
      }
    }
}
