/* test_decode.c: the kernels of generation against naive.h, for every instruction set: packed weights in fp32, bf16
 * and int8, the matvec, and attention over a cache that wraps around. */
#include "kernel_test.h"

/* The weight as it was stored, from a matvec with unit vectors: column c is the product with e_c. */
static void check_matvec(const char *isa, WeightType type, size_t OC, size_t C) {
    static const double step[] = {0, 1.0 / 256,
                                  0.5 / 127}; /* worst rounding, of the value or of the group's largest */
    float *w = test_random(OC * C, 1), *x = test_random(C, 1), *bias = test_random(OC, 1),
          *res = test_random(OC, 1);
    if (OC > 2) memset(w + C, 0, C * sizeof *w); /* a row of zeros: scale 0 */
    size_t bytes = packed_weight_bytes(type, OC, C);
    char *block = test_alloc(bytes + 63), *memory = block + (64 - (uintptr_t)block % 64) % 64;
    test_poison(block, bytes + 63);
    PackedWeight packed = packed_weight_make(type, memory, w, OC, C);
    double *w_stored = test_doubles(NULL, OC * C), *want = test_doubles(NULL, OC), worst = 0;
    float *unit = test_copy(x, C), *column = test_poisoned(OC);
    for (size_t c = 0; c < C; c++) {
        memset(unit, 0, C * sizeof *unit);
        unit[c] = 1;
        matvec_forward(column, unit, packed, NULL, NULL);
        test_sync();
        for (size_t i = 0; i < OC; i++) {
            w_stored[i * C + c] = (double)column[i];
            double off = fabs((double)column[i] - (double)w[i * C + c]);
            if (!(off <= worst)) worst = off;
        }
    }
    TEST_CHECK(worst <= step[type] * 1.01, "%s type %d OC %zu C %zu: stored off by %g", isa, (int)type, OC, C,
               worst);
    float *first = NULL;
    for (int threads = 1; threads <= 3; threads++)
        for (int with = 0; with < 4; with++) {
            test_threads(threads);
            float *out = test_poisoned(OC);
            if (with == 3) memcpy(out, res, OC * sizeof *out); /* the residual may be out */
            const float *residual = with == 3 ? out : with == 2 ? res : NULL;
            naive_matvec(want, test_doubles(x, C), w_stored, with ? test_doubles(bias, OC) : NULL,
                         residual ? test_doubles(res, OC) : NULL, OC, C);
            matvec_forward(out, x, packed, with ? bias : NULL, residual);
            test_near(isa, "matvec", out, want, OC, 1e-6);
            if (with == 3 && threads == 1) first = out;
            if (with == 3) test_same_bits(isa, "matvec", out, first, OC, threads);
        }
    test_free_all();
}

/* A sequence token by token must be what attention_forward makes of it at once. */
static void check_cache(const char *isa, size_t T, size_t slots, size_t NH, size_t HS, size_t window,
                        float scale) {
    size_t C = NH * HS, seen = window && window < slots ? window : slots;
    float *qkv = test_random(T * 3 * C, scale);
    double *want = test_doubles(NULL, T * C), *lse = test_doubles(NULL, NH * T);
    naive_attention_forward(want, lse, test_doubles(qkv, T * 3 * C), 1, T, NH, HS, seen);
    float *first = NULL;
    for (int threads = 1; threads <= 3; threads++) {
        test_threads(threads);
        float *out = test_poisoned(T * C), *keys = test_poisoned(slots * C),
              *values = test_poisoned(slots * C);
        for (size_t t = 0; t < T; t++)
            attention_decode(out + t * C, keys, values, qkv + t * 3 * C, t, slots, NH, HS, window);
        test_near(isa, "attention_decode", out, want, T * C, scale > 1 ? 2e-5 : 1e-6);
        if (threads == 1) first = out;
        test_same_bits(isa, "attention_decode", out, first, T * C, threads);
    }
    test_free_all();
}

static void check_isa(const char *isa) {
    const size_t shapes[][2] = {{1, 1}, {3, 5}, {4, 64}, {7, 63}, {5, 130}, {130, 65}, {12, 192}, {9, 331}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int type = WEIGHT_FP32; type <= WEIGHT_INT8; type++)
            check_matvec(isa, (WeightType)type, shapes[i][0], shapes[i][1]);
    check_cache(isa, 1, 1, 1, 1, 0, 1);
    check_cache(isa, 9, 16, 3, 5, 0, 1);
    check_cache(isa, 40, 40, 2, 64, 0, 1);
    check_cache(isa, 50, 13, 2, 20, 0, 1);
    check_cache(isa, 50, 33, 3, 80, 7, 1);
    check_cache(isa, 30, 20, 1, 7, 1, 1);
    check_cache(isa, 130, 128, 2, 64, 100, 20);
    check_cache(isa, 70, 64, 1, 128, 500, 1);
    check_cache(isa, 30, 17, 2, 150, 0, 1);
    check_cache(isa, 140, 200, 1, 36, 0, 1);
    check_cache(isa, 135, 131, 2, 7, 0, 1);
}

int main(void) {
    test_every_isa(check_isa);
    return test_end("decode");
}
