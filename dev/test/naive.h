/* naive.h: every kernel of kernels.h but the matmuls, in double and as plainly as it can be said: what the tests
 * compare with. Same names, shapes and meaning as there, with the prefix naive_. */
#ifndef NAIVE_H
#define NAIVE_H
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

static inline void naive_encoder_forward(double *out, const int32_t *tokens, const double *wte,
                                         const double *wpe, size_t B, size_t T, size_t C) {
    for (size_t i = 0; i < B * T; i++)
        for (size_t c = 0; c < C; c++) out[i * C + c] = wte[(size_t)tokens[i] * C + c] + wpe[i % T * C + c];
}

static inline void naive_encoder_backward(double *dwte, double *dwpe, const double *dout,
                                          const int32_t *tokens, size_t B, size_t T, size_t C) {
    for (size_t i = 0; i < B * T; i++)
        for (size_t c = 0; c < C; c++) {
            dwte[(size_t)tokens[i] * C + c] += dout[i * C + c];
            dwpe[i % T * C + c] += dout[i * C + c];
        }
}

static inline void naive_layernorm_forward(double *out, double *mean, double *rstd, const double *x,
                                           const double *w, const double *b, size_t N, size_t C) {
    for (size_t i = 0; i < N; i++) {
        double sum = 0, square = 0;
        for (size_t c = 0; c < C; c++) sum += x[i * C + c];
        mean[i] = sum / (double)C;
        for (size_t c = 0; c < C; c++) square += (x[i * C + c] - mean[i]) * (x[i * C + c] - mean[i]);
        rstd[i] = 1 / sqrt(square / (double)C + 1e-5);
        for (size_t c = 0; c < C; c++) out[i * C + c] = (x[i * C + c] - mean[i]) * rstd[i] * w[c] + b[c];
    }
}

static inline void naive_layernorm_backward(double *dx, double *dw, double *db, const double *dout,
                                            const double *x, const double *w, const double *mean,
                                            const double *rstd, size_t N, size_t C) {
    for (size_t i = 0; i < N; i++) {
        double mean_g = 0, mean_gn = 0;
        for (size_t c = 0; c < C; c++) {
            double n = (x[i * C + c] - mean[i]) * rstd[i], d = dout[i * C + c];
            mean_g += d * w[c] / (double)C;
            mean_gn += d * w[c] * n / (double)C;
            dw[c] += d * n;
            db[c] += d;
        }
        for (size_t c = 0; c < C; c++) {
            double n = (x[i * C + c] - mean[i]) * rstd[i];
            dx[i * C + c] += rstd[i] * (dout[i * C + c] * w[c] - mean_g - n * mean_gn);
        }
    }
}

static inline double naive_gelu(double x) {
    return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1.0)) * (x + 0.044715 * x * x * x)));
}

