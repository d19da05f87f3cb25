#include "job/methods.h"

#include <string.h>

#include "base/settings.h"

const char *const metric_names[METRIC_COUNT] = {
    [METRIC_NONE] = "none",         [METRIC_IDENTITY] = "identity", [METRIC_MEAN_ABS] = "mean_abs",
    [METRIC_DIAGONAL] = "diagonal", [METRIC_GRAM] = "gram",         [METRIC_POOLED] = "pooled",
};

const quantizer_row quantizers[QUANT_COUNT] = {
    [QUANT_RTN] = {"rtn", GRID_UNIFORM, false, 1, 8, 0, "round to nearest on a uniform grid"},
    [QUANT_OPTQ] = {"optq", GRID_UNIFORM, true, 1, 8, NEEDS_GRAM, "OPTQ (GPTQ) on a uniform grid"},
    [QUANT_NF4] = {"nf4", GRID_NF, false, 4, 4, 0, "normal float of 4 bits, as bitsandbytes stores it"},
    [QUANT_NF] = {"nf", GRID_NF, false, 2, 4, 0, "normal float of 2, 3 or 4 bits; bitsandbytes loads those of 4"},
    [QUANT_SLIM] = {"slim", GRID_UNIFORM, true, 2, 7, NEEDS_GRAM,
                    "b - 1, b or b + 1 bits a group of columns by salience, b on average, then OPTQ"},
    [QUANT_BILLM] = {"billm", GRID_BINARY, true, 1, 1, NEEDS_GRAM,
                     "signs with two magnitudes a group, salient columns twice, OPTQ between blocks"},
};

const initialization_row initializations[INIT_COUNT] = {
    [INIT_ZERO] = {"zero", SCHEME_ZERO, METRIC_GRAM, SPLIT_CLOQ, 0, "B = 0, A as LoRA starts it"},
    [INIT_SVD] = {"svd", SCHEME_FIT, METRIC_IDENTITY, SPLIT_BALANCED, 0, "truncated SVD of W - Q"},
    [INIT_LQER] = {"lqer", SCHEME_FIT, METRIC_MEAN_ABS, SPLIT_CLOQ, NEEDS_MEAN_ABS, "SVD of W - Q with columns scaled by mean |x|"},
    [INIT_QERA_APPROX] = {"qera-approx", SCHEME_FIT, METRIC_DIAGONAL, SPLIT_QERA, NEEDS_DIAGONAL,
                          "SVD of W - Q with columns scaled by the root of mean x^2"},
    [INIT_CLOQ] = {"cloq", SCHEME_FIT, METRIC_GRAM, SPLIT_CLOQ, NEEDS_GRAM, "the best rank-r product on the Gram, in closed form"},
    [INIT_QERA_EXACT] = {"qera-exact", SCHEME_FIT, METRIC_GRAM, SPLIT_QERA, NEEDS_GRAM, "the same product as cloq, singular values on B"},
    [INIT_EORA] = {"eora", SCHEME_FIT, METRIC_GRAM, SPLIT_BALANCED, NEEDS_GRAM, "the same product as cloq, singular values on both sides"},
    [INIT_QA_LORA] = {"qa-lora", SCHEME_FIT, METRIC_POOLED, SPLIT_CLOQ, NEEDS_GRAM,
                      "the best product that reads sums of groups of inputs: merges into zero points"},
    [INIT_LOFTQ] = {"loftq", SCHEME_JOINT, METRIC_IDENTITY, SPLIT_BALANCED, 0, "Q = q(W - BA) and BA = SVD of W - Q in turn"},
    [INIT_LASQ_W] = {"lasq-w", SCHEME_JOINT, METRIC_NONE, SPLIT_BALANCED, 0, "BA = largest components of W, Q = q(W - BA)"},
    [INIT_LASQ_Q] = {"lasq-q", SCHEME_JOINT, METRIC_NONE, SPLIT_BALANCED, 0, "BA = largest components of q(W), Q = q(W - BA)"},
    [INIT_LASQ_E] = {"lasq-e", SCHEME_FIT, METRIC_IDENTITY, SPLIT_BALANCED, 0, "BA = largest components of W - q(W): loftq with one step"},
    [INIT_CALDERA] = {"caldera", SCHEME_JOINT, METRIC_GRAM, SPLIT_CLOQ, NEEDS_GRAM,
                      "Q = q(W - BA) and BA = best product on the Gram in turn, best round kept"},
    [INIT_ODLRI] = {"odlri", SCHEME_JOINT, METRIC_GRAM, SPLIT_CLOQ, NEEDS_GRAM,
                    "caldera that starts from a product for the outlier inputs"},
    [INIT_REFINE] = {"refine", SCHEME_REFINE, METRIC_GRAM, SPLIT_CLOQ, NEEDS_GRAM,
                     "codes and grids shaped by the Gram with the adapter eliminated, then descent of both in it, best round kept"},
    [INIT_VARPRO] = {"varpro", SCHEME_REFINE, METRIC_GRAM, SPLIT_CLOQ, NEEDS_GRAM,
                     "descent of the codes in the Gram with the adapter eliminated and BA = best product in turn"},
    [INIT_BIDUP] = {"bidup", SCHEME_REFINE, METRIC_GRAM, SPLIT_CLOQ, NEEDS_GRAM,
                    "descent of the codes towards W - BA on the Gram and BA = best product in turn"},
    [INIT_PROJQ] = {"projq", SCHEME_REFINE, METRIC_GRAM, SPLIT_CLOQ, NEEDS_GRAM,
                    "W quantized on the Gram with the last adapter eliminated, and BA = best product in turn"},
    [INIT_INTRINSIC] = {"intrinsic", SCHEME_REFINE, METRIC_GRAM, SPLIT_CLOQ, NEEDS_GRAM,
                        "W quantized on the Gram with its leading eigenvectors eliminated, then as bidup"},
    [INIT_L4Q] = {"l4q", SCHEME_JOINT, METRIC_GRAM, SPLIT_CLOQ, NEEDS_GRAM,
                  "A, B, scales and zero points descend together, then all is merged into the codes: no adapter is left"},
};

