#include "report/text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

void three_digits(double x, char text[CELL]) {
  if (!isfinite(x) || x <= 0) {
    snprintf(text, CELL, "%s", x == 0 ? "0" : isinf(x) ? "inf" : "-");
    return;
  }
  snprintf(text, CELL, "%.2e", x); /* d.dde-05: the exponent after rounding */
  char *e = strchr(text, 'e');
  int exponent = atoi(e + 1);
  if (exponent >= -3 && exponent <= 2)
    snprintf(text, CELL, "%.*f", 2 - exponent, x);
  else
    snprintf(e + 1, (size_t)(text + CELL - e - 1), "%d", exponent);
}

void bits_text(double bits, char text[CELL]) { snprintf(text, CELL, isnan(bits) ? "-" : "%.2f", bits); }

void rank_head(int rank, char text[CELL]) {
  if (rank)
    snprintf(text, CELL, "r=%d", rank);
  else
    snprintf(text, CELL, "base");
}

const char *matrix_name(int k) { return k == MATRIX_ALL ? "all" : linear_short((linear_id)k); }

bool has_values(const setting_report *s, int gram) {
  for (int p = 0; p < s->point_count; p++)
    if (!isnan(s->matrix[MATRIX_ALL].loss[gram][p])) return true;
  return false;
}

const char *const loss_titles[GRAM_KINDS] = {"relative loss, calibration tokens", "relative loss, held-out tokens"};

const char *const eval_names[EVAL_ROWS] = {"perplexity", "KL to original", "top-1 agrees %"};

void eval_cell(const eval_point *p, int which, char text[CELL]) {
  if (!p)
    snprintf(text, CELL, "-");
  else if (which == EVAL_PERPLEXITY)
    snprintf(text, CELL, p->perplexity < 10 ? "%.3f" : p->perplexity < 1000 ? "%.2f" : "%.4g", p->perplexity);
  else if (which == EVAL_KL)
    three_digits(p->kl, text);
  else
    snprintf(text, CELL, "%.1f", 100 * p->top1);
}

status all_points(const run_report *r, int **points, int *count) {
  status st = OK;
  size_t room = 0;
  *count = 0;
  for (int i = 0; i < r->setting_count; i++) room += (size_t)r->settings[i].point_count;
  TRY(NEW(*points, room, "ranks"));
  for (int last = -1, next;; last = next) {
    next = -1;
    for (int i = 0; i < r->setting_count; i++)
      for (int k = 0; k < r->settings[i].point_count; k++) {
        int p = r->settings[i].points[k];
        if (p > last && (next < 0 || p < next)) next = p;
      }
    if (next < 0) break;
    (*points)[(*count)++] = next;
  }
done:
  return st;
}

int report_gram(const run_report *r) {
  for (int i = 0; i < r->setting_count; i++)
    if (!has_values(&r->settings[i], ON_HELDOUT)) return ON_CALIBRATION;
  return ON_HELDOUT;
}

static double last_loss(const setting_report *s, int gram) {
  double loss = s->matrix[MATRIX_ALL].loss[gram][s->point_count - 1];
  return isfinite(loss) ? loss : HUGE_VAL;
}

int report_pick(const run_report *r, int most, int *chosen) {
  int count = 0, gram = report_gram(r);
  for (int turn = 0; count < most && count < r->setting_count; turn++)
    for (int64_t bits = 1; bits <= 16 && count < most; bits++) {
      int best = -1;
      for (int i = 0; i < r->setting_count; i++) {
        const setting_report *s = &r->settings[i];
        bool taken = s->bits != bits;
        for (int k = 0; k < count; k++) taken |= chosen[k] == i;
        if (!taken && (best < 0 || last_loss(s, gram) < last_loss(&r->settings[best], gram))) best = i;
      }
      if (best >= 0) chosen[count++] = best;
    }
  return count;
}
