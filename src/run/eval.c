/* cloqwork eval: perplexity, KL divergence and top-1 agreement to the original model, of base and adapters. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "dist/agree.h"
#include "run/eval_pass.h"
#include "run/verbs.h"
#include "session/eval_results.h"
#include "session/memory_watch.h"
#include "session/unit.h"
#include "solution/solution.h"

/* ---- what is to be evaluated ---- */

typedef struct eval_task {
  int setting; /* of the job */
  int rank;    /* of the adapter; 0: none */
  int pending; /* no result yet */
} eval_task;

typedef struct evaluation {
  session *c;
  windows w;
  int *ranks, rank_count; /* of --rank: ascending, distinct; owned; none: those of each setting */
  eval_task *tasks;       /* of complete settings, in the job's order, each from rank 0 up; owned */
  int task_count, original_pending;
  eval_result original, *results; /* results [settings]: on rank 0 of the job alone; owned */
} evaluation;

static int compare_int(const void *a, const void *b) { return (*(const int *)a > *(const int *)b) - (*(const int *)a < *(const int *)b); }

static status read_ranks(evaluation *e) {
  status st = OK;
  const arguments *a = &e->c->arguments;
  size_t room = 0;
  for (int i = 0; i < a->rank_choice_count; i++) room += strlen(a->rank_choices[i]) + 1;
  TRY(NEW(e->ranks, room, "ranks"));
  for (int i = 0; i < a->rank_choice_count; i++)
    for (const char *p = a->rank_choices[i];; p++) {
      char *end;
      long rank = strtol(p, &end, 10);
      if (end == p || rank < 1 || rank > 1 << 24 || (*end && *end != ',')) {
        st = fail(E_USAGE, "--rank: expected ranks such as 8,16, found %s", a->rank_choices[i]);
        goto done;
      }
      e->ranks[e->rank_count++] = (int)rank;
      if (!*(p = end)) break;
    }
  qsort(e->ranks, (size_t)e->rank_count, sizeof *e->ranks, compare_int);
  int distinct = 0;
  for (int i = 0; i < e->rank_count; i++)
    if (i == 0 || e->ranks[i] != e->ranks[i - 1]) e->ranks[distinct++] = e->ranks[i];
  e->rank_count = distinct;
done:
  return st;
}

static status read_tokens(evaluation *e) {
  status st = OK;
  const job *j = &e->c->job;
  if (!j->has_eval)
    return fail(E_USAGE,
                "%s: eval: expected tokens to evaluate on, found neither an eval nor a heldout section: add --set eval.tokens=FILE.npy",
                j->path);
  if (j->eval.length < 2)
    return fail(E_USAGE, "%s: eval.length: expected at least 2 tokens, found %lld", j->path, (long long)j->eval.length);
  if (e->c->layer_end - e->c->layer_begin < e->c->model.arch.layers)
    return fail(E_USAGE, "--layers: eval runs the whole model, expected all layers, found %lld to %lld", (long long)e->c->layer_begin,
                (long long)e->c->layer_end - 1);
  TRY(windows_draw(&j->eval, e->c->model.arch.vocab, &e->w));
  TRY(read_ranks(e));
done:
  return st;
}

/* ---- what is there already; rank 0 of the job looks ---- */

static void eval_path(const session *c, const char *name, char path[PATH_MOST]) {
  snprintf(path, PATH_MOST, "%s/eval/%s.json", c->job.output, name);
}

enum { UNKNOWN_RANK = 1 << 24 };

/* One layer's file: of this model, with every target; its numbers into h; the largest rank that it stores. */
static status look_at_layer(const session *c, const char *path, hash *h, int *stored) {
  status st = OK;
  container *file = NULL;
  attributes root = {0};
  TRY(container_open(path, "solution", &file));
  TRY(container_attributes(file, "", &root));
  if (strcmp(attr_get_text(&root, "model_fingerprint"), c->model.fingerprint) != 0) {
    st = fail(E_DATA, "%s: expected a solution of %s, found one of another checkpoint (model_fingerprint)", path, c->job.model);
    goto done;
  }
  TRY(unit_hash_solution(file, h));
  for (int l = 0; l < LIN_COUNT; l++) {
    solution s;
    char where[PATH_MOST + 64];
    if (!c->job.target[l]) continue;
    snprintf(where, sizeof where, "%s: %s", path, linear_path((linear_id)l));
    TRY(solution_describe(file, where, &c->model.arch, (linear_id)l, 0, NULL, &s));
    if (s.own_rank ? s.rank > *stored || *stored == UNKNOWN_RANK : s.rank < *stored) *stored = s.rank;
  }
done:
  attr_free(&root);
  container_close(&file);
  return st;
}

