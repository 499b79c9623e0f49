/* mpi_meet.c: see comm_mpi.c: log2(size) exchanges of headers between two ranks, with data along if it is small. */
#include "comm/comm_mpi.h"

#ifdef HAVE_MPI
#include "comm/mpi_internal.h"
#include <string.h>

/* Compares headers with a rank, and swaps data with it; either of out and in may be nothing (0 bytes). */
static bool exchange(CommGroup *group, int peer, const void *out, size_t out_bytes, void *in, size_t in_bytes,
                     Error *err) {
    MpiState *state = group->state;
    MPI_Request headers[2], data[2];
    const size_t size = sizeof(CommHeader), along = out_bytes <= ALONG_BYTES ? out_bytes : 0;
    int n = 0;
    memcpy(state->out, &group->header, size);
    if (along) memcpy(state->out + size, out, along);
    /* whatever the other rank may be in, its message fits */
    int code = MPI_Irecv(state->in, MESSAGE_BYTES, MPI_BYTE, peer, TAG_MEET, state->comm, &headers[0]);
    if (in_bytes > ALONG_BYTES)
        code = mpi_first_failure(
            code, MPI_Irecv(in, (int)in_bytes, MPI_BYTE, peer, TAG_DATA, state->comm, &data[n++]));
    code = mpi_first_failure(
        code, MPI_Isend(state->out, (int)(size + along), MPI_BYTE, peer, TAG_MEET, state->comm, &headers[1]));
    if (out_bytes > ALONG_BYTES)
        code = mpi_first_failure(
            code, MPI_Isend(out, (int)out_bytes, MPI_BYTE, peer, TAG_DATA, state->comm, &data[n++]));
    if (!mpi_wait_all(group, code, 2, headers, peer, err)) return false;
    CommHeader theirs;
    memcpy(&theirs, state->in, size);
    if (memcmp(&theirs, &group->header, size) != 0) return comm_group_mismatch(group, peer, &theirs, err);
    if (in_bytes && in_bytes <= ALONG_BYTES) memcpy(in, state->in + size, in_bytes);
    return !n || mpi_wait_all(group, MPI_SUCCESS, n, data, peer, err);
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
    const MpiState *state = group->state;
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
    const MpiState *state = group->state;
    const size_t bytes = count * comm_type_bytes(type);
    for (int step = 1; step < power; step *= 2) {
        if (!exchange(group, group->rank ^ step, data, bytes, state->stage, bytes, err)) return false;
        comm_reduce(data, state->stage, count, type, op);
    }
    return true;
}

/* Ranks beyond the largest power of two let another one speak for them. */
bool mpi_meet(CommGroup *group, char *data, size_t count, CommType type, CommOp op, Error *err) {
    const MpiState *state = group->state;
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
#endif
