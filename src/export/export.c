#include "export/export.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"
#include "base/memory.h"
#include "dist/agree.h"
#include "export/folder.h"
#include "export/place.h"

/* ---- what the solution files say ---- */

typedef struct described {
  solution shape;
  char base_fingerprint[HASH_HEX];
  double loss[2], loss_heldout[2];
} described;

static status read_losses(container *file, const char *where, const export_matrix *m, const attributes *group, described *d) {
  status st = OK;
  int rank = m->rank < d->shape.rank ? m->rank : d->shape.rank;
  solution s = d->shape;
  solution_facts f;
  solution_read_facts(group, &f);
  TRY(solution_arrays(file, where, 0, 0, 0, SOLUTION_CURVES, &s));
  bool heldout = isfinite(f.reference_heldout) && f.reference_heldout > 0;
  for (int k = 0; k < 2; k++) {
    d->loss[k] = s.loss[k ? rank : 0] / f.reference;
    d->loss_heldout[k] = heldout ? s.loss_heldout[k ? rank : 0] / f.reference_heldout : NAN;
  }
  snprintf(d->base_fingerprint, HASH_HEX, "%s", f.base_fingerprint);
done:
  solution_free(&s);
  return st;
}

/* A solution file that stays open while the matrices of its layer are described. */
typedef struct reading {
  container *file;
  const char *path;
} reading;

static status open_layer(const export_request *q, const char *path, reading *r) {
  status st = OK;
  attributes root = {0};
  if (r->file && strcmp(r->path, path) == 0) return OK;
  container_close(&r->file);
  r->path = path;
  TRY(container_open(path, "solution", &r->file));
  TRY(container_attributes(r->file, "", &root));
  const char *model = attr_get_text(&root, "model_fingerprint");
  if (strcmp(model, q->model->fingerprint) != 0)
    st = fail(E_DATA, "%s: the checkpoint has changed since calibration: expected fingerprint %.16s…, found %.16s… in %s", path, model,
              q->model->fingerprint, q->model->folder);
done:
  attr_free(&root);
  return st;
}

static status describe_one(const export_request *q, const export_matrix *m, reading *r, described *d) {
  status st = OK;
  attributes group = {0};
  char where[4352];
  snprintf(where, sizeof where, "%s: %s", m->file, linear_path(m->linear));
  TRY(open_layer(q, m->file, r));
  TRY(solution_describe(r->file, where, &q->model->arch, m->linear, m->rank, &group, &d->shape));
  if (m->rank > d->shape.rank && !d->shape.own_rank) {
    st = fail(E_USAGE, "export: --rank: expected at most %d, the largest rank of %s, found %d", d->shape.rank, m->setting, m->rank);
    goto done;
  }
  TRY(read_losses(r->file, where, m, &group, d));
done:
  attr_free(&group);
  return st;
}

status export_describe(export_request *q) {
  status st = OK;
  described *list = NULL;
  reading r = {0};
  int rank;
  MPI_Comm_rank(q->comm, &rank);
  st = NEW(list, q->count, "matrices of an export");
  for (int i = 0; i < q->count && st == OK && rank == 0; i++) st = describe_one(q, &q->matrices[i], &r, &list[i]);
  TRY(agree(q->comm, st));
  TRY(share_bytes(q->comm, list, (size_t)q->count * sizeof *list));
  for (int i = 0; i < q->count; i++) {
    export_matrix *m = &q->matrices[i];
    m->shape = list[i].shape;
    if (m->rank > m->shape.rank) m->rank = m->shape.rank; /* it has a rank of its own */
    memcpy(m->base_fingerprint, list[i].base_fingerprint, HASH_HEX);
    memcpy(m->loss, list[i].loss, sizeof m->loss);
    memcpy(m->loss_heldout, list[i].loss_heldout, sizeof m->loss_heldout);
  }
done:
  container_close(&r.file);
  FREE(list);
  return st;
}

/* ---- the folder ---- */

typedef struct folders {
  place place;
  char *base, *adapter; /* owned */
} folders;

static status name_folders(const export_request *q, folders *f) {
  status st = place_name(q->folder, &f->place);
  if (st != OK) return st;
  f->base = path_join(f->place.making, "base");
  f->adapter = path_join(f->place.making, "adapter");
  return f->base && f->adapter ? OK : fail(E_MEMORY, "%s: no memory for names", q->folder);
}

