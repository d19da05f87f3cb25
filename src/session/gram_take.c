#include "session/gram_take.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "dist/agree.h"
#include "session/gram_file.h"
#include "session/gram_folder.h"
#include "session/memory_watch.h"

enum { TT = GRAM_TILE * GRAM_TILE, SLICE = 64 };

/* ---- a sum over run directories ---- */

typedef struct addend {
  container *file;
  char path[PATH_MOST];
  int64_t tokens;
} addend;

/* The layer's file must be of the same making as the source's first one, and have this input. checks: this rank compares its checksums. */
static status open_addend(const session *c, const gram_source *s, int64_t layer, const gram_part *p, bool checks, addend *a) {
  static const char *const names[] = {"tiles", "mean_abs", "max_mean_abs"};
  status st = OK;
  attributes root = {0}, group = {0}, tiles = {0};
  const char *name = input_name(p->input);
  char array[64];
  int64_t dims[3] = {0};
  element type;
  int rank;
  snprintf(a->path, sizeof a->path, "%s/layer-%03lld.h5", s->folder, (long long)layer);
  TRY(container_open(a->path, "grams", &a->file));
  if (!container_has(a->file, name)) {
    st = fail(E_DATA, "%s: %s: expected the Gram of an input that the job's targets read, found none: fewer targets there", a->path, name);
    goto done;
  }
  TRY(container_attributes(a->file, "", &root));
  TRY(container_attributes(a->file, name, &group));
  snprintf(array, sizeof array, "%s/tiles", name);
  TRY(container_attributes(a->file, array, &tiles));
  TRY(container_shape(a->file, array, &type, &rank, dims));
  a->tokens = attr_get_int(&group, "tokens", 0);
  const struct {
    const char *what, *expected, *found;
  } texts[] = {{"model_fingerprint", c->model.fingerprint, attr_get_text(&root, "model_fingerprint")},
               {"tokens_fingerprint", s->tokens, attr_get_text(&root, "tokens_fingerprint")},
               {"activations", "full", attr_get_text(&group, "activations")}};
  const struct {
    const char *what;
    int64_t expected, found;
  } numbers[] = {{"layer", layer, attr_get_int(&root, "layer", -1)},
                 {"gram_version", GRAM_VERSION, attr_get_int(&root, "gram_version", -1)},
                 {"tokens", pedigree_tokens(&s->of), a->tokens},
                 {"columns", p->n, attr_get_int(&tiles, "n", -1)},
                 {"side of a tile", GRAM_TILE, dims[2]},
                 {"tiles", tiles_count(p->n, GRAM_TILE), dims[0]}};
  for (size_t i = 0; i < sizeof texts / sizeof *texts && st == OK; i++)
    if (strcmp(texts[i].expected, texts[i].found) != 0)
      st = fail(E_DATA, "%s: %s: %s: expected %s, found %s", a->path, name, texts[i].what, texts[i].expected, texts[i].found);
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers && st == OK; i++)
    if (numbers[i].expected != numbers[i].found)
      st = fail(E_DATA, "%s: %s: %s: expected %lld, found %lld", a->path, name, numbers[i].what, (long long)numbers[i].expected,
                (long long)numbers[i].found);
  for (size_t i = 0; checks && i < sizeof names / sizeof *names && st == OK; i++) {
    snprintf(array, sizeof array, "%s/%s", name, names[i]);
    if (container_has(a->file, array)) st = container_verify_dataset(a->file, array);
  }
done:
  attr_free(&root);
  attr_free(&group);
  attr_free(&tiles);
  return st;
}

