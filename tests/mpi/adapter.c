/* The adapter over a process grid against the same matrix solved on one rank: product, loss curve, values; and the failures, on all ranks alike. */
#include "check.h"

#include <math.h>
#include <string.h>

#include "../unit/problem.h"
#include "base/blas.h"
#include "dist/agree.h"

/* The loss of the stored numbers is the tail of the one-rank spectrum; products agree where they are determined. */
static void compare(const problem *p, const grid *g, int rank, double trace) {
  adapter_request q = {.where = "grid test",
                       .n = p->n,
                       .m = p->m,
                       .e = p->e,
                       .h = p->h,
                       .diagonal = p->d,
                       .rank = rank,
                       .trace = NAN,
                       .path = ADAPTER_DENSE};
  adapter one = {0}, all = {0};
  double *loss = NULL, tail, before = INFINITY;
  CHECK_OK(adapter_local(&q, &one));
  q.trace = isnan(trace) ? NAN : one.trace;
  CHECK_OK(adapter_grid(&q, g, &all));
  CHECK_OK(NEW(loss, rank + 1, "loss"));
  if (one.b && all.b && loss) {
    double total = one.trace, slack = 1e-12 * total, negative = 1e-7 * total; /* what a float Gram of low rank has below zero */
    CHECK(fabs(all.trace - total) <= slack, "trace %.17g, on one rank %.17g", all.trace, total);
    CHECK_OK(problem_losses(p, all.b, all.a, rank, &total, loss));
    tail = total;
    for (int r = 0; r <= rank; r++) {
      if (r) tail -= one.values[r - 1];
      CHECK(loss[r] <= tail * (1 + 1e-5) + slack + negative && loss[r] >= tail - slack - negative,
            "rank %d of %lld x %lld: loss %.15g, tail %.15g", r, (long long)p->n, (long long)p->m, loss[r], tail);
      CHECK(loss[r] <= before + slack, "rank %d: loss rises", r);
      before = loss[r];
      if (r)
        CHECK(fabs(all.values[r - 1] - one.values[r - 1]) <= slack, "value %d: %.17g, on one rank %.17g", r, all.values[r - 1],
              one.values[r - 1]);
    }
    if (rank < 2 || one.values[rank - 2] - one.values[rank - 1] > 1e-3 * one.values[0])
      CHECK(fabs(problem_loss(p, all.b, all.a, rank, rank) - loss[rank]) <= slack + negative, "direct loss differs from %.15g", loss[rank]);
    if (one.values[rank - 1] > 1e-3 * one.values[0])
      CHECK(product_distance(p, &one, &all) <= 1e-4, "products %lld x %lld at rank %d differ by %.3e", (long long)p->n, (long long)p->m,
            rank, product_distance(p, &one, &all));
    CHECK_OK(agree_same(g->comm, "lora_B", all.b, (size_t)p->n * (size_t)rank * sizeof *all.b));
    CHECK_OK(agree_same(g->comm, "lora_A", all.a, (size_t)p->m * (size_t)rank * sizeof *all.a));
  }
  FREE(loss);
  adapter_free(&one);
  adapter_free(&all);
}

static void shapes(const grid *g) {
  static const int64_t shape[][2] = {{130, 130}, {203, 77}, {70, 190}, {5, 3}, {1, 8}};
  for (size_t s = 0; s < sizeof shape / sizeof *shape; s++)
    for (int kind = 0; kind < PROBLEM_KINDS; kind++) {
      problem p;
      CHECK_OK(problem_new(&p, (problem_kind)kind, shape[s][0], shape[s][1], 0));
      int most = (int)(p.n < p.m ? p.n : p.m);
      if (p.e) {
        compare(&p, g, 1, NAN);
        if (most > 8) compare(&p, g, 9, 0);
        if (kind == PROBLEM_DECAYING) compare(&p, g, most, NAN);
      }
      problem_free(&p);
    }
}

static void refusals(const grid *g) {
  problem p;
  adapter a;
  CHECK_OK(problem_new(&p, PROBLEM_DECAYING, 90, 70, 0));
  adapter_request q = {.where = "layer", .n = p.n, .m = p.m, .e = p.e, .h = p.h, .rank = 4, .trace = NAN};
  float keep = p.h[0];
  p.h[0] = -1e4F;
  CHECK_FAILS(adapter_grid(&q, g, &a), E_NUMERICS);
  p.h[0] = NAN;
  CHECK_FAILS(adapter_grid(&q, g, &a), E_NUMERICS);
  CHECK(!a.b && !a.a, "a failed adapter keeps memory");
  p.h[0] = keep;
  q.rank = 71;
  CHECK_FAILS(adapter_grid(&q, g, &a), E_USAGE);
  q.rank = 4;
  if (g->size > 1) {
    if (g->rank == g->size - 1) q.rank = 5; /* ranks that do not agree */
    CHECK_FAILS(adapter_grid(&q, g, &a), E_INTERNAL);
    q.rank = g->rank == 0 ? 0 : 4; /* a bad request on one rank alone */
    CHECK_FAILS(adapter_grid(&q, g, &a), E_USAGE);
  }
  problem_free(&p);
}

int main(int argc, char **argv) {
  MPI_Init(&argc, &argv);
  grid g, part;
  int rank;
  MPI_Comm half;
  blas_setup();
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  CHECK_OK(grid_new(MPI_COMM_WORLD, &g));
  shapes(&g);
  refusals(&g);
  grid_free(&g);
  MPI_Comm_split(MPI_COMM_WORLD, rank % 2, rank, &half); /* two matrices at once, each on its own half */
  CHECK_OK(grid_new(half, &part));
  problem p;
  CHECK_OK(problem_new(&p, PROBLEM_DECAYING, 99 + rank % 2, 120, (uint64_t)(rank % 2)));
  compare(&p, &part, 6, NAN);
  problem_free(&p);
  grid_free(&part);
  MPI_Comm_free(&half);
  CHECK(mem_now() == 0, "%llu bytes not freed", (unsigned long long)mem_now());
  return check_end("adapter");
}
