/* The decoder block against a plain one in double precision, its kernels against libm, and the identities that need no reference:
 * causality, windows that do not know each other, rotations that depend on distances alone. */
#include "check.h"

#include <math.h>

#include "base/blas.h"
#include "base/memory.h"
#include "model/block.h"
#include "model/head.h"
#include "model/kernels.h"
#include "model_files.h"

static void fill(float *x, size_t n, float scale, uint64_t seed) {
  for (size_t i = 0; i < n; i++) x[i] = scale * test_value(&seed);
}

/* ---- kernels ---- */

static void exponential_is_accurate(void **state) {
  (void)state;
  enum { N = 1 << 20 };
  float *x = malloc(N * sizeof *x), *e = malloc(N * sizeof *e);
  for (int i = 0; i < N; i++) x[i] = -87.0f + 175.0f * (float)i / N;
  kernel_exp(N, x, e);
  double worst = 0;
  for (int i = 0; i < N; i++) {
    double exact = exp((double)x[i]), ulp = ldexp(1, ilogb(exact) - 23);
    worst = fmax(worst, fabs((double)e[i] - exact) / ulp);
  }
  if (!(worst < 1.5)) fail_msg("expected an error below 1.5 ulp, found %g", worst);
  const float special[] = {0, -0.0f, -1000, 1000, -INFINITY, INFINITY, NAN};
  kernel_exp(7, special, e);
  assert_true(e[0] == 1 && e[1] == 1);
  assert_true(e[2] > 0 && e[2] < 1.3e-38f && e[4] == e[2]);
  assert_true(e[3] > 2e38f && isfinite(e[3]) && e[5] == e[3]);
  assert_true(isnan(e[6]));
  free(x);
  free(e);
}

static void silu_and_norm_match_libm(void **state) {
  (void)state;
  enum { ROWS = 3, COLS = 77 };
  float g[ROWS * 90], up[ROWS * 80], x[ROWS * COLS], weight[COLS], out[ROWS * COLS];
  for (int i = 0; i < ROWS * 90; i++) g[i] = (float)(i % 90 - 45) * 2.1f;
  fill(up, ROWS * 80, 3, 1);
  float kept[ROWS * 90];
  memcpy(kept, g, sizeof g);
  kernel_silu_mul(ROWS, COLS, g, 90, up, 80);
  for (int i = 0; i < ROWS; i++)
    for (int k = 0; k < 90; k++) {
      double s = (double)kept[i * 90 + k], exact = k < COLS ? s / (1 + exp(-s)) * (double)up[i * 80 + (k < 80 ? k : 0)] : s;
      assert_true(fabs((double)g[i * 90 + k] - exact) <= 4e-7 * fabs(exact) + 1e-30); /* beyond the columns: untouched */
    }
  fill(x, ROWS * COLS, 5, 2);
  fill(weight, COLS, 1, 3);
  kernel_rms_norm(ROWS, COLS, 1e-3f, x, weight, out);
  for (int i = 0; i < ROWS; i++) {
    double sum = 0;
    for (int k = 0; k < COLS; k++) sum += (double)x[i * COLS + k] * (double)x[i * COLS + k];
    for (int k = 0; k < COLS; k++) {
      double exact = (double)x[i * COLS + k] / sqrt(sum / COLS + 1e-3) * (double)weight[k];
      assert_true(fabs((double)out[i * COLS + k] - exact) <= 1e-6 * fabs(exact));
    }
  }
}

