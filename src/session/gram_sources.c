#include "session/gram_sources.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"
#include "session/gram_folder.h"
#include "session/unit.h"

/* ---- pedigrees ---- */

status pedigree_add(pedigree *p, const char *where, const char *fingerprint, int64_t tokens) {
  status st = OK;
  int at = 0;
  while (at < p->count && strcmp(p->list[at].fingerprint, fingerprint) < 0) at++;
  if (at < p->count && strcmp(p->list[at].fingerprint, fingerprint) == 0)
    return fail(E_DATA, "%s: expected tokens that nothing else here was made from, found those of tokens_fingerprint %.16s… again", where,
                fingerprint);
  TRY(GROW(p->list, p->count, p->room, "sources of Grams"));
  memmove(p->list + at + 1, p->list + at, (size_t)(p->count - at) * sizeof *p->list);
  p->list[at] = (token_set){.tokens = tokens};
  snprintf(p->list[at].fingerprint, HASH_HEX, "%s", fingerprint);
  p->count++;
done:
  return st;
}

int64_t pedigree_tokens(const pedigree *p) {
  int64_t sum = 0;
  for (int i = 0; i < p->count; i++) sum += p->list[i].tokens;
  return sum;
}

status pedigree_fingerprint(const pedigree *p, char hex[HASH_HEX]) {
  status st = OK;
  hash *h = NULL;
  if (p->count == 1) {
    snprintf(hex, HASH_HEX, "%s", p->list[0].fingerprint);
    return OK;
  }
  TRY(hash_new(&h));
  for (int i = 0; i < p->count; i++) TRY(hash_add_text(h, p->list[i].fingerprint));
  TRY(hash_end(&h, hex));
done:
  hash_free(&h);
  return st;
}

status pedigree_write(const pedigree *p, attributes *a) {
  enum { ENTRY = 96 };
  status st = OK;
  char *names = NULL, *counts = NULL;
  size_t n = 0, k = 0, most = (size_t)p->count * ENTRY + 1;
  TRY(NEW(names, most, "sources of Grams"));
  TRY(NEW(counts, most, "sources of Grams"));
  for (int i = 0; i < p->count; i++) {
    n += (size_t)snprintf(names + n, most - n, "%s%s", i ? "," : "", p->list[i].fingerprint);
    k += (size_t)snprintf(counts + k, most - k, "%s%lld", i ? "," : "", (long long)p->list[i].tokens);
  }
  TRY(attr_text(a, "sources", names));
  TRY(attr_text(a, "source_tokens", counts));
done:
  FREE(names);
  FREE(counts);
  return st;
}

status pedigree_read(const char *where, const attributes *a, pedigree *p) {
  status st = OK;
  const char *name = attr_get_text(a, "sources"), *count = attr_get_text(a, "source_tokens");
  char fingerprint[HASH_HEX];
  while (*name && *count) {
    char *end;
    size_t length = strcspn(name, ",");
    long long tokens = strtoll(count, &end, 10);
    if (length >= HASH_HEX || end == count || tokens < 1) break;
    snprintf(fingerprint, sizeof fingerprint, "%.*s", (int)length, name);
    TRY(pedigree_add(p, where, fingerprint, tokens));
    name += length + (name[length] == ',');
    count = end + (*end == ',');
  }
  if (*name || *count || p->count == 0)
    st = fail(E_DATA, "%s: sources: expected fingerprints and as many counts of tokens, found %.80s and %.40s", where,
              attr_get_text(a, "sources"), attr_get_text(a, "source_tokens"));
done:
  return st;
}

void pedigree_free(pedigree *p) {
  FREE(p->list);
  *p = (pedigree){0};
}

/* ---- the command line ---- */