/* missing: layers without a file. */
static status look_at_setting(const session *c, const setting *s, char fingerprint[HASH_HEX], int *stored, int64_t *missing) {
  status st = OK;
  hash *h = NULL;
  char path[PATH_MOST];
  *stored = UNKNOWN_RANK;
  *missing = 0;
  for (int64_t layer = 0; layer < c->model.arch.layers; layer++) {
    unit_solution_path(c, s, layer, path);
    *missing += !file_exists(path);
  }
  if (*missing) return OK;
  TRY(hash_new(&h));
  for (int64_t layer = 0; layer < c->model.arch.layers; layer++) {
    unit_solution_path(c, s, layer, path);
    TRY(look_at_layer(c, path, h, stored));
  }
  TRY(hash_end(&h, fingerprint));
done:
  hash_free(&h);
  return st;
}

static eval_identity identity_of(const evaluation *e, const char *fingerprint) {
  eval_identity id = {.windows = e->w.count, .length = e->w.length};
  snprintf(id.program_version, sizeof id.program_version, "%s", CLOQWORK_VERSION);
  snprintf(id.model, HASH_HEX, "%s", e->c->model.fingerprint);
  snprintf(id.tokens, HASH_HEX, "%s", e->w.fingerprint);
  snprintf(id.solution, HASH_HEX, "%s", fingerprint);
  return id;
}

/* The file's points, if it was made from the same; else none, which is said. */
static status recall(const evaluation *e, const char *name, const char *fingerprint, eval_result *r) {
  status st = OK;
  char path[PATH_MOST];
  eval_identity now = identity_of(e, fingerprint);
  eval_path(e->c, name, path);
  TRY(eval_result_read(path, r));
  const char *differs = r->count ? eval_identity_differs(&r->identity, &now) : NULL;
  if (differs) {
    log_info("eval: %s was made from something else (%s): evaluated again", path, differs);
    eval_result_free(r);
  }
  r->identity = now;
done:
  return st;
}

static status add_tasks(evaluation *e, int which, int stored) {
  status st = OK;
  const setting *s = &e->c->job.settings[which];
  const int *ranks = e->rank_count ? e->ranks : s->ranks;
  int count = e->rank_count ? e->rank_count : s->rank_count;
  eval_task *all = NULL;
  if (ranks[count - 1] > stored)
    return fail(E_USAGE, "--rank: %s: expected at most %d, the largest rank that is stored, found %d", s->name, stored, ranks[count - 1]);
  for (int i = 0; i < count && setting_joint(s); i++) {
    int k = 0;
    while (k < s->rank_count && s->ranks[k] != ranks[i]) k++;
    if (k == s->rank_count)
      return fail(E_USAGE, "--rank: %s: expected a rank that it was solved for (its codes belong to one rank), found %d", s->name,
                  ranks[i]);
  }
  TRY(NEW(all, e->task_count + count + 1, "points to evaluate"));
  if (e->task_count) memcpy(all, e->tasks, (size_t)e->task_count * sizeof *all);
  FREE(e->tasks);
  e->tasks = all;
  for (int i = -1; i < count; i++) {
    int rank = i < 0 ? 0 : ranks[i];
    e->tasks[e->task_count++] = (eval_task){which, rank, !eval_result_find(&e->results[which], rank)};
  }
done:
  return st;
}

static status look(evaluation *e) {
  status st = OK;
  session *c = e->c;
  char path[PATH_MOST];
  TRY(NEW(e->results, c->job.setting_count, "results of evaluation"));
  for (int k = 0; k < c->job.setting_count; k++) {
    const setting *s = &c->job.settings[k];
    char fingerprint[HASH_HEX];
    int stored;
    int64_t missing;
    TRY(look_at_setting(c, s, fingerprint, &stored, &missing));
    if (missing) {
      log_info("eval: %s: %lld of %lld layers are not solved: left out", s->name, (long long)missing, (long long)c->model.arch.layers);
      continue;
    }
    TRY(recall(e, s->name, fingerprint, &e->results[k]));
    TRY(add_tasks(e, k, stored));
  }
  if (!e->task_count) {
    st = fail(E_DATA, "%s/solutions: expected a setting with all %lld layers solved, found none of %d: `cloqwork run` makes them",
              c->job.output, (long long)c->model.arch.layers, c->job.setting_count);
    goto done;
  }
  TRY(recall(e, "original", "", &e->original));
  e->original_pending = e->original.count == 0;
  snprintf(path, sizeof path, "%s/eval", c->job.output);
  TRY(file_make_folders(path));
  TRY(file_remove_matching(path, ".tmp"));
done:
  return st;
}

