/* Sweeps whose bits, group and rank differ between matrices: which value holds where, names, what is recorded, every kind of mistake. */
#include "check.h"
#include "collected.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/settings.h"
#include "job/job.h"
#include "session/sharing.h"

static char folder[] = "/tmp/cloqwork-sweep-XXXXXX";

static int enter_folder(void **state) {
  (void)state;
  return mkdtemp(folder) && chdir(folder) == 0 ? 0 : 1;
}

static int leave_folder(void **state) {
  (void)state;
  unlink("job.yaml");
  unlink("map.yaml");
  unlink("o/allocations/a.yaml");
  unlink("o/allocations/b.yaml");
  rmdir("o/allocations");
  rmdir("o");
  return chdir("/") == 0 ? rmdir(folder) : 1;
}

static void write_file(const char *path, const char *text) {
  FILE *f = fopen(path, "w");
  assert_non_null(f);
  fputs(text, f);
  fclose(f);
}

/* rest stands below a job without sweep */
static status read_job(const char *rest, job *j) {
  char text[8192];
  snprintf(text, sizeof text, "model: m\noutput: o\ncalibration: {tokens: c.npy}\n%s\n", rest);
  write_file("job.yaml", text);
  return job_read("job.yaml", NULL, 0, NULL, NULL, j);
}

static const arch small = {.hidden = 96, .layers = 20, .intermediate = 160, .vocab = 100, .heads = 6, .kv_heads = 2, .head_dim = 16};

/* The rule, pair by pair: what holds in layer 3 and in layer 9 for q_proj and for down_proj. */
static void test_which_value_holds(void **state) {
  (void)state;
  static const struct {
    const char *bits;
    int q3, down3, q9, down9;
  } cases[] = {
      {"2", 2, 2, 2, 2},
      {"{default: 2}", 2, 2, 2, 2},
      {"{default: 2, down_proj: 4}", 2, 4, 2, 4},
      {"{down_proj: 4, default: 2}", 2, 4, 2, 4},
      {"{default: 2, layers 0-5: 4}", 4, 4, 2, 2},
      {"{default: 2, layer 3: 4}", 4, 4, 2, 2},
      {"{default: 2, layers 3-3: 4}", 4, 4, 2, 2},
      {"{default: 2, layers 0-5 down_proj: 4}", 2, 4, 2, 2},
      {"{default: 2, layers.3.mlp.down_proj: 4}", 2, 4, 2, 2},
      {"{default: 2, model.layers.3.mlp.down_proj: 4}", 2, 4, 2, 2},
      {"{default: 2, layer 9 q_proj: 4}", 2, 2, 4, 2},
      /* a target goes before layers, whatever stands first */
      {"{default: 2, down_proj: 4, layers 0-5: 3}", 3, 4, 2, 4},
      {"{default: 2, layers 0-5: 3, down_proj: 4}", 3, 4, 2, 4},
      {"{default: 2, down_proj: 4, layer 3: 3}", 3, 4, 2, 4},
      /* a target in some layers goes before the target, and one matrix before those */
      {"{default: 2, layers 0-5 down_proj: 8, down_proj: 4}", 2, 8, 2, 4},
      {"{default: 2, layers.3.mlp.down_proj: 5, layers 0-5 down_proj: 8, down_proj: 4}", 2, 5, 2, 4},
      /* fewer layers go before more, then the later before the earlier */
      {"{default: 2, layer 3: 5, layers 0-15: 4}", 5, 5, 4, 4},
      {"{default: 2, layers 0-9: 5, layers 3-12: 4}", 4, 4, 4, 4},
      {"{default: 2, layers 3-12: 4, layers 0-9: 5}", 5, 5, 5, 5},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char text[512];
    job j;
    snprintf(text, sizeof text, "sweep: {method: cloq, bits: %s, rank: 8, group: 32}", cases[i].bits);
    assert_done(read_job(text, &j));
    assert_int_equal(j.setting_count, 1);
    const setting *s = &j.settings[0];
    int found[] = {setting_rule(s, 3, LIN_Q).bits, setting_rule(s, 3, LIN_DOWN).bits, setting_rule(s, 9, LIN_Q).bits,
                   setting_rule(s, 9, LIN_DOWN).bits};
    const int wanted[] = {cases[i].q3, cases[i].down3, cases[i].q9, cases[i].down9};
    if (memcmp(found, wanted, sizeof found) != 0) fail_msg("%s: found %d %d %d %d", cases[i].bits, found[0], found[1], found[2], found[3]);
    assert_true(setting_rank(s, 3, LIN_DOWN) == 8 && setting_rule(s, 3, LIN_DOWN).group == 32);
    assert_done(job_check_model(&j, &small));
    job_free(&j);
  }
}

