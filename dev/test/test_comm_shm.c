/* test_comm_shm.c: the shared-memory backend among real processes, on any number of processors: every operation against
 * a serial reduction, bit for bit, on buffers of comm_alloc and others, at uneven places; groups; messages; bits that do
 * not depend on the way taken; ranks that differ, die or stop, which must be named.
 *
 *   test_comm_shm              all of it: starts itself again as ranks
 *   test_comm_shm rank MODE    one rank, placed by TOROID_RANK and TOROID_SIZE
 * A rank's line on stdout is what went wrong. Every launch is bounded by LAUNCH_SECONDS, then all its ranks are killed. */
#define _GNU_SOURCE
#include "base/log.h"
#include "comm/comm.h"
#include "comm_pattern.h"
#include "test.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

enum { RANKS_MAX = 8, OUTPUT_BYTES = 4096, LAUNCH_SECONDS = 120, COUNT_MAX = 300007, MARGIN = 64 };
static const double TIMEOUT_SECONDS = 2;

/* --- a rank --- */

static void fail(Comm *comm, const char *what, size_t a, size_t b) {
    printf("rank %d: %s (%zu, %zu)\n", comm_rank(comm), what, a, b);
    exit(1);
}

static void must(bool ok, const Error *err) {
    if (ok) return;
    printf("%s\n", err->text);
    exit(3);
}

/* The bytes before and behind the buffer, which nobody may write. */
static void set_margins(char *data, size_t bytes) {
    memset(data - MARGIN, 0x5a, MARGIN);
    memset(data + bytes, 0x5a, MARGIN);
}
static bool margins_are_set(const char *data, size_t bytes) {
    for (int i = 1; i <= MARGIN; i++)
        if (data[-i] != 0x5a || data[bytes + (size_t)i - 1] != 0x5a) return false;
    return true;
}

static void fill(Comm *comm, void *data, size_t count, CommType type) {
    pattern_fill(data, count, type, comm_rank(comm), 0);
}

/* Uneven, some of them empty. */
static void make_offsets(size_t *offsets, size_t count, int size, int kind) {
    for (int r = 0; r <= size; r++)
        offsets[r] = kind == 0 ? count * (size_t)r / (size_t)size
                               : count * (size_t)(r * r) / (size_t)(size * size) /
                                     (size_t)(r % 3 == 1 && r < size ? 2 : 1);
    for (int r = 1; r <= size; r++)
        if (offsets[r] < offsets[r - 1]) offsets[r] = offsets[r - 1];
}

static void try_reduce(Comm *comm, char *data, size_t count, CommType type, CommOp op) {
    Error err;
    size_t bytes = count * comm_type_bytes(type), i;
    const PatternRanks all = {0, 1, comm_size(comm)};
    set_margins(data, bytes);
    fill(comm, data, count, type);
    must(comm_wait(comm, comm_all_reduce(comm, data, count, type, op), &err), &err);
    if ((i = pattern_wrong(data, 0, count, type, op, all, 0)) != count)
        fail(comm, "all_reduce: element, count", i, count);
    if (!margins_are_set(data, bytes)) fail(comm, "all_reduce: wrote outside; count, type", count, type);
    for (int kind = 0; kind < 2; kind++) {
        size_t offsets[RANKS_MAX + 1];
        int me = comm_rank(comm);
        make_offsets(offsets, count, comm_size(comm), kind);
        must(comm_barrier(comm, &err), &err);
        fill(comm, data, count, type);
        must(comm_wait(comm, comm_reduce_scatter(comm, data, offsets, type, op), &err), &err);
        if ((i = pattern_wrong(data, offsets[me], offsets[me + 1], type, op, all, 0)) != offsets[me + 1])
            fail(comm, "reduce_scatter: element, count", i, count);
        if (!margins_are_set(data, bytes))
            fail(comm, "reduce_scatter: wrote outside; count, type", count, type);
    }
}

