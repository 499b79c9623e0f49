/* stretches.cuh: the second half of a sum over many rows, for the gradients of biases and of LayerNorm. In the first half
 * every block adds up its stretch of rows; here the stretches' sums are added, by many threads and in an order that
 * depends on their number alone. */
#ifndef LLMC_CUDA_STRETCHES_CUH
#define LLMC_CUDA_STRETCHES_CUH
#include "cuda/gpu.h"

namespace stretches_kernels {
enum { THREADS = 32 }; /* for each of the WARP columns of a block */

/* Columns below A go to a, the rest to b. */
static __global__ void __launch_bounds__(WARP *THREADS)
    kernel(floatX *a, size_t A, floatX *b, size_t cols, const float *partial, size_t stretches) {
    SHARED(float, sums, [THREADS][WARP]);
    const size_t column = (size_t)blockIdx.x * WARP + threadIdx.x;
    float sum = 0;
    if (column < cols) {
#pragma unroll 4
        for (size_t s = threadIdx.y; s < stretches; s += THREADS) sum += partial[s * cols + column];
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y || column >= cols) return;
    for (int i = 1; i < THREADS; i++) sum += sums[i][threadIdx.x];
    floatX *to = column < A ? a + column : b + (column - A);
    *to = from_float<floatX>(to_float(*to) + sum);
}
} // namespace stretches_kernels

/* a (A), b (B) += the sums over the stretches of partial (stretches, A + B). */
static void add_stretches(floatX *a, size_t A, floatX *b, size_t B, const float *partial, size_t stretches) {
    using namespace stretches_kernels;
    LAUNCH(kernel, blocks_for(A + B, WARP), dim3(WARP, THREADS), 0, gpu.stream, a, A, b, A + B, partial,
           stretches);
}
#endif
