/* What setting_describe says, as lines "key=value". */
#ifndef CLOQWORK_TESTS_UNIT_COLLECTED_H
#define CLOQWORK_TESTS_UNIT_COLLECTED_H

#include <stdio.h>
#include <string.h>

typedef struct collected {
  char text[4096];
} collected;

static inline status collect(void *context, const char *key, const char *text) {
  collected *c = context;
  size_t used = strlen(c->text);
  snprintf(c->text + used, sizeof c->text - used, "%s=%s\n", key, text);
  return OK;
}

#endif
