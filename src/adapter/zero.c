#include "adapter/zero.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/hash.h"
#include "base/memory.h"

/* splitmix64 at a place of its sequence. */
static uint64_t scrambled(uint64_t key, uint64_t place) {
  uint64_t z = key + (place + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

static status key_of(const char *name, uint64_t seed, uint64_t *key) {
  status st = OK;
  hash *h = NULL;
  char hex[HASH_HEX], digits[24];
  snprintf(digits, sizeof digits, "%llu", (unsigned long long)seed);
  TRY(hash_new(&h));
  TRY(hash_add_text(h, name));
  TRY(hash_add_text(h, digits));
  TRY(hash_end(&h, hex));
  hex[16] = 0;
  *key = strtoull(hex, NULL, 16);
done:
  hash_free(&h);
  return st;
}

status adapter_zero(const adapter_request *q, const char *name, uint64_t seed, adapter *out) {
  status st = OK;
  uint64_t key;
  *out = (adapter){.n = q->n, .m = q->m, .rank = q->rank, .trace = q->trace};
  if (q->n < 1 || q->m < 1 || q->rank < 1) {
    st = fail(E_INTERNAL, "%s: adapter: expected rows, columns and a rank, found %lld x %lld, rank %d", q->where, (long long)q->n,
              (long long)q->m, q->rank);
    goto done;
  }
  TRY(key_of(name, seed, &key));
  TRY(NEW(out->b, q->n * q->rank, "lora_B"));
  TRY(NEW(out->a, q->rank * q->m, "lora_A"));
  TRY(NEW(out->values, q->rank, "eigenvalues"));
  double bound = 1 / sqrt((double)q->m);
  for (int64_t k = 0; k < q->rank * q->m; k++) {
    double odd = 2 * (double)(scrambled(key, (uint64_t)k) >> 41) + 1; /* odd / 2^24 in (0, 1), symmetric about 1/2 */
    out->a[k] = (float)(bound * (odd * 0x1p-23 - 1));
  }
done:
  if (st != OK) adapter_free(out);
  return st;
}
