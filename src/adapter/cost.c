#include <math.h>

#include "adapter/adapter.h"
#include "dist/krylov.h"

/* Vectors that the Krylov path sends through (E, H): from runs at ranks 16 to 256 of 4096, tolerance 1e-6. Without a Gram the spectrum is flat
 * and they are more; the rank of G is their bound. */
static double krylov_vectors(const adapter_request *q) {
  double vectors = q->h ? 3.5 * q->rank + 50 : 5.5 * q->rank + 250;
  return fmin(vectors, (double)(q->n < q->m ? q->n : q->m));
}

static double dense_cost(const adapter_request *q) {
  double n = (double)q->n, m = (double)q->m, h = q->h ? 1 : 0;
  if (n <= m) return 2 * n * m * m * h + n * n * m + 9 * n * n * n;
  return 4 * n * m * m + 2 * m * m * m * (1 + h) + 9 * m * m * m + 2 * n * m * q->rank;
}

/* Products of a few rows run at 0.75 of the rate of large ones, the orthogonalization at half; the projected eigenproblem is solved
 * about twice at its full size. */
static double krylov_cost(const adapter_request *q) {
  double n = (double)q->n, m = (double)q->m, v = krylov_vectors(q), looks = fmin(2, v / krylov_block(q->n, q->rank));
  double products = v * (4 * n * m + (q->h ? 2 * m * m : 0)) / 0.75, space = 5 * n * v * v / 0.5, projected = looks * 9 * v * v * v;
  return products + space + projected + 2 * n * v * q->rank;
}

adapter_path adapter_choice(const adapter_request *q) {
  if (q->path != ADAPTER_AUTO) return q->path;
  double trace = isnan(q->trace) ? (double)q->n * (double)q->m * (double)q->m : 0; /* the dense path has it for nothing */
  return dense_cost(q) <= krylov_cost(q) + trace ? ADAPTER_DENSE : ADAPTER_KRYLOV;
}

int adapter_start_rows(int64_t n, int64_t m, int rank) {
  float present = 0; /* only whether there is a Gram matters to the choice */
  adapter_request q = {.n = n, .m = m, .h = &present, .rank = rank, .trace = 0};
  return adapter_choice(&q) == ADAPTER_DENSE ? 0 : krylov_block(n, rank);
}

double adapter_flops(const adapter_request *q) {
  double n = (double)q->n, m = (double)q->m, factor = 2 * n * m * q->rank;
  if (adapter_choice(q) == ADAPTER_DENSE) return dense_cost(q) + factor;
  return krylov_cost(q) + factor + (isnan(q->trace) && q->h ? n * m * m : 0);
}

/* The larger of the decomposition and the making of the factors; bands of mixed products (a few MiB) included. */
uint64_t adapter_bytes(const adapter_request *q) {
  double n = (double)q->n, m = (double)q->m, r = q->rank, work = 0, bands = 4e6;
  if (adapter_choice(q) == ADAPTER_KRYLOV) {
    double v = krylov_vectors(q), block = krylov_block(q->n, q->rank), held = 3 * v; /* the space doubles by copying */
    work = held * n + 4 * v * v + block * (3 * n + 2 * m);
  } else if (n <= m)
    work = 2 * fmin(256, n) * m + 3 * n * n;
  else
    work = n * m + 6 * m * m;
  return (uint64_t)(8 * (work + r * n) + 8 * r * m + 4 * r * (n + m) + bands);
}
