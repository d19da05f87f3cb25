#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fault.h"
#include "base/memory.h"

status file_map_open(const char *path, file_map *m) {
  *m = (file_map){NULL, 0};
  int fd = fault_here() ? (errno = EIO, -1) : open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe would wait for its writer */
  if (fd < 0) return fail(errno == ENOENT ? E_DATA : E_IO, "%s: cannot be opened: %m", path);
  struct stat s;
  status st = OK;
  if (fstat(fd, &s) != 0) {
    st = fail(E_IO, "%s: cannot be examined: %m", path);
  } else if (!S_ISREG(s.st_mode)) {
    st = fail(E_DATA, "%s: expected a regular file, found something else", path);
  } else if (s.st_size > 0) {
    void *data = mmap(NULL, (size_t)s.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED)
      st = fail(E_IO, "%s: cannot be mapped: %m", path);
    else
      *m = (file_map){data, (size_t)s.st_size};
  }
  close(fd);
  return st;
}

void file_map_close(file_map *m) {
  if (m->data) munmap((void *)m->data, m->bytes);
  *m = (file_map){NULL, 0};
}

void file_map_done_with(const file_map *m, size_t begin, size_t end) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  begin = (begin + page - 1) / page * page;
  end = end / page * page;
  if (m->data && end > begin && end <= m->bytes) madvise((void *)(m->data + begin), end - begin, MADV_DONTNEED);
}

void file_map_ahead(const file_map *m, size_t begin, size_t end) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  begin = begin / page * page;
  if (m->data && end > begin && end <= m->bytes) madvise((void *)(m->data + begin), end - begin, MADV_WILLNEED);
}

status file_scratch_new(const char *folder, size_t bytes, const char *what, file_scratch *s) {
  status st = OK;
  char *path = mem_format("%s/scratch-XXXXXX.tmp", folder);
  int fd = -1, rc;
  *s = (file_scratch){NULL, 0};
  if (!path) return fail(E_MEMORY, "%s: no memory for a name", folder);
  fd = fault_here() ? (errno = EIO, -1) : mkstemps(path, 4);
  if (fd < 0) {
    st = fail(E_IO, "%s: %s: a scratch file cannot be made: %m", folder, what);
    goto done;
  }
  unlink(path);
  if (bytes == 0) goto done;
  do rc = fault_here() ? ENOSPC : posix_fallocate(fd, 0, (off_t)bytes);
  while (rc == EINTR);
  void *base = rc ? MAP_FAILED : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (base == MAP_FAILED)
    st = fail(E_MEMORY, "%s: %s: expected room for %.3f GiB: %s", folder, what, (double)bytes / (1 << 30), strerror(rc ? rc : errno));
  else
    *s = (file_scratch){base, bytes};
done:
  if (fd >= 0) close(fd);
  FREE(path);
  return st;
}

void file_scratch_free(file_scratch *s) {
  if (s->base) munmap(s->base, s->bytes);
  *s = (file_scratch){NULL, 0};
}

status file_read(const char *path, size_t limit, char **text, size_t *bytes) {
  file_map m;
  status st = OK;
  *text = NULL;
  *bytes = 0;
  TRY(file_map_open(path, &m));
  if (m.bytes > limit) {
    st = fail(E_DATA, "%s: expected at most %zu bytes, found %zu", path, limit, m.bytes);
    goto done;
  }
  TRY(NEW(*text, m.bytes + 1, path));
  if (m.bytes) memcpy(*text, m.data, m.bytes);
  *bytes = m.bytes;
done:
  file_map_close(&m);
  return st;
}

static status write_all(int fd, const char *path, const char *data, size_t bytes) {
  while (bytes) {
    ssize_t n = fault_here() ? (errno = ENOSPC, -1) : write(fd, data, bytes);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(E_IO, "%s: cannot be written: %m", path);
    data += n;
    bytes -= (size_t)n;
  }
  return OK;
}

status file_write_atomic(const char *path, const void *data, size_t bytes) {
  status st = OK;
  int fd = -1;
  char *temporary = mem_format("%s.tmp.%ld", path, (long)getpid());
  if (!temporary) return fail(E_MEMORY, "%s: no memory for its temporary name", path);
  fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) {
    st = fail(E_IO, "%s: cannot be made: %m", temporary);
    goto done;
  }
  TRY(write_all(fd, temporary, data, bytes));
  close(fd);
  fd = -1;
  TRY(file_publish(temporary, path));
