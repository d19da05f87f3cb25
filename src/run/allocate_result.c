#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/settings.h"
#include "job/options.h"
#include "run/allocate.h"

static int bits_of(const allocator *a, int i) { return a->settings[a->list[i].points[a->choice[i]].setting]->rule.bits; }
static int rank_of(const allocator *a, int i) { return a->list[i].points[a->choice[i]].rank; }

/* The value that most matrices of a target have (LIN_COUNT: of all); of several the smallest. */
static int commonest(const allocator *a, int (*value)(const allocator *, int), int linear) {
  int best = 0, most = 0;
  for (int i = 0; i < a->count; i++) {
    int count = 0, mine = value(a, i);
    if (linear < LIN_COUNT && (int)a->list[i].linear != linear) continue;
    for (int k = 0; k < a->count; k++) count += (linear == LIN_COUNT || (int)a->list[k].linear == linear) && value(a, k) == mine;
    if (count > most || (count == most && mine < best)) best = mine, most = count;
  }
  return best;
}

/* ---- the map ---- */

/* `default`, then targets whose matrices mostly differ from it, then the matrices that differ from these. */
static json_t *numbers_json(const allocator *a, int (*value)(const allocator *, int)) {
  int usual[LIN_COUNT], everywhere = commonest(a, value, LIN_COUNT);
  json_t *map = json_pack("{s:i}", "default", everywhere);
  for (int l = 0; l < LIN_COUNT; l++) {
    if (!a->c->job.target[l]) continue;
    usual[l] = commonest(a, value, l);
    if (usual[l] != everywhere) json_object_set_new(map, linear_short((linear_id)l), json_integer(usual[l]));
  }
  for (int i = 0; i < a->count; i++) {
    char key[96];
    if (value(a, i) == usual[a->list[i].linear]) continue;
    snprintf(key, sizeof key, "layers.%lld.%s", (long long)a->list[i].layer, linear_path(a->list[i].linear));
    json_object_set_new(map, key, json_integer(value(a, i)));
  }
  return map;
}

/* Every option that the method looks at: what it would be by itself as auto, where that depends on bits. */
static status options_json(const allocator *a, json_t **map) {
  status st = OK;
  *map = json_object();
  for (int i = 0; i < option_count; i++) {
    const setting *s = a->settings[0];
    char text[OPTION_TEXT];
    json_t *value = NULL;
    if (!option_concerns(i, s->method)) continue;
    option_text(i, &s->options, text);
    if (option_is_automatic(i, s->method, s->rule.bits, s->rule.group, &s->options))
      value = json_string("auto");
    else
      TRY(settings_parse(option_name(i), text, &value));
    if (!*map || json_object_set_new(*map, option_name(i), value) != 0) {
      st = fail(E_MEMORY, "allocate: no memory");
      goto done;
    }
  }
done:
  if (st != OK) json_drop(map);
  return st;
}

static json_t *method_json(const method *m) {
  if (method_find(m->name) == m) return json_string(m->name);
  return json_pack("{s:s, s:s, s:b}", "quantizer", method_quantizer(m)->name, "init", method_init(m)->name, "magr", m->magr);
}

status allocate_write(const allocator *a, char **path) {
  status st = OK;
  json_t *map = NULL, *chosen = NULL;
  char *folder = path_join(a->c->job.output, "allocations"), *text = NULL, *there = NULL;
  size_t bytes;
  *path = folder ? mem_format("%s/%s.yaml", folder, a->name) : NULL;
  if (!*path) {
    st = fail(E_MEMORY, "allocate: no memory for a name");
    goto done;
  }
  TRY(options_json(a, &chosen));
  map = json_pack("{s:o, s:s, s:i, s:o, s:o, s:O}", "method", method_json(a->settings[0]->method), "label", a->name, "group",
                  a->settings[0]->rule.group, "bits", numbers_json(a, bits_of), "rank", numbers_json(a, rank_of), "options", chosen);
  if (!map) {
    st = fail(E_MEMORY, "allocate: no memory");
    goto done;
  }
  TRY(settings_write(map, &text));
  TRY(file_make_folders(folder));
  if (file_exists(*path)) {
    TRY(file_read(*path, 1 << 20, &there, &bytes));
    if (strcmp(there, text) != 0) {
      st = fail(E_USAGE, "%s: expected no other allocation of this name, found one: choose another --name, or remove it", *path);
      goto done;
    }
  }
  TRY(file_write_atomic(*path, text, strlen(text)));
done:
  json_drop(&map);
  json_drop(&chosen);
  FREE(folder);
  FREE(text);
  FREE(there);
  if (st != OK) FREE(*path);
  return st;
}

/* ---- the table ---- */

static int compare_int(const void *a, const void *b) { return (*(const int *)a > *(const int *)b) - (*(const int *)a < *(const int *)b); }

/* The values that were chosen, ascending; values [a->count] is written, the count returned. */
static int distinct(const allocator *a, int (*value)(const allocator *, int), int *values) {
  int count = 0;
  for (int i = 0; i < a->count; i++) values[i] = value(a, i);
  qsort(values, (size_t)a->count, sizeof *values, compare_int);
  for (int i = 0; i < a->count; i++)
    if (i == 0 || values[i] != values[count - 1]) values[count++] = values[i];
  return count;
}

