/* The ground floor: 16-bit floats, files, locks, JSON, hashes, memory, words of failure. */
#include "check.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/half.h"
#include "base/hash.h"
#include "base/json.h"
#include "base/memory.h"

static char folder[] = "/tmp/cloqwork-base-XXXXXX";

static int enter_folder(void **state) {
  (void)state;
  return mkdtemp(folder) && chdir(folder) == 0 ? 0 : 1;
}

static int leave_folder(void **state) {
  (void)state;
  return chdir("/") == 0 ? rmdir(folder) : 1;
}

/* ---- 16-bit floats ---- */

static double half_value(unsigned h) { /* from the definition */
  int exponent = (int)(h >> 10 & 31), mantissa = (int)(h & 1023);
  double sign = h & 0x8000 ? -1 : 1;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  return sign * (exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24));
}

static void test_half_exhaustive(void **state) {
  (void)state;
  uint16_t *all;
  float *floats, *brains;
  assert_done(NEW(all, 65536, "halves"));
  assert_done(NEW(floats, 65536, "floats"));
  assert_done(NEW(brains, 65536, "floats"));
  for (unsigned h = 0; h < 65536; h++) all[h] = (uint16_t)h;
  half_to_float_array(floats, all, 65536);
  bf16_to_float_array(brains, all, 65536);
  for (unsigned h = 0; h < 65536; h++) {
    double value = half_value(h);
    float one = half_to_float((uint16_t)h), brain = bf16_to_float((uint16_t)h);
    if (isnan(value)) {
      assert_true(isnan(one) && isnan(floats[h]) && isnan(half_to_float(float_to_half(one))));
    } else {
      assert_true(one == value && floats[h] == value && (signbit(one) != 0) == (h >> 15 != 0));
      assert_int_equal(float_to_half(one), h);
    }
    assert_memory_equal(&brain, &brains[h], sizeof brain);
    if (isnan(brain))
      assert_true(isnan(bf16_to_float(float_to_bf16(brain))));
    else
      assert_int_equal(float_to_bf16(brain), h);
  }
  FREE(all);
  FREE(floats);
  FREE(brains);
}

/* Between two neighbours: below the middle goes down, above goes up, the middle itself to the even one. */
static void test_half_rounding(void **state) {
  (void)state;
  for (unsigned h = 0; h < 0x7c00; h++) {
    double low = half_value(h), high = h + 1 == 0x7c00 ? 65536 : half_value(h + 1); /* infinity begins where 65536 would be nearer */
    float middle = (float)((low + high) / 2), below = nextafterf(middle, 0), above = nextafterf(middle, INFINITY);
    unsigned even = h & 1 ? h + 1 : h;
    assert_int_equal(float_to_half(middle), even);
    assert_int_equal(float_to_half(below), h);
    assert_int_equal(float_to_half(above), h + 1);
    assert_int_equal(float_to_half(-middle), even | 0x8000);
    assert_int_equal(float_to_half(-above), (h + 1) | 0x8000);
  }
  assert_int_equal(float_to_half(1e9f), 0x7c00);
  assert_int_equal(float_to_half(-INFINITY), 0xfc00);
  assert_int_equal(float_to_half(1e-30f), 0);
  assert_int_equal(float_to_half(-0.0f), 0x8000);
  assert_true(isnan(half_to_float(float_to_half(NAN))) && isnan(half_to_float(float_to_half(-NAN))));
}

static void test_bf16_rounding(void **state) {
  (void)state;
  for (unsigned h = 0; h < 0x7f80; h++) {
    uint32_t bits = h << 16 | 0x8000; /* the middle */
    float f;
    for (int step = -1; step <= 1; step++) {
      uint32_t near = bits + (uint32_t)step;
      memcpy(&f, &near, sizeof f);
      unsigned expected = step < 0 ? h : step > 0 ? h + 1 : h + (h & 1);
      assert_int_equal(float_to_bf16(f), expected);
      assert_int_equal(float_to_bf16(-f), expected | 0x8000);
    }
  }
  uint32_t quiet = 0x7f800001; /* a NaN whose upper half alone would be infinity */
  float f;
  memcpy(&f, &quiet, sizeof f);
  assert_true(isnan(bf16_to_float(float_to_bf16(f))));
}

/* ---- files ---- */

static void assert_text(const char *path, const char *expected) {
  char *text;
  size_t bytes;
  assert_done(file_read(path, 1 << 20, &text, &bytes));
  assert_int_equal(bytes, strlen(expected));
  assert_string_equal(text, expected);
  FREE(text);
}

