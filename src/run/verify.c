/* cloqwork verify: every checksum again, and every certificate again from the stored numbers. Layers are dealt to ranks; nothing is written. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "adapter/adapter.h"
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "dist/agree.h"
#include "layer/sizes.h"
#include "layer/solver.h"
#include "run/verbs.h"
#include "session/eval_results.h"
#include "session/unit.h"

typedef struct verifier {
  session *c;
  char *found; /* lines of what is wrong; owned */
  int wrong;
  int64_t files, curves;
  uint64_t bytes;
  double worst_loss; /* largest |recomputed - stored| / trace */
  double worst_tail; /* largest |stored loss - tail| / tail where the certificate is exact */
} verifier;

/* Takes the failure's message as a finding and goes on. Only memory running out ends the work. */
static status note(verifier *v, status st) {
  if (st == OK || st == E_MEMORY) return st;
  char *longer = mem_format("%s%s\n", v->found ? v->found : "", status_message());
  status_clear();
  if (!longer) return fail(E_MEMORY, "verify: no memory for its findings");
  FREE(v->found);
  v->found = longer;
  v->wrong++;
  return OK;
}

static status check_file(verifier *v, const char *path, const char *kind, const attributes *identity) {
  status st = OK;
  container *file = NULL;
  uint64_t bytes = 0;
  bool same;
  if (!file_exists(path)) return fail(E_DATA, "%s: expected a finished unit, found nothing", path);
  TRY(unit_is_done(path, kind, identity, &same));
  TRY(container_open(path, kind, &file));
  TRY(container_verify(file, &bytes));
  v->files++;
done:
  v->bytes += bytes;
  container_close(&file);
  return st;
}

static status compare(verifier *v, const char *where, const solution *r, const double *stored, const double *computed, const char *which) {
  for (int k = 0; k <= r->rank; k++) {
    double off = fabs(stored[k] - computed[k]) / fmax(computed[0], 1e-300);
    if (off > v->worst_loss) v->worst_loss = off;
    if (!(off <= 1e-9))
      return fail(E_DATA, "%s: %s at rank %d: expected %.12g from the stored numbers, found %.12g", where, which, k, computed[k],
                  stored[k]);
  }
  return OK;
}

/* A loss curve against the tail of the stored spectrum. slack: of the trace. */
static status check_tail(verifier *v, const char *where, const solution *r, const double *loss, double slack) {
  double tail = 0, trace = loss[0];
  for (int k = r->rank; k >= 0; k--) {
    tail += r->values[k];
    double off = fabs(loss[k] - fmax(tail, 0)); /* the rounding of a singular Gram can leave a tail below 0; a loss is not */
    if (tail > 1e-9 * trace && off / tail > v->worst_tail) v->worst_tail = off / tail;
    if (!(off <= 1e-5 * fmax(tail, 0) + slack * trace))
      return fail(E_DATA, "%s: certificate at rank %d: expected a loss of %.12g (tail of the spectrum), found %.12g", where, k, tail,
                  loss[k]);
  }
  return OK;
}

/* The losses of rounds of a method that goes to and fro. The kept one is that of the stored numbers; where codes are refined its own adapter was an
 * approximation, of which the stored one is the optimum, and rounds that were not made are NaN. */
static status check_rounds(const char *where, const setting *s, const solution *r, int expected) {
  int kept = r->facts->round;
  double loss = r->loss[r->variant];
  if (r->round_count != expected) return fail(E_DATA, "%s: rounds: expected %d losses, found %d", where, expected, r->round_count);
  if (expected == 0) return OK;
  if (kept < 1 || kept > r->round_count) return fail(E_DATA, "%s: round: expected 1 to %d, found %d", where, r->round_count, kept);
  for (int k = 0; k < r->round_count; k++)
    if (!isfinite(r->rounds[k]) && !(isnan(r->rounds[k]) && setting_refines(s)))
      return fail(E_DATA, "%s: rounds: expected a loss of round %d, found %g", where, k + 1, r->rounds[k]);
  double at = r->rounds[kept - 1],
         off = setting_refines(s) ? loss - at * (1 + 1e-5) - 1e-6 * r->loss[0] : fabs(at - loss) - 1e-5 * r->loss[0];
  if (!(off <= 0))
    return fail(E_DATA, "%s: rounds: expected the kept one's loss, %s%.12g, found %.12g", where, setting_refines(s) ? "at least " : "",
                loss, at);
  return OK;
}

