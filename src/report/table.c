#include "report/report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "job/few_tokens.h"
#include "report/data.h"
#include "report/text.h"

enum { WIDTH = 120, WIDE = 400, GAP = 2, BETWEEN = 3, LABEL = 64 };
enum { BLOCKS_MOST = 12 }; /* settings that are shown one by one; of more, the common table says all */

/* ---- a table: labelled rows, and panels of right-aligned columns that stand side by side as long as the line has room ---- */

typedef struct panel {
  const char *title;
  int columns, width; /* of each column, gap included */
  char (*head)[CELL]; /* [columns]; owned */
  char (*cell)[CELL]; /* [rows][columns]; owned */
} panel;

static status panel_new(const char *title, int rows, int columns, panel *p) {
  status st = OK;
  *p = (panel){.title = title, .columns = columns};
  TRY(NEW(p->head, columns, "table"));
  TRY(NEW(p->cell, (size_t)rows * (size_t)columns, "table"));
done:
  return st;
}

static void panel_free(panel *p) {
  FREE(p->head);
  FREE(p->cell);
}

static char *panel_cell(panel *p, int row, int column) { return p->cell[row * p->columns + column]; }

static void panel_fit(panel *p, int rows) {
  p->width = 0;
  for (int i = 0; i < (rows + 1) * p->columns; i++) {
    int length = GAP + (int)strlen(i < p->columns ? p->head[i] : p->cell[i - p->columns]);
    if (length > p->width) p->width = length;
  }
  int title = GAP + (int)strlen(p->title);
  if (p->columns == 1 && p->width < title) p->width = title; /* a lone column ends where its title does */
}

/* The title stands above the first column and may be wider than a narrow panel. */
static int panel_width(const panel *p) {
  int columns = p->columns * p->width, title = GAP + (int)strlen(p->title);
  return columns > title ? columns : title;
}

static void print_panels(FILE *out, int most, int rows, char (*label)[LABEL], int label_width, const panel *panels, int count) {
  for (int first = 0, end; first < count; first = end) {
    int width = label_width;
    for (end = first; end < count; end++) {
      int wider = width + (end > first ? BETWEEN : 0) + panel_width(&panels[end]);
      if (end > first && wider > most) break;
      width = wider;
    }
    for (int row = -2; row < rows; row++) { /* -2: titles, -1: heads */
      char line[1024];
      int at = snprintf(line, sizeof line, "%-*s", label_width, row < 0 ? "" : label[row]), stop = label_width;
      for (int i = first; i < end && at < (int)sizeof line - 2 * CELL; i++) {
        const panel *p = &panels[i];
        at += snprintf(line + at, sizeof line - (size_t)at, "%*s", stop - at, "");
        if (row == -2) at += snprintf(line + at, sizeof line - (size_t)at, "%*s%s", GAP, "", p->title);
        for (int k = 0; row > -2 && k < p->columns && at < (int)sizeof line - 2 * CELL; k++)
          at += snprintf(line + at, sizeof line - (size_t)at, "%*s", p->width, row == -1 ? p->head[k] : p->cell[row * p->columns + k]);
        stop += panel_width(p) + BETWEEN;
      }
      while (at > 0 && line[at - 1] == ' ') at--;
      fprintf(out, "%.*s\n", at, line);
    }
  }
}

/* ---- one setting ---- */

static status losses_panel(const setting_report *s, int gram, const int *types, int rows, panel *p) {
  status st = OK;
  TRY(panel_new(loss_titles[gram], rows, s->point_count, p));
  for (int k = 0; k < s->point_count; k++) {
    rank_head(s->points[k], p->head[k]);
    for (int i = 0; i < rows; i++) three_digits(s->matrix[types[i]].loss[gram][k], panel_cell(p, i, k));
  }
  panel_fit(p, rows);
done:
  return st;
}

static status seconds_panel(const setting_report *s, const int *types, int rows, panel *p) {
  status st = OK;
  TRY(panel_new("time", rows, 1, p));
  snprintf(p->head[0], CELL, "s");
  for (int i = 0; i < rows; i++) {
    double seconds = s->matrix[types[i]].seconds;
    snprintf(panel_cell(p, i, 0), CELL, seconds < 100 ? "%.2f" : "%.0f", seconds);
  }
  panel_fit(p, rows);
done:
  return st;
}

