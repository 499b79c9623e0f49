/* gelu.cuh: GELU and its derivative, the tanh form of Hendrycks, Gimpel, arXiv 1606.08415.
 *
 * 0.5 (1 + tanh(u)) = 1 / (1 + e^(-2u)) = s, so gelu(x) = x s with u = sqrt(2/pi) (x + 0.044715 x^3). NaN stays NaN. */
#ifndef LLMC_CUDA_GELU_CUH
#define LLMC_CUDA_GELU_CUH
#include "cuda/gpu.h"
#include "model/kernels.h"

/* s(x); the exponent is -2u / ln 2. */
__device__ inline float gelu_sigmoid(float x) {
    return 1.0f / (1.0f + exp2_fast(x * fmaf(x * x, -0.10294324f, -2.3022082f)));
}
__device__ inline float gelu(float x) {
    return x * gelu_sigmoid(x);
}
/* s + x s (1 - s) 2u'; the second term is 0 where |x| is large, also where u' would overflow. */
__device__ inline float gelu_grad(float x) {
    float s = gelu_sigmoid(x), near = fminf(1e6f, fmaxf(-1e6f, x));
    return fmaf(near * s * (1.0f - s), fmaf(near * near, 0.21406445f, 1.5957691f), s);
}

namespace gelu_kernels {
template <int N> __global__ void forward_kernel(floatX *out, const floatX *x, size_t n) {
    size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (at >= n) return;
    Packed<float, N> v = load_floats<N>(x + at);
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = gelu(v[i]);
    store_floats(out + at, v);
}
} // namespace gelu_kernels

void gelu_forward(floatX *out, const floatX *x, size_t n) {
    const unsigned threads = 256;
    if (can_be_wide(n, out, x))
        LAUNCH(gelu_kernels::forward_kernel<WIDE>, blocks_for(n / WIDE, threads), threads, 0, gpu.stream, out,
               x, n);
    else
        LAUNCH(gelu_kernels::forward_kernel<1>, blocks_for(n, threads), threads, 0, gpu.stream, out, x, n);
}
#endif
