/* How a pass walks through the chunks of a set, a step at a time. Private to calibrate.
 *
 * A step is `count` chunks from `first` on, side by side: each rank takes its own of their segments, and what they leave lies in the
 * panels, where every rank of the team finds it after a barrier. */
#ifndef CLOQWORK_CALIBRATE_STEPS_H
#define CLOQWORK_CALIBRATE_STEPS_H

#include "calibrate/pass.h"

enum { STEP_MOST = 1024 };

typedef struct pass_step {
  pass *p;
  pass_set *s;
  int first, count;    /* chunks */
  int begin, end;      /* their segments */
  int rows[STEP_MOST]; /* of its chunks */
} pass_step;

/* Local. for (step_first(p, s, &w); w.count; step_next(&w)) */
void step_first(pass *p, pass_set *s, pass_step *w);
void step_next(pass_step *w);
int64_t step_tokens(const pass_step *w);

/* Local. My segments of the step; steps start at whole turns. */
#define EACH_OF_MINE(w, g) \
  for (int turn_ = (w)->begin / (w)->p->t->size, g; (g = segment_of_turn(turn_, (w)->p->t->rank, (w)->p->t->size)) < (w)->end; turn_++)

size_t segment_floats(const pass *p, const pass_set *s);                          /* of a stream: the most of one */
float *segment_stream(const pass *p, const pass_set *s, int index);               /* of a segment that is mine */
float *step_slot(const pass_step *w, int panel, const segment *g, int64_t width); /* where its inputs of that width lie in a panel */
block_kv step_kv(const pass_step *w, const segment *g); /* where keys and values of its windows lie, for the whole team */

/* Collective: all meet; then the inputs in a panel are added to a Gram (NULL or empty: to none). */
void step_add(pass_step *w, gram *g, int panel);
int64_t step_stride(const pass_step *w, int panel); /* floats from slot to slot */
int step_product(const pass_step *w); /* chunks that make one product: like the windows of a chunk it depends on the window length alone */

#endif
