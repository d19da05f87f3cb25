/* Loss and perplexity against bits per weight, a curve for each family of settings. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "report/csv.h"
#include "report/sheet.h"
#include "report/text.h"

enum { PERPLEXITY_MOST = 100 /* times the original's */ };

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
  return sheet_key_height(f->count > COLOURS ? COLOURS + 1 : f->count + 1, longest); /* one for the others, or the original */
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
        extent_widen(seen, numbers[1]);
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
  sheet_label(script, family, LABEL_MOST);
  fprintf(script, ", \\\n  ");
}

static status draw_frontier(const run_report *r, const families *f, int which, const char *folder, figures *all) {
  static const char *const names[] = {"frontier-calibration", "frontier-heldout", "frontier-perplexity"},
                           *const titles[] = {"Loss on the calibration tokens against size", "Loss on held-out tokens against size",
                                              "Perplexity against size"},
                           *const axes[] = {"relative loss", "relative loss", "perplexity"};
  status st = OK;
  sheet s = {0};
  extent seen = EXTENT_NOTHING;
  int hidden = 0;
  char above[80] = "";
  TRY(sheet_begin(all, folder, names[which], 640, PLOT_HEIGHT + families_height(r, f), &s));
  frontier_data(s.data, r, f, which, &seen, &hidden);
  if (hidden)
    snprintf(above, sizeof above, " %d point%s above %d times its perplexity not shown.", hidden, hidden == 1 ? "" : "s", PERPLEXITY_MOST);
  sheet_describe(s.figure, titles[which],
                 "A line is a setting, its points the base alone (leftmost) and each rank; one colour a method, down-left is better.%s%s%s",
                 which == FRONTIER_PERPLEXITY ? " Dashed: the original model." : " Geometric mean over all matrices.", above,
                 which != FRONTIER_PERPLEXITY && report_own_inputs(r) ? " Of settings with act_quantizer: on inputs of their own." : "");
  if (which == FRONTIER_PERPLEXITY && r->original.count) extent_widen(&seen, r->original.points[0].perplexity);
  sheet_log_axis(s.script, "y", seen);
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

status figure_frontiers(const run_report *r, const char *folder, figures *all) {
  status st = OK;
  families groups = {0};
  TRY(find_families(r, &groups));
  for (int which = 0; which < FRONTIERS; which++)
    if (any_value(r, which)) TRY(draw_frontier(r, &groups, which, folder, all));
done:
  families_free(&groups);
  return st;
}
