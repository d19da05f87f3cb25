/* The method table: a method is a row, MagR or not x a quantizer x an initialization of the adapter. Local.
 *
 * Quantizers and initializations are rows, too: what they need, what they can be joined with. A job names a method, or its parts
 * (`method: {quantizer: optq, init: lqer}`), and then gets the row of that name or one that is made of the parts. */
#ifndef CLOQWORK_JOB_METHODS_H
#define CLOQWORK_JOB_METHODS_H

#include <stdbool.h>
#include <stdio.h>

#include "quant/grid.h"
#include "quant/split.h"

typedef enum quantizer { QUANT_RTN, QUANT_OPTQ, QUANT_NF4, QUANT_NF, QUANT_SLIM, QUANT_BILLM, QUANT_COUNT } quantizer;

typedef enum initialization {
  INIT_ZERO,
  INIT_SVD,
  INIT_LQER,
  INIT_QERA_APPROX,
  INIT_CLOQ,
  INIT_QERA_EXACT,
  INIT_EORA,
  INIT_QA_LORA,
  INIT_LOFTQ,
  INIT_LASQ_W,
  INIT_LASQ_Q,
  INIT_LASQ_E,
  INIT_CALDERA,
  INIT_ODLRI,
  INIT_REFINE,
  INIT_VARPRO,
  INIT_BIDUP,
  INIT_PROJQ,
  INIT_INTRINSIC,
  INIT_L4Q,
  INIT_COUNT
} initialization;

/* What the adapter's fit measures a residual in. */
typedef enum metric { METRIC_NONE, METRIC_IDENTITY, METRIC_MEAN_ABS, METRIC_DIAGONAL, METRIC_GRAM, METRIC_POOLED, METRIC_COUNT } metric;
extern const char *const metric_names[METRIC_COUNT]; /* in solution files: certificate */

/* How codes and adapter come about:
 *   zero, fit  codes first, and one adapter for every rank at once: the truncations of the largest
 *   refine     codes refined for one rank (joint/refine.h), then the fit of their residual: larger ranks may have more of its columns
 *   joint      codes and adapter together, for one rank */
typedef enum scheme { SCHEME_ZERO, SCHEME_FIT, SCHEME_REFINE, SCHEME_JOINT } scheme;

enum { NEEDS_MEAN_ABS = 1, NEEDS_DIAGONAL = 2, NEEDS_GRAM = 4 };

typedef struct quantizer_row {
  const char *name;
  grid_kind grid;
  bool factor; /* works with the reverse Cholesky factor of the damped Gram */
  int bits_least, bits_most;
  unsigned needs;
  const char *line;
} quantizer_row;

typedef struct initialization_row {
  const char *name;
  scheme scheme;
  metric metric;      /* of the (last) fit */
  factor_split split; /* of the exported factors, unless something else is asked for */
  unsigned needs;
  const char *line;
} initialization_row;

extern const quantizer_row quantizers[QUANT_COUNT];
extern const initialization_row initializations[INIT_COUNT];

typedef struct method {
  const char *name;
  bool magr; /* MagR before the quantizer */
  quantizer quantizer;
  initialization init;
  int version;         /* raised when its numbers change: part of the fingerprint */
  const char *refused; /* why a job cannot have it; NULL: it can */
  const char *source;
  const char *line; /* one line for `cloqwork methods` */
} method;

extern const method methods[];
extern const int method_count;

const method *method_find(const char *name);    /* NULL when unknown */
const method *method_nearest(const char *name); /* NULL when nothing is near */

/* The row of these parts, made if the table has none; NULL: they do not go together, *why says it (static text). */
const method *method_combine(bool magr, quantizer q, initialization init, const char **why);

static inline const quantizer_row *method_quantizer(const method *m) { return &quantizers[m->quantizer]; }
static inline const initialization_row *method_init(const method *m) { return &initializations[m->init]; }
unsigned method_needs(const method *m);

void methods_print(FILE *out);

#endif
