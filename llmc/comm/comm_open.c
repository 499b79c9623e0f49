/* comm_open.c: joining: the choice of a backend, which all ranks make together, and groups. See comm.h. */
#define _DEFAULT_SOURCE
#include "base/check.h"
#include "base/log.h"
#include "comm/comm.h"
#include "comm/staging.h"
#include "comm/world.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static const CommBackend *const backends[] = {
    &comm_backend_self, &comm_backend_shm, &comm_backend_torus, &comm_backend_hosts, &comm_backend_mpi,
#ifdef HAVE_NCCL
    &comm_backend_nccl,
#endif
};
enum { BACKENDS = sizeof backends / sizeof *backends };

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
                              .memory = w->memory,
                              .timeout_seconds = timeout,
                              .algorithm = "none"};
    w->references++;
    return comm;
}

static void describe(Comm *comm) {
    CommGroup *g = &comm->group;
    char more[COMM_DESCRIPTION_BYTES / 2] = "";
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
    bool left_out = !strcmp(name, "nccl");
    return !strcmp(name, "auto") ||
           error_set(err, "--comm %.40s: not one of %s%s", name, names,
                     left_out ? " (train_gpt2cu has it, where the build finds NCCL: make train_gpt2cu says)"
                              : "");
}

/* The order in which `auto` asks: for memory of GPUs, NCCL; within a host, shared memory; on known wires, the torus, of
 * hosts if several ranks share one; where wires are not known, MPI, which may have faster ways than TCP. */
static const CommBackend *candidate(int i, bool wired, bool on_device) {
#ifdef HAVE_NCCL
    if (on_device && i-- == 0) return &comm_backend_nccl;
#endif
    (void)on_device;
    static const CommBackend *const on_wires[] = {&comm_backend_shm, &comm_backend_hosts, &comm_backend_torus,
                                                  &comm_backend_mpi};
    static const CommBackend *const on_any[] = {&comm_backend_shm, &comm_backend_mpi, &comm_backend_hosts,
                                                &comm_backend_torus};
    return i >= 4 ? NULL : wired ? on_wires[i] : on_any[i];
}

static const CommBackend *backend_named(const char *name) {
    for (int i = 0; i < BACKENDS; i++)
        if (!strcmp(backends[i]->name, name)) return backends[i];
    return NULL;
}

/* The first candidate, or the one asked for, that all ranks can use; `why` says what was against those before it. */
static bool choose_backend(Comm *comm, const char *name, char *why, size_t why_size, Error *err) {
    size_t n = 0;
    why[0] = 0;
    comm->group.backend = &comm_backend_self;
    if (comm->group.size == 1) return true;
    const CommBackend *named = backend_named(name), *b;
    for (int i = 0; (b = named ? named : candidate(i, comm->group.topology->axes > 0, comm->world->memory));
         i++) {
        Error mine = {""}, objection;
        bool agreed, usable = b->usable(&comm->group, &mine);
        if (!all_agree(comm->world, usable, &mine, &agreed, &objection, err)) return false;
        if (agreed) {
            comm->group.backend = b;
            return true;
        }
        if (named) return error_set(err, "--comm %s cannot be used: %.600s", name, objection.text);
        if (n < why_size)
            n += (size_t)snprintf(why + n, why_size - n, "%s%s: %.200s", n ? "; " : "not ", b->name,
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

/* A place for each rank, or for each host (comm_hosts.c). */
static bool open_topology(World *w, const char *spec, Error *err) {
    int size = control_size(w->control), hosts = control_hosts(w->control);
    Error ignored;
    if (topology_open(&w->topology, spec, size, err)) return true;
    if (hosts < 2 || hosts == size) return false;
    topology_close(&w->topology);
    return topology_open(&w->topology, spec, hosts, &ignored);
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
    if (!world_open(&w, err)) goto out;
    atomic_store(&w->step, c.step);
    w->memory = c.memory;
    if (!control_open(&w->control, c.timeout_seconds, err)) goto out;
    int rank = control_rank(w->control), size = control_size(w->control);
    if (!same_settings(w, &c, c.timeout_seconds, err)) goto out;
    w->has_topology = true;
    if (!open_topology(w, c.topology, err)) goto out;
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
    if (!ok) world_close(w);
    if (ok) *out = comm;
    return ok;
}

void comm_close(Comm *comm) {
    if (!comm) return;
    World *w = comm->world;
    if (!world_finish(w)) return; /* what a thread may still use is left alone: the process is about to end */
    comm->group.header = (CommHeader){0};
    if (w->memory) staging_free(comm);
    if (comm->group.backend) comm->group.backend->close(&comm->group);
    for (CommBlock *next, *b = comm->blocks; b; b = next) {
        next = b->next;
        munmap(b->mapped, b->bytes);
        free(b);
    }
    free(comm->world_ranks);
    free(comm->sent);
    free(comm->received);
    free(comm);
    if (!--w->references) world_close(w);
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
    ok = world_take(w, err);
    if (ok) {
        comm->group.backend = backend;
        ok = backend->open(&comm->group, err);
        world_release(w);
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
