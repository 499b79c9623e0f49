/* peer_mpi.h: MPI_Allreduce as the peer that bench_comm.c measures itself against: the library's default, and each of
 * Open MPI's own algorithms on request. One process runs them all: an algorithm is chosen by a variable of the MPI tool
 * interface, which a new communicator takes over. Without MPI, or another library, less of this is there. */
#ifndef PEER_MPI_H
#define PEER_MPI_H
#include "base/error.h"
#include "base/log.h"
#include <stdlib.h>
#include <string.h>

typedef struct PeerMpi PeerMpi;

#ifndef HAVE_MPI
static inline void peer_mpi_prepare(void) {}
static inline bool peer_mpi_open(PeerMpi **peer, bool all, size_t bytes_max, Error *err) {
    (void)peer, (void)all, (void)bytes_max;
    return error_set(err,
                     "--compare-mpi: built without MPI (install libopenmpi-dev, then make clean and make)");
}
static inline void peer_mpi_close(PeerMpi *peer) {
    (void)peer;
}
static inline int peer_mpi_count(const PeerMpi *peer) {
    return peer ? 1 : 0;
}
static inline const char *peer_mpi_name(const PeerMpi *peer, int algorithm) {
    (void)peer, (void)algorithm;
    return "";
}
static inline double peer_mpi_all_reduce(PeerMpi *peer, int algorithm, size_t count, int type, int op) {
    (void)peer, (void)algorithm, (void)count, (void)type, (void)op;
    return 0;
}
#else
#include <mpi.h>

enum { PEER_ALGORITHMS = 7 };

struct PeerMpi {
    int count;
    const char *name[PEER_ALGORITHMS];
    MPI_Comm comm[PEER_ALGORITHMS];
    void *data;
};

static const char *const peer_names[PEER_ALGORITHMS] = {
    "default", "basic linear",   "nonoverlapping", "recursive doubling",
    "ring",    "segmented ring", "rabenseifner"};

/* Before MPI starts: lets Open MPI's algorithms be chosen; without a choice its own decision stands. */
static inline void peer_mpi_prepare(void) {
    setenv("OMPI_MCA_coll_tuned_use_dynamic_rules", "1", 1);
}

/* A communicator that uses that algorithm of Open MPI; false: this library has no such choice. */
static inline bool peer_mpi_choose(PeerMpi *peer, int algorithm) {
    int index, values;
    MPI_T_cvar_handle handle;
    if (MPI_T_cvar_get_index("coll_tuned_allreduce_algorithm", &index) != MPI_SUCCESS) return false;
    if (MPI_T_cvar_handle_alloc(index, NULL, &handle, &values) != MPI_SUCCESS) return false;
    bool ok = MPI_T_cvar_write(handle, &algorithm) == MPI_SUCCESS &&
              MPI_Comm_dup(MPI_COMM_WORLD, &peer->comm[peer->count]) == MPI_SUCCESS;
    int none = 0;
    MPI_T_cvar_write(handle, &none);
    MPI_T_cvar_handle_free(&handle);
    if (ok) peer->name[peer->count++] = peer_names[algorithm];
    return ok;
}

/* After llmc/comm's own, which may have done it. */
static inline void peer_mpi_finalize(void) {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (!finalized) MPI_Finalize();
}

static inline bool peer_mpi_open(PeerMpi **peer, bool all, size_t bytes_max, Error *err) {
    int started = 0, provided;
    MPI_Initialized(&started);
    if (!started && !getenv("OMPI_COMM_WORLD_SIZE") && !getenv("PMIX_RANK"))
        return error_set(err, "--compare-mpi: there is no MPI job (start the program with mpirun)");
    if (!started) { /* the backend had no need of it */
        MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, &provided);
        atexit(peer_mpi_finalize);
    }
    *peer = calloc(1, sizeof **peer);
    if (!*peer) return error_set(err, "no memory");
    (*peer)->data = calloc(bytes_max + 8, 1);
    if (!(*peer)->data) return error_set(err, "--compare-mpi: no memory for %zu bytes", bytes_max);
    (*peer)->comm[0] = MPI_COMM_WORLD;
    (*peer)->name[(*peer)->count++] = peer_names[0];
    if (!all) return true;
    if (MPI_T_init_thread(MPI_THREAD_SINGLE, &provided) != MPI_SUCCESS) return true;
    /* the first two gather at one rank and say nothing new */
    for (int algorithm = 3; algorithm < PEER_ALGORITHMS; algorithm++)
        if (!peer_mpi_choose(*peer, algorithm)) break;
    MPI_T_finalize();
    return true;
}

static inline void peer_mpi_close(PeerMpi *peer) {
    if (!peer) return;
    free(peer->data);
    free(peer);
}

static inline int peer_mpi_count(const PeerMpi *peer) {
    return peer->count;
}

static inline const char *peer_mpi_name(const PeerMpi *peer, int algorithm) {
    return peer->name[algorithm];
}

/* Seconds on this rank, from a barrier on. In place, on zeros; bf16, which MPI lacks, as 16-bit integers. */
static inline double peer_mpi_all_reduce(PeerMpi *peer, int algorithm, size_t count, int type, int op) {
    const MPI_Datatype types[] = {MPI_FLOAT, MPI_INT16_T, MPI_INT32_T, MPI_UINT8_T};
    const MPI_Op ops[] = {MPI_SUM, MPI_MAX};
    MPI_Barrier(MPI_COMM_WORLD);
    double start = log_seconds();
    MPI_Allreduce(MPI_IN_PLACE, peer->data, (int)count, types[type], ops[op], peer->comm[algorithm]);
    return log_seconds() - start;
}
#endif
#endif