/* The same row at sixteen places in memory: the same bits. */
static void rows_do_not_depend_on_their_place(void **state) {
  (void)state;
  enum { D = 576 };
  float *room = NULL, *out = NULL;
  float x[D], weight[D], first[D], rotated[D], cosines[32], sines[32];
  assert_done(NEW(room, D + 16, "room"));
  assert_done(NEW(out, D + 16, "room"));
  fill(x, D, 1, 4);
  fill(weight, D, 1, 5);
  fill(cosines, 32, 1, 6);
  fill(sines, 32, 1, 7);
  for (int at = 0; at < 16; at++) {
    memcpy(room + at, x, sizeof x);
    kernel_rms_norm(1, D, 1e-5f, room + at, weight, out + 15 - at);
    kernel_rotate(1, D / 64, 64, room + at, weight, 1e-6f, cosines, sines);
    if (at == 0) memcpy(first, out + 15, sizeof first), memcpy(rotated, room, sizeof rotated);
    assert_memory_equal(out + 15 - at, first, sizeof first);
    assert_memory_equal(room + at, rotated, sizeof rotated);
  }
  FREE(room);
  FREE(out);
}

static void finds_what_is_not_finite(void **state) {
  (void)state;
  float x[100];
  fill(x, 100, 3e38f, 8);
  assert_true(kernel_all_finite(100, x));
  assert_true(kernel_all_finite(0, x));
  for (int i = 0; i < 100; i++) {
    float kept = x[i];
    x[i] = i % 3 == 0 ? NAN : i % 3 == 1 ? INFINITY : -INFINITY;
    assert_false(kernel_all_finite(100, x));
    x[i] = kept;
  }
}

/* ---- rotary tables ---- */

static arch small_arch(void) {
  static uint8_t slides[2];
  memset(slides, 0, sizeof slides);
  return (arch){.family = ARCH_LLAMA,
                .hidden = 40,
                .layers = 2,
                .intermediate = 100,
                .vocab = 50,
                .heads = 6,
                .kv_heads = 2,
                .head_dim = 10,
                .rms_eps = 1e-5f,
                .rope_theta = 10000,
                .rope_factor = 1,
                .layer_slides = slides};
}

static double table_frequency(const arch *a, int i) {
  block_scratch s;
  assert_done(block_scratch_new(a, 2, 2, &s));
  double angle = atan2((double)s.sines[a->head_dim / 2 + i], (double)s.cosines[a->head_dim / 2 + i]);
  block_scratch_free(&s);
  return angle;
}

static void tables_follow_the_scalings(void **state) {
  (void)state;
  arch a = small_arch();
  a.head_dim = 64;
  a.rope_theta = 500000;
  double plain[32];
  for (int i = 0; i < 32; i++) {
    plain[i] = pow(500000, -2.0 * i / 64);
    assert_true(fabs(table_frequency(&a, i) / plain[i] - 1) < 1e-6);
  }
  a.rope = ROPE_LINEAR;
  a.rope_factor = 4;
  for (int i = 0; i < 32; i++) assert_true(fabs(table_frequency(&a, i) / (plain[i] / 4) - 1) < 1e-6);
  a.rope = ROPE_LLAMA3;
  a.rope_factor = 8, a.rope_low = 1, a.rope_high = 4, a.rope_original = 8192;
  int kept = 0, stretched = 0, blended = 0;
  for (int i = 0; i < 32; i++) {
    double f = table_frequency(&a, i), wavelength = 2 * 3.14159265358979324 / plain[i], s = (8192 / wavelength - 1) / 3;
    s = s < 0 ? 0 : s > 1 ? 1 : s; /* one formula for the three ranges */
    assert_true(fabs(f / ((1 - s) * plain[i] / 8 + s * plain[i]) - 1) < 1e-5);
    kept += s == 1, stretched += s == 0, blended += s > 0 && s < 1;
  }
  assert_true(kept > 5 && stretched > 5 && blended > 1);
}

