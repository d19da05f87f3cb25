/* JSON by jansson, with errors that name file, key, expected and found. Local.
 * A tree is a json_t, reference counted as jansson does; json_drop(&t) accepts NULL. */
#ifndef CLOQWORK_BASE_JSON_H
#define CLOQWORK_BASE_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

status json_parse(const char *where, const char *text, size_t bytes, json_t **tree); /* duplicate keys refused; E_DATA */
status json_read_file(const char *path, size_t limit, json_t **tree);
void json_drop(json_t **tree);

/* Typed members of object o. A missing or null key gives `missing`; pass JSON_REQUIRED variants where it must be there. E_DATA. */
status json_get_int(const json_t *o, const char *where, const char *key, int64_t lo, int64_t hi, int64_t missing, int64_t *value);
status json_need_int(const json_t *o, const char *where, const char *key, int64_t lo, int64_t hi, int64_t *value);
status json_get_real(const json_t *o, const char *where, const char *key, double missing, double *value);
status json_get_bool(const json_t *o, const char *where, const char *key, bool missing, bool *value);
status json_get_string(const json_t *o, const char *where, const char *key, const char *missing, const char **value); /* borrowed from o */

#endif
