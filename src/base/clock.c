#include "base/clock.h"

#include <stdio.h>
#include <time.h>

double clock_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void clock_stamp(char text[32]) {
  time_t now = time(NULL);
  struct tm parts;
  gmtime_r(&now, &parts);
  strftime(text, 32, "%Y-%m-%dT%H:%M:%SZ", &parts);
}

void clock_duration(double seconds, char text[32]) {
  if (seconds < 0) seconds = 0;
  if (seconds < 59.95) {
    snprintf(text, 32, "%.1f s", seconds);
    return;
  }
  long whole = (long)(seconds + 0.5), minutes = (whole + 30) / 60;
  if (whole < 3600)
    snprintf(text, 32, "%ld min %02ld s", whole / 60, whole % 60);
  else
    snprintf(text, 32, "%ld h %02ld min", minutes / 60, minutes % 60);
}
