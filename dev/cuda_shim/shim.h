/* shim.h: runs CUDA kernels on the CPU, so that they can be tested where there is no GPU, under sanitizers, and in
 * orders of threads that a GPU would show once a year.
 *
 * Blocks run one after another; each thread of a block is a fiber that runs until it waits (barrier, warp function) or
 * returns. What always holds: a kernel that breaks a rule of the machine stops the program with a line that names the
 * kernel, block, thread and rule: barriers reached in different places or by a part of the block, warp masks that do
 * not name the caller or name lanes that have returned, shuffles from lanes outside the mask, misaligned vectors,
 * launches the hardware would refuse, work from a thread that has not selected the stream's device. Shared memory is full of NaN when a block begins, device memory when it is
 * allocated, the target of an asynchronous copy until its thread has waited; shared memory is of exact size, so that
 * AddressSanitizer sees a step outside it.
 *
 * Not modelled: grid-wide waits, clusters, wgmma, TMA, mbarrier, textures, timing. Float atomics are left out on
 * purpose: their sums would depend on the order of threads.
 *
 * Environment: SHIM_ORDER=forward|reverse|random[:SEED]  which thread (and block) goes first
 *              SHIM_ASYNC=1   work in a stream is done as late as possible, when somebody waits for it
 *              SHIM_GUARD=1   memory of cudaMalloc is out of the host's reach: who touches it dies of SIGSEGV
 *              SHIM_DEVICES=N   devices (1), all alike; a thread uses the first until it says otherwise
 *              SHIM_SMS=N     multiprocessors that cudaGetDeviceProperties tells of (4)
 *              SHIM_STATS=1   counts at exit */
#ifndef SHIM_H
#define SHIM_H
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
typedef struct shim_stream *cudaStream_t;

extern "C" {
/* From now on; also what SHIM_ORDER sets. */
enum ShimOrder { SHIM_FORWARD, SHIM_REVERSE, SHIM_RANDOM };
void shim_order_set(int order, uint64_t seed);
}

namespace shim {

enum {
    LANES = 32,
    THREADS_MAX = 1024,
    SHARED_BYTES_MAX = 227 << 10,
    UNASKED_BYTES = 32 << 10 /* as gpu_launch */,
    SLOT_BYTES = 64
};

struct Fiber;
struct WarpOp;
struct Copies;

/* One CUDA thread of the block that runs. */
struct Thread {
    uint3 index;
    int linear, warp, lane;
    int state;
    Fiber *fiber;
    WarpOp *op;     /* the warp function it is in, or whose slots it may still read */
    Copies *copies; /* asynchronous copies on the way */
};
extern Thread *thread; /* the one that runs */
extern uint3 block_index;
extern dim3 block_dim, grid_dim;

/* Runs the body for every thread of the grid, now or (SHIM_ASYNC) when the stream is waited for. */
void launch(const char *name, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            std::function<void()> body);

/* Stops the program: the kernel broke a rule. Names kernel, block and thread. */
[[noreturn]] void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Shared memory of the running block: dynamic, and that of one SHARED declaration. */
void *dyn_shared();
void *shared(const void *site, size_t bytes);

/* __syncthreads and its kinds: all of the block's predicates are combined. */
struct Votes {
    int any, all, count;
};
Votes barrier(int predicate, const char *file, int line);

/* Leaves `bytes` (<= SLOT_BYTES) in this lane's slot, waits for every lane of the mask to do the same in the function of
 * the same name, and returns the slots of all lanes; they stay until the caller's next barrier or warp function. */
typedef unsigned char Slot[SLOT_BYTES];
const Slot *exchange(uint32_t mask, const void *mine, size_t bytes, const char *name);

/* p, if it is a multiple of `bytes`. */
inline const void *aligned(const void *p, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(p) % bytes) die("a vector of %zu bytes at %p: misaligned", bytes, p);
    return p;
}

template <class T> T shuffle(uint32_t mask, T mine, int from, const char *name) {
    static_assert(sizeof(T) <= SLOT_BYTES, "too large to shuffle");
    const Slot *slots = exchange(mask, &mine, sizeof mine, name);
    if (!(mask >> from & 1)) die("%s reads lane %d, which mask %08x does not name", name, from, mask);
    T theirs;
    memcpy(&theirs, slots[from], sizeof theirs);
    return theirs;
}

/* Models of instructions; gpu.h has the wrappers and says what they do. */
float exp2_fast(float x);
void ldmatrix_x4(uint32_t r[4], const void *row, bool transposed);
void mma_m16n8k16(float d[4], const uint32_t a[4], const uint32_t b[2]);
void copy_async_16(void *shared, const void *global, bool valid);
void copy_async_commit();
void copy_async_wait(size_t newest);
void copies_dropped(Thread *t); /* the thread has returned */

/* Between the parts of the shim. */
void stream_push(cudaStream_t stream, std::function<void()> work);
/* Is it of the device that this thread uses? */
void stream_check(cudaStream_t stream, const char *what);
struct Stats {
    uint64_t launches, blocks, threads, switches, warp_ops, barriers;
    uint64_t waits, event_waits; /* of the host: for a stream or a copy; for an event */
};
extern Stats stats;
} // namespace shim
#endif
