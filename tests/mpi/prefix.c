/* Two activation streams: with the model's own weights in its place the prefix leaves the Grams of the pass, bit for bit, and does not drift; with others
 * it leaves the same bits on this many ranks as on one, whether it went input after input or through whole layers; cross products are what the
 * panels say. */
#include <math.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "calibrate/prefix.h"
#include "check.h"
#include "dist/agree.h"

enum { TT = GRAM_TILE * GRAM_TILE };
static const bool WANTED[IN_COUNT] = {true, true, true, true};

typedef struct outcome {
  float *tiles[SET_COUNT][IN_COUNT];
  double *cross[IN_COUNT];
  double drift[SET_COUNT];
} outcome;

static int64_t tiles_of(int64_t n) {
  int64_t side = (n + GRAM_TILE - 1) / GRAM_TILE;
  return side * (side + 1) / 2;
}

static void keep_gram(const gram *g, float **tiles) {
  CHECK_OK(NEW(*tiles, tiles_of(g->n) * TT, "tiles"));
  CHECK_OK(gram_tiles(g, "test", 0, tiles_of(g->n), *tiles));
}

static void drop(outcome *o) {
  for (int i = 0; i < IN_COUNT; i++) {
    for (int s = 0; s < SET_COUNT; s++) FREE(o->tiles[s][i]);
    FREE(o->cross[i]);
  }
}

/* The weights of the prefix: the model's, changed by `change` in a pattern; by one rank. */
static void set_weights(prefix *p, float change) {
  const arch *a = &p->pass.model->arch;
  for (int l = 0; l < LIN_COUNT && p->pass.t->rank == 0; l++) {
    int64_t out, in;
    linear_shape(a, (linear_id)l, &out, &in);
    for (int64_t k = 0; k < out * in; k++) p->target[l][k] = p->pass.layer.linear[l][k] * (1 + change * (float)(k % 7 - 3));
  }
  team_barrier(p->pass.t);
}

/* Two layers; the first one in whole where `skip`, of the second one everything is kept. */
static void run_prefix(MPI_Comm comm, const checkpoint *m, const windows *const sets[SET_COUNT], float change, bool skip, outcome *o) {
  const bool targets[LIN_COUNT] = {true, true, true, true, true, true, true};
  team t = {0};
  prefix p = {0};
  *o = (outcome){0};
  CHECK_OK(team_new(comm, 0, &t));
  CHECK_OK(prefix_new(&t, m, sets, WANTED, targets, true, NULL, &p));
  CHECK_OK(prefix_embed(&p));
  for (int64_t layer = 0; layer < 2; layer++) {
    CHECK_OK(prefix_layer(&p, layer));
    set_weights(&p, change);
    for (int i = 0; i < IN_COUNT && !(skip && layer == 0); i++) {
      prefix_input(&p, (input_id)i);
      if (i == IN_ATTN_OUT || i == IN_MLP_OUT) prefix_advance(&p, (input_id)i);
    }
    if (skip && layer == 0) prefix_skip(&p);
  }
  team_barrier(&t);
  for (int i = 0; i < IN_COUNT; i++) {
    for (int s = 0; s < SET_COUNT; s++) keep_gram(&p.pass.sets[s].grams[i], &o->tiles[s][i]);
    size_t count = p.crosses[i].sums.bytes / sizeof(double);
    CHECK_OK(NEW(o->cross[i], count, "cross products"));
    memcpy(o->cross[i], p.crosses[i].sums.base, count * sizeof(double));
  }
  CHECK_OK(prefix_drift(&p, o->drift));
  team_barrier(&t);
  prefix_free(&p);
  team_free(&t);
}

static void run_pass(const checkpoint *m, const windows *const sets[SET_COUNT], outcome *o) {
  team t = {0};
  pass p = {0};
  *o = (outcome){0};
  CHECK_OK(team_new(MPI_COMM_WORLD, 0, &t));
  CHECK_OK(pass_new(&t, m, sets, WANTED, NULL, &p));
  CHECK_OK(pass_embed(&p));
  for (int64_t l = 0; l < 2; l++) {
    CHECK_OK(pass_load_layer(&p, l));
    pass_layer(&p, l, l == 1, NULL, NULL);
  }
  for (int s = 0; s < SET_COUNT; s++)
    for (int i = 0; i < IN_COUNT; i++) keep_gram(&p.sets[s].grams[i], &o->tiles[s][i]);
  team_barrier(&t);
  pass_free(&p);
  team_free(&t);
}

static void same_grams(const outcome *a, const outcome *b, const arch *m, const char *what) {
  for (int s = 0; s < SET_COUNT; s++)
    for (int i = 0; i < IN_COUNT; i++)
      CHECK(memcmp(a->tiles[s][i], b->tiles[s][i], (size_t)(tiles_of(input_width(m, (input_id)i)) * TT) * sizeof(float)) == 0,
            "%s: tiles of %s, set %d", what, input_name((input_id)i), s);
}

