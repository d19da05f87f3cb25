/* YAML in, the same tree out; every refusal says where and what. */
#include "check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/settings.h"

static json_t *parsed(const char *text) {
  json_t *tree;
  if (settings_parse("t", text, &tree) != OK) fail_msg("%s: %s", text, status_message());
  return tree;
}

static void assert_tree(const char *yaml, const char *json) {
  json_t *tree = parsed(yaml), *wanted = json_loads(json, JSON_DECODE_ANY, NULL);
  assert_non_null(wanted);
  if (!json_equal(tree, wanted)) {
    char *text = json_dumps(tree, JSON_ENCODE_ANY);
    fail_msg("%s: expected %s, found %s", yaml, json, text);
  }
  json_drop(&tree);
  json_drop(&wanted);
}

static void test_scalars(void **state) {
  (void)state;
  assert_tree("[true, True, FALSE, yes, on, null, ~, Null, '', \"null\"]",
              "[true, true, false, \"yes\", \"on\", null, null, null, \"\", \"null\"]");
  assert_tree("[0, -0, +12, 007, 0o17, 0xff, 9223372036854775807, -9223372036854775808]",
              "[0, 0, 12, 7, 15, 255, 9223372036854775807, -9223372036854775808]");
  assert_tree("[1e-3, 1., .5, -1.5E+2, 1e3, 0.01]", "[1e-3, 1.0, 0.5, -150.0, 1e3, 0.01]");
  assert_tree("[1e, 0x, 0o8, 1.2.3, ., +., e5, 1-2, '12', \"0.5\", 2048x]",
              "[\"1e\", \"0x\", \"0o8\", \"1.2.3\", \".\", \"+.\", \"e5\", \"1-2\", \"12\", \"0.5\", \"2048x\"]");
  assert_tree("", "null");
  assert_tree("# nothing but a comment\n", "null");
  assert_tree("a:\n", "{\"a\": null}");
}

static void test_structure(void **state) {
  (void)state;
  assert_tree(
      "model: m\ncalibration: { tokens: a/b.npy, windows: 128 }\nsweep:\n  bits: [2, 3]\n  rank:\n    - 8\n    - 16\n",
      "{\"model\": \"m\", \"calibration\": {\"tokens\": \"a/b.npy\", \"windows\": 128}, \"sweep\": {\"bits\": [2, 3], \"rank\": [8, 16]}}");
  assert_tree("- bits: 2\n  rank: 8\n- {bits: 3}\n", "[{\"bits\": 2, \"rank\": 8}, {\"bits\": 3}]");
  assert_tree("{\"json\": [1, {\"too\": \"é\\n\"}]}", "{\"json\": [1, {\"too\": \"é\\n\"}]}");
  assert_tree("text: |\n  two\n  lines\n", "{\"text\": \"two\\nlines\\n\"}");
}

