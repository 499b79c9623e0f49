/* peak.c: how fast could a matmul be at most? Multiply-adds on registers alone, on all threads at once.
 *
 * The honest denominator of "MFU" on a CPU: clocks and neighbours change from minute to minute, data sheets do not. */
#include "cpu/isa.h"
#include "cpu/simd.h"
#include <omp.h>

enum { CHAINS = 24, ROUNDS = 10000 };

/* Independent chains hide the latency; every loop over them is unrolled, or they would live in memory. */
static void multiply_add_fp32(void) {
    vf sum[CHAINS], a = v_set1(1.0f), b = v_set1(0.0f);
#pragma GCC unroll 24
    for (int i = 0; i < CHAINS; i++) sum[i] = v_set1((float)i);
    for (int r = 0; r < ROUNDS; r++) {
#pragma GCC unroll 24
        for (int i = 0; i < CHAINS; i++) sum[i] = v_fma(a, sum[i], b);
    }
    volatile float sink = 0;
#pragma GCC unroll 24
    for (int i = 0; i < CHAINS; i++) sink += v_sum(sum[i]);
    (void)sink;
}

#ifdef __AVX512BF16__
static void multiply_add_bf16(void) {
    __m512 sum[CHAINS];
    __m512bh a = (__m512bh)_mm512_set1_epi16(0x3f80), b = (__m512bh)_mm512_setzero_si512();
#pragma GCC unroll 24
    for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_set1_ps((float)i);
    for (int r = 0; r < ROUNDS; r++) {
#pragma GCC unroll 24
        for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_dpbf16_ps(sum[i], a, b);
    }
    volatile float sink = 0;
#pragma GCC unroll 24
    for (int i = 0; i < CHAINS; i++) sink += _mm512_reduce_add_ps(sum[i]);
    (void)sink;
}
enum { BF16_FLOPS = 4 };
#else
#define multiply_add_bf16 multiply_add_fp32
enum { BF16_FLOPS = 2 };
#endif

double KERNEL(device_peak_flops)(Precision precision, double seconds) {
    double begin = omp_get_wtime(), best = 1e30;
    do {
        double start = omp_get_wtime();
#pragma omp parallel
        {
            if (precision == PRECISION_BF16)
                multiply_add_bf16();
            else
                multiply_add_fp32();
        }
        double took = omp_get_wtime() - start;
        if (took < best) best = took;
    } while (omp_get_wtime() - begin < seconds);
    double flops = precision == PRECISION_BF16 ? BF16_FLOPS : 2;
    return (double)cpu_threads * ROUNDS * CHAINS * VL * flops / best;
}
