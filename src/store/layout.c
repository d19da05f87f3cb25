#include "store/layout.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fault.h"
#include "base/file.h"
#include "base/memory.h"

static object *find(const layout *l, const char *path) {
  for (int i = 0; i < l->count; i++)
    if (strcmp(l->objects[i].path, path) == 0) return &l->objects[i];
  return NULL;
}

static status add(layout *l, const char *path, size_t length, object **added) {
  status st = GROW(l->objects, l->count, l->room, "layout of a file");
  if (st != OK) return st;
  *added = &l->objects[l->count++];
  memcpy((*added)->path, path, length);
  return OK;
}

/* The object of that path and the groups above it. Components like ".." would mean something else to HDF5's readers. */
static status add_path(layout *l, const char *file, const char *path, object **added) {
  status st = OK;
  size_t length = strlen(path);
  if (length == 0 || length >= OBJECT_PATH)
    return fail(E_INTERNAL, "%s: expected paths of 1 to %d bytes, found %s", file, OBJECT_PATH - 1, path);
  for (size_t begin = 0; begin <= length;) {
    size_t end = begin + strcspn(path + begin, "/"), part = end - begin;
    char above[OBJECT_PATH] = "";
    if (part == 0 || (path[begin] == '.' && (part == 1 || (part == 2 && path[begin + 1] == '.'))))
      return fail(E_INTERNAL, "%s: expected a path of plain names, found %s", file, path);
    memcpy(above, path, end);
    *added = find(l, above);
    if (*added && (*added)->set && end < length)
      return fail(E_INTERNAL, "%s: expected %s to be a group, found a dataset of that name", file, above);
    if (!*added) TRY(add(l, path, end, added));
    begin = end + 1;
  }
done:
  return st;
}

static status add_dataset(layout *l, const char *file, const dataset *set) {
  uint64_t row, all;
  object *o = NULL;
  status st = OK;
  if (!extent(set->type, set->rank, set->dims, &row, &all) || row > CONTAINER_ROW_LIMIT)
    return fail(E_INTERNAL, "%s: %s: expected 1 to 3 dimensions and rows of at most %d bytes, found rank %d, first dimension %" PRId64,
                file, set->path, CONTAINER_ROW_LIMIT, set->rank, set->dims[0]);
  if (all > 0 && !set->data) return fail(E_INTERNAL, "%s: %s: expected data, found none", file, set->path);
  int before = l->count;
  TRY(add_path(l, file, set->path, &o));
  if (l->count == before) return fail(E_INTERNAL, "%s: expected one object named %s, found two", file, set->path);
  o->set = set;
done:
  return st;
}

status layout_new(const char *file, const char *kind, const dataset *sets, int set_count, const group_attributes *groups, int group_count,
                  layout *l) {
  status st = OK;
  object *o = NULL;
  TRY(add(l, "", 0, &o));
  for (int i = 0; i < set_count; i++) TRY(add_dataset(l, file, &sets[i]));
  for (int i = 0; i < group_count; i++) {
    o = &l->objects[0];
    if (*groups[i].path) TRY(add_path(l, file, groups[i].path, &o));
    TRY(attr_copy(&o->list, groups[i].list));
  }
  attributes *root = &l->objects[0].list;
  TRY(attr_text(root, "format", "cloqwork"));
  TRY(attr_int(root, "format_version", 1));
  TRY(attr_text(root, "kind", kind));
  TRY(attr_text(root, "program_version", CLOQWORK_VERSION));
  TRY(attr_int(root, "complete", 0));
done:
  return st;
}

status layout_add_link(layout *l, const char *file, const master_link *link) {
  status st = OK;
  object *o = NULL;
  int before = l->count;
  TRY(add_path(l, file, link->name, &o));
  if (l->count == before) return fail(E_INTERNAL, "%s: expected one object named %s, found two", file, link->name);
  attr_free(&l->objects[--l->count].list); /* the link itself is no object of this file */
  memset(&l->objects[l->count], 0, sizeof *l->objects);
done:
  return st;
}

void layout_free(layout *l) {
  for (int i = 0; i < l->count; i++) attr_free(&l->objects[i].list);
  FREE(l->objects);
  l->count = l->room = 0;
}

status layout_sign(layout *l, const dataset *sets, int set_count, char (*sha)[HASH_HEX]) {
  status st = OK;
  attributes_digest d = {0};
  char hex[HASH_HEX];
  for (int i = 0; i < set_count; i++) TRY(attr_text(&find(l, sets[i].path)->list, "sha256", sha[i]));
  for (int i = 0; i < l->count; i++) TRY(attributes_digest_add(&d, l->objects[i].path, &l->objects[i].list));
  TRY(attributes_digest_end(&d, hex));
  TRY(attr_text(&l->objects[0].list, ATTRIBUTES_SHA, hex));
done:
  attributes_digest_free(&d);
  return st;
}

