/* Layers to test quantizers on: weights with heavy tails, and Grams of inputs as language models have them (correlated channels, a few
 * outlier channels a hundred times as strong, dead ones), all from a seed. */
#ifndef CLOQWORK_TESTS_UNIT_LAYERS_H
#define CLOQWORK_TESTS_UNIT_LAYERS_H

#include <math.h>
#include <stdint.h>

#include "base/blas.h"
#include "base/memory.h"

typedef struct dice {
  uint64_t state;
} dice;

static inline uint64_t dice_bits(dice *d) { /* splitmix64 */
  uint64_t z = (d->state += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}
static inline double dice_uniform(dice *d) { return ((double)(dice_bits(d) >> 11) + 0.5) * 0x1p-53; }
static inline double dice_normal(dice *d) {
  double r = sqrt(-2 * log(dice_uniform(d)));
  return r * cos(6.283185307179586 * dice_uniform(d));
}

/* w (rows, width): normal, 0.04, one in a hundred five times as large. Row i depends on seed and i only. */
static inline void layer_weights(uint64_t seed, int rows, int width, float *w) {
  for (int i = 0; i < rows; i++) {
    dice d = {seed * 1000003 + (uint64_t)i};
    for (int j = 0; j < width; j++) w[(int64_t)i * width + j] = (float)(0.04 * dice_normal(&d) * (dice_bits(&d) % 100 ? 1 : 5));
  }
}

/* h (width, width) = X^T X of `tokens` inputs: width / 8 + 1 common factors and noise; every 61st channel is an outlier, and the channels
 * of dead (may be NULL) are 0. tokens < width: singular. */
static inline status layer_gram(uint64_t seed, int tokens, int width, const uint8_t *dead, double *h) {
  status st = OK;
  int factors = width / 8 + 1;
  double *mix = NULL, *factor = NULL, *x = NULL;
  dice d = {seed};
  TRY(NEW(mix, (int64_t)factors * width, "test: mix"));
  TRY(NEW(factor, (int64_t)tokens * factors, "test: factors"));
  TRY(NEW(x, (int64_t)tokens * width, "test: inputs"));
  for (int i = 0; i < factors * width; i++) mix[i] = dice_normal(&d) / sqrt(factors);
  for (int i = 0; i < tokens * factors; i++) factor[i] = dice_normal(&d);
  for (int i = 0; i < tokens * width; i++) x[i] = 0.5 * dice_normal(&d);
  dgemm(false, false, tokens, width, factors, 1, factor, factors, mix, width, 1, x, width);
  for (int t = 0; t < tokens; t++)
    for (int j = 0; j < width; j++) x[(int64_t)t * width + j] *= dead && dead[j] ? 0 : j % 61 == 7 ? 10 : 1;
  dgemm(true, false, width, width, tokens, 1, x, width, x, width, 0, h, width);
  for (int i = 0; i < width; i++)
    for (int j = 0; j < i; j++) h[(int64_t)i * width + j] = h[(int64_t)j * width + i];
done:
  FREE(mix), FREE(factor), FREE(x);
  return st;
}

/* a (n, n) = U U^T, U upper: Cholesky from the last column backwards, plainly. The strict lower triangle of u becomes 1e30: what stands
 * there must not matter. Returns the first pivot that is not positive, or -1. */
static inline int layer_factor(int n, const double *a, double *u) {
  for (int i = 0; i < n; i++)
    for (int j = 0; j < n; j++) u[(int64_t)i * n + j] = j < i ? 1e30 : 0;
  for (int j = n - 1; j >= 0; j--)
    for (int i = j; i >= 0; i--) {
      double t = a[(int64_t)i * n + j];
      for (int k = j + 1; k < n; k++) t -= u[(int64_t)i * n + k] * u[(int64_t)j * n + k];
      if (i == j && !(t > 0)) return j;
      u[(int64_t)i * n + j] = i == j ? sqrt(t) : t / u[(int64_t)j * n + j];
    }
  return -1;
}

/* tr(e h e^T) of e (rows, width), plainly. */
static inline double layer_loss(int rows, int width, const double *e, const double *h) {
  double sum = 0;
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < width; i++) {
      double t = 0;
      for (int j = 0; j < width; j++) t += h[(int64_t)i * width + j] * e[(int64_t)r * width + j];
      sum += t * e[(int64_t)r * width + i];
    }
  return sum;
}

#endif
