/* Evaluation of the original and a quantized variant with its adapter, head included, as a fraction of what BLAS sgemm itself reaches on
 * the same ranks at the same time.
 *
 * usage: mpirun -n N bench_eval FOLDER smollm2|7b [WINDOWS]
 * Makes a one-layer checkpoint of that shape with random bf16 weights in FOLDER (kept for the next call) and 4-bit codes with an adapter of
 * rank 16 in memory, and runs the program's own pass over WINDOWS x 2048 tokens, the layer `layers` times and the head, with 2048^3
 * products before and after; of the layer and of the head the best repetition counts, as of the products. All their seconds count:
 * converting and dequantizing weights, softmax statistics, waiting.
 * Counted: 2 params tokens per layer, attention's 4 h D a pair of a query and a key it sees, 2 d V tokens for the head. */
#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block_model.h"
#include "dist/agree.h"
#include "run/eval_pass.h"
#include "solution/solution.h"

enum { RANK = 16, ROWS = 64 };

typedef struct subject {
  shape shape;
  int layers, windows, repeats;
} subject;

/* 7b: two layers to a head, where the model has 32: the head's share is larger than in truth. */
static const subject subjects[] = {{{"smollm2", 576, 1536, 9, 3, 64, 49152, false}, 30, 2, 2},
                                   {{"7b", 4096, 11008, 32, 32, 128, 32000, false}, 2, 2, 2}};

/* My rows of every linear with random codes, scales that make weights of variance 1 / columns, and a small adapter. */
static status make_solution(const team *t, const arch *a, linear_id l, solution *s, char **memory) {
  status st = OK;
  const grid_rule rule = {.bits = 4, .group = 64, .beta = 1};
  *s = solution_shape(a, l, &rule, RANK);
  deal_range(s->out, t->size, t->rank, ROWS, &s->begin, &s->end);
  TRY(NEW(*memory, solution_place(s, SOLUTION_BASE | SOLUTION_ADAPTER, NULL), "a solution"));
  solution_place(s, SOLUTION_BASE | SOLUTION_ADAPTER, *memory);
  int64_t rows = s->end - s->begin;
  uint32_t random = 2463534242u;
#define NEXT (random ^= random << 13, random ^= random >> 17, random ^= random << 5)
  for (int64_t k = 0; k < rows * s->words; k++) s->codes[k] = NEXT;
  for (int64_t k = 0; k < rows * s->groups; k++) s->scales[k] = float_to_half(0.21f / sqrtf((float)s->in)), s->zeros[k] = 8;
  for (int64_t k = 0; k < RANK * s->in; k++) s->lora_a[k] = (float)(NEXT % 1000) * 1e-5f;
  for (int64_t k = 0; k < rows * RANK; k++) s->lora_b[k] = (float)(NEXT % 1000) * 1e-5f;
#undef NEXT
done:
  return st;
}

static status fill(void *context, int64_t layer, int variant, float *const target[LIN_COUNT]) {
  const solution *list = context;
  (void)layer;
  (void)variant;
  for (int l = 0; l < LIN_COUNT; l++) {
    const solution *s = &list[l];
    for (int64_t at = s->begin; at < s->end; at += ROWS)
      solution_merged(s, RANK, at, at + ROWS < s->end ? at + ROWS : s->end, target[l] + at * s->in);
  }
  return OK;
}

/* Seconds of the parts, the best of all repetitions so far: embedding, a layer, the head; the rate of products between them. */
typedef struct parts {
  double begin, layer, head, peak;
} parts;

static status evaluate(eval_pass *p, int layers, solution *list, float *x, parts *best) {
  status st = OK;
  double start = clock_now();
  p->original_done = false;
  TRY(eval_pass_begin(p, 1));
  team_barrier(p->t);
  best->begin = fmin(best->begin, clock_now() - start);
  for (int k = 0; k < layers; k++) {
    if (k % 5 == 0) best->peak = fmax(best->peak, peak_rate(x));
    start = clock_now();
    TRY(eval_pass_layer(p, 0, fill, list, NULL, NULL));
    best->layer = fmin(best->layer, clock_now() - start);
  }
  start = clock_now();
  TRY(eval_pass_head(p, NULL, NULL));
  best->head = fmin(best->head, clock_now() - start);
done:
  return st;
}

static status run(const char *folder, const subject *u, int count, int rank) {
  status st = OK;
  checkpoint model = {0};
  team t = {0};
  eval_pass p = {0};
  windows w = {.count = count, .length = LENGTH};
  const bool targets[LIN_COUNT] = {true, true, true, true, true, true, true};
  solution list[LIN_COUNT] = {{0}};
  char *memory[LIN_COUNT] = {NULL}, path[4096];
  float *x = NULL;
  snprintf(path, sizeof path, "%s/eval-%s", folder, u->shape.name);
  st = rank == 0 ? write_model(path, &u->shape) : OK;
  TRY(agree(MPI_COMM_WORLD, st));
  TRY(checkpoint_open(path, &model));
  TRY(NEW(w.ids, count * LENGTH, "ids"));
  TRY(NEW(x, 3 * PEAK * PEAK, "products"));
  for (int k = 0; k < count * LENGTH; k++) w.ids[k] = (int32_t)((k * 7919 + k / 13) % u->shape.vocab);
  for (int k = 0; k < 2 * PEAK * PEAK; k++) x[k] = (float)(k % 17) / 17 - 0.4f;
  TRY(team_new(MPI_COMM_WORLD, 0, &t));
  for (int l = 0; l < LIN_COUNT; l++) TRY(make_solution(&t, &model.arch, (linear_id)l, &list[l], &memory[l]));
  TRY(eval_pass_new(&t, &model, &w, targets, 1, &p));
  double flops = 0;
  parts best = {INFINITY, INFINITY, INFINITY, 0};
  for (int repeat = 0; repeat < u->repeats; repeat++) {
    flops = p.flops;
    TRY(evaluate(&p, u->layers, list, x, &best));
    flops = p.flops - flops;
    best.peak = fmax(best.peak, peak_rate(x));
  }
  MPI_Allreduce(MPI_IN_PLACE, &flops, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
  double seconds = best.begin + u->layers * best.layer + best.head;
  if (rank == 0) {
    printf(
        "%-8s %d x %d tokens, 2 models of %d layers and head, %d ranks: %.1f GFLOP/s of %.1f in sgemm; a layer %.2f s, the head %.2f s\n",
        u->shape.name, count, LENGTH, u->layers, t.size, 1e-9 * flops / seconds, 1e-9 * best.peak, best.layer, best.head);
    printf("BENCH eval_%s_of_peak %.3f\n", u->shape.name, flops / seconds / best.peak);
  }
done:
  eval_pass_free(&p);
  team_free(&t);
  checkpoint_close(&model);
  for (int l = 0; l < LIN_COUNT; l++) FREE(memory[l]);
  FREE(w.ids);
  FREE(x);
  return st;
}

int main(int argc, char **argv) {
  int rank;
  blas_setup();
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  status st = fail(E_USAGE, "bench: expected FOLDER and smollm2 or 7b");
  for (size_t k = 0; argc > 2 && k < sizeof subjects / sizeof *subjects; k++)
    if (strcmp(argv[2], subjects[k].shape.name) == 0) {
      status_clear();
      st = run(argv[1], &subjects[k], argc > 3 ? atoi(argv[3]) : subjects[k].windows, rank);
    }
  if (st != OK && rank == 0) fprintf(stderr, "cloqwork: %s\n", status_message());
  MPI_Finalize();
  return status_exit_code(st);
}
