/* layernorm.c: layer normalisation, a row at a time. A row stays in L1 while its mean, its variance (second pass, so
 * that nothing cancels) and its output are computed. */
#include "cpu/isa.h"
#include "cpu/simd.h"

static const float EPS = 1e-5f;

/* Sum of f(x) over a row: four running vectors, so that additions do not wait for one another. */
SIMD float row_mean(const float *x, size_t C) {
    vf sum[4] = {{0}};
    size_t c = 0;
    for (; c + 4 * VL <= C; c += 4 * VL)
        for (size_t k = 0; k < 4; k++) sum[k] += v_load(x + c + k * VL);
    for (; c + VL <= C; c += VL) sum[0] += v_load(x + c);
    if (c < C) sum[1] += v_load_n(x + c, C - c);
    return v_sum((sum[0] + sum[1]) + (sum[2] + sum[3])) / (float)C;
}

SIMD float row_variance(const float *x, float mean, size_t C) {
    vf sum[4] = {{0}}, m = v_set1(mean);
    size_t c = 0;
    for (; c + 4 * VL <= C; c += 4 * VL)
        for (size_t k = 0; k < 4; k++) {
            vf d = v_load(x + c + k * VL) - m;
            sum[k] = v_fma(d, d, sum[k]);
        }
    float tail = 0;
    for (; c < C; c++) tail += (x[c] - mean) * (x[c] - mean);
    return (v_sum((sum[0] + sum[1]) + (sum[2] + sum[3])) + tail) / (float)C;
}

SIMD void row_normalise(float *out, const float *x, const float *w, const float *b, float mean, float rstd,
                        size_t C) {
    vf m = v_set1(mean), r = v_set1(rstd);
    size_t c = 0;
    for (; c + VL <= C; c += VL)
        v_store(out + c, v_fma((v_load(x + c) - m) * r, v_load(w + c), v_load(b + c)));
    size_t n = C - c;
    if (n) v_store_n(out + c, v_fma((v_load_n(x + c, n) - m) * r, v_load_n(w + c, n), v_load_n(b + c, n)), n);
}

void KERNEL(layernorm_forward)(floatX *out, float *mean, float *rstd, const floatX *x, const floatX *w,
                               const floatX *b, size_t N, size_t C) {
#pragma omp parallel for schedule(static) if (N * C > 16384)
    for (size_t row = 0; row < N; row++) {
        const float *from = x + row * C;
        mean[row] = row_mean(from, C);
        rstd[row] = 1.0f / __builtin_sqrtf(row_variance(from, mean[row], C) + EPS);
        row_normalise(out + row * C, from, w, b, mean[row], rstd[row], C);
    }
}

void KERNEL(layernorm_recompute)(floatX *out, const float *mean, const float *rstd, const floatX *x,
                                 const floatX *w, const floatX *b, size_t N, size_t C) {
#pragma omp parallel for schedule(static) if (N * C > 16384)
    for (size_t row = 0; row < N; row++)
        row_normalise(out + row * C, x + row * C, w, b, mean[row], rstd[row], C);
}

/* With n = (x - mean) rstd and g = dout w: dx += rstd (g - mean(g) - n mean(g n)). */
static void row_backward(float *restrict dx, float *restrict dw, float *restrict db, const float *dout,
                         const float *x, const float *w, float mean, float rstd, size_t C) {
    vf m = v_set1(mean), r = v_set1(rstd), sum_g[2] = {{0}}, sum_gn[2] = {{0}};
    size_t c = 0, whole = C / VL * VL;
    for (; c < whole; c += VL) {
        vf g = v_load(dout + c) * v_load(w + c), n = (v_load(x + c) - m) * r;
        size_t k = c / VL & 1;
        sum_g[k] += g;
        sum_gn[k] = v_fma(g, n, sum_gn[k]);
    }
    float mean_g = v_sum(sum_g[0] + sum_g[1]), mean_gn = v_sum(sum_gn[0] + sum_gn[1]);
    for (; c < C; c++) {
        float g = dout[c] * w[c];
        mean_g += g;
        mean_gn += g * ((x[c] - mean) * rstd);
    }
    mean_g /= (float)C;
    mean_gn /= (float)C;
    vf a = v_set1(mean_g), b = v_set1(mean_gn);
    for (c = 0; c < whole; c += VL) {
        vf d = v_load(dout + c), n = (v_load(x + c) - m) * r;
        v_store(dw + c, v_fma(d, n, v_load(dw + c)));
        v_store(db + c, v_load(db + c) + d);
        v_store(dx + c, v_fma(r, d * v_load(w + c) - a - n * b, v_load(dx + c)));
    }
    for (; c < C; c++) {
        float n = (x[c] - mean) * rstd;
        dw[c] += dout[c] * n;
        db[c] += dout[c];
        dx[c] += rstd * (dout[c] * w[c] - mean_g - n * mean_gn);
    }
}

/* dw and db: partial sums per block of rows (the blocks depend on N alone), then added in order. */
void KERNEL(layernorm_backward)(floatX *dx, floatX *dw, floatX *db, const floatX *dout, const floatX *x,
                                const floatX *w, const float *mean, const float *rstd, size_t N, size_t C) {
    size_t rows = (N + 63) / 64 < 16 ? 16 : (N + 63) / 64, blocks = (N + rows - 1) / rows;
    float *partial = cpu_scratch(SCRATCH_REDUCE, blocks * 2 * C * sizeof(float)); /* (blocks, 2, C) */
#pragma omp parallel if (N * C > 16384)
    {
#pragma omp for schedule(static)
        for (size_t block = 0; block < blocks; block++) {
            float *dw_part = partial + block * 2 * C, *db_part = dw_part + C;
            memset(dw_part, 0, 2 * C * sizeof(float));
            for (size_t row = block * rows; row < N && row < (block + 1) * rows; row++)
                row_backward(dx + row * C, dw_part, db_part, dout + row * C, x + row * C, w, mean[row],
                             rstd[row], C);
        }
#pragma omp for schedule(static)
        for (size_t c0 = 0; c0 < C; c0 += 64)
            for (size_t block = 0; block < blocks; block++) {
                const float *dw_part = partial + block * 2 * C, *db_part = dw_part + C;
                for (size_t c = c0; c < C && c < c0 + 64; c++) {
                    dw[c] += dw_part[c];
                    db[c] += db_part[c];
                }
            }
    }
}
