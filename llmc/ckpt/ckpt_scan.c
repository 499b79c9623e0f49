/* ckpt_scan.c: see ckpt_scan.h. */
#include "ckpt/ckpt_scan.h"
#include "base/check.h"
#include "ckpt/ckpt_log.h"
#include <stdlib.h>
#include <string.h>

typedef struct {
    CkptSource *source;
    CkptScan *scan;
    char (*names)[CKPT_FILE_NAME_BYTES]; /* of manifests, or objects */
    uint64_t *sizes;                     /* of objects */
    size_t num_names, room_names, room_shards, num_marked, room_marked;
    CkptScanMark *marked;
    void *block;
    CkptRecord *records;
    bool no_memory;
} Scanner;

/* The array with room for one more of `bytes` bytes, perhaps moved; NULL: no memory, the array is as it was. */
static void *more(Scanner *s, void *array, size_t count, size_t *room, size_t bytes) {
    if (count < *room) return array;
    size_t wanted = *room ? 2 * *room : 64;
    void *larger = realloc(array, wanted * bytes);
    if (larger) *room = wanted;
    if (!larger) s->no_memory = true;
    return larger;
}

static void keep_name(void *ctx, const char *name, uint64_t bytes) {
    Scanner *s = ctx;
    size_t room = s->room_names;
    if (strlen(name) >= CKPT_FILE_NAME_BYTES - 16) return; /* none of ours */
    void *sizes = more(s, s->sizes, s->num_names, &room, sizeof *s->sizes);
    if (!sizes) return;
    s->sizes = sizes;
    void *names = more(s, s->names, s->num_names, &s->room_names, sizeof *s->names);
    if (!names) return;
    s->names = names;
    s->sizes[s->num_names] = bytes;
    snprintf(s->names[s->num_names++], CKPT_FILE_NAME_BYTES, "%s", name);
}

static CkptScanShard *add_shard(Scanner *s, const CkptRecord *record) {
    CkptScan *scan = s->scan;
    void *shards = more(s, scan->shards, scan->num_shards, &s->room_shards, sizeof *scan->shards);
    if (!shards) return NULL;
    scan->shards = shards;
    CkptScanShard *shard = &scan->shards[scan->num_shards++];
    *shard = (CkptScanShard){.record = *record};
    return shard;
}

static CkptScanMark *mark_of(Scanner *s, CkptId id) {
    for (size_t i = 0; i < s->num_marked; i++)
        if (ckpt_id_compare(s->marked[i].id, id) == 0) return &s->marked[i];
    void *marked = more(s, s->marked, s->num_marked, &s->room_marked, sizeof *s->marked);
    if (!marked) return NULL;
    s->marked = marked;
    s->marked[s->num_marked] = (CkptScanMark){.id = id};
    return &s->marked[s->num_marked++];
}

/* What one record of a writer's manifest says; its shards are those from `first` on. */
static void take_record(Scanner *s, const CkptRecord *r, size_t first) {
    CkptScanShard *shards = s->scan->shards;
    if (r->kind == CKPT_RECORD_SHARD) {
        for (size_t i = first; i < s->scan->num_shards; i++)
            if (shards[i].record.segment == r->segment) shards[i].dropped = true;
        CkptScanShard *shard = add_shard(s, r);
        if (shard) ckpt_segment_name(shard->name, r->node, r->rank, r->segment);
        return;
    }
    for (size_t i = first; i < s->scan->num_shards; i++) {
        if (ckpt_id_compare(shards[i].record.id, r->id) != 0 || shards[i].dropped) continue;
        if (r->kind == CKPT_RECORD_DROP) shards[i].dropped = true;
        if (r->kind == CKPT_RECORD_COMMIT) {
            shards[i].committed = true;
            shards[i].best = r->flags & CKPT_FLAG_BEST;
        }
    }
}

static void take_mark(Scanner *s, const CkptRecord *r) {
    CkptScanMark *m = mark_of(s, r->id);
    if (!m) return;
    if (r->kind == CKPT_RECORD_UPLOADED) m->uploaded = true;
    if (r->kind == CKPT_RECORD_PIN) m->pinned = true;
    if (r->kind == CKPT_RECORD_UNPIN) m->pinned = false;
}

/* Removed meanwhile: nothing of it; but no record of it is believed before that is known. */
static bool scan_manifest(Scanner *s, const char *name, Error *err) {
    char node[CKPT_NODE_BYTES], path[CKPT_FILE_NAME_BYTES];
    uint32_t rank = CKPT_RANK_NONE;
    bool marks = !strcmp(name, "marks.log"), found;
    if (!marks && !ckpt_manifest_parse(name, node, &rank)) return true;
    snprintf(path, sizeof path, "manifest/%.170s", name);
    uint64_t bytes, sequence = 0;
    size_t first = s->scan->num_shards, last;
    if (!s->source->size(s->source, path, &bytes, &found, err)) return false;
    if (!found) return true;
    for (uint64_t at = 0; at + CKPT_BLOCK <= bytes && at < (uint64_t)CKPT_LOG_RECORDS * CKPT_BLOCK;
         at += CKPT_LOG_READ_BYTES) {
        uint64_t rest = (bytes - at) / CKPT_BLOCK * CKPT_BLOCK;
        size_t part = rest < CKPT_LOG_READ_BYTES ? (size_t)rest : CKPT_LOG_READ_BYTES;
        if (!s->source->read(s->source, path, s->block, part, at, err)) return false;
        size_t count =
            ckpt_log_parse(s->block, part, s->records, CKPT_LOG_READ_BYTES / CKPT_BLOCK, &sequence, &last);
        if (!count) break;
        for (size_t i = 0; i < count; i++) {
            const CkptRecord *r = &s->records[i];
            if (marks)
                take_mark(s, r);
            else if (r->rank == rank && !strcmp(r->node, node))
                take_record(s, r, first);
        }
    }
    return true;
}

