/* ckpt_reader.c: see ckpt_reader.h: which checkpoints are there and whole. Bytes are read in ckpt_read.c.
 *
 * Everything is read and judged when the reader is opened; after that it only reads, so threads need no lock. */
#include "base/check.h"
#include "base/file.h"
#include "ckpt/ckpt_reader_internal.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

const CkptLoaded *ckpt_reader_find(const CkptReader *r, CkptId id, Error *err) {
    for (size_t i = 0; i < r->count; i++)
        if (ckpt_id_compare(r->list[i].id, id) == 0) return &r->loaded[i];
    error_set(err, "%s: no checkpoint %s (see 'train_gpt2 ckpt ls')", r->source->place,
              ckpt_id_text(id).text);
    return NULL;
}

void ckpt_store_key(char key[192], CkptId id, const char *what, const char *node, uint32_t rank) {
    CkptIdText t = ckpt_id_text(id);
    if (!strcmp(what, "seg"))
        snprintf(key, 192, "ckpt/%s/%s.%u.seg", t.text, node, (unsigned)rank);
    else
        snprintf(key, 192, "ckpt/%s/%s", t.text, what);
}

/* ---- the index of a checkpoint ---- */

/* Is the merged table that of exactly these shards? */
static bool matches(const CkptTable *t, const CkptReader *r, const CkptScanCheckpoint *c) {
    const CkptTableHead *h = t->head;
    if (memcmp(h->run, c->run, sizeof h->run) != 0 || h->attempt != c->id.attempt || h->step != c->id.step ||
        h->writers != c->writers || h->rank != CKPT_RANK_NONE || h->sources != c->count)
        return false;
    for (size_t i = 0; i < c->count; i++) {
        const CkptRecord *shard = &r->scan.shards[c->first + i].record;
        const CkptTableSource *s = &t->sources[i];
        if (s->rank != shard->rank || strcmp(s->node, shard->node) != 0 ||
            s->used_bytes != shard->used_bytes || s->table_offset != shard->table_offset ||
            (!r->source->store && s->segment != shard->segment))
            return false;
    }
    return true;
}

/* The merged table that a commit left; false: there is none that can be used, which is no harm. */
static bool load_merged(CkptReader *r, const CkptScanCheckpoint *c, CkptTable *table) {
    char name[CKPT_FILE_NAME_BYTES];
    uint64_t bytes;
    bool found;
    Error ignored;
    if (r->source->store)
        ckpt_store_key(name, c->id, "table", "", 0);
    else
        ckpt_table_name(name, c->id);
    if (c->mixed || !r->source->size(r->source, name, &bytes, &found, &ignored) || !found ||
        bytes > CKPT_TABLE_BYTES_MAX)
        return false;
    void *image = malloc((size_t)bytes + 1);
    if (image && r->source->read(r->source, name, image, (size_t)bytes, 0, &ignored) &&
        ckpt_table_view(table, image, (size_t)bytes, &ignored) && matches(table, r, c))
        return true;
    free(image);
    return false;
}

/* Are the segments there, and as long as they were? */
static bool segments_are_there(CkptReader *r, const CkptScanCheckpoint *c, Error *err) {
    uint64_t bytes;
    bool found;
    for (size_t i = 0; i < c->count && !r->source->store; i++) {
        const CkptScanShard *s = &r->scan.shards[c->first + i];
        if (!r->source->size(r->source, s->name, &bytes, &found, err)) return false;
        if (!found) return error_set(err, "%s/%s is gone", r->source->place, s->name);
        if (bytes < s->record.used_bytes)
            return error_set(err, "%s/%s was cut off: %" PRIu64 " of %" PRIu64 " bytes are left",
                             r->source->place, s->name, bytes, s->record.used_bytes);
    }
    return true;
}

static void name_missing(const CkptReader *r, const CkptScanCheckpoint *c, Error *err) {
    size_t next = 0;
    for (uint32_t rank = 0; rank < c->writers; rank++) {
        if (next < c->count && r->scan.shards[c->first + next].record.rank == rank) {
            next++;
            continue;
        }
        error_set(err, "%zu of %u shards are here; the first that is not is that of rank %u", c->count,
                  (unsigned)c->writers, (unsigned)rank);
        return;
    }
}

static CkptState judge(CkptReader *r, const CkptScanCheckpoint *c, CkptLoaded *loaded, Error *why) {
    size_t bad = 0;
    Error first = {""};
    bool there = segments_are_there(r, c, &first);
    if (!load_merged(r, c, &loaded->table) &&
        !ckpt_scan_merge(&loaded->table, r->source, &r->scan, c, &bad, there ? &first : why)) {
        loaded->table.head = NULL;
        bad++;
    }
    *why = first;
    if (c->mixed || bad || !there) return CKPT_CORRUPT;
    if (c->count < c->writers) {
        name_missing(r, c, why);
        return CKPT_INCOMPLETE;
    }
    return ckpt_table_covers(&loaded->table, why) ? CKPT_RESTORABLE : CKPT_CORRUPT;
}

