/* blas.c: the matmuls of blas.h: what a library does not fuse is done in passes of its own, before or after. */
#include "cpu/blas.h"

#ifdef USE_BLAS
#include "base/check.h"
#include "cpu/gelu.h"
#include "cpu/isa.h"
#include <limits.h>
#include <string.h>

/* The C interface is the same in every library; declared here, no header of theirs is needed. 32-bit integers. */
enum { ROW_MAJOR = 101, PLAIN = 111, TRANSPOSED = 112 };
void cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float *a,
                 int lda, const float *b, int ldb, float beta, float *c, int ldc);

/* Each library names its own; those that are not linked stay NULL. */
__attribute__((weak)) void openblas_set_num_threads(int threads);
__attribute__((weak)) void bli_thread_set_num_threads(int64_t threads);
__attribute__((weak)) void MKL_Set_Num_Threads(int threads);

static void use_threads(void) {
    static int threads;
    if (threads == cpu_threads) return;
    threads = cpu_threads;
    if (openblas_set_num_threads) openblas_set_num_threads(threads);
    if (bli_thread_set_num_threads) bli_thread_set_num_threads(threads);
    if (MKL_Set_Num_Threads) MKL_Set_Num_Threads(threads);
}

/* c (M,N) = A B + beta c, where A is a (M,K) or its transpose a (K,M), B is b (K,N) or its transpose b (N,K). */
static void sgemm(int trans_a, int trans_b, size_t M, size_t N, size_t K, const float *a, const float *b,
                  float beta, float *c) {
    CHECK(M <= INT_MAX && N <= INT_MAX && K <= INT_MAX);
    use_threads();
    cblas_sgemm(ROW_MAJOR, trans_a, trans_b, (int)M, (int)N, (int)K, 1.0f, a, (int)(trans_a == PLAIN ? K : M),
                b, (int)(trans_b == PLAIN ? N : K), beta, c, (int)N);
}

void blas_matmul_forward(float *out, const float *x, const float *w, const float *bias, const float *residual,
                         size_t N, size_t C, size_t OC) {
    if (bias || residual) {
#pragma omp parallel for num_threads(cpu_threads)
        for (size_t i = 0; i < N; i++) {
            float *row = out + i * OC;
            if (!residual)
                memcpy(row, bias, OC * sizeof(float));
            else if (residual != out)
                memcpy(row, residual + i * OC, OC * sizeof(float));
            for (size_t j = 0; residual && bias && j < OC; j++) row[j] += bias[j];
        }
    }
    sgemm(PLAIN, TRANSPOSED, N, OC, C, x, w, bias || residual ? 1.0f : 0.0f, out);
}

/* out = gelu(pre) and, unless it is NULL, d *= gelu'(pre). */
static void gelu_pass(float *out, float *d, const float *pre, size_t count) {
#pragma omp parallel for num_threads(cpu_threads)
    for (size_t i = 0; i < count; i += VL) {
        size_t n = count - i < VL ? count - i : VL;
        vf grad, y = v_gelu_both(v_load_n(pre + i, n), &grad);
        if (out) v_store_n(out + i, y, n);
        if (d) v_store_n(d + i, v_load_n(d + i, n) * grad, n);
    }
}

void blas_matmul_gelu_forward(float *out, float *pre, const float *x, const float *w, const float *bias,
                              size_t N, size_t C, size_t OC) {
    blas_matmul_forward(pre, x, w, bias, NULL, N, C, OC);
    gelu_pass(out, NULL, pre, N * OC);
}

/* dw (OC,C) += doutT x; db (OC) += column sums of dout (N,OC), unless db is NULL. */
static void weight_gradient(float *dw, float *db, const float *dout, const float *x, size_t N, size_t C,
                            size_t OC) {
    enum { COLUMNS = 64 };
    sgemm(TRANSPOSED, PLAIN, OC, C, N, dout, x, 1.0f, dw);
    if (!db) return;
#pragma omp parallel for num_threads(cpu_threads)
    for (size_t first = 0; first < OC; first += COLUMNS) {
        size_t n = OC - first < COLUMNS ? OC - first : COLUMNS;
        float sum[COLUMNS] = {0};
        for (size_t i = 0; i < N; i++)
            for (size_t j = 0; j < n; j++) sum[j] += dout[i * OC + first + j];
        for (size_t j = 0; j < n; j++) db[first + j] += sum[j];
    }
}

void blas_matmul_backward(float *dx, float *dw, float *db, const float *dout, const float *x, const float *w,
                          size_t N, size_t C, size_t OC) {
    sgemm(PLAIN, PLAIN, N, C, OC, dout, w, 0.0f, dx);
    weight_gradient(dw, db, dout, x, N, C, OC);
}

void blas_matmul_gelu_backward(float *dpre, float *x, float *dw, float *db, const float *dout,
                               const float *pre, const float *w, size_t N, size_t C, size_t OC,
                               bool recompute) {
    sgemm(PLAIN, PLAIN, N, C, OC, dout, w, 0.0f, dpre);
    gelu_pass(recompute ? x : NULL, dpre, pre, N * C);
    weight_gradient(dw, db, dout, x, N, C, OC);
}
#endif
