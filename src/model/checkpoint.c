#include "model/checkpoint.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/half.h"
#include "base/json.h"
#include "base/memory.h"
#include "model/config.h"
#include "model/kernels.h"

static const struct {
  const char *path, *name;
  input_id input;
} linears[LIN_COUNT] = {
    {"self_attn.q_proj", "q_proj", IN_ATTN},     {"self_attn.k_proj", "k_proj", IN_ATTN}, {"self_attn.v_proj", "v_proj", IN_ATTN},
    {"self_attn.o_proj", "o_proj", IN_ATTN_OUT}, {"mlp.gate_proj", "gate_proj", IN_MLP},  {"mlp.up_proj", "up_proj", IN_MLP},
    {"mlp.down_proj", "down_proj", IN_MLP_OUT},
};

const char *linear_path(linear_id l) { return linears[l].path; }
const char *linear_short(linear_id l) { return linears[l].name; }
input_id linear_input(linear_id l) { return linears[l].input; }

const char *input_name(input_id i) {
  static const char *const names[IN_COUNT] = {"attn_in", "attn_out", "mlp_in", "mlp_out"};
  return names[i];
}

int64_t input_width(const arch *a, input_id i) {
  if (i == IN_ATTN_OUT) return (int64_t)a->heads * a->head_dim;
  return i == IN_MLP_OUT ? a->intermediate : a->hidden;
}

void linear_shape(const arch *a, linear_id l, int64_t *out, int64_t *in) {
  *in = input_width(a, linear_input(l));
  if (l == LIN_Q)
    *out = (int64_t)a->heads * a->head_dim;
  else if (l == LIN_K || l == LIN_V)
    *out = (int64_t)a->kv_heads * a->head_dim;
  else
    *out = l == LIN_GATE || l == LIN_UP ? a->intermediate : a->hidden;
}

bool linear_has_bias(const arch *a, linear_id l) {
  if (l <= LIN_V) return a->qkv_bias;
  return l == LIN_O ? a->o_bias : a->mlp_bias;
}

int64_t arch_layer_params(const arch *a) {
  int64_t sum = 0, out, in;
  for (int l = 0; l < LIN_COUNT; l++) {
    linear_shape(a, (linear_id)l, &out, &in);
    sum += out * in;
  }
  return sum;
}

/* ---- which tensors there must be ---- */

enum { NAME = 128 };

typedef struct expected {
  char name[NAME];
  int rank;
  int64_t shape[2];
} expected;

static void expect(expected *list, size_t *n, const char *name, int rank, int64_t rows, int64_t cols) {
  expected *e = list + (*n)++;
  *e = (expected){.rank = rank, .shape = {rank == 2 ? rows : cols, cols}};
  snprintf(e->name, NAME, "%s", name);
}

static void expect_layer(const arch *a, int64_t layer, expected *list, size_t *n) {
  char name[NAME];
  int64_t out, in;
#define LAYER(...) (snprintf(name, NAME, __VA_ARGS__), name)
  for (int l = 0; l < LIN_COUNT; l++) {
    linear_shape(a, (linear_id)l, &out, &in);
    expect(list, n, LAYER("model.layers.%lld.%s.weight", (long long)layer, linears[l].path), 2, out, in);
    if (linear_has_bias(a, (linear_id)l)) expect(list, n, LAYER("model.layers.%lld.%s.bias", (long long)layer, linears[l].path), 1, 1, out);
  }
  expect(list, n, LAYER("model.layers.%lld.input_layernorm.weight", (long long)layer), 1, 1, a->hidden);
  expect(list, n, LAYER("model.layers.%lld.post_attention_layernorm.weight", (long long)layer), 1, 1, a->hidden);
  if (!a->qk_norm) return;
  expect(list, n, LAYER("model.layers.%lld.self_attn.q_norm.weight", (long long)layer), 1, 1, a->head_dim);
  expect(list, n, LAYER("model.layers.%lld.self_attn.k_norm.weight", (long long)layer), 1, 1, a->head_dim);
#undef LAYER
}

static int by_expected_name(const void *a, const void *b) { return strcmp(((const expected *)a)->name, ((const expected *)b)->name); }

