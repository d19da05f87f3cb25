/* The job: what the user asked for, every key checked, every default filled in. Local.
 * Read from the YAML job file with --set overrides (spec interface.md, "Job file"). Unknown keys are errors that name the nearest. */
#ifndef CLOQWORK_JOB_JOB_H
#define CLOQWORK_JOB_JOB_H

#include <stdbool.h>
#include <stdint.h>

#include "base/json.h"
#include "base/status.h"
#include "job/matrix_numbers.h"
#include "job/methods.h"
#include "model/checkpoint.h"
#include "model/tokens.h"
#include "quant/grid.h"
#include "quant/magr.h"

/* The names of spec methods.md section 15; "auto" is resolved per setting before anything runs, the resolved value is recorded. */
typedef struct options {
  double damping;           /* relative to mean(diag H), for OPTQ: 0.01 */
  int damping_escalate;     /* how often a failed Cholesky may be tried again with ten times the damping: 0 */
  bool residual_magr;       /* residual: original (default) | magr: the adapter fits MagR's weights minus Q */
  double adapter_damping;   /* relative, added to H for the adapter: 0 */
  double adapter_tolerance; /* excess of the adapter's loss over the optimum, relative: 1e-6 */
  enum { SOLVER_AUTO, SOLVER_DENSE, SOLVER_KRYLOV, SOLVER_GRID } adapter_solver; /* auto | dense | krylov | grid */
  double magr_alpha;                                                             /* auto: 1e-3 per channel, 1e-4 per group */
  magr_solver magr_solver;                                                       /* fista | pg */
  int magr_K;                                                                    /* auto: 60 fista, 150 pg */
  bool magr_literal;          /* magr_threshold: normalised | literal: alpha on the raw Gram */
  bool grid_symmetric;        /* grid_type: asym | sym */
  bool grid_real_zero;        /* grid_zero: int | real */
  double grid_beta;           /* auto: 1 in groups (0.95 at 128); per channel with MagR 0.8, 0.9, 1 at 2, 3, 4 bits; 1 without MagR */
  bool grid_beta_anchor_zero; /* grid_beta_anchor: low | zero */
  grid_search grid_search; /* none (default; l4q with init l4q, refit with init refine) | mse | scan | refit | lsq | symm | asymm | l4q */
  enum {
    WEIGHT_ONES,
    WEIGHT_SQRT,
    WEIGHT_DIAGONAL
  } grid_weight;           /* ones | sqrt | diag: of squared errors in scan and refit; auto: diag without an adapter and with init refine */
  bool optq_order_act;     /* optq_order: natural | act; auto: act with init refine */
  bool optq_dynamic;       /* optq_groups: static | dynamic */
  bool optq_dead_rtn;      /* optq_dead: zero | rtn */
  bool cd_pass;            /* none | comq: coordinate descent after OPTQ */
  int cd_rounds;           /* auto: 30 at 2 bits, else 1 */
  bool nf_double;          /* off | on: NF4's absmax quantized in turn; auto: on for qlora */
  bool slim_chol;          /* slim_salience: inv | chol */
  bool lqer_mean;          /* lqer_stat: max | mean over windows of mean |x| */
  int loftq_T;             /* 5 */
  bool loftq_parity_scale; /* off | on: BA times 16 / rank, as the example scripts load it */
  bool lasq_base_q0;       /* lasq_base: residual | q0: lasq-q keeps q(W) as base */
  int joint_rounds;        /* caldera, odlri, varpro, bidup, projq, intrinsic: 2 */
  bool joint_refit;        /* joint_grid: frozen (fitted to W) | refit every round: caldera, odlri, varpro */
  bool joint_adapter_first; /* joint_start: quantize | adapter: a fit of W comes before the first codes */
  enum { ROUNDS_AUTO, ROUNDS_3_2, ROUNDS_6_4, ROUNDS_12_4 } refine_rounds; /* auto | 3+2 | 6+4 | 12+4: of shaping + of descent */
  double refine_stop;  /* a kind of round ends when the loss it keeps falls by less than this part; auto: 0.003 with auto rounds, else 0 */
  double refine_ridge; /* relative to mean(diag H), of the descent's metric: 0.03; raised where tokens are few (refine_ridge_at) */
  bool refine_candidates; /* off | on: other grids are tried beside the refitted one; auto: on with auto rounds */
  enum {
    RANKS_SPREAD,
    RANKS_EACH,
    RANKS_SMALLEST
  } refine_ranks; /* spread | each | smallest: which ranks get codes of their own (setting_variants) */
  int l4q_steps;  /* 100 */
  int seed;       /* adapter_seed, of A in zero and l4q: 0 */
  enum {
    INPUTS_FULL,
    INPUTS_PREFIX,
    INPUTS_CROSS
  } act_quantizer,    /* fp | prefix | cross: activations that codes see */
      act_adapter;    /* and adapters: auto, the same */
  double xgram_alpha; /* with cross: how far the weights go towards those that the prefix's inputs ask for: 0.5 */
  factor_split split; /* cloq | qera | balanced; auto: the initialization's */
} options;

/* Rule and options at one pair of bits and group: an "auto" may depend on them. */
typedef struct setting_values {
  grid_rule rule; /* kind, bits, group, symmetric, beta, anchor … */
  options options;
} setting_values;

