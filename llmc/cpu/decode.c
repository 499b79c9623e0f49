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

/* --- matvec: ROWS weights at a time against the same x; the order of a row's additions never depends on its company --- */

enum { ROWS = 4 };

/* VL weights from column c of a row, the first n of which exist (INT8 rows are padded). */
SIMD vf weights_at(const void *row, WeightType type, size_t c, size_t n) {
    if (type == WEIGHT_FP32)
        return n >= VL ? v_load((const float *)row + c) : v_load_n((const float *)row + c, n);
    if (type == WEIGHT_INT8) return v_load_int8((const int8_t *)row + c);
    if (n >= VL) return v_load_bf16((const uint16_t *)row + c);
    uint16_t some[VL] = {0};
    memcpy(some, (const uint16_t *)row + c, n * sizeof *some);
    return v_load_bf16(some);
}

/* sum[r] = row `row` + r times x; for INT8, x is padded like the rows. */
SIMD void rows_times(float *sum, const PackedWeight *w, WeightType type, size_t row, const float *x,
                     size_t rows) {
    size_t groups = groups_of(w->C), C = w->C;
    size_t bytes = type == WEIGHT_FP32 ? 4 * C : type == WEIGHT_BF16 ? 2 * C : groups * GROUP;
    const char *at = (const char *)w->data + row * bytes;
    vf all[ROWS] = {{0}};
    if (type == WEIGHT_INT8) {
        const float *scales = w->scales + row * groups;
        for (size_t g = 0; g < groups; g++) {
            vf part[ROWS] = {{0}};
            UNROLL for (size_t c = 0; c < GROUP; c += VL) {
                size_t column = g * GROUP + c;
                vf xs = v_load(x + column);
                UNROLL for (size_t r = 0; r < rows; r++) part[r] =
                    v_fma(weights_at(at + r * bytes, type, column, VL), xs, part[r]);
            }
            UNROLL for (size_t r = 0; r < rows; r++) all[r] =
                v_fma(part[r], v_set1(scales[r * groups + g]), all[r]);
        }
    } else {
        size_t c = 0;
        for (; c + VL <= C; c += VL) {
            vf xs = v_load(x + c);
            UNROLL for (size_t r = 0; r < rows; r++) all[r] =
                v_fma(weights_at(at + r * bytes, type, c, VL), xs, all[r]);
        }
        if (c < C)
            for (size_t r = 0; r < rows; r++)
                all[r] = v_fma(weights_at(at + r * bytes, type, c, C - c), v_load_n(x + c, C - c), all[r]);
    }
    for (size_t r = 0; r < rows; r++) sum[r] = v_sum(all[r]);
}

SIMD void rows_forward(float *out, const float *x, const PackedWeight *w, WeightType type, const float *bias,
                       const float *residual, size_t from, size_t to) {
    for (size_t row = from; row < to;) {
        float sum[ROWS];
        size_t rows = to - row >= ROWS ? ROWS : 1;
        if (rows == ROWS)
            rows_times(sum, w, type, row, x, ROWS);
        else
            rows_times(sum, w, type, row, x, 1);
        for (size_t r = 0; r < rows; r++, row++)
            out[row] = (residual ? residual[row] : 0) + (sum[r] + (bias ? bias[row] : 0));
    }
}

void KERNEL(matvec_forward)(floatX *out, const floatX *x, PackedWeight w, const floatX *bias,
                            const floatX *residual) {
    const size_t chunk = 32, padded = groups_of(w.C) * GROUP;
    if (w.type == WEIGHT_INT8 && padded != w.C) {
        float *copy = cpu_scratch(SCRATCH_DECODE, padded * sizeof(float));
        memcpy(copy, x, w.C * sizeof(float));
        memset(copy + w.C, 0, (padded - w.C) * sizeof(float));
        x = copy;
    }
#pragma omp parallel for schedule(static) if (w.OC * w.C > 32768)
    for (size_t from = 0; from < w.OC; from += chunk) {
        size_t to = from + chunk < w.OC ? from + chunk : w.OC;
        if (w.type == WEIGHT_FP32) rows_forward(out, x, &w, WEIGHT_FP32, bias, residual, from, to);
        if (w.type == WEIGHT_BF16) rows_forward(out, x, &w, WEIGHT_BF16, bias, residual, from, to);
        if (w.type == WEIGHT_INT8) rows_forward(out, x, &w, WEIGHT_INT8, bias, residual, from, to);
    }
}

/* --- attention of one query: the cache is a ring of slots; positions are visited from the oldest --- */

typedef struct {
    size_t first, seen, slots, C, HS; /* `seen` positions, the oldest in slot `first` */
} Ring;