done:
  if (fd >= 0) close(fd);
  if (st != OK) unlink(temporary);
  FREE(temporary);
  return st;
}

status file_append_line(const char *path, const char *line) {
  status st = OK;
  char *text = mem_format("%s\n", line);
  if (!text) return fail(E_MEMORY, "%s: no memory for a line", path);
  int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (fd < 0) {
    st = fail(E_IO, "%s: cannot be opened for appending: %m", path);
    goto done;
  }
  st = write_all(fd, path, text, strlen(text));
  close(fd);
done:
  FREE(text);
  return st;
}

status file_write_at(int fd, const char *path, const void *data, size_t bytes, size_t at) {
  const char *from = data;
  while (bytes) {
    ssize_t n = fault_here() ? (errno = EIO, -1) : pwrite(fd, from, bytes, (off_t)at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(E_IO, "%s: cannot be written: %m", path);
    from += n;
    at += (size_t)n;
    bytes -= (size_t)n;
  }
  return OK;
}

status file_read_at(int fd, const char *path, void *data, size_t bytes, size_t at) {
  char *to = data;
  while (bytes) {
    ssize_t n = fault_here() ? (errno = EIO, -1) : pread(fd, to, bytes, (off_t)at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(E_IO, "%s: cannot be read: %m", path);
    if (n == 0) return fail(E_IO, "%s: expected %zu more bytes, found its end", path, bytes);
    to += n;
    at += (size_t)n;
    bytes -= (size_t)n;
  }
  return OK;
}

status file_sync(const char *path) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return fail(E_IO, "%s: cannot be opened to be synced: %m", path);
  int rc = fault_here() ? (errno = EIO, -1) : fsync(fd);
  int reason = errno;
  close(fd);
  if (rc != 0 && reason != EINVAL) { /* EINVAL: a file system that cannot sync folders */
    errno = reason;
    return fail(E_IO, "%s: cannot be synced: %m", path);
  }
  return OK;
}

status file_publish(const char *temporary, const char *path) {
  status st = OK;
  char *folder = NULL;
  TRY(file_sync(temporary));
  if (fault_here() ? (errno = EIO, true) : rename(temporary, path) != 0) {
    st = fail(E_IO, "%s: cannot be renamed to %s: %m", temporary, path);
    goto done;
  }
  const char *slash = strrchr(path, '/');
  folder = slash ? mem_format("%.*s", (int)(slash - path > 0 ? slash - path : 1), path) : mem_format(".");
  if (!folder) {
    st = fail(E_MEMORY, "%s: no memory for its folder's name", path);
    goto done;
  }
  TRY(file_sync(folder));
done:
  FREE(folder);
  return st;
}

status file_make_folders(const char *path) {
  char *copy = mem_format("%s", path);
  if (!copy) return fail(E_MEMORY, "%s: no memory for its name", path);
  status st = OK;
  for (char *p = copy + 1;; p++) {
    if (*p != '/' && *p != 0) continue;
    char kept = *p;
    *p = 0;
    if (mkdir(copy, 0777) != 0) {
      int reason = errno;
      struct stat s;
      bool there = reason == EEXIST && stat(copy, &s) == 0;
      if (!there || !S_ISDIR(s.st_mode)) {
        errno = there ? ENOTDIR : reason;
        st = fail(E_IO, "%s: the folder cannot be made: %m", copy);
        break;
      }
    }
    *p = kept;
    if (!kept) break;
  }
  FREE(copy);
  return st;
}

status file_remove(const char *path) {
  if (unlink(path) != 0 && errno != ENOENT) return fail(E_IO, "%s: cannot be removed: %m", path);
  return OK;
}

status file_remove_matching(const char *folder, const char *infix) {
  DIR *d = opendir(folder);
  if (!d) return errno == ENOENT ? OK : fail(E_IO, "%s: cannot be listed: %m", folder);
  status st = OK;
  for (struct dirent *e; st == OK && (e = readdir(d));) {
    if (!strstr(e->d_name, infix)) continue;
    char *path = path_join(folder, e->d_name);
    struct stat s;
    if (!path)
      st = fail(E_MEMORY, "%s: no memory for a name in it", folder);
    else if (lstat(path, &s) == 0 && S_ISREG(s.st_mode))
      st = file_remove(path);
    FREE(path);
  }
  closedir(d);
  return st;
}

bool file_exists(const char *path) {
  struct stat s;
  return stat(path, &s) == 0;
}

bool file_exists_in(const char *folder, const char *name) {
  char path[PATH_MAX];
  return snprintf(path, sizeof path, "%s/%s", folder, name) < PATH_MAX && file_exists(path);
}

status file_free_space(const char *path, uint64_t *bytes) {
  struct statvfs s;
  if (statvfs(path, &s) != 0) return fail(E_IO, "%s: its free space cannot be asked: %m", path);
  *bytes = (uint64_t)s.f_bavail * s.f_frsize;
  return OK;
}

char *path_join(const char *folder, const char *name) {
  size_t n = strlen(folder);
  return mem_format("%s%s%s", folder, n && folder[n - 1] != '/' ? "/" : "", name);
}

/* The kernel's word on the open file: OK and *held, or not held, or no opinion (a file system without locks). */
static bool kernel_lock(int fd, bool *held, bool *knows) {
  struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
  int rc = fcntl(fd, F_OFD_SETLK, &whole);
  *held = rc != 0 && (errno == EAGAIN || errno == EACCES);
  *knows = rc == 0 || *held;
  return rc == 0;
}

/* The file may have been removed by its last owner between open and lock: then the lock is on nothing. */
static bool still_named(int fd, const char *path) {
  struct stat mine, there;
  return fstat(fd, &mine) == 0 && stat(path, &there) == 0 && mine.st_ino == there.st_ino && mine.st_dev == there.st_dev;
}

/* "OWNER host pid", left by a job whose lock the kernel does not see: of the same job, or of this host, it is over. On another host the
 * kernel may not know (a local lock of a network file system). */
static bool is_over(const char *text, const char *owner) {
  char host[256] = "", other[256] = "", here[256] = "";
  long pid = 0;
  gethostname(here, sizeof here - 1);
  return sscanf(text, "%255s %255s %ld", other, host, &pid) != 3 || strcmp(other, owner) == 0 || strcmp(host, here) == 0;
}

static status take_lock(int fd, const char *path, const char *owner, bool *taken) {
  char text[600] = "", host[256] = "";
  bool held, knows;
  gethostname(host, sizeof host - 1);
  kernel_lock(fd, &held, &knows);
  ssize_t n = pread(fd, text, sizeof text - 1, 0);
  text[n > 0 ? strcspn(text, "\n") : 0] = 0;
  bool left = text[0] && !(is_over(text, owner) && (knows || strncmp(text, owner, strlen(owner)) == 0));
  *taken = held || left;
  if (held) return fail(E_IO, "%s: expected no other job on this run directory, found one (%s)", path, text);
  if (left)
    return fail(E_IO, "%s: expected no other job on this run directory, found one (%s); if that job has ended, remove the file", path,
                text);
  n = snprintf(text, sizeof text, "%s %s %ld\n", owner, host, (long)getpid());
  if (ftruncate(fd, 0) != 0 || pwrite(fd, text, (size_t)n, 0) != n) return fail(E_IO, "%s: cannot be written: %m", path);
  return OK;
}

status file_lock(const char *path, const char *owner, int *lock) { return file_lock_within(0, path, owner, lock); }

status file_lock_within(double seconds, const char *path, const char *owner, int *lock) {
  const struct timespec pause = {.tv_nsec = 50000000};
  double end = clock_now() + seconds;
  *lock = -1;
  for (int vanished = 0; vanished < 8;) {
    bool taken = false;
    int fd = fault_here() ? (errno = EIO, -1) : open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) return fail(E_IO, "%s: cannot be made: %m", path);
    status st = take_lock(fd, path, owner, &taken);
    if (st == OK && still_named(fd, path)) {
      *lock = fd;
      return OK;
    }
    close(fd);
    vanished += st == OK;
    if (st == OK) continue;
    if (!taken || clock_now() >= end) return st;
    status_clear();
    nanosleep(&pause, NULL);
  }
  return fail(E_IO, "%s: other jobs come and go on this run directory", path);
}

void file_unlock(const char *path, int *lock) {
  if (*lock < 0) return;
  unlink(path); /* while it is still locked: nobody takes what is about to vanish */
  close(*lock);
  *lock = -1;
}

lock_state file_lock_look(const char *path) {
  char text[600] = "";
  struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return LOCK_FREE;
  bool held = fcntl(fd, F_OFD_GETLK, &whole) == 0 && whole.l_type != F_UNLCK;
  ssize_t n = pread(fd, text, sizeof text - 1, 0);
  text[n > 0 ? n : 0] = 0;
  close(fd);
  return held ? LOCK_HELD : is_over(text, "") ? LOCK_FREE : LOCK_UNKNOWN;
}
