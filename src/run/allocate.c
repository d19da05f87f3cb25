/* cloqwork allocate: bits and rank of every matrix under a budget of bytes, from the loss curves of settings that are solved. Rank 0 works. */
#include "run/allocate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/settings.h"
#include "dist/agree.h"
#include "run/verbs.h"
#include "session/sharing.h"
#include "session/unit.h"
#include "solution/solution.h"

enum { RANK_STEP = 8 };

/* ---- which settings ---- */

/* Behind "method-b2": group and options, equal for settings that differ in bits alone. */
static const char *name_tail(const setting *s) {
  const char *p = s->name + strlen(s->method->name) + strlen("-b");
  return p + strspn(p, "0123456789");
}

static bool is_candidate(const arguments *a, int64_t group, const setting *s) {
  if (setting_varies(s) || s->labelled) return false;
  return (!a->method || strcmp(a->method, s->method->name) == 0) && (group < 0 || s->rule.group == group);
}

static int64_t missing_layers(const session *c, const setting *s) {
  int64_t missing = 0;
  char path[PATH_MOST];
  for (int64_t layer = 0; layer < c->model.arch.layers; layer++) {
    unit_solution_path(c, s, layer, path);
    missing += !file_exists(path);
  }
  return missing;
}

static int by_bits(const void *a, const void *b) {
  return (*(const setting *const *)a)->rule.bits - (*(const setting *const *)b)->rule.bits;
}

static status choose_settings(allocator *a, int64_t group) {
  const session *c = a->c;
  const setting *first = NULL;
  for (int k = 0; k < c->job.setting_count; k++) {
    const setting *s = &c->job.settings[k];
    if (!is_candidate(&c->arguments, group, s)) continue;
    if (first && s->method != first->method)
      return fail(E_USAGE, "allocate: --method: expected one of the job's methods, such as %s or %s, found nothing", first->method->name,
                  s->method->name);
    if (first && strcmp(name_tail(s), name_tail(first)) != 0)
      return fail(E_USAGE, "allocate: expected settings that differ in bits alone, found %s and %s: choose by --group or --settings",
                  first->name, s->name);
    if (!first) first = s;
    int64_t missing = missing_layers(c, s);
    if (missing)
      log_info("allocate: %s: %lld of %lld layers are not solved: left out", s->name, (long long)missing, (long long)c->model.arch.layers);
    else
      a->settings[a->setting_count++] = s;
  }
  if (!first)
    return fail(E_USAGE, "allocate: expected settings of the job whose bits are the same everywhere%s%s%s, found none of %d",
                c->arguments.method ? " of method " : "", c->arguments.method ? c->arguments.method : "",
                group < 0 ? "" : " with that group", c->job.setting_count);
  if (!a->setting_count)
    return fail(E_DATA, "%s/solutions: expected a setting like %s with all %lld layers solved, found none: cloqwork run makes them",
                c->job.output, first->name, (long long)c->model.arch.layers);
  qsort(a->settings, (size_t)a->setting_count, sizeof *a->settings, by_bits);
  return OK;
}

/* ---- what was asked ---- */

/* --weights: what the relative loss of a target's matrices counts; targets that are not named count 1. */
static status read_factors(const char *path, const bool target[LIN_COUNT], double factor[LIN_COUNT]) {
  status st = OK;
  json_t *tree = NULL, *value;
  const char *key, *names[LIN_COUNT];
  int count = 0;
  for (int l = 0; l < LIN_COUNT; l++) {
    factor[l] = 1;
    if (target[l]) names[count++] = linear_short((linear_id)l);
  }
  if (!path) return OK;
  TRY(settings_read(path, &tree));
  if (!json_is_object(tree)) {
    st = fail(E_USAGE, "%s: expected a mapping of targets to numbers, found something else", path);
    goto done;
  }
  json_object_foreach(tree, key, value) {
    int l = 0;
    while (l < LIN_COUNT && !(target[l] && strcmp(key, linear_short((linear_id)l)) == 0)) l++;
    const char *near = settings_nearest(key, names, count);
    char found[SETTINGS_FOUND];
    settings_found(value, found);
    if (l == LIN_COUNT)
      st = fail(E_USAGE, "%s: %s: expected a target of the job, found none of that name%s%s", path, key, near ? ", did you mean " : "",
                near ? near : "");
    else if (!json_is_number(value) || !(json_number_value(value) > 0 && json_number_value(value) <= 1e9))
      st = fail(E_USAGE, "%s: %s: expected a number above 0, found %s", path, key, found);
    else
      factor[l] = json_number_value(value);
    if (st != OK) goto done;
  }
done:
  json_drop(&tree);
  return st;
}

