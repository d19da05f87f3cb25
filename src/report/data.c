#include "report/data.h"

#include <dirent.h>
#include <errno.h>
#include <fnmatch.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"
#include "job/methods.h"
#include "session/unit.h"
#include "solution/solution.h"
#include "store/container.h"

/* ---- folders ---- */

int report_is_layer_file(const struct dirent *e) {
  long long layer;
  int end = 0;
  return sscanf(e->d_name, "layer-%lld.h5%n", &layer, &end) == 1 && end > 0 && e->d_name[end] == 0;
}

int report_is_shown(const struct dirent *e) { return e->d_name[0] != '.'; }

status report_list(const char *path, int (*accept)(const struct dirent *), struct dirent ***names, int *count) {
  *count = scandir(path, names, accept, versionsort);
  if (*count >= 0) return OK;
  *count = 0;
  *names = NULL;
  return errno == ENOENT || errno == ENOTDIR ? OK : fail(E_IO, "%s: cannot be listed: %m", path);
}

void report_list_free(struct dirent ***names, int count) {
  for (int i = 0; *names && i < count; i++) free((*names)[i]);
  free(*names);
  *names = NULL;
}

/* ---- one solution file ---- */

static int linear_of_group(const char *group) {
  for (int l = 0; l < LIN_COUNT; l++)
    if (strcmp(group, linear_path((linear_id)l)) == 0) return l;
  return -1;
}

/* The loss curve [rank + 1] of a group, owned; NULL when the file has none under that name. */
static status read_curve(container *c, const char *path, const char *group, const char *name, double **curve, int64_t *length) {
  status st = OK;
  char place[128];
  element type;
  int rank;
  int64_t dims[3];
  *curve = NULL;
  *length = 0;
  snprintf(place, sizeof place, "%.100s/%s", group, name);
  if (!container_has(c, place)) return OK;
  TRY(container_shape(c, place, &type, &rank, dims));
  if (rank != 1 || dims[0] < 1) {
    st = fail(E_DATA, "%s: %s: expected a list of losses, found %d dimensions", path, place, rank);
    goto done;
  }
  TRY(NEW(*curve, dims[0], "losses"));
  TRY(container_read(c, place, EL_F64, 0, dims[0], *curve));
  *length = dims[0];
done:
  if (st != OK) FREE(*curve);
  return st;
}

/* out and in, from the adapter's shapes. */
static status read_sides(container *c, const char *path, const char *group, int64_t *out, int64_t *in) {
  status st = OK;
  char place[128];
  element type;
  int rank_a, rank_b;
  int64_t a[3], b[3];
  snprintf(place, sizeof place, "%.100s/lora_A", group);
  TRY(container_shape(c, place, &type, &rank_a, a));
  snprintf(place, sizeof place, "%.100s/lora_B", group);
  TRY(container_shape(c, place, &type, &rank_b, b));
  if (rank_a != 2 || rank_b != 2 || a[0] != b[1] || a[1] < 1 || b[0] < 1)
    return fail(E_DATA, "%s: %s: expected lora_A (rank, in) and lora_B (out, rank), found other shapes", path, group);
  *out = b[0];
  *in = a[1];
done:
  return st;
}

/* While a setting is read, loss holds sums of logarithms and bits sums of bits; weights and counted[] what to divide them by. */
typedef struct totals {
  double weights;
  int64_t counted; /* matrices with a reference above 0 */
} totals;

/* One loss curve of a group, or of one of its variants. */
typedef struct curves {
  double *loss[GRAM_KINDS], reference[GRAM_KINDS], seconds, adapter_size, tokens;
  double *values; /* [value_count] leading eigenvalues, last the sum of all others; NULL where they say nothing of this loss */
  int64_t length[GRAM_KINDS], value_count, numerical_rank, raised_scales;
  solution shape; /* without arrays */
  bool own_rank, own_inputs;
} curves;

static void free_curves(curves *c) {
  for (int g = 0; g < GRAM_KINDS; g++) FREE(c->loss[g]);
  FREE(c->values);
}