/* One object of a store: a shard's footer, COMMIT, which says that all of it is there, or PIN, whose name says it all. */
static bool scan_object(Scanner *s, const char *name, uint64_t bytes, Error *err) {
    char key[CKPT_FILE_NAME_BYTES], node[CKPT_NODE_BYTES];
    uint32_t rank = CKPT_RANK_NONE;
    const char *rest;
    CkptId id;
    CkptRecord r;
    if (!ckpt_id_parse(name, &id, &rest) || *rest++ != '/') return true;
    bool segment = ckpt_object_parse(rest, node, &rank), commit = !strcmp(rest, "COMMIT");
    if (!strcmp(rest, "PIN")) {
        CkptScanMark *m = mark_of(s, id);
        if (m) m->pinned = true;
        return true;
    }
    if ((!segment && !commit) || bytes < CKPT_BLOCK || bytes % CKPT_BLOCK) return true;
    snprintf(key, sizeof key, "ckpt/%s", name);
    if (!s->source->read(s->source, key, s->block, CKPT_BLOCK, bytes - CKPT_BLOCK, err)) return false;
    if (!ckpt_record_decode(&r, s->block) || ckpt_id_compare(r.id, id) != 0) return true;
    if (segment && r.kind == CKPT_RECORD_SHARD && r.used_bytes == bytes && r.rank == rank &&
        !strcmp(r.node, node)) {
        CkptScanShard *shard = add_shard(s, &r);
        if (shard) snprintf(shard->name, sizeof shard->name, "%s", key);
    }
    if (commit && r.kind == CKPT_RECORD_COMMIT) {
        CkptScanMark *m = mark_of(s, id);
        if (m) m->uploaded = true;
        for (size_t i = 0; i < s->scan->num_shards; i++)
            if (!ckpt_id_compare(s->scan->shards[i].record.id, id)) s->scan->shards[i].committed = true;
    }
    return true;
}

static int newest_first(const void *a, const void *b) {
    const CkptScanShard *x = a, *y = b;
    int order = ckpt_id_compare(y->record.id, x->record.id);
    if (order) return order;
    if (x->record.rank != y->record.rank) return x->record.rank < y->record.rank ? -1 : 1;
    if (x->dropped != y->dropped) return x->dropped ? 1 : -1;
    return strcmp(x->name, y->name);
}

static bool group(Scanner *s) {
    CkptScan *scan = s->scan;
    if (scan->num_shards) qsort(scan->shards, scan->num_shards, sizeof *scan->shards, newest_first);
    scan->checkpoints = calloc(scan->num_shards + 1, sizeof *scan->checkpoints);
    if (!scan->checkpoints) return false;
    CkptScanCheckpoint *c = NULL;
    for (size_t i = 0; i < scan->num_shards; i++) {
        const CkptScanShard *shard = &scan->shards[i];
        const CkptRecord *r = &shard->record;
        if (!c || ckpt_id_compare(c->id, r->id) != 0) {
            c = &scan->checkpoints[scan->num_checkpoints++];
            *c = (CkptScanCheckpoint){.id = r->id, .writers = r->writers, .first = i};
            memcpy(c->run, r->run, sizeof c->run);
            for (size_t k = 0; k < s->num_marked; k++)
                if (!ckpt_id_compare(s->marked[k].id, r->id)) {
                    c->pinned = s->marked[k].pinned;
                    c->uploaded = s->marked[k].uploaded;
                }
        }
        if (r->writers != c->writers || memcmp(r->run, c->run, sizeof c->run) != 0 ||
            (c->count && shard[-1].record.rank == r->rank))
            c->mixed = true;
        c->count++;
        c->dropped |= shard->dropped;
        c->committed |= shard->committed;
        c->best |= shard->best;
    }
    return true;
}

