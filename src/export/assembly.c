#include "export/assembly.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "dist/agree.h"

static status new_item(assembly *a, assembly_item **item) {
  status st = GROW(a->items, a->count, a->room, "items of an export");
  if (st != OK) return st;
  *item = &a->items[a->count++];
  **item = (assembly_item){.matrix = -1, .adapter = {-1, -1}};
  return OK;
}

/* The matrix that a tensor of the checkpoint belongs to, by its name less `ending`; -1: none. */
static int matrix_of(const export_request *q, const char *name, const char *ending) {
  size_t length = strlen(name), tail = strlen(ending);
  if (length <= tail || strcmp(name + length - tail, ending) != 0) return -1;
  for (int i = 0; i < q->count; i++) {
    const char *module = q->matrices[i].module;
    if (strlen(module) == length - tail && memcmp(name, module, length - tail) == 0) return i;
  }
  return -1;
}

static status add_linear(const export_request *q, int matrix, int file, assembly *a) {
  status st = OK;
  const export_matrix *m = &q->matrices[matrix];
  format_tensor list[FORMAT_TENSORS];
  assembly_item *item;
  char name[768];
  TRY(new_item(a, &item));
  item->matrix = matrix;
  item->base_count = q->format->tensors(q, m, list);
  for (int k = 0; k < item->base_count; k++) {
    snprintf(name, sizeof name, "%s%s", m->module, list[k].suffix);
    TRY(image_add_tensor(&a->base, file, name, list[k].type, list[k].rank, list[k].shape, &item->base[k]));
    const image_tensor *t = &a->base.tensors[item->base[k]];
    item->bytes += (double)(t->end - t->begin);
  }
  if (q->merge || m->rank == 0) goto done;
  int64_t shapes[2][2] = {{m->rank, m->shape.in}, {m->shape.out, m->rank}};
  for (int k = 0; k < 2; k++) {
    snprintf(name, sizeof name, "base_model.model.%s.lora_%c.weight", m->module, k ? 'B' : 'A');
    TRY(image_add_tensor(&a->adapter, 0, name, format_type_name(q->adapter_dtype), 2, shapes[k], &item->adapter[k]));
    item->bytes += (double)(shapes[k][0] * shapes[k][1]) * (double)real_bytes(q->adapter_dtype);
  }
done:
  return st;
}

static status add_kept(const export_request *q, const st_file *f, const st_tensor *t, int file, assembly *a) {
  status st = OK;
  assembly_item *item;
  TRY(new_item(a, &item));
  item->file = f;
  item->tensor = t;
  item->to_half = q->format->bias_as_half && matrix_of(q, t->name, ".bias") >= 0;
  item->bytes = (double)(t->end - t->begin);
  item->base_count = 1;
  TRY(image_add_tensor(&a->base, file, t->name, item->to_half ? "F16" : t->type_text, t->rank, t->shape, &item->base[0]));
done:
  return st;
}

