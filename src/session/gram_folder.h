/* A folder of Grams as plain files, for other programs and from them.
 *
 *   DIR/grams.json                         tokens, fingerprints, which layers: the sidecar
 *   DIR/layer-000.attn_in.npy              npy: H = sum x x^T of the raw sum over tokens, full, (n, n) float32 or float64
 *   DIR/layer-000.attn_in.mean_abs.npy     mean |x_k|, [n]; max_mean_abs the same: the largest mean over a window
 *   DIR/layer-000.safetensors              or: tensors attn_in, attn_in.mean_abs, attn_in.max_mean_abs of a layer
 *   DIR/heldout/…                          the same of held-out tokens, where there are some
 *
 * Of a folder that is read, matrices of the inputs that the job's targets read are needed, and the count of tokens, in grams.json or in the
 * job; all else may be missing. Without a tokens_fingerprint the diagonals of its first layer stand for the tokens. Matrices are checked as
 * they are read: square and of the input's width, finite, symmetric to 1e-6 of the roots of their diagonal, no entry beyond what its
 * diagonal allows. They are rounded to float once. */
#ifndef CLOQWORK_SESSION_GRAM_FOLDER_H
#define CLOQWORK_SESSION_GRAM_FOLDER_H

#include "session/gram_take.h"

#define GRAM_SIDECAR "grams.json"

/* Local. What the folder (DIR, or DIR/heldout) says of itself: s->path is DIR. E_DATA. */
status gram_folder_open(const session *c, int set, gram_source *s);

/* Local. Tiles [begin, end) and, where asked for, the statistics of one input of a layer. E_DATA names file, row and column. */
status gram_folder_read(const gram_source *s, int64_t layer, gram_part *p);

/* "layer-000.attn_in.npy"; array NULL: the matrix, else "mean_abs", "max_mean_abs". */
void gram_folder_npy_name(int64_t layer, input_id input, const char *array, char name[96]);
void gram_folder_tensor_name(input_id input, const char *array, char name[96]); /* in "layer-000.safetensors" */

#endif
