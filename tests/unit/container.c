/* Reading containers that are not what they should be, attribute lists, the master file, tiles. */
#include "check.h"

#include <fcntl.h>
#include <mpi.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/memory.h"
#include "store/container.h"

static char folder[] = "/tmp/cloqwork-unit-XXXXXX";
static team alone;
static char *whole; /* a good file */

enum { NUMBERS = 60 };
static float numbers[NUMBERS];
static uint8_t bytes[NUMBERS];
static const dataset sets[] = {
    {"attn_in/tiles", EL_F32, 3, {3, 4, 5}, numbers}, {"attn_in/deep/codes", EL_U8, 2, {20, 3}, bytes}, {"small", EL_F16, 1, {1}, bytes}};
enum { SETS = sizeof sets / sizeof *sets };

/* The call fails with that status and words in its message, which is one line and names the file. */
#define assert_fails(call, expected, words)                                                                        \
  do {                                                                                                             \
    status bad_st = (call);                                                                                        \
    if (bad_st != (expected) || !strstr(status_message(), words) || strchr(status_message(), '\n'))                \
      fail_msg("status %d, expected %d and \"%s\" in: %s", (int)bad_st, (int)(expected), words, status_message()); \
    status_clear();                                                                                                \
  } while (0)

static status open_and_verify(const char *path, const char *kind) {
  container *c = NULL;
  status st = container_open(path, kind, &c);
  if (st == OK) st = container_verify(c, NULL);
  container_close(&c);
  return st;
}

static char *copy_of(const char *path, const char *name, size_t keep) {
  file_map m;
  char *to = path_join(folder, name);
  assert_done(file_map_open(path, &m));
  FILE *f = fopen(to, "wb");
  assert_non_null(f);
  fwrite(m.data, 1, keep < m.bytes ? keep : m.bytes, f);
  assert_int_equal(fclose(f), 0);
  file_map_close(&m);
  return to;
}

static size_t size_of(const char *path) {
  struct stat s;
  assert_int_equal(stat(path, &s), 0);
  return (size_t)s.st_size;
}

static void test_attributes(void **state) {
  (void)state;
  attributes a = {0}, b = {0};
  assert_null(attr_find(&a, "x"));
  for (int i = 0; i < 100; i++) {
    char name[48];
    snprintf(name, sizeof name, "n%d", i);
    assert_done(attr_int(&a, name, i));
  }
  assert_done(attr_text(&a, "n7", "seven"));
  assert_done(attr_text(&a, "n7", "SEVEN"));
  assert_done(attr_real(&a, "n8", 0.5));
  assert_int_equal(a.count, 100);
  assert_string_equal(attr_get_text(&a, "n7"), "SEVEN");
  assert_string_equal(attr_get_text(&a, "n8"), "");
  assert_int_equal(attr_get_int(&a, "n7", -1), -1);
  assert_int_equal(attr_get_int(&a, "n99", -1), 99);
  assert_true(attr_get_real(&a, "n8", 0) == 0.5 && attr_get_real(&a, "n9", 0) == 9 && attr_get_real(&a, "n7", 3) == 3);
  assert_done(attr_text(&b, "n8", "kept?"));
  assert_done(attr_copy(&b, &a));
  assert_int_equal(b.count, 100);
  assert_true(attr_get_real(&b, "n8", 0) == 0.5);
  assert_done(attr_int(&b, "n7", 7)); /* drops the text */
  assert_fails(attr_int(&a, "a_name_of_exactly_forty_eight_bytes_is_too_long_", 1), E_INTERNAL, "found 48");
  assert_fails(attr_int(&a, "", 1), E_INTERNAL, "name");
  attr_free(&a);
  attr_free(&b);
  attr_free(&b);
}

static void test_not_a_container(void **state) {
  (void)state;
  container *c = NULL;
  char *path = path_join(folder, "other");
  assert_fails(container_open(path, "solution", &c), E_DATA, "No such file");
  assert_fails(container_open(folder, "solution", &c), E_DATA, "regular file");
  assert_done(file_write_atomic(path, "", 0));
  assert_fails(container_open(path, "solution", &c), E_DATA, "empty");
  assert_done(file_write_atomic(path, "x", 1));
  assert_fails(container_open(path, "solution", &c), E_DATA, "something else");
  static const char begun[] = "\x89HDF\r\n\x1a\n and then no more of it";
  assert_done(file_write_atomic(path, begun, sizeof begun));
  assert_fails(container_open(path, "solution", &c), E_DATA, "damaged or truncated");
  assert_null(c);
  assert_done(file_remove(path));
  FREE(path);
}

