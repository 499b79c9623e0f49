/* adamw.c: one AdamW step, in one pass over memory: 16 bytes read and 16 written per parameter (the gradient is zeroed
 * on the way). Loshchilov, Hutter, arXiv 1711.05101, in the order of operations of PyTorch's. */
#include "cpu/isa.h"
#include "cpu/simd.h"
#include <math.h>

typedef struct {
    vf beta1, beta2, rest1, rest2, eps, step_size, shrink, root_scale, grad_scale;
} Constants;

/* Four vectors in, three out; the gradient is the caller's to zero. */
SIMD void update(const Constants *k, vf *p, vf g, vf *m, vf *v) {
    g *= k->grad_scale;
    *m = v_fma(k->rest1, g - *m, *m);
    *v = v_fma(k->rest2 * g, g, k->beta2 * *v);
    vf denominator = v_fma(v_sqrt(*v), k->root_scale, k->eps);
    *p = *p * k->shrink - k->step_size * (*m / denominator);
}

static void update_block(const Constants *k, float *p, float *g, float *m, float *v, size_t n) {
    size_t i = 0;
    for (; i + VL <= n; i += VL) {
        vf pi = v_load(p + i), mi = v_load(m + i), vi_ = v_load(v + i);
        update(k, &pi, v_load(g + i), &mi, &vi_);
        v_store(p + i, pi);
        v_store(m + i, mi);
        v_store(v + i, vi_);
        v_store(g + i, (vf){0});
    }
    size_t rest = n - i;
    if (rest) {
        vf pi = v_load_n(p + i, rest), mi = v_load_n(m + i, rest), vi_ = v_load_n(v + i, rest);
        update(k, &pi, v_load_n(g + i, rest), &mi, &vi_);
        v_store_n(p + i, pi, rest);
        v_store_n(m + i, mi, rest);
        v_store_n(v + i, vi_, rest);
        v_store_n(g + i, (vf){0}, rest);
    }
}

void KERNEL(adamw_kernel)(floatX *p, float *master, floatX *g, float *m, float *v, size_t n,
                          const AdamWArgs *a) {
    (void)master; /* floatX is float */
    double correction1 = 1 - pow((double)a->beta1, a->step), correction2 = 1 - pow((double)a->beta2, a->step);
    const Constants k = {
        .beta1 = v_set1(a->beta1),
        .beta2 = v_set1(a->beta2),
        .rest1 = v_set1((float)(1 - (double)a->beta1)),
        .rest2 = v_set1((float)(1 - (double)a->beta2)),
        .eps = v_set1(a->eps),
        .step_size = v_set1((float)((double)a->lr / correction1)),
        .shrink = v_set1((float)(1 - (double)a->lr * (double)a->decay)),
        .root_scale = v_set1((float)(1 / sqrt(correction2))),
        .grad_scale = v_set1(a->grad_scale),
    };
    const size_t block = 16384;
#pragma omp parallel for schedule(static) if (n > block)
    for (size_t at = 0; at < n; at += block)
        update_block(&k, p + at, g + at, m + at, v + at, n - at < block ? n - at : block);
}
