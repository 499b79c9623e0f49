/* matmul.c: the four matmuls of kernels.h, in their simplest form. */
#include "cpu/gelu.h"
#include "cpu/isa.h"

static float round_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (x == x) bits += 0x7fff + ((bits >> 16) & 1);
    bits &= 0xffff0000;
    memcpy(&x, &bits, 4);
    return x;
}
static float in(float x) {
    return cpu_precision == PRECISION_BF16 ? round_bf16(x) : x;
}

static void gelu_rows(float *out, const float *pre, size_t n) {
    for (size_t i = 0; i < n; i++) v_store_n(out + i, v_gelu(v_set1(pre[i])), 1);
}

void KERNEL(matmul_forward)(float *out, const float *x, const float *w, const float *bias,
                            const float *residual, size_t N, size_t C, size_t OC) {
#pragma omp parallel for num_threads(cpu_threads)
    for (size_t i = 0; i < N; i++)
        for (size_t j = 0; j < OC; j++) {
            float sum = 0;
            for (size_t k = 0; k < C; k++) sum += in(x[i * C + k]) * in(w[j * C + k]);
            out[i * OC + j] = sum + (bias ? bias[j] : 0) + (residual ? residual[i * OC + j] : 0);
        }
}
void KERNEL(matmul_gelu_forward)(float *out, float *pre, const float *x, const float *w, const float *bias,
                                 size_t N, size_t C, size_t OC) {
    KERNEL(matmul_forward)(pre, x, w, bias, NULL, N, C, OC);
    gelu_rows(out, pre, N * OC);
}
void KERNEL(matmul_backward)(float *dx, float *dw, float *db, const float *dout, const float *x,
                             const float *w, size_t N, size_t C, size_t OC) {
#pragma omp parallel num_threads(cpu_threads)
    {
#pragma omp for
        for (size_t i = 0; i < N; i++) {
            for (size_t j = 0; j < C; j++) dx[i * C + j] = 0;
            for (size_t k = 0; k < OC; k++) {
                float d = in(dout[i * OC + k]);
                for (size_t j = 0; j < C; j++) dx[i * C + j] += d * in(w[k * C + j]);
            }
        }
#pragma omp for
        for (size_t i = 0; i < OC; i++)
            for (size_t k = 0; k < N; k++) {
                float d = in(dout[k * OC + i]);
                for (size_t j = 0; j < C; j++) dw[i * C + j] += d * in(x[k * C + j]);
                if (db) db[i] += dout[k * OC + i];
            }
    }
}
void KERNEL(matmul_gelu_backward)(float *dpre, float *x, float *dw, float *db, const float *dout,
                                  const float *pre, const float *w, size_t N, size_t C, size_t OC) {
    gelu_rows(x, pre, N * C);
    KERNEL(matmul_backward)(dpre, dw, db, dout, x, w, N, C, OC);
    for (size_t i = 0; i < N * C; i++) {
        float grad;
        v_store_n(&grad, v_gelu_grad(v_set1(pre[i])), 1);
        dpre[i] *= grad;
    }
}