static void print_counts(const allocator *a, FILE *out, int linear, int (*value)(const allocator *, int), const int *values, int count) {
  for (int k = 0; k < count; k++) {
    int matrices = 0;
    for (int i = 0; i < a->count; i++) matrices += (linear == LIN_COUNT || (int)a->list[i].linear == linear) && value(a, i) == values[k];
    if (matrices)
      fprintf(out, "%7d", matrices);
    else
      fprintf(out, "%7s", "-");
  }
}

static void print_line(FILE *out, const char *name, const outcome *o) {
  char heldout[32] = "-";
  if (!isnan(o->relative[SET_HELDOUT])) snprintf(heldout, sizeof heldout, "%.4g", o->relative[SET_HELDOUT]);
  fprintf(out, "  %-44s %15.4f %25.4g %16s\n", name, o->bits_per_weight, o->relative[SET_CALIBRATION], heldout);
}

status allocate_print(const allocator *a, const char *called, const char *path, FILE *out) {
  status st = OK;
  int *bits = NULL, *ranks = NULL;
  char name[256], head[32];
  TRY(NEW(bits, a->count, "table"));
  TRY(NEW(ranks, a->count, "table"));
  int bits_count = distinct(a, bits_of, bits), rank_count = distinct(a, rank_of, ranks);
  fprintf(out, "%s   %d matrices\n\n  matrices with  ", called, a->count);
  for (int k = 0; k < bits_count + rank_count; k++) {
    snprintf(head, sizeof head, k < bits_count ? "%d bit%s" : "r=%d", k < bits_count ? bits[k] : ranks[k - bits_count],
             k < bits_count && bits[k] == 1 ? "" : "s");
    fprintf(out, "%s%7s", k == bits_count ? "   " : "", head);
  }
  fprintf(out, "\n");
  for (int l = 0; l <= LIN_COUNT; l++) {
    if (l < LIN_COUNT && !a->c->job.target[l]) continue;
    fprintf(out, "  %-15s", l < LIN_COUNT ? linear_short((linear_id)l) : "all");
    print_counts(a, out, l, bits_of, bits, bits_count);
    fprintf(out, "   ");
    print_counts(a, out, l, rank_of, ranks, rank_count);
    fprintf(out, "\n");
  }
  fprintf(out, "\n  %-44s %15s %25s %16s\n", "", "bits per weight", "relative loss: calibration", "held-out");
  print_line(out, called, &a->ours);
  if (a->control_rank) {
    snprintf(name, sizeof name, "%.160s at rank %d", a->settings[a->control_setting]->name, a->control_rank);
    print_line(out, name, &a->control);
  }
  fprintf(out,
          "\nrelative loss   tr((W-Q-BA) H (W-Q-BA)') / tr(W H W'), from the stored numbers; mean over matrices%s\n"
          "second line     the best setting of the job that is the same for every matrix and fits the budget of %s bits per weight\n"
          "optimality gap  %.2g %%: no choice within the budget has a calibration loss lower by more than that\n\n"
          "%s: a setting of the job from now on; of what others have solved%s nothing is computed again:\n"
          "  cloqwork solve %s\n",
          a->c->arguments.weights ? ", weighted" : "", a->c->arguments.budget, 100 * a->gap, path,
          setting_nests(a->settings[0]) ? "" : " for the same rank", a->c->arguments.target);
  if (fflush(out) != 0 || ferror(out)) st = fail(E_IO, "allocate: the table cannot be written: %m");
done:
  FREE(bits);
  FREE(ranks);
  return st;
}

/* ---- JSON ---- */

static json_t *outcome_json(const outcome *o) {
  json_t *heldout = isnan(o->relative[SET_HELDOUT]) ? json_null() : json_real(o->relative[SET_HELDOUT]);
  return json_pack("{s:f, s:f, s:o}", "bits_per_weight", o->bits_per_weight, "relative_loss", o->relative[SET_CALIBRATION],
                   "relative_loss_heldout", heldout);
}

static json_t *matrices_json(const allocator *a) {
  json_t *list = json_array();
  for (int i = 0; i < a->count; i++) {
    char name[96];
    snprintf(name, sizeof name, "layers.%lld.%s", (long long)a->list[i].layer, linear_path(a->list[i].linear));
    json_array_append_new(list, json_pack("{s:s, s:i, s:i, s:f}", "matrix", name, "bits", bits_of(a, i), "rank", rank_of(a, i),
                                          "relative_loss", a->list[i].points[a->choice[i]].relative[SET_CALIBRATION]));
  }
  return list;
}

status allocate_print_json(const allocator *a, const char *called, const char *path, FILE *out) {
  status st = OK;
  json_t *control = a->control_rank ? outcome_json(&a->control) : json_null();
  if (a->control_rank) {
    json_object_set_new(control, "setting", json_string(a->settings[a->control_setting]->name));
    json_object_set_new(control, "rank", json_integer(a->control_rank));
  }
  json_t *tree = json_pack("{s:s, s:s, s:f, s:f, s:o, s:o, s:o}", "setting", called, "file", path, "budget", a->asked, "optimality_gap",
                           a->gap, "allocation", outcome_json(&a->ours), "control", control, "matrices", matrices_json(a));
  if (!tree)
    st = fail(E_MEMORY, "allocate: no memory");
  else if (json_dumpf(tree, out, JSON_INDENT(2) | JSON_REAL_PRECISION(12)) != 0 || fputc('\n', out) == EOF || fflush(out) != 0)
    st = fail(E_IO, "allocate: the JSON cannot be written: %m");
  json_decref(tree);
  return st;
}
