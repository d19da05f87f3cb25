/* What exporting is held against, and what it exports.
 *
 *   bench_write FOLDER BYTES      a plain parallel write: every rank writes its share to a file of its own and syncs it; prints the seconds
 *                                 from a common start to the last sync
 *   bench_write FOLDER SHAPE      a made-up checkpoint of one layer in FOLDER: 7b (Llama-2-7B, 0.67 GB), 70b (Llama-2-70B with 16384 tokens,
 *                                 heavy-tailed embeddings and outlier channels, 2 GB) or small, to try things */
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "block_model.h"

static status write_plainly(const char *folder, uint64_t bytes, int rank, double *seconds) {
  enum { AT_ONCE = 8 << 20 };
  status st = OK;
  char *data = NULL, *path = mem_format("%s/plain-%d", folder, rank);
  TRY(NEW(data, AT_ONCE, "bytes to write"));
  for (int i = 0; i < AT_ONCE; i++) data[i] = (char)((uint32_t)i * 2654435761u >> 24);
  MPI_Barrier(MPI_COMM_WORLD);
  double start = clock_now();
  int fd = path ? open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666) : -1;
  for (uint64_t at = 0; fd >= 0 && at < bytes && st == OK;) {
    ssize_t n = pwrite(fd, data, bytes - at < AT_ONCE ? bytes - at : AT_ONCE, (off_t)at);
    if (n <= 0) st = fail(E_IO, "%s: cannot be written: %m", path);
    at += n > 0 ? (uint64_t)n : 0;
  }
  if (fd < 0 || fsync(fd) != 0) st = fail(E_IO, "%s: cannot be synced: %m", folder);
  if (fd >= 0) close(fd);
  MPI_Barrier(MPI_COMM_WORLD);
  *seconds = clock_now() - start;
  if (path) unlink(path);
done:
  FREE(data);
  FREE(path);
  return st;
}

static const shape shapes[] = {{"7b", 4096, 11008, 32, 32, 128, 32000, false},
                               {"70b", 8192, 28672, 64, 8, 128, 16384, true},
                               {"small", 256, 768, 4, 2, 64, 2048, true}};

int main(int argc, char **argv) {
  int rank, size;
  const shape *model = NULL;
  double seconds = 0;
  status st = OK;
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  for (size_t k = 0; argc == 3 && k < sizeof shapes / sizeof *shapes; k++)
    if (strcmp(argv[2], shapes[k].name) == 0) model = &shapes[k];
  if (argc != 3)
    st = fail(E_USAGE, "bench: expected FOLDER and BYTES, 7b, 70b or small");
  else if (model)
    st = rank == 0 ? write_model(argv[1], model) : OK;
  else
    st = write_plainly(argv[1], strtoull(argv[2], NULL, 10) / (uint64_t)size, rank, &seconds);
  if (st != OK) fprintf(stderr, "cloqwork: %s\n", status_message());
  if (st == OK && rank == 0 && seconds > 0) printf("%.6f\n", seconds);
  MPI_Finalize();
  return status_exit_code(st);
}
