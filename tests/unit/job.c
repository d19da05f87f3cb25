/* The job file: every default, every combination, and one line for every kind of mistake. */
#include "check.h"
#include "collected.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/settings.h"
#include "job/job.h"

/* The file is called job.yaml in a folder of its own, the current one, so that messages are the user's. */
static char folder[] = "/tmp/cloqwork-job-XXXXXX";

static int enter_folder(void **state) {
  (void)state;
  return mkdtemp(folder) && chdir(folder) == 0 ? 0 : 1;
}

static int leave_folder(void **state) {
  (void)state;
  unlink("job.yaml");
  return chdir("/") == 0 ? rmdir(folder) : 1;
}

static void write_job(const char *text) {
  FILE *f = fopen("job.yaml", "w");
  assert_non_null(f);
  fputs(text, f);
  fclose(f);
}

static const char HEAD[] = "model: m\noutput: o\ncalibration: {tokens: c.npy}\n";
static const char PLAIN[] = "model: m\noutput: o\ncalibration: {tokens: c.npy}\nsweep: {method: cloq, bits: 4, rank: 8}\n";
static const char PLAINEST[] = "model: m\noutput: o\ncalibration: {tokens: c.npy}\nsweep: {bits: 2, rank: [8, 16, 17, 64]}\n";

static status read_job(const char *text, job *j) {
  write_job(text);
  return job_read("job.yaml", NULL, 0, NULL, NULL, j);
}

static void test_defaults(void **state) {
  (void)state;
  job j;
  assert_done(read_job(PLAIN, &j));
  assert_string_equal(j.model, "m");
  assert_string_equal(j.output, "o");
  assert_string_equal(j.calibration.path, "c.npy");
  assert_int_equal(j.calibration.windows, 128);
  assert_int_equal(j.calibration.length, 2048);
  assert_int_equal(j.calibration.how, SAMPLE_RANDOM);
  assert_int_equal(j.calibration.seed, 0);
  assert_false(j.has_heldout);
  assert_int_equal(job_target_count(&j), LIN_COUNT);
  assert_int_equal(j.parallel.team, 0);
  assert_int_equal(j.parallel.teams, 0);
  assert_true(j.parallel.memory_per_node == 0 && j.parallel.checkpoint_minutes == 10);
  assert_int_equal(j.setting_count, 1);
  const setting *s = &j.settings[0];
  assert_string_equal(s->name, "cloq-b4-g64");
  assert_ptr_equal(s->method, method_find("cloq"));
  assert_true(s->rule.bits == 4 && s->rule.group == 64 && !s->rule.symmetric && s->rule.beta == 1 && !s->rule.anchor_zero);
  assert_true(s->rank_count == 1 && s->ranks[0] == 8 && s->rank_max == 8);
  const options *o = &s->options;
  assert_true(o->damping == 0.01 && o->damping_escalate == 0 && !o->residual_magr && o->adapter_damping == 0 &&
              o->adapter_tolerance == 1e-6);
  assert_true(o->adapter_solver == SOLVER_AUTO && o->magr_solver == MAGR_FISTA && o->magr_K == 60 && o->magr_alpha == 1e-4);
  assert_true(!o->grid_symmetric && o->grid_beta == 1 && !o->grid_beta_anchor_zero && !o->optq_order_act && !o->optq_dead_rtn);
  job_free(&j);
  assert_done(read_job(
      "model: m\noutput: o\ncalibration: {tokens: c, length: 512}\nheldout: {tokens: h}\nsweep: {method: cloq, bits: 4, rank: 8}\n", &j));
  assert_true(j.has_heldout && j.heldout.windows == 32 && j.heldout.length == 512 && j.heldout.how == SAMPLE_SEQUENTIAL);
  job_free(&j);
}

/* refine is what a sweep gets that names no method. With spread a rank has codes of its own unless it is at most twice as large as one that has. */
static void test_recommended(void **state) {
  (void)state;
  job j;
  int ranks[4];
  assert_done(read_job(PLAINEST, &j));
  setting *s = &j.settings[0];
  assert_string_equal(s->name, "refine-b2-g64");
  assert_true(setting_refines(s) && setting_fits(s) && !setting_nests(s) && !setting_joint(s));
  const options *o = &s->options;
  assert_true(o->grid_search == SEARCH_REFIT && o->grid_weight == WEIGHT_DIAGONAL && o->optq_order_act && o->refine_rounds == ROUNDS_AUTO);
  assert_true(o->refine_ridge == 0.03 && o->refine_stop == 0.003 && o->refine_candidates && o->refine_ranks == RANKS_SPREAD);
  assert_int_equal(setting_variants(s, ranks), 3);
  assert_true(ranks[0] == 8 && ranks[1] == 17 && ranks[2] == 64);
  assert_true(setting_variant(s, 7) == 8 && setting_variant(s, 16) == 8 && setting_variant(s, 18) == 17 && setting_variant(s, 65) == 64);
  s->options.refine_ranks = RANKS_EACH;
  assert_int_equal(setting_variants(s, ranks), 4);
  assert_true(ranks[0] == 8 && ranks[3] == 64 && setting_variant(s, 16) == 16);
  s->options.refine_ranks = RANKS_SMALLEST;
  assert_true(setting_variants(s, ranks) == 1 && ranks[0] == 8 && setting_variant(s, 64) == 8);
  job_free(&j);
}

static void test_given(void **state) {
  (void)state;
  job j;
  assert_done(read_job("model: m\noutput: o\n"
                       "calibration: {tokens: c, windows: 3, length: 7, sampling: sequential, seed: 5}\n"
                       "heldout: {tokens: h, windows: 4, length: 9, sampling: random, seed: 6}\n"
                       "targets: [down_proj, q_proj]\n"
                       "sweep: {method: cloq-rtn, bits: [3], group: 0, rank: [16, 4]}\n"
                       "parallel: {team: 2, teams: 3, memory_per_node: 1.5, checkpoint_minutes: 0}\n",
                       &j));
  assert_true(j.calibration.windows == 3 && j.calibration.length == 7 && j.calibration.how == SAMPLE_SEQUENTIAL && j.calibration.seed == 5);
  assert_true(j.heldout.windows == 4 && j.heldout.length == 9 && j.heldout.how == SAMPLE_RANDOM && j.heldout.seed == 6);
  assert_true(job_target_count(&j) == 2 && j.target[LIN_Q] && j.target[LIN_DOWN]);
  assert_true(job_uses_input(&j, IN_ATTN) && job_uses_input(&j, IN_MLP_OUT) && !job_uses_input(&j, IN_MLP) &&
              !job_uses_input(&j, IN_ATTN_OUT));
  assert_string_equal(j.settings[0].name, "cloq-rtn-b3-g0");
  assert_true(j.settings[0].rank_count == 2 && j.settings[0].ranks[0] == 4 && j.settings[0].ranks[1] == 16 && j.settings[0].rank_max == 16);
  assert_true(j.parallel.team == 2 && j.parallel.teams == 3 && j.parallel.memory_per_node == 1.5 && j.parallel.checkpoint_minutes == 0);
  job_free(&j);
  assert_done(read_job("model: m\noutput: o\ncalibration: {tokens: c}\ntargets: up_proj\nsweep: {method: cloq, bits: 4, rank: 8}\n"
                       "parallel: {team: node, teams: auto, memory_per_node: auto}\n",
                       &j));
  assert_true(job_target_count(&j) == 1 && j.target[LIN_UP] && j.parallel.team == 0);
  job_free(&j);
}

