/* comm_mpi.c: the backend that hands every operation to the MPI library, and MPI's part in starting a job.
 *
 * All calls are non-blocking and then tested until they are done, the deadline passes or another rank has failed, so that
 * a fault ends in a message here instead of a hang inside the library. Before data move, the ranks compare what they are
 * about to do (one small all-reduce of minima, over every field of the header and its complement). */
#define _DEFAULT_SOURCE
#include "comm/comm_mpi.h"
#include "comm/backend.h"

#ifndef HAVE_MPI

bool mpi_start(Error *err) {
    return error_set(err, "built without MPI (install libopenmpi-dev, then make clean and make)");
}

bool mpi_share(void *data, size_t bytes, Error *err) {
    (void)data, (void)bytes;
    return mpi_start(err);
}

void mpi_finish_at_exit(void) {}

static bool usable(const CommGroup *group, Error *err) {
    (void)group;
    return mpi_start(err);
}

static bool open_group(CommGroup *group, Error *err) {
    (void)group;
    return mpi_start(err);
}

static void close_group(CommGroup *group) {
    (void)group;
}

const CommBackend comm_backend_mpi = {
    .name = "mpi", .usable = usable, .open = open_group, .close = close_group};

#else
#include "base/check.h"
#include "base/log.h"
#include <limits.h>
#include <mpi.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TAG_HEADER = 1, TAG_DATA = 2 };

/* MPI counts in int. Larger operations are cut; TOROID_MPI_COUNT_MAX makes small ones large, for tests. */
static size_t count_max = (size_t)1 << 30;

/* While waiting: only yield for so long, then sleep between looks. */
static const double YIELD_SECONDS = 0.005;
static const long NAP_NANOSECONDS = 20000;

typedef struct {
    MPI_Comm comm;
} State;

static MPI_Op own_ops[4][2]; /* by CommType and CommOp; MPI_OP_NULL: MPI's own does */

/* --- starting and ending MPI --- */

static void reduce_fp32_max(void *x, void *y, int *n, MPI_Datatype *type) {
    (void)type;
    comm_reduce(y, x, (size_t)*n, COMM_FP32, COMM_MAX);
}

static void reduce_bf16_sum(void *x, void *y, int *n, MPI_Datatype *type) {
    (void)type;
    comm_reduce(y, x, (size_t)*n, COMM_BF16, COMM_SUM);
}

static void reduce_bf16_max(void *x, void *y, int *n, MPI_Datatype *type) {
    (void)type;
    comm_reduce(y, x, (size_t)*n, COMM_BF16, COMM_MAX);
}

bool mpi_start(Error *err) {
    static bool started;
    int level = 0;
    if (started) return true;
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &level) != MPI_SUCCESS)
        return error_set(err, "MPI_Init_thread failed");
    if (level < MPI_THREAD_SERIALIZED)
        return error_set(err, "this MPI library cannot be called from a thread of its own (level %d)", level);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    for (int i = 0; i < 4; i++) own_ops[i][COMM_SUM] = own_ops[i][COMM_MAX] = MPI_OP_NULL;
    MPI_Op_create(reduce_fp32_max, 1, &own_ops[COMM_FP32][COMM_MAX]); /* MPI's own loses NaN */
    MPI_Op_create(reduce_bf16_sum, 1, &own_ops[COMM_BF16][COMM_SUM]);
    MPI_Op_create(reduce_bf16_max, 1, &own_ops[COMM_BF16][COMM_MAX]);
    const char *cut = getenv("TOROID_MPI_COUNT_MAX");
    if (cut && atol(cut) > 0) count_max = (size_t)atol(cut);
    started = true;
    return true;
}

bool mpi_share(void *data, size_t bytes, Error *err) {
    if (!mpi_start(err)) return false;
    CHECK_OP(bytes, <=, INT_MAX);
    return MPI_Bcast(data, (int)bytes, MPI_BYTE, 0, MPI_COMM_WORLD) == MPI_SUCCESS ||
           error_set(err, "MPI_Bcast failed");
}

static void finish(void) {
    MPI_Finalize();
}

void mpi_finish_at_exit(void) {
    static bool once;
    int started = 0;
    MPI_Initialized(&started);
    if (started && !once) atexit(finish);
    once = once || started;
}

/* --- waiting --- */

static MPI_Comm comm_of(const CommGroup *group) {
    return ((const State *)group->state)->comm;
}

