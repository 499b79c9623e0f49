/* fake_nccl.cpp: NCCL for tests without a GPU: processes of one host meet in a file that all map, and exchange what the
 * shim calls device memory. Non-blocking only: what was begun goes on while ncclCommGetAsyncError is called, and never
 * waits there, so that a caller's deadlines and its ways out are tested as they are. It checks what NCCL does not say a
 * word about: nothing; ranks that do not agree hang or get rubbish, as with NCCL. */
#include "cuda_runtime.h"
#include "nccl.h"
#include <atomic>
#include <cstdio>
#include <cstring>
#include <deque>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

/* llmc/comm/group.c; the numbers of its CommType and CommOp */
extern "C" void comm_reduce(void *y, const void *x, size_t n, int type, int op);

namespace {
enum { RANKS_MAX = 8 };
const size_t SLOT_BYTES = 16 << 20; /* of the file, which has holes */

struct Shared {
    std::atomic<int> attached;
    std::atomic<size_t> wrote[RANKS_MAX], read[RANKS_MAX]; /* rounds of collectives */
    std::atomic<size_t> sent[RANKS_MAX][RANKS_MAX], taken[RANKS_MAX][RANKS_MAX];
};
const size_t HEAD_BYTES = (sizeof(Shared) + 4095) / 4096 * 4096;
const size_t FILE_BYTES = HEAD_BYTES + (RANKS_MAX + RANKS_MAX * RANKS_MAX) * SLOT_BYTES;

enum Kind { INIT, ALL_REDUCE, REDUCE_SCATTER, REDUCE, ALL_GATHER, BROADCAST, SEND, RECV };
struct Operation {
    Kind kind;
    const void *from;
    void *to;
    size_t count;
    ncclDataType_t type;
    ncclRedOp_t op;
    int peer; /* or root */
};
} // namespace

struct ncclComm {
    Shared *shared;
    int rank, size;
    char path[128];
    std::deque<Operation> operations;
    size_t round;
    bool has_written;
};

static size_t bytes_of(ncclDataType_t type) {
    return type == ncclUint8 ? 1 : type == ncclBfloat16 ? 2 : 4;
}
static int comm_type(ncclDataType_t type) {
    return type == ncclFloat32 ? 0 : type == ncclBfloat16 ? 1 : type == ncclInt32 ? 2 : 3;
}

static char *slot(ncclComm *c, int rank) {
    return reinterpret_cast<char *>(c->shared) + HEAD_BYTES + (size_t)rank * SLOT_BYTES;
}
static char *box(ncclComm *c, int from, int to) {
    return slot(c, RANKS_MAX + from * RANKS_MAX + to);
}

static bool all_reached(ncclComm *c, const std::atomic<size_t> *counters, size_t round) {
    for (int r = 0; r < c->size; r++)
        if (counters[r].load() < round) return false;
    return true;
}

/* Device to host or the reverse: as work of a stream, where alone the shim lets device memory be touched. */
static void copy(void *to, const void *from, size_t bytes) {
    cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToDevice);
}

static size_t bytes_written(const ncclComm *c, const Operation &o) {
    size_t bytes = o.count * bytes_of(o.type);
    if (o.kind == REDUCE_SCATTER) return bytes * (size_t)c->size;
    return o.kind == BROADCAST && o.peer != c->rank ? 0 : bytes;
}

static void read_result(ncclComm *c, const Operation &o) {
    size_t bytes = o.count * bytes_of(o.type);
    if (o.kind == BROADCAST) {
        copy(o.to, slot(c, o.peer), bytes);
    } else if (o.kind == ALL_GATHER) {
        for (int r = 0; r < c->size; r++)
            copy(static_cast<char *>(o.to) + (size_t)r * bytes, slot(c, r), bytes);
    } else if (o.kind != REDUCE || o.peer == c->rank) {
        size_t at = o.kind == REDUCE_SCATTER ? (size_t)c->rank * bytes : 0;
        std::vector<char> sum(slot(c, 0) + at, slot(c, 0) + at + bytes);
        for (int r = 1; r < c->size; r++)
            comm_reduce(sum.data(), slot(c, r) + at, o.count, comm_type(o.type), o.op == ncclMax);
        copy(o.to, sum.data(), bytes);
    }
}

