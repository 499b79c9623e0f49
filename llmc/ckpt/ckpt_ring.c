/* ckpt_ring.c: see ckpt_ring.h: recovery, segments, COMMIT. What may go is decided in ckpt_retain.c. */
#define _POSIX_C_SOURCE 200809L
#include "ckpt/ckpt_ring.h"
#include "base/check.h"
#include "base/file.h"
#include "base/log.h"
#include "ckpt/ckpt_retain.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LOCK_TRIES = 40 }; /* 50 ms apart */

static const char *path_of(CkptRing *ring, const char *name) {
    snprintf(ring->path, sizeof ring->path, "%s/%s", ring->folder, name);
    return ring->path;
}

static const char *segment_path(CkptRing *ring, uint32_t n) {
    char name[CKPT_FILE_NAME_BYTES];
    ckpt_segment_name(name, ring->node, (uint32_t)ring->config->rank, n);
    return path_of(ring, name);
}

/* ---- recovery ---- */

static CkptSegment *segment_of(CkptRing *ring, uint32_t n) {
    for (size_t i = 0; i < ring->count; i++)
        if (ring->segments[i].n == n) return &ring->segments[i];
    if (ring->count == CKPT_SEGMENTS_MAX) return NULL;
    ring->segments[ring->count] = (CkptSegment){.n = n};
    return &ring->segments[ring->count++];
}

/* The segment that this rank's shard of a checkpoint lies in, or NULL. */
static CkptSegment *holder_of(CkptRing *ring, CkptId id) {
    for (size_t i = 0; i < ring->count; i++)
        if (ring->segments[i].live && ckpt_id_compare(ring->segments[i].shard.id, id) == 0)
            return &ring->segments[i];
    return NULL;
}

static bool replay(CkptRing *ring, const CkptRecord *r, Error *err) {
    if (r->rank != (uint32_t)ring->config->rank || strcmp(r->node, ring->node) != 0) return true;
    if (memcmp(r->run, ring->config->run, sizeof r->run) != 0)
        return error_set(err, "%s: holds checkpoints of another run (use another folder, or remove this one)",
                         ring->folder);
    if (r->id.attempt >= ring->config->attempt)
        return error_set(err, "%s: holds checkpoint %s, but this start of the run has number %u",
                         ring->folder, ckpt_id_text(r->id).text, (unsigned)ring->config->attempt);
    if (r->kind == CKPT_RECORD_SHARD) {
        CkptSegment *s = segment_of(ring, r->segment);
        if (!s) return error_set(err, "%s: has more than %d segments", ring->log.path, CKPT_SEGMENTS_MAX);
        s->live = true;
        s->committed = s->best = false;
        s->shard = *r;
    }
    CkptSegment *s = holder_of(ring, r->id);
    if (s && r->kind == CKPT_RECORD_DROP) s->live = false;
    if (s && r->kind == CKPT_RECORD_COMMIT) {
        s->committed = true;
        s->best = r->flags & CKPT_FLAG_BEST;
    }
    return true;
}

/* Does the manifest still need it? */
static bool record_is_live(void *ctx, const CkptRecord *r) {
    CkptSegment *s = holder_of(ctx, r->id);
    if (!s || r->kind == CKPT_RECORD_DROP) return false;
    return r->kind == CKPT_RECORD_COMMIT || r->segment == s->n;
}

static void note_file(void *ctx, const char *name) {
    CkptRing *ring = ctx;
    char node[CKPT_NODE_BYTES];
    uint32_t rank, n;
    if (ckpt_segment_parse(name, node, &rank, &n) && rank == (uint32_t)ring->config->rank &&
        !strcmp(node, ring->node))
        segment_of(ring, n);
}

