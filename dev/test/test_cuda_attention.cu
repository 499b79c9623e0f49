/* test_cuda_attention.cu: the attention kernels of llmc/cuda against the naive form in double: tensor-core and plain kernels,
 * odd lengths, windows, several heads; the same bits in three orders of threads. Under the shim, or on a GPU.
 *
 *   test_cuda_attention          all shapes
 *   test_cuda_attention quick    those that a missing barrier or wait does not survive (test_flash_mutants.py)
 *   test_cuda_attention file IN OUT B T NH HS WINDOW    on others' numbers (cuda_attention_torch.py): fp32, IN: qkv (B,T,3C)
 *                                and dout (B,T,C); OUT: out (B,T,C) and dqkv (B,T,3C) */
#include "cuda/attention.cuh"
#include "cuda_test.h"
#include "naive.h"
#include "test.h"

static void *scratch;
void *gpu_scratch(int, size_t bytes) { /* of exact size, so that a sanitizer sees a step outside it */
    cuda_test_free(scratch);
    scratch = cuda_test_alloc(bytes);
    test_poison(scratch, bytes);
    return scratch;
}

struct Shape {
    size_t B, T, NH, HS, window;
    float scale; /* of the inputs */
};

template <class T> static T *poisoned(size_t n) {
    T *x = static_cast<T *>(cuda_test_alloc(n * sizeof(T)));
    if (!x) {
        puts("cuda attention: no memory that a GPU reaches (is there a GPU?)");
        exit(1);
    }
    test_poison(x, n * sizeof(T));
    return x;
}
static double *doubles(size_t n) {
    return static_cast<double *>(calloc(n, sizeof(double)));
}

/* Random values as floatX; wide: the same, as they were rounded. */
static floatX *random_values(size_t n, float scale, uint64_t seed, double *wide) {
    floatX *x = poisoned<floatX>(n);
    float *values = static_cast<float *>(malloc(n * sizeof *values));
    test_fill(values, n, scale, seed);
    for (size_t i = 0; i < n; i++) {
        x[i] = from_float<floatX>(values[i]);
        wide[i] = (double)to_float(x[i]);
    }
    free(values);
    return x;
}

/* The distance of one third of a (rows,3,C) array, or of all of it (parts 1): relative, or absolute where the reference
 * is as good as zero (a window of 1: the softmax is constant). */
template <class T>
static double distance(const T *got, const double *want, size_t rows, size_t parts, size_t part, size_t C) {
    double error = 0, square = 0;
    for (size_t i = 0; i < rows; i++)
        for (size_t c = 0; c < C; c++) {
            size_t at = (i * parts + part) * C + c;
            double e = (double)to_float(got[at]) - want[at];
            error += e * e, square += want[at] * want[at];
        }
    double n = (double)(rows * C), r = square / n > 1e-8 ? sqrt(error / square) : sqrt(error / n);
    return isfinite(r) ? r : INFINITY;
}

static void check_shape(const Shape &s) {
    const size_t C = s.NH * s.HS, N = s.B * s.T, rows = s.B * s.NH * s.T;
    double *qkv_wide = doubles(3 * N * C), *dout_wide = doubles(N * C), *out_wide = doubles(N * C);
    double *lse_wide = doubles(rows), *dqkv_wide = doubles(3 * N * C);
    floatX *qkv = random_values(3 * N * C, s.scale, 1, qkv_wide);
    floatX *dout = random_values(N * C, 1, 2, dout_wide);
    naive_attention_forward(out_wide, lse_wide, qkv_wide, s.B, s.T, s.NH, s.HS, s.window);
    naive_attention_backward(dqkv_wide, dout_wide, out_wide, lse_wide, qkv_wide, s.B, s.T, s.NH, s.HS,
                             s.window);
    floatX *first_out = NULL, *first_dqkv = NULL;
    float *first_lse = NULL;
    char what[128];
    for (int order = 1; order <= 3; order++) {
        cuda_test_order(order);
        floatX *out = poisoned<floatX>(N * C), *dqkv = poisoned<floatX>(3 * N * C);
        float *lse = poisoned<float>(rows);
        attention_forward(out, lse, qkv, s.B, s.T, s.NH, s.HS, s.window);
        attention_backward(dqkv, dout, out, lse, qkv, s.B, s.T, s.NH, s.HS, s.window);
        cuda_test_sync();
        const double bound = sizeof(floatX) == 2 ? 4e-3 : 2e-6;
        /* dP - delta cancels where one key has nearly all of the softmax, and delta comes of out as it was rounded */
        const double factor = s.scale > 3 ? 2 : 1;
        double worst[5] = {distance(out, out_wide, N, 1, 0, C), distance(lse, lse_wide, rows, 1, 0, 1),
                           distance(dqkv, dqkv_wide, N, 3, 0, C), distance(dqkv, dqkv_wide, N, 3, 1, C),
                           distance(dqkv, dqkv_wide, N, 3, 2, C)};
        snprintf(what, sizeof what, "B %zu T %zu NH %zu HS %zu window %zu, order %d", s.B, s.T, s.NH, s.HS,
                 s.window, order);
        if (order == 1)
            printf("%s: out %.1e lse %.1e dq %.1e dk %.1e dv %.1e\n", what, worst[0], worst[1], worst[2],
                   worst[3], worst[4]);
        for (int i = 0; i < 5; i++)
            TEST_CHECK(worst[i] <= (i == 1             ? 1e-5
                                    : i == 2 || i == 3 ? factor * bound
                                                       : bound),
                       "%s: distance %d is %.3g", what, i, worst[i]);
        if (order == 1) {
            first_out = out, first_dqkv = dqkv, first_lse = lse;
            continue;
        }
        TEST_CHECK(!memcmp(out, first_out, N * C * sizeof *out), "%s: out has other bits", what);
        TEST_CHECK(!memcmp(lse, first_lse, rows * sizeof *lse), "%s: lse has other bits", what);
        TEST_CHECK(!memcmp(dqkv, first_dqkv, 3 * N * C * sizeof *dqkv), "%s: dqkv has other bits", what);
        cuda_test_free(out), cuda_test_free(dqkv), cuda_test_free(lse);
    }
    cuda_test_free(first_out), cuda_test_free(first_dqkv), cuda_test_free(first_lse);
    cuda_test_free(qkv), cuda_test_free(dout);
    free(qkv_wide), free(dout_wide), free(out_wide), free(lse_wide), free(dqkv_wide);
}