static void assert_names(const char *text, const char *const *names, int count) {
  job j;
  assert_done(read_job(text, &j));
  for (int i = 0; i < count && i < j.setting_count; i++) assert_string_equal(j.settings[i].name, names[i]);
  assert_int_equal(j.setting_count, count);
  job_free(&j);
}
#define NAMES(text, ...) \
  assert_names(text, (const char *const[]){__VA_ARGS__}, (int)(sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *)))

static void test_names(void **state) {
  (void)state;
  NAMES("sweep: {method: cloq, bits: [2, 3, {default: 2, down_proj: 4}], rank: 8}", "cloq-b2-g64", "cloq-b3-g64",
        "cloq-b2-g64-down_proj_b4");
  NAMES("sweep: {method: cloq, bits: {default: 2, layers 0-15: 4, layer 7: 3, layers 0-3 down_proj: 8, layers.3.self_attn.q_proj: 5}, "
        "rank: 8}",
        "cloq-b2-g64-layers0-15_b4-layer7_b3-layers0-3_down_proj_b8-layer3_q_proj_b5");
  NAMES("sweep: {method: cloq, bits: {default: 2, down_proj: 4}, group: [32, {default: 64, o_proj: 0}], rank: 8}",
        "cloq-b2-g32-down_proj_b4", "cloq-b2-g64-down_proj_b4-o_proj_g0");
  /* ranks that are the same everywhere are truncations of one setting, ranks that are not make one each */
  NAMES("sweep: {method: cloq, bits: 2, rank: [8, {default: 16, down_proj: 32}, 16, {default: 8, down_proj: 32}]}", "cloq-b2-g64",
        "cloq-b2-g64-r16-down_proj_r32", "cloq-b2-g64-r8-down_proj_r32");
  NAMES("sweep: {method: cloq, bits: {default: 2, down_proj: 4}, rank: {default: 16, down_proj: 32}}\noptions: {damping: 1}",
        "cloq-b2-g64-damping_1-r16-down_proj_b4-down_proj_r32");
  NAMES("sweep: {method: cloq, bits: {default: 2, down_proj: 4}, label: mix1, rank: [4, 16]}\noptions: {damping: 1}",
        "cloq-b2-g64-damping_1-mix1");
  NAMES("sweep: {method: cloq, bits: [2, {default: 3, down_proj: 4}], label: mix1, rank: {default: 16, down_proj: 32}}", "cloq-b2-g64-mix1",
        "cloq-b3-g64-mix1");
}

static void test_ranks(void **state) {
  (void)state;
  job j;
  assert_done(read_job("sweep: {method: cloq, bits: 2, rank: [8, {default: 16, down_proj: 32, layers 2-3: 4}, 64]}", &j));
  const setting *plain = &j.settings[0], *varied = &j.settings[1];
  assert_true(plain->rank_count == 2 && plain->rank_max == 64 && setting_rank(plain, 2, LIN_DOWN) == 64 && !setting_varies(plain));
  assert_true(varied->rank_count == 1 && varied->ranks[0] == 32 && varied->rank_max == 32 && setting_varies(varied));
  assert_true(setting_rank(varied, 0, LIN_Q) == 16 && setting_rank(varied, 2, LIN_Q) == 4 && setting_rank(varied, 2, LIN_DOWN) == 32);
  job_free(&j);
  /* the largest that any matrix takes, not the largest that is written down */
  assert_done(read_job("targets: [q_proj, down_proj]\nsweep: {method: cloq, bits: 2, rank: {default: 64, q_proj: 8, down_proj: 16}}", &j));
  assert_int_equal(j.settings[0].rank_max, 16);
  job_free(&j);
}

