/* Looking at an export: what its own records prove, and whether it equals the container it came from. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"
#include "dist/agree.h"
#include "export/folder.h"

static const size_t JSON_MOST = 256 << 20;

bool export_is_folder(const char *path) {
  return file_exists_in(path, SIDECAR) || file_exists_in(path, "base/" SIDECAR) || file_exists_in(path, "adapter/" SIDECAR);
}

void export_found_free(export_found *f) {
  FREE(f->base);
  FREE(f->adapter);
  json_drop(&f->base_sidecar);
  json_drop(&f->adapter_sidecar);
}

/* ---- the folders ---- */

static status read_json(const char *folder, const char *name, json_t **o) {
  char *path = path_join(folder, name);
  status st = path ? json_read_file(path, JSON_MOST, o) : fail(E_MEMORY, "%s: no memory for its path", name);
  if (st == OK && !json_is_object(*o)) st = fail(E_DATA, "%s: expected an object, found something else", path);
  FREE(path);
  return st;
}

static const char *text_of(const json_t *o, const char *key) {
  const char *text = json_string_value(json_object_get(o, key));
  return text ? text : "";
}

static status keep_folder(const char *path, export_found *f) {
  status st = OK;
  json_t *o = NULL;
  TRY(read_json(path, SIDECAR, &o));
  const char *kind = text_of(o, "kind");
  bool base = strcmp(kind, "base") == 0;
  if (!base && strcmp(kind, "adapter") != 0) {
    st = fail(E_DATA, "%s/" SIDECAR ": kind: expected base or adapter, found %s", path, *kind ? kind : "nothing");
    goto done;
  }
  if (!json_is_object(json_object_get(o, "tensors")) || !json_is_object(json_object_get(o, "modules"))) {
    st = fail(E_DATA, "%s/" SIDECAR ": expected tensors and modules, found something else", path);
    goto done;
  }
  char *copy = mem_format("%s", path);
  if (!copy) {
    st = fail(E_MEMORY, "%s: no memory for a name", path);
    goto done;
  }
  *(base ? &f->base : &f->adapter) = copy;
  *(base ? &f->base_sidecar : &f->adapter_sidecar) = json_incref(o);
done:
  json_drop(&o);
  return st;
}

static status find_folders(const char *folder, export_found *f) {
  status st = OK;
  static const char *const names[] = {"base", "adapter"};
  if (file_exists_in(folder, SIDECAR)) return keep_folder(folder, f);
  for (int k = 0; k < 2; k++) {
    char *path = path_join(folder, names[k]);
    if (!path) return fail(E_MEMORY, "%s: no memory for a name", folder);
    if (file_exists_in(path, SIDECAR)) st = keep_folder(path, f);
    FREE(path);
    if (st != OK) return st;
  }
  return f->base || f->adapter ? OK : fail(E_DATA, "%s: expected an export with " SIDECAR ", found none", folder);
}

/* ---- tensors ---- */

typedef struct opened {
  st_file *files; /* owned */
  int count;
} opened;

static void close_files(opened *o) {
  for (int i = 0; i < o->count; i++) st_close(&o->files[i]);
  FREE(o->files);
  *o = (opened){0};
}

static status open_one(const char *folder, const char *name, opened *o) {
  if (strchr(name, '/')) return fail(E_DATA, "%s: %s: expected a file of this folder, found a path", folder, name);
  char *path = path_join(folder, name);
  status st = path ? st_open(path, &o->files[o->count]) : fail(E_MEMORY, "%s: no memory for its path", name);
  if (st == OK) o->count++;
  FREE(path);
  return st;
}

