/* cloqwork plan: what will be computed and what it takes, from headers and the job alone. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "calibrate/prefix.h"
#include "calibrate/target.h"
#include "dist/agree.h"
#include "run/few_tokens.h"
#include "run/gram_take.h"
#include "run/layer_solver.h"
#include "run/scratch.h"
#include "run/sharing.h"
#include "run/unit.h"
#include "run/verbs.h"

typedef struct stage {
  int64_t units, missing;
  double flops, seconds; /* of what is missing */
  uint64_t rank;         /* bytes of a rank at its peak; 0: nothing is missing */
} stage;

typedef struct plan {
  int64_t layers;
  stage calibrate, solve;
  stage follow;  /* settings that follow their own prefix, with their Grams */
  uint64_t base; /* of a rank before any work: program and libraries */
  uint64_t rank_peak, node_peak, node_memory, disk_missing, disk_free;
  sharing sharing;  /* of what is missing */
  double gemm_rate; /* flops/s of all ranks, measured now */
} plan;

/* What libraries allocate as they are used: BLAS's packing, HDF5's and MPI-IO's caches (measured on one and two ranks). */
enum { LIBRARY_BUFFERS = 6 << 20 };

static const double CALIBRATE_OF_GEMM = 0.75, SOLVE_OF_GEMM = 0.5;

status gemm_rate(session *c, double *rate) {
  enum { N = 768, TIMES = 4 };
  status st = OK;
  float *x = NULL;
  TRY(agree(c->job_comm, NEW(x, 3 * N * N, "a short product")));
  for (int k = 0; k < 2 * N * N; k++) x[k] = (float)(k % 7) - 3;
  sgemm(false, false, N, N, N, 1, x, N, x + N * N, N, 0, x + 2 * N * N, N);
  MPI_Barrier(c->job_comm);
  double start = clock_now();
  for (int k = 0; k < TIMES; k++) sgemm(false, false, N, N, N, 1, x, N, x + N * N, N, 0, x + 2 * N * N, N);
  double mine = 2.0 * N * N * N * TIMES / (clock_now() - start);
  MPI_Allreduce(&mine, rate, 1, MPI_DOUBLE, MPI_SUM, c->job_comm);
  log_peak(1e-9 * *rate);
done:
  FREE(x);
  return st;
}

/* A layer's tiles of Grams of one set of tokens: in shared memory, and in its file. */
static uint64_t tile_bytes(const session *c) {
  uint64_t bytes = 0;
  for (int i = 0; i < IN_COUNT; i++)
    if (c->wanted[i])
      bytes += (uint64_t)tiles_count(input_width(&c->model.arch, (input_id)i), GRAM_TILE) * GRAM_TILE * GRAM_TILE * sizeof(float);
  return bytes;
}

static int set_count(const session *c) { return c->sets[SET_HELDOUT] ? 2 : 1; }

static void count_grams(const session *c, plan *p) {
  char path[PATH_MOST];
  p->calibrate.units = p->layers * set_count(c);
  for (int64_t layer = c->layer_begin; layer < c->layer_end; layer++)
    for (int set = 0; set < SET_COUNT; set++) {
      unit_gram_path(c, set, layer, path);
      p->calibrate.missing += c->sets[set] && !file_exists(path);
    }
  pass_bytes b = {.private_most = gram_take_private_bytes()};
  if (c->job.grams.origin == GRAMS_CALIBRATED) {
    b = pass_memory(&c->model.arch, c->sets, c->wanted, c->team.size);
    if (scratch_folder(c)) b.private_most -= b.streams;
    p->calibrate.flops = (double)p->calibrate.missing / set_count(c) * pass_layer_flops(&c->model.arch, c->sets, c->wanted);
  }
  if (p->calibrate.missing) p->calibrate.rank = p->base + b.private_most + (b.shared + tile_bytes(c)) / (uint64_t)c->team.size;
  p->disk_missing += tile_bytes(c) * (uint64_t)p->calibrate.missing;
}

