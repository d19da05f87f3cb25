#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

static bool speaks, quiet, line_open;
static FILE *file;
static double stage_start, last_line;
static char stage_name[64];

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

void log_info(const char *format, ...) {
  if (!speaks) return;
  log_progress_end();
  char stamp[32], text[2048];
  clock_stamp(stamp);
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  if (!quiet) fprintf(stderr, "%s %s\n", stamp, text);
  if (file) fprintf(file, "%s %s\n", stamp, text);
}

/* The first word of `what` names the stage: remaining time is judged from that stage's own start. */
void log_progress(const char *what, double fraction, double gflops) {
  if (!speaks || quiet) return;
  double now = clock_now();
  size_t word = strcspn(what, " ");
  if (word >= sizeof stage_name) word = sizeof stage_name - 1;
  if (strlen(stage_name) != word || strncmp(stage_name, what, word) != 0) {
    memcpy(stage_name, what, word);
    stage_name[word] = 0;
    stage_start = now;
    last_line = now;
  }
  bool terminal = isatty(STDERR_FILENO);
  if (now - last_line < (terminal ? 0.1 : 30)) return;
  last_line = now;
  char left[32] = "?", rate[48] = "";
  if (fraction > 0) clock_duration((now - stage_start) * (1 - fraction) / fraction, left);
  if (gflops >= 0) snprintf(rate, sizeof rate, ", %.0f GFLOP/s", gflops);
  if (terminal) {
    enum { WIDTH = 24 };
    char bar[WIDTH + 1];
    int full = (int)(fraction * WIDTH);
    for (int i = 0; i < WIDTH; i++) bar[i] = i < full ? '#' : '.';
    bar[WIDTH] = 0;
    fprintf(stderr, "\r\033[K[%s] %3.0f %% %s%s, %s left", bar, 100 * fraction, what, rate, left);
    fflush(stderr);
    line_open = true;
  } else {
    log_info("%3.0f %% %s%s, %s left", 100 * fraction, what, rate, left);
  }
}

void log_progress_end(void) {
  if (line_open) fprintf(stderr, "\r\033[K");
  line_open = false;
}
