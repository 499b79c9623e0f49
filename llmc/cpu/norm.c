/* norm.c: the sum of squares in double. Blocks of a fixed size are summed by any thread, then added in order. */
#include "cpu/isa.h"
#include "cpu/simd.h"

typedef float vhalf __attribute__((vector_size(2 * VL)));
typedef float vhalf_unaligned __attribute__((vector_size(2 * VL), aligned(4), may_alias));
typedef double vd __attribute__((vector_size(4 * VL)));

static double block_sum(const float *x, size_t n) {
    enum { LANES = VL / 2, STREAMS = 8 };
    vd sum[STREAMS] = {{0}};
    size_t i = 0;
    for (; i + STREAMS * LANES <= n; i += STREAMS * LANES)
        for (size_t k = 0; k < STREAMS; k++) {
            vd wide = __builtin_convertvector((vhalf) * (const vhalf_unaligned *)(x + i + k * LANES), vd);
            sum[k] += wide * wide;
        }
    for (size_t half = STREAMS / 2; half; half /= 2)
        for (size_t k = 0; k < half; k++) sum[k] += sum[k + half];
    double total = 0;
    for (size_t lane = 0; lane < LANES; lane++) total += sum[0][lane];
    for (; i < n; i++) total += (double)x[i] * (double)x[i];
    return total;
}

double KERNEL(sum_of_squares)(const floatX *x, size_t n) {
    const size_t block = 65536;
    size_t blocks = (n + block - 1) / block;
    double *partial = cpu_scratch(SCRATCH_REDUCE, (blocks + 1) * sizeof(double)), total = 0;
#pragma omp parallel for schedule(static) if (blocks > 1)
    for (size_t i = 0; i < blocks; i++)
        partial[i] = block_sum(x + i * block, i + 1 < blocks ? block : n - i * block);
    for (size_t i = 0; i < blocks; i++) total += partial[i];
    return total;
}
