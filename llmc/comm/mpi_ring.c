/* mpi_ring.c: see comm_mpi.c: reduce-scatter and all-gather around the ring of ranks.
 *
 * Block b starts at rank b + 1, is added to from rank to rank, is complete at rank b after size - 1 steps, and then goes
 * around once more for all to have it. In step t a rank sends block rank - 1 - t and receives block rank - 2 - t, which
 * it sends on in step t + 1; segment by segment, so that steps overlap. */
#include "comm/comm_mpi.h"

#ifdef HAVE_MPI
#include "base/log.h"
#include "comm/mpi_internal.h"

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
    MpiState *state = ring->group->state;
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
        code = mpi_first_failure(code, MPI_Irecv(to, (int)(n * ring->element), MPI_BYTE, before, TAG_DATA,
                                                 state->comm, &in->requests[slot]));
    }
    for (Cursor *c = &out->next; out->begun - out->done < WINDOW && segment_at(c, &first, &n); c->at += n) {
        if (c->step > first_step && !is_past(&in->head, c->step - 1, c->at)) break;
        code = mpi_first_failure(code, MPI_Isend(data + first * ring->element, (int)(n * ring->element),
                                                 MPI_BYTE, next, TAG_DATA, state->comm,
                                                 &out->requests[out->begun++ % WINDOW]));
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

bool mpi_go_around(CommGroup *group, char *data, const size_t *offsets, CommType type, CommOp op,
                   int first_step, int end, Error *err) {
    const MpiState *state = group->state;
    const size_t element = comm_type_bytes(type);
    const int size = group->size, before = (group->rank + size - 1) % size;
    Ring ring = {group, offsets, element, SEGMENT_BYTES / element, end};
    const Cursor sent = {&ring, group->rank, first_step, 0}, received = {&ring, before, first_step, 0};
    Flow in = {.next = received, .head = received}, out = {.next = sent, .head = sent};
    MpiWait wait = {log_seconds(), before};
    group->algorithm = "ring";
    for (;;) {
        bool came, left;
        size_t first, n;
        int code = begin_segments(&ring, &in, &out, first_step, data);
        if (code == MPI_SUCCESS && in.begun == in.done && out.begun == out.done) return true;
        code = mpi_first_failure(code, test_segment(&in, &came));
        code = mpi_first_failure(code, test_segment(&out, &left));
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
        else if (!mpi_keep_waiting(group, &wait, err))
            return false;
    }
}
#endif
