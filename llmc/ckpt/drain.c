/* drain.c: see drain.h: the thread, its rounds, and what it says. */
#define _GNU_SOURCE
#include "ckpt/drain.h"
#include "base/check.h"
#include "base/file.h"
#include "base/log.h"
#include "ckpt/ckpt_reader.h"
#include "ckpt/drain_remote.h"
#include "ckpt/drain_shard.h"
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { REMEMBERED = 64, REMOTE_IDS = 256 };
static const double ORPHAN_SECONDS = 2 * 24 * 3600, PAUSE_SECONDS_MAX = 60;

/* The newest ids that were put in. */
typedef struct {
    CkptId ids[REMEMBERED];
    int next;
} Memory;

struct Drain {
    DrainConfig config;
    char directory[FILE_PATH_BYTES], node[CKPT_NODE_BYTES];
    Store *store;
    CkptSource *source;
    CkptIo io;
    CkptFile *locks[2];
    CkptScan scan;               /* the thread's */
    Memory sent, broken, pinned; /* pinned: those whose PIN was put into the store */
    CkptId remote[REMOTE_IDS];   /* complete in the store, newest first, as of this round */
    size_t num_remote;
    bool remote_known, said_behind, said_failing;
    atomic_bool stop;
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    DrainStatus status; /* under mutex, as are these: */
    uint64_t wanted,
        reached; /* how often somebody began to wait, and which of them have what they wait for */
};

typedef enum {
    WORK_FAILED,
    WORK_DONE,
    WORK_WAITING, /* for other nodes */
    WORK_BROKEN,  /* a chunk here fails its checksum */
    WORK_GONE     /* it was let go meanwhile */
} Work;

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

static bool stopped(const Drain *d) {
    return atomic_load(&d->stop);
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

static bool is_pending(const Drain *d, const CkptScanCheckpoint *c) {
    return c->committed && !c->dropped && !c->uploaded && !c->mixed && !remembers(&d->broken, c->id);
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
static Work send_checkpoint(Drain *d, CkptId id, Error *err) {
    Work work = send_locked(d, id, err);
    if (work != WORK_DONE) return work;
    const CkptScanCheckpoint *c = ckpt_scan_find(&d->scan, id);
    RemoteState remote = drain_remote_complete(d->store, store_describe(d->store), c, err);
    if (remote != REMOTE_COMPLETE) return remote == REMOTE_WAITING ? WORK_WAITING : WORK_FAILED;
    if (!ckpt_mark(d->directory, id, CKPT_MARK_UPLOADED, err)) return WORK_FAILED;
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
    if (!c->committed || c->dropped || c->uploaded || c->pinned) return true;
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
    *gone = ckpt_mark(d->directory, c->id, CKPT_MARK_UPLOADED, err);
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
    if ((broken || d->status.behind_checkpoints > 1) &&
        !let_go(d, c, broken ? WORK_BROKEN : WORK_DONE, &gone, err))
        return WORK_FAILED;
    if (gone || broken) return WORK_DONE;
    CkptScanCheckpoint before = *c;
    Work work = send_checkpoint(d, c->id, err);
    if (work == WORK_BROKEN) say_broken(d, before.id, err);
    if (work == WORK_WAITING && !let_go(d, &before, work, &gone, err)) return WORK_FAILED;
    *again = work == WORK_DONE || work == WORK_BROKEN; /* there may be newer ones by now */
    return work == WORK_WAITING && !gone ? WORK_WAITING : work == WORK_FAILED ? WORK_FAILED : WORK_DONE;
}

/* Looks at the folder and works on what is pending, the newest first, until all is done or nothing can be. */
static Work work_round(Drain *d, Error *err) {
    Work result = WORK_DONE;
    bool again = true;
    while (again && !stopped(d)) {
        again = false;
        d->remote_known = false;
        result = WORK_DONE;
        if (!ckpt_scan(&d->scan, d->source, err)) return WORK_FAILED;
        note_lag(d);
        if (!put_pins(d, err)) return WORK_FAILED;
        for (size_t i = 0; i < d->scan.num_checkpoints && !again && !stopped(d); i++) {
            const CkptScanCheckpoint *c = &d->scan.checkpoints[i];
            if (!is_pending(d, c) && !(remembers(&d->broken, c->id) && !c->uploaded)) continue;
            Work work = work_on(d, c, &again, err);
            if (work == WORK_FAILED) return WORK_FAILED;
            if (work == WORK_WAITING) result = WORK_WAITING;
        }
    }
    return stopped(d) ? WORK_WAITING : result;
}

/* ---- the thread ---- */

static void note_result(Drain *d, Work work, const Error *why, uint64_t wanted) {
    pthread_mutex_lock(&d->mutex);
    d->status.failing = work == WORK_FAILED;
    if (work == WORK_FAILED) d->status.error = *why;
    if (work == WORK_DONE) d->reached = wanted;
    pthread_cond_broadcast(&d->changed);
    pthread_mutex_unlock(&d->mutex);
    if (work == WORK_FAILED && !d->said_failing && !stopped(d)) {
        d->said_failing = true;
        log_warn("checkpoints are not uploaded: %s; training goes on, and so do the attempts", why->text);
    } else if (work != WORK_FAILED && d->said_failing) {
        d->said_failing = false;
        log_info("checkpoints are uploaded again to %s", store_describe(d->store));
    }
}

/* Until the time is over, somebody waits anew, or the end. */
static void pause_for(Drain *d, double seconds, uint64_t wanted) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)seconds;
    until.tv_nsec += (long)((seconds - (double)(time_t)seconds) * 1e9);
    if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
    pthread_mutex_lock(&d->mutex);
    while (!stopped(d) && d->wanted == wanted &&
           pthread_cond_timedwait(&d->changed, &d->mutex, &until) != ETIMEDOUT) {
    }
    pthread_mutex_unlock(&d->mutex);
}

