#include "base/log.h"

#include <stdarg.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"

static bool speaks, quiet, line_open;
static FILE *file;
static double stage_start, last_line, peak_gflops;
static char stage_name[64];

/* What other shells may look at. */
static struct {
  char path[4096], verb[16], owner[64], started[32], what[128];
  double fraction, gflops, seconds_left, written;
} state;

void log_speaker(bool is_speaker, bool is_quiet) {
  speaks = is_speaker;
  quiet = is_quiet;
}

status log_open(const char *path) {
  if (!speaks) return OK;
  file = fopen(path, "a");
  if (!file) return fail(E_IO, "%s: cannot be opened for appending: %m", path);
  setvbuf(file, NULL, _IOLBF, 0);
  return OK;
}

void log_close(void) {
  log_progress_end();
  if (file) fclose(file);
  file = NULL;
}

/* The terminal at the end of standard error, -1: none. An MPI launcher stands in between with a pipe: then it is its own standard error that counts. */
static int find_terminal(void) {
  char link[64], target[64];
  if (isatty(STDERR_FILENO)) return STDERR_FILENO;
  if (!getenv("PMIX_RANK")) return -1;
  snprintf(link, sizeof link, "/proc/%ld/fd/2", (long)getppid());
  ssize_t n = readlink(link, target, sizeof target - 1);
  target[n > 0 ? n : 0] = 0;
  bool named = strncmp(target, "/dev/pts/", 9) == 0 || strncmp(target, "/dev/tty", 8) == 0;
  return named ? open(target, O_RDONLY | O_NOCTTY | O_CLOEXEC) : -1;
}

static int terminal(void) {
  static int fd = -2;
  if (fd == -2) fd = find_terminal();
  return fd;
}

static int columns(void) {
  struct winsize size;
  return ioctl(terminal(), TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col : 80;
}

static double memory_bytes(void) {
  struct rusage use;
  return getrusage(RUSAGE_SELF, &use) == 0 ? 1024.0 * (double)use.ru_maxrss : 0;
}

static void write_state(const char *how, const char *message) {
  char now[32], temporary[sizeof state.path + 8];
  if (!*state.path) return;
  clock_stamp(now);
  snprintf(temporary, sizeof temporary, "%s.tmp", state.path);
  json_t *o =
      json_pack("{s:s, s:s, s:s, s:s, s:s, s:f, s:f, s:f, s:f, s:f, s:s, s:s}", "verb", state.verb, "owner", state.owner, "state", how,
                "message", message, "what", state.what, "fraction", state.fraction, "gflops", state.gflops, "peak_gflops", peak_gflops,
                "seconds_left", state.seconds_left, "memory_bytes", memory_bytes(), "started", state.started, "updated", now);
  if (o && (json_dump_file(o, temporary, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(6)) != 0 ||
            rename(temporary, state.path) != 0))
    unlink(temporary); /* a full disk, say: the job itself will tell */
  json_decref(o);
  state.written = clock_now();
}

void log_watch(const char *path, const char *verb, const char *owner) {
  if (!speaks) return;
  memset(&state, 0, sizeof state);
  snprintf(state.path, sizeof state.path, "%s", path);
  snprintf(state.verb, sizeof state.verb, "%s", verb);
  snprintf(state.owner, sizeof state.owner, "%s", owner);
  state.seconds_left = -1;
  clock_stamp(state.started);
  write_state("running", "");
}

void log_end(status st) {
  static char message[2048];
  if (!speaks || !*state.path) return;
  snprintf(message, sizeof message, "%s", st == OK ? "" : status_message()[0] ? status_message() : status_sentence(st));
  if (st != OK && file) {
    char stamp[32];
    clock_stamp(stamp);
    fprintf(file, "%s %s\n", stamp, message);
  }
  write_state(st == OK ? "done" : st == E_STOPPED ? "stopped" : "failed", message);
  *state.path = 0;
}

static void say(bool on_terminal, const char *format, va_list arguments) __attribute__((format(printf, 2, 0)));
static void say(bool on_terminal, const char *format, va_list arguments) {
  char stamp[32], text[2048];
  clock_stamp(stamp);
  vsnprintf(text, sizeof text, format, arguments);
  if (!quiet && on_terminal) {
    log_progress_end();
    fprintf(stderr, "%s %s\n", stamp, text);
  }
  if (file) fprintf(file, "%s %s\n", stamp, text);
}

void log_info(const char *format, ...) {
  if (!speaks) return;
  va_list arguments;
  va_start(arguments, format);
  say(true, format, arguments);
  va_end(arguments);
}

void log_unit(const char *format, ...) {
  if (!speaks) return;
  va_list arguments;
  va_start(arguments, format);
  say(terminal() < 0, format, arguments);
  va_end(arguments);
}

void log_peak(double gflops) { peak_gflops = gflops; }

/* ", 4 min 02 s left, 51 GFLOP/s (0.66 of peak), 0.35 GiB" */
static void describe(char text[128]) {
  char left[32] = "?";
  if (state.seconds_left >= 0) clock_duration(state.seconds_left, left);
  int used = snprintf(text, 128, ", %s left", left);
  if (state.gflops >= 0) used += snprintf(text + used, 128 - (size_t)used, ", %.0f GFLOP/s", state.gflops);
  if (state.gflops >= 0 && peak_gflops > 0)
    used += snprintf(text + used, 128 - (size_t)used, " (%.2f of peak)", state.gflops / peak_gflops);
  snprintf(text + used, 128 - (size_t)used, ", %.2f GiB", memory_bytes() / (1 << 30));
}

/* The first word of `what` names the stage: remaining time is judged from that stage's own start. */
void log_progress(const char *what, double fraction, double gflops) {
  if (!speaks) return;
  double now = clock_now();
  size_t word = strcspn(what, " ");
  if (word >= sizeof stage_name) word = sizeof stage_name - 1;
  if (strlen(stage_name) != word || strncmp(stage_name, what, word) != 0) {
    memcpy(stage_name, what, word);
    stage_name[word] = 0;
    stage_start = now;
    last_line = now;
  }
  snprintf(state.what, sizeof state.what, "%s", what);
  state.fraction = fraction;
  state.gflops = gflops;
  if (peak_gflops > 0 && gflops > peak_gflops) peak_gflops = gflops; /* what was measured as other programs ran */
  state.seconds_left = fraction > 0 ? (now - stage_start) * (1 - fraction) / fraction : -1;
  if (now - state.written > 2) write_state("running", "");
  if (quiet || now - last_line < (terminal() >= 0 ? 0.1 : 30)) return;
  last_line = now;
  char rest[128];
  describe(rest);
  if (terminal() < 0) {
    log_info("%3.0f %% %s%s", 100 * fraction, what, rest);
    return;
  }
  enum { BAR = 10 };
  char line[320];
  int full = (int)(fraction * BAR);
  snprintf(line, sizeof line, "[%.*s%.*s] %3.0f %% %s%s", full, "##########", BAR - full, "..........", 100 * fraction, what, rest);
  fprintf(stderr, "\r\033[K%.*s", columns() - 1, line); /* one that is broken could not be redrawn */
  fflush(stderr);
  line_open = true;
}

void log_progress_end(void) {
  if (line_open) fprintf(stderr, "\r\033[K");
  line_open = false;
}