static void test_kind_and_shape(void **state) {
  (void)state;
  container *c = NULL;
  element type;
  int rank;
  int64_t dims[3];
  attributes a = {0};
  assert_fails(container_open(whole, "grams", &c), E_DATA, "expected a file of kind \"grams\", found \"solution\"");
  assert_done(container_open(whole, NULL, &c));
  assert_fails(container_shape(c, "attn_in", &type, &rank, dims), E_DATA, "expected a dataset");
  assert_fails(container_shape(c, "attn_in/none", &type, &rank, dims), E_DATA, "no such thing");
  assert_fails(container_shape(c, "small/x", &type, &rank, dims), E_DATA, "no such thing");
  assert_fails(container_shape(c, "attn_in//tiles", &type, &rank, dims), E_DATA, "no such thing");
  assert_fails(container_read(c, "small", EL_U32, 0, 1, &rank), E_DATA, "expected uint32, found float16");
  assert_fails(container_read(c, "small", EL_F16, 1, 0, &rank), E_DATA, "rows");
  assert_done(container_read(c, "small", EL_F16, 1, 1, NULL));
  assert_done(container_attributes(c, "attn_in/deep", &a));
  assert_int_equal(attr_get_int(&a, "level", 0), 2);
  attr_free(&a);
  container_close(&c);
  container_close(&c);
}

/* Cut anywhere, the file is refused. */
static void test_truncated(void **state) {
  (void)state;
  size_t size = size_of(whole);
  for (size_t keep = size - 1; keep > 0; keep = keep > 64 ? keep - keep / 16 - 1 : keep - 1) {
    char *path = copy_of(whole, "cut.h5", keep);
    assert_fails(open_and_verify(path, "solution"), E_DATA, "cut.h5");
    assert_done(file_remove(path));
    FREE(path);
  }
}

/* One flipped byte in the data of each dataset: verify names it. */
static void test_flipped_data(void **state) {
  (void)state;
  file_map m;
  for (int i = 0; i < SETS - 1; i++) {
    size_t length = i == 0 ? sizeof numbers : sizeof bytes;
    char *path = copy_of(whole, "flipped.h5", SIZE_MAX);
    assert_done(file_map_open(whole, &m));
    const unsigned char *at = memmem(m.data, m.bytes, sets[i].data, length);
    assert_non_null(at);
    unsigned char flipped = at[length / 2] ^ 0x10;
    int fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, &flipped, 1, at - m.data + (off_t)(length / 2)), 1);
    close(fd);
    file_map_close(&m);
    assert_fails(open_and_verify(path, "solution"), E_DATA, sets[i].path);
    assert_done(file_remove(path));
    FREE(path);
  }
}

static char *everything(container *c, size_t *length) {
  char *text = NULL;
  FILE *f = open_memstream(&text, length);
  const char *const objects[] = {"", "attn_in", "attn_in/tiles", "attn_in/deep", "attn_in/deep/codes", "small"};
  for (size_t i = 0; i < sizeof objects / sizeof *objects; i++) {
    attributes a = {0};
    assert_done(container_attributes(c, objects[i], &a));
    for (int k = 0; k < a.count; k++)
      fprintf(f, "%s %s %d %s %ld %a\n", objects[i], a.list[k].name, (int)a.list[k].kind, a.list[k].text ? a.list[k].text : "",
              (long)a.list[k].integer, a.list[k].real);
    attr_free(&a);
  }
  for (int i = 0; i < SETS; i++) {
    element type;
    int rank;
    int64_t dims[3];
    char data[sizeof numbers] = {0};
    assert_done(container_shape(c, sets[i].path, &type, &rank, dims));
    assert_done(container_read(c, sets[i].path, type, 0, dims[0], data));
    fwrite(dims, 1, sizeof dims, f);
    fwrite(data, 1, sizeof data, f);
  }
  fclose(f);
  return text;
}

/* Every byte of a file, flipped in every second bit: found, or the file still says the same. It never crashes. */
static void test_flipped_anywhere(void **state) {
  (void)state;
  char *path = copy_of(whole, "flipped.h5", SIZE_MAX);
  size_t size = size_of(path), length, now, found = 0;
  container *c = NULL;
  assert_done(container_open(path, "solution", &c));
  char *good = everything(c, &length);
  container_close(&c);
  int fd = open(path, O_RDWR);
  for (size_t at = 0; at < size; at++) {
    unsigned char was, flipped;
    assert_int_equal(pread(fd, &was, 1, (off_t)at), 1);
    flipped = was ^ (at % 2 ? 0x55 : 0xaa);
    assert_int_equal(pwrite(fd, &flipped, 1, (off_t)at), 1);
    status st = container_open(path, "solution", &c);
    if (st == OK) st = container_verify(c, NULL);
    if (st == OK) {
      char *text = everything(c, &now);
      if (now != length || memcmp(text, good, length) != 0) fail_msg("byte %zu: changed the file unnoticed", at);
      free(text);
    } else {
      found++;
      if (st != E_DATA) fail_msg("byte %zu: status %d: %s", at, (int)st, status_message());
    }
    status_clear();
    container_close(&c);
    assert_int_equal(pwrite(fd, &was, 1, (off_t)at), 1);
  }
  close(fd);
  free(good);
  assert_true(found > sizeof numbers + sizeof bytes);
  assert_done(open_and_verify(path, "solution"));
  assert_done(file_remove(path));
  FREE(path);
}