status layout_hash(const layout *l, char hex[HASH_HEX]) {
  status st = OK;
  hash *h = NULL;
  attributes_digest d = {0};
  TRY(hash_new(&h));
  for (int i = 0; i < l->count; i++) {
    const object *o = &l->objects[i];
    TRY(attributes_digest_add(&d, o->path, &o->list));
    TRY(hash_add_text(h, o->path));
    if (!o->set) continue;
    TRY(hash_add_text(h, element_name(o->set->type)));
    TRY(hash_add(h, o->set->dims, (size_t)o->set->rank * sizeof *o->set->dims));
  }
  TRY(attributes_digest_end(&d, hex));
  TRY(hash_add_text(h, hex));
  TRY(hash_end(&h, hex));
done:
  attributes_digest_free(&d);
  hash_free(&h);
  return st;
}

/* What the file will take at most, metadata included. */
static uint64_t estimate(const layout *l) {
  enum { PER_FILE = 64 << 10, PER_OBJECT = 8 << 10, PER_ATTRIBUTE = 256 };
  uint64_t sum = PER_FILE, row, all;
  for (int i = 0; i < l->link_count; i++) sum += PER_ATTRIBUTE + 2 * (strlen(l->links[i].name) + strlen(l->links[i].target));
  for (int i = 0; i < l->count; i++) {
    const object *o = &l->objects[i];
    sum += PER_OBJECT;
    if (o->set && extent(o->set->type, o->set->rank, o->set->dims, &row, &all)) sum += all;
    for (int k = 0; k < o->list.count; k++) sum += PER_ATTRIBUTE + (o->list.list[k].text ? strlen(o->list.list[k].text) : 0);
  }
  return sum;
}

status layout_reserve(const char *path, const char *temporary, uint64_t begin, uint64_t bytes, bool keep_size) {
  status st = OK;
  struct rlimit limit;
  uint64_t left = 0;
  int fd = fault_here() ? (errno = EIO, -1) : open(temporary, O_WRONLY | O_CLOEXEC), reason = 0;
  if (fd < 0) return fail(E_IO, "%s: cannot be opened for writing: %m", temporary);
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && begin + bytes > limit.rlim_cur) {
    reason = EFBIG; /* found here, since to go beyond it is a signal */
  } else {
    do reason = fault_here() ? ENOSPC : fallocate(fd, keep_size ? FALLOC_FL_KEEP_SIZE : 0, (off_t)begin, (off_t)bytes) == 0 ? 0 : errno;
    while (reason == EINTR);
    if (reason == EOPNOTSUPP || reason == ENOSYS || reason == EINVAL) {
      st = file_free_space(temporary, &left);
      reason = left < bytes ? ENOSPC : 0;
    }
  }
  close(fd);
  if (st != OK || !reason) return st;
  errno = reason;
  return fail(E_IO, "%s: %.3f MB cannot be written: %m", path, (double)bytes / 1e6);
}

/* Exactly the blocks the file needs: those of its holes are added, those behind its end are given back. */
static status reserve_exactly(const char *path, const char *temporary) {
  struct stat s;
  if (stat(temporary, &s) != 0) return fail(E_IO, "%s: cannot be examined: %m", temporary);
  status st = layout_reserve(path, temporary, 0, (uint64_t)s.st_size, false);
  if (st == OK && truncate(temporary, s.st_size) != 0) st = fail(E_IO, "%s: cannot be cut to its size: %m", temporary);
  return st;
}

/* Links and attributes in order of creation and in the object header, which has a checksum; no times. */
static herr_t order_links(hid_t list) {
  if (H5Pset_obj_track_times(list, 0) < 0) return -1;
  return H5Pset_link_creation_order(list, H5P_CRT_ORDER_TRACKED | H5P_CRT_ORDER_INDEXED);
}
static herr_t order_attributes(hid_t list) {
  if (H5Pset_attr_creation_order(list, H5P_CRT_ORDER_TRACKED) < 0) return -1;
  return H5Pset_attr_phase_change(list, 65535, 0);
}

/* An empty file, open, with blocks for all that will come. A file that HDF5 cannot flush it cannot close either, and the process
 * ends in its "infinite loop closing library": so it gets to see the file only when there was room a moment ago. */
static status create_file(const layout *l, const char *path, const char *temporary, hid_t *file) {
  status st = OK;
  hid_t create = H5Pcreate(H5P_FILE_CREATE), list = h5_access_write();
  int fd = fault_here() ? (errno = EIO, -1) : open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) {
    st = fail(E_IO, "%s: cannot be made: %m", temporary);
    goto done;
  }
  close(fd);
  TRY(layout_reserve(path, temporary, 0, estimate(l), true));
  if (create >= 0 && list >= 0 && order_links(create) >= 0 && order_attributes(create) >= 0 && !fault_here())
    *file = H5Fcreate(temporary, H5F_ACC_TRUNC, create, list);
  if (*file < 0) {
    st = h5_fail(E_IO, E_IO, path, "", "cannot be made");
    goto done;
  }
  TRY(layout_reserve(path, temporary, 0, estimate(l), true)); /* H5Fcreate has let them go */
