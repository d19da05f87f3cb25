/* One solved linear: its codes and their grid, its adapter, its loss curves; and how a solution file holds them. Local.
 *
 * The layer solver makes it, `store` writes it, export, eval and verify read it: what a solution is stands here alone.
 * The model is Q + lora_B lora_A with Q = solution_values: scale exactly 1. Rank r is the first r rows of lora_A and columns of lora_B. */
#ifndef CLOQWORK_SOLUTION_SOLUTION_H
#define CLOQWORK_SOLUTION_SOLUTION_H

#include "base/half.h"
#include "base/hash.h"
#include "model/checkpoint.h"
#include "quant/grid.h"
#include "store/container.h"

/* Numbers that are attributes in the file. */
typedef struct solution_facts {
  double reference, reference_heldout;   /* tr(W H W^T); NaN without held-out Grams */
  double trace, trace_heldout;           /* tr(E H E^T) */
  double damping_used, ridge_used;       /* absolute, on the diagonal: of the factor, of a descent's metric (0: there was none) */
  double adapter_size;                   /* ||BA||_F / ||W||_F at the largest rank; NaN: unknown */
  double codes_seconds, adapter_seconds; /* work of one rank: of codes with MagR and factor, of the adapter; shared or not, as if alone */
  int64_t numerical_rank, tokens, tiny_scales;
  int round; /* of a method that goes to and fro: the one that was kept, from 1; else 0 */
  char base_fingerprint[HASH_HEX], gram_fingerprint[HASH_HEX];
} solution_facts;

typedef struct solution {
  linear_id linear;
  grid_rule rule;     /* of a file that was read: kind, bits, group, nested, symmetric */
  real_type loaded;   /* normal float: what a loader rounds Q to, the type of the original weight */
  int64_t out, in;    /* of the whole matrix */
  int64_t begin, end; /* the rows of the output side that are held; codes, grid and lora_b hold these alone */
  int64_t groups, words;
  int rank;              /* rows of lora_a: the largest rank, or the one asked for */
  int variant;           /* codes made for this rank, and so in a group of its own, rank-VARIANT; 0: ranks nest */
  bool extends;          /* of a variant: larger ranks that have none of their own are its codes with more columns of the adapter */
  bool own_rank;         /* a setting that gives every matrix a rank of its own: a larger one that is asked for means this one */
  uint32_t *codes;       /* (end - begin, words) */
  uint16_t *scales;      /* (end - begin, groups) half; this and zeros: uniform grids alone */
  uint8_t *zeros;        /* (end - begin, groups) */
  uint16_t *real_zeros;  /* (end - begin, groups) half: instead of zeros with rule.real_zero */
  uint8_t *widths;       /* [groups] with rule.mixed, which points here */
  uint16_t *magnitudes;  /* (end - begin, groups, 4) half: this and the next: binary alone (quant/billm.h) */
  uint8_t *salient;      /* [in] */
  float *absmax;         /* (end - begin, groups) normal float: as a loader has it, after double quantization */
  uint8_t *absmax_codes; /* (end - begin, groups); this and the next: nested normal floats alone */
  float *nested_absmax;  /* [nf_nests(out groups)], always of the whole matrix */
  float *nested_offset;  /* [1] */
  float *lora_a;         /* (rank, in) */
  float *lora_b;         /* (end - begin, rank) */
  double *loss;          /* [rank + 1] */
  double *loss_heldout;  /* [rank + 1] */
  double *values;        /* [rank + 1] leading eigenvalues, last the sum of all others */
  double *rounds;        /* [round_count] losses of every round of a method that goes to and fro */
  int round_count;
  solution_facts *facts;
  void *memory; /* what solution_load allocated; NULL where somebody else owns the arrays */
} solution;

/* A whole matrix, no arrays yet; loaded is REAL_F32. */
solution solution_of(int64_t out, int64_t in, const grid_rule *rule, int rank);
solution solution_shape(const arch *a, linear_id l, const grid_rule *rule, int rank);
real_type solution_loaded(dtype stored); /* what a loader rounds the values of such a weight to */

enum { SOLUTION_BASE = 1, SOLUTION_ADAPTER = 2, SOLUTION_CURVES = 4, SOLUTION_ALL = 7 };

/* Places the arrays of the parts in memory at `at` (NULL: only measures; the others become NULL); returns the bytes. */
size_t solution_place(solution *s, unsigned parts, char *at);

/* ||lora_b lora_a||_F of the whole matrix at the rank that is held. */
double solution_adapter_norm(const solution *s);

