#include "report/figures.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/blas.h"
#include "base/file.h"
#include "base/memory.h"
#include "report/csv.h"
#include "report/gnuplot.h"
#include "report/text.h"
#include "store/container.h"

enum {
  COLOURS = 6,
  HEATS_MOST = 4,
  PERPLEXITY_MOST = 100 /* times the original's */,
  SPECTRUM_MOST = 2048 /* columns of a Gram whose eigenvalues are computed for a picture */
};

/* ---- a picture's two files ---- */

typedef struct sheet {
  const char *folder;
  figure *figure;
  FILE *data, *script;
} sheet;

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

static status sheet_begin(figures *all, const char *folder, const char *name, int width, int height, sheet *s) {
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
static status sheet_end(sheet *s, status st, figures *all) {
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

static void describe(figure *f, const char *title, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void describe(figure *f, const char *title, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  snprintf(f->title, sizeof f->title, "%s", title);
  vsnprintf(f->caption, sizeof f->caption, format, arguments);
  va_end(arguments);
}

/* ---- axes ---- */

typedef struct extent {
  double low, high;
} extent;
static const extent NOTHING = {HUGE_VAL, 0};

static void widen(extent *e, double x) {
  if (!(x > 0 && isfinite(x))) return;
  if (x < e->low) e->low = x;
  if (x > e->high) e->high = x;
}

/* A logarithmic axis with a margin, and labels at powers of ten, or between them too where there are few: gnuplot alone may leave one. */
static void log_axis(FILE *script, const char *axis, extent e) {
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

enum { LABEL_MOST = 64, LABEL_HALF = 36, PLOT_HEIGHT = 400, KEY_LINE = 20 };

/* A name as the legend shows it: a long one loses its middle. */
static void label(FILE *script, const char *name) {
  char text[LABEL_MOST + 8];
  int half = (LABEL_MOST - 2) / 2;
  size_t length = strlen(name);
  if (length > LABEL_MOST)
    snprintf(text, sizeof text, "%.*s..%s", half, name, name + length - (size_t)half);
  else
    snprintf(text, sizeof text, "%s", name);
  gnuplot_text(script, text);
}

/* Two names a line where they are short: the picture grows with its legend. */
static int key_height(int count, size_t longest) { return KEY_LINE * (longest > LABEL_HALF ? count : (count + 1) / 2); }

static int settings_height(const run_report *r, const int *chosen, int count) {
  size_t longest = 0;
  for (int k = 0; k < count; k++)
    if (strlen(r->settings[chosen[k]].name) > longest) longest = strlen(r->settings[chosen[k]].name);
  return PLOT_HEIGHT + key_height(count, longest);
}

static double geometric_mean(double sum_of_logs, int count) { return count ? exp(sum_of_logs / count) : NAN; }

/* ---- the frontier ---- */

/* Settings that differ in bits alone. */
static void family_name(const setting_report *s, char name[160]) {
  char bits[24];
  snprintf(bits, sizeof bits, "-b%lld", (long long)s->bits);
  const char *at = strstr(s->name, bits);
  if (at && (at[strlen(bits)] == 0 || at[strlen(bits)] == '-'))
    snprintf(name, 160, "%.*s%.100s", (int)(at - s->name < 60 ? at - s->name : 60), s->name, at + strlen(bits));
  else
    snprintf(name, 160, "%.159s", s->name);
}

typedef struct families {
  int *of;    /* [settings] number of its family; owned */
  int *head;  /* [count] a setting of it with the fewest bits; owned */
  int *style; /* [count] 1 to COLOURS, 0: grey; owned */
  int count;
} families;

static void families_free(families *f) {
  FREE(f->of);
  FREE(f->head);
  FREE(f->style);
}

/* Does family a stand before b? Fewest bits first, then by the loss at the largest rank. */
static bool better(const run_report *r, int a, int b) {
  const setting_report *x = &r->settings[a], *y = &r->settings[b];
  int gram = report_gram(r);
  if (x->bits != y->bits) return x->bits < y->bits;
  return x->matrix[MATRIX_ALL].loss[gram][x->point_count - 1] < y->matrix[MATRIX_ALL].loss[gram][y->point_count - 1];
}

static status find_families(const run_report *r, families *f) {
  status st = OK;
  char mine[160], other[160];
  *f = (families){0};
  TRY(NEW(f->of, r->setting_count, "families of settings"));
  TRY(NEW(f->head, r->setting_count, "families of settings"));
  TRY(NEW(f->style, r->setting_count, "families of settings"));
  for (int i = 0; i < r->setting_count; i++) {
    int k = 0;
    family_name(&r->settings[i], mine);
    for (; k < f->count; k++) {
      family_name(&r->settings[f->head[k]], other);
      if (strcmp(mine, other) == 0) break;
    }
    f->of[i] = k;
    if (k == f->count) f->head[f->count++] = i;
    if (better(r, i, f->head[k])) f->head[k] = i;
  }
  for (int style = 1; style <= COLOURS && style <= f->count; style++) {
    int best = -1;
    for (int k = 0; k < f->count; k++)
      if (!f->style[k] && (best < 0 || better(r, f->head[k], f->head[best]))) best = k;
    f->style[best] = style;
  }
done:
  if (st != OK) families_free(f);
  return st;
}

enum { FRONTIER_CALIBRATION, FRONTIER_HELDOUT, FRONTIER_PERPLEXITY, FRONTIERS };

static double frontier_value(const setting_report *s, int which, int p) {
  const eval_point *e = which == FRONTIER_PERPLEXITY ? eval_result_find(&s->eval, s->points[p]) : NULL;
  if (which == FRONTIER_PERPLEXITY) return e ? e->perplexity : NAN;
  return s->matrix[MATRIX_ALL].loss[which == FRONTIER_HELDOUT ? ON_HELDOUT : ON_CALIBRATION][p];
}

static int families_height(const run_report *r, const families *f) {
  char family[160];
  size_t longest = 0;
  for (int k = 0; k < f->count; k++) {
    family_name(&r->settings[f->head[k]], family);
    if (f->style[k] && strlen(family) > longest) longest = strlen(family);
  }
  return key_height(f->count > COLOURS ? COLOURS + 1 : f->count + 1, longest); /* one for the others, or the original */
}

/* Does the axis reach it? A base that is useless without its adapter may have a perplexity of millions, beside which all others are one line. */
static bool in_sight(const run_report *r, int which, double x) {
  return which != FRONTIER_PERPLEXITY || !r->original.count || x <= PERPLEXITY_MOST * r->original.points[0].perplexity;
}

static void frontier_data(FILE *out, const run_report *r, const families *f, int which, extent *seen, int *hidden) {
  char family[160];
  fprintf(out, "setting,curve,bits,rank,bits_per_weight,%s,style\n", which == FRONTIER_PERPLEXITY ? "perplexity" : "relative_loss");
  for (int i = 0; i < r->setting_count; i++) {
    const setting_report *s = &r->settings[i];
    family_name(s, family);
    for (int p = 0; p < s->point_count; p++) {
      const double numbers[] = {s->matrix[MATRIX_ALL].bits[p], frontier_value(s, which, p)};
      if (isnan(numbers[1])) continue;
      if (in_sight(r, which, numbers[1]))
        widen(seen, numbers[1]);
      else
        ++*hidden;
      csv_text(out, s->name);
      fputc(',', out);
      csv_text(out, family);
      fprintf(out, ",%lld,%d,", (long long)s->bits, s->points[p]);
      csv_numbers(out, numbers, 2);
      fprintf(out, ",%d\n", f->style[f->of[i]]);
    }
    fputc('\n', out); /* the next setting is a line of its own */
  }
}

static bool setting_has(const setting_report *s, int which) {
  for (int p = 0; p < s->point_count; p++)
    if (frontier_value(s, which, p) > 0) return true;
  return false;
}

static bool family_has(const run_report *r, const families *f, int k, int which) {
  for (int i = 0; i < r->setting_count; i++)
    if (f->of[i] == k && setting_has(&r->settings[i], which)) return true;
  return false;
}

/* One family's clause of `plot`. */
static void frontier_curve(FILE *script, const run_report *r, const families *f, int style, int which, const char *name) {
  char family[160] = "";
  int others = 0;
  for (int k = 0; k < f->count; k++) {
    if (f->style[k] != style || !family_has(r, f, k, which)) continue;
    family_name(&r->settings[f->head[k]], family);
    others++;
  }
  if (!others) return;
  if (!style) snprintf(family, sizeof family, others == 1 ? "%d other" : "%d others", others);
  fprintf(script, "'%s.csv' using 5:($7 == %d ? $6 : NaN) with linespoints ls %d title ", name, style, style ? style : 9);
  label(script, family);
  fprintf(script, ", \\\n  ");
}

static status draw_frontier(const run_report *r, const families *f, int which, const char *folder, figures *all) {
  static const char *const names[] = {"frontier-calibration", "frontier-heldout", "frontier-perplexity"},
                           *const titles[] = {"Loss on the calibration tokens against size", "Loss on held-out tokens against size",
                                              "Perplexity against size"},
                           *const axes[] = {"relative loss", "relative loss", "perplexity"};
  status st = OK;
  sheet s = {0};
  extent seen = NOTHING;
  int hidden = 0;
  char above[80] = "";
  TRY(sheet_begin(all, folder, names[which], 640, PLOT_HEIGHT + families_height(r, f), &s));
  frontier_data(s.data, r, f, which, &seen, &hidden);
  if (hidden)
    snprintf(above, sizeof above, " %d point%s above %d times its perplexity not shown.", hidden, hidden == 1 ? "" : "s", PERPLEXITY_MOST);
  describe(s.figure, titles[which],
           "A line is a setting, its points the base alone (leftmost) and each rank; one colour a method, down-left is better.%s%s%s",
           which == FRONTIER_PERPLEXITY ? " Dashed: the original model." : " Geometric mean over all matrices.", above,
           which != FRONTIER_PERPLEXITY && report_own_inputs(r) ? " Of settings with act_quantizer: on inputs of their own." : "");
  if (which == FRONTIER_PERPLEXITY && r->original.count) widen(&seen, r->original.points[0].perplexity);
  log_axis(s.script, "y", seen);
  fprintf(s.script,
          "set xlabel \"bits per weight, adapter in fp16 included\\n\" offset 0,0.6 tc rgb 'black'\nset ylabel '%s' tc rgb 'black'\nset "
          "key maxcols 2\nplot ",
          axes[which]);
  for (int style = 0; style <= COLOURS; style++) frontier_curve(s.script, r, f, style, which, names[which]);
  if (which == FRONTIER_PERPLEXITY && r->original.count)
    fprintf(s.script, "%.9g with lines lc rgb 'black' dt 2 title 'original'\n", r->original.points[0].perplexity);
  else
    fprintf(s.script, "NaN notitle\n");
done:
  return sheet_end(&s, st, all);
}

static bool any_value(const run_report *r, int which) {
  for (int i = 0; i < r->setting_count; i++)
    if (setting_has(&r->settings[i], which)) return true;
  return false;
}

/* ---- heat maps ---- */

static status draw_heat(const run_report *r, const setting_report *s, int number, const char *folder, figures *all) {
  status st = OK;
  sheet h = {0};
  char name[32], title[200];
  int row[LIN_COUNT], rows = 0, gram = report_gram(r), last = s->point_count - 1;
  int64_t first = INT64_MAX, end = 0;
  extent seen = NOTHING;
  snprintf(name, sizeof name, "heat-%d", number + 1);
  snprintf(title, sizeof title, "Relative loss by layer: %s", s->name);
  for (int l = 0; l < LIN_COUNT; l++) row[l] = s->matrix[l].count ? rows++ : -1;
  TRY(sheet_begin(all, folder, name, 640, 130 + 2 * (60 + 20 * rows), &h));
  describe(h.figure, title, "On %s tokens; above the codes alone, below with the adapter at r=%d.",
           gram == ON_HELDOUT ? "held-out" : "calibration", s->points[last]);
  fprintf(h.data, "layer,matrix,row,without,with_adapter\n");
  for (int i = 0; i < s->entry_count; i++) {
    const matrix_entry *m = &s->entries[i];
    const double numbers[] = {m->loss[gram][0], m->loss[gram][last]};
    widen(&seen, numbers[0]);
    widen(&seen, numbers[1]);
    if (m->layer < first) first = m->layer;
    if (m->layer >= end) end = m->layer + 1;
    fprintf(h.data, "%lld,%s,%d,", (long long)m->layer, linear_short(m->linear), row[m->linear]);
    csv_numbers(h.data, numbers, 2);
    fputc('\n', h.data);
  }
  log_axis(h.script, "cb", seen);
  fprintf(h.script,
          "unset key\nunset grid\nset border 0\n"
          "set palette defined (0 '#440154', 1 '#443983', 2 '#31688e', 3 '#21918c', 4 '#35b779', 5 '#90d743', 6 '#fde725')\n"
          "set cblabel 'relative loss' tc rgb 'black'\nset xrange [%g:%g]\nset xtics %d\nset yrange [%d.5:-0.5]\nset ytics (",
          (double)first - 0.5, (double)end - 0.5,
          end - first <= 12   ? 1
          : end - first <= 40 ? 5
                              : 10,
          rows - 1);
  for (int l = 0; l < LIN_COUNT; l++)
    if (row[l] >= 0) fprintf(h.script, "%s'%s' %d", row[l] ? ", " : "", linear_short((linear_id)l), row[l]);
  fprintf(h.script, ")\nset lmargin 11\nset rmargin 14\nset bmargin 3.2\nset multiplot layout 2,1\n");
  for (int k = 0; k < 2; k++) {
    char with[48];
    snprintf(with, sizeof with, "with the adapter at r=%d", s->points[last]);
    fprintf(h.script,
            "set title '%s' tc rgb 'black'\n%splot '%s.csv' using 1:3:($1-.5):($1+.5):($3-.5):($3+.5):%d with boxxyerror fc palette fs "
            "solid noborder\n",
            k ? with : "without adapter", k ? "set xlabel 'layer' offset 0,0.6 tc rgb 'black'\n" : "", name, 4 + k);
  }
  fprintf(h.script, "unset multiplot\n");
done:
  return sheet_end(&h, st, all);
}

/* ---- loss against rank ---- */

/* Geometric mean over matrices of a curve at a rank; one that is shorter (a matrix with a rank of its own) stays where it ends. */
static double mean_curve(const setting_report *s, int which, int64_t rank) {
  double sum = 0;
  int count = 0;
  for (int i = 0; i < s->entry_count; i++) {
    const matrix_entry *m = &s->entries[i];
    const double *curve = which == GRAM_KINDS ? m->tail : m->curve[which];
    int64_t length = m->curve_length[which == GRAM_KINDS ? ON_CALIBRATION : which];
    if (!curve || length == 0) continue;
    double x = curve[rank < length ? rank : length - 1];
    if (!(x > 0)) continue;
    sum += log(x);
    count++;
  }
  return geometric_mean(sum, count);
}

static int64_t longest_curve(const run_report *r, const int *chosen, int count) {
  int64_t longest = 0;
  for (int k = 0; k < count; k++)
    for (int i = 0; i < r->settings[chosen[k]].entry_count; i++)
      if (r->settings[chosen[k]].entries[i].curve_length[ON_CALIBRATION] > longest)
        longest = r->settings[chosen[k]].entries[i].curve_length[ON_CALIBRATION];
  return longest;
}

static void name_columns(FILE *out, const run_report *r, const int *chosen, int count, const char *const *kinds, int kind_count) {
  for (int k = 0; k < count; k++)
    for (int g = 0; g < kind_count; g++) {
      char name[200];
      snprintf(name, sizeof name, "%s%s%s", kinds[g], *kinds[g] ? " " : "", r->settings[chosen[k]].name);
      fputc(',', out);
      csv_text(out, name);
    }
  fputc('\n', out);
}

static status draw_ranks(const run_report *r, const int *chosen, int count, const char *folder, figures *all) {
  static const char *const kinds[] = {"loss", "held-out", "tail"};
  status st = OK;
  sheet s = {0};
  extent seen = NOTHING;
  int64_t length = longest_curve(r, chosen, count);
  TRY(sheet_begin(all, folder, "rank", 640, settings_height(r, chosen, count), &s));
  describe(s.figure, "Loss against rank",
           "Lines: the stored loss on the calibration tokens; open circles: the exact optimum, the tail of the spectrum; dotted: held-out "
           "tokens. "
           "Geometric mean over matrices; of codes refined for a rank, those of the largest.");
  fprintf(s.data, "rank");
  name_columns(s.data, r, chosen, count, kinds, 3);
  for (int64_t rank = 0; rank < length; rank++) {
    fprintf(s.data, "%lld", (long long)rank);
    for (int k = 0; k < count; k++) {
      double numbers[3];
      for (int g = 0; g < 3; g++) numbers[g] = mean_curve(&r->settings[chosen[k]], g, rank);
      for (int g = 0; g < 3; g++) widen(&seen, numbers[g]);
      fputc(',', s.data);
      csv_numbers(s.data, numbers, 3);
    }
    fputc('\n', s.data);
  }
  log_axis(s.script, "y", seen);
  fprintf(s.script, "set xrange [0:%lld]\n", (long long)length);
  fprintf(s.script, "set xlabel \"rank of the adapter\\n\" offset 0,0.6 tc rgb 'black'\nset ylabel 'relative loss' tc rgb 'black'\nset key "
                    "maxcols 2\nplot ");
  for (int k = 0; k < count; k++) {
    fprintf(s.script, "'rank.csv' using 1:%d with lines ls %d title ", 2 + 3 * k, k + 1);
    label(s.script, r->settings[chosen[k]].name);
    fprintf(s.script,
            ", \\\n  '' using 1:%d with lines ls %d dt 3 notitle, \\\n  '' every %lld using 1:%d with points ls %d pt 6 ps 0.7 notitle%s",
            3 + 3 * k, k + 1, (long long)(length > 16 ? length / 16 : 1), 4 + 3 * k, k + 1, k + 1 < count ? ", \\\n  " : "\n");
  }
done:
  return sheet_end(&s, st, all);
}

/* ---- spectra ---- */

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

static status draw_gram(const run_report *r, int64_t layer, const char *run_folder, const char *folder, figures *all) {
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
  TRY(sheet_begin(all, folder, "spectrum-gram", 640, PLOT_HEIGHT + key_height(IN_COUNT, 0), &s));
  describe(s.figure, title,
           "Eigenvalues of H = sum x x' over the largest, calibration tokens, by input of the layer. Numerical rank: independent columns "
           "in double precision.");
  fprintf(s.data, "index");
  for (int i = 0; i < IN_COUNT; i++)
    if (values[i]) fprintf(s.data, ",%s", input_name((input_id)i));
  fputc('\n', s.data);
  extent seen = NOTHING;
  for (int64_t k = 0; k < longest; k++) {
    fprintf(s.data, "%lld", (long long)k + 1);
    for (int i = 0; i < IN_COUNT; i++) {
      double x = values[i] && k < n[i] ? values[i][k] : NAN;
      if (values[i]) fputc(',', s.data);
      if (values[i]) csv_numbers(s.data, &x, 1);
      if (x > 1e-16) widen(&seen, x);
    }
    fputc('\n', s.data);
  }
  log_axis(s.script, "y", seen);
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
static status draw_residual(const run_report *r, const int *chosen, int count, int64_t layer, const char *folder, figures *all) {
  static const char *const kinds[] = {""};
  status st = OK;
  sheet s = {0};
  extent seen = NOTHING;
  char title[200];
  int64_t length = longest_curve(r, chosen, count);
  linear_id l = r->settings[chosen[0]].entries[0].linear;
  for (int k = 0; k < r->settings[chosen[0]].entry_count; k++)
    if (r->settings[chosen[0]].entries[k].layer == layer)
      l = r->settings[chosen[0]].entries[k].linear; /* the last: down_proj where it is a target */
  snprintf(title, sizeof title, "Spectrum of the weighted residual of model.layers.%lld.%s", (long long)layer, linear_path(l));
  TRY(sheet_begin(all, folder, "spectrum-residual", 640, settings_height(r, chosen, count), &s));
  describe(s.figure, title,
           "Leading eigenvalues of (W-Q) H (W-Q)' over tr(W H W'): what each further rank of the adapter takes off the loss.");
  fprintf(s.data, "index");
  name_columns(s.data, r, chosen, count, kinds, 1);
  for (int64_t k = 0; k + 1 < length; k++) {
    fprintf(s.data, "%lld,", (long long)k + 1);
    for (int i = 0; i < count; i++) {
      const matrix_entry *m = find_entry(&r->settings[chosen[i]], layer, l);
      double x = m && m->tail && k + 1 < m->curve_length[ON_CALIBRATION] ? m->tail[k] - m->tail[k + 1] : NAN;
      widen(&seen, x);
      if (i) fputc(',', s.data);
      csv_numbers(s.data, &x, 1);
    }
    fputc('\n', s.data);
  }
  log_axis(s.script, "y", seen);
  fprintf(s.script, "set xrange [0:%lld]\n", (long long)length);
  fprintf(s.script, "set xlabel \"index of the eigenvalue\\n\" offset 0,0.6 tc rgb 'black'\nset ylabel 'eigenvalue over tr(W H W'')' tc "
                    "rgb 'black'\nset key maxcols 2\nplot ");
  for (int i = 0; i < count; i++) {
    fprintf(s.script, "'spectrum-residual.csv' using 1:%d with linespoints ls %d title ", i + 2, i + 1);
    label(s.script, r->settings[chosen[i]].name);
    fprintf(s.script, "%s", i + 1 < count ? ", \\\n  " : "\n");
  }
done:
  return sheet_end(&s, st, all);
}

/* ---- time ---- */

static status draw_time(const json_t *story, const char *folder, figures *all) {
  status st = OK;
  sheet s = {0};
  size_t i;
  const json_t *stage;
  const char *step;
  json_t *seconds;
  double most = 0;
  int rows = 0, longest = 0; /* characters of a label */
  json_array_foreach(json_object_get(story, "stages"), i, stage) json_object_foreach(json_object_get(stage, "steps"), step, seconds) most =
      fmax(most, json_number_value(seconds));
  if (!(most > 0)) return OK;
  TRY(sheet_begin(all, folder, "time", 640, 0, &s));
  describe(s.figure, "Where the time went",
           "Seconds of the team by step of each stage, all units together; steps below 0.3 %% of the longest are left out.");
  fprintf(s.data, "stage,step,seconds,row,style\n");
  fprintf(s.script, "set ytics (");
  json_array_foreach(json_object_get(story, "stages"), i, stage) json_object_foreach(json_object_get(stage, "steps"), step, seconds) {
    char label[80];
    if (json_number_value(seconds) < 0.003 * most) continue;
    int length = snprintf(label, sizeof label, "%s: %.60s", json_string_value(json_object_get(stage, "stage")), step);
    if (length > longest) longest = length;
    fprintf(s.script, "%s", rows ? ", " : "");
    gnuplot_text(s.script, label);
    fprintf(s.script, " %d", rows);
    csv_text(s.data, json_string_value(json_object_get(stage, "stage")));
    fputc(',', s.data);
    csv_text(s.data, step);
    fprintf(s.data, ",%.6g,%d,%d\n", json_number_value(seconds), rows++, (int)i % COLOURS + 1);
  }
  s.figure->height = 90 + 26 * rows;
  fprintf(s.script,
          ")\nset yrange [%d.5:-0.5]\nset xrange [0:*]\nset xlabel 'seconds' tc rgb 'black'\nunset key\nset lmargin %d\nset grid "
          "noytics\nplot ",
          rows - 1, longest);
  for (i = 0; i < json_array_size(json_object_get(story, "stages")); i++)
    fprintf(s.script, "%s'time.csv' using ($3/2):($5 == %d ? $4 : NaN):($3/2):(0.36) with boxxyerror ls %d fs solid 0.85 noborder",
            i ? ", \\\n  " : "", (int)i % COLOURS + 1, (int)i % COLOURS + 1);
  fputc('\n', s.script);
done:
  return sheet_end(&s, st, all);
}

/* ---- all of them ---- */

/* A picture that this report does not have must not stay from an earlier one. */
static status remove_old(const char *folder) {
  static const char *const names[] = {"frontier-calibration",
                                      "frontier-heldout",
                                      "frontier-perplexity",
                                      "heat-1",
                                      "heat-2",
                                      "heat-3",
                                      "heat-4",
                                      "rank",
                                      "spectrum-gram",
                                      "spectrum-residual",
                                      "time"},
                           *const endings[] = {"csv", "gp", "svg", "pdf"};
  status st = OK;
  for (size_t k = 0; k < sizeof names / sizeof *names; k++)
    for (size_t e = 0; e < sizeof endings / sizeof *endings; e++) {
      char *path = mem_format("%s/%s.%s", folder, names[k], endings[e]);
      st = path ? file_remove(path) : fail(E_MEMORY, "report: no memory");
      FREE(path);
      if (st != OK) return st;
    }
  return st;
}

status figures_make(const run_report *r, const json_t *story, const char *run_folder, const char *folder, figures *f) {
  status st = OK;
  families groups = {0};
  int chosen[COLOURS], count = report_pick(r, COLOURS, chosen);
  *f = (figures){.drawn = true};
  TRY(file_make_folders(folder));
  TRY(remove_old(folder));
  TRY(find_families(r, &groups));
  for (int which = 0; which < FRONTIERS; which++)
    if (any_value(r, which)) TRY(draw_frontier(r, &groups, which, folder, f));
  for (int k = 0; k < count && k < HEATS_MOST; k++) TRY(draw_heat(r, &r->settings[chosen[k]], k, folder, f));
  int64_t layer =
      count && r->settings[chosen[0]].entry_count ? r->settings[chosen[0]].entries[r->settings[chosen[0]].entry_count / 2].layer : 0;
  if (longest_curve(r, chosen, count) > 1) {
    TRY(draw_ranks(r, chosen, count, folder, f));
    TRY(draw_residual(r, chosen, count, layer, folder, f));
  }
  TRY(draw_gram(r, layer, run_folder, folder, f));
  TRY(draw_time(story, folder, f));
done:
  families_free(&groups);
  if (st != OK) figures_free(f);
  return st;
}

void figures_free(figures *f) {
  for (int i = 0; i < f->count; i++) FREE(f->list[i].svg);
  f->count = 0;
}
