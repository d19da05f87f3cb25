/* A Gram file by a team, read back: tiles as the full matrix, statistics of |x|, and what is said when a file comes without them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/memory.h"
#include "check.h"
#include "session/gram_file.h"

enum { N = 160, TILES = 3, TT = GRAM_TILE * GRAM_TILE };

static float entry(int64_t i, int64_t j) { return (float)((i > j ? i * 1000 + j : j * 1000 + i) % 977); }

int main(int argc, char **argv) {
  MPI_Init(&argc, &argv);
  session c = {.job_comm = MPI_COMM_WORLD, .job_tag = "test"};
  char folder[64] = "/tmp/cloqwork-gram-XXXXXX", path[PATH_MOST];
  float *tiles = NULL, *full = NULL;
  double mean[N], most[N], read[2][N];
  int64_t tokens = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &c.rank);
  MPI_Comm_size(MPI_COMM_WORLD, &c.size);
  if (c.rank == 0) CHECK(mkdtemp(folder), "no folder");
  MPI_Bcast(folder, sizeof folder, MPI_CHAR, 0, MPI_COMM_WORLD);
  c.job.output = folder;
  c.model.arch = (arch){.hidden = N, .intermediate = 256, .heads = 4, .kv_heads = 4, .head_dim = 40, .layers = 8};
  snprintf(path, sizeof path, "%s/grams", folder);
  if (c.rank == 0) CHECK_OK(file_make_folders(path));
  CHECK_OK(team_new(MPI_COMM_WORLD, 0, &c.team));
  CHECK_OK(NEW(tiles, TILES * TT, "tiles"));
  CHECK_OK(NEW(full, N * N, "full"));
  for (int64_t i = 0; i < 2; i++)
    for (int64_t j = 0; j <= i; j++)
      for (int64_t r = 0; r < GRAM_TILE; r++)
        for (int64_t k = 0; k < GRAM_TILE; k++) {
          int64_t row = i * GRAM_TILE + r, col = j * GRAM_TILE + k;
          tiles[tile_index(i, j) * TT + r * GRAM_TILE + k] = row < N && col < N ? entry(row, col) : 0;
        }
  for (int k = 0; k < N; k++) mean[k] = 1.0 / (k + 3), most[k] = 2.0 / (k + 3);
  for (int64_t layer = 0; layer < 3; layer++) { /* with both statistics, one, none */
    gram_input list[IN_COUNT] = {[IN_MLP] = {N, 77, tiles, layer < 2 ? mean : NULL, layer < 1 ? most : NULL}};
    CHECK_OK(gram_file_write(&c, SET_CALIBRATION, layer, list));
    memset(full, 0, N * N * sizeof *full);
    for (int part = 0; part < 2; part++) CHECK_OK(unit_read_gram(&c, SET_CALIBRATION, layer, IN_MLP, part, 2, full, &tokens));
    int wrong = 0;
    for (int64_t i = 0; i < N; i++)
      for (int64_t j = 0; j < N; j++) wrong += full[i * N + j] != entry(i, j);
    CHECK(wrong == 0 && tokens == 77, "%d entries, %lld tokens", wrong, (long long)tokens);
    CHECK_OK(unit_read_input_stats(&c, SET_CALIBRATION, layer, IN_MLP, NULL, NULL));
    if (layer < 2) {
      CHECK_OK(unit_read_input_stats(&c, SET_CALIBRATION, layer, IN_MLP, read[0], layer < 1 ? read[1] : NULL));
      CHECK(memcmp(read[0], mean, sizeof mean) == 0, "mean_abs of layer %d", (int)layer);
      CHECK(layer > 0 || memcmp(read[1], most, sizeof most) == 0, "max_mean_abs");
    }
    if (layer > 0) {
      status st = unit_read_input_stats(&c, SET_CALIBRATION, layer, IN_MLP, NULL, read[1]);
      CHECK(st == E_DATA && strstr(status_message(), "grams/layer-00") && strstr(status_message(), "mlp_in/max_mean_abs: expected"),
            "status %d: %s", (int)st, status_message());
      status_clear();
    }
  }
  MPI_Barrier(MPI_COMM_WORLD);
  for (int64_t layer = 0; c.rank == 0 && layer < 3; layer++) {
    unit_gram_path(&c, SET_CALIBRATION, layer, path);
    unlink(path);
  }
  snprintf(path, sizeof path, "%s/grams", folder);
  if (c.rank == 0) CHECK(rmdir(path) == 0 && rmdir(folder) == 0, "files left in %s", folder);
  FREE(tiles);
  FREE(full);
  team_free(&c.team);
  return check_end("gram_file");
}
