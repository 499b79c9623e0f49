/* store.h: where checkpoints go to stay: objects under keys, in a folder or in S3-compatible storage.
 *
 * What always holds: an object appears whole or not at all, and is never changed afterwards; a put that returned true
 * is durable. Keys are '/'-separated, [A-Za-z0-9._-] between. Every call has bounded retries with jitter, and a deadline;
 * credentials come from the environment or the AWS config files and are never printed. A Store may be used by several
 * threads at once. */
#ifndef LLMC_STORE_H
#define LLMC_STORE_H
#include "base/error.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { STORE_KEY_BYTES = 512 };

typedef struct {
    uint64_t bytes_per_second_max; /* cap on uploads; 0: none */
    double timeout_seconds;        /* of one request without progress; 0: 30 */
    int attempts_max;              /* of one request; 0: 8 */
    size_t part_bytes;             /* of a multipart upload; 0: 32 MiB */
} StoreConfig;

typedef struct Store Store;

/* place: a folder, or s3://bucket/prefix (endpoint and region: AWS_ENDPOINT_URL[_S3], AWS_REGION, ~/.aws/config).
 * An error names what is missing. */
bool store_open(Store **store, const char *place, const StoreConfig *config, Error *err);
void store_close(Store *store);
const char *store_describe(const Store *store);

/* Source of an upload: fills data with bytes from offset. Called again for the same range after a retry. */
typedef bool (*StoreRead)(void *ctx, void *data, size_t bytes, uint64_t offset, Error *err);

/* Uploads `bytes` bytes; large ones in parts. resume_path (may be NULL): a small file beside the staging store where the
 * upload id and finished parts are kept durable, so that another process goes on after a crash; removed at the end.
 * *stop true: ends early with an error, to be resumed. */
bool store_put(Store *store, const char *key, uint64_t bytes, StoreRead read, void *ctx,
               const char *resume_path, const volatile bool *stop, Error *err);
/* A small object; only_if_absent: false with *existed = true if there is one already (If-None-Match where the server
 * knows it, else by asking first). */
bool store_put_small(Store *store, const char *key, const void *data, size_t bytes, bool only_if_absent,
                     bool *existed, Error *err);
/* Bytes [offset, offset + bytes) of an object, all or an error. */
bool store_get(Store *store, const char *key, void *data, size_t bytes, uint64_t offset, Error *err);
/* *found false: no such object, which is no error. */
bool store_stat(Store *store, const char *key, uint64_t *bytes, bool *found, Error *err);
/* Calls with every key under prefix, ascending. */
bool store_list(Store *store, const char *prefix, void (*each)(void *ctx, const char *key, uint64_t bytes),
                void *ctx, Error *err);
bool store_delete(Store *store, const char *key, Error *err); /* absent: true */
/* Ends uploads that were begun under prefix and never finished, older than age_seconds; counts them. */
bool store_abort_orphans(Store *store, const char *prefix, double age_seconds, int *aborted, Error *err);
#endif