static void try_gather(Comm *comm, char *data, size_t count, CommType type) {
    Error err;
    size_t bytes = count * comm_type_bytes(type), i;
    int me = comm_rank(comm), size = comm_size(comm);
    for (int kind = 0; kind < 2; kind++) {
        size_t offsets[RANKS_MAX + 1];
        make_offsets(offsets, count, size, kind);
        set_margins(data, bytes);
        memset(data, 0xff, bytes);
        for (i = offsets[me]; i < offsets[me + 1]; i++) pattern_put(data, i, type, pattern_value(5, i));
        must(comm_wait(comm, comm_all_gather(comm, data, offsets, type), &err), &err);
        if ((i = pattern_wrong(data, 0, count, type, COMM_SUM, (PatternRanks){5, 1, 1}, 0)) != count)
            fail(comm, "all_gather: element, count", i, count);
        if (!margins_are_set(data, bytes)) fail(comm, "all_gather: wrote outside; count, type", count, type);
        must(comm_barrier(comm, &err), &err);
    }
    int root = (int)(count % (size_t)size);
    memset(data, 0xff, bytes);
    if (me == root) fill(comm, data, count, type);
    must(comm_wait(comm, comm_broadcast(comm, data, bytes, root), &err), &err);
    if ((i = pattern_wrong(data, 0, count, type, COMM_SUM, (PatternRanks){root, 1, 1}, 0)) != count)
        fail(comm, "broadcast: element, count", i, count);
    if (!margins_are_set(data, bytes)) fail(comm, "broadcast: wrote outside; count, type", count, type);
}

static void try_messages(Comm *comm, char *data, size_t bytes) {
    Error err;
    int me = comm_rank(comm), size = comm_size(comm);
    if (size == 1) return;
    int next = (me + 1) % size, previous = (me + size - 1) % size;
    /* Round the ring, the even ranks speaking first; an odd ring's last rank listens to its even neighbour later. */
    for (int turn = 0; turn < 3; turn++) {
        if (turn == (me == size - 1 && size % 2 ? 2 : me % 2)) {
            fill(comm, data, bytes, COMM_UINT8);
            must(comm_wait(comm, comm_send(comm, data, bytes, next), &err), &err);
        }
        if (turn == (previous == size - 1 && size % 2 ? 2 : previous % 2)) {
            set_margins(data, bytes);
            memset(data, 0xff, bytes);
            must(comm_wait(comm, comm_recv(comm, data, bytes, previous), &err), &err);
            size_t i = pattern_wrong(data, 0, bytes, COMM_UINT8, COMM_SUM, (PatternRanks){previous, 1, 1}, 0);
            if (i != bytes) fail(comm, "message: byte, bytes", i, bytes);
            if (!margins_are_set(data, bytes)) fail(comm, "message: wrote outside", bytes, 0);
        }
    }
}

static void try_all(Comm *comm, char *shared, char *plain) {
    static const size_t counts[] = {0, 1, 3, 17, 1000, 1024, 1025, 4097, 65536, 100003, COUNT_MAX};
    static const size_t shifts[] = {0, 4, 60};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
        for (int type = COMM_FP32; type <= COMM_UINT8; type++)
            for (int way = 0; way < 3; way++) {
                /* all shared; none; some */
                bool is_shared = way == 0 || (way == 2 && comm_rank(comm) % 2);
                size_t shift = shifts[(c + (size_t)type + (size_t)comm_rank(comm)) % 3];
                char *data = (is_shared ? shared : plain) + MARGIN + shift;
                try_reduce(comm, data, counts[c], (CommType)type,
                           (c + (size_t)way) % 2 ? COMM_SUM : COMM_MAX);
                if (c % 2)
                    try_reduce(comm, data, counts[c], (CommType)type, c % 4 == 1 ? COMM_MAX : COMM_SUM);
                try_gather(comm, data, counts[c], (CommType)type);
                if (type == COMM_UINT8) try_messages(comm, data, 4 * counts[c]);
            }
}

/* Many at once, all in flight; then the same sum of real numbers in three ways. */
static void try_bits(Comm *comm, float *shared, float *plain) {
    Error err;
    CommRequest last = 0;
    const size_t n = 50000, piece = 1000;
    for (size_t i = 0; i < n; i++)
        shared[i] = plain[i] = shared[n + i] = (float)rng_normal(7, (uint64_t)comm_rank(comm), i);
    comm_all_reduce(comm, shared, n, COMM_FP32, COMM_SUM);
    comm_all_reduce(comm, plain, n, COMM_FP32, COMM_SUM);
    for (size_t i = 0; i < n; i += piece)
        last = comm_all_reduce(comm, shared + n + i, piece, COMM_FP32, COMM_SUM);
    must(comm_wait(comm, last, &err), &err);
    if (memcmp(shared, plain, n * 4) || memcmp(shared, shared + n, n * 4))
        fail(comm, "bits depend on the way", 0, 0);
    for (size_t i = 0; i < n; i++) {
        float sum = (float)rng_normal(7, 0, i);
        for (int r = 1; r < comm_size(comm); r++) sum += (float)rng_normal(7, (uint64_t)r, i);
        if (memcmp(&sum, &shared[i], 4)) fail(comm, "not the sum in the order of ranks; element", i, 0);
    }
}