static status share_tasks(evaluation *e) {
  status st = OK;
  MPI_Comm comm = e->c->job_comm;
  TRY(share_bytes(comm, &e->task_count, sizeof e->task_count));
  TRY(share_bytes(comm, &e->original_pending, sizeof e->original_pending));
  st = e->c->rank ? NEW(e->tasks, e->task_count, "points to evaluate") : OK;
  TRY(agree(comm, st));
  TRY(share_bytes(comm, e->tasks, (size_t)e->task_count * sizeof *e->tasks));
done:
  return st;
}

/* ---- variants: merged weights Q + B A from the solution files ---- */

typedef struct variant_source {
  const session *c;
  const eval_task *tasks;   /* of this batch */
  solution held[LIN_COUNT]; /* my rows of the targets of one setting's layer */
  int64_t layer;
  int setting; /* -1: nothing is held */
  int rank;    /* that was asked for, where it decides the codes */
} variant_source;

static void release(variant_source *v) {
  for (int l = 0; l < LIN_COUNT; l++) solution_free(&v->held[l]);
  v->setting = -1;
}

static status hold(variant_source *v, int64_t layer, int setting_index, int rank) {
  status st = OK;
  const session *c = v->c;
  container *file = NULL;
  char path[PATH_MOST], where[PATH_MOST + 64];
  if (setting_nests(&c->job.settings[setting_index])) rank = 0;
  if (v->setting == setting_index && v->layer == layer && v->rank == rank) return OK;
  release(v);
  unit_solution_path(c, &c->job.settings[setting_index], layer, path);
  TRY(container_open(path, "solution", &file));
  for (int l = 0; l < LIN_COUNT; l++) {
    int64_t out, in, begin, end;
    if (!c->job.target[l]) continue;
    linear_shape(&c->model.arch, (linear_id)l, &out, &in);
    deal_range(out, c->team.size, c->team.rank, SOLUTION_SLAB, &begin, &end);
    if (begin == end) continue;
    snprintf(where, sizeof where, "%s: %s", path, linear_path((linear_id)l));
    TRY(solution_load(file, where, &c->model.arch, (linear_id)l, begin, end, rank, SOLUTION_BASE | SOLUTION_ADAPTER, &v->held[l]));
  }
  v->layer = layer;
  v->setting = setting_index;
  v->rank = rank;
done:
  container_close(&file);
  return st;
}

/* From Q each time, so that a point's numbers do not depend on which others are asked for. */
static status fill_variant(void *context, int64_t layer, int variant, float *const target[LIN_COUNT]) {
  status st = OK;
  variant_source *v = context;
  const eval_task *t = &v->tasks[variant];
  TRY(hold(v, layer, t->setting, t->rank));
  for (int l = 0; l < LIN_COUNT; l++) {
    const solution *s = &v->held[l];
    if (!s->memory || !target[l]) continue;
    if (t->rank > s->rank && !s->own_rank)
      return fail(E_DATA, "%s, layer %lld: %s: expected an adapter of rank %d, found %d", v->c->job.settings[t->setting].name,
                  (long long)layer, linear_path((linear_id)l), t->rank, s->rank);
    solution_merge_into(s, t->rank, s->begin, s->end, target[l]);
  }
done:
  return st;
}

/* ---- batches ---- */

typedef struct batch {
  evaluation *e;
  eval_pass *p;
  variant_source source;
  const char **names;      /* [1 + count] for messages */
  prediction_score *score; /* [1 + count][windows][parts]: sums of everybody's segments; on rank 0 then [1 + count][windows] of means */
  int parts;               /* of a window */
  int count, done, all;    /* variants of this batch; in batches before it; of all */
  double rate;             /* of gemm */
  layer_progress progress;
} batch;

static void name_variants(const batch *b, const eval_task *tasks, char (*texts)[200]) {
  for (int i = 0; i < b->count; i++) {
    const char *setting_name = b->e->c->job.settings[tasks[i].setting].name;
    snprintf(texts[i], sizeof *texts, tasks[i].rank ? "%s with rank %d" : "%s", setting_name, tasks[i].rank);
    b->names[1 + i] = texts[i];
  }
  b->names[0] = "original";
}

