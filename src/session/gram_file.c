#include "session/gram_file.h"

#include <stdio.h>

#include "dist/agree.h"

enum { ARRAYS = 3, READERS = 3 };

/* Names and attributes of one input's group. */
typedef struct group_text {
  char path[ARRAYS][32], target[READERS][64];
  attributes group, tiles;
} group_text;

static status describe(const session *c, int set, input_id input, const gram_input *g, group_text *o) {
  static const char *const names[ARRAYS] = {"tiles", "mean_abs", "max_mean_abs"};
  status st = OK;
  for (int k = 0; k < ARRAYS; k++) snprintf(o->path[k], sizeof o->path[k], "%s/%s", input_name(input), names[k]);
  TRY(attr_int(&o->tiles, "n", g->n));
  TRY(attr_int(&o->tiles, "tile", GRAM_TILE));
  TRY(attr_int(&o->group, "tokens", g->tokens));
  TRY(attr_text(&o->group, "activations", c->follower ? "prefix" : "full"));
  TRY(attr_text(&o->group, "tokens_fingerprint", c->windows[set].fingerprint));
done:
  return st;
}

status gram_file_round(const session *c, int64_t layer, input_id input, gram *g, float *tiles, gram_input *to) {
  char where[96];
  int64_t begin, end;
  double *sums = g->abs_sums.base;
  snprintf(where, sizeof where, "model.layers.%lld, %s", (long long)layer, input_name(input));
  team_barrier(&c->team);
  deal_range(tiles_count(g->n, GRAM_TILE), c->team.size, c->team.rank, 1, &begin, &end);
  status st = gram_tiles(g, where, begin, end, tiles + (size_t)begin * GRAM_TILE * GRAM_TILE);
  deal_range(g->n, c->team.size, c->team.rank, 16, &begin, &end);
  for (int64_t k = begin; k < end; k++) sums[k] /= (double)g->tokens;
  st = agree(c->team.comm, st);
  team_barrier(&c->team);
  *to = (gram_input){.n = g->n, .tokens = g->tokens, .tiles = tiles, .mean_abs = sums, .max_mean_abs = g->abs_most.base};
  return st;
}

status gram_file_write(const session *c, int set, int64_t layer, const gram_input list[IN_COUNT]) {
  status st = OK;
  group_text o[IN_COUNT] = {0};
  dataset sets[ARRAYS * IN_COUNT + LIN_COUNT];
  group_attributes groups[2 * IN_COUNT + 1];
  attributes identity = {0};
  int set_count = 0, group_count = 0;
  char path[PATH_MOST];
  unit_gram_path(c, set, layer, path);
  st = unit_gram_identity(c, set, layer, &identity);
  groups[group_count++] = (group_attributes){"", &identity};
  for (int i = 0; i < IN_COUNT && st == OK; i++) {
    const gram_input *g = &list[i];
    if (!g->n) continue;
    st = describe(c, set, i, g, &o[i]);
    sets[set_count++] = (dataset){o[i].path[0], EL_F32, 3, {tiles_count(g->n, GRAM_TILE), GRAM_TILE, GRAM_TILE}, g->tiles};
    if (g->mean_abs) sets[set_count++] = (dataset){o[i].path[1], EL_F64, 1, {g->n}, g->mean_abs};
    if (g->max_mean_abs) sets[set_count++] = (dataset){o[i].path[2], EL_F64, 1, {g->n}, g->max_mean_abs};
    for (int l = 0, k = 0; l < LIN_COUNT; l++) {
      int64_t out, in;
      if (!g->target[l]) continue;
      linear_shape(&c->model.arch, (linear_id)l, &out, &in);
      unit_target_name((linear_id)l, o[i].target[k]);
      sets[set_count++] = (dataset){o[i].target[k++], EL_F32, 2, {out, in}, g->target[l]};
    }
    groups[group_count++] = (group_attributes){input_name(i), &o[i].group};
    groups[group_count++] = (group_attributes){o[i].path[0], &o[i].tiles};
  }
  TRY(agree(c->team.comm, st));
  TRY(container_write(&c->team, path, c->job_tag, "grams", sets, set_count, groups, group_count));
done:
  attr_free(&identity);
  for (int i = 0; i < IN_COUNT; i++) {
    attr_free(&o[i].group);
    attr_free(&o[i].tiles);
  }
  return st;
}
