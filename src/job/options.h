/* The options of a job as a table: a name, what it may be, its default. Local; private to job.c.
 *
 * Names and values are those of spec methods.md, section 15 (and of the retry and adapter controls in job.h). Three kinds of row: values
 * that this version computes with (a member of struct options), values of which it offers one (recorded, so that a later version's
 * default means the same), and names that it only knows to refuse. */
#ifndef CLOQWORK_JOB_OPTIONS_H
#define CLOQWORK_JOB_OPTIONS_H

#include "job/job.h"

enum { OPTION_TEXT = 64, OPTION_MOST = 64 };

/* The step of the work whose result an option changes: settings that agree up to a step share it. */
typedef enum option_stage { STAGE_MAGR, STAGE_FACTOR, STAGE_CODES, STAGE_ADAPTER, STAGE_NONE } option_stage;

extern const int option_count; /* at most OPTION_MOST */
const char *option_name(int i);
bool option_concerns(int i, const method *m);                  /* does this method look at it? */
bool option_matters(int i, const method *m, const options *o); /* also with its other options? */

/* Whether two sets of options agree in everything of that step that the method looks at. */
bool options_equal(option_stage stage, const method *m, const options *a, const options *b);

/* The job file's `options` made whole: every row's value or values ("auto" or a value of the row's type) as a list, in the table's
 * order. given may be NULL or null. prefix: "job.yaml: options." E_USAGE. *whole is owned: an object of lists. */
status options_complete(const char *prefix, const json_t *given, json_t **whole);

/* Sets option i from one value of the completed lists; NULL: its default. "auto" needs the options before it in the table resolved. */
void option_resolve(int i, const json_t *value, const method *m, int bits, int group, options *o);

/* Whether it has what "auto" gives: option_resolve may give something else at other bits and groups. */
bool option_is_automatic(int i, const method *m, int bits, int group, const options *o);

void option_text(int i, const options *o, char text[OPTION_TEXT]); /* "0.01", "fista" */

#endif
