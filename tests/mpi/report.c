/* The table, the JSON, the CSV and the page of a run made by hand: means, bits per weight, partial settings, held-out Grams that are not there. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "base/memory.h"
#include "check.h"
#include "dist/agree.h"
#include "report/report.h"
#include "store/container.h"

enum { RANK_MAX = 4, OUT = 24, IN = 40, LAYERS = 2 };

static char folder[64] = "/tmp/cloqwork-report-XXXXXX";

/* Loss of rank r over the reference: powers of two, so that means over layers are exact. */
static double relative(int layer, int r) { return ldexp(1, -2 * r - 2 * layer - 1); }

static void write_layer(const team *t, const char *which, int layer, int bits, int group, const char *ranks, bool heldout, double reference,
                        const char *grid, bool nested) {
  static const char *const linears[] = {"self_attn.q_proj", "mlp.down_proj"};
  static float lora[OUT * IN];
  static uint8_t absmax_codes[OUT * IN];
  double loss[RANK_MAX + 1];
  char path[256], names[2][5][64];
  attributes root = {0}, linear = {0};
  dataset sets[10];
  int count = 0;
  for (int r = 0; r <= RANK_MAX; r++) loss[r] = relative(layer, r) * reference;
  CHECK_OK(attr_text(&root, "ranks", ranks));
  CHECK_OK(attr_text(&linear, "method", "cloq"));
  CHECK_OK(attr_int(&linear, "bits", bits));
  CHECK_OK(attr_int(&linear, "group", group));
  CHECK_OK(attr_text(&linear, "grid", grid));
  CHECK_OK(attr_real(&linear, "seconds", 1.25));
  CHECK_OK(attr_real(&linear, "reference", reference));
  if (heldout) CHECK_OK(attr_real(&linear, "reference_heldout", reference / 3));
  group_attributes groups[] = {{"", &root}, {linears[0], &linear}, {linears[1], &linear}};
  for (int l = 0; l < 2; l++) { /* q_proj (24, 40), down_proj (40, 24) */
    const dataset all[] = {{"lora_A", EL_F32, 2, {RANK_MAX, l ? OUT : IN}, lora},
                           {"lora_B", EL_F32, 2, {l ? IN : OUT, RANK_MAX}, lora},
                           {"loss", EL_F64, 1, {RANK_MAX + 1}, loss},
                           {"loss_heldout", EL_F64, 1, {RANK_MAX + 1}, loss},
                           {"absmax_codes", EL_U8, 2, {l ? IN : OUT, (l ? OUT : IN) / 8}, absmax_codes}};
    for (int k = 0; k < 5; k++) {
      if ((k == 3 && !heldout) || (k == 4 && !nested)) continue;
      snprintf(names[l][k], sizeof names[l][k], "%s/%s", linears[l], all[k].path);
      sets[count] = all[k];
      sets[count++].path = names[l][k];
    }
  }
  snprintf(path, sizeof path, "%s/solutions/%s", folder, which);
  CHECK_OK(file_make_folders(path));
  snprintf(path, sizeof path, "%s/solutions/%s/layer-%03d.h5", folder, which, layer);
  CHECK_OK(container_write(t, path, "test", "solution", sets, count, groups, 3));
  attr_free(&root);
  attr_free(&linear);
}