static void test_write_atomic(void **state) {
  (void)state;
  assert_done(file_write_atomic("result", "first", 5));
  assert_text("result", "first");
  assert_done(file_write_atomic("result", "", 0));
  assert_text("result", "");
  assert_done(file_write_atomic("result", "second", 6));
  assert_text("result", "second");
  assert_done(file_append_line("result", " and more"));
  assert_text("result", "second and more\n");
  char line[128];
  snprintf(line, sizeof line, "missing/result.tmp.%ld: cannot be made: No such file or directory", (long)getpid());
  assert_refused(file_write_atomic("missing/result", "x", 1), E_IO, line);
  assert_done(file_remove("result"));
  assert_done(file_remove("result")); /* missing is fine */
  assert_false(file_exists("result"));
}

/* Whichever step fails, the old file stays as it was and no temporary is left. */
static void test_write_faults(void **state) {
  (void)state;
  int steps = 0;
  assert_done(file_write_atomic("kept", "old", 3));
  for (;; steps++) {
    char text[32];
    snprintf(text, sizeof text, "0:%d", steps + 1);
    setenv("CLOQWORK_FAULT", text, 1);
    fault_setup(0);
    status st = file_write_atomic("kept", "new", 3);
    bool injected = fault_count() > (uint64_t)steps;
    unsetenv("CLOQWORK_FAULT");
    fault_setup(0);
    if (!injected) break;
    assert_true(st == E_IO || st == E_MEMORY);
    assert_true(strlen(status_message()) > 0);
    status_clear();
    char *now;
    size_t bytes;
    assert_done(file_read("kept", 100, &now, &bytes));
    assert_true(strcmp(now, "old") == 0 || strcmp(now, "new") == 0); /* new: only the folder's sync failed */
    FREE(now);
    assert_int_equal(system("test $(ls | wc -l) = 1"), 0);
    assert_done(file_write_atomic("kept", "old", 3));
  }
  assert_true(steps >= 4); /* memory, write, sync, rename, sync of the folder */
  assert_text("kept", "new");
  assert_done(file_remove("kept"));
}

static void test_files(void **state) {
  (void)state;
  char *text;
  size_t bytes;
  file_map m;
  assert_done(file_make_folders("a/b/c"));
  assert_done(file_make_folders("a/b/c"));
  assert_done(file_write_atomic("a/b/file", "data", 4));
  assert_refused(file_make_folders("a/b/file/d"), E_IO, "a/b/file: the folder cannot be made: Not a directory");
  assert_refused(file_read("a/none", 10, &text, &bytes), E_DATA, "a/none: cannot be opened: No such file or directory");
  assert_refused(file_read("a/b/file", 3, &text, &bytes), E_DATA, "a/b/file: expected at most 3 bytes, found 4");
  assert_refused(file_map_open("a", &m), E_DATA, "a: expected a regular file, found something else");
  assert_int_equal(mkfifo("a/pipe", 0600), 0); /* nobody writes to it: waiting would be for ever */
  assert_refused(file_map_open("a/pipe", &m), E_DATA, "a/pipe: expected a regular file, found something else");
  assert_done(file_map_open("a/b/file", &m));
  assert_int_equal(m.bytes, 4);
  assert_memory_equal(m.data, "data", 4);
  file_map_close(&m);
  assert_done(file_write_atomic("a/x.tmp.1", "", 0));
  assert_done(file_write_atomic("a/y.tmp.22", "", 0));
  assert_done(file_write_atomic("a/kept", "", 0));
  assert_done(file_remove_matching("a", ".tmp."));
  assert_done(file_remove_matching("a/nowhere", ".tmp."));
  assert_true(!file_exists("a/x.tmp.1") && !file_exists("a/y.tmp.22") && file_exists("a/kept") && file_exists("a/b"));
  char *joined = path_join("a/", "kept"), *other = path_join("a", "kept");
  assert_string_equal(joined, "a/kept");
  assert_string_equal(other, "a/kept");
  FREE(joined);
  FREE(other);
  uint64_t free_bytes = 0;
  assert_done(file_free_space("a", &free_bytes));
  assert_true(free_bytes > 0);
  assert_int_equal(system("rm -r a"), 0);
}

static void leave_lock(const char *text) {
  FILE *f = fopen("lock", "w");
  assert_non_null(f);
  fputs(text, f);
  fclose(f);
}