typedef struct layer_view {
  int64_t layer;
  input_id input;
  float *h, *h_heldout, *w, *e;
  float *diagonal; /* [m] of h */
} layer_view;

/* The certificate of an adapter that is the best in another metric than the Gram: its loss there. The residual in l->e is spent. */
static status check_own_metric(verifier *v, const layer_view *l, const char *where, const setting *s, solution *r) {
  status st = OK;
  metric in_which = setting_metric(s);
  double *magnitudes = NULL, *curve = NULL, trace;
  float *squares = NULL;
  TRY(NEW(curve, r->rank + 1, "a loss curve"));
  if (in_which == METRIC_MEAN_ABS) {
    TRY(NEW(magnitudes, r->in, "magnitudes of an input"));
    TRY(NEW(squares, r->in, "magnitudes of an input"));
    TRY(unit_read_input_stats(v->c, SET_CALIBRATION, l->layer, l->input, s->options.lqer_mean ? magnitudes : NULL,
                              s->options.lqer_mean ? NULL : magnitudes));
    for (int64_t k = 0; k < r->in; k++) squares[k] = (float)(magnitudes[k] * magnitudes[k]);
  }
  const float *scale = in_which == METRIC_MEAN_ABS ? squares : in_which == METRIC_DIAGONAL ? l->diagonal : NULL;
  if (scale) adapter_scale(r->out, r->in, l->e, scale, l->e);
  if (scale) adapter_scale(r->rank, r->in, r->lora_a, scale, r->lora_a);
  TRY(adapter_trace(r->in, l->e, NULL, 0, r->out, NULL, &trace));
  TRY(adapter_losses(r->out, r->in, l->e, NULL, r->lora_b, r->lora_a, r->rank, trace, curve));
  TRY(check_tail(v, where, r, curve, 1e-6));
done:
  FREE(curve);
  FREE(magnitudes);
  FREE(squares);
  return st;
}

static status check_certificate(verifier *v, const layer_view *l, const char *where, const setting *s, solution *r) {
  switch (setting_metric(s)) {
  case METRIC_GRAM: return s->options.adapter_damping > 0 ? OK : check_tail(v, where, r, r->loss, 1e-9);
  case METRIC_POOLED: return check_tail(v, where, r, r->loss, 1e-6);
  case METRIC_NONE: return OK;
  default: return check_own_metric(v, l, where, s, r);
  }
}

static status check_result(verifier *v, const layer_view *l, const piece *p, linear_id linear) {
  session *c = v->c;
  const setting *s = p->setting;
  status st = OK;
  container *file = NULL;
  char path[PATH_MOST], where[PATH_MOST + 64], hex[HASH_HEX];
  double *curve = NULL, trace;
  solution r = {0};
  unit_solution_path(c, s, l->layer, path);
  if (!file_exists(path)) return OK; /* already found */
  snprintf(where, sizeof where, "%s: %s", path, linear_path(linear));
  TRY(NEW(curve, s->rank_max + 1, "a loss curve"));
  if (p->rank) snprintf(where + strlen(where), sizeof where - strlen(where), "/rank-%d", piece_variant(p, l->layer, linear));
  TRY(container_open(path, "solution", &file));
  TRY(solution_load_variant(file, where, &c->model.arch, linear, piece_variant(p, l->layer, linear), SOLUTION_ALL, &r));
  TRY(solution_check_nested(&r, where));
  solution_residual(&r, l->w, 0, r.out, l->e);
  TRY(adapter_trace(r.in, l->e, l->h, 0, r.out, NULL, &trace));
  TRY(adapter_losses(r.out, r.in, l->e, l->h, r.lora_b, r.lora_a, r.rank, trace, curve));
  TRY(compare(v, where, &r, r.loss, curve, "loss"));
  if (l->h_heldout) {
    TRY(adapter_trace(r.in, l->e, l->h_heldout, 0, r.out, NULL, &trace));
    TRY(adapter_losses(r.out, r.in, l->e, l->h_heldout, r.lora_b, r.lora_a, r.rank, trace, curve));
    TRY(compare(v, where, &r, r.loss_heldout, curve, "held-out loss"));
  }
  TRY(check_rounds(where, s, &r, layer_solution(&c->model.arch, p, l->layer, linear).round_count));
  TRY(solution_fingerprint(&r, hex));
  if (strcmp(hex, r.facts->base_fingerprint) != 0) {
    st = fail(E_DATA, "%s: base_fingerprint: expected %s, found %s", where, hex, r.facts->base_fingerprint);
    goto done;
  }
  TRY(check_certificate(v, l, where, s, &r));
  v->curves++;
done:
  solution_free(&r);
  container_close(&file);
  FREE(curve);
  return st;
}