static inline double naive_gelu_grad(double x) {
    double k = sqrt(2 / acos(-1.0)), t = tanh(k * (x + 0.044715 * x * x * x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * k * (1 + 3 * 0.044715 * x * x);
}

/* Element i of head h of part (0 query, 1 key, 2 value) at row (b, t) of qkv (B,T,3,NH,HS). */
static inline size_t naive_qkv_at(size_t b, size_t t, size_t part, size_t h, size_t T, size_t NH, size_t HS) {
    return (((b * T + t) * 3 + part) * NH + h) * HS;
}

static inline double naive_dot(const double *a, const double *b, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static inline size_t naive_first_key(size_t t, size_t window) {
    return window && t + 1 > window ? t + 1 - window : 0;
}

static inline void naive_attention_forward(double *out, double *lse, const double *qkv, size_t B, size_t T,
                                           size_t NH, size_t HS, size_t window) {
    double scale = 1 / sqrt((double)HS), *score = (double *)malloc(T * sizeof *score);
    for (size_t i = 0; i < B * NH * T; i++) {
        size_t t = i % T, h = i / T % NH, b = i / T / NH;
        double max = -INFINITY, sum = 0, *o = out + ((b * T + t) * NH + h) * HS;
        for (size_t j = naive_first_key(t, window); j <= t; j++) {
            score[j] = scale * naive_dot(qkv + naive_qkv_at(b, t, 0, h, T, NH, HS),
                                         qkv + naive_qkv_at(b, j, 1, h, T, NH, HS), HS);
            max = fmax(max, score[j]);
        }
        for (size_t c = 0; c < HS; c++) o[c] = 0;
        for (size_t j = naive_first_key(t, window); j <= t; j++) {
            sum += exp(score[j] - max);
            for (size_t c = 0; c < HS; c++)
                o[c] += exp(score[j] - max) * qkv[naive_qkv_at(b, j, 2, h, T, NH, HS) + c];
        }
        for (size_t c = 0; c < HS; c++) o[c] /= sum;
        lse[i] = max + log(sum);
    }
    free(score);
}

static inline void naive_attention_backward(double *dqkv, const double *dout, const double *out,
                                            const double *lse, const double *qkv, size_t B, size_t T,
                                            size_t NH, size_t HS, size_t window) {
    double scale = 1 / sqrt((double)HS);
    for (size_t i = 0; i < B * T * 3 * NH * HS; i++) dqkv[i] = 0;
    for (size_t i = 0; i < B * NH * T; i++) {
        size_t t = i % T, h = i / T % NH, b = i / T / NH, row = ((b * T + t) * NH + h) * HS;
        size_t q = naive_qkv_at(b, t, 0, h, T, NH, HS);
        double D = naive_dot(dout + row, out + row, HS);
        for (size_t j = naive_first_key(t, window); j <= t; j++) {
            size_t k = naive_qkv_at(b, j, 1, h, T, NH, HS), v = naive_qkv_at(b, j, 2, h, T, NH, HS);
            double p = exp(scale * naive_dot(qkv + q, qkv + k, HS) - lse[i]);
            double ds = p * (naive_dot(dout + row, qkv + v, HS) - D) * scale;
            for (size_t c = 0; c < HS; c++) {
                dqkv[q + c] += ds * qkv[k + c];
                dqkv[k + c] += ds * qkv[q + c];
                dqkv[v + c] += p * dout[row + c];
            }
        }
    }
}

static inline void naive_classifier(double *logits, double *losses, const int32_t *targets, double dloss,
                                    size_t N, size_t V, size_t Vp) {
    for (size_t i = 0; i < N; i++) {
        double max = -INFINITY, sum = 0, *x = logits + i * Vp;
        for (size_t j = 0; j < V; j++) max = fmax(max, x[j]);
        for (size_t j = 0; j < V; j++) sum += exp(x[j] - max);
        losses[i] = targets[i] < 0 ? 0 : max + log(sum) - x[targets[i]];
        for (size_t j = 0; j < Vp && dloss != 0; j++) {
            double p = j < V ? exp(x[j] - max) / sum : 0;
            x[j] = targets[i] < 0 ? 0 : dloss * (p - (j == (size_t)targets[i]));
        }
    }
}

/* The arguments are kernels.h's AdamWArgs, in double. */
static inline void naive_adamw(double *p, double *g, double *m, double *v, size_t n, double lr, double beta1,
                               double beta2, double eps, double decay, double grad_scale, int step) {
    for (size_t i = 0; i < n; i++) {
        double grad = g[i] * grad_scale;
        m[i] = beta1 * m[i] + (1 - beta1) * grad;
        v[i] = beta2 * v[i] + (1 - beta2) * grad * grad;
        double m_hat = m[i] / (1 - pow(beta1, step)), v_hat = v[i] / (1 - pow(beta2, step));
        p[i] -= lr * (m_hat / (sqrt(v_hat) + eps) + decay * p[i]);
        g[i] = 0;
    }
}

static inline void naive_matvec(double *out, const double *x, const double *w, const double *bias,
                                const double *residual, size_t OC, size_t C) {
    for (size_t i = 0; i < OC; i++)
        out[i] = naive_dot(w + i * C, x, C) + (bias ? bias[i] : 0) + (residual ? residual[i] : 0);
}
#endif
