/* ckpt.c: see ckpt.h: the thread that writes, and what the training thread shares with it.
 *
 * The training thread fills the plan while the thread has no shard to write (busy is false), and then leaves it alone
 * until busy is false again; everything else that both touch is under the mutex. */
#define _GNU_SOURCE /* MADV_HUGEPAGE, pthread_setname_np */
#include "ckpt/ckpt.h"
#include "base/check.h"
#include "base/log.h"
#include "ckpt/ckpt_ring.h"
#include "ckpt/ckpt_shard.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { COMMITS_MAX = 16, POPULATE_BYTES = 64 << 20, STALLS_TO_SWITCH = 2, CALM_TO_SWITCH = 8 };

typedef struct {
    CkptId id;
    bool best;
} Commit;

struct Ckpt {
    CkptConfig config;
    char *directory, *node;
    CkptIo io;
    CkptRing ring;         /* the thread's */
    CkptShardWriter shard; /* the training thread's while !busy, else the thread's */
    bool commit_failed;    /* the last one: the thread's */
    bool from_snapshot;    /* this shard: like shard */
    char *copies;          /* of `copied` views (copied_bytes) */
    char *snapshot;        /* (payload_bytes), reserved unless LAZY */
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    /* under the mutex */
    bool busy, reading, closing;
    Commit commits[COMMITS_MAX];
    int num_commits;
    bool committing;
    CkptStatus status;
    /* AUTO */
    bool fence_due;                /* none since the last begin */
    double begun_at, copy_seconds; /* what a copy of the payload would take */
    int stalls, calm;
    uint64_t populated; /* of the snapshot's bytes */
    bool want_snapshot;
};

/* ---- the thread ---- */

static double thread_cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void released(void *ctx) {
    Ckpt *c = ctx;
    pthread_mutex_lock(&c->mutex);
    c->reading = false;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->mutex);
}

static void nothing_to_release(void *ctx) {
    (void)ctx;
}

static void copy_to_snapshot(Ckpt *c) {
    double from = log_seconds();
    for (size_t i = 0; i < c->shard.count; i++) {
        CkptPlanned *p = &c->shard.planned[i];
        char *to = (char *)(uintptr_t)p->view.data;
        if (p->view.copied) continue;
        if (c->config.fetch)
            c->config.fetch(c->config.fetch_ctx, to, p->from, (size_t)p->bytes);
        else
            memcpy(to, p->from, (size_t)p->bytes);
    }
    c->copy_seconds = log_seconds() - from;
}

static bool write_shard(Ckpt *c, Error *err) {
    CkptSegment *segment;
    if (c->from_snapshot) {
        copy_to_snapshot(c);
        released(c);
    }
    c->shard.fetch = c->from_snapshot ? NULL : c->config.fetch;
    c->shard.fetch_ctx = c->config.fetch_ctx;
    CkptFile *file = ckpt_ring_take(&c->ring, &segment, err);
    bool ok = false;
    if (file) {
        ok = ckpt_shard_write(&c->shard, &c->io, file, segment->n,
                              c->from_snapshot ? nothing_to_release : released, c, err);
        c->io.body->close_file(&c->io, file);
    } else {
        released(c);
    }
    return ok && ckpt_ring_shard(&c->ring, segment, &c->shard.record, err);
}

static void do_shard(Ckpt *c) {
    Error err = {""};
    CkptId id = c->shard.record.id;
    double cpu = thread_cpu_seconds();
    bool ok = write_shard(c, &err);
    pthread_mutex_lock(&c->mutex);
    bool failed_before = c->status.failed;
    c->status.failed = !ok;
    c->status.error = err;
    if (ok) {
        c->status.newest_durable = id;
        c->status.write_seconds = log_seconds() - c->begun_at;
        c->status.cpu_seconds = thread_cpu_seconds() - cpu;
        c->status.bytes = c->shard.record.used_bytes;
    }
    c->status.backlog = c->ring.backlog;
    c->busy = c->status.writing = false;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->mutex);
    if (!ok && !failed_before)
        log_warn("checkpoint of step %llu was not saved: %s; training goes on, the next one is tried again",
                 (unsigned long long)id.step, err.text);
    if (ok && failed_before)
        log_warn("checkpoints are saved again, since step %llu", (unsigned long long)c->shard.record.id.step);
}

