/* classifier.c: softmax, cross-entropy and its gradient in place, a row at a time: a row of 50,304 logits is 200 KB
 * and stays in L2 for its three passes (maximum; exponentials and their sum; gradient).
 *
 * A NaN among the first V logits makes the loss NaN: the maximum passes over it, the sum does not. */
#include "base/check.h"
#include "cpu/isa.h"
#include "cpu/simd.h"
#include <math.h>
#include <stdbool.h>

SIMD float row_max(const float *x, size_t V) {
    vf most[4];
    for (size_t k = 0; k < 4; k++) most[k] = v_set1(x[0]);
    size_t i = 0;
    for (; i + 4 * VL <= V; i += 4 * VL)
        for (size_t k = 0; k < 4; k++) most[k] = v_max(v_load(x + i + k * VL), most[k]);
    float tail = x[0];
    for (; i < V; i++) tail = x[i] > tail ? x[i] : tail;
    float all = v_largest(v_max(v_max(most[0], most[1]), v_max(most[2], most[3])));
    return tail > all ? tail : all;
}

/* Sum of e^(x - max); keeps the exponentials in x if `keep`. Meanwhile the next row is fetched: memory works while the
 * exponentials are computed. */
SIMD float row_exp_sum(float *x, float max, size_t V, const float *next, bool keep) {
    vf sum[2] = {{0}}, m = v_set1(max);
    size_t i = 0;
    for (; i + 2 * VL <= V; i += 2 * VL)
        for (size_t k = 0; k < 2; k++) {
            if ((i + k * VL) % 16 == 0) __builtin_prefetch(next + i + k * VL, 0, 2);
            vf e = v_exp(v_load(x + i + k * VL) - m);
            sum[k] += e;
            if (keep) v_store(x + i + k * VL, e);
        }
    for (; i < V; i += VL) {
        size_t n = V - i < VL ? V - i : VL;
        vf e = v_exp(v_load_n(x + i, n) - m);
        if (keep) v_store_n(x + i, e, n);
        float lanes[VL];
        v_store(lanes, e);
        for (size_t k = 0; k < n; k++) sum[0][k] += lanes[k];
    }
    return v_sum(sum[0] + sum[1]);
}

static float row_classify(float *x, int32_t target, float dloss, size_t V, size_t Vp, const float *next) {
    if (target < 0) {
        if (dloss != 0) memset(x, 0, Vp * sizeof(float));
        return 0;
    }
    CHECK_OP(target, <, V);
    float max = row_max(x, V), wanted = x[target];
    float sum = dloss != 0 ? row_exp_sum(x, max, V, next, true) : row_exp_sum(x, max, V, next, false);
    float loss = (float)(log((double)sum) + ((double)max - (double)wanted));
    if (dloss == 0) return loss;
    float scale = dloss / sum;
    for (size_t i = 0; i < V; i++) x[i] *= scale;
    x[target] -= dloss;
    memset(x + V, 0, (Vp - V) * sizeof(float));
    return loss;
}

void KERNEL(classifier)(floatX *logits, float *losses, const int32_t *targets, float dloss, size_t N,
                        size_t V, size_t Vp) {
#pragma omp parallel for schedule(dynamic, 16) if (N * V > 16384)
    for (size_t row = 0; row < N; row++) {
        float *x = logits + row * Vp;
        losses[row] = row_classify(x, targets[row], dloss, V, Vp, row + 1 < N ? x + Vp : x);
    }
}
