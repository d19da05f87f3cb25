/* HDF5 calls that writing and reading share: types, property lists, attributes, and its error stack turned into one sentence. */
#include "store/h5.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/fault.h"
#include "base/memory.h"

const char *container_hdf5_version(void) {
  static char text[32];
  unsigned major = 0, minor = 0, release = 0;
  H5get_libversion(&major, &minor, &release);
  snprintf(text, sizeof text, "%u.%u.%u", major, minor, release);
  return text;
}

/* What the stack tells: the innermost description, unless some level carries the system's or MPI's own words. */
typedef struct reason {
  char text[256];
  bool by_system;
} reason;

static reason last; /* of the last call that failed: HDF5 forgets it at the next call, and cleaning up is made of calls */

static bool quoted_after(const char *description, const char *key, reason *r) {
  const char *begin = strstr(description, key);
  if (!begin) return false;
  begin += strlen(key);
  snprintf(r->text, sizeof r->text, "%.*s", (int)strcspn(begin, "'\n"), begin);
  r->by_system = true;
  return true;
}

static herr_t look_at(unsigned level, const H5E_error2_t *e, void *context) {
  reason *r = context;
  if (!e->desc || r->by_system) return 0;
  if (quoted_after(e->desc, "error message = '", r) || quoted_after(e->desc, "MPI error string is '", r)) return 0;
  if (level == 0) snprintf(r->text, sizeof r->text, "%.*s", (int)strcspn(e->desc, "\n"), e->desc);
  return 0;
}

/* HDF5 calls this where it would print. */
static herr_t keep_reason(hid_t stack, void *context) {
  (void)context;
  last = (reason){"", false};
  H5Ewalk2(stack, H5E_WALK_UPWARD, look_at, &last);
  return 0;
}

void h5_listen(void) {
  H5Eset_auto2(H5E_DEFAULT, keep_reason, NULL);
  last = (reason){"", false};
}

void h5_silence(void) { H5Eset_auto2(H5E_DEFAULT, NULL, NULL); }

status h5_fail(status by_system, status otherwise, const char *path, const char *object, const char *did) {
  reason r = last;
  last = (reason){"", false};
  return fail(r.by_system ? by_system : otherwise, "%s: %s%s%s: %s", path, object, *object ? ": " : "", did,
              *r.text ? r.text : "no reason given");
}

static const struct {
  const char *name;
  size_t bytes;
} elements[] = {
    [EL_F64] = {"float64", 8}, [EL_F32] = {"float32", 4}, [EL_F16] = {"float16", 2}, [EL_U32] = {"uint32", 4}, [EL_U8] = {"uint8", 1}};
enum { ELEMENTS = sizeof elements / sizeof *elements };

size_t element_bytes(element e) { return elements[e].bytes; }
const char *element_name(element e) { return elements[e].name; }

hid_t h5_type(element e) {
  hid_t whole = e == EL_F64 ? H5T_IEEE_F64LE : e == EL_U32 ? H5T_STD_U32LE : e == EL_U8 ? H5T_STD_U8LE : H5T_IEEE_F32LE;
  hid_t type = H5Tcopy(whole);
  if (type < 0 || e != EL_F16) return type;
  /* IEEE half: sign at 15, 5 bits of exponent at 10 with bias 15, 10 of fraction */
  if (H5Tset_fields(type, 15, 10, 5, 0, 10) >= 0 && H5Tset_size(type, 2) >= 0 && H5Tset_ebias(type, 15) >= 0) return type;
  H5Tclose(type);
  return H5I_INVALID_HID;
}

bool h5_type_find(hid_t type, element *e) {
  bool found = false;
  for (int i = 0; i < ELEMENTS && !found; i++) {
    hid_t ours = h5_type((element)i);
    found = ours >= 0 && H5Tequal(type, ours) > 0;
    if (found) *e = (element)i;
    h5_close_type(ours);
  }
  return found;
}

