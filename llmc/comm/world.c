/* world.c: see world.h. */
#define _DEFAULT_SOURCE
#include "comm/world.h"
#include "base/check.h"
#include "base/log.h"
#include "comm/staging.h"
#include <signal.h>
#include <stdlib.h>
#include <time.h>

/* Up to this size the worker is not woken: the caller runs the operation when it waits. */
enum { SMALL_BYTES = 32 << 10 };

/* After a failure, a thread that is still inside a backend is given this long to come back. */
static const double STRAGGLER_SECONDS = 2;

/* --- the queue; lock held --- */

static uint64_t done_of(World *w) {
    return atomic_load_explicit(&w->done, memory_order_acquire);
}

/* The first error is the last: what was begun will not be run. */
static void die(World *w, const Error *err) {
    if (!atomic_load(&w->dead)) {
        w->error = *err;
        atomic_store_explicit(&w->dead, true, memory_order_release);
    }
    atomic_store_explicit(&w->done, w->begun, memory_order_release);
    pthread_cond_broadcast(&w->changed);
}

static bool say_dead(World *w, Error *err) {
    if (!atomic_load_explicit(&w->dead, memory_order_acquire)) return false;
    *err = w->error;
    return true;
}

static bool call_backend(const WorldOperation *o, Error *err) {
    CommGroup *g = &o->comm->group;
    const CommBackend *b = g->backend;
    CommType type = (CommType)o->header.type;
    CommOp op = (CommOp)o->header.op;
    if (g->size == 1) return true;
    switch ((CommOperation)o->header.operation) {
    case OPERATION_ALL_REDUCE: return b->all_reduce(g, o->data, o->count, type, op, err);
    case OPERATION_REDUCE_SCATTER: return b->reduce_scatter(g, o->data, o->offsets, type, op, err);
    case OPERATION_ALL_GATHER: return b->all_gather(g, o->data, o->offsets, type, err);
    case OPERATION_BROADCAST: return b->broadcast(g, o->data, o->count, o->peer, err);
    case OPERATION_SEND: return b->send(g, o->data, o->count, o->peer, err);
    case OPERATION_RECV: return b->recv(g, o->data, o->count, o->peer, err);
    case OPERATION_BARRIER: return b->barrier(g, err);
    }
    CHECK(false && "a CommOperation");
    return false;
}

static bool run_operation(const WorldOperation *o, Error *err) {
    CommGroup *g = &o->comm->group;
    g->header = o->header;
    g->step = (int64_t)atomic_load(&o->comm->world->step);
    if (comm_group_failed(g, err)) return false;
    return staging_run(o, call_backend, err);
}

/* Runs the operation at the head; the lock is released meanwhile. */
static void run_head(World *w) {
    CHECK(!w->busy);
    WorldOperation o = w->queue[done_of(w) % WORLD_QUEUE_MAX];
    Error err;
    w->busy = true;
    pthread_mutex_unlock(&w->lock);
    bool ok = run_operation(&o, &err);
    if (!ok) control_abort(w->control, err.text); /* a failure of one is a failure of all */
    pthread_mutex_lock(&w->lock);
    w->busy = false;
    if (!ok)
        die(w, &err);
    else if (!atomic_load(&w->dead))
        atomic_fetch_add_explicit(&w->done, 1, memory_order_release);
    pthread_cond_broadcast(&w->changed);
    if (w->wanted > done_of(w)) pthread_cond_signal(&w->work);
}

static void *worker(void *argument) {
    World *w = argument;
    pthread_mutex_lock(&w->lock);
    while (!w->stopping) {
        if (!w->busy && w->wanted > done_of(w))
            run_head(w);
        else
            pthread_cond_wait(&w->work, &w->lock);
    }
    w->gone = true;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* Waits for a change; at most 50 ms, since a failure may be known before whoever is busy notices. */
static void wait_changed(World *w) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    t.tv_nsec += 50000000;
    if (t.tv_nsec >= 1000000000) t.tv_sec++, t.tv_nsec -= 1000000000;
    pthread_cond_timedwait(&w->changed, &w->lock, &t);
}

/* Somebody is inside a backend while the job has failed: how long until he is given up. */
static bool straggles(World *w, double *since) {
    if (!control_failed(w->control, NULL)) return false;
    if (*since == 0) *since = log_seconds();
    return log_seconds() - *since > STRAGGLER_SECONDS;
}

