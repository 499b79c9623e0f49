/* test_attention.c: attention forward and backward against the naive form in double, for every instruction set; the
 * same bits for 1, 2, 3 and 7 threads. */
#include "kernel_test.h"

typedef struct {
    size_t B, T, NH, HS, window;
    float scale; /* of the inputs: 1 ordinary, 20 scores far apart */
} Shape;

static void check_shape(const char *isa, Shape s, Precision precision) {
    device_precision_set(precision);
    size_t N = s.B * s.T * s.NH * s.HS, rows = s.B * s.NH * s.T;
    float *qkv = test_random(3 * N, s.scale), *dout = test_random(N, 1);
    double *qkv_wide = test_doubles(qkv, 3 * N), *out_wide = test_doubles(NULL, N),
           *lse_wide = test_doubles(NULL, rows);
    double *dqkv_wide = test_doubles(NULL, 3 * N);
    naive_attention_forward(out_wide, lse_wide, qkv_wide, s.B, s.T, s.NH, s.HS, s.window);
    naive_attention_backward(dqkv_wide, test_doubles(dout, N), out_wide, lse_wide, qkv_wide, s.B, s.T, s.NH,
                             s.HS, s.window);
    float *first_out = NULL, *first_lse = NULL, *first_dqkv = NULL;
#ifdef TEST_CUDA
    const int threads[] = {1, 2, 3}; /* the orders of cuda_test.h */
#else
    const int threads[] = {1, 2, 3, 7};
#endif
    for (size_t i = 0; i < sizeof threads / sizeof *threads; i++) {
        test_threads(threads[i]);
        float *out = test_poisoned(N), *lse = test_poisoned(rows), *dqkv = test_poisoned(3 * N);
        attention_forward(out, lse, qkv, s.B, s.T, s.NH, s.HS, s.window);
        attention_backward(dqkv, dout, out, lse, qkv, s.B, s.T, s.NH, s.HS, s.window);
        if (!i) {
            char what[96];
            double bound = precision == PRECISION_BF16 ? 3e-3 : s.scale > 1 ? 2e-5 : 1e-6;
            snprintf(what, sizeof what, "B %zu T %zu NH %zu HS %zu window %zu", s.B, s.T, s.NH, s.HS,
                     s.window);
            test_near(isa, what, out, out_wide, N, bound);
            test_near(isa, what, lse, lse_wide, rows, bound);
            /* Absolute where the gradient is nearly nothing (one key: the softmax is constant). */
            test_near(isa, what, dqkv, dqkv_wide, 3 * N, 3 * bound);
            first_out = out, first_lse = lse, first_dqkv = dqkv;
        } else {
            test_same_bits(isa, "attention out", out, first_out, N, threads[i]);
            test_same_bits(isa, "attention lse", lse, first_lse, rows, threads[i]);
            test_same_bits(isa, "attention dqkv", dqkv, first_dqkv, 3 * N, threads[i]);
        }
    }
    test_free_all();
}

/* A NaN in one value reaches that column of its head at and after its row (and may reach the few rows before it
 * that share a tile), and nothing else. */
static void check_nan(const char *isa) {
    const size_t T = 150, NH = 2, HS = 16, C = NH * HS, at = 70;
    float *qkv = test_random(3 * T * C, 1), *out = test_poisoned(T * C), *lse = test_poisoned(NH * T);
    qkv[at * 3 * C + 2 * C] = NAN;
    attention_forward(out, lse, qkv, 1, T, NH, HS, 0);
    test_sync();
    size_t wrong = 0;
    for (size_t t = 0; t < T; t++) {
        for (size_t c = 0; c < C; c++) {
            bool is = isnan(out[t * C + c]), must = c == 0 && t >= at, may = c == 0 && t + 16 >= at;
            wrong += must ? !is : !may && is;
        }
    }
    TEST_CHECK(!wrong, "%s: %zu outputs", isa, wrong);
    test_free_all();
}

static void check_isa(const char *isa) {
    const Shape shapes[] = {
        {1, 1, 1, 1, 0, 1},     {2, 7, 3, 5, 0, 1},    {3, 33, 1, 5, 100, 1},  {1, 64, 2, 64, 0, 1},
        {1, 97, 1, 64, 33, 1},  {2, 130, 2, 80, 0, 1}, {1, 200, 2, 128, 1, 1}, {1, 257, 1, 64, 7, 1},
        {1, 300, 1, 3, 299, 1}, {2, 96, 5, 17, 96, 1}, {1, 193, 2, 64, 97, 1}, {1, 400, 1, 32, 200, 1},
        {1, 511, 1, 8, 0, 1},   {1, 199, 1, 48, 0, 1}, {1, 150, 2, 64, 0, 20}, {1, 230, 1, 40, 45, 20},
        {3, 50, 7, 24, 2, 1},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        check_shape(isa, shapes[i], PRECISION_FP32);
#ifndef TEST_CUDA /* its kernels round to bf16 where floatX is: test_cuda_attention.cu */
        if (shapes[i].scale <= 1)
            check_shape(isa, shapes[i], PRECISION_BF16); /* scores of 100 have no bits left in bf16 */
#endif
    }
    device_precision_set(PRECISION_FP32);
    check_nan(isa);
}

int main(void) {
    test_every_isa(check_isa);
    return test_end("attention");
}
