/* Reading a finished file: one rank, serial driver. Only hard links are followed, so a file cannot lead out of itself. What the file claims
 * is checked (structure.h) before HDF5 may believe it. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/fault.h"
#include "base/memory.h"
#include "store/h5.h"
#include "store/structure.h"

struct container {
  char *path; /* owned */
  hid_t file;
};

enum { DEEPEST = 8, VERIFY_BUFFER = 256 << 10 };

void container_close(container **c) {
  if (!*c) return;
  h5_close_file((*c)->file);
  h5_silence();
  FREE((*c)->path);
  FREE(*c);
}

/* True when every component of the path is a hard link. */
static bool leads_inside(container *c, const char *path) {
  char part[OBJECT_PATH];
  size_t length = strlen(path);
  if (length == 0 || length >= sizeof part || path[0] == '/' || path[length - 1] == '/' || strstr(path, "//")) return false;
  for (size_t end = 1; end <= length; end++) {
    if (path[end] != '/' && path[end] != 0) continue;
    H5L_info_t info;
    memcpy(part, path, end);
    part[end] = 0;
    if (H5Lexists(c->file, part, H5P_DEFAULT) <= 0 || H5Lget_info(c->file, part, &info, H5P_DEFAULT) < 0 || info.type != H5L_TYPE_HARD)
      return false;
  }
  return true;
}

bool container_has(container *c, const char *path) {
  h5_silence();
  return leads_inside(c, path);
}

/* path "" is the root. expected: H5I_DATASET, or H5I_BADID for a group or dataset. */
static status open_object(container *c, const char *path, H5I_type_t expected, hid_t *id) {
  *id = H5I_INVALID_HID;
  h5_listen();
  if (*path && !leads_inside(c, path)) return fail(E_DATA, "%s: expected %s, found no such thing in the file", c->path, path);
  *id = fault_here() ? H5I_INVALID_HID : H5Oopen(c->file, *path ? path : "/", H5P_DEFAULT);
  if (*id < 0) return h5_fail(E_IO, E_DATA, c->path, path, "cannot be opened");
  H5I_type_t found = H5Iget_type(*id);
  if (found == expected || (expected == H5I_BADID && (found == H5I_GROUP || found == H5I_DATASET))) return OK;
  h5_close_object(*id);
  *id = H5I_INVALID_HID;
  return fail(E_DATA, "%s: %s: expected a %s, found another kind of object", c->path, path,
              expected == H5I_DATASET ? "dataset" : "group or dataset");
}

status container_attributes(container *c, const char *path, attributes *a) {
  status st = OK;
  hid_t id = H5I_INVALID_HID;
  TRY(open_object(c, path, H5I_BADID, &id));
  TRY(h5_read_attributes(id, c->path, path, a));
done:
  h5_close_object(id);
  return st;
}

typedef struct opened {
  hid_t id, space, type;
  element element;
  int rank;
  int64_t dims[3];
  uint64_t row, all; /* bytes */
} opened;

static void close_dataset(opened *d) {
  h5_close_object(d->id);
  h5_close_space(d->space);
  h5_close_type(d->type);
}

static status open_dataset(container *c, const char *path, opened *d) {
  status st = OK;
  *d = (opened){.id = H5I_INVALID_HID, .space = H5I_INVALID_HID, .type = H5I_INVALID_HID};
  hsize_t dims[H5S_MAX_RANK] = {0};
  TRY(open_object(c, path, H5I_DATASET, &d->id));
  d->space = H5Dget_space(d->id);
  d->type = H5Dget_type(d->id);
  d->rank = d->space < 0 ? -1 : H5Sget_simple_extent_dims(d->space, dims, NULL);
  if (d->rank < 0 || d->type < 0) {
    st = h5_fail(E_IO, E_DATA, c->path, path, "shape and type cannot be read");
    goto done;
  }
  for (int i = 0; i < d->rank && i < 3; i++) d->dims[i] = dims[i] <= INT64_MAX ? (int64_t)dims[i] : -1;
  if (!h5_type_find(d->type, &d->element)) {
    st = fail(E_DATA, "%s: %s: expected float64, float32, float16, uint32 or uint8 in little-endian order, found another type", c->path,
              path);
    goto done;
  }
  if (!extent(d->element, d->rank, d->dims, &d->row, &d->all)) {
    st = fail(E_DATA, "%s: %s: expected 1 to 3 dimensions of sensible size, found %d", c->path, path, d->rank);
    goto done;
  }
done:
  return st;
}

