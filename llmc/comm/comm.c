/* comm.c: see comm.h: the queue of operations, the thread that works on it, the choice of a backend, and groups.
 *
 * All groups of a process share one World: one queue, run in order, one operation at a time. Who runs it: the worker
 * thread, woken by a large operation so that it proceeds while the caller computes; or a caller that waits, if nobody
 * else is at it, so that a small operation costs no change of threads. `busy` says that somebody is; it and the queue are
 * behind the World's lock, the operation itself runs without it. */
#define _DEFAULT_SOURCE
#include "comm/comm.h"
#include "base/check.h"
#include "base/log.h"
#include "comm/backend.h"
#include "comm/comm_mpi.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

/* In the order in which `auto` asks them. */
static const CommBackend *const backends[] = {
    &comm_backend_self,
    &comm_backend_shm,
    &comm_backend_mpi,
    &comm_backend_torus,
};
enum { BACKENDS = sizeof backends / sizeof *backends };

enum {
    QUEUE_MAX = 1024,
    SMALL_BYTES = 32 << 10, /* below, the worker is not woken: the caller runs it when it waits */
    DESCRIPTION_BYTES = 400,
    ALIGNMENT_BYTES = 2 << 20
};

/* After a failure, a thread that is still inside a backend is given this long to come back. */
static const double STRAGGLER_SECONDS = 2;

typedef struct {
    Comm *comm;
    CommHeader header;
    void *data;
    const size_t *offsets;
    size_t count;
    int peer;
} Operation;

typedef struct {
    Control *control;
    Topology topology;
    bool has_topology, has_thread;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t work, changed; /* for the worker; for those who wait */
    Operation queue[QUEUE_MAX];   /* operation i is at (i - 1) % QUEUE_MAX */
    uint64_t begun, wanted;       /* the worker shall run all up to `wanted` */
    atomic_uint_fast64_t done;    /* changed under the lock */
    atomic_bool dead;             /* set once, after error */
    Error error;
    bool busy, stopping, gone; /* gone: the worker has ended */
    atomic_int_fast64_t step;
    int references;  /* Comms */
    uint32_t groups; /* made so far, on any rank of mine */
} World;

typedef struct Block {
    struct Block *next;
    void *mapped;
    size_t bytes;
} Block;

struct Comm {
    World *world;
    CommGroup group;
    int *world_ranks;
    uint64_t collectives, *sent, *received; /* sequence numbers; the latter (size) */
    Block *blocks;
    char description[DESCRIPTION_BYTES];
};

size_t comm_type_bytes(CommType type) {
    switch (type) {
    case COMM_FP32: return 4;
    case COMM_BF16: return 2;
    case COMM_INT32: return 4;
    case COMM_UINT8: return 1;
    }
    CHECK(!"a CommType");
    return 0;
}

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

static bool run_operation(const Operation *o, Error *err) {
    CommGroup *g = &o->comm->group;
    const CommBackend *b = g->backend;
    CommType type = (CommType)o->header.type;
    CommOp op = (CommOp)o->header.op;
    g->header = o->header;
    g->step = (int64_t)atomic_load(&o->comm->world->step);
    if (comm_group_failed(g, err)) return false;
    switch ((CommOperation)o->header.operation) {
    case OPERATION_ALL_REDUCE: return b->all_reduce(g, o->data, o->count, type, op, err);
    case OPERATION_REDUCE_SCATTER: return b->reduce_scatter(g, o->data, o->offsets, type, op, err);
    case OPERATION_ALL_GATHER: return b->all_gather(g, o->data, o->offsets, type, err);
    case OPERATION_BROADCAST: return b->broadcast(g, o->data, o->count, o->peer, err);
    case OPERATION_SEND: return b->send(g, o->data, o->count, o->peer, err);
    case OPERATION_RECV: return b->recv(g, o->data, o->count, o->peer, err);
    case OPERATION_BARRIER: return b->barrier(g, err);
    }
    CHECK(!"a CommOperation");
    return false;
}

