/* The master file run.h5: attributes of the run and relative links to every unit that is done. */
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "dist/agree.h"
#include "run/verbs.h"
#include "session/unit.h"

typedef struct link_list {
  master_link *links;
  char (*texts)[2][256];
  int count;
} link_list;

static void add_link(const session *c, link_list *l, const char *folder, int64_t layer) {
  char path[PATH_MOST];
  char(*text)[256] = l->texts[l->count];
  snprintf(text[0], sizeof text[0], "%s/layer-%03lld", folder, (long long)layer);
  snprintf(text[1], sizeof text[1], "%s/layer-%03lld.h5", folder, (long long)layer);
  unit_run_path(c, text[1], path);
  if (!file_exists(path)) return;
  l->links[l->count++] = (master_link){text[0], text[1]};
}

static status run_attributes(const session *c, attributes *a) {
  status st = OK;
  TRY(attr_text(a, "model", c->job.model));
  TRY(attr_text(a, "model_fingerprint", c->model.fingerprint));
  TRY(attr_int(a, "layers", c->model.arch.layers));
  TRY(attr_int(a, "hidden_size", c->model.arch.hidden));
  for (int set = 0; set < SET_COUNT; set++) {
    if (!c->sets[set]) continue;
    TRY(attr_int(a, set == SET_CALIBRATION ? "tokens" : "heldout_tokens", c->sets[set]->count * c->sets[set]->length));
    TRY(attr_text(a, set == SET_CALIBRATION ? "tokens_fingerprint" : "heldout_tokens_fingerprint", c->windows[set].fingerprint));
  }
done:
  return st;
}

static status collect_on_first_rank(const session *c) {
  status st = OK;
  link_list l = {0};
  attributes a = {0};
  char path[PATH_MOST], folder[200];
  int64_t there = 0, layers = c->model.arch.layers, most = layers * (SET_COUNT + c->job.setting_count);
  TRY(NEW(l.links, most, "links of the master file"));
  TRY(NEW(l.texts, most, "links of the master file"));
  TRY(run_attributes(c, &a));
  for (int64_t layer = 0; layer < layers; layer++) {
    int before = l.count;
    for (int set = 0; set < SET_COUNT; set++)
      if (c->sets[set] && job_uses_full_grams(&c->job)) add_link(c, &l, set_folder(set), layer);
    for (int k = 0; k < c->job.setting_count; k++) {
      snprintf(folder, sizeof folder, "solutions/%s", c->job.settings[k].name);
      add_link(c, &l, folder, layer);
    }
    if (layer >= c->layer_begin && layer < c->layer_end) there += l.count - before;
  }
  int sets = !job_uses_full_grams(&c->job) ? 0 : c->sets[SET_HELDOUT] ? 2 : 1;
  int64_t expected = (c->layer_end - c->layer_begin) * (sets + c->job.setting_count);
  TRY(attr_int(&a, "units_done", there));
  TRY(attr_int(&a, "units_expected", expected));
  unit_run_path(c, "run.h5", path);
  TRY(container_write_master(path, c->job_tag, &a, l.links, l.count));
  log_info("collect: %s links %d of %lld units", path, (int)there, (long long)expected);
done:
  attr_free(&a);
  FREE(l.texts);
  FREE(l.links);
  return st;
}

status collect(session *c) {
  status st = c->rank == 0 ? collect_on_first_rank(c) : OK;
  return agree(c->job_comm, st);
}
