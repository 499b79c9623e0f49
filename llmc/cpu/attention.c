/* attention.c: causal self-attention, forward and backward (plain first version). */
#include "cpu/isa.h"
#include "cpu/simd.h"
#include <math.h>

static float dot(const float *a, const float *b, size_t n) {
    float sum = 0;
    for (size_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}
static void add_scaled(float *restrict to, float by, const float *restrict from, size_t n) {
    for (size_t i = 0; i < n; i++) to[i] += by * from[i];
}
static size_t first_key(size_t t, size_t window) {
    return window && t + 1 > window ? t + 1 - window : 0;
}

void KERNEL(attention_forward)(floatX *out, float *lse, const floatX *qkv, size_t B, size_t T, size_t NH,
                               size_t HS, size_t window) {
    size_t C = NH * HS;
    float scale = 1.0f / sqrtf((float)HS);
#pragma omp parallel for schedule(dynamic, 1)
    for (size_t bh = 0; bh < B * NH; bh++) {
        const float *q = qkv + bh / NH * T * 3 * C + bh % NH * HS, *k = q + C, *v = q + 2 * C;
        for (size_t t = 0; t < T; t++) {
            float max = -INFINITY, sum = 0, *o = out + (bh / NH * T + t) * C + bh % NH * HS;
            for (size_t j = first_key(t, window); j <= t; j++)
                max = fmaxf(max, scale * dot(q + t * 3 * C, k + j * 3 * C, HS));
            memset(o, 0, HS * sizeof(float));
            for (size_t j = first_key(t, window); j <= t; j++) {
                float p = expf(scale * dot(q + t * 3 * C, k + j * 3 * C, HS) - max);
                sum += p;
                add_scaled(o, p, v + j * 3 * C, HS);
            }
            for (size_t i = 0; i < HS; i++) o[i] /= sum;
            lse[bh * T + t] = max + logf(sum);
        }
    }
}

void KERNEL(attention_backward)(floatX *dqkv, const floatX *dout, const floatX *out, const float *lse,
                                const floatX *qkv, size_t B, size_t T, size_t NH, size_t HS, size_t window) {
    size_t C = NH * HS;
    float scale = 1.0f / sqrtf((float)HS);
#pragma omp parallel for schedule(dynamic, 1)
    for (size_t bh = 0; bh < B * NH; bh++) {
        size_t at = bh / NH * T * 3 * C + bh % NH * HS;
        const float *q = qkv + at, *k = q + C, *v = q + 2 * C;
        float *dq = dqkv + at, *dk = dq + C, *dv = dq + 2 * C;
        for (size_t t = 0; t < T; t++)
            for (size_t part = 0; part < 3; part++) memset(dq + t * 3 * C + part * C, 0, HS * sizeof(float));
        for (size_t t = 0; t < T; t++) {
            const float *o = out + (bh / NH * T + t) * C + bh % NH * HS;
            const float *d = dout + (bh / NH * T + t) * C + bh % NH * HS;
            float D = dot(d, o, HS);
            for (size_t j = first_key(t, window); j <= t; j++) {
                float p = expf(scale * dot(q + t * 3 * C, k + j * 3 * C, HS) - lse[bh * T + t]);
                float ds = p * (dot(d, v + j * 3 * C, HS) - D) * scale;
                add_scaled(dq + t * 3 * C, ds, k + j * 3 * C, HS);
                add_scaled(dk + j * 3 * C, ds, q + t * 3 * C, HS);
                add_scaled(dv + j * 3 * C, p, d, HS);
            }
        }
    }
}
