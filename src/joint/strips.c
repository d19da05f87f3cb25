#include "joint/strips.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "base/blas.h"
#include "dist/agree.h"

/* A multiple of ALIGN columns: of a cache line and of the panels of adapter/mixed.h. Enough strips for the ranks of a node, none below half as
 * wide as it is high: parts stay small. */
enum { ALIGN = 48, MOST = 256 };

static int64_t strip_width(int rows, int64_t length) {
  int64_t width = rows / 2 > length / MOST ? rows / 2 : length / MOST;
  return width < ALIGN ? ALIGN : (width + ALIGN - 1) / ALIGN * ALIGN;
}

strips strips_cut(const team *t, int rows, int64_t length) {
  int64_t width = strip_width(rows, length), first, last;
  strips s = {.rows = rows, .count = (int)((length + width - 1) / width), .width = (int)width, .length = length};
  deal_range(s.count, t->size, t->rank, 1, &first, &last);
  s.first = (int)first;
  s.last = (int)last;
  int64_t end = last * width < length ? last * width : length;
  s.begin = first * width < length ? first * width : length;
  s.columns = end - s.begin;
  return s;
}

uint64_t strips_parts(int rows, int64_t length) {
  int64_t width = strip_width(rows, length);
  return (uint64_t)((length + width - 1) / width) * (uint64_t)rows * (uint64_t)rows;
}

uint64_t strips_bytes(int rows, int64_t length) {
  uint64_t r = (uint64_t)rows, packed = 2 << 20;
  return sizeof(double) * (r * (uint64_t)strip_width(rows, length) + 6 * r * r) + packed;
}

static int columns_of(const strips *s, int strip) {
  int64_t left = s->length - (int64_t)strip * s->width;
  return left < s->width ? (int)left : s->width;
}

void strips_products(const strips *s, const double *x, const double *y, double *parts) {
  size_t square = (size_t)s->rows * (size_t)s->rows;
  for (int i = s->first; i < s->last; i++) {
    int64_t from = (int64_t)i * s->width;
    dgemm(false, true, s->rows, s->rows, columns_of(s, i), 1, x + from, (int)s->length, y + from, (int)s->length, 0,
          parts + (size_t)i * square, s->rows);
  }
}

void strips_turn(const strips *s, int made, const double *turn, const double *x, double *out, double *work) {
  for (int i = s->first; i < s->last; i++) {
    int64_t from = (int64_t)i * s->width;
    int columns = columns_of(s, i);
    dgemm(false, false, made, columns, s->rows, 1, turn, s->rows, x + from, (int)s->length, 0, work, columns);
    for (int r = 0; r < made; r++) memcpy(out + r * s->length + from, work + (size_t)r * (size_t)columns, (size_t)columns * sizeof *out);
  }
}

void strips_times(const strips *s, bool transpose, int terms, const float *x, const float *f, float *out, double *wide, float *work) {
  int length = (int)s->length;
  for (int i = s->first; i < s->last; i++) {
    int64_t from = (int64_t)i * s->width;
    int columns = columns_of(s, i);
    sgemm(false, transpose, s->rows, columns, terms, 1, x, terms, transpose ? f + from * terms : f + from, transpose ? terms : length, 0,
          out ? out + from : work, out ? length : columns);
    for (int r = 0; !out && r < s->rows; r++)
      for (int j = 0; j < columns; j++) wide[r * s->length + from + j] = (double)work[r * columns + j];
  }
}

bool strips_sum(const strips *s, const double *parts, double *sum) {
  size_t n = (size_t)s->rows, square = n * n;
  double check = 0;
  memset(sum, 0, square * sizeof *sum);
  for (int i = 0; i < s->count; i++)
    for (size_t j = 0; j < square; j++) sum[j] += parts[(size_t)i * square + j];
  for (size_t i = 0; i < n; i++)
    for (size_t j = 0; j <= i; j++) {
      double mean = 0.5 * (sum[i * n + j] + sum[j * n + i]);
      sum[i * n + j] = sum[j * n + i] = mean;
      check += fabs(mean);
    }
  return isfinite(check);
}

status strips_meet(const team *t, status st) {
  atomic_thread_fence(memory_order_seq_cst);
  st = agree(t->comm, st);
  atomic_thread_fence(memory_order_seq_cst);
  return st;
}
