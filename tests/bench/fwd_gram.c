/* Forward pass + Grams of one decoder block as a fraction of what BLAS sgemm itself reaches on the same ranks at the same time.
 *
 * usage: mpirun -n N bench_fwd_gram FOLDER smollm2|7b|70b [WINDOWS]
 * Makes a one-layer checkpoint of that shape with random bf16 weights in FOLDER (kept for the next call), runs the program's own pass over
 * WINDOWS x 2048 tokens, and 2048^3 products before and after. Counted: 2 params tokens + n^2 tokens per Gram. */
#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block_model.h"
#include "calibrate/pass.h"
#include "dist/agree.h"

static const shape shapes[] = {
    {"smollm2", 576, 1536, 9, 3, 64, 512}, {"7b", 4096, 11008, 32, 32, 128, 512}, {"70b", 8192, 28672, 64, 8, 128, 512}};

static status run(const char *folder, const shape *s, int count, int rank) {
  status st = OK;
  checkpoint model = {0};
  team t = {0};
  pass p = {0};
  windows w = {.count = count, .length = LENGTH};
  const windows *sets[SET_COUNT] = {&w, NULL};
  const bool wanted[IN_COUNT] = {true, true, true, true};
  float *x = NULL;
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", folder, s->name);
  st = rank == 0 ? write_model(path, s) : OK;
  TRY(agree(MPI_COMM_WORLD, st));
  TRY(checkpoint_open(path, &model));
  TRY(NEW(w.ids, count * LENGTH, "ids"));
  TRY(NEW(x, 3 * PEAK * PEAK, "products"));
  for (int k = 0; k < count * LENGTH; k++) w.ids[k] = (k * 7919 + k / 13) % (int)s->vocab;
  for (int k = 0; k < 2 * PEAK * PEAK; k++) x[k] = (float)(k % 17) / 17 - 0.4f;
  TRY(team_new(MPI_COMM_WORLD, 0, &t));
  TRY(pass_new(&t, &model, sets, wanted, NULL, &p));
  TRY(pass_embed(&p));
  TRY(pass_load_layer(&p, 0));
  double flops = pass_layer_flops(&model.arch, sets, wanted), best = 0, peak = peak_rate(x);
  for (int repeat = 0; repeat < (s->hidden > 1000 ? 2 : 3); repeat++) {
    double start = clock_now();
    pass_layer(&p, 0, true, NULL, NULL);
    double seconds = clock_now() - start;
    best = fmax(best, flops / seconds);
    peak = fmax(peak, peak_rate(x));
  }
  if (rank == 0) {
    printf("%-8s %d x %d tokens, %d ranks: %.1f GFLOP/s of %.1f in sgemm\n", s->name, count, LENGTH, t.size, 1e-9 * best, 1e-9 * peak);
    printf("BENCH fwd_gram_%s_of_peak %.3f\n", s->name, best / peak);
  }
done:
  pass_free(&p);
  team_free(&t);
  checkpoint_close(&model);
  FREE(w.ids);
  FREE(x);
  return st;
}

int main(int argc, char **argv) {
  int rank;
  blas_setup();
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  status st = fail(E_USAGE, "bench: expected FOLDER and smollm2, 7b or 70b");
  for (size_t k = 0; argc > 2 && k < sizeof shapes / sizeof *shapes; k++)
    if (strcmp(argv[2], shapes[k].name) == 0) {
      status_clear();
      st = run(argv[1], &shapes[k], argc > 3 ? atoi(argv[3]) : 8, rank);
    }
  if (st != OK && rank == 0) fprintf(stderr, "cloqwork: %s\n", status_message());
  MPI_Finalize();
  return status_exit_code(st);
}