static void test_refusals(void **state) {
  (void)state;
  static const struct {
    const char *yaml, *message;
  } cases[] = {
      {"a: [1, 2\n", "t: line 2, column 1: not valid YAML: flow sequence without a closing bracket"},
      {"a: b: c\n", "t: line 1, column 5: not valid YAML: invalid nested block mapping on the same line"},
      {"a: 1\n\tb: 2\n", "t: line 1, column 4: not valid YAML: invalid multiline plain key"},
      {"a: \"x\n", "t: line 1, column 5: not valid YAML: double-quoted scalar without closing quote"},
      {"a: 1\nb: 2\na: 3\n", "t: line 3, column 1: a: this key is given twice"},
      {"s:\n  b: {x: 1, x: 1}\n", "t: line 2, column 13: x: this key is given twice"},
      {"a: &x 1\nb: *x\n", "t: line 1, column 7: expected a value, found an anchor or alias (& or *): write the value out"},
      {"a: *x\n", "t: line 1, column 5: expected a value, found an anchor or alias (& or *): write the value out"},
      {"a: &x [1]\n", "t: line 1, column 7: expected a value, found an anchor or alias (& or *): write the value out"},
      {"a: !!str 1\n", "t: line 1, column 10: expected a value, found a tag (!)"},
      {"[a]: 1\n", "t: line 1, column 1: expected a plain word as key, found something else"},
      {"a: .inf\n", "t: line 1, column 4: expected a finite number, found .inf"},
      {"a: -.NaN\n", "t: line 1, column 4: expected a finite number, found -.NaN"},
      {"a: 1e999\n", "t: line 1, column 4: expected a finite number, found 1e999"},
      {"a: 9223372036854775808\n", "t: line 1, column 4: expected an integer of at most 64 bits, found 9223372036854775808"},
      {"a: 1\n---\nb: 2\n", "t: line 2, column 1: expected one document, found a second"},
      {"a: \xff\n", "t: expected text in UTF-8, found other bytes"},
      {"a: \"\\0\"\n", "t: line 1, column 5: expected text, found a zero byte in it"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    json_t *tree;
    assert_refused(settings_parse("t", cases[i].yaml, &tree), E_USAGE, cases[i].message);
    assert_null(tree);
  }
}

static void test_depth(void **state) {
  (void)state;
  json_t *tree;
  char text[100001];
  for (int depth = 32; depth <= 33; depth++) {
    memset(text, '[', (size_t)depth);
    memset(text + depth, ']', (size_t)depth);
    text[2 * depth] = 0;
    if (depth == 32) {
      assert_int_equal(settings_parse("t", text, &tree), OK);
      json_drop(&tree);
    } else {
      assert_refused(settings_parse("t", text, &tree), E_USAGE, "t: line 1, column 33: expected at most 32 levels of nesting, found more");
    }
  }
  memset(text, '[', 100000); /* far beyond: refused, not a stack that runs over */
  text[100000] = 0;
  assert_refused(settings_parse("t", text, &tree), E_USAGE, "t: line 1, column 33: expected at most 32 levels of nesting, found more");
}

/* The library's own diagnostics must not reach the terminal: what a bad file prints to standard error is counted. */
static void test_silence(void **state) {
  (void)state;
  FILE *caught = tmpfile();
  int saved = dup(STDERR_FILENO);
  json_t *tree;
  fflush(stderr);
  dup2(fileno(caught), STDERR_FILENO);
  status st = settings_parse("t", "a: [1\nb: }", &tree);
  fflush(stderr);
  dup2(saved, STDERR_FILENO);
  close(saved);
  assert_int_equal(st, E_USAGE);
  status_clear();
  fseek(caught, 0, SEEK_END);
  assert_int_equal(ftell(caught), 0);
  fclose(caught);
}

static void test_read(void **state) {
  (void)state;
  json_t *tree;
  assert_int_equal(settings_read("/nonexistent/job.yaml", &tree), E_USAGE);
  assert_string_equal(status_message(), "/nonexistent/job.yaml: cannot be opened: No such file or directory");
  status_clear();
  char path[] = "/tmp/cloqwork-settings-XXXXXX", message[128];
  int fd = mkstemp(path);
  assert_true(fd >= 0 && write(fd, "a: 1\0b", 6) == 6);
  snprintf(message, sizeof message, "%s: expected text, found a zero byte in it", path);
  assert_refused(settings_read(path, &tree), E_USAGE, message);
  assert_int_equal(ftruncate(fd, 4), 0);
  assert_int_equal(settings_read(path, &tree), OK);
  assert_int_equal(json_integer_value(json_object_get(tree, "a")), 1);
  json_drop(&tree);
  assert_int_equal(ftruncate(fd, (1 << 20) + 1), 0);
  snprintf(message, sizeof message, "%s: expected at most 1048576 bytes, found 1048577", path);
  assert_refused(settings_read(path, &tree), E_USAGE, message);
  close(fd);
  unlink(path);
}

static void test_set(void **state) {
  (void)state;
  json_t *tree = parsed("a: {b: 1, list: [{c: 1}, {c: 2}]}\nword: x\nnothing:\n");
  static const char *const good[] = {"a.b=[2, 3]",     "a.list[1].c=two", "a.list[2].d=new", "new.deep.key=1e-3",
                                     "nothing.x=true", "word=",           "n.l[0]=7"};
  for (size_t i = 0; i < sizeof good / sizeof *good; i++)
    if (settings_set(tree, good[i]) != OK) fail_msg("%s: %s", good[i], status_message());
  json_t *wanted = json_loads(
      "{\"a\": {\"b\": [2, 3], \"list\": [{\"c\": 1}, {\"c\": \"two\"}, {\"d\": \"new\"}]}, \"word\": null, \"nothing\": {\"x\": true},"
      "\"new\": {\"deep\": {\"key\": 1e-3}}, \"n\": {\"l\": [7]}}",
      0, NULL);
  assert_true(json_equal(tree, wanted));
  json_drop(&wanted);
  static const struct {
    const char *set, *message;
  } bad[] = {
      {"a.b", "--set a.b: expected key=value"},
      {"=1", "--set =1: expected key=value"},
      {"a..b=1", "--set a..b=1: expected key=value with a key like a.b or a[0].b"},
      {"a.=1", "--set a.=1: expected key=value with a key like a.b or a[0].b"},
      {"a.list[x]=1", "--set a.list[x]=1: expected key=value with a key like a.b or a[0].b"},
      {"a.list[0=1", "--set a.list[0=1: expected key=value with a key like a.b or a[0].b"},
      {"a.list[0]c=1", "--set a.list[0]c=1: expected key=value with a key like a.b or a[0].b"},
      {"a.list[9]=1", "--set a.list[9]=1: expected an index of at most 3, found 9"},
      {"a.list.c=1", "--set a.list.c=1: expected a mapping that holds c, found a list"},
      {"a[0]=1", "--set a[0]=1: expected a list that holds this index, found a mapping"},
      {"new.deep.key.more=1", "--set new.deep.key.more=1: expected a mapping that holds more, found a single value"},
      {"a.b=[1", "--set a.b=[1: line 2, column 1: not valid YAML: flow sequence without a closing bracket"},
  };
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) assert_refused(settings_set(tree, bad[i].set), E_USAGE, bad[i].message);
  json_drop(&tree);
}

