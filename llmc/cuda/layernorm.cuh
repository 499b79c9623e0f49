/* layernorm.cuh: layer normalisation. Forward: a warp per row, which stays in the first cache for its mean, its variance
 * (a second pass, so that nothing cancels) and its output. Backward: a block walks a stretch of rows, a few at a time, a
 * thread in its own columns, whose sums for dw and db stay in its registers. The
 * stretches depend on N alone, and their sums are added in order. */
#ifndef LLMC_CUDA_LAYERNORM_CUH
#define LLMC_CUDA_LAYERNORM_CUH
#include "cuda/gpu.h"
#include "cuda/stretches.cuh"
#include "model/kernels.h"

namespace layernorm {
enum {
    WARPS = 4, /* of a block of the forward; each has its own row */
    STRETCHES_MAX =
        896, /* the backward's blocks: for GPT-2 124M all at once on the 132 multiprocessors of an H100 */
    STRETCH_ROWS_MIN = 8,
    THREADS_MAX = 256, /* of a block of the backward */
    ROWS = 2,          /* that it reads at once */
};

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

/* Adds to sums what N columns of a row have in them: of g = dout w and of g n, with n = (x - mean) rstd. */
template <int N>
__device__ inline void add_means(float2 &sums, const Packed<floatX, N> &dout, const Packed<floatX, N> &x,
                                 const Packed<float, N> &w, float2 stats) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        float g = to_float(dout[i]) * w[i];
        sums.x += g;
        sums.y = fmaf(g, (to_float(x[i]) - stats.x) * stats.y, sums.y);
    }
}

/* dx += rstd (g - mean(g) - n mean(g n)); dw += dout n; db += dout. Block: one stretch of rows, ROWS of them at a time,
 * whose second reading is from the first cache; a thread has N columns. Rows longer than a block are split along
 * blockIdx.y, and each of those blocks makes their means for itself. */
template <int N> __global__ void __launch_bounds__(THREADS_MAX) backward_kernel(Backward k) {
    SHARED(float2,
           partial, [2][THREADS_MAX / WARP][ROWS]); /* two: the next group writes where nobody reads */
    const size_t first = blockIdx.x * k.stretch,
                 end = first + k.stretch < k.rows ? first + k.stretch : k.rows;
    const size_t width = blockDim.x * N, c = blockIdx.y * width + threadIdx.x * N;
    const bool inside = c < k.C;
    Packed<float, N> dw = {}, db = {}, w = {};
    if (inside) w = load_floats<N>(k.w + c);
    int now = 0;
    for (size_t group = first; group < end; group += ROWS, now = 1 - now) {
        Packed<floatX, N> dout[ROWS] = {}, x[ROWS] = {}, dx[ROWS] = {};
        float2 stats[ROWS], sums[ROWS] = {};
#pragma unroll
        for (int r = 0; r < ROWS; r++) { /* past the end the last row again, whose means nobody asks for */
            size_t row = group + (size_t)r < end ? group + (size_t)r : end - 1;
            stats[r] = make_float2(k.mean[row], k.rstd[row]);
            if (!inside) continue;
            dout[r] = load<N>(k.dout + row * k.C + c);
            x[r] = load<N>(k.x + row * k.C + c);
            dx[r] = load<N>(k.dx + row * k.C + c);
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) add_means<N>(sums[r], dout[r], x[r], w, stats[r]);
        for (size_t other = threadIdx.x * N; gridDim.y > 1 && other < k.C; other += width) {
            if (other == c) continue;
            Packed<float, N> scale = load_floats<N>(k.w + other);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                size_t at = (group + (size_t)r < end ? group + (size_t)r : end - 1) * k.C + other;
                add_means<N>(sums[r], load<N>(k.dout + at), load<N>(k.x + at), scale, stats[r]);
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            sums[r] = make_float2(warp_sum(sums[r].x), warp_sum(sums[r].y));
            if (lane_id() == 0) partial[now][warp_id()][r] = sums[r];
        }
        __syncthreads();
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            size_t row = group + (size_t)r;
            if (row >= end || !inside) continue;
            float2 mean = make_float2(0, 0);
            for (unsigned i = 0; i < blockDim.x / WARP; i++)
                mean.x += partial[now][i][r].x, mean.y += partial[now][i][r].y;
            mean.x /= (float)k.C, mean.y /= (float)k.C;
            Packed<float, N> d = load_floats<N>(k.dout + row * k.C + c), sum;
            Packed<float, N> v = load_floats<N>(k.x + row * k.C + c);
#pragma unroll
            for (int i = 0; i < N; i++) {
                float n = (v[i] - stats[r].x) * stats[r].y;
                dw[i] = fmaf(d[i], n, dw[i]);
                db[i] += d[i];
                sum[i] = fmaf(stats[r].y, d[i] * w[i] - mean.x - n * mean.y, to_float(dx[r][i]));
            }
            store_floats(k.dx + row * k.C + c, sum);
        }
    }
    if (c < k.C) {
        store(k.partial + blockIdx.x * 2 * k.C + c, dw);
        store(k.partial + (blockIdx.x * 2 + 1) * k.C + c, db);
    }
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
    add_stretches(dw, C, db, C, partial, stretches);
}
#endif