static status add_tiles(const addend *list, int count, const gram_part *p) {
  status st = OK;
  float *one = NULL;
  double *sum = NULL;
  char path[64];
  snprintf(path, sizeof path, "%s/tiles", input_name(p->input));
  TRY(NEW(one, SLICE * TT, "tiles of a source"));
  TRY(NEW(sum, SLICE * TT, "sums of tiles"));
  for (int64_t at = p->begin; at < p->end; at += SLICE) {
    int64_t upto = at + SLICE < p->end ? at + SLICE : p->end, floats = (upto - at) * TT;
    float *to = p->tiles + (at - p->begin) * TT;
    double check = 0; /* any Inf or NaN makes it NaN */
    memset(sum, 0, (size_t)floats * sizeof *sum);
    for (int k = 0; k < count; k++) {
      TRY(container_read(list[k].file, path, EL_F32, at, upto, one));
      for (int64_t i = 0; i < floats; i++) sum[i] += (double)one[i];
    }
    for (int64_t i = 0; i < floats; i++) {
      to[i] = (float)sum[i];
      check += 0.0 * (double)to[i];
    }
    if (isnan(check)) {
      st = fail(E_NUMERICS, "%s: %s: expected finite sums, found Inf or NaN", list[0].path, path);
      goto done;
    }
  }
done:
  FREE(one);
  FREE(sum);
  return st;
}

/* The weighted mean, or the largest, of a statistic that all have. */
static status unite_statistic(const addend *list, int count, const gram_part *p, const char *name, bool largest, double *to, bool *has) {
  status st = OK;
  double *one = NULL, tokens = 0;
  char path[64];
  snprintf(path, sizeof path, "%s/%s", input_name(p->input), name);
  *has = true;
  for (int k = 0; k < count; k++) {
    *has = *has && container_has(list[k].file, path);
    tokens += (double)list[k].tokens;
  }
  if (!*has || !to) return OK;
  TRY(NEW(one, p->n, "a statistic"));
  memset(to, 0, (size_t)p->n * sizeof *to);
  for (int k = 0; k < count; k++) {
    double weight = (double)list[k].tokens / tokens;
    TRY(container_read_rows(list[k].file, path, EL_F64, p->n, 0, 0, p->n, one));
    for (int64_t i = 0; i < p->n; i++) {
      if (largest)
        to[i] = one[i] > to[i] ? one[i] : to[i];
      else
        to[i] += weight * one[i];
    }
  }
done:
  FREE(one);
  return st;
}

/* Local. */
static status merge_part(const session *c, const gram_union *u, int64_t layer, gram_part *p) {
  status st = OK;
  addend *list = NULL;
  TRY(NEW(list, u->count, "sources of Grams"));
  for (int k = 0; k < u->count; k++)
    TRY(open_addend(c, &u->list[k], layer, p, (k + (int)p->input) % c->team.size == c->team.rank, &list[k]));
  TRY(add_tiles(list, u->count, p));
  TRY(unite_statistic(list, u->count, p, "mean_abs", false, p->mean_abs, &p->has_mean_abs));
  TRY(unite_statistic(list, u->count, p, "max_mean_abs", true, p->max_mean_abs, &p->has_max_mean_abs));
done:
  for (int k = 0; list && k < u->count; k++) container_close(&list[k].file);
  FREE(list);
  return st;
}

/* ---- layers ---- */

typedef struct buffers {
  shared tiles, statistics;
  size_t tile_at[IN_COUNT], statistic_at[IN_COUNT]; /* elements; statistics of an input: mean_abs, then max_mean_abs */
} buffers;

static void measure(const session *c, buffers *b, size_t *floats, size_t *doubles) {
  *floats = *doubles = 0;
  for (int i = 0; i < IN_COUNT; i++) {
    if (!c->wanted[i]) continue;
    int64_t n = input_width(&c->model.arch, i);
    b->tile_at[i] = *floats;
    b->statistic_at[i] = *doubles;
    *floats += (size_t)tiles_count(n, GRAM_TILE) * TT;
    *doubles += 2 * (size_t)n;
  }
}

uint64_t gram_take_private_bytes(void) { return SLICE * TT * (sizeof(float) + sizeof(double)); }