static void test_master(void **state) {
  (void)state;
  container *c = NULL;
  attributes a = {0};
  char **names;
  int count;
  char *path = path_join(folder, "run.h5");
  const master_link links[] = {
      {"solutions/cloq-b2-g64/layer-000", "whole.h5"}, {"grams/layer-000", "none/of ..that.h5"}, {"grams/layer-001", "none/x.h5"}};
  assert_done(attr_text(&a, "model", "x"));
  assert_done(container_write_master(path, "1", &a, links, 3));
  assert_done(container_open(path, "run", &c));
  assert_done(container_groups(c, &names, &count));
  assert_int_equal(count, 2);
  assert_string_equal(names[0], "solutions");
  container_names_free(&names, count);
  assert_true(container_has(c, "solutions/cloq-b2-g64"));
  assert_false(container_has(c, "solutions/cloq-b2-g64/layer-000"));
  assert_false(container_has(c, "solutions/cloq-b2-g64/layer-000/small"));
  assert_done(container_verify(c, NULL));
  container_close(&c);

  const char *const outside[] = {"/etc/passwd", "../x.h5", "a/../../x.h5", "a/..", "..", ""};
  for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) {
    master_link bad = {"x", outside[i]};
    assert_fails(container_write_master(path, "1", &a, &bad, 1), E_INTERNAL, "inside the folder");
  }
  const master_link twice[] = {{"a", "x.h5"}, {"a", "y.h5"}}, step = {"a/../b", "x.h5"};
  assert_fails(container_write_master(path, "1", &a, twice, 2), E_IO, "run.h5: a: link");
  assert_fails(container_write_master(path, "1", &a, &step, 1), E_INTERNAL, "plain names");
  assert_done(open_and_verify(path, "run")); /* the good one still stands */
  assert_done(file_remove(path));
  assert_fails(container_write_master("/nowhere/at/all/run.h5", "1", &a, links, 1), E_IO, "No such file");
  attr_free(&a);
  FREE(path);
}

static float entry(int64_t i, int64_t j) { return (float)(i >= j ? i * 1009 + j : j * 1009 + i); }

/* Tiles of a matrix that is symmetric by construction; garbage where nobody may look. Tile by tile, as from a file. */
static void test_tiles(void **state) {
  (void)state;
  for (int64_t n = 1; n < 80; n += n % 3 ? 5 : 17) {
    for (int64_t t = 1; t <= 40; t += 13) {
      int64_t count = tiles_count(n, t), side = tiles_per_side(n, t);
      float *tiles = malloc((size_t)(count * t * t) * sizeof *tiles), *full = malloc((size_t)(n * n) * sizeof *full);
      for (int64_t i = 0; i < side; i++)
        for (int64_t j = 0; j <= i; j++)
          for (int64_t r = 0; r < t; r++)
            for (int64_t c = 0; c < t; c++)
              tiles[tile_index(i, j) * t * t + r * t + c] = i * t + r < n && j * t + c <= i * t + r ? entry(i * t + r, j * t + c) : -1;
      memset(full, 0xff, (size_t)(n * n) * sizeof *full);
      for (int64_t k = 0; k < count;) {
        int64_t end = k + 1 + k % 3 < count ? k + 1 + k % 3 : count;
        tiles_expand(n, t, k, end, tiles + k * t * t, full);
        k = end;
      }
      for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++)
          if (full[i * n + j] != entry(i, j))
            fail_msg("n %ld, tile %ld: (%ld, %ld) is %g", (long)n, (long)t, (long)i, (long)j, (double)full[i * n + j]);
      free(tiles);
      free(full);
    }
  }
}

static int set_up(void **state) {
  (void)state;
  attributes root = {0}, deep = {0};
  if (!mkdtemp(folder)) return -1;
  for (int i = 0; i < NUMBERS; i++) {
    numbers[i] = (float)(i + 1) * 0.37f;
    bytes[i] = (uint8_t)(200 - 3 * i);
  }
  assert_done(team_new(MPI_COMM_SELF, 1, &alone));
  assert_done(attr_text(&root, "model_fingerprint", "0123456789abcdef, a text that lies in the global heap"));
  assert_done(attr_int(&deep, "level", 2));
  assert_done(attr_real(&deep, "damping", 0.01));
  whole = path_join(folder, "good.h5");
  assert_done(container_write(&alone, whole, "1", "solution", sets, SETS, (group_attributes[]){{"", &root}, {"attn_in/deep", &deep}}, 2));
  attr_free(&root);
  attr_free(&deep);
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  team_free(&alone);
  assert_done(file_remove(whole));
  FREE(whole);
  assert_int_equal(rmdir(folder), 0);
  assert_int_equal(mem_now(), 0);
  return 0;
}

int main(int argc, char **argv) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_attributes), cmocka_unit_test(test_not_a_container), cmocka_unit_test(test_kind_and_shape),
      cmocka_unit_test(test_truncated),  cmocka_unit_test(test_flipped_data),    cmocka_unit_test(test_flipped_anywhere),
      cmocka_unit_test(test_master),     cmocka_unit_test(test_tiles),
  };
  container_choose_io();
  MPI_Init(&argc, &argv);
  int failures = cmocka_run_group_tests(tests, set_up, tear_down);
  MPI_Finalize();
  return failures;
}
