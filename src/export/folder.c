#include "export/folder.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "base/file.h"
#include "base/memory.h"

static const size_t TEXT_MOST = 256 << 20; /* of a tokenizer */

status base_fingerprint(const char *model_fingerprint, int count, const char *const *names, const char *const *fingerprints,
                        char hex[HASH_HEX]) {
  status st = OK;
  hash *h = NULL;
  TRY(hash_new(&h));
  TRY(hash_add_text(h, model_fingerprint));
  for (int i = 0; i < count; i++) {
    TRY(hash_add_text(h, names[i]));
    TRY(hash_add_text(h, fingerprints[i]));
  }
  TRY(hash_end(&h, hex));
done:
  hash_free(&h);
  return st;
}

status request_base_fingerprint(const export_request *q, char hex[HASH_HEX]) {
  status st = OK;
  const char **names = NULL, **fingerprints = NULL;
  TRY(NEW(names, q->count, "modules"));
  TRY(NEW(fingerprints, q->count, "modules"));
  for (int i = 0; i < q->count; i++) {
    names[i] = q->matrices[i].module;
    fingerprints[i] = q->matrices[i].base_fingerprint;
  }
  TRY(base_fingerprint(q->model->fingerprint, q->count, names, fingerprints, hex));
done:
  FREE(names);
  FREE(fingerprints);
  return st;
}

bool request_has_adapter(const export_request *q) {
  for (int i = 0; i < q->count; i++)
    if (q->matrices[i].rank > 0) return !q->merge;
  return false;
}

/* Into the folder that is being made; folder_sync brings it to the disk with the others. */
static status write_bytes(const char *folder, const char *name, const char *data, size_t bytes) {
  char *path = path_join(folder, name);
  if (!path) return fail(E_MEMORY, "%s: no memory for its path", name);
  FILE *f = fault_here() ? (errno = EIO, NULL) : fopen(path, "we");
  bool written = f && fwrite(data, 1, bytes, f) == bytes;
  int reason = errno;
  if (f && fclose(f) != 0 && written) {
    written = false;
    reason = errno;
  }
  errno = reason;
  status st = written ? OK : fail(E_IO, "%s: cannot be written: %m", path);
  FREE(path);
  return st;
}

static status write_text(const char *folder, const char *name, const char *text) { return write_bytes(folder, name, text, strlen(text)); }

status folder_sync(const char *folder) {
  status st = OK;
  DIR *d = opendir(folder);
  if (!d) return fail(E_IO, "%s: cannot be listed: %m", folder);
  for (struct dirent *e = readdir(d); e && st == OK; e = readdir(d)) {
    if (e->d_name[0] == '.') continue;
    char *path = path_join(folder, e->d_name);
    st = path ? file_sync(path) : fail(E_MEMORY, "%s: no memory for its path", e->d_name);
    FREE(path);
  }
  closedir(d);
  return st == OK ? file_sync(folder) : st;
}

/* Consumes o. */
static status write_json(const char *folder, const char *name, json_t *o) {
  char *text = o ? json_dumps(o, JSON_INDENT(2) | JSON_PRESERVE_ORDER) : NULL;
  status st = text ? write_text(folder, name, text) : fail(E_MEMORY, "%s: no memory", name);
  free(text);
  json_decref(o);
  return st;
}

/* ---- files of the checkpoint ---- */

static status copy_files(const export_request *q, const char *folder) {
  static const char *const names[] = {"tokenizer.json",
                                      "tokenizer_config.json",
                                      "tokenizer.model",
                                      "special_tokens_map.json",
                                      "added_tokens.json",
                                      "vocab.json",
                                      "merges.txt",
                                      "vocab.txt",
                                      "chat_template.json",
                                      "chat_template.jinja",
                                      "generation_config.json",
                                      "LICENSE",
                                      "LICENSE.txt",
                                      "LICENSE.md",
                                      "NOTICE",
                                      "USE_POLICY.md"};
  status st = OK;
  for (size_t i = 0; i < sizeof names / sizeof *names && st == OK; i++) {
    char *from = path_join(q->model->folder, names[i]), *text = NULL;
    size_t bytes;
    if (!from) return fail(E_MEMORY, "%s: no memory for its path", names[i]);
    if (file_exists(from)) {
      st = file_read(from, TEXT_MOST, &text, &bytes);
      if (st == OK) st = write_bytes(folder, names[i], text, bytes);
    }
    FREE(text);
    FREE(from);
  }
  return st;
}