static status check_input(verifier *v, layer_view *l) {
  session *c = v->c;
  status st = OK;
  int64_t m = input_width(&c->model.arch, l->input), tokens;
  TRY(NEW(l->h, m * m, "a Gram"));
  if (note(v, st = unit_read_gram(c, SET_CALIBRATION, l->layer, l->input, 0, 1, l->h, &tokens)) != OK || st != OK) goto done;
  if (c->sets[SET_HELDOUT]) {
    TRY(NEW(l->h_heldout, m * m, "a held-out Gram"));
    if (note(v, st = unit_read_gram(c, SET_HELDOUT, l->layer, l->input, 0, 1, l->h_heldout, &tokens)) != OK || st != OK) goto done;
  }
  TRY(NEW(l->diagonal, m, "a diagonal"));
  for (int64_t k = 0; k < m; k++) l->diagonal[k] = l->h[k * m + k];
  for (int i = 0; i < LIN_COUNT; i++) {
    if (!c->job.target[i] || linear_input(i) != l->input) continue;
    int64_t out, in;
    linear_shape(&c->model.arch, (linear_id)i, &out, &in);
    TRY(NEW(l->w, out * in, "weights of a linear"));
    TRY(NEW(l->e, out * in, "a residual"));
    if (note(v, st = unit_read_weights(c, l->layer, (linear_id)i, 0, out, l->w)) != OK || st != OK) goto done;
    for (int k = 0; k < c->job.setting_count; k++) {
      const setting *s = &c->job.settings[k];
      piece p;
      for (int n = 0; setting_piece(s, k, n, &p); n++) TRY(note(v, check_result(v, l, &p, i)));
    }
    FREE(l->w);
    FREE(l->e);
  }
done:
  FREE(l->diagonal);
  FREE(l->h);
  FREE(l->h_heldout);
  FREE(l->w);
  FREE(l->e);
  return st == E_DATA || st == E_IO ? OK : st; /* noted above */
}

static status check_layer(verifier *v, int64_t layer) {
  session *c = v->c;
  status st = OK;
  attributes identity = {0};
  char path[PATH_MOST], gram_fingerprint[HASH_HEX];
  int before = v->wrong;
  for (int set = 0; set < SET_COUNT; set++) {
    if (!c->sets[set]) continue;
    unit_gram_path(c, set, layer, path);
    TRY(unit_gram_identity(c, set, layer, &identity));
    TRY(note(v, check_file(v, path, "grams", &identity)));
    attr_free(&identity);
  }
  if (v->wrong > before) goto done; /* without its Grams nothing of the layer can be judged */
  TRY(unit_gram_fingerprint(c, layer, gram_fingerprint));
  for (int k = 0; k < c->job.setting_count; k++) {
    unit_solution_path(c, &c->job.settings[k], layer, path);
    TRY(unit_solution_identity(c, &c->job.settings[k], layer, gram_fingerprint, &identity));
    TRY(note(v, check_file(v, path, "solution", &identity)));
    attr_free(&identity);
  }
  for (int i = 0; i < IN_COUNT; i++) {
    layer_view l = {.layer = layer, .input = i};
    if (c->wanted[i]) TRY(check_input(v, &l));
  }
done:
  attr_free(&identity);
  return st;
}

