/* The ways a run can fail, and the text of the first failure.
 *
 * A function that can fail returns a status. The message is written where the facts are, by fail(); the first
 * failure of a process wins and later ones are dropped until status_clear(). main prints it once:
 *     cloqwork: where: what, expected …, found …
 * Messages therefore read "where: what, expected X, found Y" and end without a full stop. Local: nothing here communicates. */
#ifndef CLOQWORK_BASE_STATUS_H
#define CLOQWORK_BASE_STATUS_H

/* name, exit code, sentence */
#define STATUS_LIST(X)                               \
  X(OK, 0, "done")                                   \
  X(E_USAGE, 2, "usage or job file")                 \
  X(E_DATA, 3, "input data")                         \
  X(E_MEMORY, 4, "memory or disk would not suffice") \
  X(E_NUMERICS, 5, "numerics")                       \
  X(E_IO, 6, "input/output")                         \
  X(E_INTERNAL, 70, "internal")                      \
  X(E_STOPPED, 75, "stopped early on request: run again to go on")

typedef enum status {
#define X(name, code, text) name,
  STATUS_LIST(X)
#undef X
} status;

/* Local. Records the message unless one is already kept; returns code. */
#define fail(code, ...) status_fail(__FILE__, __LINE__, (code), __VA_ARGS__)
status status_fail(const char *file, int line, status code, const char *format, ...) __attribute__((format(printf, 4, 5)));

/* Local. Go to `done` with st set unless the call succeeded. One label, one variable, everywhere. */
#define TRY(call)                       \
  do {                                  \
    if ((st = (call)) != OK) goto done; \
  } while (0)

int status_exit_code(status st);
const char *status_sentence(status st);       /* borrowed, static */
const char *status_message(void);             /* borrowed; "" when nothing failed; ends with [file:line] for E_NUMERICS, E_INTERNAL */
void status_set_message(const char *message); /* replaces the kept text (agree: another rank's) */
void status_clear(void);

#endif