static bool mpi_error(CommGroup *group, int code, Error *err) {
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(code, text, &length);
    return comm_group_fault(group, -1, text, err);
}

/* Until all requests (n) are done. code: what the calls that made them returned. On failure they are left alone: to
 * cancel them could block. */
static bool wait_all(CommGroup *group, int code, int n, MPI_Request *requests, int peer, Error *err) {
    double start = log_seconds();
    while (code == MPI_SUCCESS) {
        int done = 0;
        code = MPI_Testall(n, requests, &done, MPI_STATUSES_IGNORE);
        if (done && code == MPI_SUCCESS) return true;
        if (comm_group_failed(group, err)) return false;
        double waited = log_seconds() - start;
        if (waited > group->timeout_seconds) {
            char what[128];
            snprintf(what, sizeof what,
                     "not done within %.3g s (a rank has not begun it, or a wire is silent)",
                     group->timeout_seconds);
            return comm_group_fault(group, peer, what, err);
        }
        if (waited < YIELD_SECONDS)
            sched_yield();
        else
            nanosleep(&(struct timespec){.tv_nsec = NAP_NANOSECONDS}, NULL);
    }
    return mpi_error(group, code, err);
}

static bool wait_one(CommGroup *group, int code, MPI_Request *request, Error *err) {
    return wait_all(group, code, 1, request, -1, err);
}

/* --- headers --- */

enum { FIELDS = sizeof(CommHeader) / sizeof(uint32_t) };

/* They differ, and every rank knows: whose differs from rank 0's? */
static bool say_mismatch(CommGroup *group, Error *err) {
    CommHeader *all = calloc((size_t)group->size, sizeof *all);
    CHECK(all);
    MPI_Request request = MPI_REQUEST_NULL;
    int bytes = (int)sizeof *all, other = -1;
    int code =
        MPI_Iallgather(&group->header, bytes, MPI_BYTE, all, bytes, MPI_BYTE, comm_of(group), &request);
    if (!wait_one(group, code, &request, err)) return false; /* all may still be written: not freed */
    for (int i = 0; i < group->size && other < 0; i++)
        if (memcmp(&all[i], &group->header, sizeof *all) != 0) other = i;
    CommHeader theirs = all[other < 0 ? 0 : other];
    free(all);
    return other < 0 ? comm_group_fault(group, -1, "ranks differ in what they do", err)
                     : comm_group_mismatch(group, other, &theirs, err);
}

static bool compare_headers(CommGroup *group, Error *err) {
    static uint32_t fields[2 * FIELDS]; /* not on the stack: a failed operation may still write it */
    MPI_Request request = MPI_REQUEST_NULL;
    memcpy(fields, &group->header, sizeof group->header);
    for (int i = 0; i < FIELDS; i++) fields[FIELDS + i] = ~fields[i];
    int code =
        MPI_Iallreduce(MPI_IN_PLACE, fields, 2 * FIELDS, MPI_UINT32_T, MPI_MIN, comm_of(group), &request);
    if (!wait_one(group, code, &request, err)) return false;
    for (int i = 0; i < FIELDS; i++)
        if (fields[i] != ~fields[FIELDS + i]) return say_mismatch(group, err);
    return true;
}

/* --- operations --- */

static MPI_Datatype mpi_type(CommType type) {
    switch (type) {
    case COMM_FP32: return MPI_FLOAT;
    case COMM_BF16: return MPI_UINT16_T;
    case COMM_INT32: return MPI_INT32_T;
    case COMM_UINT8: return MPI_UINT8_T;
    }
    CHECK(false && "a CommType");
    return MPI_BYTE;
}

static MPI_Op mpi_op(CommType type, CommOp op) {
    if (own_ops[type][op] != MPI_OP_NULL) return own_ops[type][op];
    return op == COMM_SUM ? MPI_SUM : MPI_MAX;
}

static size_t cut_count(size_t count) {
    return count < count_max ? count : count_max;
}

static bool all_reduce(CommGroup *group, void *data, size_t count, CommType type, CommOp op, Error *err) {
    if (!compare_headers(group, err)) return false;
    char *at = data;
    for (size_t n; count; count -= n, at += n * comm_type_bytes(type)) {
        MPI_Request request = MPI_REQUEST_NULL;
        n = cut_count(count);
        int code = MPI_Iallreduce(MPI_IN_PLACE, at, (int)n, mpi_type(type), mpi_op(type, op), comm_of(group),
                                  &request);
        if (!wait_one(group, code, &request, err)) return false;
    }
    return true;
}

