#include "calibrate/segments.h"

#include "model/kernels.h"

enum { SEGMENT_TOKENS = 512, SEGMENTS = 4 /* of a chunk of short windows */ };

/* Of a chunk's windows so many lie in one segment, or each is cut into so many parts of so many rows. */
typedef struct cut {
  int windows, parts;
  int64_t rows;
} cut;

static cut cut_of(int64_t length) {
  int of_chunk = windows_per_chunk(length);
  if (of_chunk >= SEGMENTS) return (cut){(of_chunk + SEGMENTS - 1) / SEGMENTS, 1, length};
  int64_t parts = (length + SEGMENT_TOKENS - 1) / SEGMENT_TOKENS, rows = (length + parts - 1) / parts;
  return (cut){1, (int)parts, (rows + KERNEL_QUERIES - 1) / KERNEL_QUERIES * KERNEL_QUERIES};
}

static int cut_windows(const cut *c, int count) { return (count + c->windows - 1) / c->windows * c->parts; }

int segments_per_chunk(int64_t length) {
  cut c = cut_of(length);
  return cut_windows(&c, windows_per_chunk(length));
}

int segments_parts(int64_t length) { return cut_of(length).parts; }

int64_t segments_most_rows(int64_t length) {
  cut c = cut_of(length);
  return c.windows * (c.rows < length ? c.rows : length);
}

int segments_before(const windows *w, int chunk) {
  cut c = cut_of(w->length);
  int last = windows_chunks(w) - 1;
  if (chunk <= last) return chunk * segments_per_chunk(w->length);
  return last * segments_per_chunk(w->length) + cut_windows(&c, windows_in_chunk(w, last));
}

int segments_count(const windows *w) { return segments_before(w, windows_chunks(w)); }

segment segment_at(const windows *w, int index) {
  cut c = cut_of(w->length);
  int chunk = index / segments_per_chunk(w->length), within = index % segments_per_chunk(w->length);
  int window = within / c.parts * c.windows, left = windows_in_chunk(w, chunk) - window;
  int64_t begin = within % c.parts * c.rows, end = begin + c.rows < w->length ? begin + c.rows : w->length;
  block_rows rows = {left < c.windows ? left : c.windows, w->length, begin, end};
  return (segment){chunk, window * w->length, window * w->length + begin, within % c.parts, block_count(&rows), rows};
}

int segment_of_turn(int turn, int rank, int ranks) { return turn * ranks + (turn % 2 ? ranks - 1 - rank : rank); }

int segment_owner(int index, int ranks) {
  int at = index % ranks;
  return index / ranks % 2 ? ranks - 1 - at : at;
}

int segment_turns(int count, int rank, int ranks) {
  int whole = count / ranks;
  return whole + (segment_of_turn(whole, rank, ranks) < count);
}

int segments_most_turns(const windows *w, int ranks) { return (segments_count(w) + ranks - 1) / ranks; }