bool ckpt_scan(CkptScan *scan, CkptSource *source, Error *err) {
    Scanner s = {.source = source, .scan = scan};
    ckpt_scan_free(scan);
    s.block = aligned_alloc(CKPT_BLOCK, CKPT_LOG_READ_BYTES);
    s.records = calloc(CKPT_LOG_READ_BYTES / CKPT_BLOCK, sizeof *s.records);
    bool ok = s.block && s.records;
    s.no_memory = !ok;
    ok = ok && source->list(source, source->store ? "ckpt" : "manifest", keep_name, &s, err);
    for (int last = 0; last < 2; last++) /* COMMITs after the shards that they speak of */
        for (size_t i = 0; ok && i < s.num_names; i++) {
            size_t length = strlen(s.names[i]);
            bool commit = length > 7 && !strcmp(s.names[i] + length - 7, "/COMMIT");
            if (!source->store)
                ok = last || scan_manifest(&s, s.names[i], err);
            else if (commit == (last == 1))
                ok = scan_object(&s, s.names[i], s.sizes[i], err);
        }
    ok = ok && !s.no_memory && group(&s);
    if (!ok && s.no_memory) error_set(err, "%s: no memory to read its manifests", source->place);
    if (!ok) ckpt_scan_free(scan);
    free(s.names);
    free(s.sizes);
    free(s.marked);
    free(s.block);
    free(s.records);
    return ok;
}

bool ckpt_scan_marks(CkptScanMark **marks, size_t *count, CkptSource *source, Error *err) {
    CkptScan none = {0};
    Scanner s = {.source = source, .scan = &none};
    s.block = aligned_alloc(CKPT_BLOCK, CKPT_LOG_READ_BYTES);
    s.records = calloc(CKPT_LOG_READ_BYTES / CKPT_BLOCK, sizeof *s.records);
    bool ok = s.block && s.records && scan_manifest(&s, "marks.log", err);
    if (!s.block || !s.records || s.no_memory) ok = error_set(err, "%s: no memory", source->place);
    free(s.block);
    free(s.records);
    *marks = ok ? s.marked : NULL;
    *count = ok ? s.num_marked : 0;
    if (!ok) free(s.marked);
    return ok;
}

void ckpt_scan_free(CkptScan *scan) {
    free(scan->checkpoints);
    free(scan->shards);
    *scan = (CkptScan){0};
}

const CkptScanCheckpoint *ckpt_scan_find(const CkptScan *scan, CkptId id) {
    for (size_t i = 0; i < scan->num_checkpoints; i++)
        if (ckpt_id_compare(scan->checkpoints[i].id, id) == 0) return &scan->checkpoints[i];
    return NULL;
}

static bool is_of(const CkptTable *t, const CkptRecord *r) {
    const CkptTableHead *h = t->head;
    const CkptTableSource *s = t->sources;
    return !memcmp(h->run, r->run, sizeof h->run) && h->attempt == r->id.attempt && h->step == r->id.step &&
           h->rank == r->rank && h->writers == r->writers && h->sources == 1 && s->rank == r->rank &&
           s->segment == r->segment && !strcmp(s->node, r->node) && s->used_bytes == r->used_bytes &&
           s->table_offset == r->table_offset && s->table_bytes == r->table_bytes;
}

bool ckpt_scan_table(CkptTable *table, CkptSource *source, const CkptScanShard *shard, Error *err) {
    const CkptRecord *r = &shard->record;
    Error why;
    table->head = NULL;
    if (r->table_bytes > CKPT_TABLE_BYTES_MAX)
        return error_set(err, "%s/%s: its index table is said to be of %llu bytes", source->place,
                         shard->name, (unsigned long long)r->table_bytes);
    void *image = malloc((size_t)r->table_bytes + 1);
    if (!image) return error_set(err, "%s/%s: no memory to read its index", source->place, shard->name);
    if (!source->read(source, shard->name, image, (size_t)r->table_bytes, r->table_offset, err)) goto fail;
    if (!ckpt_table_view(table, image, (size_t)r->table_bytes, &why)) {
        error_set(err, "%s/%s: at byte %llu: %s", source->place, shard->name,
                  (unsigned long long)r->table_offset, why.text);
        goto fail;
    }
    if (is_of(table, r)) return true;
    error_set(err, "%s/%s: its index table is of another shard", source->place, shard->name);
fail:
    free(image);
    table->head = NULL;
    return false;
}

bool ckpt_scan_merge(CkptTable *table, CkptSource *source, const CkptScan *scan, const CkptScanCheckpoint *c,
                     size_t *bad, Error *err) {
    Error why;
    size_t read = 0;
    CkptTable *parts = calloc(c->count, sizeof *parts);
    bool ok = parts != NULL;
    if (!ok) error_set(err, "%s: no memory to merge index tables", source->place);
    if (c->mixed)
        ok = error_set(err, "%s: checkpoint %s: its shards are not of one checkpoint", source->place,
                       ckpt_id_text(c->id).text);
    for (size_t i = 0; ok && i < c->count; i++) {
        if (ckpt_scan_table(&parts[read], source, &scan->shards[c->first + i], &why)) {
            read++;
        } else {
            if (!bad || !*bad) *err = why;
            if (bad) ++*bad;
            ok = bad != NULL;
        }
    }
    ok = ok && read > 0;
    if (ok && !ckpt_table_merge(table, parts, read, &why))
        ok = error_set(err, "%s: checkpoint %s: %s", source->place, ckpt_id_text(c->id).text, why.text);
    for (size_t i = 0; i < read; i++) free(parts[i].head);
    free(parts);
    return ok;
}
