/* How the product B A of a solution becomes the pair of an exported adapter. Local. */
#ifndef CLOQWORK_QUANT_SPLIT_H
#define CLOQWORK_QUANT_SPLIT_H

#include "base/status.h"

/* B A = (B S) (S^-1 A), B orthonormal in the solution; S from the roots of the eigenvalues: 1 | S | S^1/2 */
typedef enum factor_split { SPLIT_CLOQ, SPLIT_QERA, SPLIT_BALANCED } factor_split;

const char *split_name(factor_split s);
status split_find(const char *where, const char *name, factor_split *s); /* where: for the message. E_USAGE */

#endif
