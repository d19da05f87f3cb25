#include "dist/krylov.h"

#include <math.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"

enum { PROBES = KRYLOV_EXTRA };

/* The space so far. Rows are vectors; T = Q G Q^T is formed from the products themselves, so that rows of any origin (a random one in
 * place of a vanished one) leave Rayleigh-Ritz exact. */
typedef struct space {
  const char *where;
  const krylov_request *q;
  int n, block, dim, last;  /* dim: rows in q; last: rows of the newest block */
  int capacity, limit;      /* rows allocated; rows allowed */
  double *basis;            /* (capacity, n) orthonormal rows */
  double *t;                /* (capacity, capacity) lower triangle of T */
  double *image;            /* (block + PROBES, n) G times the newest block, then its part outside the space */
  double *probes, *probed;  /* (PROBES, n) random signs, and G times them */
  double *coefficients;     /* (block, capacity) */
  double *gram, *turned;    /* (block, block) and (block, n) of work */
  double *ritz, *theta;     /* (dim, dim) rows, ascending values of the last Rayleigh-Ritz */
  double *residual;         /* [dim] ||G y - theta y|| of every Ritz pair */
  double *tails, *weighted; /* (dim, last): coefficients of the newest rows, and times X X^T */
  int ritz_capacity;
  double sums[3];      /* sum of the wanted values at the last three looks, newest last */
  int steps[2], looks; /* blocks between those looks; looks so far */
  int since, wait;     /* blocks since the last look; blocks to let pass before the next */
  int calm;            /* looks in a row at which next to nothing was still to come */
  uint64_t seed;
} space;

static double random_entry(uint64_t *seed) { /* splitmix64, uniform in (-1, 1) */
  uint64_t z = *seed += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return (double)((z ^ (z >> 31)) >> 11) * 0x1p-52 - 1;
}

static void random_row(space *s, double *row) {
  for (int i = 0; i < s->n; i++) row[i] = random_entry(&s->seed);
}

static double norm(int n, const double *x) {
  double largest = 0, sum = 0;
  for (int i = 0; i < n; i++) largest = fmax(largest, fabs(x[i]));
  if (!(largest > 0) || !isfinite(largest)) return largest;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < n; i++) sum += (x[i] / largest) * (x[i] / largest);
  return largest * sqrt(sum);
}

/* rows of x -> unit length; rows that vanished -> random ones. */
static void normalise_rows(space *s, int rows, double *x) {
  for (int i = 0; i < rows; i++) {
    double *row = x + (size_t)i * (size_t)s->n, length = norm(s->n, row);
    if (!(length > 1e-290)) {
      random_row(s, row);
      length = norm(s->n, row);
    }
    for (int j = 0; j < s->n; j++) row[j] /= length;
  }
}

/* x -= (x Q^T) Q; the coefficients stay in s->coefficients (rows, dim). */
static void project_out(space *s, int rows, double *x) {
  if (s->dim == 0) return;
  dgemm(false, true, rows, s->dim, s->n, 1, x, s->n, s->basis, s->n, 0, s->coefficients, s->dim);
  dgemm(false, false, rows, s->n, s->dim, -1, s->coefficients, s->dim, s->basis, s->n, 1, x, s->n);
}

/* Rows of x -> an orthonormal basis of their part outside the space, of exactly that many rows: x <- U x, x x^T = U^T Lambda U, and rows to unit
 * length (Stathopoulos & Wu 2002). A pass leaves a defect of eps cond(x x^T), so passes go on until the one that found nothing left to do.
 * Directions of the size of rounding end as rows of rounding, random enough: the block stays full where a Cholesky would break. */
static status orthonormalise(space *s, int rows, double *x) {
  enum { PASSES = 8 };
  status st = OK;
  double *values = NULL;
  size_t n = (size_t)s->n;
  bool done = false, stretched = true; /* stretched: the last pass magnified what the rows keep of the space */
  TRY(NEW(values, rows, "block spectrum"));
  normalise_rows(s, rows, x);
  for (int pass = 0; pass < PASSES && !done; pass++) {
    if (stretched) project_out(s, rows, x);
    dsyrk_outer(rows, s->n, 1, x, s->n, 0, s->gram, rows);
    TRY(deigen(s->where, rows, s->gram, rows, values));
    if (!isfinite(values[rows - 1])) {
      st = fail(E_NUMERICS, "%s: block Krylov: expected finite vectors, found NaN or Inf", s->where);
      goto done;
    }
    done = values[0] > 0.1; /* unit rows, well apart and well outside the space */
    stretched = !(values[0] > 1e-4);
    dgemm(false, false, rows, s->n, rows, 1, s->gram, rows, x, s->n, 0, s->turned, s->n);
    memcpy(x, s->turned, (size_t)rows * n * sizeof *x);
    normalise_rows(s, rows, x);
  }
  if (!done) st = fail(E_NUMERICS, "%s: block Krylov: %d rows beside %d do not become orthonormal", s->where, rows, s->dim);
done:
  FREE(values);
  return st;
}

