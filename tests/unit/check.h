/* cmocka beside our own names, and the two checks that every unit test needs: a call that must succeed, a call that must be refused. */
#ifndef CLOQWORK_TESTS_UNIT_CHECK_H
#define CLOQWORK_TESTS_UNIT_CHECK_H

#include "base/status.h"
#undef fail /* cmocka has a macro of that name; tests use cmocka's */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#define assert_done(call)                                                                      \
  do {                                                                                         \
    status check_st = (call);                                                                  \
    if (check_st != OK) fail_msg("%s: status %d: %s", #call, (int)check_st, status_message()); \
  } while (0)

/* The call returns this status and this whole line; no message stays behind. */
#define assert_refused(call, expected_status, line)                                                                     \
  do {                                                                                                                  \
    status check_st = (call);                                                                                           \
    if (check_st != (expected_status))                                                                                  \
      fail_msg("%s: expected status %d, found %d: %s", #call, (int)(expected_status), (int)check_st, status_message()); \
    assert_string_equal(status_message(), (line));                                                                      \
    status_clear();                                                                                                     \
  } while (0)

#endif
