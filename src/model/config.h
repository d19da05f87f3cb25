/* config.json of a Hugging Face model -> arch. Local. Private to this room.
 *
 * Reads the keys of transformers 4 (rope_theta, rope_scaling) and 5 (rope_parameters). A key that changes the arithmetic and is not
 * implemented is refused by name; the others are left alone, as the libraries do. */
#ifndef CLOQWORK_MODEL_CONFIG_H
#define CLOQWORK_MODEL_CONFIG_H

#include "model/checkpoint.h"

status arch_read(const char *path, arch *a); /* path of config.json; E_DATA, E_IO, E_MEMORY; arch_free also after a failure */
void arch_free(arch *a);
const char *arch_family_name(arch_family f); /* model_type: "llama" … */

#endif
