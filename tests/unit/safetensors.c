/* The safetensors reader: what is legal is read, and each rule of the format is broken by one file that must be refused. */
#include "check.h"

#include "model/safetensors.h"
#include "model_files.h"

static const char two[] = "{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[4,28]},"
                          "\"a\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[0,4]}}   ";

static void reads_what_is_legal(void **state) {
  (void)state;
  st_file f;
  put_safetensors_raw("ok.safetensors", sizeof two - 1, two, sizeof two - 1, 28);
  assert_done(st_open(in_folder("ok.safetensors"), &f));
  assert_int_equal(f.count, 2);
  assert_string_equal(f.tensors[0].name, "a"); /* sorted by name, whatever the order of keys and of data */
  const st_tensor *b = st_find(&f, "b");
  assert_non_null(b);
  assert_int_equal(b->type, DT_F32);
  assert_int_equal(b->rank, 2);
  assert_int_equal(b->shape[1], 3);
  assert_int_equal(*st_data(&f, b), 4);
  assert_null(st_find(&f, "c"));
  assert_int_equal(f.data_offset, 8 + sizeof two - 1);
  st_close(&f);
  st_close(&f); /* a closed file may be closed */
}

static void reads_odd_but_legal_files(void **state) {
  (void)state;
  st_file f;
  /* rank 0 is one element; empty tensors; a name that needs escapes (surrogates too); four-bit types; no metadata */
  const char *header = "{\"scalar\":{\"dtype\":\"F16\",\"shape\":[],\"data_offsets\":[0,2]},"
                       "\"empty\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[2,2]},"
                       "\"q\\\"\\u00e9\\ud83d\\ude00\":{\"dtype\":\"F4\",\"shape\":[6],\"data_offsets\":[2,5],\"more\":1}}";
  put_safetensors_raw("odd.safetensors", strlen(header), header, strlen(header), 5);
  assert_done(st_open(in_folder("odd.safetensors"), &f));
  assert_int_equal(st_find(&f, "scalar")->rank, 0);
  assert_int_equal(st_find(&f, "empty")->end, 2);
  const st_tensor *q = st_find(&f, "q\"\xc3\xa9\xf0\x9f\x98\x80");
  assert_non_null(q);
  assert_int_equal(q->type, DT_OTHER);
  assert_string_equal(q->type_text, "F4");
  st_close(&f);
  put_safetensors_raw("none.safetensors", 2, "{}", 2, 0);
  assert_done(st_open(in_folder("none.safetensors"), &f));
  assert_int_equal(f.count, 0);
  assert_null(st_find(&f, "a"));
  st_close(&f);
}