static status run_layers(batch *b) {
  status st = OK;
  session *c = b->e->c;
  int64_t layers = c->model.arch.layers;
  TRY(agree(c->job_comm, eval_pass_begin(b->p, b->count)));
  for (int64_t layer = 0; layer <= layers; layer++) {
    if (session_should_stop(c, c->job_comm)) {
      st = fail(E_STOPPED, "eval: stopped on request before layer %lld of %lld, %d of %d points done; run again to go on",
                (long long)layer + 1, (long long)layers, b->done, b->all);
      goto done;
    }
    b->progress.layer = layer < layers ? layer : layers - 1;
    if (layer < layers)
      st = eval_pass_layer(b->p, layer, fill_variant, &b->source, layer_progress_show, &b->progress);
    else
      st = eval_pass_head(b->p, layer_progress_show, &b->progress);
    memory_watch();
    TRY(agree(c->job_comm, st));
    b->progress.done++;
  }
done:
  return st;
}

/* Rank 0: points from everybody's scores, and the files. */
static status keep_results(batch *b, const eval_task *tasks) {
  status st = OK;
  evaluation *e = b->e;
  char path[PATH_MOST];
  for (int64_t i = 0; i < (1 + b->count) * e->w.count; i++)
    b->score[i] = prediction_score_mean(b->parts, b->score + i * b->parts, e->w.length - 1);
  if (e->original_pending) {
    eval_point p = eval_point_of(RANK_ORIGINAL, e->w.count, e->w.length, b->score, b->score);
    TRY(eval_result_put(&e->original, &p));
    eval_path(e->c, "original", path);
    TRY(eval_result_write(path, "original", &e->original));
  }
  for (int i = 0; i < b->count; i++) {
    int which = tasks[i].setting;
    eval_point p = eval_point_of(tasks[i].rank, e->w.count, e->w.length, b->score + (1 + i) * e->w.count, b->score);
    TRY(eval_result_put(&e->results[which], &p));
    if (i + 1 < b->count && tasks[i + 1].setting == which) continue;
    eval_path(e->c, e->c->job.settings[which].name, path);
    TRY(eval_result_write(path, e->c->job.settings[which].name, &e->results[which]));
  }
done:
  return st;
}

static status report_batch(const batch *b, double seconds, double flops, const double spent[3]) {
  const evaluation *e = b->e;
  char unit[32];
  snprintf(unit, sizeof unit, "eval/%d", b->done);
  json_t *variants = json_array();
  for (int i = 0; i <= b->count; i++) json_array_append_new(variants, json_string(b->names[i]));
  json_t *o =
      json_pack("{s:s, s:o, s:I, s:I, s:{s:f, s:f, s:f, s:f}, s:f, s:f, s:I, s:I}", "unit", unit, "variants", variants, "windows",
                (json_int_t)e->w.count, "length", (json_int_t)e->w.length, "seconds", "weights", spent[0], "forward", spent[1], "head",
                spent[2], "all", seconds, "gflops", 1e-9 * flops / seconds, "fraction_of_gemm", b->rate > 0 ? flops / seconds / b->rate : 0,
                "private_bytes_peak", (json_int_t)memory_watch_private(), "shared_bytes_peak", (json_int_t)memory_watch_shared());
  log_info("eval: %d variant%s in %.1f s, %.0f GFLOP/s, %.2f of a short product's", b->count, b->count == 1 ? "" : "s", seconds,
           1e-9 * flops / seconds, flops / seconds / b->rate);
  return o ? unit_metrics(e->c, o) : fail(E_MEMORY, "metrics.jsonl: no memory for a line");
}

