/* The low-rank optimum and its proof: LR(E, H, r) of spec methods 2.1, CLoQ's closed form without root, inverse or damping.
 *
 * Given the residual E = W - Q (n, m) and the Gram H (m, m), G = E H E^T = V diag(lambda) V^T; B = V_r, A = V_r^T E minimise
 * tr((E - BA) H (E - BA)^T) over rank r for EVERY r at once: rank r is the first r columns of B and rows of A, with loss
 * trace - sum of the first r values. E and H are float (as stored); all arithmetic is double. The metric may be any symmetric matrix >= 0:
 * with diag(d), d = diag H or (mean |x|)^2, BA is SVD_r(E D) D^{-1}, D = diag(d)^{1/2}, without the division (QERA-approx arXiv 2410.06040,
 * LQER arXiv 2402.02446); with the identity the plain SVD.
 *
 * Paths that agree (products and losses):
 *   adapter_local   Local: one matrix on one rank. Dense (LAPACK; small side chosen by shape: n <= m forms G, n > m works on R of E = QR)
 *                   when the rank is a large part of the matrix, block Krylov through (E, H), G never formed, otherwise.
 *   adapter_grid    Collective: one matrix over the team's process grid (ScaLAPACK), for what does not fit one rank or when
 *                   matrices are fewer than ranks.
 * B = V_r is rounded to float first and A = B^T E made from the rounded B, so that the stored factors are optimal together.
 * Signs are fixed: the largest-magnitude entry of each column of V is positive (lowest index on ties).
 * Errors: E_NUMERICS for NaN or Inf anywhere, an eigenvalue of G below -1e-6 lambda_1 (H holds float: less is rounding), a
 * decomposition that fails its check; E_MEMORY; E_INTERNAL for a request out of its range. */
#ifndef CLOQWORK_ADAPTER_ADAPTER_H
#define CLOQWORK_ADAPTER_ADAPTER_H

#include <stdint.h>

#include "base/status.h"
#include "dist/grid.h"

typedef enum adapter_path { ADAPTER_AUTO, ADAPTER_DENSE, ADAPTER_KRYLOV } adapter_path;

typedef struct adapter_request {
  const char *where; /* for messages: "model.layers.3.mlp.down_proj, cloq-b2-g64"; borrowed */
  int64_t n, m;
  const float *e;        /* (n, m) contiguous, borrowed */
  const float *h;        /* the metric: (m, m) symmetric, contiguous, borrowed; NULL: the identity (plain SVD), or … */
  const float *diagonal; /* … [m] >= 0, diag(diagonal), with h NULL; borrowed; zeros are allowed */
  int rank;              /* 1 .. min(n, m) */
  double trace;          /* tr(E H E^T) in that metric when known (adapter_trace), NaN: computed here */
  double tolerance;      /* Krylov: excess loss relative to the tail; 0: 1e-6 */
  adapter_path path;
  const double *start; /* Krylov: (start_rows, m) rows S; the start block is (E S^T)^T; NULL: random */
  int start_rows;
} adapter_request;

typedef struct adapter {
  int64_t n, m;
  int rank;
  float *b;       /* (n, rank); owned */
  float *a;       /* (rank, m); owned */
  double *values; /* [rank] leading eigenvalues of G, descending; below 0 only by the rounding of H; owned */
  double trace;
} adapter;

status adapter_check(const adapter_request *q); /* E_INTERNAL unless the request is within its ranges */
status adapter_local(const adapter_request *q, adapter *out);
/* Collective over g. Every rank sees e and h (shared memory); the result is replicated on every rank. path, tolerance and start are not used. */
status adapter_grid(const adapter_request *q, const grid *g, adapter *out);
void adapter_free(adapter *a);

/* tr(E H E^T) of rows [begin, end), in double, H read in its lower triangle: (end-begin) m^2 flops. A row's term does not depend on the
 * other rows, so that any deal of rows gives the same terms. h NULL: the identity. row_loss (may be NULL): [end - begin] its terms. */
status adapter_trace(int64_t m, const float *e, const float *h, int64_t begin, int64_t end, double *row_loss, double *sum);

/* out (rows, m) = x (rows, m) with column j times sqrt(diagonal[j]); out may be x. A diagonal metric is the identity of scaled E and A: so
 * adapter_trace and adapter_losses serve it with h NULL, to the rounding of float. */
void adapter_scale(int64_t rows, int64_t m, const float *x, const float *diagonal, float *out);

/* Loss from the STORED numbers for r = 0 … rank: tr((E - B_r A_r) H (E - B_r A_r)^T), by the r x r matrices B^T B, A H A^T and
 * B^T E H A^T: loss[0] = trace, 2 m^2 rank + 2 n m rank flops. loss has rank + 1 entries. */
status adapter_losses(int64_t n, int64_t m, const float *e, const float *h, const float *b, const float *a, int rank, double trace,
                      double *loss);
uint64_t adapter_losses_bytes(int64_t n, int64_t m, int rank); /* its workspace */

/* Leading eigenvectors of H scaled by the root of their values, rows of *start (rows, m), owned: the good start for every matrix on this Gram.
 * `blocks` block products of H, 2 rows m^2 flops each: two of them save each matrix one or two of its ten applications (measured), and more
 * precise vectors save no more. rows: adapter_start_rows(rank). */
status adapter_start(const char *where, int64_t m, const float *h, int rows, int blocks, double **start);
int adapter_start_rows(int64_t n, int64_t m, int rank); /* rows that adapter_local will use: its Krylov block; 0: it will not use a start */

/* The path adapter_local takes, and what it costs: flops at the rate of large products (trace included when it is not given), and bytes
 * of private memory at the peak, results included. For dealing matrices to ranks, and for plan. */
adapter_path adapter_choice(const adapter_request *q);
double adapter_flops(const adapter_request *q);
uint64_t adapter_bytes(const adapter_request *q);

#endif
