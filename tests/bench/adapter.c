/* Times the low-rank optimum on given matrices, on one core: bench_adapter N M RANK REPEATS E.raw H.raw (float, row-major).
 * Prints, in CPU seconds, the best of the repeats: "NAME SECONDS", and the losses that tests/bench/adapter.py judges. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "adapter/adapter.h"
#include "base/blas.h"
#include "base/file.h"
#include "base/memory.h"

enum { SWEEP = 8 };

static double cpu_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct times {
  double start, trace, standard, cold, loose, losses, one_rank, eight_ranks;
} times;

static void keep_best(double *best, double seconds) {
  if (!(*best <= seconds)) *best = seconds;
}

/* What a sweep hands out beyond the largest rank: corners of its factors, each copied on its own. */
static status hand_out(const adapter *a, int ranks) {
  status st = OK;
  for (int k = 1; k <= ranks; k++) {
    int r = a->rank * k / ranks;
    float *b = NULL, *rows = NULL;
    st = NEW(b, a->n * r, "corner of B");
    if (st == OK) st = NEW(rows, a->m * r, "corner of A");
    if (st == OK) {
      for (int64_t i = 0; i < a->n; i++) memcpy(b + i * r, a->b + i * a->rank, (size_t)r * sizeof *b);
      memcpy(rows, a->a, (size_t)(a->m * r) * sizeof *rows);
    }
    FREE(b);
    FREE(rows);
    if (st != OK) break;
  }
  return st;
}

static status solve(adapter_request q, double tolerance, double trace, const double *start, adapter *a, double *best) {
  double began = cpu_now();
  q.tolerance = tolerance;
  q.trace = trace;
  q.start = start;
  q.start_rows = start ? adapter_start_rows(q.n, q.m, q.rank) : 0;
  status st = adapter_local(&q, a);
  keep_best(best, cpu_now() - began);
  return st;
}

static status once(const adapter_request *q, times *t, double *loss) {
  status st = OK;
  double *start = NULL, trace = NAN, began = cpu_now(), spent = 0;
  adapter a = {0};
  int rows = adapter_start_rows(q->n, q->m, q->rank); /* 0 where a dense solve would be chosen */
  if (rows) TRY(adapter_start(q->where, q->m, q->h, rows, 2, &start));
  keep_best(&t->start, cpu_now() - began);
  began = cpu_now();
  TRY(adapter_trace(q->m, q->e, q->h, 0, q->n, NULL, &trace));
  keep_best(&t->trace, cpu_now() - began);
  TRY(solve(*q, 1e-4, trace, start, &a, &t->loose));
  TRY(adapter_losses(q->n, q->m, q->e, q->h, a.b, a.a, q->rank, trace, loss));
  printf("loss_loose %.17g\n", loss[q->rank]);
  adapter_free(&a);
  TRY(solve(*q, 1e-6, trace, NULL, &a, &t->cold));
  adapter_free(&a);
  double mine = NAN;
  TRY(solve(*q, 1e-6, trace, start, &a, &mine));
  keep_best(&t->standard, mine);
  began = cpu_now();
  TRY(adapter_losses(q->n, q->m, q->e, q->h, a.b, a.a, q->rank, trace, loss));
  spent = cpu_now() - began;
  keep_best(&t->losses, spent);
  printf("loss_default %.17g\ntrace %.17g\n", loss[q->rank], trace);
  began = cpu_now();
  TRY(hand_out(&a, 1));
  keep_best(&t->one_rank, mine + spent + cpu_now() - began);
  began = cpu_now();
  TRY(hand_out(&a, SWEEP));
  keep_best(&t->eight_ranks, mine + spent + cpu_now() - began);
done:
  FREE(start);
  adapter_free(&a);
  return st;
}

int main(int argc, char **argv) {
  if (argc != 7) {
    fprintf(stderr, "bench_adapter N M RANK REPEATS E.raw H.raw\n");
    return 2;
  }
  status st = OK;
  file_map e = {0}, h = {0};
  times t = {NAN, NAN, NAN, NAN, NAN, NAN, NAN, NAN};
  double *loss = NULL;
  adapter_request q = {
      .where = "bench", .n = atoll(argv[1]), .m = atoll(argv[2]), .rank = atoi(argv[3]), .trace = NAN, .path = ADAPTER_KRYLOV};
  blas_setup();
  TRY(file_map_open(argv[5], &e));
  TRY(file_map_open(argv[6], &h));
  if (e.bytes != (size_t)(q.n * q.m) * sizeof(float) || h.bytes != (size_t)(q.m * q.m) * sizeof(float)) {
    st = fail(E_DATA, "bench: expected matrices of %lld x %lld and %lld x %lld floats", (long long)q.n, (long long)q.m, (long long)q.m,
              (long long)q.m);
    goto done;
  }
  q.e = (const float *)(const void *)e.data;
  q.h = (const float *)(const void *)h.data;
  TRY(NEW(loss, q.rank + 1, "loss"));
  for (int i = 0; i < atoi(argv[4]); i++) TRY(once(&q, &t, loss));
  printf("start %.6f\ntrace_seconds %.6f\nloose %.6f\ndefault %.6f\ncold %.6f\nlosses %.6f\none_rank %.6f\neight_ranks %.6f\n", t.start,
         t.trace, t.loose, t.standard, t.cold, t.losses, t.one_rank, t.eight_ranks);
done:
  FREE(loss);
  file_map_close(&e);
  file_map_close(&h);
  if (st != OK) fprintf(stderr, "bench_adapter: %s\n", status_message());
  return status_exit_code(st);
}