/* Rotated by positions p and q, two vectors have a product that depends on p - q alone. */
static void rotation_depends_on_distance(void **state) {
  (void)state;
  enum { T = 40, D = 64 };
  arch a = small_arch();
  a.head_dim = D;
  block_scratch s;
  float q[T * D], k[T * D];
  assert_done(block_scratch_new(&a, T, T, &s));
  fill(q, D, 1, 9);
  fill(k, D, 1, 10);
  for (int t = 1; t < T; t++) memcpy(q + t * D, q, D * sizeof *q), memcpy(k + t * D, k, D * sizeof *k);
  float unrotated[D];
  memcpy(unrotated, q, sizeof unrotated);
  kernel_rotate(T, 1, D, q, NULL, 0, s.cosines, s.sines);
  kernel_rotate(T, 1, D, k, NULL, 0, s.cosines, s.sines);
  assert_memory_equal(q, unrotated, sizeof unrotated); /* position 0 */
  for (int distance = 0; distance < T; distance += 13) {
    double first = 0;
    for (int t = distance; t < T; t++) {
      double product = 0;
      for (int i = 0; i < D; i++) product += (double)q[t * D + i] * (double)k[(t - distance) * D + i];
      if (t == distance) first = product;
      assert_true(fabs(product - first) < 2e-5);
    }
  }
  block_scratch_free(&s);
}

/* ---- the block against a plain one ---- */

typedef struct plain_block {
  const arch *a;
  layer_weights w;
  int64_t layer, T;
  double *n, *q, *k, *v, *attended, *m, *g, *x; /* of one window */
} plain_block;

static void plain_norm(int64_t d, double eps, const double *x, const float *weight, double *out) {
  double sum = 0;
  for (int64_t i = 0; i < d; i++) sum += x[i] * x[i];
  double scale = 1 / sqrt(sum / (double)d + eps);
  for (int64_t i = 0; i < d; i++) out[i] = x[i] * scale * (double)weight[i];
}

static void plain_linear(const plain_block *b, linear_id l, const double *x, double *y) {
  int64_t out, in;
  linear_shape(b->a, l, &out, &in);
  for (int64_t t = 0; t < b->T; t++)
    for (int64_t o = 0; o < out; o++) {
      double sum = b->w.bias[l] ? (double)b->w.bias[l][o] : 0;
      for (int64_t i = 0; i < in; i++) sum += x[t * in + i] * (double)b->w.linear[l][o * in + i];
      y[t * out + o] = sum;
    }
}

static void plain_rotate(const plain_block *b, int heads, const float *norm, double *x) {
  int D = b->a->head_dim, half = D / 2;
  for (int64_t t = 0; t < b->T; t++)
    for (int h = 0; h < heads; h++, x += D) {
      if (norm) plain_norm(D, (double)b->a->rms_eps, x, norm, x);
      for (int i = 0; i < half; i++) {
        double angle = (double)t * pow(b->a->rope_theta, -2.0 * i / D), c = cos(angle), s = sin(angle), u = x[i], w = x[i + half];
        x[i] = u * c - w * s;
        x[i + half] = w * c + u * s;
      }
    }
}

static void plain_attend(const plain_block *b) {
  const arch *a = b->a;
  int D = a->head_dim, group = a->heads / a->kv_heads, ldq = a->heads * D, ldk = a->kv_heads * D;
  double *p = malloc((size_t)b->T * sizeof *p);
  for (int h = 0; h < a->heads; h++)
    for (int64_t i = 0; i < b->T; i++) {
      double sum = 0;
      int64_t first = a->layer_slides[b->layer] && i - a->sliding_window + 1 > 0 ? i - a->sliding_window + 1 : 0;
      for (int64_t j = first; j <= i; j++) {
        double score = 0;
        for (int k = 0; k < D; k++) score += b->q[i * ldq + h * D + k] * b->k[j * ldk + h / group * D + k];
        sum += p[j] = exp(score / sqrt(D));
      }
      for (int k = 0; k < D; k++) {
        double value = 0;
        for (int64_t j = first; j <= i; j++) value += p[j] / sum * b->v[j * ldk + h / group * D + k];
        b->attended[i * ldq + h * D + k] = value;
      }
    }
  free(p);
}