/* ---- where they are ---- */

typedef struct place {
  const char *name; /* borrowed: from the index, or from the file */
  size_t file;
} place;

static int by_place_name(const void *a, const void *b) { return strcmp(((const place *)a)->name, ((const place *)b)->name); }
static int by_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* A relative path without "..": hub caches hold symbolic links out of the folder, so names are judged, not where links lead. */
static bool stays_inside(const char *path) {
  if (!*path || *path == '/') return false;
  for (const char *p = path; *p;) {
    size_t n = strcspn(p, "/");
    if ((n == 2 && p[0] == '.' && p[1] == '.') || n == 0) return false;
    p += n + (p[n] == '/');
  }
  return true;
}

static status open_file(checkpoint *c, const char *name, const char *named_by) {
  char *path = path_join(c->folder, name);
  if (!path) return fail(E_MEMORY, "%s: no memory for a name", c->folder);
  status st = OK;
  if (named_by && !file_exists(path))
    st = fail(E_DATA, "%s: expected the shard that %s names, found no such file", path, named_by);
  else if ((st = st_open(path, c->files + c->file_count)) == OK)
    c->file_count++;
  FREE(path);
  return st;
}

/* weight_map -> files opened once each, and one place per tensor. */
static status open_shards(checkpoint *c, const char *index_path, const json_t *map, place *places) {
  status st = OK;
  const char **names = NULL, *tensor;
  json_t *value;
  size_t n = 0, files = 0;
  TRY(NEW(names, json_object_size(map), index_path));
  json_object_foreach((json_t *)map, tensor, value) {
    const char *file = json_string_value(value);
    if (!file) {
      st = fail(E_DATA, "%s: weight_map: %s: expected a file name, found something else", index_path, tensor);
      goto done;
    }
    if (!stays_inside(file)) {
      st = fail(E_DATA, "%s: weight_map: %s: expected a file inside the model's folder, found %s", index_path, tensor, file);
      goto done;
    }
    names[n++] = file;
  }
  if (n) qsort(names, n, sizeof *names, by_text);
  for (size_t i = 0; i < n; i++)
    if (i == 0 || strcmp(names[i], names[files - 1]) != 0) names[files++] = names[i];
  TRY(NEW(c->files, files, index_path));
  for (size_t i = 0; i < files; i++) TRY(open_file(c, names[i], "model.safetensors.index.json"));
  n = 0;
  json_object_foreach((json_t *)map, tensor, value) {
    const char *file = json_string_value(value), **at = bsearch(&file, names, files, sizeof *names, by_text);
    size_t k = (size_t)(at - names);
    if (!st_find(c->files + k, tensor)) {
      st = fail(E_DATA, "%s: %s: expected the tensor in this shard, as model.safetensors.index.json says, found none", c->files[k].path,
                tensor);
      goto done;
    }
    places[n++] = (place){tensor, k};
  }
done:
  FREE(names);
  return st;
}

/* ---- expected against found ---- */

static bool ends_with(const char *text, const char *end) {
  size_t n = strlen(text), k = strlen(end);
  return n >= k && strcmp(text + n - k, end) == 0;
}

static status check_tensor(const expected *e, const st_file *f, const st_tensor *t) {
  char found[192], wanted[64];
  bool same = t->rank == e->rank;
  for (int i = 0; same && i < e->rank; i++) same = t->shape[i] == e->shape[i];
  if (!same) {
    st_shape_text(t, found);
    if (e->rank == 1)
      snprintf(wanted, sizeof wanted, "(%lld)", (long long)e->shape[0]);
    else
      snprintf(wanted, sizeof wanted, "(%lld, %lld)", (long long)e->shape[0], (long long)e->shape[1]);
    return fail(E_DATA, "%s: %s: expected shape %s by config.json, found %s", f->path, e->name, wanted, found);
  }
  if (t->type == DT_OTHER) return fail(E_DATA, "%s: %s: expected dtype F32, F16 or BF16, found %s", f->path, e->name, t->type_text);
  return OK;
}

