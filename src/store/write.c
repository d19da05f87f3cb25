/* Writing a file by a team: fenced sections of local work, each followed by agree().
 *
 *   all     hash what is in memory, datasets dealt out by bytes
 *   rank 0  the empty file with all metadata and all blocks (layout.c)
 *   all     fill in the data: parallel HDF5, collective transfers, rows dealt out evenly
 *   all     read back and compare with memory, every rank what another one wrote
 *   rank 0  complete = 1, last look, fsync, rename
 *
 * Since the hashes are those of memory, and the file is compared with memory byte by byte, the file has these hashes. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/fault.h"
#include "base/file.h"
#include "base/memory.h"
#include "dist/agree.h"
#include "store/layout.h"

enum { SLICE = 1 << 30, COMPARE_BUFFER = 256 << 10 };

typedef struct writer {
  const team *t;
  const char *path; /* the final name */
  char *temporary;  /* owned */
  const dataset *sets;
  int set_count;
  layout layout;
  char (*sha)[HASH_HEX]; /* [set_count] owned */
} writer;

static uint64_t bytes_of(const dataset *set, uint64_t *row) {
  uint64_t all = 0;
  extent(set->type, set->rank, set->dims, row, &all); /* layout_new has checked it */
  return all;
}

/* Local. Hashes this rank's datasets; the others' stay zero. */
static status hash_mine(writer *w) {
  status st = OK;
  double *cost = NULL;
  int *owner = NULL;
  uint64_t row;
  TRY(NEW(cost, w->set_count, "hashing"));
  TRY(NEW(owner, w->set_count, "hashing"));
  for (int i = 0; i < w->set_count; i++) cost[i] = (double)bytes_of(&w->sets[i], &row);
  TRY(deal_tasks(cost, w->set_count, w->t->size, owner));
  for (int i = 0; i < w->set_count; i++) {
    uint64_t all = bytes_of(&w->sets[i], &row);
    if (owner[i] == w->t->rank) TRY(hash_bytes(all ? w->sets[i].data : "", (size_t)all, w->sha[i]));
  }
done:
  FREE(cost);
  FREE(owner);
  return st;
}

/* Rows go through in as many calls as the largest share needs, the same number on every rank. */
static int64_t rows_per_call(const dataset *set, int parts, int64_t *calls) {
  uint64_t row;
  bytes_of(set, &row);
  int64_t most = 0, step = SLICE / (int64_t)row;
  for (int i = 0; i < parts; i++) {
    int64_t begin, end;
    deal_range(set->dims[0], parts, i, 1, &begin, &end);
    if (end - begin > most) most = end - begin;
  }
  *calls = (most + step - 1) / step;
  return step;
}

/* For a rank that knows of a failure while others wait for it inside a library. */
static void go_down(const writer *w, status st) {
  fprintf(stderr, "cloqwork: %s; rank %d of %d\n", status_message(), w->t->rank, w->t->size);
  unlink(w->temporary);
  MPI_Abort(w->t->job, status_exit_code(st));
}

/* A call on a dataset: what may fail on one rank alone is prepared before anybody enters the library together. */
typedef struct slice {
  hid_t type, space, memory;
  const void *data;
} slice;

static void slice_close(slice *s) {
  h5_close_space(s->memory);
  h5_close_space(s->space);
  h5_close_type(s->type);
}

/* Local. This rank's rows; nothing where it has none (left). */
static status slice_prepare(const writer *w, const dataset *set, hid_t id, int64_t begin, int64_t count, slice *s) {
  uint64_t row;
  bytes_of(set, &row);
  *s = (slice){h5_type(set->type), H5Dget_space(id), H5I_INVALID_HID, (const char *)set->data + (uint64_t)begin * row};
  if (s->space >= 0 && s->type >= 0 && !fault_here()) s->memory = h5_select_rows(s->space, set->rank, set->dims, begin, count);
  return s->type < 0 || s->memory < 0 ? h5_fail(E_IO, E_MEMORY, w->path, set->path, "cannot be selected") : OK;
}

/* Collective, but for the agreement. HDF5 puts collective calls behind the write proper, and a rank whose write fails leaves
 * without them: the others wait for it, and going down is the way out. reserve_mine() has seen to it that this takes more than a
 * full disk. */
static status slice_write(const writer *w, const dataset *set, hid_t id, hid_t transfer, const slice *s) {
  uint32_t here = 0, anywhere = 0;
  bool failed = H5Dwrite(id, s->type, s->memory, s->space, transfer, s->data) < 0;
  if (failed || fault_here()) {
    status st = h5_fail(E_IO, E_IO, w->path, set->path, "cannot be written");
    if (failed && w->t->size > 1) go_down(w, st);
    return st;
  }
  if (H5Pget_mpio_no_collective_cause(transfer, &here, &anywhere) < 0 || here || anywhere)
    return fail(E_INTERNAL, "%s: %s: expected a collective transfer, found causes 0x%x here and 0x%x anywhere", w->path, set->path, here,
                anywhere);
  return OK;
}

