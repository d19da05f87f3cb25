/* Process life: MPI up and down, the arguments, the verb, one line for a failure, one exit code. */
#include <errno.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/settings.h"
#include "dist/agree.h"
#include "run/verbs.h"
#include "store/container.h"

static void print_help(FILE *out) {
  fprintf(out,
          "cloqwork %s: gets a large language model ready for quantized LoRA fine-tuning\n\n"
          "usage: mpirun -n N cloqwork VERB JOB.yaml [--set key=value]... [--layers 0-9] [--settings PATTERN] [--max-hours H] [--quiet] "
          "[--json]\n\n",
          CLOQWORK_VERSION);
  for (int i = 0; i < verb_count; i++) fprintf(out, "  %-10s %s\n", verbs[i].name, verbs[i].line);
  fprintf(out,
          "\ncloqwork VERB --help says more. Exit codes: 0 done; 2 usage or job file; 3 input data; 4 memory or disk would not suffice;\n"
          "5 numerics; 6 input/output; 70 internal; 75 stopped early on request: run again to go on.\n");
}

static const verb *find_verb(const char *name) {
  for (int i = 0; i < verb_count; i++)
    if (strcmp(verbs[i].name, name) == 0) return &verbs[i];
  return NULL;
}

static status unknown_verb(const char *name) {
  const char *names[32];
  int n = 0;
  for (; n < verb_count && n < 32; n++) names[n] = verbs[n].name;
  const char *near = settings_nearest(name, names, n);
  return fail(E_USAGE, "%s: unknown verb%s%s; cloqwork --help lists them", name, near ? ", did you mean " : "", near ? near : "");
}

/* The value of an option that takes one. */
static status option_value(int argc, char **argv, int *at, const char **value) {
  if (*at + 1 >= argc) return fail(E_USAGE, "%s: expected a value after it, found nothing", argv[*at]);
  *value = argv[++*at];
  return OK;
}

static status parse_layers(const char *text, arguments *a) {
  char rest;
  long long first, last;
  int n = sscanf(text, "%lld-%lld%c", &first, &last, &rest);
  if (n == 1 && sscanf(text, "%lld%c", &first, &rest) == 1)
    last = first;
  else if (n != 2)
    first = -1;
  if (first < 0 || last < first) return fail(E_USAGE, "--layers: expected a range such as 0-9, found %s", text);
  a->first_layer = first;
  a->last_layer = last;
  return OK;
}

/* Options that take a value: where it goes; count: it may be given several times. */
typedef struct valued {
  const char *name, **value;
  int *count;
} valued;

static status parse_hours(const char *text, arguments *a) {
  char *end;
  a->max_hours = strtod(text, &end);
  if (*end || !(a->max_hours > 0)) return fail(E_USAGE, "--max-hours: expected hours above 0, found %s", text);
  return OK;
}

static status parse_tokens(const char *text, arguments *a) {
  char *end;
  errno = 0;
  a->tokens = strtoll(text, &end, 10);
  if (errno || *end || a->tokens < 1) return fail(E_USAGE, "--tokens: expected a count of at least 1, found %s", text);
  return OK;
}

static status parse_count(const char *name, const char *text, int *count) {
  char *end;
  long n = strtol(text, &end, 10);
  if (*end || n < 1 || n > 1 << 20) return fail(E_USAGE, "%s: expected a count of at least 1, found %s", name, text);
  *count = (int)n;
  return OK;
}

