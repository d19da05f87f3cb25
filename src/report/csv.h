/* Fields of a CSV table (RFC 4180). Local. */
#ifndef CLOQWORK_REPORT_CSV_H
#define CLOQWORK_REPORT_CSV_H

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* In quotes where it must be. */
static inline void csv_text(FILE *out, const char *text) {
  bool quoted = text[strcspn(text, ",\"\r\n")] != 0;
  if (quoted) fputc('"', out);
  for (; *text; text++) {
    if (*text == '"') fputc('"', out);
    fputc(*text, out);
  }
  if (quoted) fputc('"', out);
}

/* Separated by commas; what is not there or not finite is empty. */
static inline void csv_numbers(FILE *out, const double *x, int count) {
  for (int i = 0; i < count; i++) {
    if (i) fputc(',', out);
    if (isfinite(x[i])) fprintf(out, "%.9g", x[i]);
  }
}

#endif
