#include "base/half.h"

#include "base/hot.h"

uint16_t float_to_bf16(float f) {
  uint32_t u;
  memcpy(&u, &f, sizeof u);
  if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)((u >> 16) | 0x40); /* NaN stays NaN */
  return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

/* Exponent shift by a multiplication: exact for subnormals too. */
float half_to_float(uint16_t h) {
  uint32_t magnitude = (uint32_t)(h & 0x7fff) << 13, sign = (uint32_t)(h & 0x8000) << 16;
  float f;
  memcpy(&f, &magnitude, sizeof f);
  f *= 0x1p112f;
  uint32_t u;
  memcpy(&u, &f, sizeof u);
  if ((h & 0x7c00) == 0x7c00) u = 0x7f800000 | magnitude; /* Inf, NaN */
  u |= sign;
  memcpy(&f, &u, sizeof f);
  return f;
}

uint16_t float_to_half(float f) {
  uint32_t u;
  memcpy(&u, &f, sizeof u);
  uint16_t sign = (uint16_t)((u >> 16) & 0x8000);
  u &= 0x7fffffff;
  if (u > 0x7f800000) return (uint16_t)(sign | 0x7e00);
  if (u >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* 65520 and above round to infinity */
  if (u < 0x38800000) {                                  /* below 2^-14: subnormal; adding 0.5 leaves the rounded code in the low bits */
    float magnitude;
    memcpy(&magnitude, &u, sizeof u);
    magnitude += 0.5f;
    uint32_t v;
    memcpy(&v, &magnitude, sizeof v);
    return (uint16_t)(sign | (v - 0x3f000000));
  }
  u += 0xfff + ((u >> 13) & 1);
  return (uint16_t)(sign | ((u - 0x38000000) >> 13));
}

HOT void bf16_to_float_array(float *restrict out, const uint16_t *restrict in, size_t n) {
  for (size_t i = 0; i < n; i++) {
    uint32_t u = (uint32_t)in[i] << 16;
    memcpy(out + i, &u, sizeof u);
  }
}

HOT void half_to_float_array(float *restrict out, const uint16_t *restrict in, size_t n) {
  for (size_t i = 0; i < n; i++) {
    uint32_t magnitude = (uint32_t)(in[i] & 0x7fff) << 13, sign = (uint32_t)(in[i] & 0x8000) << 16, u;
    float f;
    memcpy(&f, &magnitude, sizeof f);
    f *= 0x1p112f;
    memcpy(&u, &f, sizeof u);
    u = ((in[i] & 0x7c00) == 0x7c00 ? 0x7f800000 | magnitude : u) | sign;
    memcpy(out + i, &u, sizeof u);
  }
}

HOT void float_to_bf16_array(uint16_t *restrict out, const float *restrict in, size_t n) {
  for (size_t i = 0; i < n; i++) {
    uint32_t u;
    memcpy(&u, in + i, sizeof u);
    uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16, nan = (u >> 16) | 0x40;
    out[i] = (uint16_t)((u & 0x7fffffff) > 0x7f800000 ? nan : rounded);
  }
}

/* float_to_half without branches, so that it vectorizes. */
HOT void float_to_half_array(uint16_t *restrict out, const float *restrict in, size_t n) {
  for (size_t i = 0; i < n; i++) {
    uint32_t u, v;
    memcpy(&u, in + i, sizeof u);
    uint32_t sign = (u >> 16) & 0x8000;
    u &= 0x7fffffff;
    float magnitude;
    memcpy(&magnitude, &u, sizeof u);
    magnitude += 0.5f;
    memcpy(&v, &magnitude, sizeof v);
    uint32_t normal = (u + 0xfff + ((u >> 13) & 1) - 0x38000000) >> 13, h = u < 0x38800000 ? v - 0x3f000000 : normal;
    h = u >= 0x477ff000 ? 0x7c00 : h;
    h = u > 0x7f800000 ? 0x7e00 : h;
    out[i] = (uint16_t)(sign | h);
  }
}

void float_to_real_array(real_type t, void *out, const float *in, size_t n) {
  if (t == REAL_F32)
    memcpy(out, in, n * sizeof *in);
  else if (t == REAL_F16)
    float_to_half_array(out, in, n);
  else
    float_to_bf16_array(out, in, n);
}

const char *real_name(real_type t) {
  static const char *const names[] = {[REAL_F32] = "float32", [REAL_F16] = "float16", [REAL_BF16] = "bfloat16"};
  return names[t];
}
