/* Numbers and names of a report as text, the same in the terminal's table and on the page. Local; private to this room. */
#ifndef CLOQWORK_REPORT_TEXT_H
#define CLOQWORK_REPORT_TEXT_H

#include <stdio.h>

#include "report/data.h"

enum { CELL = 16 };
void three_digits(double x, char text[CELL]); /* 12.3, 0.0123, 1.23e-5; "-" for what is not there */
void bits_text(double bits, char text[CELL]);
void rank_head(int rank, char text[CELL]); /* "r=8"; "base" for 0 */
const char *matrix_name(int k);            /* a linear_id, or MATRIX_ALL */

/* "perplexity", "KL to original", "top-1 agrees %" */
enum { EVAL_PERPLEXITY, EVAL_KL, EVAL_TOP1, EVAL_ROWS };
extern const char *const eval_names[EVAL_ROWS];
void eval_cell(const eval_point *p, int which, char text[CELL]); /* p NULL: "-" */

extern const char *const loss_titles[GRAM_KINDS];
bool has_values(const setting_report *s, int gram);               /* Is there any loss on this Gram? */
status all_points(const run_report *r, int **points, int *count); /* The union of the settings' points, ascending, owned. */

/* The settings that pictures show: of each number of bits the best in turn, by the loss at the largest rank, held-out where all have one; at most
 * `most`. Returns how many. */
int report_pick(const run_report *r, int most, int *chosen);
int report_gram(const run_report *r); /* ON_HELDOUT where every setting has such losses */

status table_write(FILE *out, const char *run_folder, const run_report *r); /* report_table's, of what was read already. E_IO, E_MEMORY */

#endif