status gram_sources_override(const arguments *a, char **assignment) {
  status st = OK;
  json_t *paths = NULL;
  char *text = NULL;
  bool import = strcmp(a->verb, "grams") == 0;
  *assignment = NULL;
  if (a->from_count == 0) return OK;
  if (!import && strcmp(a->verb, "merge") != 0) return fail(E_USAGE, "--from: expected the verb merge or grams with it, found %s", a->verb);
  if (import && a->from_count > 1) return fail(E_USAGE, "grams: expected --from once, found %d", a->from_count);
  paths = json_array();
  for (int i = 0; i < a->from_count; i++) json_array_append_new(paths, json_string(a->from[i]));
  text = json_dumps(import ? json_array_get(paths, 0) : paths, JSON_COMPACT | JSON_ENCODE_ANY);
  if (text && import && a->tokens)
    *assignment = mem_format("calibration={\"import\": %s, \"count\": %lld}", text, (long long)a->tokens);
  else if (text)
    *assignment = mem_format("calibration={\"%s\": %s}", import ? "import" : "merge", text);
  if (!*assignment) st = fail(E_MEMORY, "--from: no memory, or a path that is no UTF-8");
  free(text);
  json_decref(paths);
  return st;
}

/* ---- what sources are ---- */

static void source_free(gram_source *s) {
  FREE(s->folder);
  pedigree_free(&s->of);
  *s = (gram_source){0};
}

void gram_union_free(gram_union *u) {
  for (int i = 0; i < u->count; i++) source_free(&u->list[i]);
  FREE(u->list);
  pedigree_free(&u->of);
  *u = (gram_union){0};
}

/* What a Gram file says it was made from. */
static status read_pedigree(const session *c, const char *path, pedigree *p) {
  status st = OK;
  container *file = NULL;
  attributes root = {0}, group = {0};
  int input = 0;
  TRY(container_open(path, "grams", &file));
  TRY(container_attributes(file, "", &root));
  if (strcmp(attr_get_text(&root, "model_fingerprint"), c->model.fingerprint) != 0) {
    st = fail(E_DATA, "%s: expected Grams of the job's model, fingerprint %.16s…, found those of %.16s…", path, c->model.fingerprint,
              attr_get_text(&root, "model_fingerprint"));
    goto done;
  }
  if (attr_find(&root, "sources")) {
    TRY(pedigree_read(path, &root, p));
    goto done;
  }
  while (input < IN_COUNT && !container_has(file, input_name(input))) input++;
  if (input == IN_COUNT) {
    st = fail(E_DATA, "%s: expected Grams of a layer's inputs, found none", path);
    goto done;
  }
  TRY(container_attributes(file, input_name(input), &group));
  TRY(pedigree_add(p, path, attr_get_text(&root, "tokens_fingerprint"), attr_get_int(&group, "tokens", 0)));
done:
  attr_free(&root);
  attr_free(&group);
  container_close(&file);
  return st;
}

static status open_run(const session *c, int set, gram_source *s) {
  status st = OK;
  char *file = NULL;
  s->folder = path_join(s->path, set_folder(set));
  file = s->folder ? mem_format("%s/layer-%03lld.h5", s->folder, (long long)c->layer_begin) : NULL;
  if (!file) return fail(E_MEMORY, "%s: no memory for a name", s->path);
  s->has_set = file_exists(file);
  if (s->has_set)
    TRY(read_pedigree(c, file, &s->of));
  else if (set == SET_CALIBRATION)
    st = fail(E_DATA, "%s: expected Grams to merge, found no such file: calibrate that run first", file);
done:
  FREE(file);
  return st;
}

static int by_tokens(const void *a, const void *b) { return strcmp(((const gram_source *)a)->tokens, ((const gram_source *)b)->tokens); }

/* All sources of the job for this set, by fingerprint. */
static status open_all(const session *c, int set, gram_union *u) {
  status st = OK;
  const job *j = &c->job;
  TRY(NEW(u->list, j->grams.count, "sources of Grams"));
  for (int i = 0; i < j->grams.count; i++) {
    gram_source *s = &u->list[u->count++];
    s->path = j->grams.from[i];
    TRY(j->grams.origin == GRAMS_MERGED ? open_run(c, set, s) : gram_folder_open(c, set, s));
    if (s->has_set) TRY(pedigree_fingerprint(&s->of, s->tokens));
  }
  qsort(u->list, (size_t)u->count, sizeof *u->list, by_tokens);
done:
  return st;
}

static void drop_source(gram_union *u, int at) {
  source_free(&u->list[at]);
  memmove(u->list + at, u->list + at + 1, (size_t)(--u->count - at) * sizeof *u->list);
}