static bool broadcast_range(CommGroup *group, char *at, size_t bytes, int root, Error *err) {
    for (size_t n; bytes; bytes -= n, at += n) {
        MPI_Request request = MPI_REQUEST_NULL;
        n = cut_count(bytes);
        int code = MPI_Ibcast(at, (int)n, MPI_BYTE, root, comm_of(group), &request);
        if (!wait_one(group, code, &request, err)) return false;
    }
    return true;
}

/* Beyond what MPI counts: one reduction for every share (or piece of it). */
static bool reduce_shares(CommGroup *group, char *data, const size_t *offsets, CommType type, CommOp op,
                          Error *err) {
    size_t each = comm_type_bytes(type);
    for (int root = 0; root < group->size; root++)
        for (size_t n, at = offsets[root]; at < offsets[root + 1]; at += n) {
            MPI_Request request = MPI_REQUEST_NULL;
            n = cut_count(offsets[root + 1] - at);
            void *piece = data + at * each;
            bool mine = root == group->rank;
            int code = MPI_Ireduce(mine ? MPI_IN_PLACE : piece, mine ? piece : NULL, (int)n, mpi_type(type),
                                   mpi_op(type, op), root, comm_of(group), &request);
            if (!wait_one(group, code, &request, err)) return false;
        }
    return true;
}

/* The shares' sizes and places as MPI wants them. What is returned must stay until the operation is done. */
static int *int_counts(const CommGroup *group, const size_t *offsets) {
    int *counts = malloc(2 * (size_t)group->size * sizeof *counts);
    CHECK(counts);
    for (int i = 0; i < group->size; i++) {
        counts[i] = (int)(offsets[i + 1] - offsets[i]);
        counts[group->size + i] = (int)offsets[i];
    }
    return counts;
}

static bool reduce_scatter(CommGroup *group, void *data, const size_t *offsets, CommType type, CommOp op,
                           Error *err) {
    if (!compare_headers(group, err)) return false;
    if (offsets[group->size] > count_max) return reduce_shares(group, data, offsets, type, op, err);
    if (!offsets[group->size]) return true;
    MPI_Request request = MPI_REQUEST_NULL;
    int *counts = int_counts(group, offsets);
    int code = MPI_Ireduce_scatter(MPI_IN_PLACE, data, counts, mpi_type(type), mpi_op(type, op),
                                   comm_of(group), &request);
    if (!wait_one(group, code, &request, err)) return false; /* counts may still be read: not freed */
    size_t each = comm_type_bytes(type);
    memmove((char *)data + offsets[group->rank] * each, data, (size_t)counts[group->rank] * each);
    free(counts);
    return true;
}

static bool all_gather(CommGroup *group, void *data, const size_t *offsets, CommType type, Error *err) {
    size_t each = comm_type_bytes(type);
    if (!compare_headers(group, err)) return false;
    if (!offsets[group->size]) return true;
    if (offsets[group->size] > count_max) {
        bool ok = true;
        for (int i = 0; i < group->size && ok; i++)
            ok = broadcast_range(group, (char *)data + offsets[i] * each,
                                 (offsets[i + 1] - offsets[i]) * each, i, err);
        return ok;
    }
    MPI_Request request = MPI_REQUEST_NULL;
    int *counts = int_counts(group, offsets);
    int code = MPI_Iallgatherv(MPI_IN_PLACE, 0, mpi_type(type), data, counts, counts + group->size,
                               mpi_type(type), comm_of(group), &request);
    if (!wait_one(group, code, &request, err)) return false;
    free(counts);
    return true;
}

static bool broadcast(CommGroup *group, void *data, size_t bytes, int root, Error *err) {
    return compare_headers(group, err) && broadcast_range(group, data, bytes, root, err);
}

static bool barrier(CommGroup *group, Error *err) {
    return compare_headers(group, err);
}

static bool send_bytes(CommGroup *group, const void *data, size_t bytes, int to, Error *err) {
    static CommHeader header; /* may still be read after a failure */
    MPI_Request request = MPI_REQUEST_NULL;
    header = group->header;
    const char *at = data;
    int code = MPI_Isend(&header, (int)sizeof header, MPI_BYTE, to, TAG_HEADER, comm_of(group), &request);
    if (!wait_all(group, code, 1, &request, to, err)) return false;
    for (size_t n; bytes; bytes -= n, at += n) {
        n = cut_count(bytes);
        code = MPI_Isend(at, (int)n, MPI_BYTE, to, TAG_DATA, comm_of(group), &request);
        if (!wait_all(group, code, 1, &request, to, err)) return false;
    }
    return true;
}