static status read_arguments(allocator *a, int64_t *group) {
  const arguments *given = &a->c->arguments;
  char *end;
  if (!given->budget) return fail(E_USAGE, "allocate: --budget: expected bits per weight, such as 2.75, found nothing");
  a->asked = strtod(given->budget, &end);
  if (end == given->budget || *end || !(a->asked > 0 && a->asked <= 1e6))
    return fail(E_USAGE, "allocate: --budget: expected bits per weight above 0, found %s", given->budget);
  if (given->group) {
    *group = strtoll(given->group, &end, 10);
    if (end == given->group || *end || *group < 0)
      return fail(E_USAGE, "allocate: --group: expected columns per scale, or 0, found %s", given->group);
  }
  int used =
      given->name ? snprintf(a->name, sizeof a->name, "%s", given->name) : snprintf(a->name, sizeof a->name, "budget%s", given->budget);
  if (used >= ALLOCATE_NAME || strspn(a->name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != strlen(a->name) ||
      !*a->name || strchr("._-", a->name[0]))
    return fail(E_USAGE, "allocate: --name: expected fewer than %d letters, digits, dots, dashes and underscores, found %s", ALLOCATE_NAME,
                given->name ? given->name : a->name);
  if (a->c->layer_end - a->c->layer_begin < a->c->model.arch.layers)
    return fail(E_USAGE, "--layers: allocate chooses for the whole model, expected all layers, found %lld to %lld",
                (long long)a->c->layer_begin, (long long)a->c->layer_end - 1);
  return read_factors(given->weights, a->c->job.target, a->factor);
}

/* ---- the curves ---- */

static status add_point(matrix_points *m, int *list_room, int *point_room, const solution *s, int setting_index, int rank) {
  status st = OK;
  const solution_facts *f = s->facts;
  TRY(GROW(m->list, m->count, *list_room, "candidates of a matrix"));
  TRY(GROW(m->points, m->count, *point_room, "candidates of a matrix"));
  bool idle = f->reference == 0; /* weights that nothing reads */
  double calibration = idle ? 0 : s->loss[rank] / f->reference, heldout = idle ? 0 : s->loss_heldout[rank] / f->reference_heldout;
  m->list[m->count] = (candidate){solution_size(s, rank), m->factor * calibration};
  m->points[m->count] = (matrix_point){setting_index, rank, {[SET_CALIBRATION] = calibration, [SET_HELDOUT] = heldout}};
  m->count++;
done:
  return st;
}

/* The ranks that solutions offer: every multiple of 8 and the job's; where codes belong to a rank, those that have codes of their own: at another rank
 * the allocation's would be made anew. */
static bool offers(const setting *s, int rank) {
  if (!setting_nests(s)) return setting_variant(s, rank) == rank;
  if (rank % RANK_STEP == 0) return true;
  for (int i = 0; i < s->rank_count; i++)
    if (s->ranks[i] == rank) return true;
  return false;
}

static status add_points(allocator *a, container *file, const char *where, int setting_index, matrix_points *m, int rooms[2]) {
  status st = OK;
  const setting *s = a->settings[setting_index];
  solution r = {0};
  piece p;
  for (int v = 0; setting_piece(s, 0, v, &p); v++) {
    TRY(solution_load_variant(file, where, &a->c->model.arch, m->linear, p.rank, SOLUTION_CURVES, &r));
    m->weights = (double)r.out * (double)r.in;
    for (int rank = p.rank ? p.rank : 1; rank <= r.rank; rank++)
      if (offers(s, rank)) TRY(add_point(m, &rooms[0], &rooms[1], &r, setting_index, rank));
    solution_free(&r);
  }
done:
  solution_free(&r);
  return st;
}

static status read_layer(allocator *a, int64_t layer, int setting_index, matrix_points *first, int (*rooms)[2]) {
  status st = OK;
  const session *c = a->c;
  container *file = NULL;
  attributes root = {0};
  char path[PATH_MOST], where[PATH_MOST + 64];
  unit_solution_path(c, a->settings[setting_index], layer, path);
  TRY(container_open(path, "solution", &file));
  TRY(container_attributes(file, "", &root));
  if (strcmp(attr_get_text(&root, "model_fingerprint"), c->model.fingerprint) != 0) {
    st = fail(E_DATA, "%s: expected a solution of %s, found one of another checkpoint (model_fingerprint)", path, c->job.model);
    goto done;
  }
  for (int i = 0; i < job_target_count(&c->job); i++) {
    snprintf(where, sizeof where, "%s: %s", path, linear_path(first[i].linear));
    TRY(add_points(a, file, where, setting_index, &first[i], rooms[i]));
  }
done:
  attr_free(&root);
  container_close(&file);
  return st;
}

static status read_curves(allocator *a) {
  status st = OK;
  const session *c = a->c;
  int targets = job_target_count(&c->job);
  TRY(NEW(a->list, c->model.arch.layers * targets, "matrices"));
  a->count = (int)c->model.arch.layers * targets;
  TRY(NEW(a->choice, a->count, "matrices"));
  for (int64_t layer = 0; layer < c->model.arch.layers; layer++) {
    matrix_points *first = &a->list[layer * targets];
    int rooms[LIN_COUNT][2] = {{0}};
    for (int l = 0, i = 0; l < LIN_COUNT; l++)
      if (c->job.target[l]) first[i++] = (matrix_points){.layer = layer, .linear = (linear_id)l, .factor = a->factor[l]};
    for (int k = 0; k < a->setting_count; k++) TRY(read_layer(a, layer, k, first, rooms));
  }
done:
  return st;
}

/* ---- the choice ---- */

static outcome outcome_of(const allocator *a, const int *choice) {
  outcome o = {0, {0, 0}};
  double weights = 0, factors = 0, bits = 0;
  for (int i = 0; i < a->count; i++) {
    const matrix_points *m = &a->list[i];
    weights += m->weights;
    factors += m->factor;
    bits += m->list[choice[i]].size;
    for (int set = 0; set < SET_COUNT; set++) o.relative[set] += m->factor * m->points[choice[i]].relative[set];
  }
  for (int set = 0; set < SET_COUNT; set++) o.relative[set] /= factors;
  o.bits_per_weight = bits / weights;
  return o;
}

/* The same setting and rank for every matrix; false: some matrix does not offer it. */
static bool choose_same(const allocator *a, int setting_index, int rank, int *choice) {
  for (int i = 0; i < a->count; i++) {
    const matrix_points *m = &a->list[i];
    choice[i] = 0;
    while (choice[i] < m->count && (m->points[choice[i]].setting != setting_index || m->points[choice[i]].rank != rank)) choice[i]++;
    if (choice[i] == m->count) return false;
  }
  return true;
}

static double sum_of(const allocator *a, const int *choice, double *size) {
  double loss = 0;
  *size = 0;
  for (int i = 0; i < a->count; i++) {
    loss += a->list[i].list[choice[i]].loss;
    *size += a->list[i].list[choice[i]].size;
  }
  return loss;
}

/* best [count]: the setting that is the same everywhere, fits the budget and loses least. There is one that fits: every matrix offers the
 * ranks of the first. */
static status find_control(allocator *a, double budget, int *best) {
  status st = OK;
  int *choice = NULL;
  double least = INFINITY;
  TRY(NEW(choice, a->count, "matrices"));
  a->control_rank = 0;
  for (int i = 0; i < a->list[0].count; i++) {
    const matrix_point *p = &a->list[0].points[i];
    double size, loss;
    if (!choose_same(a, p->setting, p->rank, choice)) continue;
    loss = sum_of(a, choice, &size);
    if (size > budget || !(loss < least)) continue;
    least = loss;
    a->control_setting = p->setting;
    a->control_rank = p->rank;
    memcpy(best, choice, (size_t)a->count * sizeof *best);
  }
  a->control = least < INFINITY ? outcome_of(a, best) : (outcome){NAN, {NAN, NAN}};
done:
  FREE(choice);
  return st;
}

static status decide(allocator *a) {
  status st = OK;
  candidates *problem = NULL;
  allocation found;
  int *control = NULL;
  double weights = 0;
  TRY(NEW(problem, a->count, "matrices"));
  TRY(NEW(control, a->count, "matrices"));
  for (int i = 0; i < a->count; i++) {
    problem[i] = (candidates){a->list[i].list, a->list[i].count};
    weights += a->list[i].weights;
  }
  double budget = a->asked * weights, least = allocation_least(problem, a->count);
  if (budget < least) {
    st = fail(E_USAGE, "allocate: --budget: expected at least %.4f bits per weight (%d bits and the smallest rank everywhere), found %s",
              ceil(1e4 * least / weights) / 1e4, a->settings[0]->rule.bits, a->c->arguments.budget);
    goto done;
  }
  TRY(allocation_choose(problem, a->count, budget, a->choice, &found));
  TRY(find_control(a, budget, control));
  if (a->control_rank) { /* never worse than the best that is the same everywhere */
    double bound = found.bound;
    allocation other = allocation_fill(problem, a->count, budget, control);
    if (other.loss < found.loss) {
      memcpy(a->choice, control, (size_t)a->count * sizeof *control);
      found = other;
      found.bound = bound;
    }
  }
  a->ours = outcome_of(a, a->choice);
  a->gap = found.loss - found.bound > 1e-12 * found.loss ? (found.loss - found.bound) / found.loss : 0; /* less is rounding */
done:
  FREE(problem);
  FREE(control);
  return st;
}

/* ---- the verb ---- */

/* The job read again, with the new file: what the allocation is called. A file that the job cannot have is taken away. */
static status find_name(const allocator *a, const char *path, char name[sizeof((setting *)0)->name]) {
  const session *c = a->c;
  status st = OK;
  job again = {0};
  size_t length = strlen(a->name);
  TRY(job_read(c->job.path, c->arguments.overrides, c->arguments.override_count, c->job.output, NULL, &again));
  TRY(job_check_model(&again, &c->model.arch));
  for (int k = 0; k < again.setting_count; k++) {
    const setting *s = &again.settings[k];
    size_t all = strlen(s->name);
    if (s->labelled && s->method == a->settings[0]->method && all > length && strcmp(s->name + all - length, a->name) == 0)
      snprintf(name, sizeof s->name, "%s", s->name);
  }
done:
  job_free(&again);
  if (st != OK) file_remove(path);
  return st;
}

static status allocate(session *c) {
  status st = OK;
  allocator a = {.c = c};
  char *path = NULL, name[sizeof((setting *)0)->name] = "";
  int64_t group = -1;
  TRY(read_arguments(&a, &group));
  TRY(choose_settings(&a, group));
  TRY(read_curves(&a));
  TRY(decide(&a));
  TRY(allocate_write(&a, &path));
  TRY(find_name(&a, path, name));
  log_info("allocate: %s: %s is a setting of the job now", path, name);
  TRY(c->arguments.json ? allocate_print_json(&a, name, path, stdout) : allocate_print(&a, name, path, stdout));
done:
  for (int i = 0; i < a.count; i++) {
    FREE(a.list[i].list);
    FREE(a.list[i].points);
  }
  FREE(a.list);
  FREE(a.choice);
  FREE(path);
  return st;
}

status verb_allocate(session *c) {
  status st = c->rank == 0 ? allocate(c) : OK;
  return agree(c->job_comm, st);
}