/* What the whole matrix takes as exported, in bits: codes, grid (fp16 scales, zeros of as many bits as codes or in fp16; normal floats:
 * absmax), and the adapter at `rank` in fp16; 0: without one. From the shape alone. */
double solution_size(const solution *s, int rank);

/* q (end - begin, in): dequantized rows [begin, end) of the matrix, which must be held. */
void solution_values(const solution *s, int64_t begin, int64_t end, float *q);

/* The same plus lora_B lora_A at `rank`, at most the one that is held; 0: Q alone. In float: 2 rank flops a weight. */
void solution_merged(const solution *s, int rank, int64_t begin, int64_t end, float *w);

/* The same into the rows [begin, end) of a whole matrix (out, in), by slabs counted from its first row: ranks that take such slabs make the same
 * bits as one that makes it all. */
enum { SOLUTION_SLAB = 64 };
void solution_merge_into(const solution *s, int rank, int64_t begin, int64_t end, float *whole);

/* e (end - begin, in) = x - Q, x (out, in) the whole matrix. */
void solution_residual(const solution *s, const float *x, int64_t begin, int64_t end, float *e);

/* Parts of a whole matrix of the same shape and rule. to may have a smaller rank: its factors and curves are the first of from's. Rounds belong
 * to the codes. Of the facts: what belongs to the parts. */
void solution_copy(const solution *from, unsigned parts, solution *to);

/* The uniform grid of the rows from `row` on. */
code_grid solution_code_grid(const solution *s, int64_t row);

/* SHA-256 of codes and grid of the whole matrix: the base that an adapter belongs to. */
status solution_fingerprint(const solution *s, char hex[HASH_HEX]);

/* Whether absmax is what its double quantization decodes to (always, without). s holds the whole matrix. E_DATA, E_MEMORY. */
status solution_check_nested(const solution *s, const char *where);

/* ---- as a group of a solution file, named linear_path(l) ---- */

enum { SOLUTION_DATASETS = 18, SOLUTION_PATH = 96 };

/* The variant that serves a rank, of those that the linear's own group lists ("4,16", its attribute `ranks`): the smallest that is not below it, for
 * 0 the largest; 0: there is none. */
int solution_variant(const char *ranks, int rank);

/* The group that holds it: "self_attn.q_proj", or "self_attn.q_proj/rank-16" of a variant. */
void solution_group(const solution *s, char path[SOLUTION_PATH]);

/* Attributes that say how to read the grid: grid, symmetric, zero or values. */
status solution_grid_attributes(const solution *s, attributes *group);

/* The datasets of a whole solution for container_write: fills sets and their paths, returns how many. */
int solution_datasets(const solution *s, bool heldout, char paths[SOLUTION_DATASETS][SOLUTION_PATH], dataset sets[SOLUTION_DATASETS]);

/* What the file says of a linear, without arrays: shape, grid, largest rank. where names it in messages ("run/….h5: self_attn.q_proj").
 * rank: the one that is wanted, where ranks have variants (0: the largest); s->rank is the variant's, which may be larger where smaller ranks are
 * truncations. E_DATA: absent, a shape that is not the model's, a grid that this version does not know; E_USAGE: no variant of that rank. group (may be NULL): receives the attributes. */
status solution_describe(container *file, const char *where, const arch *a, linear_id l, int rank, attributes *group, solution *s);

void solution_read_facts(const attributes *group, solution_facts *f); /* from those that solution_describe gave */

/* The parts of a described solution for rows [begin, end) of the output side (end -1: all), the adapter at `rank` (0: the largest), curves
 * up to it; owned: solution_free. Facts are left as they are. On failure s is empty. E_DATA, E_IO, E_MEMORY. */
status solution_arrays(container *file, const char *where, int64_t begin, int64_t end, int rank, unsigned parts, solution *s);

/* solution_describe, and the parts for rows [begin, end) of the output side (end -1: all), the adapter at `rank` (0: the largest);
 * owned: solution_free. facts holds what the curves belong to. E_DATA, also for a rank beyond the stored one; E_USAGE, E_IO, E_MEMORY. */
status solution_load(container *file, const char *where, const arch *a, linear_id l, int64_t begin, int64_t end, int rank, unsigned parts,
                     solution *s);
/* The same of a whole variant (0: the one solution of all ranks), the adapter at its largest rank. */
status solution_load_variant(container *file, const char *where, const arch *a, linear_id l, int variant, unsigned parts, solution *s);
void solution_free(solution *s); /* accepts an empty one */

#endif
