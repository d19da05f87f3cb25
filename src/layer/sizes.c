/* What a layer takes, from the job and the model's shapes alone: for plan, and for the solver's own memory. Local. */
#include "calibrate/target.h"
#include "layer/sizes.h"
#include "layer/work.h"
#include "quant/billm.h"
#include "quant/descent.h"
#include "quant/magr.h"
#include "quant/optq.h"
#include "quant/salience.h"
#include "quant/slim.h"
#include "session/sharing.h"

int layer_start_rows(const job *j, int64_t out, int64_t in) {
  int most = 0;
  for (int k = 0; k < j->setting_count; k++) {
    const setting *s = &j->settings[k];
    if (method_init(s->method)->metric != METRIC_GRAM || setting_scheme(s) == SCHEME_ZERO) continue;
    int rows = adapter_start_rows(out, in, s->rank_max);
    if (rows > most) most = rows;
  }
  return most;
}

solution layer_solution(const arch *a, const piece *p, int64_t layer, linear_id l) {
  grid_rule rule = setting_rule(p->setting, layer, l);
  rule.mixed = p->setting->method->quantizer == QUANT_SLIM;
  solution s = solution_shape(a, l, &rule, piece_rank(p, layer, l));
  s.variant = piece_variant(p, layer, l);
  s.own_rank = setting_has_own_ranks(p->setting);
  s.round_count = joint_rounds(p->setting) + refine_rounds(p->setting);
  return s;
}

static size_t layer_arrays(const job *j, const arch *a, int64_t layer, int first, int last) {
  size_t bytes = 0;
  for (int k = first; k <= last; k++) {
    piece p;
    for (int v = 0; setting_piece(&j->settings[k], k, v, &p); v++)
      for (int l = 0; l < LIN_COUNT; l++) {
        if (!j->target[l]) continue;
        solution r = layer_solution(a, &p, layer, (linear_id)l);
        bytes += solution_place(&r, SOLUTION_ALL, NULL);
      }
  }
  return bytes;
}

uint64_t layer_solver_file_bytes(const job *j, const arch *a, int index) {
  uint64_t all = 0;
  for (int64_t layer = 0; layer < a->layers; layer++) all += layer_arrays(j, a, layer, index, index);
  return all / (uint64_t)a->layers;
}

/* What is chosen for a whole matrix, and a slab of rows with their codes, of `rows` rows. */
static size_t rounding_private(const setting *s, const grid_rule *rule, int64_t rows, int64_t in) {
  size_t codes = (size_t)(rows * in);
  quantizer q = s->method->quantizer;
  size_t salience = q == QUANT_SLIM || q == QUANT_BILLM ? (size_t)in * sizeof(double) : 0;
  size_t choice = q == QUANT_SLIM ? slim_bytes(rule, in) : q == QUANT_BILLM ? billm_choose_bytes(rule, in) : 0;
  if (salience) choice = salience + larger(choice, s->options.slim_chol ? 0 : salience_bytes(in));
  return larger(choice, codes + (q == QUANT_BILLM ? billm_bytes(rule, in) : round_uniform_bytes(s, rule, in)));
}

/* The largest moments of one rank at a linear: an adapter with its residual, codes and adapter together, a slab of OPTQ or MagR with its codes. */
static size_t rank_private(const job *j, int64_t out, int64_t in, int ranks) {
  size_t most = 0;
  for (int k = 0; k < j->setting_count; k++) {
    const setting *s = &j->settings[k];
    most = larger(most, fit_bytes(s, s->rank_max, out, in));
    if (setting_joint(s)) most = larger(most, joint_bytes(s, s->rank_max, out, in));
    for (int v = -1; v < s->other_count; v++) { /* the usual bits and group, and others of some matrices */
      const grid_rule *rule = v < 0 ? &s->rule : &s->others[v].rule;
      if (!setting_joint(s)) most = larger(most, rounding_private(s, rule, (out + ranks - 1) / ranks, in));
      most = larger(most, refine_private_bytes(s, rule, out, in, ranks));
      if (s->method->magr) most = larger(most, magr_bytes((int)in, rule->group));
    }
  }
  return most;
}

layer_sizes layer_measure(const job *j, const arch *a, int ranks) {
  layer_sizes z = {0};
  bool grid_path = false, targets = false;
  for (int k = 0; k < j->setting_count; k++) {
    grid_path |= j->settings[k].options.adapter_solver == SOLVER_GRID;
    targets |= j->settings[k].options.act_quantizer == INPUTS_CROSS;
    z.factor |= targets || method_quantizer(j->settings[k].method)->factor;
    z.magr |= j->settings[k].method->magr;
    z.metric |= refine_needs_metric(&j->settings[k]);
  }
  for (int i = 0; i < IN_COUNT; i++) {
    if (!job_uses_input(j, (input_id)i)) continue;
    size_t m = (size_t)input_width(a, (input_id)i), all = 0, outs = 0;
    if (m * m > z.h) z.h = m * m;
    if (m * SLAB_ROWS > z.slab) z.slab = m * SLAB_ROWS;
    for (int l = 0; l < LIN_COUNT; l++) {
      int64_t out, in;
      if (!j->target[l] || (int)linear_input((linear_id)l) != i) continue;
      linear_shape(a, (linear_id)l, &out, &in);
      size_t one = (size_t)(out * in), mine = rank_private(j, out, in, ranks);
      all += one;
      outs += (size_t)out;
      if (grid_path && one > z.residual) z.residual = one;
      size_t start = (size_t)layer_start_rows(j, out, in) * (size_t)in;
      if (start > z.start) z.start = start;
      for (int k = 0; k < j->setting_count; k++) {
        const setting *s = &j->settings[k];
        z.leading = larger(z.leading, (size_t)refine_start_rows_most(s, out, in) * (size_t)in);
        z.refining = larger(z.refining, refine_shared_bytes(s, out, in));
      }
      if (targets) mine = larger(mine, target_bytes(in));
      size_t pivots = m <= RANK_BY_PIVOTS_MOST ? m * m * sizeof(double) : 0;
      if (pivots > mine) mine = pivots;
      if (mine > z.private_most) z.private_most = mine;
    }
    if (all > z.w) z.w = all;
    if (outs > z.rows) z.rows = outs;
  }
  z.private_most += z.slab * sizeof(float);
  for (int64_t layer = 0; layer < a->layers; layer++) {
    size_t bytes = layer_arrays(j, a, layer, 0, j->setting_count - 1);
    if (bytes > z.arrays) z.arrays = bytes;
  }
  return z;
}

solver_bytes layer_solver_memory(const job *j, const arch *a, int ranks, bool heldout) {
  layer_sizes z = layer_measure(j, a, ranks);
  solver_bytes b = {.private_most = z.private_most};
  b.shared = z.h * (heldout || z.metric ? 2 : 1) * sizeof(float) + (z.factor ? z.h * sizeof(double) : 0) +
             (z.magr ? 2 : 1) * z.w * sizeof(float) + z.arrays + z.rows * 2 * sizeof(double) + z.residual * sizeof(float) +
             (z.start + z.leading) * sizeof(double) + z.refining;
  return b;
}