static void test_lock(void **state) {
  (void)state;
  char host[256] = "", line[600], text[300];
  int lock, other;
  gethostname(host, sizeof host - 1);
  assert_done(file_lock("lock", "job-1", &lock));
  snprintf(line, sizeof line, "lock: expected no other job on this run directory, found one (job-1 %s %ld)", host, (long)getpid());
  assert_refused(file_lock("lock", "job-2", &other), E_IO, line);
  assert_int_equal(other, -1);
  file_unlock("lock", &other);
  assert_true(file_exists("lock"));
  file_unlock("lock", &lock);
  assert_false(file_exists("lock"));

  snprintf(text, sizeof text, "job-1 %s 1\n", host); /* this host, a process number that lives: nobody holds it */
  leave_lock(text);
  assert_done(file_lock("lock", "job-2", &lock));
  file_unlock("lock", &lock);
  leave_lock("job-1 elsewhere 1\n");
  assert_refused(
      file_lock("lock", "job-2", &lock), E_IO,
      "lock: expected no other job on this run directory, found one (job-1 elsewhere 1); if that job has ended, remove the file");
  assert_done(file_lock("lock", "job-1", &lock));
  file_unlock("lock", &lock);
  leave_lock("");
  assert_done(file_lock("lock", "job-2", &lock));
  file_unlock("lock", &lock);
  assert_refused(file_lock("nowhere/lock", "job", &lock), E_IO, "nowhere/lock: cannot be made: No such file or directory");
}

/* ---- JSON ---- */

static void test_json(void **state) {
  (void)state;
  json_t *o;
  int64_t i;
  double x;
  bool b;
  const char *s;
  assert_int_equal(json_parse("config.json", "{\"a\": 1, \"b\": 2, \"a\": 3}", 24, &o), E_DATA);
  assert_non_null(strstr(status_message(), "config.json: line 1: not valid JSON: duplicate object key"));
  status_clear();
  assert_int_equal(json_parse("config.json", "{\"a\": 1\n", 8, &o), E_DATA);
  assert_non_null(strstr(status_message(), "config.json: line 2: not valid JSON: "));
  status_clear();
  assert_null(o);
  const char text[] = "{\"i\": 7, \"x\": 0.5, \"b\": true, \"s\": \"text\", \"n\": null, \"l\": []}";
  assert_done(file_write_atomic("o.json", text, sizeof text - 1));
  assert_done(json_read_file("o.json", 1000, &o));
  assert_done(file_remove("o.json"));
  assert_done(json_get_int(o, "o", "i", 0, 10, -1, &i));
  assert_int_equal(i, 7);
  assert_done(json_get_int(o, "o", "missing", 0, 10, -1, &i));
  assert_int_equal(i, -1);
  assert_done(json_get_int(o, "o", "n", 0, 10, -2, &i));
  assert_int_equal(i, -2);
  assert_refused(json_need_int(o, "o", "missing", 0, 10, &i), E_DATA, "o: missing: expected an integer, found nothing");
  assert_refused(json_need_int(o, "o", "n", 0, 10, &i), E_DATA, "o: n: expected an integer, found nothing");
  assert_refused(json_need_int(o, "o", "x", 0, 10, &i), E_DATA, "o: x: expected an integer, found a real number");
  assert_refused(json_need_int(o, "o", "i", 8, 10, &i), E_DATA, "o: i: expected 8 to 10, found 7");
  assert_done(json_get_real(o, "o", "x", 1, &x));
  assert_true(x == 0.5);
  assert_done(json_get_real(o, "o", "i", 1, &x));
  assert_true(x == 7);
  assert_done(json_get_real(o, "o", "missing", 1.5, &x));
  assert_true(x == 1.5);
  assert_refused(json_get_real(o, "o", "s", 1, &x), E_DATA, "o: s: expected a number, found a string");
  assert_done(json_get_bool(o, "o", "b", false, &b));
  assert_true(b);
  assert_refused(json_get_bool(o, "o", "l", false, &b), E_DATA, "o: l: expected true or false, found a list");
  assert_done(json_get_string(o, "o", "s", NULL, &s));
  assert_string_equal(s, "text");
  assert_refused(json_get_string(o, "o", "b", NULL, &s), E_DATA, "o: b: expected a string, found true");
  json_drop(&o);
  assert_null(o);
  json_drop(&o);
}

/* ---- hash, memory, clock, status ---- */

