#include "session/gram_folder.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"
#include "model/npy.h"
#include "session/unit.h"

enum { T = GRAM_TILE, TT = GRAM_TILE * GRAM_TILE };
static const double SYMMETRY = 1e-6;

void gram_folder_npy_name(int64_t layer, input_id input, const char *array, char name[96]) {
  snprintf(name, 96, "layer-%03lld.%s%s%s.npy", (long long)layer, input_name(input), array ? "." : "", array ? array : "");
}

void gram_folder_tensor_name(input_id input, const char *array, char name[96]) {
  snprintf(name, 96, "%s%s%s", input_name(input), array ? "." : "", array ? array : "");
}

/* ---- one array of either format ---- */

typedef struct array_view {
  char path[PATH_MOST]; /* and the tensor's name: for messages */
  npy npy;
  st_file tensors;
  const unsigned char *data; /* float32 or float64, any alignment */
  int bytes;
  int64_t rows, cols; /* cols 0: a vector */
} array_view;

static void array_close(array_view *v) {
  npy_close(&v->npy);
  st_close(&v->tensors);
  v->data = NULL;
}

static double array_at(const array_view *v, int64_t i) {
  if (v->bytes == 8) {
    double x;
    memcpy(&x, v->data + 8 * i, sizeof x);
    return x;
  }
  float x;
  memcpy(&x, v->data + 4 * i, sizeof x);
  return (double)x;
}

static status open_npy(array_view *v, int rank) {
  const npy_wish wish = {"f", "float32 or float64", rank, "numbers"};
  status st = npy_open(v->path, &wish, &v->npy);
  if (st == OK && v->npy.bytes < 4) st = fail(E_DATA, "%s: expected float32 or float64, found elements of type %s", v->path, v->npy.descr);
  v->data = v->npy.data;
  v->bytes = v->npy.bytes;
  v->rows = v->npy.shape[0];
  v->cols = rank == 2 ? v->npy.shape[1] : 0;
  return st;
}

/* data NULL: the file has no such tensor. */
static status open_tensor(array_view *v, const char *name, int rank) {
  status st = OK;
  TRY(st_open(v->path, &v->tensors));
  const st_tensor *t = st_find(&v->tensors, name);
  if (!t) goto done;
  size_t used = strlen(v->path);
  snprintf(v->path + used, sizeof v->path - used, ": %s", name);
  bool wide = strcmp(t->type_text, "F64") == 0;
  char shape[192];
  st_shape_text(t, shape);
  if (t->type != DT_F32 && !wide)
    st = fail(E_DATA, "%s: expected F32 or F64, found %s", v->path, t->type_text);
  else if (t->rank != rank)
    st = fail(E_DATA, "%s: expected %s, found shape %s", v->path, rank == 1 ? "one dimension" : "two dimensions", shape);
  if (st != OK) goto done;
  v->data = st_data(&v->tensors, t);
  v->bytes = wide ? 8 : 4;
  v->rows = t->shape[0];
  v->cols = rank == 2 ? t->shape[1] : 0;
done:
  return st;
}

/* v->data NULL: the folder has no such array. array NULL: the matrix. n: its expected side. */
static status array_open(const char *folder, int64_t layer, input_id input, const char *array, int64_t n, array_view *v) {
  status st = OK;
  char name[96];
  int rank = array ? 1 : 2;
  *v = (array_view){0};
  gram_folder_npy_name(layer, input, array, name);
  snprintf(v->path, sizeof v->path, "%s/%s", folder, name);
  if (file_exists(v->path)) {
    TRY(open_npy(v, rank));
  } else {
    snprintf(v->path, sizeof v->path, "%s/layer-%03lld.safetensors", folder, (long long)layer);
    if (!file_exists(v->path)) goto done;
    gram_folder_tensor_name(input, array, name);
    TRY(open_tensor(v, name, rank));
    if (!v->data) goto done;
  }
  if (v->rows != n || (rank == 2 && v->cols != n))
    st = rank == 2 ? fail(E_DATA, "%s: expected %lld x %lld, the width of %s, found %lld x %lld", v->path, (long long)n, (long long)n,
                          input_name(input), (long long)v->rows, (long long)v->cols)
                   : fail(E_DATA, "%s: expected %lld numbers, the width of %s, found %lld", v->path, (long long)n, input_name(input),
                          (long long)v->rows);
done:
  if (st != OK) array_close(v);
  return st;
}

static status need_matrix(const char *folder, int64_t layer, input_id input, int64_t n, array_view *v) {
  char name[96];
  status st = array_open(folder, layer, input, NULL, n, v);
  if (st != OK || v->data) return st;
  gram_folder_npy_name(layer, input, NULL, name);
  return fail(E_DATA, "%s: expected %s, or %s in layer-%03lld.safetensors, found neither", folder, name, input_name(input),
              (long long)layer);
}

