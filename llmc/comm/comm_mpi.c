/* comm_mpi.c: the backend that moves data with MPI's messages between two ranks. The collectives are made of them here and
 * not by the library: its blocking ones cannot be left when a rank has died, and its non-blocking ones are slower by far.
 *
 * In every collective the ranks first meet: log2(size) exchanges in which they compare what they are about to do, and
 * reduce up to SMALL_BYTES on the way (for a gather or broadcast, everyone adds zeros for what is not its own): mpi_meet.c.
 * More then goes around the ring of ranks in segments, several under way: mpi_ring.c. All calls are non-blocking and tested until they
 * are done, the deadline passes or another rank has failed, so that a fault ends in a message here instead of a hang
 * inside the library. */
#define _DEFAULT_SOURCE
#include "comm/comm_mpi.h"
#include "comm/backend.h"

#ifndef HAVE_MPI

static bool usable(const CommGroup *group, Error *err) {
    (void)group;
    return mpi_start(err);
}

const CommBackend comm_backend_mpi = {.name = "mpi", .usable = usable};

#else
#include "base/check.h"
#include "base/log.h"
#include "comm/mpi_internal.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PIECE_BYTES = 1 << 20 }; /* of a message from one rank to another */

/* While waiting: look, then also give way, then sleep between looks. */
static const double SPIN_SECONDS = 50e-6, YIELD_SECONDS = 5e-3;
static const long NAP_NANOSECONDS = 20000;

bool mpi_error(CommGroup *group, int code, Error *err) {
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(code, text, &length);
    return comm_group_fault(group, -1, text, err);
}

bool mpi_keep_waiting(CommGroup *group, const MpiWait *wait, Error *err) {
    if (comm_group_failed(group, err)) return false;
    double waited = log_seconds() - wait->since;
    if (waited > group->timeout_seconds) {
        char what[128];
        snprintf(what, sizeof what, "nothing for %.3g s (has it not begun this, or is a wire silent?)",
                 group->timeout_seconds);
        return comm_group_fault(group, wait->peer, what, err);
    }
    if (waited > YIELD_SECONDS)
        nanosleep(&(struct timespec){.tv_nsec = NAP_NANOSECONDS}, NULL);
    else if (waited > SPIN_SECONDS)
        sched_yield();
    return true;
}

bool mpi_wait_all(CommGroup *group, int code, int n, MPI_Request *requests, int peer, Error *err) {
    const MpiWait wait = {log_seconds(), peer};
    while (code == MPI_SUCCESS) {
        int done = 0;
        code = MPI_Testall(n, requests, &done, MPI_STATUSES_IGNORE);
        if (done && code == MPI_SUCCESS) return true;
        if (code == MPI_SUCCESS && !mpi_keep_waiting(group, &wait, err)) return false;
    }
    return mpi_error(group, code, err);
}

int mpi_first_failure(int a, int b) {
    return a != MPI_SUCCESS ? a : b;
}

/* --- operations --- */

static bool all_reduce(CommGroup *group, void *data, size_t count, CommType type, CommOp op, Error *err) {
    const MpiState *state = group->state;
    if (count * comm_type_bytes(type) <= SMALL_BYTES) return mpi_meet(group, data, count, type, op, err);
    comm_share_evenly(count, group->size, state->offsets);
    return mpi_meet(group, NULL, 0, type, op, err) &&
           mpi_go_around(group, data, state->offsets, type, op, 0, 2 * group->size - 2, err);
}

static bool reduce_scatter(CommGroup *group, void *data, const size_t *offsets, CommType type, CommOp op,
                           Error *err) {
    const size_t count = offsets[group->size];
    if (count * comm_type_bytes(type) <= SMALL_BYTES) return mpi_meet(group, data, count, type, op, err);
    return mpi_meet(group, NULL, 0, type, op, err) &&
           mpi_go_around(group, data, offsets, type, op, 0, group->size - 1, err);
}

static bool all_gather(CommGroup *group, void *data, const size_t *offsets, CommType type, Error *err) {
    const size_t element = comm_type_bytes(type), bytes = offsets[group->size] * element;
    if (bytes <= SMALL_BYTES) {
        size_t from = offsets[group->rank] * element, to = offsets[group->rank + 1] * element;
        if (from) memset(data, 0, from);
        if (to < bytes) memset((char *)data + to, 0, bytes - to);
        return mpi_meet(group, data, bytes, COMM_UINT8, COMM_SUM, err);
    }
    return mpi_meet(group, NULL, 0, type, COMM_SUM, err) &&
           mpi_go_around(group, data, offsets, type, COMM_SUM, group->size - 1, 2 * group->size - 2, err);
}

