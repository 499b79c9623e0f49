/* exact.cuh: gradients on grids, whose sums do not depend on any order: the arithmetic behind --reduce exact, and
 * gradients in bf16 for the wire. A warp per block of EXACT_BLOCK elements.
 *
 * What always holds: scaling is by powers of two and so exact; rounding is to nearest even; a sum never leaves int32,
 * since every term is held below 2^bits and bits leaves room for all of them. */
#ifndef LLMC_CUDA_EXACT_CUH
#define LLMC_CUDA_EXACT_CUH
#include "cuda/gpu.h"
#include "model/kernels.h"

namespace exact {
enum { WARPS = 8 };

/* 2^exponent, -126 .. 127. */
__device__ inline float power_of_two(int exponent) {
    return float_from_bits((uint32_t)(exponent + 127) << 23);
}
/* Values of a block are below 2^this. Lower levels would need steps that are not normal numbers. */
__device__ inline int ceiling(uint8_t level) {
    const int level_min = 32;
    return (level > level_min ? level : level_min) - 126;
}

static __global__ void add_kernel(int32_t *sums, floatX *g, uint8_t *most, const uint8_t *levels, size_t n,
                                  int bits, bool first) {
    size_t block = (size_t)blockIdx.x * WARPS + (size_t)warp_id(), from = block * EXACT_BLOCK;
    if (from >= n) return;
    float scale = power_of_two(bits - ceiling(levels[block])), limit = power_of_two(bits);
    int largest = 0;
    for (size_t i = from + (size_t)lane_id(); i < n && i < from + EXACT_BLOCK; i += WARP) {
        float x = to_float(g[i]);
        int q = __float2int_rn(fminf(fmaxf(x * scale, -limit), limit));
        largest = max(largest, (int)(bits_from_float(x) & 0x7fffffff));
        sums[i] = first ? q : sums[i] + q;
        g[i] = from_float<floatX>(0);
    }
    for (int half = WARP / 2; half; half /= 2)
        largest = max(largest, __shfl_xor_sync(ALL_LANES, largest, half));
    if (lane_id() == 0) {
        uint8_t needed = (uint8_t)(largest >> 23);
        most[block] = first || needed > most[block] ? needed : most[block];
    }
}

static __global__ void read_kernel(floatX *g, double *squares, const int32_t *sums, const uint8_t *levels,
                                   size_t n, int bits) {
    size_t block = (size_t)blockIdx.x * WARPS + (size_t)warp_id(), from = block * EXACT_BLOCK;
    if (from >= n) return;
    float step = power_of_two(ceiling(levels[block]) - bits);
    double sum = 0;
    for (size_t i = from + (size_t)lane_id(); i < n && i < from + EXACT_BLOCK; i += WARP) {
        floatX x = from_float<floatX>((float)sums[i] * step);
        g[i] = x;
        sum = fma((double)to_float(x), (double)to_float(x), sum);
    }
    sum = warp_sum(sum);
    if (lane_id() == 0) squares[block] = sum;
}

/* As the CPU does it: a NaN keeps what fits of its bits. */
static __global__ void to_wire_kernel(uint16_t *to, const floatX *from, size_t n) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float x = to_float(from[i]);
    uint32_t bits = bits_from_float(x);
    to[i] = isnan(x) ? (uint16_t)(bits >> 16 | 0x40) : bf16_from_float(x).bits;
}
static __global__ void from_wire_kernel(floatX *to, const uint16_t *from, size_t n) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) to[i] = from_float<floatX>(float_from_bits((uint32_t)from[i] << 16));
}
} // namespace exact

void exact_add(int32_t *sums, floatX *g, uint8_t *most, const uint8_t *levels, size_t n, int bits,
               bool first) {
    LAUNCH(exact::add_kernel, blocks_for(n, EXACT_BLOCK * exact::WARPS), exact::WARPS * WARP, 0, gpu.stream,
           sums, g, most, levels, n, bits, first);
}

void exact_read(floatX *g, double *squares, const int32_t *sums, const uint8_t *levels, size_t n, int bits) {
    LAUNCH(exact::read_kernel, blocks_for(n, EXACT_BLOCK * exact::WARPS), exact::WARPS * WARP, 0, gpu.stream,
           g, squares, sums, levels, n, bits);
}

void bf16_from_floats(uint16_t *out, const floatX *x, size_t n) {
    LAUNCH(exact::to_wire_kernel, blocks_for(n, 256), 256, 0, gpu.stream, out, x, n);
}

void bf16_to_floats(floatX *x, const uint16_t *in, size_t n) {
    LAUNCH(exact::from_wire_kernel, blocks_for(n, 256), 256, 0, gpu.stream, x, in, n);
}
#endif