/* Codes of their own at ranks 2 and 4 in one layer: the first serves rank 3, too. Losses of the two are told apart by a factor of 8. */
static void write_refined(const team *t) {
  static float lora[IN * RANK_MAX];
  static const int variant[] = {2, 4}, columns[] = {3, 4};
  double loss[2][RANK_MAX + 1];
  char path[256], groups[2][64], names[2][3][80];
  attributes root = {0}, parent = {0}, of[2] = {{0}};
  dataset sets[6];
  CHECK_OK(attr_text(&root, "ranks", "2,3,4"));
  CHECK_OK(attr_text(&parent, "method", "refine"));
  CHECK_OK(attr_int(&parent, "bits", 2));
  CHECK_OK(attr_int(&parent, "group", 8));
  CHECK_OK(attr_text(&parent, "ranks", "2,4"));
  CHECK_OK(attr_int(&parent, "extends", 1));
  for (int v = 0; v < 2; v++) {
    for (int r = 0; r <= RANK_MAX; r++) loss[v][r] = ldexp(relative(0, r), -3 * v);
    CHECK_OK(attr_int(&of[v], "bits", 2));
    CHECK_OK(attr_int(&of[v], "group", 8));
    CHECK_OK(attr_text(&of[v], "grid", "uniform"));
    CHECK_OK(attr_real(&of[v], "seconds", 1));
    CHECK_OK(attr_real(&of[v], "reference", 1));
    CHECK_OK(attr_real(&of[v], "adapter_size", 0.125 * (v + 1)));
    CHECK_OK(attr_int(&of[v], "tokens", 100));
    snprintf(groups[v], sizeof groups[v], "self_attn.q_proj/rank-%d", variant[v]);
    const dataset all[] = {{"lora_A", EL_F32, 2, {columns[v], IN}, lora},
                           {"lora_B", EL_F32, 2, {OUT, columns[v]}, lora},
                           {"loss", EL_F64, 1, {columns[v] + 1}, loss[v]}};
    for (int k = 0; k < 3; k++) {
      snprintf(names[v][k], sizeof names[v][k], "%s/%s", groups[v], all[k].path);
      sets[3 * v + k] = all[k];
      sets[3 * v + k].path = names[v][k];
    }
  }
  group_attributes list[] = {{"", &root}, {"self_attn.q_proj", &parent}, {groups[0], &of[0]}, {groups[1], &of[1]}};
  snprintf(path, sizeof path, "%s/solutions/refine-b2-g8", folder);
  CHECK_OK(file_make_folders(path));
  snprintf(path, sizeof path, "%s/solutions/refine-b2-g8/layer-000.h5", folder);
  CHECK_OK(container_write(t, path, "test", "solution", sets, 6, list, 4));
  attr_free(&root);
  attr_free(&parent);
  for (int v = 0; v < 2; v++) attr_free(&of[v]);
}

static void write_master(void) {
  attributes a = {0};
  char path[256];
  snprintf(path, sizeof path, "%s/run.h5", folder);
  CHECK_OK(attr_text(&a, "model", "models/hand-made"));
  CHECK_OK(attr_text(&a, "model_fingerprint", "abc"));
  CHECK_OK(attr_int(&a, "layers", LAYERS));
  CHECK_OK(attr_int(&a, "tokens", 4096));
  CHECK_OK(attr_int(&a, "heldout_tokens", 1024));
  CHECK_OK(container_write_master(path, "test", &a, NULL, 0));
  attr_free(&a);
}

static double number(const json_t *of, const char *matrix, const char *list, size_t place) {
  const json_t *v = json_array_get(json_object_get(json_object_get(json_object_get(of, "matrices"), matrix), list), place);
  return json_is_null(v) ? NAN : json_number_value(v);
}

static bool near(double found, double expected) { return fabs(found - expected) <= 1e-10 * fabs(expected); }

static char *printed(status (*print)(const char *, const job *, const char *, FILE *)) {
  char *text = NULL;
  size_t bytes;
  FILE *f = open_memstream(&text, &bytes);
  CHECK_OK(print(folder, NULL, NULL, f));
  fclose(f);
  return text;
}