/* What "auto" gives depends on a matrix's own bits and group. */
static void test_automatic(void **state) {
  (void)state;
  job j;
  assert_done(read_job("sweep: {method: cloq, bits: {default: 2, down_proj: 3}, group: {default: 0, o_proj: 128}, rank: 8}", &j));
  const setting *s = &j.settings[0];
  assert_true(s->rule.bits == 2 && s->rule.beta == 0.8 && s->options.magr_alpha == 1e-3);
  assert_true(setting_rule(s, 0, LIN_Q).beta == 0.8 && setting_rule(s, 0, LIN_DOWN).beta == 0.9 && setting_rule(s, 0, LIN_O).beta == 0.95);
  assert_true(setting_options(s, 0, LIN_DOWN)->grid_beta == 0.9 && setting_options(s, 0, LIN_O)->magr_alpha == 1e-4);
  assert_ptr_equal(setting_options(s, 0, LIN_Q), &s->options);
  job_free(&j);
  /* what is no default for one of the matrices stands in the name: the settings differ */
  NAMES("sweep: {method: cloq, bits: {default: 2, down_proj: 3}, group: 0, rank: 8}\noptions: {grid_beta: [auto, 0.8]}",
        "cloq-b2-g0-down_proj_b3", "cloq-b2-g0-grid_beta_0.8-down_proj_b3");
}

/* A layer whose matrices agree is described as one of a plain setting; only targets count. */
static void test_describe(void **state) {
  (void)state;
  job j, plain;
  collected varied = {""}, agreed = {""}, other = {""}, matrix = {""};
  assert_done(read_job(
      "targets: [q_proj, down_proj]\nsweep: {method: cloq, bits: {default: 3, down_proj: 4, layer 2 q_proj: 4}, group: 0, rank: 8}", &j));
  setting_describe(&j.settings[0], j.target, 1, collect, &varied);
  assert_non_null(strstr(varied.text, "bits=q_proj 3, down_proj 4\ngroup=0\nrank_max=8\n"));
  assert_non_null(strstr(varied.text, "grid_beta=q_proj 0.9, down_proj 1\n"));
  setting_describe(&j.settings[0], j.target, 2, collect, &agreed);
  setting_describe_matrix(&j.settings[0], 1, LIN_DOWN, collect, &matrix);
  assert_done(read_job("targets: [q_proj, down_proj]\nsweep: {method: cloq, bits: 4, group: 0, rank: 8}", &plain));
  setting_describe(&plain.settings[0], plain.target, 2, collect, &other);
  assert_string_equal(agreed.text, other.text);
  assert_string_equal(matrix.text, other.text);
  job_free(&j);
  job_free(&plain);
}

/* A map's options go before the job's, for this map alone. */
static void test_options_of_a_map(void **state) {
  (void)state;
  NAMES("sweep:\n  - {method: cloq, bits: 2, rank: 8}\n  - {method: cloq, bits: [3, 4], rank: 8, options: {damping: [0.1, 1], magr_K: "
        "7}}\noptions: {damping: 0.5}",
        "cloq-b2-g64-damping_0.5", "cloq-b3-g64-damping_0.1-magr_K_7", "cloq-b3-g64-damping_1-magr_K_7", "cloq-b4-g64-damping_0.1-magr_K_7",
        "cloq-b4-g64-damping_1-magr_K_7");
}

static void test_maps_in_files(void **state) {
  (void)state;
  write_file("map.yaml", "method: cloq\nbits: {default: 2, down_proj: 4}\nlabel: filed\nrank: 8\noptions: {damping: 1}\n");
  NAMES("sweep: [{method: cloq, bits: 3, rank: 8}, map.yaml]", "cloq-b3-g64", "cloq-b2-g64-damping_1-filed");
  job j;
  write_file("map.yaml", "bit: 2\n");
  assert_refused(read_job("sweep: [map.yaml]", &j), E_USAGE, "map.yaml: bit: unknown key, did you mean bits");
  write_file("map.yaml", "- 2\n");
  assert_refused(read_job("sweep: [map.yaml]", &j), E_USAGE,
                 "map.yaml: expected a mapping with bits and rank (and method, group), found a list");
  assert_refused(read_job("sweep: [none.yaml]", &j), E_USAGE, "none.yaml: cannot be opened: No such file or directory");
}