static void assert_names(const char *text, const char *const *names, int count) {
  job j;
  assert_done(read_job(text, &j));
  assert_int_equal(j.setting_count, count);
  for (int i = 0; i < count; i++) assert_string_equal(j.settings[i].name, names[i]);
  job_free(&j);
}
#define NAMES(text, ...) \
  assert_names(text, (const char *const[]){__VA_ARGS__}, (int)(sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *)))

static void test_sweep(void **state) {
  (void)state;
  char text[512];
  snprintf(text, sizeof text, "%ssweep: {method: [cloq, cloq-nomagr], bits: [2, 3], group: [64, 0], rank: 8}\n", HEAD);
  NAMES(text, "cloq-b2-g64", "cloq-b2-g0", "cloq-b3-g64", "cloq-b3-g0", "cloq-nomagr-b2-g64", "cloq-nomagr-b2-g0", "cloq-nomagr-b3-g64",
        "cloq-nomagr-b3-g0");
  snprintf(text, sizeof text, "%ssweep: {method: cloq, bits: 2, rank: 8}\noptions: {damping: [0.01, 1e-3], magr_alpha: [auto, 0.00001]}\n",
           HEAD);
  NAMES(text, "cloq-b2-g64", "cloq-b2-g64-magr_alpha_1e-5", "cloq-b2-g64-damping_0.001", "cloq-b2-g64-damping_0.001-magr_alpha_1e-5");
  /* what a method does not look at makes no setting of its own */
  snprintf(text, sizeof text, "%ssweep: {method: [cloq-rtn, cloq-nomagr], bits: 2, rank: 8}\noptions: {damping: [1, 2]}\n", HEAD);
  NAMES(text, "cloq-rtn-b2-g64", "cloq-nomagr-b2-g64-damping_1", "cloq-nomagr-b2-g64-damping_2");
  snprintf(text, sizeof text,
           "%ssweep: {method: cloq, bits: 3, group: 0, rank: 8}\noptions: {residual: magr, adapter_solver: krylov, magr_solver: pg, "
           "magr_K: 200, "
           "grid_type: sym,"
           " grid_beta: 0.95}\n",
           HEAD);
  NAMES(text, "cloq-b3-g0-residual_magr-adapter_solver_krylov-magr_solver_pg-magr_K_200-grid_type_sym-grid_beta_0.95");
  snprintf(text, sizeof text,
           "%ssweep: {method: cloq, bits: 3, group: 0, rank: 8}\noptions: {grid_beta_anchor: zero, optq_order: act, optq_dead: rtn, "
           "damping_escalate: 1}\n",
           HEAD);
  NAMES(text, "cloq-b3-g0-damping_escalate_1-grid_beta_anchor_zero-optq_order_act-optq_dead_rtn");
  job j;
  assert_done(read_job(text, &j));
  const options *o = &j.settings[0].options;
  assert_true(o->grid_beta_anchor_zero && o->optq_order_act && o->optq_dead_rtn && o->damping_escalate == 1 &&
              j.settings[0].rule.anchor_zero);
  job_free(&j);
  snprintf(text, sizeof text,
           "%ssweep: {method: cloq, bits: 3, group: 0, rank: 8}\noptions: {residual: magr, adapter_solver: krylov, magr_solver: pg, "
           "magr_K: 200, "
           "grid_type: sym,"
           " grid_beta: 0.95, damping: 1, adapter_damping: 0.5, adapter_tolerance: 1e-9}\n",
           HEAD);
  assert_done(read_job(text, &j));
  o = &j.settings[0].options;
  assert_true(o->residual_magr && o->adapter_solver == SOLVER_KRYLOV && o->magr_solver == MAGR_PG && o->magr_K == 200 && o->grid_symmetric);
  assert_true(o->grid_beta == 0.95 && o->damping == 1 && o->adapter_damping == 0.5 && o->adapter_tolerance == 1e-9);
  assert_true(j.settings[0].rule.symmetric && j.settings[0].rule.beta == 0.95);
  job_free(&j);
}

/* eval's tokens: its own, all of them; else the held-out ones, as many windows, one after the other. */
static void test_eval(void **state) {
  (void)state;
  static const struct {
    const char *sections, *path;
    int windows, length;
    sampling how;
  } cases[] = {
      {"heldout: {tokens: h, windows: 5, length: 9, sampling: random}", "h", 5, 9, SAMPLE_SEQUENTIAL},
      {"heldout: {tokens: h, windows: 5}\neval: {length: 7}", "h", 5, 7, SAMPLE_SEQUENTIAL},
      {"heldout: {tokens: h, windows: 5}\neval: {windows: all}", "h", 0, 512, SAMPLE_SEQUENTIAL},
      {"heldout: {tokens: h, windows: 5, length: 9}\neval: {tokens: e}", "e", 0, 9, SAMPLE_SEQUENTIAL},
      {"eval: {tokens: e}", "e", 0, 512, SAMPLE_SEQUENTIAL},
      {"eval: {tokens: e, windows: 3, length: 2, sampling: random, seed: 4}", "e", 3, 2, SAMPLE_RANDOM},
  };
  char text[512];
  job j;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    snprintf(text, sizeof text, "model: m\noutput: o\ncalibration: {tokens: c, length: 512}\n%s\nsweep: {method: cloq, bits: 4, rank: 8}\n",
             cases[i].sections);
    assert_done(read_job(text, &j));
    assert_true(j.has_eval);
    assert_string_equal(j.eval.path, cases[i].path);
    if (j.eval.windows != cases[i].windows || j.eval.length != cases[i].length || j.eval.how != cases[i].how)
      fail_msg("%s", cases[i].sections);
    job_free(&j);
  }
  snprintf(text, sizeof text, "%ssweep: {method: cloq, bits: 4, rank: 8}\n", HEAD);
  assert_done(read_job(text, &j));
  assert_true(j.has_eval == j.has_heldout);
  job_free(&j);
}

