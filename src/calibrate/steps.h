/* How a pass walks through the chunks of a set, a step at a time. Private to calibrate.
 *
 * A step is `count` chunks from `first` on, side by side: each rank takes its own of them, and what they leave lies in the panels, where
 * every rank of the team finds it after a barrier. */
#ifndef CLOQWORK_CALIBRATE_STEPS_H
#define CLOQWORK_CALIBRATE_STEPS_H

#include "calibrate/pass.h"

enum { STEP_MOST = 1024 };

typedef struct pass_step {
  pass *p;
  pass_set *s;
  int first, count;
  int rows[STEP_MOST]; /* of its chunks */
} pass_step;

/* Local. for (step_first(p, s, &w); w.count; step_next(&w)) */
void step_first(pass *p, pass_set *s, pass_step *w);
void step_next(pass_step *w);
int64_t step_tokens(const pass_step *w);

/* Local. My chunks of the step; steps start at multiples of the ranks. */
#define EACH_OF_MINE(w, c) for (int c = (w)->first + (w)->p->t->rank; c < (w)->first + (w)->count; c += (w)->p->t->size)
static inline int step_rows(const pass_step *w, int chunk) { return w->rows[chunk - w->first]; }

size_t chunk_floats(const pass *p, const pass_set *s);            /* of a stream */
float *chunk_stream(const pass *p, const pass_set *s, int chunk); /* of a chunk that is mine */
float *step_slot(const pass_step *w, int panel, int chunk);       /* where a chunk's inputs lie in a panel */

/* Collective: the inputs in a panel are added to a Gram, after a barrier. */
void step_add(pass_step *w, gram *g, int panel);
int64_t step_stride(const pass_step *w, int panel); /* floats from slot to slot */
int step_product(const pass_step *w); /* chunks that make one product: like the windows of a chunk it depends on the window length alone */

#endif
