/* What the run says while it works. Local; only the rank that opened the log speaks, the others' calls do nothing.
 *
 * Lines go to standard error (unless quiet) and to RUN/run.log, with a time stamp. The progress line stands at the bottom of a
 * terminal and is redrawn; elsewhere it is printed at most every 30 s. Standard output is never touched. */
#ifndef CLOQWORK_BASE_LOG_H
#define CLOQWORK_BASE_LOG_H

#include <stdbool.h>

#include "base/status.h"

void log_speaker(bool speaks, bool quiet);
status log_open(const char *path); /* append */
void log_close(void);
void log_info(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* what: "calibrate layer 3 of 30"; fraction 0..1 of the stage; gflops < 0: not shown. */
void log_progress(const char *what, double fraction, double gflops);
void log_progress_end(void);

#endif