/* One batch: variants side by side through the whole model. */
static status run_batch(batch *b, const eval_task *tasks) {
  status st = OK;
  session *c = b->e->c;
  char(*texts)[200] = NULL;
  double start = clock_now(), flops = b->p->flops, before[3] = {b->p->weights_seconds, b->p->forward_seconds, b->p->head_seconds};
  st = NEW(texts, b->count, "names");
  if (st == OK) st = NEW(b->names, 1 + b->count, "names");
  if (st == OK) st = NEW(b->score, (1 + b->count) * b->e->w.count * b->parts, "scores of windows");
  TRY(agree(c->job_comm, st));
  name_variants(b, tasks, texts);
  b->source.tasks = tasks;
  TRY(run_layers(b));
  st = eval_pass_scores(b->p, b->names, b->score);
  TRY(agree(c->job_comm, st));
  flops = b->p->flops - flops;
  /* every score is made by one rank and 0 on the others: their sum is exact */
  for (int v = 0; v <= b->count; v++) {
    prediction_score *row = b->score + v * b->e->w.count * b->parts;
    MPI_Reduce(c->rank ? (void *)row : MPI_IN_PLACE, row, (int)(3 * b->e->w.count * b->parts), MPI_DOUBLE, MPI_SUM, 0, c->job_comm);
  }
  MPI_Allreduce(MPI_IN_PLACE, &flops, 1, MPI_DOUBLE, MPI_SUM, c->job_comm);
  const double spent[3] = {b->p->weights_seconds - before[0], b->p->forward_seconds - before[1], b->p->head_seconds - before[2]};
  if (c->rank == 0) st = keep_results(b, tasks);
  if (c->rank == 0 && st == OK) st = report_batch(b, clock_now() - start, flops, spent);
  TRY(agree(c->job_comm, st));
  b->e->original_pending = 0;
done:
  FREE(texts);
  FREE(b->names);
  FREE(b->score);
  return st;
}

/* As many variants at a time as the node's memory holds; several teams may share a node. */
static status choose_room(const evaluation *e, int pending, int *room) {
  const session *c = e->c;
  const double given = c->job.parallel.memory_per_node;
  eval_bytes need = eval_pass_memory(&c->team, &c->model.arch, &e->w);
  MPI_Comm node;
  int here;
  status st = mpi_check(MPI_Comm_split_type(c->job_comm, MPI_COMM_TYPE_SHARED, c->rank, MPI_INFO_NULL, &node), "eval: ranks of a node");
  TRY(agree(c->job_comm, st));
  MPI_Comm_size(node, &here);
  MPI_Comm_free(&node);
  uint64_t ranks = (uint64_t)here, teams = (ranks + (uint64_t)c->team.size - 1) / (uint64_t)c->team.size,
           memory = given > 0 ? (uint64_t)(given * (1 << 30)) : mem_machine_total() / 10 * 8,
           fixed = teams * need.shared + ranks * (mem_resident_now().private_bytes + need.fixed),
           most = memory > fixed ? (memory - fixed) / (ranks * need.variant) : 0;
  if (most < 1)
    st = fail(E_MEMORY, "eval: memory of a node: expected at least %.3f GiB for %d ranks and one variant, found %.3f GiB",
              (double)(fixed + ranks * need.variant) / (1 << 30), here, (double)memory / (1 << 30));
  *room = most < (uint64_t)pending ? (int)most : pending;
  MPI_Allreduce(MPI_IN_PLACE, room, 1, MPI_INT, MPI_MIN, c->job_comm);
  st = agree(c->job_comm, st);
done:
  return st;
}

static status run_batches(evaluation *e) {
  status st = OK;
  session *c = e->c;
  eval_pass p = {0};
  eval_task *pending = NULL;
  batch b = {.e = e, .p = &p, .source = {.c = c, .setting = -1}, .parts = segments_parts(e->w.length)};
  int room = 0;
  st = NEW(pending, e->task_count, "points to evaluate");
  TRY(agree(c->job_comm, st));
  for (int i = 0; i < e->task_count; i++)
    if (e->tasks[i].pending) pending[b.all++] = e->tasks[i];
  TRY(choose_room(e, b.all, &room));
  int batches = b.all ? (b.all + room - 1) / room : 1;
  log_info("eval: %d of %d points to do on %lld windows of %lld tokens, %d at a time", b.all, e->task_count, (long long)e->w.count,
           (long long)e->w.length, room);
  TRY(gemm_rate(c, &b.rate));
  TRY(agree(c->job_comm, eval_pass_new(&c->team, &c->model, &e->w, c->job.target, room, &p)));
  b.progress = (layer_progress){.stage = "eval", .layers = c->model.arch.layers, .todo = batches * (c->model.arch.layers + 1)};
  for (int k = 0; k < batches; k++) {
    b.count = b.all - b.done < room ? b.all - b.done : room;
    TRY(run_batch(&b, pending + b.done));
    b.done += b.count;
  }
done:
  release(&b.source);
  eval_pass_free(&p);
  FREE(pending);
  return st;
}

/* ---- output ---- */

