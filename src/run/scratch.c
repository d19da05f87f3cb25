#include "run/scratch.h"

#include <string.h>

#include "base/memory.h"
#include "calibrate/prefix.h"

uint64_t node_memory(const session *c) {
  double given = c->job.parallel.memory_per_node;
  return given > 0 ? (uint64_t)(given * (1 << 30)) : mem_machine_total();
}

const char *scratch_folder(const session *c) {
  const char *asked = c->job.parallel.scratch;
  if (strcmp(asked, "never") == 0) return NULL;
  if (strcmp(asked, "auto") != 0) return asked;
  const arch *a = &c->model.arch;
  uint64_t limit = node_memory(c) / 10 * 9; /* programs and libraries need some */
  pass_bytes b = c->follower ? prefix_memory(a, c->sets, c->wanted, c->team.size, c->follower->options.act_quantizer == INPUTS_CROSS)
                             : pass_memory(a, c->sets, c->wanted, c->team.size);
  return limit && b.shared + b.private_most * (uint64_t)c->team.size > limit ? c->job.output : NULL;
}
