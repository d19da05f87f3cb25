/* One candidate for every matrix, so that the sum of losses is small and the sum of sizes fits a budget: a multiple-choice knapsack. Local.
 * Source: spec methods, section 13.
 *
 * A matrix's candidates, sorted by size, have a lower convex hull; its edges, of all matrices together, are taken in the order of loss saved
 * per size, as long as they fit. The edge that no longer fits gives the Lagrange multiplier at which the relaxed problem uses the budget up,
 * and with it a lower bound of what any choice can reach. What is left of the budget is then spent greedily, on candidates off the hull too. */
#ifndef CLOQWORK_RUN_ALLOCATION_H
#define CLOQWORK_RUN_ALLOCATION_H

#include "base/status.h"

typedef struct candidate {
  double size, loss; /* loss weighted as it is to be summed */
} candidate;

typedef struct candidates {
  const candidate *list; /* [count] in any order, borrowed */
  int count;             /* at least 1 */
} candidates;

typedef struct allocation {
  double size, loss;
  double bound; /* no choice within the budget has a smaller loss */
} allocation;

double allocation_least(const candidates *m, int count); /* the smallest budget that there is a choice for */

/* choice [count]: a candidate of each of the matrices; budget at least allocation_least. The same choice for the same numbers. E_MEMORY. */
status allocation_choose(const candidates *m, int count, double budget, int *choice, allocation *a);

/* Spends greedily what a choice that fits leaves of the budget: the candidate that saves most loss per size, again and again. Returns size
 * and loss of what it has become; no bound. */
allocation allocation_fill(const candidates *m, int count, double budget, int *choice);

#endif
