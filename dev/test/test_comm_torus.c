/* Tests of the torus backend: real processes, every shape, type and operation against sums known beforehand. */
#define _GNU_SOURCE
#include "base/rng.h"
#include "comm/torus.h"
#include "comm_lab.h"
#include "test.h"

enum { ELEMENTS_MAX = 200000 };

/* Small whole numbers, so that sums are exact in every type. */
static int value(int rank, size_t i) {
    return (int)((i * 7 + (size_t)rank * 13 + (i >> 5)) % 4);
}

static void set(void *data, size_t i, CommType type, int v) {
    float f = (float)v;
    uint32_t bits;
    memcpy(&bits, &f, 4);
    switch (type) {
    case COMM_FP32: ((float *)data)[i] = f; break;
    case COMM_BF16: ((uint16_t *)data)[i] = (uint16_t)(bits >> 16); break;
    case COMM_INT32: ((int32_t *)data)[i] = v; break;
    case COMM_UINT8: ((uint8_t *)data)[i] = (uint8_t)v; break;
    }
}

static bool equals(const void *data, size_t i, CommType type, int v) {
    unsigned char want[4] = {0};
    set(want, 0, type, v);
    return memcmp((const char *)data + i * comm_type_bytes(type), want, comm_type_bytes(type)) == 0;
}

static int reduced(int size, size_t i, CommOp op) {
    int all = 0;
    for (int r = 0; r < size; r++) {
        int v = value(r, i);
        all = op == COMM_SUM ? all + v : v > all ? v : all;
    }
    return all;
}

static size_t wrong(const void *data, size_t from, size_t to, CommType type, int size, CommOp op) {
    size_t bad = 0;
    for (size_t i = from; i < to; i++) bad += !equals(data, i, type, reduced(size, i, op));
    return bad;
}

/* Uneven shares, some of them empty. */
static void make_offsets(size_t *offsets, int size, size_t count, uint64_t seed) {
    offsets[0] = 0;
    for (int r = 0; r < size; r++) {
        size_t left = count - offsets[r];
        double u = rng_uniform(seed, RNG_STREAM(RNG_TEST, 1), (uint64_t)r);
        size_t mine = u < 0.2 ? 0 : (size_t)(2 * u * (double)left / (size - r));
        offsets[r + 1] = r + 1 == size ? count : offsets[r] + (mine < left ? mine : left);
    }
}

#define RANK_CHECK(ok, ...)                                                                                  \
    do {                                                                                                     \
        if (!(ok)) {                                                                                         \
            fprintf(stderr, __VA_ARGS__);                                                                    \
            return 1;                                                                                        \
        }                                                                                                    \
    } while (0)

static int check_collectives(Comm *comm, size_t count, CommType type, CommOp op) {
    static char data[ELEMENTS_MAX * 4 + 64];
    static size_t offsets[128];
    Error err;
    int rank = comm_rank(comm), size = comm_size(comm);
    make_offsets(offsets, size, count, count);
    for (size_t i = 0; i < count; i++) set(data, i, type, value(rank, i));
    RANK_CHECK(comm_wait(comm, comm_all_reduce(comm, data, count, type, op), &err), "%s\n", err.text);
    RANK_CHECK(!wrong(data, 0, count, type, size, op), "all_reduce of %zu, type %d, op %d is wrong in %zu\n",
               count, (int)type, (int)op, wrong(data, 0, count, type, size, op));
    for (size_t i = 0; i < count; i++) set(data, i, type, value(rank, i));
    RANK_CHECK(comm_wait(comm, comm_reduce_scatter(comm, data, offsets, type, op), &err), "%s\n", err.text);
    RANK_CHECK(!wrong(data, offsets[rank], offsets[rank + 1], type, size, op),
               "reduce_scatter of %zu, type %d is wrong\n", count, (int)type);
    for (size_t i = 0; i < count; i++)
        if (i < offsets[rank] || i >= offsets[rank + 1]) set(data, i, type, 99);
    RANK_CHECK(comm_wait(comm, comm_all_gather(comm, data, offsets, type), &err), "%s\n", err.text);
    RANK_CHECK(!wrong(data, 0, count, type, size, op), "all_gather of %zu, type %d is wrong\n", count,
               (int)type);
    int root = (int)(count % (size_t)size);
    for (size_t i = 0; i < count; i++) set(data, i, type, rank == root ? value(7, i) : 99);
    RANK_CHECK(comm_wait(comm, comm_broadcast(comm, data, count * comm_type_bytes(type), root), &err), "%s\n",
               err.text);
    for (size_t i = 0; i < count; i++)
        RANK_CHECK(equals(data, i, type, value(7, i)), "broadcast of %zu is wrong\n", count);
    RANK_CHECK(comm_barrier(comm, &err), "%s\n", err.text);
    return 0;
}