static void test_write(void **state) {
  (void)state;
  static const char *const trees[] = {
      "{\"a\": 1, \"b\": [1, 2.0, 1e-5, 1e300, 0.1, -3.25, \"x\", true, null], \"c\": {\"d\": {}, \"e\": [], \"f\": {\"g\": \"a/b.npy\"}}}",
      "{\"s\": [{\"bits\": [2], \"rank\": [8, 16]}, {\"bits\": [3], \"o\": {\"p\": 1}}], \"t\": [[1, 2], [], [[3]]]}",
      "[\"\", \"12\", \"1e3\", \"true\", \"null\", \"~\", \" x\", \"x \", \"a: b\", \"# c\", \"-\", \"- a\", \"é\", \"q\\\"\\\\\", "
      "\"line\\nline\\ttab\\u0001\\u007f\", \"*a\", "
      "\"&a\", \"!t\", \"@\", \"%\", \"...\", \"---\", \"[\", \"{\", \",\", \"=\", \"<<\", \"0x1g\", \"a:\", \"?\"]",
      "{\"true\": 1, \"a b\": 2, \"12\": 3, \"\": 4, \"q\\\"\": {\"- x\": [1]}}",
      "{}",
      "[]",
      "\"word\"",
      "3.0",
      "null",
  };
  for (size_t i = 0; i < sizeof trees / sizeof *trees; i++) {
    json_t *tree = json_loads(trees[i], JSON_DECODE_ANY, NULL), *back;
    char *text;
    assert_non_null(tree);
    assert_int_equal(settings_write(tree, &text), OK);
    if (settings_parse("written", text, &back) != OK || !json_equal(tree, back))
      fail_msg("%s became\n%s%s", trees[i], text, status_message());
    json_drop(&back);
    json_drop(&tree);
    FREE(text);
  }
  json_t *tree = parsed("{m: data/x, c: {w: 2, l: [a, b]}, s: [{b: [2]}]}");
  char *text;
  assert_int_equal(settings_write(tree, &text), OK);
  assert_string_equal(text, "m: data/x\nc:\n  w: 2\n  l: [a, b]\ns:\n  - b: [2]\n");
  FREE(text);
  json_drop(&tree);
}

static void test_real(void **state) {
  (void)state;
  static const struct {
    double value;
    const char *text;
  } cases[] = {{0.001, "0.001"}, {1e-5, "1e-5"},       {0.1, "0.1"},           {64, "64"},
               {10, "10"},       {1e6, "1000000"},     {0.0001, "0.0001"},     {1. / 3, "0.3333333333333333"},
               {1e20, "1e20"},   {1.5e-10, "1.5e-10"}, {-2.5e100, "-2.5e100"}, {0, "0"}};
  char text[SETTINGS_REAL];
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    settings_real(cases[i].value, text);
    assert_string_equal(text, cases[i].text);
  }
  uint64_t x = 88172645463325252u;
  for (int i = 0; i < 20000; i++) {
    double value;
    x ^= x << 13, x ^= x >> 7, x ^= x << 17;
    memcpy(&value, &x, sizeof value);
    if (!isfinite(value)) continue;
    settings_real(value, text);
    assert_true(strtod(text, NULL) == value);
  }
}

static void test_nearest(void **state) {
  (void)state;
  static const char *const words[] = {"bits", "group", "method", "rank", "magr_alpha", "magr_K"};
  static const struct {
    const char *word, *nearest;
  } cases[] = {{"bit", "bits"},   {"gruop", "group"},   {"methods", "method"},
               {"ranks", "rank"}, {"magr_k", "magr_K"}, {"magr-alpah", "magr_alpha"},
               {"colour", NULL},  {"x", NULL},          {"", NULL},
               {"rank", "rank"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const char *near = settings_nearest(cases[i].word, words, 6);
    if (cases[i].nearest)
      assert_string_equal(near, cases[i].nearest);
    else
      assert_null(near);
  }
  char lengthy[200];
  memset(lengthy, 'b', sizeof lengthy - 1);
  lengthy[sizeof lengthy - 1] = 0;
  assert_null(settings_nearest(lengthy, words, 6));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_scalars), cmocka_unit_test(test_structure), cmocka_unit_test(test_refusals), cmocka_unit_test(test_depth),
      cmocka_unit_test(test_silence), cmocka_unit_test(test_read),      cmocka_unit_test(test_set),      cmocka_unit_test(test_write),
      cmocka_unit_test(test_real),    cmocka_unit_test(test_nearest),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