/* The text with the value of a top-level text key replaced; the same text where it has none. Owned. */
static char *replace_value(const char *text, const char *key, const char *value) {
  char quoted[64];
  snprintf(quoted, sizeof quoted, "\"%s\"", key);
  const char *at = strstr(text, quoted), *open = at ? strchr(at + strlen(quoted), '"') : NULL, *close = open ? strchr(open + 1, '"') : NULL;
  if (!close) return mem_format("%s", text);
  return mem_format("%.*s%s%s", (int)(open + 1 - text), text, value, close);
}

/* config.json as it is, to the letter, but for the type of dense weights, with the quantization put behind its last key. */
static status write_config(const export_request *q, const char *folder) {
  status st = OK;
  json_t *config = NULL;
  char *path = path_join(q->model->folder, "config.json"), *text = NULL, *typed = NULL, *added = NULL, *whole = NULL;
  size_t bytes;
  if (!path) return fail(E_MEMORY, "config.json: no memory for its path");
  TRY(file_read(path, 1 << 20, &text, &bytes));
  TRY(q->format->config(q, &config));
  if (q->has_dtype) {
    typed = replace_value(text, "torch_dtype", real_name(q->dtype));
    char *both = typed ? replace_value(typed, "dtype", real_name(q->dtype)) : NULL;
    FREE(typed);
    typed = both;
  } else {
    typed = mem_format("%s", text);
  }
  char *end = typed ? strrchr(typed, '}') : NULL;
  if (config && end) {
    while (end > typed && strchr(" \t\r\n", end[-1])) end--;
    added = json_dumps(config, JSON_INDENT(2) | JSON_PRESERVE_ORDER);
    whole = added ? mem_format("%.*s,\n  \"quantization_config\": %s\n}\n", (int)(end - typed), typed, added) : NULL;
    if (whole && strcmp(q->format->name, "gptq") == 0) TRY(write_text(folder, "quantize_config.json", added));
  }
  if (!typed || (config && !whole))
    st = fail(E_MEMORY, "config.json: no memory");
  else
    st = write_text(folder, "config.json", whole ? whole : typed);
done:
  json_drop(&config);
  free(added);
  FREE(whole);
  FREE(typed);
  FREE(text);
  FREE(path);
  return st;
}

/* ---- sidecar ---- */

static json_t *tensor_hashes(const image *m) {
  json_t *o = json_object();
  for (int i = 0; i < m->count; i++) json_object_set_new(o, m->tensors[i].name, json_string(m->tensors[i].sha256));
  return o;
}

static json_t *attributes_json(const attributes *a) {
  json_t *o = json_object();
  for (int i = 0; a && i < a->count; i++) {
    const attribute *x = &a->list[i];
    json_object_set_new(o, x->name,
                        x->kind == ATTR_TEXT  ? json_string(x->text)
                        : x->kind == ATTR_INT ? json_integer(x->integer)
                                              : json_real(x->real));
  }
  return o;
}

static json_t *real_or_null(double x) { return isfinite(x) ? json_real(x) : json_null(); }

static json_t *module_json(const export_matrix *m, bool adapter) {
  const grid_rule *r = &m->shape.rule;
  json_t *o = json_pack("{s:s, s:i}", "setting", m->setting, "rank", m->rank);
  if (adapter) return o;
  json_object_set_new(o, "fingerprint", json_string(m->base_fingerprint));
  json_object_set_new(o, "grid", json_string(grid_name(r->kind, r->bits)));
  json_object_set_new(o, "bits", json_integer(r->bits));
  json_object_set_new(o, "group", json_integer(r->group));
  json_object_set_new(o, "symmetric", json_boolean(r->symmetric));
  json_object_set_new(o, "nested", json_boolean(r->nested));
  json_object_set_new(o, "out", json_integer(m->shape.out));
  json_object_set_new(o, "in", json_integer(m->shape.in));
  json_object_set_new(o, "relative_loss", json_pack("[o, o]", real_or_null(m->loss[0]), real_or_null(m->loss[1])));
  json_object_set_new(o, "relative_loss_heldout", json_pack("[o, o]", real_or_null(m->loss_heldout[0]), real_or_null(m->loss_heldout[1])));
  return o;
}

