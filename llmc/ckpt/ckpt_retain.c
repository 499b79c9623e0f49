/* ckpt_retain.c: see ckpt_retain.h, and "What may go" in dev/design/checkpoint-format.md. */
#define _POSIX_C_SOURCE 200809L
#include "ckpt/ckpt_retain.h"
#include "base/check.h"
#include "base/file.h"
#include "ckpt/drain_remote.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- marks ---- */

enum { LOCK_TRIES = 5000, MARKED_MAX = 60 };

bool ckpt_marks_lock(CkptIo *io, const char *folder, CkptFile **lock, Error *err) {
    char path[FILE_PATH_BYTES];
    bool busy = true;
    *lock = NULL;
    if (!io->body->lock) return true;
    if (!file_join(path, folder, "lock/marks", err)) return false;
    for (int i = 0; busy && i < LOCK_TRIES; i++) {
        *lock = io->body->lock(io, path, true, &busy, err);
        if (*lock) return true;
        if (busy) nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    return busy ? error_set(err, "%s: held for too long by another process", path) : false;
}

void ckpt_marks_unlock(CkptIo *io, CkptFile *lock) {
    if (lock) io->body->close_file(io, lock);
}

void ckpt_marks_prepare(CkptRing *ring) {
    char manifests[FILE_PATH_BYTES];
    CkptLog log = {0};
    CkptFile *lock;
    Error ignored;
    if (!file_join(manifests, ring->folder, "manifest", &ignored) ||
        !ckpt_marks_lock(ring->io, ring->folder, &lock, &ignored))
        return;
    if (ckpt_log_open(&log, ring->io, manifests, "marks.log", &ignored)) ckpt_log_close(&log);
    ckpt_marks_unlock(ring->io, lock);
}

/* Which marks stay when marks.log is rewritten: pins, and the newest MARKED_MAX checkpoints'; one record of each kind. */
typedef struct {
    CkptLog log;
    CkptScanMark *marks;
    size_t count;
} Marks;

static bool mark_is_live(void *ctx, const CkptRecord *r) {
    Marks *m = ctx;
    size_t newer = 0;
    CkptScanMark *mark = NULL;
    for (size_t i = 0; i < m->count; i++) {
        int order = ckpt_id_compare(m->marks[i].id, r->id);
        if (order > 0) newer++;
        if (order == 0) mark = &m->marks[i];
    }
    bool *still = !mark                             ? NULL
                  : r->kind == CKPT_RECORD_PIN      ? &mark->pinned
                  : r->kind == CKPT_RECORD_UPLOADED ? &mark->uploaded
                                                    : NULL;
    if (!still || !*still || (r->kind == CKPT_RECORD_UPLOADED && newer >= MARKED_MAX)) return false;
    *still = false; /* said once */
    return true;
}

static const CkptScanMark *find_mark(const CkptScanMark *marks, size_t count, CkptId id) {
    for (size_t i = 0; i < count; i++)
        if (ckpt_id_compare(marks[i].id, id) == 0) return &marks[i];
    return NULL;
}

/* Under the lock: is it there, is the mark new, and if so it is appended. */
static bool append_mark(CkptIo *io, CkptSource *source, const char *folder, CkptId id, CkptMark mark,
                        Error *err) {
    static const CkptRecordKind kinds[] = {CKPT_RECORD_UPLOADED, CKPT_RECORD_PIN, CKPT_RECORD_UNPIN};
    CkptScan scan = {0};
    Marks m = {.log = {.live = mark_is_live}};
    char manifests[FILE_PATH_BYTES];
    size_t pins = 0;
    bool ok = false;
    if (!ckpt_scan(&scan, source, err) || !ckpt_scan_marks(&m.marks, &m.count, source, err)) goto out;
    const CkptScanCheckpoint *c = ckpt_scan_find(&scan, id);
    if (!c || c->dropped) {
        error_set(err, "%s: no checkpoint %s (see 'train_gpt2 ckpt ls')", folder, ckpt_id_text(id).text);
        goto out;
    }
    for (size_t i = 0; i < m.count; i++) pins += m.marks[i].pinned;
    if (mark == CKPT_MARK_PIN && !c->pinned && pins >= MARKED_MAX) {
        error_set(err, "%s: %zu checkpoints are pinned, and no more can be (unpin some)", folder, pins);
        goto out;
    }
    ok = mark == CKPT_MARK_UPLOADED ? c->uploaded : c->pinned == (mark == CKPT_MARK_PIN);
    if (ok) goto out; /* it says so already */
    m.log.ctx = &m;
    if (!file_join(manifests, folder, "manifest", err) ||
        !ckpt_log_open(&m.log, io, manifests, "marks.log", err))
        goto out;
    CkptRecord record = {.kind = kinds[mark],
                         .id = id,
                         .rank = CKPT_RANK_NONE,
                         .writers = c->writers,
                         .unix_seconds = (int64_t)time(NULL)};
    memcpy(record.run, c->run, sizeof record.run);
    ok = ckpt_log_append(&m.log, &record, 1, err);
    ckpt_log_close(&m.log);
out:
    free(m.marks);
    ckpt_scan_free(&scan);
    return ok;
}

static bool mark_in_folder(CkptSource *source, const char *folder, CkptId id, CkptMark mark, Error *err) {
    CkptIo io;
    CkptFile *lock = NULL;
    const char *why;
    if (!ckpt_io_open(&io, "plain", &why, err)) return false;
    bool ok = ckpt_marks_lock(&io, folder, &lock, err) && append_mark(&io, source, folder, id, mark, err);
    ckpt_marks_unlock(&io, lock);
    ckpt_io_close(&io);
    return ok;
}

static bool mark_in_store(CkptSource *source, const char *place, CkptId id, CkptMark mark, Error *err) {
    CkptScan scan = {0};
    Store *store = NULL;
    bool there = false;
    CHECK(mark != CKPT_MARK_UPLOADED);
    bool ok = ckpt_scan(&scan, source, err) && store_open(&store, place, NULL, err);
    const CkptScanCheckpoint *c = ok ? ckpt_scan_find(&scan, id) : NULL;
    if (c && mark == CKPT_MARK_PIN) ok = drain_remote_pin(store, c, &there, err);
    if (c && mark == CKPT_MARK_UNPIN) ok = there = drain_remote_unpin(store, id, err);
    if (ok && !there)
        ok = error_set(err, "%s: checkpoint %s is not complete there (see 'train_gpt2 ckpt ls')", place,
                       ckpt_id_text(id).text);
    if (store) store_close(store);
    ckpt_scan_free(&scan);
    return ok;
}

bool ckpt_mark(const char *place, CkptId id, CkptMark mark, Error *err) {
    CkptSource *source = NULL;
    if (!ckpt_source_open(&source, place, err)) return false;
    bool ok = source->store ? mark_in_store(source, place, id, mark, err)
                            : mark_in_folder(source, place, id, mark, err);
    source->close(source);
    return ok;
}

/* ---- what may go ---- */

/* Stays for the sake of its marks? */
static bool is_marked(const CkptRing *ring, const CkptScanMark *marks, size_t count, CkptId id) {
    const CkptScanMark *m = find_mark(marks, count, id);
    if (m && m->pinned) return true;
    return ring->config->keep_until_uploaded && !(m && m->uploaded);
}

/* Committed checkpoints of this writer that are newer than id, and the newest of the best. */
static int newer_ones(const CkptRing *ring, CkptId id, CkptId *best) {
    int newer = 0;
    *best = (CkptId){0, 0};
    for (size_t i = 0; i < ring->count; i++) {
        const CkptSegment *s = &ring->segments[i];
        if (!s->live || !s->committed) continue;
        newer += ckpt_id_compare(s->shard.id, id) > 0;
        if (s->best && ckpt_id_compare(s->shard.id, *best) > 0) *best = s->shard.id;
    }
    return newer;
}

static bool may_go(const CkptRing *ring, const CkptSegment *s, CkptId newest, const CkptScanMark *marks,
                   size_t count) {
    CkptId id = s->shard.id, best;
    if (!s->live || ckpt_id_compare(id, newest) >= 0) return false;
    if (!s->committed) return true;
    return newer_ones(ring, id, &best) >= ring->config->keep && ckpt_id_compare(id, best) != 0 &&
           !is_marked(ring, marks, count, id);
}

bool ckpt_retain(CkptRing *ring, Error *err) {
    CkptId newest = ckpt_ring_newest(ring);
    CkptScanMark *marks = NULL;
    CkptRecord drops[CKPT_SEGMENTS_MAX];
    CkptFile *lock;
    size_t num_marks = 0, count = 0;
    if (newest.attempt != ring->config->attempt) return true;
    if (!ckpt_marks_lock(ring->io, ring->folder, &lock, err)) return false;
    bool ok = ckpt_scan_marks(&marks, &num_marks, ring->source, err);
    ring->backlog = 0;
    for (size_t i = 0; ok && i < ring->count; i++) {
        const CkptSegment *s = &ring->segments[i];
        const CkptScanMark *m = find_mark(marks, num_marks, s->shard.id);
        if (s->live && s->committed && ring->config->keep_until_uploaded && !(m && m->uploaded))
            ring->backlog++;
        if (!may_go(ring, s, newest, marks, num_marks)) continue;
        drops[count] = s->shard;
        drops[count++].kind = CKPT_RECORD_DROP;
    }
    ok = ok && ckpt_ring_drop(ring, drops, count, err);
    ckpt_marks_unlock(ring->io, lock);
    for (size_t i = 0; ok && i < count && ring->config->node_first; i++) {
        char name[CKPT_FILE_NAME_BYTES];
        ckpt_table_name(name, drops[i].id);
        snprintf(ring->path, sizeof ring->path, "%s/%s", ring->folder, name);
        ok = ring->io->body->remove(ring->io, ring->path, err);
    }
    free(marks);
    return ok;
}

/* ---- writers that are no more ---- */

typedef struct {
    char node[CKPT_NODE_BYTES];
    uint32_t rank;
} Writer;

typedef struct {
    Writer *writers;
    size_t count, room;
    char (*segments)[CKPT_FILE_NAME_BYTES];
    size_t num_segments, room_segments;
} Names;

static void note_writer(void *ctx, const char *name) {
    Names *n = ctx;
    Writer w;
    if (!ckpt_manifest_parse(name, w.node, &w.rank)) return;
    if (n->count == n->room) {
        n->room = n->room ? 2 * n->room : 64;
        n->writers = realloc(n->writers, n->room * sizeof *n->writers);
        CHECK(n->writers != NULL);
    }
    n->writers[n->count++] = w;
}

static void note_segment(void *ctx, const char *name) {
    Names *n = ctx;
    if (strlen(name) >= CKPT_FILE_NAME_BYTES) return;
    if (n->num_segments == n->room_segments) {
        n->room_segments = n->room_segments ? 2 * n->room_segments : 64;
        n->segments = realloc(n->segments, n->room_segments * sizeof *n->segments);
        CHECK(n->segments != NULL);
    }
    snprintf(n->segments[n->num_segments++], CKPT_FILE_NAME_BYTES, "%s", name);
}

/* Does it write in this attempt, or does the folder's retention, or a reader, keep anything of it? */
static bool is_needed(CkptRing *ring, const Writer *w, CkptId committed, const CkptScanMark *marks,
                      size_t num_marks) {
    CkptId best = {0, 0};
    int newer = 0;
    for (size_t i = 0; i < ring->scan.num_checkpoints; i++)
        if (ring->scan.checkpoints[i].best && ckpt_id_compare(ring->scan.checkpoints[i].id, best) > 0)
            best = ring->scan.checkpoints[i].id;
    for (size_t i = 0; i < ring->scan.num_checkpoints; i++) { /* newest first */
        const CkptScanCheckpoint *c = &ring->scan.checkpoints[i];
        bool alive = c->committed && !c->dropped;
        bool stays = alive && (newer < ring->config->keep || ckpt_id_compare(c->id, best) == 0 ||
                               is_marked(ring, marks, num_marks, c->id));
        newer += alive;
        for (size_t k = c->first; k < c->first + c->count; k++) {
            const CkptRecord *r = &ring->scan.shards[k].record;
            if (r->rank != w->rank || strcmp(r->node, w->node) != 0) continue;
            if (stays || r->id.attempt >= committed.attempt) return true;
            char name[CKPT_FILE_NAME_BYTES];
            Error ignored;
            bool busy = false;
            ckpt_lock_name(name, c->id);
            snprintf(ring->path, sizeof ring->path, "%s/%s", ring->folder, name);
            CkptFile *lock = ring->io->body->lock
                                 ? ring->io->body->lock(ring->io, ring->path, true, &busy, &ignored)
                                 : NULL;
            if (lock) ring->io->body->remove(ring->io, ring->path, &ignored);
            if (lock) ring->io->body->close_file(ring->io, lock);
            if (busy) return true;
        }
    }
    return false;
}

static void note_table(void *ctx, const char *name) {
    Names *n = ctx;
    char path[CKPT_FILE_NAME_BYTES];
    if (snprintf(path, sizeof path, "table/%s", name) < (int)sizeof path) note_segment(n, path);
}

/* Merged tables, or beginnings of them, of checkpoints that are no more: a crash may leave them. */
static bool remove_tables(CkptRing *ring, Error *err) {
    Names names = {0};
    snprintf(ring->path, sizeof ring->path, "%s/table", ring->folder);
    bool ok = ring->io->body->list(ring->io, ring->path, note_table, &names, err);
    for (size_t i = 0; ok && i < names.num_segments; i++) {
        CkptId id;
        const char *end;
        if (!ckpt_id_parse(names.segments[i] + strlen("table/"), &id, &end)) continue;
        const CkptScanCheckpoint *c = ckpt_scan_find(&ring->scan, id);
        if (c && !c->dropped && !strcmp(end, ".tab")) continue;
        snprintf(ring->path, sizeof ring->path, "%s/%s", ring->folder, names.segments[i]);
        ok = ring->io->body->remove(ring->io, ring->path, err);
    }
    free(names.segments);
    return ok;
}

/* Its segments first, so that nothing is left that no manifest tells of. */
static bool remove_writer(CkptRing *ring, const Writer *w, const Names *names, Error *err) {
    const CkptIoBody *body = ring->io->body;
    char name[CKPT_FILE_NAME_BYTES], node[CKPT_NODE_BYTES];
    uint32_t rank, n;
    CkptFile *lock = NULL;
    bool busy = false;
    snprintf(ring->path, sizeof ring->path, "%s/lock/writer.%s.%u", ring->folder, w->node, (unsigned)w->rank);
    if (body->lock && !(lock = body->lock(ring->io, ring->path, true, &busy, err))) return busy;
    bool ok = body->remove(ring->io, ring->path, err);
    for (size_t i = 0; ok && i < names->num_segments; i++) {
        if (!ckpt_segment_parse(names->segments[i], node, &rank, &n) || rank != w->rank ||
            strcmp(node, w->node) != 0)
            continue;
        snprintf(ring->path, sizeof ring->path, "%s/seg/%s", ring->folder, names->segments[i]);
        ok = body->remove(ring->io, ring->path, err);
    }
    snprintf(ring->path, sizeof ring->path, "%s/seg", ring->folder);
    ok = ok && body->sync_directory(ring->io, ring->path, err);
    ckpt_manifest_name(name, w->node, w->rank);
    for (int spare = 1; ok && spare >= 0; spare--) {
        snprintf(ring->path, sizeof ring->path, "%s/%s%s", ring->folder, name, spare ? ".new" : "");
        ok = body->remove(ring->io, ring->path, err);
    }
    if (lock) body->close_file(ring->io, lock);
    return ok;
}

bool ckpt_retain_strangers(CkptRing *ring, CkptId committed, Error *err) {
    Names names = {0};
    CkptScanMark *marks = NULL;
    size_t num_marks = 0;
    bool left = false;
    snprintf(ring->path, sizeof ring->path, "%s/manifest", ring->folder);
    bool ok = ckpt_scan(&ring->scan, ring->source, err) &&
              ckpt_scan_marks(&marks, &num_marks, ring->source, err) &&
              ring->io->body->list(ring->io, ring->path, note_writer, &names, err);
    snprintf(ring->path, sizeof ring->path, "%s/seg", ring->folder);
    ok = ok && ring->io->body->list(ring->io, ring->path, note_segment, &names, err);
    for (size_t i = 0; ok && i < names.count; i++) {
        const Writer *w = &names.writers[i];
        bool own = w->rank == (uint32_t)ring->config->rank && !strcmp(w->node, ring->node), writes = own;
        for (size_t k = 0; k < ring->scan.num_shards && !writes; k++) {
            const CkptRecord *r = &ring->scan.shards[k].record;
            writes = r->rank == w->rank && !strcmp(r->node, w->node) && r->id.attempt == committed.attempt;
        }
        if (writes) continue;
        if (is_needed(ring, w, committed, marks, num_marks))
            left = true;
        else
            ok = remove_writer(ring, w, &names, err);
    }
    ok = ok && remove_tables(ring, err);
    ring->strangers = left || !ok;
    free(names.writers);
    free(names.segments);
    free(marks);
    return ok;
}