done:
  h5_close_list(list);
  h5_close_list(create);
  return st;
}

static hid_t create_group(hid_t file, const char *path) {
  hid_t create = H5Pcreate(H5P_GROUP_CREATE), id = H5I_INVALID_HID;
  if (create >= 0 && order_links(create) >= 0 && order_attributes(create) >= 0 && !fault_here())
    id = H5Gcreate2(file, path, H5P_DEFAULT, create, H5P_DEFAULT);
  h5_close_list(create);
  return id;
}

/* Contiguous: codes and floats hardly compress (shuffle + deflate costs 2-4x the time), and every rank's rows are one piece. */
static hid_t create_dataset(hid_t file, const dataset *set) {
  hsize_t dims[3] = {(hsize_t)set->dims[0], (hsize_t)set->dims[1], (hsize_t)set->dims[2]};
  hid_t create = H5Pcreate(H5P_DATASET_CREATE), type = h5_type(set->type), space = H5Screate_simple(set->rank, dims, NULL),
        id = H5I_INVALID_HID;
  if (create >= 0 && type >= 0 && space >= 0 && H5Pset_obj_track_times(create, 0) >= 0 && order_attributes(create) >= 0 &&
      H5Pset_alloc_time(create, H5D_ALLOC_TIME_EARLY) >= 0 && H5Pset_fill_time(create, H5D_FILL_TIME_NEVER) >= 0 && !fault_here())
    id = H5Dcreate2(file, set->path, type, space, H5P_DEFAULT, create, H5P_DEFAULT);
  h5_close_space(space);
  h5_close_type(type);
  h5_close_list(create);
  return id;
}

static status create_object(hid_t file, const char *path, const object *o) {
  status st = OK;
  hid_t id = !*o->path ? H5Oopen(file, "/", H5P_DEFAULT) : o->set ? create_dataset(file, o->set) : create_group(file, o->path);
  if (id < 0)
    st = h5_fail(E_IO, E_IO, path, o->path, "cannot be made");
  else
    st = h5_write_attributes(id, path, o->path, &o->list);
  h5_close_object(id);
  return st;
}

static status create_link(hid_t file, const char *path, const master_link *link) {
  if (fault_here() || H5Lcreate_external(link->target, "/", file, link->name, H5P_DEFAULT, H5P_DEFAULT) < 0)
    return h5_fail(E_IO, E_IO, path, link->name, "link cannot be made");
  return OK;
}

status layout_create(const layout *l, const char *path, const char *temporary) {
  status st = OK;
  hid_t file = H5I_INVALID_HID;
  TRY(create_file(l, path, temporary, &file));
  for (int i = 0; i < l->count; i++) TRY(create_object(file, path, &l->objects[i]));
  for (int i = 0; i < l->link_count; i++) TRY(create_link(file, path, &l->links[i]));
  herr_t rc = H5Fclose(file);
  file = H5I_INVALID_HID;
  if (rc < 0 || fault_here()) {
    st = h5_fail(E_IO, E_IO, path, "", "cannot be written");
    goto done;
  }
  TRY(reserve_exactly(path, temporary));
done:
  h5_close_file(file);
  return st;
}

static status mark_complete(const char *path, const char *temporary) {
  status st = OK;
  int64_t complete = 1;
  hid_t access = h5_access_write(), file = H5I_INVALID_HID, mark = H5I_INVALID_HID;
  if (access >= 0 && !fault_here()) file = H5Fopen(temporary, H5F_ACC_RDWR, access);
  if (file >= 0 && !fault_here()) mark = H5Aopen(file, "complete", H5P_DEFAULT);
  if (mark < 0 || fault_here() || H5Awrite(mark, H5T_STD_I64LE, &complete) < 0)
    st = h5_fail(E_IO, E_IO, path, "", "cannot be marked complete");
  if (mark >= 0) H5Aclose(mark);
  if (file >= 0 && (H5Fclose(file) < 0 || fault_here()) && st == OK) st = h5_fail(E_IO, E_IO, path, "", "cannot be closed");
  h5_close_list(access);
  return st;
}

status layout_publish(const char *path, const char *temporary, const char *kind) {
  status st = OK;
  container *c = NULL;
  TRY(mark_complete(path, temporary));
  TRY(container_open(temporary, kind, &c));
  TRY(container_check_attributes(c));
  container_close(&c);
  st = file_publish(temporary, path);
  if (st != OK && !file_exists(temporary)) unlink(path); /* renamed, but the folder could not be synced */
done:
  container_close(&c);
  return st;
}
