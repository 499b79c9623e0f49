/* gelu.h: GELU and its derivative on one vector, the tanh form of Hendrycks, Gimpel, arXiv 1606.08415.
 *
 * 0.5 (1 + tanh(u)) = sigmoid(2u) = s, so gelu(x) = x s with u = sqrt(2/pi) (x + 0.044715 x^3): one power of two,
 * one reciprocal. It runs between the tiles of a matmul, so every instruction counts. NaN stays NaN. */
#ifndef LLMC_GELU_H
#define LLMC_GELU_H
#include "cpu/simd.h"

/* 1 / x to 1 ulp or so, for 1 <= x <= 2^126. */
SIMD vf v_reciprocal(vf x) {
#if defined(__AVX512F__)
    vf y = (vf)_mm512_rcp14_ps((__m512)x);
    return v_fma(y, v_fma(-x, y, v_set1(1.0f)), y);
#else
    return v_set1(1.0f) / x;
#endif
}

/* s(x) = 1 / (1 + 2^t) with t = -2u / ln 2, held within the exponents of a float. 2^t = 2^n 2^r with n whole and
 * |r| <= 1/2, where the polynomial is good to 2e-9. (The bounds come first in v_max and v_min: so NaN gets through.) */
SIMD vf v_gelu_sigmoid(vf x) {
    vf t = x * v_fma(x * x, v_set1(-0.10294324f), v_set1(-2.3022082f));
    t = v_min(v_set1(125.0f), v_max(v_set1(-125.0f), t));
    vf shifted = t + v_set1(12582912.0f); /* 1.5 * 2^23: rounds to a whole number */
    vf r = t - (shifted - v_set1(12582912.0f));
    vf p = v_set1(0.00015353347f);
    p = v_fma(p, r, v_set1(0.0013398875f));
    p = v_fma(p, r, v_set1(0.009618438f));
    p = v_fma(p, r, v_set1(0.055503324f));
    p = v_fma(p, r, v_set1(0.24022648f));
    p = v_fma(p, r, v_set1(0.6931472f));
    p = v_fma(p, r, v_set1(1.0f));
    vf scale = v_from_bits((v_bits(shifted) << 23) + v_bits(v_set1(1.0f)));
    return v_reciprocal(v_fma(p, scale, v_set1(1.0f)));
}

SIMD vf v_gelu(vf x) {
    return x * v_gelu_sigmoid(x);
}

/* gelu(x), and its derivative s + x s (1 - s) 2u' in *grad, for the price of one sigmoid. The second term is 0 for
 * large |x|, also where u' would overflow. */
SIMD vf v_gelu_both(vf x, vf *grad) {
    vf s = v_gelu_sigmoid(x), near = v_min(v_set1(1e6f), v_max(v_set1(-1e6f), x));
    vf du = v_fma(near * near, v_set1(0.21406445f), v_set1(1.5957691f));
    *grad = v_fma(near * s * (v_set1(1.0f) - s), du, s);
    return x * s;
}

SIMD vf v_gelu_grad(vf x) {
    vf grad;
    (void)v_gelu_both(x, &grad);
    return grad;
}
#endif
