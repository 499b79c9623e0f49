/* staging.c: see staging.h. */
#define _POSIX_C_SOURCE 200809L
#include "comm/staging.h"
#include "base/check.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct StagedBlock {
    StagedBlock *next;
    const Comm *owner;
    char *device, *mirror; /* mirror NULL: the backend works on the device's */
    size_t bytes;
    bool pinned;
};

/* --- blocks --- */

void *staging_alloc(Comm *comm, size_t bytes, Error *err) {
    World *w = comm->world;
    CommGroup *g = &comm->group;
    StagedBlock *block = calloc(1, sizeof *block);
    CHECK(block);
    *block = (StagedBlock){.owner = comm, .bytes = bytes, .device = w->memory->alloc(bytes)};
    bool ok = block->device ||
              error_set(err, "no device memory for %.3f GB (lower --batch-size)", 1e-9 * (double)bytes);
    if (ok && !g->backend->on_device) {
        block->mirror = comm_alloc_host(comm, bytes, err);
        ok = block->mirror != NULL;
        block->pinned = ok && bytes && w->memory->pin(block->mirror, bytes);
    }
    if (!ok) {
        if (block->device) w->memory->free(block->device, bytes);
        free(block);
        return NULL;
    }
    block->next = w->staged;
    w->staged = block;
    return block->device;
}

void staging_free(Comm *comm) {
    World *w = comm->world;
    for (StagedBlock **at = &w->staged; *at;) {
        StagedBlock *block = *at;
        if (block->owner != comm) {
            at = &block->next;
            continue;
        }
        *at = block->next;
        if (block->pinned) w->memory->unpin(block->mirror);
        w->memory->free(block->device, block->bytes);
        free(block);
    }
    if (comm->group.id || !w->scratch) return;
    w->memory->free(w->scratch, w->scratch_bytes);
    w->scratch = NULL;
    w->scratch_bytes = 0;
}

static const StagedBlock *find(const World *w, const void *data) {
    const StagedBlock *block = w->staged;
    uintptr_t at = (uintptr_t)data;
    while (block && (at < (uintptr_t)block->device || at - (uintptr_t)block->device >= block->bytes))
        block = block->next;
    return block;
}

void staging_note(const World *w, WorldOperation *o) {
    if (!w->memory) return;
    o->on_device = find(w, o->data) != NULL;
    if (o->on_device) o->mark = w->memory->mark();
}

/* --- operations --- */

/* What an operation reads and writes of its data, in bytes from its begin; of two parts the second may be empty. */
typedef struct {
    size_t begin, end;
} Part;
typedef struct {
    Part reads, writes[2];
} Traffic;

static Traffic traffic_of(const WorldOperation *o) {
    const CommGroup *g = &o->comm->group;
    size_t bytes = (size_t)o->header.bytes;
    const Part all = {0, bytes}, none = {0, 0};
    Part own = none;
    if (o->offsets) {
        size_t each = comm_type_bytes((CommType)o->header.type);
        own = (Part){o->offsets[g->rank] * each, o->offsets[g->rank + 1] * each};
    }
    switch ((CommOperation)o->header.operation) {
    case OPERATION_ALL_REDUCE: return (Traffic){all, {all, none}};
    case OPERATION_REDUCE_SCATTER: return (Traffic){all, {own, none}};
    case OPERATION_ALL_GATHER: return (Traffic){own, {{0, own.begin}, {own.end, bytes}}};
    case OPERATION_BROADCAST:
        return g->rank == o->peer ? (Traffic){all, {none, none}} : (Traffic){none, {all, none}};
    case OPERATION_SEND: return (Traffic){all, {none, none}};
    case OPERATION_RECV: return (Traffic){none, {all, none}};
    case OPERATION_BARRIER: break;
    }
    return (Traffic){none, {none, none}};
}

/* to_device: of the first argument. */
static void copy(const CommMemory *memory, bool to_device, char *to, const char *from, Part part) {
    if (part.begin == part.end) return;
    if (to_device)
        memory->write(to + part.begin, from + part.begin, part.end - part.begin);
    else
        memory->read(to + part.begin, from + part.begin, part.end - part.begin);
}

/* Until the caller's kernels have made the data. */
static bool wait_launched(const WorldOperation *o, Error *err) {
    const CommMemory *memory = o->comm->world->memory;
    for (int turns = 0; !memory->is_done(o->mark); turns++) {
        if (comm_group_failed(&o->comm->group, err)) return false;
        if (turns > 100) nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    }
    return true;
}

/* Host data for a backend that works on devices. */
static char *scratch(World *w, size_t bytes, Error *err) {
    if (w->scratch_bytes >= bytes && w->scratch) return w->scratch;
    if (w->scratch) w->memory->free(w->scratch, w->scratch_bytes);
    w->scratch_bytes = bytes < 1 << 20 ? 1 << 20 : bytes;
    w->scratch = w->memory->alloc(w->scratch_bytes);
    if (!w->scratch) error_set(err, "no device memory to communicate %zu bytes (lower --batch-size)", bytes);
    return w->scratch;
}

bool staging_run(const WorldOperation *o, bool (*run)(const WorldOperation *o, Error *err), Error *err) {
    World *w = o->comm->world;
    bool device_wanted = o->comm->group.backend->on_device;
    if (!w->memory || !o->header.bytes || o->comm->group.size == 1) return run(o, err);
    if (o->on_device && !wait_launched(o, err)) return false;
    if (o->on_device == device_wanted) return run(o, err);
    char *mirror = NULL;
    if (o->on_device) {
        const StagedBlock *block = find(w, o->data);
        if (!block->mirror)
            return error_set(err, "memory of comm_alloc was given to another group's backend");
        mirror = block->mirror + ((char *)o->data - block->device);
    } else {
        mirror = scratch(w, (size_t)o->header.bytes, err);
        if (!mirror) return false;
    }
    Traffic traffic = traffic_of(o);
    WorldOperation there = *o;
    there.data = mirror;
    copy(w->memory, device_wanted, mirror, o->data, traffic.reads);
    if (!run(&there, err)) return false;
    for (int i = 0; i < 2; i++) copy(w->memory, !device_wanted, o->data, mirror, traffic.writes[i]);
    return true;
}