static bool measure_segments(CkptRing *ring, Error *err) {
    for (size_t i = 0; i < ring->count; i++) {
        CkptSegment *s = &ring->segments[i];
        Error absent;
        CkptFile *file = ring->io->body->open(ring->io, segment_path(ring, s->n), CKPT_IO_READ, &absent);
        if (!file) { /* lost: nothing of it can be restored */
            if (s->live) log_warn("%s", absent.text);
            s->live = false;
            s->shard.kind = 0;
            continue;
        }
        bool ok = ring->io->body->size(ring->io, file, &s->bytes, err);
        ring->io->body->close_file(ring->io, file);
        if (!ok) return false;
    }
    return true;
}

/* COMMIT of every checkpoint that is due one: also of those whose record could not be written before, so that all writers
 * count the same. */
static bool append_commits(CkptRing *ring, Error *err) {
    CkptRecord records[CKPT_SEGMENTS_MAX];
    size_t count = 0;
    for (size_t i = 0; i < ring->count; i++) {
        const CkptSegment *s = &ring->segments[i];
        if (!s->live || !s->commit_due) continue;
        records[count] = s->shard;
        records[count].kind = CKPT_RECORD_COMMIT;
        records[count++].flags = s->best ? CKPT_FLAG_BEST : 0;
    }
    if (!count) return true;
    if (!ckpt_log_append(&ring->log, records, count, err)) return false;
    for (size_t i = 0; i < ring->count; i++) {
        CkptSegment *s = &ring->segments[i];
        if (s->live && s->commit_due) s->committed = true;
        s->commit_due = false;
    }
    return true;
}

/* What was agreed to be the newest restorable one becomes committed; what nobody committed can never be whole. */
static bool settle(CkptRing *ring, Error *err) {
    CkptRecord drops[CKPT_SEGMENTS_MAX];
    size_t count = 0;
    CkptSegment *newest = holder_of(ring, ring->config->newest);
    if (!ring->config->newest_agreed) return true;
    if (newest && !newest->committed) {
        newest->commit_due = true;
        if (!append_commits(ring, err)) return false;
    }
    for (size_t i = 0; i < ring->count; i++) {
        CkptSegment *s = &ring->segments[i];
        if (!s->live || s->committed) continue;
        drops[count] = s->shard;
        drops[count++].kind = CKPT_RECORD_DROP;
    }
    /* A COMMIT here for what is newer than all that can be restored: the power failed before another writer's SHARD, seen
     * after a SIGKILL, was durable. It does not count, and goes with the next commit. */
    for (size_t i = 0; i < ring->count; i++)
        if (ckpt_id_compare(ring->segments[i].shard.id, ring->config->newest) > 0)
            ring->segments[i].committed = ring->segments[i].best = false;
    return ckpt_ring_drop(ring, drops, count, err);
}

/* Before a COMMIT: what earlier attempts left uncommitted must not count as committed after a crash. */
static bool drop_uncommitted(CkptRing *ring, Error *err) {
    CkptRecord drops[CKPT_SEGMENTS_MAX];
    size_t count = 0;
    for (size_t i = 0; i < ring->count; i++) {
        const CkptSegment *s = &ring->segments[i];
        if (!s->live || s->committed || s->shard.id.attempt >= ring->config->attempt) continue;
        drops[count] = s->shard;
        drops[count++].kind = CKPT_RECORD_DROP;
    }
    return ckpt_ring_drop(ring, drops, count, err);
}

bool ckpt_ring_drop(CkptRing *ring, const CkptRecord *drops, size_t count, Error *err) {
    if (!count) return true;
    if (!ckpt_log_append(&ring->log, drops, count, err)) return false;
    for (size_t i = 0; i < count; i++) {
        CkptSegment *s = holder_of(ring, drops[i].id);
        if (s) s->live = false;
    }
    return true;
}

/* ---- segments ---- */