/* What a setting that follows its prefix takes beside its solutions: activations, Grams and targets of its own. */
static void count_prefix(const session *c, int64_t missing, stage *of, plan *p) {
  const arch *a = &c->model.arch;
  bool cross = c->follower->options.act_quantizer == INPUTS_CROSS;
  uint64_t files = tile_bytes(c) * (uint64_t)set_count(c);
  pass_bytes b = prefix_memory(a, c->sets, c->wanted, c->team.size, cross);
  double flops = prefix_layer_flops(a, c->sets, c->wanted, cross);
  if (scratch_folder(c)) b.private_most -= b.streams;
  for (int l = 0; l < LIN_COUNT; l++) {
    int64_t out, in;
    if (!c->job.target[l] || !cross) continue;
    linear_shape(a, (linear_id)l, &out, &in);
    files += (uint64_t)(out * in) * sizeof(float);
    flops += target_flops(out, in, cross_of_outputs(linear_input((linear_id)l)));
  }
  of->flops += (double)missing * flops;
  of->rank += b.private_most + (b.shared + files) / (uint64_t)c->team.size;
  p->disk_missing += files * (uint64_t)missing;
}

/* Adds the settings of a view (session_split). */
static status count_solutions(const session *c, plan *p) {
  status st = OK;
  bool *pending = NULL;
  char path[PATH_MOST];
  stage *of = c->follower ? &p->follow : &p->solve, now = {.units = p->layers * c->job.setting_count};
  TRY(NEW(pending, c->job.setting_count, "settings of a layer"));
  for (int64_t layer = c->layer_begin; layer < c->layer_end; layer++) {
    for (int k = 0; k < c->job.setting_count; k++) {
      unit_solution_path(c, &c->job.settings[k], layer, path);
      pending[k] = !file_exists(path);
      now.missing += pending[k];
      if (pending[k]) p->disk_missing += layer_solver_file_bytes(&c->job, &c->model.arch, k);
    }
    TRY(sharing_count(&c->job, layer, pending, &p->sharing));
  }
  now.flops = (double)now.missing / c->job.setting_count * layer_solver_flops(&c->job, &c->model.arch);
  solver_bytes b = layer_solver_memory(&c->job, &c->model.arch, c->team.size, c->sets[SET_HELDOUT] != NULL);
  now.rank = p->base + b.private_most + b.shared / (uint64_t)c->team.size;
  if (c->follower) count_prefix(c, now.missing, &now, p);
  of->units += now.units;
  of->missing += now.missing;
  of->flops += now.flops;
  if (now.missing) of->rank = now.rank > of->rank ? now.rank : of->rank;
done:
  FREE(pending);
  return st;
}

static status count_stages(const session *c, plan *p) {
  session_views views;
  status st = session_split(c, &views);
  p->layers = c->layer_end - c->layer_begin;
  if (job_uses_full_grams(&c->job)) count_grams(c, p);
  for (int i = 0; i < views.count && st == OK; i++) st = count_solutions(&views.list[i], p);
  session_views_free(&views);
  const stage *of[] = {&p->calibrate, &p->solve, &p->follow};
  for (size_t i = 0; i < sizeof of / sizeof *of; i++) p->rank_peak = of[i]->rank > p->rank_peak ? of[i]->rank : p->rank_peak;
  p->node_peak = p->rank_peak * (uint64_t)c->team.size;
  p->node_memory = node_memory(c);
  return st;
}

/* The nearest folder on the way to the output that exists already. */
static status free_space(const char *output, uint64_t *bytes) {
  char *path = mem_format("%s", output);
  if (!path) return fail(E_MEMORY, "plan: no memory for a name");
  while (!file_exists(path)) {
    char *slash = strrchr(path, '/');
    if (!slash || slash == path) {
      strcpy(path, slash ? "/" : ".");
      break;
    }
    *slash = 0;
  }
  status st = file_free_space(path, bytes);
  FREE(path);
  return st;
}

static status make_plan(session *c, plan *p) {
  status st = OK;
  *p = (plan){.base = mem_resident_now().private_bytes + LIBRARY_BUFFERS};
  st = count_stages(c, p);
  if (st == OK) st = free_space(c->job.output, &p->disk_free);
  TRY(agree(c->job_comm, st));
  TRY(gemm_rate(c, &p->gemm_rate));
  p->calibrate.seconds = p->calibrate.flops / (CALIBRATE_OF_GEMM * p->gemm_rate);
  p->solve.seconds = p->solve.flops / (SOLVE_OF_GEMM * p->gemm_rate);
  p->follow.seconds = p->follow.flops / (SOLVE_OF_GEMM * p->gemm_rate);
  MPI_Bcast(p, (int)sizeof *p, MPI_BYTE, 0, c->job_comm);
done:
  return st;
}

