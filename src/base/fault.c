#include "base/fault.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool armed;
static uint64_t count, target;
static char place[64];

void fault_setup(int rank) {
  const char *text = getenv("CLOQWORK_FAULT");
  int on_rank = -1;
  unsigned long long nth = 0;
  armed = text && sscanf(text, "%d:%llu", &on_rank, &nth) == 2 && on_rank == rank;
  count = 0;
  target = nth;
  *place = 0;
}

bool fault_at(const char *file, int line) {
  if (!armed || ++count != target) return false;
  const char *room = strstr(file, "src/");
  snprintf(place, sizeof place, "%s:%d", room ? room + 4 : file, line);
  return true;
}

uint64_t fault_count(void) { return count; }
const char *fault_place(void) { return place; }
