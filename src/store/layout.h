/* The empty file: what groups, datasets and attributes it will have, and making it. Private to store. Local.
 *
 * One rank makes it with the serial driver, with every byte's place fixed; the ranks then only fill in data. So metadata is never
 * written in parallel, and a full disk is found by one rank in a plain system call, while nobody waits inside MPI or HDF5. */
#ifndef CLOQWORK_STORE_LAYOUT_H
#define CLOQWORK_STORE_LAYOUT_H

#include "store/h5.h"

typedef struct object {
  char path[OBJECT_PATH]; /* "" is the root */
  const dataset *set;     /* NULL: a group; borrowed */
  attributes list;        /* owned */
} object;

typedef struct layout {
  object *objects; /* [count] owned; the root first, groups before their members, otherwise in the caller's order */
  int count, room;
  const master_link *links; /* [link_count] external links, borrowed */
  int link_count;
} layout;

/* E_INTERNAL: a path, shape or attribute list that cannot be. file only names it in messages. */
status layout_new(const char *file, const char *kind, const dataset *sets, int set_count, const group_attributes *groups, int group_count,
                  layout *l);
void layout_free(layout *l);

/* sha: one per dataset, in the order given to layout_new. Sets the datasets' and the attributes' digests. */
status layout_sign(layout *l, const dataset *sets, int set_count, char (*sha)[HASH_HEX]);

/* SHA-256 of everything that layout_new was told, to compare between ranks. */
status layout_hash(const layout *l, char hex[HASH_HEX]);

/* The groups above an external link, which stands beside them in l->links. E_INTERNAL: a name that cannot be or is there already. */
status layout_add_link(layout *l, const char *file, const master_link *link);

/* Makes `temporary` with attribute complete = 0, and blocks reserved for all data. path is the final name, for messages. E_IO. */
status layout_create(const layout *l, const char *path, const char *temporary);

/* Blocks for bytes [begin, begin + bytes) of the file, beyond its end if keep_size: afterwards they can be written, whatever else
 * happens to the disk. Where the file system cannot promise that, at least as many must be free now. E_IO with the reason. */
status layout_reserve(const char *path, const char *temporary, uint64_t begin, uint64_t bytes, bool keep_size);

/* A file whose data is in becomes `path`: complete = 1, a last look, fsync, rename. E_IO: nothing of it stands under path; removing
 * `temporary` is left to the caller. */
status layout_publish(const char *path, const char *temporary, const char *kind);

#endif
