/* simd.h: one vector of floats, for kernels that are written once and compiled for every instruction set.
 *
 * A file of this folder that includes isa.h is compiled once per ISA (Makefile: CPU_ISAS) with ISA set to its
 * name. vf is VL floats, vi the same number of int32; + - * / & | << work on them as on scalars (vector
 * extensions of gcc and clang). Partial loads and stores touch only the first n elements. */
#ifndef LLMC_SIMD_H
#define LLMC_SIMD_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define VL 16
#elif defined(__AVX2__)
#include <immintrin.h>
#define VL 8
#elif defined(__ARM_NEON) && !defined(ISA_PORTABLE)
#include <arm_neon.h>
#define VL 4
#else
#define VL 4
#endif

typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef float vf_unaligned __attribute__((vector_size(4 * VL), aligned(4), may_alias));
#define SIMD   static inline __attribute__((always_inline, unused))
#define UNROLL _Pragma("GCC unroll 16") /* before a loop over registers: they cannot be indexed */

SIMD vf v_set1(float x) {
    return x - (vf){0};
}
SIMD vf v_load(const float *p) {
    return *(const vf_unaligned *)p;
}
SIMD void v_store(float *p, vf x) {
    *(vf_unaligned *)p = x;
}
SIMD vi v_bits(vf x) {
    return (vi)x;
}
SIMD vf v_from_bits(vi x) {
    return (vf)x;
}
SIMD vf v_select(vi mask, vf yes, vf no) {
    return (vf)((mask & (vi)yes) | (~mask & (vi)no));
}

#if defined(__AVX512F__)
SIMD vf v_fma(vf a, vf b, vf c) {
    return _mm512_fmadd_ps(a, b, c);
}
/* v_max and v_min: where either is NaN the result is b, or NaN. */
SIMD vf v_max(vf a, vf b) {
    return _mm512_max_ps(a, b);
}
SIMD vf v_min(vf a, vf b) {
    return _mm512_min_ps(a, b);
}
SIMD vf v_sqrt(vf a) {
    return _mm512_sqrt_ps(a);
}
SIMD float v_sum(vf a) {
    return _mm512_reduce_add_ps(a);
}
SIMD float v_largest(vf a) {
    return _mm512_reduce_max_ps(a);
}
SIMD __mmask16 v_first(size_t n) {
    return (__mmask16)((1u << n) - 1u);
}
SIMD vf v_load_n(const float *p, size_t n) {
    return _mm512_maskz_loadu_ps(v_first(n), p);
}
SIMD void v_store_n(float *p, vf x, size_t n) {
    _mm512_mask_storeu_ps(p, v_first(n), x);
}
#else
SIMD vf v_load_n(const float *p, size_t n) {
    vf x = {0};
    memcpy(&x, p, n * sizeof(float));
    return x;
}
SIMD void v_store_n(float *p, vf x, size_t n) {
    memcpy(p, &x, n * sizeof(float));
}
#if defined(__AVX2__)
SIMD vf v_fma(vf a, vf b, vf c) {
    return _mm256_fmadd_ps(a, b, c);
}
SIMD vf v_max(vf a, vf b) {
    return _mm256_max_ps(a, b);
}
SIMD vf v_min(vf a, vf b) {
    return _mm256_min_ps(a, b);
}
SIMD vf v_sqrt(vf a) {
    return _mm256_sqrt_ps(a);
}
#elif defined(__ARM_NEON) && !defined(ISA_PORTABLE)
SIMD vf v_fma(vf a, vf b, vf c) {
    return vfmaq_f32(c, a, b);
}
SIMD vf v_max(vf a, vf b) {
    return vmaxq_f32(a, b);
}
SIMD vf v_min(vf a, vf b) {
    return vminq_f32(a, b);
}
SIMD vf v_sqrt(vf a) {
    return vsqrtq_f32(a);
}
#else
SIMD vf v_fma(vf a, vf b, vf c) {
    return a * b + c;
}
SIMD vf v_max(vf a, vf b) {
    return v_select(a > b, a, b);
}
SIMD vf v_min(vf a, vf b) {
    return v_select(a < b, a, b);
}
SIMD vf v_sqrt(vf a) {
    for (int i = 0; i < VL; i++) a[i] = __builtin_sqrtf(a[i]);
    return a;
}
#endif
SIMD float v_sum(vf a) {
    for (int half = VL / 2; half; half /= 2)
        for (int i = 0; i < half; i++) a[i] += a[i + half];
    return a[0];
}
SIMD float v_largest(vf a) {
    float most = a[0];
    for (int i = 1; i < VL; i++) most = a[i] > most ? a[i] : most;
    return most;
}
#endif

/* VL weights of two bytes (bf16) or one, as floats. */
#if defined(__AVX512F__)
SIMD vf v_load_bf16(const uint16_t *p) {
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p)), 16);
}
SIMD vf v_load_int8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
}
#elif defined(__AVX2__)
SIMD vf v_load_bf16(const uint16_t *p) {
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p)), 16);
}
SIMD vf v_load_int8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
}
#else
typedef uint8_t v_bytes __attribute__((vector_size(16)));
typedef uint16_t v_words __attribute__((vector_size(16)));
/* Four words, each into the high half of a lane. */
SIMD vi v_words_high(v_words words) {
    return (vi)__builtin_shufflevector((v_words){0}, words, 0, 8, 1, 9, 2, 10, 3, 11);
}
SIMD vf v_load_bf16(const uint16_t *p) {
    v_words words = {0};
    memcpy(&words, p, 8);
    return v_from_bits(v_words_high(words));
}
SIMD vf v_load_int8(const int8_t *p) {
    v_bytes bytes = {0};
    memcpy(&bytes, p, 4);
    bytes =
        __builtin_shufflevector((v_bytes){0}, bytes, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    return __builtin_convertvector(v_words_high((v_words)bytes) >> 24, vf);
}
#endif

/* e^x to within 1.2e-7 of itself; below -87.3 it is 0 to within 1e-38, above 88.3 it is e^88.3; NaN stays NaN.
 * Range reduction and polynomial as in Cephes expf. */
SIMD vf v_exp(vf x) {
    vf clamped = v_min(v_set1(88.3f), v_max(v_set1(-87.3f), x));
    vf shifted =
        v_fma(clamped, v_set1(1.44269504f), v_set1(12582912.0f)); /* 1.5 * 2^23: rounds to an integer */
    vf n = shifted - v_set1(12582912.0f);
    vf r = v_fma(n, v_set1(-0.693359375f), clamped);
    r = v_fma(n, v_set1(2.12194440e-4f), r);
    vf p = v_set1(1.9875691500e-4f);
    p = v_fma(p, r, v_set1(1.3981999507e-3f));
    p = v_fma(p, r, v_set1(8.3334519073e-3f));
    p = v_fma(p, r, v_set1(4.1665795894e-2f));
    p = v_fma(p, r, v_set1(1.6666665459e-1f));
    p = v_fma(p, r, v_set1(5.0000001201e-1f));
    p = v_fma(p, r * r, r + v_set1(1.0f));
    vf scale = v_from_bits((v_bits(shifted) << 23) + v_bits(v_set1(1.0f)));
    return p * scale;
}
#endif
