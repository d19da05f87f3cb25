#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static char kept[2048];

status status_fail(const char *file, int line, status code, const char *format, ...) {
  if (kept[0]) return code;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(kept, sizeof kept, format, arguments);
  va_end(arguments);
  for (char *c = kept; *c; c++) /* names from hostile files must not break the one line */
    if ((unsigned char)*c < ' ' || *c == 127) *c = '?';
  if (code == E_NUMERICS || code == E_INTERNAL) { /* where in the program matters only for these */
    const char *slash = strrchr(file, '/');
    size_t used = strlen(kept);
    snprintf(kept + used, sizeof kept - used, " [%s:%d]", slash ? slash + 1 : file, line);
  }
  return code;
}

int status_exit_code(status st) {
  static const int codes[] = {
#define X(name, code, text) [name] = code,
      STATUS_LIST(X)
#undef X
  };
  return codes[st];
}

const char *status_sentence(status st) {
  static const char *const sentences[] = {
#define X(name, code, text) [name] = text,
      STATUS_LIST(X)
#undef X
  };
  return sentences[st];
}

const char *status_message(void) { return kept; }

void status_set_message(const char *message) { snprintf(kept, sizeof kept, "%s", message); }

void status_clear(void) { kept[0] = 0; }
