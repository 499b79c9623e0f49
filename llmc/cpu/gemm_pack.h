/* gemm_pack.h: copies parts of an operand into the panels that gemm_kernel.h reads, rounding to bf16 on the way.
 *
 * Packing is the only cost of a matmul that is not multiplication, so the common cases move whole vectors; only a B
 * operand that lies along k needs a transpose. Rows and k past the end are filled with zeros. */
#ifndef LLMC_GEMM_PACK_H
#define LLMC_GEMM_PACK_H
#include "cpu/gemm.h"
#include "cpu/gemm_kernel.h"
#include "cpu/transpose.h"

/* Rows row .. row + rows of an operand at depth k .. k + depth, as panels of a fixed number of rows. */
typedef struct {
    const float *data; /* of (row, k) */
    size_t stride, rows, depth;
    bool along_k;
    GemmWords words;
} GemmPart;

static size_t gemm_steps(size_t depth, GemmWords words) {
    size_t steps = words == WORDS_PAIRS ? (depth + 1) / 2 : depth;
    return (steps + VL - 1) / VL * VL;
}
static size_t gemm_min(size_t a, size_t b) {
    return a < b ? a : b;
}

/* x rounded to the nearest bf16, ties to even; NaN stays NaN. */
SIMD vf v_round_bf16(vf x) {
    vi bits = v_bits(x);
    vi rounded = (bits + 0x7fff + ((bits >> 16) & 1)) & (int32_t)0xffff0000;
    return v_select(x == x, v_from_bits(rounded), x);
}

SIMD vf v_load_upto(const float *p, size_t n) {
    return n >= VL ? v_load(p) : v_load_n(p, n);
}

/* The words of VL steps of one row, n elements of which exist. */
SIMD vf gemm_row_words(const float *row, size_t n, GemmWords words) {
#ifdef __AVX512BF16__
    if (words == WORDS_PAIRS) {
        vf low = v_load_upto(row, n), high = n > VL ? v_load_upto(row + VL, n - VL) : (vf){0};
        return (vf)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    }
#endif
    vf x = v_load_upto(row, n);
    return words == WORDS_ROUNDED ? v_round_bf16(x) : x;
}

/* --- panels of A that lies along k: [chunk][MR][VL] --- */

SIMD void gemm_pack_rows_as(float *panels, size_t panel_words, const GemmPart *p, GemmWords words) {
    const size_t chunk_depth = words == WORDS_PAIRS ? 2 * VL : VL;
    for (size_t row = 0; row < (p->rows + MR - 1) / MR * MR; row++) {
        float *to = panels + row / MR * panel_words + row % MR * VL;
        const float *from = p->data + row * p->stride;
        size_t k = 0;
        if (row < p->rows)
            for (; k + chunk_depth <= p->depth; k += chunk_depth, to += MR * VL)
                v_store(to, gemm_row_words(from + k, chunk_depth, words));
        for (; k < p->depth; k += chunk_depth, to += MR * VL)
            v_store(to, row < p->rows ? gemm_row_words(from + k, p->depth - k, words) : (vf){0});
    }
}

/* --- panels of B that lies along k: [step][NR], by transposing squares --- */

SIMD void gemm_pack_transposed_as(float *panels, size_t panel_words, const GemmPart *p, GemmWords words) {
    const size_t chunk_depth = words == WORDS_PAIRS ? 2 * VL : VL;
    for (size_t row = 0; row < (p->rows + NR - 1) / NR * NR; row += VL) {
        float *to = panels + row / NR * panel_words + row % NR;
        const float *from = p->data + row * p->stride;
        size_t rows = row < p->rows ? gemm_min(p->rows - row, VL) : 0;
        for (size_t k = 0; k < p->depth; k += chunk_depth, to += VL * NR) {
            size_t depth = p->depth - k;
            vf square[VL];
            if (rows == VL && depth >= chunk_depth) {
                UNROLL for (size_t i = 0; i < VL; i++) square[i] =
                    gemm_row_words(from + i * p->stride + k, chunk_depth, words);
            } else {
                for (size_t i = 0; i < VL; i++)
                    square[i] = i < rows ? gemm_row_words(from + i * p->stride + k, depth, words) : (vf){0};
            }
            v_transpose(square);
            UNROLL for (size_t i = 0; i < VL; i++) v_store(to + i * NR, square[i]);
        }
    }
}

/* --- panels of either operand that lies along its rows: [step][R] --- */

/* One step of one panel: R words from row k (and, as pairs, from the next; NULL if there is none). */
SIMD void gemm_step_words(float *to, const float *k0, const float *k1, int R, GemmWords words) {
#ifdef __AVX512BF16__
    if (words == WORDS_PAIRS) {
        const __m512i interleave =
            _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                             5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        UNROLL for (int i = 0; i + VL <= R; i += VL) {
            __m512 low = _mm512_loadu_ps(k0 + i), high = k1 ? _mm512_loadu_ps(k1 + i) : _mm512_setzero_ps();
            __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high, low);
            _mm512_storeu_si512(to + i, _mm512_permutexvar_epi16(interleave, both));
        }
        if (R % VL) { /* R is MR, half a vector */
            __m512 both = _mm512_castps256_ps512(_mm256_loadu_ps(k0));
            both = _mm512_insertf32x8(both, k1 ? _mm256_loadu_ps(k1) : _mm256_setzero_ps(), 1);
            const __m256i halves = _mm256_set_epi16(15, 7, 14, 6, 13, 5, 12, 4, 11, 3, 10, 2, 9, 1, 8, 0);
            __m256i packed = (__m256i)_mm512_cvtneps_pbh(both);
            _mm256_storeu_si256((__m256i *)(void *)to, _mm256_permutexvar_epi16(halves, packed));
        }
        return;
    }
