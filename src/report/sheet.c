#include "report/sheet.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>

#include "base/memory.h"
#include "report/csv.h"
#include "report/gnuplot.h"

/* ---- a picture's two files ---- */

/* What all scripts begin with. Black is the ink, which a dark page turns white; axes and grid are greys that stand on both. */
static const char prelude[] = "set encoding utf8\n"
                              "set termoption noenhanced\n"
                              "set datafile separator comma\n"
                              "set datafile columnheaders\n"
                              "set border 3 lc rgb '#808080'\n"
                              "set tics nomirror out scale 0.6 tc rgb 'black'\n"
                              "set grid lc rgb '#a0a0a0' lw 0.4\n"
                              "set key below left Left reverse samplen 2 tc rgb 'black'\n"
                              "set style line 1 lc rgb '#0072b2' pt 7 ps 0.6 lw 1.6\n"
                              "set style line 2 lc rgb '#d55e00' pt 5 ps 0.6 lw 1.6\n"
                              "set style line 3 lc rgb '#009e73' pt 9 ps 0.7 lw 1.6\n"
                              "set style line 4 lc rgb '#cc79a7' pt 13 ps 0.8 lw 1.6\n"
                              "set style line 5 lc rgb '#e69f00' pt 11 ps 0.7 lw 1.6\n"
                              "set style line 6 lc rgb '#56b4e9' pt 4 ps 0.6 lw 1.6\n"
                              "set style line 9 lc rgb '#909090' pt 1 ps 0.4 lw 0.8\n";

static status open_file(const char *folder, const char *name, const char *ending, FILE **f) {
  char *path = mem_format("%s/%s.%s", folder, name, ending);
  if (!path) return fail(E_MEMORY, "report: no memory");
  *f = fopen(path, "w");
  status st = *f ? OK : fail(E_IO, "%s: cannot be written: %m", path);
  FREE(path);
  return st;
}

status sheet_begin(figures *all, const char *folder, const char *name, int width, int height, sheet *s) {
  status st = OK;
  *s = (sheet){.folder = folder, .figure = &all->list[all->count++]};
  *s->figure = (figure){.width = width, .height = height};
  snprintf(s->figure->name, sizeof s->figure->name, "%s", name);
  TRY(open_file(folder, name, "csv", &s->data));
  TRY(open_file(folder, name, "gp", &s->script));
  fputs(prelude, s->script);
done:
  return st;
}

static status close_file(FILE **f, const char *folder, const char *name, const char *ending) {
  bool whole = !*f || !ferror(*f);
  if (*f && fclose(*f) != 0) whole = false;
  *f = NULL;
  return whole ? OK : fail(E_IO, "%s/%s.%s: cannot be written: %m", folder, name, ending);
}

/* Files are closed whatever st says; then the picture is drawn. */
status sheet_end(sheet *s, status st, figures *all) {
  if (!s->figure) return st;
  status data = close_file(&s->data, s->folder, s->figure->name, "csv"), script = close_file(&s->script, s->folder, s->figure->name, "gp");
  TRY(st);
  TRY(data);
  TRY(script);
  if (all->drawn)
    TRY(gnuplot_svg(s->folder, s->figure->name, s->figure->title, s->figure->width, s->figure->height, &all->drawn, &s->figure->svg));
done:
  return st;
}

void sheet_describe(figure *f, const char *title, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  snprintf(f->title, sizeof f->title, "%s", title);
  vsnprintf(f->caption, sizeof f->caption, format, arguments);
  va_end(arguments);
}

/* ---- axes ---- */

void extent_widen(extent *e, double x) {
  if (!(x > 0 && isfinite(x))) return;
  if (x < e->low) e->low = x;
  if (x > e->high) e->high = x;
}

/* A logarithmic axis with a margin, and labels at powers of ten, or between them too where there are few: gnuplot alone may leave one. */
void sheet_log_axis(FILE *script, const char *axis, extent e) {
  static const double few[] = {1}, some[] = {1, 2, 5}, many[] = {1, 1.5, 2, 3, 4, 5, 6, 8};
  if (!(e.high > 0)) e = (extent){0.1, 1};
  double span = log10(e.high / e.low), low = e.low / 1.2, high = e.high * 1.2;
  const double *steps = span > 2.5 ? few : span > 0.8 ? some : many;
  int count = span > 2.5 ? 1 : span > 0.8 ? 3 : 8, stride = span > 9 ? 2 : 1, labels = 0;
  fprintf(script, "set logscale %s\nset %srange [%.6g:%.6g]\nset %stics (", axis, axis, low, high, axis);
  for (int power = (int)floor(log10(low)); power <= (int)ceil(log10(high)); power += stride)
    for (int k = 0; k < count; k++) {
      double at = steps[k] * pow(10, power);
      if (at >= low && at <= high) fprintf(script, "%s'%g' %g", labels++ ? ", " : "", at, at);
    }
  fprintf(script, ")\n");
}

/* ---- legends ---- */

enum { LABEL_HALF = 36, KEY_LINE = 20 };

void sheet_label(FILE *script, const char *name, size_t most) {
  char text[LABEL_MOST + 8];
  int half = ((int)most - 2) / 2;
  size_t length = strlen(name);
  if (length > most)
    snprintf(text, sizeof text, "%.*s..%s", half, name, name + length - (size_t)half);
  else
    snprintf(text, sizeof text, "%s", name);
  gnuplot_text(script, text);
}

/* Two names a line where they are short: the picture grows with its legend. */
int sheet_key_height(int count, size_t longest) { return KEY_LINE * (longest > LABEL_HALF ? count : (count + 1) / 2); }

int sheet_settings_height(const run_report *r, const int *chosen, int count) {
  size_t longest = 0;
  for (int k = 0; k < count; k++)
    if (strlen(r->settings[chosen[k]].name) > longest) longest = strlen(r->settings[chosen[k]].name);
  return PLOT_HEIGHT + sheet_key_height(count, longest);
}

/* ---- curves of settings ---- */

int64_t sheet_longest_curve(const run_report *r, const int *chosen, int count) {
  int64_t longest = 0;
  for (int k = 0; k < count; k++)
    for (int i = 0; i < r->settings[chosen[k]].entry_count; i++)
      if (r->settings[chosen[k]].entries[i].curve_length[ON_CALIBRATION] > longest)
        longest = r->settings[chosen[k]].entries[i].curve_length[ON_CALIBRATION];
  return longest;
}

void sheet_name_columns(FILE *out, const run_report *r, const int *chosen, int count, const char *const *kinds, int kind_count) {
  for (int k = 0; k < count; k++)
    for (int g = 0; g < kind_count; g++) {
      char name[200];
      snprintf(name, sizeof name, "%s%s%s", kinds[g], *kinds[g] ? " " : "", r->settings[chosen[k]].name);
      fputc(',', out);
      csv_text(out, name);
    }
  fputc('\n', out);
}