static void sample_at(const st_tensor *t, int which, uint64_t *begin, size_t *bytes) {
  uint64_t size = t->end - t->begin, want = size < 4096 ? size : 4096;
  *begin = which == 0 ? 0 : which == 1 ? (size - want) / 2 : size - want;
  *bytes = (size_t)want;
}

/* A tied head in the file is redundant, or it is another head: then which one is meant depends on the library's version. */
static status check_tied_head(const st_file *f, const st_tensor *t, tensor_ref embedding) {
  const st_tensor *e = embedding.tensor;
  bool same = t->type == e->type && t->rank == 2 && t->shape[0] == e->shape[0] && t->shape[1] == e->shape[1];
  for (int i = 0; same && i < 3; i++) {
    uint64_t begin;
    size_t bytes;
    sample_at(e, i, &begin, &bytes);
    same = memcmp(st_data(f, t) + begin, st_data(embedding.file, e) + begin, bytes) == 0;
  }
  if (!same)
    return fail(E_DATA,
                "%s: lm_head.weight: expected a copy of model.embed_tokens.weight, since config.json ties them, found another tensor",
                f->path);
  return OK;
}

static status resolve(checkpoint *c, const expected *list, size_t count, const place *places, size_t place_count, const char *origin) {
  status st = OK;
  TRY(NEW(c->tensors, count, c->folder));
  for (size_t i = 0; i < count; i++) {
    place key = {list[i].name, 0};
    const place *p = place_count ? bsearch(&key, places, place_count, sizeof *places, by_place_name) : NULL;
    if (!p) return fail(E_DATA, "%s: expected tensor %s by config.json, found none", origin, list[i].name);
    const st_file *f = c->files + p->file;
    const st_tensor *t = st_find(f, list[i].name);
    TRY(check_tensor(list + i, f, t));
    c->tensors[c->tensor_count++] = (tensor_ref){f, t, list[i].rank == 2 ? list[i].shape[0] : 1, list[i].shape[list[i].rank - 1]};
  }
  for (size_t i = 0; i < place_count; i++) {
    expected key;
    const char *name = places[i].name;
    const st_file *f = c->files + places[i].file;
    snprintf(key.name, NAME, "%s", name);
    if (strlen(name) < NAME && bsearch(&key, list, count, sizeof *list, by_expected_name)) continue;
    if (ends_with(name, "rotary_emb.inv_freq")) continue; /* old Llama files; recomputed */
    if (c->arch.tied_head && strcmp(name, "lm_head.weight") == 0)
      TRY(check_tied_head(f, st_find(f, name), checkpoint_embedding(c)));
    else
      return fail(E_DATA, "%s: %s: expected only the tensors of a %s model of %lld layers as config.json describes it, found this one too",
                  f->path, name, arch_family_name(c->arch.family), (long long)c->arch.layers);
  }
done:
  return st;
}

static status find_tensors(checkpoint *c, const place *places, size_t place_count, const char *origin) {
  status st = OK;
  expected *list = NULL;
  size_t n = 0;
  const arch *a = &c->arch;
  TRY(NEW(list, 3 + (size_t)a->layers * (2 * LIN_COUNT + 4), c->folder));
  expect(list, &n, "model.embed_tokens.weight", 2, a->vocab, a->hidden);
  expect(list, &n, "model.norm.weight", 1, 1, a->hidden);
  if (!a->tied_head) expect(list, &n, "lm_head.weight", 2, a->vocab, a->hidden);
  for (int64_t i = 0; i < a->layers; i++) expect_layer(a, i, list, &n);
  qsort(list, n, sizeof *list, by_expected_name);
  TRY(resolve(c, list, n, places, place_count, origin));
done:
  FREE(list);
  return st;
}

static status open_indexed(checkpoint *c, const char *path) {
  status st = OK;
  json_t *index = NULL;
  place *places = NULL;
  TRY(json_read_file(path, 256 << 20, &index));
  const json_t *map = json_object_get(index, "weight_map");
  if (!json_is_object(map)) {
    st = fail(E_DATA, "%s: weight_map: expected an object from tensors to files, found none", path);
    goto done;
  }
  TRY(NEW(places, json_object_size(map), path));
  TRY(open_shards(c, path, map, places));
  if (json_object_size(map)) qsort(places, json_object_size(map), sizeof *places, by_place_name);
  TRY(find_tensors(c, places, json_object_size(map), path));
done:
  FREE(places);
  json_drop(&index);
  return st;
}

