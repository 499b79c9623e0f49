/* ckpt_reader.h: the reading half of the checkpoint store: what is there, what is whole, and any range of any tensor.
 *
 * A reader sees a snapshot: checkpoints that were restorable when it was opened, whose segments it keeps from being
 * recycled until it is closed. It reads a staging folder or a store (store.h: a folder or S3) alike. Every byte that it
 * hands out was checked against its checksum in this call. All input is bounded and suspect. */
#ifndef LLMC_CKPT_READER_H
#define LLMC_CKPT_READER_H
#include "ckpt/ckpt.h"

typedef enum {
    CKPT_RESTORABLE, /* all shards' records and tables validate */
    CKPT_INCOMPLETE, /* some shard was never finished, or is elsewhere */
    CKPT_CORRUPT,    /* a record or table that should validate does not */
} CkptState;

typedef struct {
    CkptId id;
    CkptState state;
    bool committed, pinned, uploaded;
    int writers, writers_present;
    uint64_t bytes, tensors;
    int64_t unix_seconds; /* when its first shard was durable */
    char why[256];        /* what is missing or broken, "" if restorable */
} CkptInfo;

typedef struct CkptReader CkptReader;

/* place: a staging folder, a store's folder, or s3://bucket/prefix. An absent or empty one is no error: zero
 * checkpoints. */
bool ckpt_reader_open(CkptReader **reader, const char *place, Error *err);
void ckpt_reader_close(CkptReader *reader);
/* The checkpoints found, newest first; *list lives as long as the reader. */
size_t ckpt_reader_list(const CkptReader *reader, const CkptInfo **list);
/* The UUID of the run that wrote them; false: nothing there. */
bool ckpt_reader_run(const CkptReader *reader, uint8_t run[16]);
/* The largest attempt that any record of the place speaks of, also of checkpoints that were dropped and are not listed; 0:
 * none. The next start of the run takes a larger one. */
uint32_t ckpt_reader_attempt(const CkptReader *reader);

typedef struct {
    char name[CKPT_NAME_BYTES];
    CkptType type;
    int dims;
    uint64_t shape[CKPT_DIMS_MAX];
    uint64_t present; /* elements that are here */
} CkptTensor;

/* The tensors of a checkpoint, sorted by name; false with err if its tables do not validate. *tensors lives as long as
 * the reader. */
bool ckpt_reader_tensors(CkptReader *reader, CkptId id, const CkptTensor **tensors, size_t *count,
                         Error *err);
/* O(log n) in the shards' pieces: is every element of [begin, end) here? */
bool ckpt_reader_has(CkptReader *reader, CkptId id, const char *name, uint64_t begin, uint64_t end);
/* Elements [begin, end) into data; the type must be the stored one. Several threads may read at once. On false data is
 * undefined and err names checkpoint, tensor, file, offset, and what to do. */
bool ckpt_reader_read(CkptReader *reader, CkptId id, const char *name, CkptType type, uint64_t begin,
                      uint64_t end, void *data, Error *err);
/* Many ranges at once, by this many threads (0: as many as help); they are cut where that makes them even. */
typedef struct {
    const char *name;
    CkptType type;
    uint64_t begin, end;
    void *data;
} CkptWanted;
bool ckpt_reader_read_all(CkptReader *reader, CkptId id, const CkptWanted *wanted, size_t count, int threads,
                          Error *err);

/* The shards of a checkpoint that are here, by rank: what a drainer uploads. *shards lives as long as the reader. */
typedef struct {
    char node[CKPT_NAME_BYTES];
    uint32_t rank;
    char name[192]; /* in the place: seg/... in a staging folder, a key in a store */
    uint64_t bytes; /* up to and with the footer: the object in a store */
} CkptShard;
bool ckpt_reader_shards(CkptReader *reader, CkptId id, const CkptShard **shards, size_t *count, Error *err);
/* The merged table of the shards that are here, and a COMMIT record, as a store keeps them. *data lives as long as the
 * reader. */
bool ckpt_reader_table(CkptReader *reader, CkptId id, const void **data, size_t *bytes, Error *err);
bool ckpt_reader_commit_record(CkptReader *reader, CkptId id, uint8_t record[4096], Error *err);
/* Keys in a store: what is "seg" (with node and rank), "table" or "COMMIT". */
void ckpt_store_key(char key[192], CkptId id, const char *what, const char *node, uint32_t rank);

/* Reads and checks every chunk of a checkpoint; counts bad chunks and says the first in err; progress (0 .. 1) may be
 * NULL. */
bool ckpt_reader_verify(CkptReader *reader, CkptId id, uint64_t *bad_chunks, void (*progress)(double done),
                        Error *err);
#endif