const method methods[] = {
    {"refine", false, QUANT_OPTQ, INIT_REFINE, 1, NULL,
     "ours; deflation: Deflating the Hessian, 2026; shaping: ProjQ, arXiv 2606.00494; descent: cf. SchurQuant, arXiv 2608.15567",
     "searched grids, codes shaped for the adapter that follows and refined with their grids, adapter in closed form: the recommended one"},
    {"cloq", true, QUANT_OPTQ, INIT_CLOQ, 1, NULL, "CLoQ, arXiv 2501.18475; MagR, 2406.00800; OPTQ, 2210.17323",
     "MagR, OPTQ codes, then the best rank-r adapter on the calibration Gram in closed form"},
    {"cloq-nomagr", false, QUANT_OPTQ, INIT_CLOQ, 1, NULL, "CLoQ, arXiv 2501.18475; OPTQ, 2210.17323",
     "cloq without MagR: OPTQ codes of the weights as they are, adapter in closed form"},
    {"cloq-rtn", false, QUANT_RTN, INIT_CLOQ, 1, NULL, "CLoQ, arXiv 2501.18475, its adapter alone",
     "round to nearest, adapter in closed form: what the adapter does without help from the quantizer"},
    {"nf4-cloq", false, QUANT_NF4, INIT_CLOQ, 1, NULL, "NF4: QLoRA, arXiv 2305.14314; adapter: CLoQ, arXiv 2501.18475",
     "NF4 codes of the weights as they are, for bitsandbytes, adapter in closed form; 4 bits, groups of 32 to 4096"},
    {"qlora", false, QUANT_NF4, INIT_ZERO, 1, NULL, "QLoRA, arXiv 2305.14314",
     "NF4 codes (absmax quantized again unless nf_double: off), B = 0: the adapter starts without effect"},
    {"qlora-int", false, QUANT_RTN, INIT_ZERO, 1, NULL, "QLoRA, arXiv 2305.14314, on a uniform grid", "round to nearest, B = 0"},
    {"svd", false, QUANT_RTN, INIT_SVD, 1, NULL, "ZeroQuant-V2, arXiv 2303.08302",
     "round to nearest, truncated SVD of what it leaves: no statistics of inputs at all"},
    {"loftq", false, QUANT_NF, INIT_LOFTQ, 1, NULL, "LoftQ, arXiv 2310.08659",
     "normal float and SVD in turn, loftq_T times (5); 2, 3 or 4 bits, mixed by layers as in the paper"},
    {"loftq-int", false, QUANT_RTN, INIT_LOFTQ, 1, NULL, "LoftQ, arXiv 2310.08659", "the same on a uniform grid"},
    {"lasq-w", false, QUANT_NF, INIT_LASQ_W, 1, NULL, "LasQ, NLPCC 2024, read from its title; as quantized PiSSA, arXiv 2404.02948",
     "the adapter takes the largest singular components of W, the rest is quantized"},
    {"lasq-q", false, QUANT_NF, INIT_LASQ_Q, 1, NULL, "LasQ, NLPCC 2024, read from its abstract",
     "the adapter takes the largest singular components of the quantized W, W less these is quantized again"},
    {"lasq-e", false, QUANT_NF, INIT_LASQ_E, 1, NULL, "LasQ, NLPCC 2024, read as what loftq does once",
     "the adapter takes the largest singular components of the quantization error"},
    {"l4q", false, QUANT_RTN, INIT_L4Q, 1, NULL, "L4Q, arXiv 2402.04902; the layer-local descent is ours",
     "adapter, scales and zero points descend together and merge into codes: Q alone is the model"},
    {"lqer", false, QUANT_RTN, INIT_LQER, 1, NULL, "LQER (L2QER), arXiv 2402.02446", "round to nearest, SVD scaled by mean |x|"},
    {"qera-approx", false, QUANT_RTN, INIT_QERA_APPROX, 1, NULL, "QERA, arXiv 2410.06040",
     "round to nearest, best product on the Gram's diagonal"},
    {"qera-exact", false, QUANT_RTN, INIT_QERA_EXACT, 1, NULL, "QERA, arXiv 2410.06040",
     "round to nearest, best product on the Gram: cloq-rtn's product, split as in its paper"},
    {"eora", false, QUANT_OPTQ, INIT_EORA, 1, NULL, "EoRA, arXiv 2410.21271; OPTQ, 2210.17323",
     "OPTQ codes, cloq-nomagr's product, split as in its paper"},
    {"caldera", false, QUANT_OPTQ, INIT_CALDERA, 1, NULL, "CALDERA, arXiv 2405.18886, its alternation on a uniform grid",
     "OPTQ and the best product on the Gram in turn, joint_rounds times (2), best round kept"},
    {"odlri", false, QUANT_OPTQ, INIT_ODLRI, 1, NULL, "ODLRI, arXiv 2506.02077 (abstract), on a uniform grid",
     "caldera whose first product serves the inputs with the largest activations"},
    {"varpro", false, QUANT_OPTQ, INIT_VARPRO, 1, NULL, "ours: variable projection; start: CLoQ, arXiv 2501.18475, without MagR",
     "OPTQ codes that descend in the Gram with the adapter eliminated, joint_rounds times (2); joint_grid: refit moves the grids, too"},
    {"bidup", false, QUANT_OPTQ, INIT_BIDUP, 1, NULL, "Bid-Up: GPTQ-intrinsic LoRA, arXiv 2606.01412",
     "OPTQ codes that descend towards W - BA, adapter in closed form, in turn, joint_rounds times (2)"},
    {"projq", false, QUANT_OPTQ, INIT_PROJQ, 1, NULL, "ProjQ, arXiv 2606.00494",
     "OPTQ on the Gram with the last adapter eliminated, adapter in closed form, in turn, joint_rounds times (2)"},
    {"gptq-intrinsic", false, QUANT_OPTQ, INIT_INTRINSIC, 1, NULL, "GPTQ-intrinsic LoRA, arXiv 2606.01412 (abstract, third-party code)",
     "OPTQ on the Gram with its leading eigenvectors eliminated, then Bid-Up, joint_rounds times (2)"},
    {"qa-lora", false, QUANT_OPTQ, INIT_QA_LORA, 1, NULL, "QA-LoRA, arXiv 2309.14717; its closed-form start is ours",
     "OPTQ codes, adapter on sums of input groups, constant on each group: it can merge into real zero points"},
    {"slim-llm", false, QUANT_SLIM, INIT_CLOQ, 1, NULL, "SliM-LLM, arXiv 2405.14917; adapter: CLoQ, arXiv 2501.18475",
     "group-wise mixed precision at the same average bits; at rank 0 it is the published method"},
    {"billm", false, QUANT_BILLM, INIT_CLOQ, 1, NULL, "BiLLM, arXiv 2402.04291; adapter: CLoQ, arXiv 2501.18475",
     "one bit with salient residual; at rank 0 it is the published method"},
    {"apiq", false, 0, 0, 1,
     "it trains adapters and clipping by gradients through a block's activations, which are not kept here: take cloq, which "
     "minimises its layer-wise objective without clipping in closed form",
     "ApiQ, arXiv 2402.05147", "needs gradients through blocks of layers"},
    {"rilq", false, 0, 0, 1,
     "it trains adapters on the model's last hidden states and language loss by gradients through the whole model: export a start "
     "from here and train it there",
     "RILQ, arXiv 2412.01129", "needs gradients through the whole model"},
    {"roste", false, 0, 0, 1,
     "it fine-tunes with quantized weights, activations and cache in the loop and rotates inside the model, which needs gradients "
     "and another model graph",
     "RoSTE, arXiv 2502.09003", "needs gradients and a rotated model"},
    {"qwha", false, 0, 0, 1, "its adapter is a sparse matrix times a Walsh-Hadamard transform, which no LoRA file or loader can hold",
     "QWHA, arXiv 2509.17428", "needs another form of adapter than B A"},
};
const int method_count = (int)(sizeof methods / sizeof *methods);

