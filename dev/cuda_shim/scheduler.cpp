/* scheduler.cpp: runs the threads of a block as fibers: who goes on, who waits for whom at barriers and in warp
 * functions, and what is wrong when they miss one another.
 *
 * A fiber runs one thread after another for as long as they return without waiting; a thread that waits keeps its fiber,
 * and the processor goes straight to a thread that is ready, or to a fiber that begins the next thread. */
#include "fiber.h"
#include "shim.h"
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace shim {

enum State { READY, AT_BARRIER, IN_WARP, RETURNED };

/* One warp function on its way: its lanes arrive, then read one another's slots, then leave. */
struct WarpOp {
    uint32_t mask, arrived, left;
    const char *name;
    Slot slots[LANES];
};
struct Warp {
    uint32_t alive; /* lanes that exist and have not returned */
    std::vector<WarpOp *> ops, unused;
};
/* One SHARED declaration; its address is its name. */
struct SharedArray {
    const void *site;
    size_t bytes;
    void *memory;
};
/* Threads that can go on: each is in it at most once. */
struct Ready {
    int at[THREADS_MAX];
    unsigned head, tail;
    bool empty() const { return head == tail; }
    void push(int t) { at[tail++ % THREADS_MAX] = t; }
};

Thread *thread;
uint3 block_index;
dim3 block_dim, grid_dim;
Stats stats;

static const char *kernel_name;
static const std::function<void()> *kernel_body;
static std::vector<Thread> threads;
static std::vector<Warp> &warps = *new std::vector<Warp>; /* never destroyed: a leak check runs late */
static std::vector<int> start_order;
static std::vector<Fiber *> &idle_fibers = *new std::vector<Fiber *>;
static std::vector<SharedArray> shared_arrays;
static Ready ready;
static int started, alive, waiting; /* threads begun, not returned, at the barrier */
static const char *barrier_file;
static int barrier_line;
static Votes votes, released_votes;
static void *dyn_memory;
static size_t dyn_bytes;
static Fiber *launcher;

/* --- order --- */

static int order = -1; /* not yet read from the environment */
static uint64_t random_state = 1;

static unsigned random_below(size_t n) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (unsigned)((random_state >> 16) % n);
}

extern "C" void shim_order_set(int new_order, uint64_t seed) {
    order = new_order;
    random_state = (seed + 1) * 0x9e3779b97f4a7c15u;
}

static void order_from_environment() {
    const char *value = getenv("SHIM_ORDER");
    shim_order_set(SHIM_FORWARD, 0);
    if (!value || !strcmp(value, "forward")) return;
    if (!strcmp(value, "reverse"))
        shim_order_set(SHIM_REVERSE, 0);
    else if (!strncmp(value, "random", 6) && (!value[6] || value[6] == ':'))
        shim_order_set(SHIM_RANDOM, value[6] ? strtoull(value + 7, nullptr, 10) : 0);
    else
        die("SHIM_ORDER=%s: must be forward, reverse, random or random:SEED", value);
}

static void put_in_order(std::vector<int> &v, size_t n) {
    v.resize(n);
    for (size_t i = 0; i < n; i++) v[i] = (int)(order == SHIM_REVERSE ? n - 1 - i : i);
    if (order == SHIM_RANDOM)
        for (size_t i = n; i > 1; i--) std::swap(v[i - 1], v[random_below(i)]);
}

/* --- errors --- */

void die(const char *format, ...) {
    fflush(stdout);
    fprintf(stderr, "shim: ");
    if (kernel_name) fprintf(stderr, "kernel %s: ", kernel_name);
    if (thread)
        fprintf(stderr, "block (%u,%u,%u) thread (%u,%u,%u): ", block_index.x, block_index.y, block_index.z,
                thread->index.x, thread->index.y, thread->index.z);
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fprintf(stderr, "\n");
    abort();
}

[[noreturn]] static void deadlock() {
    std::string who;
    int shown = 0;
    for (const Thread &t : threads) {
        if (t.state != AT_BARRIER && t.state != IN_WARP) continue;
        if (shown++ == 4) break;
        who += "; thread " + std::to_string(t.linear) + " waits in ";
        who += t.state == AT_BARRIER ? "__syncthreads" : t.op->name;
    }
    thread = nullptr;
    die("deadlock: %d threads wait%s", alive, who.c_str());
}

/* --- who goes on --- */

static bool starts_next() { /* rather than to resume one */
    return started < (int)threads.size() && (ready.empty() || (order == SHIM_RANDOM && random_below(2)));
}

/* In half of the blocks that run at random, warps race: the hastiest goes as far as it can before others go on, which is
 * what a missing barrier does not survive. */
static bool racing;
static std::vector<int> haste; /* of each warp */

static int haste_of(unsigned place) {
    return haste[(size_t)ready.at[place % THREADS_MAX] / LANES];
}

