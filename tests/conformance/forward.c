/* forward FOLDER TOKENS.npy WINDOWS LENGTH OUT: runs the model over the first windows of the token file and writes float32 to OUT:
 * the hidden states after every layer, (rows, d) each, then the logits (rows, V). forward.py compares them with another program's. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/blas.h"
#include "base/memory.h"
#include "model/block.h"
#include "model/checkpoint.h"
#include "model/head.h"
#include "model/tokens.h"

typedef struct buffers {
  float *weights, *x, *n, *wide, *kv, *norm, *head, *logits;
} buffers;

static status write_floats(FILE *f, const float *x, size_t count) {
  return fwrite(x, sizeof *x, count, f) == count ? OK : fail(E_IO, "output: cannot be written: %m");
}

static void run_block(const arch *a, const layer_weights *w, int64_t layer, block_scratch *s, int64_t count, int64_t length, buffers *b) {
  const block_rows r = block_windows(count, length);
  const block_kv kv = block_kv_place(a, count * length, b->kv);
  block_attn_in(a, w, count * length, b->x, b->n);
  block_keys(a, w, s, &r, b->n, kv);
  block_attention(a, w, layer, s, &r, b->n, kv, b->wide);
  block_attn_out(a, w, count * length, b->wide, b->x, b->n);
  block_mlp(a, w, s, count * length, b->n, b->wide);
  block_mlp_out(a, w, count * length, b->wide, b->x);
}

static status run_layers(const checkpoint *c, int64_t count, int64_t length, buffers *b, block_scratch *s, FILE *out) {
  status st = OK;
  int64_t rows = count * length;
  layer_weights w;
  layer_weights_place(&c->arch, b->weights, &w);
  for (int64_t layer = 0; layer < c->arch.layers; layer++) {
    for (int part = 0; part < 3; part++) TRY(layer_weights_load(c, layer, b->weights, part, 3)); /* as three ranks would */
    run_block(&c->arch, &w, layer, s, count, length, b);
    TRY(write_floats(out, b->x, (size_t)(rows * c->arch.hidden)));
  }
done:
  return st;
}

static status run(const checkpoint *c, const windows *t, FILE *out) {
  status st = OK;
  buffers b = {0};
  block_scratch s = {0};
  const arch *a = &c->arch;
  int64_t rows = t->count * t->length;
  tensor_ref norm = checkpoint_final_norm(c), head = checkpoint_head(c);
  TRY(NEW(b.weights, layer_weights_floats(a), "weights"));
  TRY(NEW(b.x, rows * a->hidden, "x"));
  TRY(NEW(b.n, rows * a->hidden, "n"));
  TRY(NEW(b.wide, rows * block_wide(a), "wide"));
  TRY(NEW(b.kv, block_kv_floats(a, rows), "kv"));
  TRY(NEW(b.norm, a->hidden, "norm"));
  TRY(NEW(b.head, a->vocab * a->hidden, "head"));
  TRY(NEW(b.logits, rows * a->vocab, "logits"));
  TRY(block_scratch_new(a, t->length, rows, &s));
  TRY(embed_tokens(c, rows, t->ids, b.x));
  TRY(run_layers(c, t->count, t->length, &b, &s, out));
  TRY(tensor_rows(&norm, 0, 1, b.norm));
  TRY(tensor_rows(&head, 0, a->vocab, b.head));
  head_norm(a, b.norm, rows, b.x);
  sgemm(false, true, (int)rows, (int)a->vocab, (int)a->hidden, 1, b.x, (int)a->hidden, b.head, (int)a->hidden, 0, b.logits, (int)a->vocab);
  TRY(write_floats(out, b.logits, (size_t)(rows * a->vocab)));
done:
  block_scratch_free(&s);
  float **all[] = {&b.weights, &b.x, &b.n, &b.wide, &b.kv, &b.norm, &b.head, &b.logits};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) FREE(*all[i]);
  return st;
}

int main(int argc, char **argv) {
  status st = OK;
  checkpoint c = {0};
  windows t = {0};
  FILE *out = NULL;
  if (argc != 6) {
    fprintf(stderr, "usage: forward FOLDER TOKENS.npy WINDOWS LENGTH OUT\n");
    return 2;
  }
  blas_setup();
  window_request q = {.path = argv[2], .windows = atoll(argv[3]), .length = atoll(argv[4]), .how = SAMPLE_SEQUENTIAL};
  TRY(checkpoint_open(argv[1], &c));
  TRY(windows_draw(&q, c.arch.vocab, &t));
  out = fopen(argv[5], "wb");
  if (!out) {
    st = fail(E_IO, "%s: cannot be made: %m", argv[5]);
    goto done;
  }
  TRY(run(&c, &t, out));
done:
  if (out && fclose(out) != 0 && st == OK) st = fail(E_IO, "%s: cannot be written: %m", argv[5]);
  if (st != OK) fprintf(stderr, "forward: %s\n", status_message());
  windows_free(&t);
  checkpoint_close(&c);
  return status_exit_code(st);
}
