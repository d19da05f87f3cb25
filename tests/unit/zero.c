/* The random start: B is zero to the bit, A is uniform within its bound, a function of name, seed and place alone. */
#include "check.h"

#include <math.h>
#include <string.h>

#include "adapter/zero.h"
#include "base/hash.h"
#include "base/memory.h"

static void uniform(void **state) {
  (void)state;
  enum { N = 40, M = 900, RANK = 16, COUNT = RANK * M };
  adapter a;
  adapter_request q = {.where = "test", .n = N, .m = M, .rank = RANK, .trace = 3.5};
  assert_done(adapter_zero(&q, "model.layers.0.self_attn.q_proj", 0, &a));
  double bound = 1. / 30, sum = 0, square = 0, least = 1, most = -1, lag = 0;
  for (int k = 0; k < COUNT; k++) {
    double x = (double)a.a[k] / bound;
    sum += x;
    square += x * x;
    least = fmin(least, x);
    most = fmax(most, x);
    if (k) lag += x * (double)a.a[k - 1] / bound;
  }
  assert_true(fabs(sum) / COUNT < 4 / sqrt(3. * COUNT)); /* four deviations of a mean of uniform numbers */
  assert_true(fabs(square / COUNT - 1. / 3) < 4 * sqrt(4. / 45 / COUNT));
  assert_true(fabs(lag) / COUNT < 4. / 3 / sqrt(COUNT));
  assert_true(least >= -1 && least < -0.999 && most <= 1 && most > 0.999);
  for (int k = 0; k < N * RANK; k++) assert_true(a.b[k] == 0 && !signbit(a.b[k]));
  for (int r = 0; r < RANK; r++) assert_true(a.values[r] == 0);
  assert_true(a.trace == 3.5 && a.n == N && a.m == M && a.rank == RANK);
  adapter_free(&a);
}

/* The same bits on every machine, so the same digest; a smaller rank is a corner; other names and seeds are other numbers. The digest is that of
 * ten lines of Python. */
static void seeds(void **state) {
  (void)state;
  adapter a, small, other;
  char hex[HASH_HEX];
  adapter_request q = {.where = "test", .n = 8, .m = 64, .rank = 4}, corner = q;
  corner.rank = 2;
  assert_done(adapter_zero(&q, "q_proj", 7, &a));
  assert_done(adapter_zero(&corner, "q_proj", 7, &small));
  assert_memory_equal(a.a, small.a, 2 * 64 * sizeof(float));
  for (int k = 0; k < 2; k++) {
    assert_done(adapter_zero(&q, k ? "q_proj" : "k_proj", k ? 8 : 7, &other));
    int same = 0;
    for (int i = 0; i < 4 * 64; i++) same += other.a[i] == a.a[i];
    assert_int_equal(same, 0);
    adapter_free(&other);
  }
  assert_done(hash_bytes(a.a, 4 * 64 * sizeof(float), hex));
  assert_string_equal(hex, "d3323c4f9fd58458a9eb18ab38aae016bf4d7da8cd35d908200dfb49a07a6804");
  adapter_free(&a);
  adapter_free(&small);
  q.rank = 0;
  assert_int_equal(adapter_zero(&q, "q_proj", 7, &a), E_INTERNAL);
  status_clear();
  assert_int_equal(mem_now(), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(uniform), cmocka_unit_test(seeds)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
