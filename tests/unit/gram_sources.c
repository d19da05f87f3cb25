/* Pedigrees of Grams, and what --from on the command line means. */
#include "check.h"

#include <string.h>

#include "base/memory.h"
#include "base/settings.h"
#include "session/session.h"

static const char A[] = "aa00000000000000000000000000000000000000000000000000000000000000", B[] = "bb", C[] = "cc";

static void the_order_does_not_matter(void **state) {
  (void)state;
  pedigree p = {0}, q = {0};
  char one[HASH_HEX], other[HASH_HEX];
  assert_done(pedigree_add(&p, "p", B, 20));
  assert_done(pedigree_fingerprint(&p, one));
  assert_string_equal(one, B); /* a single set is itself */
  assert_done(pedigree_add(&p, "p", A, 10));
  assert_done(pedigree_add(&p, "p", C, 30));
  assert_done(pedigree_add(&q, "q", C, 30));
  assert_done(pedigree_add(&q, "q", A, 10));
  assert_done(pedigree_fingerprint(&q, other));
  assert_done(pedigree_add(&q, "q", B, 20));
  assert_done(pedigree_fingerprint(&p, one));
  assert_string_not_equal(one, other);
  assert_done(pedigree_fingerprint(&q, other));
  assert_string_equal(one, other);
  assert_int_equal(strlen(one), HASH_HEX - 1);
  assert_true(pedigree_tokens(&p) == 60 && p.count == 3);
  assert_refused(pedigree_add(&p, "runs/b", A, 11), E_DATA,
                 "runs/b: expected tokens that nothing else here was made from, found those of tokens_fingerprint aa00000000000000… again");
  pedigree_free(&p);
  pedigree_free(&q);
  pedigree_free(&q);
}

static void through_attributes(void **state) {
  (void)state;
  pedigree p = {0}, q = {0};
  attributes a = {0};
  assert_done(pedigree_add(&p, "p", C, 30));
  assert_done(pedigree_add(&p, "p", A, INT64_C(1) << 40));
  assert_done(pedigree_write(&p, &a));
  assert_string_equal(attr_get_text(&a, "source_tokens"), "1099511627776,30");
  assert_done(pedigree_read("f", &a, &q));
  assert_int_equal(q.count, 2);
  assert_memory_equal(p.list, q.list, 2 * sizeof *p.list);
  pedigree_free(&q);
  static const char *const bad[][2] = {{"", ""}, {"aa,bb", "1"}, {"aa", "1,2"}, {"aa,bb", "1,-2"}, {"aa,aa", "1,2"}, {"aa", "x"}};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    assert_done(attr_text(&a, "sources", bad[i][0]));
    assert_done(attr_text(&a, "source_tokens", bad[i][1]));
    assert_int_equal(pedigree_read("f", &a, &q), E_DATA);
    status_clear();
    pedigree_free(&q);
  }
  pedigree_free(&p);
  attr_free(&a);
}

/* The assignment sets what it says, whatever is in a path. */
static void what_from_means(void **state) {
  (void)state;
  const char *paths[] = {"runs/a: b, [c] # \"d\"", "runs/\xc3\xa9"};
  char *text = NULL;
  json_t *tree = json_pack("{s:{s:s}}", "calibration", "tokens", "t.npy");
  arguments a = {.verb = "merge", .from = paths, .from_count = 2};
  assert_done(gram_sources_override(&a, &text));
  assert_done(settings_set(tree, text));
  const json_t *c = json_object_get(tree, "calibration"), *merge = json_object_get(c, "merge");
  assert_true(json_object_size(c) == 1 && json_array_size(merge) == 2);
  for (size_t i = 0; i < 2; i++) assert_string_equal(json_string_value(json_array_get(merge, i)), paths[i]);
  FREE(text);
  a = (arguments){.verb = "grams", .from = paths, .from_count = 1, .tokens = 12};
  assert_done(gram_sources_override(&a, &text));
  assert_done(settings_set(tree, text));
  c = json_object_get(tree, "calibration");
  assert_string_equal(json_string_value(json_object_get(c, "import")), paths[0]);
  assert_int_equal(json_integer_value(json_object_get(c, "count")), 12);
  FREE(text);
  a.from_count = 2;
  assert_refused(gram_sources_override(&a, &text), E_USAGE, "grams: expected --from once, found 2");
  a.verb = "solve";
  assert_refused(gram_sources_override(&a, &text), E_USAGE, "--from: expected the verb merge or grams with it, found solve");
  a.from_count = 0;
  assert_done(gram_sources_override(&a, &text));
  assert_null(text);
  json_decref(tree);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_order_does_not_matter),
      cmocka_unit_test(through_attributes),
      cmocka_unit_test(what_from_means),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
