/* test_comm.c: every backend that is built in, with 1 to 8 ranks, against a serial sum: integer-valued inputs, so all
 * orders of adding give the same bits. Uneven and empty shares, groups of a grid at once, operations that overlap; and
 * faults (kill -9, SIGSTOP, a mismatch, an abort): every rank ends and says who it was. */
#define _DEFAULT_SOURCE
#include "base/check.h"
#include "comm/comm.h"
#include "comm/control.h"
#include "comm_lab.h"
#include "comm_pattern.h"
#include "model/device.h"
#include "run/device_comm.h"
#include "test.h"

static const double LIMIT = 120, FAULT_TIMEOUT = 2, FAULT_LIMIT = 30;
static const size_t counts[] = {0, 1, 7, 1000, 20011, 100003};
static const size_t count_large = 1000003;
static const CommType types[] = {COMM_FP32, COMM_BF16, COMM_INT32, COMM_UINT8};

static bool is_reduced(const char *what, const void *data, size_t from, size_t to, CommType type, CommOp op,
                       unsigned seed, PatternRanks ranks, Error *err) {
    size_t i = pattern_wrong(data, from, to, type, op, ranks, seed);
    return i == to || error_set(err, "%s: type %d, op %d, element %zu of [%zu, %zu) is wrong (expected %d)",
                                what, (int)type, (int)op, i, from, to, pattern_reduced(i + seed, op, ranks));
}

static bool check_all_reduce(Comm *comm, void *data, size_t n, CommType type, CommOp op, unsigned seed,
                             Error *err) {
    pattern_fill(data, n, type, comm_rank(comm), seed);
    return comm_wait(comm, comm_all_reduce(comm, data, n, type, op), err) &&
           is_reduced("all-reduce", data, 0, n, type, op, seed, (PatternRanks){0, 1, comm_size(comm)}, err);
}

/* Shares of a buffer of n: 0 even, 1 all for one rank, 2 random with empty ones. */
static void make_shares(size_t *offsets, int size, size_t n, int kind, unsigned seed) {
    offsets[0] = 0;
    for (int r = 0; r < size; r++) {
        size_t at = kind == 0                           ? n * (size_t)(r + 1) / (size_t)size
                    : r >= (int)(seed % (unsigned)size) ? n
                                                        : 0;
        if (kind == 2)
            at = rng_uniform(seed, RNG_STREAM(RNG_TEST, 1), (uint64_t)r) < 0.3
                     ? offsets[r]
                     : offsets[r] + (size_t)((double)(n - offsets[r]) *
                                             rng_uniform(seed, RNG_STREAM(RNG_TEST, 2), (uint64_t)r));
        offsets[r + 1] = r == size - 1 ? n : at;
    }
}

static bool check_shares(Comm *comm, void *data, size_t n, CommType type, CommOp op, int kind, unsigned seed,
                         Error *err) {
    int rank = comm_rank(comm), size = comm_size(comm);
    size_t offsets[LAB_RANKS_MAX + 1], each = comm_type_bytes(type);
    make_shares(offsets, size, n, kind, seed);
    size_t from = offsets[rank], to = offsets[rank + 1];
    pattern_fill(data, n, type, rank, seed);
    if (!comm_wait(comm, comm_reduce_scatter(comm, data, offsets, type, op), err) ||
        !is_reduced("reduce-scatter", data, from, to, type, op, seed, (PatternRanks){0, 1, size}, err))
        return false;
    test_poison(data, from * each);
    test_poison((char *)data + to * each, (n - to) * each);
    return comm_wait(comm, comm_all_gather(comm, data, offsets, type), err) &&
           is_reduced("all-gather", data, 0, n, type, op, seed, (PatternRanks){0, 1, size}, err);
}

static bool check_broadcast(Comm *comm, void *data, size_t bytes, int root, Error *err) {
    test_poison(data, bytes);
    if (comm_rank(comm) == root) pattern_fill(data, bytes, COMM_UINT8, root, 3);
    return comm_wait(comm, comm_broadcast(comm, data, bytes, root), err) &&
           is_reduced("broadcast", data, 0, bytes, COMM_UINT8, COMM_SUM, 3, (PatternRanks){root, 1, 1}, err);
}