static status take_set(session *c, const buffers *b, int set, int64_t layer) {
  status st = OK;
  const gram_union *u = &c->unions[set];
  gram_input list[IN_COUNT] = {0};
  if (u->count == 0) {
    char path[PATH_MOST];
    unit_gram_path(c, set, layer, path);
    st = fail(E_DATA, "%s: expected its sources to make it from, found %s gone", path, c->job.grams.from[0]);
    goto done;
  }
  const pedigree *of = u->of.count ? &u->of : &u->list[0].of; /* held-out tokens of the job's own: just one source */
  for (int i = 0; i < IN_COUNT; i++) {
    if (!c->wanted[i]) continue;
    gram_part p = {.input = i, .n = input_width(&c->model.arch, i)};
    float *tiles = (float *)b->tiles.base + b->tile_at[i];
    double *mean_abs = (double *)b->statistics.base + b->statistic_at[i], *max_mean_abs = mean_abs + p.n;
    deal_range(tiles_count(p.n, GRAM_TILE), c->team.size, c->team.rank, 1, &p.begin, &p.end);
    p.tiles = tiles + (size_t)p.begin * TT;
    if (i % c->team.size == c->team.rank) p.mean_abs = mean_abs, p.max_mean_abs = max_mean_abs;
    st = c->job.grams.origin == GRAMS_MERGED ? merge_part(c, u, layer, &p) : gram_folder_read(&u->list[0], layer, &p);
    TRY(agree(c->team.comm, st));
    list[i] = (gram_input){.n = p.n,
                           .tokens = pedigree_tokens(of),
                           .tiles = tiles,
                           .mean_abs = p.has_mean_abs ? mean_abs : NULL,
                           .max_mean_abs = p.has_max_mean_abs ? max_mean_abs : NULL};
  }
  team_barrier(&c->team);
  TRY(gram_file_write(c, set, layer, list));
done:
  return st;
}

static status report(const session *c, int64_t layer, double seconds) {
  if (c->team.rank != 0) return OK;
  char unit[48];
  snprintf(unit, sizeof unit, "grams/layer-%03lld", (long long)layer);
  json_t *o = json_pack("{s:s, s:I, s:{s:f}, s:I, s:I}", "unit", unit, "layer", (json_int_t)layer, "seconds",
                        c->job.grams.origin == GRAMS_MERGED ? "merge" : "import", seconds, "private_bytes_peak",
                        (json_int_t)memory_watch_private(), "shared_bytes_peak", (json_int_t)memory_watch_shared());
  return o ? unit_metrics(c, o) : fail(E_MEMORY, "metrics.jsonl: no memory for a line");
}

/* Collective over the team. */
static status take_layers(session *c, const uint8_t *missing, int64_t todo) {
  status st = OK;
  buffers b = {0};
  size_t floats, doubles;
  int64_t begin, end;
  layer_progress progress = {
      .stage = c->job.grams.origin == GRAMS_MERGED ? "merge" : "import", .layers = c->model.arch.layers, .todo = todo};
  session_team_layers(c, c->team.index, &begin, &end);
  measure(c, &b, &floats, &doubles);
  TRY(shared_new(&c->team, floats * sizeof(float), "tiles of Grams", &b.tiles));
  TRY(shared_new(&c->team, doubles * sizeof(double), "statistics of inputs", &b.statistics));
  for (int64_t layer = begin; layer < end; layer++) {
    if (session_should_stop(c, c->team.comm)) {
      st = fail(E_STOPPED, "%s: stopped on request before layer %lld of %lld; run again to go on", progress.stage, (long long)layer + 1,
                (long long)c->model.arch.layers);
      goto done;
    }
    if (!missing[layer]) continue;
    double start = clock_now();
    progress.layer = layer;
    for (int set = 0; set < SET_COUNT; set++)
      if (missing[layer] >> set & 1) TRY(take_set(c, &b, set, layer));
    memory_watch();
    st = report(c, layer, clock_now() - start);
    TRY(agree(c->team.comm, st));
    progress.done++;
    layer_progress_show(&progress, 0, -1);
  }
done:
  shared_free(&b.tiles);
  shared_free(&b.statistics);
  return st;
}

status gram_take(session *c, const uint8_t *missing, int64_t todo) {
  status st = take_layers(c, missing, todo);
  return agree(c->job_comm, st);
}
