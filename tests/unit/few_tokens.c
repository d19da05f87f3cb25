/* Warnings of Grams from few tokens: which inputs they name. */
#include "check.h"

#include <math.h>
#include <string.h>

#include "job/few_tokens.h"

static const arch model = {.hidden = 96, .layers = 1, .intermediate = 160, .vocab = 100, .heads = 6, .kv_heads = 2, .head_dim = 16};

static void test_counts(void **state) {
  (void)state;
  const windows w = {.count = 4, .length = 100};
  const bool wanted[IN_COUNT] = {[IN_ATTN] = true, [IN_MLP_OUT] = true};
  double per_column[IN_COUNT];
  char text[FEW_TOKENS_TEXT];
  tokens_a_column(&model, &w, wanted, per_column);
  assert_true(per_column[IN_ATTN] == 400. / 96 && per_column[IN_MLP_OUT] == 2.5);
  assert_true(isnan(per_column[IN_ATTN_OUT]) && isnan(per_column[IN_MLP]));
  assert_true(few_tokens(per_column, text));
  assert_string_equal(text, "few calibration tokens a column: mlp_out 2.5; below 4 compare held-out losses");
  tokens_a_column(&model, NULL, wanted, per_column); /* none known: nothing to warn of */
  assert_false(few_tokens(per_column, text));
  assert_string_equal(text, "");
}

static void test_bound(void **state) {
  (void)state;
  double enough[IN_COUNT] = {4, 1e6, NAN, 4}, all[IN_COUNT] = {3.999, 1e-3, 1. / 3, 0};
  char text[FEW_TOKENS_TEXT];
  assert_false(few_tokens(enough, text));
  assert_true(few_tokens(all, text));
  for (int i = 0; i < IN_COUNT; i++) assert_non_null(strstr(text, input_name((input_id)i)));
  assert_non_null(strstr(text, "held-out losses")); /* nothing is cut */
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_counts), cmocka_unit_test(test_bound)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
