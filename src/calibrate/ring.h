/* Teams side by side. Layers go round: of layers first, first + 1, … the i-th belongs to team i mod count, and streams flow from each team
 * to the next, step after step, while the sender goes on computing.
 *
 * So a team holds the weights and sums of one layer at a time whatever the model's depth, and all teams are at work, but for the first
 * `count - 1` steps, as long as a layer has at least as many steps as there are teams. (Whole ranges of layers would send the streams
 * count - 1 times in place of once a layer, and hold that many layers in each team; with fewer steps than teams they idle as well.)
 *
 * Who waits for whom. Before a layer's inputs come, the team before says in one word whether they will: OK is a promise of all of them,
 * anything else ends the round, with its message, for the next team and through it for all. A team that failed or stops goes on taking
 * what was promised to it, so that nobody's sends stay open. Either team deals the segments to its ranks; a place is filled again when its
 * last send is through.
 *
 * Many transports move a large message only while both ends are in MPI (Open MPI's shared memory without CMA, TCP). The team after comes for a
 * step about when the team before ends it: so the sender stays for a moment, a twentieth of the step at most. Without that, two teams of one
 * rank took 36 s for six layers of SmolLM2 where they take 27 to 29 (16 x 2048 tokens, no CMA). */
#ifndef CLOQWORK_CALIBRATE_RING_H
#define CLOQWORK_CALIBRATE_RING_H

#include "calibrate/steps.h"

enum { RING_TEXT = 2048 };

typedef struct ring_word {
  int code; /* a status */
  char text[RING_TEXT];
} ring_word;

typedef struct ring {
  pass *p;                        /* borrowed */
  int64_t first, end, layer;      /* layers of the round; mine now */
  bool promised, told;            /* the inputs of my layer by the team before; those of the next one by me */
  int slices[SET_COUNT];          /* messages of a segment, each under 1 GiB */
  int posted[SET_COUNT];          /* my next turn whose receive is still to be posted */
  MPI_Request *moving[SET_COUNT]; /* [mine][slices]: a segment on its way in, or out; owned */
  ring_word word;                 /* the last one told */
  MPI_Request telling;
  double taken; /* when the inputs of the step at work were there */
} ring;

/* Collective over the team. E_MEMORY. p->ring is set: pass_layer takes and passes on. */
status ring_open(pass *p, int64_t first, int64_t end, ring *r);
bool ring_has_layer(const ring *r); /* Local: is there a layer left for this team? It is r->layer */
void ring_next(ring *r);            /* Local */

/* Collective over the team. The word of the team before (OK for the first layer); and ours to the next one. */
status ring_await(ring *r);
void ring_promise(ring *r);

/* Local, of every rank, for each step in order: my segments are there; they may go. */
void ring_take(ring *r, const pass_step *w);
void ring_give(ring *r, const pass_step *w);

/* Collective over the team, on every way out. Tells `st` where it is no success, takes what was promised, waits for what is still going. */
status ring_close(ring *r, status st);

#endif