static status check_master(verifier *v) {
  status st = OK;
  container *file = NULL;
  char path[PATH_MOST];
  unit_run_path(v->c, "run.h5", path);
  if (!file_exists(path)) return OK;
  TRY(container_open(path, "run", &file));
  TRY(container_verify(file, NULL));
  v->files++;
done:
  container_close(&file);
  return st;
}

static status check_evaluation(verifier *v, const char *name) {
  char part[256], path[PATH_MOST];
  eval_result r;
  snprintf(part, sizeof part, "eval/%s.json", name);
  unit_run_path(v->c, part, path);
  if (!file_exists(path)) return OK;
  status st = eval_result_read(path, &r);
  if (st == OK) eval_result_free(&r);
  v->files += st == OK;
  return st;
}

/* What belongs to no layer. */
static status check_run(verifier *v) {
  status st = OK;
  TRY(note(v, check_master(v)));
  TRY(note(v, check_evaluation(v, "original")));
  for (int k = 0; k < v->c->job.setting_count; k++) TRY(note(v, check_evaluation(v, v->c->job.settings[k].name)));
done:
  return st;
}

/* Findings of all ranks on rank 0, in the order of ranks, to standard output: in pieces, so that it takes no memory. */
static void print_findings(const verifier *v) {
  enum { PIECE = 4096 };
  session *c = v->c;
  for (int r = 0; r < c->size; r++) {
    int bytes = v->found ? (int)strlen(v->found) : 0;
    if (r == 0) {
      if (c->rank == 0 && bytes) fputs(v->found, stdout);
      continue;
    }
    if (c->rank == r) MPI_Send(&bytes, 1, MPI_INT, 0, 1, c->job_comm);
    if (c->rank == 0) MPI_Recv(&bytes, 1, MPI_INT, r, 1, c->job_comm, MPI_STATUS_IGNORE);
    for (int at = 0; at < bytes && (c->rank == r || c->rank == 0); at += PIECE) {
      char part[PIECE];
      int length = bytes - at < PIECE ? bytes - at : PIECE;
      if (c->rank == r) MPI_Send(v->found + at, length, MPI_CHAR, 0, 2, c->job_comm);
      if (c->rank != 0) continue;
      MPI_Recv(part, length, MPI_CHAR, r, 2, c->job_comm, MPI_STATUS_IGNORE);
      fwrite(part, 1, (size_t)length, stdout);
    }
  }
  fflush(stdout);
}

status verb_verify(session *c) {
  if (!c->opened) return verify_export(c); /* verb_perform has asked verify_is_export */
  verifier v = {.c = c};
  session_views views = {0};
  int64_t layers = c->layer_end - c->layer_begin;
  status st = session_split(c, &views);
  if (st == OK && c->rank == 0) st = check_run(&v);
  for (int64_t unit = c->rank; unit < layers * views.count && st == OK; unit += c->size) {
    log_progress("verify layers", (double)unit / (double)(layers * views.count), -1);
    v.c = &views.list[unit / layers];
    st = check_layer(&v, c->layer_begin + unit % layers);
  }
  log_progress_end();
  TRY(agree(c->job_comm, st));
  v.c = c;
  print_findings(&v);
  double worst[2] = {v.worst_loss, v.worst_tail};
  int64_t sums[4] = {v.wrong, v.files, v.curves, (int64_t)v.bytes};
  MPI_Allreduce(MPI_IN_PLACE, worst, 2, MPI_DOUBLE, MPI_MAX, c->job_comm);
  MPI_Allreduce(MPI_IN_PLACE, sums, 4, MPI_INT64_T, MPI_SUM, c->job_comm);
  if (c->rank == 0)
    printf("verified %lld files (%.3f GiB) and %lld loss curves: recomputed losses within %.1e of the stored ones, certificates within "
           "%.1e of the tail; %lld wrong\n",
           (long long)sums[1], (double)sums[3] / (1 << 30), (long long)sums[2], worst[0], worst[1], (long long)sums[0]);
  if (sums[0]) st = fail(E_DATA, "verify: expected nothing wrong, found %lld; the lines above name each", (long long)sums[0]);
done:
  session_views_free(&views);
  FREE(v.found);
  return st;
}
