/* world.h: what all groups of a process share: one queue of operations, run in order, one at a time. Internal to
 * llmc/comm.
 *
 * Who runs it: the worker thread, woken by a large operation so that it proceeds while the caller computes; or a caller
 * that waits, if nobody else is at it, so that a small operation costs no change of threads. `busy` says that somebody
 * is; it and the queue are behind the lock, the operation itself runs without it. */
#ifndef LLMC_WORLD_H
#define LLMC_WORLD_H
#include "comm/backend.h"
#include <pthread.h>
#include <stdatomic.h>

enum { WORLD_QUEUE_MAX = 1024, COMM_DESCRIPTION_BYTES = 400 };

typedef struct {
    Comm *comm;
    CommHeader header;
    void *data;
    const size_t *offsets;
    size_t count;
    int peer;
    bool on_device; /* data is device memory, */
    uint64_t mark;  /* which is as it should be when this is done */
} WorldOperation;

typedef struct StagedBlock StagedBlock;

typedef struct {
    Control *control;
    Topology topology;
    bool has_topology, has_thread;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t work, changed;          /* for the worker; for those who wait */
    WorldOperation queue[WORLD_QUEUE_MAX]; /* operation i is at (i - 1) % WORLD_QUEUE_MAX */
    uint64_t begun, wanted;                /* the worker shall run all up to `wanted` */
    atomic_uint_fast64_t done;             /* changed under the lock */
    atomic_bool dead;                      /* set once, after error */
    Error error;
    bool busy, stopping, gone; /* gone: the worker has ended */
    atomic_int_fast64_t step;
    void (*end)(const char *line); /* comm_watch */
    int references;                /* Comms */
    uint32_t groups;               /* made so far, on any rank of mine */
    const CommMemory *memory;      /* NULL: host memory */
    StagedBlock *staged;           /* staging.c: blocks of device memory, */
    char *scratch;                 /* and one for data of the host */
    size_t scratch_bytes;
    void *copies[2];       /* queues of copies: [true] to where the backend works, [false] back; */
    size_t *piece_offsets; /* (pieces_max) and the shares of the piece at work */
    int pieces_max;
} World;

typedef struct CommBlock {
    struct CommBlock *next;
    void *mapped;
    size_t bytes;
} CommBlock;

struct Comm {
    World *world;
    CommGroup group;
    int *world_ranks;
    uint64_t collectives, *sent, *received; /* sequence numbers; the latter (size) */
    CommBlock *blocks;
    char description[COMM_DESCRIPTION_BYTES];
};

/* Host memory, as comm_alloc gives it without a device. Between world_take and world_release. */
void *comm_alloc_host(Comm *comm, size_t bytes, Error *err);

bool world_open(World **world, Error *err);
/* Ends the worker and the control plane. */
void world_close(World *w);

/* Those with a w->lock of their own: */
/* Appends the operation and numbers it; its number, also of a dead world, where it is not run. */
CommRequest world_begin(World *w, WorldOperation o);
bool world_wait(World *w, CommRequest request, Error *err);
bool world_test(World *w, CommRequest request);
/* When everything that was begun is done, the backends are this thread's until world_release. */
bool world_take(World *w, Error *err);
void world_release(World *w);
/* The first error is the last: what was begun will not be run, and every later call returns it. */
void world_die(World *w, const Error *err);
/* Waits for what was begun, or after a failure for the thread that is inside a backend. False: it does not come back. */
bool world_finish(World *w);
#endif