/* A method may be named by its parts; the row decides the setting's name. What NF4 does not look at makes no setting. */
static void test_parts(void **state) {
  (void)state;
  char text[512];
  snprintf(text, sizeof text, "%ssweep: {method: {quantizer: nf4, init: cloq}, bits: 4, rank: 8}\noptions: {nf_double: [off, on]}\n", HEAD);
  NAMES(text, "nf4-cloq-b4-g64", "nf4-cloq-b4-g64-nf_double_on");
  job j;
  assert_done(read_job(text, &j));
  assert_ptr_equal(j.settings[0].method, method_find("nf4-cloq"));
  for (int k = 0; k < 2; k++) {
    const grid_rule *r = &j.settings[k].rule;
    assert_true(r->kind == GRID_NF && r->bits == 4 && r->group == 64 && !r->symmetric && r->nested == (k == 1));
  }
  job_free(&j);
  snprintf(text, sizeof text,
           "%ssweep: {method: [{quantizer: optq, init: cloq}, {init: cloq, quantizer: rtn}, cloq, nf4-cloq], bits: 4, group: [32, 4096], "
           "rank: 8}\noptions: {nf_double: on, grid_type: sym, damping: 1}\n",
           HEAD);
  NAMES(text, "cloq-nomagr-b4-g32-damping_1-grid_type_sym", "cloq-nomagr-b4-g4096-damping_1-grid_type_sym", "cloq-rtn-b4-g32-grid_type_sym",
        "cloq-rtn-b4-g4096-grid_type_sym", "cloq-b4-g32-damping_1-grid_type_sym", "cloq-b4-g4096-damping_1-grid_type_sym",
        "nf4-cloq-b4-g32-nf_double_on", "nf4-cloq-b4-g4096-nf_double_on");
  assert_done(read_job(text, &j));
  assert_true(j.settings[0].rule.kind == GRID_UNIFORM && !j.settings[0].rule.nested && !j.settings[7].rule.symmetric);
  job_free(&j);
}

/* Settings that differ in rank alone are one, whichever map they come from. */
static void test_ranks_merge(void **state) {
  (void)state;
  job j;
  char text[512];
  snprintf(text, sizeof text,
           "%ssweep:\n  - {method: cloq, bits: [2, 3], rank: [64, 8]}\n  - {method: cloq, bits: 3, rank: [16, 128, 4]}\n  - {method: cloq, "
           "bits: 4, group: 128, rank: 2}\n",
           HEAD);
  assert_done(read_job(text, &j));
  assert_int_equal(j.setting_count, 3);
  const int merged[] = {4, 8, 16, 64, 128};
  assert_string_equal(j.settings[1].name, "cloq-b3-g64");
  assert_int_equal(j.settings[1].rank_count, 5);
  assert_memory_equal(j.settings[1].ranks, merged, sizeof merged);
  assert_int_equal(j.settings[1].rank_max, 128);
  assert_true(j.settings[0].rank_count == 2 && j.settings[0].rank_max == 64 && j.settings[2].rank_max == 2);
  job_free(&j);
}

static void test_automatic(void **state) {
  (void)state;
  static const struct {
    const char *method;
    int bits, group;
    double beta, alpha;
  } cases[] = {{"cloq", 1, 0, 0.8, 1e-3},    {"cloq", 2, 0, 0.8, 1e-3},      {"cloq", 3, 0, 0.9, 1e-3},
               {"cloq", 4, 0, 1, 1e-3},      {"cloq", 2, 64, 1, 1e-4},       {"cloq", 2, 128, 0.95, 1e-4},
               {"cloq", 4, 128, 0.95, 1e-4}, {"cloq-nomagr", 2, 0, 1, 1e-3}, {"cloq-rtn", 3, 128, 1, 1e-4}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char text[512];
    job j;
    snprintf(text, sizeof text, "%ssweep: {method: %s, bits: %d, group: %d, rank: 8}\n", HEAD, cases[i].method, cases[i].bits,
             cases[i].group);
    assert_done(read_job(text, &j));
    assert_true(j.settings[0].rule.beta == cases[i].beta && j.settings[0].options.grid_beta == cases[i].beta);
    assert_true(j.settings[0].options.magr_alpha == cases[i].alpha);
    job_free(&j);
  }
  /* a value that equals what auto gives is the default: no tag; magr_K's auto follows the solver */
  char text[512];
  snprintf(text, sizeof text, "%ssweep: {method: cloq, bits: 2, rank: 8}\noptions: {magr_solver: pg, magr_K: 150, magr_alpha: 1e-4}\n",
           HEAD);
  NAMES(text, "cloq-b2-g64-magr_solver_pg");
  snprintf(text, sizeof text, "%ssweep: {method: cloq, bits: 2, rank: 8}\noptions: {magr_solver: [fista, pg], magr_K: auto}\n", HEAD);
  job j;
  assert_done(read_job(text, &j));
  assert_true(j.settings[0].options.magr_K == 60 && j.settings[1].options.magr_K == 150);
  job_free(&j);
}

/* What RUN/job.yaml says is a job file again, and the same one. */
static void test_resolved_tree(void **state) {
  (void)state;
  static const char *const jobs[] = {
      "model: m\noutput: 'o: x'\ncalibration: {tokens: c}\nheldout: {tokens: h}\nsweep: {method: cloq, bits: [2, 4], "
      "rank: [8, 16]}\noptions: {damping: [0.01, 1], magr_K: 7}\n",
      "model: m\noutput: o\ncalibration: {tokens: c}\nheldout:\ntargets: [v_proj]\nsweep: [{method: cloq, bits: 2, rank: "
      "8}, {method: cloq-rtn, bits: 3, rank: 1}]\n"
      "parallel: {team: 4}\n",
      "model: m\noutput: o\ncalibration: {tokens: c}\nsweep: {method: {quantizer: nf4, init: cloq}, bits: 4, "
      "rank: 8}\n",
      "model: m\noutput: o\ncalibration: {tokens: c}\nsweep: {method: [cloq, {quantizer: nf4, init: cloq}], "
      "bits: [4], rank: 8}\noptions: {nf_double: [off, on]}\n"};
  const size_t recorded[] = {25, 25, 8, 26}; /* every option that a method of the sweep looks at */
  for (size_t i = 0; i < sizeof jobs / sizeof *jobs; i++) {
    job j, again;
    char *text;
    assert_done(read_job(jobs[i], &j));
    assert_done(settings_write(j.tree, &text));
    assert_done(read_job(text, &again));
    assert_true(json_equal(j.tree, again.tree));
    assert_int_equal(j.setting_count, again.setting_count);
    for (int k = 0; k < j.setting_count; k++) assert_string_equal(j.settings[k].name, again.settings[k].name);
    assert_true((json_object_get(j.tree, "heldout") != NULL) == j.has_heldout);
    const json_t *o = json_object_get(j.tree, "options");
    assert_int_equal(json_object_size(o), recorded[i]);
    if (recorded[i] >= 26) assert_string_equal(json_string_value(json_object_get(o, "magr_alpha")), "auto");
    assert_string_equal(json_string_value(json_object_get(o, "act_quantizer")), "fp");
    FREE(text);
    job_free(&j);
    job_free(&again);
  }
}

