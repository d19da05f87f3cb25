/* Two activation streams over the same windows: the original model's, and that of its quantized prefix, in which the linears before an
 * input have other weights. Layer after layer, and in a layer input after input (the order of GPTQ's true_sequential): what is found at one
 * input decides what the next one sees. Grams of such inputs belong to one setting alone.
 *
 *   prefix_layer        the layer's own weights; those of the targets are to be written to p->target before they are needed:
 *   prefix_input(attn_in)     -> Gram of RMSNorm(x)      then q, k, v
 *   prefix_input(attn_out)    -> Gram of the attention   then o;            prefix_advance(attn_out): x of the prefix goes through it
 *   prefix_input(mlp_in)      -> Gram of RMSNorm(x)      then gate, up
 *   prefix_input(mlp_out)     -> Gram of the MLP         then down;         prefix_advance(mlp_out)
 *
 * With `cross` each input also leaves its cross products with the original model, over the calibration tokens: X^T Xq (in, in) of attn_in and mlp_in, and (X
 * W^T)^T Xq (out, in) of attn_out and mlp_out, where that is smaller and one linear reads the input. Both serve calibrate/target.h.
 *
 * Of a layer the original runs once and the prefix twice, since its activations within a layer are made again rather than kept: two
 * streams are all that memory holds. Same bits for any number of ranks. */
#ifndef CLOQWORK_CALIBRATE_PREFIX_H
#define CLOQWORK_CALIBRATE_PREFIX_H

#include "calibrate/cross_gram.h"
#include "calibrate/pass.h"

typedef struct prefix {
  pass pass;                    /* the prefix's streams and the Grams of its inputs; the layer's original weights */
  float *original[SET_COUNT];   /* the original's streams of my segments; owned */
  file_scratch file[SET_COUNT]; /* what they lie in, where it is no memory; owned */
  cross_gram crosses[IN_COUNT]; /* empty where the input is not wanted, or without `cross` */
  shared changed;               /* the targets' weights of the prefix */
  layer_weights weights;        /* the prefix's: those, and of the others the original ones */
  float *target[LIN_COUNT];     /* where they are to be written, each by whichever rank, before a team_barrier; NULL: no target */
  float *n, *wide;              /* scratch: (rows of a segment, d), (…, block_wide) */
  int64_t layer;
} prefix;

/* Memory that prefix_new will take beyond pass_new: for plan. And flops of a layer, Grams and cross products included. */
pass_bytes prefix_memory(const arch *a, const windows *const sets[SET_COUNT], const bool wanted[IN_COUNT], int ranks, bool cross);
double prefix_layer_flops(const arch *a, const windows *const sets[SET_COUNT], const bool wanted[IN_COUNT], bool cross);

/* Collective. scratch: a folder for both streams, NULL: they lie in memory. */
status prefix_new(const team *t, const checkpoint *model, const windows *const sets[SET_COUNT], const bool wanted[IN_COUNT],
                  const bool targets[LIN_COUNT], bool cross, const char *scratch, prefix *p);
void prefix_free(prefix *p); /* Collective; accepts an empty one */

status prefix_embed(prefix *p);                /* Collective: both streams = embeddings */
status prefix_layer(prefix *p, int64_t layer); /* Collective: the layer's weights; those of the prefix are undefined yet */

/* Collective. Both streams up to this input, whose Grams are there afterwards where it is wanted. The original goes through o and down here. */
void prefix_input(prefix *p, input_id input);
void prefix_advance(prefix *p, input_id input); /* Collective. attn_out, mlp_out: the prefix goes through the attention, the MLP */
void prefix_skip(prefix *p);                    /* Collective. Instead of all of these: both streams through the whole layer */

/* Collective. How far the prefix has drifted: mean over the tokens of a set of |z - x|^2 / |x|^2; NaN of an absent one. */
status prefix_drift(prefix *p, double drift[SET_COUNT]);

static inline bool cross_of_outputs(input_id input) { return input == IN_ATTN_OUT || input == IN_MLP_OUT; }

#endif
