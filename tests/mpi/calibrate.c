/* The pass and its Grams: the same bits on this many ranks as on one, and equal to X^T X, mean |x| and the largest
 * mean |x| of a window of the inputs that the block itself hands out. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "calibrate/pass.h"
#include "dist/agree.h"
#include "check.h"

enum { TT = GRAM_TILE * GRAM_TILE };

/* Everything a pass leaves, gathered where every rank can read it: tiles of all inputs of both sets, and the statistics of |x|. */
typedef struct outcome {
  float *tiles[SET_COUNT][IN_COUNT];
  double *magnitudes[SET_COUNT][IN_COUNT]; /* [2][n]: sums, largest means of a window */
} outcome;

static int64_t tiles_of(int64_t n) {
  int64_t side = (n + GRAM_TILE - 1) / GRAM_TILE;
  return side * (side + 1) / 2;
}

static void keep(const pass *p, outcome *o) {
  for (int s = 0; s < SET_COUNT; s++)
    for (int i = 0; i < IN_COUNT; i++) {
      const gram *g = &p->sets[s].grams[i];
      if (!g->n) continue;
      CHECK_OK(NEW(o->tiles[s][i], tiles_of(g->n) * TT, "tiles"));
      CHECK_OK(NEW(o->magnitudes[s][i], 2 * g->n, "magnitudes"));
      CHECK_OK(gram_tiles(g, "test", 0, tiles_of(g->n), o->tiles[s][i]));
      memcpy(o->magnitudes[s][i], g->abs_sums.base, (size_t)g->n * sizeof(double));
      memcpy(o->magnitudes[s][i] + g->n, g->abs_most.base, (size_t)g->n * sizeof(double));
    }
}

static void drop(outcome *o) {
  for (int s = 0; s < SET_COUNT; s++)
    for (int i = 0; i < IN_COUNT; i++) {
      FREE(o->tiles[s][i]);
      FREE(o->magnitudes[s][i]);
    }
}

static void run_pass(MPI_Comm comm, const checkpoint *m, const windows *const sets[SET_COUNT], int64_t layers, outcome *o) {
  const bool wanted[IN_COUNT] = {true, true, true, true};
  team t = {0};
  pass p = {0};
  CHECK_OK(team_new(comm, 0, &t));
  CHECK_OK(pass_new(&t, m, sets, wanted, NULL, &p));
  CHECK_OK(pass_embed(&p));
  for (int64_t l = 0; l < layers; l++) {
    CHECK_OK(pass_load_layer(&p, l));
    pass_layer(&p, l, l + 1 == layers, NULL, NULL);
  }
  keep(&p, o);
  team_barrier(&t);
  pass_free(&p);
  team_free(&t);
}

static void same_bits(const outcome *a, const outcome *b, const arch *m) {
  for (int s = 0; s < SET_COUNT; s++)
    for (int i = 0; i < IN_COUNT; i++) {
      int64_t n = input_width(m, i);
      CHECK(memcmp(a->tiles[s][i], b->tiles[s][i], (size_t)(tiles_of(n) * TT) * sizeof(float)) == 0, "tiles of %s, set %d", input_name(i),
            s);
      CHECK(memcmp(a->magnitudes[s][i], b->magnitudes[s][i], 2 * (size_t)n * sizeof(double)) == 0, "|x| of %s, set %d", input_name(i), s);
    }
}

/* A window's sums of |x|, x (rows, n), added to magnitudes [2][n] as a pass would leave them; in long double. */
static void add_window(long double *magnitudes, const float *x, int64_t rows, int64_t n) {
  for (int64_t k = 0; k < n; k++) {
    long double sum = 0;
    for (int64_t r = 0; r < rows; r++) sum += fabsl((long double)x[r * n + k]);
    magnitudes[k] += sum;
    if (sum / rows > magnitudes[n + k]) magnitudes[n + k] = sum / rows;
  }
}

static void same_magnitudes(const double *found, const long double *expected, int64_t n, const char *what) {
  long double worst = 0;
  for (int64_t k = 0; k < 2 * n; k++) worst = fmaxl(worst, fabsl((long double)found[k] - expected[k]) / fmaxl(expected[k], 1e-30L));
  CHECK(worst <= 1e-5L, "statistics of |x| of %s are off by %Lg", what, worst); /* the inputs themselves depend on the chunk in float */
}

