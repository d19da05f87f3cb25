/* gnuplot as a child process, and its SVG made fit to stand in a page with others. Local; private to this room. */
#ifndef CLOQWORK_REPORT_GNUPLOT_H
#define CLOQWORK_REPORT_GNUPLOT_H

#include <stdbool.h>
#include <stdio.h>

#include "base/status.h"

/* FOLDER/NAME.gp -> FOLDER/NAME.svg and, for a page, *svg, owned. No shell takes part; the user's own start-up file is not read. *found: is there a gnuplot on
 * the path? Without one *svg is NULL. E_IO: it failed. */
status gnuplot_svg(const char *folder, const char *name, const char *title, int width, int height, bool *found, char **svg);

void gnuplot_text(FILE *script, const char *text); /* quoted, so that no character of it means anything to gnuplot */

#endif
