/* decode.c: one token at a time: a weight times one vector, and one query against the cached keys and values.
 *
 * Every weight is read once, so these run at the speed of memory; the weight may be stored in bf16 or in int8 with a
 * scale per 64 columns, and is multiplied in fp32. */
#include "cpu/isa.h"
#include "cpu/simd.h"
#include <math.h>

enum { GROUP = 64 }; /* columns of an INT8 weight that share a scale */

static size_t groups_of(size_t C) {
    return (C + GROUP - 1) / GROUP;
}

/* Nearest, ties to even; a NaN stays a NaN. */
static uint16_t bf16_from_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static void quantise_row(int8_t *to, float *scales, const float *w, size_t C) {
    for (size_t g = 0; g < groups_of(C); g++) {
        size_t n = C - g * GROUP < GROUP ? C - g * GROUP : GROUP;
        float most = 0;
        for (size_t i = 0; i < n; i++) most = fmaxf(most, fabsf(w[g * GROUP + i]));
        float scale = most / 127;
        scales[g] = scale;
        memset(to + g * GROUP, 0, GROUP);
        for (size_t i = 0; i < n && scale > 0; i++)
            to[g * GROUP + i] = (int8_t)lrintf(w[g * GROUP + i] / scale);
    }
}

PackedWeight KERNEL(packed_weight_make)(WeightType type, void *memory, const floatX *w, size_t OC, size_t C) {
    size_t groups = groups_of(C);
    PackedWeight packed = {.type = type, .OC = OC, .C = C, .data = memory};
    if (type == WEIGHT_INT8) packed.scales = (float *)(void *)((int8_t *)memory + OC * groups * GROUP);
#pragma omp parallel for schedule(static)
    for (size_t row = 0; row < OC; row++) {
        const float *from = w + row * C;
        if (type == WEIGHT_FP32) memcpy((float *)memory + row * C, from, C * sizeof(float));
        if (type == WEIGHT_BF16)
            for (size_t c = 0; c < C; c++) ((uint16_t *)memory)[row * C + c] = bf16_from_float(from[c]);
        if (type == WEIGHT_INT8)
            quantise_row((int8_t *)memory + row * groups * GROUP, packed.scales + row * groups, from, C);
    }
    return packed;
}

static float weight_at(const PackedWeight *w, size_t row, size_t c) {
    if (w->type == WEIGHT_FP32) return ((const float *)w->data)[row * w->C + c];
    if (w->type == WEIGHT_BF16) {
        uint32_t bits = (uint32_t)((const uint16_t *)w->data)[row * w->C + c] << 16;
        float x;
        memcpy(&x, &bits, sizeof x);
        return x;
    }
    size_t groups = groups_of(w->C);
    return (float)((const int8_t *)w->data)[row * groups * GROUP + c] * w->scales[row * groups + c / GROUP];
}

void KERNEL(matvec_forward)(floatX *out, const floatX *x, PackedWeight w, const floatX *bias,
                            const floatX *residual) {
#pragma omp parallel for schedule(static)
    for (size_t row = 0; row < w.OC; row++) {
        float sum = 0;
        for (size_t c = 0; c < w.C; c++) sum += weight_at(&w, row, c) * x[c];
        out[row] = (residual ? residual[row] : 0) + sum + (bias ? bias[row] : 0);
    }
}

void KERNEL(attention_decode)(floatX *out, floatX *keys, floatX *values, const floatX *qkv, size_t t,
                              size_t slots, size_t NH, size_t HS, size_t window) {
    size_t C = NH * HS, seen = t + 1 < slots ? t + 1 : slots;
    if (window && window < seen) seen = window;
    float scale = 1.0f / sqrtf((float)HS), *scores = cpu_scratch(SCRATCH_DECODE, NH * slots * sizeof(float));
    memcpy(keys + t % slots * C, qkv + C, C * sizeof(float));
    memcpy(values + t % slots * C, qkv + 2 * C, C * sizeof(float));
#pragma omp parallel for schedule(static)
    for (size_t h = 0; h < NH; h++) {
        float max = -INFINITY, sum = 0, *s = scores + h * slots, *o = out + h * HS;
        for (size_t i = 0; i < seen; i++) {
            const float *k = keys + (t - i) % slots * C + h * HS;
            s[i] = 0;
            for (size_t c = 0; c < HS; c++) s[i] += qkv[h * HS + c] * k[c];
            s[i] *= scale;
            max = fmaxf(max, s[i]);
        }
        memset(o, 0, HS * sizeof(float));
        for (size_t i = 0; i < seen; i++) {
            const float *v = values + (t - i) % slots * C + h * HS;
            float p = expf(s[i] - max);
            sum += p;
            for (size_t c = 0; c < HS; c++) o[c] += p * v[c];
        }
        for (size_t c = 0; c < HS; c++) o[c] /= sum;
    }
}
