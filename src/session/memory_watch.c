#include "session/memory_watch.h"

#include "base/memory.h"
#include "dist/team.h"

static uint64_t private_most, shared_most;

void memory_watch(void) {
  uint64_t now = mem_resident_now().private_bytes;
  if (now > private_most) private_most = now;
  if (shared_peak() > shared_most) shared_most = shared_peak();
}

uint64_t memory_watch_private(void) { return private_most; }
uint64_t memory_watch_shared(void) { return shared_most; }
