/* layernorm.cuh: layer normalisation. Forward: a warp per row, which stays in the first cache for its mean, its variance
 * (a second pass, so that nothing cancels) and its output. Backward: a block walks a stretch of rows, in groups with a
 * row for each warp: the warps first make the two means of their rows, then every thread goes down the group in its own
 * columns, whose sums for dw and db stay in its registers. The stretches depend on N alone, and their sums are added
 * in order. */
#ifndef LLMC_CUDA_LAYERNORM_CUH
#define LLMC_CUDA_LAYERNORM_CUH
#include "cuda/gpu.h"
#include "model/kernels.h"

namespace layernorm {
enum { WARPS = 4, STRETCHES_MAX = 1024, STRETCH_ROWS_MIN = 8, THREADS_MAX = 512, SUM_ROWS = 32 };

/* One expression for both kernels, so that what is recomputed has the same bits. */
template <int N>
__device__ inline void write_row(floatX *out, const floatX *x, const floatX *w, const floatX *b, float mean,
                                 float rstd, size_t C) {
    for (size_t c = (size_t)lane_id() * N; c < C; c += WARP * N) {
        Packed<float, N> y = load_floats<N>(x + c), scale = load_floats<N>(w + c);
        Packed<float, N> shift = load_floats<N>(b + c);
#pragma unroll
        for (int i = 0; i < N; i++) y[i] = fmaf((y[i] - mean) * rstd, scale[i], shift[i]);
        store_floats(out + c, y);
    }
}

template <int N>
__global__ void forward_kernel(floatX *out, float *mean, float *rstd, const floatX *x, const floatX *w,
                               const floatX *b, size_t rows, size_t C) {
    size_t row = (size_t)blockIdx.x * WARPS + (size_t)warp_id();
    if (row >= rows) return;
    const floatX *from = x + row * C;
    float sum = 0, square = 0;
    for (size_t c = (size_t)lane_id() * N; c < C; c += WARP * N) {
        Packed<float, N> v = load_floats<N>(from + c);
#pragma unroll
        for (int i = 0; i < N; i++) sum += v[i];
    }
    float m = warp_sum(sum) / (float)C;
    for (size_t c = (size_t)lane_id() * N; c < C; c += WARP * N) {
        Packed<float, N> v = load_floats<N>(from + c);
#pragma unroll
        for (int i = 0; i < N; i++) square = fmaf(v[i] - m, v[i] - m, square);
    }
    float r = 1.0f / sqrtf(warp_sum(square) / (float)C + 1e-5f);
    write_row<N>(out + row * C, from, w, b, m, r, C);
    if (lane_id() == 0) {
        mean[row] = m;
        rstd[row] = r;
    }
}

template <int N>
__global__ void recompute_kernel(floatX *out, const float *mean, const float *rstd, const floatX *x,
                                 const floatX *w, const floatX *b, size_t rows, size_t C) {
    size_t row = (size_t)blockIdx.x * WARPS + (size_t)warp_id();
    if (row < rows) write_row<N>(out + row * C, x + row * C, w, b, mean[row], rstd[row], C);
}

struct Backward {
    floatX *dx;
    float *partial; /* (stretches, 2, C): sums for dw and db */
    const floatX *dout, *x, *w;
    const float *mean, *rstd;
    size_t rows, C, stretch;
};

/* With n = (x - mean) rstd and g = dout w: the means of g and of g n over one row. */
template <int N> __device__ inline float2 row_means(const Backward &k, size_t row) {
    float m = k.mean[row], r = k.rstd[row], sum_g = 0, sum_gn = 0;
    for (size_t c = (size_t)lane_id() * N; c < k.C; c += WARP * N) {
        Packed<float, N> d = load_floats<N>(k.dout + row * k.C + c), w = load_floats<N>(k.w + c);
        Packed<float, N> x = load_floats<N>(k.x + row * k.C + c);
#pragma unroll
        for (int i = 0; i < N; i++) {
            float g = d[i] * w[i];
            sum_g += g;
            sum_gn = fmaf(g, (x[i] - m) * r, sum_gn);
        }
    }
    return make_float2(warp_sum(sum_g) / (float)k.C, warp_sum(sum_gn) / (float)k.C);
}

/* dx += rstd (g - mean(g) - n mean(g n)); dw += dout n; db += dout. Block: one stretch of rows, blockDim.x * N columns;
 * with more columns than that the means are made again by each block that needs them. */
template <int N> __global__ void backward_kernel(Backward k) {
    SHARED(float2, means, [THREADS_MAX / WARP]);
    size_t first = blockIdx.x * k.stretch, end = first + k.stretch, warps = blockDim.x / WARP;
    size_t c = ((size_t)blockIdx.y * blockDim.x + threadIdx.x) * N;
    if (end > k.rows) end = k.rows;
    Packed<float, N> dw = {}, db = {}, w = {};
    if (c < k.C) w = load_floats<N>(k.w + c);
    for (size_t group = first; group < end; group += warps) {
        size_t mine = group + (size_t)warp_id();
        float2 mean_of_mine = mine < end ? row_means<N>(k, mine) : make_float2(0, 0);
        if (lane_id() == 0) means[warp_id()] = mean_of_mine;
        __syncthreads();
        for (size_t row = group; row < end && row < group + warps && c < k.C; row++) {
            size_t at = row * k.C + c;
            float m = k.mean[row], r = k.rstd[row];
            float2 mean = means[row - group];
            Packed<float, N> d = load_floats<N>(k.dout + at), x = load_floats<N>(k.x + at);
            Packed<float, N> dx = load_floats<N>(k.dx + at);
#pragma unroll
            for (int i = 0; i < N; i++) {
                float n = (x[i] - m) * r;
                dw[i] = fmaf(d[i], n, dw[i]);
                db[i] += d[i];
                dx[i] = fmaf(r, d[i] * w[i] - mean.x - n * mean.y, dx[i]);
            }
            store_floats(k.dx + at, dx);
        }
        __syncthreads(); /* before means is written again */
    }
    if (c < k.C) {
        store(k.partial + blockIdx.x * 2 * k.C + c, dw);
        store(k.partial + (blockIdx.x * 2 + 1) * k.C + c, db);
    }
}

/* dw, db (C) += the sums over the stretches of partial (stretches, 2, C). Block: WARP of the 2 C columns, SUM_ROWS
 * threads each. */
static __global__ void add_partial_kernel(floatX *dw, floatX *db, const float *partial, size_t stretches,
                                          size_t C) {
    SHARED(float, sums, [SUM_ROWS][WARP]);
    size_t column = (size_t)blockIdx.x * WARP + threadIdx.x;
    float sum = 0;
    for (size_t s = threadIdx.y; s < stretches && column < 2 * C; s += SUM_ROWS)
        sum += partial[s * 2 * C + column];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y || column >= 2 * C) return;
    for (int i = 1; i < SUM_ROWS; i++) sum += sums[i][threadIdx.x];
    floatX *to = column < C ? dw + column : db + (column - C);
    *to = from_float<floatX>(to_float(*to) + sum);
}