static status open_single(checkpoint *c) {
  status st = OK;
  place *places = NULL;
  TRY(NEW(c->files, 1, c->folder));
  TRY(open_file(c, "model.safetensors", NULL));
  const st_file *f = c->files;
  TRY(NEW(places, f->count, f->path));
  for (size_t i = 0; i < f->count; i++) places[i] = (place){f->tensors[i].name, 0};
  TRY(find_tensors(c, places, f->count, f->path));
done:
  FREE(places);
  return st;
}

static status compute_fingerprint(checkpoint *c) {
  status st = OK;
  hash *h = NULL;
  const arch *a = &c->arch;
  char *text = mem_format("%s d %lld L %lld f %lld V %lld h %d hk %d D %d eps %.9g theta %.17g rope %d %.17g %.17g %.17g %.17g window %lld "
                          "bias %d%d%d qk %d tied %d",
                          arch_family_name(a->family), (long long)a->hidden, (long long)a->layers, (long long)a->intermediate,
                          (long long)a->vocab, a->heads, a->kv_heads, a->head_dim, (double)a->rms_eps, a->rope_theta, (int)a->rope,
                          a->rope_factor, a->rope_low, a->rope_high, a->rope_original, (long long)a->sliding_window, a->qkv_bias, a->o_bias,
                          a->mlp_bias, a->qk_norm, a->tied_head);
  if (!text) return fail(E_MEMORY, "%s: no memory for the fingerprint", c->folder);
  TRY(hash_new(&h));
  TRY(hash_add_text(h, text));
  TRY(hash_add(h, a->layer_slides, (size_t)a->layers));
  for (size_t i = 0; i < c->tensor_count; i++) {
    const st_tensor *t = c->tensors[i].tensor;
    char shape[192];
    st_shape_text(t, shape);
    TRY(hash_add_text(h, t->name));
    TRY(hash_add_text(h, t->type_text));
    TRY(hash_add_text(h, shape));
    for (int k = 0; k < 3; k++) {
      uint64_t begin;
      size_t bytes;
      sample_at(t, k, &begin, &bytes);
      TRY(hash_add(h, st_data(c->tensors[i].file, t) + begin, bytes));
    }
  }
  TRY(hash_end(&h, c->fingerprint));
done:
  hash_free(&h);
  FREE(text);
  return st;
}

status checkpoint_open(const char *folder, checkpoint *c) {
  status st = OK;
  *c = (checkpoint){.folder = mem_format("%s", folder)};
  char *config = path_join(folder, "config.json"), *single = path_join(folder, "model.safetensors"),
       *index = path_join(folder, "model.safetensors.index.json");
  if (!c->folder || !config || !single || !index) {
    st = fail(E_MEMORY, "%s: no memory for file names", folder);
    goto done;
  }
  TRY(arch_read(config, &c->arch));
  if (file_exists(single)) /* the order in which transformers looks */
    TRY(open_single(c));
  else if (file_exists(index))
    TRY(open_indexed(c, index));
  else
    TRY(fail(E_DATA, "%s: expected model.safetensors or model.safetensors.index.json, found neither", folder));
  TRY(compute_fingerprint(c));
done:
  FREE(config);
  FREE(single);
  FREE(index);
  if (st != OK) checkpoint_close(c);
  return st;
}

status checkpoint_open_config(const char *folder, checkpoint *c) {
  *c = (checkpoint){.folder = mem_format("%s", folder)};
  char *config = path_join(folder, "config.json");
  status st = c->folder && config ? arch_read(config, &c->arch) : fail(E_MEMORY, "%s: no memory for file names", folder);
  FREE(config);
  if (st != OK) checkpoint_close(c);
  return st;
}

bool checkpoint_has_weights(const char *folder) {
  return file_exists_in(folder, "model.safetensors") || file_exists_in(folder, "model.safetensors.index.json");
}