/* attn_in and mlp_out of layer 0 by hand, one window at a time; X^T X in double. */
static void against_plain_sums(const checkpoint *m, const windows *w, const outcome *o, int set) {
  const arch *a = &m->arch;
  int64_t d = a->hidden, f = a->intermediate, wide = input_width(a, IN_ATTN_OUT), length = w->length;
  float *base = NULL, *x = NULL, *n = NULL, *att = NULL, *g = NULL, *kv = NULL;
  const block_rows window = block_windows(1, length);
  long double *s = NULL, *s2 = NULL;
  double *h = NULL, *h2 = NULL, off = 0, off2 = 0, norm = 0, norm2 = 0, entry = 0;
  layer_weights weights;
  block_scratch scratch = {0};
  CHECK_OK(NEW(base, layer_weights_floats(a), "weights"));
  layer_weights_place(a, base, &weights);
  CHECK_OK(layer_weights_load(m, 0, base, 0, 1));
  CHECK_OK(block_scratch_new(a, length, length, &scratch));
  CHECK_OK(NEW(x, length * d, "x"));
  CHECK_OK(NEW(n, length * d, "n"));
  CHECK_OK(NEW(att, length * wide, "a"));
  CHECK_OK(NEW(g, length * f, "g"));
  CHECK_OK(NEW(kv, block_kv_floats(a, length), "kv"));
  CHECK_OK(NEW(h, d * d, "h"));
  CHECK_OK(NEW(h2, f * f, "h"));
  CHECK_OK(NEW(s, 2 * d, "s"));
  CHECK_OK(NEW(s2, 2 * f, "s"));
  for (int64_t k = 0; k < w->count; k++) {
    CHECK_OK(embed_tokens(m, length, w->ids + k * length, x));
    block_attn_in(a, &weights, length, x, n);
    add_window(s, n, length, d);
    for (int64_t t = 0; t < length; t++)
      for (int64_t i = 0; i < d; i++)
        for (int64_t j = 0; j <= i; j++) h[i * d + j] += (double)n[t * d + i] * (double)n[t * d + j];
    block_keys(a, &weights, &scratch, &window, n, block_kv_place(a, length, kv));
    block_attention(a, &weights, 0, &scratch, &window, n, block_kv_place(a, length, kv), att);
    block_attn_out(a, &weights, length, att, x, n);
    block_mlp(a, &weights, &scratch, length, n, g);
    add_window(s2, g, length, f);
    for (int64_t t = 0; t < length; t++)
      for (int64_t i = 0; i < f; i++)
        for (int64_t j = 0; j <= i; j++) h2[i * f + j] += (double)g[t * f + i] * (double)g[t * f + j];
  }
  for (int64_t i = 0; i < f; i++)
    for (int64_t j = 0; j <= i; j++) {
      int64_t at = ((i / GRAM_TILE) * (i / GRAM_TILE + 1) / 2 + j / GRAM_TILE) * TT + (i % GRAM_TILE) * GRAM_TILE + j % GRAM_TILE;
      double e = (double)o->tiles[set][IN_MLP_OUT][at] - h2[i * f + j];
      off2 += e * e;
      norm2 += h2[i * f + j] * h2[i * f + j];
      entry = fmax(entry, fabs(e) / sqrt(h2[i * f + i] * h2[j * f + j]));
      if (i >= d) continue;
      e = (double)o->tiles[set][IN_ATTN][at] - h[i * d + j];
      off += e * e;
      norm += h[i * d + j] * h[i * d + j];
      entry = fmax(entry, fabs(e) / sqrt(h[i * d + i] * h[j * d + j]));
    }
  CHECK(off <= 1e-12 * norm && off2 <= 1e-12 * norm2, "relative error of attn_in %g, mlp_out %g", sqrt(off / norm), sqrt(off2 / norm2));
  CHECK(entry <= 1e-5, "an entry is off by %g of the root of its diagonal", entry);
  same_magnitudes(o->magnitudes[set][IN_ATTN], s, d, "attn_in");
  same_magnitudes(o->magnitudes[set][IN_MLP_OUT], s2, f, "mlp_out");
  block_scratch_free(&scratch);
  FREE(base);
  FREE(x);
  FREE(n);
  FREE(att);
  FREE(g);
  FREE(kv);
  FREE(h);
  FREE(h2);
  FREE(s);
  FREE(s2);
}

/* Both sets, one and two layers: on all ranks as on one. The held-out set against sums by hand. */
static void both_ways(const checkpoint *m, const window_request *calibration, const window_request *heldout) {
  windows w[SET_COUNT] = {0};
  outcome together = {0}, alone = {0};
  CHECK_OK(windows_draw(calibration, m->arch.vocab, &w[SET_CALIBRATION]));
  CHECK_OK(windows_draw(heldout, m->arch.vocab, &w[SET_HELDOUT]));
  const windows *sets[SET_COUNT] = {&w[SET_CALIBRATION], &w[SET_HELDOUT]};
  for (int64_t layers = 1; layers <= 2; layers++) {
    run_pass(MPI_COMM_WORLD, m, sets, layers, &together);
    run_pass(MPI_COMM_SELF, m, sets, layers, &alone);
    same_bits(&together, &alone, &m->arch);
    if (layers == 1) against_plain_sums(m, &w[SET_HELDOUT], &together, SET_HELDOUT);
    drop(&together);
    drop(&alone);
  }
  for (int k = 0; k < SET_COUNT; k++) windows_free(&w[k]);
}

int main(int argc, char **argv) {
  const char *calib = PROJECT_FOLDER "/data/tiny/calib.npy", *heldout = PROJECT_FOLDER "/data/tiny/heldout.npy";
  blas_setup();
  MPI_Init(&argc, &argv);
  checkpoint m = {0};
  CHECK_OK(checkpoint_open(PROJECT_FOLDER "/data/tiny", &m));
  /* 17 windows of 250 tokens: the last chunk is short, the last step uneven, the last product half full */
  both_ways(&m, &(window_request){calib, 17, 250, SAMPLE_RANDOM, 3}, &(window_request){heldout, 3, 200, SAMPLE_SEQUENTIAL, 0});
  /* windows cut in three and in two parts, of which ranks know keys and values from one another; two windows a chunk, one in the last */
  both_ways(&m, &(window_request){calib, 3, 1100, SAMPLE_RANDOM, 3}, &(window_request){heldout, 3, 530, SAMPLE_SEQUENTIAL, 0});
  checkpoint_close(&m);
  return check_end("calibrate");
}