/* Files with their final name are never written again, and writers have their own names: locks protect nothing here, and fail on
 * cluster file systems that were mounted without them. */
static herr_t without_locks(hid_t list) {
#if H5_VERSION_GE(1, 12, 1) || (H5_VERSION_GE(1, 10, 7) && !H5_VERSION_GE(1, 12, 0))
  return H5Pset_file_locking(list, 0, 1);
#else
  return list >= 0 ? 0 : -1;
#endif
}

hid_t h5_access_read(void) {
  hid_t list = H5Pcreate(H5P_FILE_ACCESS);
  if (list >= 0 && without_locks(list) >= 0) return list;
  h5_close_list(list);
  return H5I_INVALID_HID;
}

hid_t h5_access_write(void) {
  enum { LARGE = 64 << 10, PAGE = 4096 };
  hid_t list = h5_access_read();
  if (list >= 0 && H5Pset_libver_bounds(list, H5F_LIBVER_V110, H5F_LIBVER_V110) >= 0 && H5Pset_alignment(list, LARGE, PAGE) >= 0)
    return list;
  h5_close_list(list);
  return H5I_INVALID_HID;
}

hid_t h5_select_rows(hid_t file_space, int rank, const int64_t *dims, int64_t begin, int64_t count) {
  hsize_t start[3] = {(hsize_t)begin, 0, 0}, size[3] = {(hsize_t)(count ? count : 1)};
  for (int i = 1; i < rank; i++) size[i] = (hsize_t)dims[i];
  hid_t memory = H5Screate_simple(rank, size, NULL);
  if (memory < 0) return memory;
  herr_t good = count ? H5Sselect_hyperslab(file_space, H5S_SELECT_SET, start, NULL, size, NULL) : H5Sselect_none(file_space);
  if (good >= 0 && count == 0) good = H5Sselect_none(memory);
  if (good >= 0) return memory;
  H5Sclose(memory);
  return H5I_INVALID_HID;
}

bool extent(element type, int rank, const int64_t *dims, uint64_t *row, uint64_t *all) {
  if (rank < 1 || rank > 3 || (unsigned)type >= ELEMENTS || dims[0] < 0) return false;
  *row = element_bytes(type);
  for (int i = 1; i < rank; i++)
    if (dims[i] < 0 || __builtin_mul_overflow(*row, (uint64_t)dims[i], row)) return false;
  return !__builtin_mul_overflow(*row, (uint64_t)dims[0], all) && *all <= INT64_MAX;
}

/* Variable length, because h5py shows only that as str. */
static hid_t text_type(void) {
  hid_t type = H5Tcopy(H5T_C_S1);
  if (type >= 0 && H5Tset_size(type, H5T_VARIABLE) >= 0 && H5Tset_cset(type, H5T_CSET_UTF8) >= 0) return type;
  h5_close_type(type);
  return H5I_INVALID_HID;
}

status h5_write_attributes(hid_t id, const char *path, const char *object, const attributes *a) {
  status st = OK;
  hid_t scalar = H5Screate(H5S_SCALAR), text = text_type();
  for (int i = 0; i < a->count && st == OK; i++) {
    const attribute *one = &a->list[i];
    hid_t type = one->kind == ATTR_TEXT ? text : one->kind == ATTR_INT ? H5T_STD_I64LE : H5T_IEEE_F64LE;
    const void *value = one->kind == ATTR_TEXT  ? (const void *)&one->text
                        : one->kind == ATTR_INT ? (const void *)&one->integer
                                                : &one->real;
    hid_t made = fault_here() ? H5I_INVALID_HID : H5Acreate2(id, one->name, type, scalar, H5P_DEFAULT, H5P_DEFAULT);
    if (made < 0 || H5Awrite(made, type, value) < 0) {
      char did[96];
      snprintf(did, sizeof did, "attribute %s cannot be written", one->name);
      st = h5_fail(E_IO, E_IO, path, object, did);
    }
    if (made >= 0) H5Aclose(made);
  }
  h5_close_type(text);
  h5_close_space(scalar);
  return st;
}