/* Until everything up to `request` is done and, if `idle`, nobody is inside a backend. */
static bool run_until(World *w, uint64_t request, bool idle, Error *err) {
    double since = 0;
    while (!atomic_load(&w->dead) && (done_of(w) < request || (idle && w->busy))) {
        if (!w->busy)
            run_head(w);
        else if (straggles(w, &since)) {
            Error first;
            control_failed(w->control, &first);
            die(w, &first);
        } else
            wait_changed(w);
    }
    return !say_dead(w, err);
}

/* --- begin, test, wait --- */

CommRequest world_begin(World *w, WorldOperation o) {
    Comm *comm = o.comm;
    pthread_mutex_lock(&w->lock);
    Error ignored;
    if (w->begun - done_of(w) == WORLD_QUEUE_MAX)
        run_until(w, w->begun - WORLD_QUEUE_MAX + 1, false, &ignored);
    if (!atomic_load(&w->dead)) {
        uint64_t *sequence = o.header.operation == OPERATION_SEND   ? &comm->sent[o.peer]
                             : o.header.operation == OPERATION_RECV ? &comm->received[o.peer]
                                                                    : &comm->collectives;
        o.header.sequence = ++*sequence;
        if (!o.header.group && sequence == &comm->collectives)
            control_note(w->control, (uint32_t)comm->collectives);
        w->queue[w->begun % WORLD_QUEUE_MAX] = o;
        w->begun++;
        if (o.header.bytes > SMALL_BYTES) {
            w->wanted = w->begun;
            if (!w->busy) pthread_cond_signal(&w->work);
        }
    }
    CommRequest request = w->begun ? w->begun : 1;
    pthread_mutex_unlock(&w->lock);
    return request;
}

bool world_test(World *w, CommRequest request) {
    if (atomic_load_explicit(&w->dead, memory_order_acquire) || done_of(w) >= request) return true;
    pthread_mutex_lock(&w->lock);
    if (w->wanted < request) { /* somebody asks: time for the worker */
        w->wanted = request < w->begun ? request : w->begun;
        if (!w->busy) pthread_cond_signal(&w->work);
    }
    pthread_mutex_unlock(&w->lock);
    return false;
}

bool world_wait(World *w, CommRequest request, Error *err) {
    if (done_of(w) >= request) return !say_dead(w, err);
    pthread_mutex_lock(&w->lock);
    CHECK(request <= w->begun || atomic_load(&w->dead));
    bool ok = run_until(w, request, false, err);
    pthread_mutex_unlock(&w->lock);
    return ok;
}

bool world_take(World *w, Error *err) {
    pthread_mutex_lock(&w->lock);
    bool ok = run_until(w, w->begun, true, err);
    if (ok) w->busy = true;
    pthread_mutex_unlock(&w->lock);
    return ok;
}

void world_release(World *w) {
    pthread_mutex_lock(&w->lock);
    w->busy = false;
    if (w->wanted > done_of(w)) pthread_cond_signal(&w->work);
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

void world_die(World *w, const Error *err) {
    pthread_mutex_lock(&w->lock);
    die(w, err);
    pthread_mutex_unlock(&w->lock);
}

bool world_finish(World *w) {
    Error ignored;
    double since = 0;
    control_answer(w->control);
    pthread_mutex_lock(&w->lock);
    if (!control_failed(w->control, NULL)) run_until(w, w->begun, true, &ignored);
    while (w->busy && !straggles(w, &since)) wait_changed(w);
    bool idle = !w->busy;
    pthread_mutex_unlock(&w->lock);
    return idle;
}

/* --- open and close --- */

bool world_open(World **world, Error *err) {
    World *w = calloc(1, sizeof *w);
    CHECK(w);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&w->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_cond_init(&w->work, NULL);
    pthread_mutex_init(&w->lock, NULL);
    *world = w;
    sigset_t all, before;
    sigfillset(&all); /* signals are for the program's own threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    w->has_thread = pthread_create(&w->thread, NULL, worker, w) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return w->has_thread || error_set(err, "no thread for communication could be started");
}

/* False: the worker is lost inside a backend; what it may use is left alone. */
static bool stop_worker(World *w) {
    if (!w->has_thread) return true;
    pthread_mutex_lock(&w->lock);
    w->stopping = true;
    pthread_cond_broadcast(&w->work);
    for (double until = log_seconds() + STRAGGLER_SECONDS; !w->gone && log_seconds() < until;)
        wait_changed(w);
    bool gone = w->gone;
    pthread_mutex_unlock(&w->lock);
    if (gone)
        pthread_join(w->thread, NULL);
    else
        pthread_detach(w->thread);
    return gone;
}

void world_close(World *w) {
    if (!w || !stop_worker(w)) return;
    control_close(w->control);
    if (w->has_topology) topology_close(&w->topology);
    pthread_cond_destroy(&w->work);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    free(w);
}