void checkpoint_close(checkpoint *c) {
  for (size_t i = 0; i < c->file_count; i++) st_close(c->files + i);
  FREE(c->files);
  FREE(c->tensors);
  FREE(c->folder);
  arch_free(&c->arch);
  *c = (checkpoint){0};
}

/* ---- tensors ---- */

static int by_ref_name(const void *name, const void *ref) { return strcmp(name, ((const tensor_ref *)ref)->tensor->name); }

static tensor_ref find(const checkpoint *c, const char *name) {
  const tensor_ref *r = c->tensor_count ? bsearch(name, c->tensors, c->tensor_count, sizeof *c->tensors, by_ref_name) : NULL;
  return r ? *r : (tensor_ref){0};
}

tensor_ref checkpoint_layer_tensor(const checkpoint *c, int64_t layer, const char *name_with_suffix) {
  char name[NAME];
  snprintf(name, NAME, "model.layers.%lld.%s", (long long)layer, name_with_suffix);
  return find(c, name);
}

static tensor_ref linear_tensor(const checkpoint *c, int64_t layer, linear_id l, const char *suffix) {
  char name[NAME];
  snprintf(name, NAME, "model.layers.%lld.%s.%s", (long long)layer, linears[l].path, suffix);
  return find(c, name);
}

tensor_ref checkpoint_linear(const checkpoint *c, int64_t layer, linear_id l) { return linear_tensor(c, layer, l, "weight"); }
tensor_ref checkpoint_bias(const checkpoint *c, int64_t layer, linear_id l) { return linear_tensor(c, layer, l, "bias"); }
tensor_ref checkpoint_embedding(const checkpoint *c) { return find(c, "model.embed_tokens.weight"); }
tensor_ref checkpoint_final_norm(const checkpoint *c) { return find(c, "model.norm.weight"); }
tensor_ref checkpoint_head(const checkpoint *c) { return c->arch.tied_head ? checkpoint_embedding(c) : find(c, "lm_head.weight"); }

/* A block that stays in the first-level cache: converted and looked at before it leaves. Files promise no alignment. */
enum { BLOCK = 4096 };

static void convert(dtype type, const unsigned char *in, size_t n, float *out) {
  uint16_t aligned[BLOCK];
  if (type == DT_F32) {
    memcpy(out, in, n * sizeof *out);
    return;
  }
  const uint16_t *half = (const uint16_t *)(const void *)in;
  if ((uintptr_t)in % sizeof *half != 0) {
    memcpy(aligned, in, n * sizeof *half);
    half = aligned;
  }
  if (type == DT_BF16)
    bf16_to_float_array(out, half, n);
  else
    half_to_float_array(out, half, n);
}

status tensor_rows(const tensor_ref *r, int64_t begin, int64_t end, float *out) {
  const st_tensor *t = r->tensor;
  size_t size = t->type == DT_F32 ? 4 : 2, first = (size_t)begin * (size_t)r->cols, count = (size_t)(end - begin) * (size_t)r->cols;
  const unsigned char *in = st_data(r->file, t) + first * size;
  for (size_t i = 0; i < count; i += BLOCK) {
    size_t n = count - i < BLOCK ? count - i : BLOCK;
    convert(t->type, in + i * size, n, out + i);
    if (kernel_all_finite(n, out + i)) continue;
    size_t at = i;
    while (kernel_all_finite(1, out + at)) at++;
    return fail(E_DATA, "%s: %s: row %lld, column %lld: expected a finite number, found %g", r->file->path, t->name,
                (long long)((first + at) / (size_t)r->cols), (long long)((first + at) % (size_t)r->cols), (double)out[at]);
  }
  return OK;
}

void tensor_done_with(const tensor_ref *r) {
  uint64_t data = r->file->data_offset;
  file_map_done_with(&r->file->map, data + r->tensor->begin, data + r->tensor->end);
}

void tensor_ahead(const tensor_ref *r) {
  uint64_t data = r->file->data_offset;
  file_map_ahead(&r->file->map, data + r->tensor->begin, data + r->tensor->end);
}

status tensor_hash(const tensor_ref *r, char hex[HASH_HEX]) {
  return hash_bytes(st_data(r->file, r->tensor), r->tensor->end - r->tensor->begin, hex);
}
