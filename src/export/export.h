/* A run's solution as folders that other tools load: BASE (a Hugging Face model with quantized linears) and ADAPTER (PEFT LoRA).
 *
 * Made from the container and the original checkpoint alone. What was not quantized is copied as it is; shards keep their names. Every
 * folder carries cloqwork.json, its sidecar: what it was made from, the fingerprint of the base, the SHA-256 of every tensor. */
#ifndef CLOQWORK_EXPORT_EXPORT_H
#define CLOQWORK_EXPORT_EXPORT_H

#include <mpi.h>

#include "base/half.h"
#include "base/json.h"
#include "model/checkpoint.h"
#include "quant/split.h"
#include "solution/solution.h"

/* One quantized linear of the model: where it comes from, and what its file says of it. */
typedef struct export_matrix {
  int64_t layer;
  linear_id linear;
  char module[64];     /* "model.layers.3.mlp.down_proj" */
  char *file;          /* its solution file; owned by the list */
  const char *setting; /* borrowed */
  int rank;            /* of its adapter; 0: it has none */
  /* read from the file (export_describe): */
  solution shape; /* without arrays; shape.rank is the largest stored rank */
  char base_fingerprint[HASH_HEX];
  double loss[2], loss_heldout[2]; /* relative to the reference: without adapter, and at `rank`; NaN: unknown */
} export_matrix;

typedef struct export_format export_format;

typedef struct export_request {
  MPI_Comm comm;
  const checkpoint *model;
  const export_format *format;
  export_matrix *matrices; /* by layer and linear; linears that are not here stay as they are in the checkpoint */
  int count;
  bool merge; /* dense only: W = Q + B A, no adapter folder */
  bool has_dtype;
  real_type dtype; /* of dense weights, where given; else each tensor's own */
  real_type adapter_dtype;
  factor_split split;
  const char *folder, *run, *tag; /* the folder to make; the run directory; who makes it */
  const char *setting, *rank;     /* as asked, for people */
  const attributes *how;          /* of the run: calibration, options …: for sidecar and card, on rank 0; may be NULL */
  bool (*stop)(void);             /* asked on every rank before each linear: true ends the work with E_STOPPED; may be NULL */
} export_request;

/* Local. By name; NULL when unknown. */
const export_format *export_format_find(const char *name);
const char *export_format_nearest(const char *name); /* NULL when nothing is near */
const char *export_format_name(const export_format *f);
const char *export_format_list(void); /* "gptq, bnb, compressed-tensors, dense" */

/* Collective. Fills in what the files say of the matrices (rank 0 reads). model_fingerprint of every file must be the checkpoint's. E_DATA;
 * E_USAGE: a rank beyond the stored one, or one that a method with codes for each rank was not solved for. */
status export_describe(export_request *q);

/* Local. Can the format hold these matrices? E_USAGE names the matrix, what was expected and found, and the format that can. */
status export_check(const export_request *q);

/* Collective. Makes folder/base and folder/adapter in folder.tmp, which becomes `folder` when everything is on disk. `folder` must not
 * exist, or be empty (E_USAGE). E_IO, E_DATA (a damaged container), E_MEMORY. Per rank one matrix at a time: its codes and its tensors.
 * bytes: of all tensors written. */
typedef struct export_result {
  uint64_t bytes;
  double seconds;
  char base_fingerprint[HASH_HEX];
} export_result;
status export_write(export_request *q, export_result *r);

/* ---- looking at an export ---- */

/* Local. Is it a folder that export made (cloqwork.json in it, or in its base or adapter)? */
bool export_is_folder(const char *path);

/* A folder as it was found, for messages and for comparing with the run it came from. */
typedef struct export_found {
  char *base, *adapter; /* folders; NULL: absent; owned */
  json_t *base_sidecar, *adapter_sidecar;
  int tensors, modules;
  uint64_t bytes;
} export_found;
void export_found_free(export_found *f);

/* Collective. Proves from the folders alone: every tensor has its recorded SHA-256, the codes and grids decode to the recorded
 * fingerprints of the modules (formats that hold codes), these give the base fingerprint, the adapter names the same one, has exactly its
 * modules' tensors, and scale 1. E_DATA names the first thing that differs. */
status export_verify(MPI_Comm comm, const char *folder, export_found *f);

/* Collective. The request's tensors made anew from the container, against the SHA-256 that stand in the sidecars; what was copied
 * against the checkpoint. E_DATA names the tensor. */
status export_compare(export_request *q, const export_found *f);

#endif
