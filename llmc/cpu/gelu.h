/* gelu.h: GELU and its derivative on one vector, the tanh form of Hendrycks, Gimpel, arXiv 1606.08415.
 *
 * 0.5 (1 + tanh(u)) = sigmoid(2u) = s, so gelu(x) = x s with u = sqrt(2/pi) (x + 0.044715 x^3); one
 * exponential and one division. NaN stays NaN. */
#ifndef LLMC_GELU_H
#define LLMC_GELU_H
#include "cpu/simd.h"

/* s(x) = 1 / (1 + e^(-2u)); 0 where the exponential would overflow, so that x s is 0 there. */
SIMD vf v_gelu_sigmoid(vf x) {
    vf cubic = v_fma(x * x, v_set1(0.044715f), v_set1(1.0f));
    vf exponent = x * cubic * v_set1(-1.5957691216f);
    vf s = v_set1(1.0f) / (v_set1(1.0f) + v_exp(exponent));
    return v_select(exponent > v_set1(88.0f), (vf){0}, s);
}

SIMD vf v_gelu(vf x) {
    return x * v_gelu_sigmoid(x);
}

/* gelu(x), and its derivative s + x s (1 - s) 2u' in *grad: both for the price of one exponential. Where s is
 * 0 or 1 the second term is 0, also where 2u' has overflowed. */
SIMD vf v_gelu_both(vf x, vf *grad) {
    vf s = v_gelu_sigmoid(x), x_safe = v_min(v_max(x, v_set1(-1e6f)), v_set1(1e6f));
    vf du = v_fma(x_safe * x_safe, v_set1(3 * 0.044715f), v_set1(1.0f)) * v_set1(1.5957691216f);
    vf xs = x * s;
    *grad = v_fma(x_safe * s * (v_set1(1.0f) - s), du, s);
    *grad = v_select(x == x, *grad, x);
    return xs;
}

SIMD vf v_gelu_grad(vf x) {
    vf grad;
    (void)v_gelu_both(x, &grad);
    return grad;
}
#endif