static void plain_run(plain_block *b) {
  const arch *a = b->a;
  int64_t d = a->hidden, f = a->intermediate, T = b->T;
  double *up = malloc((size_t)(T * f) * sizeof *up), *sum = malloc((size_t)(T * d) * sizeof *sum);
  for (int64_t t = 0; t < T; t++) plain_norm(d, (double)a->rms_eps, b->x + t * d, b->w.input_norm, b->n + t * d);
  plain_linear(b, LIN_Q, b->n, b->q);
  plain_linear(b, LIN_K, b->n, b->k);
  plain_linear(b, LIN_V, b->n, b->v);
  plain_rotate(b, a->heads, b->w.q_norm, b->q);
  plain_rotate(b, a->kv_heads, b->w.k_norm, b->k);
  plain_attend(b);
  plain_linear(b, LIN_O, b->attended, sum);
  for (int64_t i = 0; i < T * d; i++) b->x[i] += sum[i];
  for (int64_t t = 0; t < T; t++) plain_norm(d, (double)a->rms_eps, b->x + t * d, b->w.post_norm, b->m + t * d);
  plain_linear(b, LIN_GATE, b->m, b->g);
  plain_linear(b, LIN_UP, b->m, up);
  for (int64_t i = 0; i < T * f; i++) b->g[i] = b->g[i] / (1 + exp(-b->g[i])) * up[i];
  plain_linear(b, LIN_DOWN, b->g, sum);
  for (int64_t i = 0; i < T * d; i++) b->x[i] += sum[i];
  free(up);
  free(sum);
}

static double distance_of(const float *ours, const double *theirs, int64_t n) {
  double largest = 0, error = 0;
  for (int64_t i = 0; i < n; i++) {
    largest = fmax(largest, fabs(theirs[i]));
    error = fmax(error, fabs((double)ours[i] - theirs[i]));
  }
  return error / largest;
}

typedef struct fast_block {
  float *weights, *x, *n, *attended, *m, *g, *kv;
  layer_weights w;
  block_scratch s;
} fast_block;

static void fast_new(const arch *a, int64_t length, int64_t rows, fast_block *b) {
  *b = (fast_block){0};
  assert_done(NEW(b->weights, layer_weights_floats(a), "weights"));
  assert_done(NEW(b->x, rows * a->hidden, "x"));
  assert_done(NEW(b->n, rows * a->hidden, "n"));
  assert_done(NEW(b->attended, rows * a->heads * a->head_dim, "attended"));
  assert_done(NEW(b->m, rows * a->hidden, "m"));
  assert_done(NEW(b->g, rows * a->intermediate, "g"));
  assert_done(NEW(b->kv, block_kv_floats(a, rows), "kv"));
  fill(b->weights, layer_weights_floats(a), 0.4f, 11);
  fill(b->x, (size_t)(rows * a->hidden), 2, 12);
  layer_weights_place(a, b->weights, &b->w);
  assert_done(block_scratch_new(a, length, rows, &b->s));
}

/* In parts of so many rows of each window; keys and values come first, as many ranks would leave them. */
static void fast_run_parts(const arch *a, fast_block *b, int64_t layer, int64_t count, int64_t length, int64_t part) {
  const block_kv all = block_kv_place(a, count * length, b->kv);
  for (int keys = 1; keys >= 0; keys--)
    for (int64_t i = 0; i < count; i++)
      for (int64_t begin = 0; begin < length; begin += part) {
        const block_rows r = {1, length, begin, begin + part < length ? begin + part : length};
        const int64_t at = i * length + begin, rows = block_count(&r), d = a->hidden;
        const block_kv kv = block_kv_from(a, all, i * length);
        float *attended = b->attended + at * input_width(a, IN_ATTN_OUT), *g = b->g + at * a->intermediate;
        if (keys) {
          block_attn_in(a, &b->w, rows, b->x + at * d, b->n + at * d);
          block_keys(a, &b->w, &b->s, &r, b->n + at * d, kv);
          continue;
        }
        block_attention(a, &b->w, layer, &b->s, &r, b->n + at * d, kv, attended);
        block_attn_out(a, &b->w, rows, attended, b->x + at * d, b->m + at * d);
        block_mlp(a, &b->w, &b->s, rows, b->m + at * d, g);
        block_mlp_out(a, &b->w, rows, g, b->x + at * d);
      }
}

