#include "base/hash.h"

#include <openssl/evp.h>
#include <string.h>

#include "base/memory.h"

struct hash {
  EVP_MD_CTX *context;
};

status hash_new(hash **h) {
  status st = NEW(*h, 1, "hash");
  if (st != OK) return st;
  (*h)->context = EVP_MD_CTX_new();
  if (!(*h)->context || EVP_DigestInit_ex((*h)->context, EVP_sha256(), NULL) != 1) {
    hash_free(h);
    return fail(E_INTERNAL, "hash: SHA-256 is not offered by the OpenSSL library");
  }
  return OK;
}

status hash_add(hash *h, const void *data, size_t bytes) {
  if (EVP_DigestUpdate(h->context, data, bytes) != 1) return fail(E_INTERNAL, "hash: OpenSSL refused %zu bytes", bytes);
  return OK;
}

status hash_add_text(hash *h, const char *text) { return hash_add(h, text, strlen(text) + 1); }

status hash_end(hash **h, char hex[HASH_HEX]) {
  unsigned char digest[32];
  unsigned length = 0;
  int good = EVP_DigestFinal_ex((*h)->context, digest, &length) == 1 && length == sizeof digest;
  hash_free(h);
  if (!good) return fail(E_INTERNAL, "hash: OpenSSL could not finish");
  for (unsigned i = 0; i < sizeof digest; i++) {
    hex[2 * i] = "0123456789abcdef"[digest[i] >> 4];
    hex[2 * i + 1] = "0123456789abcdef"[digest[i] & 15];
  }
  hex[64] = 0;
  return OK;
}

void hash_free(hash **h) {
  if (!*h) return;
  EVP_MD_CTX_free((*h)->context);
  FREE(*h);
}

status hash_bytes(const void *data, size_t bytes, char hex[HASH_HEX]) {
  hash *h = NULL;
  status st = OK;
  TRY(hash_new(&h));
  TRY(hash_add(h, data, bytes));
  return hash_end(&h, hex);
done:
  hash_free(&h);
  return st;
}
