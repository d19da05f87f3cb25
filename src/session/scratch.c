#include "session/scratch.h"

#include <string.h>

#include "base/memory.h"
#include "calibrate/prefix.h"

uint64_t node_memory(const session *c) {
  double given = c->job.parallel.memory_per_node;
  return given > 0 ? (uint64_t)(given * (1 << 30)) : mem_machine_total();
}

const char *scratch_at(const session *c, int of_team, int ranks, uint64_t memory) {
  const char *asked = c->job.parallel.scratch;
  if (strcmp(asked, "never") == 0) return NULL;
  if (strcmp(asked, "auto") != 0) return asked;
  const arch *a = &c->model.arch;
  uint64_t limit = memory / 10 * 9; /* programs and libraries need some */
  pass_bytes b = c->follower ? prefix_memory(a, c->sets, c->wanted, of_team, c->follower->options.act_quantizer == INPUTS_CROSS)
                             : pass_memory(a, c->sets, c->wanted, of_team);
  uint64_t teams = (uint64_t)((ranks + of_team - 1) / of_team), need = teams * b.shared + (uint64_t)ranks * b.private_most;
  return limit && need > limit ? c->job.output : NULL;
}

const char *scratch_folder(const session *c) { return scratch_at(c, c->team.size, c->team.node_ranks, node_memory(c)); }
