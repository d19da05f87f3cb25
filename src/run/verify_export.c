/* cloqwork verify EXPORT: the folder by its own records, then against the run it came from, where that is to be found. */
#include <stdio.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"
#include "dist/agree.h"
#include "run/export_request.h"
#include "run/verbs.h"
#include "session/unit.h"

bool verify_is_export(const arguments *a) { return a->target && export_is_folder(a->target); }

static const char *text_of(const json_t *o, const char *key) {
  const char *text = json_string_value(json_object_get(o, key));
  return text ? text : "";
}

/* "model.layers.3.mlp.down_proj" */
static status parse_module(const char *module, int64_t *layer, linear_id *linear) {
  long long number = -1;
  int used = 0;
  if (sscanf(module, "model.layers.%lld.%n", &number, &used) == 1 && used > 0)
    for (int l = 0; l < LIN_COUNT; l++)
      if (strcmp(module + used, linear_path((linear_id)l)) == 0) {
        *layer = number;
        *linear = (linear_id)l;
        return OK;
      }
  return fail(E_DATA, "cloqwork.json: modules: expected names such as model.layers.3.mlp.down_proj, found %s", module);
}

static status add_modules(const session *run, const json_t *modules, export_request *q) {
  status st = OK;
  const char *module;
  json_t *m;
  TRY(NEW(q->matrices, json_object_size(modules), "matrices of an export"));
  json_object_foreach((json_t *)modules, module, m) {
    int64_t layer = 0, rank = 0;
    linear_id linear = LIN_Q;
    TRY(parse_module(module, &layer, &linear));
    TRY(json_need_int(m, module, "rank", 0, INT32_MAX, &rank));
    TRY(export_request_add(run, layer, linear, text_of(m, "setting"), (int)rank, q));
    if (!file_exists(q->matrices[q->count - 1].file))
      return fail(E_DATA, "%s: expected the solution that the export was made from, found none", q->matrices[q->count - 1].file);
  }
done:
  return st;
}

/* The request that made the folders, from their sidecars. */
static status rebuild(const session *run, const export_found *f, export_request *q) {
  status st = OK;
  const json_t *base = f->base_sidecar, *adapter = f->adapter_sidecar;
  q->format = export_format_find(base ? text_of(base, "format") : "dense");
  q->merge = base && json_is_true(json_object_get(base, "merged"));
  q->has_dtype = base && *text_of(base, "dtype");
  if (q->has_dtype) TRY(export_request_real_type("cloqwork.json: dtype", text_of(base, "dtype"), &q->dtype));
  if (adapter) TRY(export_request_real_type("cloqwork.json: dtype", text_of(adapter, "dtype"), &q->adapter_dtype));
  if (adapter) TRY(split_find("cloqwork.json: split", text_of(adapter, "split"), &q->split));
  TRY(add_modules(run, json_object_get(base ? base : adapter, "modules"), q));
done:
  return st;
}

static status compare_with_run(const session *c, const char *folder, const export_found *f) {
  status st = OK;
  session run = {0};
  arguments a = c->arguments;
  export_request q = {.comm = c->job_comm};
  a.target = folder;
  TRY(session_open(c->job_comm, &a, &c->blas, false, &run));
  q.model = &run.model;
  q.run = run.job.output;
  st = rebuild(&run, f, &q);
  TRY(agree(c->job_comm, st));
  TRY(export_describe(&q));
  TRY(export_compare(&q, f));
done:
  export_request_free(&q);
  session_close(&run);
  return st;
}

status verify_export(session *c) {
  status st = OK;
  export_found f = {0};
  TRY(export_verify(c->job_comm, c->arguments.target, &f));
  const char *run = c->arguments.run ? c->arguments.run : text_of(f.base_sidecar ? f.base_sidecar : f.adapter_sidecar, "run");
  bool here = agree_any(c->job_comm, file_exists_in(run, "job.yaml"));
  if (!here && c->arguments.run) {
    st = fail(E_USAGE, "--run: expected a run directory, found no job.yaml in %s", run);
    goto done;
  }
  if (here) TRY(compare_with_run(c, run, &f));
  if (c->rank == 0) {
    printf("verified %s: %d tensors (%.3f GiB) have their recorded SHA-256\n", c->arguments.target, f.tensors, (double)f.bytes / (1 << 30));
    if (f.base)
      printf("base     %s, %d modules, fingerprint %.16s…\n", text_of(f.base_sidecar, "format"), f.modules,
             text_of(f.base_sidecar, "base_fingerprint"));
    if (f.base && f.adapter) printf("adapter  belongs to this base; every module has scale 1\n");
    if (f.adapter && !f.base)
      printf("adapter  belongs to the base with fingerprint %.16s…\n", text_of(f.adapter_sidecar, "base_fingerprint"));
    if (here)
      printf("run      %s gives the same tensors, bit for bit\n", run);
    else
      printf("run      %s is not here: compared with the folder's own records alone (--run RUN compares with the container)\n", run);
  }
done:
  export_found_free(&f);
  return st;
}
