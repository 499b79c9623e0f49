/* comm.c: see comm.h: the operations, each put into the queue that all groups of a process share (world.h), and memory. */
#define _DEFAULT_SOURCE
#include "comm/comm.h"
#include "base/check.h"
#include "comm/fault.h"
#include "comm/staging.h"
#include "comm/world.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGNMENT_BYTES = 2 << 20 };

size_t comm_type_bytes(CommType type) {
    switch (type) {
    case COMM_FP32: return 4;
    case COMM_BF16: return 2;
    case COMM_INT32: return 4;
    case COMM_UINT8: return 1;
    }
    CHECK(false && "a CommType");
    return 0;
}

/* --- operations --- */

static CommRequest begin(Comm *comm, WorldOperation o) {
    o.comm = comm;
    o.header.group = comm->group.id;
    staging_note(comm->world, &o);
    fault_strike(&comm->group, atomic_load(&comm->world->step), &o);
    return world_begin(comm->world, o);
}

bool comm_test(Comm *comm, CommRequest request) {
    return world_test(comm->world, request);
}

bool comm_wait(Comm *comm, CommRequest request, Error *err) {
    return world_wait(comm->world, request, err);
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
    return begin(comm, (WorldOperation){.header = {.operation = OPERATION_ALL_REDUCE,
                                                   .type = type,
                                                   .op = op,
                                                   .bytes = count * comm_type_bytes(type)},
                                        .data = data,
                                        .count = count});
}

CommRequest comm_reduce_scatter(Comm *comm, void *data, const size_t *offsets, CommType type, CommOp op) {
    int size = comm->group.size;
    check_offsets(comm, offsets);
    return begin(comm, (WorldOperation){.header = {.operation = OPERATION_REDUCE_SCATTER,
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
    return begin(comm, (WorldOperation){.header = {.operation = OPERATION_ALL_GATHER,
                                                   .type = type,
                                                   .bytes = offsets[size] * comm_type_bytes(type),
                                                   .detail = hash_offsets(offsets, size)},
                                        .data = data,
                                        .offsets = offsets});
}

CommRequest comm_broadcast(Comm *comm, void *data, size_t bytes, int root) {
    CHECK(root >= 0 && root < comm->group.size);
    return begin(comm, (WorldOperation){.header = {.operation = OPERATION_BROADCAST,
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
                 (WorldOperation){.header = {.operation = OPERATION_SEND, .type = COMM_UINT8, .bytes = bytes},
                                  .data = (void *)data, /* only read */
                                  .count = bytes,
                                  .peer = to});
}

CommRequest comm_recv(Comm *comm, void *data, size_t bytes, int from) {
    CHECK(from >= 0 && from < comm->group.size && from != comm->group.rank);
    return begin(comm,
                 (WorldOperation){.header = {.operation = OPERATION_RECV, .type = COMM_UINT8, .bytes = bytes},
                                  .data = data,
                                  .count = bytes,
                                  .peer = from});
}

bool comm_barrier(Comm *comm, Error *err) {
    WorldOperation o = {.header = {.operation = OPERATION_BARRIER, .type = COMM_UINT8}};
    return comm_wait(comm, begin(comm, o), err);
}

void comm_abort(Comm *comm, const char *reason) {
    World *w = comm->world;
    int me = comm->group.world[comm->group.rank];
    Error err;
    error_set(&err, "rank %d (%s) gave up at step %lld: %.400s", me, control_host(w->control, me),
              (long long)atomic_load(&w->step), reason);
    control_abort(w->control, err.text);
    control_answer(w->control);
    control_failed(w->control, &err);
    world_die(w, &err);
}

static void end_process(void *context) {
    Comm *comm = context;
    Error reason, line;
    int me = comm->group.world[comm->group.rank];
    control_failed(comm->world->control, &reason);
    error_set(&line, "%.500s; rank %d (%s) was busy outside communication, step %lld", reason.text, me,
              control_host(comm->world->control, me), (long long)atomic_load(&comm->world->step));
    comm->world->end(line.text);
}

void comm_watch(Comm *comm, double grace_seconds, void (*end)(const char *line)) {
    comm->world->end = end;
    control_watch(comm->world->control, grace_seconds, end_process, comm);
}

void comm_hold(Comm *comm, bool on) {
    control_hold(comm->world->control, on);
}

/* --- memory --- */

static void *map_zeroed(Comm *comm, size_t bytes, Error *err) {
    CommBlock *block = malloc(sizeof *block);
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
    *block = (CommBlock){comm->blocks, mapped, mapped_bytes};
    comm->blocks = block;
    uintptr_t at = ((uintptr_t)mapped + ALIGNMENT_BYTES - 1) / ALIGNMENT_BYTES * ALIGNMENT_BYTES;
    return (char *)mapped + (at - (uintptr_t)mapped);
}

void *comm_alloc_host(Comm *comm, size_t bytes, Error *err) {
    CommGroup *g = &comm->group;
    return g->backend->alloc ? g->backend->alloc(g, bytes, err) : map_zeroed(comm, bytes, err);
}

void *comm_alloc(Comm *comm, size_t bytes, Error *err) {
    CommGroup *g = &comm->group;
    if (!world_take(comm->world, err)) return NULL;
    g->header = (CommHeader){0};
    void *p = comm->world->memory ? staging_alloc(comm, bytes, err) : comm_alloc_host(comm, bytes, err);
    world_release(comm->world);
    return p;
}

int comm_rank(const Comm *comm) {
    return comm->group.rank;
}

int comm_size(const Comm *comm) {
    return comm->group.size;
}

const char *comm_host(const Comm *comm, int rank) {
    return control_host(comm->group.control, comm->group.world[rank]);
}

int comm_local_rank(const Comm *comm, int rank) {
    return control_local_rank(comm->group.control, comm->group.world[rank]);
}

const char *comm_describe(const Comm *comm) {
    return comm->description;
}

const char *comm_last_algorithm(const Comm *comm) {
    return comm->group.algorithm;
}

void comm_set_step(Comm *comm, int64_t step) {
    atomic_store(&comm->world->step, step);
}
