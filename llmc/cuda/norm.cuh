/* norm.cuh: the sum of squares in double. A block adds up a stretch of fixed length; which thread adds which elements
 * does not depend on how they are aligned; the stretches' sums are added in order by one block. */
#ifndef LLMC_CUDA_NORM_CUH
#define LLMC_CUDA_NORM_CUH
#include "cuda/gpu.h"
#include "model/kernels.h"

namespace norm_kernels {
enum { THREADS = 256, EACH = 8, STRETCH = THREADS * EACH * 16 };

static __global__ void stretch_kernel(double *partial, const floatX *x, size_t n, bool wide) {
    size_t first = (size_t)blockIdx.x * STRETCH, end = first + STRETCH < n ? first + STRETCH : n;
    double sum = 0;
    for (size_t at = first + threadIdx.x * EACH; at < end; at += THREADS * EACH) {
        if (wide && at + EACH <= end) {
            Packed<float, EACH> v = load_floats<EACH>(x + at);
#pragma unroll
            for (int i = 0; i < EACH; i++) sum = fma((double)v[i], (double)v[i], sum);
        } else {
            for (size_t i = at; i < end && i < at + EACH; i++) {
                double v = (double)to_float(x[i]);
                sum = fma(v, v, sum);
            }
        }
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

static __global__ void total_kernel(double *total, const double *partial, size_t stretches) {
    double sum = 0;
    for (size_t i = threadIdx.x; i < stretches; i += THREADS) sum += partial[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *total = sum;
}
} // namespace norm_kernels

double sum_of_squares(const floatX *x, size_t n) {
    using namespace norm_kernels;
    unsigned stretches = blocks_for(n, STRETCH);
    double *partial = (double *)gpu_scratch(SCRATCH_REDUCE, (stretches + 1) * sizeof(double)), sum;
    LAUNCH(stretch_kernel, stretches, THREADS, 0, gpu.stream, partial + 1, x, n, can_be_wide(WIDE, x));
    LAUNCH(total_kernel, 1, THREADS, 0, gpu.stream, partial, partial + 1, (size_t)stretches);
    device_read(&sum, partial, sizeof sum);
    return sum;
}
#endif
