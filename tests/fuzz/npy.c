/* Input: a .npy file, read as a matrix of floats, as a vector of floats, and as token ids. */
#include "fuzz.h"

#include "model/npy.h"
#include "model/tokens.h"

static void read_as(const char *path, const npy_wish *wish) {
  npy f;
  unsigned sum = 0;
  status st = npy_open(path, wish, &f);
  if (st == OK) {
    size_t bytes = (size_t)f.bytes;
    for (int k = 0; k < wish->rank; k++) bytes *= (size_t)f.shape[k];
    for (size_t i = 0; i < bytes; i++) sum += f.data[i];
    HOLDS(f.data + bytes == f.map.data + f.map.bytes && sum <= bytes * 255);
    npy_close(&f);
  }
  fuzz_end(st);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  const npy_wish matrix = {"f", "floats", 2, "numbers"}, vector = {"f", "floats", 1, "numbers"};
  const char *path = fuzz_file(data, size);
  read_as(path, &matrix);
  read_as(path, &vector);
  window_request request = {.path = path, .windows = 2, .length = 3, .how = SAMPLE_RANDOM};
  windows w;
  status st = windows_draw(&request, 256, &w);
  for (int64_t i = 0; st == OK && i < w.count * w.length; i++) HOLDS(w.ids[i] >= 0 && w.ids[i] < 256);
  if (st == OK) windows_free(&w);
  fuzz_end(st);
  return 0;
}