static Thread *pop_ready() {
    if (order == SHIM_RANDOM) {
        unsigned i = ready.head + random_below(ready.tail - ready.head);
        for (unsigned k = ready.head; racing && k != ready.tail; k++)
            if (haste_of(k) > haste_of(i)) i = k;
        std::swap(ready.at[i % THREADS_MAX], ready.at[ready.head % THREADS_MAX]);
    }
    return &threads[(size_t)ready.at[ready.head++ % THREADS_MAX]];
}

static void resume(Thread *t) {
    thread = t;
    if (t->fiber == fiber_current) return;
    stats.switches++;
    fiber_switch(t->fiber);
}

static void returned(Thread *t);

static void run_threads() {
    for (;;) {
        if (starts_next()) {
            Thread *t = &threads[(size_t)start_order[(size_t)started++]];
            t->fiber = fiber_current;
            thread = t;
            (*kernel_body)();
            returned(t);
            continue;
        }
        if (ready.empty() && alive) deadlock();
        idle_fibers.push_back(fiber_current);
        if (ready.empty())
            fiber_switch(launcher);
        else
            resume(pop_ready());
    }
}

static Fiber *idle_fiber() {
    if (idle_fibers.empty()) return fiber_new(run_threads);
    Fiber *f = idle_fibers.back();
    idle_fibers.pop_back();
    return f;
}

/* Runs others until somebody has made this thread ready and its turn has come. */
static void wait_turn() {
    Thread *me = thread;
    if (starts_next()) {
        stats.switches++;
        fiber_switch(idle_fiber());
    } else if (!ready.empty()) {
        resume(pop_ready());
    } else {
        deadlock();
    }
    thread = me;
}

static void make_ready(Thread *t) {
    t->state = READY;
    ready.push(t->linear);
}

/* --- barriers --- */

static void leave_op(Thread *t) {
    WarpOp *op = t->op;
    if (!op) return;
    t->op = nullptr;
    op->left |= 1u << t->lane;
    if (op->left != op->mask) return;
    Warp &warp = warps[(size_t)t->warp];
    warp.ops.erase(std::find(warp.ops.begin(), warp.ops.end(), op));
    warp.unused.push_back(op);
}

/* All threads that have not returned are there; `last` goes on by itself. */
static void release_barrier(const Thread *last) {
    released_votes = votes;
    votes = {0, 1, 0};
    waiting = 0;
    barrier_file = nullptr;
    size_t n = threads.size();
    for (size_t i = 0; i < n; i++) {
        Thread *t = &threads[order == SHIM_REVERSE ? n - 1 - i : i];
        if (t->state == AT_BARRIER && t != last) make_ready(t);
    }
}

Votes barrier(int predicate, const char *file, int line) {
    Thread *me = thread;
    if (!me) die("__syncthreads outside of a kernel");
    if (barrier_file && (line != barrier_line || strcmp(file, barrier_file)))
        die("divergent barrier: this thread is at %s:%d, %d others wait at %s:%d", file, line, waiting,
            barrier_file, barrier_line);
    leave_op(me);
    stats.barriers++;
    barrier_file = file;
    barrier_line = line;
    votes.any |= predicate != 0;
    votes.all &= predicate != 0;
    votes.count += predicate != 0;
    me->state = AT_BARRIER;
    if (++waiting == alive) {
        release_barrier(me);
        me->state = READY;
    } else {
        wait_turn();
    }
    return released_votes;
}

/* --- warp functions --- */

/* The one that waits for this lane, or a new one. Another one may wait for it later, but not if a lane waits there that
 * is also waited for here. */
static WarpOp *find_op(Warp &warp, uint32_t mask, int lane, const char *name) {
    for (WarpOp *op : warp.ops)
        if (op->mask == mask && op->mask & ~op->arrived & 1u << lane && !strcmp(op->name, name)) return op;
    for (WarpOp *op : warp.ops)
        if (op->mask & ~op->arrived & 1u << lane && op->arrived & mask)
            die("%s with mask %08x meets %s with mask %08x in its warp", name, mask, op->name, op->mask);
    if (warp.unused.empty()) warp.unused.push_back(new WarpOp);
    WarpOp *op = warp.unused.back();
    warp.unused.pop_back();
    op->mask = mask;
    op->arrived = op->left = 0;
    op->name = name;
    warp.ops.push_back(op);
    return op;
}

const Slot *exchange(uint32_t mask, const void *mine, size_t bytes, const char *name) {
    Thread *me = thread;
    if (!me) die("%s outside of a kernel", name);
    Warp &warp = warps[(size_t)me->warp];
    leave_op(me);
    stats.warp_ops++;
    if (!(mask >> me->lane & 1))
        die("%s: mask %08x does not name lane %d, which calls", name, mask, me->lane);
    if (mask & ~warp.alive)
        die("%s: mask %08x names lanes that have returned or do not exist (there are %08x)", name, mask,
            warp.alive);
    WarpOp *op = find_op(warp, mask, me->lane, name);
    if (bytes) memcpy(op->slots[me->lane], mine, bytes);
    me->op = op;
    op->arrived |= 1u << me->lane;
    if (op->arrived == mask) {
        for (int i = 0; i < LANES; i++) {
            int lane = order == SHIM_REVERSE ? LANES - 1 - i : i;
            if (mask >> lane & 1 && lane != me->lane)
                make_ready(&threads[(size_t)(me->linear - me->lane + lane)]);
        }
    } else {
        me->state = IN_WARP;
        wait_turn();
    }
    return op->slots;
}

