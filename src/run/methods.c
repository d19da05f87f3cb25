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
    {"nf4-cloq", false, QUANT_NF4, INIT_CLOSED_FORM, 1, "NF4: QLoRA, arXiv 2305.14314; adapter: CLoQ, arXiv 2501.18475",
     "NF4 codes of the weights as they are, for bitsandbytes, adapter in closed form; 4 bits, groups of 32 to 4096"},
};
const int method_count = (int)(sizeof methods / sizeof *methods);

const char *const quantizer_names[QUANT_COUNT] = {[QUANT_RTN] = "rtn", [QUANT_OPTQ] = "optq", [QUANT_NF4] = "nf4"};
const char *const initialization_names[INIT_COUNT] = {[INIT_CLOSED_FORM] = "cloq"};

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

const method *method_combine(quantizer q, initialization init) {
  for (int i = 0; i < method_count; i++)
    if (methods[i].quantizer == q && methods[i].init == init && !methods[i].magr) return &methods[i];
  return NULL;
}

void methods_print(FILE *out) {
  for (int i = 0; i < method_count; i++) fprintf(out, "%-12s  %s\n%14s(%s)\n", methods[i].name, methods[i].line, "", methods[i].source);
  fprintf(out, "\nA job may also name the two parts, and gets the row in brackets:\n");
  for (int q = 0; q < QUANT_COUNT; q++)
    for (int i = 0; i < INIT_COUNT; i++) {
      const method *m = method_combine(q, i);
      if (m) fprintf(out, "  method: {quantizer: %s, init: %s}  (%s)\n", quantizer_names[q], initialization_names[i], m->name);
    }
}