/* Everyone sends to the next rank; the last receives first, so that the ring cannot wait for itself. */
static bool check_ring(Comm *comm, void *out, void *in, size_t bytes, Error *err) {
    int rank = comm_rank(comm), size = comm_size(comm);
    if (size == 1) return true;
    int next = (rank + 1) % size, before = (rank + size - 1) % size;
    pattern_fill(out, bytes, COMM_UINT8, rank, 4);
    test_poison(in, bytes);
    CommRequest last;
    if (rank == size - 1) {
        comm_recv(comm, in, bytes, before);
        last = comm_send(comm, out, bytes, next);
    } else {
        comm_send(comm, out, bytes, next);
        last = comm_recv(comm, in, bytes, before);
    }
    return comm_wait(comm, last, err) &&
           is_reduced("receive", in, 0, bytes, COMM_UINT8, COMM_SUM, 4, (PatternRanks){before, 1, 1}, err);
}

static bool check_sums(Comm *comm, void *data, void *other, Error *err) {
    unsigned seed = 0;
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
        for (size_t t = 0; t < sizeof types / sizeof *types; t++)
            for (int op = 0; op < 2; op++) {
                seed++;
                comm_set_step(comm, (int64_t)seed);
                if (!check_all_reduce(comm, data, counts[c], types[t], (CommOp)op, seed, err)) return false;
                for (int kind = 0; kind < 3; kind++)
                    if (!check_shares(comm, data, counts[c], types[t], (CommOp)op, kind, seed, err))
                        return false;
            }
    if (!check_all_reduce(comm, data, count_large, COMM_FP32, COMM_SUM, 1, err) ||
        !check_shares(comm, data, count_large, COMM_BF16, COMM_SUM, 2, 2, err))
        return false;
    for (int root = 0; root < comm_size(comm); root++)
        if (!check_broadcast(comm, data, 1 + 30011 * (size_t)root, root, err)) return false;
    return check_broadcast(comm, data, 0, 0, err) && check_ring(comm, data, other, 1, err) &&
           check_ring(comm, data, other, count_large, err) && comm_barrier(comm, err);
}

/* Many operations under way, of many sizes, waited for in another order. */
static bool check_overlap(Comm *comm, void *data, Error *err) {
    enum { N = 40 };
    CommRequest requests[N];
    size_t offsets[N + 1] = {0};
    float *x = data;
    for (int i = 0; i < N; i++) {
        size_t n = i % 3 ? (size_t)(i * 100) : (size_t)(i * 2000 + 1);
        offsets[i + 1] = offsets[i] + n;
        CHECK_OP(offsets[i + 1], <=, count_large);
        pattern_fill(x + offsets[i], n, COMM_FP32, comm_rank(comm), (unsigned)i);
        requests[i] = comm_all_reduce(comm, x + offsets[i], n, COMM_FP32, COMM_SUM);
    }
    while (!comm_test(comm, requests[N / 2])) lab_sleep(0.0001);
    for (int i = N - 1; i >= 0; i--) {
        if (!comm_wait(comm, requests[i], err)) return false;
        if (!comm_test(comm, requests[i])) return error_set(err, "a request that was waited for is not done");
        if (!is_reduced("overlap", x + offsets[i], 0, offsets[i + 1] - offsets[i], COMM_FP32, COMM_SUM,
                        (unsigned)i, (PatternRanks){0, 1, comm_size(comm)}, err))
            return false;
    }
    return true;
}

/* The ranks as a grid of `columns`: sums over rows and columns, begun together. */
static bool check_grid(Comm *comm, int columns, void *data, void *other, Error *err) {
    int rank = comm_rank(comm), size = comm_size(comm), row = rank / columns, column = rank % columns;
    size_t n = 50021;
    Comm *along_row = NULL, *along_column = NULL, *none = NULL;
    bool ok = comm_split(comm, row, column, &along_row, err) &&
              comm_split(comm, column, row, &along_column, err) &&
              comm_split(comm, rank == 0 ? 0 : -1, 0, &none, err);
    if (ok && (!!none != (rank == 0) || comm_rank(along_row) != column || comm_size(along_row) != columns ||
               comm_rank(along_column) != row || comm_size(along_column) != size / columns))
        ok = error_set(err, "a group of the wrong shape");
    for (unsigned seed = 0; seed < 4 && ok; seed++) {
        pattern_fill(data, n, COMM_FP32, rank, seed);
        pattern_fill(other, n, COMM_INT32, rank, seed);
        CommRequest a = comm_all_reduce(along_row, data, n, COMM_FP32, COMM_SUM);
        CommRequest b = comm_all_reduce(along_column, other, n, COMM_INT32, COMM_MAX);
        ok = comm_wait(along_column, b, err) && comm_wait(along_row, a, err) &&
             is_reduced("row", data, 0, n, COMM_FP32, COMM_SUM, seed,
                        (PatternRanks){row * columns, 1, columns}, err) &&
             is_reduced("column", other, 0, n, COMM_INT32, COMM_MAX, seed,
                        (PatternRanks){column, columns, size / columns}, err);
    }
    comm_close(none);
    comm_close(along_column);
    comm_close(along_row);
    return ok;
}

