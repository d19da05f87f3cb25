#include "cost/machine.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/file.h"

/* guess: of the rate of products of one rank, where the unit is flop/s; else in that unit. What stands in for `plan --calibrate-machine`: rough,
 * and called guesses wherever they are used. */
static const struct rate_row {
  const char *name, *unit, *of;
  double guess;
} rows[RATE_COUNT] = {
    [RATE_GEMM] = {"gemm", "flop/s", "rank", 0.9},              /* single precision, a slab of rows with a square matrix */
    [RATE_LINEARS] = {"linears", "flop/s", "rank", 0.85},       /* the linears of a block with its norms, rotation and activation */
    [RATE_ATTENTION] = {"attention", "flop/s", "rank", 0.4},    /* scores and values of 2048 tokens, of visible pairs */
    [RATE_GRAM] = {"gram", "flop/s", "rank", 0.75},             /* n^2 a token */
    [RATE_MAGR] = {"magr", "flop/s", "rank", 0.7},              /* 2 rows n^2 a step */
    [RATE_FACTOR] = {"factor", "flop/s", "rank", 0.35},         /* reverse Cholesky by the team, n^3 / 3; double, and so are the next two */
    [RATE_OPTQ] = {"optq", "flop/s", "rank", 0.35},             /* rows n^2 */
    [RATE_SWEEP] = {"sweep", "flop/s", "rank", 0.5},            /* a round of descent, groups of 64, grids refitted: 2 rows n^2 */
    [RATE_CANDIDATES] = {"candidates", "flop/s", "rank", 0.25}, /* the same with other grids tried */
    [RATE_RITZ] = {"ritz", "flop/s", "rank", 0.3},              /* warm subspace iteration by the team */
    [RATE_DEFLATE] = {"deflate", "flop/s", "rank", 0.3},        /* the Gram with the adapter eliminated, by the team */
    [RATE_TRACE] = {"trace", "flop/s", "rank", 0.4},            /* loss of a residual: rows n^2 */
    [RATE_DENSE] = {"dense", "flop/s", "rank", 0.3},            /* an adapter by a whole decomposition */
    [RATE_KRYLOV] = {"krylov", "flop/s", "rank", 0.3},          /* an adapter by block Krylov */
    [RATE_VECTORS] = {"vectors", "flop/s", "rank", 0.3},        /* leading eigenvectors of a Gram */
    [RATE_CURVES] = {"curves", "flop/s", "rank", 0.3},          /* loss curve of a matrix at rank 64 */
    [RATE_FINISH] = {"finish", "weight/s", "rank", 1e8},        /* residual, adapter's norm and fingerprint of a matrix */
    [RATE_PIVOTS] = {"pivots", "flop/s", "rank", 0.1},          /* numerical rank of a Gram by pivoted Cholesky on one rank */
    [RATE_GRID_RANGE] = {"grid_range", "weight/s", "rank", 3e8}, /* a grid from the range of its group */
    [RATE_GRID_MSE] = {"grid_mse", "weight/s", "rank", 3e6},
    [RATE_GRID_SCAN] = {"grid_scan", "weight/s", "rank", 3e6}, /* at 3 bits */
    [RATE_GRID_REFIT] = {"grid_refit", "weight/s", "rank", 2e7},
    [RATE_MEMORY] = {"memory", "byte/s", "rank", 5e9},         /* a = b + s c on arrays beyond the caches */
    [RATE_READ_MODEL] = {"read_model", "byte/s", "node", 5e8}, /* the checkpoint, turned into float */
    [RATE_READ] = {"read", "byte/s", "node", 1e9},             /* a container that was written a moment ago */
    [RATE_WRITE] = {"write", "byte/s", "node", 3e8},           /* a container by all ranks: written, read back, compared, synced */
};

const char *rate_name(rate_id r) { return rows[r].name; }

bool rate_of_node(rate_id r) { return strcmp(rows[r].of, "node") == 0; }

void machine_add(machine *m, rate_id r, int64_t width, double rate) {
  rate_curve *c = &m->rates[r];
  if (c->count == RATE_WIDTHS) return;
  c->width[c->count] = width;
  c->rate[c->count++] = rate;
}

double machine_rate(const machine *m, rate_id r, int64_t width) {
  const rate_curve *c = &m->rates[r];
  int k = 1;
  if (c->count == 1 || width <= c->width[0]) return c->rate[0];
  while (k < c->count && width > c->width[k]) k++;
  if (k == c->count) return c->rate[k - 1];
  double part = log((double)width / (double)c->width[k - 1]) / log((double)c->width[k] / (double)c->width[k - 1]);
  return c->rate[k - 1] + part * (c->rate[k] - c->rate[k - 1]);
}

