/* gemm_kernel.h: the innermost part of a matmul: one tile of MR x NR sums held in registers.
 *
 * It reads packed words. A word is a float, or in bf16 on processors that multiply pairs two bf16 of neighbouring k;
 * a step is one word of every row. Chunks of VL steps are unrolled; panels end on whole chunks, filled with zeros.
 *   B panel: [step][NR].   A panel: [chunk][MR][VL] if A is along_k (so that packing it needs no transpose: the kernel
 *   broadcasts single words and does not mind where they lie), else [step][MR].
 * MR x NR fills the registers: 24 accumulators of 32, or 12 of 16. 8 x 48 divides every matrix of GPT-2. */
#ifndef LLMC_GEMM_KERNEL_H
#define LLMC_GEMM_KERNEL_H
#include "cpu/simd.h"
#include <stdbool.h>

#if VL == 16 || (defined(__ARM_NEON) && !defined(ISA_PORTABLE))
enum { MR = 8, NV = 3 };
#else
enum { MR = 6, NV = 2 };
#endif
enum { NR = NV * VL, LINE = 64, UNROLL_STEPS = 4 };

/* How operands are packed: as they are, rounded to bf16 but stored as floats, or as pairs of bf16. */
typedef enum { WORDS_FP32, WORDS_ROUNDED, WORDS_PAIRS } GemmWords;

/* One tile: c (MR,NR at c_stride) = A BT + add + bias. add has c's stride; add and bias may be NULL.
 * Two kinds of memory are prefetched on the way, a little in every chunk, as a burst would hold up the loads of b:
 * touch: what the store of the tile reads and writes, touch_rows / MR matrices of c's shape, touch_stride apart;
 * ahead: what will be packed soon; one line of each run per chunk, ahead_step bytes apart. */
enum { AHEAD = 3, TOUCH = 3 };
typedef struct {
    const float *a, *b;
    size_t chunks;
    float *c;
    const float *add, *bias;
    size_t c_stride;
    const float *touch[TOUCH];
    size_t touch_rows, touch_stride;
    const char *ahead[AHEAD];
    size_t ahead_step;
} GemmTile;

SIMD vf gemm_multiply_add(vf a, vf b, vf sum, bool pairs) {
#ifdef __AVX512BF16__
    if (pairs) return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    (void)pairs;
#endif
    return v_fma(a, b, sum);
}

SIMD void gemm_kernel(const GemmTile *t, bool a_along_k, bool pairs) {
    const float *a = t->a, *b = t->b;
    const char *ahead[AHEAD] = {t->ahead[0], t->ahead[1], t->ahead[2]};
    vf sum[MR][NV];
    UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < NV; j++) sum[i][j] = (vf){0};
    for (size_t chunk = 0; chunk < t->chunks; chunk++) {
        if (chunk < t->touch_rows) {
            const float *row = t->touch[chunk / MR] + chunk % MR * t->touch_stride;
            UNROLL for (size_t j = 0; j < NR; j += LINE / sizeof(float)) __builtin_prefetch(row + j, 1);
        }
        UNROLL for (int p = 0; p < AHEAD; p++) {
            __builtin_prefetch(ahead[p], 0, 2);
            ahead[p] += t->ahead_step;
        }
        for (int steps = 0; steps < VL; steps += UNROLL_STEPS) {
            UNROLL for (int u = 0; u < UNROLL_STEPS; u++) {
                vf row[NV];
                UNROLL for (int j = 0; j < NV; j++) row[j] = v_load(b + u * NR + j * VL);
                UNROLL for (int i = 0; i < MR; i++) {
                    vf word = v_set1(a_along_k ? a[i * VL + u] : a[u * MR + i]);
                    UNROLL for (int j = 0; j < NV; j++) sum[i][j] =
                        gemm_multiply_add(word, row[j], sum[i][j], pairs);
                }
            }
            a += a_along_k ? UNROLL_STEPS : UNROLL_STEPS * MR;
            b += UNROLL_STEPS * NR;
        }
        if (a_along_k) a += (MR - 1) * VL;
    }
    if (t->bias)
        UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < NV; j++) sum[i][j] +=
            v_load(t->bias + j * VL);
    if (t->add)
        UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < NV; j++) sum[i][j] +=
            v_load(t->add + (size_t)i * t->c_stride + j * VL);
    UNROLL for (int i = 0; i < MR; i++) UNROLL for (int j = 0; j < NV; j++)
        v_store(t->c + (size_t)i * t->c_stride + j * VL, sum[i][j]);
}

typedef void GemmKernel(const GemmTile *tile);
static void gemm_kernel_rows(const GemmTile *t) {
    gemm_kernel(t, true, false);
}
static void gemm_kernel_steps(const GemmTile *t) {
    gemm_kernel(t, false, false);
}
#ifdef __AVX512BF16__
static void gemm_kernel_rows_pairs(const GemmTile *t) {
    gemm_kernel(t, true, true);
}
static void gemm_kernel_steps_pairs(const GemmTile *t) {
    gemm_kernel(t, false, true);
}
#endif

static GemmKernel *gemm_kernel_choose(bool a_along_k, GemmWords words) {
#ifdef __AVX512BF16__
    if (words == WORDS_PAIRS) return a_along_k ? gemm_kernel_rows_pairs : gemm_kernel_steps_pairs;
#endif
    (void)words;
    return a_along_k ? gemm_kernel_rows : gemm_kernel_steps;
}
#endif
