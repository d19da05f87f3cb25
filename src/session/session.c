#include "session/session.h"

#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/settings.h"
#include "dist/agree.h"
#include "session/unit.h"

enum { PATIENCE = 15 }; /* seconds for other jobs of an array to begin */

static volatile sig_atomic_t stop_asked;

static void ask_to_stop(int signal_number) {
  (void)signal_number;
  stop_asked = 1;
}

/* A page of a mapped file cannot be had: the file has shrunk, or its disk fails. Nothing but system calls is safe here; the launcher ends the others. */
static void give_up(int signal_number) {
  static const char line[] = "cloqwork: a page of a mapped input file cannot be read: the file has shrunk or its disk fails\n";
  (void)signal_number;
  ssize_t n = write(STDERR_FILENO, line, sizeof line - 1);
  _exit(status_exit_code(n < 0 ? E_INTERNAL : E_IO));
}

void session_catch_signals(void) {
  struct sigaction action = {.sa_handler = ask_to_stop, .sa_flags = SA_RESTART};
  sigaction(SIGUSR1, &action, NULL);
  sigaction(SIGTERM, &action, NULL);
  signal(SIGBUS, give_up);
  signal(SIGXFSZ, SIG_IGN); /* a file size limit is then an ordinary write error */
}

bool session_stop_asked(void) { return stop_asked != 0; }

bool session_should_stop(const session *c, MPI_Comm comm) {
  double limit = 3600 * c->arguments.max_hours;
  return agree_any(comm, stop_asked || (limit > 0 && clock_now() - c->started > 0.99 * limit));
}

