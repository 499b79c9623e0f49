/* ckpt_shard.h: one writer's part of one checkpoint: from views of memory to a segment, in one pass over the memory.
 *
 * Views that touch in memory make one extent, which goes to the disk from where it is; only its first and last partial
 * pages, which it may share with memory that others change, are copied, so that no byte that is not the caller's is ever
 * read. What always holds: no memory is allocated after ckpt_shard_open but what qsort takes; every byte is summed exactly
 * once, just before it is handed to the disk. */
#ifndef LLMC_CKPT_SHARD_H
#define LLMC_CKPT_SHARD_H
#include "ckpt/ckpt_io.h"
#include "ckpt/ckpt_table.h"

enum { CKPT_BOUNCE_BYTES = 1 << 18, CKPT_BOUNCES = 8, CKPT_WRITE_BYTES = 8 << 20 };

/* A view on its way. */
typedef struct {
    TensorView view;  /* data: where it is written from */
    const void *from; /* where the caller has it */
    uint64_t offset;  /* in the segment */
    uint64_t bytes;
    uint32_t first_chunk;
} CkptPlanned;

typedef struct {
    size_t views_max;
    uint64_t payload_max, segment_bytes, table_bytes_max;
    CkptPlanned *planned;     /* (count), by name and begin */
    CkptPlanned **by_address; /* (count): the large extents first, then what is packed */
    size_t count, packed_from;
    uint64_t payload_bytes;
    CkptTable table;
    void *image; /* of the table and, behind it, the footer: blocks */
    void *header;
    char *bounces; /* CKPT_BOUNCES of CKPT_BOUNCE_BYTES */
    /* What reads the views that are not `copied`, all through the bounces; NULL: they are host memory. */
    void (*fetch)(void *ctx, void *host, const void *memory, size_t bytes);
    void *fetch_ctx;
    CkptRecord record;
} CkptShardWriter;

/* Allocates for views_max views of together payload_max bytes. */
bool ckpt_shard_open(CkptShardWriter *w, size_t views_max, uint64_t payload_max, Error *err);
void ckpt_shard_close(CkptShardWriter *w);

/* Takes the views over and checks them. */
bool ckpt_shard_views(CkptShardWriter *w, const TensorView *views, size_t count, Error *err);
/* Where everything goes, once planned[].view.data are final. `record` names the shard (run, id, rank, writers, node). */
void ckpt_shard_plan(CkptShardWriter *w, const CkptRecord *record);
/* One past the last view of the extent that begins with by_address[first], and the extent's bytes. */
size_t ckpt_shard_extent(const CkptShardWriter *w, size_t first, uint64_t *bytes);
/* Writes header and payload, calls released(ctx) when no memory of a view is read any more, writes index and footer, and
 * makes it all durable. w->record is then the SHARD. */
bool ckpt_shard_write(CkptShardWriter *w, CkptIo *io, CkptFile *file, uint32_t segment,
                      void (*released)(void *ctx), void *ctx, Error *err);
#endif
