/* ckpt_format.h: the bytes of the checkpoint store: records, checksum seeds, names (dev/design/checkpoint-format.md).
 *
 * What always holds: what ckpt_record_decode accepts has a valid checksum and fields within bounds, so that users need
 * not check them again. */
#ifndef LLMC_CKPT_FORMAT_H
#define LLMC_CKPT_FORMAT_H
#include "ckpt/ckpt.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the checkpoint store writes its tables as they are in memory, which must be little-endian"
#endif

enum {
    CKPT_BLOCK = 4096,
    CKPT_CHUNK = 1 << 20,
    CKPT_NODE_BYTES = 64,
    CKPT_FILE_NAME_BYTES = 192, /* of a file of the store, from its folder */
    CKPT_WRITERS_MAX = 1 << 20
};
#define CKPT_RANK_NONE 0xffffffffu

/* Numbers of what is no chunk, in checksum seeds. */
#define CKPT_SEED_RECORD     0xfffffff0u
#define CKPT_SEED_TABLE_HEAD 0xfffffff1u
#define CKPT_SEED_TABLE_BODY 0xfffffff2u

typedef enum {
    CKPT_RECORD_SEGMENT = 1,
    CKPT_RECORD_SHARD,
    CKPT_RECORD_COMMIT,
    CKPT_RECORD_UPLOADED,
    CKPT_RECORD_PIN,
    CKPT_RECORD_UNPIN,
    CKPT_RECORD_DROP
} CkptRecordKind;

enum { CKPT_FLAG_BEST = 1 };

typedef struct {
    CkptRecordKind kind;
    uint8_t run[16];
    CkptId id;
    uint32_t rank, writers, flags;
    uint64_t sequence;
    char node[CKPT_NODE_BYTES];
    uint32_t segment, tensors;
    uint64_t table_offset, table_bytes, used_bytes, payload_bytes;
    int64_t unix_seconds;
} CkptRecord;

/* The CRC of the 36-byte prefix: checksums go on from it. */
uint32_t ckpt_seed(const uint8_t run[16], CkptId id, uint32_t rank, uint32_t number);

void ckpt_record_encode(const CkptRecord *record, void *block);
/* False: not a valid record. */
bool ckpt_record_decode(CkptRecord *record, const void *block);

/* The host's name as it stands in file names. */
void ckpt_node_name(char out[CKPT_NODE_BYTES], const char *node);
/* seg/<node>.<rank>.<n>.seg and so on, into out (CKPT_FILE_NAME_BYTES). */
void ckpt_segment_name(char *out, const char *node, uint32_t rank, uint32_t n);
void ckpt_manifest_name(char *out, const char *node, uint32_t rank);
void ckpt_table_name(char *out, CkptId id);
void ckpt_lock_name(char *out, CkptId id);
/* "000001.000000000100": the id in names and in messages. */
typedef struct {
    char text[40];
} CkptIdText;
CkptIdText ckpt_id_text(CkptId id);

/* The reverse, of names without their folder; false: not such a name. */
bool ckpt_manifest_parse(const char *name, char node[CKPT_NODE_BYTES], uint32_t *rank);
bool ckpt_segment_parse(const char *name, char node[CKPT_NODE_BYTES], uint32_t *rank, uint32_t *n);
bool ckpt_id_parse(const char *text, CkptId *id, const char **end);
bool ckpt_object_parse(const char *name, char node[CKPT_NODE_BYTES], uint32_t *rank); /* <node>.<rank>.seg */

static inline uint64_t ckpt_blocks(uint64_t bytes) { /* rounded up to whole blocks, in bytes */
    return (bytes + CKPT_BLOCK - 1) / CKPT_BLOCK * CKPT_BLOCK;
}
#endif
