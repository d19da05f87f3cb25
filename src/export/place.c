#include "export/place.h"

#include <dirent.h>
#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/memory.h"

status place_name(const char *folder, place *p) {
  size_t length = strlen(folder);
  while (length > 1 && folder[length - 1] == '/') length--;
  *p = (place){.lock_file = -1};
  p->folder = mem_format("%.*s", (int)length, folder);
  p->making = mem_format("%.*s.tmp", (int)length, folder);
  if (p->making) p->lock = path_join(p->making, ".lock");
  return p->folder && p->lock ? OK : fail(E_MEMORY, "%s: no memory for names", folder);
}

void place_forget(place *p) {
  FREE(p->folder);
  FREE(p->making);
  FREE(p->lock);
}

static int remove_entry(const char *path, const struct stat *s, int kind, struct FTW *at) {
  (void)s, (void)kind, (void)at;
  return remove(path);
}

/* Symbolic links are removed, never followed. */
static status remove_tree(const char *path) {
  if (nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS) != 0 && errno != ENOENT) return fail(E_IO, "%s: cannot be removed: %m", path);
  return OK;
}

static status check_free(const char *folder) {
  struct stat s;
  if (lstat(folder, &s) != 0) return errno == ENOENT ? OK : fail(E_IO, "%s: cannot be examined: %m", folder);
  DIR *d = S_ISDIR(s.st_mode) ? opendir(folder) : NULL;
  if (!d) return fail(E_USAGE, "%s: expected no such file or an empty folder, found something else", folder);
  const char *found = NULL;
  char name[256];
  for (struct dirent *e = readdir(d); e && !found; e = readdir(d))
    if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0) {
      snprintf(name, sizeof name, "%s", e->d_name);
      found = name;
    }
  closedir(d);
  return found ? fail(E_USAGE, "%s: expected an empty folder, found %s in it; choose another --out or remove it", folder, found) : OK;
}

/* Everything in the folder but the lock. */
static status clear(const place *p) {
  status st = OK;
  DIR *d = opendir(p->making);
  if (!d) return fail(E_IO, "%s: cannot be listed: %m", p->making);
  for (struct dirent *e = readdir(d); e && st == OK; e = readdir(d)) {
    if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0 || strcmp(e->d_name, ".lock") == 0) continue;
    char *path = path_join(p->making, e->d_name);
    st = path ? remove_tree(path) : fail(E_MEMORY, "%s: no memory for its path", e->d_name);
    FREE(path);
  }
  closedir(d);
  return st;
}

status place_begin(place *p, const char *owner) {
  status st = OK;
  TRY(check_free(p->folder));
  TRY(file_make_folders(p->making));
  TRY(file_lock(p->lock, owner, &p->lock_file));
  p->begun = true;
  TRY(clear(p));
done:
  return st;
}

status place_publish(place *p) {
  status st = OK;
  char *above = NULL;
  file_unlock(p->lock, &p->lock_file);
  if (!(above = path_join(p->folder, ".."))) {
    st = fail(E_MEMORY, "%s: no memory for a name", p->folder);
    goto done;
  }
  TRY(file_sync(p->making));
  if (rename(p->making, p->folder) != 0) {
    st = fail(E_IO, "%s: cannot be renamed to %s: %m", p->making, p->folder);
    goto done;
  }
  st = file_sync(above);
  p->begun = st != OK && rename(p->folder, p->making) == 0; /* back, for place_abandon */
done:
  FREE(above);
  return st;
}

void place_abandon(place *p) {
  if (!p->begun) return;
  file_unlock(p->lock, &p->lock_file);
  if (file_exists(p->making)) remove_tree(p->making);
  p->begun = false;
}