static bool same_cells(char (*a)[CELL], char (*b)[CELL], int count) {
  for (int k = 0; k < count; k++)
    if (strcmp(a[k], b[k]) != 0) return false;
  return true;
}

/* Types of the same size cost the same bits: they share a row, "q_proj o_proj". Columns stand below those of the losses. */
static status print_bits(FILE *out, const setting_report *s, const int *types, int count, int label_width, int column_width) {
  status st = OK;
  panel p = {0};
  char(*label)[LABEL] = NULL;
  int rows = 0;
  TRY(panel_new("bits per weight", count, s->point_count, &p));
  TRY(NEW(label, count, "table"));
  for (int k = 0; k < s->point_count; k++) rank_head(s->points[k], p.head[k]);
  for (int i = 0; i < count; i++) {
    const matrix_report *m = &s->matrix[types[i]];
    char(*cells)[CELL] = &p.cell[rows * s->point_count];
    for (int k = 0; k < s->point_count; k++) bits_text(m->bits[k], cells[k]);
    int same = 0;
    while (same < rows && !same_cells(&p.cell[same * s->point_count], cells, s->point_count)) same++;
    if (types[i] == MATRIX_ALL) same = rows;
    if (same == rows) rows++;
    size_t used = strlen(label[same]);
    snprintf(label[same] + used, LABEL - used, "%s%.*s", used ? " " : "  ", (int)strcspn(matrix_name(types[i]), "_"),
             matrix_name(types[i]));
    if ((int)strlen(label[same]) > label_width) label_width = (int)strlen(label[same]);
  }
  panel_fit(&p, rows);
  if (p.width < column_width) p.width = column_width;
  print_panels(out, WIDTH, rows, label, label_width, &p, 1);
done:
  panel_free(&p);
  FREE(label);
  return st;
}

/* ---- evaluation ---- */

/* Columns stand below those of the losses. */
static status print_eval(FILE *out, const run_report *r, const setting_report *s, int label_width, int column_width) {
  status st = OK;
  panel p = {0};
  char label[EVAL_ROWS][LABEL], title[128], reference[CELL];
  eval_cell(&r->original.points[0], EVAL_PERPLEXITY, reference);
  snprintf(title, sizeof title, "evaluated on %lld x %lld tokens, original: perplexity %s", (long long)s->eval.identity.windows,
           (long long)s->eval.identity.length, reference);
  TRY(panel_new(title, EVAL_ROWS, s->point_count, &p));
  for (int k = 0; k < s->point_count; k++) {
    rank_head(s->points[k], p.head[k]);
    for (int i = 0; i < EVAL_ROWS; i++) eval_cell(eval_result_find(&s->eval, s->points[k]), i, panel_cell(&p, i, k));
  }
  for (int i = 0; i < EVAL_ROWS; i++) {
    snprintf(label[i], LABEL, "  %s", eval_names[i]);
    if ((int)strlen(label[i]) > label_width) label_width = (int)strlen(label[i]);
  }
  panel_fit(&p, EVAL_ROWS);
  if (p.width < column_width) p.width = column_width;
  print_panels(out, WIDTH, EVAL_ROWS, label, label_width, &p, 1);
done:
  panel_free(&p);
  return st;
}

static void print_heading(FILE *out, const run_report *r, const setting_report *s) {
  char bits[64], share[64], layers[128];
  if (s->bits_most > s->bits)
    snprintf(bits, sizeof bits, "%lld to %lld bits", (long long)s->bits, (long long)s->bits_most);
  else
    snprintf(bits, sizeof bits, "%lld bit%s", (long long)s->bits, s->bits == 1 ? "" : "s");
  if (s->group)
    snprintf(share, sizeof share, "%lld columns per scale", (long long)s->group);
  else
    snprintf(share, sizeof share, "one scale per row");
  if (r->layers > s->layers)
    snprintf(layers, sizeof layers, "(%lld of %lld layers)", (long long)s->layers, (long long)r->layers);
  else
    snprintf(layers, sizeof layers, "%lld layer%s", (long long)s->layers, s->layers == 1 ? "" : "s");
  fprintf(out, "\n%s   %s, %s, %s%s\n", s->name, bits, share, layers, s->own_inputs ? ", on inputs of its own prefix" : "");
}

