/* comm_checks.h: every operation of a group, checked on every rank against results known beforehand. What it finds wrong
 * goes to stderr; functions return 0, or 1: a rank's exit code (comm_lab.h). */
#ifndef COMM_CHECKS_H
#define COMM_CHECKS_H
#include "base/rng.h"
#include "comm/comm.h"
#include "comm_pattern.h"
#include <stdio.h>
#include <string.h>

enum { ELEMENTS_MAX = 200000 };

/* Uneven shares, some of them empty. */
static inline void make_offsets(size_t *offsets, int size, size_t count, uint64_t seed) {
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

static inline int check_collectives(Comm *comm, size_t count, CommType type, CommOp op) {
    static char data[ELEMENTS_MAX * 4 + 64];
    static size_t offsets[128];
    Error err;
    int rank = comm_rank(comm), size = comm_size(comm);
    const PatternRanks all = {0, 1, size};
    make_offsets(offsets, size, count, count);
    pattern_fill(data, count, type, rank, 0);
    RANK_CHECK(comm_wait(comm, comm_all_reduce(comm, data, count, type, op), &err), "%s\n", err.text);
    RANK_CHECK(pattern_wrong(data, 0, count, type, op, all, 0) == count,
               "all_reduce of %zu, type %d, op %d is wrong at %zu\n", count, (int)type, (int)op,
               pattern_wrong(data, 0, count, type, op, all, 0));
    pattern_fill(data, count, type, rank, 0);
    RANK_CHECK(comm_wait(comm, comm_reduce_scatter(comm, data, offsets, type, op), &err), "%s\n", err.text);
    RANK_CHECK(pattern_wrong(data, offsets[rank], offsets[rank + 1], type, op, all, 0) == offsets[rank + 1],
               "reduce_scatter of %zu, type %d is wrong\n", count, (int)type);
    for (size_t i = 0; i < count; i++)
        if (i < offsets[rank] || i >= offsets[rank + 1]) pattern_put(data, i, type, 99);
    RANK_CHECK(comm_wait(comm, comm_all_gather(comm, data, offsets, type), &err), "%s\n", err.text);
    RANK_CHECK(pattern_wrong(data, 0, count, type, op, all, 0) == count,
               "all_gather of %zu, type %d is wrong\n", count, (int)type);
    int root = (int)(count % (size_t)size);
    pattern_fill(data, count, type, 7, 0);
    for (size_t i = 0; i < count && rank != root; i++) pattern_put(data, i, type, 99);
    RANK_CHECK(comm_wait(comm, comm_broadcast(comm, data, count * comm_type_bytes(type), root), &err), "%s\n",
               err.text);
    RANK_CHECK(pattern_wrong(data, 0, count, type, op, (PatternRanks){7, 1, 1}, 0) == count,
               "broadcast of %zu is wrong\n", count);
    RANK_CHECK(comm_barrier(comm, &err), "%s\n", err.text);
    return 0;
}

static inline int check_pairs(Comm *comm, size_t bytes) {
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
#endif
