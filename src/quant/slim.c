#include "quant/slim.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/blas.h"
#include "base/half.h"
#include "base/hot.h"
#include "base/memory.h"
#include "quant/codes.h"

enum { FEWER, SAME, MORE, WIDTHS };
enum { CHUNK = 256 /* rows at a time */, TAU_STEPS = 50, HALF_INFINITY = 0x7C00 };

/* ---- widths ---- */

typedef struct scored {
  double salience;
  int group;
} scored;

static int by_salience(const void *a, const void *b) {
  const scored *x = a, *y = b;
  return x->salience > y->salience ? -1 : x->salience < y->salience ? 1 : x->group - y->group;
}

static status order_groups(const slim_request *q, int size, scored *list) {
  int groups = q->width / size;
  for (int g = 0; g < groups; g++) list[g] = (scored){0, g};
  for (int i = 0; i < q->rows; i++) {
    const float *w = q->w + i * q->ldw;
    for (int j = 0; j < q->width; j++)
      if (!q->dead || !q->dead[j]) list[j / size].salience += (double)w[j] * (double)w[j] / (q->d[j] * q->d[j]);
  }
  for (int g = 0; g < groups; g++)
    if (!isfinite(list[g].salience))
      return fail(E_NUMERICS, "slim: columns %d to %d, expected finite weights and a positive diagonal, found a salience of %g", g * size,
                  (g + 1) * size - 1, list[g].salience);
  qsort(list, (size_t)groups, sizeof *list, by_salience);
  return OK;
}

/* Some rows, rounded to nearest with each of the three widths. */
typedef struct slab {
  int rows;
  float *values[WIDTHS];         /* (CHUNK, width) */
  uint8_t *codes;                /* (CHUNK, width) */
  uint16_t *scales, *real_zeros; /* (CHUNK, groups) */
  uint8_t *zeros;
  double *e;           /* (CHUNK, width): w less the values with the widths of now */
  double *h, *product; /* (size, width): columns of a group, which are rows; (CHUNK, size) */
} slab;

static status round_rows(const slim_request *q, int begin, slab *b) {
  status st = OK;
  const float *w = q->w + begin * q->ldw;
  code_grid g = {.scales = b->scales, .zeros = b->zeros, .real_zeros = b->real_zeros};
  grid_rule r = q->rule;
  r.mixed = false;
  r.widths = NULL;
  for (int k = 0; k < WIDTHS; k++) {
    r.bits = q->rule.bits + k - SAME;
    TRY(grid_fit(&r, b->rows, q->width, w, q->ldw, q->weight, g, NULL));
    grid_round(&r, b->rows, q->width, w, q->ldw, g, b->codes);
    codes_bytes_values(&r, b->rows, q->width, b->codes, g, b->values[k]);
  }
  for (int i = 0; i < b->rows; i++)
    for (int j = 0; j < q->width; j++)
      b->e[(int64_t)i * q->width + j] = (double)w[i * q->ldw + j] - (double)b->values[SAME][(int64_t)i * q->width + j];
done:
  return st;
}

/* By how much tr(E H E^T) of the slab grows when a group of columns takes other values: E is halfway between when H meets it. */
static double change_group(const slim_request *q, int size, int group, int to, slab *b) {
  int width = q->width, first = group * size;
  const float *from = b->values[SAME], *values = b->values[to];
  double sum = 0;
  for (int i = 0; i < size; i++)
    for (int j = 0; j < width; j++) b->h[(int64_t)i * width + j] = q->h[(int64_t)(first + i) * width + j];
  for (int pass = 0; pass < 2; pass++) {
    for (int i = 0; i < b->rows; i++) {
      int64_t at = (int64_t)i * width + first;
      for (int j = 0; j < size; j++) {
        double d = (double)from[at + j] - (double)values[at + j];
        if (pass) sum += 2 * d * b->product[(int64_t)i * size + j];
        b->e[at + j] += d / 2;
      }
    }
    if (pass == 0) dgemm(false, true, b->rows, size, width, 1, b->e, width, b->h, width, 0, b->product, size);
  }
  return sum;
}

int slim_scores(const grid_rule *r, int width) {
  int half = grid_groups(r, width) / 2;
  return half > 1 ? half : 1;
}