static bool grow(CkptRing *ring, CkptSegment *s, Error *err) {
    if (s->bytes >= ring->segment_bytes) return true;
    const CkptIoBody *body = ring->io->body;
    CkptFile *file =
        body->open(ring->io, segment_path(ring, s->n), CKPT_IO_READ | CKPT_IO_WRITE | CKPT_IO_CREATE, err);
    if (!file) return false;
    bool ok = body->allocate(ring->io, file, ring->segment_bytes, err) && body->sync(ring->io, file, err);
    body->close_file(ring->io, file);
    ok = ok && body->sync_directory(ring->io, path_of(ring, "seg"), err);
    if (ok) s->bytes = ring->segment_bytes;
    return ok;
}

static CkptSegment *add_segment(CkptRing *ring) {
    for (uint32_t n = 0;; n++) {
        size_t i = 0;
        while (i < ring->count && ring->segments[i].n != n) i++;
        if (i == ring->count) return segment_of(ring, n);
    }
}

/* keep + 2 segments, and two that are free: one to write, one for when the next begins before this is committed. */
static bool preallocate(CkptRing *ring, Error *err) {
    size_t live = 0, wanted = (size_t)ring->config->keep + 2;
    uint64_t missing = 0, there;
    for (size_t i = 0; i < ring->count; i++) live += ring->segments[i].live;
    if (wanted < live + 2) wanted = live + 2;
    if (wanted > CKPT_SEGMENTS_MAX) wanted = CKPT_SEGMENTS_MAX;
    while (ring->count < wanted && add_segment(ring)) {
    }
    for (size_t i = 0; i < ring->count; i++) {
        const CkptSegment *s = &ring->segments[i];
        if (!s->live && s->bytes < ring->segment_bytes) missing += ring->segment_bytes - s->bytes;
    }
    if (!ring->io->body->free_bytes(ring->io, ring->folder, &there, err)) return false;
    Error why = {""};
    bool ok = missing <= there;
    for (size_t i = 0; ok && i < ring->count; i++)
        if (!ring->segments[i].live) ok = grow(ring, &ring->segments[i], &why);
    if (ok) return true;
    if (ring->config->no_room) *ring->config->no_room = true;
    return error_set(err,
                     "%s: checkpoints need %.3f GB more here (%zu segments of %.3f GB for rank %d to keep "
                     "%d), and %.3f GB are free%s%s (free some space, keep fewer, let old ones go by "
                     "'train_gpt2 ckpt gc', or use another folder)",
                     ring->folder, (double)missing / 1e9, wanted, (double)ring->segment_bytes / 1e9,
                     ring->config->rank, ring->config->keep, (double)there / 1e9, why.text[0] ? ": " : "",
                     why.text);
}

/* Does anybody read what was in the segment? Its DROP is durable, so no reader begins to. */
static bool is_read(CkptRing *ring, CkptSegment *s) {
    char name[CKPT_FILE_NAME_BYTES];
    Error ignored;
    bool busy = false;
    if (s->shard.kind != CKPT_RECORD_SHARD || !ring->io->body->lock) return false;
    ckpt_lock_name(name, s->shard.id);
    CkptFile *lock = ring->io->body->lock(ring->io, path_of(ring, name), true, &busy, &ignored);
    if (!lock) return busy;
    ring->io->body->remove(ring->io, path_of(ring, name), &ignored);
    ring->io->body->close_file(ring->io, lock);
    s->shard.kind = 0;
    return false;
}

static CkptSegment *find_free(CkptRing *ring) {
    for (size_t i = 1; i <= ring->count; i++) {
        size_t at = (ring->last_taken + i) % ring->count;
        if (ring->segments[at].live || is_read(ring, &ring->segments[at])) continue;
        ring->last_taken = at;
        return &ring->segments[at];
    }
    return NULL;
}