/* Runs the operation at the head; the lock is released meanwhile. */
static void run_head(World *w) {
    CHECK(!w->busy);
    Operation o = w->queue[done_of(w) % QUEUE_MAX];
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

static CommRequest begin(Comm *comm, Operation o) {
    World *w = comm->world;
    o.comm = comm;
    o.header.group = comm->group.id;
    pthread_mutex_lock(&w->lock);
    Error ignored;
    if (w->begun - done_of(w) == QUEUE_MAX) run_until(w, w->begun - QUEUE_MAX + 1, false, &ignored);
    if (!atomic_load(&w->dead)) {
        uint64_t *sequence = o.header.operation == OPERATION_SEND   ? &comm->sent[o.peer]
                             : o.header.operation == OPERATION_RECV ? &comm->received[o.peer]
                                                                    : &comm->collectives;
        o.header.sequence = ++*sequence;
        w->queue[w->begun % QUEUE_MAX] = o;
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

bool comm_test(Comm *comm, CommRequest request) {
    World *w = comm->world;
    if (atomic_load_explicit(&w->dead, memory_order_acquire) || done_of(w) >= request) return true;
    pthread_mutex_lock(&w->lock);
    if (w->wanted < request) { /* somebody asks: time for the worker */
        w->wanted = request < w->begun ? request : w->begun;
        if (!w->busy) pthread_cond_signal(&w->work);
    }
    pthread_mutex_unlock(&w->lock);
    return false;
}

bool comm_wait(Comm *comm, CommRequest request, Error *err) {
    World *w = comm->world;
    if (done_of(w) >= request) return !say_dead(w, err);
    pthread_mutex_lock(&w->lock);
    CHECK(request <= w->begun || atomic_load(&w->dead));
    bool ok = run_until(w, request, false, err);
    pthread_mutex_unlock(&w->lock);
    return ok;
}

static uint64_t hash_offsets(const size_t *offsets, int size) {
    uint64_t h = 14695981039346656037u;
    for (int i = 0; i <= size; i++) h = (h ^ offsets[i]) * 1099511628211u;
    return h;
}

static void check_offsets(const Comm *comm, const size_t *offsets) {
    CHECK_OP(offsets[0], ==, 0);
    for (int i = 0; i < comm->group.size; i++) CHECK_OP(offsets[i], <=, offsets[i + 1]);
}

CommRequest comm_all_reduce(Comm *comm, void *data, size_t count, CommType type, CommOp op) {
    return begin(comm, (Operation){.header = {.operation = OPERATION_ALL_REDUCE,
                                              .type = type,
                                              .op = op,
                                              .bytes = count * comm_type_bytes(type)},
                                   .data = data,
                                   .count = count});
}

CommRequest comm_reduce_scatter(Comm *comm, void *data, const size_t *offsets, CommType type, CommOp op) {
    int size = comm->group.size;
    check_offsets(comm, offsets);
    return begin(comm, (Operation){.header = {.operation = OPERATION_REDUCE_SCATTER,
                                              .type = type,
                                              .op = op,
                                              .bytes = offsets[size] * comm_type_bytes(type),
                                              .detail = hash_offsets(offsets, size)},
                                   .data = data,
                                   .offsets = offsets});
}

CommRequest comm_all_gather(Comm *comm, void *data, const size_t *offsets, CommType type) {
    int size = comm->group.size;
    check_offsets(comm, offsets);
    return begin(comm, (Operation){.header = {.operation = OPERATION_ALL_GATHER,
                                              .type = type,
                                              .bytes = offsets[size] * comm_type_bytes(type),
                                              .detail = hash_offsets(offsets, size)},
                                   .data = data,
                                   .offsets = offsets});
}

CommRequest comm_broadcast(Comm *comm, void *data, size_t bytes, int root) {
    CHECK(root >= 0 && root < comm->group.size);
    return begin(comm, (Operation){.header = {.operation = OPERATION_BROADCAST,
                                              .type = COMM_UINT8,
                                              .bytes = bytes,
                                              .detail = (uint64_t)root},
                                   .data = data,
                                   .count = bytes,
                                   .peer = root});
}

CommRequest comm_send(Comm *comm, const void *data, size_t bytes, int to) {
    CHECK(to >= 0 && to < comm->group.size && to != comm->group.rank);
    return begin(comm,
                 (Operation){.header = {.operation = OPERATION_SEND, .type = COMM_UINT8, .bytes = bytes},
                             .data = (void *)data, /* only read */
                             .count = bytes,
                             .peer = to});
}

CommRequest comm_recv(Comm *comm, void *data, size_t bytes, int from) {
    CHECK(from >= 0 && from < comm->group.size && from != comm->group.rank);
    return begin(comm,
                 (Operation){.header = {.operation = OPERATION_RECV, .type = COMM_UINT8, .bytes = bytes},
                             .data = data,
                             .count = bytes,
                             .peer = from});
}

bool comm_barrier(Comm *comm, Error *err) {
    Operation o = {.header = {.operation = OPERATION_BARRIER, .type = COMM_UINT8}};
    return comm_wait(comm, begin(comm, o), err);
}

void comm_abort(Comm *comm, const char *reason) {
    World *w = comm->world;
    int me = comm->group.world[comm->group.rank];
    Error err;
    error_set(&err, "rank %d (%s) gave up at step %lld: %.400s", me, control_host(w->control, me),
              (long long)atomic_load(&w->step), reason);
    control_abort(w->control, err.text);
    control_failed(w->control, &err);
    pthread_mutex_lock(&w->lock);
    die(w, &err);
    pthread_mutex_unlock(&w->lock);
}

/* --- memory --- */

static void *map_zeroed(Comm *comm, size_t bytes, Error *err) {
    Block *block = malloc(sizeof *block);
    size_t mapped_bytes = bytes + ALIGNMENT_BYTES;
    if (!block || mapped_bytes < bytes) {
        free(block);
        error_set(err, "no memory for %zu bytes", bytes);
        return NULL;
    }
    void *mapped = mmap(NULL, mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) {
        error_set_errno(err, "no memory for %zu bytes", bytes);
        free(block);
        return NULL;
    }
    *block = (Block){comm->blocks, mapped, mapped_bytes};
    comm->blocks = block;
    uintptr_t at = ((uintptr_t)mapped + ALIGNMENT_BYTES - 1) / ALIGNMENT_BYTES * ALIGNMENT_BYTES;
    return (char *)mapped + (at - (uintptr_t)mapped);
}

void *comm_alloc(Comm *comm, size_t bytes, Error *err) {
    World *w = comm->world;
    void *p = NULL;
    pthread_mutex_lock(&w->lock);
    bool ok = run_until(w, w->begun, true, err); /* the backend is this thread's now */
    w->busy = ok;
    pthread_mutex_unlock(&w->lock);
    if (!ok) return NULL;
    comm->group.header = (CommHeader){0};
    if (comm->group.backend->alloc)
        p = comm->group.backend->alloc(&comm->group, bytes, err);
    else
        p = map_zeroed(comm, bytes, err);
    pthread_mutex_lock(&w->lock);
    w->busy = false;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    return p;
}

/* --- opening --- */

static bool make_world(World **world, Error *err) {
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

static void free_world(World *w) {
    if (!stop_worker(w)) return;
    if (w->control && !control_failed(w->control, NULL)) mpi_finish_at_exit();
    control_close(w->control);
    if (w->has_topology) topology_close(&w->topology);
    pthread_cond_destroy(&w->work);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

/* Takes world_ranks over. */
static Comm *make_comm(World *w, int rank, int size, uint32_t id, int *world_ranks, double timeout) {
    Comm *comm = calloc(1, sizeof *comm);
    CHECK(comm);
    comm->world = w;
    comm->world_ranks = world_ranks;
    comm->sent = calloc((size_t)size, sizeof *comm->sent);
    comm->received = calloc((size_t)size, sizeof *comm->received);
    CHECK(comm->sent && comm->received);
    comm->group = (CommGroup){.rank = rank,
                              .size = size,
                              .id = id,
                              .world = world_ranks,
                              .control = w->control,
                              .topology = &w->topology,
                              .timeout_seconds = timeout};
    w->references++;
    return comm;
}

static void describe(Comm *comm) {
    CommGroup *g = &comm->group;
    char more[DESCRIPTION_BYTES / 2] = "";
    int hosts = control_hosts(g->control);
    if (g->backend->describe) g->backend->describe(g, more, sizeof more);
    snprintf(comm->description, sizeof comm->description, "%s, %d rank%s on %d host%s%s%s", g->backend->name,
             g->size, g->size == 1 ? "" : "s", hosts, hosts == 1 ? "" : "s", more[0] ? ", " : "", more);
}

/* What all ranks must have been asked for. */
typedef struct {
    char backend[16], topology[256];
    double timeout_seconds;
} Settings;

static bool same_settings(World *w, const CommConfig *config, double timeout, Error *err) {
    int size = control_size(w->control);
    Settings mine = {.timeout_seconds = timeout}, *all = calloc((size_t)size, sizeof *all);
    CHECK(all);
    snprintf(mine.backend, sizeof mine.backend, "%s", config->backend);
    snprintf(mine.topology, sizeof mine.topology, "%s", config->topology);
    bool ok = control_all_gather(w->control, &mine, sizeof mine, all, err);
    for (int i = 1; i < size && ok; i++)
        if (strcmp(all[i].backend, all[0].backend) != 0 || strcmp(all[i].topology, all[0].topology) != 0 ||
            all[i].timeout_seconds != all[0].timeout_seconds)
            ok = error_set(
                err,
                "rank %d (%s) was started with --comm %s, topology '%.80s', timeout %g s, rank 0 (%s) with "
                "--comm %s, topology '%.80s', timeout %g s",
                i, control_host(w->control, i), all[i].backend, all[i].topology, all[i].timeout_seconds,
                control_host(w->control, 0), all[0].backend, all[0].topology, all[0].timeout_seconds);
    free(all);
    return ok;
}

/* All ranks' verdict on something that each tried: the first that says no. */
static bool all_agree(World *w, bool mine, const Error *why, bool *agreed, Error *objection, Error *err) {
    typedef struct {
        bool yes;
        char why[300];
    } Vote;
    int size = control_size(w->control);
    Vote vote = {.yes = mine}, *votes = calloc((size_t)size, sizeof *votes);
    CHECK(votes);
    if (!mine) snprintf(vote.why, sizeof vote.why, "%.299s", why->text);
    bool ok = control_all_gather(w->control, &vote, sizeof vote, votes, err);
    *agreed = true;
    for (int i = 0; i < size && ok && *agreed; i++) {
        if (votes[i].yes) continue;
        *agreed = false;
        votes[i].why[sizeof votes[i].why - 1] = 0;
        error_set(objection, "rank %d (%s): %s", i, control_host(w->control, i), votes[i].why);
    }
    free(votes);
    return ok;
}

const char *comm_backend_name(int index) {
    return index >= 0 && index < BACKENDS ? backends[index]->name : NULL;
}

static bool name_known(const char *name, Error *err) {
    char names[128] = "auto";
    size_t n = strlen(names);
    for (int i = 0; i < BACKENDS; i++) {
        if (!strcmp(name, backends[i]->name)) return true;
        n += (size_t)snprintf(names + n, sizeof names - n, ", %s", backends[i]->name);
    }
    return !strcmp(name, "auto") || error_set(err, "--comm %.40s: not one of %s", name, names);
}

/* The first in the table that all ranks can use; `why` says what was against those before it. */
static bool choose_backend(Comm *comm, const char *name, char *why, size_t why_size, Error *err) {
    bool any = !strcmp(name, "auto");
    size_t n = 0;
    why[0] = 0;
    comm->group.backend = &comm_backend_self;
    if (comm->group.size == 1) return true;
    for (int i = 0; i < BACKENDS; i++) {
        Error mine = {""}, objection;
        bool agreed;
        if (!any && strcmp(name, backends[i]->name) != 0) continue;
        if (any && backends[i] == &comm_backend_self && comm->group.size > 1) continue;
        bool usable = backends[i]->usable(&comm->group, &mine);
        if (!all_agree(comm->world, usable, &mine, &agreed, &objection, err)) return false;
        if (agreed) {
            comm->group.backend = backends[i];
            return true;
        }
        if (!any) return error_set(err, "--comm %s cannot be used: %.600s", name, objection.text);
        if (n < why_size)
            n += (size_t)snprintf(why + n, why_size - n, "%s%s: %.200s", n ? "; " : "not ", backends[i]->name,
                                  objection.text);
    }
    return error_set(err, "no way to communicate among %d ranks on %d hosts: %.500s", comm->group.size,
                     control_hosts(comm->group.control), why);
}

/* Opens the chosen backend everywhere, or nowhere. */
static bool open_everywhere(Comm *comm, Error *err) {
    Error mine = {""}, objection;
    bool agreed;
    bool opened = comm->group.backend->open(&comm->group, &mine);
    if (!all_agree(comm->world, opened, &mine, &agreed, &objection, err)) return false;
    return agreed ||
           error_set(err, "--comm %s could not be opened: %.600s", comm->group.backend->name, objection.text);
}

bool comm_open(Comm **out, const CommConfig *config, Error *err) {
    CommConfig c = *config;
    World *w = NULL;
    Comm *comm = NULL;
    char why[600] = "";
    bool ok = false;
    *out = NULL;
    if (!c.backend || !c.backend[0]) c.backend = "auto";
    if (!c.topology) c.topology = "";
    if (c.timeout_seconds <= 0) c.timeout_seconds = 10;
    if (!name_known(c.backend, err)) return false;
    if (!make_world(&w, err)) goto out;
    atomic_store(&w->step, c.step);
    if (!control_open(&w->control, c.timeout_seconds, err)) goto out;
    int rank = control_rank(w->control), size = control_size(w->control);
    if (!same_settings(w, &c, c.timeout_seconds, err)) goto out;
    if (!topology_open(&w->topology, c.topology, size, err)) goto out;
    w->has_topology = true;
    int *ranks = malloc((size_t)size * sizeof *ranks);
    CHECK(ranks);
    for (int i = 0; i < size; i++) ranks[i] = i;
    comm = make_comm(w, rank, size, 0, ranks, c.timeout_seconds);
    if (!choose_backend(comm, c.backend, why, sizeof why, err)) goto out;
    if (!open_everywhere(comm, err)) goto out;
    describe(comm);
    if (rank == 0) log_info("comm        %s%s%s", comm->description, why[0] ? "; " : "", why);
    ok = true;
out:
    if (!ok && w && w->control) control_abort(w->control, err->text);
    if (!ok && comm) {
        comm_close(comm); /* also of a backend that is not open: backend.h */
        return false;
    }
    if (!ok && w) free_world(w);
    if (ok) *out = comm;
    return ok;
}

void comm_close(Comm *comm) {
    if (!comm) return;
    World *w = comm->world;
    Error ignored;
    double since = 0;
    pthread_mutex_lock(&w->lock);
    if (!control_failed(w->control, NULL)) run_until(w, w->begun, true, &ignored);
    while (w->busy && !straggles(w, &since)) wait_changed(w);
    bool lost = w->busy;
    pthread_mutex_unlock(&w->lock);
    if (lost)
        return; /* a thread is still inside: what it may use is left alone; the process is about to end */
    comm->group.header = (CommHeader){0};
    if (comm->group.backend) comm->group.backend->close(&comm->group);
    for (Block *next, *b = comm->blocks; b; b = next) {
        next = b->next;
        munmap(b->mapped, b->bytes);
        free(b);
    }
    free(comm->world_ranks);
    free(comm->sent);
    free(comm->received);
    free(comm);
    if (!--w->references) free_world(w);
}

/* --- groups --- */

typedef struct {
    int32_t colour, key, rank;
    uint32_t groups;
} SplitEntry;

static int compare_entries(const void *a, const void *b) {
    const SplitEntry *x = a, *y = b;
    if (x->colour != y->colour) return x->colour < y->colour ? -1 : 1;
    if (x->key != y->key) return x->key < y->key ? -1 : 1;
    return (x->rank > y->rank) - (x->rank < y->rank);
}

/* Everyone's colour and key, in the order of the new groups. */
static bool gather_entries(Comm *parent, SplitEntry mine, SplitEntry *entries, Error *err) {
    int size = parent->group.size;
    size_t *offsets = malloc(((size_t)size + 1) * sizeof *offsets);
    CHECK(offsets);
    for (int i = 0; i <= size; i++) offsets[i] = (size_t)i * sizeof *entries;
    entries[mine.rank] = mine;
    bool ok = comm_wait(parent, comm_all_gather(parent, entries, offsets, COMM_UINT8), err);
    free(offsets);
    if (ok) qsort(entries, (size_t)size, sizeof *entries, compare_entries);
    return ok;
}

bool comm_split(Comm *parent, int colour, int key, Comm **out, Error *err) {
    World *w = parent->world;
    int size = parent->group.size, first = 0, count = 0, rank = 0;
    uint32_t groups = 0;
    *out = NULL;
    SplitEntry *entries = calloc((size_t)size, sizeof *entries);
    CHECK(entries);
    bool ok = gather_entries(parent, (SplitEntry){colour, key, parent->group.rank, w->groups}, entries, err);
    if (!ok || colour < 0) goto out;
    for (int i = 0; i < size; i++) {
        if (entries[i].groups > groups) groups = entries[i].groups;
        if (entries[i].colour < colour) first = i + 1;
        if (entries[i].colour != colour) continue;
        if (entries[i].rank == parent->group.rank) rank = count;
        count++;
    }
    /* A number that no other group with a rank in common has: a count that only grows, and the first rank. */
    w->groups = groups + 1;
    int *ranks = malloc((size_t)count * sizeof *ranks);
    CHECK(ranks);
    for (int i = 0; i < count; i++) ranks[i] = parent->group.world[entries[first + i].rank];
    Comm *comm = make_comm(w, rank, count, (w->groups << 16) + (uint32_t)ranks[0], ranks,
                           parent->group.timeout_seconds);
    const CommBackend *backend = count == 1 ? &comm_backend_self : parent->group.backend;
    pthread_mutex_lock(&w->lock);
    ok = run_until(w, w->begun, true, err);
    w->busy = ok;
    pthread_mutex_unlock(&w->lock);
    if (ok) {
        comm->group.backend = backend;
        ok = backend->open(&comm->group, err);
        pthread_mutex_lock(&w->lock);
        w->busy = false;
        pthread_mutex_unlock(&w->lock);
    }
    if (!ok) {
        control_abort(w->control, err->text);
        comm_close(comm);
        goto out;
    }
    describe(comm);
    *out = comm;
out:
    free(entries);
    return ok;
}

int comm_rank(const Comm *comm) {
    return comm->group.rank;
}

int comm_size(const Comm *comm) {
    return comm->group.size;
}

const char *comm_describe(const Comm *comm) {
    return comm->description;
}

void comm_set_step(Comm *comm, int64_t step) {
    atomic_store(&comm->world->step, step);
}