static void test_overrides(void **state) {
  (void)state;
  job j;
  write_job(PLAIN);
  const char *const good[] = {"sweep.bits=[2, 3]", "output=elsewhere", "options.damping=0.1", "heldout.tokens=h", "sweep.bits=[3]"};
  assert_done(job_read("job.yaml", good, 5, NULL, NULL, &j));
  assert_string_equal(j.output, "elsewhere");
  assert_true(j.setting_count == 1 && j.has_heldout);
  assert_string_equal(j.settings[0].name, "cloq-b3-g64-damping_0.1");
  job_free(&j);
  const char *const unknown[] = {"sweep.bit=2"}, *const broken[] = {"sweep.bits=[2"}, *const mangled[] = {"bits"};
  assert_refused(job_read("job.yaml", unknown, 1, NULL, NULL, &j), E_USAGE, "job.yaml: sweep.bit: unknown key, did you mean bits");
  assert_refused(job_read("job.yaml", broken, 1, NULL, NULL, &j), E_USAGE,
                 "--set sweep.bits=[2: line 2, column 1: not valid YAML: flow sequence without a closing bracket");
  assert_refused(job_read("job.yaml", mangled, 1, NULL, NULL, &j), E_USAGE, "--set bits: expected key=value");
}

static void test_pattern(void **state) {
  (void)state;
  job j;
  char text[512];
  snprintf(text, sizeof text, "%ssweep: {method: [cloq, cloq-rtn], bits: [2, 3], rank: 8}\n", HEAD);
  write_job(text);
  assert_done(job_read("job.yaml", NULL, 0, NULL, "cloq-b*", &j));
  assert_int_equal(j.setting_count, 2);
  assert_string_equal(j.settings[1].name, "cloq-b3-g64");
  assert_int_equal(json_array_size(json_object_get(json_object_get(j.tree, "sweep"), "method")), 2); /* the job stays whole */
  job_free(&j);
  assert_refused(job_read("job.yaml", NULL, 0, NULL, "loftq*", &j), E_USAGE,
                 "--settings loftq*: expected to match one of the job's 4 settings, the first of which is cloq-b2-g64");
}

/* Grams from elsewhere; what is recorded can be read back. */
static void test_gram_sources(void **state) {
  (void)state;
  job j;
  static const char rest[] = "model: m\noutput: o\nsweep: {method: cloq, bits: 2, rank: 8}\n";
  char text[256];
  snprintf(text, sizeof text, "%scalibration: {merge: [runs/a, runs/b]}\nheldout: {tokens: h}\n", rest);
  assert_done(read_job(text, &j));
  assert_true(j.grams.origin == GRAMS_MERGED && j.grams.count == 2 && j.calibration.path == NULL && j.heldout.length == 2048);
  assert_string_equal(j.grams.from[0], "runs/a");
  assert_string_equal(j.grams.from[1], "runs/b");
  assert_true(json_is_array(json_object_get(json_object_get(j.tree, "calibration"), "merge")));
  job_free(&j);
  snprintf(text, sizeof text, "%scalibration: {merge: runs/a}\n", rest);
  assert_done(read_job(text, &j));
  assert_true(j.grams.origin == GRAMS_MERGED && j.grams.count == 1 && !j.has_heldout && !j.has_eval);
  job_free(&j);
  snprintf(text, sizeof text, "%scalibration: {import: dir, count: 77}\n", rest);
  assert_done(read_job(text, &j));
  assert_true(j.grams.origin == GRAMS_IMPORTED && j.grams.count == 1 && j.grams.tokens == 77);
  assert_string_equal(j.grams.from[0], "dir");
  assert_int_equal(json_integer_value(json_object_get(json_object_get(j.tree, "calibration"), "count")), 77);
  job_free(&j);
}

