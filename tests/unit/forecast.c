/* The forecast against counts by hand, and what must not get slower. */
#include "model_files.h"

#include <math.h>

#include "base/file.h"
#include "base/memory.h"
#include "calibrate/gram.h"
#include "cost/forecast.h"
#include "joint/refine.h"
#include "quant/optq.h"

enum { HIDDEN = 64, WIDE = 128, LAYERS = 6, WINDOWS = 32, LENGTH = 2048 };

static const char CONFIG[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": 64, "
    "\"intermediate_size\": 128, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"num_hidden_layers\": 6, "
    "\"vocab_size\": 100, \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0, \"hidden_act\": \"silu\", "
    "\"max_position_embeddings\": 4096, \"tie_word_embeddings\": true, \"torch_dtype\": \"bfloat16\"}";

/* A session as plan has it, of a folder that holds config.json alone. */
typedef struct world {
  session c;
  session_views views;
  uint8_t *grams;
  bool *settings[1];
  forecast_todo todo;
} world;

static void world_new(const char *sweep, world *w) {
  char text[2048];
  *w = (world){0};
  put_text("config.json", CONFIG);
  snprintf(text, sizeof text, "model: %s\noutput: o\ncalibration: {tokens: c.npy, windows: %d, length: %d}\nsweep: %s\n", test_folder,
           WINDOWS, LENGTH, sweep);
  put_text("job.yaml", text);
  assert_done(job_read(in_folder("job.yaml"), NULL, 0, NULL, NULL, &w->c.job));
  assert_done(checkpoint_open_config(test_folder, &w->c.model));
  assert_done(job_check_model(&w->c.job, &w->c.model.arch));
  w->c.windows[SET_CALIBRATION] = (windows){.count = WINDOWS, .length = LENGTH};
  w->c.sets[SET_CALIBRATION] = &w->c.windows[SET_CALIBRATION];
  for (int i = 0; i < IN_COUNT; i++) w->c.wanted[i] = true;
  w->c.layer_end = LAYERS;
  assert_done(session_split(&w->c, &w->views));
  assert_int_equal(w->views.count, 1);
  int count = w->views.list[0].job.setting_count;
  assert_done(NEW(w->grams, LAYERS, "test"));
  assert_done(NEW(w->settings[0], LAYERS * count, "test"));
  memset(w->grams, 1 << SET_CALIBRATION, LAYERS);
  memset(w->settings[0], 1, (size_t)(LAYERS * count));
  w->todo = (forecast_todo){.c = &w->c, .views = &w->views, .grams = w->grams, .settings = w->settings};
}

static void world_free(world *w) {
  session_views_free(&w->views);
  FREE(w->grams);
  FREE(w->settings[0]);
  checkpoint_close(&w->c.model);
  job_free(&w->c.job);
}

static machine machine_of(double rate) {
  machine m = {.ranks = 1};
  for (int r = 0; r < RATE_COUNT; r++) machine_add(&m, (rate_id)r, 0, rate);
  return m;
}

static forecast made(const world *w, double rate, int nodes, int ranks) {
  machine m = machine_of(rate);
  geometry g = geometry_of(nodes, ranks, 0);
  forecast f;
  assert_done(forecast_make(&w->todo, &m, &g, &f));
  return f;
}

static void assert_near(double found, double expected) {
  if (!(fabs(found - expected) <= 1e-9 * fabs(expected))) fail_msg("expected %.12g, found %.12g", expected, found);
}

static void rates_between_widths(void **state) {
  (void)state;
  machine m = {0};
  machine_add(&m, RATE_OPTQ, 100, 10);
  machine_add(&m, RATE_OPTQ, 10000, 30);
  assert_near(machine_rate(&m, RATE_OPTQ, 1), 10);
  assert_near(machine_rate(&m, RATE_OPTQ, 1000), 20);
  assert_near(machine_rate(&m, RATE_OPTQ, 20000), 30);
  m = machine_of(5);
  assert_near(machine_rate(&m, RATE_READ, 12345), 5);
  assert_true(rate_of_node(RATE_WRITE) && !rate_of_node(RATE_OPTQ));
}

static void rates_in_a_file(void **state) {
  (void)state;
  machine m = machine_of(1), back;
  m.rates[RATE_GRAM] = (rate_curve){2, {576, 4096}, {1.25e10, 2.5e10}};
  m.ranks = 64;
  snprintf(m.host, sizeof m.host, "node17");
  assert_done(machine_write(in_folder("machine.json"), &m));
  assert_done(machine_read(in_folder("machine.json"), &back));
  assert_int_equal(back.ranks, 64);
  assert_string_equal(back.host, "node17");
  assert_near(machine_rate(&back, RATE_GRAM, 576), 1.25e10);
  assert_near(machine_rate(&back, RATE_GRAM, 4096), 2.5e10);
  m.rates[RATE_GRAM].rate[1] = -1;
  assert_done(machine_write(in_folder("machine.json"), &m));
  assert_int_equal(machine_read(in_folder("machine.json"), &back), E_DATA);
  assert_non_null(strstr(status_message(),
                         "rates.gram.at: expected ascending widths, each with a positive rate in flop/s, found something else in pair 2"));
  status_clear();
  m.rates[RATE_GRAM].count = 0;
  assert_done(machine_write(in_folder("machine.json"), &m));
  assert_int_equal(machine_read(in_folder("machine.json"), &back), E_DATA);
  status_clear();
  put_text("machine.json", "{\"format\": \"else\"}");
  assert_int_equal(machine_read(in_folder("machine.json"), &back), E_DATA);
  status_clear();
}

/* One rank does all at one flop (byte, weight) a second. */
static void counts_by_hand(void **state) {
  (void)state;
  world w;
  world_new("{method: cloq-nomagr, bits: 4, group: [64], rank: 8}", &w);
  forecast f = made(&w, 1, 1, 1);
  double tokens = WINDOWS * LENGTH, d = HIDDEN, wide = WIDE, params = d * d + 2 * d * d / 2 + d * d + 3 * d * wide;
  assert_near(f.steps[STEP_LINEARS].flops, LAYERS * 2 * params * tokens);
  assert_near(f.steps[STEP_LINEARS].seconds, LAYERS * 2 * params * tokens);
  assert_near(f.steps[STEP_ATTENTION].flops, LAYERS * WINDOWS * 4 * d * LENGTH * (LENGTH + 1) / 2.0);
  assert_near(f.steps[STEP_GRAMS].flops, LAYERS * (3 * d * d + wide * wide) * tokens);
  assert_near(f.steps[STEP_WEIGHTS].bytes, LAYERS * 2 * params);
  assert_near(f.steps[STEP_GRAM_WRITE].bytes, LAYERS * 4 * 128 * 128 * 4.0);
  assert_near(f.steps[STEP_FACTOR].flops, LAYERS * (3 * d * d * d + wide * wide * wide) / 3);
  double rows_square = (params - d * wide) * d + d * wide * wide; /* sum of out in^2 */
  assert_near(f.steps[STEP_QUANTIZE].flops, LAYERS * rows_square);
  assert_near(f.steps[STEP_QUANTIZE].busy, LAYERS * (rows_square + params)); /* and a grid for every weight */
  assert_near(f.steps[STEP_TRACE].flops, LAYERS * 2 * rows_square);          /* of W and of what the codes leave */
  assert_true(f.steps[STEP_MAGR].flops == 0 && f.steps[STEP_REFINE].flops == 0 && f.steps[STEP_JOINT].flops == 0);
  double sum = 0;
  for (int s = 0; s < STEP_COUNT; s++) sum += f.steps[s].seconds;
  assert_near(f.calibrate + f.solve, sum);
  world_free(&w);
}

/* What settings share is counted once: ranks, bits with one factor, variants that start from the same codes; what is there not at all. */
static void shared_once(void **state) {
  (void)state;
  world one, more;
  world_new("{method: cloq-nomagr, bits: 4, group: [64], rank: 8}", &one);
  world_new("{method: cloq-nomagr, bits: [2, 4], group: [64], rank: [4, 8]}", &more);
  forecast a = made(&one, 1, 1, 1), b = made(&more, 1, 1, 1);
  assert_near(b.steps[STEP_FACTOR].flops, a.steps[STEP_FACTOR].flops);
  assert_near(b.steps[STEP_QUANTIZE].flops, 2 * a.steps[STEP_QUANTIZE].flops);
  assert_near(b.steps[STEP_LINEARS].flops, a.steps[STEP_LINEARS].flops);
  for (int layer = 0; layer < LAYERS; layer++) more.settings[0][2 * layer] = false;
  memset(more.grams, 0, LAYERS);
  b = made(&more, 1, 1, 1);
  assert_near(b.steps[STEP_QUANTIZE].flops, a.steps[STEP_QUANTIZE].flops);
  assert_true(b.calibrate == 0);
  world_free(&one);
  world_free(&more);
  world_new("{method: refine, bits: 4, group: [64], rank: [4]}", &one);
  world_new("{method: refine, bits: 4, group: [64], rank: [4, 16]}", &more);
  a = made(&one, 1, 1, 1), b = made(&more, 1, 1, 1);
  assert_near(b.steps[STEP_QUANTIZE].flops, a.steps[STEP_QUANTIZE].flops); /* two variants, one start */
  assert_true(b.steps[STEP_REFINE].flops > 1.9 * a.steps[STEP_REFINE].flops);
  world_free(&one);
  world_free(&more);
}

static void monotonic(void **state) {
  (void)state;
  world w;
  world_new("{method: [cloq, refine, loftq], bits: [2, 3], group: [64], rank: [4, 16]}", &w);
  forecast before = made(&w, 1e6, 1, 1), f = made(&w, 2e6, 1, 1);
  assert_near(f.calibrate, before.calibrate / 2);
  assert_near(f.solve, before.solve / 2);
  for (int ranks = 2; ranks <= 64; ranks *= 2) {
    f = made(&w, 1e6, 1, ranks);
    assert_true(f.calibrate <= before.calibrate * (1 + 1e-9) && f.solve <= before.solve * (1 + 1e-9));
    for (int s = 0; s < STEP_COUNT; s++) {
      assert_near(f.steps[s].flops, before.steps[s].flops);
      assert_true(f.steps[s].busy <= f.steps[s].seconds * (1 + 1e-9));
    }
    before = f;
  }
  before = made(&w, 1e6, 1, 2);
  for (int nodes = 2; nodes <= LAYERS; nodes++) {
    f = made(&w, 1e6, nodes, 2);
    assert_true(f.calibrate <= before.calibrate * (1 + 1e-9) && f.solve <= before.solve * (1 + 1e-9));
    before = f;
  }
  world_free(&w);
}

/* Six layers round two teams, a step of windows behind one another; more teams than steps a layer wait. */
static void teams_in_a_ring(void **state) {
  (void)state;
  world w;
  world_new("{method: cloq-nomagr, bits: 4, group: [64], rank: 8}", &w);
  forecast one = made(&w, 1, 1, 8), two = made(&w, 1, 2, 8), six = made(&w, 1, 6, 8);
  int steps = one.steps_a_layer;
  assert_int_equal(steps, WINDOWS * 4 / 8); /* four segments a window */
  double layer = one.steps[STEP_LINEARS].seconds / LAYERS;
  assert_near(two.steps[STEP_LINEARS].seconds, layer * (3 + 1.0 / steps));
  assert_near(six.steps[STEP_LINEARS].seconds, layer * (1 + 5.0 / steps));
  assert_near(two.steps[STEP_FACTOR].seconds, one.steps[STEP_FACTOR].seconds / 2);
  assert_near(two.steps[STEP_WRITE].seconds, one.steps[STEP_WRITE].seconds); /* one file system for both */
  world_free(&w);
  geometry g = geometry_of(8, 64, 16);
  assert_true(g.teams == 32 && g.team == 16);
  g = geometry_of(2, 6, 4);
  assert_true(g.teams == 4 && g.team == 4);
}

/* Rounds of descent over wide groups: products by hand (quant/sweep.h). */
static void wide_groups(void **state) {
  (void)state;
  double round = 2.0 * 100 * 1024 * 1024, within = 2.0 * 100 * 1024 * 512;
  grid_rule narrow = {.bits = 3, .group = 256, .beta = 1}, wide = {.bits = 3, .group = 512, .beta = 1}, whole = {.bits = 3, .beta = 1};
  assert_near(sweep_flops(&narrow, SWEEP_GRID_CANDIDATES, 100, 1024), round);
  assert_near(sweep_flops(&wide, SWEEP_GRID_STAYS, 100, 1024), round);
  assert_near(sweep_flops(&wide, SWEEP_GRID_REFIT, 100, 1024), 2 * round + within);
  assert_near(sweep_flops(&wide, SWEEP_GRID_CANDIDATES, 100, 1024), 3 * round + within + 14 * within);
  assert_near(sweep_flops(&whole, SWEEP_GRID_CANDIDATES, 100, 1024), 18 * round);
  refine_plan p = {.shapes = 3,
                   .eigenvectors = true,
                   .regrid = true,
                   .act_order = true,
                   .descents = 2,
                   .deflated = true,
                   .grid_moves = SWEEP_GRID_CANDIDATES};
  refine_cost c = refine_costs(&p, &whole, 100, 1024, 16);
  assert_near(c.gemm, round / 2 + 5 * 2 * 16 * 100 * 1024.0); /* half of E H at the start; E Z^T of three shapes and two descents */
  assert_near(c.sweep, 2 * 18 * round);
  assert_near(c.optq, 3 * optq_flops(100, 1024));
  assert_near(c.factor, 1024.0 * 1024 * 1024);
  assert_near(c.regridded, 2 * 100 * 1024);
}

static void busiest_of_a_gram(void **state) {
  (void)state;
  double flops, before = INFINITY;
  for (int ranks = 1; ranks <= 64; ranks *= 2) {
    assert_done(gram_busiest(1536, ranks, &flops));
    if (ranks == 1) assert_near(flops, 1536.0 * 1536);
    assert_true(flops <= before && flops * ranks >= 1536.0 * 1536);
    before = flops;
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(rates_between_widths), cmocka_unit_test(rates_in_a_file),   cmocka_unit_test(counts_by_hand),
      cmocka_unit_test(shared_once),          cmocka_unit_test(monotonic),         cmocka_unit_test(teams_in_a_ring),
      cmocka_unit_test(wide_groups),          cmocka_unit_test(busiest_of_a_gram),
  };
  return cmocka_run_group_tests(tests, folder_setup, folder_teardown);
}