static void do_commit(Ckpt *c, Commit commit) {
    Error err = {""};
    bool ok = ckpt_ring_commit(&c->ring, commit.id, commit.best, &err);
    if (!ok && !c->commit_failed)
        log_warn("checkpoint of step %llu: %s; it can be restored all the same",
                 (unsigned long long)commit.id.step, err.text);
    c->commit_failed = !ok;
    pthread_mutex_lock(&c->mutex);
    c->status.newest_committed = ckpt_ring_newest(&c->ring);
    c->status.backlog = c->ring.backlog;
    c->committing = false;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->mutex);
}

/* A piece of the snapshot's memory is made real, away from any step. */
static void populate(Ckpt *c) {
    uint64_t rest = c->config.payload_bytes - c->populated;
    size_t part = rest < POPULATE_BYTES ? (size_t)rest : POPULATE_BYTES;
    memset(c->snapshot + c->populated, 0, part);
    pthread_mutex_lock(&c->mutex);
    c->populated += part;
    pthread_mutex_unlock(&c->mutex);
}

static void *thread_main(void *ctx) {
    Ckpt *c = ctx;
    pthread_mutex_lock(&c->mutex);
    for (;;) {
        if (c->num_commits) {
            Commit commit = c->commits[0];
            memmove(c->commits, c->commits + 1, (size_t)--c->num_commits * sizeof *c->commits);
            c->committing = true;
            pthread_mutex_unlock(&c->mutex);
            do_commit(c, commit);
        } else if (c->busy) {
            pthread_mutex_unlock(&c->mutex);
            do_shard(c);
        } else if (c->closing) {
            break;
        } else if (c->want_snapshot && c->populated < c->config.payload_bytes) {
            pthread_mutex_unlock(&c->mutex);
            populate(c);
        } else {
            pthread_cond_wait(&c->changed, &c->mutex);
            continue;
        }
        pthread_mutex_lock(&c->mutex);
    }
    pthread_mutex_unlock(&c->mutex);
    return NULL;
}

/* ---- open, close ---- */

static bool config_is_sound(const CkptConfig *f, Error *err) {
    if (f->rank < 0 || f->rank >= f->size || f->size > CKPT_WRITERS_MAX)
        return error_set(err, "checkpoints: rank %d of %d", f->rank, f->size);
    if (!f->attempt) return error_set(err, "checkpoints: attempts of a run count from 1");
    if (f->keep < 1 || f->keep > CKPT_SEGMENTS_MAX - 2)
        return error_set(err, "checkpoints: keep %d (1 to %d)", f->keep, CKPT_SEGMENTS_MAX - 2);
    if (f->views_max < 1) return error_set(err, "checkpoints: at least one tensor must be allowed");
    return true;
}

static bool reserve_snapshot(Ckpt *c, Error *err) {
    size_t bytes = (size_t)c->config.payload_bytes;
    if (c->config.policy == CKPT_POLICY_LAZY || !bytes) return true;
    void *memory =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return error_set_errno(err, "no memory for a snapshot of %.3f GB (or save with the policy 'lazy')",
                               (double)bytes / 1e9);
    madvise(memory, bytes, MADV_HUGEPAGE);
    c->snapshot = memory;
    if (c->config.policy == CKPT_POLICY_SNAPSHOT)
        for (; c->populated < bytes;) populate(c);
    return true;
}

/* What a copy of the payload takes on this machine, from one of a part of it. */
static void measure_copy(Ckpt *c) {
    size_t half =
        (size_t)c->config.payload_bytes / 2 < 32 << 20 ? (size_t)c->config.payload_bytes / 2 : 32 << 20;
    half &= ~(size_t)4095;
    if (!c->snapshot || !half) return;
    memset(c->snapshot, 0, 2 * half);
    double best = 0;
    for (int i = 0; i < 3; i++) {
        double from = log_seconds();
        memcpy(c->snapshot, c->snapshot + half, half);
        double took = log_seconds() - from;
        if (i == 0 || took < best) best = took;
    }
    c->copy_seconds = best * ((double)c->config.payload_bytes / (double)half);
    madvise(c->snapshot, 2 * half, MADV_DONTNEED);
}