static double gib(uint64_t bytes) { return (double)bytes / (1 << 30); }

/* Tokens of Grams that come from elsewhere are a number, not windows. */
static void print_tokens(const windows *w, const char *what, FILE *out) {
  if (w && w->ids)
    fprintf(out, "%lld x %lld %s", (long long)w->count, (long long)w->length, what);
  else if (w)
    fprintf(out, "%lld %s", (long long)w->count, what);
}

static void print_step(const char *name, const step_count *n, FILE *out) {
  if (n->asked)
    fprintf(out, "%-26s %12lld %12lld %12lld %16lld\n", name, (long long)n->asked, (long long)n->computed,
            (long long)(n->asked - n->computed - n->finished), (long long)n->finished);
}

/* What the settings have in common, step by step. */
static void print_sharing(const sharing *n, FILE *out) {
  if (n->codes.asked + n->refined.asked + n->joint.asked == 0) return;
  fprintf(out, "%-26s %12s %12s %12s %16s\n", "work of solve", "asked for", "computed", "shared", "already finished");
  print_step("MagR of matrices", &n->magr, out);
  print_step("Cholesky factors of Grams", &n->factors, out);
  print_step("codes of matrices", &n->codes, out);
  print_step("codes refined for a rank", &n->refined, out);
  print_step("adapters, all ranks at once", &n->fits, out);
  print_step("codes and adapter, one rank", &n->joint, out);
  fprintf(out, "\n");
}

static void print_stage(const char *name, const stage *s, FILE *out) {
  char text[32];
  clock_duration(s->seconds, text);
  fprintf(out, "%-12s %12lld %12lld %14.3f %18.3f %14s\n", name, (long long)s->units, (long long)s->missing, 1e-12 * s->flops, gib(s->rank),
          text);
}

static void print_table(const session *c, const plan *p, FILE *out) {
  const arch *a = &c->model.arch;
  char few[FEW_TOKENS_TEXT];
  double per_column[IN_COUNT];
  fprintf(out, "model       %s: %lld layers, hidden %lld, intermediate %lld, %d/%d heads of %d, vocabulary %lld\n", c->job.model,
          (long long)a->layers, (long long)a->hidden, (long long)a->intermediate, a->heads, a->kv_heads, a->head_dim, (long long)a->vocab);
  fprintf(out, "tokens      ");
  print_tokens(c->sets[SET_CALIBRATION], "calibration", out);
  if (c->sets[SET_HELDOUT]) fprintf(out, ", ");
  print_tokens(c->sets[SET_HELDOUT], "held-out", out);
  tokens_a_column(&c->model.arch, c->sets[SET_CALIBRATION], c->wanted, per_column);
  if (few_tokens(per_column, few)) fprintf(out, "\nwarning     %s", few);
  fprintf(out, "\nsettings    %d:", c->job.setting_count);
  for (int k = 0; k < c->job.setting_count; k++) fprintf(out, " %s", c->job.settings[k].name);
  fprintf(out, "\n\n%-12s %12s %12s %14s %18s %14s\n", "stage", "units", "to do", "TFLOP to do", "GiB a rank, peak", "about");
  print_stage("calibrate", &p->calibrate, out);
  print_stage("solve", &p->solve, out);
  if (p->follow.units) print_stage("by prefix", &p->follow, out);
  fprintf(out, "\n");
  print_sharing(&p->sharing, out);
  fprintf(out, "memory      %.3f GiB a rank, %.3f GiB a team of %d; a node has %.1f GiB\n", gib(p->rank_peak), gib(p->node_peak),
          c->team.size, gib(p->node_memory));
  fprintf(out, "disk        %.3f GiB to write, %.1f GiB free\n", gib(p->disk_missing), gib(p->disk_free));
  fprintf(out, "rate        %.0f GFLOP/s of %d ranks in a short single-precision product\n", 1e-9 * p->gemm_rate, c->size);
}

static json_t *step_json(const step_count *n) {
  return json_pack("{s:I, s:I, s:I}", "asked", (json_int_t)n->asked, "computed", (json_int_t)n->computed, "finished",
                   (json_int_t)n->finished);
}

static json_t *sharing_json(const sharing *n) {
  return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o}", "magr", step_json(&n->magr), "factors", step_json(&n->factors), "codes",
                   step_json(&n->codes), "refined", step_json(&n->refined), "adapters", step_json(&n->fits), "joint", step_json(&n->joint));
}