static bool is_folder(const char *path) {
  struct stat s;
  return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

static status read_job(session *c) {
  const arguments *a = &c->arguments;
  status st = OK;
  char *inside = NULL, *from = NULL;
  const char **overrides = NULL;
  if (!a->target) return fail(E_USAGE, "%s: expected a job file, found no argument; try: cloqwork %s JOB.yaml", a->verb, a->verb);
  if (is_folder(a->target) && !(inside = path_join(a->target, "job.yaml"))) return fail(E_MEMORY, "%s: no memory for a name", a->target);
  /* a run directory may have been moved since its job file was written */
  TRY(NEW(overrides, a->override_count + 1, "overrides of the job"));
  TRY(gram_sources_override(a, &from));
  if (from) overrides[0] = from;
  for (int i = 0; i < a->override_count; i++) overrides[i + (from != NULL)] = a->overrides[i];
  TRY(job_read(inside ? inside : a->target, overrides, a->override_count + (from != NULL), inside ? a->target : NULL, a->settings,
               &c->job));
done:
  FREE(overrides);
  FREE(from);
  FREE(inside);
  return st;
}

static status read_tokens(session *c) {
  const window_request *requests[SET_COUNT] = {c->job.grams.origin == GRAMS_CALIBRATED ? &c->job.calibration : NULL,
                                               c->job.has_heldout ? &c->job.heldout : NULL};
  status st = OK;
  for (int set = 0; set < SET_COUNT; set++) {
    if (!requests[set]) continue;
    if (c->model.tensor_count == 0 && requests[set]->windows && !file_exists(requests[set]->path)) /* a plan of a model that is elsewhere */
      c->windows[set] = (windows){.count = requests[set]->windows, .length = requests[set]->length};
    else
      TRY(windows_draw(requests[set], c->model.arch.vocab, &c->windows[set]));
    c->sets[set] = &c->windows[set];
  }
  if (c->job.grams.origin != GRAMS_CALIBRATED) TRY(gram_sources_open(c));
done:
  return st;
}

static status read_inputs(session *c) {
  status st = OK;
  bool weights = strcmp(c->arguments.verb, "plan") != 0 || checkpoint_has_weights(c->job.model); /* plan needs none */
  TRY(weights ? checkpoint_open(c->job.model, &c->model) : checkpoint_open_config(c->job.model, &c->model));
  TRY(job_check_model(&c->job, &c->model.arch));
  for (int i = 0; i < IN_COUNT; i++) c->wanted[i] = job_uses_input(&c->job, i);
  int64_t layers = c->model.arch.layers, last = c->arguments.last_layer < 0 ? layers - 1 : c->arguments.last_layer;
  if (last >= layers || c->arguments.first_layer > last)
    st = fail(E_USAGE, "--layers: expected a range within 0-%lld, found %lld-%lld", (long long)layers - 1,
              (long long)c->arguments.first_layer, (long long)last);
  c->layer_begin = c->arguments.first_layer;
  c->layer_end = last + 1;
done:
  return st;
}

/* Collective. Files of the sweep that a network file system shows to one node and not yet to another must not part the ranks. */
static status agree_on_settings(const session *c) {
  status st = OK;
  hash *h = NULL;
  char hex[HASH_HEX] = "";
  st = hash_new(&h);
  for (int i = 0; i < c->job.setting_count && st == OK; i++) st = hash_add_text(h, c->job.settings[i].name);
  if (st == OK) st = hash_end(&h, hex);
  TRY(agree(c->job_comm, st));
  TRY(agree_same(c->job_comm, "the names of the settings", hex, sizeof hex));
done:
  hash_free(&h);
  return st;
}

static void name_job(session *c) {
  const char *slurm = getenv("SLURM_JOB_ID");
  char host[64] = "";
  gethostname(host, sizeof host - 1);
  if (slurm && *slurm)
    snprintf(c->job_tag, sizeof c->job_tag, "slurm-%.40s", slurm);
  else
    snprintf(c->job_tag, sizeof c->job_tag, "%.40s-%ld", host, (long)getpid());
  MPI_Bcast(c->job_tag, sizeof c->job_tag, MPI_CHAR, 0, c->job_comm);
}

status session_open(MPI_Comm comm, const arguments *a, const blas_info *blas, bool with_tokens, session *c) {
  status st = OK;
  *c = (session){.job_comm = comm, .arguments = *a, .blas = *blas, .started = clock_now(), .opened = true};
  MPI_Comm_rank(comm, &c->rank);
  MPI_Comm_size(comm, &c->size);
  name_job(c);
  st = read_job(c);
  TRY(agree(comm, st));
  st = read_inputs(c);
  TRY(agree(comm, st));
  TRY(agree_same(comm, "the model", c->model.fingerprint, sizeof c->model.fingerprint));
  TRY(agree_on_settings(c));
  if (with_tokens) TRY(session_open_tokens(c));
  TRY(team_new(comm, c->job.parallel.team, &c->team));
  if (c->job.parallel.teams && c->job.parallel.teams != c->team.count) {
    st = fail(E_USAGE, "parallel.teams: expected %d teams, found %d for %d ranks with parallel.team = %d ranks", c->job.parallel.teams,
              c->team.count, c->size, c->job.parallel.team);
    goto done;
  }
  TRY(grid_new(c->team.comm, &c->grid));
done:
  return st;
}

status session_open_tokens(session *c) {
  status st = read_tokens(c);
  return agree(c->job_comm, st);
}

static status hold_lock(session *c, const char *folder, double patience) {
  held_lock *l = &c->locks[c->lock_count];
  if (!(l->path = path_join(folder, ".lock"))) return fail(E_MEMORY, "%s: no memory for a name", folder);
  c->lock_count++;
  return file_lock_within(patience, l->path, c->job_tag, &l->file);
}

/* Takes and gives back the lock of every setting that is there, of this job or not. */
static status find_settings_free(const session *c) {
  status st = OK;
  char *folder = path_join(c->job.output, "solutions"), *path = NULL;
  DIR *d = folder ? opendir(folder) : NULL;
  if (!d) st = folder ? fail(E_IO, "%s: cannot be listed: %m", folder) : fail(E_MEMORY, "%s: no memory for a name", c->job.output);
  for (struct dirent *e; st == OK && (e = readdir(d));) {
    int lock;
    if (e->d_name[0] == '.') continue;
    if (!(path = mem_format("%s/%s/.lock", folder, e->d_name))) st = fail(E_MEMORY, "%s: no memory for a name", folder);
    if (st == OK && file_exists(path) && (st = file_lock(path, c->job_tag, &lock)) == OK) file_unlock(path, &lock);
    FREE(path);
  }
  if (d) closedir(d);
  FREE(folder);
  return st;
}

/* The first Gram of each set tells whose run this is, before its job.yaml is replaced. */
static status find_own_grams(const session *c) {
  status st = OK;
  attributes identity = {0};
  char path[PATH_MOST];
  for (int set = 0; set < SET_COUNT; set++)
    for (int64_t layer = 0; c->sets[set] && layer < c->model.arch.layers; layer++) {
      bool same;
      unit_gram_path(c, set, layer, path);
      if (!file_exists(path)) continue;
      TRY(unit_gram_identity(c, set, layer, &identity));
      TRY(unit_is_done(path, "grams", &identity, &same));
      attr_free(&identity);
      break;
    }
done:
  attr_free(&identity);
  return st;
}

static bool has_grams(const session *c, int64_t layer) {
  char path[PATH_MOST];
  for (int set = 0; set < SET_COUNT; set++) {
    if (!c->sets[set]) continue;
    unit_gram_path(c, set, layer, path);
    if (!file_exists(path)) return false;
  }
  return true;
}

/* Likewise, of a verb that will make more of them, the first solution of each setting that works on the common Grams. */
static status find_own_solutions(const session *c) {
  status st = OK;
  attributes identity = {0};
  char path[PATH_MOST], grams[HASH_HEX];
  int64_t of = -1; /* the layer of these Grams: as a rule one for all settings */
  if (strcmp(c->arguments.verb, "run") != 0 && strcmp(c->arguments.verb, "solve") != 0) return OK;
  for (int k = 0; k < c->job.setting_count; k++)
    for (int64_t layer = 0; !setting_follows(&c->job.settings[k]) && layer < c->model.arch.layers; layer++) {
      bool same;
      unit_solution_path(c, &c->job.settings[k], layer, path);
      if (!file_exists(path) || !has_grams(c, layer)) continue;
      if (of != layer) TRY(unit_gram_fingerprint(c, layer, grams));
      of = layer;
      TRY(unit_solution_identity(c, &c->job.settings[k], layer, grams, &identity));
      TRY(unit_is_done(path, "solution", &identity, &same));
      attr_free(&identity);
      break;
    }
done:
  attr_free(&identity);
  return st;
}

static status begin_on_first_rank(session *c, bool whole) {
  status st = OK;
  char *path = NULL, *text = NULL;
  static const char *const folders[] = {"", "grams", "heldout", "solutions"};
  TRY(NEW(c->locks, c->job.setting_count + 1, "locks of a run directory"));
  for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
    if (!(path = path_join(c->job.output, folders[i]))) TRY(fail(E_MEMORY, "%s: no memory for a name", c->job.output));
    TRY(file_make_folders(path));
    if (i == 0) TRY(hold_lock(c, path, whole ? 0 : PATIENCE)); /* before anything in it is touched */
    TRY(file_remove_matching(path, ".tmp"));                   /* of a job that was killed while it wrote */
    FREE(path);
  }
  if (whole) TRY(find_settings_free(c));
  for (int i = 0; i < c->job.setting_count; i++) {
    if (!(path = mem_format("%s/solutions/%s", c->job.output, c->job.settings[i].name)))
      TRY(fail(E_MEMORY, "%s: no memory for a name", c->job.output));
    TRY(file_make_folders(path));
    if (!whole) TRY(hold_lock(c, path, 0));
    TRY(file_remove_matching(path, ".tmp"));
    FREE(path);
    for (int set = 0; set < SET_COUNT && setting_follows(&c->job.settings[i]); set++) {
      if (!(path = mem_format("%s/solutions/%s/%s", c->job.output, c->job.settings[i].name, set_folder(set))))
        TRY(fail(E_MEMORY, "%s: no memory for a name", c->job.output));
      TRY(file_make_folders(path));
      TRY(file_remove_matching(path, ".tmp"));
      FREE(path);
    }
  }
  if (!(path = path_join(c->job.output, "run.log"))) TRY(fail(E_MEMORY, "%s: no memory for a name", c->job.output));
  TRY(log_open(path));
  FREE(path);
  if (!(path = path_join(c->job.output, "progress.json"))) TRY(fail(E_MEMORY, "%s: no memory for a name", c->job.output));
  log_watch(path, c->arguments.verb, c->job_tag);
  FREE(path);
  TRY(find_own_grams(c));
  TRY(find_own_solutions(c));
  TRY(settings_write(c->job.tree, &text));
  if (!(path = path_join(c->job.output, "job.yaml"))) TRY(fail(E_MEMORY, "%s: no memory for a name", c->job.output));
  TRY(file_write_atomic(path, text, strlen(text)));
  FREE(path);
  if (!whole) file_unlock(c->locks[0].path, &c->locks[0].file);
done:
  FREE(text);
  FREE(path);
  return st;
}

