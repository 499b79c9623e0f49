/* test_comm.c: every backend that is built in, with 1 to 8 ranks, against a serial sum: integer-valued inputs, so all
 * orders of adding give the same bits. Uneven and empty shares, groups of a grid at once, operations that overlap; and
 * faults (kill -9, SIGSTOP, a mismatch, an abort): every rank ends and says who it was. */
#define _DEFAULT_SOURCE
#include "base/check.h"
#include "comm/comm.h"
#include "comm_lab.h"
#include "model/device.h"
#include "run/device_comm.h"
#include "test.h"

static const double LIMIT = 120, FAULT_TIMEOUT = 2, FAULT_LIMIT = 30;

static const size_t counts[] = {0, 1, 7, 1000, 20011, 100003};
static const size_t count_large = 1000003;

/* --- values --- */

static const CommType types[] = {COMM_FP32, COMM_BF16, COMM_INT32, COMM_UINT8};

static int value(int rank, size_t i, unsigned seed) {
    return (int)((i * 7 + (size_t)rank * 13 + seed * 5) % 17);
}

static void put(void *data, size_t i, CommType type, int x) {
    float f = (float)x;
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    switch (type) {
    case COMM_FP32: ((float *)data)[i] = f; return;
    case COMM_BF16: ((uint16_t *)data)[i] = (uint16_t)(bits >> 16); return; /* integers up to 256 are exact */
    case COMM_INT32: ((int32_t *)data)[i] = x; return;
    case COMM_UINT8: ((uint8_t *)data)[i] = (uint8_t)x; return;
    }
}

/* Element i of the reduction over the ranks first, first + stride, ... (n of them). */
static int reduced(size_t i, unsigned seed, CommOp op, int first, int stride, int n) {
    int y = op == COMM_SUM ? 0 : -1;
    for (int k = 0; k < n; k++) {
        int x = value(first + k * stride, i, seed);
        y = op == COMM_SUM ? y + x : x > y ? x : y;
    }
    return y;
}

static void fill(void *data, size_t n, CommType type, int rank, unsigned seed) {
    for (size_t i = 0; i < n; i++) put(data, i, type, value(rank, i, seed));
}

/* Are data[from .. to) the reduction? The expected bytes are made with the same put. */
static bool is_reduced(const char *what, const void *data, size_t from, size_t to, CommType type, CommOp op,
                       unsigned seed, int first, int stride, int n, Error *err) {
    size_t each = comm_type_bytes(type);
    for (size_t i = from; i < to; i++) {
        unsigned char expected[4];
        put(expected, 0, type, reduced(i, seed, op, first, stride, n));
        if (memcmp((const char *)data + i * each, expected, each) != 0)
            return error_set(err, "%s: type %d, op %d, element %zu of [%zu, %zu) is wrong (expected %d)",
                             what, (int)type, (int)op, i, from, to, reduced(i, seed, op, first, stride, n));
    }
    return true;
}

/* --- what the ranks check --- */

static bool check_all_reduce(Comm *comm, void *data, size_t n, CommType type, CommOp op, unsigned seed,
                             Error *err) {
    fill(data, n, type, comm_rank(comm), seed);
    return comm_wait(comm, comm_all_reduce(comm, data, n, type, op), err) &&
           is_reduced("all-reduce", data, 0, n, type, op, seed, 0, 1, comm_size(comm), err);
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
    fill(data, n, type, rank, seed);
    if (!comm_wait(comm, comm_reduce_scatter(comm, data, offsets, type, op), err) ||
        !is_reduced("reduce-scatter", data, from, to, type, op, seed, 0, 1, size, err))
        return false;
    test_poison(data, from * each);
    test_poison((char *)data + to * each, (n - to) * each);
    return comm_wait(comm, comm_all_gather(comm, data, offsets, type), err) &&
           is_reduced("all-gather", data, 0, n, type, op, seed, 0, 1, size, err);
}

static bool check_broadcast(Comm *comm, void *data, size_t bytes, int root, Error *err) {
    test_poison(data, bytes);
    if (comm_rank(comm) == root) fill(data, bytes, COMM_UINT8, root, 3);
    return comm_wait(comm, comm_broadcast(comm, data, bytes, root), err) &&
           is_reduced("broadcast", data, 0, bytes, COMM_UINT8, COMM_SUM, 3, root, 1, 1, err);
}