/* Every safetensors file of the folder: the adapter's one, or the model's, or those of its index. */
static status open_files(const char *folder, bool adapter, opened *o) {
  status st = OK;
  json_t *index = NULL, *value;
  const char *key;
  *o = (opened){0};
  if (adapter || file_exists_in(folder, "model.safetensors")) {
    TRY(NEW(o->files, 1, "files of an export"));
    return open_one(folder, adapter ? "adapter_model.safetensors" : "model.safetensors", o);
  }
  TRY(read_json(folder, "model.safetensors.index.json", &index));
  TRY(NEW(o->files, json_object_size(json_object_get(index, "weight_map")), "files of an export"));
  json_object_foreach(json_object_get(index, "weight_map"), key, value) {
    const char *name = json_string_value(value), *slash;
    bool there = false;
    for (int i = 0; name && i < o->count && !there; i++)
      there = strcmp((slash = strrchr(o->files[i].path, '/')) ? slash + 1 : o->files[i].path, name) == 0;
    if (!name || there) continue;
    TRY(open_one(folder, name, o));
  }
done:
  json_drop(&index);
  if (st != OK) close_files(o);
  return st;
}

static const st_tensor *find(const opened *o, const char *name, const st_file **file) {
  for (int i = 0; i < o->count; i++) {
    const st_tensor *t = st_find(&o->files[i], name);
    if (!t) continue;
    *file = &o->files[i];
    return t;
  }
  return NULL;
}

/* My share of the tensors against their recorded SHA-256, and that there are no others. */
static status check_tensors(const char *folder, const json_t *sidecar, const opened *o, int rank, int size, uint64_t *bytes) {
  status st = OK;
  const char *name;
  json_t *value, *tensors = json_object_get(sidecar, "tensors");
  size_t there = 0;
  int i = 0;
  char hex[HASH_HEX];
  json_object_foreach(tensors, name, value) {
    const st_file *file;
    const st_tensor *t = find(o, name, &file);
    const char *expected = json_string_value(value);
    if (!t) return fail(E_DATA, "%s: expected tensor %s, found none of that name", folder, name);
    if (i++ % size != rank) continue;
    TRY(hash_bytes(st_data(file, t), (size_t)(t->end - t->begin), hex));
    if (!expected || strcmp(expected, hex) != 0)
      return fail(E_DATA, "%s: %s: expected SHA-256 %.16s…, found %.16s…", folder, name, expected ? expected : "nothing", hex);
    *bytes += t->end - t->begin;
  }
  for (int k = 0; k < o->count; k++) there += o->files[k].count;
  if (there != json_object_size(tensors))
    st = fail(E_DATA, "%s: expected the %zu tensors of " SIDECAR ", found %zu", folder, json_object_size(tensors), there);
done:
  return st;
}

/* ---- the base: its codes give the fingerprints of its modules ---- */

static status module_shape(const char *where, const json_t *m, solution *s) {
  status st = OK;
  int64_t bits, group, out, in;
  bool symmetric, nested;
  const char *grid;
  TRY(json_need_int(m, where, "bits", 1, 8, &bits));
  TRY(json_need_int(m, where, "group", 0, 1 << 24, &group));
  TRY(json_need_int(m, where, "out", 1, INT32_MAX, &out));
  TRY(json_need_int(m, where, "in", 1, INT32_MAX, &in));
  TRY(json_get_bool(m, where, "symmetric", false, &symmetric));
  TRY(json_get_bool(m, where, "nested", false, &nested));
  TRY(json_get_string(m, where, "grid", "uniform", &grid));
  if (group && in % group) return fail(E_DATA, "%s: group: expected a divisor of %lld, found %lld", where, (long long)in, (long long)group);
  grid_kind kind;
  if (!grid_named(grid, bits, &kind))
    return fail(E_DATA, "%s: grid: expected uniform, nf2, nf3, nf4 or binary with its bits, found %s of %lld bits", where, grid,
                (long long)bits);
  grid_rule rule = {.kind = kind, .bits = (int)bits, .group = (int)group, .symmetric = symmetric, .nested = nested, .beta = 1};
  *s = solution_of(out, in, &rule, 0);
done:
  return st;
}