status session_begin_run(session *c) {
  status st = c->rank == 0 ? begin_on_first_rank(c, true) : OK;
  return agree(c->job_comm, st);
}

status session_begin_settings(session *c) {
  status st = c->rank == 0 ? begin_on_first_rank(c, false) : OK;
  return agree(c->job_comm, st);
}

void session_close(session *c) {
  if (!c->opened) return;
  grid_free(&c->grid);
  team_free(&c->team);
  for (int k = 0; k < SET_COUNT; k++) {
    windows_free(&c->windows[k]);
    gram_union_free(&c->unions[k]);
  }
  checkpoint_close(&c->model);
  job_free(&c->job);
  for (int i = 0; i < c->lock_count; i++) {
    file_unlock(c->locks[i].path, &c->locks[i].file);
    FREE(c->locks[i].path);
  }
  FREE(c->locks);
  log_close();
  *c = (session){0};
}

status session_split(const session *c, session_views *v) {
  status st = OK;
  int all = c->job.setting_count;
  *v = (session_views){0};
  TRY(NEW(v->list, all, "views of a session"));
  for (int follows = 0; follows < 2; follows++)
    for (int k = 0; k < all; k++) {
      const setting *s = &c->job.settings[k];
      if (setting_follows(s) != (follows == 1)) continue;
      if (v->count == 0 || follows) {
        session *view = &v->list[v->count++];
        *view = *c;
        view->follower = follows ? s : NULL;
        view->job.settings = NULL;
        view->job.setting_count = 0;
        TRY(NEW(view->job.settings, all, "settings of a view"));
      }
      job *j = &v->list[v->count - 1].job;
      j->settings[j->setting_count++] = *s;
    }
done:
  if (st != OK) session_views_free(v);
  return st;
}

void session_views_free(session_views *v) {
  for (int i = 0; i < v->count; i++) FREE(v->list[i].job.settings);
  FREE(v->list);
  v->count = 0;
}

void session_team_layers(const session *c, int team_index, int64_t *begin, int64_t *end) {
  deal_range(c->layer_end - c->layer_begin, c->team.count, team_index, 1, begin, end);
  *begin += c->layer_begin;
  *end += c->layer_begin;
}
