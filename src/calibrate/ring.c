#include "calibrate/ring.h"

#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "dist/agree.h"

enum { TAG_WORD = 1, TAG_STREAM = 2, SLICE = 1 << 27 /* floats */ };
static const double LINGER = 0.05; /* of a step's time */

static int team_before(const team *t) { return (t->index + t->count - 1) % t->count; }
static int team_after(const team *t) { return (t->index + 1) % t->count; }

static bool takes(const ring *r) { return r->p->t->count > 1 && r->layer > r->first; }
static bool gives(const ring *r) { return r->p->t->count > 1 && r->layer + 1 < r->end; }

static void begin_layer(ring *r) {
  r->promised = r->told = false;
  for (int k = 0; k < SET_COUNT; k++) r->posted[k] = 0;
}

status ring_open(pass *p, int64_t first, int64_t end, ring *r) {
  status st = OK;
  *r = (ring){.p = p, .first = first, .end = end, .layer = first + p->t->index, .telling = MPI_REQUEST_NULL};
  for (int k = 0; k < SET_COUNT && st == OK; k++) {
    const pass_set *s = &p->sets[k];
    if (!s->w) continue;
    r->slices[k] = (int)((segment_floats(p, s) + SLICE - 1) / SLICE);
    st = NEW(r->moving[k], s->mine * r->slices[k], "messages of residual streams");
    for (int i = 0; st == OK && i < s->mine * r->slices[k]; i++) r->moving[k][i] = MPI_REQUEST_NULL;
  }
  begin_layer(r);
  p->ring = r;
  return agree(p->t->comm, st);
}

bool ring_has_layer(const ring *r) { return r->layer < r->end; }

void ring_next(ring *r) {
  r->layer += r->p->t->count;
  begin_layer(r);
}

/* ---- words ---- */

status ring_await(ring *r) {
  const team *t = r->p->t;
  ring_word w = {0};
  if (!takes(r)) return OK;
  if (t->rank == 0) MPI_Recv(&w, (int)sizeof w, MPI_BYTE, t->first[team_before(t)], TAG_WORD, t->job, MPI_STATUS_IGNORE);
  MPI_Bcast(&w, (int)sizeof w, MPI_BYTE, 0, t->comm);
  r->promised = w.code == OK;
  if (!r->promised) status_set_message(w.text);
  return (status)w.code;
}

static void tell(ring *r, status st) {
  const team *t = r->p->t;
  if (!gives(r)) return;
  r->told = true;
  if (t->rank != 0) return;
  MPI_Wait(&r->telling, MPI_STATUS_IGNORE);
  r->word = (ring_word){.code = (int)st};
  if (st != OK) strncpy(r->word.text, status_message(), RING_TEXT - 1);
  MPI_Isend(&r->word, (int)sizeof r->word, MPI_BYTE, t->first[team_after(t)], TAG_WORD, t->job, &r->telling);
}

void ring_promise(ring *r) { tell(r, OK); }

/* ---- streams ---- */

typedef int transfer(void *, int, MPI_Datatype, int, int, MPI_Comm, MPI_Request *);
static int send(void *x, int n, MPI_Datatype type, int rank, int tag, MPI_Comm comm, MPI_Request *to) {
  return MPI_Isend(x, n, type, rank, tag, comm, to);
}

static MPI_Request *messages(const ring *r, const pass_set *s, int index) {
  int64_t k = s - r->p->sets;
  return r->moving[k] + (index / r->p->t->size) * r->slices[k];
}

static void move(const ring *r, const pass_set *s, int index, transfer *how, int other) {
  const team *t = r->p->t;
  size_t floats = segment_floats(r->p, s);
  MPI_Request *m = messages(r, s, index);
  for (size_t at = 0; at < floats; at += SLICE)
    how(segment_stream(r->p, s, index) + at, (int)(floats - at < SLICE ? floats - at : SLICE), MPI_FLOAT,
        t->first[other] + segment_owner(index, t->sizes[other]), TAG_STREAM, t->job, m++);
}

/* Receives of my segments of the chunks before `end`: the place is free once its last send is through, which waits for nobody who waits for us. */
static void post(ring *r, const pass_set *s, int end) {
  const team *t = r->p->t;
  int *turn = &r->posted[s - r->p->sets], index;
  end = end < s->chunks ? end * segments_per_chunk(s->w->length) : s->segments;
  for (; (index = segment_of_turn(*turn, t->rank, t->size)) < end; ++*turn) {
    MPI_Waitall(r->slices[s - r->p->sets], messages(r, s, index), MPI_STATUSES_IGNORE);
    move(r, s, index, MPI_Irecv, team_before(t));
  }
}

void ring_take(ring *r, const pass_step *w) {
  r->taken = clock_now();
  if (!takes(r)) return;
  post(r, w->s, w->first + 2 * r->p->step); /* the next step comes while this one is computed */
  EACH_OF_MINE (w, i) MPI_Waitall(r->slices[w->s - r->p->sets], messages(r, w->s, i), MPI_STATUSES_IGNORE);
  r->taken = clock_now();
}

/* Stays in MPI until the step is sent, but not long: the next team may be at another layer still, and wait for us itself. */
static void linger(ring *r, const pass_step *w) {
  int sent = 0, each;
  double start = clock_now(), until = start + LINGER * (start - r->taken);
  while (!sent && clock_now() < until) {
    sent = 1;
    EACH_OF_MINE (w, i) {
      MPI_Testall(r->slices[w->s - r->p->sets], messages(r, w->s, i), &each, MPI_STATUSES_IGNORE);
      sent &= each;
    }
  }
}

void ring_give(ring *r, const pass_step *w) {
  if (!gives(r)) return;
  EACH_OF_MINE (w, i) move(r, w->s, i, send, team_after(r->p->t));
  linger(r, w);
}

/* ---- the end ---- */

static void take_all(ring *r) {
  pass_step w;
  for (int k = 0; k < SET_COUNT; k++)
    for (step_first(r->p, &r->p->sets[k], &w); w.count; step_next(&w)) ring_take(r, &w);
}

status ring_close(ring *r, status st) {
  bool ended = st != OK && takes(r) && !r->promised; /* by the team before */
  if (st != OK && ring_has_layer(r)) {
    if (r->told) ring_next(r); /* what was promised has gone: it failed afterwards */
    if (ring_has_layer(r)) tell(r, st);
  }
  while (st != OK && !ended && ring_has_layer(r)) {
    if (!r->promised) ended = ring_await(r) != OK;
    if (!ended && takes(r)) take_all(r);
    ring_next(r);
  }
  for (int k = 0; k < SET_COUNT; k++) {
    const pass_set *s = &r->p->sets[k];
    if (r->moving[k]) MPI_Waitall(s->mine * r->slices[k], r->moving[k], MPI_STATUSES_IGNORE);
    FREE(r->moving[k]);
  }
  MPI_Wait(&r->telling, MPI_STATUS_IGNORE);
  r->p->ring = NULL;
  return st;
}
