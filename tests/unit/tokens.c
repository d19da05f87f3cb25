/* Token files and windows: CPython's generator, .npy of every integer type, and what must be refused. */
#include "check.h"

#include "model/tokens.h"
#include "model_files.h"

static void draws_as_python_does(void **state) {
  (void)state;
  static const struct {
    int64_t seed;
    uint32_t first[3];
  } raw[] = {
      {INT64_C(0), {3626764237u, 1654615998u, 3255389356u}},
      {INT64_C(1), {577090037u, 2444712010u, 3639700191u}},
      {INT64_C(-7), {1390851128u, 4071050724u, 647892279u}},
      {INT64_C(4294967296), {485306839u, 1508871100u, 1794561286u}},
      {INT64_C(12345678901234), {107551873u, 2403399316u, 624174316u}},
      {INT64_MIN, {2377109768u, 1691753470u, 4039908392u}},
  };
  static const struct {
    int64_t seed, lo, hi, first[4];
  } ranges[] = {
      {3,
       INT64_C(0),
       INT64_C(1099511627776),
       {INT64_C(285805288266), INT64_C(1041975902461), INT64_C(1034389053353), INT64_C(421913238835)}},
      {3, INT64_C(-5), INT64_C(5), {INT64_C(-2), INT64_C(4), INT64_C(3), INT64_C(-3)}},
      {11,
       INT64_C(-1000000000000000000),
       INT64_C(1000000000000000000),
       {INT64_C(996265792845325677), INT64_C(975791563947458087), INT64_C(801366187638591629), INT64_C(41854399656548289)}},
      {5, INT64_C(7), INT64_C(7), {INT64_C(7), INT64_C(7), INT64_C(7), INT64_C(7)}},
      {2, INT64_C(0), INT64_C(4294967295), {INT64_C(242886303), INT64_C(364522461), INT64_C(3588440356), INT64_C(1323436024)}},
      {2, INT64_C(0), INT64_C(4294967296), {INT64_C(242886303), INT64_C(364522461), INT64_C(3588440356), INT64_C(1323436024)}},
  };
  python_random r;
  for (size_t i = 0; i < sizeof raw / sizeof *raw; i++) {
    python_random_seed(&r, raw[i].seed);
    for (int k = 0; k < 3; k++) assert_int_equal(python_random_next32(&r), raw[i].first[k]);
  }
  for (size_t i = 0; i < sizeof ranges / sizeof *ranges; i++) {
    python_random_seed(&r, ranges[i].seed);
    for (int k = 0; k < 4; k++) assert_int_equal(python_randint(&r, ranges[i].lo, ranges[i].hi), ranges[i].first[k]);
  }
}

/* magic, version, header of the given text padded as numpy pads it, data */
static void put_npy(const char *name, int version, const char *dictionary, const void *data, size_t bytes) {
  size_t start = version == 1 ? 10 : 12, n = strlen(dictionary), header = (start + n + 1 + 63) / 64 * 64 - start;
  unsigned char *all = malloc(start + header + bytes);
  assert_non_null(all);
  memcpy(all, "\x93NUMPY", 6);
  all[6] = (unsigned char)version, all[7] = 0;
  for (size_t i = 8; i < start; i++) all[i] = (unsigned char)(header >> 8 * (i - 8));
  memset(all + start, ' ', header);
  memcpy(all + start, dictionary, n);
  all[start + header - 1] = '\n';
  memcpy(all + start + header, data, bytes);
  put_file(name, all, start + header + bytes);
  free(all);
}

static void put_ids(const char *name, int64_t count) {
  char text[128];
  uint16_t *ids = malloc((size_t)count * sizeof *ids);
  assert_non_null(ids);
  for (int64_t i = 0; i < count; i++) ids[i] = (uint16_t)(i % 50000);
  snprintf(text, sizeof text, "{'descr': '<u2', 'fortran_order': False, 'shape': (%lld,), }", (long long)count);
  put_npy(name, 1, text, ids, (size_t)count * sizeof *ids);
  free(ids);
}

/* The windows that the GPTQ literature's script draws for seed 0. */
static void draws_the_windows_of_the_literature(void **state) {
  (void)state;
  static const struct {
    int64_t n, first[5], last, sum;
  } known[] = {
      {100000, {50494, 55125, 5306, 33936, 67013}, 86539, 6458573},
      {1000000, {885440, 403958, 794772, 933488, 441001}, 603613, 69015537},
  };
  for (int i = 0; i < 2; i++) {
    windows w;
    put_ids("ids.npy", known[i].n);
    window_request q = {.path = in_folder("ids.npy"), .windows = 128, .length = 2048, .how = SAMPLE_RANDOM, .seed = 0};
    assert_done(windows_draw(&q, 50000, &w));
    int64_t sum = 0;
    for (int k = 0; k < 128; k++) {
      sum += w.start[k];
      for (int64_t t = 0; t < 2048; t += 97) assert_int_equal(w.ids[k * 2048 + t], (w.start[k] + t) % 50000);
    }
    for (int k = 0; k < 5; k++) assert_int_equal(w.start[k], known[i].first[k]);
    assert_int_equal(w.start[127], known[i].last);
    assert_int_equal(sum, known[i].sum);
    windows_free(&w);
    windows_free(&w);
  }
}