static const char *file_name(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

status assembly_new(const export_request *q, const json_t *base_metadata, const json_t *adapter_metadata, assembly *a) {
  status st = OK;
  int file;
  bool adapter = false;
  *a = (assembly){0};
  for (int i = 0; i < q->count; i++) adapter |= !q->merge && q->matrices[i].rank > 0;
  if (adapter) TRY(image_add_file(&a->adapter, "adapter_model.safetensors", &file));
  for (size_t k = 0; k < q->model->file_count; k++) {
    const st_file *f = &q->model->files[k];
    TRY(image_add_file(&a->base, file_name(f->path), &file));
    for (size_t i = 0; i < f->count; i++) {
      int matrix = matrix_of(q, f->tensors[i].name, ".weight");
      TRY(matrix >= 0 ? add_linear(q, matrix, file, a) : add_kept(q, f, &f->tensors[i], file, a));
    }
  }
  TRY(image_layout(&a->base, base_metadata));
  if (adapter) TRY(image_layout(&a->adapter, adapter_metadata));
done:
  if (st != OK) assembly_free(a);
  return st;
}

void assembly_free(assembly *a) {
  container_close(&a->file);
  image_free(&a->base);
  image_free(&a->adapter);
  FREE(a->items);
  *a = (assembly){0};
}

/* ---- making ---- */

static status make_kept(const export_request *q, assembly *a, const assembly_item *item, assembly_sink sink, void *context) {
  status st = OK;
  float *wide = NULL;
  void *half = NULL;
  char where[256];
  const st_tensor *t = item->tensor;
  tensor_ref r = {item->file, t, 1, t->rank ? t->shape[0] : 1};
  (void)q;
  if (!item->to_half) {
    st = sink(context, &a->base, item->base[0], st_data(item->file, t));
    goto done;
  }
  snprintf(where, sizeof where, "export: %s", t->name);
  TRY(NEW(wide, r.cols, "a bias"));
  TRY(mem_new(&half, (size_t)r.cols, 2, "a bias"));
  TRY(tensor_rows(&r, 0, 1, wide));
  TRY(format_narrow(where, REAL_F16, wide, r.cols, half));
  TRY(sink(context, &a->base, item->base[0], half));
done:
  FREE(wide);
  mem_free(&half);
  return st;
}

/* The factors as exported: B S^p and S^-p A with S the roots of the eigenvalues; a direction without weight stays as it is. */
static void split_factors(factor_split split, solution *s) {
  double power = split == SPLIT_QERA ? 0.5 : 0.25; /* of the eigenvalue */
  if (split == SPLIT_CLOQ) return;
  for (int k = 0; k < s->rank; k++) {
    if (!(s->values[k] > 1e-16 * s->values[0])) continue; /* below that an eigenvalue is rounding */
    float scale = (float)pow(s->values[k], power), inverse = 1 / scale;
    for (int64_t i = 0; i < s->end - s->begin; i++) s->lora_b[i * s->rank + k] *= scale;
    for (int64_t i = 0; i < s->in; i++) s->lora_a[k * s->in + i] *= inverse;
  }
}

static status make_adapter(const export_request *q, assembly *a, const assembly_item *item, const solution *s, assembly_sink sink,
                           void *context) {
  status st = OK;
  void *narrow = NULL;
  char where[128];
  snprintf(where, sizeof where, "export: adapter of %s", q->matrices[item->matrix].module);
  for (int k = 0; k < 2; k++) {
    int64_t n = k ? s->out * s->rank : s->rank * s->in;
    TRY(mem_new(&narrow, (size_t)n, real_bytes(q->adapter_dtype), "factors of an adapter"));
    TRY(format_narrow(where, q->adapter_dtype, k ? s->lora_b : s->lora_a, n, narrow));
    TRY(sink(context, &a->adapter, item->adapter[k], narrow));
    mem_free(&narrow);
  }
done:
  mem_free(&narrow);
  return st;
}

static status open_solution(assembly *a, const char *path) {
  if (a->file && strcmp(a->file_path, path) == 0) return OK;
  container_close(&a->file);
  a->file_path = path;
  return container_open(path, "solution", &a->file);
}

static status check_factors(assembly *a, const solution *s) {
  status st = OK;
  char group[SOLUTION_PATH], path[SOLUTION_PATH + 8];
  solution_group(s, group);
  for (int k = 0; k < 2 && st == OK; k++) {
    snprintf(path, sizeof path, "%s/lora_%c", group, k ? 'B' : 'A');
    st = container_verify_dataset(a->file, path);
  }
  return st;
}

/* The linear's arrays, with proof that codes and grid are those the adapter was made for, and that the factors are undamaged. */
static status load_linear(const export_request *q, assembly *a, const export_matrix *m, const char *where, solution *s) {
  status st = OK;
  char hex[HASH_HEX];
  unsigned parts = SOLUTION_BASE | (m->rank ? SOLUTION_ADAPTER | (q->split == SPLIT_CLOQ ? 0 : SOLUTION_CURVES) : 0);
  TRY(open_solution(a, m->file));
  *s = m->shape;
  TRY(solution_arrays(a->file, where, 0, -1, m->rank, parts, s));
  TRY(solution_fingerprint(s, hex));
  if (strcmp(hex, m->base_fingerprint) != 0)
    st = fail(E_DATA, "%s: damaged codes or grid: expected fingerprint %.16s…, found %.16s…", where, m->base_fingerprint, hex);
  else if (m->rank)
    st = check_factors(a, s);
done:
  return st;
}

static status make_linear(const export_request *q, assembly *a, const assembly_item *item, assembly_sink sink, void *context) {
  status st = OK;
  const export_matrix *m = &q->matrices[item->matrix];
  void *data[FORMAT_TENSORS] = {0};
  solution s = {0};
  char where[4352];
  snprintf(where, sizeof where, "%s: %s", m->file, linear_path(m->linear));
  TRY(load_linear(q, a, m, where, &s));
  for (int k = 0; k < item->base_count; k++) {
    const image_tensor *t = &a->base.tensors[item->base[k]];
    TRY(mem_new(&data[k], 1, (size_t)(t->end - t->begin), "tensors of a linear"));
  }
  TRY(q->format->fill(q, m, &s, data));
  for (int k = 0; k < item->base_count; k++) {
    TRY(sink(context, &a->base, item->base[k], data[k]));
    mem_free(&data[k]);
  }
  if (item->adapter[0] >= 0) {
    split_factors(q->split, &s);
    TRY(make_adapter(q, a, item, &s, sink, context));
  }
done:
  for (int k = 0; k < FORMAT_TENSORS; k++) mem_free(&data[k]);
  solution_free(&s);
  return st;
}

status assembly_make(const export_request *q, assembly *a, int item, assembly_sink sink, void *context) {
  const assembly_item *i = &a->items[item];
  return i->matrix < 0 ? make_kept(q, a, i, sink, context) : make_linear(q, a, i, sink, context);
}

status assembly_make_all(const export_request *q, assembly *a, assembly_sink sink, void *context) {
  status st = OK;
  int rank, size;
  double all = 0, before = 0;
  MPI_Comm_rank(q->comm, &rank);
  MPI_Comm_size(q->comm, &size);
  for (int i = 0; i < a->count; i++) all += a->items[i].bytes;
  for (int i = 0; i < a->count && st == OK; i++) {
    double middle = before + a->items[i].bytes / 2;
    before += a->items[i].bytes;
    int owner = all > 0 ? (int)(middle / all * size) : 0;
    if ((owner < size ? owner : size - 1) != rank) continue;
    if (q->stop && q->stop()) st = fail(E_STOPPED, "export: stopped on request, nothing was kept: run it again");
    if (st == OK) st = assembly_make(q, a, i, sink, context);
  }
  return agree(q->comm, st);
}