static void returned(Thread *t) {
    Warp &warp = warps[(size_t)t->warp];
    leave_op(t);
    copies_dropped(t);
    t->state = RETURNED;
    alive--;
    warp.alive &= ~(1u << t->lane);
    for (const WarpOp *op : warp.ops)
        if (op->mask & ~op->arrived & 1u << t->lane)
            die("returned while %s with mask %08x waits for it", op->name, op->mask);
    if (alive && waiting == alive) release_barrier(nullptr);
}

/* --- shared memory --- */

void *dyn_shared() {
    if (!thread) die("dynamic shared memory outside of a kernel");
    return dyn_memory;
}

static void *shared_new(size_t bytes) {
    void *memory;
    if (posix_memalign(&memory, 128, bytes ? bytes : 1)) die("no memory for shared memory");
    memset(memory, 0xff, bytes);
    return memory;
}

void *shared(const void *site, size_t bytes) {
    size_t all = bytes;
    if (!thread) die("shared memory outside of a kernel");
    for (const SharedArray &a : shared_arrays) {
        if (a.site == site) return a.memory;
        all += a.bytes;
    }
    if (all > 48 << 10) die("%zu bytes of static shared memory; 48 KiB are the most", all);
    if (all + dyn_bytes > (dyn_bytes > UNASKED_BYTES ? (size_t)SHARED_BYTES_MAX : (size_t)48 << 10))
        die("%zu bytes of static shared memory beside %zu of dynamic: more than a block has", all, dyn_bytes);
    shared_arrays.push_back({site, bytes, shared_new(bytes)});
    return shared_arrays.back().memory;
}

/* --- launch --- */

static void prepare_block(size_t shared_bytes) {
    const int n = (int)threads.size();
    put_in_order(start_order, (size_t)n);
    racing = order == SHIM_RANDOM && random_below(2);
    if (racing) put_in_order(haste, (size_t)(n + LANES - 1) / LANES);
    memset(dyn_memory, 0xff, shared_bytes);
    for (SharedArray &a : shared_arrays) memset(a.memory, 0xff, a.bytes);
    for (int i = 0; i < n; i++) {
        unsigned u = (unsigned)i;
        const uint3 index = {u % block_dim.x, u / block_dim.x % block_dim.y, u / block_dim.x / block_dim.y};
        threads[(size_t)i] = {index, i, i / LANES, i % LANES, READY, nullptr, nullptr, nullptr};
    }
    for (int w = 0; w * LANES < n; w++)
        warps[(size_t)w].alive = n - w * LANES < LANES ? (1u << (n - w * LANES)) - 1 : 0xffffffffu;
    ready.head = ready.tail = 0;
    started = waiting = 0;
    barrier_file = nullptr;
    alive = n;
    votes = {0, 1, 0};
}

static void run_grid(const char *name, dim3 grid, dim3 block, size_t shared_bytes,
                     const std::function<void()> &body) {
    if (thread) die("launch of %s from a kernel", name);
    if (order < 0) order_from_environment();
    std::vector<int> blocks;
    kernel_name = name;
    kernel_body = &body;
    grid_dim = grid;
    block_dim = block;
    threads.resize((size_t)block.x * block.y * block.z);
    if (warps.size() * LANES < threads.size()) warps.resize((threads.size() + LANES - 1) / LANES);
    dyn_memory = shared_new(shared_bytes);
    dyn_bytes = shared_bytes;
    launcher = fiber_current;
    put_in_order(blocks, (size_t)grid.x * grid.y * grid.z);
    for (int i : blocks) {
        unsigned b = (unsigned)i;
        block_index = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
        prepare_block(shared_bytes);
        fiber_switch(idle_fiber());
        thread = nullptr;
    }
    free(dyn_memory);
    for (SharedArray &a : shared_arrays) free(a.memory);
    shared_arrays.clear();
    kernel_name = nullptr;
    stats.launches++;
    stats.blocks += blocks.size();
    stats.threads += blocks.size() * threads.size();
}

void launch(const char *name, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            std::function<void()> body) {
    size_t n = (size_t)block.x * block.y * block.z;
    if (!n || n > THREADS_MAX || block.z > 64)
        die("%s: a block of (%u,%u,%u) threads cannot be launched", name, block.x, block.y, block.z);
    if (!grid.x || grid.x > 0x7fffffff || !grid.y || grid.y > 65535 || !grid.z || grid.z > 65535)
        die("%s: a grid of (%u,%u,%u) blocks cannot be launched", name, grid.x, grid.y, grid.z);
    if (shared_bytes > SHARED_BYTES_MAX) die("%s: %zu bytes of shared memory", name, shared_bytes);
    stream_check(stream, name);
    stream_push(stream, [=] { run_grid(name, grid, block, shared_bytes, body); });
}
} // namespace shim
