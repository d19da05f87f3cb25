/* The pictures of a report: their data as CSV, a gnuplot script for each, and what gnuplot made of it. Local; private to this room.
 *
 * FOLDER/NAME.csv and FOLDER/NAME.gp are written for every picture; a script reads its data from the folder it is started in and sets no terminal, so the one
 * script serves the page (SVG) and paper (jobs/figures.sh: PDF). Names of settings reach gnuplot as quoted text alone. At most six curves of a picture have a
 * colour of their own (Okabe and Ito's, which colour-blind readers tell apart), the others are grey. */
#ifndef CLOQWORK_REPORT_FIGURES_H
#define CLOQWORK_REPORT_FIGURES_H

#include "base/json.h"
#include "report/data.h"

enum { FIGURES_MOST = 16 };

typedef struct figure {
  char name[32], title[200], caption[400];
  int width, height;
  char *svg; /* an <svg> element, its ids made unique by the picture's name; NULL: not drawn; owned */
} figure;

typedef struct figures {
  figure list[FIGURES_MOST];
  int count;
  bool drawn;     /* gnuplot is there */
  char note[200]; /* what a reader should know of pictures that are missing, or "" */
} figures;

/* run_folder: where the Grams are; folder: made, and filled. Without gnuplot the data and scripts stand alone. E_IO, E_DATA (a damaged Gram), E_MEMORY. */
status figures_make(const run_report *r, const json_t *story, const char *run_folder, const char *folder, figures *f);
void figures_free(figures *f);

#endif
