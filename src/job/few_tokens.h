/* Grams of few tokens: what is fitted to them fits other tokens worse (spec refine, "Monotone and honest"). Local. */
#ifndef CLOQWORK_JOB_FEW_TOKENS_H
#define CLOQWORK_JOB_FEW_TOKENS_H

#include <stdbool.h>

#include "model/checkpoint.h"
#include "model/tokens.h"

enum { TOKENS_A_COLUMN = 4, FEW_TOKENS_TEXT = 256 };

/* Tokens of w for each column of a Gram; NaN of inputs that no target reads, and of all without w. */
void tokens_a_column(const arch *a, const windows *w, const bool wanted[IN_COUNT], double per_column[IN_COUNT]);

/* Whether some have fewer than TOKENS_A_COLUMN: text says it, "few calibration tokens a column: mlp_out 2.67; below 4 compare held-out losses", else it is empty. */
bool few_tokens(const double per_column[IN_COUNT], char text[FEW_TOKENS_TEXT]);

#endif