static int fail_rank(const Error *err) {
    fprintf(stderr, "%s\n", err->text);
    return EXIT_FAILED;
}

/* Of a build for the CUDA shim, whose device memory can be read as if it were the host's. */
static const CommMemory *memory(void) {
    const DeviceConfig config = {.threads = 1};
    Error err;
    CHECK(device_open(&config, &err));
    return device_comm_memory();
}

static int rank_check(void) {
    CommConfig config = {.backend = lab_argument(), .timeout_seconds = 60, .memory = memory()};
    Comm *comm;
    Error err;
    if (!comm_open(&comm, &config, &err)) return fail_rank(&err);
    int size = comm_size(comm);
    fprintf(stderr, "%s\n", comm_describe(comm));
    size_t bytes = 4 * count_large;
    char *shared = comm_alloc(comm, bytes, &err), *own = malloc(bytes), *second = malloc(bytes);
    CHECK(own && second);
    bool ok = shared != NULL;
    for (size_t i = 0; i < bytes && ok; i++)
        if (shared[i]) ok = error_set(&err, "comm_alloc: byte %zu is not zero", i);
    ok = ok && check_sums(comm, shared, second, &err) && check_sums(comm, own, shared, &err) &&
         check_overlap(comm, own, &err) && check_overlap(comm, shared, &err);
    for (int columns = 1; columns <= size && ok; columns++)
        if (size % columns == 0) ok = check_grid(comm, columns, own, second, &err);
    if (!ok) comm_abort(comm, err.text);
    comm_close(comm);
    free(own);
    free(second);
    return ok ? 0 : fail_rank(&err);
}

/* --- faults --- */

/* One step of the loop in which the fault comes; rank 1 may do something else. */
static CommRequest step(Comm *comm, void *data, const char *fault, int64_t at) {
    size_t n = 20011;
    if (at < 5 || comm_rank(comm) != 1) return comm_all_reduce(comm, data, n, COMM_FP32, COMM_SUM);
    if (!strcmp(fault, "count")) return comm_all_reduce(comm, data, n + 1, COMM_FP32, COMM_SUM);
    if (!strcmp(fault, "type")) return comm_all_reduce(comm, data, n, COMM_INT32, COMM_SUM);
    if (!strcmp(fault, "reduction")) return comm_all_reduce(comm, data, n, COMM_FP32, COMM_MAX);
    if (!strcmp(fault, "operation")) return comm_broadcast(comm, data, 4 * n, 0);
    if (!strcmp(fault, "abort")) comm_abort(comm, "the disk is full");
    if (!strcmp(fault, "stuck")) lab_sleep(1.75 * FAULT_TIMEOUT);
    return comm_all_reduce(comm, data, n, COMM_FP32, COMM_SUM);
}

static int rank_fault(void) {
    char backend[32];
    const char *fault = strchr(lab_argument(), ' ') + 1;
    snprintf(backend, sizeof backend, "%.*s", (int)(fault - 1 - lab_argument()), lab_argument());
    CommConfig config = {.backend = backend, .timeout_seconds = FAULT_TIMEOUT, .memory = memory()};
    Comm *comm;
    Error err;
    if (!comm_open(&comm, &config, &err)) return fail_rank(&err);
    float *data = comm_alloc(comm, 100000, &err);
    CHECK(data);
    for (int64_t i = 0;; i++) {
        comm_set_step(comm, i);
        CommRequest request = step(comm, data, fault, i);
        if (i == 5) fprintf(stderr, "ready %d %ld\n", comm_rank(comm), (long)getpid());
        if (i % 2)
            while (!comm_test(comm, request)) lab_sleep(0.0002);
        if (!comm_wait(comm, request, &err)) break;
    }
    fprintf(stderr, "%s\n", err.text);
    Error again;
    if (comm_barrier(comm, &again) || strcmp(again.text, err.text) != 0) return 3;
    comm_close(comm);
    control_linger(0.1);
    _exit(EXIT_FAILED);
}

