/* transpose.h: a square of VL vectors, transposed in registers. */
#ifndef LLMC_TRANSPOSE_H
#define LLMC_TRANSPOSE_H
#include "cpu/simd.h"

#if VL == 16
SIMD void v_transpose(vf square[VL]) {
    __m512i r[16], t[16];
    UNROLL for (int i = 0; i < 16; i++) r[i] = (__m512i)square[i];
    UNROLL for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    UNROLL for (int i = 0; i < 8; i++) {
        square[i] = (vf)_mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        square[i + 8] = (vf)_mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}
#else
/* Doubling: in round d, rows i and i + d exchange blocks of d columns. */
SIMD void v_transpose(vf square[VL]) {
    UNROLL for (int d = 1; d < VL; d *= 2) UNROLL for (int i = 0; i < VL; i++) {
        if (i & d) continue;
        vf low = square[i], high = square[i + d];
#if VL == 8
        square[i] = d == 1   ? __builtin_shufflevector(low, high, 0, 8, 2, 10, 4, 12, 6, 14)
                    : d == 2 ? __builtin_shufflevector(low, high, 0, 1, 8, 9, 4, 5, 12, 13)
                             : __builtin_shufflevector(low, high, 0, 1, 2, 3, 8, 9, 10, 11);
        square[i + d] = d == 1   ? __builtin_shufflevector(low, high, 1, 9, 3, 11, 5, 13, 7, 15)
                        : d == 2 ? __builtin_shufflevector(low, high, 2, 3, 10, 11, 6, 7, 14, 15)
                                 : __builtin_shufflevector(low, high, 4, 5, 6, 7, 12, 13, 14, 15);
#else
        square[i] = d == 1 ? __builtin_shufflevector(low, high, 0, 4, 2, 6)
                           : __builtin_shufflevector(low, high, 0, 1, 4, 5);
        square[i + d] = d == 1 ? __builtin_shufflevector(low, high, 1, 5, 3, 7)
                               : __builtin_shufflevector(low, high, 2, 3, 6, 7);
#endif
    }
}
#endif
#endif
