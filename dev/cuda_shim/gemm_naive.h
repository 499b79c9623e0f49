/* gemm_naive.h: the matrix product of llmc/cuda/gemm.h on the CPU, in the stream like any kernel. */
#ifndef SHIM_GEMM_NAIVE_H
#define SHIM_GEMM_NAIVE_H
#include "base/check.h"
#include "cuda/gelu.cuh"
#include "cuda/gemm.h"
#include <vector>

/* x (rows,cols), stored as (cols,rows) if transposed, as floats; rounded to bf16 where gpu.precision says so. */
inline std::vector<float> gemm_naive_operand(const floatX *x, bool transposed, size_t rows, size_t cols,
                                             Precision precision) {
    std::vector<float> y(rows * cols);
    for (size_t r = 0; r < rows; r++)
        for (size_t c = 0; c < cols; c++) {
            float v = to_float(x[transposed ? c * rows + r : r * cols + c]);
            y[r * cols + c] = precision == PRECISION_BF16 ? to_float(bf16_from_float(v)) : v;
        }
    return y;
}

inline void gemm_naive(const Gemm &g, Precision precision) {
    const std::vector<float> a = gemm_naive_operand(g.a, g.a_transposed, g.rows, g.inner, precision);
    const std::vector<float> b = gemm_naive_operand(g.b, g.b_transposed, g.inner, g.cols, precision);
    std::vector<float> sums(g.cols);
    for (size_t r = 0; r < g.rows; r++) {
        for (size_t c = 0; c < g.cols; c++) sums[c] = 0;
        for (size_t k = 0; k < g.inner; k++)
            for (size_t c = 0; c < g.cols; c++) sums[c] += a[r * g.inner + k] * b[k * g.cols + c];
        for (size_t c = 0; c < g.cols; c++) {
            size_t at = r * g.cols + c;
            float x = sums[c] + (g.bias ? to_float(g.bias[c]) : 0) + (g.add ? to_float(g.add[at]) : 0);
            if (g.epilogue == EPILOGUE_GELU) {
                g.pre[at] = from_float<floatX>(x);
                x = gelu(to_float(g.pre[at]));
            }
            if (g.epilogue == EPILOGUE_DGELU) x *= gelu_grad(to_float(g.pre[at]));
            g.out[at] = from_float<floatX>(x);
        }
    }
}

inline void gemm(const Gemm &g) {
    CHECK(!g.add || g.epilogue == EPILOGUE_NONE);
    Precision precision = gpu.precision;
    shim::stream_push(gpu.stream, [g, precision] { gemm_naive(g, precision); });
}
#endif
