/* refine IN N M BITS RANK SHAPES DESCENTS GRID OUT: joint/refine.h on one matrix, for fixture.py. IN: W (N, M), then H (M, M), float32. GRID:
 * range (the start alone, on the grid of the range), refit or candidates. OUT: codes (N, M) of a byte, scales (N, groups of 64) fp16, zeros of a
 * byte; double: the round that was kept, losses of the start and of every round. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adapter/adapter.h"
#include "base/blas.h"
#include "base/memory.h"
#include "dist/dlinalg.h"
#include "joint/refine.h"
#include "joint/ritz.h"
#include "quant/optq.h"

typedef struct problem {
  int64_t n, m, groups;
  int rank;
  float *w, *h, *p, *diagonal;
  double *start, *factor, *losses; /* losses: behind the round that was kept */
  uint8_t *codes;
  code_grid grid;
  shared memory;
} problem;

static status read_problem(const char *path, int rounds, problem *p) {
  status st = OK;
  FILE *f = fopen(path, "rb");
  size_t weights = (size_t)(p->n * p->m), square = (size_t)(p->m * p->m);
  TRY(NEW(p->w, p->n * p->m, "W"));
  TRY(NEW(p->h, p->m * p->m, "H"));
  TRY(NEW(p->p, p->m * p->m, "P"));
  TRY(NEW(p->diagonal, p->m, "diagonal"));
  TRY(NEW(p->factor, p->m * p->m, "factor"));
  TRY(NEW(p->losses, 1 + rounds, "losses"));
  TRY(NEW(p->codes, p->n * p->m, "codes"));
  TRY(NEW(p->grid.scales, p->n * p->groups, "scales"));
  TRY(NEW(p->grid.zeros, p->n * p->groups, "zeros"));
  if (!f || fread(p->w, sizeof *p->w, weights, f) != weights || fread(p->h, sizeof *p->h, square, f) != square)
    TRY(fail(E_IO, "%s: cannot be read: %m", path));
  for (int64_t j = 0; j < p->m; j++) p->diagonal[j] = p->h[j * p->m + j];
done:
  if (f) fclose(f);
  return st;
}

/* Codes of OPTQ on the rule's grid. */
static status start(const team *t, const grid_rule *rule, double damping, problem *p) {
  status st = OK;
  TRY(grid_fit(rule, (int)p->n, (int)p->m, p->w, p->m, p->diagonal, p->grid, NULL));
  TRY(reverse_cholesky("start", t, p->m, p->h, damping, NULL, p->factor));
  optq_request r = {.rule = *rule, .rows = (int)p->n, .width = (int)p->m, .w = p->w, .ldw = p->m, .u = p->factor, .grid = p->grid};
  TRY(optq(&r, p->codes, NULL));
done:
  return st;
}

static status better(const team *t, const grid_rule *rule, refine_plan plan, double damping, problem *p) {
  status st = OK;
  int kept, columns = ritz_columns(p->n, p->rank);
  int64_t tiny = 0;
  TRY(adapter_start("H", p->m, p->h, columns, 4, &p->start));
  TRY(shared_new(t, refine_shared(p->n, p->m, p->rank), "refine", &p->memory));
  refine_request q = {.t = t,
                      .where = "matrix",
                      .plan = plan,
                      .rule = *rule,
                      .n = p->n,
                      .m = p->m,
                      .end = p->n,
                      .rank = p->rank,
                      .w = p->w,
                      .h = p->h,
                      .damping = damping,
                      .weigh_diagonal = true,
                      .start = p->start,
                      .start_rows = columns,
                      .shared_memory = p->memory.base,
                      .factor = p->factor,
                      .p = p->p};
  TRY(refine(&q, p->codes, p->grid, p->losses + 1, &kept, &tiny));
  p->losses[0] = kept;
done:
  return st;
}

static status write_result(const char *path, int rounds, const problem *p) {
  FILE *f = fopen(path, "wb");
  size_t codes = (size_t)(p->n * p->m), grids = (size_t)(p->n * p->groups);
  bool written = f && fwrite(p->codes, 1, codes, f) == codes && fwrite(p->grid.scales, 2, grids, f) == grids &&
                 fwrite(p->grid.zeros, 1, grids, f) == grids &&
                 fwrite(p->losses, sizeof *p->losses, (size_t)(1 + rounds), f) == (size_t)(1 + rounds);
  if (f && fclose(f) != 0) written = false;
  return written ? OK : fail(E_IO, "%s: cannot be written: %m", path);
}

int main(int argc, char **argv) {
  status st = OK;
  team t = {0};
  problem p = {0};
  double mean = 0;
  if (argc != 10) {
    fprintf(stderr, "usage: refine IN N M BITS RANK SHAPES DESCENTS range|refit|candidates OUT\n");
    return 2;
  }
  bool searched = strcmp(argv[8], "range") != 0;
  grid_rule rule = {.bits = atoi(argv[4]), .group = 64, .beta = 1, .search = searched ? SEARCH_REFIT : SEARCH_NONE};
  refine_plan plan = {.shapes = atoi(argv[6]),
                      .eigenvectors = true,
                      .regrid = true,
                      .descents = atoi(argv[7]),
                      .deflated = true,
                      .grid_moves = strcmp(argv[8], "candidates") == 0 ? SWEEP_GRID_CANDIDATES : SWEEP_GRID_REFIT};
  int rounds = 1 + plan.shapes + plan.descents;
  MPI_Init(&argc, &argv);
  blas_setup();
  p.n = atoll(argv[2]), p.m = atoll(argv[3]), p.groups = p.m / rule.group, p.rank = atoi(argv[5]);
  TRY(team_new(MPI_COMM_WORLD, 0, &t));
  TRY(read_problem(argv[1], rounds, &p));
  for (int64_t j = 0; j < p.m; j++) mean += p.diagonal[j] / (double)p.m;
  plan.ridge = 0.03 * mean;
  TRY(start(&t, &rule, 0.01 * mean, &p));
  if (searched) TRY(better(&t, &rule, plan, 0.01 * mean, &p));
  TRY(write_result(argv[9], rounds, &p));
done:
  if (st != OK) fprintf(stderr, "refine: %s\n", status_message());
  shared_free(&p.memory);
  FREE(p.w), FREE(p.h), FREE(p.p), FREE(p.diagonal), FREE(p.start), FREE(p.factor), FREE(p.losses);
  FREE(p.codes), FREE(p.grid.scales), FREE(p.grid.zeros);
  team_free(&t);
  MPI_Finalize();
  return status_exit_code(st);
}
