/* How a run went, from what it wrote beside its results: metrics.jsonl, plan.json, run.log, export/. Local; private to this room.
 *
 * A JSON object, as --json gives it: {program: [versions], hosts: [names], ranks: [a team's], begun, ended, blas, libraries: lines of run.log or null,
 * peak_gflops or null, stages: [{stage, units, seconds, steps: {name: seconds}, gflops, of_peak, private_bytes, shared_bytes, planned_seconds, planned_bytes}],
 * exports: [{folder, snippet}], training: RUN/finetune/results.json or null, unread_lines}. What a run has not left is null or empty; planned_seconds are for as many units as were done. */
#ifndef CLOQWORK_REPORT_STORY_H
#define CLOQWORK_REPORT_STORY_H

#include "base/json.h"
#include "base/status.h"

status report_story(const char *run_folder, json_t **story); /* owned. E_IO, E_MEMORY; E_DATA: a plan.json that is none */

#endif
