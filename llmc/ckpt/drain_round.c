/* drain_round.c: see drain.h: a look at the staging folder, and the work that it shows: shards up, COMMIT, UPLOADED, pins,
 * what can never be uploaded let go. Only the drain's thread is here. */
#define _POSIX_C_SOURCE 200809L
#include "base/check.h"
#include "base/log.h"
#include "ckpt/ckpt_reader.h"
#include "ckpt/drain_internal.h"
#include "ckpt/drain_remote.h"
#include "ckpt/drain_shard.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool remembers(const Memory *m, CkptId id) {
    for (int i = 0; i < REMEMBERED; i++)
        if (m->ids[i].attempt && ckpt_id_compare(m->ids[i], id) == 0) return true;
    return false;
}

static void remember(Memory *m, CkptId id) {
    if (remembers(m, id)) return;
    m->ids[m->next] = id;
    m->next = (m->next + 1) % REMEMBERED;
}

/* ---- one checkpoint ---- */

/* Shards of this node; and, by the node that writes the newest checkpoint's first shard, those of earlier attempts whose
 * nodes may be no more. */
static bool is_ours(const Drain *d, const CkptScanShard *shard) {
    const CkptRecord *r = &shard->record;
    if (!d->node[0] || !strcmp(r->node, d->node)) return true;
    const CkptScanCheckpoint *newest = &d->scan.checkpoints[0];
    return r->id.attempt < newest->id.attempt && !strcmp(d->scan.shards[newest->first].record.node, d->node);
}

static void note_upload(Drain *d, uint64_t bytes, double seconds) {
    pthread_mutex_lock(&d->mutex);
    d->status.uploaded_bytes += bytes;
    d->status.bytes_per_second = (double)bytes / (seconds > 1e-9 ? seconds : 1e-9);
    pthread_mutex_unlock(&d->mutex);
}

static Work send_shard(Drain *d, const CkptScanShard *shard, Error *err) {
    char key[192], resume[FILE_PATH_BYTES];
    const CkptRecord *r = &shard->record;
    uint64_t bytes;
    bool found;
    DrainShard s;
    ckpt_store_key(key, r->id, "seg", r->node, r->rank);
    if (!store_stat(d->store, key, &bytes, &found, err)) return WORK_FAILED;
    if (found && bytes == r->used_bytes) return WORK_DONE;
    int n = snprintf(resume, sizeof resume, "%s/upload/%s.%s.%u", d->directory, ckpt_id_text(r->id).text,
                     r->node, (unsigned)r->rank);
    CHECK(n > 0 && n < (int)sizeof resume);
    double start = log_seconds();
    bool ok = drain_shard_open(&s, d->source, shard, err) &&
              store_put(d->store, key, r->used_bytes, drain_shard_read, &s, resume, &d->stop, NULL, err);
    Work work = ok ? WORK_DONE : s.corrupt ? WORK_BROKEN : WORK_FAILED;
    if (work == WORK_BROKEN) unlink(resume);
    drain_shard_close(&s);
    if (ok) note_upload(d, r->used_bytes, log_seconds() - start);
    return work;
}

static Work send_shards(Drain *d, const CkptScanCheckpoint *c, Error *err) {
    Work work = WORK_DONE;
    if (remembers(&d->sent, c->id)) return WORK_DONE;
    for (size_t i = 0; i < c->count && work == WORK_DONE; i++)
        if (is_ours(d, &d->scan.shards[c->first + i]))
            work = send_shard(d, &d->scan.shards[c->first + i], err);
    if (work == WORK_DONE) remember(&d->sent, c->id);
    return work;
}

static bool is_pinned(void *ctx, CkptId id) {
    const CkptScanCheckpoint *c = ckpt_scan_find(&((Drain *)ctx)->scan, id);
    return c && c->pinned;
}

/* In the store, or let go. UPLOADED does not say to which store. */
static bool is_done(const Drain *d, const CkptScanCheckpoint *c) {
    if (!d->config.all) return c->uploaded;
    for (size_t i = 0; i < d->num_there; i++)
        if (ckpt_id_compare(d->there[i], c->id) == 0) return true;
    return false;
}

