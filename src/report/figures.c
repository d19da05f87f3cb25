#include "report/figures.h"

#include "base/file.h"
#include "base/memory.h"
#include "report/sheet.h"
#include "report/text.h"

enum { HEATS_MOST = 4 };

/* A picture that this report does not have must not stay from an earlier one. */
static status remove_old(const char *folder) {
  static const char *const names[] = {"frontier-calibration",
                                      "frontier-heldout",
                                      "frontier-perplexity",
                                      "heat-1",
                                      "heat-2",
                                      "heat-3",
                                      "heat-4",
                                      "rank",
                                      "spectrum-gram",
                                      "spectrum-residual",
                                      "time",
                                      "training"},
                           *const endings[] = {"csv", "gp", "svg", "pdf"};
  status st = OK;
  for (size_t k = 0; k < sizeof names / sizeof *names; k++)
    for (size_t e = 0; e < sizeof endings / sizeof *endings; e++) {
      char *path = mem_format("%s/%s.%s", folder, names[k], endings[e]);
      st = path ? file_remove(path) : fail(E_MEMORY, "report: no memory");
      FREE(path);
      if (st != OK) return st;
    }
  return st;
}

status figures_make(const run_report *r, const json_t *story, const char *run_folder, const char *folder, figures *f) {
  status st = OK;
  int chosen[COLOURS], count = report_pick(r, COLOURS, chosen);
  *f = (figures){.drawn = true};
  TRY(file_make_folders(folder));
  TRY(remove_old(folder));
  TRY(figure_frontiers(r, folder, f));
  for (int k = 0; k < count && k < HEATS_MOST; k++) TRY(figure_heat(r, &r->settings[chosen[k]], k, folder, f));
  int64_t layer =
      count && r->settings[chosen[0]].entry_count ? r->settings[chosen[0]].entries[r->settings[chosen[0]].entry_count / 2].layer : 0;
  if (sheet_longest_curve(r, chosen, count) > 1) {
    TRY(figure_ranks(r, chosen, count, folder, f));
    TRY(figure_residual(r, chosen, count, layer, folder, f));
  }
  TRY(figure_gram(r, layer, run_folder, folder, f));
  TRY(figure_time(story, folder, f));
  TRY(figure_training(json_object_get(story, "training"), folder, f));
done:
  if (st != OK) figures_free(f);
  return st;
}

void figures_free(figures *f) {
  for (int i = 0; i < f->count; i++) FREE(f->list[i].svg);
  f->count = 0;
}
