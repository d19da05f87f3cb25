#include "run/verbs.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "dist/agree.h"
#include "job/methods.h"
#include "report/report.h"
#include "store/container.h"

status verb_run(session *c) {
  status st = OK;
  TRY(verb_plan(c));
  TRY(verb_calibrate(c));
  TRY(verb_solve(c));
  TRY(collect(c));
  st = c->rank == 0 ? report_table(c->job.output, &c->job, NULL, stdout) : OK;
  TRY(agree(c->job_comm, st));
done:
  return st;
}

status verb_collect(session *c) { return collect(c); }

static status report_here(const session *c) {
  const arguments *a = &c->arguments;
  const char *run = c->job.output;
  if (a->json) return report_json(run, &c->job, a->settings, stdout);
  if (a->csv) return report_csv(run, &c->job, a->settings, stdout);
  return report_page(run, &c->job, a->settings, a->out ? a->out : run, stdout);
}

status verb_report(session *c) {
  status st = c->rank == 0 ? report_here(c) : OK;
  return agree(c->job_comm, st);
}

status verb_methods(session *c) {
  if (c->rank == 0) methods_print(stdout);
  return OK;
}

const verb verbs[] = {
    {"plan", verb_plan, NULL, NEEDS_TOKENS, NULL, "what will be computed: units, flops, memory, disk, hours; exit 4 if it cannot fit",
     "usage: cloqwork plan JOB.yaml [--nodes N] [--ranks-per-node R] [--machine FILE] [--max-hours H] [--set key=value]... [--json]\n"
     "       mpirun -n R cloqwork plan JOB.yaml --calibrate-machine\n\n"
     "Checks the job, the headers of the checkpoint and the token files, then prints the units of work, their flops, the peak memory of a "
     "rank and of\n"
     "a node, bytes on disk, the seconds of every step, what holds them up, and an sbatch line with its arithmetic. Exit code 4 when "
     "memory "
     "or disk would\n"
     "not suffice. Of the model config.json alone is needed.\n\n"
     "  --nodes, --ranks-per-node  where it will run (default: the ranks of this call); memory of its nodes: --set "
     "parallel.memory_per_node=GiB\n"
     "  --calibrate-machine        measures the rates of a node's ranks and files, about a minute, into RUN/machine.json; where that lies, "
     "plan uses it\n"
     "  --machine FILE             rates that were measured elsewhere. Without any, seconds are guesses and called so\n"
     "  --max-hours H              of the recommended run (default 12); of the measurement, at most"},
    {"calibrate", verb_calibrate, session_begin_run, NEEDS_TOKENS, NULL,
     "Grams of all layers, and held-out Grams if the job names held-out tokens",
     "usage: mpirun -n N cloqwork calibrate JOB.yaml [--layers 0-9] [--max-hours H]\n\n"
     "Runs the full-precision model over the calibration windows once and stores, for each layer, the Gram X^T X of its four inputs in\n"
     "RUN/grams/layer-NNN.h5 (RUN/heldout for held-out tokens). Layers that are there are kept. Bit-identical for any number of ranks."},
    {"solve", verb_solve, session_begin_settings, NEEDS_TOKENS, NULL, "codes and adapters of every (layer, setting) that is not done yet",
     "usage: mpirun -n N cloqwork solve JOB.yaml [--layers 0-9] [--settings PATTERN] [--max-hours H]\n\n"
     "Quantizes the targets of every layer with every setting of the sweep and computes the adapter at the largest rank, which serves all "
     "smaller\n"
     "ranks (one for each rank where codes depend on it; what settings have in common is made once), into "
     "RUN/solutions/SETTING/layer-NNN.h5. Needs the Grams; never touches tokens or the forward pass.\n"
     "Other jobs may solve other settings of the same run directory at the same time; `collect` then makes the master file."},
    {"collect", verb_collect, session_begin_run, NEEDS_TOKENS, NULL, "the master file RUN/run.h5 over all units that are there",
     "usage: cloqwork collect JOB.yaml|RUN\n\n"
     "Links every finished unit of the job, however many jobs made them, from RUN/run.h5, which says how many there are and should be:\n"
     "`status --complete` asks it. `run` does so at its end."},
    {"run", verb_run, session_begin_run, NEEDS_TOKENS, NULL, "plan, calibrate, solve, collect: the main job; run again to resume",
     "usage: mpirun -n N cloqwork run JOB.yaml [--set key=value]... [--layers 0-9] [--settings PATTERN] [--max-hours H] [--quiet]\n\n"
     "Does plan, calibrate, solve and the master file RUN/run.h5, then prints the table of results. What is done is not done again; "
     "SIGUSR1, SIGTERM\n"
     "or --max-hours stop it at the end of a unit with exit code 75: run the same line again to go on."},
    {"allocate", verb_allocate, session_begin_run, NEEDS_MODEL, NULL,
     "bits and rank of every matrix under a budget of bytes, as a further setting of the job",
     "usage: cloqwork allocate JOB.yaml|RUN --budget BITS_PER_WEIGHT [--method NAME] [--group G] [--settings PATTERN]\n"
     "                         [--weights FILE.yaml] [--name NAME] [--json]\n\n"
     "From the stored loss curves of the job's solved settings of one method, which differ in bits alone, chooses bits and rank for every "
     "matrix\n"
     "so that the sum of relative losses on the calibration tokens is small and codes, scales, zeros and adapters (16 bits a number) "
     "together take\n"
     "no more than the budget. Ranks are the multiples of 8 up to the largest stored one, and the job's. Prints the choice, how far from "
     "the best\n"
     "possible one it can be, and the best setting that is the same for every matrix within the same budget. The choice is kept in\n"
     "RUN/allocations/NAME.yaml (budgetBITS_PER_WEIGHT) and is a setting of the job from then on: solve, eval, export and report know "
     "it.\n\n"
     "  --weights  a file such as {down_proj: 2, q_proj: 0.5}: what the relative losses of a target's matrices count; 1 where it is "
     "silent"},
    {"eval", verb_eval, session_begin_run, NEEDS_MODEL, NULL,
     "perplexity, KL and top-1 agreement to the original model, of every finished setting",
     "usage: mpirun -n N cloqwork eval JOB.yaml|RUN [--settings PATTERN] [--rank 8,16] [--set eval.tokens=FILE.npy] [--max-hours H] "
     "[--json]\n\n"
     "Runs the original model and, of every setting whose layers are all solved, the quantized base alone and with the adapter at each "
     "rank (those\n"
     "of the job, or of --rank) over the tokens of the job's `eval` section (default: the held-out ones): windows without overlap, each of "
     "which\n"
     "predicts its last length - 1 tokens. Prints perplexity, and mean KL(original || variant) and top-1 agreement per token, with "
     "standard errors\n"
     "over windows, paired for the difference to the original. Results stay in RUN/eval/NAME.json: what is there is not computed again. "
     "The same\n"
     "numbers for any number of ranks and teams."},
    {"status", verb_status, NULL, NEEDS_TOKENS, NULL, "what is done, what is missing; --complete exits 0 only if everything is there",
     "usage: cloqwork status JOB.yaml|RUN [--complete] [--json]\n\n"
     "Counts the units whose files are there, from any shell, while the job runs or after it; says what the job is doing, how fast and "
     "until when, or how "
     "it ended.\n"
     "With --complete: exit code 0 only if the "
     "master file says\n"
     "that every unit is there, 75 otherwise."},
    {"verify", verb_verify, NULL, NEEDS_TOKENS, verify_is_export, "re-reads everything, checks checksums and recomputes each certificate",
     "usage: mpirun -n N cloqwork verify JOB.yaml|RUN\n"
     "       mpirun -n N cloqwork verify EXPORT [--run RUN]\n\n"
     "Reads every dataset of the run and compares its SHA-256; recomputes from the stored codes and factors, the model's weights and the "
     "Grams every\n"
     "loss curve, and holds it against the stored curve and the spectrum's tail. Names every dataset that differs; exit code 3 if one "
     "does."},
    {"export", verb_export, NULL, NEEDS_MODEL, NULL, "a setting as folders that PEFT, GPTQ, bitsandbytes and vLLM loaders take",
     "usage: mpirun -n N cloqwork export JOB.yaml|RUN --setting [PATTERN=]NAME --rank [PATTERN=]R --to FORMAT [--out DIR]\n"
     "                                   [--merge] [--split cloq|qera|balanced] [--dtype T] [--adapter-dtype T]\n\n"
     "Writes DIR/base, a Hugging Face folder with quantized linears, and DIR/adapter, a PEFT LoRA adapter with scale exactly 1 (default "
     "DIR:\n"
     "RUN/export/SETTING-rR-FORMAT). The README.md in each says how to load it.\n\n"
     "  --to       gptq (uniform grids of 2, 3, 4, 8 bits), bnb (NF4), compressed-tensors (2, 3, 4, 8 bits, mixed), dense (everything)\n"
     "  --setting  may be left out where the run has one; again with PATTERN= (q_proj, 'model.layers.[0-3].*') for other matrices: the "
     "last\n"
     "             that matches counts, so that bits and ranks can be mixed\n"
     "  --rank     up to the largest of the job; 0: no adapter. Of methods whose codes belong to one rank: one of the job's; 0: the codes\n"
     "             of the largest\n"
     "  --merge    W = Q + BA in one dense model, no adapter\n"
     "  --split    how the product is split: cloq (B orthonormal), qera, balanced (default: the option `split` of the setting, which is "
     "its\n"
     "             method's usual one)\n"
     "  --dtype    of dense weights: float32, float16, bfloat16 (default: the checkpoint's); --adapter-dtype: of the adapter (float32)"},
    {"merge", verb_merge, session_begin_run, NEEDS_TOKENS, NULL,
     "Grams added: of several runs of the same model, made from different tokens",
     "usage: mpirun -n N cloqwork merge JOB.yaml --from RUN --from RUN... [--layers 0-9]\n\n"
     "Makes the Grams of the job's run directory the sums of those in the named run directories: calibrate on more tokens later and keep "
     "what is\n"
     "there. Then `cloqwork solve RUN` (or run, eval …) with the run directory, whose job.yaml says calibration: { merge: [RUN, RUN] }: a "
     "job may say\n"
     "so itself. Refused: another model, inputs that are missing, the same tokens twice. Held-out Grams: those of the job's held-out "
     "tokens "
     "where one\n"
     "of the runs has them; without a heldout section the sum of all runs', where every run has some. Same bits whatever the order."},
    {"grams", verb_grams, NULL, NEEDS_MODEL, NULL, "Grams to and from plain files: .npy or safetensors",
     "usage: mpirun -n N cloqwork grams JOB.yaml|RUN --to npy|safetensors --out DIR [--layers 0-3]\n"
     "       mpirun -n N cloqwork grams JOB.yaml --from DIR [--tokens N] [--layers 0-3]\n\n"
     "Writes the full symmetric matrices H = sum x x^T, float32, as DIR/layer-000.attn_in.npy … or DIR/layer-000.safetensors, the "
     "statistics of |x|,\n"
     "and grams.json with tokens and fingerprints; held-out ones in DIR/heldout. Or takes such a folder, float32 or float64, as the Grams "
     "of the\n"
     "job's run directory; a folder without grams.json needs --tokens. H is the raw sum over all tokens, not a mean. Afterwards `cloqwork "
     "solve RUN`;\n"
     "a job may also say calibration: { import: DIR, count: TOKENS } itself."},
    {"report", verb_report, NULL, NEEDS_TOKENS, NULL, "the table of results, and report.html with figures; --json, --csv for scripts",
     "usage: cloqwork report JOB.yaml|RUN [--settings PATTERN] [--out DIR] [--json | --csv]\n\n"
     "Per setting and matrix type: the relative loss without adapter and at each rank, on calibration and held-out tokens; bits per "
     "weight; seconds;\n"
     "perplexity where it was evaluated. Writes RUN/report.html (or DIR/report.html), a page that needs no network, with figures by "
     "gnuplot "
     "where that is\n"
     "installed, and RUN/figures: their data as CSV and their gnuplot scripts (jobs/figures.sh RUN makes PDF of them). With --json or "
     "--csv: "
     "everything\n"
     "on standard output, and no page; --csv is a line for each matrix and rank, and for the means over layers (without a layer)."},
    {"methods", verb_methods, NULL, NEEDS_NOTHING, NULL, "the methods that a job may name",
     "usage: cloqwork methods\n\nLists the rows of the method table."},
};
const int verb_count = (int)(sizeof verbs / sizeof *verbs);

