/* A mapping of the job file while it is read. Every getter checks one key and records the resolved value, defaults included, in out:
 * what is recorded is a job file again. Local; private to job.c and sweep.c. */
#ifndef CLOQWORK_JOB_SECTION_H
#define CLOQWORK_JOB_SECTION_H

#include <stdbool.h>
#include <stdint.h>

#include "base/json.h"
#include "base/status.h"

enum { SECTION_PREFIX = 1024 };

typedef struct section {
  char prefix[SECTION_PREFIX]; /* "job.yaml: calibration." : what a message puts before the key */
  const json_t *given;         /* borrowed; NULL or null: nothing was given */
  json_t *out;                 /* owned by the tree that is being made */
} section;

/* A text of a message; one that is longer is cut. */
void section_compose(char prefix[SECTION_PREFIX], const char *format, ...) __attribute__((format(printf, 2, 3)));

const json_t *section_lookup(const section *s, const char *key); /* NULL: nothing behind the key is a key that is not given */
status section_keep(section *s, const char *key, json_t *value); /* records value (taken over) under the key */

/* "PREFIXKEY: expected WHAT, found …" and "PREFIXKEY: unknown key, did you mean …": E_USAGE. */
status section_expected(const section *s, const char *key, const char *what, const json_t *found);
status section_only_keys(const section *s, const char *const *keys, int count);
#define ONLY_KEYS(s, ...) \
  section_only_keys((s), (const char *const[]){__VA_ARGS__}, (int)(sizeof((const char *const[]){__VA_ARGS__}) / sizeof(const char *)))

/* The mapping under a key of `outer` as a section of its own; out is put into the tree. */
status section_open(section *outer, const char *key, const char *what, bool required, section *s);

status section_text(section *s, const char *key, const char *what, char **text); /* owned */
/* word: an accepted text that stands for 0 ("auto", "node"), or NULL. */
status section_int(section *s, const char *key, const char *what, int64_t lo, int64_t hi, const char *word, int64_t missing,
                   int64_t *value);
status section_real(section *s, const char *key, const char *what, double lo, double hi, const char *word, double missing, double *value);

#endif