static void try_groups(Comm *comm, float *shared) {
    Error err;
    Comm *half, *quarter;
    int me = comm_rank(comm);
    must(comm_split(comm, me % 2, -me, &half, &err), &err);
    must(comm_split(half, comm_rank(half) / 2, 0, &quarter, &err), &err);
    float *own = comm_alloc(half, 400000, &err);
    must(own != NULL, &err);
    for (int i = 0; i < 100000; i++) shared[i] = own[i] = 1;
    comm_all_reduce(half, shared, 100000, COMM_FP32, COMM_SUM); /* the parent's memory */
    comm_all_reduce(half, own, 100000, COMM_FP32, COMM_SUM);
    must(comm_barrier(half, &err), &err);
    for (int i = 0; i < 100000; i++)
        if (shared[i] != (float)comm_size(half) || own[i] != shared[i])
            fail(comm, "groups: element", (size_t)i, 0);
    must(comm_wait(quarter, comm_all_reduce(quarter, own, 100000, COMM_FP32, COMM_SUM), &err), &err);
    for (int i = 0; i < 100000; i++)
        if (own[i] != (float)(comm_size(half) * comm_size(quarter)))
            fail(comm, "subgroups: element", (size_t)i, 0);
    comm_close(quarter);
    comm_close(half);
}

static int fatal_signal;
static void strike(int number) {
    (void)number;
    raise(fatal_signal);
}

/* In 20 ms, wherever the program then is: mostly inside an operation. */
static void strike_soon(void) {
    signal(SIGALRM, strike);
    setitimer(ITIMER_REAL, &(struct itimerval){.it_value = {0, 20000}}, NULL);
}

/* Reduces until something happens; in the tenth step the last rank does what the mode says. */
static int run_fault(Comm *comm, const char *mode, float *data) {
    Error err;
    fatal_signal = strstr(mode, "kill") ? SIGKILL : SIGSTOP;
    bool ends = strstr(mode, "kill") || strstr(mode, "stop"), inside = strstr(mode, "inside") != NULL;
    for (int i = 0; i < 1000000; i++) {
        bool odd_one = comm_rank(comm) == comm_size(comm) - 1 && i == 10;
        CommRequest request;
        comm_set_step(comm, i);
        if (odd_one && ends && inside) strike_soon();
        if (odd_one && ends && !inside) raise(fatal_signal);
        if (odd_one && strstr(mode, "count"))
            request = comm_all_reduce(comm, data, 99999, COMM_FP32, COMM_SUM);
        else if (odd_one && strstr(mode, "operation"))
            request = comm_broadcast(comm, data, 400000, 0);
        else
            request = comm_all_reduce(comm, data, 100000, COMM_FP32, COMM_SUM);
        if (!comm_wait(comm, request, &err)) {
            printf("%s\n", err.text);
            return 3;
        }
    }
    return 0;
}

static int run_rank(const char *mode) {
    Error err;
    Comm *comm;
    CommConfig config = {.backend = "shm", .topology = "", .timeout_seconds = TIMEOUT_SECONDS};
    const size_t bytes = (size_t)COUNT_MAX * 4 + 4 * MARGIN;
    bool fault = strcmp(mode, "all") != 0;
    if (!fault) config.timeout_seconds = 60; /* this machine may be busy */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    log_open(0, true);
    must(comm_open(&comm, &config, &err), &err);
    char *shared = comm_alloc(comm, bytes, &err);
    must(shared != NULL, &err);
    for (size_t i = 0; i < bytes; i++)
        if (shared[i]) fail(comm, "memory is not zeroed; byte", i, 0);
    char *plain = calloc(1, bytes);
    int code = 0;
    if (fault) {
        code = run_fault(comm, mode, (float *)(void *)(strstr(mode, "plain") ? plain : shared));
    } else {
        try_all(comm, shared, plain);
        try_bits(comm, (float *)(void *)shared, (float *)(void *)plain);
        if (comm_size(comm) > 1) try_groups(comm, (float *)(void *)shared);
    }
    free(plain);
    comm_close(comm);
    return code;
}

/* --- the launcher --- */

typedef struct {
    pid_t pid;
    int pipe, status;
    bool ended;
    double seconds; /* when it ended */
    char output[OUTPUT_BYTES];
    size_t used;
} Rank;

