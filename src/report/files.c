/* A report for programs: JSON, and a table of every matrix at every rank as CSV. */
#include <math.h>

#include "base/json.h"
#include "report/checks.h"
#include "report/csv.h"
#include "report/report.h"
#include "report/story.h"
#include "report/text.h"

/* ---- JSON ---- */

static json_t *real_list(const double *values, int count) {
  json_t *list = json_array();
  for (int i = 0; i < count; i++) json_array_append_new(list, isfinite(values[i]) ? json_real(values[i]) : json_null());
  return list;
}

static json_t *matrix_json(const setting_report *s, const matrix_report *m) {
  json_t *size = isfinite(m->adapter_size) ? json_real(m->adapter_size) : json_null();
  return json_pack("{s:I, s:f, s:o, s:o, s:o, s:o}", "matrices", (json_int_t)m->count, "seconds", m->seconds, "adapter_size", size,
                   "bits_per_weight", real_list(m->bits, s->point_count), "relative_loss",
                   real_list(m->loss[ON_CALIBRATION], s->point_count), "relative_loss_heldout",
                   has_values(s, ON_HELDOUT) ? real_list(m->loss[ON_HELDOUT], s->point_count) : json_null());
}

static json_t *eval_json(const eval_result *e) {
  json_t *points = json_array();
  if (!e->count) return json_decref(points), json_null();
  for (int i = 0; i < e->count; i++) json_array_append_new(points, eval_point_json(&e->points[i]));
  return json_pack("{s:s, s:I, s:I, s:o}", "tokens_fingerprint", e->identity.tokens, "windows", (json_int_t)e->identity.windows, "length",
                   (json_int_t)e->identity.length, "points", points);
}

static json_t *entry_json(const setting_report *s, const matrix_entry *m) {
  char name[64];
  double off = entry_certificate(m);
  entry_name(m, name);
  return json_pack("{s:s, s:I, s:s, s:I, s:I, s:I, s:I, s:I, s:f, s:o, s:o, s:o}", "name", name, "layer", (json_int_t)m->layer, "type",
                   linear_short(m->linear), "bits", (json_int_t)m->code_bits, "out", (json_int_t)m->out, "in", (json_int_t)m->in,
                   "numerical_rank", (json_int_t)m->numerical_rank, "tokens", (json_int_t)m->tokens, "seconds", m->seconds, "relative_loss",
                   real_list(m->loss[ON_CALIBRATION], s->point_count), "relative_loss_heldout",
                   has_values(s, ON_HELDOUT) ? real_list(m->loss[ON_HELDOUT], s->point_count) : json_null(), "off_certificate",
                   isfinite(off) ? json_real(off) : json_null());
}

/* ranks[0] is 0, the codes alone; every list of a matrix has a place per rank; variants: the rank whose codes serve it, null where all share them. */
static json_t *setting_json(const setting_report *s) {
  json_t *ranks = json_array(), *variants = json_array(), *types = json_object(), *every = json_array();
  for (int i = 0; i < s->entry_count; i++) json_array_append_new(every, entry_json(s, &s->entries[i]));
  for (int p = 0; p < s->point_count; p++) json_array_append_new(variants, s->variants[p] ? json_integer(s->variants[p]) : json_null());
  for (int p = 0; p < s->point_count; p++) json_array_append_new(ranks, json_integer(s->points[p]));
  for (int k = 0; k < MATRIX_TYPES; k++)
    if (s->matrix[k].count) json_object_set_new(types, matrix_name(k), matrix_json(s, &s->matrix[k]));
  return json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:o, s:o, s:o, s:s, s:o, s:o}", "name", s->name, "method", s->method, "bits",
                   (json_int_t)s->bits, "bits_most", (json_int_t)s->bits_most, "group", (json_int_t)s->group, "layers_done",
                   (json_int_t)s->layers, "ranks", ranks, "variants", variants, "matrices", types, "certificate", s->metric, "every_matrix",
                   every, "eval", eval_json(&s->eval));
}

