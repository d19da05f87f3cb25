/* The verbs: what each does, how it is called. All Collective over the session's job communicator. */
#ifndef CLOQWORK_RUN_VERBS_H
#define CLOQWORK_RUN_VERBS_H

#include "session/session.h"

/* What is opened before a verb works: with NEEDS_NOTHING the session holds the arguments and ranks alone. */
typedef enum verb_needs { NEEDS_NOTHING, NEEDS_MODEL, NEEDS_TOKENS } verb_needs;

typedef struct verb {
  const char *name;
  status (*work)(session *c);        /* after session_open */
  status (*begin)(session *c);       /* between the two, of verbs that write: takes the run directory or its settings */
  verb_needs needs;                  /* the job and the model's headers; the token files of calibration, too */
  bool (*alone)(const arguments *a); /* where given and true: this call needs nothing after all */
  const char *line;                  /* for --help */
  const char *help;                  /* for VERB --help */
} verb;

extern const verb verbs[];
extern const int verb_count;

/* Collective over comm. A verb from the job file to its end: everything is given back, however it went. io: for the log. */
status verb_perform(MPI_Comm comm, const verb *v, const arguments *a, const blas_info *blas, const char *io);

status verb_plan(session *c);
status verb_calibrate(session *c);
status verb_solve(session *c);
status verb_collect(session *c);
status verb_run(session *c);
status verb_verify(session *c);
status verb_allocate(session *c);
status verb_eval(session *c);
status verb_export(session *c);
status verb_merge(session *c);
status verb_grams(session *c);
status verb_report(session *c);
status verb_status(session *c);
status verb_methods(session *c);

/* Parts that verbs share. Collective. */
status collect(session *c);                 /* master file run.h5 over everything that is done */
status gemm_rate(session *c, double *rate); /* flops/s of all ranks in a short product, all at the same time, as they will work */

bool verify_is_export(const arguments *a); /* verify of a folder that export made, not of a run */
status verify_export(session *c);

#endif