static int check_pairs(Comm *comm, size_t bytes) {
    static unsigned char out[ELEMENTS_MAX], in[ELEMENTS_MAX];
    Error err;
    int rank = comm_rank(comm), size = comm_size(comm);
    for (int step = 1; step < size; step = 2 * step + 1) {
        int to = (rank + step) % size, from = (rank - step + size) % size;
        for (size_t i = 0; i < bytes; i++) out[i] = (unsigned char)(i * 31 + (size_t)rank);
        /* Lower ranks of each cycle send first where that is needed: ranks below `step` receive first. */
        bool first = rank >= step;
        CommRequest a = first ? comm_send(comm, out, bytes, to) : comm_recv(comm, in, bytes, from);
        RANK_CHECK(comm_wait(comm, a, &err), "%s\n", err.text);
        a = first ? comm_recv(comm, in, bytes, from) : comm_send(comm, out, bytes, to);
        RANK_CHECK(comm_wait(comm, a, &err), "%s\n", err.text);
        for (size_t i = 0; i < bytes; i++)
            RANK_CHECK(in[i] == (unsigned char)(i * 31 + (size_t)from), "recv of %zu is wrong\n", bytes);
    }
    return 0;
}

static int run_shape(const char *topology) {
    static const size_t counts[] = {1, 2, 17, 1000, 4097, 65537, ELEMENTS_MAX};
    CommConfig config = {.backend = "torus", .topology = topology, .timeout_seconds = 10};
    Comm *comm;
    Error err;
    int failed = 0;
    RANK_CHECK(comm_open(&comm, &config, &err), "%s\n", err.text);
    for (size_t i = 0; i < sizeof counts / sizeof *counts && !failed; i++)
        for (int type = 0; type < 4 && !failed; type++)
            failed = check_collectives(comm, counts[i], (CommType)type,
                                       (i + (size_t)type) % 2 ? COMM_SUM : COMM_MAX);
    if (!failed) failed = check_pairs(comm, 0) || check_pairs(comm, 100) || check_pairs(comm, ELEMENTS_MAX);
    comm_close(comm);
    return failed;
}

static void test_ranks(int size, const char *name, const char *topology) {
    Lab lab;
    char text[LAB_LINE_BYTES];
    lab_start(&lab, size, 0, name, topology);
    lab_finish(&lab, 60);
    TEST_CHECK(!lab.timed_out, "%d ranks, '%s': still running after 60 s", size, topology);
    for (int r = 0; r < size; r++)
        if (lab_exit_code(&lab, r)) {
            TEST_CHECK(false, "%d ranks, '%s': rank %d: exit %d: %s", size, topology, r,
                       lab_exit_code(&lab, r), lab_stderr(&lab, r, text));
            break;
        }
    lab_clean(&lab);
}

static void test_shape(int size, const char *topology) {
    test_ranks(size, "shape", topology);
}

/* Shapes that only a file says. */
static void test_shape_file(int size, const char *text) {
    char path[] = "/tmp/test_torus.XXXXXX", spec[64];
    int fd = mkstemp(path);
    TEST_CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text), "%s", path);
    close(fd);
    snprintf(spec, sizeof spec, "file:%s", path);
    test_shape(size, spec);
    unlink(path);
}

/* --- faults --- */

/* A group made by hand, to reach the backend: rank 1 loses its wire to rank 0 at the third of six operations. */
static int run_break(const char *spec) {
    enum { ROUNDS = 6 };
    static int32_t data[ELEMENTS_MAX];
    static int world[64];
    Topology topology;
    CommGroup group = {
        .world = world, .timeout_seconds = 10, .backend = &comm_backend_torus, .topology = &topology};
    Error err;
    RANK_CHECK(control_open(&group.control, 10, &err), "%s\n", err.text);
    group.rank = control_rank(group.control);
    group.size = control_size(group.control);
    for (int r = 0; r < group.size; r++) world[r] = r;
    RANK_CHECK(topology_open(&topology, spec, group.size, &err), "%s\n", err.text);
    RANK_CHECK(comm_backend_torus.open(&group, &err), "%s\n", err.text);
    for (int round = 0; round < ROUNDS; round++) {
        size_t count = round % 2 ? 100 : ELEMENTS_MAX;
        for (size_t i = 0; i < count; i++) data[i] = value(group.rank, i + (size_t)round);
        group.header = (CommHeader){.operation = OPERATION_ALL_REDUCE,
                                    .type = COMM_INT32,
                                    .op = COMM_SUM,
                                    .sequence = (uint64_t)round + 1,
                                    .bytes = count * sizeof *data};
        if (round == 2 && group.rank == 1) torus_break_wire(&group, 0);
        RANK_CHECK(comm_backend_torus.all_reduce(&group, data, count, COMM_INT32, COMM_SUM, &err), "%s\n",
                   err.text);
        for (size_t i = 0; i < count; i++)
            RANK_CHECK(data[i] == reduced(group.size, i + (size_t)round, COMM_SUM), "round %d is wrong\n",
                       round);
    }
    char all[64], mine = 0;
    RANK_CHECK(control_all_gather(group.control, &mine, 1, all, &err), "%s\n", err.text);
    comm_backend_torus.close(&group);
    topology_close(&topology);
    control_close(group.control);
    return 0;
}