static bool list_tensors(CkptLoaded *l) {
    const CkptTable *t = &l->table;
    if (!t->head) return true;
    l->num_tensors = t->head->tensors;
    l->tensors = calloc(l->num_tensors + 1, sizeof *l->tensors);
    for (size_t i = 0; l->tensors && i < l->num_tensors; i++) {
        CkptTensor *to = &l->tensors[i];
        memcpy(to->name, t->tensors[i].name, sizeof to->name);
        to->type = (CkptType)t->tensors[i].type;
        to->dims = (int)t->tensors[i].dims;
        memcpy(to->shape, t->tensors[i].shape, sizeof to->shape);
        to->present = ckpt_table_present(t, &t->tensors[i]);
    }
    return l->tensors != NULL;
}

static bool list_shards(const CkptReader *r, const CkptScanCheckpoint *c, CkptLoaded *l) {
    l->num_shards = c->count;
    l->shards = calloc(c->count + 1, sizeof *l->shards);
    for (size_t i = 0; l->shards && i < c->count; i++) {
        const CkptScanShard *s = &r->scan.shards[c->first + i];
        memcpy(l->shards[i].node, s->record.node, sizeof l->shards[i].node);
        memcpy(l->shards[i].name, s->name, sizeof l->shards[i].name);
        l->shards[i].rank = s->record.rank;
        l->shards[i].bytes = s->record.used_bytes;
    }
    return l->shards != NULL;
}

static bool load(CkptReader *r, const CkptScanCheckpoint *c, Error *err) {
    CkptInfo *info = &r->list[r->count];
    CkptLoaded *l = &r->loaded[r->count++];
    Error why = {""};
    *info = (CkptInfo){.id = c->id,
                       .committed = c->committed,
                       .pinned = c->pinned,
                       .uploaded = c->uploaded,
                       .writers = (int)c->writers,
                       .writers_present = (int)c->count};
    l->id = c->id;
    l->writers = c->writers;
    memcpy(l->run, c->run, sizeof l->run);
    for (size_t i = 0; i < c->count; i++) {
        const CkptRecord *s = &r->scan.shards[c->first + i].record;
        info->bytes += s->payload_bytes;
        if (!i || s->unix_seconds < info->unix_seconds) info->unix_seconds = s->unix_seconds;
    }
    info->state = judge(r, c, l, &why);
    snprintf(info->why, sizeof info->why, "%.255s", info->state == CKPT_RESTORABLE ? "" : why.text);
    if (!list_tensors(l) || !list_shards(r, c, l))
        return error_set(err, "%s: no memory for its index", r->source->place);
    info->tensors = l->num_tensors;
    return true;
}

/* ---- the snapshot ---- */

/* Holds every checkpoint's lock; those whose segments are just being recycled, or were dropped before the lock was had, are
 * left out. Where no lock is to be had (a folder that cannot be written to), there is none. */
static bool hold(CkptReader *r, Error *err) {
    char name[CKPT_FILE_NAME_BYTES], path[FILE_PATH_BYTES];
    size_t count = r->scan.num_checkpoints;
    const char *why;
    Error ignored;
    if (!ckpt_io_open(&r->io, "plain", &why, err)) return false;
    r->locks = calloc(count + 1, sizeof *r->locks);
    if (!r->locks) return error_set(err, "%s: no memory to read it", r->source->place);
    for (size_t i = 0; i < count && r->io.body->lock; i++) {
        bool busy;
        if (r->scan.checkpoints[i].dropped) continue;
        ckpt_lock_name(name, r->scan.checkpoints[i].id);
        if (!file_join(path, r->source->place, name, err)) return false;
        r->locks[i].file = r->io.body->lock(&r->io, path, false, &busy, &ignored);
        r->locks[i].id = r->scan.checkpoints[i].id;
        r->locks[i].refused = !r->locks[i].file && busy;
        r->num_locks = i + 1;
    }
    return ckpt_scan(&r->scan, r->source, err);
}

/* The last who holds a lock takes its file away. */
static void let_go(CkptReader *r, CkptHeld *held) {
    char name[CKPT_FILE_NAME_BYTES], path[FILE_PATH_BYTES];
    Error ignored;
    bool busy;
    if (!held->file) return;
    r->io.body->close_file(&r->io, held->file);
    ckpt_lock_name(name, held->id);
    if (!file_join(path, r->source->place, name, &ignored)) return;
    CkptFile *alone = r->io.body->lock(&r->io, path, true, &busy, &ignored);
    if (!alone) return;
    r->io.body->remove(&r->io, path, &ignored);
    r->io.body->close_file(&r->io, alone);
}

