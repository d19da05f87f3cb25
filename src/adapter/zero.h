/* The start of plain LoRA and QLoRA (arXiv 2305.14314): A random, B = 0, the model is the quantized one. Local.
 *
 * A is uniform on (-1, 1) / sqrt(m): Kaiming's with a = sqrt(5), as the common adapter library starts it; rank r is the first r rows. An entry is a function
 * of the tensor's name, the seed and its place alone, in integers up to its one rounding: the same bits everywhere. */
#ifndef CLOQWORK_ADAPTER_ZERO_H
#define CLOQWORK_ADAPTER_ZERO_H

#include "adapter/adapter.h"

/* q: where, n, m, rank >= 1, trace (the loss without adapter, which is its loss at every rank). values are 0. E_MEMORY, E_INTERNAL. */
status adapter_zero(const adapter_request *q, const char *name, uint64_t seed, adapter *out);

#endif