/* Room for `rows` more basis vectors: doubled, so that a run that converges early never holds the whole allowance. */
static status grow(space *s, int rows) {
  status st = OK;
  double *basis = NULL, *t = NULL, *coefficients = NULL;
  if (s->dim + rows <= s->capacity) return OK;
  int capacity = 2 * s->capacity > s->dim + rows ? 2 * s->capacity : s->dim + rows;
  if (capacity > s->limit + PROBES) capacity = s->limit + PROBES;
  TRY(NEW(basis, (size_t)capacity * (size_t)s->n, "Krylov space"));
  TRY(NEW(t, (size_t)capacity * (size_t)capacity, "projected matrix"));
  TRY(NEW(coefficients, (size_t)s->block * (size_t)capacity, "projection"));
  if (s->dim) memcpy(basis, s->basis, (size_t)s->dim * (size_t)s->n * sizeof *basis);
  for (int i = 0; i < s->dim; i++)
    memcpy(t + (size_t)i * (size_t)capacity, s->t + (size_t)i * (size_t)s->capacity, (size_t)s->dim * sizeof *t);
  FREE(s->basis);
  FREE(s->t);
  FREE(s->coefficients);
  s->basis = basis;
  s->t = t;
  s->coefficients = coefficients;
  s->capacity = capacity;
  return OK;
done:
  FREE(basis);
  FREE(t);
  FREE(coefficients);
  return st;
}

/* Appends the rows of x (orthonormalised here), applies G to them, extends T; s->image becomes the residual block X = G q - (G q Q^T) Q. */
static status extend(space *s, int rows, double *x) {
  status st = OK;
  TRY(grow(s, s->dim ? rows : rows + PROBES));
  TRY(orthonormalise(s, rows, x));
  size_t n = (size_t)s->n;
  int before = s->dim, probes = before ? 0 : PROBES; /* the probes go along with the first block */
  double *added = s->basis + (size_t)before * n;
  memcpy(added, x, (size_t)rows * n * sizeof *x);
  if (probes) memcpy(added + (size_t)rows * n, s->probes, PROBES * n * sizeof *added);
  s->dim += rows;
  s->last = rows;
  TRY(s->q->apply(s->q->context, rows + probes, s->n, added, s->image));
  if (probes) memcpy(s->probed, s->image + (size_t)rows * n, PROBES * n * sizeof *added);
  project_out(s, rows, s->image);
  for (int i = 0; i < rows; i++)
    for (int j = 0; j <= before + i; j++) { /* the newest block's own corner is symmetrised */
      double v = s->coefficients[(size_t)i * (size_t)s->dim + (size_t)j];
      if (j >= before) v = 0.5 * (v + s->coefficients[(size_t)(j - before) * (size_t)s->dim + (size_t)(before + i)]);
      s->t[(size_t)(before + i) * (size_t)s->capacity + (size_t)j] = v;
    }
done:
  return st;
}

/* Rayleigh-Ritz: values and coefficients of all pairs, and what they leave outside the space: with G Q^T = Q^T T + X^T (last), X the residual
 * block, the products of two pairs' residuals are y_last X X^T y_last^T. */
static status rayleigh_ritz(space *s) {
  status st = OK;
  int dim = s->dim, last = s->last;
  size_t d = (size_t)dim, w = (size_t)last;
  if (dim > s->ritz_capacity) {
    size_t c = (size_t)s->capacity;
    FREE(s->ritz);
    FREE(s->theta);
    FREE(s->residual);
    FREE(s->tails);
    FREE(s->weighted);
    s->ritz_capacity = s->capacity;
    TRY(NEW(s->ritz, c * c, "Ritz vectors"));
    TRY(NEW(s->theta, c, "Ritz values"));
    TRY(NEW(s->residual, c, "Ritz residuals"));
    TRY(NEW(s->tails, c * (size_t)s->block, "Ritz tails"));
    TRY(NEW(s->weighted, c * (size_t)s->block, "Ritz tails"));
  }
  for (size_t i = 0; i < d; i++) memcpy(s->ritz + i * d, s->t + i * (size_t)s->capacity, (i + 1) * sizeof *s->t);
  TRY(deigen(s->where, dim, s->ritz, dim, s->theta));
  for (size_t i = 0; i < d; i++) memcpy(s->tails + i * w, s->ritz + i * d + (d - w), w * sizeof *s->tails);
  dgemm(false, true, last, last, s->n, 1, s->image, s->n, s->image, s->n, 0, s->gram, last);
  dgemm(false, false, dim, last, last, 1, s->tails, last, s->gram, last, 0, s->weighted, last);
  for (size_t i = 0; i < d; i++) {
    double sum = 0;
    for (size_t j = 0; j < w; j++) sum += s->tails[i * w + j] * s->weighted[i * w + j];
    s->residual[i] = sqrt(fmax(sum, 0));
  }
done:
  return st;
}

