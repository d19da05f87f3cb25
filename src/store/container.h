/* The parallel HDF5 container: names, types, completion, checksums (spec interface.md, "Container schema, version 1").
 * The only room that includes hdf5.h. It knows arrays with names; what they mean is the others' business.
 *
 * A file with its final name is complete. Writing is Collective over a team: temporary name, collective transfers, flush, close,
 * barrier, read back and compare every dataset with the SHA-256 of what was in memory, fsync, rename, fsync of the folder.
 * All data to be written lies in memory that every rank of the team can see; each rank writes an equal share of the rows. */
#ifndef CLOQWORK_STORE_CONTAINER_H
#define CLOQWORK_STORE_CONTAINER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/hash.h"
#include "base/status.h"
#include "dist/team.h"

/* A short list of attributes: text, integer or real. Built up, then written with a file or group; read back the same way. */
typedef struct attribute {
  char name[48];
  enum { ATTR_TEXT, ATTR_INT, ATTR_REAL } kind;
  char *text; /* owned */
  int64_t integer;
  double real;
} attribute;
typedef struct attributes {
  attribute *list; /* owned */
  int count, room;
} attributes;
status attr_text(attributes *a, const char *name, const char *value); /* sets or replaces; E_MEMORY */
status attr_int(attributes *a, const char *name, int64_t value);
status attr_real(attributes *a, const char *name, double value);
const attribute *attr_find(const attributes *a, const char *name); /* NULL when absent */
const char *attr_get_text(const attributes *a, const char *name);  /* "" when absent or no text */
int64_t attr_get_int(const attributes *a, const char *name, int64_t missing);
double attr_get_real(const attributes *a, const char *name, double missing); /* an integer is a real, too */
status attr_copy(attributes *to, const attributes *from);                    /* sets or replaces every one */
void attr_free(attributes *a);

typedef enum element { EL_F64, EL_F32, EL_F16, EL_U32, EL_U8 } element; /* EL_F16 in memory: uint16_t with IEEE half bits */
size_t element_bytes(element e);

enum { CONTAINER_ROW_LIMIT = 1 << 30 }; /* bytes of a row, that is of all dimensions but the first: the smallest piece of a transfer */

/* One dataset of a file to write. data: whole array, row-major, visible to all ranks of the team (shared or replicated), borrowed. */
typedef struct dataset {
  const char *path; /* "attn_in/tiles", "self_attn.q_proj/codes": group and name */
  element type;
  int rank;
  int64_t dims[3];
  const void *data;
} dataset;

/* Attributes of a group ("self_attn.q_proj"), of a dataset ("attn_in/tiles") or, with path "", of the root. Entries for the same path add up. */
typedef struct group_attributes {
  const char *path;
  const attributes *list;
} group_attributes;

/* Collective over the team; every rank passes the same description (checked). Adds format, format_version, kind, program_version,
 * attributes_sha256 and complete to the root, and sha256 to every dataset (attribute of the dataset). On failure nothing new stands
 * under the final name (an older complete file stays) and the temporary one, PATH.tmp.JOB_TAG, is removed. E_IO names file and
 * dataset, and the system's reason: a full disk is found before data is written, where the file system can reserve blocks.
 * Equal input gives equal files, byte for byte, for any number of ranks. E_INTERNAL: a description that cannot be. */
status container_write(const team *t, const char *path, const char *job_tag, const char *kind, const dataset *sets, int set_count,
                       const group_attributes *groups, int group_count);

/* Reading. Local: one rank, serial driver; every rank may read any complete file on its own. */
typedef struct container container;
status container_open(const char *path, const char *kind,
                      container **c); /* kind NULL: any. E_DATA: absent, not ours, other kind or version, incomplete, damaged */
void container_close(container **c);
status container_attributes(container *c, const char *path, attributes *a); /* of a group or dataset, "" for the root; adds to a; E_DATA */
bool container_has(container *c, const char *path); /* a group or dataset in this very file: links to others do not count */
status container_shape(container *c, const char *path, element *type, int *rank, int64_t dims[3]); /* E_DATA: absent or unknown type */
/* Rows [begin, end) of the first dimension into data, which must have that type. E_DATA, E_IO. */
status container_read(container *c, const char *path, element type, int64_t begin, int64_t end, void *data);
/* The same from an array that must have one or two dimensions (cols 0: one) of this type and size. E_DATA says what was found. */
status container_read_rows(container *c, const char *path, element type, int64_t rows, int64_t cols, int64_t begin, int64_t end,
                           void *data);
/* Names of the groups at the root, in the file's order: *names is owned, one allocation per name; container_names_free. */
status container_groups(container *c, char ***names, int *count);
void container_names_free(char ***names, int count);
/* One dataset's SHA-256 against its attribute. E_DATA, E_IO. */
status container_verify_dataset(container *c, const char *path);
/* Every dataset's SHA-256 against its attribute, that every dataset has one, and all attributes against attributes_sha256. E_DATA
 * names file and dataset. bytes (may be NULL): how much was read. */
status container_verify(container *c, uint64_t *bytes);

/* Tiles of a symmetric matrix: lower triangle, tile (i, j), i >= j, at index i (i + 1) / 2 + j, t x t row-major, edge tiles zero-padded. */
static inline int64_t tiles_per_side(int64_t n, int64_t t) { return (n + t - 1) / t; }
static inline int64_t tiles_count(int64_t n, int64_t t) { return tiles_per_side(n, t) * (tiles_per_side(n, t) + 1) / 2; }
static inline int64_t tile_index(int64_t i, int64_t j) { return i * (i + 1) / 2 + j; }
/* Both triangles of full (n, n) that tiles [begin, end) cover; tiles is (end - begin, t, t): the first one is number `begin`. Of tiles
 * on the diagonal the lower triangle is taken. Local. */
void tiles_expand(int64_t n, int64_t t, int64_t begin, int64_t end, const float *tiles, float *full);

/* The master file, kind "run": attributes and relative external links to the roots of other files. Local (call on one rank). Links
 * that would leave the folder are refused (E_INTERNAL); their targets need not exist. Failures as container_write. */
typedef struct master_link {
  const char *name;   /* "grams/layer-000" */
  const char *target; /* "grams/layer-000.h5", relative to the master */
} master_link;
status container_write_master(const char *path, const char *job_tag, const attributes *a, const master_link *links, int count);

/* MPI-IO component: chosen before MPI_Init where a version of Open MPI is known to corrupt data, unless the user has chosen one in
 * the environment. Returns what is in force, for the log; static. */
const char *container_choose_io(void);
const char *container_hdf5_version(void);

#endif