/* Reduces until something happens; rank 0 of the case "mismatch" once another count. */
static int run_fault(const char *kind) {
    static float data[ELEMENTS_MAX];
    CommConfig config = {.backend = "torus", .topology = "torus:2x2", .timeout_seconds = 2};
    Comm *comm;
    Error err;
    RANK_CHECK(comm_open(&comm, &config, &err), "%s\n", err.text);
    bool differs = !strcmp(kind, "mismatch") && comm_rank(comm) == 0;
    for (int i = 0;; i++) {
        size_t count = i % 2 ? 1000 : ELEMENTS_MAX;
        if (differs && i == 20) count--;
        if (!comm_wait(comm, comm_all_reduce(comm, data, count, COMM_FP32, COMM_SUM), &err)) break;
    }
    fprintf(stderr, "%s\n", err.text);
    comm_close(comm);
    return 3;
}

/* signal: to rank 2 after a while; 0: none. All others must end by themselves, and name `word`. */
static void test_fault(const char *kind, int signal_number, const char *word, double limit) {
    Lab lab;
    char text[LAB_LINE_BYTES];
    lab_start(&lab, 4, 0, "fault", kind);
    lab_sleep(1);
    if (signal_number) kill(lab.pid[2], signal_number);
    double until = log_seconds() + limit;
    while (lab_poll(&lab) > (signal_number == SIGSTOP) && log_seconds() < until) lab_sleep(0.01);
    for (int r = 0; r < 4; r++) {
        if (signal_number && r == 2) continue;
        TEST_CHECK(lab.ended[r] > 0 && lab_exit_code(&lab, r) == 3, "%s: rank %d: ended %g, exit %d", kind, r,
                   lab.ended[r], lab_exit_code(&lab, r));
        TEST_CHECK(strstr(lab_stderr(&lab, r, text), word), "%s: rank %d does not name %s: %s", kind, r, word,
                   text);
    }
    lab_finish(&lab, 0);
    lab_clean(&lab);
}

int main(void) {
    if (lab_is_rank()) {
        if (!strcmp(lab_case(), "shape")) return run_shape(lab_argument());
        if (!strcmp(lab_case(), "break")) return run_break(lab_argument());
        if (!strcmp(lab_case(), "fault")) return run_fault(lab_argument());
        return 2;
    }
    test_shape(1, "");
    test_shape(2, "ring:2");
    test_shape(3, "ring:3");
    test_shape(3, "");
    test_shape(4, "torus:4x1");
    test_shape(4, "torus:2x2");
    test_shape(6, "torus:2x3");
    test_shape(8, "ring:8");
    test_shape(8, "torus:2x2x2");
    test_shape(8, "torus:4x2");
    test_shape(8, "");
    test_shape(12, "torus:3x4");
    test_shape(16, "torus:2x2x2x2");
    test_shape_file(4, "torus 4 wrap 0\n");
    test_shape_file(6, "torus 3x2 wrap 01\n");
    test_shape_file(9, "torus 3x3 wrap 00\n");
    test_shape_file(8, "torus 4x2 wrap 11\nlink 1,0 +x down\n");
    test_shape_file(8, "torus 2x2x2 wrap 111\nlink 0,0,0 +x down\n");
    test_shape_file(8, "torus 8 wrap 1\nlink 3 +x down\n");
    test_shape(27, "torus:3x3x3");
    for (int a = 0; a < PLAN_ALGORITHMS; a++) {
        setenv("TOROID_TORUS_ALGORITHM", plan_algorithm_names[a], 1);
        test_shape(2, "ring:2");
        test_shape(5, "ring:5");
        test_shape(7, "");
        test_shape(8, "torus:2x2x2");
        test_shape(9, "torus:3x3");
        test_shape(12, "torus:3x1x4");
        test_shape_file(8, "torus 4x2 wrap 01\n");
        test_ranks(8, "break", "torus:4x2");
    }
    unsetenv("TOROID_TORUS_ALGORITHM");
    test_ranks(8, "break", "torus:2x2x2");
    test_ranks(8, "break", "torus:4x2");
    test_ranks(9, "break", "torus:3x3");
    test_ranks(5, "break", "ring:5");
    test_fault("kill", SIGKILL, "rank 2", 3);
    test_fault("stop", SIGSTOP, "rank 2", 6);
    test_fault("mismatch", 0, "rank 0", 6);
    return test_end("comm_torus");
}