/* "codes of r=4 serve r=6 8, of r=16 serve r=24" */
static void print_variants(FILE *out, const setting_report *s) {
  int of = 0;
  for (int p = 1; p < s->point_count; p++) {
    if (s->variants[p] == 0 || s->variants[p] == s->points[p]) continue;
    if (s->variants[p] == of)
      fprintf(out, " %d", s->points[p]);
    else
      fprintf(out, "%s of r=%d serve r=%d", of ? "," : "  codes", s->variants[p], s->points[p]);
    of = s->variants[p];
  }
  if (of) fprintf(out, ", too: what was refined for that rank, with the adapter's columns of this one\n");
}

static void print_adapter_size(FILE *out, const setting_report *s) {
  double size = s->matrix[MATRIX_ALL].adapter_size;
  if (!(size > 0)) return;
  fprintf(out, "  adapter at r=%d: %.3g of W%s\n", s->points[s->point_count - 1], size,
          s->refined ? "; the codes were made for it: Q without it is useless" : "");
}

static status print_setting(FILE *out, const run_report *r, const setting_report *s) {
  status st = OK;
  enum { LABEL_WIDTH = 16 }; /* "  gate up down", the longest */
  panel panels[GRAM_KINDS + 1] = {{0}};
  char label[MATRIX_TYPES][LABEL];
  int types[MATRIX_TYPES], rows = 0, count = 0;
  for (int k = 0; k < MATRIX_TYPES; k++)
    if (s->matrix[k].count) {
      snprintf(label[rows], LABEL, "  %s", matrix_name(k));
      types[rows++] = k;
    }
  print_heading(out, r, s);
  for (int gram = 0; gram < GRAM_KINDS; gram++)
    if (gram == ON_CALIBRATION || has_values(s, gram)) TRY(losses_panel(s, gram, types, rows, &panels[count++]));
  TRY(seconds_panel(s, types, rows, &panels[count++]));
  print_panels(out, WIDTH, rows, label, LABEL_WIDTH, panels, count);
  TRY(print_bits(out, s, types, rows, LABEL_WIDTH, panels[0].width));
  print_variants(out, s);
  print_adapter_size(out, s);
  if (s->eval.count) TRY(print_eval(out, r, s, LABEL_WIDTH, panels[0].width));
done:
  for (int i = 0; i < GRAM_KINDS + 1; i++) panel_free(&panels[i]);
  return st;
}

/* ---- all settings, side by side ---- */

/* One panel of the common table: its numbers are filled in by column and setting. */
enum { SUMMARY_MOST = 4 + EVAL_ROWS };

static void fill_summary(const run_report *r, const int *points, int count, int gram, bool many, int evals, panel *panels) {
  for (int i = 0; i < r->setting_count; i++) {
    const setting_report *s = &r->settings[i];
    const matrix_report *m = &s->matrix[MATRIX_ALL];
    for (int k = 0; k < count; k++) {
      int p = report_find_point(s, points[k]), at = 0;
      if (many && gram == ON_HELDOUT) three_digits(p < 0 ? NAN : m->loss[ON_CALIBRATION][p], panel_cell(&panels[at++], i, k));
      three_digits(p < 0 ? NAN : m->loss[gram][p], panel_cell(&panels[at++], i, k));
      bits_text(p < 0 ? NAN : m->bits[p], panel_cell(&panels[at++], i, k));
      for (int j = 0; j < evals; j++) eval_cell(eval_result_find(&s->eval, points[k]), j, panel_cell(&panels[at++], i, k));
      if (many && k == 0) snprintf(panel_cell(&panels[at], i, 0), CELL, "%.2f", m->seconds);
    }
  }
}