/* What earlier drains left: files of uploads whose checkpoint is gone, uploads in parts that nobody finished. */
static void remove_stale(void *ctx, const char *name) {
    Drain *d = ctx;
    CkptId id;
    const char *rest;
    char path[FILE_PATH_BYTES];
    int n = snprintf(path, sizeof path, "%s/upload/%s", d->directory, name);
    bool known = ckpt_id_parse(name, &id, &rest) && ckpt_scan_find(&d->scan, id);
    if (!known && n > 0 && n < (int)sizeof path) unlink(path);
}

static void clear_up(Drain *d) {
    char path[FILE_PATH_BYTES];
    int aborted = 0;
    Error ignored;
    if (file_join(path, d->directory, "upload", &ignored))
        d->io.body->list(&d->io, path, remove_stale, d, &ignored);
    store_abort_orphans(d->store, "ckpt/", ORPHAN_SECONDS, &aborted, &ignored);
    if (aborted) log_info("%s: ended %d uploads that nobody finished", store_describe(d->store), aborted);
}

static void *drain_thread(void *ctx) {
    Drain *d = ctx;
    int failures = 0;
    bool cleared = false;
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 10); /* of this thread: training comes first */
    while (!stopped(d)) {
        Error err = {""};
        pthread_mutex_lock(&d->mutex);
        uint64_t wanted = d->wanted;
        pthread_mutex_unlock(&d->mutex);
        Work work = work_round(d, &err);
        note_result(d, work, &err, wanted);
        if (!cleared && work != WORK_FAILED) clear_up(d);
        cleared |= work != WORK_FAILED;
        failures = work == WORK_FAILED ? failures + 1 : 0;
        double pause = d->config.poll_seconds;
        for (int i = 1; i < failures && pause < PAUSE_SECONDS_MAX; i++) pause *= 2;
        pause_for(d, pause < PAUSE_SECONDS_MAX ? pause : PAUSE_SECONDS_MAX, wanted);
    }
    return NULL;
}

/* ---- outside ---- */

