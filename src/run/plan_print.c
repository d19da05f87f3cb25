/* plan's table and JSON. */
#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "job/few_tokens.h"
#include "run/plan.h"

static double gib(uint64_t bytes) { return (double)bytes / (1 << 30); }
static double part_of(double x, double all) { return all > 0 ? x / all : 0; }

/* Tokens of Grams that come from elsewhere are a number, not windows. */
static void print_tokens(const session *c, int set, const char *what, FILE *out) {
  const windows *w = c->sets[set];
  if (!w) return;
  if (c->job.grams.origin == GRAMS_CALIBRATED || w->ids)
    fprintf(out, "%lld x %lld %s", (long long)w->count, (long long)w->length, what);
  else
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

/* Flops and seconds of settings that follow their prefix are solve's. */
static void print_stage(const char *name, const stage *s, bool timed, FILE *out) {
  char flops[32] = "", text[32] = "in solve";
  if (timed) clock_duration(s->seconds, text);
  if (timed) snprintf(flops, sizeof flops, "%.3f", 1e-12 * s->flops);
  fprintf(out, "%-12s %12lld %12lld %14s %18.3f %14s\n", name, (long long)s->units, (long long)s->missing, flops, gib(s->rank), text);
}

/* ---- time ---- */

static void print_steps(const plan *p, FILE *out) {
  const forecast *f = &p->forecast;
  double ranks = p->geometry.nodes * p->geometry.ranks;
  fprintf(out, "%-12s %-10s %10s %10s %14s %8s %12s %8s\n", "stage", "step", "TFLOP", "GB", "GFLOP/s a rank", "busy", "seconds", "share");
  for (int s = 0; s < STEP_COUNT; s++) {
    const forecast_part *x = &f->steps[s];
    if (!(x->seconds > 0)) continue;
    fprintf(out, "%-12s %-10s %10.3f %10.3f ", s < STEP_SOLVE ? "calibrate" : "solve", step_names[s], 1e-12 * x->flops, 1e-9 * x->bytes);
    if (x->flops > 0 && x->busy > 0)
      fprintf(out, "%14.1f", 1e-9 * x->flops / ranks / x->busy);
    else
      fprintf(out, "%14s", "");
    fprintf(out, " %8.2f %12.1f %7.0f%%\n", x->busy / x->seconds, x->seconds, 100 * part_of(x->seconds, plan_seconds(f)));
  }
}

static int slowest_step(const forecast *f) {
  int most = 0;
  for (int s = 0; s < STEP_COUNT; s++)
    if (f->steps[s].seconds > f->steps[most].seconds) most = s;
  return most;
}

/* What holds the slowest step up. */
static const char *reason(const forecast_part *x, int step, const plan *p) {
  if (x->bytes > 0 && x->flops == 0) return "the file system";
  if (x->busy >= 0.7 * x->seconds) return "arithmetic";
  if (step < STEP_SOLVE && p->geometry.teams > p->forecast.steps_a_layer)
    return "teams that wait for one another: fewer steps a layer than teams";
  return "ranks that wait: too few windows, slabs of rows or matrices to deal";
}

static void print_rates(const session *c, const plan *p, FILE *out) {
  if (p->measured)
    fprintf(out, "rates       %s: measured %s on %s with %d ranks at work together\n", p->machine_path, p->machine.time, p->machine.host,
            p->machine.ranks);
  else
    fprintf(out,
            "rates       guesses, from %.0f GFLOP/s of %d ranks in a short single-precision product: seconds may be wrong by a factor;\n"
            "            plan --calibrate-machine measures, --machine FILE takes what was measured elsewhere\n",
            1e-9 * p->gemm_rate, c->size);
}

static void print_option(const plan *p, int k, FILE *out) {
  const plan_option *o = &p->options[k];
  char calibrate[32], solve[32], all[32];
  clock_duration(o->f.calibrate, calibrate);
  clock_duration(o->f.solve, solve);
  clock_duration(plan_seconds(&o->f), all);
  fprintf(out, "%-2s%8d %8d %14s %14s %14s %12.2f %12.2f\n", k == p->recommended ? "->" : "", o->g.nodes, o->g.ranks, calibrate, solve, all,
          plan_node_hours(&o->g, &o->f), gib(o->node));
}

static int64_t most_layers(int64_t layers, int teams) { return (layers + teams - 1) / teams; }

/* Twice what is expected and ten minutes; a quarter more memory and half a GiB, as submit.sh asks for. */
static int64_t sbatch_minutes(const plan_option *o) { return 10 + (int64_t)ceil(2 * plan_seconds(&o->f) / 60); }
static int64_t sbatch_megabytes(const plan_option *o) { return (int64_t)(o->node / (1 << 20) * 5 / 4 + 512); }

static void print_recommended(const session *c, const plan *p, FILE *out) {
  const plan_option *o = &p->options[p->recommended];
  int64_t layers = most_layers(p->layers, o->g.teams);
  char text[32];
  fprintf(out, "\nsbatch -N %d --ntasks-per-node=%d --mem=%lldM -t %lld slurm/cloqwork.sbatch run %s\n", o->g.nodes, o->g.ranks,
          (long long)sbatch_megabytes(o), (long long)sbatch_minutes(o), c->arguments.target);
  clock_duration(plan_seconds(&o->f), text);
  fprintf(out, "  the fewest of these nodes that are done in %.3g h, or the quickest: %s\n", p->night, text);
  if (o->f.calibrate > 0)
    fprintf(out,
            "  calibrate   %lld layers / %d teams = %lld rounds, %d steps of windows a layer, %.1f s a round with what the teams wait: "
            "%.1f s\n",
            (long long)p->layers, o->g.teams, (long long)layers, o->f.steps_a_layer, o->f.calibrate / (double)layers, o->f.calibrate);
  if (o->f.solve > 0)
    fprintf(out, "  solve       %lld layers / %d teams = %lld layers x %.1f s = %.1f s\n", (long long)p->layers, o->g.teams,
            (long long)layers, o->f.solve / (double)layers, o->f.solve);
  fprintf(out, "  node-hours  %d nodes x %.1f s / 3600 = %.2f\n", o->g.nodes, plan_seconds(&o->f), plan_node_hours(&o->g, &o->f));
  fprintf(out, "  --mem       1.25 x %.2f GiB + 0.5 GiB;  -t: 2 x %s + 10 min\n", gib(o->node), text);
}

static void print_time(const session *c, const plan *p, FILE *out) {
  const forecast *f = &p->forecast;
  int slowest = slowest_step(f);
  char calibrate[32], solve[32], all[32];
  print_rates(c, p, out);
  if (!(plan_seconds(f) > 0)) return;
  clock_duration(f->calibrate, calibrate);
  clock_duration(f->solve, solve);
  clock_duration(plan_seconds(f), all);
  fprintf(out, "time        %s%s: calibrate %s + solve %s = %s; %.3g node-hours\n", p->measured ? "" : "by guesses ",
          p->given ? "there" : "here", calibrate, solve, all, plan_node_hours(&p->geometry, f));
  fprintf(out, "bottleneck  %s of %s, %.0f %% of the time: %s\n\n", step_names[slowest], slowest < STEP_SOLVE ? "calibrate" : "solve",
          100 * part_of(f->steps[slowest].seconds, plan_seconds(f)), reason(&f->steps[slowest], slowest, p));
  fprintf(out, "seconds = TFLOP / (%d ranks x GFLOP/s a rank) / busy; busy: the part of a step that a rank works, on average\n",
          p->geometry.nodes * p->geometry.ranks);
  print_steps(p, out);
  if (p->recommended < 0) return;
  fprintf(out, "\n%10s %8s %14s %14s %14s %12s %12s\n", "nodes", "ranks", "calibrate", "solve", "together", "node-hours", "GiB a node");
  for (int k = 0; k < p->option_count; k++) print_option(p, k, out);
  print_recommended(c, p, out);
}

/* ---- the table ---- */

void plan_print(const session *c, const plan *p, FILE *out) {
  const arch *a = &c->model.arch;
  const geometry *g = &p->geometry;
  char few[FEW_TOKENS_TEXT];
  double per_column[IN_COUNT];
  fprintf(out, "model       %s: %lld layers, hidden %lld, intermediate %lld, %d/%d heads of %d, vocabulary %lld\n", c->job.model,
          (long long)a->layers, (long long)a->hidden, (long long)a->intermediate, a->heads, a->kv_heads, a->head_dim, (long long)a->vocab);
  if (c->model.tensor_count == 0)
    fprintf(out, "            no weights there: planned from config.json alone, at 16 bits a weight; run will need them\n");
  fprintf(out, "tokens      ");
  print_tokens(c, SET_CALIBRATION, "calibration", out);
  if (c->sets[SET_HELDOUT]) fprintf(out, ", ");
  print_tokens(c, SET_HELDOUT, "held-out", out);
  tokens_a_column(&c->model.arch, c->sets[SET_CALIBRATION], c->wanted, per_column);
  if (few_tokens(per_column, few)) fprintf(out, "\nwarning     %s", few);
  fprintf(out, "\nsettings    %d:", c->job.setting_count);
  for (int k = 0; k < c->job.setting_count; k++) fprintf(out, " %s", c->job.settings[k].name);
  fprintf(out, "\nranks       %d node%s of %d, %d team%s of %d\n", g->nodes, g->nodes > 1 ? "s" : "", g->ranks, g->teams,
          g->teams > 1 ? "s" : "", g->team);
  fprintf(out, "\n%-12s %12s %12s %14s %18s %14s\n", "stage", "units", "to do", "TFLOP to do", "GiB a rank, peak", "about");
  print_stage("calibrate", &p->calibrate, true, out);
  print_stage("solve", &p->solve, true, out);
  if (p->follow.units) print_stage("by prefix", &p->follow, false, out);
  fprintf(out, "\n");
  print_sharing(&p->sharing, out);
  fprintf(out, "memory      %.3f GiB a rank, %.3f GiB a node of %d", gib(p->rank_peak), gib(p->node_peak), g->ranks);
  if (p->node_memory)
    fprintf(out, "; a node has %.1f GiB\n", gib(p->node_memory));
  else
    fprintf(out, "; what a node has is not known: --set parallel.memory_per_node=GiB\n");
  fprintf(out, "disk        %.3f GiB to write: Grams %.3f, solutions %.3f; %.1f GiB free here\n", gib(p->disk_grams + p->disk_solutions),
          gib(p->disk_grams), gib(p->disk_solutions), gib(p->disk_free));
  print_time(c, p, out);
}

/* ---- JSON ---- */

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

static json_t *geometry_json(const geometry *g) {
  return json_pack("{s:i, s:i, s:i, s:i}", "nodes", g->nodes, "ranks_per_node", g->ranks, "teams", g->teams, "ranks_per_team", g->team);
}

static json_t *steps_json(const forecast *f, int begin, int end) {
  json_t *o = json_object();
  for (int s = begin; s < end; s++) {
    const forecast_part *x = &f->steps[s];
    if (x->seconds > 0)
      json_object_set_new(
          o, step_names[s],
          json_pack("{s:f, s:f, s:f, s:f}", "seconds", x->seconds, "busy_seconds", x->busy, "flops", x->flops, "bytes", x->bytes));
  }
  return o;
}

static json_t *forecast_json(const geometry *g, const forecast *f) {
  int slowest = slowest_step(f);
  return json_pack("{s:o, s:f, s:f, s:f, s:i, s:{s:s, s:s}, s:{s:o, s:o}}", "geometry", geometry_json(g), "calibrate_seconds", f->calibrate,
                   "solve_seconds", f->solve, "node_hours", plan_node_hours(g, f), "steps_a_layer", f->steps_a_layer, "bottleneck", "stage",
                   slowest < STEP_SOLVE ? "calibrate" : "solve", "step", step_names[slowest], "steps", "calibrate",
                   steps_json(f, 0, STEP_SOLVE), "solve", steps_json(f, STEP_SOLVE, STEP_COUNT));
}

static json_t *options_json(const plan *p) {
  json_t *list = json_array();
  for (int k = 0; k < p->option_count; k++) {
    const plan_option *o = &p->options[k];
    json_t *one = forecast_json(&o->g, &o->f);
    json_object_set_new(one, "bytes_a_node", json_integer((json_int_t)o->node));
    json_object_set_new(one, "recommended", json_boolean(k == p->recommended));
    json_object_set_new(one, "sbatch",
                        json_pack("{s:i, s:i, s:I, s:I}", "nodes", o->g.nodes, "ntasks_per_node", o->g.ranks, "mem_megabytes",
                                  (json_int_t)sbatch_megabytes(o), "minutes", (json_int_t)sbatch_minutes(o)));
    json_array_append_new(list, one);
  }
  return list;
}

json_t *plan_json(const session *c, const plan *p) {
  return json_pack(
      "{s:s, s:b, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:i, s:s, "
      "s:o, s:o, s:o, s:o}",
      "model", c->job.model, "weights", c->model.tensor_count > 0, "layers", (json_int_t)p->layers, "gram_units",
      (json_int_t)p->calibrate.units, "gram_units_to_do", (json_int_t)p->calibrate.missing, "solution_units",
      (json_int_t)(p->solve.units + p->follow.units), "solution_units_to_do", (json_int_t)(p->solve.missing + p->follow.missing),
      "calibrate_flops", p->calibrate.flops, "solve_flops", p->solve.flops, "calibrate_seconds", p->calibrate.seconds, "solve_seconds",
      p->solve.seconds, "rank_bytes", (json_int_t)p->rank_peak, "rank_bytes_calibrate", (json_int_t)p->calibrate.rank, "rank_bytes_solve",
      (json_int_t)p->solve.rank, "rank_bytes_by_prefix", (json_int_t)p->follow.rank, "node_bytes", (json_int_t)p->node_peak, "node_memory",
      (json_int_t)p->node_memory, "disk_bytes", (json_int_t)(p->disk_grams + p->disk_solutions), "disk_bytes_grams",
      (json_int_t)p->disk_grams, "disk_bytes_solutions", (json_int_t)p->disk_solutions, "disk_free", (json_int_t)p->disk_free,
      "gemm_flops_per_second", p->gemm_rate, "ranks", c->size, "rates", p->measured ? "measured" : "guessed", "sharing",
      sharing_json(&p->sharing), "tokens_a_column", tokens_json(c), "forecast", forecast_json(&p->geometry, &p->forecast), "options",
      options_json(p));
}