static status decode_module(const export_format *format, const char *folder, const char *module, const json_t *m, const opened *o) {
  status st = OK;
  export_matrix matrix = {0};
  format_tensor list[FORMAT_TENSORS];
  const void *data[FORMAT_TENSORS] = {0};
  void *copies[FORMAT_TENSORS] = {0};
  char *memory = NULL, where[512], hex[HASH_HEX];
  snprintf(where, sizeof where, "%s/" SIDECAR ": %s", folder, module);
  TRY(module_shape(where, m, &matrix.shape));
  snprintf(matrix.module, sizeof matrix.module, "%s", module);
  solution *s = &matrix.shape;
  int count = format->tensors(NULL, &matrix, list);
  for (int k = 0; k < count; k++) {
    char name[768];
    const st_file *file;
    snprintf(name, sizeof name, "%s%s", module, list[k].suffix);
    const st_tensor *t = find(o, name, &file);
    bool same = t && t->rank == list[k].rank && strcmp(t->type_text, list[k].type) == 0;
    for (int d = 0; same && d < t->rank; d++) same = t->shape[d] == list[k].shape[d];
    if (!same) {
      st = fail(E_DATA, "%s: %s: expected %s of %lld x %lld, found %s", folder, name, list[k].type, (long long)list[k].shape[0],
                (long long)(list[k].rank > 1 ? list[k].shape[1] : 1), t ? "another type or shape" : "nothing");
      goto done;
    }
    TRY(mem_new(&copies[k], 1, (size_t)(t->end - t->begin), "a tensor")); /* files promise no alignment */
    memcpy(copies[k], st_data(file, t), (size_t)(t->end - t->begin));
    data[k] = copies[k];
  }
  TRY(NEW(memory, solution_place(s, SOLUTION_BASE, NULL), "a linear"));
  solution_place(s, SOLUTION_BASE, memory);
  TRY(format->decode(module, data, s));
  TRY(solution_fingerprint(s, hex));
  if (strcmp(hex, text_of(m, "fingerprint")) != 0)
    st =
        fail(E_DATA, "%s: %s: expected codes and grid of fingerprint %.16s…, found %.16s…", folder, module, text_of(m, "fingerprint"), hex);
done:
  for (int k = 0; k < FORMAT_TENSORS; k++) mem_free(&copies[k]);
  FREE(memory);
  return st;
}

/* The words that tell a loader how to read the bytes must be those that were written with them. */
static status check_label(const export_found *f, const char *name, const json_t *found) {
  const json_t *expected = json_object_get(f->base_sidecar, "quantization_config"), *value;
  const char *key;
  if (!json_is_object(expected)) return found ? fail(E_DATA, "%s/%s: expected dense weights, found a quantization", f->base, name) : OK;
  json_object_foreach((json_t *)expected, key, value) {
    if (json_equal(value, json_object_get(found, key))) continue;
    char *want = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT),
         *got = json_dumps(json_object_get(found, key), JSON_ENCODE_ANY | JSON_COMPACT);
    status st =
        fail(E_DATA, "%s/%s: quantization: %s: expected %.64s, found %.64s", f->base, name, key, want ? want : "?", got ? got : "nothing");
    free(want);
    free(got);
    return st;
  }
  return OK;
}

static status check_labels(const export_found *f) {
  status st = OK;
  json_t *config = NULL, *extra = NULL;
  TRY(read_json(f->base, "config.json", &config));
  TRY(check_label(f, "config.json", json_object_get(config, "quantization_config")));
  if (file_exists_in(f->base, "quantize_config.json")) {
    TRY(read_json(f->base, "quantize_config.json", &extra));
    TRY(check_label(f, "quantize_config.json", extra));
  }
done:
  json_drop(&config);
  json_drop(&extra);
  return st;
}

