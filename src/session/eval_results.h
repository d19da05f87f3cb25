/* What evaluation found: points of a setting, and RUN/eval/NAME.json that keeps them. Local.
 *
 * The file is an object with what identifies the numbers (program_version, model_fingerprint, tokens_fingerprint, windows, length,
 * solution_fingerprint), the name, and points: [{rank, perplexity, nll, nll_se, nll_minus_original, nll_minus_original_se, kl, kl_se,
 * top1_agreement, top1_agreement_se, tokens}]. Rank 0 is the quantized base alone; the original's only point (original.json) has rank null. */
#ifndef CLOQWORK_SESSION_EVAL_RESULTS_H
#define CLOQWORK_SESSION_EVAL_RESULTS_H

#include "base/hash.h"
#include "base/json.h"
#include "base/status.h"
#include "model/head.h"

enum { RANK_ORIGINAL = -1 };

/* Means over windows of each window's mean; _se: sd / sqrt(n) over windows; differences are paired by window. */
typedef struct eval_point {
  int rank;
  double perplexity, nll, nll_se, nll_minus_original, nll_minus_original_se, kl, kl_se, top1, top1_se;
  int64_t tokens; /* predicted ones */
} eval_point;

/* Everything that decides the numbers of a setting's points but their rank. */
typedef struct eval_identity {
  char program_version[32], model[HASH_HEX], tokens[HASH_HEX], solution[HASH_HEX]; /* solution "": the original */
  int64_t windows, length;
} eval_identity;

typedef struct eval_result {
  eval_identity identity;
  eval_point *points; /* ascending ranks; owned */
  int count;
} eval_result;

/* score, original [count], of windows of so many tokens. */
eval_point eval_point_of(int rank, int64_t count, int64_t length, const prediction_score *score, const prediction_score *original);
status eval_result_put(eval_result *r, const eval_point *p); /* adds or replaces */
const eval_point *eval_result_find(const eval_result *r, int rank);
void eval_result_free(eval_result *r);

/* NULL where both are the same, else the name of what differs. */
const char *eval_identity_differs(const eval_identity *a, const eval_identity *b);

/* An absent file gives a result without points. E_DATA: damaged. */
status eval_result_read(const char *path, eval_result *r);
status eval_result_write(const char *path, const char *name, const eval_result *r); /* temporary name, synced, renamed */
json_t *eval_point_json(const eval_point *p);

#endif
