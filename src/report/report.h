/* The results of a run as a table and a page for people, as JSON and CSV for scripts: every solution file below RUN/solutions. Local.
 *
 * data.h reads the containers, story.h what the run left beside them, checks.h judges; table.c prints the table, files.c JSON and
 * CSV; figures.h draws, html.h writes the page, page.c puts it together.
 *
 * Per setting and matrix type (and over all): geometric mean over layers of loss[r] / reference, at r = 0 (codes alone) and at each
 * rank that the user listed, on the calibration Gram and, where there is one, the held-out Gram; bits per weight; seconds. */
#ifndef CLOQWORK_REPORT_REPORT_H
#define CLOQWORK_REPORT_REPORT_H

#include <stdio.h>

#include "base/status.h"
#include "job/job.h"

/* asked (NULL: none): the job as it is now; smaller ranks that it lists are shown beside those the files were made for. pattern: of the settings to show
 * (a shell pattern; NULL: all).
 * E_DATA: no solutions yet, or a damaged file; E_IO. The table is at most 120 columns wide for up to 11 ranks and
 * 12 settings; of more settings there is one wide table alone. */
status report_table(const char *run_folder, const job *asked, const char *pattern, FILE *out);
status report_json(const char *run_folder, const job *asked, const char *pattern, FILE *out);
status report_csv(const char *run_folder, const job *asked, const char *pattern,
                  FILE *out); /* every matrix and every mean at every rank, a line each */
/* The table, and out_folder/report.html, and out_folder/figures with the data of its pictures. E_IO: it cannot be written; gnuplot failed. */
status report_page(const char *run_folder, const job *asked, const char *pattern, const char *out_folder, FILE *out);

#endif
