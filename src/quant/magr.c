#include "quant/magr.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "base/blas.h"
#include "base/hot.h"
#include "base/memory.h"

/* Arrays of a slab are (width, slab): the ROW index is contiguous. Then the product H D^T runs at the library's best even for few rows
 * (H is symmetric), and a vector register holds one column of sixteen rows, so that all sums of a row are its own lane's, in order. */
typedef float lanes __attribute__((vector_size(64), may_alias));
typedef int32_t ints __attribute__((vector_size(64), may_alias));

/* Macros, since vectors by value in functions would tie the caller to one instruction set. */
#define ALL(x) ((x) - (lanes){0})
#define SIZE(x) ((lanes)((ints)(x)&INT32_MAX))
#define BELOW(a, b) ((ints)((a) - (b)) >> 31) /* a < b, for numbers */
#define PICK(mask, yes, no) ((lanes)(((ints)(yes) & (mask)) | ((ints)(no) & ~(mask))))
#define CLIP(x, c) PICK(BELOW(c, SIZE(x)), (lanes)((ints)(c) | ((ints)(x)&INT32_MIN)), x)
#define INLINE static inline __attribute__((always_inline))

typedef struct shape {
  int width, slab;
  int segments, length; /* width = segments * length */
  float alpha, step;    /* step = 1 / lambda_max */
  bool accelerate;
} shape;

/* ---- the proximal step ---- */

/* What |z| stands above the level c: sum and number. */
typedef struct excess {
  lanes sum;
  ints count;
} excess;

INLINE void exceed(excess *e, const lanes *z, const lanes *c) {
  lanes under = *c - SIZE(*z);
  ints above = (ints)under >> 31;
  e->sum -= (lanes)((ints)under & above);
  e->count -= above;
}

/* In blocks: the values at the bound are equal, and one long sum of equal numbers rounds the same way every time. */
INLINE void measure(int n, const lanes *restrict z, const lanes *c, excess *e) {
  enum { PART = 64 };
  *e = (excess){0};
  for (int first = 0; first < n; first += PART) {
    excess part = {.count = e->count};
    int end = first + PART < n ? first + PART : n;
    for (int i = first; i < end; i++) exceed(&part, z + i, c);
    e->sum += part.sum;
    e->count = part.count;
  }
}

/* *level: a guess -> c with sum max(|z_i| - c, 0) = alpha, or 0 when the sum of all |z_i| is not above alpha. e is the excess over the
 * guess, high the largest |z_i|. The sum is convex, decreasing and piecewise linear in c: Newton's step from anywhere lands left of the
 * root or on it, climbs from there, and is exact once the number of |z_i| > c repeats. Rounding may throw a long first step past the
 * root, once; a second time the root is found to the last bit. A lane that is done waits for the others. */
INLINE void climb(int n, const lanes *restrict z, float alpha, const lanes *high, lanes *level, excess *e) {
  ints before = {0}, spent = {0}, done = {0};
  for (;;) {
    lanes c = *level, left = *high - alpha, next;
    ints none = e->count == 0; /* c is above all of them; the peak less alpha is left of the root */
    left = PICK(left > 0, left, ALL(0));
    next = c + (e->sum - alpha) / __builtin_convertvector(e->count - none, lanes);
    next = PICK(next > 0, next, ALL(0));
    ints exact = ~none & (e->count == before);
    ints fell = ~none & ~exact & (before != 0) & (next <= c);
    ints root = ~none & ~exact & (((c <= 0) & (e->sum <= alpha)) | (fell & spent));
    ints edge = none & ((left >= *high) | spent); /* alpha is lost in the rounding of the peak, or all is 0 */
    next = PICK(edge, *high, PICK(none, left, next));
    *level = PICK(done | root, c, next);
    done |= exact | root | edge;
    spent |= none | fell;
    before = e->count;
    int32_t every = -1;
    for (int l = 0; l < MAGR_LANES; l++) every &= done[l];
    if (every) return;
    measure(n, z, level, e);
  }
}