static status check_base(export_found *f, int rank, int size) {
  status st = OK;
  opened o = {0};
  const char *module, *name = text_of(f->base_sidecar, "format");
  const export_format *format = export_format_find(name);
  json_t *m;
  int i = 0;
  if (!format) return fail(E_DATA, "%s/" SIDECAR ": format: expected %s, found %s", f->base, export_format_list(), name);
  TRY(check_labels(f));
  TRY(open_files(f->base, false, &o));
  TRY(check_tensors(f->base, f->base_sidecar, &o, rank, size, &f->bytes));
  json_object_foreach(json_object_get(f->base_sidecar, "modules"), module, m) {
    f->modules++;
    if (i++ % size == rank && format->keeps_codes) TRY(decode_module(format, f->base, module, m, &o));
  }
done:
  close_files(&o);
  return st;
}

/* The recorded base fingerprint against that of the recorded modules. */
static status check_fingerprint(const export_found *f) {
  status st = OK;
  const char **names = NULL, **fingerprints = NULL, *module;
  char hex[HASH_HEX];
  json_t *modules = json_object_get(f->base_sidecar, "modules"), *m;
  int n = 0;
  TRY(NEW(names, json_object_size(modules), "modules"));
  TRY(NEW(fingerprints, json_object_size(modules), "modules"));
  json_object_foreach(modules, module, m) {
    names[n] = module;
    fingerprints[n++] = text_of(m, "fingerprint");
  }
  TRY(base_fingerprint(text_of(f->base_sidecar, "model_fingerprint"), n, names, fingerprints, hex));
  if (strcmp(hex, text_of(f->base_sidecar, "base_fingerprint")) != 0)
    st = fail(E_DATA, "%s/" SIDECAR ": base_fingerprint: expected %.16s… from its modules, found %.16s…", f->base, hex,
              text_of(f->base_sidecar, "base_fingerprint"));
done:
  FREE(names);
  FREE(fingerprints);
  return st;
}

/* ---- the adapter ---- */

/* What a loader divides: alpha / r of a module, with the patterns as PEFT reads them (our keys are whole names). */
static status check_scale(const export_found *f, const json_t *config, const char *module, int64_t rank) {
  status st = OK;
  int64_t r, alpha;
  char *key = module_pattern(module), where[4352];
  if (!key) return fail(E_MEMORY, "%s: no memory for a pattern", module);
  snprintf(where, sizeof where, "%s/adapter_config.json", f->adapter);
  TRY(json_need_int(config, where, "r", 1, INT32_MAX, &r));
  TRY(json_need_int(config, where, "lora_alpha", 1, INT32_MAX, &alpha));
  TRY(json_get_int(json_object_get(config, "rank_pattern"), where, key, 1, INT32_MAX, r, &r));
  TRY(json_get_int(json_object_get(config, "alpha_pattern"), where, key, 1, INT32_MAX, alpha, &alpha));
  if (r != rank || alpha != rank || json_is_true(json_object_get(config, "use_rslora")))
    st = fail(E_DATA, "%s: %s: expected rank and alpha %lld, scale 1, found rank %lld, alpha %lld%s", where, module, (long long)rank,
              (long long)r, (long long)alpha, json_is_true(json_object_get(config, "use_rslora")) ? ", rslora" : "");
done:
  FREE(key);
  return st;
}

static status check_factor(const export_found *f, const opened *o, const char *module, char which, int64_t rank) {
  char name[192];
  const st_file *file;
  snprintf(name, sizeof name, "base_model.model.%s.lora_%c.weight", module, which);
  const st_tensor *t = find(o, name, &file);
  if (!t || t->rank != 2 || t->shape[which == 'A' ? 0 : 1] != rank)
    return fail(E_DATA, "%s: %s: expected a factor of rank %lld, found %s", f->adapter, name, (long long)rank,
                t ? "another shape" : "nothing");
  return OK;
}

/* The fingerprint in the file itself, which travels with it wherever it is copied. */
static status check_metadata(const export_found *f, const opened *o) {
  status st = OK;
  json_t *head = NULL;
  const unsigned char *raw = o->files[0].map.data;
  TRY(json_parse(o->files[0].path, (const char *)raw + 8, (size_t)o->files[0].data_offset - 8, &head));
  const char *found = text_of(json_object_get(head, "__metadata__"), "base_fingerprint");
  if (strcmp(found, text_of(f->adapter_sidecar, "base_fingerprint")) != 0)
    st = fail(E_DATA, "%s: base_fingerprint: expected %.16s… as in " SIDECAR ", found %.16s…", o->files[0].path,
              text_of(f->adapter_sidecar, "base_fingerprint"), *found ? found : "nothing");
done:
  json_drop(&head);
  return st;
}

