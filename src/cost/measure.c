/* Rates of the program's kernels, each called as the stages call it, on made-up matrices of three widths. */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "adapter/adapter.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "calibrate/gram.h"
#include "cost/machine.h"
#include "dist/agree.h"
#include "dist/dlinalg.h"
#include "joint/deflate.h"
#include "joint/ritz.h"
#include "model/block.h"
#include "quant/codes.h"
#include "quant/magr.h"
#include "quant/optq.h"
#include "quant/sweep.h"
#include "session/unit.h"
#include "solution/solution.h"

enum { ROWS = 256, RANK = 64, REFINE_RANK = 32, STEPS = 3, BITS = 3, GROUP = 64, MAGR_STEPS = 4, VECTORS_BLOCKS = 2 };
enum { REPEATS = 6, TRIAD = 4 << 20, CHUNK = 2048 };
static const double ENOUGH = 0.4;
static const int64_t widths[] = {576, 1536, 4096};

typedef struct probe {
  session *c;
  const team *t;
  machine *to;
  int m;
  grid_rule rule;
  shared x, h, u, em, small,
      curves; /* (GRAM_TOKENS, m), of which the first m rows are E; (m, m); (m, m) double; (m, m); of ritz and deflate; a solution */
  const float *e;
  float *v, *out;                        /* (ROWS, m); private, and so is all that follows */
  uint8_t *codes;                        /* (ROWS, m) */
  float *ones;                           /* [m] */
  uint16_t *scales;                      /* (ROWS, groups) */
  uint8_t *zeros;                        /* likewise */
  double *y, *left, *a, *values, *start; /* of ritz, and leading eigenvectors of H */
  int start_rows;
  double lambda, trace, mean;
  adapter_path path;
  solution s;
  gram g;
} probe;

/* Collective. amount: of one rank, or of the node where the rate is the node's; the slowest rank's time, the best of a few. */
static status timed(probe *p, rate_id r, int64_t width, double amount, status (*work)(probe *p)) {
  status st = OK;
  double best = INFINITY, spent = 0;
  for (int k = 0; k < REPEATS && (k < 2 || spent < ENOUGH); k++) {
    team_barrier(p->t);
    double start = clock_now(), seconds;
    st = work(p);
    TRY(agree(p->t->comm, st));
    seconds = clock_now() - start;
    MPI_Allreduce(MPI_IN_PLACE, &seconds, 1, MPI_DOUBLE, MPI_MAX, p->t->comm);
    best = fmin(best, seconds);
    spent += seconds;
  }
  machine_add(p->to, r, width, amount / best);
done:
  return st;
}

/* ---- what it works on ---- */

