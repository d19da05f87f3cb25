#include "run/allocation.h"

#include <math.h>
#include <stdlib.h>

#include "base/memory.h"

/* From one corner of a matrix's hull to the next larger one. */
typedef struct edge {
  int matrix, order, to; /* order: among the matrix's edges */
  double size, saved;    /* what it adds, what it takes off the loss: both above 0 */
  double slope;          /* saved per size, never above that of the edge before it */
} edge;

/* Steepest first; the edges of one matrix stay in order. */
static int steeper(const void *a, const void *b) {
  const edge *x = a, *y = b;
  if (x->slope != y->slope) return x->slope < y->slope ? 1 : -1;
  return x->matrix != y->matrix ? (x->matrix > y->matrix) - (x->matrix < y->matrix) : (x->order > y->order) - (x->order < y->order);
}

static int smallest(const candidates *m) {
  int best = 0;
  for (int i = 1; i < m->count; i++) {
    const candidate *c = &m->list[i], *b = &m->list[best];
    if (c->size < b->size || (c->size == b->size && c->loss < b->loss)) best = i;
  }
  return best;
}

double allocation_least(const candidates *m, int count) {
  double sum = 0;
  for (int k = 0; k < count; k++) sum += m[k].list[smallest(&m[k])].size;
  return sum;
}

/* Adds the edges of one matrix's hull, from its smallest candidate: each time to the candidate that saves most per size. */
static void add_edges(const candidates *m, int matrix, edge *list, int *count) {
  const candidate *c = m->list;
  double last = INFINITY;
  for (int at = smallest(m), order = 0;; order++) {
    edge best = {.matrix = matrix, .order = order};
    for (int i = 0; i < m->count; i++) {
      double size = c[i].size - c[at].size, saved = c[at].loss - c[i].loss, slope = saved / size;
      if (!(size > 0 && saved > 0) || slope <= best.slope) continue;
      best = (edge){matrix, order, i, size, saved, slope};
    }
    if (best.slope == 0) return;
    at = best.to;
    last = best.slope = fmin(best.slope, last); /* rounding must not turn the order of collinear corners */
    list[(*count)++] = best;
  }
}

static allocation sum_of(const candidates *m, int count, const int *choice) {
  allocation a = {0, 0, 0};
  for (int k = 0; k < count; k++) {
    a.size += m[k].list[choice[k]].size;
    a.loss += m[k].list[choice[k]].loss;
  }
  return a;
}

allocation allocation_fill(const candidates *m, int count, double budget, int *choice) {
  for (;;) {
    allocation now = sum_of(m, count, choice);
    int matrix = -1, to = 0;
    double best = 0;
    for (int k = 0; k < count; k++) {
      const candidate *c = m[k].list, *at = &c[choice[k]];
      for (int i = 0; i < m[k].count; i++) {
        double more = c[i].size - at->size, saved = at->loss - c[i].loss;
        if (!(saved > 0) || now.size + more > budget) continue;
        double worth = more > 0 ? saved / more : INFINITY;
        if (worth > best) best = worth, matrix = k, to = i;
      }
    }
    if (matrix < 0) return now;
    choice[matrix] = to;
  }
}

status allocation_choose(const candidates *m, int count, double budget, int *choice, allocation *a) {
  status st = OK;
  edge *edges = NULL;
  int room = 0, edge_count = 0;
  for (int k = 0; k < count; k++) room += m[k].count;
  TRY(NEW(edges, room, "edges of hulls"));
  for (int k = 0; k < count; k++) {
    choice[k] = smallest(&m[k]);
    add_edges(&m[k], k, edges, &edge_count);
  }
  qsort(edges, (size_t)edge_count, sizeof *edges, steeper);
  allocation now = sum_of(m, count, choice);
  int e = 0;
  for (; e < edge_count && now.size + edges[e].size <= budget; e++) {
    choice[edges[e].matrix] = edges[e].to;
    now.size += edges[e].size;
    now.loss -= edges[e].saved;
  }
  double bound = now.loss;
  if (e < edge_count) bound -= edges[e].slope * (budget - now.size); /* a part of the edge: what the relaxed problem may do */
  *a = allocation_fill(m, count, budget, choice);
  a->bound = fmin(bound, a->loss);
done:
  FREE(edges);
  return st;
}
