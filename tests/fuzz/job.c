/* Input: a job file. What is read must come back from what is written to RUN/job.yaml. */
#include "fuzz.h"

#include "base/settings.h"
#include "job/job.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  job j;
  status st = job_read(fuzz_file(data, size), NULL, 0, NULL, NULL, &j);
  if (st == OK) {
    char *text = NULL;
    json_t *again = NULL;
    HOLDS(settings_write(j.tree, &text) == OK);
    HOLDS(settings_parse("again", text, &again) == OK && json_equal(again, j.tree));
    json_drop(&again);
    FREE(text);
    job_free(&j);
  }
  fuzz_end(st);
  return 0;
}
