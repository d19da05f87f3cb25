#include "model/tokens.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "model/npy.h"

/* ---- CPython's generator: MT19937 seeded by init_by_array (Modules/_randommodule.c) ---- */

enum { MT_N = 624, MT_M = 397 };

void python_random_seed(python_random *r, int64_t seed) {
  uint64_t magnitude = seed < 0 ? -(uint64_t)seed : (uint64_t)seed;
  uint32_t key[2] = {(uint32_t)magnitude, (uint32_t)(magnitude >> 32)}, *s = r->state;
  int keys = key[1] ? 2 : 1, i = 1, j = 0;
  s[0] = 19650218;
  for (uint32_t k = 1; k < MT_N; k++) s[k] = 1812433253u * (s[k - 1] ^ (s[k - 1] >> 30)) + k;
  for (int k = 0; k < MT_N; k++) {
    s[i] = (s[i] ^ ((s[i - 1] ^ (s[i - 1] >> 30)) * 1664525u)) + key[j] + (uint32_t)j;
    if (++i >= MT_N) s[0] = s[MT_N - 1], i = 1;
    if (++j >= keys) j = 0;
  }
  for (int k = 0; k < MT_N - 1; k++) {
    s[i] = (s[i] ^ ((s[i - 1] ^ (s[i - 1] >> 30)) * 1566083941u)) - (uint32_t)i;
    if (++i >= MT_N) s[0] = s[MT_N - 1], i = 1;
  }
  s[0] = 0x80000000u;
  r->at = MT_N;
}

uint32_t python_random_next32(python_random *r) {
  uint32_t *s = r->state;
  if (r->at >= MT_N) {
    for (int k = 0; k < MT_N; k++) {
      uint32_t y = (s[k] & 0x80000000u) | (s[(k + 1) % MT_N] & 0x7fffffffu);
      s[k] = s[(k + MT_M) % MT_N] ^ (y >> 1) ^ (y & 1 ? 0x9908b0dfu : 0);
    }
    r->at = 0;
  }
  uint32_t y = s[r->at++];
  y ^= y >> 11;
  y ^= (y << 7) & 0x9d2c5680u;
  y ^= (y << 15) & 0xefc60000u;
  return y ^ (y >> 18);
}

/* random.randint by rejection: as many bits as hi - lo + 1 has, until they are below it; above 32 bits the low word comes first. */
int64_t python_randint(python_random *r, int64_t lo, int64_t hi) {
  uint64_t n = (uint64_t)hi - (uint64_t)lo + 1, value;
  int bits = 64 - __builtin_clzll(n);
  do {
    value = bits <= 32 ? python_random_next32(r) >> (32 - bits) : python_random_next32(r);
    if (bits > 32) value |= (uint64_t)(python_random_next32(r) >> (64 - bits)) << 32;
  } while (value >= n);
  return (int64_t)((uint64_t)lo + value);
}

/* ---- ids ---- */

static const npy_wish ids_wished = {"iu", "integers", 1, "ids"};

/* Ids wider than 63 bits end as negative numbers, which no vocabulary holds. */
static int64_t npy_id(const npy *f, int64_t i) {
  const unsigned char *p = f->data + (size_t)i * (size_t)f->bytes;
  uint64_t u = 0;
  for (int k = f->bytes - 1; k >= 0; k--) u = u << 8 | p[k];
  int unused = 64 - 8 * f->bytes;
  return f->kind == 'i' ? (int64_t)(u << unused) >> unused : (int64_t)u;
}

static status check_ids(const char *path, const npy *f, int64_t vocab) {
  for (int64_t i = 0; i < f->shape[0]; i++) {
    int64_t id = npy_id(f, i);
    if (id < 0 || id >= vocab)
      return fail(E_DATA, "%s: position %lld: expected an id from 0 to %lld, the model's vocabulary, found %lld", path, (long long)i,
                  (long long)vocab - 1, (long long)id);
  }
  return OK;
}

/* ---- windows ---- */

static status choose_starts(const window_request *q, int64_t n, windows *w) {
  python_random r;
  if (q->how == SAMPLE_SEQUENTIAL) {
    if (n / q->length < q->windows)
      return fail(E_DATA, "%s: expected %lld windows of %lld ids one after the other, found %lld ids", q->path, (long long)q->windows,
                  (long long)q->length, (long long)n);
    for (int64_t i = 0; i < q->windows; i++) w->start[i] = i * q->length;
    return OK;
  }
  if (n <= q->length)
    return fail(E_DATA, "%s: expected more ids than one window of %lld holds, found %lld", q->path, (long long)q->length, (long long)n);
  python_random_seed(&r, q->seed);
  for (int64_t i = 0; i < q->windows; i++) w->start[i] = python_randint(&r, 0, n - q->length - 1);
  return OK;
}

static status window_fingerprint(windows *w) {
  status st = OK;
  hash *h = NULL;
  char shape[64];
  snprintf(shape, sizeof shape, "%lld x %lld", (long long)w->count, (long long)w->length);
  TRY(hash_new(&h));
  TRY(hash_add_text(h, shape));
  TRY(hash_add(h, w->ids, (size_t)(w->count * w->length) * sizeof *w->ids));
  TRY(hash_end(&h, w->fingerprint));
done:
  hash_free(&h);
  return st;
}

status windows_draw(const window_request *request, int64_t vocab, windows *w) {
  status st = OK;
  npy f = {0};
  size_t total;
  window_request filled = *request, *q = &filled;
  *w = (windows){.length = q->length};
  if (q->windows < 0 || q->length < 1 || __builtin_mul_overflow((size_t)q->windows, (size_t)q->length, &total))
    return fail(E_USAGE, "%s: expected windows of at least one id, found %lld of %lld", q->path, (long long)q->windows,
                (long long)q->length);
  TRY(npy_open(q->path, &ids_wished, &f));
  TRY(check_ids(q->path, &f, vocab < INT32_MAX ? vocab : INT32_MAX));
  if (q->windows == 0) q->windows = f.shape[0] / q->length;
  if (q->windows == 0) q->windows = 1; /* which will be said to be missing */
  w->count = q->windows;
  TRY(NEW(w->start, w->count, "window positions"));
  TRY(choose_starts(q, f.shape[0], w));
  TRY(NEW(w->ids, w->count * w->length, "token windows"));
  for (int64_t i = 0; i < w->count; i++)
    for (int64_t k = 0; k < w->length; k++) w->ids[i * w->length + k] = (int32_t)npy_id(&f, w->start[i] + k);
  TRY(window_fingerprint(w));
done:
  npy_close(&f);
  if (st != OK) windows_free(w);
  return st;
}

void windows_free(windows *w) {
  FREE(w->ids);
  FREE(w->start);
  *w = (windows){0};
}

/* ---- chunks ---- */

enum { CHUNK_TOKENS = 2048 };

int windows_per_chunk(int64_t length) { return length >= CHUNK_TOKENS ? 1 : (int)(CHUNK_TOKENS / length); }

int windows_chunks(const windows *w) {
  int per = windows_per_chunk(w->length);
  return (int)((w->count + per - 1) / per);
}

int windows_in_chunk(const windows *w, int chunk) {
  int per = windows_per_chunk(w->length);
  int64_t left = w->count - (int64_t)chunk * per;
  return (int)(left < per ? left : per);
}

int64_t windows_chunk_rows(const windows *w) { return w->length * windows_per_chunk(w->length); }

const int32_t *windows_chunk_ids(const windows *w, int chunk) { return w->ids + (int64_t)chunk * windows_chunk_rows(w); }
