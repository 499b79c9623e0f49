/* exact_all_reduce.h: the sum of --reduce exact as one operation on fp32 data, for bench_comm.c: onto grids, the sum in int32
 * and the maxima over all ranks, back. It goes in pieces that stay in a processor's caches between these, each on its way
 * while the next is rounded. The grids are given: training predicts them. */
#ifndef EXACT_ALL_REDUCE_H
#define EXACT_ALL_REDUCE_H
#include "base/log.h"
#include "comm/comm.h"
#include "model/kernels.h"
#include "run/exact_sum.h"
#include <stdlib.h>
#include <string.h>

enum { EXACT_PIECES = 3 }; /* of which one is rounded, one travels, one is read */

typedef struct {
    Comm *comm;
    size_t piece; /* elements */
    int32_t *sums;
    uint8_t *levels, *most;
    double *squares;
} ExactAllReduce;

static inline bool exact_all_reduce_open(ExactAllReduce *e, Comm *comm, size_t count_max, Error *err) {
    enum { LEVEL = 127 + 8 }; /* the bench's numbers are below 2^8 */
    const DeviceConfig device = {.threads = 1};
    size_t blocks = count_max / EXACT_BLOCK + 1;
    *e = (ExactAllReduce){.comm = comm, .piece = 1024 * EXACT_BLOCK};
    if (!device_open(&device, err)) return false;
    e->sums = comm_alloc(comm, EXACT_PIECES * e->piece * sizeof *e->sums, err);
    e->most = e->sums ? comm_alloc(comm, blocks, err) : NULL;
    if (!e->most) return false;
    e->levels = malloc(blocks);
    e->squares = malloc(blocks * sizeof *e->squares);
    if (!e->levels || !e->squares) return error_set(err, "no memory for %zu blocks", blocks);
    memset(e->levels, LEVEL, blocks);
    return true;
}

static inline void exact_all_reduce_close(ExactAllReduce *e) {
    free(e->levels);
    free(e->squares);
}

static inline bool exact_all_reduce(ExactAllReduce *e, float *data, size_t count, Error *err) {
    CommRequest requests[EXACT_PIECES] = {0};
    const int bits = exact_bits(comm_size(e->comm));
    const size_t pieces = (count + e->piece - 1) / e->piece, blocks = (count + EXACT_BLOCK - 1) / EXACT_BLOCK;
    for (size_t k = 0; k <= pieces; k++) {
        size_t at = k * e->piece, block = at / EXACT_BLOCK;
        if (k < pieces) {
            size_t n = count - at < e->piece ? count - at : e->piece;
            int32_t *sums = e->sums + k % EXACT_PIECES * e->piece;
            exact_add(sums, data + at, e->most + block, e->levels + block, n, bits, true);
            requests[k % EXACT_PIECES] = comm_all_reduce(e->comm, sums, n, COMM_INT32, COMM_SUM);
        }
        if (k > 0) {
            size_t before = (k - 1) % EXACT_PIECES, n = count - (at - e->piece);
            if (!comm_wait(e->comm, requests[before], err)) return false;
            at -= e->piece, block -= e->piece / EXACT_BLOCK;
            exact_read(data + at, e->squares + block, e->sums + before * e->piece, e->levels + block,
                       n < e->piece ? n : e->piece, bits);
        }
    }
    if (!comm_wait(e->comm, comm_all_reduce(e->comm, e->most, blocks, COMM_UINT8, COMM_MAX), err))
        return false;
    return exact_judge(e->most, e->levels, blocks) == EXACT_FITS ||
           error_set(err, "the grids do not hold the data");
}
#endif