static bool start(Ckpt *c, Error *err) {
    const CkptConfig *f = &c->config;
    const char *why;
    if (!ckpt_io_open(&c->io, f->io, &why, err)) return false;
    if (*why && f->rank == 0) log_info("checkpoints: %s is used: %s", c->io.body->name, why);
    c->copies = malloc((size_t)f->copied_bytes);
    if (!c->copies)
        return error_set(err, "no memory for %.3f GB of small state", (double)f->copied_bytes / 1e9);
    memset(c->copies, 0, (size_t)f->copied_bytes);
    if (!ckpt_shard_open(&c->shard, (size_t)f->views_max, f->payload_bytes, err) ||
        !reserve_snapshot(c, err) ||
        !ckpt_ring_open(&c->ring, &c->io, &c->config, c->shard.segment_bytes, err))
        return false;
    if (f->policy == CKPT_POLICY_AUTO) measure_copy(c);
    c->status.io = c->io.body->name;
    c->status.policy = f->policy == CKPT_POLICY_SNAPSHOT ? CKPT_POLICY_SNAPSHOT : CKPT_POLICY_LAZY;
    c->status.newest_committed = ckpt_ring_newest(&c->ring);
    int result = pthread_create(&c->thread, NULL, thread_main, c);
    if (result) return error_set(err, "no thread for checkpoints: %s", strerror(result));
    pthread_setname_np(c->thread, "ckpt");
    log_info("checkpoints: %s, %zu segments of %.3f GB, %s, keep %d, through %s", f->directory, c->ring.count,
             (double)c->shard.segment_bytes / 1e9,
             f->policy == CKPT_POLICY_AUTO   ? "written from where they are unless steps would wait"
             : f->policy == CKPT_POLICY_LAZY ? "written from where they are"
                                             : "written from a copy",
             f->keep, c->io.body->name);
    return true;
}

static void release(Ckpt *c) {
    ckpt_ring_close(&c->ring);
    ckpt_shard_close(&c->shard);
    ckpt_io_close(&c->io);
    if (c->snapshot) munmap(c->snapshot, (size_t)c->config.payload_bytes);
    free(c->copies);
    free(c->directory);
    free(c->node);
    pthread_mutex_destroy(&c->mutex);
    pthread_cond_destroy(&c->changed);
    free(c);
}

bool ckpt_open(Ckpt **ckpt, const CkptConfig *config, Error *err) {
    *ckpt = NULL;
    if (!config_is_sound(config, err)) return false;
    Ckpt *c = calloc(1, sizeof *c);
    if (!c) return error_set(err, "no memory for checkpoints");
    pthread_condattr_t clock;
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_mutex_init(&c->mutex, NULL);
    pthread_cond_init(&c->changed, &clock);
    pthread_condattr_destroy(&clock);
    c->config = *config;
    if (!c->config.copied_bytes) c->config.copied_bytes = 1 << 20;
    if (!c->config.io) c->config.io = "auto";
    c->config.directory = c->directory = strdup(config->directory);
    c->config.node = c->node = strdup(config->node);
    bool ok = c->directory && c->node;
    if (!ok) error_set(err, "no memory for checkpoints");
    if (!ok || !start(c, err)) {
        release(c);
        return false;
    }
    *ckpt = c;
    return true;
}

void ckpt_close(Ckpt *c) {
    if (!c) return;
    pthread_mutex_lock(&c->mutex);
    c->closing = true;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->mutex);
    pthread_join(c->thread, NULL);
    release(c);
}

/* ---- the training thread ---- */

/* Where the shard is written from: the caller's memory, the copies, or the snapshot, which the thread fills. */
static bool choose_memory(Ckpt *c, Error *err) {
    uint64_t copied = 0, at = 0;
    for (size_t i = 0; i < c->shard.count; i++) {
        CkptPlanned *p = &c->shard.planned[i];
        if (p->view.copied) {
            if (p->bytes > c->config.copied_bytes - copied)
                return error_set(err, "tensor %s: no room for its copy (%llu bytes in all)", p->view.name,
                                 (unsigned long long)c->config.copied_bytes);
            memcpy(c->copies + copied, p->from, (size_t)p->bytes);
            p->view.data = c->copies + copied;
            copied += p->bytes;
        } else if (c->from_snapshot) {
            p->view.data = c->snapshot + at;
            at += p->bytes;
        }
    }
    return true;
}

