/* Where the time went, against plan. */
#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "report/csv.h"
#include "report/gnuplot.h"
#include "report/sheet.h"

status figure_time(const json_t *story, const char *folder, figures *all) {
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
  sheet_describe(s.figure, "Where the time went",
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
