#include "base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/fault.h"
#include "base/memory.h"

status file_map_open(const char *path, file_map *m) {
  *m = (file_map){NULL, 0};
  int fd = fault_here() ? (errno = EIO, -1) : open(path, O_RDONLY | O_CLOEXEC);
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

static status sync_path(const char *path, int flags) {
  int fd = open(path, flags | O_CLOEXEC);
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
  TRY(sync_path(temporary, O_RDONLY));
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
  TRY(sync_path(folder, O_RDONLY | O_DIRECTORY));
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

/* "OWNER host pid": is it ours to take? */
static bool lock_is_stale(const char *text, const char *owner) {
  char host[256] = "", other[256] = "", here[256] = "";
  long pid = 0;
  if (sscanf(text, "%255s %255s %ld", other, host, &pid) != 3) return true;
  gethostname(here, sizeof here - 1);
  bool same_host = strcmp(host, here) == 0, alive = same_host && (kill((pid_t)pid, 0) == 0 || errno == EPERM);
  if (same_host) return !alive;
  return strcmp(other, owner) == 0; /* a requeue of the same job on another node */
}

status file_lock(const char *path, const char *owner) {
  char host[256] = "";
  gethostname(host, sizeof host - 1);
  status st = OK;
  char *mine = mem_format("%s %s %ld\n", owner, host, (long)getpid()), *text = NULL;
  if (!mine) return fail(E_MEMORY, "%s: no memory for the lock", path);
  for (int attempt = 0; attempt < 2; attempt++) {
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd >= 0) {
      st = write_all(fd, path, mine, strlen(mine));
      close(fd);
      goto done;
    }
    if (errno != EEXIST) {
      st = fail(E_IO, "%s: cannot be made: %m", path);
      goto done;
    }
    size_t bytes;
    TRY(file_read(path, 4096, &text, &bytes));
    if (!lock_is_stale(text, owner)) {
      text[strcspn(text, "\n")] = 0;
      st = fail(E_IO, "%s: expected no other job on this run directory, found one (%s)", path, text);
      goto done;
    }
    FREE(text);
    TRY(file_remove(path));
  }
  st = fail(E_IO, "%s: another job took it at the same moment", path);
done:
  FREE(text);
  FREE(mine);
  return st;
}

void file_unlock(const char *path) { unlink(path); }