static void test_refusals(void **state) {
  (void)state;
  static const struct {
    const char *text; /* "+": after HEAD; "*": after PLAIN */
    const char *line; /* after "job.yaml: " */
  } cases[] = {
      {"", "expected a mapping with model, output, calibration and sweep, found nothing"},
      {"[1]", "expected a mapping with model, output, calibration and sweep, found a list"},
      {"model: m\nmodel: n\n", "line 2, column 1: model: this key is given twice"},
      {"output: o", "model: expected the folder of a checkpoint, found nothing"},
      {"model: 12", "model: expected the folder of a checkpoint, found 12"},
      {"model: ''", "model: expected the folder of a checkpoint, found the text \"\""},
      {"model: m", "output: expected the run directory, found nothing"},
      {"model: m\noutput: [a]", "output: expected the run directory, found a list"},
      {"model: m\noutput: o", "calibration: expected a mapping with tokens, merge or import, found nothing"},
      {"model: m\noutput: o\ncalibration: c.npy", "calibration: expected a mapping with tokens, merge or import, found the text c.npy"},
      {"model: m\noutput: o\ncalibration: {}", "calibration.tokens: expected the path of a token file, found nothing"},
      {"model: m\noutput: o\ncalibration: {tokens: true}", "calibration.tokens: expected the path of a token file, found true"},
      {"model: m\noutput: o\ncalibration: {tokens: c, window: 3}", "calibration.window: unknown key, did you mean windows"},
      {"model: m\noutput: o\ncalibration: {tokens: c, windows: 0}", "calibration.windows: expected a count of at least 1, found 0"},
      {"model: m\noutput: o\ncalibration: {tokens: c, windows: many}",
       "calibration.windows: expected a count of at least 1, found the text many"},
      {"model: m\noutput: o\ncalibration: {tokens: c, windows: 1.5}", "calibration.windows: expected a count of at least 1, found 1.5"},
      {"model: m\noutput: o\ncalibration: {tokens: c, length: -1}",
       "calibration.length: expected a count of tokens, 1 to 1048576, found -1"},
      {"model: m\noutput: o\ncalibration: {tokens: c, sampling: sorted}",
       "calibration.sampling: expected random or sequential, found the text sorted"},
      {"model: m\noutput: o\ncalibration: {tokens: c, sampling: 1}", "calibration.sampling: expected random or sequential, found 1"},
      {"model: m\noutput: o\ncalibration: {tokens: c, seed: -3}", "calibration.seed: expected an integer of at least 0, found -3"},
      {"model: m\noutput: o\ncalibration: {merge: []}", "calibration.merge: expected at least one run directory, found a list"},
      {"model: m\noutput: o\ncalibration: {merge: [a, 3]}", "calibration.merge: expected paths of run directories, found 3"},
      {"model: m\noutput: o\ncalibration: {merge: [a], count: 3}", "calibration.count: unknown key"},
      {"model: m\noutput: o\ncalibration: {tokens: c, merge: [a]}",
       "calibration.merge: expected Grams from one place, found tokens as well"},
      {"model: m\noutput: o\ncalibration: {import: d, merge: [a]}",
       "calibration.merge: expected Grams from one place, found import as well"},
      {"model: m\noutput: o\ncalibration: {import: [d]}", "calibration.import: expected the path of a folder of Grams, found a list"},
      {"model: m\noutput: o\ncalibration: {import: d, count: 0}", "calibration.count: expected a count of tokens, at least 1, found 0"},
      {"*heldout: {windows: 2}", "heldout.tokens: expected the path of a token file, found nothing"},
      {"*eval: {windows: 2}", "eval.tokens: expected the path of a token file, found nothing"},
      {"*eval: {tokens: e, windows: 0}", "eval.windows: expected all or a count of at least 1, found 0"},
      {"*eval: {tokens: e, length: 1}", "eval.length: expected a count of tokens, 2 to 1048576, found 1"},
      {"*eval: {tokens: e, sampling: random}", "eval.windows: expected a count with sampling: random, found all"},
      {"*heldout: h.npy", "heldout: expected a mapping with tokens, found the text h.npy"},
      {"*heldout: {tokens: h, lenght: 2}", "heldout.lenght: unknown key, did you mean length"},
      {"*modle: x", "modle: unknown key, did you mean model"},
      {"*frobnicate: x", "frobnicate: unknown key"},
      {"*targets: []", "targets: expected at least one linear, found a list"},
      {"*targets: [q_prj]", "targets: unknown linear q_prj, did you mean q_proj"},
      {"*targets: [lm_head]", "targets: unknown linear lm_head"},
      {"*targets: [q_proj, q_proj]", "targets: q_proj is named twice"},
      {"*targets: [3]", "targets: expected names of linears, found 3"},
      {"+", "sweep: expected a mapping with bits and rank (and method, group), or a list of such mappings or of files that hold one, found "
            "nothing"},
      {"+sweep: 4",
       "sweep: expected a mapping with bits and rank (and method, group), or a list of such mappings or of files that hold one, found 4"},
      {"+sweep: []", "sweep: expected a mapping with bits and rank (and method, group), or a list of such mappings or of files that hold "
                     "one, found a list"},
      {"+sweep: [3]",
       "sweep: expected a mapping with bits and rank (and method, group), or a list of such mappings or of files that hold one, found 3"},
      {"+sweep: {bit: 4, rank: 8}", "sweep.bit: unknown key, did you mean bits"},
      {"+sweep: [{method: cloq, bits: 4, rank: 8}, {bit: 4}]", "sweep[1].bit: unknown key, did you mean bits"},
      {"+sweep: {rank: 8}", "sweep.bits: expected 1 to 8, found nothing"},
      {"+sweep: {method: cloq, bits: 4}", "sweep.rank: expected ranks of at least 1, found nothing"},
      {"+sweep: {method: cloq, bits: [], rank: 8}", "sweep.bits: expected 1 to 8, found a list"},
      {"+sweep: {method: cloq, bits: 9, rank: 8}", "sweep.bits: expected 1 to 8, found 9"},
      {"+sweep: {method: cloq, bits: [4, 0], rank: 8}", "sweep.bits: expected 1 to 8, found 0"},
      {"+sweep: {method: cloq, bits: 2.5, rank: 8}", "sweep.bits: expected 1 to 8, found 2.5"},
      {"+sweep: {method: cloq, bits: 4, group: -64, rank: 8}",
       "sweep.group: expected 0 (one scale per row) or a count of columns, found -64"},
      {"+sweep: {method: cloq, bits: 4, group: row, rank: 8}",
       "sweep.group: expected 0 (one scale per row) or a count of columns, found the text row"},
      {"+sweep: {method: cloq, bits: 4, rank: 0}", "sweep.rank: expected ranks of at least 1, found 0"},
      {"+sweep: {method: cloq, bits: 4, rank: [8, sixteen]}", "sweep.rank: expected ranks of at least 1, found the text sixteen"},
      {"+sweep: {method: cloqq, bits: 4, rank: 8}", "sweep.method: unknown method cloqq, did you mean cloq"},
      {"+sweep: {method: spinquant, bits: 4, rank: 8}",
       "sweep.method: unknown method spinquant: `cloqwork methods` lists those of this version"},
      {"+sweep: {method: 1, bits: 4, rank: 8}", "sweep.method: expected names of methods, found 1"},
      {"+sweep: {method: {quantizer: nf4}, bits: 4, rank: 8}",
       "sweep.method.init: expected one of zero, svd, lqer, qera-approx, cloq, qera-exact, eora, qa-lora, loftq, lasq-w, lasq-q, lasq-e, "
       "caldera, odlri, refine, varpro, bidup, projq, intrinsic, l4q, found nothing"},
      {"+sweep: {method: {init: cloq}, bits: 4, rank: 8}",
       "sweep.method.quantizer: expected one of rtn, optq, nf4, nf, slim, billm, found nothing"},
      {"+sweep: {method: {quantizer: 4, init: cloq}, bits: 4, rank: 8}",
       "sweep.method.quantizer: expected one of rtn, optq, nf4, nf, slim, billm, found 4"},
      {"+sweep: {method: {quantizer: nf3, init: cloq}, bits: 4, rank: 8}",
       "sweep.method.quantizer: unknown quantizer nf3, did you mean nf4"},
      {"+sweep: {method: {quantizer: spinquant, init: cloq}, bits: 4, rank: 8}",
       "sweep.method.quantizer: unknown quantizer spinquant, expected one of rtn, optq, nf4, nf, slim, billm"},
      {"+sweep: [{method: [cloq, {quantizer: nf4, init: cloqq}], bits: 4, rank: 8}]",
       "sweep[0].method.init: unknown init cloqq, did you mean cloq"},
      {"+sweep: {method: {quantiser: nf4, init: cloq}, bits: 4, rank: 8}", "sweep.method.quantiser: unknown key, did you mean quantizer"},
      {"+sweep: {method: nf4-clok, bits: 4, rank: 8}", "sweep.method: unknown method nf4-clok, did you mean nf4-cloq"},
      {"+sweep: {method: [cloq-rtn, {quantizer: rtn, init: cloq}], bits: 4, rank: 8}",
       "sweep: cloq-rtn-b4-g64 with rank 8 is asked for twice"},
      {"+sweep: {method: [cloq, nf4-cloq], bits: [4, 3], rank: 8}",
       "sweep.bits: expected 4 with nf4-cloq (a list of sweeps gives every method its own bits), found 3"},
      {"+sweep: [{method: cloq, bits: 3, rank: 8}, {method: nf4-cloq, bits: 4, group: 0, rank: 8}]",
       "sweep[1].group: expected a power of two from 32 to 4096 with nf4-cloq (NF4 knows no block of a whole row), found 0"},
      {"+sweep: {method: nf4-cloq, bits: 4, group: 48, rank: 8}",
       "sweep.group: expected a power of two from 32 to 4096 with nf4-cloq, found 48"},
      {"+sweep: {method: nf4-cloq, bits: 4, group: 16, rank: 8}",
       "sweep.group: expected a power of two from 32 to 4096 with nf4-cloq, found 16"},
      {"+sweep: {method: nf4-cloq, bits: 4, group: 8192, rank: 8}",
       "sweep.group: expected a power of two from 32 to 4096 with nf4-cloq, found 8192"},
      {"+sweep: {method: nf4-cloq, bits: 4, rank: 8}\noptions: {grid_type: sym}",
       "options.grid_type: no method of this sweep uses this option"},
      {"*options: {nf_double: on}", "options.nf_double: no method of this sweep uses this option"},
      {"*options: {nf_double: twice}", "options.nf_double: expected one of off, on, found the text twice"},
      {"+sweep: {method: cloq, bits: [4, 4], rank: 8}", "sweep: cloq-b4-g64 with rank 8 is asked for twice"},
      {"+sweep: {method: cloq, bits: 4, rank: [8, 16, 8]}", "sweep: cloq-b4-g64 with rank 8 is asked for twice"},
      {"+sweep: [{method: cloq, bits: [2, 3], rank: 8}, {method: cloq, bits: 3, rank: [4, 8]}]",
       "sweep: cloq-b3-g64 with rank 8 is asked for twice"},
      {"*options: {magr_alpha: [auto, 1e-4]}", "sweep: cloq-b4-g64 with rank 8 is asked for twice"},
      {"+sweep: {method: cloq, bits: [1,2,3,4,5,6,7,8], group: [1,2,3,4,5,6,7,8], rank: 8}\noptions: {damping: [1,2,3,4,5,6,7,8,9], "
       "magr_K: "
       "[1,2,3,4,5,6,7,8]}",
       "sweep: expected at most 4096 settings, found more"},
      {"*options: 3", "options: expected a mapping of options, found 3"},
      {"*options: {dampng: 0.1}", "options.dampng: unknown option, did you mean damping"},
      {"*options: {colour: red}", "options.colour: unknown option"},
      {"*options: {loftq_T: 5}", "options.loftq_T: no method of this sweep uses this option"},
      {"*options: {lasq_variant: lasq-w}", "options.lasq_variant: unknown option: the variants are methods: lasq-w, lasq-q, lasq-e"},
      {"*options: {grid_weight: 1}", "options.grid_weight: expected one of ones, sqrt, diag, found 1"},
      {"*options: {grid_zero: real, grid_type: sym}",
       "sweep: cloq-b4-g64-grid_type_sym-grid_zero_real: options.grid_zero: expected int with grid_type: sym (its zero point is the middle "
       "code), found real"},
      {"*options: {grid_search: asymm, grid_type: sym}",
       "sweep: cloq-b4-g64-grid_type_sym-grid_search_asymm: options.grid_search: expected another one with grid_type: sym (its zero point "
       "is the middle code), found asymm"},
      {"*options: {grid_search: mse, grid_beta: [auto, 0.9]}",
       "sweep: cloq-b4-g64-grid_beta_0.9-grid_search_mse: options.grid_beta: expected auto or 1 with a grid_search (it finds the range "
       "itself), found 0.9"},
      {"*options: {grid_search: lsq, grid_beta_anchor: zero}",
       "sweep: cloq-b4-g64-grid_beta_anchor_zero-grid_search_lsq: options.grid_beta_anchor: expected low with a grid_search or grid_type: "
       "sym (no end of the range is cut alone), found zero"},
      {"*options: {grid_type: sym, grid_beta_anchor: zero}",
       "sweep: cloq-b4-g64-grid_type_sym-grid_beta_anchor_zero: options.grid_beta_anchor: expected low with a grid_search or grid_type: "
       "sym (no end of the range is cut alone), found zero"},
      {"*options: {grid_weight: diag}", "sweep: cloq-b4-g64-grid_weight_diag: options.grid_weight: expected ones unless grid_search is "
                                        "scan or refit (no other weighs), found diag"},
      {"+sweep: {bits: 2, rank: 8}\noptions: {optq_groups: dynamic, optq_order: natural}",
       "sweep: refine-b2-g64-optq_order_natural-optq_groups_dynamic: options.optq_groups: expected static where codes are refined (their "
       "grids "
       "are searched for all groups at once), found dynamic"},
      {"+sweep: {method: {quantizer: rtn, init: refine}, bits: 2, rank: 8}",
       "sweep.method: rtn does not go with refine: it refines codes of OPTQ on a uniform grid: expected the quantizer optq"},
      {"+sweep: {method: {quantizer: optq, init: refine, magr: true}, bits: 2, rank: 8}",
       "sweep.method: MagR and optq does not go with refine: MagR changes the weights that it would refine the codes of: expected it "
       "without "
       "MagR"},
      {"+sweep: {bits: 2, rank: 8}\noptions: {joint_method: bidup}",
       "options.joint_method: unknown option: they are methods: refine, varpro, bidup, projq, gptq-intrinsic, caldera"},
      {"*options: {optq_order: act, optq_groups: dynamic}",
       "sweep: cloq-b4-g64-optq_order_act-optq_groups_dynamic: options.optq_groups: expected static with optq_order: act (a group's "
       "columns do not follow one another), found dynamic"},
      {"+sweep: {method: slim-llm, bits: 2, rank: 8}\noptions: {optq_groups: dynamic}",
       "sweep: slim-llm-b2-g64-optq_groups_dynamic: options.optq_groups: expected static with slim (it searches scales before OPTQ), found "
       "dynamic"},
      {"+sweep: {method: caldera, bits: 2, rank: 8}\noptions: {optq_groups: dynamic}",
       "sweep: caldera-b2-g64-optq_groups_dynamic: options.optq_groups: expected static with joint_grid: frozen (its grid is fitted to W), "
       "found dynamic"},
      {"*options: {cd_rounds: 3}", "sweep: cloq-b4-g64-cd_rounds_3: options.cd_rounds: expected auto unless cd_pass is comq, found 3"},
      {"+sweep: {method: slim-llm, bits: 2, group: 0, rank: 8}",
       "sweep.group: expected a count of columns with slim-llm (groups differ in bits), found 0"},
      {"+sweep: {method: slim-llm, bits: 1, rank: 8}",
       "sweep.bits: expected 2 to 7 with slim-llm (a list of sweeps gives every method its own bits), found 1"},
      {"+sweep: {method: billm, bits: 1, rank: 8}\noptions: {optq_order: act}",
       "options.optq_order: no method of this sweep uses this option"},
      {"+sweep: {method: apiq, bits: 4, rank: 8}",
       "sweep.method: apiq is not offered: it trains adapters and clipping by gradients through a block's activations, which are not kept "
       "here: take cloq, which minimises its layer-wise objective without clipping in closed form"},
      {"+sweep: {method: {quantizer: rtn, init: loftq, magr: true}, bits: 4, rank: 8}",
       "sweep.method: MagR and rtn does not go with loftq: MagR changes W before it is quantized once, this initialization quantizes W - "
       "BA "
       "again and again"},
      {"+sweep: {method: qlora, bits: 3, rank: 8}",
       "sweep.bits: expected 4 with qlora (a list of sweeps gives every method its own bits), found 3"},
      {"*options: {act_quantizer: quantized}", "options.act_quantizer: expected one of fp, prefix, cross, found the text quantized"},
      {"*options: {act_quantizer: cross, act_adapter: fp}",
       "options.act_adapter: expected cross with act_quantizer: cross (codes and adapter see the same inputs), found fp"},
      {"*options: {xgram_alpha: 2}", "options.xgram_alpha: expected a number from 0 to 1, found 2"},
      {"*options: {split: [cloq, left]}", "options.split[1]: expected one of cloq, qera, balanced, found the text left"},
      {"*options: {optq_groups: dynamics}", "options.optq_groups: expected one of static, dynamic, found the text dynamics"},
      {"*options: {damping: lots}", "options.damping: expected a number from 0 to 10, found the text lots"},
      {"*options: {damping: -0.1}", "options.damping: expected a number from 0 to 10, found -0.1"},
      {"*options: {damping: auto}", "options.damping: expected a number from 0 to 10, found the text auto"},
      {"*options: {damping: []}", "options.damping: expected a value or a list of values, found an empty list"},
      {"*options: {damping: {a: 1}}", "options.damping: expected a number from 0 to 10, found a mapping"},
      {"*options: {magr_alpha: [auto, none]}", "options.magr_alpha[1]: expected a number from 0 to 10 or auto, found the text none"},
      {"*options: {magr_K: 1.5}", "options.magr_K: expected an integer from 1 to 100000 or auto, found 1.5"},
      {"*options: {damping_escalate: 9}", "options.damping_escalate: expected an integer from 0 to 3, found 9"},
      {"*options: {residual: other}", "options.residual: expected one of original, magr, found the text other"},
      {"*options: {optq_order: true}", "options.optq_order: expected one of natural, act, found true"},
      {"*options: {grid_beta: 0}", "options.grid_beta: expected a number from 0.1 to 1 or auto, found 0"},
      {"+sweep: {method: cloq-rtn, bits: 4, rank: 8}\noptions: {damping: 0.1}",
       "options.damping: no method of this sweep uses this option"},
      {"+sweep: {method: cloq-nomagr, bits: 4, rank: 8}\noptions: {magr_K: auto}",
       "options.magr_K: no method of this sweep uses this option"},
      {"*options: {damping: 0.011111111111, damping_escalate: 1, residual: magr, adapter_damping: 0.011111111111, adapter_solver: krylov,"
       " magr_solver: pg, magr_alpha: 0.011111111111, grid_type: sym}",
       "sweep: the setting's name cloq-b4-g64-damping_0.011111111111-damping_escalate_1-residual_magr-adapter_damping_0.011111111111-"
       "adapter_solver_krylov-magr_solver_pg-magr_alpha_0.0111111111\xe2\x80\xa6 is too long: expected fewer options off their default"},
      {"*parallel: 4", "parallel: expected a mapping with team, teams, memory_per_node, checkpoint_minutes, scratch, found 4"},
      {"*parallel: {size: 4}", "parallel.size: unknown key"},
      {"*parallel: {team: all}", "parallel.team: expected node or a count of ranks, found the text all"},
      {"*parallel: {team: 0}", "parallel.team: expected node or a count of ranks, found 0"},
      {"*parallel: {teams: node}", "parallel.teams: expected auto or a count, found the text node"},
      {"*parallel: {memory_per_node: 64GB}", "parallel.memory_per_node: expected auto or GiB, at least 0.001, found the text 64GB"},
      {"*parallel: {memory_per_node: 0}", "parallel.memory_per_node: expected auto or GiB, at least 0.001, found 0"},
      {"*parallel: {checkpoint_minutes: -1}", "parallel.checkpoint_minutes: expected minutes, at least 0, found -1"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char text[1024], line[1024];
    const char *rest = cases[i].text + (*cases[i].text == '+' || *cases[i].text == '*');
    snprintf(text, sizeof text, "%s%s\n", *cases[i].text == '+' ? HEAD : *cases[i].text == '*' ? PLAIN : "", rest);
    snprintf(line, sizeof line, "job.yaml: %s", cases[i].line);
    job j;
    assert_refused(read_job(text, &j), E_USAGE, line);
  }
  job j;
  unlink("job.yaml");
  assert_refused(job_read("job.yaml", NULL, 0, NULL, NULL, &j), E_USAGE, "job.yaml: cannot be opened: No such file or directory");
  write_job("a: [\n");
  assert_refused(job_read("job.yaml", NULL, 0, NULL, NULL, &j), E_USAGE,
                 "job.yaml: line 2, column 1: not valid YAML: flow sequence without a closing bracket");
}

/* Neighbours of what is refused. */
static void test_options_that_go_together(void **state) {
  (void)state;
  static const char *const good[] = {
      "sweep: {method: cloq, bits: 2, group: 0, rank: 8}\noptions: {grid_search: mse}", /* auto is 0.8 here, and a search does not look at it */
      "sweep: {method: cloq, bits: 2, group: 0, rank: 8}\noptions: {grid_search: mse, grid_beta: 1}",
      "sweep: {method: cloq, bits: 2, rank: 8}\noptions: {grid_search: asymm, grid_zero: [int, real]}",
      "sweep: {method: cloq, bits: 2, rank: 8}\noptions: {grid_search: scan, grid_weight: [sqrt, diag]}",
      "sweep: {method: caldera, bits: 2, rank: 8}\noptions: {joint_grid: refit, optq_groups: dynamic}",
      "sweep: {method: cloq, bits: 2, rank: 8}\noptions: {cd_pass: comq, cd_rounds: 3}",
  };
  for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
    char text[512];
    job j;
    snprintf(text, sizeof text, "%s%s\n", HEAD, good[i]);
    assert_done(read_job(text, &j));
    job_free(&j);
  }
}

