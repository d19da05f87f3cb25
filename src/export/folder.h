/* Everything of an export's folders that is not a tensor: config, tokenizer, sidecar, model card. Private to export. Local, on one rank. */
#ifndef CLOQWORK_EXPORT_FOLDER_H
#define CLOQWORK_EXPORT_FOLDER_H

#include "export/assembly.h"

#define SIDECAR "cloqwork.json"

/* SHA-256 over the model's fingerprint and, in the order of the model, every quantized module's name and fingerprint: what an adapter
 * belongs to, whatever the format. module i's name and fingerprint are names[i], fingerprints[i]. */
status base_fingerprint(const char *model_fingerprint, int count, const char *const *names, const char *const *fingerprints,
                        char hex[HASH_HEX]);
status request_base_fingerprint(const export_request *q, char hex[HASH_HEX]);

/* FOLDER/base: config.json, tokenizer and generation files of the checkpoint, index, quantize_config.json (gptq), sidecar, README.md. */
status folder_finish_base(const export_request *q, const assembly *a, const char *fingerprint, const char *folder);
/* FOLDER/adapter: adapter_config.json, sidecar, README.md. */
status folder_finish_adapter(const export_request *q, const assembly *a, const char *fingerprint, const char *folder);

/* Every file of the folder, and the folder itself, to the disk. E_IO. */
status folder_sync(const char *folder);

/* A module's name as a key of PEFT's rank_pattern and alpha_pattern, which are regular expressions: dots escaped. Owned; NULL: no memory. */
char *module_pattern(const char *module);

bool request_has_adapter(const export_request *q);

#endif
