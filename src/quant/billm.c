#include "quant/billm.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/blas.h"
#include "base/half.h"
#include "base/memory.h"
#include "quant/codes.h"
#include "quant/optq.h"

enum { CODES = 4, HALF_LARGEST = 0x7BFF, HALF_INFINITY = 0x7C00 };

static int group_width(const grid_rule *r, int width) { return width / grid_groups(r, width); }

/* ---- which columns are salient ---- */

typedef struct scored {
  double score;
  int column;
} scored;

static int by_score(const void *a, const void *b) {
  const scored *x = a, *y = b;
  return x->score > y->score ? -1 : x->score < y->score ? 1 : x->column - y->column;
}

/* One group: its live columns, most salient first, then the count. A set of c magnitudes whose sum is s has the error
 * sum |w|^2 - s^2 / c, so the best count has the largest sum over rows of both sets' s^2 / c. */
static void choose_group(int rows, int live, const scored *list, const float *w, int64_t ldw, double *gain, uint8_t *salient) {
  int most = live - 1 < BILLM_SALIENT_MOST ? live - 1 : BILLM_SALIENT_MOST, best = 0;
  memset(gain, 0, (BILLM_SALIENT_MOST + 1) * sizeof *gain);
  for (int i = 0; i < rows; i++) {
    const float *row = w + i * ldw;
    double total = 0, sum = 0;
    for (int k = 0; k < live; k++) total += fabs((double)row[list[k].column]);
    for (int k = 1; k <= most; k++) {
      sum += fabs((double)row[list[k - 1].column]);
      gain[k] += sum * sum / k + (total - sum) * (total - sum) / (live - k);
    }
  }
  for (int k = 1; k <= most; k++)
    if (gain[k] > gain[best]) best = k;
  for (int k = 0; k < best; k++) salient[list[k].column] = 1;
}

status billm_choose(const grid_rule *r, int rows, int width, const float *w, int64_t ldw, const double *d, const uint8_t *dead,
                    uint8_t *salient) {
  status st = OK;
  int size = group_width(r, width);
  double *sums = NULL, gain[BILLM_SALIENT_MOST + 1];
  scored *list = NULL;
  TRY(NEW(sums, width, "billm: salience of columns"));
  TRY(NEW(list, size, "billm: columns of a group"));
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < width; j++) sums[j] += (double)w[i * ldw + j] * (double)w[i * ldw + j];
  for (int first = 0; first < width; first += size) {
    int live = 0;
    for (int j = first; j < first + size; j++) {
      salient[j] = 0;
      if (dead && dead[j]) continue;
      double score = sums[j] / (d[j] * d[j]);
      if (!isfinite(score))
        TRY(fail(E_NUMERICS, "billm: column %d, expected finite weights and a positive diagonal, found squares of %g over %g squared", j,
                 sums[j], d[j]));
      list[live++] = (scored){score, j};
    }
    qsort(list, (size_t)live, sizeof *list, by_score);
    choose_group(rows, live, list, w, ldw, gain, salient);
  }
done:
  FREE(sums), FREE(list);
  return st;
}

uint64_t billm_choose_bytes(const grid_rule *r, int64_t width) {
  return (uint64_t)width * sizeof(double) + (uint64_t)group_width(r, (int)width) * sizeof(scored);
}

/* ---- a row's group ---- */