static void fast_run(const arch *a, fast_block *b, int64_t layer, int64_t count, int64_t length) {
  block_attn_in(a, &b->w, count * length, b->x, b->n);
  const block_rows r = block_windows(count, length);
  const block_kv kv = block_kv_place(a, count * length, b->kv);
  block_keys(a, &b->w, &b->s, &r, b->n, kv);
  block_attention(a, &b->w, layer, &b->s, &r, b->n, kv, b->attended);
  block_attn_out(a, &b->w, count * length, b->attended, b->x, b->m);
  block_mlp(a, &b->w, &b->s, count * length, b->m, b->g);
  block_mlp_out(a, &b->w, count * length, b->g, b->x);
}

static void fast_free(fast_block *b) {
  float **all[] = {&b->weights, &b->x, &b->n, &b->attended, &b->m, &b->g, &b->kv};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) FREE(*all[i]);
  block_scratch_free(&b->s);
}

/* part: 0: the windows as they are; else the rows of each that go together. */
static void compare_parts_with_plain(const arch *a, int64_t layer, int64_t count, int64_t length, int64_t part) {
  fast_block f;
  int64_t d = a->hidden, q = a->heads * a->head_dim, kv = a->kv_heads * a->head_dim;
  fast_new(a, length, count * length, &f);
  plain_block p = {.a = a, .w = f.w, .layer = layer, .T = length};
  double *room = malloc((size_t)(length * (3 * d + 2 * q + 2 * kv + a->intermediate)) * sizeof *room);
  p.n = room, p.m = p.n + length * d, p.x = p.m + length * d, p.q = p.x + length * d, p.attended = p.q + length * q;
  p.k = p.attended + length * q, p.v = p.k + length * kv, p.g = p.v + length * kv;
  float *start = malloc((size_t)(count * length * d) * sizeof *start);
  memcpy(start, f.x, (size_t)(count * length * d) * sizeof *start);
  if (part)
    fast_run_parts(a, &f, layer, count, length, part);
  else
    fast_run(a, &f, layer, count, length);
  for (int64_t i = 0; i < count; i++) {
    int64_t row = i * length;
    for (int64_t k = 0; k < length * d; k++) p.x[k] = (double)start[row * d + k];
    plain_run(&p);
    double errors[] = {distance_of(f.n + row * d, p.n, length * d), distance_of(f.attended + row * q, p.attended, length * q),
                       distance_of(f.m + row * d, p.m, length * d), distance_of(f.g + row * a->intermediate, p.g, length * a->intermediate),
                       distance_of(f.x + row * d, p.x, length * d)};
    for (int k = 0; k < 5; k++)
      if (!(errors[k] < 1e-5))
        fail_msg("length %lld, window %lld, part %d: relative error %g", (long long)length, (long long)i, k, errors[k]);
  }
  free(start);
  free(room);
  fast_free(&f);
}

static void compare_with_plain(const arch *a, int64_t layer, int64_t count, int64_t length) {
  compare_parts_with_plain(a, layer, count, length, 0);
}

