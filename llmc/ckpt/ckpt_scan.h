/* ckpt_scan.h: what the manifests of a place say: every checkpoint with its shards and marks, before anything of the shards
 * themselves is read.
 *
 * What always holds: checkpoints are newest first, their shards ascend by rank, at most one of a rank. */
#ifndef LLMC_CKPT_SCAN_H
#define LLMC_CKPT_SCAN_H
#include "ckpt/ckpt_source.h"
#include "ckpt/ckpt_table.h"

typedef struct {
    CkptRecord record;               /* its SHARD */
    char name[CKPT_FILE_NAME_BYTES]; /* of the segment */
    bool dropped, committed, best;   /* as its writer says */
} CkptScanShard;

typedef struct {
    CkptId id;
    uint8_t run[16];
    uint32_t writers;
    size_t first, count; /* in shards */
    bool dropped;        /* by any of its writers, or another shard is in its segment now */
    bool committed, best, pinned, uploaded;
    bool mixed; /* its shards do not agree on run or number of writers, or two are of one rank */
} CkptScanCheckpoint;

/* What marks.log says. */
typedef struct {
    CkptId id;
    bool pinned, uploaded;
} CkptScanMark;

typedef struct {
    CkptScanCheckpoint *checkpoints;
    CkptScanShard *shards;
    size_t num_checkpoints, num_shards;
} CkptScan;

/* Zeroed before the first use; ckpt_scan_free afterwards. An empty or absent place has no checkpoints. */
bool ckpt_scan(CkptScan *scan, CkptSource *source, Error *err);
void ckpt_scan_free(CkptScan *scan);
const CkptScanCheckpoint *ckpt_scan_find(const CkptScan *scan, CkptId id);

/* The marks of a staging folder alone; free(*marks). */
bool ckpt_scan_marks(CkptScanMark **marks, size_t *count, CkptSource *source, Error *err);

/* Reads the table of a shard into malloc'd memory (free(table->head)) and checks that it is of this shard. */
bool ckpt_scan_table(CkptTable *table, CkptSource *source, const CkptScanShard *shard, Error *err);
/* One table of all shards of a checkpoint that are here; the same memory. bad (may be NULL): shards whose table does not
 * validate are left out and counted there, the first is said in err. */
bool ckpt_scan_merge(CkptTable *table, CkptSource *source, const CkptScan *scan,
                     const CkptScanCheckpoint *checkpoint, size_t *bad, Error *err);
#endif