static float noise(uint64_t at) { /* splitmix64, -0.5 .. 0.5 */
  uint64_t z = (at + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return (float)((double)((z ^ (z >> 31)) >> 11) * 0x1p-53 - 0.5);
}

/* A Gram of correlated inputs, every 61st ten times as strong; E of a rounding; E H. */
static void fill(probe *p) {
  int64_t begin, end;
  int m = p->m;
  float *x = p->x.base, *h = p->h.base, *em = p->em.base;
  deal_range(GRAM_TOKENS, p->t->size, p->t->rank, 1, &begin, &end);
  for (int64_t k = begin * m; k < end * m; k++) x[k] = 0.01f * noise((uint64_t)k);
  deal_range(m, p->t->size, p->t->rank, 1, &begin, &end);
  for (int64_t i = begin; i < end; i++)
    for (int64_t j = 0; j < m; j++)
      h[i * m + j] = (float)(exp(-fabs((double)(i - j)) / 16) * (i % 61 == 7 ? 10 : 1) * (j % 61 == 7 ? 10 : 1));
  team_barrier(p->t);
  sgemm(false, false, (int)(end - begin), m, m, 1, p->e + begin * m, m, h, m, 0, em + begin * m, m);
  p->trace = p->mean = 0;
  for (int64_t k = begin * m; k < end * m; k++) p->trace += (double)p->e[k] * (double)em[k];
  MPI_Allreduce(MPI_IN_PLACE, &p->trace, 1, MPI_DOUBLE, MPI_SUM, p->t->comm);
  for (int64_t i = 0; i < m; i++) p->mean += (double)h[i * m + i] / m;
  for (int64_t k = 0; k < (int64_t)ROWS * m; k++) p->v[k] = noise((uint64_t)k) * (k % 100 == 0 ? 5 : 1);
  for (int j = 0; j < m; j++) p->ones[j] = 1;
}

static void probe_free(probe *p) {
  shared *held[] = {&p->x, &p->h, &p->u, &p->em, &p->small, &p->curves};
  gram_free(&p->g);
  for (size_t k = 0; k < sizeof held / sizeof *held; k++) shared_free(held[k]);
  FREE(p->v), FREE(p->out), FREE(p->codes), FREE(p->ones), FREE(p->scales), FREE(p->zeros);
  FREE(p->y), FREE(p->left), FREE(p->a), FREE(p->values), FREE(p->start);
}

static status probe_new(session *c, int64_t width, machine *to, probe *p) {
  status st = OK;
  *p = (probe){.c = c, .t = &c->team, .to = to, .m = (int)width, .rule = {.bits = BITS, .group = GROUP, .beta = 1}};
  size_t m = (size_t)width, groups = m / GROUP, columns = (size_t)ritz_columns(width, REFINE_RANK),
         ritz_room = ritz_shared(width, width, REFINE_RANK), deflate_room = deflate_shared(width, REFINE_RANK);
  p->s = solution_of(width, width, &p->rule, RANK);
  TRY(shared_new(p->t, GRAM_TOKENS * m * sizeof(float), "made-up activations", &p->x));
  TRY(shared_new(p->t, m * m * sizeof(float), "a made-up Gram", &p->h));
  TRY(shared_new(p->t, m * m * sizeof(double), "its factor", &p->u));
  TRY(shared_new(p->t, m * m * sizeof(float), "a made-up product", &p->em));
  TRY(shared_new(p->t, ritz_room > deflate_room ? ritz_room : deflate_room, "work of a round", &p->small));
  TRY(shared_new(p->t, solution_place(&p->s, SOLUTION_ALL, NULL), "a made-up solution", &p->curves));
  TRY(gram_new(p->t, width, &p->g));
  st = NEW(p->v, ROWS * m, "made-up weights");
  if (st == OK) st = NEW(p->out, ROWS * m, "made-up results");
  if (st == OK) st = NEW(p->codes, ROWS * m, "made-up codes");
  if (st == OK) st = NEW(p->ones, m, "weights of a search");
  if (st == OK) st = NEW(p->scales, ROWS * groups, "made-up scales");
  if (st == OK) st = NEW(p->zeros, ROWS * groups, "made-up zeros");
  if (st == OK) st = NEW(p->y, columns * m, "a basis");
  if (st == OK) st = NEW(p->left, REFINE_RANK * m, "U of a round");
  if (st == OK) st = NEW(p->a, REFINE_RANK * m, "A of a round");
  if (st == OK) st = NEW(p->values, REFINE_RANK, "Ritz values");
  TRY(agree(p->t->comm, st));
  p->e = p->x.base;
  solution_place(&p->s, SOLUTION_ALL, p->curves.base);
  fill(p);
  for (size_t k = 0; k < columns * m; k++) p->y[k] = noise(k);
  if (p->t->rank == 0) {
    for (int64_t k = 0; k < p->s.out * p->s.groups; k++) p->s.scales[k] = float_to_half(0.01f), p->s.zeros[k] = 4;
    for (size_t k = 0; k < RANK * m; k++) p->s.lora_a[k] = noise(k), p->s.lora_b[k] = 0.001f * noise(k + 1);
  }
  team_barrier(p->t);
done:
  if (st != OK) probe_free(p);
  return st;
}

static code_grid grid_of(const probe *p) { return (code_grid){.scales = p->scales, .zeros = p->zeros}; }

/* ---- the kernels ---- */

static status do_gemm(probe *p) {
  sgemm(false, false, ROWS, p->m, p->m, 1, p->v, p->m, p->h.base, p->m, 0, p->out, p->m);
  return OK;
}

static status do_gram(probe *p) {
  static const int rows[GRAM_TOKENS / CHUNK] = {CHUNK, CHUNK};
  gram_add(&p->g, p->x.base, (int64_t)CHUNK * p->m, rows, CHUNK, GRAM_TOKENS / CHUNK, GRAM_TOKENS / CHUNK);
  return OK;
}

static status do_magr(probe *p) {
  magr_request q = {
      .steps = MAGR_STEPS, .alpha = 1e-4, .group = GROUP, .rows = ROWS, .width = p->m, .w = p->v, .h = p->h.base, .lambda_max = p->lambda};
  return magr(&q, p->out, NULL);
}

static status do_factor(probe *p) { return reverse_cholesky("a made-up Gram", p->t, p->m, p->h.base, 0.01 * p->mean, NULL, p->u.base); }

static status fit_grid(probe *p, grid_search search) {
  grid_rule rule = p->rule;
  rule.search = search;
  return grid_fit(&rule, ROWS, p->m, p->v, p->m, p->ones, grid_of(p), NULL);
}
static status do_range(probe *p) { return fit_grid(p, SEARCH_NONE); }
static status do_mse(probe *p) { return fit_grid(p, SEARCH_MSE); }
static status do_scan(probe *p) { return fit_grid(p, SEARCH_SCAN); }
static status do_refit(probe *p) { return fit_grid(p, SEARCH_REFIT); }

static status do_optq(probe *p) {
  optq_request q = {.rule = p->rule, .rows = ROWS, .width = p->m, .w = p->v, .ldw = p->m, .u = p->u.base, .grid = grid_of(p)};
  return optq(&q, p->codes, NULL);
}

static status sweep_once(probe *p, sweep_grid moves) {
  sweep_request q = {
      .rule = p->rule, .rows = ROWS, .width = p->m, .w = p->v, .ldw = p->m, .p = p->h.base, .grid_moves = moves, .grid = grid_of(p)};
  return sweep(&q, p->codes, NULL);
}
static status do_sweep(probe *p) { return sweep_once(p, SWEEP_GRID_REFIT); }
static status do_candidates(probe *p) { return sweep_once(p, SWEEP_GRID_CANDIDATES); }

static status do_ritz(probe *p) {
  ritz_request q = {.t = p->t,
                    .where = "a made-up matrix",
                    .n = p->m,
                    .m = p->m,
                    .rank = REFINE_RANK,
                    .steps = STEPS,
                    .e = p->e,
                    .h = p->h.base,
                    .trace = p->trace};
  double loss;
  return ritz(&q, p->y, p->small.base, p->left, p->a, p->values, &loss);
}

static status do_deflate(probe *p) { /* P takes the place of E H, of which only the trace is needed */
  deflate_request q = {.t = p->t, .where = "a made-up Gram", .m = p->m, .rank = REFINE_RANK, .a = p->a, .h = p->h.base};
  int kept;
  status st = deflate(&q, p->small.base, &kept);
  return st == OK ? deflate_gram(&q, p->small.base, kept, p->em.base) : st;
}

static status do_trace(probe *p) {
  double sum;
  solution_residual(&p->s, p->e, 0, ROWS, p->v);
  return adapter_trace(p->m, p->v, p->h.base, 0, ROWS, NULL, &sum);
}

static adapter_request fit_of(const probe *p) {
  return (adapter_request){.where = "a made-up matrix",
                           .n = p->m,
                           .m = p->m,
                           .e = p->e,
                           .h = p->h.base,
                           .rank = RANK,
                           .trace = p->trace,
                           .tolerance = 1e-6,
                           .path = p->path,
                           .start = p->path == ADAPTER_KRYLOV ? p->start : NULL,
                           .start_rows = p->path == ADAPTER_KRYLOV ? p->start_rows : 0};
}

static status do_fit(probe *p) {
  adapter a = {0};
  adapter_request q = fit_of(p);
  status st = adapter_local(&q, &a);
  adapter_free(&a);
  return st;
}

static status do_vectors(probe *p) {
  FREE(p->start);
  return adapter_start("a made-up Gram", p->m, p->h.base, p->start_rows, VECTORS_BLOCKS, &p->start);
}

static status do_curves(probe *p) {
  double loss[RANK + 1];
  return adapter_losses(p->m, p->m, p->e, p->h.base, p->s.lora_b, p->s.lora_a, RANK, p->trace, loss);
}

static status do_finish(probe *p) {
  float *e = NULL;
  char hex[HASH_HEX];
  volatile double norm;
  status st = OK;
  TRY(NEW(e, (int64_t)p->m * p->m, "a residual"));
  solution_residual(&p->s, p->e, 0, p->m, e);
  norm = solution_adapter_norm(&p->s);
  (void)norm;
  TRY(solution_fingerprint(&p->s, hex));
done:
  FREE(e);
  return st;
}

static status do_pivots(probe *p) {
  status st = OK;
  double *copy = NULL;
  const float *h = p->h.base;
  int rank;
  if (p->t->rank != 0) return OK;
  TRY(NEW(copy, (int64_t)p->m * p->m, "a Gram to count its rank"));
  for (int64_t k = 0; k < (int64_t)p->m * p->m; k++) copy[k] = h[k];
  TRY(drank(p->m, copy, p->m, p->m * 6e-8 * 100, &rank));
done:
  FREE(copy);
  return st;
}

static double curves_flops(int64_t out, int64_t in) { return 2.0 * RANK * (double)in * (double)(in + out); }

/* All that goes by the width of a matrix. */
static status measure_width(session *c, int64_t width, machine *to) {
  status st = OK;
  probe p = {0};
  double m = (double)width, slab = ROWS * m * m, ranks = c->team.size, gram_flops;
  TRY(probe_new(c, width, to, &p));
  TRY(timed(&p, RATE_GEMM, width, 2 * slab, do_gemm));
  TRY(agree(p.t->comm, gram_busiest(width, p.t->size, &gram_flops)));
  TRY(timed(&p, RATE_GRAM, width, gram_flops * GRAM_TOKENS, do_gram));
  TRY(agree(p.t->comm, magr_lambda_max(p.m, p.h.base, &p.lambda)));
  TRY(timed(&p, RATE_MAGR, width, 2 * slab * (MAGR_STEPS - 1), do_magr));
  TRY(timed(&p, RATE_FACTOR, width, m * m * m / 3 / ranks, do_factor));
  if (width == widths[0]) {
    TRY(timed(&p, RATE_GRID_MSE, 0, ROWS * m, do_mse));
    TRY(timed(&p, RATE_GRID_SCAN, 0, ROWS * m, do_scan));
    TRY(timed(&p, RATE_GRID_REFIT, 0, ROWS * m, do_refit));
    TRY(timed(&p, RATE_GRID_RANGE, 0, ROWS * m, do_range));
  } else {
    TRY(agree(p.t->comm, do_range(&p)));
  }
  TRY(timed(&p, RATE_OPTQ, width, optq_flops(ROWS, width), do_optq));
  TRY(timed(&p, RATE_SWEEP, width, sweep_flops(&p.rule, SWEEP_GRID_REFIT, ROWS, width), do_sweep));
  TRY(timed(&p, RATE_CANDIDATES, width, sweep_flops(&p.rule, SWEEP_GRID_CANDIDATES, ROWS, width), do_candidates));
  TRY(timed(&p, RATE_RITZ, width, ritz_flops(width, width, REFINE_RANK, STEPS) / ranks, do_ritz));
  TRY(timed(&p, RATE_DEFLATE, width, (deflate_flops(width, REFINE_RANK) + deflate_gram_flops(width, REFINE_RANK)) / ranks, do_deflate));
  TRY(timed(&p, RATE_TRACE, width, slab, do_trace));
  p.start_rows = adapter_start_rows(width, width, RANK);
  if (p.start_rows == 0) p.start_rows = RANK;
  TRY(timed(&p, RATE_VECTORS, width, 2.0 * VECTORS_BLOCKS * p.start_rows * m * m, do_vectors));
  for (p.path = ADAPTER_DENSE; p.path <= ADAPTER_KRYLOV; p.path++) {
    adapter_request q = fit_of(&p);
    if (p.path == ADAPTER_DENSE && width == widths[2]) continue; /* would take half a minute, and nobody chooses it there */
    TRY(timed(&p, p.path == ADAPTER_DENSE ? RATE_DENSE : RATE_KRYLOV, width, adapter_flops(&q), do_fit));
  }
  TRY(timed(&p, RATE_CURVES, width, curves_flops(width, width), do_curves));
  TRY(timed(&p, RATE_FINISH, width, m * m, do_finish));
  TRY(timed(&p, RATE_PIVOTS, width, m * m * m / 3, do_pivots));
done:
  probe_free(&p);
  return st;
}

/* ---- the decoder block ---- */

/* The MLP gives the rate of linears, with its part of norms and activation; attention is what its part of the block takes more than its linears. */
static status measure_block(session *c, int64_t width, machine *to) {
  status st = OK;
  uint8_t slides = 0;
  int D = width < 1024 ? 64 : 128;
  arch a = {.hidden = width,
            .layers = 1,
            .intermediate = (width * 8 / 3 + 63) / 64 * 64,
            .heads = (int)width / D,
            .kv_heads = (int)width / D / 3,
            .head_dim = D,
            .rms_eps = 1e-5f,
            .rope_theta = 1e4,
            .layer_slides = &slides};
  const block_rows r = {1, CHUNK, CHUNK / 8 * 3, CHUNK / 8 * 5}; /* a segment, of a window's parts the middle one */
  const int64_t rows = block_count(&r);
  shared weights = {0};
  layer_weights w;
  block_scratch s = {0};
  float *x = NULL, *n = NULL, *wide = NULL, *kv = NULL;
  double linears = INFINITY, attention = INFINITY, mlp = 0, before = 0;
  TRY(shared_new(&c->team, layer_weights_floats(&a) * sizeof(float), "made-up weights of a block", &weights));
  layer_weights_place(&a, weights.base, &w);
  if (c->team.rank == 0)
    for (size_t k = 0; k < layer_weights_floats(&a); k++) ((float *)weights.base)[k] = 0.01f * noise(k);
  st = block_scratch_new(&a, r.length, rows, &s);
  if (st == OK) st = NEW(kv, block_kv_floats(&a, r.length), "made-up keys and values");
  if (st == OK) st = NEW(x, rows * width, "made-up activations");
  if (st == OK) st = NEW(n, rows * width, "made-up activations");
  if (st == OK) st = NEW(wide, rows * block_wide(&a), "made-up activations");
  TRY(agree(c->team.comm, st));
  for (int64_t k = 0; k < rows * width; k++) x[k] = noise((uint64_t)k);
  for (int64_t k = 0; k < block_kv_floats(&a, r.length); k++) kv[k] = noise((uint64_t)k);
  for (int l = 0; l < LIN_COUNT; l++) {
    int64_t out, in;
    linear_shape(&a, (linear_id)l, &out, &in);
    if (linear_input((linear_id)l) == IN_MLP || l == LIN_DOWN) mlp += 2.0 * (double)(out * in * rows);
    if (linear_input((linear_id)l) == IN_ATTN) before += 2.0 * (double)(out * in * rows);
  }
  for (int k = 0; k < 3; k++) {
    team_barrier(&c->team);
    double start = clock_now();
    block_attn_in(&a, &w, rows, x, n);
    block_keys(&a, &w, &s, &r, n, block_kv_place(&a, r.length, kv));
    block_attention(&a, &w, 0, &s, &r, n, block_kv_place(&a, r.length, kv), wide);
    double middle = clock_now();
    block_mlp_in(&a, &w, rows, x, n);
    block_mlp(&a, &w, &s, rows, n, wide);
    block_mlp_out(&a, &w, rows, wide, x);
    linears = fmin(linears, clock_now() - middle);
    attention = fmin(attention, middle - start);
  }
  MPI_Allreduce(MPI_IN_PLACE, &linears, 1, MPI_DOUBLE, MPI_MAX, c->team.comm);
  MPI_Allreduce(MPI_IN_PLACE, &attention, 1, MPI_DOUBLE, MPI_MAX, c->team.comm);
  machine_add(to, RATE_LINEARS, width, mlp / linears);
  attention = fmax(attention - before * linears / mlp, 0.05 * attention);
  machine_add(to, RATE_ATTENTION, width, block_attention_flops(&a, 0, 1, r.length) * (double)rows / (double)r.length / attention);
done:
  block_scratch_free(&s);
  shared_free(&weights);
  FREE(x);
  FREE(n);
  FREE(wide);
  FREE(kv);
  return st;
}

/* ---- memory and files ---- */

static status do_triad(probe *p) {
  float *restrict to = p->v, *restrict x = p->v + TRIAD, *restrict y = p->v + 2 * TRIAD;
  for (int k = 0; k < TRIAD; k++) to[k] = x[k] + 3 * y[k];
  return OK;
}

static status measure_memory(session *c, machine *to) {
  probe p = {.c = c, .t = &c->team, .to = to};
  status st = OK;
  TRY(agree(c->team.comm, NEW(p.v, 3 * TRIAD, "arrays beyond the caches")));
  TRY(timed(&p, RATE_MEMORY, 0, 3.0 * TRIAD * sizeof(float), do_triad));
done:
  FREE(p.v);
  return st;
}

/* Whole tensors, dealt, until half a gigabyte or all have been read; of the time that a later reading takes nothing is known. */
static status measure_model(session *c, machine *to) {
  enum { SLAB = 1 << 20, MOST = 1 << 29 };
  status st = OK;
  float *slab = NULL;
  double bytes = 0, start, seconds;
  st = NEW(slab, SLAB, "a slab of weights");
  TRY(agree(c->team.comm, st));
  for (size_t i = 0; i < c->model.tensor_count; i++) tensor_done_with(&c->model.tensors[i]);
  team_barrier(&c->team);
  start = clock_now();
  for (size_t i = (size_t)c->team.rank; i < c->model.tensor_count && st == OK && bytes * c->team.size < MOST; i += (size_t)c->team.size) {
    const tensor_ref *t = &c->model.tensors[i];
    int64_t step = t->cols < SLAB ? SLAB / t->cols : 0;
    for (int64_t at = 0; step && at < t->rows && st == OK && bytes * c->team.size < MOST; at += step) {
      int64_t end = at + step < t->rows ? at + step : t->rows;
      st = tensor_rows(t, at, end, slab);
      bytes += (double)((end - at) * t->cols) * (double)(t->tensor->end - t->tensor->begin) / (double)(t->rows * t->cols);
    }
  }
  TRY(agree(c->team.comm, st));
  seconds = clock_now() - start;
  MPI_Allreduce(MPI_IN_PLACE, &bytes, 1, MPI_DOUBLE, MPI_SUM, c->team.comm);
  MPI_Allreduce(MPI_IN_PLACE, &seconds, 1, MPI_DOUBLE, MPI_MAX, c->team.comm);
  machine_add(to, RATE_READ_MODEL, 0, bytes / seconds);
done:
  FREE(slab);
  return st;
}

/* Tiles as in a Gram file, written by all and read by all; small files wait for the disk, large ones for its rate: the width is the bytes. */
static status measure_files(session *c, int64_t width, machine *to) {
  status st = OK;
  char path[PATH_MOST];
  shared tiles = {0}, full = {0};
  container *file = NULL;
  attributes none = {0};
  int64_t begin, end, count = tiles_count(width, GRAM_TILE);
  size_t bytes = (size_t)(count * GRAM_TILE * GRAM_TILE) * sizeof(float);
  double start, writing = INFINITY, reading;
  unit_run_path(c, "machine.h5", path);
  TRY(shared_new(&c->team, bytes, "tiles to write", &tiles));
  TRY(shared_new(&c->team, (size_t)(width * width) * sizeof(float), "tiles to read", &full));
  dataset set = {.path = "attn_in/tiles", .type = EL_F32, .rank = 3, .dims = {count, GRAM_TILE, GRAM_TILE}, .data = tiles.base};
  group_attributes groups[] = {{"", &none}, {"attn_in", &none}};
  for (int k = 0; k < 2; k++) {
    start = clock_now();
    TRY(container_write(&c->team, path, c->job_tag, "machine", &set, 1, groups, 2));
    writing = fmin(writing, clock_now() - start);
  }
  start = clock_now();
  deal_range(count, c->team.size, c->team.rank, 1, &begin, &end);
  st = container_open(path, "machine", &file);
  if (st == OK && end > begin) st = container_read(file, set.path, EL_F32, begin, end, (float *)tiles.base + begin * GRAM_TILE * GRAM_TILE);
  if (st == OK) tiles_expand(width, GRAM_TILE, begin, end, (const float *)tiles.base + begin * GRAM_TILE * GRAM_TILE, full.base);
  container_close(&file);
  TRY(agree(c->team.comm, st));
  team_barrier(&c->team);
  reading = clock_now() - start;
  machine_add(to, RATE_WRITE, (int64_t)bytes, (double)bytes / writing);
  machine_add(to, RATE_READ, (int64_t)bytes, (double)bytes / reading);
done:
  if (c->team.rank == 0 && file_remove(path) != OK) st = st == OK ? E_IO : st;
  shared_free(&tiles);
  shared_free(&full);
  return agree(c->team.comm, st);
}

/* The wider, the dearer: about five times what the width before took. One that would not be done in time is left out, on every rank. */
static status measure(session *c, double seconds, machine *to) {
  static const int64_t block_widths[] = {576, 1536, 3072}, file_widths[] = {256, 1024, 4096};
  enum { WIDTHS = sizeof widths / sizeof *widths };
  status st = OK;
  double start = clock_now(), before = start;
  TRY(measure_memory(c, to));
  for (int k = 0; k < WIDTHS; k++) {
    TRY(measure_block(c, block_widths[k], to));
    TRY(measure_width(c, widths[k], to));
    TRY(measure_files(c, file_widths[k], to));
    double now = clock_now(), next = now - start + 5 * (now - before);
    if (agree_any(c->team.comm, next > seconds)) break;
    before = now;
  }
  if (c->model.tensor_count)
    TRY(measure_model(c, to));
  else /* no weights here: as the files of the run */
    machine_add(to, RATE_READ_MODEL, 0, machine_rate(to, RATE_READ, INT64_MAX));
done:
  return st;
}

status machine_measure(session *c, double seconds, machine *m) {
  status st = OK;
  *m = (machine){.ranks = c->team.size};
  gethostname(m->host, sizeof m->host - 1);
  clock_stamp(m->time);
  snprintf(m->blas, sizeof m->blas, "%.255s", c->blas.library);
  snprintf(m->kernel, sizeof m->kernel, "%s", c->blas.kernel);
  if (c->team.index == 0) st = measure(c, seconds, m);
  TRY(agree(c->job_comm, st));
  MPI_Bcast(m, (int)sizeof *m, MPI_BYTE, 0, c->job_comm);
done:
  return st;
}
