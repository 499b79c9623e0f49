/* store.h: where checkpoints go to stay: objects under keys, in a folder or in S3-compatible storage.
 *
 * What always holds: an object appears whole or not at all, and is never changed afterwards; a put that returned true
 * is durable. Keys are [A-Za-z0-9._-] between single '/', no part beginning with '.'. Every call has bounded retries
 * with jitter, and a deadline; credentials come from the environment or the AWS config files and are never printed. A
 * Store may be used by several threads at once, but each key is put by one at a time. */
#ifndef LLMC_STORE_H
#define LLMC_STORE_H
#include "base/error.h"
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { STORE_KEY_BYTES = 512 };

typedef struct {
    uint64_t bytes_per_second_max; /* cap on uploads; 0: none */
    double timeout_seconds;        /* of one request without progress; 0: 30 */
    int attempts_max;              /* of one request; 0: 8 */
    double backoff_seconds;        /* before the second attempt at most; doubles, up to 20; 0: 0.5 */
    size_t part_bytes;             /* of a multipart upload; 0: 32 MiB; S3 wants >= 5 MiB */
    const atomic_bool *stop;       /* true: every call ends soon, with an error; NULL: none */
    int parts_in_flight;           /* and that many buffers of part_bytes during a put; 0: 4 */
} StoreConfig;

typedef struct Store Store;

/* place: a folder, or s3://bucket/prefix (s3_config.h: endpoint, region, keys). config may be NULL. Touches nothing
 * yet: an error names what is missing to begin at all. */
bool store_open(Store **store, const char *place, const StoreConfig *config, Error *err);
void store_close(Store *store);
/* The place, for people; without keys. */
const char *store_describe(const Store *store);
/* Asks whether the place can be read and the keys are good: before training rather than after hours of it. */
bool store_check(Store *store, Error *err);

/* Source of an upload: fills data with bytes from offset. Called from several threads, one at a time; may be called again
 * for the same range. */
typedef bool (*StoreRead)(void *ctx, void *data, size_t bytes, uint64_t offset, Error *err);

/* Uploads `bytes` bytes; large ones in parts. resume_path (may be NULL): a small file beside the staging store where the
 * upload's id and finished parts are kept durable, so that another process goes on after a crash; removed at the end.
 * *stop (may be NULL) true: ends early with an error, to be resumed. *read_failed (may be NULL): the error is the
 * source's, not the store's. */
bool store_put(Store *store, const char *key, uint64_t bytes, StoreRead read, void *ctx,
               const char *resume_path, const atomic_bool *stop, bool *read_failed, Error *err);
/* A small object; only_if_absent: false with *existed = true if there is another one already (If-None-Match where the
 * server knows it, after asking). One with these very bytes is taken for ours: true. */
bool store_put_small(Store *store, const char *key, const void *data, size_t bytes, bool only_if_absent,
                     bool *existed, Error *err);
/* Bytes [offset, offset + bytes) of an object, all or an error. */
bool store_get(Store *store, const char *key, void *data, size_t bytes, uint64_t offset, Error *err);
/* *found false: no such object, which is no error. */
bool store_stat(Store *store, const char *key, uint64_t *bytes, bool *found, Error *err);
/* Calls with every key under prefix (any text), ascending. What is under no valid key is passed over. */
bool store_list(Store *store, const char *prefix, void (*each)(void *ctx, const char *key, uint64_t bytes),
                void *ctx, Error *err);
bool store_delete(Store *store, const char *key, Error *err); /* absent: true */
/* Ends uploads that were begun under prefix and never finished, older than age_seconds; counts them. */
bool store_abort_orphans(Store *store, const char *prefix, double age_seconds, int *aborted, Error *err);
#endif
