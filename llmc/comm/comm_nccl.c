/* comm_nccl.c: the backend of GPUs: NVIDIA's NCCL moves and adds in device memory, one GPU for each rank.
 *
 * NCCL knows neither deadlines nor whether ranks agree in what they do. So communicators are non-blocking, everything is
 * waited for by asking, until the deadline or until the control plane knows of a failure, and then broken off; and before
 * every operation the ranks exchange headers (48 bytes each), which costs the latency of one small all-gather. A group's
 * stream carries one operation at a time. Maxima with NaN are as NCCL has them.
 *
 * Built where there is NCCL (HAVE_NCCL), for programs that compute on GPUs. */
#ifdef HAVE_NCCL
#define _POSIX_C_SOURCE 200809L
#include "base/check.h"
#include "base/log.h"
#include "comm/backend.h"
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const double SPIN_SECONDS = 200e-6, CLOSE_SECONDS = 1;
static const long NAP_NANOSECONDS = 20000;
enum { NAME_BYTES = 32 };

typedef struct {
    ncclComm_t comm;
    cudaStream_t stream;
    char *device;      /* (size + 1) headers in device memory: everyone's, then mine */
    CommHeader *their; /* (size) */
} Nccl;

/* That of all ranks, through which groups find together. */
static Nccl *nccl_world;

static size_t device_bytes(const CommGroup *group) {
    return ((size_t)group->size + 1) * sizeof(CommHeader) + sizeof(ncclUniqueId);
}

static ncclDataType_t type_of(CommType type) {
    switch (type) {
    case COMM_FP32: return ncclFloat32;
    case COMM_BF16: return ncclBfloat16;
    case COMM_INT32: return ncclInt32;
    case COMM_UINT8: break;
    }
    return ncclUint8;
}

static ncclRedOp_t op_of(CommOp op) {
    return op == COMM_SUM ? ncclSum : ncclMax;
}

/* --- waiting --- */

/* Nothing of this communicator is of use any more, and what it has on the stream must end. */
static bool break_off(Nccl *n) {
    if (n->comm) ncclCommAbort(n->comm);
    n->comm = NULL;
    return false;
}

static bool fault(CommGroup *group, ncclResult_t result, Error *err) {
    Nccl *n = group->state;
    char what[256];
    const char *hint = result == ncclRemoteError    ? "another rank's GPU or network connection is gone"
                       : result == ncclSystemError  ? "NCCL_DEBUG=INFO shows which call failed"
                       : result == ncclInvalidUsage ? "do two ranks share a GPU?"
                                                    : "NCCL_DEBUG=WARN tells more";
    snprintf(what, sizeof what, "NCCL: %s (%s)", ncclGetErrorString(result), hint);
    break_off(n);
    return comm_group_fault(group, -1, what, err);
}

/* Asks until the communicator has taken its work and the stream has done it. */
static bool finish(CommGroup *group, ncclResult_t result, Error *err) {
    Nccl *n = group->state;
    const double begun = log_seconds();
    bool taken = false;
    if (result != ncclSuccess && result != ncclInProgress) return fault(group, result, err);
    for (;;) {
        ncclResult_t asked = ncclCommGetAsyncError(n->comm, &result);
        if (asked != ncclSuccess) result = asked;
        if (result != ncclSuccess && result != ncclInProgress) return fault(group, result, err);
        taken = result == ncclSuccess;
        if (taken && group->memory->stream_is_done(n->stream)) return true;
        if (comm_group_failed(group, err)) return break_off(n);
        double waited = log_seconds() - begun;
        if (waited > group->timeout_seconds) {
            char what[128];
            snprintf(what, sizeof what,
                     "NCCL did not finish within %g s (a larger --comm-timeout waits longer)",
                     group->timeout_seconds);
            break_off(n);
            return comm_group_fault(group, -1, what, err);
        }
        if (waited > SPIN_SECONDS) nanosleep(&(struct timespec){.tv_nsec = NAP_NANOSECONDS}, NULL);
    }
}

/* Between ncclGroupStart and ncclGroupEnd: the first failure is the one that counts. */
static ncclResult_t first_of(ncclResult_t a, ncclResult_t b) {
    return a != ncclSuccess && a != ncclInProgress ? a : b;
}

/* --- agreement --- */

static bool meet(CommGroup *group, Error *err) {
    Nccl *n = group->state;
    const size_t each = sizeof(CommHeader);
    char *mine = n->device + (size_t)group->size * each;
    group->memory->write(mine, &group->header, each);
    if (!finish(group, ncclAllGather(mine, n->device, each, ncclUint8, n->comm, n->stream), err))
        return false;
    group->memory->read(n->their, n->device, (size_t)group->size * each);
    for (int r = 0; r < group->size; r++)
        if (memcmp(&n->their[r], &group->header, each) != 0) {
            comm_group_mismatch(group, r, &n->their[r], err);
            return break_off(n);
        }
    return true;
}

