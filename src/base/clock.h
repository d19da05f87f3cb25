/* Time. Local. */
#ifndef CLOQWORK_BASE_CLOCK_H
#define CLOQWORK_BASE_CLOCK_H

double clock_now(void);                             /* seconds, monotonic */
void clock_stamp(char text[32]);                    /* 2026-01-31T12:00:00Z */
void clock_duration(double seconds, char text[32]); /* "1 h 02 min", "3.4 s" */

#endif
