/* store_body.h: what a kind of store provides (store_dir.c, store_s3.c), and what both use. Keys are valid here. */
#ifndef LLMC_STORE_BODY_H
#define LLMC_STORE_BODY_H
#include "ckpt/store.h"
#include "ckpt/store_rate.h"

typedef struct {
    StoreRead read;
    void *ctx;
    uint64_t bytes;
    const char *resume_path;
    const atomic_bool *stop;
    atomic_bool read_failed;
} StoreSource;

/* Calls source->read, and remembers if it failed. */
bool store_source_read(StoreSource *source, void *data, size_t bytes, uint64_t offset, Error *err);

typedef void StoreEach(void *ctx, const char *key, uint64_t bytes);

typedef struct {
    void (*close)(void *state);
    bool (*check)(void *state, Error *err);
    bool (*put)(void *state, const char *key, StoreSource *source, Error *err);
    bool (*put_small)(void *state, const char *key, const void *data, size_t bytes, bool only_if_absent,
                      bool *existed, Error *err);
    bool (*get)(void *state, const char *key, void *data, size_t bytes, uint64_t offset, Error *err);
    bool (*stat)(void *state, const char *key, uint64_t *bytes, bool *found, Error *err);
    bool (*list)(void *state, const char *prefix, StoreEach *each, void *ctx, Error *err);
    bool (*remove)(void *state, const char *key, Error *err);
    bool (*abort_orphans)(void *state, const char *prefix, double age_seconds, int *aborted, Error *err);
} StoreBody;

struct Store {
    const StoreBody *body;
    void *state;
    StoreConfig config; /* without zeros but for the cap */
    StoreRate rate;     /* of what is put */
    char describe[1024];
};

/* Both fill body, state and describe of a Store that has config and rate. */
bool store_dir_open(Store *store, const char *place, Error *err);
bool store_s3_open(Store *store, const char *place, Error *err);

bool store_key_is_valid(const char *key);
#endif
