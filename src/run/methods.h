/* The method table: a method is a row. Local. */
#ifndef CLOQWORK_RUN_METHODS_H
#define CLOQWORK_RUN_METHODS_H

#include <stdbool.h>
#include <stdio.h>

typedef enum quantizer { QUANT_RTN, QUANT_OPTQ } quantizer;
typedef enum initialization { INIT_CLOSED_FORM } initialization;

typedef struct method {
  const char *name;
  bool magr; /* MagR before the quantizer */
  quantizer quantizer;
  initialization init;
  int version; /* raised when its numbers change: part of the fingerprint */
  const char *source;
  const char *line; /* one line for `cloqwork methods` */
} method;

extern const method methods[];
extern const int method_count;

const method *method_find(const char *name);  /* NULL when unknown */
const char *method_nearest(const char *name); /* NULL when nothing is near */
void methods_print(FILE *out);

#endif