status container_shape(container *c, const char *path, element *type, int *rank, int64_t dims[3]) {
  opened d;
  status st = open_dataset(c, path, &d);
  close_dataset(&d);
  if (st != OK) return st;
  *type = d.element;
  *rank = d.rank;
  memcpy(dims, d.dims, sizeof d.dims);
  return OK;
}

static status read_rows(container *c, const char *path, const opened *d, int64_t begin, int64_t end, void *data) {
  if (begin == end || d->row == 0) return OK;
  status st = OK;
  hid_t memory = h5_select_rows(d->space, d->rank, d->dims, begin, end - begin);
  if (memory < 0 || fault_here() || H5Dread(d->id, d->type, memory, d->space, H5P_DEFAULT, data) < 0)
    st = h5_fail(E_IO, E_DATA, c->path, path, "cannot be read");
  h5_close_space(memory);
  return st;
}

status container_read(container *c, const char *path, element type, int64_t begin, int64_t end, void *data) {
  status st = OK;
  opened d;
  TRY(open_dataset(c, path, &d));
  if (d.element != type)
    st = fail(E_DATA, "%s: %s: expected %s, found %s", c->path, path, element_name(type), element_name(d.element));
  else if (begin < 0 || begin > end || end > d.dims[0])
    st = fail(E_DATA, "%s: %s: expected rows %" PRId64 " to %" PRId64 ", found %" PRId64 " rows", c->path, path, begin, end, d.dims[0]);
  else
    st = read_rows(c, path, &d, begin, end, data);
done:
  close_dataset(&d);
  return st;
}

status container_read_rows(container *c, const char *path, element type, int64_t rows, int64_t cols, int64_t begin, int64_t end,
                           void *data) {
  status st = OK;
  opened d;
  TRY(open_dataset(c, path, &d));
  if (d.element != type || d.rank != (cols ? 2 : 1) || d.dims[0] != rows || (cols && d.dims[1] != cols))
    st = fail(E_DATA, "%s: %s: expected %" PRId64 " x %" PRId64 " of %s, found %" PRId64 " x %" PRId64 " of %s", c->path, path, rows,
              cols ? cols : 1, element_name(type), d.dims[0], d.rank > 1 ? d.dims[1] : 1, element_name(d.element));
  else if (begin < 0 || begin > end || end > rows)
    st = fail(E_INTERNAL, "%s: %s: expected rows within %" PRId64 ", asked for %" PRId64 " to %" PRId64, c->path, path, rows, begin, end);
  else
    st = read_rows(c, path, &d, begin, end, data);
done:
  close_dataset(&d);
  return st;
}

/* The i-th hard link of a group, in order of creation where the file keeps it, by name otherwise. *name is NULL past the end;
 * other links are passed over with an empty name. */
typedef struct listing {
  hid_t group;
  hsize_t count;
  H5_index_t index;
} listing;

static status list_begin(container *c, const char *path, listing *l) {
  status st = OK;
  H5G_info_t info;
  unsigned order = 0;
  hid_t list = H5I_INVALID_HID;
  TRY(open_object(c, path, H5I_BADID, &l->group));
  list = H5Gget_create_plist(l->group);
  if (list < 0 || H5Pget_link_creation_order(list, &order) < 0 || H5Gget_info(l->group, &info) < 0) {
    st = h5_fail(E_IO, E_DATA, c->path, path, "cannot be listed");
    goto done;
  }
  l->count = info.nlinks;
  l->index = order & H5P_CRT_ORDER_TRACKED ? H5_INDEX_CRT_ORDER : H5_INDEX_NAME;
done:
  h5_close_list(list);
  return st;
}

static status list_at(container *c, const char *path, const listing *l, hsize_t i, char name[OBJECT_PATH]) {
  H5L_info_t info;
  name[0] = 0;
  if (H5Lget_info_by_idx(l->group, ".", l->index, H5_ITER_INC, i, &info, H5P_DEFAULT) < 0)
    return h5_fail(E_IO, E_DATA, c->path, path, "cannot be listed");
  if (info.type != H5L_TYPE_HARD) return OK;
  ssize_t length = H5Lget_name_by_idx(l->group, ".", l->index, H5_ITER_INC, i, name, OBJECT_PATH, H5P_DEFAULT);
  if (length < 0) return h5_fail(E_IO, E_DATA, c->path, path, "cannot be listed");
  if (length >= OBJECT_PATH)
    return fail(E_DATA, "%s: %s: expected names under %d bytes, found one of %zd", c->path, path, OBJECT_PATH, length);
  return OK;
}

