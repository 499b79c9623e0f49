/* peak.c: how fast could a matmul be at most? Multiply-adds on registers alone, on all threads at once.
 *
 * The honest denominator of "MFU" on a CPU: clocks and neighbours change from minute to minute, data sheets do not. */
#include "cpu/isa.h"
#include "cpu/simd.h"
#include <omp.h>

/* Independent chains hide the latency. Every loop over them is unrolled, or they would live in memory. */
#if VL == 16
enum { CHAINS = 16 };
#else
enum { CHAINS = 12 }; /* of 16 registers */
#endif
enum { ROUNDS = 10000 };

/* Factors that the compiler does not know, so that it has to multiply. */
static volatile float one = 1.0f, zero = 0.0f;

static void multiply_add_fp32(void) {
    vf sum[CHAINS], a = v_set1(one), b = v_set1(zero);
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++) sum[i] = v_set1((float)i);
    for (int r = 0; r < ROUNDS; r++) {
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++) sum[i] = v_fma(a, sum[i], b);
    }
#pragma GCC unroll 16
    for (int i = 1; i < CHAINS; i++) sum[0] = sum[0] + sum[i];
    volatile float sink = v_sum(sum[0]);
    (void)sink;
}

#ifdef __AVX512BF16__
static void multiply_add_bf16(void) {
    vf sum[CHAINS];
    __m512bh a = (__m512bh)v_set1(one), b = (__m512bh)v_set1(zero);
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++) sum[i] = v_set1((float)i);
    for (int r = 0; r < ROUNDS; r++) {
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_dpbf16_ps(sum[i], a, b);
    }
#pragma GCC unroll 16
    for (int i = 1; i < CHAINS; i++) sum[0] = sum[0] + sum[i];
    volatile float sink = v_sum(sum[0]);
    (void)sink;
}
enum { BF16_FLOPS = 4 };
#else
#define multiply_add_bf16 multiply_add_fp32
enum { BF16_FLOPS = 2 };
#endif

/* Every thread keeps its own best, so that waiting for a thread that is not running does not count. */
double KERNEL(device_peak_flops)(Precision precision, double seconds) {
    double flops = (double)ROUNDS * CHAINS * VL * (precision == PRECISION_BF16 ? BF16_FLOPS : 2), total = 0;
#pragma omp parallel reduction(+ : total)
    {
        double begin = omp_get_wtime(), best = 1e30;
        do {
            double start = omp_get_wtime();
            if (precision == PRECISION_BF16)
                multiply_add_bf16();
            else
                multiply_add_fp32();
            double took = omp_get_wtime() - start;
            if (took < best) best = took;
        } while (omp_get_wtime() - begin < seconds);
        total = flops / best;
    }
    return total;
}
