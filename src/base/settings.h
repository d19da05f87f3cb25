/* A YAML file as a tree of jansson values, overrides from the command line, and words that are nearly right. Local. */
#ifndef CLOQWORK_BASE_SETTINGS_H
#define CLOQWORK_BASE_SETTINGS_H

#include "base/json.h"
#include "base/status.h"

/* The file as a tree: mappings, lists, and scalars typed as YAML 1.2's core schema does (true, 12, 1e-3, text). Refused: duplicate
 * keys, anchors, aliases and tags (a job file needs none, and aliases can grow without bound), nesting over 32, a second document,
 * numbers that are not finite or do not fit 64 bits, files over 1 MiB. An empty file is null.
 * E_USAGE: "file: line 3, column 5: what, expected …, found …"; a file that is missing is E_USAGE too. The library's own
 * diagnostics never reach the terminal. tree is owned (json_drop). */
status settings_read(const char *path, json_t **tree);
status settings_parse(const char *where, const char *text, json_t **tree);

/* "a.b=value" or "a.b[0].c=value" put into the tree (a mapping); the value is YAML. Missing mappings on the way are made, an index
 * may be the list's length to append. E_USAGE. */
status settings_set(json_t *tree, const char *assignment);

/* The tree as YAML text that settings_parse reads back to an equal tree; owned. */
status settings_write(const json_t *tree, char **text);

/* The text with the fewest digits that reads back to the same number: "0.001", "1e-5", "64". Only characters that file names may have. */
enum { SETTINGS_REAL = 32 };
void settings_real(double value, char text[SETTINGS_REAL]);

/* What a message says was found: "nothing", "12", "the text fista", "a list", "a mapping". */
enum { SETTINGS_FOUND = 96 };
void settings_found(const json_t *value, char text[SETTINGS_FOUND]);

/* The word of the list nearest to `word` (Damerau-Levenshtein: insertion, deletion, change, swap of neighbours), NULL when nothing
 * is near: more than a third of the word would have to change. Borrowed from the list. */
const char *settings_nearest(const char *word, const char *const *list, int count);

#endif