static status check_adapter(export_found *f, int rank, int size) {
  status st = OK;
  opened o = {0};
  json_t *config = NULL, *m, *modules = json_object_get(f->adapter_sidecar, "modules");
  const char *module;
  TRY(open_files(f->adapter, true, &o));
  TRY(check_metadata(f, &o));
  TRY(read_json(f->adapter, "adapter_config.json", &config));
  json_object_foreach(modules, module, m) {
    int64_t r;
    TRY(json_need_int(m, module, "rank", 1, INT32_MAX, &r));
    TRY(check_factor(f, &o, module, 'A', r));
    TRY(check_factor(f, &o, module, 'B', r));
    TRY(check_scale(f, config, module, r));
  }
  TRY(check_tensors(f->adapter, f->adapter_sidecar, &o, rank, size, &f->bytes));
  if (f->base && strcmp(text_of(f->base_sidecar, "base_fingerprint"), text_of(f->adapter_sidecar, "base_fingerprint")) != 0)
    st = fail(E_DATA, "%s: the adapter belongs to another base: expected base fingerprint %.16s…, found %.16s…", f->adapter,
              text_of(f->base_sidecar, "base_fingerprint"), text_of(f->adapter_sidecar, "base_fingerprint"));
done:
  json_drop(&config);
  close_files(&o);
  return st;
}

status export_verify(MPI_Comm comm, const char *folder, export_found *f) {
  status st = OK;
  int rank, size;
  MPI_Comm_rank(comm, &rank);
  MPI_Comm_size(comm, &size);
  *f = (export_found){0};
  st = find_folders(folder, f);
  TRY(agree(comm, st));
  if (f->adapter) st = check_adapter(f, rank, size);
  if (st == OK && f->base) st = check_fingerprint(f);
  if (st == OK && f->base) st = check_base(f, rank, size);
  TRY(agree(comm, st));
  f->tensors = (int)(json_object_size(json_object_get(f->base_sidecar, "tensors")) +
                     json_object_size(json_object_get(f->adapter_sidecar, "tensors")));
  MPI_Allreduce(MPI_IN_PLACE, &f->bytes, 1, MPI_UINT64_T, MPI_SUM, comm);
done:
  if (st != OK) export_found_free(f);
  return st;
}

/* ---- against the container ---- */

typedef struct comparison {
  const assembly *a;
  const export_found *f;
} comparison;

static status compare_tensor(void *context, image *m, int index, const void *data) {
  const comparison *c = context;
  status st = OK;
  bool adapter = m == &c->a->adapter;
  const image_tensor *t = &m->tensors[index];
  const json_t *sidecar = adapter ? c->f->adapter_sidecar : c->f->base_sidecar;
  char hex[HASH_HEX];
  if (!sidecar) return OK; /* only the other folder is here */
  const char *found = text_of(json_object_get(sidecar, "tensors"), t->name);
  TRY(hash_bytes(data, (size_t)(t->end - t->begin), hex));
  if (strcmp(hex, found) != 0)
    st = fail(E_DATA, "%s: %s: expected what the container gives, SHA-256 %.16s…, found %.16s…", adapter ? c->f->adapter : c->f->base,
              t->name, hex, *found ? found : "nothing");
done:
  return st;
}

status export_compare(export_request *q, const export_found *f) {
  status st = OK;
  assembly a = {0};
  json_t *nothing = json_object();
  st = assembly_new(q, nothing, nothing, &a);
  TRY(agree(q->comm, st));
  comparison c = {&a, f};
  TRY(assembly_make_all(q, &a, compare_tensor, &c));
done:
  json_decref(nothing);
  assembly_free(&a);
  return st;
}