SIMD const float *ring_at(const Ring *ring, const float *head, size_t i) {
    size_t slot = ring->first + i;
    return head + (slot < ring->slots ? slot : slot - ring->slots) * ring->C;
}
enum { AHEAD = 16 }; /* rows of a head lie far apart, so the next ones are asked for by hand */
SIMD void ring_prefetch(const Ring *ring, const float *head, size_t i) {
    if (i + AHEAD >= ring->seen) return;
    const char *row = (const char *)ring_at(ring, head, i + AHEAD);
    for (size_t byte = 0; byte < ring->HS * sizeof(float); byte += 64) __builtin_prefetch(row + byte);
}

static float dot(const float *a, const float *b, size_t n) {
    vf sum[2] = {{0}};
    size_t c = 0;
    for (; c + 2 * VL <= n; c += 2 * VL) {
        sum[0] = v_fma(v_load(a + c), v_load(b + c), sum[0]);
        sum[1] = v_fma(v_load(a + c + VL), v_load(b + c + VL), sum[1]);
    }
    for (; c < n; c += VL) {
        size_t rest = n - c < VL ? n - c : VL;
        sum[0] = v_fma(v_load_n(a + c, rest), v_load_n(b + c, rest), sum[0]);
    }
    return v_sum(sum[0] + sum[1]);
}

/* scores to e^(score - largest); returns their sum. The array has room for whole vectors. */
static float softmax_unscaled(float *scores, size_t n) {
    float most = scores[0];
    for (size_t i = 1; i < n; i++) most = scores[i] > most ? scores[i] : most;
    vf sum = {0};
    for (size_t i = n; i % VL; i++) scores[i] = -INFINITY;
    for (size_t i = 0; i < n; i += VL) {
        vf x = v_load(scores + i) - v_set1(most);
        vf e = v_select(x == v_set1(-INFINITY), (vf){0}, v_exp(x));
        v_store(scores + i, e);
        sum += e;
    }
    return v_sum(sum);
}

/* out (HS) = sum of p[i] value[i] / total, `WIDE` vectors of columns at a time in registers. */
SIMD void weighted_columns(float *out, const float *p, float total, const Ring *ring, const float *values,
                           int vectors, size_t last) {
    vf sum[4] = {{0}};
    for (size_t i = 0; i < ring->seen; i++) {
        const float *v = ring_at(ring, values, i);
        ring_prefetch(ring, values, i);
        UNROLL for (int k = 0; k < vectors; k++) sum[k] =
            v_fma(v_set1(p[i]), last == VL ? v_load(v + k * VL) : v_load_n(v + k * VL, last), sum[k]);
    }
    UNROLL for (int k = 0; k < vectors; k++) {
        vf mean = sum[k] / v_set1(total);
        if (last == VL)
            v_store(out + k * VL, mean);
        else
            v_store_n(out + k * VL, mean, last);
    }
}

static void head_decode(float *out, const float *q, const float *keys, const float *values, float *scores,
                        const Ring *ring) {
    float scale = 1.0f / sqrtf((float)ring->HS);
    for (size_t i = 0; i < ring->seen; i++) {
        ring_prefetch(ring, keys, i);
        scores[i] = scale * dot(q, ring_at(ring, keys, i), ring->HS);
    }
    float total = softmax_unscaled(scores, ring->seen);
    size_t c = 0;
    for (; c + 4 * VL <= ring->HS; c += 4 * VL)
        weighted_columns(out + c, scores, total, ring, values + c, 4, VL);
    for (; c + VL <= ring->HS; c += VL) weighted_columns(out + c, scores, total, ring, values + c, 1, VL);
    if (c < ring->HS) weighted_columns(out + c, scores, total, ring, values + c, 1, ring->HS - c);
}

void KERNEL(attention_decode)(floatX *out, floatX *keys, floatX *values, const floatX *qkv, size_t t,
                              size_t slots, size_t NH, size_t HS, size_t window) {
    size_t C = NH * HS, seen = t + 1 < slots ? t + 1 : slots;
    if (window && window < seen) seen = window;
    const Ring ring = {(t + 1 - seen) % slots, seen, slots, C, HS};
    size_t room = (slots + 15) / 16 * 16;
    float *scores = cpu_scratch(SCRATCH_DECODE, NH * room * sizeof(float));
    memcpy(keys + t % slots * C, qkv + C, C * sizeof(float));
    memcpy(values + t % slots * C, qkv + 2 * C, C * sizeof(float));
#pragma omp parallel for schedule(static) if (seen * C > 16384)
    for (size_t h = 0; h < NH; h++)
        head_decode(out + h * HS, qkv + h * HS, keys + h * HS, values + h * HS, scores + h * room, &ring);
}
