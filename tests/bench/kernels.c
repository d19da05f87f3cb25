/* The solver's kernels on one matrix, in GFLOP/s and as a fraction of what BLAS's products reach on the same ranks in the same run.
 *
 * usage: mpirun -n N bench_kernels ROWS COLUMNS [FOLDER]
 *        mpirun -n N bench_kernels rates           GFLOP/s of sgemm and of dgemm, all ranks together
 * Kernels as the solver uses them: the reverse Cholesky factor, OPTQ, MagR's step (of fista, 2 at once) and a sweep of refine with the rows dealt to the ranks;
 * the low-rank optimum, rank 64, one matrix a rank. 3 bits, 64 columns a scale. MagR and the sweep work in float and are held against 2048^3
 * products of sgemm, the others against dgemm's. Flops counted are those of the headers.
 *
 * FOLDER holds w.raw (ROWS, COLUMNS) and h.raw (COLUMNS, COLUMNS) in float for tests/bench/peers.py, which gets e.raw, the residual of OPTQ, and
 * what it needs as a judge: losses, and how many steps of fista reach the objective of 150 published steps. Else W and H are made up: lognormal
 * scales of groups; a k^-1 spectrum of heavy-tailed directions with outlier channels. */
#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "adapter/adapter.h"
#include "block_model.h"
#include "dist/agree.h"
#include "dist/dlinalg.h"
#include "quant/codes.h"
#include "quant/magr.h"
#include "quant/optq.h"
#include "quant/sweep.h"

enum { REPEATS = 3, RANK = 64, STEPS = 2, PUBLISHED_STEPS = 150, JUDGED_ROWS = 256, DIRECTIONS = 1024 };

typedef enum kernel { CHOLESKY, OPTQ, MAGR, SWEEP, ADAPTER, KERNELS } kernel;
static const char *const kernel_names[KERNELS] = {"cholesky", "optq", "magr", "sweep", "adapter"};
static const bool in_float[KERNELS] = {[MAGR] = true, [SWEEP] = true};

typedef struct bench {
  team t;
  int n, m, repeats;
  int64_t begin, end; /* my rows */
  grid_rule rule;
  shared w_memory, h_memory, u_memory, e_memory;
  float *w, *h, *e; /* (n, m), (m, m), (n, m), shared */
  double *u;        /* (m, m), shared */
  double ridge, lambda_max;
  uint8_t *codes, *swept; /* (my rows, m) */
  code_grid grid, moved;
  float *v;       /* (my rows, m) */
  float *product; /* three squares of PEAK for the rate of sgemm, and of dgemm */
  double *product_double;
  double seconds[KERNELS][REPEATS], flops[KERNELS], peak, peak_double;
  double loss_optq, loss_adapter;
} bench;

/* ---- matrices ---- */

static void make_weights(bench *b) {
  for (int64_t i = b->begin; i < b->end; i++) {
    uint64_t random = 0x9e3779b97f4a7c15u * (uint64_t)(i + 1);
    double scale = 1;
    for (int j = 0; j < b->m; j++) {
      if (j % 64 == 0) scale = exp(0.5 * random_normal(&random)) / sqrt((double)b->m);
      b->w[i * b->m + j] = (float)(scale * random_normal(&random));
    }
  }
}

static status make_gram(bench *b) {
  status st = OK;
  int64_t begin, end, m = b->m;
  float *x = NULL;
  uint64_t random = 88172645463325252u;
  TRY(NEW(x, DIRECTIONS * m, "directions"));
  for (int64_t t = 0; t < DIRECTIONS; t++)
    for (int64_t j = 0; j < m; j++)
      x[t * m + j] = (float)(random_normal(&random) * exp(0.7 * random_normal(&random)) * (j % 512 == 77 ? 16 : 1) / sqrt((double)(t + 1)));
  deal_range(m, b->t.size, b->t.rank, 64, &begin, &end);
  if (end > begin) sgemm(true, false, (int)(end - begin), b->m, DIRECTIONS, 1, x + begin, b->m, x, b->m, 0, b->h + begin * m, b->m);
  for (int64_t j = begin; j < end; j++) b->h[j * m + j] += 0.5f;
done:
  FREE(x);
  return st;
}

