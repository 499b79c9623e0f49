/* comm_mpi.c: the backend that moves data with MPI's messages between two ranks. The collectives are made of them here and
 * not by the library: its blocking ones cannot be left when a rank has died, and its non-blocking ones are slower by far.
 *
 * In every collective the ranks first meet: log2(size) exchanges in which they compare what they are about to do, and
 * reduce up to SMALL_BYTES on the way (for a gather or broadcast, everyone adds zeros for what is not its own). More
 * then goes around the ring of ranks in segments, several under way. All calls are non-blocking and tested until they
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
#include <mpi.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TAG_MEET = 1, TAG_DATA, TAG_PAIR, TAG_PAIR_DATA };
enum {
    ALONG_BYTES = 16 << 10, /* of data in the message of a header; and halved only if more */
    SMALL_BYTES = 128 << 10,
    SEGMENT_BYTES = 256 << 10,
    WINDOW = 4,
    PIECE_BYTES = 1 << 20,
    MESSAGE_BYTES = sizeof(CommHeader) + ALONG_BYTES
};

/* While waiting: look, then also give way, then sleep between looks. */
static const double SPIN_SECONDS = 50e-6, YIELD_SECONDS = 5e-3;
static const long NAP_NANOSECONDS = 20000;

typedef struct {
    MPI_Comm comm;
    char *out, *in;  /* (MESSAGE_BYTES) a header, and data along with it */
    char *stage;     /* (WINDOW, SEGMENT_BYTES), or SMALL_BYTES */
    size_t *offsets; /* (size + 1) scratch */
} State;

/* --- waiting --- */

typedef struct {
    double since; /* the last progress */
    int peer;     /* who is waited for */
} Wait;

static bool mpi_error(CommGroup *group, int code, Error *err) {
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(code, text, &length);
    return comm_group_fault(group, -1, text, err);
}

/* Between two looks that found nothing. False: another rank has failed, or the deadline has passed; what is under way is
 * then left alone, since to cancel it could block. */
