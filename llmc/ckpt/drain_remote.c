/* drain_remote.c: see drain_remote.h. */
#include "ckpt/drain_remote.h"
#include "ckpt/ckpt_reader.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_BYTES = 192 };

/* ---- completing a checkpoint ---- */

/* The segments of one checkpoint that are in the store. */
typedef struct {
    CkptScanShard *shards;
    uint64_t *bytes;
    size_t count, max, length; /* length: of the common prefix of their keys */
} Segments;

static void note_segment(void *ctx, const char *key, uint64_t bytes) {
    Segments *s = ctx;
    size_t n = strlen(key);
    if (n < 4 || strcmp(key + n - 4, ".seg") != 0 || n >= sizeof s->shards->name || s->count == s->max)
        return;
    s->bytes[s->count] = bytes;
    snprintf(s->shards[s->count++].name, sizeof s->shards->name, "%s", key);
}

static int by_rank(const void *a, const void *b) {
    const CkptScanShard *x = a, *y = b;
    return x->record.rank != y->record.rank ? (x->record.rank < y->record.rank ? -1 : 1) : 0;
}

/* Reads the footers; *whole: one valid segment of each of the W ranks. */
static bool read_footers(Store *store, const char *place, const CkptScanCheckpoint *c, Segments *s,
                         bool *whole, Error *err) {
    unsigned char block[CKPT_BLOCK];
    *whole = false;
    for (size_t i = 0; i < s->count; i++) {
        CkptRecord *r = &s->shards[i].record;
        if (s->bytes[i] < CKPT_BLOCK) return true;
        if (!store_get(store, s->shards[i].name, block, sizeof block, s->bytes[i] - CKPT_BLOCK, err))
            return false;
        if (!ckpt_record_decode(r, block) || r->kind != CKPT_RECORD_SHARD || r->used_bytes != s->bytes[i] ||
            ckpt_id_compare(r->id, c->id) != 0)
            return error_set(err, "%s: %s is no shard of checkpoint %s (remove it)", place, s->shards[i].name,
                             ckpt_id_text(c->id).text);
        if (memcmp(r->run, c->run, sizeof r->run) != 0 || r->writers != c->writers)
            return error_set(
                err, "%s: %s is of another run (one place holds one run: give this one a prefix of its own)",
                place, s->shards[i].name);
    }
    qsort(s->shards, s->count, sizeof *s->shards, by_rank);
    for (size_t i = 0; i < s->count; i++)
        if (s->shards[i].record.rank != i) return true;
    *whole = true;
    return true;
}

/* A source that reads objects, so that tables are merged from the store as from staging. */
typedef struct {
    CkptSource source;
    Store *store;
} Objects;

static bool read_object(CkptSource *source, const char *name, void *data, size_t bytes, uint64_t offset,
                        Error *err) {
    return store_get(((Objects *)source)->store, name, data, bytes, offset, err);
}

static bool read_memory(void *ctx, void *data, size_t bytes, uint64_t offset, Error *err) {
    (void)err;
    memcpy(data, (const char *)ctx + offset, bytes);
    return true;
}

static bool put_table(Store *store, const char *place, const CkptScanCheckpoint *c, Segments *s, Error *err) {
    Objects objects = {.source = {.store = true, .place = place, .read = read_object}, .store = store};
    CkptScanCheckpoint all = *c;
    CkptScan scan = {.checkpoints = &all, .shards = s->shards, .num_checkpoints = 1, .num_shards = s->count};
    CkptTable table = {0};
    char key[KEY_BYTES];
    all.first = 0;
    all.count = s->count;
    all.mixed = false;
    if (!ckpt_scan_merge(&table, &objects.source, &scan, &all, NULL, err)) return false;
    ckpt_store_key(key, c->id, "table", NULL, 0);
    bool ok = ckpt_table_covers(&table, err) &&
              store_put(store, key, table.head->bytes, read_memory, table.head, NULL, NULL, NULL, err);
    free(table.head);
    return ok;
}

/* The same record from whoever puts it: it must not look like another's. */
static bool put_commit(Store *store, const char *place, const CkptScanCheckpoint *c, Error *err) {
    unsigned char block[CKPT_BLOCK];
    char key[KEY_BYTES];
    bool existed;
    CkptRecord commit = {.kind = CKPT_RECORD_COMMIT,
                         .id = c->id,
                         .rank = CKPT_RANK_NONE,
                         .writers = c->writers,
                         .flags = c->best ? CKPT_FLAG_BEST : 0};
    memcpy(commit.run, c->run, sizeof commit.run);
    ckpt_record_encode(&commit, block);
    ckpt_store_key(key, c->id, "COMMIT", NULL, 0);
    if (store_put_small(store, key, block, sizeof block, true, &existed, err)) return true;
    return existed &&
           error_set(err,
                     "%s: there is another %s (one place holds one run: give this one a prefix of its own)",
                     place, key);
}