static status read_text(hid_t attr, hid_t type, const char *name, attributes *a, bool *good) {
  status st = OK;
  char *text = NULL;
  size_t length = H5Tget_size(type);
  if (H5Tis_variable_str(type) > 0) {
    hid_t wanted = H5Tcopy(type);
    char *theirs = NULL;
    *good = H5Aread(attr, wanted, &theirs) >= 0;
    if (*good) st = attr_text(a, name, theirs ? theirs : "");
    if (theirs) H5free_memory(theirs);
    h5_close_type(wanted);
    return st;
  }
  *good = length > 0 && length < (1 << 20);
  if (!*good) return OK;
  TRY(NEW(text, length + 1, "attribute"));
  *good = H5Aread(attr, type, text) >= 0;
  if (*good) st = attr_text(a, name, text);
done:
  FREE(text);
  return st;
}

typedef struct reading {
  const char *path, *object;
  attributes *into;
  status st;
  bool begun;
} reading;

static herr_t read_one(hid_t id, const char *name, const H5A_info_t *info, void *context) {
  (void)info;
  reading *r = context;
  r->begun = true;
  hid_t attr = fault_here() ? H5I_INVALID_HID : H5Aopen(id, name, H5P_DEFAULT), type = attr < 0 ? attr : H5Aget_type(attr),
        space = attr < 0 ? attr : H5Aget_space(attr);
  bool good = type >= 0 && space >= 0;
  bool ours = good && strlen(name) < sizeof r->into->list->name && H5Sget_simple_extent_npoints(space) == 1;
  if (ours) {
    H5T_class_t class = H5Tget_class(type);
    int64_t integer = 0;
    double real = 0;
    if (class == H5T_STRING) {
      r->st = read_text(attr, type, name, r->into, &good);
    } else if (class == H5T_INTEGER) {
      good = H5Aread(attr, H5T_NATIVE_INT64, &integer) >= 0;
      if (good) r->st = attr_int(r->into, name, integer);
    } else if (class == H5T_FLOAT) {
      good = H5Aread(attr, H5T_NATIVE_DOUBLE, &real) >= 0;
      if (good) r->st = attr_real(r->into, name, real);
    }
  }
  if (!good) {
    char did[96];
    snprintf(did, sizeof did, "attribute %.48s cannot be read", name);
    r->st = h5_fail(E_IO, E_DATA, r->path, r->object, did);
  }
  h5_close_space(space);
  h5_close_type(type);
  if (attr >= 0) H5Aclose(attr);
  return r->st == OK ? 0 : 1;
}

status h5_read_attributes(hid_t id, const char *path, const char *object, attributes *a) {
  reading r = {path, object, a, OK, false};
  hsize_t at = 0;
  herr_t rc = H5Aiterate2(id, H5_INDEX_CRT_ORDER, H5_ITER_INC, &at, read_one, &r);
  if (rc < 0 && !r.begun) { /* a file whose attributes have no order of creation */
    at = 0;
    rc = H5Aiterate2(id, H5_INDEX_NAME, H5_ITER_INC, &at, read_one, &r);
  }
  if (rc < 0 && r.st == OK) r.st = h5_fail(E_IO, E_DATA, path, object, "attributes cannot be listed");
  return r.st;
}

void h5_close_file(hid_t id) {
  if (id >= 0) H5Fclose(id);
}
void h5_close_object(hid_t id) {
  if (id >= 0) H5Oclose(id);
}
void h5_close_list(hid_t id) {
  if (id >= 0) H5Pclose(id);
}
void h5_close_space(hid_t id) {
  if (id >= 0) H5Sclose(id);
}
void h5_close_type(hid_t id) {
  if (id >= 0) H5Tclose(id);
}
