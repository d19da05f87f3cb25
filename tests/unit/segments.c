/* Segments: every row of a set once, in order, cut where attention may be cut; dealt to ranks without a gap. */
#include "check.h"

#include "calibrate/segments.h"
#include "model/kernels.h"

/* As a pass walks: chunk by chunk, each full one with as many segments. */
static void cover(int64_t count, int64_t length) {
  windows w = {.count = count, .length = length};
  int64_t row = 0;
  int total = segments_count(&w), chunk = 0;
  for (int i = 0; i < total; i++) {
    segment g = segment_at(&w, i);
    if (g.chunk != chunk) {
      assert_int_equal(g.chunk, chunk + 1);
      assert_int_equal(i, g.chunk * segments_per_chunk(length));
      chunk = g.chunk;
    }
    assert_int_equal(g.chunk * windows_chunk_rows(&w) + g.first, row);
    assert_true(g.count > 0 && g.count <= segments_most_rows(length) && g.count == block_count(&g.rows));
    assert_true(g.rows.length == length && g.window % length == 0 && g.first == g.window + g.rows.begin);
    assert_true(g.rows.sequences == 1 || (g.rows.begin == 0 && g.rows.end == length));
    assert_int_equal(g.rows.begin % KERNEL_QUERIES, 0);
    row += g.count;
  }
  assert_int_equal(chunk, windows_chunks(&w) - 1);
  assert_int_equal(row, count * length);
}

static void every_row_once(void **state) {
  (void)state;
  for (int64_t length = 1; length < 5200; length += length < 40 ? 1 : length < 600 ? 17 : 61)
    for (int64_t count = 1; count <= 3; count++) cover(count, length);
  static const int64_t lengths[] = {4, 64, 128, 250, 511, 512, 513, 682, 683, 1024, 1025, 2047, 2048, 2049, 4096, 32768};
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) cover(37, lengths[i]);
}

static void sizes(void **state) {
  (void)state;
  assert_true(segments_per_chunk(2048) == 4 && segments_most_rows(2048) == 512 && segments_parts(2048) == 4 && segments_parts(128) == 1);
  assert_true(segments_per_chunk(128) == 4 && segments_most_rows(128) == 512);
  assert_true(segments_per_chunk(8192) == 16 && segments_most_rows(8192) == 512);
  assert_true(segments_per_chunk(1100) == 3 && segments_most_rows(1100) == 384); /* 384, 384, 332 */
  assert_true(segments_per_chunk(600) == 6 && segments_most_rows(600) == 384);   /* three windows of two parts */
  windows w = {.count = 5, .length = 2048};
  segment g = segment_at(&w, 7);
  assert_true(g.chunk == 1 && g.window == 0 && g.first == 1536 && g.rows.begin == 1536 && g.rows.end == 2048);
  w = (windows){.count = 9, .length = 400}; /* five windows a chunk, two a segment */
  g = segment_at(&w, 2);
  assert_true(g.chunk == 0 && g.window == 1600 && g.rows.sequences == 1);
  assert_true(segments_count(&w) == 3 + 2 && segment_at(&w, 4).rows.sequences == 2 && segments_before(&w, 1) == 3 &&
              segments_before(&w, 2) == 5);
}

static void dealt_there_and_back(void **state) {
  (void)state;
  for (int ranks = 1; ranks <= 7; ranks++)
    for (int count = 0; count <= 40; count++) {
      int dealt = 0;
      for (int r = 0; r < ranks; r++) {
        int turns = segment_turns(count, r, ranks), last = -1;
        for (int t = 0; t < turns; t++) {
          int index = segment_of_turn(t, r, ranks);
          assert_true(index > last && index < count && index / ranks == t && segment_owner(index, ranks) == r);
          dealt++, last = index;
        }
        assert_true(segment_of_turn(turns, r, ranks) >= count);
        assert_true(turns <= (count + ranks - 1) / ranks);
      }
      assert_int_equal(dealt, count);
    }
  static const int two[] = {0, 1, 1, 0, 0, 1};
  for (int i = 0; i < 6; i++) assert_int_equal(segment_owner(i, 2), two[i]);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_row_once),
      cmocka_unit_test(sizes),
      cmocka_unit_test(dealt_there_and_back),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
