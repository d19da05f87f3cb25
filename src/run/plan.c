/* cloqwork plan: what will be computed and what it takes, from headers and the job alone. */
#include "run/plan.h"

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
#include "layer/solver.h"
#include "run/verbs.h"
#include "session/gram_take.h"
#include "session/scratch.h"
#include "session/unit.h"

/* What libraries allocate as they are used: BLAS's packing, HDF5's and MPI-IO's caches (measured on one and two ranks). */
enum { LIBRARY_BUFFERS = 6 << 20 };

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

/* ---- what is missing ---- */

/* Of every layer: Grams (forecast_todo), and of every view its settings. */
typedef struct missing {
  uint8_t *grams;
  bool **settings;
  session_views views;
} missing;

static void missing_free(missing *x) {
  for (int v = 0; x->settings && v < x->views.count; v++) FREE(x->settings[v]);
  FREE(x->settings);
  FREE(x->grams);
  session_views_free(&x->views);
}

static void find_grams(const session *c, missing *x, plan *p) {
  char path[PATH_MOST];
  p->calibrate.units = p->layers * set_count(c);
  for (int64_t layer = c->layer_begin; layer < c->layer_end; layer++)
    for (int set = 0; set < SET_COUNT; set++) {
      unit_gram_path(c, set, layer, path);
      if (!c->sets[set] || file_exists(path)) continue;
      x->grams[layer] |= (uint8_t)(1 << set);
      p->calibrate.missing++;
      p->disk_grams += tile_bytes(c);
    }
}

/* What a setting that follows its prefix leaves beside its solutions: Grams and targets of its own. */
static uint64_t prefix_bytes(const session *c) {
  uint64_t bytes = tile_bytes(c) * (uint64_t)set_count(c);
  for (int l = 0; l < LIN_COUNT; l++) {
    int64_t out, in;
    if (!c->job.target[l] || c->follower->options.act_quantizer != INPUTS_CROSS) continue;
    linear_shape(&c->model.arch, (linear_id)l, &out, &in);
    bytes += (uint64_t)(out * in) * sizeof(float);
  }
  return bytes;
}

/* Of a view (session_split). */
static status find_solutions(const session *c, bool *settings, plan *p) {
  status st = OK;
  char path[PATH_MOST];
  stage *of = c->follower ? &p->follow : &p->solve;
  int count = c->job.setting_count;
  for (int64_t layer = c->layer_begin; layer < c->layer_end; layer++) {
    bool *pending = settings + layer * count, any = false;
    for (int k = 0; k < count; k++) {
      unit_solution_path(c, &c->job.settings[k], layer, path);
      pending[k] = !file_exists(path);
      any |= pending[k];
      of->units++;
      of->missing += pending[k];
      if (pending[k]) p->disk_solutions += layer_solver_file_bytes(&c->job, &c->model.arch, k);
    }
    if (any && c->follower) p->disk_grams += prefix_bytes(c);
    TRY(sharing_count(&c->job, layer, pending, &p->sharing));
  }
done:
  return st;
}

static status find_missing(const session *c, missing *x, plan *p) {
  status st = OK;
  p->layers = c->layer_end - c->layer_begin;
  TRY(session_split(c, &x->views));
  TRY(NEW(x->grams, c->model.arch.layers, "list of layers"));
  TRY(NEW(x->settings, x->views.count, "lists of layers"));
  if (job_uses_full_grams(&c->job)) find_grams(c, x, p);
  for (int v = 0; v < x->views.count; v++) {
    const session *view = &x->views.list[v];
    TRY(NEW(x->settings[v], c->model.arch.layers * view->job.setting_count, "lists of layers"));
    TRY(find_solutions(view, x->settings[v], p));
  }
done:
  return st;
}

/* ---- memory ---- */

/* Bytes of a rank at the peak of a view's part of solve. */
static uint64_t view_bytes(const session *c, const plan *p, const geometry *g) {
  int ranks = g->team;
  solver_bytes b = layer_solver_memory(&c->job, &c->model.arch, ranks, c->sets[SET_HELDOUT] != NULL);
  uint64_t all = p->base + b.private_most + b.shared / (uint64_t)ranks;
  if (!c->follower) return all;
  bool cross = c->follower->options.act_quantizer == INPUTS_CROSS;
  pass_bytes of_prefix = prefix_memory(&c->model.arch, c->sets, c->wanted, ranks, cross);
  if (scratch_at(c, ranks, g->ranks, p->node_memory)) of_prefix.private_most -= of_prefix.streams;
  return all + of_prefix.private_most + (of_prefix.shared + prefix_bytes(c)) / (uint64_t)ranks;
}

