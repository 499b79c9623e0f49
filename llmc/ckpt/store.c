/* store.c: see store.h: checks what it is given and calls the kind of store. */
#define _POSIX_C_SOURCE 200809L
#include "ckpt/store.h"
#include "base/check.h"
#include "ckpt/store_body.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PART_BYTES_MIN = 5 << 20, PART_BYTES = 32 << 20, PARTS_IN_FLIGHT_MAX = 16 };

bool store_key_is_valid(const char *key) {
    size_t n = strlen(key);
    if (!n || n >= STORE_KEY_BYTES) return false;
    for (size_t i = 0; i < n; i++) {
        char c = key[i], before = i ? key[i - 1] : '/';
        bool word = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' ||
                    c == '-';
        if (!word && c != '.' && c != '/') return false;
        if (before == '/' && (c == '.' || c == '/')) return false;
    }
    return key[n - 1] != '/';
}

static void check_key(const char *key) {
    if (!store_key_is_valid(key)) fprintf(stderr, "store: key '%.80s'\n", key);
    CHECK(store_key_is_valid(key));
}

static StoreConfig with_defaults(const StoreConfig *given) {
    StoreConfig c = given ? *given : (StoreConfig){0};
    if (c.timeout_seconds <= 0) c.timeout_seconds = 30;
    if (c.attempts_max <= 0) c.attempts_max = 8;
    if (c.backoff_seconds <= 0) c.backoff_seconds = 0.5;
    if (!c.part_bytes) c.part_bytes = PART_BYTES;
    if (c.part_bytes < PART_BYTES_MIN) c.part_bytes = PART_BYTES_MIN;
    if (c.parts_in_flight <= 0) c.parts_in_flight = 4;
    if (c.parts_in_flight > PARTS_IN_FLIGHT_MAX) c.parts_in_flight = PARTS_IN_FLIGHT_MAX;
    return c;
}

bool store_open(Store **store, const char *place, const StoreConfig *config, Error *err) {
    *store = NULL;
    Store *s = calloc(1, sizeof *s);
    if (!s) return error_set(err, "%s: no memory", place);
    s->config = with_defaults(config);
    store_rate_open(&s->rate, s->config.bytes_per_second_max);
    bool ok = false;
    if (!strncmp(place, "s3://", 5))
        ok = store_s3_open(s, place, err);
    else if (strstr(place, "://"))
        error_set(err, "%.200s: no kind of store that is known here (write a folder, or s3://bucket/prefix)",
                  place);
    else
        ok = store_dir_open(s, place, err);
    if (ok)
        *store = s;
    else {
        store_rate_close(&s->rate);
        free(s);
    }
    return ok;
}

void store_close(Store *store) {
    if (!store) return;
    store->body->close(store->state);
    store_rate_close(&store->rate);
    free(store);
}

const char *store_describe(const Store *store) {
    return store->describe;
}

bool store_check(Store *store, Error *err) {
    return store->body->check(store->state, err);
}

bool store_source_read(StoreSource *source, void *data, size_t bytes, uint64_t offset, Error *err) {
    bool ok = source->read(source->ctx, data, bytes, offset, err);
    if (!ok) atomic_store(&source->read_failed, true);
    return ok;
}

bool store_put(Store *store, const char *key, uint64_t bytes, StoreRead read, void *ctx,
               const char *resume_path, const atomic_bool *stop, bool *read_failed, Error *err) {
    StoreSource source = {.read = read, .ctx = ctx, .bytes = bytes, .resume_path = resume_path, .stop = stop};
    check_key(key);
    bool ok = store->body->put(store->state, key, &source, err);
    if (read_failed) *read_failed = atomic_load(&source.read_failed);
    return ok;
}

bool store_put_small(Store *store, const char *key, const void *data, size_t bytes, bool only_if_absent,
                     bool *existed, Error *err) {
    bool ignored;
    check_key(key);
    if (!existed) existed = &ignored;
    *existed = false;
    return store->body->put_small(store->state, key, data, bytes, only_if_absent, existed, err);
}

bool store_get(Store *store, const char *key, void *data, size_t bytes, uint64_t offset, Error *err) {
    check_key(key);
    return !bytes || store->body->get(store->state, key, data, bytes, offset, err);
}

bool store_stat(Store *store, const char *key, uint64_t *bytes, bool *found, Error *err) {
    check_key(key);
    *found = false;
    *bytes = 0;
    return store->body->stat(store->state, key, bytes, found, err);
}

bool store_list(Store *store, const char *prefix, StoreEach *each, void *ctx, Error *err) {
    CHECK(strlen(prefix) < STORE_KEY_BYTES);
    return store->body->list(store->state, prefix, each, ctx, err);
}

bool store_delete(Store *store, const char *key, Error *err) {
    check_key(key);
    return store->body->remove(store->state, key, err);
}

bool store_abort_orphans(Store *store, const char *prefix, double age_seconds, int *aborted, Error *err) {
    CHECK(strlen(prefix) < STORE_KEY_BYTES);
    *aborted = 0;
    return store->body->abort_orphans(store->state, prefix, age_seconds, aborted, err);
}