/* What the group says of its grid, enough for its size. */
static status read_shape(container *c, const char *path, const char *group, const attributes *a, solution *s) {
  status st = OK;
  char place[160];
  int64_t out = 0, in = 0, bits = attr_get_int(a, "bits", 0), columns = attr_get_int(a, "group", 0);
  grid_rule rule = {.bits = (int)bits, .group = (int)columns, .real_zero = strcmp(attr_get_text(a, "zero"), "real") == 0};
  TRY(read_sides(c, path, group, &out, &in));
  if (!grid_named(attr_get_text(a, "grid"), bits, &rule.kind) || columns < 0 || (columns && in % columns)) {
    st = fail(E_DATA, "%s: %s: expected a grid with a group that divides %lld, found %s of %lld bits, group %lld", path, group,
              (long long)in, attr_get_text(a, "grid"), (long long)bits, (long long)columns);
    goto done;
  }
  snprintf(place, sizeof place, "%.100s/absmax_codes", group);
  rule.nested = container_has(c, place);
  snprintf(place, sizeof place, "%.100s/widths", group);
  rule.mixed = container_has(c, place);
  *s = solution_of(out, in, &rule, 0);
done:
  return st;
}

static status read_curves(container *c, const char *path, const char *group, curves *v) {
  status st = OK;
  attributes a = {0};
  TRY(container_attributes(c, group, &a));
  TRY(read_shape(c, path, group, &a, &v->shape));
  TRY(read_curve(c, path, group, "loss", &v->loss[ON_CALIBRATION], &v->length[ON_CALIBRATION]));
  TRY(read_curve(c, path, group, "loss_heldout", &v->loss[ON_HELDOUT], &v->length[ON_HELDOUT]));
  v->reference[ON_CALIBRATION] = attr_get_real(&a, "reference", NAN);
  v->reference[ON_HELDOUT] = attr_get_real(&a, "reference_heldout", NAN);
  v->tokens = (double)attr_get_int(&a, "tokens", 0);
  v->adapter_size = attr_get_real(&a, "adapter_size", NAN);
  v->seconds = attr_get_real(&a, "seconds", 0);
  v->own_rank = attr_get_int(&a, "own_rank", 0) == 1;
  const char *activations = attr_get_text(&a, "act_quantizer");
  v->own_inputs = *activations && strcmp(activations, "fp") != 0;
  v->numerical_rank = attr_get_int(&a, "numerical_rank", 0);
  v->raised_scales = attr_get_int(&a, "scales_raised_from_zero", 0);
  const char *in_which = attr_get_text(&a, "certificate");
  bool of_this_loss = strcmp(in_which, metric_names[METRIC_GRAM]) == 0 || strcmp(in_which, metric_names[METRIC_POOLED]) == 0;
  if (of_this_loss && atof(attr_get_text(&a, "adapter_damping")) == 0)
    TRY(read_curve(c, path, group, "eigenvalues", &v->values, &v->value_count));
done:
  attr_free(&a);
  return st;
}

static void add_point(const curves *v, int point, int p, matrix_report *m, bool counted) {
  int64_t last = v->length[ON_CALIBRATION] - 1;
  int64_t rank = v->own_rank && point > last ? last : point;
  m->bits[p] += solution_size(&v->shape, (int)rank);
  for (int g = 0; counted && g < GRAM_KINDS; g++) /* loss 0 gives -inf, whose mean is 0 */
    m->loss[g][p] += rank < v->length[g] ? log(fmax(v->loss[g][rank], 0) / v->reference[g]) : NAN;
}

/* ---- its entry ---- */

static status entry_new(setting_report *s, int64_t layer, linear_id l, matrix_entry **entry) {
  status st = OK;
  TRY(GROW(s->entries, s->entry_count, s->entry_room, "matrices of a report"));
  matrix_entry *m = *entry = &s->entries[s->entry_count++];
  *m = (matrix_entry){.linear = l, .layer = layer};
  TRY(NEW(m->bits, s->point_count, "results"));
  for (int g = 0; g < GRAM_KINDS; g++) TRY(NEW(m->loss[g], s->point_count, "results"));
done:
  return st;
}

static void entry_free(matrix_entry *m) {
  FREE(m->bits);
  FREE(m->tail);
  for (int g = 0; g < GRAM_KINDS; g++) FREE(m->loss[g]);
  for (int g = 0; g < GRAM_KINDS; g++) FREE(m->curve[g]);
}

