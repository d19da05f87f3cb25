/* A picture's sheet of data and of script, and what pictures share: axes, legends, colours. Local; private to figures.c and figure_*.c.
 *
 * A picture is made between sheet_begin and sheet_end, which closes the files whatever happened and has gnuplot draw. */
#ifndef CLOQWORK_REPORT_SHEET_H
#define CLOQWORK_REPORT_SHEET_H

#include <math.h>
#include <stdio.h>

#include "report/figures.h"

enum { COLOURS = 6, PLOT_HEIGHT = 400 };

typedef struct sheet {
  const char *folder; /* borrowed, like figure */
  figure *figure;
  FILE *data, *script;
} sheet;

/* The next figure of all, FOLDER/NAME.csv and NAME.gp, the latter with what all scripts begin with. E_IO, E_MEMORY. */
status sheet_begin(figures *all, const char *folder, const char *name, int width, int height, sheet *s);
status sheet_end(sheet *s, status st, figures *all);
void sheet_describe(figure *f, const char *title, const char *format, ...) __attribute__((format(printf, 3, 4))); /* title and caption */

/* What is seen of positive numbers. */
typedef struct extent {
  double low, high;
} extent;
static const extent EXTENT_NOTHING = {HUGE_VAL, 0};
void extent_widen(extent *e, double x);
void sheet_log_axis(FILE *script, const char *axis, extent e);

enum { LABEL_MOST = 64, LABEL_SHORT = 30 };
void sheet_label(FILE *script, const char *name,
                 size_t most);                   /* a name of more characters (LABEL_MOST can be asked for) loses its middle */
int sheet_key_height(int count, size_t longest); /* of a legend */
int sheet_settings_height(const run_report *r, const int *chosen, int count); /* of a picture with these settings' names */

/* Of the loss curves of chosen settings: entries of the longest; the first line of their data, "rank,NAME KIND,…". */
int64_t sheet_longest_curve(const run_report *r, const int *chosen, int count);
void sheet_name_columns(FILE *out, const run_report *r, const int *chosen, int count, const char *const *kinds, int kind_count);

/* The pictures. E_IO, E_DATA, E_MEMORY. */
status figure_frontiers(const run_report *r, const char *folder, figures *all);
status figure_heat(const run_report *r, const setting_report *s, int number, const char *folder, figures *all);
status figure_ranks(const run_report *r, const int *chosen, int count, const char *folder, figures *all);
status figure_gram(const run_report *r, int64_t layer, const char *run_folder, const char *folder, figures *all);
status figure_residual(const run_report *r, const int *chosen, int count, int64_t layer, const char *folder, figures *all);
status figure_time(const json_t *story, const char *folder, figures *all);
status figure_training(const json_t *training, const char *folder, figures *all); /* of the story; none without one */

#endif