typedef struct setting {
  /* method-b<bits>-g<group>, -<key>_<value> for every option that is not its default, then what differs between matrices */
  char name[160];
  const method *method;
  grid_rule rule; /* at the usual bits and group: all of a setting that is the same for every matrix */
  options options;
  int *ranks; /* ascending, distinct; owned. With a rank for every matrix: the largest alone */
  int rank_count;
  int rank_max;
  matrix_numbers bits, group, rank; /* rank.usual 0: rank_max everywhere */
  setting_values *others;           /* at the other pairs of bits and group; owned */
  int other_count;
  bool labelled; /* its name ends with a label of the sweep */
} setting;

/* Where the Grams come from: made here from calibration.tokens, or calibration.merge, or calibration.import (session/gram_sources.h). */
typedef enum gram_origin { GRAMS_CALIBRATED, GRAMS_MERGED, GRAMS_IMPORTED } gram_origin;

typedef struct job {
  char *path; /* the job file */
  char *model, *output;
  struct {
    gram_origin origin;
    char **from; /* run directories to merge, or the one folder to import; owned */
    int count;
    int64_t tokens; /* calibration.count: how many tokens imported Grams were made from; 0: the folder says it */
  } grams;
  window_request calibration, heldout, eval; /* .path owned here; calibration without path: Grams come from elsewhere */
  bool has_heldout, has_eval;                /* eval without a section of its own: the held-out tokens, one window after the other */
  bool target[LIN_COUNT];
  setting *settings; /* every combination of the sweep, distinct; settings that differ in ranks alone are one with all ranks */
  int setting_count;
  struct {
    int team;                  /* ranks per team; 0 = node */
    int teams;                 /* 0 = auto */
    double memory_per_node;    /* GiB; 0 = auto (asked from the system) */
    double checkpoint_minutes; /* calibration saves its state at least this often: 10 */
    char *scratch;             /* "auto", "never", or a folder for what memory does not hold (session/scratch.h); owned */
  } parallel;
  json_t *tree; /* the resolved job, defaults included: what RUN/job.yaml says; owned */
} job;

/* overrides: the texts after --set, in order. output: the run directory in place of the file's, or NULL. pattern: --settings (a shell
 * pattern on names), NULL: all. What `allocate` left in the run directory are settings of the job, too. E_USAGE. */
status job_read(const char *path, const char *const *overrides, int override_count, const char *output, const char *pattern, job *j);
void job_free(job *j);

/* What holds for one matrix of the setting. A setting that does not vary has rule, options and rank_max everywhere. */
bool setting_varies(const setting *s);
grid_rule setting_rule(const setting *s, int64_t layer, linear_id l);
const options *setting_options(const setting *s, int64_t layer, linear_id l); /* borrowed */
int setting_rank(const setting *s, int64_t layer, linear_id l);
void setting_free(setting *s);

scheme setting_scheme(const setting *s); /* of its initialization; loftq with one step is a fit of a residual */
static inline bool setting_joint(const setting *s) { return setting_scheme(s) == SCHEME_JOINT; }
static inline bool setting_refines(const setting *s) { return setting_scheme(s) == SCHEME_REFINE; }
/* Is its adapter a fit of what the codes leave? */
static inline bool setting_fits(const setting *s) { return setting_scheme(s) == SCHEME_FIT || setting_refines(s); }
static inline bool setting_nests(const setting *s) { return !setting_joint(s) && !setting_refines(s); } /* one solution for all ranks? */
/* Does it see the activations of its own quantized prefix? Then its layers come one after the other, and its Grams are its own (run/sequential.c). */
static inline bool setting_follows(const setting *s) { return s->options.act_quantizer != INPUTS_FULL; }
/* The ranks that have codes of their own, ascending, into ranks [rank_count] (may be NULL); returns how many: all of a joint scheme; of one that
 * refines those that options.refine_ranks says (spread: the smallest, and again the smallest of those above twice it, until none is left); one that
 * nests has none, 0. Codes that were refined for a rank serve larger ones nearly as well, with more columns of the adapter; smaller ones not at
 * all: what they leave lies in as many directions as the adapter was to have. */
int setting_variants(const setting *s, int *ranks);
int setting_variant(const setting *s,
                    int rank); /* the one that serves this rank: the largest that is not above it, else the smallest; 0: it nests */
bool setting_has_own_ranks(const setting *s); /* every matrix has a rank of its own */
metric setting_metric(const setting *s);      /* in which its last fit is the best: what certifies its adapter */

/* What can be said only with the model at hand: layers that the sweep names are there, group divides every target's width, ranks fit
 * every target. E_USAGE. */
status job_check_model(const job *j, const arch *a);

/* "key=value" lines of everything that decides the numbers of one layer of a setting, for fingerprints and attributes: of those of its
 * matrices that are targets. A value that differs between them reads "q_proj 2, down_proj 4". */
typedef status (*option_sink)(void *context, const char *key, const char *text);
status setting_describe(const setting *s, const bool target[LIN_COUNT], int64_t layer, option_sink sink, void *context);
/* The same of one matrix. */
status setting_describe_matrix(const setting *s, int64_t layer, linear_id l, option_sink sink, void *context);

int job_target_count(const job *j);
bool job_uses_input(const job *j, input_id i); /* does any target read it? */
bool job_uses_full_grams(const job *j);        /* does any setting look at Grams of the full-precision model? */

#endif