static void entry_point(const curves *v, int point, int p, matrix_entry *m) {
  int64_t last = v->length[ON_CALIBRATION] - 1, rank = v->own_rank && point > last ? last : point;
  m->bits[p] = solution_size(&v->shape, (int)rank);
  for (int g = 0; g < GRAM_KINDS; g++)
    m->loss[g][p] = rank < v->length[g] && v->reference[g] != 0 ? fmax(v->loss[g][rank], 0) / v->reference[g] : NAN;
}

/* The curves of the last variant become the entry's. */
static status entry_curves(curves *v, matrix_entry *m) {
  status st = OK;
  m->out = v->shape.out;
  m->in = v->shape.in;
  m->code_bits = v->shape.rule.bits;
  m->numerical_rank = v->numerical_rank;
  m->raised_scales = v->raised_scales;
  m->tokens = (int64_t)v->tokens;
  m->seconds = v->seconds;
  for (int g = 0; g < GRAM_KINDS; g++) {
    m->curve[g] = v->loss[g];
    m->curve_length[g] = v->length[g];
    v->loss[g] = NULL;
    for (int64_t r = 0; r < m->curve_length[g]; r++)
      m->curve[g][r] = v->reference[g] != 0 ? fmax(m->curve[g][r], 0) / v->reference[g] : NAN;
  }
  if (v->value_count == 0 || v->value_count != m->curve_length[ON_CALIBRATION]) goto done;
  TRY(NEW(m->tail, v->value_count, "tails of spectra"));
  double sum = 0;
  for (int64_t r = v->value_count - 1; r >= 0; r--) {
    sum += v->values[r];
    m->tail[r] = v->reference[ON_CALIBRATION] != 0 ? fmax(sum, 0) / v->reference[ON_CALIBRATION] : NAN;
  }
done:
  return st;
}

double entry_certificate(const matrix_entry *m) {
  double worst = m->tail ? 0 : NAN;
  for (int64_t r = 0; m->tail && r < m->curve_length[ON_CALIBRATION]; r++) {
    double off = fabs(m->curve[ON_CALIBRATION][r] - m->tail[r]);
    if (m->tail[r] > 1e-9 * m->curve[ON_CALIBRATION][0]) worst = fmax(worst, off / m->tail[r]);
  }
  return worst;
}

/* The variant of a point. Where each serves its own rank alone, one that was not solved for is a truncation of the largest. */
static int variant_of(const char *ranks, bool extends, int point) {
  int found = solution_variant(ranks, point);
  return extends || found == point ? found : solution_variant(ranks, 0);
}

/* Tokens for a column of the Gram that the linear was solved on. */
static void note_tokens(const curves *v, linear_id l, double per_column[IN_COUNT]) {
  double *least = &per_column[linear_input(l)], now = v->tokens / (double)v->shape.in;
  if (v->tokens > 0 && !(*least <= now)) *least = now;
}

static status add_linear(container *c, const char *path, int64_t layer, const char *group, linear_id l, setting_report *s, totals *t,
                         double per_column[IN_COUNT]) {
  status st = OK;
  attributes a = {0};
  curves v = {0};
  matrix_entry *entry;
  const int kinds[] = {(int)l, MATRIX_ALL};
  TRY(container_attributes(c, group, &a));
  const char *ranks = attr_get_text(&a, "ranks");
  TRY(entry_new(s, layer, l, &entry));
  bool own_rank = attr_get_int(&a, "own_rank", 0) == 1;
  bool extends = attr_get_int(&a, "extends", 0) == 1;
  s->refined |= extends;
  for (int p = 0; p < s->point_count; p++) {
    char name[160];
    s->variants[p] = *ranks && !own_rank ? variant_of(ranks, extends, s->points[p]) : 0;
    if (*ranks)
      snprintf(name, sizeof name, "%.120s/rank-%d", group, variant_of(ranks, extends, s->points[p]));
    else
      snprintf(name, sizeof name, "%.120s", group);
    if (p == 0 || *ranks) {
      free_curves(&v);
      v = (curves){0};
      TRY(read_curves(c, path, name, &v));
    }
    entry_point(&v, s->points[p], p, entry);
    bool counted = v.reference[ON_CALIBRATION] != 0; /* else weights that nothing reads: no relative loss to speak of */
    for (int k = 0; k < 2; k++) {
      matrix_report *m = &s->matrix[kinds[k]];
      add_point(&v, s->points[p], p, m, counted);
      if (p == s->point_count - 1) { /* of variants: the largest one's */
        m->seconds += v.seconds;
        m->adapter_size += log(v.adapter_size);
      }
      if (p) continue;
      m->count++;
      t[kinds[k]].weights += (double)v.shape.out * (double)v.shape.in;
      t[kinds[k]].counted += counted;
    }
  }
  note_tokens(&v, l, per_column);
  TRY(entry_curves(&v, entry));
  s->own_inputs |= v.own_inputs;
  if (s->entry_count == 1 || entry->code_bits < s->bits) s->bits = entry->code_bits;
  if (entry->code_bits > s->bits_most) s->bits_most = entry->code_bits;
done:
  attr_free(&a);
  free_curves(&v);
  return st;
}

