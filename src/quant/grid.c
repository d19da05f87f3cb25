#include "quant/grid.h"

#include <math.h>

#include "base/half.h"
#include "base/hot.h"

enum { HALF_TINY = 0x0400 /* 2^-14 */, HALF_LARGEST = 0x7BFF /* 65504 */, HALF_INFINITY = 0x7C00 };

/* Least and greatest of n values and 0. Sixteen running extremes: one would be a chain that no compiler may vectorize. */
static HOT void range(int n, const float *restrict w, float *lo, float *hi) {
  float low[16] = {0}, high[16] = {0};
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int l = 0; l < 16; l++) {
      low[l] = w[i + l] < low[l] ? w[i + l] : low[l];
      high[l] = w[i + l] > high[l] ? w[i + l] : high[l];
    }
  }
  for (; i < n; i++) {
    low[0] = w[i] < low[0] ? w[i] : low[0];
    high[0] = w[i] > high[0] ? w[i] : high[0];
  }
  for (int l = 1; l < 16; l++) {
    low[0] = low[l] < low[0] ? low[l] : low[0];
    high[0] = high[l] > high[0] ? high[l] : high[0];
  }
  *lo = low[0];
  *hi = high[0];
}

/* s >= 0 as fp16, never 0 and never infinite. */
static uint16_t storable(double s, int64_t *replaced) {
  uint16_t h = float_to_half((float)s);
  if (h != 0 && h < HALF_INFINITY) return h;
  ++*replaced;
  return h == 0 ? HALF_TINY : HALF_LARGEST;
}

static double clamp(double x, double top) { return x > 0 ? (x < top ? x : top) : 0; }

/* One group, whose entry is `at`. */
static void fit_group(const grid_rule *r, int bits, double lo, double hi, code_grid g, int64_t at, int64_t *replaced) {
  double top = (1 << bits) - 1, zero = 1 << (bits - 1);
  if (lo == 0 && hi == 0) {
    lo = -1;
    hi = 1;
  }
  if (r->symmetric) {
    double a = hi > -lo ? hi : -lo;
    g.scales[at] = storable(r->beta * 2 * a / top, replaced);
  } else {
    g.scales[at] = storable(r->beta * (hi - lo) / top, replaced);
    int64_t ignored = 0;
    uint16_t anchor = r->anchor_zero ? storable((hi - lo) / top, &ignored) : g.scales[at];
    zero = clamp(-lo / half_to_float(anchor), top);
  }
  if (r->real_zero)
    g.real_zeros[at] = float_to_half((float)zero);
  else
    g.zeros[at] = (uint8_t)rint(zero);
}

status grid_fit(const grid_rule *r, int rows, int width, const float *w, int64_t ldw, const float *weight, code_grid g, int64_t *replaced) {
  int groups = grid_groups(r, width), columns = width / groups;
  int64_t count = 0;
  (void)weight;
  for (int i = 0; i < rows; i++) {
    for (int k = 0; k < groups; k++) {
      float lo, hi;
      range(columns, w + i * ldw + (int64_t)k * columns, &lo, &hi);
      fit_group(r, group_bits(r, k), lo, hi, g, (int64_t)i * groups + k, &count);
    }
  }
  if (replaced) *replaced = count;
  return OK;
}

uint8_t grid_code(double w, double scale, double zero, int bits) { return (uint8_t)clamp(rint(w / scale) + zero, (1 << bits) - 1); }

uint8_t grid_code_real(double w, double scale, double zero, int bits) { return (uint8_t)clamp(rint(w / scale + zero), (1 << bits) - 1); }

static HOT void round_group(int n, double top, const float *restrict w, double scale, double zero, uint8_t *restrict codes) {
  for (int i = 0; i < n; i++) {
    double t = rint((double)w[i] / scale) + zero;
    t = t > 0 ? t : 0;
    t = t < top ? t : top;
    codes[i] = (uint8_t)(int)t;
  }
}

static HOT void round_group_real(int n, double top, const float *restrict w, double scale, double zero, uint8_t *restrict codes) {
  for (int i = 0; i < n; i++) {
    double t = rint((double)w[i] / scale + zero);
    t = t > 0 ? t : 0;
    t = t < top ? t : top;
    codes[i] = (uint8_t)(int)t;
  }
}

void grid_round(const grid_rule *r, int rows, int width, const float *w, int64_t ldw, code_grid g, uint8_t *codes) {
  int groups = grid_groups(r, width), columns = width / groups;
  for (int i = 0; i < rows; i++) {
    for (int k = 0; k < groups; k++, codes += columns) {
      int64_t at = (int64_t)i * groups + k;
      (r->real_zero ? round_group_real : round_group)(columns, (1 << group_bits(r, k)) - 1, w + i * ldw + (int64_t)k * columns,
                                                      half_to_float(g.scales[at]), grid_zero(r, g, at), codes);
    }
  }
}