/* many: the settings have no blocks of their own, so all that these would say of their matrices together. */
static status print_summary(FILE *out, const run_report *r, bool many) {
  status st = OK;
  panel panels[SUMMARY_MOST] = {{0}};
  char(*label)[LABEL] = NULL;
  int *points = NULL, count = 0, gram = ON_HELDOUT, width = 0, panel_count = 0, evals = 0;
  for (int i = 0; i < r->setting_count; i++) {
    if (!has_values(&r->settings[i], ON_HELDOUT)) gram = ON_CALIBRATION;
    if (r->settings[i].eval.count) evals = EVAL_ROWS;
  }
  TRY(all_points(r, &points, &count));
  TRY(NEW(label, r->setting_count, "table"));
  if (many && gram == ON_HELDOUT) TRY(panel_new(loss_titles[ON_CALIBRATION], r->setting_count, count, &panels[panel_count++]));
  TRY(panel_new(loss_titles[gram], r->setting_count, count, &panels[panel_count++]));
  TRY(panel_new("bits per weight", r->setting_count, count, &panels[panel_count++]));
  for (int i = 0; i < evals; i++) TRY(panel_new(eval_names[i], r->setting_count, count, &panels[panel_count++]));
  for (int k = 0; k < count; k++)
    for (int i = 0; i < panel_count; i++) rank_head(points[k], panels[i].head[k]);
  if (many) {
    TRY(panel_new("time", r->setting_count, 1, &panels[panel_count++]));
    snprintf(panels[panel_count - 1].head[0], CELL, "s");
  }
  for (int i = 0; i < r->setting_count; i++) {
    int length = snprintf(label[i], LABEL, "  %s", r->settings[i].name);
    if (length >= LABEL) length = LABEL - 1; /* a long name is cut; --json has it whole */
    if (length > width) width = length;
  }
  fill_summary(r, points, count, gram, many, evals, panels);
  for (int i = 0; i < panel_count; i++) panel_fit(&panels[i], r->setting_count);
  fprintf(out, "\nAll settings, all matrices\n");
  print_panels(out, many ? WIDE : WIDTH, r->setting_count, label, width, panels, panel_count);
done:
  for (int i = 0; i < panel_count; i++) panel_free(&panels[i]);
  FREE(label);
  FREE(points);
  return st;
}

static void print_legend(FILE *out, bool evaluated, bool own_inputs) {
  fprintf(out, "\n"
               "relative loss   tr((W-Q-BA) H (W-Q-BA)') / tr(W H W'), from the stored numbers; geometric mean over layers\n"
               "base, r=8       without adapter; with the adapter's first 8 columns\n"
               "adapter … of W  ||BA||_F / ||W||_F, geometric mean over matrices\n"
               "bits per weight codes and grid as exported (fp16 scales, b-bit zeros; NF4: absmax), at r=8 with the adapter in fp16\n"
               "time            seconds of one rank for MagR, factor, codes and the adapter at the largest rank, as if the setting were\n"
               "                alone; summed over layers, without losses\n");
  if (own_inputs)
    fprintf(out, "own prefix      losses of such a setting are on its own inputs and targets: perplexity and KL compare it with others\n");
  if (evaluated)
    fprintf(
        out,
        "KL to original  mean KL(original || this) of the next token's distribution, in nats; top-1: both find the same one likeliest\n");
}

status table_write(FILE *out, const char *run_folder, const run_report *r) {
  status st = OK;
  char few[FEW_TOKENS_TEXT];
  bool many = r->setting_count > BLOCKS_MOST;
  fprintf(out, "%s", run_folder);
  if (*r->model) fprintf(out, "   model %s", r->model);
  if (r->layers) fprintf(out, ", %lld layers", (long long)r->layers);
  if (r->tokens) fprintf(out, ", %lld calibration tokens", (long long)r->tokens);
  if (r->heldout_tokens) fprintf(out, ", %lld held out", (long long)r->heldout_tokens);
  fprintf(out, "\n");
  if (few_tokens(r->per_column, few)) fprintf(out, "warning: %s\n", few);
  for (int i = 0; i < r->setting_count && !many; i++) TRY(print_setting(out, r, &r->settings[i]));
  if (r->setting_count > 1) TRY(print_summary(out, r, many));
  if (many)
    fprintf(out, "\nBy kinds of matrices: cloqwork report %s --settings PATTERN, of at most %d settings\n", run_folder, BLOCKS_MOST);
  print_legend(out, r->original.count > 0, report_own_inputs(r));
  if (fflush(out) != 0 || ferror(out)) st = fail(E_IO, "report: the table cannot be written: %m");
done:
  return st;
}

status report_table(const char *run_folder, const job *asked, const char *pattern, FILE *out) {
  status st = OK;
  run_report r;
  TRY(report_read(run_folder, asked, pattern, &r));
  st = table_write(out, run_folder, &r);
  report_free(&r);
done:
  return st;
}
