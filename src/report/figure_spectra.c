/* Eigenvalues of a Gram and of a weighted residual. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "report/csv.h"
#include "report/gnuplot.h"
#include "report/sheet.h"
#include "report/text.h"
#include "store/container.h"

enum { SPECTRUM_MOST = 2048 /* columns of a Gram whose eigenvalues are computed for a picture */ };

/* Eigenvalues of one input's Gram over the largest, descending, owned; NULL: absent, or too wide. */
static status gram_values(container *file, const char *path, const char *input, double **values, int64_t *n) {
  status st = OK;
  attributes a = {0};
  float *tiles = NULL, *full = NULL;
  double *h = NULL;
  char place[64];
  *values = NULL;
  *n = 0;
  snprintf(place, sizeof place, "%s/tiles", input);
  if (!container_has(file, place)) return OK;
  TRY(container_attributes(file, place, &a));
  int64_t t = attr_get_int(&a, "tile", 0);
  *n = attr_get_int(&a, "n", 0);
  if (*n < 1 || t < 1 || t > 1 << 14) {
    st = fail(E_DATA, "%s: %s: expected n and tile of at least 1, found %lld and %lld", path, place, (long long)*n, (long long)t);
    goto done;
  }
  if (*n > SPECTRUM_MOST) goto done;
  element type;
  int rank;
  int64_t dims[3], count = tiles_count(*n, t);
  TRY(container_shape(file, place, &type, &rank, dims));
  if (type != EL_F32 || rank != 3 || dims[0] != count || dims[1] != t || dims[2] != t) {
    st = fail(E_DATA, "%s: %s: expected %lld tiles of %lld x %lld, found another shape", path, place, (long long)count, (long long)t,
              (long long)t);
    goto done;
  }
  TRY(NEW(tiles, count * t * t, "tiles of a Gram"));
  TRY(NEW(full, *n * *n, "a Gram"));
  TRY(NEW(h, *n * *n, "a Gram"));
  TRY(NEW(*values, *n, "eigenvalues of a Gram"));
  TRY(container_read(file, place, EL_F32, 0, count, tiles));
  tiles_expand(*n, t, 0, count, tiles, full);
  for (int64_t k = 0; k < *n * *n; k++) h[k] = full[k];
  TRY(deigenvalues(path, (int)*n, h, (int)*n, *values));
  for (int64_t i = 0, j = *n - 1; i < j; i++, j--) {
    double x = (*values)[i];
    (*values)[i] = (*values)[j];
    (*values)[j] = x;
  }
  double largest = (*values)[0];
  for (int64_t k = 0; k < *n; k++) (*values)[k] /= largest > 0 ? largest : 1;
done:
  attr_free(&a);
  FREE(h);
  FREE(full);
  FREE(tiles);
  if (st != OK) FREE(*values);
  return st;
}

static int64_t numerical_rank(const run_report *r, int64_t layer, input_id input) {
  for (int i = 0; i < r->setting_count; i++)
    for (int k = 0; k < r->settings[i].entry_count; k++) {
      const matrix_entry *m = &r->settings[i].entries[k];
      if (m->layer == layer && linear_input(m->linear) == input) return m->numerical_rank;
    }
  return -1;
}

