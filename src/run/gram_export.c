/* cloqwork grams: Grams as plain files (session/gram_folder.h), written here; taken from such a folder, it is the calibrate stage of a job. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/fault.h"
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "dist/agree.h"
#include "export/folder.h"
#include "export/image.h"
#include "export/place.h"
#include "model/npy.h"
#include "run/verbs.h"
#include "session/gram_folder.h"
#include "session/unit.h"

enum { T = GRAM_TILE, ARRAYS = 3 };
static const char *const arrays[ARRAYS] = {NULL, "mean_abs", "max_mean_abs"};

/* One layer's Grams on their way into files. */
typedef struct gram_reader {
  const session *c;
  container *file;
  char path[PATH_MOST];
} gram_reader;

static bool has_array(const gram_reader *r, input_id input, int which) {
  char name[64];
  snprintf(name, sizeof name, "%s/%s", input_name(input), which ? arrays[which] : "tiles");
  return container_has(r->file, name);
}

static status open_layer(const session *c, int set, int64_t layer, gram_reader *r) {
  status st = OK;
  attributes root = {0};
  *r = (gram_reader){.c = c};
  unit_gram_path(c, set, layer, r->path);
  TRY(container_open(r->path, "grams", &r->file));
  TRY(container_attributes(r->file, "", &root));
  if (strcmp(attr_get_text(&root, "model_fingerprint"), c->model.fingerprint) != 0)
    st = fail(E_DATA, "%s: expected Grams of the job's model, fingerprint %.16s…, found those of %.16s…", r->path, c->model.fingerprint,
              attr_get_text(&root, "model_fingerprint"));
done:
  attr_free(&root);
  return st;
}

/* Rows [T i, T (i + 1)) of the full matrix into stripe (T, n): the row of tiles, and the column below it turned. */
static status read_stripe(const gram_reader *r, input_id input, int64_t n, int64_t i, float *tiles, float *stripe) {
  status st = OK;
  int64_t side = tiles_per_side(n, T);
  char name[64];
  snprintf(name, sizeof name, "%s/tiles", input_name(input));
  TRY(container_read(r->file, name, EL_F32, tile_index(i, 0), tile_index(i, i) + 1, tiles));
  for (int64_t j = i + 1; j < side; j++)
    TRY(container_read(r->file, name, EL_F32, tile_index(j, i), tile_index(j, i) + 1, tiles + j * T * T));
  for (int64_t j = 0; j < side; j++) {
    const float *tile = tiles + j * T * T;
    int64_t width = n - j * T < T ? n - j * T : T;
    for (int64_t a = 0; a < T; a++)
      for (int64_t b = 0; b < width; b++) stripe[a * n + j * T + b] = j <= i ? tile[a * T + b] : tile[b * T + a];
  }
done:
  return st;
}

/* The matrix, full, to a place in an open file. */
static status put_matrix(const gram_reader *r, input_id input, int64_t n, int fd, const char *path, uint64_t at) {
  status st = OK;
  float *tiles = NULL, *stripe = NULL;
  int64_t side = tiles_per_side(n, T);
  TRY(NEW(tiles, side * T * T, "a row of tiles"));
  TRY(NEW(stripe, T * n, "rows of a Gram"));
  for (int64_t i = 0; i < side; i++) {
    int64_t rows = n - i * T < T ? n - i * T : T;
    TRY(read_stripe(r, input, n, i, tiles, stripe));
    TRY(file_write_at(fd, path, stripe, (size_t)(rows * n) * sizeof *stripe, at + (uint64_t)(i * T * n) * sizeof *stripe));
  }
done:
  FREE(tiles);
  FREE(stripe);
  return st;
}

static status put_array(const gram_reader *r, input_id input, int which, int fd, const char *path, uint64_t at) {
  status st = OK;
  int64_t n = input_width(&r->c->model.arch, input);
  double *vector = NULL;
  char name[64];
  if (which == 0) return put_matrix(r, input, n, fd, path, at);
  snprintf(name, sizeof name, "%s/%s", input_name(input), arrays[which]);
  TRY(NEW(vector, n, "a statistic"));
  TRY(container_read_rows(r->file, name, EL_F64, n, 0, 0, n, vector));
  TRY(file_write_at(fd, path, vector, (size_t)n * sizeof *vector, at));
done:
  FREE(vector);
  return st;
}