status slim_choose(const slim_request *q, uint8_t *widths, double *scores) {
  status st = OK;
  int groups = grid_groups(&q->rule, q->width), size = q->width / groups, count = slim_scores(&q->rule, q->width), best = 0;
  int64_t all = (int64_t)CHUNK * q->width;
  slab b = {0};
  scored *list = NULL;
  double *score = NULL;
  TRY(NEW(list, groups, "slim: groups by salience"));
  TRY(NEW(score, count, "slim: scores"));
  for (int k = 0; k < WIDTHS; k++) TRY(NEW(b.values[k], all, "slim: rounded weights"));
  TRY(NEW(b.codes, all, "slim: codes"));
  TRY(NEW(b.scales, (int64_t)CHUNK * groups, "slim: scales"));
  TRY(NEW(b.real_zeros, (int64_t)CHUNK * groups, "slim: zeros"));
  TRY(NEW(b.zeros, (int64_t)CHUNK * groups, "slim: zeros"));
  TRY(NEW(b.e, all, "slim: errors"));
  TRY(NEW(b.h, (int64_t)size * q->width, "slim: columns of the Gram"));
  TRY(NEW(b.product, (int64_t)CHUNK * size, "slim: products of a group"));
  TRY(order_groups(q, size, list));
  for (int begin = 0; begin < q->rows && count > 1; begin += CHUNK) {
    b.rows = q->rows - begin < CHUNK ? q->rows - begin : CHUNK;
    TRY(round_rows(q, begin, &b));
    double sum = 0;
    for (int k = 1; k < count; k++) {
      sum += change_group(q, size, list[k - 1].group, MORE, &b);
      sum += change_group(q, size, list[groups - k].group, FEWER, &b);
      score[k] += sum;
    }
  }
  for (int k = 0; k < count; k++) {
    if (!isfinite(score[k])) TRY(fail(E_NUMERICS, "slim: expected finite weights and Gram, found a score of %g", score[k]));
    if (score[k] < score[best]) best = k;
    if (scores) scores[k] = score[k];
  }
  for (int g = 0; g < groups; g++) widths[list[g].group] = (uint8_t)(q->rule.bits + (g < best) - (g >= groups - best));
done:
  FREE(list), FREE(score), FREE(b.codes), FREE(b.scales), FREE(b.real_zeros), FREE(b.zeros), FREE(b.e), FREE(b.h), FREE(b.product);
  for (int k = 0; k < WIDTHS; k++) FREE(b.values[k]);
  return st;
}

double slim_flops(int64_t rows, int64_t width) { return 2 * (double)rows * (double)width * (double)width; }

uint64_t slim_bytes(const grid_rule *r, int64_t width) {
  uint64_t m = (uint64_t)width, groups = (uint64_t)grid_groups(r, (int)width), size = m / groups;
  return CHUNK * (m * (WIDTHS * sizeof(float) + 1 + sizeof(double)) + 5 * groups + 8 * size) + 8 * size * m +
         groups * (sizeof(scored) + sizeof(double));
}

/* ---- scales ---- */

/* Sum of weight (q - w)^2 over a group. Sixteen running sums: one would be a chain that no compiler may vectorize. */
static HOT double group_error(int n, double top, double scale, double zero, bool real_zero, const float *restrict w,
                              const float *restrict weight) {
  double sum[16] = {0}, inside = real_zero ? zero : 0, outside = real_zero ? 0 : zero;
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int l = 0; l < 16; l++) {
      double u = rint((double)w[i + l] / scale + inside) + outside;
      u = u > 0 ? u : 0;
      u = u < top ? u : top;
      double e = scale * (u - zero) - (double)w[i + l];
      sum[l] += (double)weight[i + l] * (e * e);
    }
  }
  for (; i < n; i++) {
    double u = rint((double)w[i] / scale + inside) + outside;
    u = u > 0 ? u : 0;
    u = u < top ? u : top;
    double e = scale * (u - zero) - (double)w[i];
    sum[0] += (double)weight[i] * (e * e);
  }
  for (int l = 1; l < 16; l++) sum[0] += sum[l];
  return sum[0];
}

void slim_scale(const grid_rule *r, int rows, int width, const float *w, int64_t ldw, const float *weight, code_grid g) {
  int groups = grid_groups(r, width), size = width / groups;
  for (int64_t k = 0; k < (int64_t)rows * groups; k++) {
    int group = (int)(k % groups);
    const float *x = w + k / groups * ldw + (int64_t)group * size;
    double top = (1 << group_bits(r, group)) - 1, zero = grid_zero(r, g, k), start = half_to_float(g.scales[k]), least = INFINITY;
    for (int step = 0; step <= 2 * TAU_STEPS; step++) {
      double tau = 1 + (step % 2 ? 0.1 : -0.1) * ((step + 1) / 2) / TAU_STEPS;
      uint16_t scale = float_to_half((float)(tau * start));
      if (scale >= HALF_INFINITY) continue;
      double error = group_error(size, top, half_to_float(scale), zero, r->real_zero, x, weight + (int64_t)group * size);
      if (error < least) least = error, g.scales[k] = scale;
    }
  }
}
