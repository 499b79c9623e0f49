/* shm_reduce.c: see shm_reduce.h. Each line of memory is read once and written once. The sum of fp32 goes through
 * registers, a cache line at a time across all buffers; everything else in blocks that stay in the first-level cache: a
 * block of every buffer is reduced into one, which is then written to every buffer. */
#include "comm/shm_reduce.h"
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

enum { BLOCK = 1024 }; /* elements */

static float fp32_of_bf16(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

static uint16_t bf16_of_fp32(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint32_t nan = (bits & 0x7fffffff) > 0x7f800000; /* stays one, made quiet */
    return (uint16_t)(nan ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#define SAME(x) (x)
/* int32 wraps round, as on every processor. */
#define ADD_INT32(a, b) ((int32_t)((uint32_t)(a) + (uint32_t)(b)))
#define ADD_UINT8(a, b) ((uint8_t)((a) + (b)))
#define ADD_FP32(a, b)  ((a) + (b))
#define MAX_INT(a, b)   ((a) < (b) ? (b) : (a))
#define MAX_FP32(a, b)  ((a) < (b) || (b) != (b) ? (b) : (a)) /* NaN wins, as in comm_reduce */

/* sum (n) = from[0] op from[1] op ..., elements at .. at + n; Sum is the type of the sums, load makes one of a
 * Type. */
#define REDUCE_BLOCK(name, Type, Sum, load, add, max)                                                        \
    static void name(Sum *restrict sum, const void *const *from, int num_from, size_t at, size_t n,          \
                     CommOp op) {                                                                            \
        const Type *first = (const Type *)from[0] + at;                                                      \
        for (size_t i = 0; i < n; i++) sum[i] = load(first[i]);                                              \
        for (int r = 1; r < num_from; r++) {                                                                 \
            const Type *restrict x = (const Type *)from[r] + at;                                             \
            if (op == COMM_SUM)                                                                              \
                for (size_t i = 0; i < n; i++) sum[i] = add(sum[i], load(x[i]));                             \
            else                                                                                             \
                for (size_t i = 0; i < n; i++) sum[i] = max(sum[i], load(x[i]));                             \
        }                                                                                                    \
    }
REDUCE_BLOCK(reduce_fp32, float, float, SAME, ADD_FP32, MAX_FP32)
REDUCE_BLOCK(reduce_bf16, uint16_t, float, fp32_of_bf16, ADD_FP32, MAX_FP32)
REDUCE_BLOCK(reduce_int32, int32_t, int32_t, SAME, ADD_INT32, MAX_INT)
REDUCE_BLOCK(reduce_uint8, uint8_t, uint8_t, SAME, ADD_UINT8, MAX_INT)

/* Unaligned, and of memory that has other types elsewhere. */
typedef float Quad __attribute__((vector_size(16), aligned(4), may_alias));
enum { LINE = 16 }; /* floats */

/* Elements 0 .. n, a multiple of LINE. */
static void add_lines(void *const *to, int num_to, const void *const *from, int num_from, size_t n) {
    for (size_t at = 0; at < n; at += LINE) {
        const Quad *x = (const Quad *)((const float *)from[0] + at);
        Quad a = x[0], b = x[1], c = x[2], d = x[3];
        for (int r = 1; r < num_from; r++) {
            x = (const Quad *)((const float *)from[r] + at);
            a += x[0], b += x[1], c += x[2], d += x[3];
        }
        for (int r = 0; r < num_to; r++) {
            Quad *y = (Quad *)((float *)to[r] + at);
            y[0] = a, y[1] = b, y[2] = c, y[3] = d;
        }
    }
}

void shm_reduce(void *const *to, int num_to, const void *const *from, int num_from, size_t n, CommType type,
                CommOp op) {
    const size_t bytes = comm_type_bytes(type);
    union {
        float fp32[BLOCK];
        int32_t int32[BLOCK];
        uint8_t uint8[BLOCK];
    } sum;
    uint16_t rounded[BLOCK];
    size_t added = type == COMM_FP32 && op == COMM_SUM ? n / LINE * LINE : 0;
    add_lines(to, num_to, from, num_from, added);
    for (size_t at = added; at < n; at += BLOCK) {
        size_t m = n - at < BLOCK ? n - at : BLOCK;
        const void *result = &sum;
        switch (type) {
        case COMM_FP32: reduce_fp32(sum.fp32, from, num_from, at, m, op); break;
        case COMM_INT32: reduce_int32(sum.int32, from, num_from, at, m, op); break;
        case COMM_UINT8: reduce_uint8(sum.uint8, from, num_from, at, m, op); break;
        case COMM_BF16:
            reduce_bf16(sum.fp32, from, num_from, at, m, op);
            for (size_t i = 0; i < m; i++) rounded[i] = bf16_of_fp32(sum.fp32[i]);
            result = rounded;
            break;
        }
        for (int r = 0; r < num_to; r++) memcpy((char *)to[r] + at * bytes, result, m * bytes);
    }
}

#ifdef __SSE2__
/* Past the caches, for lines that are not read first would otherwise be fetched from memory to be overwritten. */
static void copy_past_caches(char *to, const char *from, size_t bytes) {
    size_t head = (16 - (uintptr_t)to % 16) % 16;
    if (head > bytes) head = bytes;
    memcpy(to, from, head);
    size_t at = head;
    for (; at + 16 <= bytes; at += 16)
        _mm_stream_si128((void *)(to + at), _mm_loadu_si128((const void *)(from + at)));
    memcpy(to + at, from + at, bytes - at);
}
static void copies_done(void) {
    _mm_sfence();
}
#else
static void copy_past_caches(char *to, const char *from, size_t bytes) {
    memcpy(to, from, bytes);
}
static void copies_done(void) {}
#endif

void shm_copy(void *const *to, int num_to, const void *from, size_t bytes) {
    const size_t block = 16 << 10;
    for (size_t at = 0; at < bytes; at += block) {
        size_t m = bytes - at < block ? bytes - at : block;
        for (int r = 0; r < num_to; r++) copy_past_caches((char *)to[r] + at, (const char *)from + at, m);
    }
    copies_done();
}
