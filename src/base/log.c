#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
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
  if (o && json_dump_file(o, temporary, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(6)) == 0) rename(temporary, state.path);
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
  say(!isatty(STDERR_FILENO), format, arguments);
  va_end(arguments);
}

void log_peak(double gflops) { peak_gflops = gflops; }

/* ", 51 GFLOP/s (0.66 of peak), 4 min 02 s left, 0.35 GiB" */
static void describe(char text[128]) {
  size_t used = 0;
  text[0] = 0;
  if (state.gflops >= 0) used += (size_t)snprintf(text, 128, ", %.0f GFLOP/s", state.gflops);
  if (state.gflops >= 0 && peak_gflops > 0)
    used += (size_t)snprintf(text + used, 128 - used, " (%.2f of peak)", state.gflops / peak_gflops);
  char left[32] = "?";
  if (state.seconds_left >= 0) clock_duration(state.seconds_left, left);
  snprintf(text + used, 128 - used, ", %s left, %.2f GiB", left, memory_bytes() / (1 << 30));
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
  state.seconds_left = fraction > 0 ? (now - stage_start) * (1 - fraction) / fraction : -1;
  if (now - state.written > 2) write_state("running", "");
  bool terminal = isatty(STDERR_FILENO);
  if (quiet || now - last_line < (terminal ? 0.1 : 30)) return;
  last_line = now;
  char rest[128];
  describe(rest);
  if (terminal) {
    enum { WIDTH = 16 };
    char bar[WIDTH + 1];
    int full = (int)(fraction * WIDTH);
    for (int i = 0; i < WIDTH; i++) bar[i] = i < full ? '#' : '.';
    bar[WIDTH] = 0;
    fprintf(stderr, "\r\033[K[%s] %3.0f %% %s%s", bar, 100 * fraction, what, rest);
    fflush(stderr);
    line_open = true;
  } else {
    log_info("%3.0f %% %s%s", 100 * fraction, what, rest);
  }
}

void log_progress_end(void) {
  if (line_open) fprintf(stderr, "\r\033[K");
  line_open = false;
}
