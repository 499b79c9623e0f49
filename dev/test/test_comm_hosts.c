/* Tests of the backend of several ranks in each of several hosts (comm_hosts.c): real processes that take themselves for
 * ranks of different hosts, every operation against results known beforehand, and groups that are parts of the world. */
#define _GNU_SOURCE
#include "comm_checks.h"
#include "comm_lab.h"
#include "test.h"

/* "blocks 2 torus:2x2": ranks in a row on each host, 2 of them; "stripes 3": rank r on host r modulo 3. */
static void take_host(const char *argument, char topology[64]) {
    char way[16], name[32];
    int n = 1, rank = atoi(getenv("TOROID_RANK"));
    topology[0] = 0;
    sscanf(argument, "%15s %d %63s", way, &n, topology);
    snprintf(name, sizeof name, "host%d", !strcmp(way, "stripes") ? rank % n : rank / n);
    setenv("TOROID_HOST", name, 1);
}

static int check_all(Comm *comm, bool briefly) {
    static const size_t counts[] = {3, 16385, 1, 1000, 100003};
    for (size_t i = 0; i < (briefly ? 2 : sizeof counts / sizeof *counts); i++)
        for (int type = 0; type < 4; type++)
            if (check_collectives(comm, counts[i], (CommType)type,
                                  (i + (size_t)type) % 2 ? COMM_SUM : COMM_MAX))
                return 1;
    return check_pairs(comm, 0) || check_pairs(comm, 100) || check_pairs(comm, 100000);
}

/* The whole, then parts of it: neighbouring ranks, ranks apart, and all but one; a part of a part. */
static int run_groups(const char *argument) {
    char topology[64];
    take_host(argument, topology);
    CommConfig config = {.backend = "hosts", .topology = topology, .timeout_seconds = 20};
    Comm *comm, *part, *inner;
    Error err;
    RANK_CHECK(comm_open(&comm, &config, &err), "%s\n", err.text);
    int rank = comm_rank(comm), size = comm_size(comm);
    int failed = check_all(comm, false);
    float *shared = comm_alloc(comm, 400000, &err);
    RANK_CHECK(shared, "%s\n", err.text);
    pattern_fill(shared, 100000, COMM_FP32, rank, 0);
    RANK_CHECK(comm_wait(comm, comm_all_reduce(comm, shared, 100000, COMM_FP32, COMM_SUM), &err), "%s\n",
               err.text);
    RANK_CHECK(pattern_wrong(shared, 0, 100000, COMM_FP32, COMM_SUM, (PatternRanks){0, 1, size}, 0) == 100000,
               "in comm_alloc's memory it is wrong\n");
    const int colours[] = {rank / 2, rank % 2, rank == 1 ? -1 : 0};
    for (int k = 0; k < 3 && !failed; k++) {
        RANK_CHECK(comm_split(comm, colours[k], -rank, &part, &err), "%s\n", err.text);
        if (!part) continue;
        RANK_CHECK(comm_alloc(part, 1000, &err), "%s\n", err.text);
        failed = comm_size(part) > 1 && check_all(part, true);
        RANK_CHECK(comm_split(part, comm_rank(part) / 2, 0, &inner, &err), "%s\n", err.text);
        failed = failed || (comm_size(inner) > 1 && check_collectives(inner, 5000, COMM_FP32, COMM_SUM));
        comm_close(inner);
        comm_close(part);
    }
    comm_close(comm);
    return failed;
}

/* What `auto` takes. */
static int run_choice(const char *argument) {
    char topology[64];
    take_host(argument, topology);
    CommConfig config = {.topology = topology, .timeout_seconds = 20};
    Comm *comm;
    Error err;
    RANK_CHECK(comm_open(&comm, &config, &err), "%s\n", err.text);
    RANK_CHECK(strstr(comm_describe(comm), "hosts, ") == comm_describe(comm), "auto is %s\n",
               comm_describe(comm));
    comm_close(comm);
    return 0;
}

/* Hosts with unequal numbers of ranks, or a topology that is neither of ranks nor of hosts, are refused. */
static int run_refused(const char *argument) {
    char topology[64];
    take_host(argument, topology);
    CommConfig config = {.backend = "hosts", .topology = topology, .timeout_seconds = 20};
    Comm *comm;
    Error err;
    RANK_CHECK(!comm_open(&comm, &config, &err), "it is opened\n");
    return 0;
}

static void test_case(int size, const char *name, const char *argument) {
    Lab lab;
    char text[LAB_LINE_BYTES];
    lab_start(&lab, size, 0, name, argument);
    lab_finish(&lab, 60);
    TEST_CHECK(!lab.timed_out, "%d ranks, %s: still running after 60 s", size, argument);
    for (int r = 0; r < size; r++)
        if (lab_exit_code(&lab, r)) {
            TEST_CHECK(false, "%d ranks, %s: rank %d: exit %d: %s", size, argument, r, lab_exit_code(&lab, r),
                       lab_stderr(&lab, r, text));
            break;
        }
    lab_clean(&lab);
}

int main(void) {
    if (lab_is_rank()) {
        if (!strcmp(lab_case(), "groups")) return run_groups(lab_argument());
        if (!strcmp(lab_case(), "choice")) return run_choice(lab_argument());
        if (!strcmp(lab_case(), "refused")) return run_refused(lab_argument());
        return 2;
    }
    test_case(4, "groups", "blocks 2");
    test_case(4, "groups", "blocks 2 ring:2");
    test_case(6, "groups", "stripes 2");
    test_case(6, "groups", "blocks 2 ring:3");
    test_case(8, "groups", "blocks 2 torus:2x2");
    test_case(8, "groups", "stripes 4 torus:2x2");
    test_case(9, "groups", "stripes 3 ring:3");
    test_case(8, "choice", "blocks 2 torus:2x2");
    test_case(5, "refused", "blocks 2");
    test_case(8, "refused", "blocks 2 torus:3x2");
    return test_end("comm_hosts");
}