HOT void magr_prox(int n, float (*v)[MAGR_LANES], float alpha, float level[MAGR_LANES]) {
  lanes *z = (lanes *)v, high = {0}, c;
  excess e = {0};
  memcpy(&c, level, sizeof c);
  for (int i = 0; i < n; i++) {
    high = PICK(BELOW(high, SIZE(z[i])), SIZE(z[i]), high);
    exceed(&e, z + i, &c);
  }
  climb(n, z, alpha, &high, &c, &e);
  for (int i = 0; i < n; i++) z[i] = CLIP(z[i], c);
  memcpy(level, &c, sizeof c);
}

/* ---- one step of sixteen rows ---- */

/* Nesterov's weights; a row that overshot (turn > 0) starts again. pg: none. */
INLINE void momenta(bool accelerate, const float *restrict turn, float *restrict t, float *restrict momentum) {
  for (int l = 0; l < MAGR_LANES; l++) {
    float next = (1 + sqrtf(1 + 4 * t[l] * t[l])) / 2;
    momentum[l] = accelerate && !(turn[l] > 0) ? (t[l] - 1) / next : 0;
    t[l] = turn[l] > 0 ? 1 : next;
  }
}

/* d = y - w and g = H d -> the next v and d. level (segments) and t are the rows' own memory, z (width) is scratch; w, g, d, v have
 * stride ld. */
static HOT void step_rows(const shape *restrict s, int ld, const float *restrict w, const float *restrict g, float *restrict d,
                          float *restrict v, lanes *restrict z, lanes *restrict level, float *restrict t) {
  lanes turn = {0};
  int n = s->length;
  for (int k = 0; k < s->segments; k++, z += n) {
    int64_t first = (int64_t)k * n * ld, end = first + (int64_t)n * ld;
    lanes high = {0}, c = level[k];
    excess e = {0};
    for (int64_t at = first, i = 0; at < end; at += ld, i++) {
      lanes y = *(const lanes *)(w + at) + *(lanes *)(d + at);
      lanes x = z[i] = y - s->step * *(const lanes *)(g + at);
      high = PICK(BELOW(high, SIZE(x)), SIZE(x), high);
      exceed(&e, &x, &c);
    }
    climb(n, z, s->alpha, &high, &c, &e);
    level[k] = c;
    for (int64_t at = first, i = 0; at < end; at += ld, i++) {
      lanes y = *(const lanes *)(w + at) + *(lanes *)(d + at), p = z[i] = CLIP(z[i], c);
      turn += (y - p) * (p - *(lanes *)(v + at));
    }
  }
  z -= s->width;
  _Alignas(64) float momentum[MAGR_LANES];
  momenta(s->accelerate, (const float *)&turn, t, momentum);
  lanes m = *(lanes *)momentum;
  for (int64_t at = 0, i = 0; i < s->width; at += ld, i++) {
    lanes p = z[i];
    *(lanes *)(d + at) = (p - *(const lanes *)(w + at)) + m * (p - *(lanes *)(v + at));
    *(lanes *)(v + at) = p;
  }
}

/* ---- the solver ---- */

int magr_slab(int64_t width) { return width < 2048 ? 64 : 256; }

static shape shape_of(const magr_request *q) {
  int length = q->group ? q->group : q->width;
  return (shape){.width = q->width,
                 .slab = magr_slab(q->width),
                 .segments = q->width / length,
                 .length = length,
                 .alpha = (float)(q->literal ? q->alpha / q->lambda_max : q->alpha),
                 .step = (float)(1 / q->lambda_max),
                 .accelerate = q->solver == MAGR_FISTA};
}

/* The rows of one product. */
typedef struct slab {
  float *w, *v, *d, *g; /* (width, slab) */
  lanes *z;             /* (width) of sixteen rows */
  lanes *level;         /* (slab / 16, segments) */
  float *t;             /* [slab] */
} slab;

