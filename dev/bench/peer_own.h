/* peer_own.h: the algorithms of this library that bench_comm.c measures one against the other, alternately in the same
 * run: a group of all ranks for each, opened while TOROID_TORUS_ALGORITHM names it. What the choice among them is worth
 * is the time of the first group, which chooses, over the least of these. */
#ifndef PEER_OWN_H
#define PEER_OWN_H
#include "base/log.h"
#include "comm/comm.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PEER_OWN_MAX = 8, PEER_OWN_NAME_BYTES = 16 };

typedef struct {
    int count;
    char name[PEER_OWN_MAX][PEER_OWN_NAME_BYTES];
    Comm *comm[PEER_OWN_MAX];
} PeerOwn;

/* names: separated by commas. */
static inline bool peer_own_open(PeerOwn *peer, Comm *world, const char *names, Error *err) {
    const char *before = getenv("TOROID_TORUS_ALGORITHM");
    char *kept = before ? strdup(before) : NULL;
    bool ok = true;
    for (size_t n; ok && *names; names += n + (names[n] == ',')) {
        n = strcspn(names, ",");
        if (!n || n >= PEER_OWN_NAME_BYTES || peer->count == PEER_OWN_MAX)
            return error_set(err, "'%.60s' is no list of algorithms", names);
        char *name = peer->name[peer->count];
        memcpy(name, names, n);
        setenv("TOROID_TORUS_ALGORITHM", name, 1);
        ok = comm_split(world, 0, comm_rank(world), &peer->comm[peer->count], err);
        peer->count += ok;
    }
    if (kept)
        setenv("TOROID_TORUS_ALGORITHM", kept, 1);
    else
        unsetenv("TOROID_TORUS_ALGORITHM");
    free(kept);
    return ok;
}

/* Before the world is closed. */
static inline void peer_own_close(PeerOwn *peer) {
    for (int p = 0; p < peer->count; p++) comm_close(peer->comm[p]);
    peer->count = 0;
}

/* Until what the wires let through at once beyond their rate (a shaper's bucket) is there again for everyone. */
static inline void peer_own_pause(const PeerOwn *peer) {
    if (peer->count) nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
}

/* Seconds on this rank, from a barrier on; in place. Negative: failed. */
static inline double peer_own_all_reduce(PeerOwn *peer, int p, void *data, size_t count, CommType type,
                                         CommOp op, Error *err) {
    peer_own_pause(peer);
    if (!comm_barrier(peer->comm[p], err)) return -1;
    double start = log_seconds();
    if (!comm_wait(peer->comm[p], comm_all_reduce(peer->comm[p], data, count, type, op), err)) return -1;
    return log_seconds() - start;
}
#endif
