/* The method table: a method is a row. Local. */
#ifndef CLOQWORK_RUN_METHODS_H
#define CLOQWORK_RUN_METHODS_H

#include <stdbool.h>
#include <stdio.h>

typedef enum quantizer { QUANT_RTN, QUANT_OPTQ, QUANT_NF4, QUANT_COUNT } quantizer;
typedef enum initialization { INIT_CLOSED_FORM, INIT_COUNT } initialization;

/* What a job file calls them: `method: {quantizer: nf4, init: cloq}`. */
extern const char *const quantizer_names[QUANT_COUNT];
extern const char *const initialization_names[INIT_COUNT];

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

const method *method_find(const char *name);                    /* NULL when unknown */
const char *method_nearest(const char *name);                   /* NULL when nothing is near */
const method *method_combine(quantizer q, initialization init); /* the row without MagR; NULL when there is none */
void methods_print(FILE *out);

#endif
