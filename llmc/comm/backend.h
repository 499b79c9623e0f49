/* backend.h: what a backend of comm.h provides, and what it is given. Internal to llmc/comm.
 *
 * Every function blocks until the operation is done on this rank, the group fails, or the deadline passes. comm.c calls
 * them one at a time (for all groups of this process together), in the order in which the operations were begun, from
 * its worker thread or from a caller that waits. So a backend has no queue, no locks and no asynchrony of its own. While
 * it waits it looks at comm_group_failed often enough (at least every 10 ms) to leave soon after another rank has failed.
 * It is never asked for a group of one rank (that is self's, and nothing is exchanged there) and never after a function has
 * returned false, but for close. */
#ifndef LLMC_COMM_BACKEND_H
#define LLMC_COMM_BACKEND_H
#include "comm/comm.h"
#include "comm/control.h"
#include "comm/topology.h"

/* What the ranks of a group compare before they exchange data: all must be equal (of a SEND and its RECV all but the
 * operation). No padding: memcmp does. */
typedef struct {
    uint32_t operation; /* CommOperation */
    uint32_t type, op;
    uint32_t group; /* number of the group, the same on all its ranks */
    uint64_t
        sequence; /* from 1: of the collective operations of the group; SEND, RECV: of those from rank to rank */
    uint64_t bytes;  /* of all ranks' shares together */
    uint64_t detail; /* broadcast: its root; reduce-scatter, all-gather: a hash of the offsets; else 0 */
} CommHeader;

typedef enum {
    OPERATION_ALL_REDUCE = 1,
    OPERATION_REDUCE_SCATTER,
    OPERATION_ALL_GATHER,
    OPERATION_BROADCAST,
    OPERATION_SEND,
    OPERATION_RECV,
    OPERATION_BARRIER
} CommOperation;

typedef struct CommBackend CommBackend;

typedef struct {
    int rank, size;
    uint32_t id;              /* 0: all ranks that were launched; the same on all ranks of the group */
    uint32_t layer;           /* 0, or which of the groups that a backend made of others keeps for this one */
    const int *world;         /* (size) the world rank of every rank */
    Control *control;         /* finding, watching and stopping the other ranks */
    const Topology *topology; /* of the world; never NULL */
    const int *place;         /* (size) which rank of the topology each one is; NULL: as in the world */
    const CommMemory *memory; /* of the device that the caller computes on; NULL: host memory */
    double timeout_seconds;
    int64_t step;      /* that errors name */
    CommHeader header; /* of the operation that runs; all 0 in open and close */
    const char
        *algorithm; /* how the last operation was done: set by the backend, lives as long as the group */
    const CommBackend *backend;
    void *state; /* the backend's own */
} CommGroup;

struct CommBackend {
    const char *name;
    bool on_device; /* all data that the operations are given is memory of the device, and none otherwise */
    /* Could it carry this group here? If not: why not, in err. Called on every rank; the answers are combined. */
    bool (*usable)(const CommGroup *group, Error *err);
    bool (*open)(CommGroup *group, Error *err); /* together on all ranks of the group; state is NULL before */
    void (*close)(CommGroup *group);            /* also after a failure or an open that failed: never hangs */
    bool (*all_reduce)(CommGroup *group, void *data, size_t count, CommType type, CommOp op, Error *err);
    bool (*reduce_scatter)(CommGroup *group, void *data, const size_t *offsets, CommType type, CommOp op,
                           Error *err);
    bool (*all_gather)(CommGroup *group, void *data, const size_t *offsets, CommType type, Error *err);
    bool (*broadcast)(CommGroup *group, void *data, size_t bytes, int root, Error *err);
    bool (*send)(CommGroup *group, const void *data, size_t bytes, int to, Error *err);
    bool (*recv)(CommGroup *group, void *data, size_t bytes, int from, Error *err);
    bool (*barrier)(CommGroup *group, Error *err);
    void *(*alloc)(CommGroup *group, size_t bytes,
                   Error *err); /* close frees it; NULL member: any memory does */
    void (*describe)(const CommGroup *group, char *out, size_t size); /* algorithm and wires; may be NULL */
};

extern const CommBackend comm_backend_self, comm_backend_mpi, comm_backend_shm, comm_backend_torus,
    comm_backend_hosts;
#ifdef HAVE_NCCL
extern const CommBackend comm_backend_nccl;
#endif

/* Has any rank of the world failed or given up? Then the reason is in err (which may be NULL). Cheap: one load. */
bool comm_group_failed(CommGroup *group, Error *err);

/* For a backend that finds a fault itself: names this rank, its host, the peer (-1: none known) and its host, the
 * operation, its sequence number and the step; tells the other ranks; returns false. First it gives the control plane a
 * moment to name the cause, since a connection that closes may only be the echo of another rank's failure. */
bool comm_group_fault(CommGroup *group, int peer, const char *what, Error *err);

/* The two headers differ: one line that says in what; tells the other ranks; returns false. */
bool comm_group_mismatch(CommGroup *group, int peer, const CommHeader *theirs, Error *err);

/* Host name of a rank of the group. */
const char *comm_group_host(const CommGroup *group, int rank);

/* offsets (n + 1) of n shares of count elements, which differ by at most one. */
void comm_share_evenly(size_t count, int n, size_t *offsets);

/* y (n) = y op x, element by element. BF16 is added in fp32 and rounded to nearest even; integers wrap around; the
 * maximum with a NaN is NaN. */
void comm_reduce(void *y, const void *x, size_t n, CommType type, CommOp op);
#endif