#endif
    (void)k1;
    int whole = R / VL * VL;
    UNROLL for (int i = 0; i < whole; i += VL) {
        vf x = v_load(k0 + i);
        v_store(to + i, words == WORDS_ROUNDED ? v_round_bf16(x) : x);
    }
    if (R > whole) {
        vf x = v_load_n(k0 + whole, (size_t)(R - whole));
        v_store_n(to + whole, words == WORDS_ROUNDED ? v_round_bf16(x) : x, (size_t)(R - whole));
    }
}

SIMD void gemm_pack_steps_as(float *panels, size_t panel_words, const GemmPart *p, int R, GemmWords words) {
    const size_t step_depth = words == WORDS_PAIRS ? 2 : 1, whole = p->rows / (size_t)R,
                 rest = p->rows % (size_t)R;
    const size_t steps = gemm_steps(p->depth, words);
    for (size_t step = 0; step < steps; step++) {
        size_t k = step * step_depth;
        float *to = panels + step * (size_t)R;
        const float *k0 = p->data + k * p->stride, *k1 = k + 1 < p->depth ? k0 + p->stride : NULL;
        if (k >= p->depth) {
            for (size_t i = 0; i < whole + (rest > 0); i++) memset(to + i * panel_words, 0, (size_t)R * 4);
            continue;
        }
        for (size_t i = 0; i < whole; i++, to += panel_words, k0 += R, k1 = k1 ? k1 + R : NULL)
            gemm_step_words(to, k0, k1, R, words);
        if (rest) {
            float edge[2][NR] = {{0}};
            memcpy(edge[0], k0, rest * sizeof(float));
            if (k1) memcpy(edge[1], k1, rest * sizeof(float));
            gemm_step_words(to, edge[0], edge[1], R, words);
        }
    }
}

/* Packs all panels of a part; the next one starts panel_words after. */
static void gemm_pack_a(float *panels, size_t panel_words, const GemmPart *p) {
    if (p->along_k) {
        if (p->words == WORDS_FP32)
            gemm_pack_rows_as(panels, panel_words, p, WORDS_FP32);
        else if (p->words == WORDS_ROUNDED)
            gemm_pack_rows_as(panels, panel_words, p, WORDS_ROUNDED);
        else
            gemm_pack_rows_as(panels, panel_words, p, WORDS_PAIRS);
    } else {
        if (p->words == WORDS_FP32)
            gemm_pack_steps_as(panels, panel_words, p, MR, WORDS_FP32);
        else if (p->words == WORDS_ROUNDED)
            gemm_pack_steps_as(panels, panel_words, p, MR, WORDS_ROUNDED);
        else
            gemm_pack_steps_as(panels, panel_words, p, MR, WORDS_PAIRS);
    }
}
static void gemm_pack_b(float *panels, size_t panel_words, const GemmPart *p) {
    if (p->along_k) {
        if (p->words == WORDS_FP32)
            gemm_pack_transposed_as(panels, panel_words, p, WORDS_FP32);
        else if (p->words == WORDS_ROUNDED)
            gemm_pack_transposed_as(panels, panel_words, p, WORDS_ROUNDED);
        else
            gemm_pack_transposed_as(panels, panel_words, p, WORDS_PAIRS);
    } else {
        if (p->words == WORDS_FP32)
            gemm_pack_steps_as(panels, panel_words, p, NR, WORDS_FP32);
        else if (p->words == WORDS_ROUNDED)
            gemm_pack_steps_as(panels, panel_words, p, NR, WORDS_ROUNDED);
        else
            gemm_pack_steps_as(panels, panel_words, p, NR, WORDS_PAIRS);
    }
}

/* sums (rows) += the part's rows added over k, in order; the part is not along_k. */
static void gemm_sum_rows(float *sums, const GemmPart *p) {
    size_t row = 0;
    for (; row + 2 * VL <= p->rows; row += 2 * VL) {
        vf low = {0}, high = {0};
        for (size_t k = 0; k < p->depth; k++) {
            low += v_load(p->data + k * p->stride + row);
            high += v_load(p->data + k * p->stride + row + VL);
        }
        v_store(sums + row, v_load(sums + row) + low);
        v_store(sums + row + VL, v_load(sums + row + VL) + high);
    }
    for (; row < p->rows; row++) {
        float sum = 0;
        for (size_t k = 0; k < p->depth; k++) sum += p->data[k * p->stride + row];
        sums[row] += sum;
    }
}
#endif