/* Everyone sends to the next rank; the last receives first, so that the ring cannot wait for itself. */
static bool check_ring(Comm *comm, void *out, void *in, size_t bytes, Error *err) {
    int rank = comm_rank(comm), size = comm_size(comm);
    if (size == 1) return true;
    int next = (rank + 1) % size, before = (rank + size - 1) % size;
    fill(out, bytes, COMM_UINT8, rank, 4);
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
           is_reduced("receive", in, 0, bytes, COMM_UINT8, COMM_SUM, 4, before, 1, 1, err);
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
        fill(x + offsets[i], n, COMM_FP32, comm_rank(comm), (unsigned)i);
        requests[i] = comm_all_reduce(comm, x + offsets[i], n, COMM_FP32, COMM_SUM);
    }
    while (!comm_test(comm, requests[N / 2])) lab_sleep(0.0001);
    for (int i = N - 1; i >= 0; i--) {
        if (!comm_wait(comm, requests[i], err)) return false;
        if (!comm_test(comm, requests[i])) return error_set(err, "a request that was waited for is not done");
        if (!is_reduced("overlap", x + offsets[i], 0, offsets[i + 1] - offsets[i], COMM_FP32, COMM_SUM,
                        (unsigned)i, 0, 1, comm_size(comm), err))
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
        fill(data, n, COMM_FP32, rank, seed);
        fill(other, n, COMM_INT32, rank, seed);
        CommRequest a = comm_all_reduce(along_row, data, n, COMM_FP32, COMM_SUM);
        CommRequest b = comm_all_reduce(along_column, other, n, COMM_INT32, COMM_MAX);
        ok = comm_wait(along_column, b, err) && comm_wait(along_row, a, err) &&
             is_reduced("row", data, 0, n, COMM_FP32, COMM_SUM, seed, row * columns, 1, columns, err) &&
             is_reduced("column", other, 0, n, COMM_INT32, COMM_MAX, seed, column, columns, size / columns,
                        err);
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
    if (!strcmp(fault, "stuck")) lab_sleep(2 * FAULT_TIMEOUT);
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
    fprintf(stderr, "%.6f %s\n", log_seconds(), err.text);
    Error again;
    if (comm_barrier(comm, &again) || strcmp(again.text, err.text) != 0) return 3;
    comm_close(comm);
    fflush(stderr);
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
static void check_told(Lab *lab, const char *backend, const char *fault, int victim, const char *words,
                       double since) {
    char line[LAB_LINE_BYTES];
    double last = 0;
    TEST_CHECK(!lab->timed_out, "%s, %s: some ranks had to be killed", backend, fault);
    for (int i = 0; i < lab->processes; i++) {
        if (i == victim) continue;
        lab_stderr(lab, i, line);
        TEST_CHECK(lab_exit_code(lab, i) == EXIT_FAILED || (lab->mpirun && lab_exit_code(lab, i)),
                   "%s, %s: rank %d: %d: %s", backend, fault, i, lab_exit_code(lab, i), line);
        TEST_CHECK(strstr(line, words) != NULL, "%s, %s: rank %d says: %s", backend, fault, i, line);
        const char *at = strstr(line, "ready "), *end = at ? strchr(at, '\n') : NULL;
        double when = end ? atof(end + 1) : 0;
        if (when > last) last = when;
        at = strstr(line, *words ? words : "rank ");
        while (at && at > line && at[-1] != '\n') at--;
        if (at && i == (victim == 0)) printf("%s, %s: %.*s\n", backend, fault, (int)strcspn(at, "\n"), at);
    }
    if (since > 0 && !lab->mpirun)
        printf("%s, %s: all knew after %.1f ms\n", backend, fault, 1e3 * (last - since));
}

static void test_fault(const char *backend, int how, int size, const char *fault) {
    Lab lab;
    char argument[64];
    snprintf(argument, sizeof argument, "%s %s", backend, fault);
    lab_start(&lab, size, how, "fault", argument);
    lab_finish(&lab, FAULT_LIMIT);
    check_told(&lab, backend, fault, -1, words_of(fault), 0);
    lab_clean(&lab);
}

static void test_hurt(const char *backend, int how, int size, int victim, int signal_number) {
    Lab lab;
    char argument[64], words[32];
    const char *name = signal_number == SIGKILL ? "kill -9" : "SIGSTOP";
    snprintf(argument, sizeof argument, "%s none", backend);
    snprintf(words, sizeof words, "rank %d (", victim);
    lab_start(&lab, size, how, "fault", argument);
    wait_ready(&lab);
    double since = log_seconds(), until = since + FAULT_LIMIT;
    pid_t pid = pid_of(&lab, victim);
    TEST_CHECK(pid > 0, "%s: rank %d did not begin", backend, victim);
    if (pid > 0) kill(pid, signal_number);
    while (lab_poll(&lab) > (how != LAB_MPIRUN && signal_number == SIGSTOP) && log_seconds() < until)
        lab_sleep(0.002);
    if (pid > 0 && signal_number == SIGSTOP && how != LAB_MPIRUN) kill(pid, SIGCONT);
    lab_finish(&lab, FAULT_LIMIT);
    /* mpirun may end the others before they have said anything */
    check_told(&lab, backend, name, how == LAB_MPIRUN ? -1 : victim, how == LAB_MPIRUN ? "" : words, since);
    lab_clean(&lab);
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

/* quick: one number of ranks, and a fault of each kind; for ThreadSanitizer. */
static void test_backend(const char *backend, bool quick) {
    static const int sizes[] = {3, 1, 2, 4, 8};
    static const char *const faults[] = {"operation", "count", "type", "reduction", "abort", "stuck"};
    bool mpi = !strcmp(backend, "mpi");
    int how = mpi ? LAB_MPIRUN : 0;
    for (size_t i = 0; i < (quick ? 1 : sizeof sizes / sizeof *sizes); i++) test_sums(backend, how, sizes[i]);
    for (size_t i = 0; i < (quick ? 1 : sizeof faults / sizeof *faults); i++)
        test_fault(backend, how, 3, faults[i]);
    test_hurt(backend, how, 4, 2, SIGKILL);
    test_hurt(backend, how, 4, 1, SIGSTOP);
    if (quick) return;
    test_hurt(backend, how, 4, 0, SIGKILL);
    test_hurt(backend, how, 4, 0, SIGSTOP);
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

/* Run with the name of a backend: only that one; and "quick". */
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
        if (strcmp(backend, "self") != 0) test_backend(backend, argc > 2);
    }
    return test_end("comm");
}