/* Energy of G outside the space, the trace of its block there: mean of z G z over probes z with their part in the space taken away. Good to a
 * few per cent where many directions share it (Hutch++, Meyer & al. 2021). */
static status outside_energy(const space *s, double *energy) {
  status st = OK;
  double *c = NULL, *ct = NULL, *cg = NULL, sum = 0;
  int dim = s->dim;
  size_t d = (size_t)dim, n = (size_t)s->n;
  TRY(NEW(c, PROBES * d, "probes in the space"));
  TRY(NEW(ct, PROBES * d, "probes in the space"));
  TRY(NEW(cg, PROBES * d, "probes in the space"));
  dgemm(false, true, PROBES, dim, s->n, 1, s->probes, s->n, s->basis, s->n, 0, c, dim);
  dgemm(false, true, PROBES, dim, s->n, 1, s->probed, s->n, s->basis, s->n, 0, cg, dim);
  dgemm(false, true, PROBES, dim, dim, 1, c, dim, s->ritz, dim, 0, ct, dim); /* in the Ritz basis T is diagonal */
  for (size_t i = 0; i < PROBES * n; i++) sum += s->probes[i] * s->probed[i];
  for (size_t i = 0; i < PROBES; i++)
    for (size_t j = 0; j < d; j++) sum += ct[i * d + j] * ct[i * d + j] * s->theta[j] - 2 * c[i * d + j] * cg[i * d + j];
  *energy = s->dim == s->n ? 0 : fmax(sum / PROBES, 0);
done:
  FREE(c);
  FREE(ct);
  FREE(cg);
  return st;
}

/* How much the wanted sum can still grow, judged by the residuals: with mu a bound on G outside the space, the wanted values are below those of
 * Theta + Y X X^T Y^T / (theta_k - mu). mu is the largest Ritz value beyond the wanted ones that is not converged, plus its residual; where all
 * are, the energy outside. Infinite where theta_k does not stand clear of mu. */
static status gap_bound(const space *s, double outside, double *bound) {
  status st = OK;
  double *perturbed = NULL, *values = NULL;
  int dim = s->dim, last = s->last, lowest = dim - s->q->wanted; /* values ascend */
  size_t d = (size_t)dim;
  double mu = outside, threshold = s->theta[lowest];
  *bound = INFINITY;
  for (int i = lowest - 1; i >= 0; i--)
    if (s->residual[i] > 0.1 * s->theta[i]) {
      mu = s->theta[i] + s->residual[i];
      break;
    }
  if (!(threshold > mu)) return OK;
  TRY(NEW(perturbed, d * d, "perturbed Ritz values"));
  TRY(NEW(values, d, "perturbed Ritz values"));
  dgemm(false, true, dim, dim, last, 1 / (threshold - mu), s->weighted, last, s->tails, last, 0, perturbed, dim);
  for (size_t i = 0; i < d; i++) perturbed[i * d + i] += s->theta[i];
  TRY(deigen(s->where, dim, perturbed, dim, values));
  *bound = 0;
  for (int i = lowest; i < dim; i++) *bound += values[i] - s->theta[i];
done:
  FREE(perturbed);
  FREE(values);
  return st;
}

/* The factor q by which a geometric series shrinks per step when it gained g1 over s1 steps and then g2 over s2:
 * g2 / g1 = q^s1 (1 - q^s2) / (1 - q^s1), which grows with q. At most 0.98. */
static double decay(double g1, int s1, double g2, int s2) {
  double low = 0, high = 0.98;
  for (int i = 0; i < 50; i++) {
    double q = 0.5 * (low + high), ratio = pow(q, s1) * (1 - pow(q, s2)) / (1 - pow(q, s1));
    if (ratio * g1 < g2)
      low = q;
    else
      high = q;
  }
  return high;
}