status figure_gram(const run_report *r, int64_t layer, const char *run_folder, const char *folder, figures *all) {
  status st = OK;
  sheet s = {0};
  container *file = NULL;
  double *values[IN_COUNT] = {0};
  int64_t n[IN_COUNT] = {0}, longest = 0;
  int shown = 0;
  char *path = mem_format("%s/grams/layer-%03lld.h5", run_folder, (long long)layer), title[128];
  if (!path) return fail(E_MEMORY, "report: no memory");
  if (!file_exists(path)) {
    snprintf(all->note, sizeof all->note, "The Grams of layer %lld are not in this run directory: no picture of their spectrum.",
             (long long)layer);
    goto done;
  }
  TRY(container_open(path, "grams", &file));
  for (int i = 0; i < IN_COUNT; i++) {
    TRY(gram_values(file, path, input_name((input_id)i), &values[i], &n[i]));
    if (n[i] > SPECTRUM_MOST)
      snprintf(all->note, sizeof all->note, "Spectra of Grams wider than %d columns are not computed for a picture.", SPECTRUM_MOST);
    if (values[i] && n[i] > longest) longest = n[i];
  }
  if (longest == 0) goto done;
  snprintf(title, sizeof title, "Spectrum of the Grams of layer %lld", (long long)layer);
  TRY(sheet_begin(all, folder, "spectrum-gram", 640, PLOT_HEIGHT + sheet_key_height(IN_COUNT, 0), &s));
  sheet_describe(
      s.figure, title,
      "Eigenvalues of H = sum x x' over the largest, calibration tokens, by input of the layer. Numerical rank: independent columns "
      "in double precision.");
  fprintf(s.data, "index");
  for (int i = 0; i < IN_COUNT; i++)
    if (values[i]) fprintf(s.data, ",%s", input_name((input_id)i));
  fputc('\n', s.data);
  extent seen = EXTENT_NOTHING;
  for (int64_t k = 0; k < longest; k++) {
    fprintf(s.data, "%lld", (long long)k + 1);
    for (int i = 0; i < IN_COUNT; i++) {
      double x = values[i] && k < n[i] ? values[i][k] : NAN;
      if (values[i]) fputc(',', s.data);
      if (values[i]) csv_numbers(s.data, &x, 1);
      if (x > 1e-16) extent_widen(&seen, x);
    }
    fputc('\n', s.data);
  }
  sheet_log_axis(s.script, "y", seen);
  fprintf(s.script, "set xlabel \"index of the eigenvalue\\n\" offset 0,0.6 tc rgb 'black'\nset ylabel 'eigenvalue over the largest' tc "
                    "rgb 'black'\nset key maxcols 2\nplot ");
  for (int i = 0; i < IN_COUNT; i++) {
    if (!values[i]) continue;
    fprintf(s.script, "%s'spectrum-gram.csv' using 1:%d with lines ls %d title '%s, rank %lld of %lld'", shown ? ", \\\n  " : "", shown + 2,
            shown + 1, input_name((input_id)i), (long long)numerical_rank(r, layer, (input_id)i), (long long)n[i]);
    shown++;
  }
  fputc('\n', s.script);
done:
  st = sheet_end(&s, st, all);
  for (int i = 0; i < IN_COUNT; i++) FREE(values[i]);
  container_close(&file);
  FREE(path);
  return st;
}

static const matrix_entry *find_entry(const setting_report *s, int64_t layer, linear_id l) {
  for (int i = 0; i < s->entry_count; i++)
    if (s->entries[i].layer == layer && s->entries[i].linear == l) return &s->entries[i];
  return NULL;
}

/* The weighted residual of one matrix: what its adapter takes away, rank by rank. */
status figure_residual(const run_report *r, const int *chosen, int count, int64_t layer, const char *folder, figures *all) {
  static const char *const kinds[] = {""};
  status st = OK;
  sheet s = {0};
  extent seen = EXTENT_NOTHING;
  char title[200];
  int64_t length = sheet_longest_curve(r, chosen, count);
  linear_id l = r->settings[chosen[0]].entries[0].linear;
  for (int k = 0; k < r->settings[chosen[0]].entry_count; k++)
    if (r->settings[chosen[0]].entries[k].layer == layer)
      l = r->settings[chosen[0]].entries[k].linear; /* the last: down_proj where it is a target */
  snprintf(title, sizeof title, "Spectrum of the weighted residual of model.layers.%lld.%s", (long long)layer, linear_path(l));
  TRY(sheet_begin(all, folder, "spectrum-residual", 640, sheet_settings_height(r, chosen, count), &s));
  sheet_describe(s.figure, title,
                 "Leading eigenvalues of (W-Q) H (W-Q)' over tr(W H W'): what each further rank of the adapter takes off the loss.");
  fprintf(s.data, "index");
  sheet_name_columns(s.data, r, chosen, count, kinds, 1);
  for (int64_t k = 0; k + 1 < length; k++) {
    fprintf(s.data, "%lld,", (long long)k + 1);
    for (int i = 0; i < count; i++) {
      const matrix_entry *m = find_entry(&r->settings[chosen[i]], layer, l);
      double x = m && m->tail && k + 1 < m->curve_length[ON_CALIBRATION] ? m->tail[k] - m->tail[k + 1] : NAN;
      extent_widen(&seen, x);
      if (i) fputc(',', s.data);
      csv_numbers(s.data, &x, 1);
    }
    fputc('\n', s.data);
  }
  sheet_log_axis(s.script, "y", seen);
  fprintf(s.script, "set xrange [0:%lld]\n", (long long)length);
  fprintf(s.script, "set xlabel \"index of the eigenvalue\\n\" offset 0,0.6 tc rgb 'black'\nset ylabel 'eigenvalue over tr(W H W'')' tc "
                    "rgb 'black'\nset key maxcols 2\nplot ");
  for (int i = 0; i < count; i++) {
    fprintf(s.script, "'spectrum-residual.csv' using 1:%d with linespoints ls %d title ", i + 2, i + 1);
    sheet_label(s.script, r->settings[chosen[i]].name, LABEL_MOST);
    fprintf(s.script, "%s", i + 1 < count ? ", \\\n  " : "\n");
  }
done:
  return sheet_end(&s, st, all);
}