static bool note_done(Drain *d, CkptId id, Error *err) {
    if (!ckpt_mark(d->directory, id, CKPT_MARK_UPLOADED, err)) return false;
    if (!d->config.all) return true;
    if (d->num_there == d->room_there) {
        d->room_there = d->room_there ? 2 * d->room_there : 64;
        d->there = realloc(d->there, d->room_there * sizeof *d->there);
        CHECK(d->there != NULL);
    }
    d->there[d->num_there++] = id;
    return true;
}

static bool is_pending(const Drain *d, const CkptScanCheckpoint *c) {
    return c->committed && !c->dropped && !is_done(d, c) && !c->mixed && !remembers(&d->broken, c->id);
}

/* While the lock is held its segments are not recycled; what was dropped before that is seen by looking again. */
static Work send_locked(Drain *d, CkptId id, Error *err) {
    char name[CKPT_FILE_NAME_BYTES], path[FILE_PATH_BYTES];
    bool busy = false;
    ckpt_lock_name(name, id);
    if (!file_join(path, d->directory, name, err)) return WORK_FAILED;
    CkptFile *lock = d->io.body->lock(&d->io, path, false, &busy, err);
    if (!lock) return busy ? WORK_GONE : WORK_FAILED;
    Work work = WORK_FAILED;
    if (ckpt_scan(&d->scan, d->source, err)) {
        const CkptScanCheckpoint *c = ckpt_scan_find(&d->scan, id);
        work = c && is_pending(d, c) ? send_shards(d, c, err) : WORK_GONE;
    }
    d->io.body->close_file(&d->io, lock);
    return work;
}

/* Looks at the folder anew: c of before is not valid afterwards. */
static Work send_checkpoint(Drain *d, const CkptScanCheckpoint *c, Error *err) {
    const char *place = store_describe(d->store);
    CkptId id = c->id;
    RemoteState remote = d->config.all ? drain_remote_complete(d->store, place, c, err) : REMOTE_WAITING;
    if (remote == REMOTE_FAILED) return WORK_FAILED;
    if (remote == REMOTE_COMPLETE) return note_done(d, id, err) ? WORK_DONE : WORK_FAILED;
    Work work = send_locked(d, id, err);
    if (work != WORK_DONE) return work;
    remote = drain_remote_complete(d->store, place, ckpt_scan_find(&d->scan, id), err);
    if (remote != REMOTE_COMPLETE) return remote == REMOTE_WAITING ? WORK_WAITING : WORK_FAILED;
    if (!note_done(d, id, err)) return WORK_FAILED;
    pthread_mutex_lock(&d->mutex);
    d->status.uploaded_checkpoints++;
    if (ckpt_id_compare(id, d->status.newest_uploaded) > 0) d->status.newest_uploaded = id;
    pthread_mutex_unlock(&d->mutex);
    if (d->config.keep_remote > 0 && !drain_remote_retain(d->store, d->config.keep_remote, is_pinned, d, err))
        return WORK_FAILED;
    return WORK_DONE;
}

/* ---- a round ---- */

/* What will never be complete in the store, or not for long, while a newer one is complete there, must not fill staging
 * for ever: it counts as uploaded. */
static bool let_go(Drain *d, const CkptScanCheckpoint *c, Work work, bool *gone, Error *err) {
    *gone = false;
    if (!c->committed || c->dropped || is_done(d, c) || c->pinned) return true;
    if (!d->remote_known) {
        if (!drain_remote_list(d->store, d->remote, REMOTE_IDS, &d->num_remote, err)) return false;
        d->remote_known = true;
    }
    if (!d->num_remote || ckpt_id_compare(c->id, d->remote[0]) >= 0) return true;
    size_t keep = (size_t)d->config.keep_remote;
    bool superseded =
        keep && d->num_remote >= keep && ckpt_id_compare(c->id, d->remote[keep - 1]) < 0 && !c->best;
    bool hopeless =
        work == WORK_BROKEN || (work == WORK_WAITING && c->id.attempt < d->scan.checkpoints[0].id.attempt);
    if (!superseded && !hopeless) return true;
    *gone = note_done(d, c->id, err);
    return *gone;
}