/* Is it done? */
static bool advance(ncclComm *c, const Operation &o) {
    Shared *s = c->shared;
    if (o.kind == INIT) {
        if (s->attached.load() < c->size) return false;
        unlink(c->path);
        return true;
    }
    if (o.kind == SEND) {
        if (s->sent[c->rank][o.peer].load() != s->taken[c->rank][o.peer].load()) return false;
        copy(box(c, c->rank, o.peer), o.from, o.count * bytes_of(o.type));
        s->sent[c->rank][o.peer]++;
        return true;
    }
    if (o.kind == RECV) {
        if (s->sent[o.peer][c->rank].load() == s->taken[o.peer][c->rank].load()) return false;
        copy(o.to, box(c, o.peer, c->rank), o.count * bytes_of(o.type));
        s->taken[o.peer][c->rank]++;
        return true;
    }
    if (!c->has_written) {
        if (!all_reached(c, s->read, c->round)) return false;
        if (bytes_written(c, o)) copy(slot(c, c->rank), o.from, bytes_written(c, o));
        c->has_written = true;
        s->wrote[c->rank] = c->round + 1;
    }
    if (!all_reached(c, s->wrote, c->round + 1)) return false;
    read_result(c, o);
    s->read[c->rank] = ++c->round;
    c->has_written = false;
    return true;
}

static ncclResult_t begin(ncclComm_t c, Operation o) {
    if (!c || bytes_written(c, o) > SLOT_BYTES) return ncclInvalidArgument;
    c->operations.push_back(o);
    return ncclInProgress;
}

static void leave(ncclComm_t c) {
    munmap(c->shared, FILE_BYTES);
    delete c;
}

ncclResult_t ncclGetVersion(int *version) {
    *version = 0;
    return ncclSuccess;
}
const char *ncclGetErrorString(ncclResult_t result) {
    return result == ncclInvalidArgument ? "invalid argument" : "unhandled system error";
}
ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    snprintf(id->internal, sizeof id->internal, "/dev/shm/fake_nccl.XXXXXX");
    int fd = mkstemp(id->internal);
    bool ok = fd >= 0 && ftruncate(fd, (off_t)FILE_BYTES) == 0;
    if (fd >= 0) close(fd);
    return ok ? ncclSuccess : ncclSystemError;
}
ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int size, ncclUniqueId id, int rank,
                                    ncclConfig_t *config) {
    if (size > RANKS_MAX || config->blocking) return ncclInvalidArgument;
    int fd = open(id.internal, O_RDWR);
    void *mapped = fd < 0 ? MAP_FAILED : mmap(nullptr, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd >= 0) close(fd);
    if (mapped == MAP_FAILED) return ncclSystemError;
    *comm = new ncclComm{static_cast<Shared *>(mapped), rank, size, {}, {}, 0, false};
    memcpy((*comm)->path, id.internal, sizeof id.internal);
    (*comm)->shared->attached++;
    (*comm)->operations.push_back({INIT, nullptr, nullptr, 0, ncclUint8, ncclSum, 0});
    return ncclInProgress;
}
ncclResult_t ncclCommGetAsyncError(ncclComm_t c, ncclResult_t *result) {
    while (!c->operations.empty() && advance(c, c->operations.front())) c->operations.pop_front();
    *result = c->operations.empty() ? ncclSuccess : ncclInProgress;
    return ncclSuccess;
}
ncclResult_t ncclCommFinalize(ncclComm_t) {
    return ncclSuccess;
}
ncclResult_t ncclCommDestroy(ncclComm_t c) {
    leave(c);
    return ncclSuccess;
}
ncclResult_t ncclCommAbort(ncclComm_t c) {
    unlink(c->path);
    leave(c);
    return ncclSuccess;
}
ncclResult_t ncclGroupStart(void) {
    return ncclSuccess;
}
ncclResult_t ncclGroupEnd(void) {
    return ncclInProgress;
}
ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t) {
    return begin(comm, {ALL_REDUCE, from, to, count, type, op, 0});
}
ncclResult_t ncclReduceScatter(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t comm, cudaStream_t) {
    return begin(comm, {REDUCE_SCATTER, from, to, count, type, op, 0});
}
ncclResult_t ncclReduce(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t op,
                        int root, ncclComm_t comm, cudaStream_t) {
    return begin(comm, {REDUCE, from, to, count, type, op, root});
}
ncclResult_t ncclAllGather(const void *from, void *to, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t) {
    return begin(comm, {ALL_GATHER, from, to, count, type, ncclSum, 0});
}
ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t) {
    return begin(comm, {BROADCAST, from, to, count, type, ncclSum, root});
}
ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t) {
    return begin(comm, {SEND, from, nullptr, count, type, ncclSum, peer});
}
ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t) {
    return begin(comm, {RECV, nullptr, to, count, type, ncclSum, peer});
}