static void start(Rank *rank, int number, int size, const char *mode, char *root) {
    int ends[2];
    if (pipe(ends)) exit(1);
    *rank = (Rank){.pid = fork(), .pipe = ends[0]};
    if (rank->pid == 0) {
        char text[16];
        snprintf(text, sizeof text, "%d", number);
        setenv("TOROID_RANK", text, 1);
        snprintf(text, sizeof text, "%d", size);
        setenv("TOROID_SIZE", text, 1);
        setenv("TOROID_JOB", root, 1);
        dup2(ends[1], 1);
        close(ends[0]);
        close(ends[1]);
        execl("/proc/self/exe", "test_comm_shm", "rank", mode, (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
}

static bool look_at(Rank *rank, double begin) {
    ssize_t n = read(rank->pipe, rank->output + rank->used, OUTPUT_BYTES - 1 - rank->used);
    if (n > 0) rank->used += (size_t)n;
    if (rank->ended || waitpid(rank->pid, &rank->status, WNOHANG) != rank->pid) return rank->ended;
    rank->ended = true;
    rank->seconds = log_seconds() - begin;
    while ((n = read(rank->pipe, rank->output + rank->used, OUTPUT_BYTES - 1 - rank->used)) > 0)
        rank->used += (size_t)n;
    return true;
}

typedef struct {
    Rank ranks[RANKS_MAX];
    int size;
    double begin;
    const char *mode, *doing;
} Launch;

static void launch_begin(Launch *l, int size, const char *mode) {
    static int launches;
    char root[64];
    snprintf(root, sizeof root, "test-%d-%d", (int)getpid(), launches++);
    l->size = size;
    l->mode = mode;
    l->begin = log_seconds();
    for (int r = 0; r < size; r++) start(&l->ranks[r], r, size, mode, root);
}

/* Waits until all ranks but `left` have ended; kills the rest. */
static void launch_end(Launch *l, int left) {
    for (int running = l->size; running > left && log_seconds() - l->begin < LAUNCH_SECONDS;) {
        running = 0;
        for (int r = 0; r < l->size; r++) running += !look_at(&l->ranks[r], l->begin);
        poll(NULL, 0, 2);
    }
    for (int r = 0; r < l->size; r++) {
        if (!l->ranks[r].ended) {
            kill(l->ranks[r].pid, SIGKILL);
            waitpid(l->ranks[r].pid, NULL, 0);
        }
        close(l->ranks[r].pipe);
    }
}

static void test_operations(int size) {
    static Launch l;
    launch_begin(&l, size, "all");
    launch_end(&l, 0);
    for (int r = 0; r < size; r++) {
        const Rank *rank = &l.ranks[r];
        TEST_CHECK(rank->ended && WIFEXITED(rank->status) && WEXITSTATUS(rank->status) == 0,
                   "rank %d of %d: %s, status %x: %s", r, size, rank->ended ? "ended" : "hangs", rank->status,
                   rank->output);
    }
}

/* All but the last rank must end and name it, and what they were doing. */
static void fault_end(Launch *l) {
    char name[32];
    snprintf(name, sizeof name, "rank %d", l->size - 1);
    launch_end(l, strstr(l->mode, "stop") ? 1 : 0);
    for (int r = 0; r < l->size - 1; r++) {
        const Rank *rank = &l->ranks[r];
        TEST_CHECK(rank->ended && WIFEXITED(rank->status) && WEXITSTATUS(rank->status) == 3,
                   "%s: rank %d of %d: %s, status %x: %s", l->mode, r, l->size,
                   rank->ended ? "ended" : "hangs", rank->status, rank->output);
        TEST_CHECK(strstr(rank->output, name) && strstr(rank->output, l->doing),
                   "%s: rank %d of %d should name %s and %s: %s", l->mode, r, l->size, name, l->doing,
                   rank->output);
    }
}

/* Those that wait for a silence to last, together. */
static void test_faults(int size) {
    static const char *const faults[][2] = {
        {"stop", "all-reduce"}, {"stop-inside", "all-reduce"}, {"stop-inside-plain", "all-reduce"},
        {"kill", "all-reduce"}, {"kill-inside", "all-reduce"}, {"kill-inside-plain", "all-reduce"},
        {"count", "count"},     {"operation", "operation"}};
    enum { FAULTS = sizeof faults / sizeof *faults, STOPS = 3 };
    static Launch launches[FAULTS];
    for (int i = 0; i < FAULTS; i++) {
        launches[i].doing = faults[i][1];
        launch_begin(&launches[i], size, faults[i][0]);
        if (i >= STOPS) fault_end(&launches[i]);
    }
    for (int i = 0; i < STOPS; i++) fault_end(&launches[i]);
}

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "rank")) return run_rank(argv[2]);
    static const int sizes[] = {3, 4, 1, 2, 8};
    for (size_t i = 0; i < (test_quick() ? 2 : sizeof sizes / sizeof *sizes); i++) test_operations(sizes[i]);
    if (!test_quick()) test_faults(2);
    test_faults(4);
    return test_end("comm_shm");
}