const method *method_find(const char *name) {
  for (int i = 0; i < method_count; i++)
    if (strcmp(methods[i].name, name) == 0) return &methods[i];
  return NULL;
}

const method *method_nearest(const char *name) {
  const char *names[sizeof methods / sizeof *methods];
  for (int i = 0; i < method_count; i++) names[i] = methods[i].name;
  const char *near = settings_nearest(name, names, method_count);
  return near ? method_find(near) : NULL;
}

/* Static text of why parts do not go together; NULL: they do. */
static const char *conflict(bool magr, quantizer q, initialization init) {
  bool joint = initializations[init].scheme == SCHEME_JOINT;
  if (magr && joint) return "MagR changes W before it is quantized once, this initialization quantizes W - BA again and again";
  if (magr && q == QUANT_BILLM) return "MagR shrinks the maxima of a grid with many steps, billm has none";
  if (init == INIT_L4Q && q != QUANT_RTN) return "l4q descends on codes of its own: expected the quantizer rtn";
  if (initializations[init].scheme == SCHEME_REFINE && q != QUANT_OPTQ)
    return "it refines codes of OPTQ on a uniform grid: expected the quantizer optq";
  if (magr && initializations[init].scheme == SCHEME_REFINE)
    return "MagR changes the weights that it would refine the codes of: expected it without MagR";
  if (joint && (q == QUANT_SLIM || q == QUANT_BILLM))
    return "it chooses groups or columns by salience once: expected an initialization that fits its residual";
  return NULL;
}

