/* Which MPI-IO component the files go through. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

#include "store/container.h"

/* Open MPI 4.1.0 to 4.1.6: fcoll/vulcan of its own component (ompio) has reported silent corruption of parallel HDF5 data, and
 * hangs; ROMIO, which comes with it, has not. A choice of the user stands. */
const char *container_choose_io(void) {
  static char said[160];
  const char *io = getenv("OMPI_MCA_io"), *fcoll = getenv("OMPI_MCA_fcoll");
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0, release = 0;
  if (io || fcoll) {
    snprintf(said, sizeof said, "MPI-IO as the environment says: OMPI_MCA_io=%.40s OMPI_MCA_fcoll=%.40s", io ? io : "", fcoll ? fcoll : "");
    return said;
  }
  MPI_Get_library_version(text, &length);
  if (sscanf(text, "Open MPI v4.1.%d", &release) != 1 || release >= 7) return "MPI-IO as the MPI library chooses";
  if (setenv("OMPI_MCA_io", "romio321", 1) != 0) return "MPI-IO as the MPI library chooses: OMPI_MCA_io could not be set";
  snprintf(said, sizeof said, "MPI-IO through ROMIO (OMPI_MCA_io=romio321): ompio of Open MPI 4.1.%d can corrupt parallel HDF5 data",
           release);
  return said;
}