void machine_guess(double gemm_of_a_rank, machine *m) {
  *m = (machine){0};
  for (int r = 0; r < RATE_COUNT; r++)
    machine_add(m, (rate_id)r, 0, strcmp(rows[r].unit, "flop/s") == 0 ? rows[r].guess * gemm_of_a_rank : rows[r].guess);
}

/* ---- as a file ---- */

static status read_curve(const char *path, const json_t *rates, rate_id r, machine *m) {
  const json_t *one = json_object_get(rates, rows[r].name), *at = json_object_get(one, "at"), *pair;
  size_t k;
  if (!json_is_array(at) || json_array_size(at) == 0 || json_array_size(at) > RATE_WIDTHS)
    return fail(E_DATA, "%s: rates.%s.at: expected 1 to %d pairs of width and rate, found %zu", path, rows[r].name, RATE_WIDTHS,
                json_array_size(at));
  json_array_foreach((json_t *)at, k, pair) {
    const json_t *width = json_array_get(pair, 0), *rate = json_array_get(pair, 1);
    double value = json_number_value(rate);
    int64_t w = json_integer_value(width), before = k ? m->rates[r].width[k - 1] : -1;
    if (!json_is_integer(width) || w <= before || !json_is_number(rate) || !(value > 0))
      return fail(E_DATA, "%s: rates.%s.at: expected ascending widths, each with a positive rate in %s, found something else in pair %zu",
                  path, rows[r].name, rows[r].unit, k + 1);
    machine_add(m, r, w, value);
  }
  return OK;
}

status machine_read(const char *path, machine *m) {
  enum { LIMIT = 1 << 20 };
  status st = OK;
  json_t *o = NULL;
  const char *text;
  int64_t number;
  *m = (machine){0};
  TRY(json_read_file(path, LIMIT, &o));
  TRY(json_get_string(o, path, "format", "", &text));
  if (strcmp(text, "cloqwork-machine") != 0) {
    st = fail(E_DATA, "%s: format: expected cloqwork-machine, found \"%s\"", path, text);
    goto done;
  }
  TRY(json_need_int(o, path, "format_version", 1, 1, &number));
  TRY(json_need_int(o, path, "ranks", 1, 1 << 20, &number));
  m->ranks = (int)number;
  const struct {
    const char *key;
    char *to;
    size_t room;
  } texts[] = {{"host", m->host, sizeof m->host},
               {"time", m->time, sizeof m->time},
               {"blas", m->blas, sizeof m->blas},
               {"kernel", m->kernel, sizeof m->kernel}};
  for (size_t k = 0; k < sizeof texts / sizeof *texts; k++) {
    TRY(json_get_string(o, path, texts[k].key, "", &text));
    snprintf(texts[k].to, texts[k].room, "%s", text);
  }
  for (int r = 0; r < RATE_COUNT; r++) TRY(read_curve(path, json_object_get(o, "rates"), (rate_id)r, m));
done:
  json_drop(&o);
  return st;
}

static json_t *curve_json(rate_id r, const rate_curve *c) {
  json_t *at = json_array();
  for (int k = 0; k < c->count; k++) json_array_append_new(at, json_pack("[I, f]", (json_int_t)c->width[k], c->rate[k]));
  return json_pack("{s:s, s:s, s:o}", "unit", rows[r].unit, "of", rows[r].of, "at", at);
}

status machine_write(const char *path, const machine *m) {
  json_t *rates = json_object();
  for (int r = 0; r < RATE_COUNT; r++) json_object_set_new(rates, rows[r].name, curve_json((rate_id)r, &m->rates[r]));
  json_t *o = json_pack("{s:s, s:i, s:s, s:s, s:s, s:s, s:s, s:i, s:o}", "format", "cloqwork-machine", "format_version", 1,
                        "program_version", CLOQWORK_VERSION, "host", m->host, "time", m->time, "blas", m->blas, "kernel", m->kernel,
                        "ranks", m->ranks, "rates", rates);
  char *text = o ? json_dumps(o, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(4)) : NULL;
  json_drop(&o);
  if (!text) return fail(E_MEMORY, "%s: no memory", path);
  status st = file_write_atomic(path, text, strlen(text));
  free(text);
  return st;
}
