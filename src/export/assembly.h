/* The tensors of an export and where each comes from. Private to export. Local.
 *
 * An item is what one rank makes at a time: a tensor of the checkpoint as it is, a bias, or a linear with all its tensors and its adapter. */
#ifndef CLOQWORK_EXPORT_ASSEMBLY_H
#define CLOQWORK_EXPORT_ASSEMBLY_H

#include "export/format.h"
#include "export/image.h"

typedef struct assembly_item {
  int matrix;          /* of the request; -1: a tensor of the checkpoint */
  const st_file *file; /* of the checkpoint; borrowed */
  const st_tensor *tensor;
  bool to_half;                         /* a bias that becomes F16 */
  int base[FORMAT_TENSORS], base_count; /* indices in the base's image */
  int adapter[2];                       /* lora_A, lora_B in the adapter's image; -1: none */
  double bytes;
} assembly_item;

typedef struct assembly {
  image base, adapter;
  assembly_item *items;
  int count, room;
  container *file; /* the solution file read last, still open: the linears of a layer come one after the other */
  const char *file_path;
} assembly;

/* Every rank builds the same. base_metadata and adapter_metadata: strings, borrowed. E_MEMORY. */
status assembly_new(const export_request *q, const json_t *base_metadata, const json_t *adapter_metadata, assembly *a);
void assembly_free(assembly *a);

/* Makes the tensors of an item and hands each to the sink. E_DATA where the container is damaged: codes whose fingerprint is not the
 * recorded one. */
typedef status (*assembly_sink)(void *context, image *m, int index, const void *data);
status assembly_make(const export_request *q, assembly *a, int item, assembly_sink sink, void *context);

/* Collective. Calls assembly_make for my share of the items: a contiguous range of about equal bytes, so that a rank writes one stretch and
 * opens few solution files. */
status assembly_make_all(const export_request *q, assembly *a, assembly_sink sink, void *context);

#endif