static void say_broken(Drain *d, CkptId id, const Error *why) {
    remember(&d->broken, id);
    log_warn("%s (an older checkpoint, or a newer one, is uploaded instead)", why->text);
    pthread_mutex_lock(&d->mutex);
    d->status.corrupt++;
    pthread_mutex_unlock(&d->mutex);
}

static void note_lag(Drain *d) {
    uint64_t checkpoints = 0, bytes = 0;
    for (size_t i = 0; i < d->scan.num_checkpoints; i++) {
        const CkptScanCheckpoint *c = &d->scan.checkpoints[i];
        if (!is_pending(d, c)) continue;
        checkpoints++;
        for (size_t k = c->first; k < c->first + c->count; k++)
            if (is_ours(d, &d->scan.shards[k])) bytes += d->scan.shards[k].record.used_bytes;
    }
    pthread_mutex_lock(&d->mutex);
    d->status.behind_checkpoints = checkpoints;
    d->status.behind_bytes = bytes;
    double speed = d->status.bytes_per_second;
    pthread_mutex_unlock(&d->mutex);
    if (checkpoints > 1 && !d->said_behind) {
        d->said_behind = true;
        log_warn("uploads to %s are %d checkpoints behind (%.2f GB, at %.0f MB/s): staging keeps them; when "
                 "its room is "
                 "gone, saves are skipped until uploads catch up",
                 store_describe(d->store), (int)checkpoints, (double)bytes / 1e9, speed / 1e6);
    } else if (!checkpoints && d->said_behind) {
        d->said_behind = false;
        log_info("uploads to %s have caught up", store_describe(d->store));
    }
}

/* A pin in staging is one in the store, too; what was put is not asked for again. */
static bool put_pins(Drain *d, Error *err) {
    Memory pinned = {0};
    for (size_t i = 0; i < d->scan.num_checkpoints; i++) {
        const CkptScanCheckpoint *c = &d->scan.checkpoints[i];
        bool there = true;
        if (!c->pinned || !c->committed || c->dropped || is_pending(d, c)) continue;
        if (!remembers(&d->pinned, c->id) && !drain_remote_pin(d->store, c, &there, err)) return false;
        remember(&pinned, c->id);
    }
    d->pinned = pinned;
    return true;
}

/* Works on one that is pending or broken; *again: the folder has to be looked at anew. */
static Work work_on(Drain *d, const CkptScanCheckpoint *c, bool *again, Error *err) {
    bool broken = remembers(&d->broken, c->id), gone = false;
    if ((broken || d->config.all || d->status.behind_checkpoints > 1) &&
        !let_go(d, c, broken ? WORK_BROKEN : WORK_DONE, &gone, err))
        return WORK_FAILED;
    if (gone || broken) return WORK_DONE;
    CkptScanCheckpoint before = *c;
    Work work = send_checkpoint(d, c, err);
    if (work == WORK_BROKEN) say_broken(d, before.id, err);
    if (work == WORK_WAITING && !let_go(d, &before, work, &gone, err)) return WORK_FAILED;
    *again = work == WORK_DONE || work == WORK_BROKEN; /* there may be newer ones by now */
    return work == WORK_WAITING && !gone ? WORK_WAITING : work == WORK_FAILED ? WORK_FAILED : WORK_DONE;
}

Work drain_round(Drain *d, Error *err) {
    Work result = WORK_DONE;
    bool again = true;
    while (again && !drain_stopped(d)) {
        again = false;
        d->remote_known = false;
        result = WORK_DONE;
        if (!ckpt_scan(&d->scan, d->source, err)) return WORK_FAILED;
        note_lag(d);
        if (!put_pins(d, err)) return WORK_FAILED;
        for (size_t i = 0; i < d->scan.num_checkpoints && !again && !drain_stopped(d); i++) {
            const CkptScanCheckpoint *c = &d->scan.checkpoints[i];
            if (!is_pending(d, c) && !(remembers(&d->broken, c->id) && !is_done(d, c))) continue;
            Work work = work_on(d, c, &again, err);
            if (work == WORK_FAILED) return WORK_FAILED;
            if (work == WORK_WAITING) result = WORK_WAITING;
        }
    }
    return drain_stopped(d) ? WORK_WAITING : result;
}
