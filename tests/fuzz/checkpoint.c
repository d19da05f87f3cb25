/* Input: how many bytes of data the shard has (2 bytes, little-endian), config.json, a zero byte, model.safetensors.index.json, a zero byte,
 * the header of the shard, a.safetensors. Nothing but files of the folder may be opened. */
#include "fuzz.h"

#include <sys/stat.h>

#include "model/checkpoint.h"

static char folder[32];

static void put(const char *name, const void *head, size_t head_size, const uint8_t *data, size_t size, size_t zeros) {
  char path[96];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  FILE *f = fopen(path, "w");
  HOLDS(f && fwrite(head, 1, head_size, f) == head_size && fwrite(data, 1, size, f) == size && fflush(f) == 0);
  HOLDS(ftruncate(fileno(f), (off_t)(head_size + size + zeros)) == 0 && fclose(f) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  checkpoint c;
  if (!*folder) {
    snprintf(folder, sizeof folder, "model.%ld", (long)getpid());
    HOLDS(mkdir(folder, 0700) == 0);
  }
  if (size < 2) return 0;
  const uint8_t *end = data + size, *config = data + 2, *index, *header;
  size_t body = (size_t)data[0] | (size_t)data[1] << 8;
  const uint8_t *zero = memchr(config, 0, (size_t)(end - config));
  index = zero ? zero + 1 : end;
  zero = memchr(index, 0, (size_t)(end - index));
  header = zero ? zero + 1 : end;
  uint64_t length = (uint64_t)(end - header);
  put("config.json", "", 0, config, (size_t)(index - config) - (index < end), 0);
  put("model.safetensors.index.json", "", 0, index, index < end ? (size_t)(header - index) - (header < end) : 0, 0);
  put("a.safetensors", &length, 8, header, (size_t)(end - header), body);
  status st = checkpoint_open(folder, &c);
  if (st == OK) {
    float row[64];
    for (size_t i = 0; i < c.file_count; i++)
      HOLDS(strncmp(c.files[i].path, folder, strlen(folder)) == 0 && !strstr(c.files[i].path, "/../"));
    tensor_ref r = checkpoint_embedding(&c);
    if (r.cols <= 64) HOLDS(tensor_rows(&r, r.rows - 1, r.rows, row) == OK);
    checkpoint_close(&c);
  }
  fuzz_end(st);
  return 0;
}
