/* classifier.cuh: softmax, cross-entropy and its gradient in place; a block per row. The row is read once for its
 * maximum and the sum of its exponentials together, and once more, from the second cache, for the gradient.
 *
 * A NaN or infinity among the first V logits makes the loss no finite number: the maximum passes over a NaN, the sum
 * does not. */
#ifndef LLMC_CUDA_CLASSIFIER_CUH
#define LLMC_CUDA_CLASSIFIER_CUH
#include "cuda/gpu.h"
#include "model/kernels.h"
#include <float.h>

namespace classifier_kernels {
enum {
    THREADS_MAX = 512, /* so that while the threads of one row wait for one another, those of others work */
    AT_ONCE = 2,       /* loads of a thread on the way together */
};

__device__ inline float exp_of(float x) {
    return exp2_fast(x * 1.44269504f);
}

/* The first `n` of the values are in the vocabulary. */
template <int N> __device__ inline int inside(size_t at, size_t V) {
    return at + N <= V ? N : at < V ? (int)(V - at) : 0;
}

/* max: the largest; sum: of e^(x - max), over what this thread has seen. */
struct Softmax {
    float max, sum;
};
template <int N> __device__ inline Softmax row_part(const floatX *x, size_t V) {
    const size_t step = blockDim.x * N;
    Softmax part = {-FLT_MAX, 0};
    for (size_t at = threadIdx.x * N; at < V; at += AT_ONCE * step) {
        Packed<floatX, N> v[AT_ONCE] = {};
        float most = part.max, sum = 0;
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
            if (at + (size_t)k * step < V) v[k] = load<N>(x + at + (size_t)k * step);
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
#pragma unroll
            for (int i = 0; i < N; i++)
                if (i < inside<N>(at + (size_t)k * step, V)) most = fmaxf(most, to_float(v[k][i]));
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
#pragma unroll
            for (int i = 0; i < N; i++)
                if (i < inside<N>(at + (size_t)k * step, V)) sum += exp_of(to_float(v[k][i]) - most);
        part = {most, fmaf(part.sum, exp_of(part.max - most), sum)};
    }
    return part;
}

template <int N>
__global__ void __launch_bounds__(THREADS_MAX)
    kernel(floatX *logits, float *losses, const int32_t *targets, float dloss, size_t V, size_t Vp) {
    floatX *x = logits + blockIdx.x * Vp;
    const int64_t target = targets[blockIdx.x];
    const bool counted = target >= 0;
    float max = 0, scale = 0; /* not counted: zeros are written */
    if (counted) {
        Softmax part = row_part<N>(x, V);
        max = block_max(part.max);
        float sum = block_sum(part.sum * exp_of(part.max - max));
        scale = dloss / sum;
        if (threadIdx.x == 0) /* a target outside the vocabulary shows as a loss that is no number */
            losses[blockIdx.x] = target < (int64_t)V ? logf(sum) + (max - to_float(x[target])) : NAN;
        __syncthreads(); /* x[target] has been read */
    } else if (threadIdx.x == 0) {
        losses[blockIdx.x] = 0;
    }
    if (dloss == 0) return;
    for (size_t at = threadIdx.x * N; at < Vp; at += blockDim.x * N) {
        Packed<float, N> v = load_floats<N>(x + at);
        int n = counted ? inside<N>(at, V) : 0;
#pragma unroll
        for (int i = 0; i < N; i++) {
            float hit = (int64_t)at + i == target ? dloss : 0;
            v[i] = i < n ? exp_of(v[i] - max) * scale - hit : 0;
        }
        store_floats(x + at, v);
    }
}

template <int N>
static void launch(floatX *logits, float *losses, const int32_t *targets, float dloss, size_t rows, size_t V,
                   size_t Vp) {
    size_t threads = (Vp / N + WARP - 1) / WARP * WARP;
    if (threads < WARP) threads = WARP;
    if (threads > THREADS_MAX) threads = THREADS_MAX;
    LAUNCH(kernel<N>, (unsigned)rows, (unsigned)threads, 0, gpu.stream, logits, losses, targets, dloss, V,
           Vp);
}
} // namespace classifier_kernels

void classifier(floatX *logits, float *losses, const int32_t *targets, float dloss, size_t N, size_t V,
                size_t Vp) {
    if (can_be_wide(Vp, logits))
        classifier_kernels::launch<WIDE>(logits, losses, targets, dloss, N, V, Vp);
    else
        classifier_kernels::launch<1>(logits, losses, targets, dloss, N, V, Vp);
}
#endif
