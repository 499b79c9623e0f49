/* matmul.c: the four matmuls of kernels.h as products of gemm.h: which operand lies along which side, and what is
 * fused into the store of a tile. */
#include "cpu/gemm.h"

static GemmOperand along_k(const float *data, size_t K) {
    return (GemmOperand){.data = data, .stride = K, .along_k = true};
}
static GemmOperand along_rows(const float *data, size_t rows) {
    return (GemmOperand){.data = data, .stride = rows, .along_k = false};
}

/* out (N,OC) = x (N,C) w (OC,C)T */
static Gemm forward(float *out, const float *x, const float *w, const float *bias, size_t N, size_t C,
                    size_t OC) {
    return (Gemm){.M = N, .N = OC, .K = C, .a = along_k(x, C), .b = along_k(w, C), .out = out, .bias = bias};
}
/* dx (N,C) = dout (N,OC) w (OC,C) */
static Gemm input_gradient(float *dx, const float *dout, const float *w, size_t N, size_t C, size_t OC) {
    return (Gemm){.M = N, .N = C, .K = OC, .a = along_k(dout, OC), .b = along_rows(w, C), .out = dx};
}
/* dw (OC,C) += doutT x (N,C); db (OC) += column sums of dout (N,OC) */
static Gemm weight_gradient(float *dw, float *db, const float *dout, const float *x, size_t N, size_t C,
                            size_t OC) {
    return (Gemm){.M = OC,
                  .N = C,
                  .K = N,
                  .a = along_rows(dout, OC),
                  .b = along_rows(x, C),
                  .out = dw,
                  .add = dw,
                  .a_sums = db};
}

void KERNEL(matmul_forward)(float *out, const float *x, const float *w, const float *bias,
                            const float *residual, size_t N, size_t C, size_t OC) {
    Gemm g = forward(out, x, w, bias, N, C, OC);
    g.add = residual;
    KERNEL(gemm_run)(&g, 1);
}

void KERNEL(matmul_gelu_forward)(float *out, float *pre, const float *x, const float *w, const float *bias,
                                 size_t N, size_t C, size_t OC) {
    Gemm g = forward(pre, x, w, bias, N, C, OC);
    g.finish = GEMM_GELU;
    g.gelu = out;
    KERNEL(gemm_run)(&g, 1);
}

void KERNEL(matmul_backward)(float *dx, float *dw, float *db, const float *dout, const float *x,
                             const float *w, size_t N, size_t C, size_t OC) {
    const Gemm both[2] = {input_gradient(dx, dout, w, N, C, OC), weight_gradient(dw, db, dout, x, N, C, OC)};
    KERNEL(gemm_run)(both, 2);
}

/* dw may need the gelu(pre) that the first product writes on its way, so the two are not run together. */
void KERNEL(matmul_gelu_backward)(float *dpre, float *x, float *dw, float *db, const float *dout,
                                  const float *pre, const float *w, size_t N, size_t C, size_t OC,
                                  bool recompute) {
    Gemm g = input_gradient(dpre, dout, w, N, C, OC);
    g.finish = GEMM_GELU_GRAD;
    g.pre = pre;
    g.gelu = recompute ? x : NULL;
    KERNEL(gemm_run)(&g, 1);
    g = weight_gradient(dw, db, dout, x, N, C, OC);
    KERNEL(gemm_run)(&g, 1);
}