static void same_cross(const outcome *a, const outcome *b, const arch *m, const char *what) {
  for (int i = 0; i < IN_COUNT; i++)
    CHECK(memcmp(a->cross[i], b->cross[i], (size_t)(m->hidden * input_width(m, (input_id)i)) * sizeof(double)) == 0, "%s: cross of %s",
          what, input_name((input_id)i));
}

static double gram_entry(const outcome *o, int input, int64_t i, int64_t j) {
  int64_t row = i > j ? i : j, col = i > j ? j : i;
  int64_t tile = (row / GRAM_TILE) * (row / GRAM_TILE + 1) / 2 + col / GRAM_TILE;
  return o->tiles[SET_CALIBRATION][input][tile * TT + (row % GRAM_TILE) * GRAM_TILE + col % GRAM_TILE];
}

/* Of equal streams: X^T X is the Gram, and (X W^T)^T X is W H. */
static void cross_of_equal(const checkpoint *m, const outcome *o) {
  const arch *a = &m->arch;
  float *base = NULL;
  layer_weights w;
  CHECK_OK(NEW(base, layer_weights_floats(a), "weights"));
  layer_weights_place(a, base, &w);
  CHECK_OK(layer_weights_load(m, 1, base, 0, 1));
  for (int i = 0; i < IN_COUNT; i++) {
    int64_t n = input_width(a, (input_id)i);
    double off = 0, size = 0;
    for (int64_t r = 0; r < a->hidden; r++)
      for (int64_t c = 0; c < n; c++) {
        double expected = 0;
        const float *row = cross_of_outputs((input_id)i) ? w.linear[i == IN_ATTN_OUT ? LIN_O : LIN_DOWN] + r * n : NULL;
        for (int64_t k = 0; row && k < n; k++) expected += (double)row[k] * gram_entry(o, i, k, c);
        if (!row) expected = gram_entry(o, i, r, c);
        double e = o->cross[i][r * n + c] - expected;
        off += e * e;
        size += expected * expected;
      }
    CHECK(off <= 1e-11 * size, "cross products of %s are off by %g", input_name((input_id)i), sqrt(off / size));
  }
  FREE(base);
}

int main(int argc, char **argv) {
  blas_setup();
  MPI_Init(&argc, &argv);
  checkpoint m = {0};
  windows w[SET_COUNT] = {0};
  CHECK_OK(checkpoint_open(PROJECT_FOLDER "/data/tiny", &m));
  window_request q = {PROJECT_FOLDER "/data/tiny/calib.npy", 17, 250, SAMPLE_RANDOM, 3},
                 q2 = {PROJECT_FOLDER "/data/tiny/heldout.npy", 3, 200, SAMPLE_SEQUENTIAL, 0};
  CHECK_OK(windows_draw(&q, m.arch.vocab, &w[0]));
  CHECK_OK(windows_draw(&q2, m.arch.vocab, &w[1]));
  const windows *sets[SET_COUNT] = {&w[0], &w[1]};
  outcome plain, equal, changed, alone;
  run_pass(&m, sets, &plain);
  run_prefix(MPI_COMM_WORLD, &m, sets, 0, false, &equal);
  same_grams(&equal, &plain, &m.arch, "the model's own weights");
  cross_of_equal(&m, &equal);
  CHECK(equal.drift[0] < 1e-10 && equal.drift[1] < 1e-10, "equal streams drift by %g, %g", equal.drift[0], equal.drift[1]);
  run_prefix(MPI_COMM_WORLD, &m, sets, 0.02f, false, &changed);
  CHECK(changed.drift[0] > 1e-6 && changed.drift[0] < 0.5, "changed weights drift by %g", changed.drift[0]);
  CHECK(memcmp(changed.tiles[0][IN_ATTN], plain.tiles[0][IN_ATTN], TT * sizeof(float)) != 0, "changed weights change no Gram");
  run_prefix(MPI_COMM_SELF, &m, sets, 0.02f, true, &alone);
  same_grams(&changed, &alone, &m.arch, "one rank, through a whole layer");
  same_cross(&changed, &alone, &m.arch, "one rank, through a whole layer");
  CHECK(memcmp(changed.drift, alone.drift, sizeof alone.drift) == 0, "drift on one rank: %g, of this many %g", alone.drift[0],
        changed.drift[0]);
  outcome *all[] = {&plain, &equal, &changed, &alone};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) drop(all[i]);
  windows_free(&w[0]);
  windows_free(&w[1]);
  checkpoint_close(&m);
  return check_end("prefix");
}
