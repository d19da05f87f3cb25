/* A file done right: mapped for reading, written under a temporary name, synced, renamed. Local.
 * Errors are E_IO with the path and the system's reason, unless said otherwise. */
#ifndef CLOQWORK_BASE_FILE_H
#define CLOQWORK_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct file_map {
  const unsigned char *data; /* borrowed until file_unmap; NULL for an empty file */
  size_t bytes;
} file_map;
status file_map_open(const char *path, file_map *m); /* E_DATA when it does not exist or is no regular file */
void file_map_close(file_map *m);
void file_map_done_with(const file_map *m, size_t begin, size_t end); /* those pages will not be read again: give them back */
void file_map_ahead(const file_map *m, size_t begin, size_t end);     /* they will be read soon: the system may begin */

status file_read(const char *path, size_t limit, char **text, size_t *bytes); /* owned, zero-terminated; E_DATA: missing or over limit */
status file_write_atomic(const char *path, const void *data, size_t bytes);   /* temporary, sync, rename, sync folder */
status file_append_line(const char *path, const char *line);                  /* one write() of line and '\n', O_APPEND */
status file_publish(const char *temporary, const char *path);                 /* fsync, rename, fsync of the folder */
status file_write_at(int fd, const char *path, const void *data, size_t bytes, size_t at); /* all of it; path is for messages */
status file_read_at(int fd, const char *path, void *data, size_t bytes, size_t at);
status file_sync(const char *path);         /* a file or folder to the disk; a file system that cannot sync folders is forgiven */
status file_make_folders(const char *path); /* like mkdir -p; modes follow umask */
status file_remove(const char *path);       /* missing is fine */
status file_remove_matching(const char *folder,
                            const char *infix); /* regular files of the folder whose name holds infix: stale temporaries */
bool file_exists(const char *path);
bool file_exists_in(const char *folder, const char *name); /* takes no memory: a lack of it must not look like an absent file */

/* Memory in a file of a folder, for what is too large for memory: zeroed; the file has no name and is gone with the process. Every byte is
 * claimed from the disk here, so that a full one is an error and never a signal. E_MEMORY where the disk is full. */
typedef struct file_scratch {
  void *base; /* NULL: none */
  size_t bytes;
} file_scratch;
status file_scratch_new(const char *folder, size_t bytes, const char *what, file_scratch *s);
void file_scratch_free(file_scratch *s); /* accepts an empty one */

status file_free_space(const char *path, uint64_t *bytes);
char *path_join(const char *folder, const char *name); /* owned; NULL when memory is out */

/* One owner at a time. The kernel's lock on the open file is held until file_unlock or the end of the process, however that comes;
 * the file's text, "OWNER host pid", is for people. E_IO names the other owner. Left by a job that is gone, on this host or by the same
 * owner (a requeue), it is taken over; one of another job on another host is refused with the way out, since a network file system may
 * keep locks to each host. *lock is for file_unlock. */
status file_lock(const char *path, const char *owner, int *lock);
status file_lock_within(double seconds, const char *path, const char *owner, int *lock); /* waits so long for another owner to go */
void file_unlock(const char *path, int *lock);                                           /* accepts -1 */
/* For onlookers, who take nothing: LOCK_HELD when a process holds it; LOCK_FREE when none does, the file is gone or its job was of this host and is over;
 * LOCK_UNKNOWN when the file names another host, whose locks may not be seen here. */
typedef enum lock_state { LOCK_FREE, LOCK_HELD, LOCK_UNKNOWN } lock_state;
lock_state file_lock_look(const char *path);

#endif