static void test_model(void **state) {
  (void)state;
  arch a = {.hidden = 96, .layers = 2, .intermediate = 160, .vocab = 100, .heads = 6, .kv_heads = 2, .head_dim = 16};
  static const struct {
    const char *sweep, *line;
  } cases[] = {
      {"{bits: 4, group: 32, rank: 32}", NULL},
      {"{bits: 4, group: 0, rank: 32}", NULL},
      {"{bits: 4, group: 48, rank: 8}", "job.yaml: sweep.group: expected a divisor of 160, the input width of down_proj, found 48"},
      {"{bits: 4, group: 64, rank: 8}", "job.yaml: sweep.group: expected a divisor of 96, the input width of q_proj, found 64"},
      {"{method: qa-lora, bits: 4, group: 32, rank: 3}", NULL},
      {"{method: qa-lora, bits: 4, group: 32, rank: 4}",
       "job.yaml: sweep.rank: expected at most 3 with qa-lora, whose adapter reads the groups of q_proj's input, found 4"},
      {"{bits: 4, group: 32, rank: [8, 33]}", "job.yaml: sweep.rank: expected at most 32, the smaller side of k_proj, found 33"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char text[512];
    job j;
    snprintf(text, sizeof text, "%ssweep: %s\n", HEAD, cases[i].sweep);
    assert_done(read_job(text, &j));
    if (cases[i].line)
      assert_refused(job_check_model(&j, &a), E_USAGE, cases[i].line);
    else
      assert_done(job_check_model(&j, &a));
    job_free(&j);
  }
  job j; /* a linear that is no target does not matter */
  char text[512];
  snprintf(text, sizeof text, "%stargets: [q_proj, o_proj]\nsweep: {method: cloq, bits: 4, group: 48, rank: 96}\n", HEAD);
  assert_done(read_job(text, &j));
  assert_done(job_check_model(&j, &a));
  job_free(&j);
}

static void test_describe(void **state) {
  (void)state;
  job j;
  char text[512];
  snprintf(text, sizeof text, "%ssweep: {method: cloq, bits: 2, group: 128, rank: [8, 16]}\noptions: {damping: [0.01, 0.02]}\n", HEAD);
  assert_done(read_job(text, &j));
  collected one = {""}, other = {""};
  setting_describe(&j.settings[0], j.target, 0, collect, &one);
  setting_describe(&j.settings[1], j.target, 0, collect, &other);
  assert_string_equal(one.text,
                      "method=cloq\nmethod_version=1\nbits=2\ngroup=128\nrank_max=16\ndamping=0.01\ndamping_escalate=0\nresidual=original\n"
                      "adapter_damping=0\nadapter_tolerance=1e-6\nadapter_solver=auto\nmagr_solver=fista\nmagr_alpha=0.0001\nmagr_K=60\n"
                      "magr_threshold=normalised\ngrid_type=asym\ngrid_zero=int\ngrid_beta=0.95\ngrid_beta_anchor=low\ngrid_search=none\n"
                      "grid_weight=ones\noptq_order=natural\noptq_groups=static\noptq_dead=zero\ncd_pass=none\ncd_rounds=30\nsplit=cloq\n"
                      "act_quantizer=fp\nact_adapter=fp\nadapter_dtype=fp32\n");
  assert_string_not_equal(one.text, other.text);
  job_free(&j);
  snprintf(text, sizeof text, "%ssweep: {method: nf4-cloq, bits: 4, rank: 8}\noptions: {nf_double: on}\n", HEAD);
  assert_done(read_job(text, &j));
  one = (collected){""};
  setting_describe(&j.settings[0], j.target, 0, collect, &one);
  assert_string_equal(one.text, "method=nf4-cloq\nmethod_version=1\nbits=4\ngroup=64\nrank_max=8\nadapter_damping=0\n"
                                "adapter_tolerance=1e-6\nadapter_solver=auto\nnf_double=on\nsplit=cloq\nact_quantizer=fp\nact_adapter=fp\n"
                                "adapter_dtype=fp32\n");
  job_free(&j);
}

/* The project's own job files. */
static void test_project_jobs(void **state) {
  (void)state;
  static const char *const names[] = {"tiny", "smollm2"};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    char *path = mem_format("%s/jobs/%s.yaml", PROJECT_FOLDER, names[i]);
    job j;
    assert_done(job_read(path, NULL, 0, NULL, NULL, &j));
    assert_int_equal(j.setting_count, i == 0 ? 6 : 3);
    job_free(&j);
    FREE(path);
  }
}

