/* What a model predicts at each position, against the token that came and against the original model's prediction. Local.
 *
 * Logits are never kept whole: the vocabulary is walked in strips, and a position's prediction is a few sums that each strip adds to.
 * With p the original's and q a variant's softmax:
 *     NLL = log sum exp q - q[next]              KL(p || q) = sum p (log p - log q) = cross / sum - (log-sum-exp of p - that of q)
 * Logits and exponentials in float, sums in double, as strips come: a prediction depends on the hidden states and the head alone. */
#ifndef CLOQWORK_MODEL_HEAD_H
#define CLOQWORK_MODEL_HEAD_H

#include "base/status.h"
#include "model/checkpoint.h"

typedef struct prediction {
  double sum;   /* of exp(logit - most) */
  double cross; /* of exp(p - most of p) (p - q), over the logits p of the original and q of this variant */
  float most;   /* the largest logit so far */
  float came;   /* the logit of the token that came */
  int32_t best; /* the first that has the largest logit */
} prediction;

/* x (rows, d) becomes what the head reads: rms(x) w_norm, norm (d). */
void head_norm(const arch *a, const float *norm, int64_t rows, float *x);

void predictions_start(int64_t rows, prediction *p);

/* Scratch of one rank for head_add. */
typedef struct head_scratch {
  float *original, *exponentials, *logits; /* (HEAD_ROWS, HEAD_COLUMNS) each */
  double *shrink;                          /* (HEAD_ROWS) */
} head_scratch;
enum { HEAD_ROWS = 512, HEAD_COLUMNS = 1024 };
status head_scratch_new(head_scratch *s);
void head_scratch_free(head_scratch *s);

/* Adds vocabulary [first, first + count), whose head weights are head (count, d), to the predictions of `rows` positions.
 * x[v] (rows, d): final hidden states after the norm, v = 0 the original's; p[v] (rows) their predictions.
 * next (rows): the token that comes after each position. */
void head_add(int64_t d, int64_t rows, int64_t first, int64_t count, const float *head, const int32_t *next, head_scratch *s, int variants,
              const float *const *x, prediction *const *p);

/* After the whole vocabulary. Not finite where a logit was not. */
double prediction_nll(const prediction *p);
double prediction_kl(const prediction *original, const prediction *variant);

/* Sums over positions in their order, or their means. */
typedef struct prediction_score {
  double nll, kl, agrees; /* KL(original || this); agrees: 1 where both find the same token the likeliest */
} prediction_score;
prediction_score prediction_score_of(int64_t positions, const prediction *original, const prediction *p); /* sums */
/* The mean over `positions` from the sums of so many parts, added in their order. */
prediction_score prediction_score_mean(int parts, const prediction_score *sums, int64_t positions);

#endif