static uint16_t storable(double x) {
  uint16_t h = float_to_half((float)x);
  return h < HALF_INFINITY ? h : HALF_LARGEST;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* Two magnitudes for n values of |v|: of all thresholds that part them in k smaller and n - k larger ones, the one of least error. */
static void split(int n, double *a, uint16_t m[2]) {
  double total = 0, sum = 0, best = -1, low = 0, high = 0;
  qsort(a, (size_t)n, sizeof *a, ascending);
  for (int k = 0; k < n; k++) total += a[k];
  if (n == 1) low = high = total;
  for (int k = 1; k < n; k++) {
    sum += a[k - 1];
    double rest = total - sum, gain = sum * sum / k + rest * rest / (n - k);
    if (gain > best) best = gain, low = sum / k, high = rest / (n - k);
  }
  m[0] = storable(low);
  m[1] = storable(high);
}

/* Two terms: the mean, then the mean of what it leaves. */
static void two_terms(int n, const double *a, uint16_t m[2]) {
  double sum = 0, rest = 0;
  for (int k = 0; k < n; k++) sum += a[k];
  m[0] = storable(n ? sum / n : 0);
  for (int k = 0; k < n; k++) rest += fabs(a[k] - (double)half_to_float(m[0]));
  m[1] = storable(n ? rest / n : 0);
}

/* The values of the codes: of ordinary columns, then of salient ones. */
static void values_of(const uint16_t *m, float value[2][CODES]) {
  float x[BILLM_MAGNITUDES];
  half_to_float_array(x, m, BILLM_MAGNITUDES);
  for (int code = 0; code < CODES; code++) {
    float one = code & 2 ? x[1] : x[0], second = code & 2 ? x[3] : -x[3];
    value[0][code] = code & 1 ? one : -one;
    value[1][code] = (code & 1 ? x[2] : -x[2]) + second;
  }
}

static int nearest(const float value[CODES], double v) {
  int best = 0;
  for (int code = 1; code < CODES; code++)
    if (fabs(v - (double)value[code]) < fabs(v - (double)value[best])) best = code;
  return best;
}

/* ---- rows ---- */

/* What all slabs of rows share, and one slab. */
typedef struct work {
  const billm_request *q;
  int size, chunk;
  double *inverse;   /* (groups - 1, size, size): U_cc^-1 of every group but the first */
  double *diagonal;  /* (size, size): U_cc with zeros below the diagonal */
  double *s;         /* (chunk, width) feedback */
  double *v, *e, *t; /* (chunk, size): v; errors; v - q, times U_cc at last */
  double *magnitude; /* [size] |v| of one set of columns */
} work;

static void upper_part(const billm_request *q, int first, int size, double *out) {
  for (int i = 0; i < size; i++)
    for (int j = 0; j < size; j++) out[(int64_t)i * size + j] = j < i ? 0 : q->u[(int64_t)(first + i) * q->width + first + j];
}

static status invert_diagonals(work *b) {
  const billm_request *q = b->q;
  int size = b->size;
  for (int j = 0; j < q->width; j++) {
    double x = q->u[(int64_t)j * q->width + j];
    if (!(x > 0 && x <= 1e300))
      return fail(E_NUMERICS, "billm: factor, expected a positive diagonal, found %g at position %d of %d", x, j, q->width);
  }
  for (int first = size; first < q->width; first += size) {
    double *x = b->inverse + (int64_t)(first - size) * size;
    for (int i = 0; i < size; i++) x[(int64_t)i * size + i] = 1;
    dtrsm(false, false, false, size, size, q->u + (int64_t)first * q->width + first, q->width, x, size);
  }
  return OK;
}

static bool is_dead(const billm_request *q, int column) { return q->dead && q->dead[column]; }

static void quantize_row(work *b, int row, int first, int at, uint8_t *codes, uint16_t *m) {
  const billm_request *q = b->q;
  const float *w = q->w + row * q->ldw + first;
  double *v = b->v + (int64_t)at * b->size, *e = b->e + (int64_t)at * b->size, *t = b->t + (int64_t)at * b->size;
  float value[2][CODES];
  for (int kind = 0; kind < 2; kind++) {
    int n = 0;
    for (int j = 0; j < b->size; j++)
      if (q->salient[first + j] == kind && !is_dead(q, first + j)) b->magnitude[n++] = fabs(v[j]);
    if (kind)
      two_terms(n, b->magnitude, m + 2);
    else
      split(n, b->magnitude, m);
  }
  values_of(m, value);
  for (int j = 0; j < b->size; j++) {
    bool dead = is_dead(q, first + j);
    const float *of = value[q->salient[first + j]];
    int code = nearest(of, dead ? (double)w[j] : v[j]);
    codes[j] = (uint8_t)code;
    e[j] = dead ? 0 : (double)w[j] - (double)of[code];
    t[j] = dead ? 0 : v[j] - (double)of[code];
  }
}

/* One group of one slab. Rows of padding have neither feedback nor error. loss[chunk] is added to. */
static void run_group(work *b, int first, int begin, int rows, uint8_t *codes, uint16_t *magnitudes, double *loss) {
  const billm_request *q = b->q;
  int size = b->size, width = q->width, right = first + size, groups = width / size;
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < size; j++) b->v[(int64_t)i * size + j] = is_dead(q, first + j) ? 0 : (double)q->w[(begin + i) * q->ldw + first + j];
  memset(b->v + (int64_t)rows * size, 0, (size_t)(b->chunk - rows) * (size_t)size * sizeof *b->v);
  if (first > 0)
    dgemm(false, false, b->chunk, size, size, 1, b->s + first, width, b->inverse + (int64_t)(first - size) * size, size, 1, b->v, size);
  for (int i = 0; i < rows; i++) {
    int64_t row = begin + i;
    quantize_row(b, (int)row, first, i, codes + row * width + first, magnitudes + (row * groups + first / size) * BILLM_MAGNITUDES);
  }
  if (right < width)
    dgemm(false, false, b->chunk, width - right, size, 1, b->e, size, q->u + (int64_t)first * width + right, width, 1, b->s + right, width);
  upper_part(q, first, size, b->diagonal);
  dgemm(false, false, b->chunk, size, size, 1, b->t, size, b->diagonal, size, 0, b->v, size);
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < size; j++) loss[i] += b->v[(int64_t)i * size + j] * b->v[(int64_t)i * size + j];
}

