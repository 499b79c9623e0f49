/* adamw.cuh: one AdamW step in one pass over memory, the gradient zeroed on the way. Loshchilov, Hutter, arXiv
 * 1711.05101, in the order of operations of PyTorch's.
 *
 * Where parameters are bf16, steps are taken on fp32 copies of them (master), and a parameter is its copy rounded
 * stochastically: by bits that are a function of (seed, step, index of the element), so that neither the number of
 * ranks nor the order of threads changes them. */
#ifndef LLMC_CUDA_ADAMW_CUH
#define LLMC_CUDA_ADAMW_CUH
#include "base/rng.h"
#include "cuda/gpu.h"
#include "model/kernels.h"
#include <type_traits>

namespace adamw {
/* rng_block of base/rng.h: Philox4x32-10. */
__device__ inline uint4 random_block(uint64_t seed, uint64_t stream, uint64_t index) {
    uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32);
    uint32_t c2 = (uint32_t)stream, c3 = (uint32_t)(stream >> 32);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return make_uint4(c0, c1, c2, c3);
}

/* 16 random bits for each of N elements from element `first` on; a block of random numbers serves 8 elements. */
template <int N>
__device__ inline void random_bits(uint32_t (&bits)[N], uint64_t seed, uint64_t stream, uint64_t first) {
    uint64_t have = ~(uint64_t)0;
    uint4 block = {};
#pragma unroll
    for (int i = 0; i < N; i++) {
        uint64_t element = first + (uint64_t)i;
        if (element / 8 != have) block = random_block(seed, stream, have = element / 8);
        unsigned word = (unsigned)(element / 2 % 4);
        uint32_t pair = word == 0 ? block.x : word == 1 ? block.y : word == 2 ? block.z : block.w;
        bits[i] = pair >> (element % 2 * 16) & 0xffff;
    }
}

struct Step {
    float beta1, beta2, rest1, rest2, eps, step_size, shrink, root_scale, grad_scale;
    uint64_t seed, stream, first;
};

template <int N>
__global__ void kernel(floatX *p, float *master, floatX *g, float *m, float *v, size_t n, Step k) {
    size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (at >= n) return;
    Packed<float, N> pi, gi = load_floats<N, STREAM>(g + at);
    Packed<float, N> mi = load<N, STREAM>(m + at), vi = load<N, STREAM>(v + at);
    if (master)
        pi = load<N, STREAM>(master + at);
    else
        pi = load_floats<N>(p + at);
#pragma unroll
    for (int i = 0; i < N; i++) {
        float grad = gi[i] * k.grad_scale;
        mi[i] = fmaf(k.rest1, grad - mi[i], mi[i]);
        vi[i] = fmaf(k.rest2 * grad, grad, k.beta2 * vi[i]);
        pi[i] = pi[i] * k.shrink - k.step_size * (mi[i] / fmaf(sqrtf(vi[i]), k.root_scale, k.eps));
        gi[i] = 0;
    }
    store_floats<STREAM>(g + at, gi);
    store<STREAM>(m + at, mi);
    store<STREAM>(v + at, vi);
    if (master) store<STREAM>(master + at, pi);
    if constexpr (std::is_same<floatX, bf16>::value) {
        uint32_t bits[N];
        Packed<bf16, N> rounded;
        random_bits<N>(bits, k.seed, k.stream, k.first + at);
#pragma unroll
        for (int i = 0; i < N; i++) rounded[i] = bf16_from_float_stochastic(pi[i], bits[i]);
        store(p + at, rounded);
    } else {
        store_floats(p + at, pi);
    }
}
} // namespace adamw

void adamw_kernel(floatX *p, float *master, floatX *g, float *m, float *v, size_t n, const AdamWArgs *a) {
    double correction1 = 1 - pow((double)a->beta1, a->step), correction2 = 1 - pow((double)a->beta2, a->step);
    const adamw::Step k = {a->beta1,
                           a->beta2,
                           (float)(1 - (double)a->beta1),
                           (float)(1 - (double)a->beta2),
                           a->eps,
                           (float)((double)a->lr / correction1),
                           (float)(1 - (double)a->lr * (double)a->decay),
                           (float)(1 / sqrt(correction2)),
                           a->grad_scale,
                           a->seed,
                           RNG_STREAM(RNG_ROUND, a->step),
                           a->first};
    const unsigned threads = 256;
    size_t wide = can_be_wide(WIDE, p, master, g, m, v) ? n / WIDE * WIDE : 0;
    if (wide)
        LAUNCH(adamw::kernel<WIDE>, blocks_for(wide / WIDE, threads), threads, 0, gpu.stream, p, master, g, m,
               v, wide, k);
    adamw::Step rest = k;
    rest.first += wide;
    LAUNCH(adamw::kernel<1>, blocks_for(n - wide, threads), threads, 0, gpu.stream, p + wide,
           master ? master + wide : NULL, g + wide, m + wide, v + wide, n - wide, rest);
}
#endif
