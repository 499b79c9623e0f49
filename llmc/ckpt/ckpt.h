/* ckpt.h: checkpoints that cost next to nothing to save: the writing half of the log-structured staging store.
 *
 * A rank gives views of the tensors that it owns; a thread of its own writes them, checksummed, into this rank's next
 * preallocated segment and makes a SHARD record durable; when all ranks have, the checkpoint is committed. The store
 * knows names and global element ranges, never ranks or models: whatever layout wrote a checkpoint, any other reads it
 * (ckpt_reader.h). The byte format, what makes a checkpoint valid, and the commit protocol are in
 * dev/design/checkpoint-format.md.
 *
 * What always holds: nothing here blocks training but ckpt_fence, and that only while memory that is about to change is
 * still being read; a crash at any instruction leaves every checkpoint that was restorable before restorable; a segment
 * of a restorable checkpoint is never written to while that checkpoint is kept; all memory is allocated in ckpt_open, but
 * for what the thread needs to merge tables. */
#ifndef LLMC_CKPT_H
#define LLMC_CKPT_H
#include "base/error.h"
#include "ckpt/ckpt_io.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum { CKPT_FP32, CKPT_BF16, CKPT_INT32, CKPT_UINT8 } CkptType;
enum { CKPT_NAME_BYTES = 64, CKPT_DIMS_MAX = 4 };
size_t ckpt_type_bytes(CkptType type);

/* Elements [begin, end) of the row-major tensor `name`, and where they are. */
typedef struct {
    char name[CKPT_NAME_BYTES]; /* NUL-terminated, not empty */
    CkptType type;
    int dims;
    uint64_t shape[CKPT_DIMS_MAX];
    uint64_t begin, end;
    const void *data;
    bool copied; /* small state that changes at once: copied inside ckpt_begin */
} TensorView;

/* Which checkpoint: attempt counts the starts of the run (agreed by all ranks), so that a step that is trained again
 * after falling back is not mixed up with the first time. Newer: larger attempt, then larger step. */
typedef struct {
    uint32_t attempt;
    uint64_t step;
} CkptId;
int ckpt_id_compare(CkptId a, CkptId b);

typedef enum { CKPT_POLICY_AUTO, CKPT_POLICY_LAZY, CKPT_POLICY_SNAPSHOT } CkptPolicy;

typedef struct {
    const char *directory;  /* the staging store; made if absent */
    const char *node;       /* this host's name in file names */
    const char *io;         /* auto, uring, plain */
    int rank, size;         /* of the writers of one checkpoint */
    bool node_first;        /* the lowest rank of those that share the folder: merges tables, clears up */
    uint32_t attempt;       /* >= 1, larger than any in the folder, the same on all ranks */
    uint8_t run[16];        /* UUID of the run: seeds every checksum */
    CkptId newest;          /* the newest restorable checkpoint, if newest_agreed; attempt 0: there is none */
    bool newest_agreed;     /* all ranks agreed on newest; then shards that nobody committed are let go */
    uint64_t payload_bytes; /* the most that one checkpoint of this rank holds, its tensors alone */
    uint64_t copied_bytes;  /* of it in views that are `copied`; 0: 1 MiB */
    int views_max;          /* the most views of one ckpt_begin */
    int keep;               /* restorable checkpoints that are kept, the newest ones; >= 1 */
    int segments_max;       /* of this rank; 0: as many as there is room for (64 at most) */
    bool keep_until_uploaded; /* a drainer is there: only what the store has confirmed may go */
    CkptPolicy policy;
    bool *no_room; /* set where ckpt_open fails since the disk has none; NULL: not asked */
    /* Views that are not `copied` are in memory that only this reads, `bytes` bytes of it into host memory; NULL: in
     * host memory. Called from the writing thread; done when it returns. */
    void (*fetch)(void *ctx, void *host, const void *memory, size_t bytes);
    void *fetch_ctx;
} CkptConfig;

typedef struct {
    CkptId newest_begun, newest_durable, newest_committed; /* attempt 0: none; durable: this rank's shard */
    bool writing;                                          /* a shard is under way */
    bool failed; /* the last shard could not be written: why is in error; the next begin tries again */
    Error error;
    double stall_seconds; /* of the last ckpt_begin and ckpt_fence together */
    double write_seconds; /* of the last shard, from begin to durable */
    double cpu_seconds;   /* of the writing thread for it */
    uint64_t bytes;       /* of it on the disk */
    uint64_t skipped;     /* begins refused because the one before was not done */
    CkptPolicy policy;    /* the one in use: LAZY or SNAPSHOT */
    const char *io;       /* the body in use, for people */
    uint64_t backlog;     /* committed checkpoints that await their upload */
} CkptStatus;

typedef struct Ckpt Ckpt;

/* Makes the folder and this rank's segments, recovers what is there (every crash state), starts the thread. Refuses,
 * with the numbers, when the disk cannot hold keep + 2 checkpoints. Says through log_info what it uses and why. */
bool ckpt_open(Ckpt **ckpt, const CkptConfig *config, Error *err);
/* Waits for what was begun. NULL: nothing. */
void ckpt_close(Ckpt *ckpt);

/* Begins checkpoint (attempt, step) with these views and returns; they and what they point to (but for `copied` ones)
 * must not change until ckpt_fence. False with *err only for a bug of the caller's world (too many views or bytes);
 * while the one before is being written nothing is begun, true is returned, and status.skipped counts it. All ranks
 * must begin the same ids: ask every rank's status.writing first. */
bool ckpt_begin(Ckpt *ckpt, uint64_t step, const TensorView *views, size_t count, Error *err);
/* Returns when no memory of a view is read any more: call it before the tensors change. */
void ckpt_fence(Ckpt *ckpt);
/* All ranks' shards of this step are durable (the callers agreed so): the thread merges their index tables, where this
 * rank is the first of its node, writes COMMIT, and lets go of checkpoints beyond `keep`. Returns at once. best: the best
 * so far, say by validation loss; it is kept until another one is. Every rank must say the same. */
void ckpt_commit(Ckpt *ckpt, uint64_t step, bool best);
/* Waits at most `seconds` until the shard of the newest begin is durable or has failed (durable) or, after ckpt_commit,
 * until its commit is too; false: not yet, or failed (status tells). */
bool ckpt_wait(Ckpt *ckpt, double seconds);
CkptStatus ckpt_status(Ckpt *ckpt);

/* Marks of a checkpoint in a staging folder, or (but for UPLOADED) in a store, from any process, also while a run writes
 * there. UPLOADED: the store has all of it and its COMMIT. */
typedef enum { CKPT_MARK_UPLOADED, CKPT_MARK_PIN, CKPT_MARK_UNPIN } CkptMark;
bool ckpt_mark(const char *place, CkptId id, CkptMark mark, Error *err);
#endif