static bool is_ours(Store *store, const char *place, const char *key, uint64_t bytes,
                    const CkptScanCheckpoint *c, Error *err) {
    unsigned char block[CKPT_BLOCK];
    CkptRecord r;
    if (bytes != CKPT_BLOCK) return error_set(err, "%s: %s is no COMMIT (remove it)", place, key);
    if (!store_get(store, key, block, sizeof block, 0, err)) return false;
    if (ckpt_record_decode(&r, block) && r.kind == CKPT_RECORD_COMMIT &&
        !memcmp(r.run, c->run, sizeof r.run) && ckpt_id_compare(r.id, c->id) == 0)
        return true;
    return error_set(err,
                     "%s: %s is of another run (one place holds one run: give this one a prefix of its own)",
                     place, key);
}

RemoteState drain_remote_complete(Store *store, const char *place, const CkptScanCheckpoint *c, Error *err) {
    char key[KEY_BYTES];
    uint64_t bytes;
    bool found, whole = false, ok;
    ckpt_store_key(key, c->id, "COMMIT", NULL, 0);
    if (!store_stat(store, key, &bytes, &found, err)) return REMOTE_FAILED;
    if (found) return is_ours(store, place, key, bytes, c, err) ? REMOTE_COMPLETE : REMOTE_FAILED;
    Segments s = {.max = (size_t)c->writers + 16};
    s.shards = calloc(s.max, sizeof *s.shards);
    s.bytes = calloc(s.max, sizeof *s.bytes);
    ok = s.shards && s.bytes;
    if (!ok) error_set(err, "%s: no memory for %u shards", place, (unsigned)c->writers);
    snprintf(key, sizeof key, "ckpt/%s/", ckpt_id_text(c->id).text);
    ok = ok && store_list(store, key, note_segment, &s, err);
    if (ok && s.count >= c->writers) ok = read_footers(store, place, c, &s, &whole, err);
    if (ok && whole) ok = put_table(store, place, c, &s, err) && put_commit(store, place, c, err);
    free(s.shards);
    free(s.bytes);
    return !ok ? REMOTE_FAILED : whole ? REMOTE_COMPLETE : REMOTE_WAITING;
}

/* ---- pins ---- */

/* COMMIT is looked for again behind the put: whoever removes a checkpoint begins with it. */
bool drain_remote_pin(Store *store, const CkptScanCheckpoint *c, bool *there, Error *err) {
    unsigned char block[CKPT_BLOCK];
    char pin_key[KEY_BYTES], commit_key[KEY_BYTES];
    uint64_t bytes;
    bool existed;
    CkptRecord pin = {.kind = CKPT_RECORD_PIN, .id = c->id, .rank = CKPT_RANK_NONE, .writers = c->writers};
    memcpy(pin.run, c->run, sizeof pin.run);
    ckpt_record_encode(&pin, block);
    ckpt_store_key(pin_key, c->id, "PIN", NULL, 0);
    ckpt_store_key(commit_key, c->id, "COMMIT", NULL, 0);
    if (!store_stat(store, commit_key, &bytes, there, err)) return false;
    if (!*there) return true;
    if (!store_put_small(store, pin_key, block, sizeof block, false, &existed, err) ||
        !store_stat(store, commit_key, &bytes, there, err))
        return false;
    return *there || drain_remote_unpin(store, c->id, err);
}

bool drain_remote_unpin(Store *store, CkptId id, Error *err) {
    char key[KEY_BYTES];
    ckpt_store_key(key, id, "PIN", NULL, 0);
    return store_delete(store, key, err);
}

/* ---- what is there ---- */

typedef struct {
    CkptId *ids;
    size_t max, count;
} Ids;

static void note_commit(void *ctx, const char *key, uint64_t bytes) {
    Ids *ids = ctx;
    CkptId id;
    const char *rest;
    (void)bytes;
    if (strncmp(key, "ckpt/", 5) != 0 || !ckpt_id_parse(key + 5, &id, &rest) || strcmp(rest, "/COMMIT") != 0)
        return;
    if (ids->count == ids->max) { /* ascending keys: the oldest gives way */
        memmove(ids->ids, ids->ids + 1, (ids->max - 1) * sizeof *ids->ids);
        ids->count--;
    }
    ids->ids[ids->count++] = id;
}

static int newest_first(const void *a, const void *b) {
    return ckpt_id_compare(*(const CkptId *)b, *(const CkptId *)a);
}

