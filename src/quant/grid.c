#include "quant/grid.h"

#include <math.h>
#include <string.h>

#include "base/half.h"
#include "base/hot.h"

enum { HALF_TINY = 0x0400 /* 2^-14 */, HALF_LARGEST = 0x7BFF /* 65504 */, HALF_INFINITY = 0x7C00 };

static const char *const uniform_name = "uniform", *const nf_names[] = {[2] = "nf2", [3] = "nf3", [4] = "nf4"};

const char *grid_name(grid_kind kind, int bits) { return kind == GRID_NF ? nf_names[bits] : uniform_name; }

bool grid_named(const char *name, int64_t bits, grid_kind *kind) {
  *kind = GRID_UNIFORM;
  if (strcmp(name, uniform_name) == 0) return bits >= 1 && bits <= 8;
  *kind = GRID_NF;
  return bits >= 2 && bits <= 4 && strcmp(name, nf_names[bits]) == 0;
}

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

static void fit_group(const grid_rule *r, double lo, double hi, uint16_t *scale, uint8_t *zero, int64_t *replaced) {
  double top = (1 << r->bits) - 1;
  if (lo == 0 && hi == 0) {
    lo = -1;
    hi = 1;
  }
  if (r->symmetric) {
    double a = hi > -lo ? hi : -lo;
    *scale = storable(r->beta * 2 * a / top, replaced);
    *zero = (uint8_t)(1 << (r->bits - 1));
    return;
  }
  *scale = storable(r->beta * (hi - lo) / top, replaced);
  int64_t ignored = 0;
  uint16_t anchor = r->anchor_zero ? storable((hi - lo) / top, &ignored) : *scale;
  *zero = (uint8_t)clamp(rint(-lo / half_to_float(anchor)), top);
}

int64_t grid_fit(const grid_rule *r, int rows, int width, const float *w, int64_t ldw, uint16_t *scales, uint8_t *zeros) {
  int groups = grid_groups(r, width), columns = width / groups;
  int64_t replaced = 0;
  for (int i = 0; i < rows; i++) {
    for (int g = 0; g < groups; g++) {
      float lo, hi;
      range(columns, w + i * ldw + (int64_t)g * columns, &lo, &hi);
      fit_group(r, lo, hi, &scales[(int64_t)i * groups + g], &zeros[(int64_t)i * groups + g], &replaced);
    }
  }
  return replaced;
}

uint8_t grid_code(double w, double scale, int zero, int bits) { return (uint8_t)clamp(rint(w / scale) + zero, (1 << bits) - 1); }

static HOT void round_row(int groups, int columns, double top, const float *restrict w, const float *restrict scales,
                          const uint8_t *restrict zeros, uint8_t *restrict codes) {
  for (int g = 0; g < groups; g++) {
    double s = scales[g], z = zeros[g];
    for (int i = g * columns; i < (g + 1) * columns; i++) {
      double t = rint((double)w[i] / s) + z;
      t = t > 0 ? t : 0;
      t = t < top ? t : top;
      codes[i] = (uint8_t)(int)t;
    }
  }
}

void grid_round(const grid_rule *r, int rows, int width, const float *w, int64_t ldw, const uint16_t *scales, const uint8_t *zeros,
                uint8_t *codes) {
  enum { AT_ONCE = 256 };
  int groups = grid_groups(r, width), columns = width / groups;
  float s[AT_ONCE];
  for (int i = 0; i < rows; i++) {
    for (int g = 0; g < groups; g += AT_ONCE) {
      int n = groups - g < AT_ONCE ? groups - g : AT_ONCE;
      int64_t first = (int64_t)i * groups + g, column = (int64_t)g * columns;
      half_to_float_array(s, scales + first, (size_t)n);
      round_row(n, columns, (1 << r->bits) - 1, w + i * ldw + column, s, zeros + first, codes + (int64_t)i * width + column);
    }
  }
}
