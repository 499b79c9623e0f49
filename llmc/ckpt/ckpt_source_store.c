/* ckpt_source_store.c: a store as a source of checkpoints: see ckpt_source.h. A Store serves several threads at once. */
#define _POSIX_C_SOURCE 200809L
#include "ckpt/ckpt_source.h"
#include "ckpt/store.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    CkptSource source;
    Store *store;
    char *place;
} Remote;

typedef struct {
    size_t skip; /* bytes of the folder and its '/' */
    void (*each)(void *ctx, const char *name, uint64_t bytes);
    void *ctx;
} Each;

static void below_folder(void *ctx, const char *key, uint64_t bytes) {
    Each *e = ctx;
    if (strlen(key) > e->skip) e->each(e->ctx, key + e->skip, bytes);
}

static bool remote_list(CkptSource *source, const char *folder,
                        void (*each)(void *ctx, const char *name, uint64_t bytes), void *ctx, Error *err) {
    char prefix[STORE_KEY_BYTES];
    Each e = {.each = each, .ctx = ctx};
    e.skip = (size_t)snprintf(prefix, sizeof prefix, "%s/", folder);
    return store_list(((Remote *)source)->store, prefix, below_folder, &e, err);
}

static bool remote_size(CkptSource *source, const char *name, uint64_t *bytes, bool *found, Error *err) {
    return store_stat(((Remote *)source)->store, name, bytes, found, err);
}

static bool remote_read(CkptSource *source, const char *name, void *data, size_t bytes, uint64_t offset,
                        Error *err) {
    return store_get(((Remote *)source)->store, name, data, bytes, offset, err);
}

static void remote_close(CkptSource *source) {
    Remote *r = (Remote *)source;
    store_close(r->store);
    free(r->place);
    free(r);
}

bool ckpt_source_open_store(CkptSource **source, const char *place, Error *err) {
    *source = NULL;
    Remote *r = calloc(1, sizeof *r);
    char *copy = strdup(place);
    if (!r || !copy || !store_open(&r->store, place, &(StoreConfig){0}, err)) {
        if (!r || !copy) error_set(err, "%s: no memory to read it", place);
        free(r);
        free(copy);
        return false;
    }
    r->place = copy;
    r->source = (CkptSource){.store = true,
                             .place = copy,
                             .list = remote_list,
                             .size = remote_size,
                             .read = remote_read,
                             .close = remote_close};
    *source = &r->source;
    return true;
}
