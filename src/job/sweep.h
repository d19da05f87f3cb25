/* The job file's `sweep` and `options`: every combination becomes a setting. Local; private to job.c.
 *
 * A map of the sweep is a product of lists: method, bits, group, options. Ranks make no setting of their own: they are truncations of one
 * solution; settings that come out with the same name are one, with all ranks. bits, group and rank may differ between matrices
 * (job/matrix_numbers.h). A map may have options of its own, which go before the job's, and a label: the tag in its settings' names for
 * what differs between matrices. An entry of a list of maps may be a text: the path of a YAML file that holds one such map. */
#ifndef CLOQWORK_JOB_SWEEP_H
#define CLOQWORK_JOB_SWEEP_H

#include "job/job.h"
#include "job/section.h"

/* Fills j->settings from the keys sweep and options of root, then from the maps of the files in RUN/allocations, in the order of names, which
 * are not recorded: they stay where they are. Targets and output must be known. E_USAGE. */
status sweep_read(section *root, job *j);

#endif
