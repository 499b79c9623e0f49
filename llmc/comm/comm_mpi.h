/* comm_mpi.h: what rendezvous.c and comm.c need of MPI beside the backend. Internal to llmc/comm; without HAVE_MPI all
 * of it says so. */
#ifndef LLMC_COMM_MPI_H
#define LLMC_COMM_MPI_H
#include "base/error.h"
#include <stddef.h>

/* MPI_Init_thread, once. Only for processes that mpirun (or srun with PMIx) started: it waits for all of them. */
bool mpi_start(Error *err);

/* data (bytes) of rank 0 reaches all ranks that were launched. */
bool mpi_share(void *data, size_t bytes, Error *err);

/* The job is well and this process leaves it: MPI_Finalize when it exits. Not called after a failure, since
 * MPI_Finalize waits for the dead. */
void mpi_finish_at_exit(void);
#endif