/* n floats from or to a file, as floatX here. */
static void floats_in(FILE *f, floatX *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float value;
        if (fread(&value, sizeof value, 1, f) != 1) puts("cuda attention: the file is too short"), exit(1);
        x[i] = from_float<floatX>(value);
    }
}
static void floats_out(FILE *f, const floatX *x, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float value = to_float(x[i]);
        if (fwrite(&value, sizeof value, 1, f) != 1) puts("cuda attention: cannot write"), exit(1);
    }
}

static int run_file(char **argv) {
    size_t sizes[5];
    for (int i = 0; i < 5; i++) sizes[i] = (size_t)atoll(argv[2 + i]);
    const size_t B = sizes[0], T = sizes[1], NH = sizes[2], HS = sizes[3], n = B * T * NH * HS;
    floatX *qkv = poisoned<floatX>(3 * n), *dout = poisoned<floatX>(n), *out = poisoned<floatX>(n),
           *dqkv = poisoned<floatX>(3 * n);
    float *lse = poisoned<float>(B * NH * T);
    FILE *in = fopen(argv[0], "rb"), *to = fopen(argv[1], "wb");
    if (!in || !to) puts("cuda attention: no such file"), exit(1);
    floats_in(in, qkv, 3 * n), floats_in(in, dout, n);
    attention_forward(out, lse, qkv, B, T, NH, HS, sizes[4]);
    attention_backward(dqkv, dout, out, lse, qkv, B, T, NH, HS, sizes[4]);
    cuda_test_sync();
    floats_out(to, out, n), floats_out(to, dqkv, 3 * n);
    bool ok = !fclose(to);
    fclose(in);
    cuda_test_free(qkv), cuda_test_free(dout), cuda_test_free(out), cuda_test_free(dqkv), cuda_test_free(lse);
    cuda_test_free(scratch);
    return ok ? 0 : 1;
}

int main(int argc, char **argv) {
    const Shape quick[] = {
        {1, 200, 1, 64, 100, 6}, {1, 257, 1, 64, 128, 1}, {1, 130, 1, 128, 0, 1}, {1, 40, 1, 8, 0, 1}};
    const Shape shapes[] = {
        /* tensor cores: one row, less than a tile, exact tiles, odd, windows of all kinds, scores far apart */
        {1, 1, 1, 64, 0, 1},
        {2, 7, 2, 64, 0, 1},
        {1, 64, 1, 64, 0, 1},
        {1, 129, 5, 64, 0, 1},
        {1, 128, 2, 64, 0, 1},
        {2, 131, 3, 64, 0, 1},
        {1, 257, 1, 64, 1, 1},
        {1, 300, 1, 64, 33, 1},
        {1, 320, 1, 64, 64, 1},
        {1, 321, 1, 64, 200, 1},
        {1, 150, 1, 64, 1000, 1},
        {1, 200, 1, 64, 0, 3},
        {1, 200, 1, 64, 0, 6},
        {1, 1, 1, 128, 0, 1},
        {2, 77, 2, 128, 0, 1},
        {1, 193, 1, 128, 45, 1},
        {1, 128, 1, 128, 1, 1},
        /* plain: any head size */
        {1, 1, 1, 1, 0, 1},
        {2, 33, 3, 5, 0, 1},
        {1, 70, 2, 80, 7, 1},
        {1, 65, 1, 32, 32, 1},
        {1, 40, 1, 300, 0, 1},
    };
    bool is_quick = argc > 1 && !strcmp(argv[1], "quick");
    gpu.sm_count = 1; /* so that heads are in several groups */
    if (argc == 9 && !strcmp(argv[1], "file")) return run_file(argv + 2);
    if (is_quick)
        for (const Shape &s : quick) check_shape(s);
    else
        for (const Shape &s : shapes) check_shape(s);
    cuda_test_free(scratch);
    return test_end("cuda attention");
}
