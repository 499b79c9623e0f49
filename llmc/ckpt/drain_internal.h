/* drain_internal.h: what drain.c (the thread, what it waits for and says) and drain_round.c (its work) share. */
#ifndef LLMC_DRAIN_INTERNAL_H
#define LLMC_DRAIN_INTERNAL_H
#include "base/file.h"
#include "ckpt/ckpt_scan.h"
#include "ckpt/drain.h"
#include <pthread.h>

enum { REMEMBERED = 64, REMOTE_IDS = 256 };

/* The newest ids that were put in. */
typedef struct {
    CkptId ids[REMEMBERED];
    int next;
} Memory;

struct Drain {
    DrainConfig config;
    char directory[FILE_PATH_BYTES], node[CKPT_NODE_BYTES];
    Store *store;
    CkptSource *source;
    CkptIo io;
    CkptFile *locks[2];
    CkptScan scan;               /* the thread's */
    Memory sent, broken, pinned; /* pinned: those whose PIN was put into the store */
    CkptId remote[REMOTE_IDS];   /* complete in the store, newest first, as of this round */
    size_t num_remote;
    CkptId *there; /* config.all: what is in the store, or was let go, as far as was asked */
    size_t num_there, room_there;
    bool remote_known, said_behind, said_failing;
    atomic_bool stop;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    DrainStatus status; /* under mutex, as are these: */
    uint64_t wanted,
        reached; /* how often somebody began to wait, and which of them have what they wait for */
};

typedef enum {
    WORK_FAILED,
    WORK_DONE,
    WORK_WAITING, /* for other nodes */
    WORK_BROKEN,  /* a chunk here fails its checksum */
    WORK_GONE     /* it was let go meanwhile */
} Work;

/* Looks at the folder and works on what is pending, the newest first, until all is done or nothing can be. */
Work drain_round(Drain *d, Error *err);

static inline bool drain_stopped(const Drain *d) {
    return atomic_load(&d->stop);
}
#endif
