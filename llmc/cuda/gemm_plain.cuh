/* gemm_plain.cuh: the matrix product of gemm.h with ordinary multiply-adds, for the shapes that cuBLASLt refuses, and the
 * epilogues as kernels. The inner dimension is added up in order, in fp32. */
#ifndef LLMC_GEMM_PLAIN_CUH
#define LLMC_GEMM_PLAIN_CUH
#include "cuda/gelu.cuh"
#include "cuda/gemm.h"

namespace gemm_plain {
enum { TILE = 32, ROWS = 8, THREADS = TILE * ROWS };

/* Element (row,inner) of a, (inner,col) of b. */
__device__ inline float a_at(const Gemm &g, size_t row, size_t k) {
    if (row >= g.rows || k >= g.inner) return 0;
    return to_float(g.a[g.a_transposed ? k * g.rows + row : row * g.inner + k]);
}
__device__ inline float b_at(const Gemm &g, size_t k, size_t col) {
    if (k >= g.inner || col >= g.cols) return 0;
    return to_float(g.b[g.b_transposed ? col * g.inner + k : k * g.cols + col]);
}

/* A block makes a tile of 32 x 32, a thread four rows of one column. rounds: multiply what bf16 keeps of the inputs. */
static __global__ void product_kernel(Gemm g, bool rounds) {
    SHARED(float, a, [TILE][TILE + 1]);
    SHARED(float, b, [TILE][TILE + 1]);
    size_t tiles = (g.cols + TILE - 1) / TILE, row0 = blockIdx.x / tiles * TILE,
           col0 = blockIdx.x % tiles * TILE;
    int x = (int)threadIdx.x % TILE, y = (int)threadIdx.x / TILE;
    float sum[TILE / ROWS] = {};
    for (size_t k0 = 0; k0 < g.inner; k0 += TILE) {
        for (int i = y; i < TILE; i += ROWS) { /* neighbours in memory are neighbours in x */
            float va = g.a_transposed ? a_at(g, row0 + (size_t)x, k0 + (size_t)i)
                                      : a_at(g, row0 + (size_t)i, k0 + (size_t)x);
            float vb = g.b_transposed ? b_at(g, k0 + (size_t)x, col0 + (size_t)i)
                                      : b_at(g, k0 + (size_t)i, col0 + (size_t)x);
            if (rounds) va = to_float(bf16_from_float(va)), vb = to_float(bf16_from_float(vb));
            (g.a_transposed ? a[x][i] : a[i][x]) = va;
            (g.b_transposed ? b[x][i] : b[i][x]) = vb;
        }
        __syncthreads();
        for (int k = 0; k < TILE; k++)
#pragma unroll
            for (int i = 0; i < TILE / ROWS; i++) sum[i] = fmaf(a[y + i * ROWS][k], b[k][x], sum[i]);
        __syncthreads();
    }
    size_t col = col0 + (size_t)x;
#pragma unroll
    for (int i = 0; i < TILE / ROWS; i++) {
        size_t row = row0 + (size_t)(y + i * ROWS);
        if (row >= g.rows || col >= g.cols) continue;
        float value = sum[i] + (g.bias ? to_float(g.bias[col]) : 0);
        if (g.add) value += to_float(g.add[row * g.cols + col]);
        g.out[row * g.cols + col] = from_float<floatX>(value);
    }
}

/* out *= gelu'(pre) */
template <int N> __global__ void dgelu_kernel(floatX *out, const floatX *pre, size_t n) {
    size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (at >= n) return;
    Packed<float, N> d = load_floats<N>(out + at), x = load_floats<N>(pre + at);
#pragma unroll
    for (int i = 0; i < N; i++) d[i] *= gelu_grad(x[i]);
    store_floats(out + at, d);
}

/* g without its epilogue. */
static void product(const Gemm &g) {
    bool rounds = sizeof(floatX) == sizeof(float) && gpu.precision == PRECISION_BF16;
    LAUNCH(product_kernel, blocks_for(g.rows, TILE) * blocks_for(g.cols, TILE), THREADS, 0, gpu.stream, g,
           rounds);
}
/* The epilogue of g, whose product (and bias) is in pre for EPILOGUE_GELU, in out for EPILOGUE_DGELU. */
static void epilogue(const Gemm &g) {
    size_t n = g.rows * g.cols;
    if (g.epilogue == EPILOGUE_GELU) gelu_forward(g.out, g.pre, n);
    if (g.epilogue != EPILOGUE_DGELU) return;
    const unsigned threads = 256;
    if (can_be_wide(n, g.out, g.pre))
        LAUNCH(dgelu_kernel<WIDE>, blocks_for(n / WIDE, threads), threads, 0, gpu.stream, g.out, g.pre, n);
    else
        LAUNCH(dgelu_kernel<1>, blocks_for(n, threads), threads, 0, gpu.stream, g.out, g.pre, n);
}
} // namespace gemm_plain
#endif
