/* attention_product.h: products of small matrices that lie in L1 or L2, for attention.c: no packing, sums in registers.
 *
 * A tile is ROWS x 2 vectors of sums: 24 registers of 32, or 12 of 16. */
#ifndef LLMC_ATTENTION_PRODUCT_H
#define LLMC_ATTENTION_PRODUCT_H
#include "cpu/simd.h"
#include <stdbool.h>

#if VL == 16 || (defined(__ARM_NEON) && !defined(ISA_PORTABLE))
enum { ROWS = 12 };
#else
enum { ROWS = 6 };
#endif
enum { WIDE = 2 * VL }; /* columns of a tile */

/* Where the processor multiplies pairs of bf16, a word may be two neighbours along the sum instead of a float; depth and
 * strides count words. */
#ifdef __AVX512BF16__
enum { HAVE_PAIRS = 1 };
#else
enum { HAVE_PAIRS = 0 };
#endif
SIMD vf multiply_add(vf a, vf b, vf sum, bool pairs) {
#ifdef __AVX512BF16__
    if (pairs) return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#endif
    (void)pairs;
    return v_fma(a, b, sum);
}

/* A matrix as the left factor: element (i, k) at data[i * stride + k], or at data[k * stride + i] if transposed. */
typedef struct {
    const float *data;
    size_t stride;
    bool transposed, pairs;
} LeftFactor;

SIMD void product_tile(float *c, size_t c_stride, const float *a, size_t a_stride, bool transposed,
                       const float *b, size_t b_stride, size_t depth, bool add, int rows, int vectors,
                       bool pairs) {
    vf sum[ROWS][2];
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vectors; j++) sum[i][j] =
        add ? v_load(c + (size_t)i * c_stride + j * VL) : (vf){0};
    const float *a3 = a + 3 * a_stride, *a6 = a + 6 * a_stride, *a9 = a + 9 * a_stride;
    for (size_t k = 0; k < depth; k++) {
        vf right[2];
        UNROLL for (int j = 0; j < vectors; j++) right[j] = v_load(b + j * VL);
        UNROLL for (int i = 0; i < rows; i++) {
            const float *third = i < 3   ? a
                                 : i < 6 ? a3
                                 : i < 9 ? a6
                                         : a9; /* few registers hold all the rows' addresses */
            vf left = v_set1(transposed ? a[i] : third[(size_t)(i % 3) * a_stride]);
            UNROLL for (int j = 0; j < vectors; j++) sum[i][j] =
                multiply_add(left, right[j], sum[i][j], pairs);
        }
        b += b_stride;
        if (transposed)
            a += a_stride;
        else
            a++, a3++, a6++, a9++;
    }
    UNROLL for (int i = 0; i < rows; i++) UNROLL for (int j = 0; j < vectors; j++)
        v_store(c + (size_t)i * c_stride + j * VL, sum[i][j]);
}

#define PRODUCT_TILE_AS(rows, vectors, transposed, pairs)                                                    \
    product_tile(c, c_stride, a.data, a.stride, transposed, b, b_stride, depth, add, rows, vectors, pairs)
#define PRODUCT_TILE(rows, vectors)                                                                          \
    do {                                                                                                     \
        if (HAVE_PAIRS && a.pairs && a.transposed)                                                           \
            PRODUCT_TILE_AS(rows, vectors, true, true);                                                      \
        else if (HAVE_PAIRS && a.pairs)                                                                      \
            PRODUCT_TILE_AS(rows, vectors, false, true);                                                     \
        else if (a.transposed)                                                                               \
            PRODUCT_TILE_AS(rows, vectors, true, false);                                                     \
        else                                                                                                 \
            PRODUCT_TILE_AS(rows, vectors, false, false);                                                    \
    } while (0)

static __attribute__((noinline)) void product_wide(float *c, size_t c_stride, LeftFactor a, const float *b,
                                                   size_t b_stride, size_t rows, size_t depth, bool add) {
    switch (rows) {
    case ROWS: PRODUCT_TILE(ROWS, 2); break;
#if VL == 16 || (defined(__ARM_NEON) && !defined(ISA_PORTABLE))
    case 8: PRODUCT_TILE(8, 2); break;
#endif
    case 4: PRODUCT_TILE(4, 2); break;
    default: PRODUCT_TILE(1, 2); break;
    }
}
static __attribute__((noinline)) void product_narrow(float *c, size_t c_stride, LeftFactor a, const float *b,
                                                     size_t b_stride, size_t rows, size_t depth, bool add) {
    switch (rows) {
    case ROWS: PRODUCT_TILE(ROWS, 1); break;
    case 4: PRODUCT_TILE(4, 1); break;
    default: PRODUCT_TILE(1, 1); break;
    }
}

/* c (rows, cols at c_stride) = a b, or += a b; b (depth, cols at b_stride); cols is a multiple of VL. */
static void product(float *c, size_t c_stride, LeftFactor a, const float *b, size_t b_stride, size_t rows,
                    size_t cols, size_t depth, bool add) {
    while (rows) {
        size_t n = rows >= ROWS ? ROWS : rows >= 8 && ROWS > 8 ? 8 : rows >= 4 ? 4 : 1, j = 0;
        for (; j + WIDE <= cols; j += WIDE) product_wide(c + j, c_stride, a, b + j, b_stride, n, depth, add);
        size_t narrow = n == 8 ? 4 : n;
        for (size_t i = 0; i < n && j < cols; i += narrow) {
            LeftFactor part = a;
            part.data += i * (a.transposed ? 1 : a.stride);
            product_narrow(c + i * c_stride + j, c_stride, part, b + j, b_stride, narrow, depth, add);
        }
        c += n * c_stride;
        a.data += n * (a.transposed ? 1 : a.stride);
        rows -= n;
    }
}
#endif
