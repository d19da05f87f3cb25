/* One invocation of the program: arguments, job, model, tokens, team. Built once by session_open, read by every verb. */
#ifndef CLOQWORK_SESSION_SESSION_H
#define CLOQWORK_SESSION_SESSION_H

#include <mpi.h>
#include <stdbool.h>

#include "base/blas.h"
#include "calibrate/pass.h"
#include "dist/grid.h"
#include "dist/team.h"
#include "job/job.h"
#include "model/checkpoint.h"
#include "model/tokens.h"
#include "session/gram_sources.h"

/* What the command line said. */
typedef struct arguments {
  const char *verb;
  const char *target;     /* job file or run directory; NULL where none was given */
  const char **overrides; /* after --set; owned array of borrowed texts */
  int override_count;
  const char *settings;         /* --settings PATTERN */
  const char **setting_choices; /* --setting [PATTERN=]NAME, in order; owned array of borrowed texts */
  const char **rank_choices;    /* --rank [PATTERN=]R or R,R; likewise */
  int setting_choice_count, rank_choice_count;
  const char *to, *out, *run, *split, *dtype, *adapter_dtype; /* of export and verify; NULL: not given */
  const char *budget, *method, *group, *weights, *name;       /* of allocate; NULL: not given */
  const char *machine;                                        /* --machine of plan: a file of rates; NULL: not given */
  int nodes, ranks_per_node;                                  /* of plan; 0: not given */
  bool calibrate_machine;                                     /* likewise */
  bool merge;                                                 /* export --merge */
  const char **from;                                          /* --from of merge and grams, in order; owned array of borrowed texts */
  int from_count;
  int64_t tokens;                  /* --tokens of grams; 0: not given */
  int64_t first_layer, last_layer; /* --layers A-B; last -1: all */
  double max_hours;                /* 0: no limit */
  bool quiet, json, csv, complete; /* csv: report --csv; complete: status --complete */
} arguments;

/* A lock of the run directory or of one of its settings, until session_close. */
typedef struct held_lock {
  char *path; /* owned */
  int file;   /* for file_unlock */
} held_lock;

typedef struct session {
  MPI_Comm job_comm; /* borrowed from main */
  int rank, size;
  arguments arguments;
  job job;
  checkpoint model;
  windows windows[SET_COUNT];     /* of Grams that come from elsewhere: tokens x 1 and their fingerprint, no ids */
  const windows *sets[SET_COUNT]; /* NULL: absent */
  gram_union unions[SET_COUNT];   /* where Grams come from that are not made here */
  bool wanted[IN_COUNT];          /* inputs that targets read */
  int64_t layer_begin, layer_end; /* chosen by --layers */
  team team;
  grid grid; /* over the team */
  blas_info blas;
  char job_tag[64]; /* SLURM job id, or host and process */
  held_lock *locks; /* rank 0's, owned */
  int lock_count;
  double started;
  const setting *follower; /* of a view (session_split): whose own Grams these are; NULL: those of the full-precision model */
  bool opened;
} session;

/* Collective over comm. Reads and checks the job, the model's headers and, with_tokens, the token files (every rank), makes teams and
 * grid. Without tokens c->sets stays empty. */
status session_open(MPI_Comm comm, const arguments *a, const blas_info *blas, bool with_tokens, session *c);
/* Collective. The token files, for a session opened without them. */
status session_open_tokens(session *c);
/* Collective, for verbs that write. Makes the run directory, takes its lock, removes stale temporaries, opens the log, writes job.yaml.
 * Whoever calibrates, collects or reads what others write takes the whole: RUN/.lock for as long as it works, and no setting may be taken.
 * Whoever only solves takes its settings, RUN/solutions/SETTING/.lock, and RUN/.lock just while it begins: so the elements of a job array
 * work side by side, and what would collide is refused by name. */
status session_begin_run(session *c);
status session_begin_settings(session *c);
void session_close(session *c); /* Collective */

/* The session as those see it that share their Grams: one view of all settings on Grams of the full-precision model (if there are any), then
 * one for each setting that follows its own prefix (setting_follows). Local. A view borrows everything of the session but its list of settings; what is
 * told apart by it is where Grams lie and what identifies them (session/unit.h). */
typedef struct session_views {
  session *list; /* owned */
  int count;
} session_views;
status session_split(const session *c, session_views *v);
void session_views_free(session_views *v); /* accepts an empty one */

/* Layers [begin, end) of a team, contiguous, equal as can be. */
void session_team_layers(const session *c, int team_index, int64_t *begin, int64_t *end);

/* Collective over `comm`: should everybody stop now (a signal came to any rank, or --max-hours is nearly over)? */
bool session_should_stop(const session *c, MPI_Comm comm);
bool session_stop_asked(void); /* Local: did a signal come to this rank? */
void session_catch_signals(void);

#endif
