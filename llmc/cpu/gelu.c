/* gelu.c: GELU by itself, for generation; in training it is fused into the matmuls. */
#include "cpu/gelu.h"
#include "cpu/isa.h"

void KERNEL(gelu_forward)(floatX *out, const floatX *x, size_t n) {
    size_t whole = n / VL * VL;
#pragma omp parallel for schedule(static) if (n > 65536)
    for (size_t i = 0; i < whole; i += VL) v_store(out + i, v_gelu(v_load(x + i)));
    if (whole < n) v_store_n(out + whole, v_gelu(v_load_n(x + whole, n - whole)), n - whole);
}
