/* comm_checks.h: every operation of a group, checked on every rank against results known beforehand. What it finds wrong
 * goes to stderr; functions return 0, or 1: a rank's exit code (comm_lab.h). */
#ifndef COMM_CHECKS_H
#define COMM_CHECKS_H
#include "base/rng.h"
#include "comm/comm.h"
#include <stdio.h>
#include <string.h>

enum { ELEMENTS_MAX = 200000 };

/* Small whole numbers, so that sums are exact in every type. */
static inline int value(int rank, size_t i) {
    return (int)((i * 7 + (size_t)rank * 13 + (i >> 5)) % 4);
}

static inline void set(void *data, size_t i, CommType type, int v) {
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

static inline bool equals(const void *data, size_t i, CommType type, int v) {
    unsigned char want[4] = {0};
    set(want, 0, type, v);
    return memcmp((const char *)data + i * comm_type_bytes(type), want, comm_type_bytes(type)) == 0;
}

static inline int reduced(int size, size_t i, CommOp op) {
    int all = 0;
    for (int r = 0; r < size; r++) {
        int v = value(r, i);
        all = op == COMM_SUM ? all + v : v > all ? v : all;
    }
    return all;
}

static inline size_t wrong(const void *data, size_t from, size_t to, CommType type, int size, CommOp op) {
    size_t bad = 0;
    for (size_t i = from; i < to; i++) bad += !equals(data, i, type, reduced(size, i, op));
    return bad;
}

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