static void reads_every_integer_type(void **state) {
  (void)state;
  static const char *const types[] = {"|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8"};
  char expected[HASH_HEX] = "";
  for (size_t i = 0; i < sizeof types / sizeof *types; i++)
    for (int version = 1; version <= 3; version++) {
      windows w;
      char text[160];
      unsigned char data[7 * 8] = {0};
      int bytes = types[i][2] - '0';
      for (int k = 0; k < 7; k++) data[k * bytes] = (unsigned char)(20 * k);
      snprintf(text, sizeof text,
               version == 2 ? "{\"shape\": ( 7 , ), \"fortran_order\": True, \"descr\": \"%s\"}"
                            : "{'descr': '%s', 'fortran_order': False, 'shape': (7,), }",
               types[i]);
      put_npy("ids.npy", version, text, data, (size_t)(7 * bytes));
      window_request q = {.path = in_folder("ids.npy"), .windows = 2, .length = 3, .how = SAMPLE_SEQUENTIAL};
      assert_done(windows_draw(&q, 121, &w));
      for (int k = 0; k < 6; k++) assert_int_equal(w.ids[k], 20 * k);
      assert_int_equal(w.start[1], 3);
      if (!*expected) memcpy(expected, w.fingerprint, sizeof expected);
      assert_string_equal(w.fingerprint, expected); /* the ids, not their type */
      windows_free(&w);
      assert_refused_saying(windows_draw(&q, 120, &w), E_DATA, "position 6: expected an id from 0 to 119", "found 120");
    }
  /* the shape belongs to the fingerprint */
  windows w;
  window_request q = {.path = in_folder("ids.npy"), .windows = 3, .length = 2, .how = SAMPLE_SEQUENTIAL};
  assert_done(windows_draw(&q, 121, &w));
  assert_string_not_equal(w.fingerprint, expected);
  windows_free(&w);
}

static void refuses_ids_outside(void **state) {
  (void)state;
  windows w;
  int64_t wide[] = {1, 2, INT64_C(4294967297), 3};
  int8_t small[] = {1, 2, 3, -1};
  uint64_t huge[] = {0, UINT64_MAX};
  window_request q = {.path = in_folder("ids.npy"), .windows = 1, .length = 2, .how = SAMPLE_SEQUENTIAL};
  put_npy("ids.npy", 1, "{'descr': '<i8', 'fortran_order': False, 'shape': (4,), }", wide, sizeof wide);
  assert_refused_saying(windows_draw(&q, 32000, &w), E_DATA, "position 2", "found 4294967297");
  put_npy("ids.npy", 1, "{'descr': '|i1', 'fortran_order': False, 'shape': (4,), }", small, sizeof small);
  assert_refused_saying(windows_draw(&q, 32000, &w), E_DATA, "position 3", "found -1");
  put_npy("ids.npy", 1, "{'descr': '<u8', 'fortran_order': False, 'shape': (2,), }", huge, sizeof huge);
  assert_refused_saying(windows_draw(&q, 32000, &w), E_DATA, "position 1", "expected an id");
}

