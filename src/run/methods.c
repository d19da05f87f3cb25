#include "run/methods.h"

#include <string.h>

#include "base/settings.h"

const method methods[] = {
    {"cloq", true, QUANT_OPTQ, INIT_CLOSED_FORM, 1, "CLoQ, arXiv 2501.18475; MagR, 2406.00800; OPTQ, 2210.17323",
     "MagR, OPTQ codes, then the best rank-r adapter on the calibration Gram in closed form"},
    {"cloq-nomagr", false, QUANT_OPTQ, INIT_CLOSED_FORM, 1, "CLoQ, arXiv 2501.18475; OPTQ, 2210.17323",
     "cloq without MagR: OPTQ codes of the weights as they are, adapter in closed form"},
    {"cloq-rtn", false, QUANT_RTN, INIT_CLOSED_FORM, 1, "CLoQ, arXiv 2501.18475, its adapter alone",
     "round to nearest, adapter in closed form: what the adapter does without help from the quantizer"},
};
const int method_count = (int)(sizeof methods / sizeof *methods);

const method *method_find(const char *name) {
  for (int i = 0; i < method_count; i++)
    if (strcmp(methods[i].name, name) == 0) return &methods[i];
  return NULL;
}

const char *method_nearest(const char *name) {
  const char *names[sizeof methods / sizeof *methods];
  for (int i = 0; i < method_count; i++) names[i] = methods[i].name;
  return settings_nearest(name, names, method_count);
}

void methods_print(FILE *out) {
  for (int i = 0; i < method_count; i++) fprintf(out, "%-12s  %s\n%14s(%s)\n", methods[i].name, methods[i].line, "", methods[i].source);
}
