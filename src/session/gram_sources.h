/* Where Grams come from when they are not made here: run directories whose Grams are added (calibration.merge), or a folder of matrices
 * that another program made (calibration.import; session/gram_folder.h).
 *
 * Grams are known by their tokens. A pedigree lists the sets of tokens that went into one, each once: those of calibrations and imports,
 * through however many merges. It stands in the file (root attributes `origin`, `sources`, `source_tokens`), decides tokens_fingerprint,
 * and is how the same tokens are kept from counting twice. The order in which sources are named decides nothing: they are taken by
 * fingerprint.
 *
 * What stands in the run directory already counts without its sources: they may be gone or elsewhere once their Grams were taken.
 *
 * Held-out Grams. A job with held-out tokens takes those of a source that were made from just these. One without takes the sum of
 * all sources' where every source has some; a set that several sources share counts once. Tokens that were calibrated on are no held-out
 * ones: refused. */
#ifndef CLOQWORK_SESSION_GRAM_SOURCES_H
#define CLOQWORK_SESSION_GRAM_SOURCES_H

#include <stdbool.h>
#include <stdint.h>

#include "base/hash.h"
#include "base/status.h"
#include "store/container.h"

struct session;

typedef struct token_set {
  char fingerprint[HASH_HEX];
  int64_t tokens;
} token_set;

typedef struct pedigree {
  token_set *list; /* ascending by fingerprint, distinct; owned */
  int count, room;
} pedigree;

typedef struct gram_source {
  const char *path;      /* as the job names it; borrowed from it */
  char *folder;          /* that holds the files of this set; owned */
  bool has_set;          /* held-out Grams may be missing */
  pedigree of;           /* what it was made from */
  char tokens[HASH_HEX]; /* its tokens_fingerprint */
} gram_source;

/* The sources of one set of tokens, by fingerprint. count 0: the set is made here, or stands in the run directory alone. */
typedef struct gram_union {
  gram_source *list; /* owned */
  int count;
  pedigree of; /* of all together; empty where the set has tokens of the job's own */
} gram_union;

/* Local. `calibration=…` for --set when the command line has --from (merge: run directories, grams: one folder): owned; NULL: it has none. */
struct arguments;
status gram_sources_override(const struct arguments *a, char **assignment);

/* Local. Fills c->unions and, for sets that come from elsewhere, c->windows and c->sets: what is known of their tokens, without ids. E_DATA:
 * a source that is missing, of another model, or whose tokens are another's, too. */
status gram_sources_open(struct session *c);
void gram_union_free(gram_union *u); /* accepts an empty one */

/* Local. Adds one set; E_DATA with `where` when it is there already. */
status pedigree_add(pedigree *p, const char *where, const char *fingerprint, int64_t tokens);
status pedigree_fingerprint(const pedigree *p, char hex[HASH_HEX]); /* of a single set: its own */
int64_t pedigree_tokens(const pedigree *p);
status pedigree_write(const pedigree *p, attributes *a);                   /* `sources`, `source_tokens` */
status pedigree_read(const char *where, const attributes *a, pedigree *p); /* the same; E_DATA */
void pedigree_free(pedigree *p);

#endif