static bool recv_bytes(CommGroup *group, void *data, size_t bytes, int from, Error *err) {
    static CommHeader theirs;
    MPI_Request request = MPI_REQUEST_NULL;
    char *at = data;
    int code = MPI_Irecv(&theirs, (int)sizeof theirs, MPI_BYTE, from, TAG_HEADER, comm_of(group), &request);
    if (!wait_all(group, code, 1, &request, from, err)) return false;
    CommHeader expected = group->header;
    expected.operation = OPERATION_SEND;
    if (memcmp(&theirs, &expected, sizeof expected) != 0)
        return comm_group_mismatch(group, from, &theirs, err);
    for (size_t n; bytes; bytes -= n, at += n) {
        n = cut_count(bytes);
        code = MPI_Irecv(at, (int)n, MPI_BYTE, from, TAG_DATA, comm_of(group), &request);
        if (!wait_all(group, code, 1, &request, from, err)) return false;
    }
    return true;
}

/* --- opening --- */

static bool usable(const CommGroup *group, Error *err) {
    ControlPlace place;
    if (!control_place(&place, err)) return false;
    bool by_mpi =
        !strcmp(place.launcher, "mpirun") || (!strcmp(place.launcher, "srun") && getenv("PMIX_RANK"));
    if (!by_mpi) return error_set(err, "launched by %s, not by mpirun", place.launcher);
    int rank, size;
    if (!mpi_start(err)) return false;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    return (rank == group->rank && size == group->size) ||
           error_set(err, "this MPI library counts rank %d of %d (is mpirun of another MPI?)", rank, size);
}

/* MPI_Comm_create_group has no non-blocking form: a thread waits for it, so that this one can give up. */
typedef struct {
    MPI_Group members;
    int tag, code;
    MPI_Comm comm;
    atomic_bool done, abandoned;
} Creation;

static void *create_comm(void *argument) {
    Creation *c = argument;
    c->code = MPI_Comm_create_group(MPI_COMM_WORLD, c->members, c->tag, &c->comm);
    atomic_store(&c->done, true);
    return NULL;
}

static bool run_creation(CommGroup *group, Creation *c, Error *err) {
    pthread_t thread;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int e = pthread_create(&thread, NULL, create_comm, c);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (e) return error_set(err, "no thread to open MPI in");
    for (double start = log_seconds(); !atomic_load(&c->done);) {
        bool failed = comm_group_failed(group, err);
        if (!failed && log_seconds() - start > group->timeout_seconds)
            failed = !comm_group_fault(group, -1, "MPI_Comm_create_group is not done in time", err);
        if (failed) {
            pthread_detach(thread); /* inside MPI for good; c stays its */
            return false;
        }
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    }
    pthread_join(thread, NULL);
    return c->code == MPI_SUCCESS || mpi_error(group, c->code, err);
}

static bool open_group(CommGroup *group, Error *err) {
    Creation *c = calloc(1, sizeof *c);
    State *state = calloc(1, sizeof *state);
    MPI_Group world;
    CHECK(c && state);
    MPI_Comm_group(MPI_COMM_WORLD, &world);
    MPI_Group_incl(world, group->size, group->world, &c->members);
    c->tag = (int)(group->id % 32768);
    if (!run_creation(group, c, err)) {
        free(state);
        return false;
    }
    state->comm = c->comm;
    MPI_Comm_set_errhandler(state->comm, MPI_ERRORS_RETURN);
    MPI_Group_free(&c->members);
    MPI_Group_free(&world);
    free(c);
    group->state = state;
    return true;
}

/* MPI_Comm_free waits for the others: MPI_Finalize does that work. */
static void close_group(CommGroup *group) {
    free(group->state);
    group->state = NULL;
}

static void describe(const CommGroup *group, char *out, size_t size) {
    char version[MPI_MAX_LIBRARY_VERSION_STRING] = "";
    int length = 0;
    (void)group;
    MPI_Get_library_version(version, &length);
    snprintf(out, size, "%.*s", (int)strcspn(version, ",\n"), version);
}

const CommBackend comm_backend_mpi = {
    .name = "mpi",
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
    .describe = describe,
};
#endif
