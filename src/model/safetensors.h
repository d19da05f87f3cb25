/* One safetensors file, mapped and checked by every rule of the format before any tensor is believed. Local.
 *
 * Files are taken as hostile: every length is checked in unsigned 64-bit arithmetic before it is used. The tensors must tile the data
 * part exactly, so holes, overlaps, trailing bytes and cut files are all one error: "expected to begin at …". */
#ifndef CLOQWORK_MODEL_SAFETENSORS_H
#define CLOQWORK_MODEL_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "base/file.h"
#include "base/status.h"

typedef enum dtype { DT_F32, DT_F16, DT_BF16, DT_OTHER } dtype;
const char *dtype_name(dtype t);
int st_type_order(
    const char *type_text); /* place of "BF16" … among the format's types, the narrowest first: how writers sort; -1: no type */
unsigned st_type_bits(const char *type_text); /* 0: no type */

typedef struct st_tensor {
  char *name; /* owned by the file */
  dtype type;
  char type_text[16];
  int rank; /* number of dimensions, at most 8 */
  int64_t shape[8];
  uint64_t begin, end; /* byte offsets in the data part */
} st_tensor;

typedef struct st_file {
  char *path;
  file_map map;
  uint64_t data_offset; /* 8 + N */
  st_tensor *tensors;   /* sorted by name */
  size_t count;
} st_file;

status st_open(const char *path,
               st_file *f); /* E_DATA for every violated rule, naming file and tensor; E_IO, E_MEMORY. f is closed on failure */
void st_close(st_file *f);
const st_tensor *st_find(const st_file *f, const char *name);       /* NULL when absent */
const unsigned char *st_data(const st_file *f, const st_tensor *t); /* borrowed; any alignment */
void st_shape_text(const st_tensor *t, char text[192]);             /* "(4096, 11008)" */

#endif