static status write_npy(const gram_reader *r, int64_t layer, input_id input, int which, const char *folder) {
  status st = OK;
  int64_t n = input_width(&r->c->model.arch, input), shape[2] = {n, n};
  char name[96], header[NPY_HEADER], *path = NULL;
  int fd = -1;
  gram_folder_npy_name(layer, input, arrays[which], name);
  if (!(path = path_join(folder, name))) return fail(E_MEMORY, "%s: no memory for its path", name);
  fd = fault_here() ? (errno = EIO, -1) : open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) {
    st = fail(E_IO, "%s: cannot be made: %m", path);
    goto done;
  }
  npy_header(which ? "<f8" : "<f4", which ? 1 : 2, shape, header);
  TRY(file_write_at(fd, path, header, sizeof header, 0));
  TRY(put_array(r, input, which, fd, path, sizeof header));
  if (fsync(fd) != 0) st = fail(E_IO, "%s: cannot be synced: %m", path);
done:
  if (fd >= 0 && close(fd) != 0 && st == OK) st = fail(E_IO, "%s: cannot be closed: %m", path);
  FREE(path);
  return st;
}

static status write_safetensors(const gram_reader *r, int64_t layer, const char *folder) {
  status st = OK;
  image m = {0};
  json_t *metadata = json_pack("{s:s, s:s}", "format", "pt", "model_fingerprint", r->c->model.fingerprint);
  char name[96];
  int file, index[IN_COUNT][ARRAYS];
  snprintf(name, sizeof name, "layer-%03lld.safetensors", (long long)layer);
  TRY(image_add_file(&m, name, &file));
  for (int i = 0; i < IN_COUNT; i++)
    for (int k = 0; k < ARRAYS; k++) {
      int64_t n = input_width(&r->c->model.arch, i), shape[2] = {n, n};
      if (!has_array(r, i, k)) continue;
      gram_folder_tensor_name(i, arrays[k], name);
      TRY(image_add_tensor(&m, file, name, k ? "F64" : "F32", k ? 1 : 2, shape, &index[i][k]));
    }
  TRY(image_layout(&m, metadata));
  TRY(image_create(&m, folder));
  const image_file *f = &m.files[file];
  for (int i = 0; i < IN_COUNT; i++)
    for (int k = 0; k < ARRAYS; k++)
      if (has_array(r, i, k)) TRY(put_array(r, i, k, f->handle, f->name, f->data + m.tensors[index[i][k]].begin));
  TRY(image_sync(&m, folder));
done:
  json_drop(&metadata);
  image_free(&m);
  return st;
}

/* Local. */
static status write_layer(const session *c, int set, int64_t layer, const char *folder, bool safetensors) {
  status st = OK;
  gram_reader r = {0};
  TRY(open_layer(c, set, layer, &r));
  if (safetensors) {
    TRY(write_safetensors(&r, layer, folder));
    goto done;
  }
  for (int i = 0; i < IN_COUNT; i++)
    for (int k = 0; k < ARRAYS; k++)
      if (has_array(&r, i, k)) TRY(write_npy(&r, layer, i, k, folder));
done:
  container_close(&r.file);
  return st;
}

/* grams.json: what gram_folder_open reads, and where it is from. */
static status write_sidecar(const session *c, int set, const char *folder) {
  status st = OK;
  gram_reader r = {0};
  attributes root = {0}, group = {0};
  json_t *o = NULL, *inputs = json_object(), *layers = json_array();
  char *path = path_join(folder, GRAM_SIDECAR), *text = NULL;
  TRY(open_layer(c, set, c->layer_begin, &r));
  TRY(container_attributes(r.file, "", &root));
  for (int i = 0; i < IN_COUNT; i++)
    if (has_array(&r, i, 0)) {
      json_object_set_new(inputs, input_name(i), json_integer(input_width(&c->model.arch, i)));
      if (group.count == 0) TRY(container_attributes(r.file, input_name(i), &group));
    }
  for (int64_t layer = c->layer_begin; layer < c->layer_end; layer++) json_array_append_new(layers, json_integer(layer));
  o = json_pack("{s:s, s:s, s:s, s:s, s:I, s:s, s:s, s:O, s:O}", "format", "cloqwork-grams", "program_version", CLOQWORK_VERSION, "model",
                c->job.model, "model_fingerprint", c->model.fingerprint, "tokens", (json_int_t)attr_get_int(&group, "tokens", 0),
                "tokens_fingerprint", attr_get_text(&root, "tokens_fingerprint"), "activations", attr_get_text(&group, "activations"),
                "inputs", inputs, "layers", layers);
  if (o && attr_find(&root, "sources")) {
    json_object_set_new(o, "sources", json_string(attr_get_text(&root, "sources")));
    json_object_set_new(o, "source_tokens", json_string(attr_get_text(&root, "source_tokens")));
  }
  text = o && path ? json_dumps(o, JSON_INDENT(2) | JSON_PRESERVE_ORDER) : NULL;
  if (text)
    TRY(file_write_atomic(path, text, strlen(text)));
  else
    st = fail(E_MEMORY, "%s: no memory", GRAM_SIDECAR);
done:
  free(text);
  FREE(path);
  json_decref(inputs);
  json_decref(layers);
  json_drop(&o);
  attr_free(&root);
  attr_free(&group);
  container_close(&r.file);
  return st;
}

