/* exact.c: gradients on grids, whose sums do not depend on any order: the arithmetic behind --reduce exact, and gradients
 * in bf16 for the wire. One pass over memory each.
 *
 * What always holds: scaling is by powers of two and so exact; rounding is to nearest even on every instruction set; a sum
 * never leaves int32, since every term is held below 2^bits and bits leaves room for all of them. */
#include "cpu/isa.h"
#include "cpu/simd.h"

enum { CHUNK = 64 * EXACT_BLOCK }; /* elements that one thread takes at a time */

typedef int32_t vi_unaligned __attribute__((vector_size(4 * VL), aligned(4), may_alias));
typedef float vhalf __attribute__((vector_size(2 * VL)));
typedef float vhalf_unaligned __attribute__((vector_size(2 * VL), aligned(4), may_alias));
typedef double vd __attribute__((vector_size(4 * VL)));

/* 2^exponent, -126 .. 127. */
static float power_of_two(int exponent) {
    uint32_t field = (uint32_t)(exponent + 127) << 23;
    float x;
    memcpy(&x, &field, sizeof x);
    return x;
}

/* Values of a block are below 2^this. Lower levels would need steps that are not normal numbers. */
static int ceiling(uint8_t level) {
    enum { LEVEL_MIN = 32 };
    return (level > LEVEL_MIN ? level : LEVEL_MIN) - 126;
}

/* x (|x| < 2^31) as integers, to nearest even. */
SIMD vi to_int(vf x) {
#if defined(__AVX512F__)
    return (vi)_mm512_cvtps_epi32(x);
#elif defined(__AVX2__)
    return (vi)_mm256_cvtps_epi32(x);
#elif defined(__ARM_NEON) && !defined(ISA_PORTABLE)
    return vcvtnq_s32_f32(x);
#else
    vf shift =
        v_from_bits((v_bits(x) & INT32_MIN) | v_bits(v_set1(8388608.0f))); /* 2^23 of x's sign: rounds */
    vi large = (v_bits(x) & INT32_MAX) >= v_bits(v_set1(8388608.0f));      /* is whole already */
    return __builtin_convertvector(v_select(large, x, (x + shift) - shift), vi);
#endif
}

SIMD vi larger(vi a, vi b) {
#if defined(__AVX512F__)
    return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b);
#elif defined(__ARM_NEON) && !defined(ISA_PORTABLE)
    return vmaxq_s32(a, b);
#else
    return (vi)v_select(a > b, (vf)a, (vf)b);
#endif
}

typedef struct {
    vf scale, limit;
    vi most; /* bits of the largest magnitude so far */
} Grid;

SIMD vi onto_grid(Grid *grid, vf x) {
    grid->most = larger(grid->most, v_bits(x) & INT32_MAX);
    return to_int(v_min(v_max(x * grid->scale, -grid->limit), grid->limit));
}

/* The exponent field of the largest magnitude. */
static uint8_t add_block(int32_t *sums, float *g, size_t n, int to, int bits, bool first) {
    Grid grid = {v_set1(power_of_two(bits - to)), v_set1(power_of_two(bits)), {0}};
    size_t i = 0;
    for (; i + VL <= n; i += VL) {
        vi_unaligned *sum = (vi_unaligned *)(sums + i);
        vi q = onto_grid(&grid, v_load(g + i));
        *sum = first ? q : (vi)*sum + q;
        v_store(g + i, (vf){0});
    }
    if (i < n) {
        vi q = onto_grid(&grid, v_load_n(g + i, n - i));
        for (size_t k = 0; i + k < n; k++) sums[i + k] = first ? q[k] : sums[i + k] + q[k];
        v_store_n(g + i, (vf){0}, n - i);
    }
    int32_t most = 0;
    for (int k = 0; k < VL; k++) most = grid.most[k] > most ? grid.most[k] : most;
    return (uint8_t)(most >> 23);
}

void KERNEL(exact_add)(int32_t *sums, floatX *g, uint8_t *most, const uint8_t *levels, size_t n, int bits,
                       bool first) {
#pragma omp parallel for schedule(static) if (n > CHUNK)
    for (size_t begin = 0; begin < n; begin += CHUNK)
        for (size_t at = begin; at < n && at < begin + CHUNK; at += EXACT_BLOCK) {
            size_t block = at / EXACT_BLOCK, length = n - at < EXACT_BLOCK ? n - at : EXACT_BLOCK;
            uint8_t has = add_block(sums + at, g + at, length, ceiling(levels[block]), bits, first);
            most[block] = first || has > most[block] ? has : most[block];
        }
}

/* In an order that depends on n alone. */
static double sum_squares(const float *x, size_t n) {
    enum { HALF = VL / 2, STREAMS = 4 };
    vd sums[STREAMS] = {{0}};
    size_t i = 0;
    for (; i + STREAMS * HALF <= n; i += STREAMS * HALF)
        for (size_t k = 0; k < STREAMS; k++) {
            vd wide = __builtin_convertvector((vhalf) * (const vhalf_unaligned *)(x + i + k * HALF), vd);
            sums[k] += wide * wide;
        }
    sums[0] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    double total = 0;
    for (int k = 0; k < HALF; k++) total += sums[0][k];
    for (; i < n; i++) total += (double)x[i] * (double)x[i];
    return total;
}

static void read_block(float *g, const int32_t *sums, size_t n, float step) {
    size_t i = 0;
    for (; i + VL <= n; i += VL)
        v_store(g + i, __builtin_convertvector((vi) * (const vi_unaligned *)(sums + i), vf) * step);
    for (; i < n; i++) g[i] = (float)sums[i] * step;
}

void KERNEL(exact_read)(floatX *g, double *squares, const int32_t *sums, const uint8_t *levels, size_t n,
                        int bits) {
#pragma omp parallel for schedule(static) if (n > CHUNK)
    for (size_t begin = 0; begin < n; begin += CHUNK)
        for (size_t at = begin; at < n && at < begin + CHUNK; at += EXACT_BLOCK) {
            size_t block = at / EXACT_BLOCK, length = n - at < EXACT_BLOCK ? n - at : EXACT_BLOCK;
            float step = power_of_two(ceiling(levels[block]) - bits);
            read_block(g + at, sums + at, length, step);
            squares[block] = sum_squares(g + at, length);
        }
}

/* --- bf16 --- */

void KERNEL(bf16_from_floats)(uint16_t *out, const floatX *x, size_t n) {
#pragma omp parallel for schedule(static) if (n > CHUNK)
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, nan = bits >> 16 | 0x40;
        out[i] = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? nan : rounded);
    }
}

void KERNEL(bf16_to_floats)(floatX *x, const uint16_t *in, size_t n) {
#pragma omp parallel for schedule(static) if (n > CHUNK)
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)in[i] << 16;
        memcpy(x + i, &bits, sizeof bits);
    }
}
