#include "job/few_tokens.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

void tokens_a_column(const arch *a, const windows *w, const bool wanted[IN_COUNT], double per_column[IN_COUNT]) {
  for (int i = 0; i < IN_COUNT; i++)
    per_column[i] = w && wanted[i] ? (double)(w->count * w->length) / (double)input_width(a, (input_id)i) : NAN;
}

bool few_tokens(const double per_column[IN_COUNT], char text[FEW_TOKENS_TEXT]) {
  size_t used = 0;
  text[0] = 0;
  for (int i = 0; i < IN_COUNT; i++) {
    if (!(per_column[i] < TOKENS_A_COLUMN)) continue;
    used += (size_t)snprintf(text + used, FEW_TOKENS_TEXT - used, "%s %s %.3g",
                             used ? "," : "few calibration tokens a column:", input_name((input_id)i), per_column[i]);
  }
  if (used) snprintf(text + used, FEW_TOKENS_TEXT - used, "; below %d compare held-out losses", TOKENS_A_COLUMN);
  return used > 0;
}
