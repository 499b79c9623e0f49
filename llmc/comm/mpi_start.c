/* mpi_start.c: see comm_mpi.h: the MPI library's start and end, apart from the backend that uses it (comm_mpi.c), since
 * ranks on several hosts also find each other through it. */
#include "comm/comm_mpi.h"

#ifndef HAVE_MPI

bool mpi_start(Error *err) {
    return error_set(err, "built without MPI (install libopenmpi-dev, then make clean and make)");
}

bool mpi_share(void *data, size_t bytes, Error *err) {
    (void)data, (void)bytes;
    return mpi_start(err);
}

void mpi_finish_at_exit(void) {}

#else
#include "base/check.h"
#include <limits.h>
#include <mpi.h>
#include <stdlib.h>

bool mpi_start(Error *err) {
    static bool started;
    int level = 0;
    if (started) return true;
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &level) != MPI_SUCCESS)
        return error_set(err, "MPI_Init_thread failed");
    if (level < MPI_THREAD_SERIALIZED)
        return error_set(err, "this MPI library cannot be called from a thread of its own (level %d)", level);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    started = true;
    return true;
}

bool mpi_share(void *data, size_t bytes, Error *err) {
    if (!mpi_start(err)) return false;
    CHECK_OP(bytes, <=, INT_MAX);
    return MPI_Bcast(data, (int)bytes, MPI_BYTE, 0, MPI_COMM_WORLD) == MPI_SUCCESS ||
           error_set(err, "MPI_Bcast failed");
}

static void finish(void) {
    MPI_Finalize();
}

void mpi_finish_at_exit(void) {
    static bool once;
    int started = 0;
    MPI_Initialized(&started);
    if (started && !once) atexit(finish);
    once = once || started;
}
#endif