static void block_matches_the_plain_one(void **state) {
  (void)state;
  arch a = small_arch();
  static const int64_t lengths[] = {1, 2, 127, 128, 129, 300};
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) compare_with_plain(&a, 0, i < 2 ? 3 : 1, lengths[i]);
  a.qkv_bias = true;
  compare_with_plain(&a, 1, 2, 33);
  a.o_bias = a.mlp_bias = a.qk_norm = true;
  compare_with_plain(&a, 1, 2, 33);
  a.kv_heads = 6;
  compare_with_plain(&a, 0, 1, 70);
  a.intermediate = 5000; /* three strips, the last one shorter */
  compare_with_plain(&a, 0, 2, 5);
  static const int64_t slides[] = {1, 3, 64, 128, 150, 299, 300, 1000};
  a = small_arch();
  a.layer_slides[1] = 1;
  for (size_t i = 0; i < sizeof slides / sizeof *slides; i++) {
    a.sliding_window = slides[i];
    compare_with_plain(&a, 1, 1, 300);
  }
  a.sliding_window = 5;
  compare_with_plain(&a, 0, 1, 50); /* layer 0 does not slide */
  a.sliding_window = 200;
  a.qkv_bias = a.qk_norm = true;
  for (int64_t layer = 0; layer < 2; layer++) {
    compare_parts_with_plain(&a, layer, 2, 300, 128);
    compare_parts_with_plain(&a, layer, 1, 513, 256);
  }
}

/* Scores far beyond what exp holds: softmax subtracts the largest first. */
static void attention_stands_large_scores(void **state) {
  (void)state;
  arch a = small_arch();
  fast_block f;
  fast_new(&a, 150, 150, &f);
  for (int64_t i = 0; i < 60 * 40; i++) ((float *)f.w.linear[LIN_Q])[i] *= 1000;
  fast_run(&a, &f, 0, 1, 150);
  assert_true(kernel_all_finite((size_t)(150 * a.hidden), f.x));
  fast_free(&f);
}

/* Bits of a window: the same alone, in company, in a larger scratch, and whatever comes after a token. */
static void windows_do_not_know_each_other(void **state) {
  (void)state;
  arch a = small_arch();
  const int64_t T = 140, d = a.hidden;
  fast_block three, one;
  fast_new(&a, T, 3 * T, &three);
  fast_new(&a, T + 9, 4 * T, &one);
  float *start = malloc((size_t)(3 * T * d) * sizeof *start);
  memcpy(start, three.x, (size_t)(3 * T * d) * sizeof *start);
  fast_run(&a, &three, 0, 3, T);
  for (int64_t i = 0; i < 3; i++) {
    memcpy(one.x, start + i * T * d, (size_t)(T * d) * sizeof *start);
    fast_run(&a, &one, 0, 1, T);
    assert_memory_equal(one.x, three.x + i * T * d, (size_t)(T * d) * sizeof *start);
  }
  memcpy(one.x, start, (size_t)(T * d) * sizeof *start);
  one.x[131 * d] += 1;
  fast_run(&a, &one, 0, 1, T);
  assert_memory_equal(one.x, three.x, (size_t)(131 * d) * sizeof *start);
  assert_memory_not_equal(one.x + 131 * d, three.x + 131 * d, (size_t)d * sizeof *start);
  free(start);
  fast_free(&three);
  fast_free(&one);
}

/* ---- memory, weights, counts ---- */

static void scratch_is_what_plan_was_told(void **state) {
  (void)state;
  arch a = small_arch();
  block_scratch s;
  static const int64_t cases[][2] = {{1, 1}, {100, 100}, {64, 512}, {300, 901}, {5000, 512}};
  for (int f = 100; f <= 6000; f += 5900) {
    a.intermediate = f; /* attention asks for more at the first, the MLP at the second */
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
      uint64_t before = mem_now(), bytes = block_scratch_bytes(&a, cases[i][0], cases[i][1]);
      assert_done(block_scratch_new(&a, cases[i][0], cases[i][1], &s));
      uint64_t taken = mem_now() - before;
      assert_true(taken >= bytes && taken <= bytes + 3 * 8192); /* whole pages for three allocations */
      block_scratch_free(&s);
      assert_int_equal(mem_now(), before);
    }
  }
  assert_refused_saying(block_scratch_new(&a, 10, 0, &s), E_USAGE, "found 0 of 10", "");
  assert_refused_saying(block_scratch_new(&a, 0, 9, &s), E_USAGE, "forward pass", "");
  assert_refused_saying(block_scratch_new(&a, 10, INT64_C(1) << 40, &s), E_USAGE, "forward pass", "");
}

