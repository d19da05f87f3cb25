/* Matrices and vectors in .npy files: what is written is read, and what must be refused. (Files of ids: tokens.c.) */
#include "check.h"

#include "model/npy.h"
#include "model_files.h"

static const npy_wish matrix = {"f", "floats", 2, "numbers"}, vector = {"f", "floats", 1, "numbers"};

static void put_npy(const char *dictionary, const void *data, size_t bytes) {
  unsigned char all[512];
  size_t n = strlen(dictionary), header = 118;
  assert_true(n < header && bytes <= sizeof all - 128);
  memcpy(all, "\x93NUMPY\1\0\x76\0", 10);
  memset(all + 10, ' ', header);
  memcpy(all + 10, dictionary, n);
  all[127] = '\n';
  memcpy(all + 128, data, bytes);
  put_file("a.npy", all, 128 + bytes);
}

static void writes_what_numpy_writes(void **state) {
  (void)state;
  char header[NPY_HEADER];
  int64_t shape[2] = {28672, 28672};
  npy_header("<f4", 2, shape, header);
  static const char expected[] = "\x93NUMPY\1\0\x76\0{'descr': '<f4', 'fortran_order': False, 'shape': (28672, 28672), }";
  assert_memory_equal(header, expected, sizeof expected - 1);
  for (size_t i = sizeof expected - 1; i < NPY_HEADER - 1; i++) assert_int_equal(header[i], ' ');
  assert_int_equal(header[NPY_HEADER - 1], '\n');
  npy_header("<f8", 1, shape, header);
  assert_non_null(strstr(header + 10, "'shape': (28672,), }"));
}

static void reads_back(void **state) {
  (void)state;
  unsigned char all[NPY_HEADER + 6 * 8];
  double numbers[6] = {1, -2, 3.5, 4e300, 0, 6};
  int64_t shape[2] = {2, 3};
  npy f;
  npy_header("<f8", 2, shape, (char *)all);
  memcpy(all + NPY_HEADER, numbers, sizeof numbers);
  put_file("a.npy", all, sizeof all);
  assert_done(npy_open(in_folder("a.npy"), &matrix, &f));
  assert_true(f.kind == 'f' && f.bytes == 8 && !f.fortran && f.shape[0] == 2 && f.shape[1] == 3);
  assert_memory_equal(f.data, numbers, sizeof numbers);
  npy_close(&f);
  npy_close(&f);
  shape[0] = 6;
  npy_header("<f8", 1, shape, (char *)all);
  put_file("a.npy", all, sizeof all);
  assert_done(npy_open(in_folder("a.npy"), &vector, &f));
  assert_int_equal(f.shape[0], 6);
  npy_close(&f);
  assert_refused_saying(npy_open(in_folder("a.npy"), &matrix, &f), E_DATA, "expected two dimensions", "found shape (6,)");
  put_npy("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2), }", numbers, 16);
  assert_done(npy_open(in_folder("a.npy"), &matrix, &f));
  assert_true(f.fortran && f.bytes == 4);
  npy_close(&f);
}

static void refuses_others(void **state) {
  (void)state;
  static const struct {
    const char *dictionary, *says;
  } bad[] = {
      {"{'descr': '<i4', 'fortran_order': False, 'shape': (2, 2), }", "expected floats, found elements of type <i4"},
      {"{'descr': '<c8', 'fortran_order': False, 'shape': (2, 2), }", "expected floats"},
      {"{'descr': '>f4', 'fortran_order': False, 'shape': (2, 2), }", "found big-endian ones (>f4)"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }", "expected two dimensions, found shape (4,)"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 2), }", "expected two dimensions, found shape (1, 2, 2)"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", "expected 6 numbers of 4 bytes by the header, found 16 bytes"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296), }", "found 16 bytes"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2", "expected two dimensions"},
  };
  float numbers[4] = {1, 2, 3, 4};
  npy f;
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    put_npy(bad[i].dictionary, numbers, sizeof numbers);
    assert_refused_saying(npy_open(in_folder("a.npy"), &matrix, &f), E_DATA, "a.npy: ", bad[i].says);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(writes_what_numpy_writes),
      cmocka_unit_test(reads_back),
      cmocka_unit_test(refuses_others),
  };
  return cmocka_run_group_tests_name("npy", tests, folder_setup, folder_teardown);
}