int billm_slab(int64_t width) { return optq_slab(width); }

status billm(const billm_request *q, uint8_t *codes, uint16_t *magnitudes, double *loss) {
  status st = OK;
  work b = {.q = q, .size = group_width(&q->rule, q->width), .chunk = billm_slab(q->width)};
  int64_t block = (int64_t)b.chunk * b.size;
  double *row_loss = NULL, sum = 0;
  TRY(NEW(b.inverse, (int64_t)(q->width - b.size) * b.size, "billm: inverses of diagonal blocks"));
  TRY(NEW(b.diagonal, (int64_t)b.size * b.size, "billm: a diagonal block"));
  TRY(NEW(b.s, (int64_t)b.chunk * q->width, "billm: feedback"));
  TRY(NEW(b.v, block, "billm: weights of a group"));
  TRY(NEW(b.e, block, "billm: errors of a group"));
  TRY(NEW(b.t, block, "billm: errors of a group"));
  TRY(NEW(b.magnitude, b.size, "billm: magnitudes of a row"));
  TRY(NEW(row_loss, b.chunk, "billm: losses"));
  TRY(invert_diagonals(&b));
  for (int begin = 0; begin < q->rows; begin += b.chunk) {
    int rows = q->rows - begin < b.chunk ? q->rows - begin : b.chunk;
    memset(b.s, 0, (size_t)b.chunk * (size_t)q->width * sizeof *b.s);
    memset(b.e, 0, (size_t)block * sizeof *b.e);
    memset(b.t, 0, (size_t)block * sizeof *b.t);
    memset(row_loss, 0, (size_t)b.chunk * sizeof *row_loss);
    for (int first = 0; first < q->width; first += b.size) run_group(&b, first, begin, rows, codes, magnitudes, row_loss);
    for (int i = 0; i < rows; i++) {
      if (!isfinite(row_loss[i]))
        TRY(fail(E_NUMERICS, "billm: row %d, expected finite weights and factor, found a loss of %g", begin + i, row_loss[i]));
      sum += row_loss[i];
    }
  }
  if (loss) *loss = sum;
done:
  FREE(b.inverse), FREE(b.diagonal), FREE(b.s), FREE(b.v), FREE(b.e), FREE(b.t), FREE(b.magnitude), FREE(row_loss);
  return st;
}

double billm_flops(const grid_rule *r, int64_t rows, int64_t width) {
  return (double)rows * (double)width * (double)(width + 3 * group_width(r, (int)width));
}

uint64_t billm_bytes(const grid_rule *r, int64_t width) {
  uint64_t size = (uint64_t)group_width(r, (int)width), chunk = (uint64_t)billm_slab(width), w = (uint64_t)width;
  return 8 * (w * size + chunk * (w + 3 * size + 1) + size);
}

/* ---- reading ---- */

void billm_values(const grid_rule *r, int rows, int width, const uint32_t *words, const uint16_t *magnitudes, const uint8_t *salient,
                  float *q) {
  enum { AT_ONCE = 4096 };
  int groups = grid_groups(r, width), size = width / groups;
  int64_t n = codes_words(width, 2);
  uint8_t codes[AT_ONCE];
  for (int i = 0; i < rows; i++) {
    for (int first = 0; first < width; first += AT_ONCE) {
      int end = width - first < AT_ONCE ? width : first + AT_ONCE;
      codes_unpack(2, 1, end - first, words + i * n + (int64_t)first * 2 / 32, codes);
      for (int k = first; k < end;) {
        int g = k / size, stop = (g + 1) * size < end ? (g + 1) * size : end;
        float value[2][CODES];
        values_of(magnitudes + ((int64_t)i * groups + g) * BILLM_MAGNITUDES, value);
        for (; k < stop; k++) q[(int64_t)i * width + k] = value[salient[k] != 0][codes[k - first]];
      }
    }
  }
}