status report_json(const char *run_folder, const job *asked, const char *pattern, FILE *out) {
  status st = OK;
  run_report r = {0};
  json_t *story = NULL, *checks = NULL;
  TRY(report_read(run_folder, asked, pattern, &r));
  TRY(report_story(run_folder, &story));
  TRY(report_checks(&r, &checks));
  json_t *settings = json_array();
  for (int i = 0; i < r.setting_count; i++) json_array_append_new(settings, setting_json(&r.settings[i]));
  json_t *columns = json_object();
  for (int i = 0; i < IN_COUNT; i++)
    if (!isnan(r.per_column[i])) json_object_set_new(columns, input_name((input_id)i), json_real(r.per_column[i]));
  json_t *tree = json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:o, s:o, s:O, s:O, s:o}", "run", run_folder, "model", r.model,
                           "model_fingerprint", r.model_fingerprint, "layers", (json_int_t)r.layers, "tokens", (json_int_t)r.tokens,
                           "heldout_tokens", (json_int_t)r.heldout_tokens, "tokens_a_column", columns, "eval", eval_json(&r.original),
                           "story", story, "checks", checks, "settings", settings);
  bool complete = tree && json_array_size(settings) == (size_t)r.setting_count;
  if (!complete)
    st = fail(E_MEMORY, "report: no memory");
  else if (json_dumpf(tree, out, JSON_INDENT(2) | JSON_REAL_PRECISION(12)) != 0 || fputc('\n', out) == EOF || fflush(out) != 0)
    st = fail(E_IO, "report: the JSON cannot be written: %m");
  json_decref(tree);
done:
  json_decref(story);
  json_decref(checks);
  report_free(&r);
  return st;
}

/* ---- CSV ---- */

/* bits: empty for the mean of matrices that have different ones. */
static void csv_head(FILE *out, const setting_report *s, int64_t least_bits, int64_t most_bits, const char *layer, const char *matrix,
                     int p) {
  csv_text(out, s->name);
  fputc(',', out);
  csv_text(out, s->method);
  fputc(',', out);
  if (least_bits == most_bits) fprintf(out, "%lld", (long long)least_bits);
  fprintf(out, ",%lld,%s,%s,%d,", (long long)s->group, layer, matrix, s->points[p]);
}

static void csv_entry(FILE *out, const setting_report *s, const matrix_entry *m) {
  char layer[24];
  snprintf(layer, sizeof layer, "%lld", (long long)m->layer);
  for (int p = 0; p < s->point_count; p++) {
    const double numbers[] = {m->bits[p] / ((double)m->out * (double)m->in), m->loss[ON_CALIBRATION][p], m->loss[ON_HELDOUT][p]};
    csv_head(out, s, m->code_bits, m->code_bits, layer, linear_short(m->linear), p);
    csv_numbers(out, numbers, 3);
    fprintf(out, ",%lld,%lld,%lld,", (long long)m->in, (long long)m->numerical_rank, (long long)m->tokens);
    const double others[] = {entry_certificate(m), m->seconds, NAN, NAN, NAN};
    csv_numbers(out, others, 5);
    fputc('\n', out);
  }
}

/* Means over layers: layer is empty. Perplexity, KL and top-1 agreement belong to all matrices together. */
static void csv_means(FILE *out, const setting_report *s, int k) {
  const matrix_report *m = &s->matrix[k];
  for (int p = 0; p < s->point_count; p++) {
    const double numbers[] = {m->bits[p], m->loss[ON_CALIBRATION][p], m->loss[ON_HELDOUT][p]};
    const eval_point *e = k == MATRIX_ALL ? eval_result_find(&s->eval, s->points[p]) : NULL;
    csv_head(out, s, s->bits, s->bits_most, "", matrix_name(k), p);
    csv_numbers(out, numbers, 3);
    fprintf(out, ",,,,");
    const double others[] = {NAN, m->seconds, e ? e->perplexity : NAN, e ? e->kl : NAN, e ? e->top1 : NAN};
    csv_numbers(out, others, 5);
    fputc('\n', out);
  }
}

status report_csv(const char *run_folder, const job *asked, const char *pattern, FILE *out) {
  status st = OK;
  run_report r;
  TRY(report_read(run_folder, asked, pattern, &r));
  fprintf(out,
          "setting,method,bits,group,layer,matrix,rank,bits_per_weight,relative_loss,relative_loss_heldout,columns,numerical_rank,tokens,"
          "off_certificate,seconds,perplexity,kl,top1_agreement\n");
  for (int i = 0; i < r.setting_count; i++) {
    const setting_report *s = &r.settings[i];
    for (int k = 0; k < MATRIX_TYPES; k++)
      if (s->matrix[k].count) csv_means(out, s, k);
    for (int e = 0; e < s->entry_count; e++) csv_entry(out, s, &s->entries[e]);
  }
  report_free(&r);
  if (fflush(out) != 0 || ferror(out)) st = fail(E_IO, "report: the CSV cannot be written: %m");
done:
  return st;
}
