#include "quant/split.h"

#include <string.h>

const char *split_name(factor_split s) {
  static const char *const names[] = {"cloq", "qera", "balanced"};
  return names[s];
}

status split_find(const char *where, const char *name, factor_split *s) {
  for (int k = SPLIT_CLOQ; k <= SPLIT_BALANCED; k++)
    if (strcmp(name, split_name((factor_split)k)) == 0) {
      *s = (factor_split)k;
      return OK;
    }
  return fail(E_USAGE, "%s: expected cloq, qera or balanced, found %s", where, name);
}
