/* drain.c: see drain.h: the thread, when it works, and what is waited for. What a round does is in drain_round.c. */
#define _GNU_SOURCE
#include "base/check.h"
#include "base/log.h"
#include "ckpt/drain_internal.h"
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const double ORPHAN_SECONDS = 2 * 24 * 3600, PAUSE_SECONDS_MAX = 60;

/* ---- the thread ---- */

static void note_result(Drain *d, Work work, const Error *why, uint64_t wanted) {
    pthread_mutex_lock(&d->mutex);
    d->status.failing = work == WORK_FAILED;
    if (work == WORK_FAILED) d->status.error = *why;
    if (work == WORK_DONE) d->reached = wanted;
    pthread_cond_broadcast(&d->changed);
    pthread_mutex_unlock(&d->mutex);
    if (work == WORK_FAILED && !d->said_failing && !drain_stopped(d)) {
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
    while (!drain_stopped(d) && d->wanted == wanted &&
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
    while (!drain_stopped(d)) {
        Error err = {""};
        pthread_mutex_lock(&d->mutex);
        uint64_t wanted = d->wanted;
        pthread_mutex_unlock(&d->mutex);
        Work work = drain_round(d, &err);
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
    free(d->there);
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