/* Are all shares as large as the first? Then NCCL has a call for it. */
static bool are_even(const CommGroup *group, const size_t *offsets) {
    for (int r = 0; r < group->size; r++)
        if (offsets[r + 1] - offsets[r] != offsets[1]) return false;
    return true;
}

/* --- the operations --- */

static bool all_reduce(CommGroup *group, void *data, size_t count, CommType type, CommOp op, Error *err) {
    Nccl *n = group->state;
    group->algorithm = "nccl";
    if (!meet(group, err)) return false;
    return !count ||
           finish(group, ncclAllReduce(data, data, count, type_of(type), op_of(op), n->comm, n->stream), err);
}

static bool reduce_scatter(CommGroup *group, void *data, const size_t *offsets, CommType type, CommOp op,
                           Error *err) {
    Nccl *n = group->state;
    const size_t each = comm_type_bytes(type);
    ncclResult_t result = ncclSuccess;
    if (!meet(group, err)) return false;
    if (!offsets[group->size]) return true;
    if (are_even(group, offsets)) {
        group->algorithm = "nccl";
        char *own = (char *)data + offsets[group->rank] * each;
        result = ncclReduceScatter(data, own, offsets[1], type_of(type), op_of(op), n->comm, n->stream);
        return finish(group, result, err);
    }
    group->algorithm = "nccl, a reduction for each rank";
    ncclGroupStart();
    for (int r = 0; r < group->size; r++) {
        char *share = (char *)data + offsets[r] * each;
        size_t count = offsets[r + 1] - offsets[r];
        if (count)
            result = first_of(
                result, ncclReduce(share, share, count, type_of(type), op_of(op), r, n->comm, n->stream));
    }
    return finish(group, first_of(result, ncclGroupEnd()), err);
}

static bool all_gather(CommGroup *group, void *data, const size_t *offsets, CommType type, Error *err) {
    Nccl *n = group->state;
    const size_t each = comm_type_bytes(type);
    ncclResult_t result = ncclSuccess;
    if (!meet(group, err)) return false;
    if (!offsets[group->size]) return true;
    if (are_even(group, offsets)) {
        group->algorithm = "nccl";
        char *own = (char *)data + offsets[group->rank] * each;
        return finish(group, ncclAllGather(own, data, offsets[1] * each, ncclUint8, n->comm, n->stream), err);
    }
    group->algorithm = "nccl, a broadcast from each rank";
    ncclGroupStart();
    for (int r = 0; r < group->size; r++) {
        char *share = (char *)data + offsets[r] * each;
        size_t bytes = (offsets[r + 1] - offsets[r]) * each;
        if (bytes)
            result = first_of(result, ncclBroadcast(share, share, bytes, ncclUint8, r, n->comm, n->stream));
    }
    return finish(group, first_of(result, ncclGroupEnd()), err);
}

static bool broadcast(CommGroup *group, void *data, size_t bytes, int root, Error *err) {
    Nccl *n = group->state;
    group->algorithm = "nccl";
    if (!meet(group, err)) return false;
    return !bytes ||
           finish(group, ncclBroadcast(data, data, bytes, ncclUint8, root, n->comm, n->stream), err);
}

/* A header goes ahead, which the receiver compares. */
static bool send_bytes(CommGroup *group, const void *data, size_t bytes, int to, Error *err) {
    Nccl *n = group->state;
    group->algorithm = "nccl";
    group->memory->write(n->device, &group->header, sizeof group->header);
    if (!finish(group, ncclSend(n->device, sizeof group->header, ncclUint8, to, n->comm, n->stream), err))
        return false;
    return !bytes || finish(group, ncclSend(data, bytes, ncclUint8, to, n->comm, n->stream), err);
}

static bool recv_bytes(CommGroup *group, void *data, size_t bytes, int from, Error *err) {
    Nccl *n = group->state;
    CommHeader their, wanted = group->header;
    group->algorithm = "nccl";
    group->memory->write(n->device, &wanted, sizeof wanted); /* selects this thread's GPU, too */
    if (!finish(group, ncclRecv(n->device, sizeof their, ncclUint8, from, n->comm, n->stream), err))
        return false;
    group->memory->read(&their, n->device, sizeof their);
    wanted.operation = OPERATION_SEND;
    if (memcmp(&their, &wanted, sizeof their) != 0) {
        comm_group_mismatch(group, from, &their, err);
        return break_off(n);
    }
    return !bytes || finish(group, ncclRecv(data, bytes, ncclUint8, from, n->comm, n->stream), err);
}

static bool barrier(CommGroup *group, Error *err) {
    group->algorithm = "nccl";
    return meet(group, err);
}

/* --- groups --- */