static status read_floats(const char *folder, const char *name, float *to, size_t count) {
  status st = OK;
  file_map f = {0};
  char *path = path_join(folder, name);
  TRY(file_map_open(path, &f));
  if (f.bytes != count * sizeof *to)
    st = fail(E_DATA, "%s: size: expected %zu floats, found %zu bytes", path, count, f.bytes);
  else
    memcpy(to, f.data, f.bytes);
done:
  file_map_close(&f);
  FREE(path);
  return st;
}

static status make_matrices(bench *b, const char *folder) {
  status st = OK;
  size_t n = (size_t)b->n, m = (size_t)b->m;
  TRY(shared_new(&b->t, n * m * sizeof(float), "W", &b->w_memory));
  TRY(shared_new(&b->t, m * m * sizeof(float), "H", &b->h_memory));
  TRY(shared_new(&b->t, m * m * sizeof(double), "the factor", &b->u_memory));
  TRY(shared_new(&b->t, n * m * sizeof(float), "E", &b->e_memory));
  b->w = b->w_memory.base, b->h = b->h_memory.base, b->u = b->u_memory.base, b->e = b->e_memory.base;
  if (!folder) {
    make_weights(b);
    st = make_gram(b);
  } else if (b->t.rank == 0) {
    st = read_floats(folder, "w.raw", b->w, n * m);
    if (st == OK) st = read_floats(folder, "h.raw", b->h, m * m);
  }
  TRY(agree(b->t.comm, st));
  team_barrier(&b->t);
  for (int64_t j = 0; j < b->m; j++) b->ridge += 0.01 / b->m * b->h[j * b->m + j];
  TRY(magr_lambda_max(b->m, b->h, &b->lambda_max));
done:
  return st;
}

static status grid_new_of(const bench *b, code_grid *g) {
  int64_t count = (b->end - b->begin) * grid_groups(&b->rule, b->m);
  status st = NEW(g->scales, count, "scales");
  return st == OK ? NEW(g->zeros, count, "zeros") : st;
}

static status new_products(bench *b) {
  status st = OK;
  TRY(NEW(b->product, 3 * PEAK * PEAK, "products"));
  TRY(NEW(b->product_double, 3 * PEAK * PEAK, "products"));
  for (int k = 0; k < 2 * PEAK * PEAK; k++) b->product_double[k] = b->product[k] = (float)(k % 17) / 17 - 0.4f;
done:
  return st;
}

static status bench_new(bench *b, const char *folder) {
  status st = OK;
  b->rule = (grid_rule){.bits = 3, .group = 64, .beta = 1};
  b->repeats = b->m > 4096 ? 2 : REPEATS;
  TRY(team_new(MPI_COMM_WORLD, 0, &b->t));
  deal_range(b->n, b->t.size, b->t.rank, optq_slab(b->m) > magr_slab(b->m) ? optq_slab(b->m) : magr_slab(b->m), &b->begin, &b->end);
  int64_t mine = (b->end - b->begin) * b->m;
  TRY(NEW(b->codes, mine, "codes"));
  TRY(NEW(b->swept, mine, "codes of a sweep"));
  TRY(NEW(b->v, mine > JUDGED_ROWS * (int64_t)b->m ? mine : JUDGED_ROWS * (int64_t)b->m, "V"));
  TRY(new_products(b));
  TRY(grid_new_of(b, &b->grid));
  TRY(grid_new_of(b, &b->moved));
  TRY(make_matrices(b, folder));
done:
  return st;
}

static void bench_free(bench *b) {
  FREE(b->codes), FREE(b->swept), FREE(b->v), FREE(b->product), FREE(b->product_double);
  FREE(b->grid.scales), FREE(b->grid.zeros), FREE(b->moved.scales), FREE(b->moved.zeros);
  shared_free(&b->w_memory), shared_free(&b->h_memory), shared_free(&b->u_memory), shared_free(&b->e_memory);
  team_free(&b->t);
}

/* ---- kernels: each returns the flops of all ranks ---- */

static int judged_rows(const bench *b) { return b->n < JUDGED_ROWS ? b->n : JUDGED_ROWS; }
static int my_rows(const bench *b) { return (int)(b->end - b->begin); }
static const float *my_weights(const bench *b) { return b->w + b->begin * b->m; }

static status run_optq(bench *b) {
  optq_request q = {.rule = b->rule, .rows = my_rows(b), .width = b->m, .w = my_weights(b), .ldw = b->m, .u = b->u, .grid = b->grid};
  double loss = 0;
  status st = grid_fit(&b->rule, q.rows, b->m, q.w, b->m, NULL, b->grid, NULL);
  if (st == OK && q.rows) st = optq(&q, b->codes, &loss);
  b->loss_optq = loss;
  return st;
}