static status write_sidecar(const export_request *q, const image *m, bool adapter, const char *fingerprint, const char *folder) {
  json_t *modules = json_object();
  for (int i = 0; i < q->count; i++)
    if (!adapter || q->matrices[i].rank) json_object_set_new(modules, q->matrices[i].module, module_json(&q->matrices[i], adapter));
  json_t *o = json_pack("{s:s, s:s, s:s, s:b, s:s, s:s, s:s, s:s, s:s, s:s, s:o, s:o, s:o}", "cloqwork", CLOQWORK_VERSION, "kind",
                        adapter ? "adapter" : "base", "format", adapter ? "peft" : q->format->name, "merged", q->merge, "run", q->run,
                        "setting", q->setting, "rank", q->rank, "model_fingerprint", q->model->fingerprint, "base_fingerprint", fingerprint,
                        "split", adapter ? split_name(q->split) : "", "made_from", attributes_json(q->how), "modules", modules,
                        "tensors", tensor_hashes(m));
  json_t *config = NULL;
  status st = adapter ? OK : q->format->config(q, &config);
  if (st != OK) {
    json_decref(o);
    return st;
  }
  if (o && !adapter) json_object_set_new(o, "quantization_config", config ? config : json_null());
  const char *type = adapter ? real_name(q->adapter_dtype) : q->has_dtype ? real_name(q->dtype) : "";
  if (o) json_object_set_new(o, "dtype", json_string(type));
  return write_json(folder, SIDECAR, o);
}

/* ---- model card ---- */

typedef struct text {
  char *all; /* owned */
  status st;
} text;