/* Five decimals, or two significant digits where they would show none. */
static void with_error(double x, double se, double factor, int decimals, char text[48]) {
  bool small = fabs(factor * x) < 10 * pow(10, -decimals);
  if (!isfinite(se)) { /* of one window */
    snprintf(text, 48, "%.*f ± -", decimals, factor * x);
    return;
  }
  snprintf(text, 48, small ? "%.*e ± %.*e" : "%.*f ± %.*f", small ? 1 : decimals, factor * x, small ? 1 : decimals, factor * se);
}

static void print_row(const char *label, const eval_point *p) {
  char gap[48], kl[48], top[48];
  with_error(p->nll_minus_original, p->nll_minus_original_se, 1, 5, gap);
  with_error(p->kl, p->kl_se, 1, 5, kl);
  with_error(p->top1, p->top1_se, 100, 2, top);
  printf("  %-8s %12.4f %23s %23s %19s\n", label, p->perplexity, gap, kl, top); /* ± takes two bytes and one column */
}

static status print_table(const evaluation *e) {
  const session *c = e->c;
  printf("%s   model %s, %lld windows of %lld tokens of %s, %lld predicted\n", c->job.output, c->job.model, (long long)e->w.count,
         (long long)e->w.length, c->job.eval.path, (long long)(e->w.count * (e->w.length - 1)));
  printf("\n  %-8s %12s %22s %22s %18s\n", "", "perplexity", "NLL - original", "KL to original", "top-1 agrees %");
  printf("  %-8s %12.4f\n", "original", e->original.points[0].perplexity);
  for (int i = 0; i < e->task_count; i++) {
    const eval_task *t = &e->tasks[i];
    char label[32] = "base";
    if (t->rank) snprintf(label, sizeof label, "r=%d", t->rank);
    if (!t->rank) printf("%s\n", c->job.settings[t->setting].name);
    print_row(label, eval_result_find(&e->results[t->setting], t->rank));
  }
  printf("\nMeans per token and, after ±, their standard errors over windows; KL(original || this) in nats, its next token's distribution\n"
         "against the original model's at the same place.\n");
  return fflush(stdout) == 0 ? OK : fail(E_IO, "eval: the table cannot be written: %m");
}

static status print_json(const evaluation *e) {
  const session *c = e->c;
  json_t *settings = json_array();
  for (int i = 0; i < e->task_count;) {
    int which = e->tasks[i].setting;
    json_t *points = json_array();
    for (; i < e->task_count && e->tasks[i].setting == which; i++)
      json_array_append_new(points, eval_point_json(eval_result_find(&e->results[which], e->tasks[i].rank)));
    json_array_append_new(settings, json_pack("{s:s, s:s, s:o}", "name", c->job.settings[which].name, "solution_fingerprint",
                                              e->results[which].identity.solution, "points", points));
  }
  json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:o, s:o}", "run", c->job.output, "model", c->job.model,
                        "model_fingerprint", c->model.fingerprint, "tokens", c->job.eval.path, "tokens_fingerprint", e->w.fingerprint,
                        "program_version", CLOQWORK_VERSION, "windows", (json_int_t)e->w.count, "length", (json_int_t)e->w.length,
                        "original", eval_point_json(&e->original.points[0]), "settings", settings);
  int rc = o ? json_dumpf(o, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(17)) : -1;
  json_decref(o);
  return rc == 0 && printf("\n") > 0 && fflush(stdout) == 0 ? OK : fail(E_IO, "eval: the results cannot be written: %m");
}

static void evaluation_free(evaluation *e) {
  for (int k = 0; e->results && k < e->c->job.setting_count; k++) eval_result_free(&e->results[k]);
  FREE(e->results);
  eval_result_free(&e->original);
  FREE(e->tasks);
  FREE(e->ranks);
  windows_free(&e->w);
}

status verb_eval(session *c) {
  status st = OK;
  evaluation e = {.c = c};
  st = read_tokens(&e);
  TRY(agree(c->job_comm, st));
  st = c->rank == 0 ? look(&e) : OK;
  TRY(agree(c->job_comm, st));
  TRY(share_tasks(&e));
  int pending = e.original_pending;
  for (int i = 0; i < e.task_count; i++) pending += e.tasks[i].pending;
  if (pending)
    TRY(run_batches(&e));
  else
    log_info("eval: all %d points are there", e.task_count);
  log_progress_end();
  if (c->rank == 0) st = c->arguments.json ? print_json(&e) : print_table(&e);
  TRY(agree(c->job_comm, st));
done:
  evaluation_free(&e);
  return st;
}
