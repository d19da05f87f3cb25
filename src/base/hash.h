/* SHA-256 (OpenSSL). Local. */
#ifndef CLOQWORK_BASE_HASH_H
#define CLOQWORK_BASE_HASH_H

#include <stddef.h>

#include "base/status.h"

enum { HASH_HEX = 65 }; /* 64 digits and the end */

typedef struct hash hash;
status hash_new(hash **h);
status hash_add(hash *h, const void *data, size_t bytes);
status hash_add_text(hash *h, const char *text); /* the text and its final zero, so that "ab","c" differs from "a","bc" */
status hash_end(hash **h, char hex[HASH_HEX]);   /* frees h */
void hash_free(hash **h);

status hash_bytes(const void *data, size_t bytes, char hex[HASH_HEX]);

#endif