const method *method_combine(bool magr, quantizer q, initialization init, const char **why) {
  static method made[2][QUANT_COUNT][INIT_COUNT];
  static char names[2][QUANT_COUNT][INIT_COUNT][32];
  *why = conflict(magr, q, init);
  if (*why) return NULL;
  for (int i = 0; i < method_count; i++) {
    const method *m = &methods[i];
    if (!m->refused && m->quantizer == q && m->init == init && m->magr == magr) return m;
  }
  char *name = names[magr][q][init];
  snprintf(name, sizeof names[magr][q][init], "%s%s-%s", magr ? "magr-" : "", quantizers[q].name, initializations[init].name);
  made[magr][q][init] = (method){name, magr, q, init, 1, NULL, "a combination of the job's", "a combination of the job's"};
  return &made[magr][q][init];
}

unsigned method_needs(const method *m) { return (m->magr ? NEEDS_GRAM : 0) | method_quantizer(m)->needs | method_init(m)->needs; }

static const char *needs_text(unsigned needs) {
  return needs & NEEDS_GRAM ? "Gram" : needs & NEEDS_DIAGONAL ? "diagonal" : needs & NEEDS_MEAN_ABS ? "mean |x|" : "weights";
}

void methods_print(FILE *out) {
  fprintf(out, "%-12s %-9s %s\n", "method", "needs", "what it does");
  for (int i = 0; i < method_count; i++) {
    const method *m = &methods[i];
    if (!m->refused) fprintf(out, "%-12s %-9s %s\n%23s(%s)\n", m->name, needs_text(method_needs(m)), m->line, "", m->source);
  }
  fprintf(out, "\nNot offered; a job that names one is refused with the reason:\n");
  for (int i = 0; i < method_count; i++)
    if (methods[i].refused)
      fprintf(out, "%-12s %-9s %s\n%23s(%s)\n%23s%s\n", methods[i].name, "-", methods[i].line, "", methods[i].source, "",
              methods[i].refused);
  fprintf(out,
          "\nParts go together freely, as in `method: {quantizer: optq, init: lqer}`, with MagR before them by `magr: true`:\n\n%-12s %-9s "
          "%s\n",
          "quantizer", "bits", "");
  for (int q = 0; q < QUANT_COUNT; q++) {
    const quantizer_row *row = &quantizers[q];
    char bits[16];
    snprintf(bits, sizeof bits, row->bits_least == row->bits_most ? "%d" : "%d to %d", row->bits_least, row->bits_most);
    fprintf(out, "%-12s %-9s %s\n", row->name, bits, row->line);
  }
  fprintf(out, "\n%-12s %-9s %s\n", "init", "ranks", "");
  for (int i = 0; i < INIT_COUNT; i++)
    fprintf(out, "%-12s %-9s %s\n", initializations[i].name,
            initializations[i].scheme == SCHEME_JOINT    ? "one each"
            : initializations[i].scheme == SCHEME_REFINE ? "some own"
                                                         : "nested",
            initializations[i].line);
}