static void test_hash(void **state) {
  (void)state;
  char hex[HASH_HEX], again[HASH_HEX];
  assert_done(hash_bytes("abc", 3, hex)); /* FIPS 180-4 */
  assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  assert_done(hash_bytes("", 0, hex));
  assert_string_equal(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  hash *h;
  assert_done(hash_new(&h));
  assert_done(hash_add_text(h, "ab"));
  assert_done(hash_add_text(h, "c"));
  assert_done(hash_end(&h, hex));
  assert_null(h);
  assert_done(hash_bytes("ab\0c", 5, again));
  assert_string_equal(hex, again);
  assert_done(hash_new(&h));
  assert_done(hash_add_text(h, "a"));
  assert_done(hash_add_text(h, "bc"));
  assert_done(hash_end(&h, again));
  assert_string_not_equal(hex, again);
}

static void test_memory(void **state) {
  (void)state;
  uint64_t before = mem_now();
  double *p, *q;
  assert_done(NEW(p, 1000, "a"));
  uint64_t with_p = mem_now();
  assert_in_range(with_p - before, 8000, 8200);
  assert_int_equal((uintptr_t)p % 64, 0);
  for (int i = 0; i < 1000; i++) assert_true(p[i] == 0);
  assert_done(NEW(q, 4 << 20, "b")); /* large: huge pages */
  assert_true(mem_peak() >= with_p + (32 << 20));
  assert_true(q[(4 << 20) - 1] == 0);
  FREE(q);
  assert_null(q);
  FREE(q);
  assert_int_equal(mem_now(), with_p);
  FREE(p);
  assert_int_equal(mem_now(), before);
  assert_done(NEW(p, 0, "nothing"));
  assert_non_null(p);
  FREE(p);
  assert_refused(NEW(p, SIZE_MAX / 4, "too much"), E_MEMORY,
                 "memory: too much: 4611686018427387903 elements of 8 bytes are more than an address can hold");
  assert_null(p);
  setenv("CLOQWORK_FAULT", "3:2", 1);
  fault_setup(0); /* another rank's fault */
  assert_done(NEW(p, 1, "x"));
  FREE(p);
  fault_setup(3);
  assert_done(NEW(p, 1, "x"));
  assert_refused(NEW(q, 1 << 27, "the second"), E_MEMORY, "memory: the second: 1.000 GiB refused by the system");
  assert_int_equal(fault_count(), 2);
  unsetenv("CLOQWORK_FAULT");
  fault_setup(0);
  FREE(p);
  char *text = mem_format("%s-%d", "x", 5);
  assert_string_equal(text, "x-5");
  FREE(text);
  assert_int_equal(mem_now(), before);
  assert_true(mem_machine_total() > 0 && mem_resident_now().private_bytes > 0);
}

static void test_clock(void **state) {
  (void)state;
  static const struct {
    double seconds;
    const char *text;
  } cases[] = {{0, "0.0 s"}, {3.44, "3.4 s"}, {61, "1 min 01 s"}, {3599.9, "1 h 00 min"}, {7260, "2 h 01 min"}, {-1, "0.0 s"}};
  char text[32];
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    clock_duration(cases[i].seconds, text);
    assert_string_equal(text, cases[i].text);
  }
  clock_stamp(text);
  assert_int_equal(strlen(text), 20);
  assert_true(text[4] == '-' && text[10] == 'T' && text[19] == 'Z');
  double start = clock_now();
  assert_true(clock_now() >= start);
}

static void test_status(void **state) {
  (void)state;
  assert_int_equal(status_fail("x/y.c", 7, E_DATA, "first: expected %d", 1), E_DATA);
  assert_int_equal(status_fail("x/y.c", 8, E_IO, "second"), E_IO); /* the first message stays */
  assert_string_equal(status_message(), "first: expected 1");
  status_clear();
  assert_int_equal(status_fail("x/y.c", 9, E_NUMERICS, "deep"), E_NUMERICS);
  assert_string_equal(status_message(), "deep [y.c:9]");
  status_clear();
  static const struct {
    status st;
    int code;
  } codes[] = {{OK, 0}, {E_USAGE, 2}, {E_DATA, 3}, {E_MEMORY, 4}, {E_NUMERICS, 5}, {E_IO, 6}, {E_INTERNAL, 70}, {E_STOPPED, 75}};
  for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) assert_int_equal(status_exit_code(codes[i].st), codes[i].code);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_half_exhaustive),
      cmocka_unit_test(test_half_rounding),
      cmocka_unit_test(test_bf16_rounding),
      cmocka_unit_test(test_write_atomic),
      cmocka_unit_test(test_write_faults),
      cmocka_unit_test(test_files),
      cmocka_unit_test(test_lock),
      cmocka_unit_test(test_json),
      cmocka_unit_test(test_hash),
      cmocka_unit_test(test_memory),
      cmocka_unit_test(test_clock),
      cmocka_unit_test(test_status),
  };
  return cmocka_run_group_tests(tests, enter_folder, leave_folder);
}