static magr_request magr_of(const bench *b, magr_solver solver, int steps) {
  return (magr_request){.solver = solver,
                        .steps = steps,
                        .alpha = 1e-4,
                        .group = b->rule.group,
                        .rows = my_rows(b),
                        .width = b->m,
                        .w = my_weights(b),
                        .h = b->h,
                        .lambda_max = b->lambda_max};
}

static status run_sweep(bench *b) {
  sweep_request q = {.rule = b->rule,
                     .rows = my_rows(b),
                     .width = b->m,
                     .w = my_weights(b),
                     .ldw = b->m,
                     .p = b->h,
                     .grid_moves = SWEEP_GRID_REFIT,
                     .grid = b->moved};
  return q.rows ? sweep(&q, b->swept, NULL) : OK;
}

/* What OPTQ left, where every rank sees it; and codes and grid for a sweep to change. */
static void after_optq(bench *b) {
  size_t grids = (size_t)my_rows(b) * (size_t)grid_groups(&b->rule, b->m), mine = (size_t)my_rows(b) * (size_t)b->m;
  float *e = b->e + b->begin * b->m;
  codes_bytes_values(&b->rule, my_rows(b), b->m, b->codes, b->grid, e);
  for (size_t k = 0; k < mine; k++) e[k] = my_weights(b)[k] - e[k];
  memcpy(b->swept, b->codes, mine);
  memcpy(b->moved.scales, b->grid.scales, grids * sizeof *b->grid.scales);
  memcpy(b->moved.zeros, b->grid.zeros, grids);
}

/* Start vectors, solution and loss curve of one matrix. */
static status run_adapter(bench *b) {
  status st = OK;
  double *start = NULL, loss[RANK + 1];
  adapter a = {0};
  int rows = adapter_start_rows(b->n, b->m, RANK);
  adapter_request q = {.where = "bench", .n = b->n, .m = b->m, .e = b->e, .h = b->h, .rank = RANK, .trace = NAN};
  if (rows) TRY(adapter_start(q.where, b->m, b->h, rows, 2, &start));
  q.start = start, q.start_rows = rows;
  b->flops[ADAPTER] = adapter_flops(&q);
  TRY(adapter_local(&q, &a));
  TRY(adapter_losses(b->n, b->m, b->e, b->h, a.b, a.a, RANK, a.trace, loss));
  b->loss_adapter = loss[RANK];
done:
  FREE(start);
  adapter_free(&a);
  return st;
}

static status run_kernel(bench *b, kernel k) {
  magr_request step = magr_of(b, MAGR_FISTA, STEPS);
  switch (k) {
  case CHOLESKY: return reverse_cholesky("bench", &b->t, b->m, b->h, b->ridge, NULL, b->u);
  case OPTQ: return run_optq(b);
  case MAGR: return step.rows ? magr(&step, b->v, NULL) : OK;
  case SWEEP: return run_sweep(b);
  default: return run_adapter(b);
  }
}

static status measure(bench *b) {
  status st = OK;
  magr_request all = magr_of(b, MAGR_FISTA, STEPS);
  all.rows = b->n;
  for (int r = 0; r < b->repeats; r++) {
    b->peak = fmax(b->peak, peak_rate(b->product));
    b->peak_double = fmax(b->peak_double, peak_rate_double(b->product_double));
    for (int k = 0; k < KERNELS; k++) {
      team_barrier(&b->t);
      double start = clock_now();
      TRY(agree(b->t.comm, run_kernel(b, (kernel)k)));
      team_barrier(&b->t);
      b->seconds[k][r] = clock_now() - start;
      if (k == OPTQ) after_optq(b);
      team_barrier(&b->t);
    }
  }
  double m = b->m;
  b->flops[CHOLESKY] = m * m * m / 3;
  b->flops[OPTQ] = optq_flops(b->n, b->m);
  b->flops[MAGR] = magr_flops(&all);
  b->flops[SWEEP] = sweep_flops(&b->rule, SWEEP_GRID_REFIT, b->n, b->m);
  b->flops[ADAPTER] *= b->t.size;
done:
  return st;
}