static status never_calibrated(const session *c, const char *where, const char *fingerprint) {
  const pedigree *p = &c->unions[SET_CALIBRATION].of;
  for (int i = 0; i < p->count; i++)
    if (strcmp(fingerprint, p->list[i].fingerprint) == 0)
      return fail(E_DATA, "%s: expected held-out tokens that no source was calibrated on, found those of tokens_fingerprint %.16s…", where,
                  fingerprint);
  return OK;
}

/* Every set of tokens once; the same held-out tokens may come from several sources. */
static status unite(const session *c, int set, gram_union *u) {
  status st = OK;
  for (int i = 1; set == SET_HELDOUT && i < u->count; i++)
    if (strcmp(u->list[i].tokens, u->list[i - 1].tokens) == 0) drop_source(u, i--);
  for (int i = 0; i < u->count; i++)
    for (int k = 0; k < u->list[i].of.count; k++) {
      const token_set *t = &u->list[i].of.list[k];
      TRY(pedigree_add(&u->of, u->list[i].folder, t->fingerprint, t->tokens));
      if (set == SET_HELDOUT) TRY(never_calibrated(c, u->list[i].folder, t->fingerprint));
    }
done:
  return st;
}

/* Keeps the one source whose held-out Grams are of the job's own held-out tokens. */
static status choose_heldout(const session *c, gram_union *u) {
  status st = OK;
  const char *wanted = c->windows[SET_HELDOUT].fingerprint;
  char found[HASH_HEX] = "none";
  TRY(never_calibrated(c, c->job.heldout.path, wanted));
  while (u->count && strcmp(u->list[0].tokens, wanted) != 0) {
    if (u->list[0].has_set) snprintf(found, sizeof found, "%.16s…", u->list[0].tokens);
    drop_source(u, 0);
  }
  while (u->count > 1) drop_source(u, 1);
  if (u->count == 0)
    st = fail(E_DATA,
              "%s: expected a source with held-out Grams of these tokens, tokens_fingerprint %.16s…, found %s; a job without a heldout "
              "section takes what the sources have",
              c->job.heldout.path, wanted, found);
done:
  return st;
}

/* The set as it stands in the run directory, whose sources are gone. */
static status take_own(session *c, int set, const char *gone, gram_union *u) {
  char path[PATH_MOST];
  unit_gram_path(c, set, c->layer_begin, path);
  if (file_exists(path)) return read_pedigree(c, path, &u->of);
  if (set == SET_HELDOUT) return OK;
  return fail(E_DATA, "%s: expected %s, found nothing there, and no Grams in %s", gone,
              c->job.grams.origin == GRAMS_MERGED ? "a run directory with Grams" : "a folder of Grams", c->job.output);
}

static const char *first_gone(const job *j) {
  for (int i = 0; i < j->grams.count; i++)
    if (!file_exists(j->grams.from[i])) return j->grams.from[i];
  return NULL;
}

static status open_set(session *c, int set) {
  status st = OK;
  gram_union *u = &c->unions[set];
  const char *gone = first_gone(&c->job);
  bool own_tokens = set == SET_HELDOUT && c->job.has_heldout;
  if (gone) {
    if (!own_tokens) TRY(take_own(c, set, gone, u));
  } else {
    TRY(open_all(c, set, u));
    if (own_tokens) {
      TRY(choose_heldout(c, u));
    } else {
      bool everywhere = true;
      for (int i = 0; i < u->count; i++) everywhere = everywhere && u->list[i].has_set;
      if (everywhere)
        TRY(unite(c, set, u));
      else
        gram_union_free(u);
    }
  }
  if (u->of.count == 0) goto done;
  windows *w = &c->windows[set];
  *w = (windows){.count = pedigree_tokens(&u->of), .length = 1};
  TRY(pedigree_fingerprint(&u->of, w->fingerprint));
  c->sets[set] = w;
done:
  return st;
}

status gram_sources_open(session *c) {
  status st = OK;
  for (int set = 0; set < SET_COUNT; set++) TRY(open_set(c, set));
done:
  return st;
}