static bool keep_waiting(CommGroup *group, const Wait *wait, Error *err) {
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

/* Until all requests (n) are done. code: what the calls that made them returned. */
static bool wait_all(CommGroup *group, int code, int n, MPI_Request *requests, int peer, Error *err) {
    const Wait wait = {log_seconds(), peer};
    while (code == MPI_SUCCESS) {
        int done = 0;
        code = MPI_Testall(n, requests, &done, MPI_STATUSES_IGNORE);
        if (done && code == MPI_SUCCESS) return true;
        if (code == MPI_SUCCESS && !keep_waiting(group, &wait, err)) return false;
    }
    return mpi_error(group, code, err);
}

static int first_failure(int a, int b) {
    return a != MPI_SUCCESS ? a : b;
}

/* --- meeting --- */

/* Compares headers with a rank, and swaps data with it; either of out and in may be nothing (0 bytes). */
static bool exchange(CommGroup *group, int peer, const void *out, size_t out_bytes, void *in, size_t in_bytes,
                     Error *err) {
    State *state = group->state;
    MPI_Request headers[2], data[2];
    const size_t size = sizeof(CommHeader), along = out_bytes <= ALONG_BYTES ? out_bytes : 0;
    int n = 0;
    memcpy(state->out, &group->header, size);
    if (along) memcpy(state->out + size, out, along);
    /* whatever the other rank may be in, its message fits */
    int code = MPI_Irecv(state->in, MESSAGE_BYTES, MPI_BYTE, peer, TAG_MEET, state->comm, &headers[0]);
    if (in_bytes > ALONG_BYTES)
        code = first_failure(code,
                             MPI_Irecv(in, (int)in_bytes, MPI_BYTE, peer, TAG_DATA, state->comm, &data[n++]));
    code = first_failure(
        code, MPI_Isend(state->out, (int)(size + along), MPI_BYTE, peer, TAG_MEET, state->comm, &headers[1]));
    if (out_bytes > ALONG_BYTES)
        code = first_failure(
            code, MPI_Isend(out, (int)out_bytes, MPI_BYTE, peer, TAG_DATA, state->comm, &data[n++]));
    if (!wait_all(group, code, 2, headers, peer, err)) return false;
    CommHeader theirs;
    memcpy(&theirs, state->in, size);
    if (memcmp(&theirs, &group->header, size) != 0) return comm_group_mismatch(group, peer, &theirs, err);
    if (in_bytes && in_bytes <= ALONG_BYTES) memcpy(in, state->in + size, in_bytes);
    return !n || wait_all(group, MPI_SUCCESS, n, data, peer, err);
}

/* Elements of the data that a rank still reduces, and the other part of what it had before. */
typedef struct {
    size_t from, to, other_from, other_to;
} Half;

static Half halve(Half h, bool upper) {
    size_t middle = h.from + (h.to - h.from) / 2;
    return upper ? (Half){middle, h.to, h.from, middle} : (Half){h.from, middle, middle, h.to};
}

/* Ranks 0 .. power - 1: reduces half of what the last step left with a rank twice as far away, until each has a part of
 * the result; then the same way back. */
static bool halve_and_double(CommGroup *group, int power, char *data, size_t count, CommType type, CommOp op,
                             Error *err) {
    const State *state = group->state;
    const size_t element = comm_type_bytes(type);
    Half halves[32] = {{.to = count}};
    int depth = 0;
    for (int step = 1; step < power; step *= 2, depth++) {
        Half h = halves[depth + 1] = halve(halves[depth], group->rank & step);
        size_t n = h.to - h.from;
        if (!exchange(group, group->rank ^ step, data + h.other_from * element,
                      (h.other_to - h.other_from) * element, state->stage, n * element, err))
            return false;
        comm_reduce(data + h.from * element, state->stage, n, type, op);
    }
    for (int step = power / 2; step; step /= 2, depth--) {
        Half h = halves[depth];
        if (!exchange(group, group->rank ^ step, data + h.from * element, (h.to - h.from) * element,
                      data + h.other_from * element, (h.other_to - h.other_from) * element, err))
            return false;
    }
    return true;
}

static bool doubling(CommGroup *group, int power, char *data, size_t count, CommType type, CommOp op,
                     Error *err) {
    const State *state = group->state;
    const size_t bytes = count * comm_type_bytes(type);
    for (int step = 1; step < power; step *= 2) {
        if (!exchange(group, group->rank ^ step, data, bytes, state->stage, bytes, err)) return false;
        comm_reduce(data, state->stage, count, type, op);
    }
    return true;
}

/* Compares all headers, and reduces data (count, at most SMALL_BYTES): everyone ends with the same bits. Ranks beyond
 * the largest power of two let another one speak for them. */
static bool meet(CommGroup *group, char *data, size_t count, CommType type, CommOp op, Error *err) {
    const State *state = group->state;
    const size_t bytes = count * comm_type_bytes(type);
    int rank = group->rank, power = 1;
    while (2 * power <= group->size) power *= 2;
    if (rank >= power)
        return exchange(group, rank - power, data, bytes, NULL, 0, err) &&
               exchange(group, rank - power, NULL, 0, data, bytes, err);
    const bool speaks = rank + power < group->size;
    const bool halves = bytes > ALONG_BYTES;
    if (speaks && !exchange(group, rank + power, NULL, 0, state->stage, bytes, err)) return false;
    if (speaks) comm_reduce(data, state->stage, count, type, op);
    if (count) group->algorithm = halves ? "halving" : "doubling";
    bool ok = halves ? halve_and_double(group, power, data, count, type, op, err)
                     : doubling(group, power, data, count, type, op, err);
    return ok && (!speaks || exchange(group, rank + power, data, bytes, NULL, 0, err));
}

/* --- around the ring --- */

/* Block b starts at rank b + 1, is added to from rank to rank, is complete at rank b after size - 1 steps, and then goes
 * around once more for all to have it. In step t a rank sends block rank - 1 - t and receives block rank - 2 - t, which
 * it sends on in step t + 1; segment by segment, so that steps overlap. */
typedef struct {
    const CommGroup *group;
    const size_t *offsets;   /* (size + 1) elements */
    size_t element, segment; /* bytes, elements */
    int end;                 /* steps */
} Ring;

/* A place in the sequence of segments that a rank sends. */
typedef struct {
    const Ring *ring;
    int rank, step;
    size_t at; /* elements into the step's block */
} Cursor;

typedef struct {
    Cursor next, head;            /* to be begun, to be completed */
    unsigned begun, done;         /* segments so far */
    MPI_Request requests[WINDOW]; /* of segment i at i % WINDOW */
} Flow;

/* The segment at the cursor, in elements; passes over empty blocks. False: there are no more. */
static bool segment_at(Cursor *c, size_t *first, size_t *count) {
    const Ring *ring = c->ring;
    for (; c->step < ring->end; c->step++, c->at = 0) {
        int size = ring->group->size, block = ((c->rank - 1 - c->step) % size + size) % size;
        size_t left = ring->offsets[block + 1] - ring->offsets[block] - c->at;
        *first = ring->offsets[block] + c->at;
        *count = left < ring->segment ? left : ring->segment;
        if (left) return true;
    }
    return false;
}

/* Has everything of the step been completed, up to `at` elements of its block? */
static bool is_past(Cursor *c, int step, size_t at) {
    size_t first, count;
    segment_at(c, &first, &count);
    return c->step > step || (c->step == step && c->at > at);
}

/* What was received can be sent on; and a block that comes around again must have left. */
static int begin_segments(Ring *ring, Flow *in, Flow *out, int first_step, char *data) {
    State *state = ring->group->state;
    const int size = ring->group->size, next = (ring->group->rank + 1) % size,
              before = (ring->group->rank + size - 1) % size;
    size_t first, n;
    int code = MPI_SUCCESS;
    for (Cursor *c = &in->next; in->begun - in->done < WINDOW && segment_at(c, &first, &n); c->at += n) {
        bool adds = c->step < size - 1;
        if (!adds && c->step + 1 - size >= first_step && !is_past(&out->head, c->step + 1 - size, SIZE_MAX))
            break;
        unsigned slot = in->begun++ % WINDOW;
        void *to = adds ? state->stage + (size_t)slot * SEGMENT_BYTES : data + first * ring->element;
        code = first_failure(code, MPI_Irecv(to, (int)(n * ring->element), MPI_BYTE, before, TAG_DATA,
                                             state->comm, &in->requests[slot]));
    }
    for (Cursor *c = &out->next; out->begun - out->done < WINDOW && segment_at(c, &first, &n); c->at += n) {
        if (c->step > first_step && !is_past(&in->head, c->step - 1, c->at)) break;
        code = first_failure(code,
                             MPI_Isend(data + first * ring->element, (int)(n * ring->element), MPI_BYTE, next,
                                       TAG_DATA, state->comm, &out->requests[out->begun++ % WINDOW]));
    }
    return code;
}

/* Is the oldest segment on its way through? */
static int test_segment(Flow *flow, bool *done) {
    int flag = 0, code = MPI_SUCCESS;
    if (flow->begun > flow->done)
        code = MPI_Test(&flow->requests[flow->done % WINDOW], &flag, MPI_STATUS_IGNORE);
    *done = flag && code == MPI_SUCCESS;
    return code;
}

/* Steps first_step .. end: [0, size - 1) reduce-scatter, [size - 1, 2 size - 2) all-gather. */
static bool go_around(CommGroup *group, char *data, const size_t *offsets, CommType type, CommOp op,
                      int first_step, int end, Error *err) {
    const State *state = group->state;
    const size_t element = comm_type_bytes(type);
    const int size = group->size, before = (group->rank + size - 1) % size;
    Ring ring = {group, offsets, element, SEGMENT_BYTES / element, end};
    const Cursor sent = {&ring, group->rank, first_step, 0}, received = {&ring, before, first_step, 0};
    Flow in = {.next = received, .head = received}, out = {.next = sent, .head = sent};
    Wait wait = {log_seconds(), before};
    group->algorithm = "ring";
    for (;;) {
        bool came, left;
        size_t first, n;
        int code = begin_segments(&ring, &in, &out, first_step, data);
        if (code == MPI_SUCCESS && in.begun == in.done && out.begun == out.done) return true;
        code = first_failure(code, test_segment(&in, &came));
        code = first_failure(code, test_segment(&out, &left));
        if (code != MPI_SUCCESS) return mpi_error(group, code, err);
        if (came && segment_at(&in.head, &first, &n)) {
            if (in.head.step < size - 1)
                comm_reduce(data + first * element, state->stage + (size_t)(in.done % WINDOW) * SEGMENT_BYTES,
                            n, type, op);
            in.head.at += n;
            in.done++;
        }
        if (left && segment_at(&out.head, &first, &n)) {
            out.head.at += n;
            out.done++;
        }
        if (came || left)
            wait.since = log_seconds();
        else if (!keep_waiting(group, &wait, err))
            return false;
    }
}

/* --- operations --- */

static void share_evenly(const CommGroup *group, size_t count, size_t *offsets) {
    const size_t n = (size_t)group->size;
    for (size_t r = 0; r <= n; r++) offsets[r] = count / n * r + (r < count % n ? r : count % n);
}

static bool all_reduce(CommGroup *group, void *data, size_t count, CommType type, CommOp op, Error *err) {
    const State *state = group->state;
    if (count * comm_type_bytes(type) <= SMALL_BYTES) return meet(group, data, count, type, op, err);
    share_evenly(group, count, state->offsets);
    return meet(group, NULL, 0, type, op, err) &&
           go_around(group, data, state->offsets, type, op, 0, 2 * group->size - 2, err);
}

static bool reduce_scatter(CommGroup *group, void *data, const size_t *offsets, CommType type, CommOp op,
                           Error *err) {
    const size_t count = offsets[group->size];
    if (count * comm_type_bytes(type) <= SMALL_BYTES) return meet(group, data, count, type, op, err);
    return meet(group, NULL, 0, type, op, err) &&
           go_around(group, data, offsets, type, op, 0, group->size - 1, err);
}

static bool all_gather(CommGroup *group, void *data, const size_t *offsets, CommType type, Error *err) {
    const size_t element = comm_type_bytes(type), bytes = offsets[group->size] * element;
    if (bytes <= SMALL_BYTES) {
        size_t from = offsets[group->rank] * element, to = offsets[group->rank + 1] * element;
        if (from) memset(data, 0, from);
        if (to < bytes) memset((char *)data + to, 0, bytes - to);
        return meet(group, data, bytes, COMM_UINT8, COMM_SUM, err);
    }
    return meet(group, NULL, 0, type, COMM_SUM, err) &&
           go_around(group, data, offsets, type, COMM_SUM, group->size - 1, 2 * group->size - 2, err);
}

/* As if the root's share were everything. */
static bool broadcast(CommGroup *group, void *data, size_t bytes, int root, Error *err) {
    const State *state = group->state;
    for (int r = 0; r <= group->size; r++) state->offsets[r] = r <= root ? 0 : bytes;
    return all_gather(group, data, state->offsets, COMM_UINT8, err);
}

static bool barrier(CommGroup *group, Error *err) {
    group->algorithm = "doubling";
    return meet(group, NULL, 0, COMM_UINT8, COMM_SUM, err);
}

/* --- from one rank to another: a header, with the data if it is small, else before its pieces --- */

static size_t piece_of(size_t bytes) {
    return bytes < PIECE_BYTES ? bytes : PIECE_BYTES;
}

static bool send_bytes(CommGroup *group, const void *data, size_t bytes, int to, Error *err) {
    State *state = group->state;
    MPI_Request request;
    const size_t along = bytes <= ALONG_BYTES ? bytes : 0;
    group->algorithm = "pair";
    memcpy(state->out, &group->header, sizeof group->header);
    if (along) memcpy(state->out + sizeof group->header, data, along);
    int code = MPI_Isend(state->out, (int)(sizeof group->header + along), MPI_BYTE, to, TAG_PAIR, state->comm,
                         &request);
    if (!wait_all(group, code, 1, &request, to, err)) return false;
    for (size_t n, at = along; at < bytes; at += n) {
        n = piece_of(bytes - at);
        code = MPI_Isend((const char *)data + at, (int)n, MPI_BYTE, to, TAG_PAIR_DATA, state->comm, &request);
        if (!wait_all(group, code, 1, &request, to, err)) return false;
    }
    return true;
}

static bool recv_bytes(CommGroup *group, void *data, size_t bytes, int from, Error *err) {
    State *state = group->state;
    MPI_Request request;
    const size_t along = bytes <= ALONG_BYTES ? bytes : 0;
    group->algorithm = "pair";
    int code = MPI_Irecv(state->in, MESSAGE_BYTES, MPI_BYTE, from, TAG_PAIR, state->comm, &request);
    if (!wait_all(group, code, 1, &request, from, err)) return false;
    CommHeader theirs, expected = group->header;
    memcpy(&theirs, state->in, sizeof theirs);
    expected.operation = OPERATION_SEND;
    if (memcmp(&theirs, &expected, sizeof expected) != 0)
        return comm_group_mismatch(group, from, &theirs, err);
    if (along) memcpy(data, state->in + sizeof theirs, along);
    for (size_t n, at = along; at < bytes; at += n) {
        n = piece_of(bytes - at);
        code = MPI_Irecv((char *)data + at, (int)n, MPI_BYTE, from, TAG_PAIR_DATA, state->comm, &request);
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
    *state = (State){.comm = c->comm,
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
    State *state = group->state;
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