template <int N> static void backward(const Backward &k, size_t stretches) {
    size_t threads = ((k.C + N - 1) / N + WARP - 1) / WARP * WARP;
    if (threads > THREADS_MAX) threads = THREADS_MAX;
    const dim3 grid((unsigned)stretches, blocks_for(k.C, threads * N));
    LAUNCH(backward_kernel<N>, grid, (unsigned)threads, 0, gpu.stream, k);
}
} // namespace layernorm

void layernorm_forward(floatX *out, float *mean, float *rstd, const floatX *x, const floatX *w,
                       const floatX *b, size_t N, size_t C) {
    using namespace layernorm;
    auto kernel = can_be_wide(C, out, x, w, b) ? forward_kernel<WIDE> : forward_kernel<1>;
    LAUNCH(kernel, blocks_for(N, WARPS), WARPS * WARP, 0, gpu.stream, out, mean, rstd, x, w, b, N, C);
}

void layernorm_recompute(floatX *out, const float *mean, const float *rstd, const floatX *x, const floatX *w,
                         const floatX *b, size_t N, size_t C) {
    using namespace layernorm;
    auto kernel = can_be_wide(C, out, x, w, b) ? recompute_kernel<WIDE> : recompute_kernel<1>;
    LAUNCH(kernel, blocks_for(N, WARPS), WARPS * WARP, 0, gpu.stream, out, mean, rstd, x, w, b, N, C);
}

void layernorm_backward(floatX *dx, floatX *dw, floatX *db, const floatX *dout, const floatX *x,
                        const floatX *w, const float *mean, const float *rstd, size_t N, size_t C) {
    using namespace layernorm;
    size_t stretch = (N + STRETCHES_MAX - 1) / STRETCHES_MAX;
    if (stretch < STRETCH_ROWS_MIN) stretch = STRETCH_ROWS_MIN;
    size_t stretches = blocks_for(N, stretch);
    float *partial = (float *)gpu_scratch(SCRATCH_REDUCE, stretches * 2 * C * sizeof(float));
    const Backward k = {dx, partial, dout, x, w, mean, rstd, N, C, stretch};
    if (can_be_wide(C, dx, dout, x, w))
        backward<WIDE>(k, stretches);
    else
        backward<1>(k, stretches);
    LAUNCH(add_partial_kernel, blocks_for(2 * C, WARP), dim3(WARP, SUM_ROWS), 0, gpu.stream, dw, db, partial,
           stretches, C);
}
#endif