/* One more than there were, if the disk has room for it and as much again. */
static CkptSegment *find_room(CkptRing *ring, Error *err) {
    size_t max = ring->config->segments_max ? (size_t)ring->config->segments_max : CKPT_SEGMENTS_MAX;
    uint64_t there;
    if (max > CKPT_SEGMENTS_MAX) max = CKPT_SEGMENTS_MAX;
    if (!ring->io->body->free_bytes(ring->io, ring->folder, &there, err)) return NULL;
    if (ring->count >= max || there < 2 * ring->segment_bytes) {
        error_set(err,
                  "%s: all %zu segments of rank %d hold checkpoints that may not go yet (%" PRIu64
                  " await their upload; others are pinned or being read), and %.3f GB are free for more",
                  ring->folder, ring->count, ring->config->rank, ring->backlog, (double)there / 1e9);
        return NULL;
    }
    CkptSegment *s = add_segment(ring);
    ring->last_taken = (size_t)(s - ring->segments);
    return s;
}

CkptFile *ckpt_ring_take(CkptRing *ring, CkptSegment **segment, Error *err) {
    if (!ckpt_log_settle(&ring->log, err))
        return NULL; /* a SHARD that failed may point to the next segment */
    CkptSegment *s = find_free(ring);
    if (!s && ckpt_retain(ring, err)) s = find_free(ring); /* the store may have caught up */
    if (!s) s = find_room(ring, err);
    if (!s || !grow(ring, s, err)) return NULL;
    *segment = s;
    return ring->io->body->open(ring->io, segment_path(ring, s->n),
                                CKPT_IO_READ | CKPT_IO_WRITE | CKPT_IO_DIRECT, err);
}

bool ckpt_ring_shard(CkptRing *ring, CkptSegment *segment, const CkptRecord *shard, Error *err) {
    CHECK(!segment->live);
    /* a COMMIT that failed: where a newer checkpoint is whole, all writers know the older ones as committed */
    if (!append_commits(ring, err)) return false;
    if (!ckpt_log_append(&ring->log, shard, 1, err)) return false;
    segment->shard = *shard;
    segment->live = true;
    segment->committed = segment->commit_due = segment->best = false;
    return true;
}

/* ---- commit ---- */

/* The merged table of the writers of this folder, aside and renamed: nothing but speed depends on it. */
static bool write_table(CkptRing *ring, CkptId id, Error *err) {
    const CkptIoBody *body = ring->io->body;
    char name[CKPT_FILE_NAME_BYTES], aside[4096 + 8];
    CkptTable table;
    const CkptScanCheckpoint *c = ckpt_scan_find(&ring->scan, id);
    if (!c || !ckpt_scan_merge(&table, ring->source, &ring->scan, c, NULL, err)) return false;
    ckpt_table_name(name, id);
    snprintf(aside, sizeof aside, "%s.new", path_of(ring, name));
    bool ok = body->remove(ring->io, aside, err);
    CkptFile *file = ok ? body->open(ring->io, aside, CKPT_IO_WRITE | CKPT_IO_CREATE, err) : NULL;
    ok = file && body->write(ring->io, file, table.head, (size_t)table.head->bytes, 0, err) &&
         body->sync(ring->io, file, err);
    if (file) body->close_file(ring->io, file);
    ok = ok && body->rename(ring->io, aside, path_of(ring, name), err) &&
         body->sync_directory(ring->io, path_of(ring, "table"), err);
    free(table.head);
    return ok;
}

bool ckpt_ring_commit(CkptRing *ring, CkptId id, bool best, Error *err) {
    Error why;
    CkptSegment *s = holder_of(ring, id);
    if (!s) return error_set(err, "%s: checkpoint %s is not here", ring->folder, ckpt_id_text(id).text);
    if (s->committed && s->best == best) return true;
    if (ring->config->node_first) {
        bool ok = ckpt_scan(&ring->scan, ring->source, &why) && write_table(ring, id, &why);
        if (!ok && !ring->no_table)
            log_warn("no merged index of checkpoint %s: %s", ckpt_id_text(id).text, why.text);
        ring->no_table = !ok;
    }
    s->commit_due = true;
    s->best = best;
    if (!drop_uncommitted(ring, err) || !append_commits(ring, err) || !ckpt_retain(ring, err)) return false;
    return !ring->config->node_first || !ring->strangers || ckpt_retain_strangers(ring, id, err);
}

