/* encoder.c: token and position embeddings: rows gathered forward, rows scattered backward.
 *
 * Backward, many rows of dout may go to one row of dwte. Each thread owns a range of columns and walks the rows in
 * order, so nothing is added by two threads and the order of additions is the order of the rows. */
#include "cpu/isa.h"
#include "cpu/simd.h"
#include <omp.h>

void KERNEL(encoder_forward)(floatX *out, const int32_t *tokens, const floatX *wte, const floatX *wpe,
                             size_t B, size_t T, size_t C) {
#pragma omp parallel for schedule(static) if (B * T * C > 16384)
    for (size_t row = 0; row < B * T; row++) {
        const float *token = wte + (size_t)tokens[row] * C, *position = wpe + row % T * C;
        for (size_t c = 0; c < C; c++) out[row * C + c] = token[c] + position[c];
    }
}

static void add_columns(float *restrict to, const float *restrict from, size_t n) {
    for (size_t c = 0; c < n; c++) to[c] += from[c];
}

void KERNEL(encoder_backward)(floatX *dwte, floatX *dwpe, const floatX *dout, const int32_t *tokens, size_t B,
                              size_t T, size_t C) {
    const size_t line = 64 / sizeof(float); /* threads share no cache line */
    size_t lines = (C + line - 1) / line;
#pragma omp parallel if (B * T * C > 16384)
    {
        size_t threads = (size_t)omp_get_num_threads(), thread = (size_t)omp_get_thread_num();
        size_t from = lines * thread / threads * line, to = lines * (thread + 1) / threads * line;
        if (to > C) to = C;
        for (size_t row = 0; row < B * T && from < to; row++) {
            const float *d = dout + row * C + from;
            add_columns(dwte + (size_t)tokens[row] * C + from, d, to - from);
            add_columns(dwpe + row % T * C + from, d, to - from);
        }
    }
}