/* ---- what the folder says ---- */

static status read_sidecar(const session *c, const char *path, gram_source *s, int64_t *tokens) {
  status st = OK;
  json_t *o = NULL;
  attributes a = {0};
  const char *model, *fingerprint, *activations, *sources, *source_tokens;
  *tokens = 0;
  if (!file_exists(path)) return OK;
  TRY(json_read_file(path, 16 << 20, &o));
  TRY(json_get_string(o, path, "model_fingerprint", "", &model));
  TRY(json_get_string(o, path, "activations", "full", &activations));
  TRY(json_get_string(o, path, "tokens_fingerprint", "", &fingerprint));
  TRY(json_get_string(o, path, "sources", "", &sources));
  TRY(json_get_string(o, path, "source_tokens", "", &source_tokens));
  TRY(json_get_int(o, path, "tokens", 1, INT64_MAX, 0, tokens));
  if (*model && strcmp(model, c->model.fingerprint) != 0)
    st =
        fail(E_DATA, "%s: expected Grams of the job's model, fingerprint %.16s…, found those of %.16s…", path, c->model.fingerprint, model);
  else if (strcmp(activations, "full") != 0)
    st = fail(E_DATA, "%s: activations: expected full, found %.40s", path, activations);
  if (st != OK) goto done;
  if (*sources) {
    TRY(attr_text(&a, "sources", sources));
    TRY(attr_text(&a, "source_tokens", source_tokens));
    TRY(pedigree_read(path, &a, &s->of));
    if (*tokens != pedigree_tokens(&s->of))
      st = fail(E_DATA, "%s: tokens: expected %lld, the sum of source_tokens, found %lld", path, (long long)pedigree_tokens(&s->of),
                (long long)*tokens);
  } else if (*fingerprint && strlen(fingerprint) < HASH_HEX && *tokens) {
    TRY(pedigree_add(&s->of, path, fingerprint, *tokens));
  }
done:
  attr_free(&a);
  json_drop(&o);
  return st;
}

/* Diagonals, as float, of the layer's matrices: what tokens of which nothing is known left behind. */
static status fingerprint_diagonals(const session *c, const gram_source *s, int64_t layer, int64_t tokens, char hex[HASH_HEX]) {
  status st = OK;
  hash *h = NULL;
  array_view v = {0};
  char text[64];
  TRY(hash_new(&h));
  snprintf(text, sizeof text, "imported, %lld tokens", (long long)tokens);
  TRY(hash_add_text(h, text));
  for (int i = 0; i < IN_COUNT; i++) {
    int64_t n = input_width(&c->model.arch, i);
    TRY(array_open(s->folder, layer, i, NULL, n, &v));
    if (!v.data) continue;
    TRY(hash_add_text(h, input_name(i)));
    for (int64_t k = 0; k < n; k++) {
      float x = (float)array_at(&v, k * n + k);
      TRY(hash_add(h, &x, sizeof x));
    }
    array_close(&v);
  }
  TRY(hash_end(&h, hex));
done:
  array_close(&v);
  hash_free(&h);
  return st;
}

static bool has_layer(const char *folder, int64_t layer) {
  char path[PATH_MOST], name[96];
  snprintf(path, sizeof path, "%s/layer-%03lld.safetensors", folder, (long long)layer);
  bool found = file_exists(path);
  for (int i = 0; i < IN_COUNT && !found; i++) {
    gram_folder_npy_name(layer, i, NULL, name);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    found = file_exists(path);
  }
  return found;
}

status gram_folder_open(const session *c, int set, gram_source *s) {
  status st = OK;
  char *sidecar = NULL, hex[HASH_HEX];
  int64_t tokens, layer = 0;
  s->folder = set == SET_CALIBRATION ? mem_format("%s", s->path) : path_join(s->path, set_folder(set));
  sidecar = s->folder ? path_join(s->folder, GRAM_SIDECAR) : NULL;
  if (!sidecar) return fail(E_MEMORY, "%s: no memory for a name", s->path);
  s->has_set = set == SET_CALIBRATION || file_exists(s->folder);
  if (!s->has_set) goto done;
  TRY(read_sidecar(c, sidecar, s, &tokens));
  if (set == SET_CALIBRATION && c->job.grams.tokens) {
    if (tokens && tokens != c->job.grams.tokens) {
      st = fail(E_DATA, "%s: tokens: expected %lld, the job's calibration.count, found %lld", sidecar, (long long)c->job.grams.tokens,
                (long long)tokens);
      goto done;
    }
    tokens = c->job.grams.tokens;
  }
  if (!tokens) {
    st = fail(E_DATA, "%s: expected a count of tokens there%s, found none", sidecar,
              set == SET_CALIBRATION ? ", in the job's calibration.count or after --tokens" : "");
    goto done;
  }
  while (layer < c->model.arch.layers && !has_layer(s->folder, layer)) layer++;
  if (layer == c->model.arch.layers) {
    st = fail(E_DATA, "%s: expected files layer-000.attn_in.npy … or layer-000.safetensors …, found none", s->folder);
    goto done;
  }
  if (s->of.count == 0) {
    TRY(fingerprint_diagonals(c, s, layer, tokens, hex));
    TRY(pedigree_add(&s->of, s->folder, hex, tokens));
  }
done:
  FREE(sidecar);
  return st;
}

