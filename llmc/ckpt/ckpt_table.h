/* ckpt_table.h: the index of a shard or of a whole checkpoint: which elements of which tensor are where, and the CRC of
 * every chunk (dev/design/checkpoint-format.md).
 *
 * The image in memory is the image on the disk; a CkptTable points into it. What always holds: after ckpt_table_view
 * succeeded every index in the image is in range, names end, and ranges are sorted, so users follow them unchecked. */
#ifndef LLMC_CKPT_TABLE_H
#define LLMC_CKPT_TABLE_H
#include "ckpt/ckpt_format.h"

typedef struct {
    char magic[8];
    uint32_t version, sources;
    uint8_t run[16];
    uint32_t attempt, rank;
    uint64_t step;
    uint32_t writers, tensors, pieces, chunks;
    uint64_t chunk_bytes, bytes;
    int64_t unix_seconds;
    uint8_t zeros[32];
    uint32_t body_crc, head_crc;
} CkptTableHead;

/* A segment that pieces are in. */
typedef struct {
    char node[CKPT_NODE_BYTES];
    uint32_t rank, segment;
    uint64_t used_bytes, table_offset, table_bytes, payload_bytes;
    uint32_t first_chunk, chunks; /* its CRCs in this table, in the order of its own */
    uint8_t zeros[16];
} CkptTableSource;

typedef struct {
    char name[CKPT_NAME_BYTES];
    uint32_t type, dims;
    uint64_t shape[CKPT_DIMS_MAX];
    uint32_t first_piece, pieces;
} CkptTableTensor;

/* Elements [begin, end) of a tensor, from byte `offset` of the segment of a source. */
typedef struct {
    uint64_t begin, end, offset;
    uint32_t source, first_chunk; /* first_chunk: index into crcs */
} CkptTablePiece;

typedef struct {
    CkptTableHead *head;
    CkptTableSource *sources;
    CkptTableTensor *tensors;
    CkptTablePiece *pieces;
    uint32_t *crcs;
} CkptTable;

enum { CKPT_TABLE_BYTES_MAX = 1 << 30 };

/* Bytes of a table with so many of each. */
uint64_t ckpt_table_bytes(uint64_t sources, uint64_t tensors, uint64_t pieces, uint64_t chunks);
/* Begins a table in image (8-byte aligned, zeroed here): its counts are set, the arrays are to be filled. */
void ckpt_table_layout(CkptTable *table, void *image, uint32_t sources, uint32_t tensors, uint32_t pieces,
                       uint32_t chunks);
/* When run, id, rank, writers, time and arrays are in: sizes and checksums. */
void ckpt_table_seal(CkptTable *table);
/* Checks the image (8-byte aligned) and points table into it. err says what is wrong; the caller knows the file. */
bool ckpt_table_view(CkptTable *table, void *image, size_t bytes, Error *err);

/* One table of all of these, which are of one checkpoint, in malloc'd memory: free(table->head). */
bool ckpt_table_merge(CkptTable *table, const CkptTable *parts, size_t count, Error *err);

/* NULL: no such tensor. O(log n). */
const CkptTableTensor *ckpt_table_tensor(const CkptTable *table, const char *name);
/* Of the tensor, the last piece that begins at or before the element; its end may be before it. NULL: none. O(log n). */
const CkptTablePiece *ckpt_table_piece(const CkptTable *table, const CkptTableTensor *tensor,
                                       uint64_t element);
uint64_t ckpt_table_elements(const CkptTableTensor *tensor);
/* Do the pieces leave no gap? Else err says where. */
bool ckpt_table_covers(const CkptTable *table, Error *err);
bool ckpt_table_covers_range(const CkptTable *table, const CkptTableTensor *tensor, uint64_t begin,
                             uint64_t end);
/* The elements that are there, once each. */
uint64_t ckpt_table_present(const CkptTable *table, const CkptTableTensor *tensor);
#endif
