/* How much a weight matters, w_ij^2 / d_j^2, with d from the factor of OPTQ. Local.
 * Source: spec methods section 12; BiLLM (arXiv 2402.04291) and SliM-LLM (arXiv 2405.14917).
 *
 * Hd = U U^T, U upper (quant/optq.h). `inv`, as the papers write: d_j = [Hd^-1]_jj, the squared norm of column j of U^-1, which knows no
 * order of the columns. `chol`, as their programs compute: d_j = F_jj = 1 / U_jj with Hd^-1 = F^T F, which is the square root of the same
 * with the columns before j left out. */
#ifndef CLOQWORK_QUANT_SALIENCE_H
#define CLOQWORK_QUANT_SALIENCE_H

#include <stdint.h>

#include "base/status.h"

enum { SALIENCE_BLOCK = 256 };

/* d[width], by original column: the entries of processing positions [begin, end) are written, the others left. u (width, width) upper,
 * row-major (the strict lower triangle is not read), order: position -> column, NULL natural; both borrowed. begin is a multiple of
 * SALIENCE_BLOCK, end too, or width: what an entry becomes does not depend on the range, so ranks may share the positions (the last ones
 * are the dearest: end^2 flops a position, width^3 / 3 in all). E_MEMORY; E_NUMERICS: a diagonal entry of u that is not positive. */
status salience_inverse(int width, const double *u, const int32_t *order, int begin, int end, double *d);

/* The same by the diagonal of the factor alone, at once for all positions. E_NUMERICS. */
status salience_factor(int width, const double *u, const int32_t *order, double *d);

double salience_flops(int64_t width);   /* of salience_inverse for all positions */
uint64_t salience_bytes(int64_t width); /* its workspace */

#endif