/* Each file breaks one rule. length 0: the header's own. */
static const struct {
  const char *says, *header;
  uint64_t length;
  size_t data;
} broken[] = {
    {"header: expected at most 100000000 bytes, found a length of 1000000000000", "{}", UINT64_C(1000000000000), 0},
    {"header: expected at most", "{}", UINT64_MAX, 0},
    {"cut off", "{}", 3, 0},
    {"cut off", "{}", 99999999, 0},
    {"begin with {", " {}", 0, 0},
    {"begin with {", "[]", 0, 0},
    {"not valid JSON", "{\"a\":", 0, 0},
    {"not valid JSON", "{} x", 0, 0},
    {"not valid JSON", "{\"\xff\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 0, 1},
    {"not valid JSON", "{\"\\ud800\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 0, 1},
    {"not valid JSON",
     "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}", 0, 2},
    {"not valid JSON", "{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 0, 1},
    {"not valid JSON", "{\"a\":{\"dtype\":\"U8\",\"shape\":[18446744073709551616],\"data_offsets\":[0,1]}}", 0, 1},
    {"__metadata__: format: expected a string", "{\"__metadata__\":{\"format\":1}}", 0, 0},
    {"__metadata__: expected an object", "{\"__metadata__\":\"pt\"}", 0, 0},
    {"__metadata__: expected an object", "{\"__metadata__\":null}", 0, 0},
    {"a: expected an object", "{\"a\":[]}", 0, 0},
    {"a: dtype: expected a string", "{\"a\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 0, 1},
    {"a: dtype: expected a string", "{\"a\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,1]}}", 0, 1},
    {"found \"Q4\"", "{\"a\":{\"dtype\":\"Q4\",\"shape\":[1],\"data_offsets\":[0,1]}}", 0, 1},
    {"a: shape: expected a list", "{\"a\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 0, 1},
    {"a: shape: expected a list", "{\"a\":{\"dtype\":\"U8\",\"shape\":1,\"data_offsets\":[0,1]}}", 0, 1},
    {"a: shape: expected integers", "{\"a\":{\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]}}", 0, 1},
    {"a: shape: expected integers", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1.0],\"data_offsets\":[0,1]}}", 0, 1},
    {"at most 8 dimensions", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}", 0, 1},
    {"a: data_offsets: expected", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 0, 1},
    {"a: data_offsets: expected", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", 0, 1},
    {"a: data_offsets: expected", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,1]}}", 0, 1},
    {"a: data_offsets: expected", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,\"1\"]}}", 0, 1},
    {"a: data_offsets: expected", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,0]}}", 0, 1},
    {"a: data_offsets: expected", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[-1,0]}}", 0, 1},
    {"below 2^64", "{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0, 0},
    {"below 2^64", "{\"a\":{\"dtype\":\"F64\",\"shape\":[1152921504606846976],\"data_offsets\":[0,0]}}", 0, 0},
    {"whole bytes", "{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,2]}}", 0, 2},
    {"a: expected 8 bytes by dtype and shape, found data_offsets that hold 4",
     "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 0, 4},
    {"a: expected 4 bytes by dtype and shape, found data_offsets that hold 8",
     "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,8]}}", 0, 8},
    {"begin at 0", "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}", 0, 2},
    {"b: expected its data to begin at 2, where the tensor before ends, found 3",
     "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[3,4]}}", 0, 4},
    {"b: expected its data to begin at 2, where the tensor before ends, found 1",
     "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}", 0, 3},
    {"b: expected its data to begin at 2",
     "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 0, 2},
    {"trailing bytes", "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 0, 3},
    {"cut off", "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}", 0, 1},
    {"trailing bytes", "{}", 0, 1},
};

static void refuses_broken_files(void **state) {
  (void)state;
  st_file f;
  for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
    size_t n = strlen(broken[i].header);
    put_safetensors_raw("broken.safetensors", broken[i].length ? broken[i].length : n, broken[i].header, n, broken[i].data);
    assert_refused_saying(st_open(in_folder("broken.safetensors"), &f), E_DATA, "broken.safetensors: ", broken[i].says);
    assert_null(f.map.data);
  }
  put_file("broken.safetensors", "1234567", 7);
  assert_refused_saying(st_open(in_folder("broken.safetensors"), &f), E_DATA, "at least 8 bytes", "found 7");
  put_file("broken.safetensors", "", 0);
  assert_refused_saying(st_open(in_folder("broken.safetensors"), &f), E_DATA, "at least 8 bytes", "found 0");
  assert_refused_saying(st_open(in_folder("absent.safetensors"), &f), E_DATA, "absent.safetensors", "cannot be opened");
  assert_refused_saying(st_open(test_folder, &f), E_DATA, test_folder, "regular file");
}

/* Nesting is bounded: a header of brackets is an error, not a stack that overflows. */
static void refuses_deep_nesting(void **state) {
  (void)state;
  enum { DEPTH = 1000000 };
  char *text = malloc(DEPTH + 6);
  st_file f;
  memcpy(text, "{\"a\":", 5);
  memset(text + 5, '[', DEPTH);
  put_safetensors_raw("deep.safetensors", 5 + DEPTH, text, 5 + DEPTH, 0);
  assert_refused_saying(st_open(in_folder("deep.safetensors"), &f), E_DATA, "deep.safetensors", "not valid JSON");
  free(text);
}

/* No prefix of a good file is a good file. */
static void refuses_every_truncation(void **state) {
  (void)state;
  st_file f;
  unsigned char all[8 + sizeof two - 1 + 28] = {sizeof two - 1};
  memcpy(all + 8, two, sizeof two - 1);
  for (size_t n = 0; n < sizeof all; n++) {
    put_file("cut.safetensors", all, n);
    assert_refused_saying(st_open(in_folder("cut.safetensors"), &f), E_DATA, "cut.safetensors: ", "");
  }
  put_file("cut.safetensors", all, sizeof all);
  assert_done(st_open(in_folder("cut.safetensors"), &f));
  st_close(&f);
}

/* Any single byte of the header changed: refused or read, never more than the file holds. */
static void survives_flipped_bytes(void **state) {
  (void)state;
  st_file f;
  unsigned char all[8 + sizeof two - 1 + 28] = {sizeof two - 1};
  memcpy(all + 8, two, sizeof two - 1);
  for (size_t at = 0; at < 8 + sizeof two - 1; at++) {
    unsigned char kept = all[at];
    for (int bit = 0; bit < 8; bit++) {
      all[at] = (unsigned char)(kept ^ 1 << bit);
      put_file("flip.safetensors", all, sizeof all);
      if (st_open(in_folder("flip.safetensors"), &f) == OK) {
        for (size_t i = 0; i < f.count; i++) assert_true(f.data_offset + f.tensors[i].end <= f.map.bytes);
        st_close(&f);
      }
      status_clear();
    }
    all[at] = kept;
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(reads_what_is_legal),  cmocka_unit_test(reads_odd_but_legal_files), cmocka_unit_test(refuses_broken_files),
      cmocka_unit_test(refuses_deep_nesting), cmocka_unit_test(refuses_every_truncation),  cmocka_unit_test(survives_flipped_bytes),
  };
  return cmocka_run_group_tests_name("safetensors", tests, folder_setup, folder_teardown);
}