/* Of a rank, stage by stage. */
static uint64_t size_stages(const session *c, const missing *x, plan *p, const geometry *g) {
  int ranks = g->team;
  pass_bytes b = {.private_most = gram_take_private_bytes()};
  if (c->job.grams.origin == GRAMS_CALIBRATED) b = pass_memory(&c->model.arch, c->sets, c->wanted, ranks);
  if (c->job.grams.origin == GRAMS_CALIBRATED && scratch_at(c, ranks, g->ranks, p->node_memory)) b.private_most -= b.streams;
  p->calibrate.rank = p->calibrate.missing ? p->base + b.private_most + (b.shared + tile_bytes(c)) / (uint64_t)ranks : 0;
  p->solve.rank = p->follow.rank = 0;
  for (int v = 0; v < x->views.count; v++) {
    const session *view = &x->views.list[v];
    stage *of = view->follower ? &p->follow : &p->solve;
    uint64_t rank = view_bytes(view, p, g);
    if (of->missing && rank > of->rank) of->rank = rank;
  }
  uint64_t most = p->calibrate.rank > p->solve.rank ? p->calibrate.rank : p->solve.rank;
  return most > p->follow.rank ? most : p->follow.rank;
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

/* ---- rates ---- */

/* Collective. Those that were measured: of --machine, or of the run directory; or guesses from a product now. */
static status find_rates(session *c, plan *p) {
  status st = OK;
  char path[PATH_MOST];
  const char *from = c->arguments.machine ? c->arguments.machine : path;
  unit_run_path(c, "machine.json", path);
  TRY(gemm_rate(c, &p->gemm_rate));
  machine_guess(p->gemm_rate / c->size, &p->machine);
  if (c->rank == 0 && (p->measured = c->arguments.machine || file_exists(path))) {
    st = machine_read(from, &p->machine);
    snprintf(p->machine_path, sizeof p->machine_path, "%.255s", from);
  }
  st = agree(c->job_comm, st);
done:
  return st;
}

static status measure_rates(session *c) {
  status st = OK;
  machine m;
  char path[PATH_MOST];
  double start = clock_now(), hours = c->arguments.max_hours;
  st = c->rank == 0 ? file_make_folders(c->job.output) : OK;
  TRY(agree(c->job_comm, st));
  TRY(machine_measure(c, hours > 0 ? 3600 * hours : 60, &m));
  unit_run_path(c, "machine.json", path);
  st = c->rank == 0 ? machine_write(path, &m) : OK;
  TRY(agree(c->job_comm, st));
  log_info("plan: %s: rates of %d ranks on %s, measured in %.0f s", path, m.ranks, m.host, clock_now() - start);
done:
  return st;
}

/* ---- ways to run it ---- */

/* Nodes: 1, 2, 4 … up to a layer each; ranks halved until a node holds them. The fewest nodes that are done in a night, else the quickest. */
static status list_options(const session *c, const missing *x, const forecast_todo *todo, plan *p) {
  status st = OK;
  plan sizes = *p;
  int ranks = p->geometry.ranks, quickest = -1;
  uint64_t node = 0;
  p->recommended = -1;
  for (; ranks >= 1; ranks /= 2) {
    geometry g = geometry_of(1, ranks, c->job.parallel.team);
    node = size_stages(c, x, &sizes, &g) * (uint64_t)ranks;
    if (p->node_memory == 0 || node <= p->node_memory) break;
  }
  for (int nodes = 1; ranks >= 1 && nodes <= p->layers && p->option_count < PLAN_OPTIONS; nodes *= 2) {
    plan_option *o = &p->options[p->option_count];
    *o = (plan_option){.g = geometry_of(nodes, ranks, c->job.parallel.team), .node = node};
    TRY(forecast_make(todo, &p->machine, &o->g, &o->f));
    if (quickest < 0 || plan_seconds(&o->f) < plan_seconds(&p->options[quickest].f)) quickest = p->option_count;
    if (p->recommended < 0 && plan_seconds(&o->f) <= 3600 * p->night) p->recommended = p->option_count;
    p->option_count++;
  }
  if (p->recommended < 0) p->recommended = quickest;
done:
  return st;
}

/* Collective. The ranks of this call, or those that were asked for. */
static void choose_geometry(const session *c, plan *p) {
  const arguments *a = &c->arguments;
  MPI_Comm node;
  int rank, ranks, nodes;
  MPI_Comm_split_type(c->job_comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
  MPI_Comm_rank(node, &rank);
  MPI_Comm_size(node, &ranks);
  MPI_Comm_free(&node);
  nodes = rank == 0;
  MPI_Allreduce(MPI_IN_PLACE, &nodes, 1, MPI_INT, MPI_SUM, c->job_comm);
  p->given = a->nodes || a->ranks_per_node;
  p->geometry = (geometry){.nodes = nodes, .ranks = ranks, .team = c->team.size, .teams = c->team.count};
  if (p->given)
    p->geometry = geometry_of(a->nodes ? a->nodes : 1,
                              a->ranks_per_node ? a->ranks_per_node
                              : p->measured     ? p->machine.ranks
                                                : ranks,
                              c->job.parallel.team);
  p->node_memory = p->given && c->job.parallel.memory_per_node <= 0 ? 0 : node_memory(c); /* of other nodes only the job can say it */
}

static status make_on_first_rank(const session *c, plan *p) {
  status st = OK;
  missing x = {0};
  TRY(find_missing(c, &x, p));
  forecast_todo todo = {.c = c, .views = &x.views, .grams = x.grams, .settings = x.settings};
  p->rank_peak = size_stages(c, &x, p, &p->geometry);
  p->node_peak = p->rank_peak * (uint64_t)p->geometry.ranks;
  TRY(forecast_make(&todo, &p->machine, &p->geometry, &p->forecast));
  TRY(list_options(c, &x, &todo, p));
  const forecast_part *steps = p->forecast.steps;
  for (int s = 0; s < STEP_COUNT; s++) *(s < STEP_SOLVE ? &p->calibrate.flops : &p->solve.flops) += steps[s].flops;
  p->calibrate.seconds = p->forecast.calibrate;
  p->solve.seconds = p->forecast.solve;
  TRY(free_space(c->job.output, &p->disk_free));
done:
  missing_free(&x);
  return st;
}

static status make_plan(session *c, plan *p) {
  status st = OK;
  *p =
      (plan){.base = mem_resident_now().private_bytes + LIBRARY_BUFFERS, .night = c->arguments.max_hours > 0 ? c->arguments.max_hours : 12};
  TRY(find_rates(c, p));
  choose_geometry(c, p);
  st = c->rank == 0 ? make_on_first_rank(c, p) : OK;
  TRY(agree(c->job_comm, st));
  MPI_Bcast(p, (int)sizeof *p, MPI_BYTE, 0, c->job_comm);
done:
  return st;
}

static double gib(uint64_t bytes) { return (double)bytes / (1 << 30); }

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
  uint64_t disk = 0;
  if (alone && c->arguments.calibrate_machine) TRY(measure_rates(c));
  TRY(make_plan(c, &p));
  disk = p.disk_grams + p.disk_solutions;
  if (c->rank == 0 && alone && c->arguments.json) print_json(c, &p, stdout);
  if (c->rank == 0 && alone && !c->arguments.json) plan_print(c, &p, stdout);
  if (!alone)
    log_info("plan: %lld of %lld Grams and %lld of %lld solutions to do; %.3f + %.3f TFLOP; %.3f GiB a rank; %.3f GiB to write",
             (long long)p.calibrate.missing, (long long)p.calibrate.units, (long long)(p.solve.missing + p.follow.missing),
             (long long)(p.solve.units + p.follow.units), 1e-12 * p.calibrate.flops, 1e-12 * p.solve.flops, gib(p.rank_peak), gib(disk));
  if (!alone && c->rank == 0) st = keep_plan(c, &p);
  TRY(agree(c->job_comm, st));
  if (p.node_memory && p.node_peak > p.node_memory)
    st = fail(E_MEMORY,
              "plan: memory of a node: expected at least %.2f GiB for %d ranks, found %.2f GiB; use more nodes or fewer ranks a node",
              gib(p.node_peak), p.geometry.ranks, gib(p.node_memory));
  else if (!p.given && disk > p.disk_free)
    st = fail(E_MEMORY, "plan: %s: expected at least %.2f GiB of free disk, found %.2f GiB", c->job.output, gib(disk), gib(p.disk_free));
  st = agree(c->job_comm, st);
done:
  return st;
}
