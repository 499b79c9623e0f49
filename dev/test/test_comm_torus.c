/* Tests of the torus backend: real processes, every shape, type and operation against sums known beforehand. */
#define _GNU_SOURCE
#include "base/rng.h"
#include "comm/torus.h"
#include "comm_checks.h"
#include "comm_lab.h"
#include "test.h"

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
        pattern_fill(data, count, COMM_INT32, group.rank, (size_t)round);
        group.header = (CommHeader){.operation = OPERATION_ALL_REDUCE,
                                    .type = COMM_INT32,
                                    .op = COMM_SUM,
                                    .sequence = (uint64_t)round + 1,
                                    .bytes = count * sizeof *data};
        if (round == 2 && group.rank == 1) torus_break_wire(&group, 0);
        RANK_CHECK(comm_backend_torus.all_reduce(&group, data, count, COMM_INT32, COMM_SUM, &err), "%s\n",
                   err.text);
        RANK_CHECK(pattern_wrong(data, 0, count, COMM_INT32, COMM_SUM, (PatternRanks){0, 1, group.size},
                                 (size_t)round) == count,
                   "round %d is wrong\n", round);
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

/* A signal to rank 2 after a while, or a mismatch. All others must end by themselves in time, and name who it was. */
static void test_faults(void) {
    static const struct {
        const char *kind, *word;
        int signal;
        double limit;
    } faults[] = {
        {"stop", "rank 2", SIGSTOP, 6}, {"kill", "rank 2", SIGKILL, 3}, {"mismatch", "rank 0", 0, 6}};
    enum { FAULTS = sizeof faults / sizeof *faults };
    Lab labs[FAULTS];
    char text[LAB_LINE_BYTES];
    for (int i = 0; i < FAULTS; i++) lab_start(&labs[i], 4, 0, "fault", faults[i].kind);
    lab_sleep(1);
    for (int i = 0; i < FAULTS; i++)
        if (faults[i].signal) kill(labs[i].pid[2], faults[i].signal);
    for (int i = 0; i < FAULTS; i++) {
        Lab *lab = &labs[i];
        const char *kind = faults[i].kind;
        double until = log_seconds() + faults[i].limit;
        while (lab_poll(lab) > (faults[i].signal == SIGSTOP) && log_seconds() < until) lab_sleep(0.01);
        for (int r = 0; r < 4; r++) {
            if (faults[i].signal && r == 2) continue;
            TEST_CHECK(lab->ended[r] > 0 && lab_exit_code(lab, r) == 3, "%s: rank %d: ended %g, exit %d",
                       kind, r, lab->ended[r], lab_exit_code(lab, r));
            TEST_CHECK(strstr(lab_stderr(lab, r, text), faults[i].word), "%s: rank %d does not name %s: %s",
                       kind, r, faults[i].word, text);
        }
        lab_finish(lab, 0);
        lab_clean(lab);
    }
}

static void test_more_shapes(void) {
    test_shape(1, "");
    test_shape(2, "ring:2");
    test_shape(3, "ring:3");
    test_shape(4, "torus:4x1");
    test_shape(4, "torus:2x2");
    test_shape(8, "ring:8");
    test_shape(8, "torus:4x2");
    test_shape(8, "");
    test_shape(12, "torus:3x4");
    test_shape(16, "torus:2x2x2x2");
    test_shape(27, "torus:3x3x3");
    test_shape_file(4, "torus 4 wrap 0\n");
    test_shape_file(9, "torus 3x3 wrap 00\n");
    test_shape_file(8, "torus 2x2x2 wrap 111\nlink 0,0,0 +x down\n");
    test_shape_file(8, "torus 8 wrap 1\nlink 3 +x down\n");
    test_ranks(8, "break", "torus:2x2x2");
    test_ranks(8, "break", "torus:4x2");
    test_ranks(5, "break", "ring:5");
}

int main(void) {
    if (lab_is_rank()) {
        if (!strcmp(lab_case(), "shape")) return run_shape(lab_argument());
        if (!strcmp(lab_case(), "break")) return run_break(lab_argument());
        if (!strcmp(lab_case(), "fault")) return run_fault(lab_argument());
        return 2;
    }
    test_shape(3, "");
    test_shape(6, "torus:2x3");
    test_shape(8, "torus:2x2x2");
    test_shape_file(6, "torus 3x2 wrap 01\n");
    test_shape_file(8, "torus 4x2 wrap 11\nlink 1,0 +x down\n");
    test_ranks(9, "break", "torus:3x3");
    if (!test_quick()) test_more_shapes();
    for (int a = 0; a < PLAN_ALGORITHMS; a++) {
        setenv("TOROID_TORUS_ALGORITHM", plan_algorithm_names[a], 1);
        test_shape(5, "ring:5");
        test_shape_file(8, "torus 4x2 wrap 01\n");
        test_ranks(8, "break", "torus:4x2");
        if (test_quick()) continue;
        test_shape(2, "ring:2");
        test_shape(7, "");
        test_shape(8, "torus:2x2x2");
        test_shape(9, "torus:3x3");
        test_shape(12, "torus:3x1x4");
    }
    unsetenv("TOROID_TORUS_ALGORITHM");
    test_faults();
    return test_end("comm_torus");
}