/* What allocate left belongs to the job, is not recorded, and moves with the run directory. */
static void test_allocations(void **state) {
  (void)state;
  job j;
  const char *const wanted[] = {"cloq-b4-g64", "cloq-b2-g64-one", "cloq-b3-g64-two"};
  assert_true(mkdir("o", 0777) == 0 && mkdir("o/allocations", 0777) == 0);
  write_file("o/allocations/b.yaml", "method: cloq\nbits: {default: 3, q_proj: 4}\nlabel: two\nrank: {default: 8, q_proj: 16}\n");
  write_file("o/allocations/a.yaml", "method: cloq\nbits: {default: 2, q_proj: 4}\nlabel: one\nrank: {default: 8, q_proj: 16}\n");
  assert_names("sweep: {method: cloq, bits: 4, rank: 8}\noptions: {magr_K: 60}", wanted, 3);
  assert_done(read_job("sweep: {method: cloq, bits: 4, rank: 8}", &j));
  assert_int_equal(json_object_size(json_object_get(j.tree, "sweep")), 4); /* method, bits, group, rank */
  job_free(&j);
  assert_done(job_read("job.yaml", NULL, 0, "elsewhere", NULL, &j));
  assert_int_equal(j.setting_count, 1);
  assert_string_equal(j.output, "elsewhere");
  job_free(&j);
  assert_done(job_read("job.yaml", NULL, 0, NULL, "*-two", &j));
  assert_int_equal(j.setting_count, 1);
  assert_int_equal(setting_rank(&j.settings[0], 5, LIN_Q), 16);
  job_free(&j);
  write_file("o/allocations/a.yaml", "method: cloq\nbits: {default: 2, q_prj: 4}\nlabel: one\nrank: 8\n");
  assert_refused(read_job("sweep: {method: cloq, bits: 4, rank: 8}", &j), E_USAGE,
                 "o/allocations/a.yaml: bits.q_prj: unknown key, did you mean q_proj");
  unlink("o/allocations/a.yaml");
  unlink("o/allocations/b.yaml");
}

/* What RUN/job.yaml says is a job file again, and the same one. */
static void test_resolved_tree(void **state) {
  (void)state;
  static const char *const jobs[] = {
      "sweep: {method: cloq, bits: [3, {default: 2, layers 0-3 down_proj: 8, layers.3.mlp.up_proj: 4}], rank: [4, {default: 8, layer 7: "
      "16}]}",
      "sweep:\n  - {method: cloq, bits: 3, rank: 8, options: {damping: [1, 2]}}\n  - map.yaml\noptions: {magr_K: 7}",
  };
  write_file("map.yaml", "method: cloq\nbits: {default: 2, down_proj: 4}\nlabel: filed\nrank: 8\noptions: {damping: 1}\n");
  for (size_t i = 0; i < sizeof jobs / sizeof *jobs; i++) {
    job j, again;
    char *text;
    assert_done(read_job(jobs[i], &j));
    assert_done(settings_write(j.tree, &text));
    write_file("job.yaml", text);
    assert_done(job_read("job.yaml", NULL, 0, NULL, NULL, &again));
    assert_true(json_equal(j.tree, again.tree));
    assert_int_equal(j.setting_count, again.setting_count);
    for (int k = 0; k < j.setting_count; k++) {
      assert_string_equal(j.settings[k].name, again.settings[k].name);
      assert_true(numbers_equal(&j.settings[k].bits, &again.settings[k].bits) &&
                  numbers_equal(&j.settings[k].rank, &again.settings[k].rank));
    }
    FREE(text);
    job_free(&j);
    job_free(&again);
  }
}

