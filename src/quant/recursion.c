#include "quant/recursion.h"

#include <math.h>
#include <string.h>

#include "base/half.h"
#include "base/hot.h"

/* feedback (QUAD, TILE) = s + the errors of columns 0 .. n - 1, for 8 rows: eight accumulators. */
static inline __attribute__((always_inline)) void add_quad(int n, const double (*restrict u)[QUAD], const double (*restrict error)[TILE],
                                                           const double *restrict s, int ld, double (*restrict feedback)[TILE]) {
  lanes a[QUAD][2];
  for (int j = 0; j < QUAD; j++) memcpy(a[j], s + (int64_t)j * ld, sizeof a[j]);
  for (int i = 0; i < n; i++) {
    const lanes *e = (const lanes *)error[i];
    for (int j = 0; j < QUAD; j++) {
      a[j][0] += e[0] * u[i][j];
      a[j][1] += e[1] * u[i][j];
    }
  }
  for (int j = 0; j < QUAD; j++) memcpy(feedback[j], a[j], sizeof a[j]);
}

/* f[TILE] += the errors of n columns of the same part; u walks one column of a quad. */
static inline __attribute__((always_inline)) void add_column(int n, const double *restrict u, const double (*restrict error)[TILE],
                                                             double *restrict f) {
  lanes a[TILE / LANES];
  memcpy(a, f, sizeof a);
  for (int i = 0; i < n; i++) {
    const lanes *e = (const lanes *)error[i];
    for (int l = 0; l < TILE / LANES; l++) a[l] += e[l] * u[i * QUAD];
  }
  memcpy(f, a, sizeof a);
}

/* One column of 32 rows: v -> code, error and loss. With real zeros the value is rounded to float, as it is loaded; with integer ones it is
 * a float already. */
static inline __attribute__((always_inline)) void round_column(bool real, const panel *restrict p, int j, const double *restrict f,
                                                               const float *restrict scale, const float *restrict zero, tile *restrict t,
                                                               double *restrict loss) {
  double inverse = p->inverse[j], square = p->square[j], top = p->top[j];
  for (int r = 0; r < TILE; r++) {
    double w = t->w[j][r], v = w + f[r] * inverse, step = scale[r], z = zero[r];
    double u = real ? rint(v / step + z) : rint(v / step) + z;
    u = u > 0 ? u : 0;
    u = u < top ? u : top;
    double q = step * (u - z);
    if (real) q = (float)q;
    t->code[j][r] = (uint8_t)(int)u;
    t->e[j][r] = w - q;
    loss[r] += (v - q) * (v - q) * square;
  }
}

/* The recursion for 32 rows through one block. s, scale, zero start at the tile's first row; loss[TILE] is added to. */
HOT void tile_block(int columns, bool real, const panel *restrict p, const double *restrict s, const float *restrict scale,
                    const float *restrict zero, int ld, tile *restrict t, double *restrict loss) {
  for (int first = 0; first < columns; first += PART) {
    int end = first + PART < columns ? first + PART : columns;
    for (int j = first; j < end; j += QUAD)
      for (int part = 0; part < TILE; part += 2 * LANES)
        add_quad(first, p->m[j / QUAD], (const double(*)[TILE])(t->e[0] + part), s + (int64_t)j * ld + part, ld,
                 (double(*)[TILE])(t->feedback[j - first] + part));
    for (int j = first; j < end; j++) {
      double *f = t->feedback[j - first];
      add_column(j - first, p->m[j / QUAD][first] + j % QUAD, (const double(*)[TILE])t->e[first], f);
      const float *sj = scale + (int64_t)p->group[j] * ld, *zj = zero + (int64_t)p->group[j] * ld;
      if (real)
        round_column(true, p, j, f, sj, zj, t, loss);
      else
        round_column(false, p, j, f, sj, zj, t, loss);
    }
  }
}

void group_read(const grid_rule *r, int rows, int padded, code_grid from, int stride, float *scale, float *zero) {
  for (int row = 0; row < padded; row++) {
    scale[row] = row < rows ? half_to_float(from.scales[(int64_t)row * stride]) : 1;
    zero[row] = row < rows ? (float)grid_zero(r, from, (int64_t)row * stride) : 0;
  }
}
