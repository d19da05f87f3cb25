#include "report/checks.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "job/few_tokens.h"
#include "report/text.h"

static const double CERTIFICATE_OFF = 1e-5; /* as verify judges */
static const double OVERFIT = 1.5;          /* held-out over calibration loss */

void entry_name(const matrix_entry *m, char text[64]) {
  snprintf(text, 64, "model.layers.%lld.%s", (long long)m->layer, linear_path(m->linear));
}

int report_worst_certificate(const setting_report *s, int *certified) {
  int worst = -1;
  *certified = 0;
  for (int i = 0; i < s->entry_count; i++) {
    double off = entry_certificate(&s->entries[i]);
    if (!isfinite(off)) continue;
    ++*certified;
    if (worst < 0 || off > entry_certificate(&s->entries[worst])) worst = i;
  }
  return worst;
}

static void add(json_t *list, const char *kind, const setting_report *s, const matrix_entry *m, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
static void add(json_t *list, const char *kind, const setting_report *s, const matrix_entry *m, const char *format, ...) {
  char text[512], name[64];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  if (m) entry_name(m, name);
  json_array_append_new(list, json_pack("{s:o, s:o, s:s, s:s}", "setting", s ? json_string(s->name) : json_null(), "matrix",
                                        m ? json_string(name) : json_null(), "kind", kind, "text", text));
}

static void check_certificate(json_t *list, const setting_report *s, const matrix_entry *m) {
  double off = entry_certificate(m);
  if (off > CERTIFICATE_OFF)
    add(list, "certificate", s, m, "the stored loss is %.1e of it off the tail of the spectrum: run cloqwork verify", off);
}

static void check_heldout_worse(json_t *list, const setting_report *s, const matrix_entry *m) {
  const double *loss = m->loss[ON_HELDOUT];
  char base[CELL], with[CELL];
  if (!(loss[s->point_count - 1] > loss[0])) return;
  three_digits(loss[0], base);
  three_digits(loss[s->point_count - 1], with);
  add(list, "heldout_worse", s, m, "with the adapter of r=%d the held-out loss is higher, %s, than without, %s",
      s->points[s->point_count - 1], with, base);
}

static void check_overfit(json_t *list, const setting_report *s, const matrix_entry *m) {
  int last = s->point_count - 1;
  double ratio = m->loss[ON_HELDOUT][last] / m->loss[ON_CALIBRATION][last];
  if (isfinite(ratio) && ratio > OVERFIT)
    add(list, "overfit", s, m, "at r=%d the held-out loss is %.2f times that on the calibration tokens", s->points[last], ratio);
}

static void check_scales(json_t *list, const setting_report *s, const matrix_entry *m) {
  if (m->raised_scales)
    add(list, "scales", s, m, "%lld scales were below the smallest half-precision number and raised to it", (long long)m->raised_scales);
}

/* A Gram belongs to no setting: the first one that shows it speaks for all, and of the matrices that read it the first. */
static void check_singular(json_t *list, const setting_report *s) {
  for (int i = 0; i < s->entry_count; i++) {
    const matrix_entry *m = &s->entries[i];
    bool first = m->numerical_rank > 0 && m->numerical_rank < m->in;
    for (int k = 0; k < i; k++) first &= s->entries[k].layer != m->layer || linear_input(s->entries[k].linear) != linear_input(m->linear);
    if (first)
      add(list, "singular", NULL, m, "its Gram has numerical rank %lld of %lld (%lld tokens)", (long long)m->numerical_rank,
          (long long)m->in, (long long)m->tokens);
  }
}

status report_checks(const run_report *r, json_t **list) {
  static void (*const of_matrices[])(json_t *, const setting_report *, const matrix_entry *) = {check_certificate, check_heldout_worse,
                                                                                                check_overfit, check_scales};
  char few[FEW_TOKENS_TEXT];
  *list = json_array();
  for (size_t k = 0; k < sizeof of_matrices / sizeof *of_matrices; k++)
    for (int i = 0; i < r->setting_count; i++)
      for (int e = 0; e < r->settings[i].entry_count; e++) of_matrices[k](*list, &r->settings[i], &r->settings[i].entries[e]);
  if (r->setting_count) check_singular(*list, &r->settings[0]);
  for (int i = 0; i < r->setting_count; i++)
    if (r->settings[i].layers < r->layers)
      add(*list, "layers", &r->settings[i], NULL, "%lld of %lld layers are done", (long long)r->settings[i].layers, (long long)r->layers);
  if (few_tokens(r->per_column, few)) add(*list, "tokens", NULL, NULL, "%s", few);
  return *list ? OK : fail(E_MEMORY, "report: no memory");
}
