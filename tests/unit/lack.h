/* Every allocation of a call refused in turn: the status is right and nothing is lost, until the call gets through. */
#ifndef CLOQWORK_TESTS_UNIT_LACK_H
#define CLOQWORK_TESTS_UNIT_LACK_H

#include <stdio.h>
#include <stdlib.h>

#include "base/fault.h"
#include "base/memory.h"
#include "check.h"

static inline void refuse_allocation(int n) { /* 0: none */
  char text[16];
  snprintf(text, sizeof text, "0:%d", n);
  if (n)
    setenv("CLOQWORK_FAULT", text, 1);
  else
    unsetenv("CLOQWORK_FAULT");
  fault_setup(0);
}

/* The statements set `st`; there are more allocations than `least`. */
#define ASSERT_SURVIVES_LACK_OF_MEMORY(least, ...)  \
  do {                                              \
    uint64_t before_ = mem_now();                   \
    status st = E_MEMORY;                           \
    int n_ = 0;                                     \
    while (st != OK) {                              \
      assert_true(++n_ < 100);                      \
      refuse_allocation(n_);                        \
      __VA_ARGS__;                                  \
      refuse_allocation(0);                         \
      status_clear();                               \
      assert_true(mem_now() == before_);            \
      if (st != OK) assert_int_equal(st, E_MEMORY); \
    }                                               \
    assert_true(n_ > (least));                      \
  } while (0)

#endif
