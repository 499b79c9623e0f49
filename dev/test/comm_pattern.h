/* comm_pattern.h: what the ranks of a test put into buffers, and what must then be in them: small whole numbers, so that
 * sums over up to 40 ranks are exact in every type. They repeat every PATTERN elements, so that long buffers are filled
 * and compared a pattern at a time; that is no size which algorithms cut data into. */
#ifndef COMM_PATTERN_H
#define COMM_PATTERN_H
#include "comm/comm.h"
#include <string.h>

enum { PATTERN = 77 };

static inline int pattern_value(int rank, size_t i) {
    return (int)((i * 5 + (size_t)rank * 13 + i / 11 * (size_t)(rank + 1)) % 7);
}

static inline void pattern_put(void *data, size_t i, CommType type, int v) {
    float f = (float)v;
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    switch (type) {
    case COMM_FP32: ((float *)data)[i] = f; return;
    case COMM_BF16: ((uint16_t *)data)[i] = (uint16_t)(bits >> 16); return;
    case COMM_INT32: ((int32_t *)data)[i] = v; return;
    case COMM_UINT8: ((uint8_t *)data)[i] = (uint8_t)v; return;
    }
}

/* The ranks first, first + stride, ...: n of them. */
typedef struct {
    int first, stride, n;
} PatternRanks;

/* Element i of what they reduce; of one rank: its own value. */
static inline int pattern_reduced(size_t i, CommOp op, PatternRanks ranks) {
    int y = 0;
    for (int k = 0; k < ranks.n; k++) {
        int x = pattern_value(ranks.first + k * ranks.stride, i);
        y = op == COMM_SUM ? y + x : x > y ? x : y;
    }
    return y;
}

/* A rank's data (n): element i is its value number i + shift. */
static inline void pattern_fill(void *data, size_t n, CommType type, int rank, size_t shift) {
    size_t each = comm_type_bytes(type), done = n < PATTERN ? n : PATTERN;
    for (size_t i = 0; i < done; i++) pattern_put(data, i, type, pattern_value(rank, i + shift));
    for (size_t more; done < n; done += more) {
        more = done < n - done ? done / PATTERN * PATTERN : n - done;
        memcpy((char *)data + done * each, data, more * each);
    }
}

/* The first element of data[from .. to) that is not the reduction of what the ranks filled in with this shift; `to`: all
 * are. */
static inline size_t pattern_wrong(const void *data, size_t from, size_t to, CommType type, CommOp op,
                                   PatternRanks ranks, size_t shift) {
    unsigned char wanted[PATTERN * 4];
    const char *bytes = data;
    size_t each = comm_type_bytes(type);
    for (size_t i = 0; i < PATTERN; i++)
        pattern_put(wanted, i, type, pattern_reduced(from + i + shift, op, ranks));
    for (size_t at = from; at < to; at += PATTERN) {
        size_t n = to - at < PATTERN ? to - at : PATTERN;
        if (!memcmp(bytes + at * each, wanted, n * each)) continue;
        size_t i = 0;
        while (!memcmp(bytes + (at + i) * each, wanted + i * each, each)) i++;
        return at + i;
    }
    return to;
}
#endif