/* Which sets the run has, and their folders in what is being made. Owned by the caller. */
typedef struct set_folders {
  char *path[SET_COUNT]; /* NULL: the run has no such Grams */
} set_folders;

static status name_sets(const session *c, const place *p, set_folders *f) {
  char path[PATH_MOST];
  for (int set = 0; set < SET_COUNT; set++) {
    unit_gram_path(c, set, c->layer_begin, path);
    if (set == SET_HELDOUT && !file_exists(path)) continue;
    f->path[set] = set == SET_CALIBRATION ? mem_format("%s", p->making) : path_join(p->making, set_folder(set));
    if (!f->path[set]) return fail(E_MEMORY, "%s: no memory for a name", p->making);
  }
  return OK;
}

/* Collective. Layers are dealt to ranks. */
static status write_folder(session *c, const char *folder, bool safetensors) {
  status st = OK;
  place p = {.lock_file = -1};
  set_folders f = {0};
  st = place_name(folder, &p);
  if (st == OK) st = name_sets(c, &p, &f);
  TRY(agree(c->job_comm, st));
  if (c->rank == 0) {
    st = place_begin(&p, c->job_tag);
    if (st == OK && f.path[SET_HELDOUT]) st = file_make_folders(f.path[SET_HELDOUT]);
  }
  TRY(agree(c->job_comm, st));
  for (int64_t layer = c->layer_begin + c->rank; layer < c->layer_end && st == OK; layer += c->size)
    for (int set = 0; set < SET_COUNT && st == OK; set++)
      if (f.path[set]) st = write_layer(c, set, layer, f.path[set], safetensors);
  TRY(agree(c->job_comm, st));
  if (c->rank == 0) {
    for (int set = SET_COUNT - 1; set >= 0 && st == OK; set--)
      if (f.path[set]) st = write_sidecar(c, set, f.path[set]);
    for (int set = SET_COUNT - 1; set >= 0 && st == OK; set--)
      if (f.path[set]) st = folder_sync(f.path[set]);
    if (st == OK) st = place_publish(&p);
  }
  TRY(agree(c->job_comm, st));
  log_info("grams: %lld layers%s in %s", (long long)(c->layer_end - c->layer_begin), f.path[SET_HELDOUT] ? ", held-out ones too," : "",
           p.folder);
done:
  if (st != OK && c->rank == 0) place_abandon(&p);
  for (int set = 0; set < SET_COUNT; set++) FREE(f.path[set]);
  place_forget(&p);
  return st;
}

status verb_grams(session *c) {
  const arguments *a = &c->arguments;
  status st = OK;
  if (a->from_count && a->to) return fail(E_USAGE, "grams: expected --to FORMAT to write or --from DIR to read, found both");
  if (a->from_count) {
    TRY(session_open_tokens(c));
    TRY(session_begin_run(c));
    return verb_calibrate(c);
  }
  bool safetensors = a->to && strcmp(a->to, "safetensors") == 0;
  if (!safetensors && !(a->to && strcmp(a->to, "npy") == 0))
    return fail(E_USAGE, "grams: expected --to npy, --to safetensors or --from DIR, found %s%s", a->to ? "--to " : "nothing",
                a->to ? a->to : "");
  if (!a->out) return fail(E_USAGE, "grams: expected --out DIR, found none");
  TRY(write_folder(c, a->out, safetensors));
done:
  return st;
}

status verb_merge(session *c) {
  if (c->job.grams.origin != GRAMS_MERGED)
    return fail(E_USAGE, "merge: expected --from RUN, or calibration.merge in the job, found neither");
  return verb_calibrate(c);
}
