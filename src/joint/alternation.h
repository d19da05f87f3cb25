/* Codes and adapter in turn, on one whole matrix: Q = q(W - P), P = LR(W - Q, M, r). One loop, of which the methods are rows:
 *
 *   method                      start     rounds  metric of the fits   result
 *   LoftQ  (2310.08659)         zero      T       identity             last        spec methods 7
 *   LASQ-e                      zero      1       identity             last
 *   LASQ-w (quantized PiSSA)    weight    0       identity             -           P = LR(W, I, r) stays, Q = q(W - P)
 *   LASQ-q                      rounded   0       identity             -           P = LR(q(W), I, r) stays, Q = q(W - P)
 *   CALDERA (2405.18886)        weight    T       H                    best        9; uniform grids, factors in float
 *   ODLRI  (2506.02077)         outliers  T       H                    best        known here from its abstract
 *
 * How codes are chosen is the caller's: `round` is given what is to be rounded, returns what the codes are worth, and keeps the codes until `keep`
 * says that they belong to the result or the next `round` replaces them. The number of rounds is fixed: nothing stops early. Not monotone: the loss
 * of every round is listed. Local; a matrix's result depends on it alone. */
#ifndef CLOQWORK_JOINT_ALTERNATION_H
#define CLOQWORK_JOINT_ALTERNATION_H

#include <stdbool.h>

#include "adapter/adapter.h"

typedef enum alternation_start {
  START_ZERO,    /* P = 0 */
  START_WEIGHT,  /* P = LR(W, M, r) */
  START_ROUNDED, /* P = LR(q(W), M, r) */
  START_OUTLIERS /* P = LR(W, H_o, r), H_o the judge's rows and columns of its r largest diagonal entries (ties: the lowest index), zero
                    elsewhere: those columns of W are P's alone. Of the many optima P = V V^T W, V an orthonormal basis of them */
} alternation_start;

typedef struct alternation_request {
  adapter_request fit; /* of every LR: where, n, m, rank, metric, path, tolerance, start. e and trace are set here */
  const float *w;      /* (n, m) contiguous, borrowed */
  const float *judge;  /* (m, m) H in which losses are listed and compared, borrowed; may be fit.h; NULL: the identity */
  alternation_start start;
  int rounds;                                                    /* of Q and P; 0: the start's P stays (not START_ZERO) */
  bool base_first;                                               /* rounds 0: Q = q(W) instead of q(W - P) (lasq_base = q0) */
  bool keep_best;                                                /* the round of least loss (the first of equals) instead of the last */
  status (*round)(void *context, const float *target, float *q); /* q (n, m) = values of the codes chosen for target (n, m); no overlap */
  void (*keep)(void *context);                                   /* the codes of the latest round() belong to the result so far */
  void *context;
} alternation_request;

typedef struct alternation {
  adapter factors; /* values and trace are those of the last LR that made them: of W - Q when rounds > 0, else of W or q(W) */
  double *losses;  /* [count] tr((W - Q - BA) H (W - Q - BA)^T) after every round, of the stored numbers; owned */
  int count, kept; /* max(rounds, 1); index of the result */
} alternation;

/* E_INTERNAL out of range, E_NUMERICS, E_MEMORY, and whatever round returns. */
status alternate(const alternation_request *q, alternation *out);
void alternation_free(alternation *a);

/* Without the caller's round: flops, and private bytes at the peak, two copies of W included. */
double alternation_flops(const alternation_request *q);
uint64_t alternation_bytes(const alternation_request *q);

#endif