static void test_methods(void **state) {
  (void)state;
  for (int i = 0; i < method_count; i++) {
    assert_ptr_equal(method_find(methods[i].name), &methods[i]);
    assert_true(methods[i].version >= 1 && methods[i].line[0] && methods[i].source[0]);
    for (const char *p = methods[i].name; *p; p++) assert_non_null(strchr("abcdefghijklmnopqrstuvwxyz0123456789-", *p));
  }
  assert_null(method_find("CLOQ"));
  const char *why;
  assert_ptr_equal(method_nearest("cloq_rtn"), method_find("cloq-rtn"));
  assert_null(method_nearest("something else"));
  assert_ptr_equal(method_combine(false, QUANT_NF4, INIT_CLOQ, &why), method_find("nf4-cloq"));
  assert_ptr_equal(method_combine(false, QUANT_OPTQ, INIT_CLOQ, &why), method_find("cloq-nomagr"));
  assert_ptr_equal(method_combine(true, QUANT_OPTQ, INIT_CLOQ, &why), method_find("cloq"));
  const method *made = method_combine(true, QUANT_OPTQ, INIT_LQER, &why);
  assert_string_equal(made->name, "magr-optq-lqer");
  assert_ptr_equal(made, method_combine(true, QUANT_OPTQ, INIT_LQER, &why));
  assert_null(method_combine(true, QUANT_RTN, INIT_LOFTQ, &why));
  assert_non_null(why);
  assert_null(method_combine(false, QUANT_OPTQ, INIT_L4Q, &why));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_defaults),  cmocka_unit_test(test_recommended),  cmocka_unit_test(test_given),
      cmocka_unit_test(test_sweep),     cmocka_unit_test(test_parts),        cmocka_unit_test(test_ranks_merge),
      cmocka_unit_test(test_automatic), cmocka_unit_test(test_overrides),    cmocka_unit_test(test_resolved_tree),
      cmocka_unit_test(test_pattern),   cmocka_unit_test(test_gram_sources), cmocka_unit_test(test_refusals),
      cmocka_unit_test(test_model),     cmocka_unit_test(test_describe),     cmocka_unit_test(test_project_jobs),
      cmocka_unit_test(test_methods),   cmocka_unit_test(test_eval),         cmocka_unit_test(test_options_that_go_together),
  };
  return cmocka_run_group_tests(tests, enter_folder, leave_folder);
}