/* Stops when the wanted sum is known to the tolerance: when the gains to come, if they go on falling as the last ones did, and the gap bound,
 * each doubled, agree on it; or, where a dense spectrum shows no gap, when three looks in a row find next to nothing to come. Where the small eigenproblem has grown dear, the next look comes after half the steps that seem missing. */
static status judge(space *s, bool *stop, double *excess) {
  enum { CHEAP = 256, LONGEST = 8, CALM = 3 };
  status st = OK;
  double sum = 0, unwanted = 0, outside = 0, bound = INFINITY;
  for (int i = 0; i < s->dim; i++) *(i < s->dim - s->q->wanted ? &unwanted : &sum) += s->theta[i];
  if (!isfinite(sum)) return fail(E_NUMERICS, "%s: block Krylov: expected finite values, found NaN or Inf", s->where);
  s->sums[0] = s->sums[1];
  s->sums[1] = s->sums[2];
  s->sums[2] = sum;
  s->steps[0] = s->steps[1];
  s->steps[1] = s->since;
  s->since = s->wait = 0;
  TRY(outside_energy(s, &outside));
  double floor = 1e-13 * (fabs(sum) + fabs(unwanted) + outside), tail = fmax(unwanted + outside, floor),
         allowed = fmax(s->q->tolerance * tail, floor);
  *excess = outside > 0 ? outside / tail : 0;
  *stop = s->dim == s->n || 4 * outside <= allowed; /* no choice of vectors can gain more than what lies outside (Ky Fan) */
  if (*stop || ++s->looks < 3) return OK;
  double before = fmax(s->sums[1] - s->sums[0], 0), gain = fmax(sum - s->sums[1], 0);
  double q = decay(before, s->steps[0], gain, s->steps[1]), shrink = pow(q, s->steps[1]), coming = gain * shrink / (1 - shrink);
  s->calm = 4 * coming <= allowed ? s->calm + 1 : 0;
  if (2 * coming <= allowed) {
    TRY(gap_bound(s, outside, &bound));
    *stop = 2 * bound <= allowed || s->calm >= CALM;
  } else if (s->dim >= CHEAP) {
    double missing = log(2 * coming / allowed) / -log(q);
    s->wait = (int)fmin(fmax(missing / 2, 1), LONGEST) - 1;
  }
  *excess = 2 * fmax(coming, isfinite(bound) ? bound : 0) / tail;
done:
  return st;
}

/* The wanted pairs as rows, descending, and what can be checked without another full product: orthonormality, and the residual of one
 * combination of all pairs against what the space predicts for it. */
static status hand_over(space *s, krylov_result *r) {
  status st = OK;
  double *mix = NULL, *probe = NULL, *defect = NULL;
  int wanted = s->q->wanted, n = s->n, dim = s->dim;
  size_t d = (size_t)dim, k = (size_t)wanted;
  TRY(NEW(r->values, k, "eigenvalues"));
  TRY(NEW(r->vectors, k * (size_t)n, "eigenvectors"));
  TRY(NEW(mix, k * d, "Ritz coefficients"));
  TRY(NEW(probe, 3 * (size_t)n + d, "probe"));
  TRY(NEW(defect, k * k, "orthogonality"));
  for (size_t i = 0; i < k; i++) {
    r->values[i] = s->theta[d - 1 - i];
    memcpy(mix + i * d, s->ritz + (d - 1 - i) * d, d * sizeof *mix);
  }
  dgemm(false, false, wanted, n, dim, 1, mix, dim, s->basis, n, 0, r->vectors, n);
  dsyrk_outer(wanted, n, 1, r->vectors, n, 0, defect, wanted);
  double worst = 0, predicted = 0, found = 0;
  for (size_t i = 0; i < k; i++)
    for (size_t j = 0; j <= i; j++) worst = fmax(worst, fabs(defect[i * k + j] - (i == j)));
  double *image = probe + n, *expected = image + n, *last = expected + n; /* last: coefficients of the combination */
  for (size_t i = 0; i < k; i++) {
    double sign = random_entry(&s->seed) < 0 ? -1 : 1;
    for (size_t j = 0; j < d; j++) last[j] += sign * mix[i * d + j];
    for (int j = 0; j < n; j++) {
      double v = sign * r->vectors[i * (size_t)n + (size_t)j];
      probe[j] += v;
      expected[j] += r->values[i] * v;
    }
  }
  TRY(s->q->apply(s->q->context, 1, n, probe, image));
  for (int j = 0; j < n; j++) image[j] -= expected[j];
  found = norm(n, image);
  memset(expected, 0, (size_t)n * sizeof *expected);
  dgemm(false, false, 1, n, s->last, 1, last + (dim - s->last), s->last, s->image, n, 0, expected, n);
  predicted = norm(n, expected);
  double bound = 1e-10 * fmax(fabs(s->theta[dim - 1]), fabs(s->theta[0])) * sqrt(wanted);
  if (!(worst <= 1e-11) || !(fabs(found - predicted) <= bound))
    st = fail(E_NUMERICS, "%s: block Krylov: expected orthonormal vectors and a residual of %.3e, found a defect of %.1e and %.3e",
              s->where, predicted, worst, found);
  r->lowest = s->theta[0];
done:
  FREE(mix);
  FREE(probe);
  FREE(defect);
  return st;
}