/* lock/drain is held alone by a drain of all nodes, with others by drains of one node, each with its own lock. */
static bool take_locks(Drain *d, Error *err) {
    char path[FILE_PATH_BYTES], name[CKPT_FILE_NAME_BYTES];
    bool busy = false;
    CHECK(d->io.body->lock != NULL);
    for (int i = 0; i < (d->node[0] ? 2 : 1); i++) {
        snprintf(name, sizeof name, "lock/drain%s%s", i ? "." : "", i ? d->node : "");
        if (!file_join(path, d->directory, name, err)) return false;
        d->locks[i] = d->io.body->lock(&d->io, path, i || !d->node[0], &busy, err);
        if (!d->locks[i])
            return busy && error_set(err, "%s: another process uploads from here already", d->directory);
    }
    return true;
}

static bool prepare(Drain *d, const DrainConfig *config, Error *err) {
    static const char *const folders[] = {"lock", "upload"};
    char path[FILE_PATH_BYTES];
    const char *why;
    int n = snprintf(d->directory, sizeof d->directory - 300, "%s", config->directory);
    if (n < 1 || n >= (int)sizeof d->directory - 300)
        return error_set(err, "'%.100s': no staging folder's name, or one that is too long",
                         config->directory);
    if (config->node) ckpt_node_name(d->node, config->node);
    if (!ckpt_io_open(&d->io, "plain", &why, err)) return false;
    for (int i = 0; i < 2; i++)
        if (!file_join(path, d->directory, folders[i], err) || !file_make_directory(path, err)) return false;
    if (!take_locks(d, err) || !ckpt_source_open_folder(&d->source, d->directory, 2, err)) return false;
    StoreConfig store = config->store;
    store.stop = &d->stop;
    return store_open(&d->store, config->place, &store, err);
}

static void release(Drain *d) {
    store_close(d->store);
    if (d->source) d->source->close(d->source);
    for (int i = 0; i < 2; i++)
        if (d->locks[i]) d->io.body->close_file(&d->io, d->locks[i]);
    if (d->io.body) ckpt_io_close(&d->io);
    ckpt_scan_free(&d->scan);
    pthread_cond_destroy(&d->changed);
    pthread_mutex_destroy(&d->mutex);
    free(d);
}

static bool start_thread(Drain *d) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are the trainer's */
    bool ok = pthread_create(&d->thread, NULL, drain_thread, d) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return ok;
}

bool drain_open(Drain **drain, const DrainConfig *config, Error *err) {
    pthread_condattr_t monotonic;
    *drain = NULL;
    Drain *d = calloc(1, sizeof *d);
    if (!d) return error_set(err, "no memory for uploads");
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    CHECK(pthread_mutex_init(&d->mutex, NULL) == 0 && pthread_cond_init(&d->changed, &monotonic) == 0);
    pthread_condattr_destroy(&monotonic);
    d->config = *config;
    if (d->config.poll_seconds <= 0) d->config.poll_seconds = 1;
    bool ok = prepare(d, config, err);
    if (ok && !start_thread(d)) ok = error_set(err, "cannot start a thread for uploads");
    if (ok)
        *drain = d;
    else
        release(d);
    return ok;
}

DrainStatus drain_status(Drain *drain) {
    pthread_mutex_lock(&drain->mutex);
    DrainStatus status = drain->status;
    pthread_mutex_unlock(&drain->mutex);
    return status;
}

bool drain_wait(Drain *drain, double seconds) {
    struct timespec until;
    if (seconds > 1e8) seconds = 1e8;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)seconds;
    until.tv_nsec += (long)(1e9 * (seconds - floor(seconds)));
    if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
    pthread_mutex_lock(&drain->mutex);
    uint64_t mine = ++drain->wanted;
    pthread_cond_broadcast(&drain->changed);
    while (drain->reached < mine &&
           pthread_cond_timedwait(&drain->changed, &drain->mutex, &until) != ETIMEDOUT) {
    }
    bool reached = drain->reached >= mine;
    pthread_mutex_unlock(&drain->mutex);
    return reached;
}

bool drain_close(Drain *drain, double seconds) {
    if (!drain) return true;
    bool all = drain_wait(drain, seconds);
    pthread_mutex_lock(&drain->mutex);
    atomic_store(&drain->stop, true);
    pthread_cond_broadcast(&drain->changed);
    pthread_mutex_unlock(&drain->mutex);
    pthread_join(drain->thread, NULL);
    release(drain);
    return all;
}