status verb_perform(MPI_Comm comm, const verb *v, const arguments *a, const blas_info *blas, const char *io) {
  status st = OK;
  session c = {0};
  verb_needs needs = v->alone && agree_any(comm, v->alone(a)) ? NEEDS_NOTHING : v->needs;
  if (needs == NEEDS_NOTHING) {
    c.job_comm = comm;
    c.blas = *blas;
    c.arguments = *a;
    MPI_Comm_rank(comm, &c.rank);
    MPI_Comm_size(comm, &c.size);
    return v->work(&c);
  }
  TRY(session_open(comm, a, blas, needs == NEEDS_TOKENS, &c));
  if (v->begin) {
    TRY(v->begin(&c));
    char mpi[MPI_MAX_LIBRARY_VERSION_STRING];
    int length;
    MPI_Get_library_version(mpi, &length);
    log_info("cloqwork %s %s %s: %d rank%s in %d team%s, grid %d x %d, %d BLAS thread%s a rank", CLOQWORK_VERSION, v->name, a->target,
             c.size, c.size > 1 ? "s" : "", c.team.count, c.team.count > 1 ? "s" : "", c.grid.nprow, c.grid.npcol, blas->threads,
             blas->threads > 1 ? "s" : "");
    log_info("BLAS %s, kernel %s; LAPACK %s", blas->library, blas->kernel, blas->lapack);
    log_info("%.*s; HDF5 %s; %s", (int)strcspn(mpi, ","), mpi, container_hdf5_version(), io);
  }
  st = v->work(&c);
done:
  log_end(st);
  session_close(&c);
  return st;
}