static const char *words_of(const char *fault) {
    if (!strcmp(fault, "abort")) return "the disk is full";
    if (!strcmp(fault, "stuck")) return "all-reduce 6, step 5"; /* MPI does not know who is missing */
    static char words[64];
    snprintf(words, sizeof words, "differ in %s", fault);
    return words;
}

/* The process of a rank: the rank itself, or what it has written under mpirun. 0: not yet. */
static pid_t pid_of(const Lab *lab, int rank) {
    char line[LAB_LINE_BYTES], ready[32];
    snprintf(ready, sizeof ready, "ready %d ", rank);
    const char *at = strstr(lab_stderr(lab, lab->mpirun ? 0 : rank, line), ready);
    return at ? (pid_t)atol(at + strlen(ready)) : 0;
}

static void wait_ready(Lab *lab) {
    for (int i = 0; i < lab->size; i++)
        for (double until = log_seconds() + FAULT_LIMIT;
             !pid_of(lab, i) && lab_poll(lab) && log_seconds() < until;)
            lab_sleep(0.002);
}

/* Every rank but `victim` (-1: every one) ended with 1 and said `words`. */
static void check_told(Lab *lab, const char *backend, const char *fault, int victim, const char *words) {
    char line[LAB_LINE_BYTES];
    TEST_CHECK(!lab->timed_out, "%s, %s: some ranks had to be killed", backend, fault);
    for (int i = 0; i < lab->processes; i++) {
        if (i == victim) continue;
        lab_stderr(lab, i, line);
        TEST_CHECK(lab_exit_code(lab, i) == EXIT_FAILED || (lab->mpirun && lab_exit_code(lab, i)),
                   "%s, %s: rank %d: %d: %s", backend, fault, i, lab_exit_code(lab, i), line);
        const char *at = strstr(line, words);
        TEST_CHECK(at != NULL, "%s, %s: rank %d says: %s", backend, fault, i, line);
        while (at && at > line && at[-1] != '\n') at--;
        if (at && i == (victim == 0)) printf("%s, %s: %.*s\n", backend, fault, (int)strcspn(at, "\n"), at);
    }
}

/* A job and what happens to it: a signal to a rank, or what its rank 1 does by itself. */
typedef struct {
    Lab lab;
    const char *backend, *fault;
    int victim, signal; /* victim: -1: none */
    pid_t pid;
} Fault;

/* Starts the ranks and hurts one; fault_end says what became of them: meanwhile others can be hurt. */
static void fault_begin(Fault *f, int how, int size) {
    char argument[64];
    snprintf(argument, sizeof argument, "%s %s", f->backend, f->signal ? "none" : f->fault);
    lab_start(&f->lab, size, how, "fault", argument);
    wait_ready(&f->lab);
    if (!f->signal) return;
    f->pid = pid_of(&f->lab, f->victim);
    TEST_CHECK(f->pid > 0, "%s: rank %d did not begin", f->backend, f->victim);
    if (f->pid > 0) kill(f->pid, f->signal);
}

static void fault_end(Fault *f) {
    char words[32];
    bool stays = f->signal == SIGSTOP && !f->lab.mpirun;
    snprintf(words, sizeof words, "rank %d (", f->victim);
    for (double until = log_seconds() + FAULT_LIMIT; lab_poll(&f->lab) > stays && log_seconds() < until;)
        lab_sleep(0.002);
    if (f->pid > 0 && stays) kill(f->pid, SIGCONT);
    lab_finish(&f->lab, FAULT_LIMIT);
    check_told(&f->lab, f->backend, f->fault, f->lab.mpirun ? -1 : f->victim,
               f->signal ? words : words_of(f->fault));
    lab_clean(&f->lab);
}

