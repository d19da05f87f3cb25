/* Fault injection for tests: CLOQWORK_FAULT="RANK:N" makes the N-th fallible operation (allocation, read, write, library call)
 * of that rank fail; "RANK:0" only counts them (the count is logged at the end). Local. */
#ifndef CLOQWORK_BASE_FAULT_H
#define CLOQWORK_BASE_FAULT_H

#include <stdbool.h>
#include <stdint.h>

void fault_setup(int rank);
#define fault_here() fault_at(__FILE__, __LINE__) /* true: pretend that the operation about to happen failed */
bool fault_at(const char *file, int line);
uint64_t fault_count(void);
const char *fault_place(void); /* where it was made to fail, "base/memory.c:28"; "" before that */

#endif