static bool is_held(const CkptReader *r, CkptId id) {
    if (r->source->store || !r->io.body->lock) return true;
    for (size_t i = 0; i < r->num_locks; i++)
        if (ckpt_id_compare(r->locks[i].id, id) == 0) return !r->locks[i].refused;
    return false; /* newer than the snapshot */
}

bool ckpt_reader_open(CkptReader **reader, const char *place, Error *err) {
    *reader = NULL;
    CkptReader *r = calloc(1, sizeof *r);
    if (!r) return error_set(err, "%s: no memory to read it", place);
    bool ok = ckpt_source_open(&r->source, place, err) && ckpt_scan(&r->scan, r->source, err) &&
              (r->source->store || hold(r, err));
    if (ok) {
        r->list = calloc(r->scan.num_checkpoints + 1, sizeof *r->list);
        r->loaded = calloc(r->scan.num_checkpoints + 1, sizeof *r->loaded);
        ok = r->list && r->loaded;
        if (!ok) error_set(err, "%s: no memory to read it", place);
    }
    for (size_t i = 0; ok && i < r->scan.num_checkpoints; i++) {
        const CkptScanCheckpoint *c = &r->scan.checkpoints[i];
        if (!c->dropped && is_held(r, c->id)) ok = load(r, c, err);
    }
    if (!ok)
        ckpt_reader_close(r);
    else
        *reader = r;
    return ok;
}

void ckpt_reader_close(CkptReader *r) {
    if (!r) return;
    for (size_t i = 0; i < r->count; i++) {
        free(r->loaded[i].table.head);
        free(r->loaded[i].tensors);
        free(r->loaded[i].shards);
    }
    for (size_t i = 0; i < r->num_locks; i++) let_go(r, &r->locks[i]);
    ckpt_io_close(&r->io);
    if (r->source) r->source->close(r->source);
    ckpt_scan_free(&r->scan);
    free(r->locks);
    free(r->list);
    free(r->loaded);
    free(r);
}

size_t ckpt_reader_list(const CkptReader *r, const CkptInfo **list) {
    *list = r->list;
    return r->count;
}

bool ckpt_reader_run(const CkptReader *r, uint8_t run[16]) {
    if (r->scan.num_checkpoints) memcpy(run, r->scan.checkpoints[0].run, 16);
    return r->scan.num_checkpoints > 0;
}

uint32_t ckpt_reader_attempt(const CkptReader *r) {
    return r->scan.num_checkpoints ? r->scan.checkpoints[0].id.attempt : 0; /* newest first */
}

/* ---- what a checkpoint has ---- */

static const CkptLoaded *indexed(const CkptReader *r, CkptId id, Error *err) {
    const CkptLoaded *l = ckpt_reader_find(r, id, err);
    if (l && !l->table.head) {
        error_set(err, "%s: checkpoint %s: no index of it validates (use an older one)", r->source->place,
                  ckpt_id_text(id).text);
        return NULL;
    }
    return l;
}

bool ckpt_reader_tensors(CkptReader *r, CkptId id, const CkptTensor **tensors, size_t *count, Error *err) {
    const CkptLoaded *l = indexed(r, id, err);
    if (!l) return false;
    *tensors = l->tensors;
    *count = l->num_tensors;
    return true;
}

bool ckpt_reader_shards(CkptReader *r, CkptId id, const CkptShard **shards, size_t *count, Error *err) {
    const CkptLoaded *l = ckpt_reader_find(r, id, err);
    if (!l) return false;
    *shards = l->shards;
    *count = l->num_shards;
    return true;
}

bool ckpt_reader_table(CkptReader *r, CkptId id, const void **data, size_t *bytes, Error *err) {
    const CkptLoaded *l = indexed(r, id, err);
    if (!l) return false;
    *data = l->table.head;
    *bytes = (size_t)l->table.head->bytes;
    return true;
}

bool ckpt_reader_commit_record(CkptReader *r, CkptId id, uint8_t record[4096], Error *err) {
    const CkptLoaded *l = ckpt_reader_find(r, id, err);
    if (!l) return false;
    CkptRecord commit = {.kind = CKPT_RECORD_COMMIT, .id = id, .rank = CKPT_RANK_NONE, .writers = l->writers};
    memcpy(commit.run, l->run, sizeof commit.run);
    ckpt_record_encode(&commit, record);
    return true;
}

bool ckpt_reader_has(CkptReader *r, CkptId id, const char *name, uint64_t begin, uint64_t end) {
    Error ignored;
    const CkptLoaded *l = ckpt_reader_find(r, id, &ignored);
    const CkptTableTensor *t = l && l->table.head ? ckpt_table_tensor(&l->table, name) : NULL;
    return t && begin <= end && ckpt_table_covers_range(&l->table, t, begin, end);
}