/* ---- matrices ---- */

/* Entry (r, c), r >= c, of the matrix and of its transpose; the mean of both. root: roots of the diagonal. */
static status entry(const array_view *v, const double *root, int64_t n, int64_t r, int64_t c, float *to) {
  double below = array_at(v, r * n + c), above = array_at(v, c * n + r), limit = root[r] * root[c];
  if (!(fabs(below - above) <= SYMMETRY * limit)) {
    if (isfinite(below) && isfinite(above))
      return fail(E_DATA, "%s: row %lld, column %lld: expected a symmetric matrix, found %.9g, and %.9g on the other side", v->path,
                  (long long)r, (long long)c, below, above);
    return fail(E_DATA, "%s: row %lld, column %lld: expected a finite number, found %g", v->path, (long long)(isfinite(below) ? c : r),
                (long long)(isfinite(below) ? r : c), isfinite(below) ? above : below);
  }
  double mean = 0.5 * (below + above);
  if (!(fabs(mean) <= (1 + SYMMETRY) * limit))
    return fail(E_DATA, "%s: row %lld, column %lld: expected at most %.9g in a sum of x x^T with this diagonal, found %.9g", v->path,
                (long long)r, (long long)c, limit, mean);
  *to = (float)mean;
  return OK;
}

static status read_tile(const array_view *v, const double *root, int64_t n, int64_t i, int64_t j, float *tile) {
  memset(tile, 0, TT * sizeof *tile);
  for (int64_t r = i * T; r < n && r < (i + 1) * T; r++)
    for (int64_t c = j * T; c < n && c < (j + 1) * T && c <= r; c++) {
      float x = 0;
      status st = entry(v, root, n, r, c, &x);
      if (st != OK) return st;
      tile[(r - i * T) * T + c - j * T] = x;
      if (i == j) tile[(c - j * T) * T + r - i * T] = x;
    }
  return OK;
}

static status read_matrix(const gram_source *s, int64_t layer, const gram_part *p) {
  status st = OK;
  array_view v = {0};
  double *root = NULL;
  int64_t i = 0, n = p->n;
  TRY(need_matrix(s->folder, layer, p->input, n, &v));
  TRY(NEW(root, n, "the diagonal of a Gram"));
  for (int64_t k = 0; k < n; k++) {
    double x = array_at(&v, k * n + k);
    if (!(x >= 0 && x <= 3e38)) {
      st = fail(E_DATA, "%s: row %lld, column %lld: expected a finite number of at least 0 on the diagonal, found %g", v.path, (long long)k,
                (long long)k, x);
      goto done;
    }
    root[k] = sqrt(x);
  }
  for (int64_t at = p->begin; at < p->end; at++) {
    while (tile_index(i + 1, 0) <= at) i++;
    TRY(read_tile(&v, root, n, i, at - tile_index(i, 0), p->tiles + (at - p->begin) * TT));
  }
done:
  FREE(root);
  array_close(&v);
  return st;
}

static status read_statistic(const gram_source *s, int64_t layer, const gram_part *p, const char *name, double *to, bool *has) {
  status st = OK;
  array_view v = {0};
  TRY(array_open(s->folder, layer, p->input, name, p->n, &v));
  *has = v.data != NULL;
  for (int64_t k = 0; *has && to && k < p->n; k++) {
    to[k] = array_at(&v, k);
    if (!(to[k] >= 0 && isfinite(to[k]))) {
      st = fail(E_DATA, "%s: number %lld: expected a finite mean of |x|, found %g", v.path, (long long)k, to[k]);
      goto done;
    }
  }
done:
  array_close(&v);
  return st;
}

status gram_folder_read(const gram_source *s, int64_t layer, gram_part *p) {
  status st = OK;
  TRY(read_matrix(s, layer, p));
  TRY(read_statistic(s, layer, p, "mean_abs", p->mean_abs, &p->has_mean_abs));
  TRY(read_statistic(s, layer, p, "max_mean_abs", p->max_mean_abs, &p->has_max_mean_abs));
done:
  return st;
}