int krylov_block(int64_t n, int wanted) {
  int block = 8 * (int)lround(3 * sqrt(wanted) / 8);
  block = block < 16 ? 16 : block > 128 ? 128 : block;
  return block < n ? block : (int)n;
}

status krylov_top(const char *where, const krylov_request *q, krylov_result *r) {
  status st = OK;
  space s = {.where = where, .q = q, .seed = 20260124};
  double *x = NULL;
  bool stop = false;
  memset(r, 0, sizeof *r);
  if (q->n < 1 || q->n > INT32_MAX || q->wanted < 1 || q->wanted > q->n)
    return fail(E_INTERNAL, "%s: block Krylov: expected 1 .. %lld pairs, found %d", where, (long long)q->n, q->wanted);
  if (!(q->tolerance > 0)) return fail(E_INTERNAL, "%s: block Krylov: expected a positive tolerance, found %g", where, q->tolerance);
  int64_t block = q->block > 0 ? q->block : krylov_block(q->n, q->wanted), limit = 16 * (int64_t)q->wanted + 512;
  s.n = (int)q->n;
  s.block = (int)(block < q->n ? block : q->n);
  s.limit = (int)(limit < q->n ? limit : q->n);
  TRY(NEW(x, (size_t)s.block * (size_t)s.n, "start block"));
  TRY(NEW(s.image, (size_t)(s.block + PROBES) * (size_t)s.n, "block image"));
  TRY(NEW(s.probes, PROBES * (size_t)s.n, "probes"));
  TRY(NEW(s.probed, PROBES * (size_t)s.n, "probes"));
  for (size_t i = 0; i < PROBES * (size_t)s.n; i++) s.probes[i] = random_entry(&s.seed) < 0 ? -1 : 1;
  TRY(NEW(s.turned, (size_t)s.block * (size_t)s.n, "turned block"));
  TRY(NEW(s.gram, (size_t)s.block * (size_t)s.block, "block Gram"));
  int given = q->start ? (q->start_rows < s.block ? q->start_rows : s.block) : 0;
  if (given) memcpy(x, q->start, (size_t)given * (size_t)s.n * sizeof *x);
  for (int i = given; i < s.block; i++) random_row(&s, x + (size_t)i * (size_t)s.n);
  for (int blocks = 1; !stop; blocks++) {
    int room = s.limit - s.dim, rows = room < s.block ? room : s.block;
    if (rows == 0) {
      st = fail(E_NUMERICS, "%s: block Krylov: %d pairs of order %d did not converge to %.1e in a space of %d", where, q->wanted, s.n,
                q->tolerance, s.dim);
      goto done;
    }
    TRY(extend(&s, rows, s.dim ? s.image : x));
    r->applications += s.dim == rows ? rows + PROBES : rows;
    if (s.since++, s.dim < q->wanted || (s.since <= s.wait && s.dim < s.limit)) continue;
    if (blocks < q->blocks && s.dim < s.limit) continue;
    TRY(rayleigh_ritz(&s));
    TRY(judge(&s, &stop, &r->excess));
    stop = stop || q->blocks > 0;
  }
  TRY(hand_over(&s, r));
done:
  FREE(x);
  FREE(s.basis);
  FREE(s.t);
  FREE(s.image);
  FREE(s.probes);
  FREE(s.probed);
  FREE(s.coefficients);
  FREE(s.gram);
  FREE(s.turned);
  FREE(s.ritz);
  FREE(s.theta);
  FREE(s.residual);
  FREE(s.tails);
  FREE(s.weighted);
  if (st != OK) krylov_result_free(r);
  return st;
}

void krylov_result_free(krylov_result *r) {
  FREE(r->values);
  FREE(r->vectors);
}
