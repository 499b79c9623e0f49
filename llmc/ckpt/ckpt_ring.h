/* ckpt_ring.h: one writer's segments and its manifest: which segment is next, which checkpoints stay.
 *
 * What always holds: a segment is given out only when the DROP of what was in it is durable and no reader holds it; the
 * newest restorable checkpoint, pinned ones, the best one and, where a store is used, those that it does not have yet are
 * never dropped. One thread at a time. */
#ifndef LLMC_CKPT_RING_H
#define LLMC_CKPT_RING_H
#include "ckpt/ckpt_log.h"
#include "ckpt/ckpt_scan.h"

enum { CKPT_SEGMENTS_MAX = 64 };

typedef struct {
    uint32_t n;
    uint64_t bytes;                   /* of its file; 0: not there */
    bool live;                        /* holds a shard that may not be overwritten */
    bool committed, best, commit_due; /* due: is to be committed, but that is not durable yet */
    CkptRecord shard; /* what is, or was last, in it; kind 0: nothing that anyone could be reading */
} CkptSegment;

typedef struct {
    CkptIo *io;
    const CkptConfig *config;
    char node[CKPT_NODE_BYTES], folder[3072];
    CkptFile *writer_lock;
    CkptLog log;
    CkptSource *source;
    CkptScan scan; /* of the whole folder, as of the last look */
    uint64_t segment_bytes;
    CkptSegment segments[CKPT_SEGMENTS_MAX];
    size_t count, last_taken;
    bool no_table;  /* the last merged table could not be written */
    bool strangers; /* manifests of writers of earlier attempts may be there */
    uint64_t backlog;
    char path[4096]; /* scratch */
} CkptRing;

/* Recovers what is there, lets go of what can never be restored, preallocates. segment_bytes: of one checkpoint, all in
 * all. The config must stay. */
bool ckpt_ring_open(CkptRing *ring, CkptIo *io, const CkptConfig *config, uint64_t segment_bytes, Error *err);
void ckpt_ring_close(CkptRing *ring);
/* A segment to write, its file open (close it with the io). NULL: none may be taken; err says why. */
CkptFile *ckpt_ring_take(CkptRing *ring, CkptSegment **segment, Error *err);
/* The segment holds the shard and is durable: says so in the manifest. */
bool ckpt_ring_shard(CkptRing *ring, CkptSegment *segment, const CkptRecord *shard, Error *err);
/* The checkpoint is restorable: merged table, COMMIT, and what may go now goes. */
bool ckpt_ring_commit(CkptRing *ring, CkptId id, bool best, Error *err);
/* The newest committed one of this writer; attempt 0: none. */
CkptId ckpt_ring_newest(const CkptRing *ring);
#endif