static void forget_folders(folders *f) {
  place_forget(&f->place);
  FREE(f->base);
  FREE(f->adapter);
}

/* Rank 0. */
static status begin_folders(const export_request *q, folders *f) {
  status st = OK;
  TRY(place_begin(&f->place, q->tag));
  TRY(file_make_folders(f->base));
  if (request_has_adapter(q)) TRY(file_make_folders(f->adapter));
done:
  return st;
}

/* Rank 0. */
static status publish_folders(folders *f, bool adapter) {
  status st = OK;
  TRY(folder_sync(f->base));
  if (adapter) TRY(folder_sync(f->adapter));
  TRY(place_publish(&f->place));
done:
  return st;
}

/* ---- writing ---- */

typedef struct sinks {
  const assembly *a;
  const folders *f;
} sinks;

static status put(void *context, image *m, int index, const void *data) {
  const sinks *s = context;
  return image_put(m, m == &s->a->adapter ? s->f->adapter : s->f->base, index, data);
}

/* Collective. Every tensor's hash on every rank. */
static status share_hashes(MPI_Comm comm, image *m) {
  status st = OK;
  char(*all)[HASH_HEX] = NULL;
  st = NEW(all, m->count, "hashes of tensors");
  TRY(agree(comm, st));
  for (int i = 0; i < m->count; i++) memcpy(all[i], m->tensors[i].sha256, HASH_HEX);
  MPI_Allreduce(MPI_IN_PLACE, all, m->count * HASH_HEX, MPI_BYTE, MPI_BOR, comm);
  for (int i = 0; i < m->count; i++) memcpy(m->tensors[i].sha256, all[i], HASH_HEX);
done:
  FREE(all);
  return st;
}

static json_t *metadata(const export_request *q, const char *fingerprint, bool adapter) {
  json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:s}", "format", "pt", "base_fingerprint", fingerprint, "model_fingerprint",
                        q->model->fingerprint, "setting", q->setting, "cloqwork", CLOQWORK_VERSION);
  if (adapter) json_object_set_new(o, "rank", json_string(q->rank));
  return o;
}

status export_write(export_request *q, export_result *r) {
  status st = OK;
  folders f = {0};
  assembly a = {0};
  json_t *meta[2] = {NULL, NULL};
  int rank;
  double start = clock_now();
  MPI_Comm_rank(q->comm, &rank);
  *r = (export_result){0};
  st = name_folders(q, &f);
  if (st == OK) st = request_base_fingerprint(q, r->base_fingerprint);
  for (int k = 0; k < 2; k++) meta[k] = metadata(q, r->base_fingerprint, k == 1);
  if (st == OK) st = assembly_new(q, meta[0], meta[1], &a);
  TRY(agree(q->comm, st));
  if (rank == 0) {
    st = begin_folders(q, &f);
    if (st == OK) st = image_create(&a.base, f.base);
    if (st == OK) st = image_create(&a.adapter, f.adapter);
  }
  TRY(agree(q->comm, st));
  sinks s = {&a, &f};
  TRY(assembly_make_all(q, &a, put, &s));
  st = image_sync(&a.base, f.base);
  if (st == OK) st = image_sync(&a.adapter, f.adapter);
  TRY(agree(q->comm, st));
  TRY(share_hashes(q->comm, &a.base));
  TRY(share_hashes(q->comm, &a.adapter));
  if (rank == 0) {
    st = folder_finish_base(q, &a, r->base_fingerprint, f.base);
    if (st == OK && request_has_adapter(q)) st = folder_finish_adapter(q, &a, r->base_fingerprint, f.adapter);
    if (st == OK) st = publish_folders(&f, request_has_adapter(q));
  }
  TRY(agree(q->comm, st));
  for (int i = 0; i < a.count; i++) r->bytes += (uint64_t)a.items[i].bytes;
  r->seconds = clock_now() - start;
done:
  if (st != OK) place_abandon(&f.place);
  for (int k = 0; k < 2; k++) json_drop(&meta[k]);
  assembly_free(&a);
  forget_folders(&f);
  return st;
}