static status add_file(const char *path, setting_report *s, totals *t, double per_column[IN_COUNT], hash *h) {
  status st = OK;
  container *c = NULL;
  attributes root = {0};
  char **groups = NULL;
  int count = 0;
  TRY(container_open(path, "solution", &c));
  TRY(container_attributes(c, "", &root));
  TRY(unit_hash_solution(c, h));
  TRY(container_groups(c, &groups, &count));
  for (int i = 0; i < count; i++) {
    int l = linear_of_group(groups[i]);
    if (l >= 0) TRY(add_linear(c, path, attr_get_int(&root, "layer", s->layers), groups[i], (linear_id)l, s, t, per_column));
  }
  s->layers++;
done:
  container_names_free(&groups, count);
  attr_free(&root);
  container_close(&c);
  return st;
}

/* ---- one setting ---- */

static int compare_int(const void *a, const void *b) { return (*(const int *)a > *(const int *)b) - (*(const int *)a < *(const int *)b); }

/* Adds the ranks of "4,8,16" to the points, ascending and distinct. */
static status add_points(const char *path, const char *text, setting_report *s) {
  status st = OK;
  int *points = NULL, count = s->point_count;
  TRY(NEW(points, (size_t)count + strlen(text) + 1, "ranks"));
  if (count) memcpy(points, s->points, (size_t)count * sizeof *points);
  for (const char *p = text; *p;) {
    char *end;
    long rank = strtol(p, &end, 10);
    if (end == p || rank < 1 || rank > 1 << 24 || (*end && *end != ',')) {
      st = fail(E_DATA, "%s: ranks: expected a list like 4,8,16, found %.64s", path, text);
      goto done;
    }
    points[count++] = (int)rank;
    p = *end ? end + 1 : end;
  }
  qsort(points, (size_t)count, sizeof *points, compare_int);
  int distinct = 0;
  for (int i = 0; i < count; i++)
    if (i == 0 || points[i] != points[i - 1]) points[distinct++] = points[i];
  FREE(s->points);
  s->points = points;
  points = NULL;
  s->point_count = distinct;
done:
  FREE(points);
  return st;
}

bool report_own_inputs(const run_report *r) {
  for (int i = 0; i < r->setting_count; i++)
    if (r->settings[i].own_inputs) return true;
  return false;
}

int report_find_point(const setting_report *s, int rank) {
  for (int k = 0; k < s->point_count; k++)
    if (s->points[k] == rank) return k;
  return -1;
}

/* Ranks that the job lists now and the curves hold already. */
static status add_asked(const job *asked, setting_report *s) {
  status st = OK;
  int most = s->points[s->point_count - 1];
  for (int k = 0; asked && k < asked->setting_count; k++) {
    const setting *now = &asked->settings[k];
    for (int i = 0; strcmp(now->name, s->name) == 0 && i < now->rank_count; i++) {
      char text[16];
      snprintf(text, sizeof text, "%d", now->ranks[i]);
      if (now->ranks[i] < most) TRY(add_points(s->name, text, s));
    }
  }
done:
  return st;
}

/* ---- evaluation ---- */

static status read_eval(const char *run_folder, const char *name, eval_result *r) {
  char *path = mem_format("%s/eval/%s.json", run_folder, name);
  if (!path) return fail(E_MEMORY, "report: no memory");
  status st = eval_result_read(path, r);
  FREE(path);
  return st;
}

