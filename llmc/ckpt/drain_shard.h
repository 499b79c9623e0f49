/* drain_shard.h: one shard's segment on its way into the store, every byte that matters checked while it is read. */
#ifndef LLMC_DRAIN_SHARD_H
#define LLMC_DRAIN_SHARD_H
#include "ckpt/ckpt_scan.h"
#include "ckpt/store.h"

typedef struct {
    uint64_t offset; /* in the segment */
    uint32_t bytes, crc, number;
} DrainChunk;

typedef struct {
    CkptSource *source;
    const CkptScanShard *shard;
    CkptTable table;
    DrainChunk *chunks; /* by offset */
    size_t count;
    unsigned char *scratch; /* a chunk, for those that a range cuts */
    unsigned char footer[CKPT_BLOCK];
    bool corrupt; /* a read failed because of what is on the disk */
} DrainShard;

/* Reads table and footer. False with s->corrupt: they do not validate. drain_shard_close always. */
bool drain_shard_open(DrainShard *s, CkptSource *source, const CkptScanShard *shard, Error *err);
void drain_shard_close(DrainShard *s);
/* A StoreRead: bytes of the segment; false, with s->corrupt, if a chunk that lies in the range or reaches into it fails
 * its checksum. */
bool drain_shard_read(void *s, void *data, size_t bytes, uint64_t offset, Error *err);
#endif
