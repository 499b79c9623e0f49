/* drain.h: ships committed checkpoints from a staging folder to a store, behind the training.
 *
 * One drain for each node: a thread beside the trainer (of the node's first rank), or a process of its own. It uploads the
 * shards of its node, each chunk checked against its checksum while it is read; whoever then sees all shards of a
 * checkpoint in the store puts the merged table and, last, COMMIT; everyone who sees COMMIT marks the checkpoint UPLOADED
 * in staging, which lets it go there. The newest goes first.
 *
 * What always holds: training is never touched: the store may be down, slow or full for as long as it likes; whatever
 * happens to the drain, the next one goes on where it stopped; a chunk that fails its checksum is never uploaded; a
 * checkpoint that is complete in the store is removed there only by --keep-remote, never the newest, the best or a pinned
 * one. It says once when it cannot keep up or cannot upload, and once when that is over. */
#ifndef LLMC_DRAIN_H
#define LLMC_DRAIN_H
#include "ckpt/ckpt.h"
#include "ckpt/store.h"

typedef struct {
    const char *directory; /* the staging folder */
    const char *place;     /* the store: see store_open */
    const char *node;    /* this host's name, as in CkptConfig; NULL: the shards of all nodes in the folder */
    StoreConfig store;   /* but for stop, which is the drain's */
    bool all;            /* what this store lacks, also if it was uploaded to another one */
    int keep_remote;     /* complete checkpoints that stay in the store; 0: all */
    double poll_seconds; /* between looks at the folder; 0: 1 */
} DrainConfig;

typedef struct {
    uint64_t behind_checkpoints,
        behind_bytes; /* committed here, not in the store: the lag; bytes of our shards */
    uint64_t uploaded_checkpoints,
        uploaded_bytes;      /* since the start, of ours; without what was there already */
    double bytes_per_second; /* of the last shard */
    CkptId newest_uploaded;  /* attempt 0: none since the start */
    uint64_t corrupt;        /* checkpoints with a chunk here that fails its checksum */
    bool failing;            /* the last attempt failed: error */
    Error error;
} DrainStatus;

typedef struct Drain Drain;

/* Starts the thread. Fails for what is wrong with the configuration (no keys, no such kind of store); a store that is
 * not to be reached is no error, but said. */
bool drain_open(Drain **drain, const DrainConfig *config, Error *err);
DrainStatus drain_status(Drain *drain);
/* Waits at most `seconds` until all that was committed when it was called is in the store, or cannot be; true: it is. */
bool drain_wait(Drain *drain, double seconds);
/* drain_wait, then ends what is under way, to be resumed by the next one. False: something is left. NULL: true. */
bool drain_close(Drain *drain, double seconds);
#endif
