/* What a file says of itself, looked at before HDF5 does. Private to store. Local.
 *
 * The library believes what it reads (1.10 at least): a hostile file, or a changed byte in the one part without checksum, can make it
 * overrun its buffers. So the metadata of a container must be exactly what this program writes: the few kinds of messages, types and
 * links that it makes, every address and size within the file, every text of an attribute whole. Anything else is refused. */
#ifndef CLOQWORK_STORE_STRUCTURE_H
#define CLOQWORK_STORE_STRUCTURE_H

#include "base/status.h"

/* E_DATA: damaged, edited, not by this program, or an external link that leaves the folder; E_IO. */
status structure_check(const char *path);

#endif