static status parse(int argc, char **argv, arguments *a, bool *help) {
  status st = OK;
  const char *hours = NULL, *layers = NULL, *tokens = NULL, *nodes = NULL, *ranks = NULL;
  *a = (arguments){.last_layer = -1};
  TRY(NEW(a->overrides, argc, "arguments"));
  TRY(NEW(a->setting_choices, argc, "arguments"));
  TRY(NEW(a->rank_choices, argc, "arguments"));
  TRY(NEW(a->from, argc, "arguments"));
  const valued with_value[] = {{"--set", a->overrides, &a->override_count},
                               {"--setting", a->setting_choices, &a->setting_choice_count},
                               {"--rank", a->rank_choices, &a->rank_choice_count},
                               {"--from", a->from, &a->from_count},
                               {"--tokens", &tokens, NULL},
                               {"--settings", &a->settings, NULL},
                               {"--layers", &layers, NULL},
                               {"--max-hours", &hours, NULL},
                               {"--to", &a->to, NULL},
                               {"--out", &a->out, NULL},
                               {"--run", &a->run, NULL},
                               {"--split", &a->split, NULL},
                               {"--dtype", &a->dtype, NULL},
                               {"--adapter-dtype", &a->adapter_dtype, NULL},
                               {"--budget", &a->budget, NULL},
                               {"--method", &a->method, NULL},
                               {"--group", &a->group, NULL},
                               {"--weights", &a->weights, NULL},
                               {"--name", &a->name, NULL},
                               {"--machine", &a->machine, NULL},
                               {"--nodes", &nodes, NULL},
                               {"--ranks-per-node", &ranks, NULL}};
  const struct {
    const char *name;
    bool *value;
  } plain[] = {{"--help", help},       {"-h", help},
               {"--quiet", &a->quiet}, {"--json", &a->json},
               {"--csv", &a->csv},     {"--complete", &a->complete},
               {"--merge", &a->merge}, {"--calibrate-machine", &a->calibrate_machine}};
  enum { WITH_VALUE = sizeof with_value / sizeof *with_value, PLAIN = sizeof plain / sizeof *plain };
  for (int i = 1; i < argc; i++) {
    const char *text = argv[i], *known[WITH_VALUE + PLAIN + 1] = {"--version"};
    int v = 0, p = 0;
    while (v < WITH_VALUE && strcmp(with_value[v].name, text) != 0) v++;
    while (p < PLAIN && strcmp(plain[p].name, text) != 0) p++;
    if (v < WITH_VALUE) {
      int *count = with_value[v].count;
      TRY(option_value(argc, argv, &i, &with_value[v].value[count ? *count : 0]));
      if (count) ++*count;
    } else if (p < PLAIN) {
      *plain[p].value = true;
    } else if (text[0] == '-' && text[1]) {
      for (v = 0; v < WITH_VALUE; v++) known[1 + v] = with_value[v].name;
      for (p = 0; p < PLAIN; p++) known[1 + WITH_VALUE + p] = plain[p].name;
      const char *near = settings_nearest(text, known, 1 + WITH_VALUE + PLAIN);
      return fail(E_USAGE, "%s: unknown option%s%s", text, near ? ", did you mean " : "", near ? near : "");
    } else if (!a->verb) {
      a->verb = text;
    } else if (!a->target) {
      a->target = text;
    } else {
      return fail(E_USAGE, "%s: expected at most one job file, found another argument", text);
    }
  }
  if (layers) TRY(parse_layers(layers, a));
  if (hours) TRY(parse_hours(hours, a));
  if (tokens) TRY(parse_tokens(tokens, a));
  if (nodes) TRY(parse_count("--nodes", nodes, &a->nodes));
  if (ranks) TRY(parse_count("--ranks-per-node", ranks, &a->ranks_per_node));
done:
  return st;
}

int main(int argc, char **argv) {
  arguments a;
  bool help = false;
  if (argc > 1 && strcmp(argv[1], "--version") == 0) {
    printf("cloqwork %s\n", CLOQWORK_VERSION);
    return 0;
  }
  const char *io = container_choose_io();
  blas_info blas = blas_setup();
  int rank = 0;
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  fault_setup(rank);
  session_catch_signals();
  status st = parse(argc, argv, &a, &help);
  const verb *v = st == OK && a.verb ? find_verb(a.verb) : NULL;
  log_speaker(rank == 0, a.quiet);
  if (st == OK && help) {
    if (rank == 0 && v)
      printf("%s\n", v->help);
    else if (rank == 0)
      print_help(stdout);
  } else {
    if (st == OK && !a.verb) st = fail(E_USAGE, "expected a verb, found none; cloqwork --help lists them");
    if (st == OK && !v) st = unknown_verb(a.verb);
    if ((st = agree(MPI_COMM_WORLD, st)) == OK) st = verb_perform(MPI_COMM_WORLD, v, &a, &blas, io);
  }
  log_progress_end();
  if (st != OK && rank == 0) fprintf(stderr, "cloqwork: %s\n", status_message()[0] ? status_message() : status_sentence(st));
  if (st == OK && fault_count())
    fprintf(stderr, "cloqwork: rank %d: %llu operations that could have failed\n", rank, (unsigned long long)fault_count());
  FREE(a.overrides);
  FREE(a.setting_choices);
  FREE(a.rank_choices);
  FREE(a.from);
  MPI_Finalize();
  return status_exit_code(st);
}