static void plan(Ckpt *c, uint64_t step) {
    CkptRecord record = {.id = {c->config.attempt, step},
                         .rank = (uint32_t)c->config.rank,
                         .writers = (uint32_t)c->config.size};
    memcpy(record.run, c->config.run, sizeof record.run);
    memcpy(record.node, c->ring.node, sizeof record.node);
    ckpt_shard_plan(&c->shard, &record);
}

bool ckpt_begin(Ckpt *c, uint64_t step, const TensorView *views, size_t count, Error *err) {
    double from = log_seconds();
    pthread_mutex_lock(&c->mutex);
    bool busy = c->busy;
    if (busy) c->status.skipped++;
    if (!busy) c->from_snapshot = c->status.policy == CKPT_POLICY_SNAPSHOT;
    pthread_mutex_unlock(&c->mutex);
    if (busy) return true;
    if (!ckpt_shard_views(&c->shard, views, count, err) || !choose_memory(c, err)) return false;
    plan(c, step);
    pthread_mutex_lock(&c->mutex);
    c->busy = c->reading = c->status.writing = true;
    c->status.newest_begun = c->shard.record.id;
    c->begun_at = from;
    c->fence_due = true;
    c->status.stall_seconds = log_seconds() - from;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->mutex);
    return true;
}

/* Under the mutex, AUTO: a lazy write that steps wait for longer than a copy takes gives way to a snapshot; when writes
 * would fit between steps again, back. */
static void adapt(Ckpt *c, double window, double stall) {
    if (c->config.policy != CKPT_POLICY_AUTO || !c->snapshot) return;
    if (c->status.policy == CKPT_POLICY_LAZY) {
        c->stalls = stall > c->copy_seconds && stall > 0.01 * window ? c->stalls + 1 : 0;
        if (c->stalls >= STALLS_TO_SWITCH) c->want_snapshot = true;
        if (c->want_snapshot && c->populated == c->config.payload_bytes) {
            c->status.policy = CKPT_POLICY_SNAPSHOT;
            c->calm = 0;
        }
    } else {
        c->calm = c->status.write_seconds < 0.7 * window ? c->calm + 1 : 0;
        if (c->calm >= CALM_TO_SWITCH) c->status.policy = CKPT_POLICY_LAZY;
        c->stalls = 0;
    }
}

void ckpt_fence(Ckpt *c) {
    double from = log_seconds();
    pthread_mutex_lock(&c->mutex);
    double window = from - c->begun_at;
    while (c->reading) pthread_cond_wait(&c->changed, &c->mutex);
    double stall = log_seconds() - from;
    c->status.stall_seconds += stall;
    if (c->fence_due) adapt(c, window, stall);
    c->fence_due = false;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->mutex);
}

void ckpt_commit(Ckpt *c, uint64_t step, bool best) {
    pthread_mutex_lock(&c->mutex);
    if (c->num_commits == COMMITS_MAX) /* the oldest can be restored without */
        memmove(c->commits, c->commits + 1, (size_t)--c->num_commits * sizeof *c->commits);
    c->commits[c->num_commits++] = (Commit){{c->config.attempt, step}, best};
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->mutex);
}

bool ckpt_wait(Ckpt *c, double seconds) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    double whole = (double)(time_t)seconds;
    until.tv_sec += (time_t)whole;
    until.tv_nsec += (long)((seconds - whole) * 1e9);
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&c->mutex);
    int result = 0;
    while ((c->busy || c->num_commits || c->committing) && result != ETIMEDOUT)
        result = pthread_cond_timedwait(&c->changed, &c->mutex, &until);
    bool done = !c->busy && !c->num_commits && !c->committing && !c->status.failed;
    pthread_mutex_unlock(&c->mutex);
    return done;
}

CkptStatus ckpt_status(Ckpt *c) {
    pthread_mutex_lock(&c->mutex);
    CkptStatus status = c->status;
    pthread_mutex_unlock(&c->mutex);
    return status;
}
