/* ckpt_reader_internal.h: what ckpt_reader.c, which finds and judges checkpoints, shares with ckpt_read.c, which reads
 * their bytes. */
#ifndef LLMC_CKPT_READER_INTERNAL_H
#define LLMC_CKPT_READER_INTERNAL_H
#include "ckpt/ckpt_reader.h"
#include "ckpt/ckpt_scan.h"

enum { CKPT_READ_BYTES = 8 << 20 }; /* at once: whole chunks */

typedef struct {
    CkptId id;
    uint8_t run[16];
    uint32_t writers;
    CkptTable table; /* of the shards that are here and whole; head NULL: none is */
    CkptTensor *tensors;
    CkptShard *shards;
    size_t num_tensors, num_shards;
} CkptLoaded;

typedef struct {
    CkptId id;
    CkptFile *file; /* NULL: could not be had */
    bool refused;   /* its segments are being recycled */
} CkptHeld;

struct CkptReader {
    CkptSource *source;
    CkptScan scan;
    CkptIo io; /* for the locks */
    CkptHeld *locks;
    size_t num_locks;
    CkptInfo *list;     /* (count) newest first */
    CkptLoaded *loaded; /* (count) */
    size_t count;
};

/* Parts that are whole chunks of the stored type, one behind the other in a file and in memory alike: by one request, and
 * each checked. */
bool ckpt_read_row(CkptReader *reader, const CkptTable *table, const CkptWanted *parts, size_t count,
                   Error *err);
const CkptLoaded *ckpt_reader_find(const CkptReader *reader, CkptId id, Error *err);
#endif
