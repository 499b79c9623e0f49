/* drain_remote.h: the store's side of a drain: is a checkpoint complete there, completing it, retention. */
#ifndef LLMC_DRAIN_REMOTE_H
#define LLMC_DRAIN_REMOTE_H
#include "ckpt/ckpt_scan.h"
#include "ckpt/store.h"

typedef enum {
    REMOTE_FAILED,  /* err */
    REMOTE_WAITING, /* shards of other nodes are missing */
    REMOTE_COMPLETE
} RemoteState;

/* Is there a COMMIT of this checkpoint? Else, if all W shards are there, puts table and COMMIT. */
RemoteState drain_remote_complete(Store *store, const char *place, const CkptScanCheckpoint *checkpoint,
                                  Error *err);

/* Ids with a COMMIT, newest first, at most max; *count how many. */
bool drain_remote_list(Store *store, CkptId *ids, size_t max, size_t *count, Error *err);

/* Puts its PIN, or takes it away: what has one is removed by nobody. *there false: it is not complete in the store, or
 * was just removed, and nothing was put. */
bool drain_remote_pin(Store *store, const CkptScanCheckpoint *checkpoint, bool *there, Error *err);
bool drain_remote_unpin(Store *store, CkptId id, Error *err);

/* Removes complete checkpoints beyond the newest `keep`, but for the newest best, pinned ones and those that keep_id says
 * stay; and what is older than the oldest of those and was never completed. */
bool drain_remote_retain(Store *store, int keep, bool (*keep_id)(void *ctx, CkptId id), void *ctx,
                         Error *err);
#endif