static void print_figures(const bench *b) {
  printf("%d x %d, %d ranks: sgemm %.1f, dgemm %.1f GFLOP/s\n", b->n, b->m, b->t.size, 1e-9 * b->peak, 1e-9 * b->peak_double);
  for (int k = 0; k < KERNELS; k++) {
    double best = b->seconds[k][0], peak = in_float[k] ? b->peak : b->peak_double;
    for (int r = 1; r < b->repeats; r++) best = fmin(best, b->seconds[k][r]);
    printf("  %-9s %8.3f s  %7.1f GFLOP/s, %.2f of %s\n", kernel_names[k], best, 1e-9 * b->flops[k] / best, b->flops[k] / best / peak,
           in_float[k] ? "sgemm" : "dgemm");
    printf("BENCH %s_%dx%d_of_peak %.3f\nRAW %s_%dx%d", kernel_names[k], b->n, b->m, b->flops[k] / best / peak, kernel_names[k], b->n,
           b->m);
    for (int r = 0; r < b->repeats; r++) printf(" %.4f", b->seconds[k][r]);
    printf("\n");
  }
}

/* ---- for the judge ---- */

/* The objective of the first rows, summed. */
static status objective(const bench *b, magr_solver solver, int steps, double *sum) {
  magr_request q = magr_of(b, solver, steps);
  int64_t begin, end;
  deal_range(judged_rows(b), b->t.size, b->t.rank, 1, &begin, &end);
  q.rows = (int)(end - begin);
  q.w = b->w + begin * b->m;
  *sum = 0;
  status st = agree(b->t.comm, q.rows ? magr(&q, b->v, sum) : OK);
  MPI_Allreduce(MPI_IN_PLACE, sum, 1, MPI_DOUBLE, MPI_SUM, b->t.comm);
  return st;
}

static status print_judgement(bench *b, const char *folder) {
  status st = OK;
  double published, one, mine = INFINITY;
  int steps = 0;
  char *path = path_join(folder, "e.raw");
  TRY(objective(b, MAGR_PG, 1, &one));
  TRY(objective(b, MAGR_PG, PUBLISHED_STEPS, &published));
  while (mine > published && steps < 120) {
    steps += 4;
    TRY(objective(b, MAGR_FISTA, steps, &mine));
  }
  MPI_Allreduce(MPI_IN_PLACE, &b->loss_optq, 1, MPI_DOUBLE, MPI_SUM, b->t.comm);
  if (b->t.rank == 0) {
    TRY(file_write_atomic(path, b->e, (size_t)b->n * (size_t)b->m * sizeof *b->e));
    printf("JUDGE optq_loss %.17g\nJUDGE adapter_loss %.17g\nJUDGE fista_steps %d\n", b->loss_optq, b->loss_adapter, STEPS);
    printf("JUDGE magr_lambda_max %.17g\nJUDGE magr_rows %d\nJUDGE magr_one_step %.17g\n", b->lambda_max, judged_rows(b), one);
    printf("JUDGE magr_published %.17g\nJUDGE magr_reached %.17g\nJUDGE magr_steps %d\n", published, mine, steps);
  }
done:
  FREE(path);
  return st;
}

int main(int argc, char **argv) {
  int rank;
  status st = OK;
  bench b = {0};
  const char *folder = argc > 3 ? argv[3] : NULL;
  blas_setup();
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (argc == 2 && strcmp(argv[1], "rates") == 0) {
    TRY(new_products(&b));
    double single = peak_rate(b.product), twice = peak_rate_double(b.product_double);
    if (rank == 0) printf("%.2f %.2f\n", 1e-9 * single, 1e-9 * twice);
    goto done;
  }
  b.n = argc > 2 ? atoi(argv[1]) : 0;
  b.m = argc > 2 ? atoi(argv[2]) : 0;
  if (b.n < RANK || b.m < RANK || b.m % 64) {
    st = fail(E_USAGE, "bench: expected ROWS and COLUMNS of 64 or more, COLUMNS a multiple of 64");
    goto done;
  }
  TRY(bench_new(&b, folder));
  TRY(measure(&b));
  if (rank == 0) print_figures(&b);
  if (folder) TRY(print_judgement(&b, folder));
done:
  if (st != OK && rank == 0) fprintf(stderr, "cloqwork: %s\n", status_message());
  bench_free(&b);
  MPI_Finalize();
  return status_exit_code(st);
}