static status slab_new(const shape *s, slab *b) {
  status st = OK;
  int64_t n = (int64_t)s->width * s->slab;
  TRY(NEW(b->w, n, "magr: weights"));
  TRY(NEW(b->v, n, "magr: iterates"));
  TRY(NEW(b->d, n, "magr: displacements"));
  TRY(NEW(b->g, n, "magr: gradients"));
  TRY(NEW(b->z, s->width, "magr: sixteen rows"));
  TRY(NEW(b->level, (int64_t)s->slab / MAGR_LANES * s->segments, "magr: clip levels"));
  TRY(NEW(b->t, s->slab, "magr: momenta"));
done:
  return st;
}

static void slab_free(slab *b) { FREE(b->w), FREE(b->v), FREE(b->d), FREE(b->g), FREE(b->z), FREE(b->level), FREE(b->t); }

enum { AT_ONCE = 16 }; /* columns of a transposition that stay in the first cache */

static void slab_read(const shape *s, slab *b, int rows, const float *w) {
  size_t bytes = (size_t)s->width * (size_t)s->slab * sizeof *w;
  if (rows < s->slab) memset(b->w, 0, bytes);
  for (int some = 0; some < s->width; some += AT_ONCE)
    for (int r = 0; r < rows; r++)
      for (int j = some; j < s->width && j < some + AT_ONCE; j++) b->w[(int64_t)j * s->slab + r] = w[(int64_t)r * s->width + j];
  memcpy(b->v, b->w, bytes);
  memset(b->d, 0, bytes);
  memset(b->g, 0, bytes);
  for (int i = 0; i < s->slab / MAGR_LANES * s->segments; i++) b->level[i] = ALL(FLT_MAX);
  for (int r = 0; r < s->slab; r++) b->t[r] = 1;
}

static void slab_write(const shape *s, const slab *b, int rows, float *v) {
  for (int some = 0; some < s->width; some += AT_ONCE)
    for (int r = 0; r < rows; r++)
      for (int j = some; j < s->width && j < some + AT_ONCE; j++) v[(int64_t)r * s->width + j] = b->v[(int64_t)j * s->slab + r];
}

static void product(const shape *s, const float *h, slab *b) {
  sgemm(false, false, s->width, s->slab, s->width, 1, h, s->width, b->d, s->slab, 0, b->g, s->slab);
}

static void solve(const magr_request *q, const shape *s, slab *b) {
  for (int k = 0; k < q->steps; k++) {
    if (k > 0) product(s, q->h, b); /* the first displacement is 0 */
    for (int r = 0; r < s->slab; r += MAGR_LANES)
      step_rows(s, s->slab, b->w + r, b->g + r, b->d + r, b->v + r, b->z, b->level + r / MAGR_LANES * s->segments, b->t + r);
  }
}

static double slab_objective(const magr_request *q, const shape *s, slab *b, int rows) {
  double sum = 0;
  for (int64_t i = 0; i < (int64_t)s->width * s->slab; i++) b->d[i] = b->v[i] - b->w[i];
  product(s, q->h, b);
  for (int r = 0; r < rows; r++) {
    double quadratic = 0, peaks = 0;
    for (int k = 0; k < s->segments; k++) {
      float high = 0;
      for (int64_t j = (int64_t)k * s->length; j < (int64_t)(k + 1) * s->length; j++) {
        int64_t at = j * s->slab + r;
        quadratic += (double)b->d[at] * b->g[at];
        high = fmaxf(high, fabsf(b->v[at]));
      }
      peaks += high;
    }
    sum += 0.5 * s->step * quadratic + s->alpha * peaks;
  }
  return sum;
}