/* Its ranks become points. */
static status add_evaluated(const char *run_folder, setting_report *s) {
  status st = OK;
  TRY(read_eval(run_folder, s->name, &s->eval));
  for (int i = 0; i < s->eval.count; i++) {
    char text[16];
    snprintf(text, sizeof text, "%d", s->eval.points[i].rank);
    if (s->eval.points[i].rank > 0 && s->eval.points[i].rank < s->points[s->point_count - 1]) TRY(add_points(s->name, text, s));
  }
done:
  return st;
}

/* What was found with other codes, another model or on other tokens than the original stands beside nothing here. */
static void drop_foreign_eval(const eval_result *original, const char *fingerprint, setting_report *s) {
  eval_identity expected = original->identity;
  memcpy(expected.solution, fingerprint, HASH_HEX);
  if (!original->count || eval_identity_differs(&s->eval.identity, &expected)) eval_result_free(&s->eval);
}

/* What the files of a setting say of it: method and group of the first linear, the union of the ranks. */
static status read_head(const char *path, setting_report *s) {
  status st = OK;
  container *c = NULL;
  attributes root = {0}, group = {0};
  char **groups = NULL;
  int count = 0;
  TRY(container_open(path, "solution", &c));
  TRY(container_attributes(c, "", &root));
  TRY(add_points(path, attr_get_text(&root, "ranks"), s));
  if (s->method) goto done;
  TRY(container_groups(c, &groups, &count));
  for (int i = 0; i < count && !s->method; i++) {
    if (linear_of_group(groups[i]) < 0) continue;
    TRY(container_attributes(c, groups[i], &group));
    s->method = mem_format("%s", attr_get_text(&group, "method"));
    s->group = attr_get_int(&group, "group", 0);
    const char *in_which = attr_get_text(&group, "certificate");
    s->metric = mem_format("%s", in_which);
    if (!s->method || !s->metric) st = fail(E_MEMORY, "report: no memory");
  }
done:
  container_names_free(&groups, count);
  attr_free(&root);
  attr_free(&group);
  container_close(&c);
  return st;
}

static void finish_setting(setting_report *s, const totals *t) {
  for (int k = 0; k < MATRIX_TYPES; k++) {
    matrix_report *m = &s->matrix[k];
    m->adapter_size = exp(m->adapter_size / (double)m->count);
    for (int p = 0; p < s->point_count; p++) {
      m->bits[p] /= t[k].weights; /* 0/0 where there is no such matrix */
      for (int g = 0; g < GRAM_KINDS; g++) m->loss[g][p] = t[k].counted ? exp(m->loss[g][p] / (double)t[k].counted) : NAN;
    }
  }
}

/* s stays empty (layers 0) when the folder holds no finished file. */
static status read_setting(const char *run_folder, const char *solutions, const char *name, const job *asked, const eval_result *original,
                           double per_column[IN_COUNT], setting_report *s) {
  status st = OK;
  struct dirent **files = NULL;
  char *folder = path_join(solutions, name), *path = NULL, fingerprint[HASH_HEX];
  hash *h = NULL;
  totals t[MATRIX_TYPES] = {{0, 0}};
  int count = 0, none = 0;
  s->name = mem_format("%s", name);
  if (!folder || !s->name) {
    st = fail(E_MEMORY, "report: no memory");
    goto done;
  }
  TRY(hash_new(&h));
  TRY(report_list(folder, report_is_layer_file, &files, &count));
  TRY(NEW(s->points, 1, "ranks"));
  s->points[none] = 0;
  s->point_count = 1;
  for (int round = 0; round < 2; round++) {
    for (int i = 0; i < count; i++) {
      path = path_join(folder, files[i]->d_name);
      if (!path) st = fail(E_MEMORY, "report: no memory");
      if (st == OK) st = round == 0 ? read_head(path, s) : add_file(path, s, t, per_column, h);
      FREE(path);
      if (st != OK) goto done;
    }
    if (round == 0) TRY(add_asked(asked, s));
    if (round == 0 && count) TRY(add_evaluated(run_folder, s));
    if (round == 0) TRY(NEW(s->variants, s->point_count, "ranks"));
    for (int k = 0; round == 0 && k < MATRIX_TYPES; k++) {
      TRY(NEW(s->matrix[k].bits, s->point_count, "results"));
      for (int g = 0; g < GRAM_KINDS; g++) TRY(NEW(s->matrix[k].loss[g], s->point_count, "results"));
    }
  }
  finish_setting(s, t);
  TRY(hash_end(&h, fingerprint));
  drop_foreign_eval(original, fingerprint, s);
done:
  hash_free(&h);
  report_list_free(&files, count);
  FREE(folder);
  return st;
}

