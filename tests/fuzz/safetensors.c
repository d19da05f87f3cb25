/* Input: how many bytes of data follow the header (2 bytes, little-endian), the header; or 0xffff and a whole file. */
#include "fuzz.h"

#include "model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  st_file f;
  char shape[192];
  unsigned sum = 0;
  if (size < 2) return 0;
  size_t body = (size_t)data[0] | (size_t)data[1] << 8, header = size - 2;
  uint64_t length = header;
  unsigned char *whole = calloc(8 + header + body, 1);
  memcpy(whole, &length, 8);
  memcpy(whole + 8, data + 2, header);
  status st = body == 0xffff ? st_open(fuzz_file(data + 2, header), &f) : st_open(fuzz_file(whole, 8 + header + body), &f);
  for (size_t i = 0; st == OK && i < f.count; i++) {
    const st_tensor *t = &f.tensors[i];
    HOLDS(st_find(&f, t->name) == t);
    st_shape_text(t, shape);
    for (const unsigned char *p = st_data(&f, t); p < st_data(&f, t) + (t->end - t->begin); p++) sum += *p;
  }
  if (st == OK) st_close(&f);
  HOLDS(sum < 1u << 31); /* read */
  free(whole);
  fuzz_end(st);
  return 0;
}