static void check_json(void) {
  char *text = printed(report_json);
  json_t *tree = json_loads(text, 0, NULL);
  const json_t *settings = json_object_get(tree, "settings");
  CHECK(json_array_size(settings) == 6, "%s", text);
  CHECK(json_integer_value(json_object_get(tree, "tokens")) == 4096 && json_integer_value(json_object_get(tree, "layers")) == LAYERS, "%s",
        text);
  const json_t *b2 = json_array_get(settings, 0), *b3 = json_array_get(settings, 1), *b10 = json_array_get(settings, 2);
  CHECK(strcmp(json_string_value(json_object_get(b2, "name")), "cloq-b2-g0") == 0, "%s", text);
  CHECK(strcmp(json_string_value(json_object_get(b3, "name")), "cloq-b3-g8") == 0, "%s", text);
  CHECK(json_array_size(json_object_get(b3, "ranks")) == 3, "%s", text); /* 0, 2, 4: the union of two layers' lists */
  const int rank[] = {0, 2, 4};
  for (size_t p = 0; p < 3; p++) {
    double mean = sqrt(relative(0, rank[p]) * relative(1, rank[p])), weights = OUT * IN;
    static const char *const types[] = {"q_proj", "down_proj", "all"};
    for (int k = 0; k < 3; k++) {
      CHECK(near(number(b3, types[k], "relative_loss", p), mean), "%s %zu: %s", types[k], p, text);
      CHECK(near(number(b3, types[k], "relative_loss_heldout", p), 3 * mean), "%s %zu: %s", types[k], p, text);
      CHECK(near(number(b3, types[k], "bits_per_weight", p), 3 + 19. / 8 + 16 * rank[p] * (OUT + IN) / weights), "%s %zu: %s", types[k], p,
            text);
    }
  }
  /* per channel: a scale and a zero of 2 bits per row */
  CHECK(near(number(b2, "q_proj", "bits_per_weight", 0), 2 + 18. / IN) &&
            near(number(b2, "down_proj", "bits_per_weight", 0), 2 + 18. / OUT),
        "%s", text);
  CHECK(near(number(b2, "all", "bits_per_weight", 0), 2 + 9. / IN + 9. / OUT), "%s", text);
  /* NF4: absmax in fp32; doubly quantized in 8 bits, with an fp32 per 256 of them and one offset */
  CHECK(near(number(json_array_get(settings, 3), "q_proj", "bits_per_weight", 0), 4 + 32. / 8), "%s", text);
  CHECK(near(number(json_array_get(settings, 4), "all", "bits_per_weight", 0), 4 + 1 + 64. / (OUT * IN)), "%s", text);
  CHECK(json_integer_value(json_object_get(b2, "layers_done")) == 1, "%s", text);
  CHECK(json_is_null(json_object_get(json_object_get(json_object_get(b2, "matrices"), "all"), "relative_loss_heldout")), "%s", text);
  CHECK(json_integer_value(json_object_get(json_object_get(json_object_get(b3, "matrices"), "all"), "matrices")) == 4, "%s", text);
  CHECK(near(json_number_value(json_object_get(json_object_get(json_object_get(b3, "matrices"), "all"), "seconds")), 5), "%s", text);
  const json_t *refined = json_array_get(settings, 5), *served = json_object_get(refined, "variants");
  static const int serves[] = {4, 2, 2, 4}; /* the base, ranks 2, 3, 4 */
  for (size_t p = 0; p < 4; p++) {
    double expected = ldexp(relative(0, p ? (int)p + 1 : 0), serves[p] == 4 ? -3 : 0);
    CHECK(json_integer_value(json_array_get(served, p)) == serves[p], "%zu: %s", p, text);
    CHECK(near(number(refined, "all", "relative_loss", p), expected), "%zu: %s", p, text);
  }
  CHECK(near(json_number_value(json_object_get(json_object_get(json_object_get(refined, "matrices"), "all"), "adapter_size")), 0.25), "%s",
        text);
  CHECK(json_is_null(json_array_get(json_object_get(b3, "variants"), 1)), "%s", text);
  CHECK(near(json_number_value(json_object_get(json_object_get(tree, "tokens_a_column"), "attn_in")), 100. / IN), "%s", text);
  CHECK(isnan(number(b10, "q_proj", "relative_loss", 0)), "%s", text); /* a reference of 0 has no relative loss */
  json_decref(tree);
  free(text);
}

static void check_table(void) {
  char *text = printed(report_table);
  static const char *const parts[] = {
      "model models/hand-made, 2 layers, 4096 calibration tokens, 1024 held out\n",
      "\ncloq-b2-g0   2 bits, one scale per row, (1 of 2 layers)\n",
      "\ncloq-b3-g8   3 bits, 8 columns per scale, 2 layers\n",
      "\n  q_proj            0.250   0.0156  9.77e-4               0.750   0.0469  0.00293          2.50\n",
      "\n  all               0.250   0.0156  9.77e-4               0.750   0.0469  0.00293          5.00\n",
      "\n  q down             5.38     7.51     9.64\n",
      "\nwarning: few calibration tokens a column: attn_in 2.5; below 4",
      "\n  codes of r=2 serve r=3, too: ",
      "\n  adapter at r=4: 0.25 of W; the codes were made for it: Q without it is useless\n",
      "\nAll settings, all matrices\n",
      "\n  cloq-b3-g8      0.250        -   0.0156        -  9.77e-4      5.38      -   7.51      -   9.64\n"};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) CHECK(strstr(text, parts[i]), "expected \"%s\" in\n%s", parts[i], text);
  for (const char *line = text; *line;) {
    size_t length = strcspn(line, "\n");
    CHECK(length <= 120 && (length == 0 || line[length - 1] != ' '), "%.*s", (int)length, line);
    line += length + (line[length] != 0);
  }
  free(text);
}

