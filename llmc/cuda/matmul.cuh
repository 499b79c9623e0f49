/* matmul.cuh: the four matmuls of kernels.h as products of gemm.h, and the sums of columns for the gradients of biases. */
#ifndef LLMC_CUDA_MATMUL_CUH
#define LLMC_CUDA_MATMUL_CUH
#include "cuda/gelu.cuh"
#include "cuda/gpu.h"
#include "cuda/stretches.cuh"
#if defined(CUDA_SHIM) && !defined(LLMC_GEMM_CUBLASLT_CUH) /* a test of that includes it first */
#include <gemm_naive.h>                                    /* of dev/cuda_shim */
#else
#include "cuda/gemm_cublaslt.cuh"
#endif
#include "model/kernels.h"

namespace matmul {
enum {
    WARPS = 8,        /* of a block of the column sums, each with its own rows */
    BLOCKS = 1024,    /* about so many: the stretches of rows depend on the shape alone, and so do the bits */
    STRETCH_MIN = 64, /* rows of a block */
    ROWS_AT_ONCE = 4, /* of a warp: loads on the way together */
};

/* partial (stretches,cols) = sums of a stretch of rows of x (rows,cols). A block has 32 * N columns. */
template <int N>
__global__ void __launch_bounds__(WARPS *WARP)
    column_sums_kernel(float *partial, const floatX *x, size_t rows, size_t cols, size_t stretch) {
    SHARED(float, sums, [WARPS][WARP * N]);
    const size_t groups = (cols + WARP * N - 1) / (WARP * N);
    const size_t first = blockIdx.x / groups * stretch, end = first + stretch < rows ? first + stretch : rows;
    const size_t col = (blockIdx.x % groups * WARP + (size_t)lane_id()) * N;
    Packed<float, N> sum = {};
    if (col < cols)
        for (size_t r = first + (size_t)warp_id(); r < end; r += WARPS * ROWS_AT_ONCE) {
            Packed<float, N> v[ROWS_AT_ONCE] = {};
#pragma unroll
            for (int i = 0; i < ROWS_AT_ONCE; i++)
                if (r + (size_t)(i * WARPS) < end)
                    v[i] = load_floats<N>(x + (r + (size_t)(i * WARPS)) * cols + col);
#pragma unroll
            for (int i = 0; i < ROWS_AT_ONCE; i++)
#pragma unroll
                for (int j = 0; j < N; j++) sum[j] += v[i][j];
        }
#pragma unroll
    for (int j = 0; j < N; j++) sums[warp_id()][j * WARP + lane_id()] = sum[j];
    __syncthreads();
    if (warp_id() != 0 || col >= cols) return;
#pragma unroll
    for (int j = 0; j < N; j++) {
        float total = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) total += sums[w][j * WARP + lane_id()];
        partial[blockIdx.x / groups * cols + col + (size_t)j] = total;
    }
}

template <int N> static void add_column_sums(floatX *db, const floatX *x, size_t rows, size_t cols) {
    size_t groups = (cols + WARP * N - 1) / (WARP * N);
    size_t stretch = (rows * groups + BLOCKS - 1) / BLOCKS;
    if (stretch < STRETCH_MIN) stretch = STRETCH_MIN;
    size_t stretches = (rows + stretch - 1) / stretch;
    float *partial = static_cast<float *>(gpu_scratch(SCRATCH_REDUCE, stretches * cols * sizeof(float)));
    LAUNCH(column_sums_kernel<N>, (unsigned)(groups * stretches), WARPS * WARP, 0, gpu.stream, partial, x,
           rows, cols, stretch);
    add_stretches(db, cols, NULL, 0, partial, stretches);
}

/* dw (OC,C) += doutT x (N,C); db (OC) += column sums of dout (N,OC), unless it is NULL */
static void add_weight_gradient(floatX *dw, floatX *db, const floatX *dout, const floatX *x, size_t N,
                                size_t C, size_t OC) {
    Gemm g = {};
    g.out = dw, g.add = dw, g.a = dout, g.a_transposed = true, g.b = x;
    g.rows = OC, g.cols = C, g.inner = N;
    gemm(g);
    if (!db) return;
    if (can_be_wide(OC, dout))
        add_column_sums<WIDE>(db, dout, N, OC);
    else
        add_column_sums<1>(db, dout, N, OC);
}
} // namespace matmul

void matmul_forward(floatX *out, const floatX *x, const floatX *w, const floatX *bias, const floatX *residual,
                    size_t N, size_t C, size_t OC) {
    Gemm g = {};
    g.out = out, g.a = x, g.b = w, g.b_transposed = true, g.bias = bias, g.add = residual;
    g.rows = N, g.cols = OC, g.inner = C;
    gemm(g);
}

void matmul_gelu_forward(floatX *out, floatX *pre, const floatX *x, const floatX *w, const floatX *bias,
                         size_t N, size_t C, size_t OC) {
    Gemm g = {};
    g.out = out, g.pre = pre, g.epilogue = EPILOGUE_GELU;
    g.a = x, g.b = w, g.b_transposed = true, g.bias = bias;
    g.rows = N, g.cols = OC, g.inner = C;
    gemm(g);
}

void matmul_backward(floatX *dx, floatX *dw, floatX *db, const floatX *dout, const floatX *x, const floatX *w,
                     size_t N, size_t C, size_t OC) {
    Gemm g = {};
    g.out = dx, g.a = dout, g.b = w;
    g.rows = N, g.cols = C, g.inner = OC;
    gemm(g);
    matmul::add_weight_gradient(dw, db, dout, x, N, C, OC);
}

void matmul_gelu_backward(floatX *dpre, floatX *x, floatX *dw, floatX *db, const floatX *dout,
                          const floatX *pre, const floatX *w, size_t N, size_t C, size_t OC, bool recompute) {
    Gemm g = {};
    g.out = dpre, g.pre = const_cast<floatX *>(pre), g.epilogue = EPILOGUE_DGELU;
    g.a = dout, g.b = w;
    g.rows = N, g.cols = C, g.inner = OC;
    gemm(g);
    if (recompute) gelu_forward(x, pre, N * C);
    matmul::add_weight_gradient(dw, db, dout, x, N, C, OC);
}
#endif