static status check_rows(int first, int rows, int width, const float *v) {
  for (int r = 0; r < rows; r++) {
    float sum = 0; /* NaN or Inf times 0 is NaN */
    for (int j = 0; j < width; j++) sum += v[(int64_t)r * width + j] * 0;
    if (sum != 0) return fail(E_NUMERICS, "magr: row %d, expected finite values, found NaN or Inf", first + r);
  }
  return OK;
}

status magr(const magr_request *q, float *v, double *objective) {
  status st = OK;
  shape s = shape_of(q);
  slab b = {0};
  double sum = 0;
  if (!(q->lambda_max > 0 && q->lambda_max <= FLT_MAX && s.step > 0 && s.step <= FLT_MAX))
    TRY(fail(E_NUMERICS, "magr: largest eigenvalue of the Gram, expected positive and finite, found %g", q->lambda_max));
  TRY(slab_new(&s, &b));
  for (int first = 0; first < q->rows; first += s.slab) {
    int rows = q->rows - first < s.slab ? q->rows - first : s.slab;
    int64_t at = (int64_t)first * q->width;
    slab_read(&s, &b, rows, q->w + at);
    solve(q, &s, &b);
    if (objective) sum += slab_objective(q, &s, &b, rows);
    slab_write(&s, &b, rows, v + at);
    TRY(check_rows(first, rows, q->width, v + at));
  }
  if (objective) *objective = sum;
done:
  slab_free(&b);
  return st;
}

double magr_flops(const magr_request *q) {
  double width = q->width;
  return 2.0 * q->rows * width * width * (q->steps > 0 ? q->steps - 1 : 0);
}

uint64_t magr_bytes(int64_t width, int group) {
  uint64_t rows = (uint64_t)magr_slab(width), segments = group ? (uint64_t)(width / group) : 1;
  return 4 * ((4 * rows + MAGR_LANES) * (uint64_t)width + rows * (segments + 1));
}

/* ---- the largest eigenvalue ---- */

/* In eight sums, whatever the address and the machine. */
static HOT double dot_row(int n, const float *restrict h, const double *restrict x) {
  double sum[8] = {0}, rest = 0;
  int i = 0;
  for (; i + 8 <= n; i += 8)
    for (int l = 0; l < 8; l++) sum[l] += h[i + l] * x[i + l];
  for (; i < n; i++) rest += h[i] * x[i];
  for (int l = 0; l < 8; l++) rest += sum[l];
  return rest;
}

status magr_lambda_max(int width, const float *h, double *lambda) {
  enum { STEPS_LEAST = 8, STEPS_MOST = 300 };
  status st = OK;
  double *x = NULL, *y = NULL, norm = 0, value = 0;
  TRY(NEW(x, width, "magr: power iteration"));
  TRY(NEW(y, width, "magr: power iteration"));
  /* the diagonal finds outlier channels at once; the signs of a multiplicative hash keep x off every subspace a model may have */
  for (int i = 0; i < width; i++) {
    double size = sqrt(fmax(0, h[(int64_t)i * width + i]));
    x[i] = (uint32_t)(i + 1) * 2654435761u >> 31 ? size : -size;
    norm += size * size;
  }
  for (int step = 0; step < STEPS_MOST && norm > 0; step++) {
    double scale = 1 / sqrt(norm), before = value;
    value = norm = 0;
    for (int i = 0; i < width; i++) x[i] *= scale;
    for (int i = 0; i < width; i++) {
      y[i] = dot_row(width, h + (int64_t)i * width, x);
      value += x[i] * y[i];
      norm += y[i] * y[i];
    }
    double *swap = x;
    x = y, y = swap;
    /* Rayleigh's quotient only grows; at this pace what is missing is well inside the 2 % */
    if (step >= STEPS_LEAST && value - before <= 1e-4 * value) break;
  }
  if (!isfinite(value)) TRY(fail(E_NUMERICS, "magr: Gram, expected finite entries, found a power iteration of %g", value));
  *lambda = 1.02 * value;
done:
  FREE(x), FREE(y);
  return st;
}
