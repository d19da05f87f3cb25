#include "quant/grid.h"

#include <math.h>
#include <string.h>

#include "base/half.h"
#include "base/hot.h"
#include "quant/search.h"

enum { HALF_TINY = 0x0400 /* 2^-14 */, HALF_LARGEST = 0x7BFF /* 65504 */, HALF_INFINITY = 0x7C00 };

static const struct {
  const char *name;
  grid_kind kind;
  int least, most; /* bits */
} grids[] = {
    {"uniform", GRID_UNIFORM, 1, 8}, {"nf2", GRID_NF, 2, 2}, {"nf3", GRID_NF, 3, 3}, {"nf4", GRID_NF, 4, 4}, {"binary", GRID_BINARY, 1, 1}};
enum { GRIDS = sizeof grids / sizeof *grids };

const char *grid_name(grid_kind kind, int bits) {
  int k = 0;
  while (k < GRIDS - 1 && (grids[k].kind != kind || bits < grids[k].least || bits > grids[k].most)) k++;
  return grids[k].name;
}

bool grid_named(const char *name, int64_t bits, grid_kind *kind) {
  int k = 0;
  while (k < GRIDS - 1 && strcmp(grids[k].name, name) != 0) k++;
  *kind = grids[k].kind;
  return strcmp(grids[k].name, name) == 0 && bits >= grids[k].least && bits <= grids[k].most;
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

uint16_t grid_scale(double s, int64_t *replaced) {
  uint16_t h = float_to_half((float)s);
  if (h != 0 && h < HALF_INFINITY) return h;
  ++*replaced;
  return h == 0 ? HALF_TINY : HALF_LARGEST;
}

static double clamp(double x, double top) { return x > 0 ? (x < top ? x : top) : 0; }

double grid_stored_zero(bool real, double zero, double top) {
  if (!real) return clamp(rint(zero), top);
  return half_to_float(float_to_half((float)fmax(-65504, fmin(zero, 65504))));
}

/* The range lo .. hi of a group, 0 in it, as the rule cuts it. */
static void fit_range(const grid_rule *r, double beta, double top, double lo, double hi, uint16_t *scale, double *zero, int64_t *replaced) {
  if (r->symmetric) {
    *scale = grid_scale(beta * 2 * (hi > -lo ? hi : -lo) / top, replaced);
    return;
  }
  int64_t ignored = 0;
  *scale = grid_scale(beta * (hi - lo) / top, replaced);
  double anchor = half_to_float(r->anchor_zero ? grid_scale((hi - lo) / top, &ignored) : *scale);
  *zero = grid_stored_zero(r->real_zero, clamp(-lo / anchor, top), top);
}

/* Mean and deviation of the numbers among n. */
static void spread(int n, const float *w, double *mean, double *deviation) {
  double sum = 0, square = 0;
  int count = 0;
  for (int i = 0; i < n; i++)
    if (w[i] == w[i]) sum += w[i], count++;
  *mean = count ? sum / count : 0;
  for (int i = 0; i < n; i++)
    if (w[i] == w[i]) square += (w[i] - *mean) * (w[i] - *mean);
  *deviation = count ? sqrt(square / count) : 0;
}

/* The starts of L4Q. lo and hi: the range with 0. */
static void fit_start(const grid_rule *r, int bits, int n, const float *w, double lo, double hi, uint16_t *scale, double *zero,
                      int64_t *replaced) {
  double half = 1 << (bits - 1), top = 2 * half - 1, mean, deviation, least = INFINITY, most = -INFINITY;
  for (int i = 0; i < n; i++) {
    least = w[i] < least ? w[i] : least;
    most = w[i] > most ? w[i] : most;
  }
  if (!(least < 0 || most > 0)) least = lo, most = hi;
  if (r->search == SEARCH_LSQ) {
    spread(n, w, &mean, &deviation);
    bool zeros = mean == 0 && deviation == 0;
    *scale = grid_scale(zeros ? 1 / half : fmax(fabs(mean - 3 * deviation), fabs(mean + 3 * deviation)) / half, replaced);
  } else if (r->search == SEARCH_SYMM) {
    *scale = grid_scale(fmax(-lo, hi) / half, replaced);
  } else if (r->search == SEARCH_L4Q) {
    *scale = grid_scale(fmax(fabs(least / half), half > 1 ? fabs(most / (half - 1)) : 0), replaced);
  } else {
    if (!r->real_zero) least = lo, most = hi;
    *scale = grid_scale((most - least) / top, replaced);
    *zero = grid_stored_zero(r->real_zero, top - most / half_to_float(*scale), top);
  }
}

static bool searches(const grid_rule *r) { return r->search == SEARCH_MSE || r->search == SEARCH_SCAN || r->search == SEARCH_REFIT; }

typedef struct fit {
  const grid_rule *rule;
  int bits, columns;
  const float *weight; /* of the group, or NULL */
  search_room *room;
  int64_t replaced;
} fit;

static search_group group_of(const fit *f, const float *w) {
  return (search_group){.bits = f->bits,
                        .symmetric = f->rule->symmetric,
                        .real_zero = f->rule->real_zero,
                        .columns = f->columns,
                        .w = w,
                        .weight = f->weight};
}

/* The grid of a group's range or by its start, and the range. */
static void fit_first(fit *f, const float *w, double *lo, double *hi, uint16_t *scale, double *zero) {
  const grid_rule *r = f->rule;
  double top = (1 << f->bits) - 1;
  float least, most;
  range(f->columns, w, &least, &most);
  *lo = least == most ? -1 : least;
  *hi = least == most ? 1 : most;
  *zero = 1 << (f->bits - 1);
  if (searches(r) || r->search == SEARCH_NONE)
    fit_range(r, searches(r) ? 1 : r->beta, top, *lo, *hi, scale, zero, &f->replaced);
  else
    fit_start(r, f->bits, f->columns, w, *lo, *hi, scale, zero, &f->replaced);
}

static void store(const grid_rule *r, code_grid g, int64_t at, uint16_t scale, double zero) {
  g.scales[at] = scale;
  if (r->real_zero)
    g.real_zeros[at] = float_to_half((float)zero);
  else
    g.zeros[at] = (uint8_t)zero;
}

/* One group, whose entry is `at`. */
static void fit_group(fit *f, const float *w, code_grid g, int64_t at) {
  search_group q = group_of(f, w);
  uint16_t scale;
  double zero;
  fit_first(f, w, &q.lo, &q.hi, &scale, &zero);
  if (f->rule->search == SEARCH_MSE) search_mse(&q, f->room, &scale, &zero);
  if (f->rule->search == SEARCH_SCAN) search_scan(&q, f->room, &scale, &zero);
  store(f->rule, g, at, scale, zero);
}

/* The same group of several rows, whose entries are `stride` apart. */
static void fit_rows(fit *f, int rows, const float *w, int64_t ldw, code_grid g, int64_t at, int stride) {
  search_group q = group_of(f, w);
  double lo[SEARCH_ROWS] = {0}, hi[SEARCH_ROWS] = {0}, zero[SEARCH_ROWS];
  uint16_t scale[SEARCH_ROWS];
  for (int r = 0; r < rows; r++) fit_first(f, w + r * ldw, lo + r, hi + r, scale + r, zero + r);
  search_refit(&q, rows, ldw, lo, hi, f->room, scale, zero);
  for (int r = 0; r < rows; r++) store(f->rule, g, at + r * stride, scale[r], zero[r]);
}

status grid_fit(const grid_rule *r, int rows, int width, const float *w, int64_t ldw, const float *weight, code_grid g, int64_t *replaced) {
  status st = OK;
  int groups = grid_groups(r, width), side = r->search == SEARCH_REFIT ? SEARCH_ROWS : 1;
  fit f = {.rule = r, .columns = width / groups};
  if (searches(r)) TRY(search_new(&f.room, f.columns));
  for (int i = 0; i < rows; i += side) {
    for (int k = 0; k < groups; k++) {
      int64_t first = (int64_t)k * f.columns, at = (int64_t)i * groups + k;
      f.bits = group_bits(r, k);
      f.weight = weight ? weight + first : NULL;
      if (side > 1)
        fit_rows(&f, rows - i < side ? rows - i : side, w + i * ldw + first, ldw, g, at, groups);
      else
        fit_group(&f, w + i * ldw + first, g, at);
    }
  }
  if (replaced) *replaced = f.replaced;
done:
  search_free(&f.room);
  return st;
}

uint64_t grid_bytes(const grid_rule *r, int64_t width) { return searches(r) ? search_bytes(r->group ? r->group : width) : 0; }

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
