/* 16-bit floating point: bfloat16 and IEEE half, to and from float. Round to nearest, ties to even. Local. */
#ifndef CLOQWORK_BASE_HALF_H
#define CLOQWORK_BASE_HALF_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline float bf16_to_float(uint16_t h) {
  uint32_t u = (uint32_t)h << 16;
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}
uint16_t float_to_bf16(float f);
float half_to_float(uint16_t h);
uint16_t float_to_half(float f); /* overflow gives infinity, as IEEE says: callers that mind check */

/* n elements; out and in do not overlap. As fast as memory allows. */
void bf16_to_float_array(float *out, const uint16_t *in, size_t n);
void half_to_float_array(float *out, const uint16_t *in, size_t n);
void float_to_bf16_array(uint16_t *out, const float *in, size_t n);
void float_to_half_array(uint16_t *out, const float *in, size_t n);

/* The types that a model's numbers are stored in. */
typedef enum real_type { REAL_F32, REAL_F16, REAL_BF16 } real_type;
const char *real_name(real_type t); /* "float32", "float16", "bfloat16": as frameworks say */
static inline size_t real_bytes(real_type t) { return t == REAL_F32 ? 4 : 2; }
void float_to_real_array(real_type t, void *out, const float *in, size_t n);

#endif
