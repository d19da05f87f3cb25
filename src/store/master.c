/* The master file of a run. */
#include <string.h>
#include <unistd.h>

#include "base/memory.h"
#include "store/layout.h"

/* Below the master's own folder, wherever that is moved: relative, without a step up. */
static bool stays_inside(const char *target) {
  if (*target == 0 || *target == '/') return false;
  for (const char *part = target; part; part = strchr(part, '/')) {
    if (*part == '/') part++;
    if (strncmp(part, "..", 2) == 0 && (part[2] == '/' || part[2] == 0)) return false;
  }
  return true;
}

status container_write_master(const char *path, const char *job_tag, const attributes *a, const master_link *links, int count) {
  status st = OK;
  layout l = {0};
  bool begun = false;
  const group_attributes root = {"", a};
  h5_listen();
  char *temporary = mem_format("%s.tmp.%s", path, job_tag);
  if (!temporary) return E_MEMORY;
  TRY(layout_new(path, "run", NULL, 0, &root, 1, &l));
  for (int i = 0; i < count; i++) {
    if (!stays_inside(links[i].target)) {
      st = fail(E_INTERNAL, "%s: link %s: expected a relative path inside the folder, found %s", path, links[i].name, links[i].target);
      goto done;
    }
    TRY(layout_add_link(&l, path, &links[i]));
  }
  l.links = links;
  l.link_count = count;
  TRY(layout_sign(&l, NULL, 0, NULL));
  begun = true;
  TRY(layout_create(&l, path, temporary));
  TRY(layout_publish(path, temporary, "run"));
done:
  if (st != OK && begun) unlink(temporary);
  layout_free(&l);
  FREE(temporary);
  h5_silence();
  return st;
}