/* Collective. */
static status write_dataset(const writer *w, const dataset *set, hid_t file, hid_t transfer) {
  uint64_t row;
  if (bytes_of(set, &row) == 0) return OK;
  status st = OK;
  int64_t calls, step = rows_per_call(set, w->t->size, &calls), begin, end;
  deal_range(set->dims[0], w->t->size, w->t->rank, 1, &begin, &end);
  hid_t id = H5Dopen2(file, set->path, H5P_DEFAULT);
  if (id < 0 || fault_here()) st = h5_fail(E_IO, E_IO, w->path, set->path, "cannot be opened");
  st = agree(w->t->comm, st);
  for (int64_t i = 0; i < calls && st == OK; i++) {
    slice s;
    int64_t from = begin + i * step < end ? begin + i * step : end, to = from + step < end ? from + step : end;
    st = agree(w->t->comm, slice_prepare(w, set, id, from, to - from, &s));
    if (st == OK) st = agree(w->t->comm, slice_write(w, set, id, transfer, &s));
    slice_close(&s);
  }
  h5_close_object(id);
  return st;
}

typedef struct lists {
  hid_t open, transfer;
} lists;

/* Local. Blocks for the rows that this rank will write: they are there already, unless this rank's own limits or its view of the
 * file system differ from those of rank 0. */
static status reserve_mine(const writer *w, hid_t file) {
  status st = OK;
  for (int i = 0; i < w->set_count && st == OK; i++) {
    const dataset *set = &w->sets[i];
    uint64_t row;
    int64_t begin, end;
    deal_range(set->dims[0], w->t->size, w->t->rank, 1, &begin, &end);
    if (bytes_of(set, &row) == 0 || begin == end) continue;
    hid_t id = fault_here() ? H5I_INVALID_HID : H5Dopen2(file, set->path, H5P_DEFAULT);
    haddr_t offset = id < 0 ? HADDR_UNDEF : H5Dget_offset(id);
    if (offset == HADDR_UNDEF)
      st = h5_fail(E_IO, E_IO, w->path, set->path, "cannot be located");
    else
      st = layout_reserve(w->path, w->temporary, offset + (uint64_t)begin * row, (uint64_t)(end - begin) * row, false);
    h5_close_object(id);
  }
  return st;
}

/* Local. Everything about the collective open and the transfers that one rank alone could fail at: memory, whether it sees the
 * file that rank 0 made, and whether it may write it. */
static status prepare_open(const writer *w, lists *l) {
  status st = OK;
  hid_t serial = h5_access_read(), file = fault_here() ? H5I_INVALID_HID : H5Fopen(w->temporary, H5F_ACC_RDONLY, serial);
  l->open = h5_access_write();
  l->transfer = H5Pcreate(H5P_DATASET_XFER);
  if (l->open < 0 || l->transfer < 0 || fault_here() || H5Pset_coll_metadata_write(l->open, true) < 0 ||
      H5Pset_all_coll_metadata_ops(l->open, true) < 0 || H5Pset_dxpl_mpio(l->transfer, H5FD_MPIO_COLLECTIVE) < 0)
    st = h5_fail(E_IO, E_MEMORY, w->path, "", "properties for parallel writing are refused");
  else if (file < 0)
    st = h5_fail(E_IO, E_IO, w->path, "", "cannot be opened");
  else
    st = reserve_mine(w, file);
  h5_close_file(file);
  h5_close_list(serial);
  return st;
}

/* A file that is open on some ranks only can neither be used nor closed. */
static void abort_if_divided(const writer *w, bool opened) {
  int mine[2] = {opened, !opened}, any[2];
  MPI_Allreduce(mine, any, 2, MPI_INT, MPI_MAX, w->t->comm);
  if (any[0] && any[1] && !opened) go_down(w, E_IO);
}

/* Collective. The data of all datasets. */
static status write_data(const writer *w) {
  status st = OK;
  lists l = {H5I_INVALID_HID, H5I_INVALID_HID};
  hid_t file = H5I_INVALID_HID;
  TRY(agree(w->t->comm, prepare_open(w, &l)));
  if (H5Pset_fapl_mpio(l.open, w->t->comm, MPI_INFO_NULL) >= 0) file = H5Fopen(w->temporary, H5F_ACC_RDWR, l.open); /* both collective */
  if (file < 0 || fault_here()) st = h5_fail(E_IO, E_IO, w->path, "", "cannot be opened for parallel writing");
  abort_if_divided(w, file >= 0);
  TRY(agree(w->t->comm, st));
  for (int i = 0; i < w->set_count; i++) TRY(write_dataset(w, &w->sets[i], file, l.transfer));
done:
  if (file >= 0) { /* on all ranks or on none */
    if ((H5Fclose(file) < 0 || fault_here()) && st == OK) st = h5_fail(E_IO, E_IO, w->path, "", "cannot be closed");
    st = agree(w->t->comm, st);
  }
  h5_close_list(l.transfer);
  h5_close_list(l.open);
  return st;
}

