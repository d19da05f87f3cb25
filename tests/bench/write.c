/* A plain parallel write: every rank writes its share of BYTES to a file of its own in FOLDER and syncs it. Prints the seconds from a
 * common start to the last sync: what a machine's files take, without any work. bench_write FOLDER BYTES */
#include <fcntl.h>
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
  enum { AT_ONCE = 8 << 20 };
  int rank, size;
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (argc != 3) MPI_Abort(MPI_COMM_WORLD, 2);
  uint64_t bytes = strtoull(argv[2], NULL, 10) / (uint64_t)size;
  char path[4096], *data = malloc(AT_ONCE);
  for (int i = 0; data && i < AT_ONCE; i++) data[i] = (char)(i * 2654435761u >> 24);
  snprintf(path, sizeof path, "%s/plain-%d", argv[1], rank);
  MPI_Barrier(MPI_COMM_WORLD);
  double start = MPI_Wtime();
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
  for (uint64_t at = 0; fd >= 0 && data && at < bytes;) {
    ssize_t n = pwrite(fd, data, bytes - at < AT_ONCE ? bytes - at : AT_ONCE, (off_t)at);
    if (n <= 0) MPI_Abort(MPI_COMM_WORLD, 6);
    at += (uint64_t)n;
  }
  if (fd < 0 || fsync(fd) != 0 || close(fd) != 0) MPI_Abort(MPI_COMM_WORLD, 6);
  MPI_Barrier(MPI_COMM_WORLD);
  if (rank == 0) printf("%.6f\n", MPI_Wtime() - start);
  unlink(path);
  free(data);
  MPI_Finalize();
  return 0;
}