static void say(text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void say(text *t, const char *format, ...) {
  char *piece = NULL, *longer = NULL;
  va_list arguments;
  if (t->st != OK) return;
  va_start(arguments, format);
  int n = vasprintf(&piece, format, arguments);
  va_end(arguments);
  if (n >= 0) longer = mem_format("%s%s", t->all ? t->all : "", piece);
  if (n >= 0) free(piece);
  if (!longer) {
    t->st = fail(E_MEMORY, "README.md: no memory");
    return;
  }
  FREE(t->all);
  t->all = longer;
}

static const char *last_part(const char *path) {
  const char *slash = strrchr(path, '/');
  return slash && slash[1] ? slash + 1 : path;
}

/* Geometric mean of a column over the matrices of a type; NaN where one is unknown. */
static double mean_loss(const export_request *q, int linear, bool heldout, int column) {
  double sum = 0;
  int n = 0;
  for (int i = 0; i < q->count; i++) {
    const export_matrix *m = &q->matrices[i];
    if (linear < LIN_COUNT && (int)m->linear != linear) continue;
    sum += log(fmax(heldout ? m->loss_heldout[column] : m->loss[column], 1e-300));
    n++;
    if (isnan(heldout ? m->loss_heldout[column] : m->loss[column])) return NAN;
  }
  return n ? exp(sum / n) : NAN;
}

/* Codes that were refined for an adapter (shape.extends). */
static void say_refined(const export_request *q, bool adapter, text *t) {
  int refined = 0, other = 0;
  for (int i = 0; i < q->count; i++) {
    const export_matrix *m = &q->matrices[i];
    refined += m->shape.extends;
    other += m->shape.extends && m->rank && m->rank != m->shape.variant;
  }
  if (refined && adapter)
    say(t, "The codes of that base were made for this adapter: without it the base is useless.\n");
  else if (refined)
    say(t, "**Not to be used alone:** its codes were made for %s; without it this model is useless.\n",
        request_has_adapter(q) ? "the adapter beside it" : "an adapter that was not exported");
  if (other)
    say(t, "The codes of %d linear%s were made for an adapter of another rank: solved for this rank they may lose less.\n", other,
        other == 1 ? "" : "s");
  if (refined) say(t, "\n");
}

static void say_losses(const export_request *q, text *t) {
  bool heldout = isfinite(mean_loss(q, LIN_COUNT, true, 0));
  say(t, "Relative loss tr((W-Q-BA) H (W-Q-BA)') / tr(W H W') of each linear on its calibration inputs%s, geometric mean over layers:\n\n",
      heldout ? ", and on held-out ones" : "");
  say(t, "| linear | base | with adapter |%s\n|---|---|---|%s\n", heldout ? " base, held out | with adapter, held out |" : "",
      heldout ? "---|---|" : "");
  for (int l = 0; l <= LIN_COUNT; l++) {
    if (!isfinite(mean_loss(q, l, false, 0))) continue;
    say(t, "| %s | %.3g | %.3g |", l < LIN_COUNT ? linear_short((linear_id)l) : "all", mean_loss(q, l, false, 0),
        mean_loss(q, l, false, 1));
    if (heldout) say(t, " %.3g | %.3g |", mean_loss(q, l, true, 0), mean_loss(q, l, true, 1));
    say(t, "\n");
  }
  say(t, "\n");
}

/* The format's lines with BASE and BITS filled in. */
static void say_loading(const export_request *q, const char *base, text *t) {
  for (const char *at = q->format->loading(q); *at;) {
    if (strncmp(at, "BASE", 4) == 0) {
      say(t, "%s", base);
      at += 4;
    } else if (strncmp(at, "BITS", 4) == 0) {
      say(t, "%d", q->matrices[0].shape.rule.bits);
      at += 4;
    } else {
      say(t, "%c", *at++);
    }
  }
  say(t, "\n");
}

static void say_snippet(const export_request *q, bool adapter, text *t) {
  const char *base = adapter ? "../base" : ".";
  say(t, "## Load it\n\n    pip install %s\n\n", q->format->packages);
  say(t, "```python\n# in this folder\nimport torch\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n");
  if (adapter) say(t, "from peft import PeftModel\n");
  say_loading(q, base, t);
  if (adapter)
    say(t, "model = PeftModel.from_pretrained(base, \".\", is_trainable=True)      # not get_peft_model: that makes a new adapter\n");
  say(t, "tokenizer = AutoTokenizer.from_pretrained(\"%s\")\n", base);
  say(t, "ids = torch.tensor([tokenizer.encode(\"It is a truth universally acknowledged\")])\n");
  say(t, "print(tokenizer.decode(%s.generate(input_ids=ids, max_new_tokens=10, do_sample=False)[0]))\n", adapter ? "model" : "base");
  if (adapter)
    say(t, "\noptimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4)   # training goes on from here\n"
           "for step in range(5):\n    loss = model(input_ids=ids, labels=ids).loss\n    loss.backward()\n    optimizer.step()\n"
           "    optimizer.zero_grad()\n    print(step, loss.item())\n");
  say(t, "```\n\n");
}

static void say_origin(const export_request *q, const char *fingerprint, text *t) {
  say(t, "Made by cloqwork %s from `%s` (fingerprint `%.16s…`), run `%s`, setting `%s`, adapter rank %s.\n", CLOQWORK_VERSION,
      last_part(q->model->folder), q->model->fingerprint, last_part(q->run), q->setting, q->rank);
  say(t, "Base fingerprint `%s`.\n\n", fingerprint);
  for (int i = 0; q->how && i < q->how->count; i++) {
    const attribute *x = &q->how->list[i];
    say(t, "%s%s %s", i == 0 ? "Settings: " : i % 6 ? ", " : ",\n", x->name, x->text ? x->text : "");
  }
  say(t, ".\n\n");
}

static status write_card(const export_request *q, bool adapter, const char *fingerprint, const char *folder) {
  text t = {.st = OK};
  const char *model = last_part(q->model->folder);
  say(&t, "---\nlibrary_name: %s\ntags: [cloqwork, %s]\n---\n\n", adapter ? "peft" : "transformers", adapter ? "lora" : q->format->name);
  if (adapter)
    say(&t,
        "# A LoRA adapter for the quantized %s\n\nBelongs to the base beside it and to no other: W ~ Q + B A with scale exactly 1 "
        "(`lora_alpha = r`).\n\n",
        model);
  else
    say(&t, "# %s, %s%s\n\n", model, q->merge ? "quantized, with its adapter merged" : "quantized",
        q->merge ? "" : ": the base of an adapter");
  say_origin(q, fingerprint, &t);
  if (!q->merge) say_refined(q, adapter, &t);
  say_losses(q, &t);
  say_snippet(q, adapter, &t);
  if (adapter)
    say(&t,
        "## Notes\n\n"
        "- Load with `PeftModel.from_pretrained(base, path, is_trainable=True)`; without `is_trainable` everything is frozen. Trainers "
        "must be\n"
        "  told to resume (`adapter_name_or_path`, `lora_model_dir`), or they make an adapter of their own.\n"
        "- Another `lora_alpha` moves the starting point: divide B by the new alpha / r first.\n"
        "- The split of the product is `%s`, the factors are %s. `cloqwork verify` on the folder above proves that base and adapter "
        "belong\n"
        "  together.\n",
        split_name(q->split), format_type_name(q->adapter_dtype));
  else if (q->format->notes)
    say(&t, "## Notes\n\n%s\n", q->format->notes);
  if (t.st == OK) t.st = write_text(folder, "README.md", t.all);
  FREE(t.all);
  return t.st;
}

/* ---- adapter_config.json ---- */

char *module_pattern(const char *module) {
  char *out = NULL, *at;
  if (NEW(out, 2 * strlen(module) + 1, "a pattern") != OK) return NULL;
  for (at = out; *module; module++) {
    if (*module == '.') *at++ = '\\';
    *at++ = *module;
  }
  return out;
}

static int largest_rank(const export_request *q) {
  int most = 0;
  for (int i = 0; i < q->count; i++)
    if (q->matrices[i].rank > most) most = q->matrices[i].rank;
  return most;
}

/* Does every layer of the model have an adapter on this linear? Then its short name says it. */
static bool everywhere(const export_request *q, linear_id l) {
  int64_t n = 0;
  for (int i = 0; i < q->count; i++) n += q->matrices[i].linear == l && q->matrices[i].rank > 0;
  return n == q->model->arch.layers;
}

static json_t *target_modules(const export_request *q) {
  json_t *list = json_array();
  for (int l = 0; l < LIN_COUNT; l++)
    if (everywhere(q, (linear_id)l)) json_array_append_new(list, json_string(linear_short((linear_id)l)));
  for (int i = 0; i < q->count; i++)
    if (q->matrices[i].rank && !everywhere(q, q->matrices[i].linear)) json_array_append_new(list, json_string(q->matrices[i].module));
  return list;
}

static status write_adapter_config(const export_request *q, const char *folder) {
  json_t *patterns = json_object();
  int r = largest_rank(q);
  for (int i = 0; i < q->count; i++) {
    if (q->matrices[i].rank == r || q->matrices[i].rank == 0) continue;
    char *key = module_pattern(q->matrices[i].module);
    if (!key) return fail(E_MEMORY, "adapter_config.json: no memory");
    json_object_set_new(patterns, key, json_integer(q->matrices[i].rank));
    FREE(key);
  }
  json_t *o = json_pack("{s:s, s:s, s:s, s:n, s:i, s:i, s:o, s:O, s:b, s:b, s:f, s:o, s:s, s:b, s:b, s:n, s:n, s:n, s:b}", "peft_type",
                        "LORA", "task_type", "CAUSAL_LM", "base_model_name_or_path", "../base", "revision", "r", r, "lora_alpha", r,
                        "rank_pattern", patterns, "alpha_pattern", patterns, "use_rslora", 0, "use_dora", 0, "lora_dropout", 0.0,
                        "target_modules", target_modules(q), "bias", "none", "fan_in_fan_out", 0, "init_lora_weights", 1, "modules_to_save",
                        "layers_to_transform", "layers_pattern", "inference_mode", 1);
  return write_json(folder, "adapter_config.json", o);
}

/* ---- */

status folder_finish_base(const export_request *q, const assembly *a, const char *fingerprint, const char *folder) {
  status st = OK;
  json_t *index = NULL;
  TRY(image_index(&a->base, &index));
  if (index) TRY(write_json(folder, "model.safetensors.index.json", index));
  TRY(write_config(q, folder));
  TRY(copy_files(q, folder));
  TRY(write_sidecar(q, &a->base, false, fingerprint, folder));
  TRY(write_card(q, false, fingerprint, folder));
done:
  return st;
}

status folder_finish_adapter(const export_request *q, const assembly *a, const char *fingerprint, const char *folder) {
  status st = OK;
  TRY(write_adapter_config(q, folder));
  TRY(write_sidecar(q, &a->adapter, true, fingerprint, folder));
  TRY(write_card(q, true, fingerprint, folder));
done:
  return st;
}
