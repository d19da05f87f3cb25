/* Containers that earlier versions wrote: tests/compat/VERSION is the run directory of a model of one layer, 32 wide, without its log. Every
 * later version must open them. A change of the format adds a folder here and leaves the old ones as they are. */
#include "check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "solution/solution.h"
#include "store/container.h"

static const arch model = {.hidden = 32, .layers = 1, .intermediate = 32, .vocab = 16, .heads = 2, .kv_heads = 2, .head_dim = 16};

static container *open_whole(const char *path, const char *kind) {
  char whole[512];
  container *c = NULL;
  snprintf(whole, sizeof whole, "%s/tests/compat/%s", PROJECT_FOLDER, path);
  assert_done(container_open(whole, kind, &c));
  assert_done(container_verify(c, NULL));
  return c;
}

static void reads_the_master(void **state) {
  (void)state;
  container *c = open_whole("0.1.0/run.h5", "run");
  attributes a = {0};
  assert_done(container_attributes(c, "", &a));
  assert_string_equal(attr_get_text(&a, "program_version"), "0.1.0");
  assert_int_equal(attr_get_int(&a, "units_done", 0), 3);
  assert_int_equal(attr_get_int(&a, "hidden_size", 0), 32);
  attr_free(&a);
  container_close(&c);
}

static void reads_grams(void **state) {
  (void)state;
  container *c = open_whole("0.1.0/grams/layer-000.h5", "grams");
  attributes a = {0};
  element type;
  int rank;
  int64_t dims[3];
  assert_done(container_attributes(c, "attn_in", &a));
  assert_int_equal(attr_get_int(&a, "tokens", 0), 8 * 64);
  assert_done(container_attributes(c, "attn_in/tiles", &a));
  int64_t n = attr_get_int(&a, "n", 0), tile = attr_get_int(&a, "tile", 0);
  assert_int_equal(n, 32);
  assert_done(container_shape(c, "attn_in/tiles", &type, &rank, dims));
  assert_true(type == EL_F32 && rank == 3 && dims[0] == tiles_count(n, tile) && dims[1] == tile && dims[2] == tile);
  float *tiles = malloc((size_t)(dims[0] * tile * tile) * sizeof *tiles), *full = malloc((size_t)(n * n) * sizeof *full);
  assert_done(container_read(c, "attn_in/tiles", EL_F32, 0, dims[0], tiles));
  tiles_expand(n, tile, 0, dims[0], tiles, full);
  double trace = 0;
  for (int64_t k = 0; k < n; k++) trace += (double)full[k * n + k];
  assert_true(fabs(trace - 32 * 8 * 64) < 0.01 * 32 * 8 * 64); /* rows of unit root mean square */
  free(tiles);
  free(full);
  attr_free(&a);
  container_close(&c);
}

/* Codes and grid as their fingerprint says, every loss as the tail of the spectrum says. */
static void reads_solutions(void **state) {
  (void)state;
  static const struct {
    const char *path;
    grid_kind kind;
    int bits, rank;
    bool nested;
  } stored[] = {{"0.1.0/solutions/cloq-b3-g8/layer-000.h5", GRID_UNIFORM, 3, 4, false},
                {"0.1.0/solutions/nf4-cloq-b4-g32-nf_double_on/layer-000.h5", GRID_NF, 4, 2, true}};
  for (size_t i = 0; i < sizeof stored / sizeof *stored; i++) {
    container *c = open_whole(stored[i].path, "solution");
    solution s;
    char hex[HASH_HEX];
    assert_done(solution_load(c, "compat", &model, LIN_Q, 0, -1, 0, SOLUTION_ALL, &s));
    assert_true(s.rule.kind == stored[i].kind && s.rule.bits == stored[i].bits && s.rule.nested == stored[i].nested);
    assert_true(s.rank == stored[i].rank && s.out == 32 && s.in == 32);
    assert_done(solution_check_nested(&s, "compat"));
    assert_done(solution_fingerprint(&s, hex));
    assert_string_equal(hex, s.facts->base_fingerprint);
    double tail = 0;
    for (int r = s.rank; r >= 0; r--) {
      tail += s.values[r];
      assert_true(s.loss[r] > 0 && fabs(s.loss[r] - tail) <= 1e-5 * tail);
    }
    solution_free(&s);
    container_close(&c);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(reads_the_master),
      cmocka_unit_test(reads_grams),
      cmocka_unit_test(reads_solutions),
  };
  int failed = cmocka_run_group_tests_name("compat", tests, NULL, NULL);
  return failed || mem_now() != 0;
}