/* ---- the run ---- */

static status read_master(const char *run_folder, run_report *r) {
  status st = OK;
  container *c = NULL;
  attributes a = {0};
  struct dirent **files = NULL;
  int count = 0;
  char *path = path_join(run_folder, "run.h5"), *grams = path_join(run_folder, "grams");
  if (!path || !grams) {
    st = fail(E_MEMORY, "report: no memory");
    goto done;
  }
  if (file_exists(path)) {
    TRY(container_open(path, "run", &c));
    TRY(container_attributes(c, "", &a));
  }
  r->layers = attr_get_int(&a, "layers", 0);
  r->tokens = attr_get_int(&a, "tokens", 0);
  r->heldout_tokens = attr_get_int(&a, "heldout_tokens", 0);
  r->model = mem_format("%s", attr_get_text(&a, "model"));
  r->model_fingerprint = mem_format("%s", attr_get_text(&a, "model_fingerprint"));
  if (!r->model || !r->model_fingerprint) st = fail(E_MEMORY, "report: no memory");
  if (st == OK && !r->layers) { /* before the first collect: as many layers as have Grams */
    TRY(report_list(grams, report_is_layer_file, &files, &count));
    r->layers = count;
  }
done:
  report_list_free(&files, count);
  attr_free(&a);
  container_close(&c);
  FREE(path);
  FREE(grams);
  return st;
}

static void free_setting(setting_report *s) {
  FREE(s->name);
  FREE(s->method);
  FREE(s->metric);
  for (int i = 0; i < s->entry_count; i++) entry_free(&s->entries[i]);
  FREE(s->entries);
  FREE(s->points);
  FREE(s->variants);
  eval_result_free(&s->eval);
  for (int k = 0; k < MATRIX_TYPES; k++) {
    FREE(s->matrix[k].bits);
    for (int g = 0; g < GRAM_KINDS; g++) FREE(s->matrix[k].loss[g]);
  }
  memset(s, 0, sizeof *s);
}

status report_read(const char *run_folder, const job *asked, const char *pattern, run_report *r) {
  status st = OK;
  struct dirent **names = NULL;
  int count = 0;
  char *solutions = path_join(run_folder, "solutions");
  memset(r, 0, sizeof *r);
  if (!solutions) return fail(E_MEMORY, "report: no memory");
  if (!file_exists(run_folder)) {
    st = fail(E_DATA, "%s: expected a run directory, found nothing", run_folder);
    goto done;
  }
  for (int i = 0; i < IN_COUNT; i++) r->per_column[i] = NAN;
  TRY(read_master(run_folder, r));
  TRY(read_eval(run_folder, "original", &r->original));
  TRY(report_list(solutions, report_is_shown, &names, &count));
  TRY(NEW(r->settings, (size_t)count + 1, "settings"));
  for (int i = 0; i < count; i++) {
    if (pattern && fnmatch(pattern, names[i]->d_name, 0) != 0) continue;
    setting_report *s = &r->settings[r->setting_count++];
    TRY(read_setting(run_folder, solutions, names[i]->d_name, asked, &r->original, r->per_column, s));
    if (s->layers) continue;
    free_setting(s);
    r->setting_count--;
  }
  if (r->setting_count == 0)
    st = fail(E_DATA, "%s: expected finished solutions below it, found none: `cloqwork run` makes them", solutions);
done:
  report_list_free(&names, count);
  FREE(solutions);
  if (st != OK) report_free(r);
  return st;
}

void report_free(run_report *r) {
  for (int i = 0; i < r->setting_count; i++) free_setting(&r->settings[i]);
  FREE(r->settings);
  eval_result_free(&r->original);
  FREE(r->model);
  FREE(r->model_fingerprint);
  memset(r, 0, sizeof *r);
}
