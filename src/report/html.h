/* report.html: one file that needs no network and no script, prints, and follows the reader's choice of light or dark. Local; private to this room. */
#ifndef CLOQWORK_REPORT_HTML_H
#define CLOQWORK_REPORT_HTML_H

#include <stdio.h>

#include "base/json.h"
#include "report/data.h"
#include "report/figures.h"

/* story, checks: as report_story and report_checks gave them. */
/* E_MEMORY. */
status html_write(FILE *out, const char *run_folder, const run_report *r, const json_t *story, const json_t *checks, const figures *f);

#endif
