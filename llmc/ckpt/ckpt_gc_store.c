/* ckpt_gc_store.c: see ckpt_gc.h: a store, a folder's or S3. */
#include "base/check.h"
#include "ckpt/ckpt_gc.h"
#include "ckpt/ckpt_reader.h"
#include "ckpt/ckpt_scan.h"
#include "ckpt/store.h"
#include <stdlib.h>
#include <string.h>

enum { KEY_BYTES = CKPT_FILE_NAME_BYTES };

typedef struct {
    char key[KEY_BYTES];
    uint64_t bytes;
    CkptId id;
    bool commit, pinned; /* it is COMMIT; its checkpoint has a PIN */
} Object;

typedef struct {
    Object *objects;
    size_t count, room;
} Objects;

static void note_object(void *ctx, const char *key, uint64_t bytes) {
    Objects *o = ctx;
    const char *rest;
    CkptId id;
    if (strncmp(key, "ckpt/", 5) != 0 || strlen(key) >= KEY_BYTES || !ckpt_id_parse(key + 5, &id, &rest) ||
        *rest != '/')
        return;
    if (o->count == o->room) {
        o->room = o->room ? 2 * o->room : 64;
        o->objects = realloc(o->objects, o->room * sizeof *o->objects);
        CHECK(o->objects != NULL);
    }
    Object *object = &o->objects[o->count++];
    *object = (Object){.bytes = bytes, .id = id, .commit = !strcmp(rest, "/COMMIT")};
    snprintf(object->key, sizeof object->key, "%s", key);
}

/* Keys ascend, and so one checkpoint's objects follow one another. */
static void note_pins(Objects *o) {
    char pin[KEY_BYTES];
    for (size_t i = 0, end; i < o->count; i = end) {
        bool pinned = false;
        ckpt_store_key(pin, o->objects[i].id, "PIN", NULL, 0);
        for (end = i; end < o->count && !ckpt_id_compare(o->objects[end].id, o->objects[i].id); end++)
            pinned |= !strcmp(o->objects[end].key, pin);
        for (size_t k = i; k < end; k++) o->objects[k].pinned = pinned;
    }
}

/* Which may go: those older than `limit` but for `best` and pinned ones. */
typedef struct {
    CkptId limit, best; /* limit: attempt 0: nothing may */
} Line;

/* COMMIT says whether it was the best when it was saved; the newest that says so is. A checkpoint may be restorable
 * without a COMMIT: then it was not seen to be complete, and is not the best either. */
static bool find_best(Store *store, const Objects *o, CkptId *best, Error *err) {
    unsigned char block[CKPT_BLOCK];
    for (size_t i = 0; i < o->count; i++) {
        const Object *object = &o->objects[i];
        CkptRecord r;
        if (!object->commit || object->bytes != CKPT_BLOCK || ckpt_id_compare(object->id, *best) < 0)
            continue;
        if (!store_get(store, object->key, block, sizeof block, 0, err)) return false;
        if (ckpt_record_decode(&r, block) && (r.flags & CKPT_FLAG_BEST)) *best = object->id;
    }
    return true;
}

static bool draw_line(const CkptGcConfig *config, Store *store, const Objects *o, Line *line, Error *err) {
    CkptReader *reader;
    const CkptInfo *list;
    int whole = 0;
    if (!ckpt_reader_open(&reader, config->place, err)) return false;
    size_t count = ckpt_reader_list(reader, &list);
    for (size_t i = 0; i < count; i++)
        if (list[i].state == CKPT_RESTORABLE && ++whole == config->keep) line->limit = list[i].id;
    ckpt_reader_close(reader);
    return find_best(store, o, &line->best, err);
}

static bool may_go(const Line *line, const Object *o) {
    return !o->pinned && ckpt_id_compare(o->id, line->limit) < 0 && ckpt_id_compare(o->id, line->best) != 0;
}

static bool remove_objects(const CkptGcConfig *config, CkptGcResult *result, Store *store, const Objects *o,
                           const Line *line, Error *err) {
    for (int commits = 1; commits >= 0; commits--)
        for (size_t i = 0; i < o->count; i++) {
            const Object *object = &o->objects[i];
            if (object->commit != commits || !may_go(line, object)) continue;
            if (!config->dry_run && !store_delete(store, object->key, err)) return false;
            result->files++;
            result->bytes += object->bytes;
        }
    for (size_t i = 0; i < o->count; i++) {
        const Object *object = &o->objects[i];
        if ((i && ckpt_id_compare(object->id, object[-1].id) == 0) || !may_go(line, object)) continue;
        result->checkpoints++;
        if (config->each) config->each(config->ctx, object->id, "older than those that are kept");
    }
    return true;
}

bool ckpt_gc_store(const CkptGcConfig *config, CkptGcResult *result, Error *err) {
    Store *store;
    Objects objects = {0};
    Line line = {{0, 0}, {0, 0}};
    if (!store_open(&store, config->place, NULL, err)) return false;
    bool ok = store_list(store, "ckpt/", note_object, &objects, err);
    note_pins(&objects);
    ok = ok && draw_line(config, store, &objects, &line, err) &&
         remove_objects(config, result, store, &objects, &line, err);
    if (ok && !config->dry_run)
        ok = store_abort_orphans(store, "ckpt/", config->orphan_seconds, &result->orphans, err);
    free(objects.objects);
    store_close(store);
    return ok;
}
