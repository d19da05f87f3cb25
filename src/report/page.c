/* RUN/report.html and RUN/figures: the results, how the run went and what to know of it, gathered and written. */
#include <stdio.h>
#include <stdlib.h>

#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "report/checks.h"
#include "report/figures.h"
#include "report/html.h"
#include "report/report.h"
#include "report/story.h"
#include "report/text.h"

static status write_page(const char *path, const char *run_folder, const run_report *r, const json_t *story, const json_t *checks,
                         const figures *f) {
  status st = OK;
  char *text = NULL;
  size_t bytes = 0;
  FILE *out = open_memstream(&text, &bytes);
  if (!out) return fail(E_MEMORY, "report: no memory for a page");
  st = html_write(out, run_folder, r, story, checks, f);
  if (fclose(out) != 0 && st == OK) st = fail(E_MEMORY, "report: no memory for a page");
  if (st == OK) st = file_write_atomic(path, text, bytes);
  free(text);
  return st;
}

status report_page(const char *run_folder, const job *asked, const char *pattern, const char *out_folder, FILE *out) {
  status st = OK;
  run_report r = {0};
  figures f = {0};
  json_t *story = NULL, *checks = NULL;
  char *folder = path_join(out_folder, "figures"), *path = path_join(out_folder, "report.html");
  if (!folder || !path) st = fail(E_MEMORY, "report: no memory for a name");
  TRY(st);
  TRY(report_read(run_folder, asked, pattern, &r));
  TRY(table_write(out, run_folder, &r));
  TRY(report_story(run_folder, &story));
  TRY(report_checks(&r, &checks));
  TRY(figures_make(&r, story, run_folder, folder, &f));
  TRY(write_page(path, run_folder, &r, story, checks, &f));
  log_info("report: %s, %d pictures in %s%s", path, f.count, folder,
           f.drawn ? "" : " as data alone: gnuplot is not installed (Debian: gnuplot-nox)");
done:
  figures_free(&f);
  json_decref(checks);
  json_decref(story);
  report_free(&r);
  FREE(path);
  FREE(folder);
  return st;
}
