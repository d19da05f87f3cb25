/* What the files of this room share about HDF5. Private to store. Everything here is Local.
 *
 * Identifiers are closed by whoever holds them; the close functions below accept H5I_INVALID_HID. */
#ifndef CLOQWORK_STORE_H5_H
#define CLOQWORK_STORE_H5_H

#include <hdf5.h>

#include "store/container.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files are little-endian and are read and written without conversion");

enum { OBJECT_PATH = 256 }; /* longest path of a group or dataset inside a file, with its final zero */

#define ATTRIBUTES_SHA "attributes_sha256"

/* Between these HDF5 leaves its reasons to h5_fail; outside it is silent, so that it has nothing to say about what damaged files
 * made it lose when the process ends. Each may be called at any time. */
void h5_listen(void);
void h5_silence(void);

/* The failure of an HDF5 call as "path: object: did: reason", the reason
 * being that of the HDF5 call that failed last. object "" is left out.
 * by_system: what to return when the operating system refused (a full disk); otherwise: when HDF5 did not like what it saw. */
status h5_fail(status by_system, status otherwise, const char *path, const char *object, const char *did);

const char *element_name(element e);
hid_t h5_type(element e); /* to be closed with H5Tclose; negative when refused */
bool h5_type_find(hid_t type, element *e);

hid_t h5_access_read(void);  /* serial driver, no locks */
hid_t h5_access_write(void); /* and the oldest format that has checksums everywhere, alignment, nothing left open by a close */

/* Rows [begin, begin + count) of the first dimension: selects them in file_space and makes the memory space that fits. count 0
 * selects nothing in either: the part of a rank without data. Negative when refused. */
hid_t h5_select_rows(hid_t file_space, int rank, const int64_t *dims, int64_t begin, int64_t count);

/* Attributes of an open object. path and object only name it in messages. Reading skips what is no scalar text or number. */
status h5_write_attributes(hid_t id, const char *path, const char *object, const attributes *a);
status h5_read_attributes(hid_t id, const char *path, const char *object, attributes *a);

/* One digest for all attributes of a file: text lies in HDF5's global heap, the one part of the format without a checksum. The
 * attributes are hashed one by one, the digests sorted, so that no order matters. `complete` and the digest itself stay out. */
typedef struct attributes_digest {
  char (*each)[HASH_HEX]; /* owned */
  int count, room;
} attributes_digest;
status attributes_digest_add(attributes_digest *d, const char *object, const attributes *a);
status attributes_digest_end(attributes_digest *d, char hex[HASH_HEX]); /* leaves d empty */
void attributes_digest_free(attributes_digest *d);

/* The attributes of an open file against its digest. E_DATA. */
status container_check_attributes(container *c);

/* rank 1..3, no dimension negative, bytes countable: how many bytes a row and the whole have. */
bool extent(element type, int rank, const int64_t *dims, uint64_t *row, uint64_t *all);

void h5_close_file(hid_t id); /* for error paths: what the close itself says is of no interest any more */
void h5_close_object(hid_t id);
void h5_close_list(hid_t id);
void h5_close_space(hid_t id);
void h5_close_type(hid_t id);

#endif
