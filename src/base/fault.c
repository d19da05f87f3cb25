#include "base/fault.h"

#include <stdio.h>
#include <stdlib.h>

static bool armed;
static uint64_t count, target;

void fault_setup(int rank) {
  const char *text = getenv("CLOQWORK_FAULT");
  int on_rank = -1;
  unsigned long long nth = 0;
  armed = text && sscanf(text, "%d:%llu", &on_rank, &nth) == 2 && on_rank == rank;
  count = 0;
  target = nth;
}

bool fault_here(void) {
  if (!armed) return false;
  return ++count == target;
}

uint64_t fault_count(void) { return count; }