CkptId ckpt_ring_newest(const CkptRing *ring) {
    CkptId newest = {0, 0};
    for (size_t i = 0; i < ring->count; i++) {
        const CkptSegment *s = &ring->segments[i];
        if (s->live && s->committed && ckpt_id_compare(s->shard.id, newest) > 0) newest = s->shard.id;
    }
    return newest;
}

/* ---- open, close ---- */

static bool make_folders(CkptRing *ring, Error *err) {
    static const char *const names[] = {"seg", "manifest", "table", "lock"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!ring->io->body->make_directory(ring->io, path_of(ring, names[i]), err)) return false;
    return ring->io->body->sync_directory(ring->io, ring->folder, err);
}

static bool lock_writer(CkptRing *ring, Error *err) {
    char name[CKPT_FILE_NAME_BYTES];
    bool busy;
    if (!ring->io->body->lock) return true;
    snprintf(name, sizeof name, "lock/writer.%s.%d", ring->node, ring->config->rank);
    for (int tries = 0; tries < LOCK_TRIES;
         tries++) { /* a process that was just killed may not be quite gone */
        ring->writer_lock = ring->io->body->lock(ring->io, path_of(ring, name), true, &busy, err);
        if (ring->writer_lock) return true;
        if (!busy) break;
        nanosleep(&(struct timespec){0, 50000000}, NULL);
    }
    return !busy ? false
                 : error_set(err,
                             "%s: another process writes checkpoints there as rank %d (end it, or give every "
                             "run a folder of its own)",
                             ring->folder, ring->config->rank);
}

bool ckpt_ring_open(CkptRing *ring, CkptIo *io, const CkptConfig *config, uint64_t segment_bytes,
                    Error *err) {
    char name[CKPT_FILE_NAME_BYTES], manifests[4096];
    *ring = (CkptRing){.io = io, .config = config, .segment_bytes = segment_bytes, .strangers = true};
    ckpt_node_name(ring->node, config->node);
    if (snprintf(ring->folder, sizeof ring->folder, "%s", config->directory) >= (int)sizeof ring->folder)
        return error_set(err, "%.100s...: this path is too long", config->directory);
    ckpt_manifest_name(name, ring->node, (uint32_t)config->rank);
    snprintf(manifests, sizeof manifests, "%s/manifest", ring->folder);
    ring->log.live = record_is_live;
    ring->log.ctx = ring;
    bool ok = make_folders(ring, err) && lock_writer(ring, err) &&
              ckpt_log_open(&ring->log, io, manifests, strrchr(name, '/') + 1, err);
    for (size_t i = 0; ok && i < ring->log.count; i++) ok = replay(ring, &ring->log.records[i], err);
    /* a file that a killed process made may have a name in memory only */
    ok = ok && io->body->sync_directory(io, path_of(ring, "seg"), err) &&
         io->body->list(io, path_of(ring, "seg"), note_file, ring, err) && measure_segments(ring, err) &&
         settle(ring, err) && preallocate(ring, err) &&
         ckpt_source_open_folder(&ring->source, config->directory, 1, err);
    if (ok && config->node_first && config->keep_until_uploaded) ckpt_marks_prepare(ring);
    if (!ok) ckpt_ring_close(ring);
    return ok;
}

void ckpt_ring_close(CkptRing *ring) {
    if (ring->source) ring->source->close(ring->source);
    ring->source = NULL;
    ckpt_scan_free(&ring->scan);
    ckpt_log_close(&ring->log);
    if (ring->writer_lock) ring->io->body->close_file(ring->io, ring->writer_lock);
    ring->writer_lock = NULL;
}
