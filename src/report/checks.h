/* What a reader of a report should know before trusting its numbers: certificates that do not hold and warnings, each with its matrix. Local; private to this
 * room. */
#ifndef CLOQWORK_REPORT_CHECKS_H
#define CLOQWORK_REPORT_CHECKS_H

#include "base/json.h"
#include "report/data.h"

/* A list of {setting, matrix ("model.layers.3.mlp.down_proj"), kind, text}, gravest kinds first: certificate, heldout_worse, overfit, singular, scales, layers,
 * tokens; setting and matrix are null where it is about all. Owned. */
status report_checks(const run_report *r, json_t **list);

/* The worst certificate of a setting: which entry (-1: none has one), and how many have one. */
int report_worst_certificate(const setting_report *s, int *certified);
void entry_name(const matrix_entry *m, char text[64]); /* "model.layers.3.mlp.down_proj" */

#endif