typedef status (*visit)(container *c, const char *path, bool is_dataset, void *context);

/* Calls what for everything below path (a group), groups before their members. */
static status walk(container *c, const char *path, int depth, visit what, void *context) {
  status st = OK;
  listing l = {.group = H5I_INVALID_HID};
  char name[OBJECT_PATH], below[OBJECT_PATH];
  if (depth > DEEPEST) return fail(E_DATA, "%s: %s: expected groups nested at most %d deep, found more", c->path, path, DEEPEST);
  TRY(list_begin(c, path, &l));
  for (hsize_t i = 0; i < l.count; i++) {
    TRY(list_at(c, path, &l, i, name));
    if (!*name) continue;
    if (snprintf(below, sizeof below, "%s%s%s", path, *path ? "/" : "", name) >= (int)sizeof below) {
      st = fail(E_DATA, "%s: %s: expected paths under %d bytes, found a longer one", c->path, path, OBJECT_PATH);
      goto done;
    }
    hid_t id;
    TRY(open_object(c, below, H5I_BADID, &id));
    bool is_dataset = H5Iget_type(id) == H5I_DATASET;
    h5_close_object(id);
    TRY(what(c, below, is_dataset, context));
    if (!is_dataset) TRY(walk(c, below, depth + 1, what, context));
  }
done:
  h5_close_object(l.group);
  return st;
}

static status check_root(container *c, const char *kind) {
  status st = OK;
  attributes a = {0};
  TRY(container_attributes(c, "", &a));
  const char *format = attr_get_text(&a, "format"), *found = attr_get_text(&a, "kind");
  int64_t version = attr_get_int(&a, "format_version", -1), complete = attr_get_int(&a, "complete", 0);
  if (strcmp(format, "cloqwork") != 0)
    st = fail(E_DATA, "%s: expected format \"cloqwork\", found \"%.64s\"", c->path, format);
  else if (version != 1)
    st = fail(E_DATA, "%s: expected format version 1, found %" PRId64, c->path, version);
  else if (kind && strcmp(kind, found) != 0)
    st = fail(E_DATA, "%s: expected a file of kind \"%s\", found \"%.64s\"", c->path, kind, found);
  else if (complete != 1)
    st = fail(E_DATA, "%s: expected a complete file, found one whose writing was not finished", c->path);
done:
  attr_free(&a);
  return st;
}

status container_open(const char *path, const char *kind, container **out) {
  status st = OK;
  container *c = NULL;
  hid_t access = H5I_INVALID_HID;
  h5_listen();
  *out = NULL;
  TRY(NEW(c, 1, "container"));
  c->file = H5I_INVALID_HID;
  c->path = mem_format("%s", path);
  if (!c->path) {
    st = E_MEMORY;
    goto done;
  }
  TRY(structure_check(path)); /* before HDF5 reads it */
  access = h5_access_read();
  c->file = fault_here() ? H5I_INVALID_HID : H5Fopen(path, H5F_ACC_RDONLY, access);
  if (c->file < 0) {
    st = h5_fail(E_IO, E_DATA, path, "", "expected a whole HDF5 file, found a damaged or truncated one");
    goto done;
  }
  TRY(check_root(c, kind));
  *out = c;
  c = NULL;
done:
  h5_close_list(access);
  container_close(&c);
  return st;
}

status container_groups(container *c, char ***names, int *count) {
  status st = OK;
  listing l = {.group = H5I_INVALID_HID};
  char name[OBJECT_PATH];
  *names = NULL;
  *count = 0;
  TRY(list_begin(c, "", &l));
  TRY(NEW(*names, l.count, "names of groups"));
  for (hsize_t i = 0; i < l.count; i++) {
    TRY(list_at(c, "", &l, i, name));
    if (!*name) continue;
    hid_t id;
    TRY(open_object(c, name, H5I_BADID, &id));
    bool is_group = H5Iget_type(id) == H5I_GROUP;
    h5_close_object(id);
    if (!is_group) continue;
    (*names)[*count] = mem_format("%s", name);
    if (!(*names)[*count]) {
      st = E_MEMORY;
      goto done;
    }
    ++*count;
  }
done:
  h5_close_object(l.group);
  if (st != OK) container_names_free(names, *count);
  return st;
}