static void test_refusals(void **state) {
  (void)state;
  static const struct {
    const char *sweep, *line; /* after "job.yaml: sweep" */
  } cases[] = {
      {"{method: cloq, bits: {down_proj: 4}, rank: 8}", ".bits.default: expected 1 to 8, found nothing"},
      {"{method: cloq, bits: {default: 9, down_proj: 4}, rank: 8}", ".bits.default: expected 1 to 8, found 9"},
      {"{method: cloq, bits: {default: 2, down_proj: many}, rank: 8}", ".bits.down_proj: expected 1 to 8, found the text many"},
      {"{method: cloq, bits: [2, {default: 2, down_proj: 0}], rank: 8}", ".bits.down_proj: expected 1 to 8, found 0"},
      {"{method: cloq, bits: {default: 2, down_proj: [3, 4]}, rank: 8}", ".bits.down_proj: expected 1 to 8, found a list"},
      {"{method: cloq, bits: {default: 2, down_prj: 4}, rank: 8}", ".bits.down_prj: unknown key, did you mean down_proj"},
      {"{method: cloq, bits: {defalt: 2, down_proj: 4}, rank: 8}", ".bits.default: expected 1 to 8, found nothing"},
      {"{method: cloq, bits: {default: 2, layers 0-3 down_prj: 4}, rank: 8}",
       ".bits.layers 0-3 down_prj: unknown key, did you mean down_proj"},
      {"{method: cloq, bits: {default: 2, layers.3.mlp.down_prj: 4}, rank: 8}",
       ".bits.layers.3.mlp.down_prj: unknown key, did you mean down_proj"},
      {"{method: cloq, bits: {default: 2, layers.3.mlp.q_proj: 4}, rank: 8}",
       ".bits.layers.3.mlp.q_proj: unknown key, did you mean q_proj"},
      {"{method: cloq, bits: {default: 2, layers 3-0: 4}, rank: 8}",
       ".bits.layers 3-0: unknown key, expected default, a target such as q_proj, layers 0-15, layer 7, layers 0-15 q_proj or "
       "layers.7.self_attn.q_proj, layers up to 9999"},
      {"{method: cloq, bits: {default: 2, layer 10000: 4}, rank: 8}",
       ".bits.layer 10000: unknown key, expected default, a target such as q_proj, layers 0-15, layer 7, layers 0-15 q_proj or "
       "layers.7.self_attn.q_proj, layers up to 9999"},
      {"[{method: cloq, bits: 2, group: {default: 64, lm_head: 32}, rank: 8}]",
       "[0].group.lm_head: unknown key, expected default, a target such as q_proj, layers 0-15, layer 7, layers 0-15 q_proj or "
       "layers.7.self_attn.q_proj, layers up to 9999"},
      {"{method: cloq, bits: 2, rank: {default: 0, q_proj: 8}}", ".rank.default: expected ranks of at least 1, found 0"},
      {"{method: cloq, bits: 2, rank: [{default: 8, q_proj: 16}, {default: 8, q_proj: 16}]}",
       ": cloq-b2-g64-r8-q_proj_r16 is asked for twice"},
      {"{method: cloq, bits: [{default: 2, q_proj: 3}, {default: 2, q_proj: 3}], rank: 8}",
       ": cloq-b2-g64-q_proj_b3 with rank 8 is asked for twice"},
      {"{method: cloq, bits: [{default: 2, q_proj: 3}, {default: 2, q_proj: 4}], label: x, rank: 8}",
       ": cloq-b2-g64-x would be the name of two settings: expected a label of its own for each"},
      {"{method: nf4-cloq, bits: {default: 4, q_proj: 3}, rank: 8}",
       ".bits: expected 4 with nf4-cloq (a list of sweeps gives every method its own bits), found 3"},
      {"{method: nf4-cloq, bits: 4, group: {default: 64, layers 3-5: 0}, rank: 8}",
       ".group: expected a power of two from 32 to 4096 with nf4-cloq (NF4 knows no block of a whole row), found 0"},
      {"{method: cloq, bits: 2, label: x, rank: [4, {default: 16, down_proj: 32}]}",
       ": cloq-b2-g64-x would be the name of two settings: expected a label of its own for each"},
      {"{method: cloq, bits: 2, rank: 8, label: a b}",
       ".label: expected up to 64 letters, digits, dots, dashes and underscores that begin with a letter or digit, found the text a b"},
      {"{method: cloq, bits: 2, rank: 8, label: -a}",
       ".label: expected up to 64 letters, digits, dots, dashes and underscores that begin with a letter or digit, found the text -a"},
      {"{method: cloq, bits: 2, rank: 8, options: 3}", ".options: expected a mapping of options, found 3"},
      {"{method: cloq, bits: 2, rank: 8, options: {dampng: 3}}", ".options.dampng: unknown option, did you mean damping"},
      {"{method: cloq-rtn, bits: 2, rank: 8, options: {damping: 3}}", ".options.damping: no method of this sweep uses this option"},
      {"{method: cloq, bits: {default: 2, layers 10-13 q_proj: 4, layers 10-13 k_proj: 4, layers 10-13 v_proj: 4, layers 0-3 o_proj: 4, "
       "layers 0-3 "
       "up_proj: 4, "
       "layers 0-3 gate_proj: 4, layers 0-3 down_proj: 4}, rank: 8}",
       ": cloq-b2-g64: the name of what differs between matrices would be 5 characters too long: expected a label: beside bits and rank"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char text[1024], line[1024];
    job j;
    snprintf(text, sizeof text, "sweep: %s", cases[i].sweep);
    snprintf(line, sizeof line, "job.yaml: sweep%s", cases[i].line);
    assert_refused(read_job(text, &j), E_USAGE, line);
  }
  job j;
  assert_refused(read_job("targets: [q_proj, o_proj]\nsweep: {method: cloq, bits: {default: 2, down_proj: 4}, rank: 8}", &j), E_USAGE,
                 "job.yaml: sweep.bits.down_proj: expected one of the job's targets, found down_proj, which is none");
}

static void test_model(void **state) {
  (void)state;
  static const struct {
    const char *sweep, *line; /* NULL: accepted */
  } cases[] = {
      {"{method: cloq, bits: {default: 2, layers 0-19: 4}, group: 32, rank: 8}", NULL},
      {"{method: cloq, bits: {default: 2, layers 0-20: 4}, group: 32, rank: 8}",
       "job.yaml: sweep.bits: expected layers within 0-19, found layers 0-20"},
      {"{method: cloq, bits: 2, group: 32, rank: {default: 8, layers.20.mlp.up_proj: 4}}",
       "job.yaml: sweep.rank: expected layers within 0-19, found layer 20"},
      {"{method: cloq, bits: 2, group: {default: 48, down_proj: 80}, rank: 8}", NULL},
      {"{method: cloq, bits: 2, group: {default: 48, down_proj: 80, layer 19: 32, layer 19 down_proj: 48}, rank: 8}",
       "job.yaml: sweep.group: expected a divisor of 160, the input width of down_proj, found 48"},
      {"{method: cloq, bits: 2, group: 32, rank: {default: 96, k_proj: 32, v_proj: 32}}", NULL},
      {"{method: cloq, bits: 2, group: 32, rank: {default: 32, layers 4-5: 33}}",
       "job.yaml: sweep.rank: expected at most 32, the smaller side of k_proj, found 33"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char text[512];
    job j;
    snprintf(text, sizeof text, "sweep: %s", cases[i].sweep);
    assert_done(read_job(text, &j));
    if (cases[i].line)
      assert_refused(job_check_model(&j, &small), E_USAGE, cases[i].line);
    else
      assert_done(job_check_model(&j, &small));
    job_free(&j);
  }
}

static void assert_step(step_count n, int64_t asked, int64_t computed, int64_t finished) {
  assert_int_equal(n.asked, asked);
  assert_int_equal(n.computed, computed);
  assert_int_equal(n.finished, finished);
}

/* Seven matrices, four inputs: what two bit widths of four methods ask for, and what is left of it. */
static void test_sharing(void **state) {
  (void)state;
  job j;
  sharing n = {0}, late = {0}, joint = {0};
  bool pending[8], only_eora[8];
  assert_done(read_job("sweep: {method: [cloq, cloq-nomagr, cloq-rtn, eora], bits: [2, 3], group: 32, rank: [4, 8]}", &j));
  assert_int_equal(j.setting_count, 8);
  for (int k = 0; k < 8; k++) {
    pending[k] = true;
    only_eora[k] = strcmp(j.settings[k].method->name, "eora") == 0;
  }
  assert_done(sharing_count(&j, 0, pending, &n));
  assert_step(n.magr, 14, 7, 0);
  assert_step(n.factors, 24, 4, 0); /* the group without MagR takes the one with MagR's */
  assert_step(n.codes, 56, 42, 0);  /* eora has cloq-nomagr's */
  assert_step(n.fits, 56, 42, 0);
  assert_step(n.joint, 0, 0, 0);
  assert_done(sharing_count(&j, 0, only_eora, &late)); /* a setting that comes later computes nothing twice */
  assert_step(late.magr, 0, 0, 0);
  assert_step(late.factors, 8, 0, 0);
  assert_step(late.codes, 14, 0, 14);
  assert_step(late.fits, 14, 0, 14);
  job_free(&j);
  assert_done(read_job("sweep: {method: [caldera, eora], bits: 2, group: 32, rank: [4, 8]}\noptions: {damping: [0.01, 0.1]}", &j));
  assert_done(sharing_count(&j, 0, pending, &joint));
  assert_step(joint.joint, 28, 28, 0); /* one for each rank */
  assert_step(joint.factors, 24, 8, 0);
  assert_step(joint.codes, 14, 14, 0);
  job_free(&j);
}

static int count_pieces(const char *sweep, piece *pieces) {
  job j;
  assert_done(read_job(sweep, &j));
  int count = job_pieces(&j, NULL);
  assert_in_range(count, 1, 8);
  assert_int_equal(job_pieces(&j, pieces), count);
  for (int p = 0; p < count; p++) pieces[p].setting = NULL; /* gone with the job */
  job_free(&j);
  return count;
}

/* One piece for all ranks, for each, or for those that have codes of their own, ascending. */
static void test_pieces(void **state) {
  (void)state;
  piece p[8];
  assert_int_equal(count_pieces("sweep: {method: [cloq, loftq], bits: 2, group: 32, rank: [2, 4, 16]}", p), 4);
  assert_int_equal(p[0].rank, 0);
  assert_int_equal(p[0].index, 0);
  for (int k = 1; k < 4; k++) assert_int_equal(p[k].index, 1);
  assert_int_equal(p[1].rank, 2);
  assert_int_equal(p[3].rank, 16);
  assert_int_equal(p[1].most, 2);
  assert_int_equal(count_pieces("sweep: {method: refine, bits: 2, group: 32, rank: [2, 4, 5, 16]}", p), 3); /* 4 is not above twice 2 */
  const int own[] = {2, 5, 16}, most[] = {4, 15, 16};
  for (int v = 0; v < 3; v++) {
    assert_int_equal(p[v].rank, own[v]);
    assert_int_equal(p[v].most, most[v]);
  }
  assert_int_equal(count_pieces("sweep: {method: refine, bits: 2, group: 32, rank: [2, 4, 16]}\noptions: {refine_ranks: smallest}", p), 1);
  assert_int_equal(p[0].rank, 2);
  assert_int_equal(p[0].most, 16);
  assert_int_equal(count_pieces("sweep: {method: refine, bits: 2, group: 32, rank: [2, 3, 4]}\noptions: {refine_ranks: each}", p), 3);
  assert_int_equal(p[1].rank, 3);
  assert_int_equal(p[1].most, 3);
  assert_int_equal(count_pieces("sweep: {method: refine, bits: 2, group: 32, rank: {default: 8, down_proj: 4}, label: own}", p), 1);
  assert_int_equal(p[0].rank, 8);
}

/* Which variant serves a rank: the largest that is not above it. */
static void test_variants(void **state) {
  (void)state;
  job j;
  int own[4];
  assert_done(read_job("sweep: {method: refine, bits: 2, group: 32, rank: [4, 8, 9, 20]}", &j));
  const setting *s = &j.settings[0];
  assert_int_equal(setting_variants(s, NULL), 3);
  assert_int_equal(setting_variants(s, own), 3);
  assert_int_equal(own[0], 4);
  assert_int_equal(own[1], 9);
  assert_int_equal(own[2], 20);
  const int serves[][2] = {{1, 4}, {4, 4}, {8, 4}, {9, 9}, {19, 9}, {20, 20}, {21, 20}};
  for (size_t k = 0; k < sizeof serves / sizeof *serves; k++) assert_int_equal(setting_variant(s, serves[k][0]), serves[k][1]);
  piece p;
  for (int v = 0; setting_piece(s, 0, v, &p); v++) {
    assert_int_equal(piece_variant(&p, 0, LIN_Q), own[v]);
    assert_int_equal(piece_rank(&p, 0, LIN_Q), v < 2 ? own[v + 1] - 1 : 20);
  }
  job_free(&j);
  assert_done(read_job("sweep: {method: refine, bits: 2, group: 32, rank: {default: 8, down_proj: 4}, label: own}", &j));
  assert_true(setting_piece(&j.settings[0], 0, 0, &p)); /* every matrix has the codes of its own rank */
  assert_int_equal(piece_variant(&p, 0, LIN_DOWN), 4);
  assert_int_equal(piece_rank(&p, 0, LIN_DOWN), 4);
  assert_int_equal(piece_variant(&p, 0, LIN_Q), 8);
  job_free(&j);
}

/* Codes that belong to a rank are shared where that rank, their start and their making are equal. */
static void test_sharing_refined(void **state) {
  (void)state;
  job j;
  sharing n = {0}, late = {0}, other = {0};
  bool pending[4] = {true, true, true, true}, last[4] = {false, false, true, true};
  assert_done(read_job("sweep: {method: [refine, cloq-nomagr], bits: 2, group: 32, rank: [2, 4, 16]}\noptions: {split: [cloq, qera]}", &j));
  assert_int_equal(j.setting_count, 4);
  assert_done(sharing_count(&j, 0, pending, &n));
  assert_step(n.refined, 28, 14, 0); /* ranks 2 and 16 */
  assert_step(n.codes, 14, 7, 0);
  assert_step(n.fits, 42, 21, 0);
  assert_step(n.joint, 0, 0, 0);
  for (int k = 0; k < 4; k++) last[k] = j.settings[k].options.split == SPLIT_QERA;
  assert_done(sharing_count(&j, 0, last, &late));
  assert_step(late.refined, 14, 0, 14);
  assert_step(late.fits, 21, 0, 21);
  assert_step(late.factors, 12, 0, 0);
  job_free(&j);
  assert_done(read_job("sweep: {method: refine, bits: 2, group: 32, rank: [2, 4, 16]}\n"
                       "options: {refine_ranks: [each, spread], refine_ridge: [0.03, 0.01]}",
                       &j));
  assert_int_equal(j.setting_count, 4);
  assert_done(sharing_count(&j, 0, pending, &other));
  assert_step(other.refined, 2 * (21 + 14), 2 * 21, 0);    /* what spread has, each has; not with another ridge */
  assert_step(other.fits, 2 * (21 + 14), 2 * (21 + 7), 0); /* but the smaller one's adapter has more columns */
  job_free(&j);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_which_value_holds),
      cmocka_unit_test(test_sharing),
      cmocka_unit_test(test_pieces),
      cmocka_unit_test(test_variants),
      cmocka_unit_test(test_sharing_refined),
      cmocka_unit_test(test_names),
      cmocka_unit_test(test_ranks),
      cmocka_unit_test(test_automatic),
      cmocka_unit_test(test_describe),
      cmocka_unit_test(test_options_of_a_map),
      cmocka_unit_test(test_maps_in_files),
      cmocka_unit_test(test_allocations),
      cmocka_unit_test(test_resolved_tree),
      cmocka_unit_test(test_refusals),
      cmocka_unit_test(test_model),
  };
  return cmocka_run_group_tests(tests, enter_folder, leave_folder);
}
