/* What the fuzz targets share: bytes of the fuzzer as a file that the code under test opens by name, and what must hold after every run.
 *
 * A target is one LLVMFuzzerTestOneInput: any bytes must be read or refused by a status; a crash, a leak, a hang or a claim that does not
 * hold is a find. run.sh builds and runs them; corpus/NAME holds where they start, found/NAME what was ever found. */
#ifndef CLOQWORK_TESTS_FUZZ_FUZZ_H
#define CLOQWORK_TESTS_FUZZ_FUZZ_H

#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/status.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define HOLDS(claim)                                                             \
  do {                                                                           \
    if (!(claim)) {                                                              \
      fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #claim); \
      abort();                                                                   \
    }                                                                            \
  } while (0)

/* The bytes as the file `input.PID` of the working folder, which run.sh makes and removes; the next call replaces them. */
static inline const char *fuzz_file(const void *data, size_t size) {
  static char name[32];
  static int fd = -1;
  if (fd < 0) {
    snprintf(name, sizeof name, "input.%ld", (long)getpid());
    fd = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  }
  HOLDS(fd >= 0 && ftruncate(fd, 0) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size);
  return name;
}

/* A refusal has a message of one line; nothing stays allocated. */
static inline void fuzz_end(status st) {
  HOLDS(st == OK || (*status_message() && !strchr(status_message(), '\n')));
  HOLDS(st != E_INTERNAL);
  status_clear();
  HOLDS(mem_now() == 0);
}

#endif