bool drain_remote_list(Store *store, CkptId *ids, size_t max, size_t *count, Error *err) {
    Ids list = {.ids = ids, .max = max};
    bool ok = store_list(store, "ckpt/", note_commit, &list, err);
    *count = list.count;
    if (list.count) qsort(ids, list.count, sizeof *ids, newest_first);
    return ok;
}

/* ---- retention ---- */

typedef struct {
    char (*keys)[KEY_BYTES];
    size_t count, room;
    CkptId limit; /* what is older, and not in `stays`, goes */
    const CkptId *stays;
    size_t num_stays;
    bool no_memory;
} Doomed;

static void note_doomed(void *ctx, const char *key, uint64_t bytes) {
    Doomed *d = ctx;
    CkptId id;
    const char *rest;
    (void)bytes;
    if (strncmp(key, "ckpt/", 5) != 0 || strlen(key) >= KEY_BYTES || !ckpt_id_parse(key + 5, &id, &rest) ||
        *rest != '/')
        return;
    if (ckpt_id_compare(id, d->limit) >= 0) return;
    for (size_t i = 0; i < d->num_stays; i++)
        if (ckpt_id_compare(d->stays[i], id) == 0) return;
    if (d->count == d->room) {
        size_t room = d->room ? 2 * d->room : 64;
        void *grown = realloc(d->keys, room * sizeof *d->keys);
        if (!grown) {
            d->no_memory = true;
            return;
        }
        d->keys = grown;
        d->room = room;
    }
    snprintf(d->keys[d->count++], KEY_BYTES, "%s", key);
}

static bool ends_with(const char *key, const char *end) {
    size_t n = strlen(key), m = strlen(end);
    return n > m && !strcmp(key + n - m, end);
}

/* Keys ascend, and so those of one checkpoint follow one another: those of one that has a PIN stay. */
static void spare_pinned(Doomed *d) {
    size_t stay = 0, prefix;
    for (size_t i = 0, end; i < d->count; i = end) {
        bool pinned = false;
        prefix = strcspn(d->keys[i] + 5, "/") + 6; /* ckpt/<id>/ */
        for (end = i; end < d->count && !strncmp(d->keys[i], d->keys[end], prefix); end++)
            pinned |= ends_with(d->keys[end], "/PIN");
        for (size_t k = i; k < end && !pinned; k++) memmove(d->keys[stay++], d->keys[k], KEY_BYTES);
    }
    d->count = stay;
}

static bool is_best(Store *store, CkptId id, bool *best, Error *err) {
    unsigned char block[CKPT_BLOCK];
    char key[KEY_BYTES];
    CkptRecord r;
    ckpt_store_key(key, id, "COMMIT", NULL, 0);
    if (!store_get(store, key, block, sizeof block, 0, err)) return false;
    *best = ckpt_record_decode(&r, block) && (r.flags & CKPT_FLAG_BEST);
    return true;
}

/* COMMIT goes first, so that nobody takes what is half gone for complete. */
static bool remove_all(Store *store, const Doomed *d, Error *err) {
    for (int commits = 1; commits >= 0; commits--)
        for (size_t i = 0; i < d->count; i++) {
            if (ends_with(d->keys[i], "/COMMIT") == commits && !store_delete(store, d->keys[i], err))
                return false;
        }
    return true;
}

bool drain_remote_retain(Store *store, int keep, bool (*keep_id)(void *ctx, CkptId id), void *ctx,
                         Error *err) {
    enum { IDS_MAX = 4096 };
    CkptId *ids = malloc(IDS_MAX * sizeof *ids);
    size_t count = 0, stays = 0;
    bool best_found = false;
    Doomed doomed = {0};
    if (!ids) return error_set(err, "no memory for a list of checkpoints");
    bool ok = drain_remote_list(store, ids, IDS_MAX, &count, err);
    bool something = ok && count > (size_t)keep;
    if (something) doomed.limit = ids[keep - 1];
    for (size_t i = 0; ok && something && i < count; i++) { /* those that stay are moved to the front */
        bool best = false;
        if (!best_found) ok = is_best(store, ids[i], &best, err);
        best_found |= best;
        if (i < (size_t)keep || best || keep_id(ctx, ids[i])) ids[stays++] = ids[i];
    }
    doomed.stays = ids;
    doomed.num_stays = stays;
    ok = ok && (!something || store_list(store, "ckpt/", note_doomed, &doomed, err));
    if (doomed.no_memory) ok = error_set(err, "no memory for a list of objects");
    spare_pinned(&doomed);
    ok = ok && remove_all(store, &doomed, err);
    free(doomed.keys);
    free(ids);
    return ok;
}
