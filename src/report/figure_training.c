/* What training from each start came to. */
#include <math.h>
#include <string.h>

#include "report/csv.h"
#include "report/gnuplot.h"
#include "report/sheet.h"

enum { FARTHEST = 100 /* times the best perplexity after training; what begins beyond it has a line to the edge */ };

static double number_of(const json_t *row, const char *key) {
  const json_t *x = json_object_get(row, key);
  return json_is_number(x) ? json_number_value(x) : NAN;
}

static const char *start_of(const json_t *row) {
  const char *name = json_string_value(json_object_get(row, "setting"));
  return name ? name : "?";
}

/* "18.3", or "18.3 ± 0.2" */
static void after_text(const json_t *row, char text[64]) {
  double after = number_of(row, "perplexity_after"), deviation = number_of(row, "deviation");
  if (isnan(after))
    snprintf(text, 64, "-");
  else if (isnan(deviation))
    snprintf(text, 64, "%.4g", after);
  else
    snprintf(text, 64, "%.4g ± %.2g", after, deviation);
}

/* set AXIS ("y" or "y2") tics, a row each: the starts' names, or what they came to. */
static void row_tics(FILE *script, const json_t *table, const char *axis, bool names) {
  size_t i;
  const json_t *row;
  fprintf(script, "set %stics (", axis);
  json_array_foreach(table, i, row) {
    char text[64];
    fprintf(script, "%s", i ? ", " : "");
    if (names) {
      sheet_label(script, start_of(row), LABEL_SHORT);
    } else {
      after_text(row, text);
      gnuplot_text(script, text);
    }
    fprintf(script, " %zu", i);
  }
  fprintf(script, ")%s\nset %srange [%zu.5:-0.5]\n", names ? "" : " scale 0", axis, json_array_size(table) - 1);
}

status figure_training(const json_t *training, const char *folder, figures *all) {
  status st = OK;
  sheet s = {0};
  extent seen = EXTENT_NOTHING;
  size_t i, longest = 0;
  const json_t *table = json_object_get(training, "table"), *row;
  double best = HUGE_VAL;
  int beyond = 0;
  char said[80] = "";
  json_array_foreach(table, i, row) if (number_of(row, "perplexity_after") > 0) best = fmin(best, number_of(row, "perplexity_after"));
  if (!isfinite(best)) return OK;
  TRY(sheet_begin(all, folder, "training", 640, 120 + 24 * (int)json_array_size(table), &s));
  fprintf(s.data, "start,row,perplexity_before,perplexity_after,deviation,line_from,point_before\n");
  json_array_foreach(table, i, row) {
    const double before = number_of(row, "perplexity_before"), after = number_of(row, "perplexity_after");
    const bool far = !(before <= FARTHEST * best);
    const double numbers[] = {before, after, number_of(row, "deviation"), far ? 2 * FARTHEST * best : before, far ? NAN : before};
    extent_widen(&seen, after);
    extent_widen(&seen, far ? FARTHEST * best : before);
    beyond += far;
    if (strlen(start_of(row)) > longest) longest = strlen(start_of(row));
    csv_text(s.data, start_of(row));
    fprintf(s.data, ",%zu,", i);
    csv_numbers(s.data, numbers, 5);
    fputc('\n', s.data);
  }
  if (beyond) snprintf(said, sizeof said, " %d of them began above %.3g.", beyond, FARTHEST * best);
  sheet_describe(
      s.figure, "Perplexity before and after training",
      "Open: the start; filled, and in figures at the right: after training, the mean of the seeds and their standard deviation. "
      "Dashed: the original model after the same training.%s",
      said);
  sheet_log_axis(s.script, "x", seen);
  row_tics(s.script, table, "y", true);
  row_tics(s.script, table, "y2", false);
  fprintf(s.script,
          "set xlabel 'perplexity, held-out' tc rgb 'black'\nunset key\nset grid noytics\nset lmargin %zu\nset rmargin 15\nset bmargin 4\n",
          (longest < LABEL_SHORT ? longest : LABEL_SHORT) + 2);
  json_array_foreach(table, i, row) if (strcmp(start_of(row), "original") == 0 && number_of(row, "perplexity_after") > 0)
      fprintf(s.script, "set arrow from first %.9g, graph 0 to first %.9g, graph 1 nohead lc rgb 'black' dt 2\n",
              number_of(row, "perplexity_after"), number_of(row, "perplexity_after"));
  fprintf(s.script, "plot 'training.csv' using 6:2:($4-$6):(0) with vectors nohead lc rgb '#909090' lw 1.6, \\\n"
                    "  '' using 7:2 with points lc rgb '#0072b2' pt 6 ps 0.9 lw 1.6, \\\n"
                    "  '' using 4:2 axes x1y2 with points lc rgb '#0072b2' pt 7 ps 0.9\n");
done:
  return sheet_end(&s, st, all);
}