/* Local. Rows [begin, end) of a dataset against memory. */
static status compare_rows(const writer *w, const dataset *set, hid_t file, int64_t begin, int64_t end, void *buffer) {
  if (begin == end) return OK;
  status st = OK;
  uint64_t row;
  bytes_of(set, &row);
  int64_t step = row < COMPARE_BUFFER ? (int64_t)(COMPARE_BUFFER / row) : 1;
  hid_t id = fault_here() ? H5I_INVALID_HID : H5Dopen2(file, set->path, H5P_DEFAULT), space = id < 0 ? id : H5Dget_space(id),
        type = h5_type(set->type);
  for (int64_t at = begin; at < end && st == OK; at += step) {
    int64_t count = at + step < end ? step : end - at;
    hid_t memory = space < 0 ? space : h5_select_rows(space, set->rank, set->dims, at, count);
    if (memory < 0 || fault_here() || H5Dread(id, type, memory, space, H5P_DEFAULT, buffer) < 0)
      st = h5_fail(E_IO, E_IO, w->path, set->path, "cannot be read back");
    else if (memcmp(buffer, (const char *)set->data + (uint64_t)at * row, (uint64_t)count * row) != 0)
      st = fail(E_IO, "%s: %s: rows %" PRId64 " to %" PRId64 ": expected what was written, found something else", w->path, set->path, at,
                at + count);
    h5_close_space(memory);
  }
  h5_close_type(type);
  h5_close_space(space);
  h5_close_object(id);
  return st;
}

/* Local. Of every dataset the rows that the next rank wrote. */
static status read_back(const writer *w) {
  status st = OK;
  void *buffer = NULL;
  uint64_t row, widest = COMPARE_BUFFER;
  hid_t serial = h5_access_read(), file = H5I_INVALID_HID;
  for (int i = 0; i < w->set_count; i++)
    if (bytes_of(&w->sets[i], &row) && row > widest) widest = row;
  TRY(mem_new(&buffer, 1, widest, "buffer to read back"));
  file = fault_here() ? H5I_INVALID_HID : H5Fopen(w->temporary, H5F_ACC_RDONLY, serial);
  if (file < 0) {
    st = h5_fail(E_IO, E_IO, w->path, "", "cannot be opened to be read back");
    goto done;
  }
  for (int i = 0; i < w->set_count; i++) {
    int64_t begin, end;
    if (bytes_of(&w->sets[i], &row) == 0) continue;
    deal_range(w->sets[i].dims[0], w->t->size, (w->t->rank + 1) % w->t->size, 1, &begin, &end);
    TRY(compare_rows(w, &w->sets[i], file, begin, end, buffer));
  }
done:
  h5_close_file(file);
  h5_close_list(serial);
  mem_free(&buffer);
  return st;
}

status container_write(const team *t, const char *path, const char *job_tag, const char *kind, const dataset *sets, int set_count,
                       const group_attributes *groups, int group_count) {
  status st = OK;
  bool begun = false;
  char hex[HASH_HEX] = "";
  writer w = {.t = t, .path = path, .sets = sets, .set_count = set_count};
  h5_listen();
  team_barrier(t);

  w.temporary = mem_format("%s.tmp.%s", path, job_tag);
  if (!w.temporary) st = E_MEMORY;
  if (st == OK) st = layout_new(path, kind, sets, set_count, groups, group_count, &w.layout);
  if (st == OK) st = layout_hash(&w.layout, hex);
  if (st == OK) st = NEW(w.sha, set_count, "digests of datasets");
  TRY(agree(t->comm, st));
  TRY(agree_same(t->comm, "temporary name of a file", w.temporary, strlen(w.temporary)));
  TRY(agree_same(t->comm, "description of a file", hex, sizeof hex));

  TRY(agree(t->comm, hash_mine(&w)));
  MPI_Allreduce(MPI_IN_PLACE, w.sha, set_count * HASH_HEX, MPI_BYTE, MPI_BOR, t->comm);

  begun = true;
  if (t->rank == 0) {
    st = layout_sign(&w.layout, sets, set_count, w.sha);
    if (st == OK) st = layout_create(&w.layout, path, w.temporary);
  }
  TRY(agree(t->comm, st));
  TRY(write_data(&w));
  TRY(agree(t->comm, read_back(&w)));
  if (t->rank == 0) st = layout_publish(path, w.temporary, kind);
  TRY(agree(t->comm, st));
done:
  if (st != OK && begun && t->rank == 0) unlink(w.temporary);
  FREE(w.sha);
  layout_free(&w.layout);
  FREE(w.temporary);
  h5_silence();
  return st;
}