static void test_faults(const char *backend, int how) {
    static const struct {
        const char *name;
        int victim, signal;
    } what[] = {{"stuck", -1, 0},        {"SIGSTOP", 1, SIGSTOP}, {"SIGSTOP", 0, SIGSTOP},
                {"kill -9", 2, SIGKILL}, {"operation", -1, 0},    {"kill -9", 0, SIGKILL},
                {"count", -1, 0},        {"type", -1, 0},         {"reduction", -1, 0},
                {"abort", -1, 0}};
    enum { FAULTS = sizeof what / sizeof *what, FAULTS_QUICK = 5 };
    Fault faults[FAULTS];
    int n = test_quick() ? FAULTS_QUICK : FAULTS;
    for (int i = 0; i < n; i++) {
        faults[i] = (Fault){.backend = backend, .fault = what[i].name, .victim = what[i].victim};
        faults[i].signal = what[i].signal;
        fault_begin(&faults[i], how, what[i].signal ? 4 : 3);
    }
    for (int i = 0; i < n; i++) fault_end(&faults[i]);
}

static void test_sums(const char *backend, int how, int size) {
    Lab lab;
    char line[LAB_LINE_BYTES];
    lab_start(&lab, size, how, "check", backend);
    lab_finish(&lab, LIMIT);
    TEST_CHECK(!lab.timed_out, "%s, %d ranks: not done in time", backend, size);
    for (int i = 0; i < lab.processes; i++)
        TEST_CHECK(lab_exit_code(&lab, i) == 0, "%s, %d ranks, process %d: %d: %s", backend, size, i,
                   lab_exit_code(&lab, i), lab_stderr(&lab, i, line));
    printf("%s, %d ranks: %.1f s\n", backend, size, lab.ended[0]);
    lab_clean(&lab);
}

static void test_backend(const char *backend) {
    static const int sizes[] = {3, 4, 1, 2, 8};
    int how = strcmp(backend, "mpi") ? 0 : LAB_MPIRUN;
    for (size_t i = 0; i < (test_quick() ? 2 : sizeof sizes / sizeof *sizes); i++)
        test_sums(backend, how, sizes[i]);
    test_faults(backend, how);
}

/* --- in this process --- */

static void test_alone(void) {
    Comm *comm, *part;
    Error err;
    float x[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    size_t offsets[2] = {0, 8};
    CommConfig config = {.backend = "auto"};
    TEST_CHECK(comm_open(&comm, &config, &err), "%s", err.text);
    TEST_CHECK(comm_wait(comm, 0, &err), "%s", err.text);
    TEST_CHECK(comm_wait(comm, comm_all_reduce(comm, x, 8, COMM_FP32, COMM_SUM), &err) && x[7] == 8, "%s",
               err.text);
    TEST_CHECK(comm_wait(comm, comm_reduce_scatter(comm, x, offsets, COMM_FP32, COMM_SUM), &err), "%s",
               err.text);
    TEST_CHECK(comm_split(comm, 3, 0, &part, &err) && comm_size(part) == 1, "%s", err.text);
    TEST_CHECK(comm_barrier(part, &err), "%s", err.text);
    char *p = comm_alloc(comm, 100, &err);
    TEST_CHECK(p && (uintptr_t)p % (2 << 20) == 0 && !p[99], "comm_alloc");
    comm_close(part);
    comm_abort(comm, "enough");
    TEST_CHECK(!comm_wait(comm, comm_all_reduce(comm, x, 8, COMM_FP32, COMM_SUM), &err) &&
                   strstr(err.text, "enough"),
               "%s", err.text);
    comm_close(comm);
    config.backend = "pigeon";
    TEST_CHECK(!comm_open(&comm, &config, &err) && strstr(err.text, "pigeon"), "%s", err.text);
    config = (CommConfig){.backend = "auto", .topology = "ring:5"};
    TEST_CHECK(!comm_open(&comm, &config, &err), "a ring of 5 for one rank");
}

/* Run with the name of a backend: only that one. */
int main(int argc, char **argv) {
    if (lab_is_rank()) return !strcmp(lab_case(), "check") ? rank_check() : rank_fault();
    setvbuf(stdout, NULL, _IOLBF, 0);
    test_alone();
    for (int i = 0; comm_backend_name(i); i++) {
        const char *backend = comm_backend_name(i);
        if (argc > 1 && strcmp(argv[1], backend) != 0) continue;
        if (!strcmp(backend, "mpi") && !lab_have_mpirun()) {
            printf("mpi: skipped, there is no mpirun\n");
            continue;
        }
        if (strcmp(backend, "self") != 0) test_backend(backend);
    }
    return test_end("comm");
}
