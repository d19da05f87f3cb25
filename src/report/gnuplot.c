#include "report/gnuplot.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/file.h"
#include "base/memory.h"

extern char **environ;

void gnuplot_text(FILE *script, const char *text) {
  fputc('\'', script);
  for (; *text; text++) {
    if (*text == '\'') fputc('\'', script);
    fputc((unsigned char)*text < ' ' ? '?' : *text, script);
  }
  fputc('\'', script);
}

/* The environment with a locale whose letters are those of the scripts: in a batch job's plain one gnuplot warns of each script. */
static status environment_in_utf8(char ***copy) {
  static char utf8[] = "LC_ALL=C.UTF-8";
  size_t count = 0, kept = 0;
  while (environ[count]) count++;
  status st = NEW(*copy, count + 2, "an environment");
  for (size_t i = 0; i < count && st == OK; i++)
    if (strncmp(environ[i], utf8, strlen("LC_ALL=")) != 0) (*copy)[kept++] = environ[i];
  if (st == OK) (*copy)[kept] = utf8;
  return st;
}

static status run_gnuplot(const char *folder, const char *name, int width, int height, bool *found) {
  posix_spawn_file_actions_t actions;
  pid_t child;
  char **environment = NULL;
  int ended = 0;
  char orders[256], script[64], *const words[] = {"gnuplot", "-d", "-e", orders, script, NULL};
  snprintf(script, sizeof script, "%s.gp", name);
  snprintf(orders, sizeof orders, "set terminal svg size %d,%d dynamic font 'sans,13'; set output '%s.svg'", width, height, name);
  if (environment_in_utf8(&environment) != OK) return E_MEMORY;
  if (posix_spawn_file_actions_init(&actions) != 0) {
    FREE(environment);
    return fail(E_MEMORY, "gnuplot: no memory to start it");
  }
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
  posix_spawn_file_actions_addchdir_np(&actions, folder);
  int rc = posix_spawnp(&child, words[0], &actions, NULL, words, environment);
  posix_spawn_file_actions_destroy(&actions);
  FREE(environment);
  *found = rc != ENOENT;
  if (rc == ENOENT) return OK;
  if (rc != 0) return fail(E_IO, "gnuplot: cannot be started: %s", strerror(rc));
  while (waitpid(child, &ended, 0) < 0)
    if (errno != EINTR) return fail(E_IO, "gnuplot: cannot be waited for: %m");
  if (!WIFEXITED(ended) || WEXITSTATUS(ended) != 0)
    return fail(E_IO, "gnuplot: %s/%s.gp: expected exit code 0, found %s %d", folder, name, WIFEXITED(ended) ? "exit code" : "signal",
                WIFEXITED(ended) ? WEXITSTATUS(ended) : WTERMSIG(ended));
  return OK;
}

/* From "<svg" on; ids and what refers to them begin with the picture's name, since a page holds several; <title> is the picture's. */
static status adopt(const char *text, const char *name, const char *title, char **svg) {
  static const char *const marks[] = {"id=\"", "id='", "href=\"#", "href='#", "url(#", "url('#"};
  enum { MARKS = sizeof marks / sizeof *marks };
  const char *at = strstr(text, "<svg"), *old = at ? strstr(at, "<title>") : NULL, *rest = old ? strstr(old, "</title>") : NULL;
  size_t bytes;
  if (!rest) return fail(E_IO, "gnuplot: %s.svg: expected <svg> with a <title>, found something else", name);
  FILE *out = open_memstream(svg, &bytes);
  if (!out) return fail(E_MEMORY, "report: no memory for a picture");
  fprintf(out, "%.*s<title>", (int)(old - at), at);
  for (; *title; title++) fprintf(out, *title == '<' ? "&lt;" : *title == '&' ? "&amp;" : "%c", *title);
  for (at = rest; *at;) {
    int k = 0;
    while (k < MARKS && strncmp(at, marks[k], strlen(marks[k])) != 0) k++;
    if (k < MARKS) fprintf(out, "%s%s-", marks[k], name);
    if (k < MARKS)
      at += strlen(marks[k]);
    else
      fputc(*at++, out);
  }
  return fclose(out) == 0 ? OK : fail(E_MEMORY, "report: no memory for a picture");
}

status gnuplot_svg(const char *folder, const char *name, const char *title, int width, int height, bool *found, char **svg) {
  status st = OK;
  char *path = mem_format("%s/%s.svg", folder, name), *text = NULL;
  size_t bytes;
  *svg = NULL;
  if (!path) return fail(E_MEMORY, "report: no memory");
  TRY(run_gnuplot(folder, name, width, height, found));
  if (!*found) goto done;
  TRY(file_read(path, 64 << 20, &text, &bytes));
  TRY(adopt(text, name, title, svg));
done:
  FREE(text);
  FREE(path);
  return st;
}