/* Of q_proj at rank 2 in layer 1, and of both layers together. */
static void check_csv(void) {
  char *text = printed(report_csv);
  CHECK(strstr(text, "\ncloq-b3-g8,cloq,3,8,1,q_proj,2,7.50833333,0.0078125,0.0234375,40,0,0,,1.25,,,\n"), "%s", text);
  CHECK(strstr(text, "\ncloq-b3-g8,cloq,3,8,,q_proj,2,7.50833333,0.015625,0.046875,,,,,2.5,,,\n"), "%s", text);
  free(text);
}

/* Losses that are not there, a reference of 0, no spectra, no Grams, no metrics: the page comes, and says so. */
static void check_page(void) {
  char path[256], *text = NULL;
  size_t bytes;
  FILE *nowhere = fopen("/dev/null", "w");
  CHECK_OK(report_page(folder, NULL, NULL, folder, nowhere));
  fclose(nowhere);
  snprintf(path, sizeof path, "%s/report.html", folder);
  CHECK_OK(file_read(path, 1 << 24, &text, &bytes));
  static const char *const parts[] = {"<h1>models/hand-made</h1>", "The Grams of layer 0 are not in this run directory",
                                      "no metrics.jsonl",          "<td>model.layers.",
                                      "1 of 2 layers are done",    "few calibration tokens a column"};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) CHECK(strstr(text, parts[i]), "expected \"%s\" in\n%s", parts[i], text);
  FREE(text);
}

int main(int argc, char **argv) {
  team t;
  int rank;
  char command[128];
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  if (rank == 0) CHECK(mkdtemp(folder), "%s", folder);
  MPI_Bcast(folder, sizeof folder, MPI_CHAR, 0, MPI_COMM_WORLD);
  CHECK_OK(team_new(MPI_COMM_WORLD, 0, &t));
  if (rank == 0) { /* nothing there yet */
    CHECK_FAILS(report_table("/nonexistent/run", NULL, NULL, stdout), E_DATA);
    CHECK_FAILS(report_json(folder, NULL, NULL, stdout), E_DATA);
  }
  write_layer(&t, "cloq-b3-g8", 0, 3, 8, "2", true, 4, "uniform", false);
  write_layer(&t, "cloq-b3-g8", 1, 3, 8, "2,4", true, 8, "uniform", false);
  write_layer(&t, "cloq-b2-g0", 0, 2, 0, "1,4", false, 2, "uniform", false);
  write_layer(&t, "cloq-b10-g8", 0, 8, 8, "4", false, 0, "uniform", false);
  write_layer(&t, "nf4-b4-g8", 0, 4, 8, "2", true, 4, "nf4", false);
  write_layer(&t, "nf4-b4-on", 0, 4, 8, "2", true, 4, "nf4", true);
  write_refined(&t);
  if (rank == 0) {
    char path[256];
    write_master();
    snprintf(path, sizeof path, "%s/solutions/empty", folder); /* a setting that has only begun is not shown */
    CHECK_OK(file_make_folders(path));
    snprintf(path, sizeof path, "%s/solutions/cloq-b2-g0/layer-001.h5.tmp", folder);
    CHECK_OK(file_write_atomic(path, "x", 1));
    check_json();
    check_table();
    check_csv();
    if (t.size == 1) check_page();
    snprintf(path, sizeof path, "%s/solutions/cloq-b2-g0/layer-001.h5", folder);
    CHECK_OK(file_write_atomic(path, "x", 1));
    CHECK_FAILS(report_json(folder, NULL, NULL, stdout), E_DATA);
    if (argc > 1) fputs(printed(report_table), stdout); /* for the eye */
    snprintf(command, sizeof command, "rm -r '%s'", folder);
    CHECK(system(command) == 0, "%s", command);
  }
  team_free(&t);
  return check_end("report");
}