static void places_weights_apart(void **state) {
  (void)state;
  arch a = small_arch();
  layer_weights w;
  float *base;
  assert_done(NEW(base, layer_weights_floats(&a), "weights"));
  layer_weights_place(&a, base, &w);
  assert_null(w.bias[LIN_Q]);
  assert_null(w.bias[LIN_DOWN]);
  assert_null(w.q_norm);
  assert_true(w.linear[LIN_Q] == base && w.post_norm + a.hidden <= base + layer_weights_floats(&a));
  for (int l = 0; l < LIN_COUNT; l++) {
    int64_t out, in;
    linear_shape(&a, (linear_id)l, &out, &in);
    assert_int_equal((uintptr_t)w.linear[l] % 64, 0);
    assert_true(l == LIN_DOWN ? w.linear[l] + out * in <= w.input_norm : w.linear[l] + out * in <= w.linear[l + 1]);
  }
  FREE(base);
}

/* A model of one layer on disk: any number of parts load the same weights, the embedding's rows come by id, logits are their definition. */
static void loads_layers_by_parts(void **state) {
  (void)state;
  static const char config[] =
      "{\"model_type\":\"qwen3\",\"hidden_size\":8,\"num_hidden_layers\":1,\"intermediate_size\":12,\"vocab_size\":11,\"head_dim\":6,"
      "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"rms_norm_eps\":1e-6,\"attention_bias\":true}";
  static const struct {
    const char *name;
    int64_t rows, cols;
  } tensors[] = {
      {"model.layers.0.self_attn.q_proj.weight", 12, 8},
      {"model.layers.0.self_attn.k_proj.weight", 6, 8},
      {"model.layers.0.self_attn.v_proj.weight", 6, 8},
      {"model.layers.0.self_attn.o_proj.weight", 8, 12},
      {"model.layers.0.mlp.gate_proj.weight", 12, 8},
      {"model.layers.0.mlp.up_proj.weight", 12, 8},
      {"model.layers.0.mlp.down_proj.weight", 8, 12},
      {"model.layers.0.self_attn.q_proj.bias", 0, 12},
      {"model.layers.0.self_attn.k_proj.bias", 0, 6},
      {"model.layers.0.self_attn.v_proj.bias", 0, 6},
      {"model.layers.0.self_attn.o_proj.bias", 0, 8},
      {"model.layers.0.input_layernorm.weight", 0, 8},
      {"model.layers.0.post_attention_layernorm.weight", 0, 8},
      {"model.layers.0.self_attn.q_norm.weight", 0, 6},
      {"model.layers.0.self_attn.k_norm.weight", 0, 6},
      {"model.embed_tokens.weight", 11, 8},
      {"lm_head.weight", 11, 8},
      {"model.norm.weight", 0, 8},
  };
  test_model m = {0};
  for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++) add_tensor(&m, tensors[i].name, tensors[i].rows, tensors[i].cols);
  put_config(config, "");
  put_safetensors("model.safetensors", m.t, m.count, 1);
  checkpoint c;
  assert_done(checkpoint_open(test_folder, &c));
  const arch *a = &c.arch;
  size_t floats = layer_weights_floats(a);
  float *base, *other;
  layer_weights w;
  assert_done(NEW(base, floats, "weights"));
  assert_done(NEW(other, floats, "weights"));
  assert_done(layer_weights_load(&c, 0, base, 0, 1));
  layer_weights_place(a, base, &w);
  for (int l = 0; l < LIN_COUNT; l++) assert_memory_equal(w.linear[l], m.t[l].values, m.t[l].count * 4);
  for (int l = 0; l < 4; l++) assert_memory_equal(w.bias[l], m.t[7 + l].values, m.t[7 + l].count * 4);
  const float *norms[] = {w.input_norm, w.post_norm, w.q_norm, w.k_norm};
  for (int i = 0; i < 4; i++) assert_memory_equal(norms[i], m.t[11 + i].values, m.t[11 + i].count * 4);
  for (int parts = 2; parts < 15; parts += 3) { /* more parts than rows, too */
    memset(other, 0, floats * sizeof *other);
    for (int i = parts - 1; i >= 0; i--) assert_done(layer_weights_load(&c, 0, other, i, parts));
    assert_memory_equal(base, other, floats * sizeof *other);
  }
  const int32_t ids[] = {10, 0, 3};
  float x[3 * 8], normed[3 * 8];
  assert_done(embed_tokens(&c, 3, ids, x));
  for (int i = 0; i < 3; i++) assert_memory_equal(x + i * 8, the_tensor(&m, "model.embed_tokens.weight")->values + ids[i] * 8, 32);
  const float *norm = the_tensor(&m, "model.norm.weight")->values;
  memcpy(normed, x, sizeof normed);
  head_norm(a, norm, 3, normed);
  for (int i = 0; i < 3; i++) {
    double row[8], expected[8];
    for (int k = 0; k < 8; k++) row[k] = (double)x[i * 8 + k];
    plain_norm(8, (double)a->rms_eps, row, norm, expected);
    for (int k = 0; k < 8; k++) assert_true(fabs((double)normed[i * 8 + k] - expected[k]) < 1e-6);
  }
  /* a bad bias is named by the part that loads it */
  the_tensor(&m, "model.layers.0.self_attn.k_proj.bias")->values[4] = NAN;
  the_tensor(&m, "model.embed_tokens.weight")->values[3 * 8 + 2] = INFINITY;
  put_safetensors("model.safetensors", m.t, m.count, 1);
  checkpoint_close(&c);
  assert_done(checkpoint_open(test_folder, &c));
  assert_refused_saying(layer_weights_load(&c, 0, base, 0, 1), E_DATA, "k_proj.bias: row 0, column 4: expected a finite number", "");
  assert_refused_saying(embed_tokens(&c, 3, ids, x), E_DATA, "model.embed_tokens.weight: row 3, column 2: expected a finite number", "");
  checkpoint_close(&c);
  FREE(base);
  FREE(other);
  free_model(&m);
}