void container_names_free(char ***names, int count) {
  if (!*names) return;
  for (int i = 0; i < count; i++) FREE((*names)[i]);
  FREE(*names);
}

/* Streams a dataset through the hash. */
static status hash_dataset(container *c, const char *path, const opened *d, void *buffer, char hex[HASH_HEX]) {
  status st = OK;
  hash *h = NULL;
  void *wider = NULL;
  int64_t step = d->row ? (int64_t)(VERIFY_BUFFER / d->row) : d->dims[0];
  TRY(hash_new(&h));
  if (step < 1) {
    step = 1;
    TRY(mem_new(&wider, 1, (size_t)d->row, "row to verify"));
    buffer = wider;
  }
  for (int64_t begin = 0; begin < d->dims[0]; begin += step) {
    int64_t end = begin + step < d->dims[0] ? begin + step : d->dims[0];
    TRY(read_rows(c, path, d, begin, end, buffer));
    TRY(hash_add(h, buffer, (size_t)(end - begin) * (size_t)d->row));
  }
  TRY(hash_end(&h, hex));
done:
  mem_free(&wider);
  hash_free(&h);
  return st;
}

typedef struct verification {
  void *buffer; /* (VERIFY_BUFFER) owned */
  uint64_t bytes;
} verification;

static status verify_one(container *c, const char *path, bool is_dataset, void *context) {
  if (!is_dataset) return OK;
  verification *v = context;
  status st = OK;
  opened d;
  attributes a = {0};
  char found[HASH_HEX];
  TRY(open_dataset(c, path, &d));
  TRY(h5_read_attributes(d.id, c->path, path, &a));
  const char *expected = attr_get_text(&a, "sha256");
  if (strlen(expected) != HASH_HEX - 1) {
    st = fail(E_DATA, "%s: %s: expected a SHA-256 in its attribute sha256, found none", c->path, path);
    goto done;
  }
  TRY(hash_dataset(c, path, &d, v->buffer, found));
  if (strcmp(expected, found) != 0) {
    st = fail(E_DATA, "%s: %s: damaged data: expected SHA-256 %.16s…, found %.16s…", c->path, path, expected, found);
    goto done;
  }
  v->bytes += d.all;
done:
  attr_free(&a);
  close_dataset(&d);
  return st;
}

status container_verify_dataset(container *c, const char *path) {
  verification v = {0};
  status st = mem_new(&v.buffer, 1, VERIFY_BUFFER, "buffer to verify");
  if (st == OK) st = verify_one(c, path, true, &v);
  mem_free(&v.buffer);
  return st;
}

static status digest_object(container *c, const char *path, bool is_dataset, void *context) {
  (void)is_dataset;
  status st = OK;
  attributes a = {0};
  TRY(container_attributes(c, path, &a));
  TRY(attributes_digest_add(context, path, &a));
done:
  attr_free(&a);
  return st;
}

status container_check_attributes(container *c) {
  status st = OK;
  attributes_digest d = {0};
  attributes root = {0};
  char found[HASH_HEX];
  TRY(container_attributes(c, "", &root));
  TRY(digest_object(c, "", false, &d));
  TRY(walk(c, "", 1, digest_object, &d));
  TRY(attributes_digest_end(&d, found));
  if (strcmp(found, attr_get_text(&root, ATTRIBUTES_SHA)) != 0)
    st =
        fail(E_DATA, "%s: damaged attributes: expected SHA-256 %.16s…, found %.16s…", c->path, attr_get_text(&root, ATTRIBUTES_SHA), found);
done:
  attr_free(&root);
  attributes_digest_free(&d);
  return st;
}

status container_verify(container *c, uint64_t *bytes) {
  status st = OK;
  verification v = {0};
  TRY(mem_new(&v.buffer, VERIFY_BUFFER, 1, "buffer to verify with"));
  TRY(walk(c, "", 1, verify_one, &v));
  TRY(container_check_attributes(c));
done:
  if (bytes) *bytes = v.bytes;
  mem_free(&v.buffer);
  return st;
}
