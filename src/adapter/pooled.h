/* The start of a QA-LoRA adapter (arXiv 2309.14717) in closed form: an adapter that reads the SUMS of the input over groups of columns, so that
 * BA is constant on every (row, group) and merges into real zero points. Spec methods section 11.
 *
 * Pool (p, m), p = m / group, adds up groups; P = B C Pool. With K = E H Pool^T and HP = Pool H Pool^T
 *     tr((E - P) H (E - P)^T) = f0 - tr(K HP^+ K^T) + tr((K HP^+ - B C) HP (K HP^+ - B C)^T),     f0 = tr(E H E^T):
 * LR(K HP^+, HP, r), nested over ranks: B = V_r, the leading eigenvectors of K HP^+ K^T, C = B^T K HP^+, f(r) = f0 - sum of the first r values.
 * HP is decomposed; its eigenvalues at or below 1e-7 of the largest count as zero, H being stored in float. The identity holds for any such cut. */
#ifndef CLOQWORK_ADAPTER_POOLED_H
#define CLOQWORK_ADAPTER_POOLED_H

#include "adapter/adapter.h"

/* Local. q: where, n, m, e, h (needed), rank 1 .. min(n, m / group), trace (f0; NaN: computed here); the rest is not used. group divides m;
 * 0: m. out->a (rank, m) = C Pool: equal on every group. E_INTERNAL out of range, E_NUMERICS, E_MEMORY. */
status adapter_pooled(const adapter_request *q, int group, adapter *out);
double adapter_pooled_flops(const adapter_request *q, int group); /* 2 n m p, f0 and small things: m^2 is read, not multiplied */
uint64_t adapter_pooled_bytes(const adapter_request *q, int group);

#endif