static void refuses_other_files(void **state) {
  (void)state;
  static const struct {
    const char *dictionary, *says;
  } bad[] = {
      {"{'descr': '>i4', 'fortran_order': False, 'shape': (4,), }", "found big-endian ones (>i4)"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }", "expected integers, found elements of type <f4"},
      {"{'descr': '|b1', 'fortran_order': False, 'shape': (4,), }", "expected integers, found elements of type |b1"},
      {"{'descr': '<U4', 'fortran_order': False, 'shape': (4,), }", "expected integers"},
      {"{'descr': '<i16', 'fortran_order': False, 'shape': (4,), }", "expected integers"},
      {"{'descr': '<i', 'fortran_order': False, 'shape': (4,), }", "expected integers"},
      {"{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (4,), }", "expected a descr of integers"},
      {"{'fortran_order': False, 'shape': (4,), }", "expected a descr of integers"},
      {"{'descr': '<i4', 'fortran_order': False, }", "expected a shape"},
      {"{'descr': '<i4', 'fortran_order': False, 'shape': 4, }", "expected a shape"},
      {"{'descr': '<i4', 'fortran_order': False, 'shape': (2, 2), }", "expected one dimension, found shape (2, 2)"},
      {"{'descr': '<i4', 'fortran_order': False, 'shape': (), }", "expected one dimension, found shape ()"},
      {"{'descr': '<i4', 'fortran_order': False, 'shape': (4", "expected one dimension"},
      {"{'descr': '<i4', 'fortran_order': False, 'shape': (-4,), }", "expected a shape of integers"},
      {"{'descr': '<i4', 'fortran_order': False, 'shape': (5,), }", "expected 5 ids of 4 bytes by the header, found 16 bytes"},
      {"{'descr': '<i4', 'fortran_order': False, 'shape': (3,), }", "expected 3 ids of 4 bytes by the header, found 16 bytes"},
      {"{'descr': '<i8', 'fortran_order': False, 'shape': (9223372036854775807,), }", "by the header, found 16 bytes"},
  };
  windows w;
  int32_t ids[4] = {1, 2, 3, 4};
  const char *good = "{'descr': '<i4', 'fortran_order': False, 'shape': (4,), }";
  window_request q = {.path = in_folder("ids.npy"), .windows = 1, .length = 2, .how = SAMPLE_SEQUENTIAL};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    put_npy("ids.npy", 1, bad[i].dictionary, ids, sizeof ids);
    assert_refused_saying(windows_draw(&q, 10, &w), E_DATA, "ids.npy: ", bad[i].says);
  }
  put_npy("ids.npy", 4, good, ids, sizeof ids);
  assert_refused_saying(windows_draw(&q, 10, &w), E_DATA, "version 1, 2 or 3", "found 4");
  put_text("ids.npy", "not numbers at all");
  assert_refused_saying(windows_draw(&q, 10, &w), E_DATA, "expected a .npy file", "");
  put_text("ids.npy", "");
  assert_refused_saying(windows_draw(&q, 10, &w), E_DATA, "expected a .npy file", "");
  put_file("ids.npy", "\x93NUMPY\1\0\xff\xff....", 14);
  assert_refused_saying(windows_draw(&q, 10, &w), E_DATA, ".npy header", "cut off");
  unlink(in_folder("ids.npy"));
  assert_refused_saying(windows_draw(&q, 10, &w), E_DATA, "ids.npy", "cannot be opened");
}

static void refuses_too_few(void **state) {
  (void)state;
  windows w;
  window_request q = {.windows = 3, .length = 4, .how = SAMPLE_SEQUENTIAL};
  put_ids("ids.npy", 11);
  q.path = in_folder("ids.npy");
  assert_refused_saying(windows_draw(&q, 50000, &w), E_DATA, "expected 3 windows of 4 ids one after the other", "found 11");
  q.windows = 1;
  q.length = 11;
  q.how = SAMPLE_RANDOM; /* as in the literature: one id more than a window */
  assert_refused_saying(windows_draw(&q, 50000, &w), E_DATA, "expected more ids than one window of 11", "found 11");
  q.length = 10;
  assert_done(windows_draw(&q, 50000, &w));
  assert_int_equal(w.start[0], 0);
  windows_free(&w);
  q.windows = -1;
  assert_refused_saying(windows_draw(&q, 50000, &w), E_USAGE, "expected windows of at least one id", "");
}

/* windows 0: all that the file holds; chunks of them. */
static void takes_all(void **state) {
  (void)state;
  windows w;
  put_ids("ids.npy", 11);
  window_request q = {in_folder("ids.npy"), 0, 4, SAMPLE_SEQUENTIAL, 0};
  assert_done(windows_draw(&q, 50000, &w));
  assert_true(w.count == 2 && w.start[1] == 4);
  assert_int_equal(windows_per_chunk(4), 512);
  assert_true(windows_chunks(&w) == 1 && windows_in_chunk(&w, 0) == 2 && windows_chunk_rows(&w) == 2048);
  windows_free(&w);
  q.length = 12;
  assert_refused_saying(windows_draw(&q, 50000, &w), E_DATA, "expected 1 windows of 12 ids", "found 11");
  windows many = {.count = 17, .length = 250}, one = {.count = 3, .length = 5000};
  assert_true(windows_per_chunk(250) == 8 && windows_chunks(&many) == 3 && windows_in_chunk(&many, 1) == 8 &&
              windows_in_chunk(&many, 2) == 1);
  assert_true(windows_chunks(&one) == 3 && windows_chunk_rows(&one) == 5000 && windows_chunk_ids(&one, 2) == one.ids + 10000);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(draws_as_python_does),
      cmocka_unit_test(draws_the_windows_of_the_literature),
      cmocka_unit_test(reads_every_integer_type),
      cmocka_unit_test(refuses_ids_outside),
      cmocka_unit_test(refuses_other_files),
      cmocka_unit_test(refuses_too_few),
      cmocka_unit_test(takes_all),
  };
  return cmocka_run_group_tests_name("tokens", tests, folder_setup, folder_teardown);
}
