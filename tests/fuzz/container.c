/* Input: a container, a solution of one linear if it is one. HDF5's own checksums always agree, so that its parsers see what the fuzzer has
 * changed: who means harm can compute them, too. */
#include "fuzz.h"

#include <hdf5.h>

#include "solution/solution.h"
#include "store/container.h"

uint32_t H5_checksum_metadata(const void *data, size_t length, uint32_t start);

/* In place of the library's own. A stored checksum follows what it is made of. */
__attribute__((no_sanitize("address"))) uint32_t H5_checksum_metadata(const void *data, size_t length, uint32_t start) {
  (void)start;
  uint32_t stored;
  __builtin_memcpy(&stored, (const char *)data + length, sizeof stored);
  return stored;
}

static void read_solution(container *c) {
  const arch a = {.hidden = 32, .layers = 1, .intermediate = 32, .vocab = 16, .heads = 2, .kv_heads = 2, .head_dim = 16};
  for (int l = 0; l < LIN_COUNT; l++) {
    solution s = {0};
    if (solution_load(c, "fuzz", &a, (linear_id)l, 0, -1, 0, SOLUTION_ALL, &s) == OK) solution_free(&s);
    status_clear();
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  container *c = NULL;
  char **names = NULL;
  int count = 0;
  uint64_t bytes = 0;
  status st = container_open(fuzz_file(data, size), NULL, &c);
  if (st == OK) {
    st = container_verify(c, &bytes);
    HOLDS(bytes <= size);
    status_clear();
    st = container_groups(c, &names, &count);
    container_names_free(&names, count);
    status_clear();
    read_solution(c);
  }
  container_close(&c);
  HOLDS(H5Fget_obj_count(H5F_OBJ_ALL, H5F_OBJ_ALL) == 0);
  fuzz_end(st == OK || *status_message() ? st : OK);
  return 0;
}