/* A GPU for each rank? All ranks ask together. */
static bool usable(const CommGroup *group, Error *err) {
    char mine[NAME_BYTES] = "", *all = calloc((size_t)group->size, NAME_BYTES);
    CHECK(all);
    if (group->memory) snprintf(mine, sizeof mine, "%s", group->memory->name());
    bool ok = control_all_gather(group->control, mine, NAME_BYTES, all, err);
    if (ok && !group->memory) ok = error_set(err, "this program computes on no GPU (train_gpt2cu does)");
    for (int r = 0; r < group->size && ok; r++) {
        bool same_host = !strcmp(comm_group_host(group, r), comm_group_host(group, group->rank));
        if (r != group->rank && same_host && !strncmp(all + r * NAME_BYTES, mine, NAME_BYTES))
            ok = error_set(err, "shares GPU %s with rank %d (start as many ranks on a host as it has GPUs)",
                           mine, group->world[r]);
    }
    free(all);
    return ok;
}

/* The id that the group's first rank made: over the control plane to all, among some over NCCL itself. */
static bool share_id(CommGroup *group, ncclUniqueId *id, Error *err) {
    Nccl *n = group->state;
    CommGroup world = *group;
    ncclResult_t result = ncclSuccess;
    memset(id, 0, sizeof *id);
    if (group->rank == 0 && (result = ncclGetUniqueId(id)) != ncclSuccess) return fault(group, result, err);
    if (!group->id) {
        ncclUniqueId *all = calloc((size_t)group->size, sizeof *all);
        CHECK(all);
        bool ok = control_all_gather(group->control, id, sizeof *id, all, err);
        *id = all[0];
        free(all);
        return ok;
    }
    CHECK(nccl_world);
    world.state = nccl_world;
    group->memory->write(n->device, id, sizeof *id);
    ncclGroupStart();
    for (int r = 1; r < group->size && group->rank == 0; r++)
        result = first_of(result, ncclSend(n->device, sizeof *id, ncclUint8, group->world[r],
                                           nccl_world->comm, nccl_world->stream));
    if (group->rank)
        result =
            ncclRecv(n->device, sizeof *id, ncclUint8, group->world[0], nccl_world->comm, nccl_world->stream);
    if (!finish(&world, first_of(result, ncclGroupEnd()), err)) return false;
    group->memory->read(id, n->device, sizeof *id);
    return true;
}

static bool open_group(CommGroup *group, Error *err) {
    Nccl *n = calloc(1, sizeof *n);
    ncclUniqueId id;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    CHECK(n);
    group->state = n;
    n->their = calloc((size_t)group->size, sizeof *n->their);
    CHECK(n->their);
    n->stream = group->memory->stream_open();
    n->device = group->memory->alloc(device_bytes(group));
    if (!n->device) return error_set(err, "no device memory for %zu bytes", device_bytes(group));
    if (!share_id(group, &id, err)) return false;
    config.blocking = 0;
    ncclResult_t result = ncclCommInitRankConfig(&n->comm, group->size, id, group->rank, &config);
    if (!finish(group, result, err)) return false;
    if (!group->id) nccl_world = n;
    return true;
}

static void close_group(CommGroup *group) {
    Nccl *n = group->state;
    if (!n) return;
    if (n->comm && !control_failed(group->control, NULL)) {
        ncclResult_t state = ncclCommFinalize(n->comm);
        for (double until = log_seconds() + CLOSE_SECONDS;
             state == ncclInProgress && log_seconds() < until;) {
            nanosleep(&(struct timespec){.tv_nsec = NAP_NANOSECONDS}, NULL);
            if (ncclCommGetAsyncError(n->comm, &state) != ncclSuccess) break;
        }
        if (state == ncclSuccess) {
            ncclCommDestroy(n->comm);
            n->comm = NULL;
        }
    }
    break_off(n);
    if (nccl_world == n) nccl_world = NULL;
    if (n->device) group->memory->free(n->device, device_bytes(group));
    group->memory->stream_close(n->stream);
    free(n->their);
    free(n);
    group->state = NULL;
}

static void describe(const CommGroup *group, char *out, size_t size) {
    int v = 0;
    (void)group;
    ncclGetVersion(&v);
    snprintf(out, size, "NCCL %d.%d.%d, a GPU for each rank", v / 10000, v / 100 % 100, v % 100);
}

const CommBackend comm_backend_nccl = {.name = "nccl",
                                       .on_device = true,
                                       .usable = usable,
                                       .open = open_group,
                                       .close = close_group,
                                       .all_reduce = all_reduce,
                                       .reduce_scatter = reduce_scatter,
                                       .all_gather = all_gather,
                                       .broadcast = broadcast,
                                       .send = send_bytes,
                                       .recv = recv_bytes,
                                       .barrier = barrier,
                                       .describe = describe};
#else
typedef int no_nccl; /* ISO C has no empty translation unit */
#endif
