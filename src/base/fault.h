/* Fault injection for tests: CLOQWORK_FAULT="RANK:N" makes the N-th fallible operation (allocation, read, write, library call)
 * of that rank fail; "RANK:0" only counts them (the count is logged at the end). Local. */
#ifndef CLOQWORK_BASE_FAULT_H
#define CLOQWORK_BASE_FAULT_H

#include <stdbool.h>
#include <stdint.h>

void fault_setup(int rank);
bool fault_here(void); /* true: pretend that the operation about to happen failed */
uint64_t fault_count(void);

#endif
