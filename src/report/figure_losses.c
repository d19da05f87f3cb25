/* Losses by layer and matrix, and against rank. */
#include <math.h>
#include <string.h>

#include "report/csv.h"
#include "report/gnuplot.h"
#include "report/sheet.h"
#include "report/text.h"

/* ---- heat maps ---- */

status figure_heat(const run_report *r, const setting_report *s, int number, const char *folder, figures *all) {
  status st = OK;
  sheet h = {0};
  char name[32], title[200];
  int row[LIN_COUNT], rows = 0, gram = report_gram(r), last = s->point_count - 1;
  int64_t first = INT64_MAX, end = 0;
  extent seen = EXTENT_NOTHING;
  snprintf(name, sizeof name, "heat-%d", number + 1);
  snprintf(title, sizeof title, "Relative loss by layer: %s", s->name);
  for (int l = 0; l < LIN_COUNT; l++) row[l] = s->matrix[l].count ? rows++ : -1;
  TRY(sheet_begin(all, folder, name, 640, 130 + 2 * (60 + 20 * rows), &h));
  sheet_describe(h.figure, title, "On %s tokens; above the codes alone, below with the adapter at r=%d.",
                 gram == ON_HELDOUT ? "held-out" : "calibration", s->points[last]);
  fprintf(h.data, "layer,matrix,row,without,with_adapter\n");
  for (int i = 0; i < s->entry_count; i++) {
    const matrix_entry *m = &s->entries[i];
    const double numbers[] = {m->loss[gram][0], m->loss[gram][last]};
    extent_widen(&seen, numbers[0]);
    extent_widen(&seen, numbers[1]);
    if (m->layer < first) first = m->layer;
    if (m->layer >= end) end = m->layer + 1;
    fprintf(h.data, "%lld,%s,%d,", (long long)m->layer, linear_short(m->linear), row[m->linear]);
    csv_numbers(h.data, numbers, 2);
    fputc('\n', h.data);
  }
  sheet_log_axis(h.script, "cb", seen);
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

static double geometric_mean(double sum_of_logs, int count) { return count ? exp(sum_of_logs / count) : NAN; }

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

status figure_ranks(const run_report *r, const int *chosen, int count, const char *folder, figures *all) {
  static const char *const kinds[] = {"loss", "held-out", "tail"};
  status st = OK;
  sheet s = {0};
  extent seen = EXTENT_NOTHING;
  int64_t length = sheet_longest_curve(r, chosen, count);
  TRY(sheet_begin(all, folder, "rank", 640, sheet_settings_height(r, chosen, count), &s));
  sheet_describe(
      s.figure, "Loss against rank",
      "Lines: the stored loss on the calibration tokens; open circles: the exact optimum, the tail of the spectrum; dotted: held-out "
      "tokens. "
      "Geometric mean over matrices; of codes refined for a rank, those of the largest.");
  fprintf(s.data, "rank");
  sheet_name_columns(s.data, r, chosen, count, kinds, 3);
  for (int64_t rank = 0; rank < length; rank++) {
    fprintf(s.data, "%lld", (long long)rank);
    for (int k = 0; k < count; k++) {
      double numbers[3];
      for (int g = 0; g < 3; g++) numbers[g] = mean_curve(&r->settings[chosen[k]], g, rank);
      for (int g = 0; g < 3; g++) extent_widen(&seen, numbers[g]);
      fputc(',', s.data);
      csv_numbers(s.data, numbers, 3);
    }
    fputc('\n', s.data);
  }
  sheet_log_axis(s.script, "y", seen);
  fprintf(s.script, "set xrange [0:%lld]\n", (long long)length);
  fprintf(s.script, "set xlabel \"rank of the adapter\\n\" offset 0,0.6 tc rgb 'black'\nset ylabel 'relative loss' tc rgb 'black'\nset key "
                    "maxcols 2\nplot ");
  for (int k = 0; k < count; k++) {
    fprintf(s.script, "'rank.csv' using 1:%d with lines ls %d title ", 2 + 3 * k, k + 1);
    sheet_label(s.script, r->settings[chosen[k]].name, LABEL_MOST);
    fprintf(s.script,
            ", \\\n  '' using 1:%d with lines ls %d dt 3 notitle, \\\n  '' every %lld using 1:%d with points ls %d pt 6 ps 0.7 notitle%s",
            3 + 3 * k, k + 1, (long long)(length > 16 ? length / 16 : 1), 4 + 3 * k, k + 1, k + 1 < count ? ", \\\n  " : "\n");
  }
done:
  return sheet_end(&s, st, all);
}