/* As if the root's share were everything. */
static bool broadcast(CommGroup *group, void *data, size_t bytes, int root, Error *err) {
    const MpiState *state = group->state;
    for (int r = 0; r <= group->size; r++) state->offsets[r] = r <= root ? 0 : bytes;
    return all_gather(group, data, state->offsets, COMM_UINT8, err);
}

static bool barrier(CommGroup *group, Error *err) {
    group->algorithm = "doubling";
    return mpi_meet(group, NULL, 0, COMM_UINT8, COMM_SUM, err);
}

/* --- from one rank to another: a header, with the data if it is small, else before its pieces --- */

static size_t piece_of(size_t bytes) {
    return bytes < PIECE_BYTES ? bytes : PIECE_BYTES;
}

static bool send_bytes(CommGroup *group, const void *data, size_t bytes, int to, Error *err) {
    MpiState *state = group->state;
    MPI_Request request;
    const size_t along = bytes <= ALONG_BYTES ? bytes : 0;
    group->algorithm = "pair";
    memcpy(state->out, &group->header, sizeof group->header);
    if (along) memcpy(state->out + sizeof group->header, data, along);
    int code = MPI_Isend(state->out, (int)(sizeof group->header + along), MPI_BYTE, to, TAG_PAIR, state->comm,
                         &request);
    if (!mpi_wait_all(group, code, 1, &request, to, err)) return false;
    for (size_t n, at = along; at < bytes; at += n) {
        n = piece_of(bytes - at);
        code = MPI_Isend((const char *)data + at, (int)n, MPI_BYTE, to, TAG_PAIR_DATA, state->comm, &request);
        if (!mpi_wait_all(group, code, 1, &request, to, err)) return false;
    }
    return true;
}

static bool recv_bytes(CommGroup *group, void *data, size_t bytes, int from, Error *err) {
    MpiState *state = group->state;
    MPI_Request request;
    const size_t along = bytes <= ALONG_BYTES ? bytes : 0;
    group->algorithm = "pair";
    int code = MPI_Irecv(state->in, MESSAGE_BYTES, MPI_BYTE, from, TAG_PAIR, state->comm, &request);
    if (!mpi_wait_all(group, code, 1, &request, from, err)) return false;
    CommHeader theirs, expected = group->header;
    memcpy(&theirs, state->in, sizeof theirs);
    expected.operation = OPERATION_SEND;
    if (memcmp(&theirs, &expected, sizeof expected) != 0)
        return comm_group_mismatch(group, from, &theirs, err);
    if (along) memcpy(data, state->in + sizeof theirs, along);
    for (size_t n, at = along; at < bytes; at += n) {
        n = piece_of(bytes - at);
        code = MPI_Irecv((char *)data + at, (int)n, MPI_BYTE, from, TAG_PAIR_DATA, state->comm, &request);
        if (!mpi_wait_all(group, code, 1, &request, from, err)) return false;
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
    MpiState *state = calloc(1, sizeof *state);
    MPI_Group world;
    CHECK(c && state);
    MPI_Comm_group(MPI_COMM_WORLD, &world);
    MPI_Group_incl(world, group->size, group->world, &c->members);
    c->tag = (int)(group->id % 32768);
    if (!run_creation(group, c, err)) {
        free(state);
        return false;
    }
    *state = (MpiState){.comm = c->comm,
                        .out = malloc(MESSAGE_BYTES),
                        .in = malloc(MESSAGE_BYTES),
                        .stage = malloc((size_t)WINDOW * SEGMENT_BYTES),
                        .offsets = calloc((size_t)group->size + 1, sizeof *state->offsets)};
    CHECK(state->out && state->in && state->stage && state->offsets);
    MPI_Comm_set_errhandler(state->comm, MPI_ERRORS_RETURN);
    MPI_Group_free(&c->members);
    MPI_Group_free(&world);
    free(c);
    group->state = state;
    return true;
}

/* MPI_Comm_free waits for the others: MPI_Finalize does that work. After a failure MPI may still use the buffers. */
static void close_group(CommGroup *group) {
    MpiState *state = group->state;
    if (!state || comm_group_failed(group, NULL)) return;
    free(state->out);
    free(state->in);
    free(state->stage);
    free(state->offsets);
    free(state);
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
