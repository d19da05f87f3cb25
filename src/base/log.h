/* What the run says while it works. Local; only the rank that opened the log speaks, the others' calls do nothing.
 *
 * Lines go to standard error (unless quiet) and to RUN/run.log, with a time stamp. The progress line stands at the bottom of a
 * terminal and is redrawn; elsewhere it is printed at most every 30 s. Standard output is never touched.
 *
 * RUN/progress.json says the same to other shells (cloqwork status), every two seconds at most and at the end: {verb, owner, state: running | done |
 * stopped | failed, message, what, fraction, gflops, peak_gflops, seconds_left, memory_bytes, started, updated}. It is there to be looked at: that it cannot be
 * written ends nothing. */
#ifndef CLOQWORK_BASE_LOG_H
#define CLOQWORK_BASE_LOG_H

#include <stdbool.h>

#include "base/status.h"

void log_speaker(bool speaks, bool quiet);
status log_open(const char *path);                                     /* append */
void log_watch(const char *path, const char *verb, const char *owner); /* begins progress.json */
void log_end(status st);                                               /* its last state; a failure's line goes to run.log, too */
void log_close(void);
void log_info(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* A unit is done: a line of run.log, and of standard error where that is no terminal, whose live line says it already. */
void log_unit(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* What the machine reached in a short product: from then on progress lines say the fraction of it. */
void log_peak(double gflops);

/* what: "calibrate layer 3 of 30"; fraction 0..1 of the stage; gflops < 0: not shown. Memory: the most that this process had resident so
 * far, shared pages and those of the mapped checkpoint included. */
void log_progress(const char *what, double fraction, double gflops);
void log_progress_end(void);

#endif