static json_t *tokens_json(const session *c) {
  json_t *o = json_object();
  double per_column[IN_COUNT];
  tokens_a_column(&c->model.arch, c->sets[SET_CALIBRATION], c->wanted, per_column);
  for (int i = 0; i < IN_COUNT; i++)
    if (!isnan(per_column[i])) json_object_set_new(o, input_name((input_id)i), json_real(per_column[i]));
  return o;
}

static json_t *plan_json(const session *c, const plan *p) {
  return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:i, s:o, s:o}",
                   "model", c->job.model, "layers", (json_int_t)p->layers, "gram_units", (json_int_t)p->calibrate.units, "gram_units_to_do",
                   (json_int_t)p->calibrate.missing, "solution_units", (json_int_t)(p->solve.units + p->follow.units),
                   "solution_units_to_do", (json_int_t)(p->solve.missing + p->follow.missing), "calibrate_flops", p->calibrate.flops,
                   "solve_flops", p->solve.flops + p->follow.flops, "calibrate_seconds", p->calibrate.seconds, "solve_seconds",
                   p->solve.seconds + p->follow.seconds, "rank_bytes", (json_int_t)p->rank_peak, "rank_bytes_calibrate",
                   (json_int_t)p->calibrate.rank, "rank_bytes_solve", (json_int_t)p->solve.rank, "rank_bytes_by_prefix",
                   (json_int_t)p->follow.rank, "node_bytes", (json_int_t)p->node_peak, "node_memory", (json_int_t)p->node_memory,
                   "disk_bytes", (json_int_t)p->disk_missing, "disk_free", (json_int_t)p->disk_free, "gemm_flops_per_second", p->gemm_rate,
                   "ranks", c->size, "sharing", sharing_json(&p->sharing), "tokens_a_column", tokens_json(c));
}

static void print_json(const session *c, const plan *p, FILE *out) {
  json_t *o = plan_json(c, p);
  if (o) json_dumpf(o, out, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
  fprintf(out, "\n");
  json_decref(o);
}

/* RUN/plan.json: what a run with something to do set out with, for the report to hold its metrics against. */
static status keep_plan(const session *c, const plan *p) {
  char path[PATH_MOST];
  if (p->calibrate.missing + p->solve.missing + p->follow.missing == 0) return OK;
  json_t *o = plan_json(c, p);
  char *text = o ? json_dumps(o, JSON_INDENT(2) | JSON_PRESERVE_ORDER) : NULL;
  json_decref(o);
  if (!text) return fail(E_MEMORY, "plan.json: no memory");
  unit_run_path(c, "plan.json", path);
  status st = file_write_atomic(path, text, strlen(text));
  free(text);
  return st;
}

status verb_plan(session *c) {
  status st = OK;
  plan p;
  bool alone = strcmp(c->arguments.verb, "plan") == 0; /* as part of `run` it goes to the log */
  TRY(make_plan(c, &p));
  if (c->rank == 0 && alone && c->arguments.json) print_json(c, &p, stdout);
  if (c->rank == 0 && alone && !c->arguments.json) print_table(c, &p, stdout);
  if (!alone)
    log_info("plan: %lld of %lld Grams and %lld of %lld solutions to do; %.3f + %.3f TFLOP; %.3f GiB a rank; %.3f GiB to write",
             (long long)p.calibrate.missing, (long long)p.calibrate.units, (long long)(p.solve.missing + p.follow.missing),
             (long long)(p.solve.units + p.follow.units), 1e-12 * p.calibrate.flops, 1e-12 * (p.solve.flops + p.follow.flops),
             gib(p.rank_peak), gib(p.disk_missing));
  if (!alone && c->rank == 0) st = keep_plan(c, &p);
  TRY(agree(c->job_comm, st));
  if (p.node_memory && p.node_peak > p.node_memory)
    st = fail(E_MEMORY,
              "plan: memory of a node: expected at least %.2f GiB for %d ranks, found %.2f GiB; use more nodes or fewer ranks a node",
              gib(p.node_peak), c->team.size, gib(p.node_memory));
  else if (p.disk_missing > p.disk_free)
    st = fail(E_MEMORY, "plan: %s: expected at least %.2f GiB of free disk, found %.2f GiB", c->job.output, gib(p.disk_missing),
              gib(p.disk_free));
  st = agree(c->job_comm, st);
done:
  return st;
}