static void counts_flops(void **state) {
  (void)state;
  arch a = small_arch();
  a.layer_slides[1] = 1;
  assert_true(block_flops_per_token(&a) == 2.0 * (60 * 40 + 2 * 20 * 40 + 60 * 40 + 3 * 100 * 40));
  static const int64_t slides[] = {1, 4, 10, 30};
  for (size_t i = 0; i < sizeof slides / sizeof *slides; i++) {
    a.sliding_window = slides[i];
    double full = 0, seen = 0;
    for (int64_t q = 0; q < 10; q++)
      for (int64_t k = 0; k <= q; k++) full++, seen += q - k < slides[i];
    assert_true(block_attention_flops(&a, 0, 3, 10) == 4.0 * 6 * 10 * 3 * full);
    assert_true(block_attention_flops(&a, 1, 3, 10) == 4.0 * 6 * 10 * 3 * seen);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(exponential_is_accurate),
      cmocka_unit_test(silu_and_norm_match_libm),
      cmocka_unit_test(rows_do_not_depend_on_their_place),
      cmocka_unit_test(finds_what_is_not_finite),
      cmocka_unit_test(tables_follow_the_scalings),
      cmocka_unit_test(rotation_depends_on_distance),
      cmocka_unit_test(block_matches_the_plain_one),
      cmocka_unit_test(attention_stands_large_scores),
      cmocka_unit_test(windows_do_not_know_each_other),
      cmocka_unit_test(scratch_is_what_plan_was_told),
      cmocka_unit_test(places_weights_apart),
      cmocka_unit_test(loads_layers_by_parts),
      cmocka_unit_test(counts_flops),
  };
  blas_setup();
  return cmocka_run_group_tests_name("block", tests, folder_setup, folder_teardown);
}
