/* bench_gemm.c: the matmuls of GPT-2 124M, as a training step runs them, as a share of the peak of this machine.
 *
 *   build/bench/bench_gemm [--M=256,1024,4096] [--precision=fp32|bf16] [--rounds=7] [--layers=4] [--threads=0]
 *                          [--isa=auto]
 * A round walks the layers forward and backward, each with weights and activations of its own, so that caches are as
 * cold as in a step; the peak is measured before every round. Printed: medians per matmul, with what is fused into
 * it, and the total over a step of 12 layers and the head (in chunks of at most 1024 rows). */
#define _POSIX_C_SOURCE 200809L
#include "base/log.h"
#include "base/rng.h"
#include "bench.h"
#include "model/kernels.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *name;
    size_t C, OC;
    int per_step;                    /* how many a step of GPT-2 124M has */
    float *x, *w, *bias, *out, *pre; /* of all copies, one after the other */
    double seconds[2][64], flops,
        scale; /* per direction and round, of one copy; rows of a step / rows here */
} Shape;

enum { ROUNDS_MAX = 64, HEAD_ROWS = 1024 };

static size_t rows_of(const Shape *s, size_t M) {
    return s->per_step == 1 && M > HEAD_ROWS ? HEAD_ROWS : M;
}
static size_t copies_of(const Shape *s, int layers) {
    return s->per_step == 1 ? 1 : (size_t)layers;
}

static void allocate(Shape *s, size_t M, int layers) {
    size_t n = copies_of(s, layers), rows = rows_of(s, M);
    s->x = bench_floats(n * rows * s->C), s->w = bench_floats(n * s->OC * s->C),
    s->bias = bench_floats(n * s->OC);
    s->out = bench_floats(n * rows * s->OC), s->pre = bench_floats(n * rows * s->OC);
    s->flops = 2.0 * (double)(rows * s->C * s->OC);
    s->scale = (double)M / (double)rows;
}

static void release(Shape *s, size_t M, int layers) {
    size_t n = copies_of(s, layers), rows = rows_of(s, M);
    device_free(s->x, n * rows * s->C * 4), device_free(s->w, n * s->OC * s->C * 4);
    device_free(s->bias, n * s->OC * 4), device_free(s->out, n * rows * s->OC * 4);
    device_free(s->pre, n * rows * s->OC * 4);
}

static void forward(const Shape *s, size_t rows, size_t copy) {
    size_t at = copy * rows * s->OC;
    const float *x = s->x + copy * rows * s->C, *w = s->w + copy * s->OC * s->C,
                *bias = s->bias + copy * s->OC;
    if (!strcmp(s->name, "fc"))
        matmul_gelu_forward(s->out + at, s->pre + at, x, w, bias, rows, s->C, s->OC);
    else if (s->per_step == 1)
        matmul_forward(s->out, x, w, NULL, NULL, rows, s->C, s->OC);
    else
        matmul_forward(s->out + at, x, w, bias, s->C == s->OC || s->C > s->OC ? s->pre + at : NULL, rows,
                       s->C, s->OC);
}

/* Gradients of weights are written over the weights, which then are noise: nobody looks at the values. */
static void backward(const Shape *s, size_t rows, size_t copy, float *dx, float *dw) {
    const float *dout = s->out + copy * rows * s->OC, *w = s->w + copy * s->OC * s->C;
    float *x = s->x + copy * rows * s->C, *db = s->per_step == 1 ? NULL : s->bias + copy * s->OC;
    if (!strcmp(s->name, "proj"))
        matmul_gelu_backward(dx, x, dw, db, dout, x, w, rows, s->C, s->OC, true);
    else
        matmul_backward(dx, dw, db, dout, x, w, rows, s->C, s->OC);
}

static void bench(Shape *shapes, int count, size_t M, Precision precision, int rounds, int layers) {
    double peaks[ROUNDS_MAX];
    size_t dx_most = 0, dw_most = 0;
    for (int i = 0; i < count; i++) {
        Shape *s = &shapes[i];
        allocate(s, M, layers);
        size_t dx = rows_of(s, M) * s->C, dw = copies_of(s, layers) * s->OC * s->C;
        dx_most = dx > dx_most ? dx : dx_most;
        dw_most = dw > dw_most ? dw : dw_most;
    }
    float *dx = bench_floats(dx_most), *dw = bench_floats(dw_most);
    for (int round = -1; round < rounds; round++) { /* the first only warms up */
        int r = round < 0 ? 0 : round;
        peaks[r] = device_peak_flops(precision, 0.05);
        for (int i = 0; i < count; i++) shapes[i].seconds[0][r] = shapes[i].seconds[1][r] = 0;
        for (int pass = 0; pass < 2 * layers; pass++)
            for (int step = 0; step < count; step++) {
                bool back = pass >= layers;
                Shape *s = &shapes[back ? count - 1 - step : step];
                size_t n = copies_of(s, layers), copy = (size_t)(back ? 2 * layers - 1 - pass : pass);
                if (copy >= n) continue;
                double start = log_seconds();
                if (back)
                    backward(s, rows_of(s, M), copy, dx, dw + copy * s->OC * s->C);
                else
                    forward(s, rows_of(s, M), copy);
                s->seconds[back][r] += (log_seconds() - start) / (double)n;
            }
    }
    double peak = bench_median(peaks, rounds), flops = 0, seconds = 0;
    for (int i = 0; i < count; i++)
        for (int back = 0; back < 2; back++) {
            Shape *s = &shapes[i];
            double t = bench_median(s->seconds[back], rounds), f = s->flops * (back ? 2 : 1);
            printf("M %4zu %-5s C %4zu OC %5zu %-8s %8.3f ms %7.1f GFLOP/s %5.1f %% of peak\n", M, s->name,
                   s->C, s->OC, back ? "backward" : "forward", t * 1e3, f / t * 1e-9, 100 * f / t / peak);
            flops += f * s->per_step * s->scale;
            seconds += t * s->per_step * s->scale;
        }
    printf("M %4zu step                  total    %8.1f ms %7.1f GFLOP/s %5.1f %% of peak %.1f\n", M,
           seconds * 1e3, flops / seconds * 1e-9, 100 * flops / seconds / peak, peak * 1e-9);
    fflush(stdout);
    for (int i = 0; i < count; i++) release(&shapes[i], M, layers);
    device_free(dx, dx_most * 4), device_free(dw, dw_most * 4);
}

int main(int argc, char **argv) {
    Precision precision =
        !strcmp(bench_option(argc, argv, "--precision", "fp32"), "bf16") ? PRECISION_BF16 : PRECISION_FP32;
    int rounds = atoi(bench_option(argc, argv, "--rounds", "7")),
        layers = atoi(bench_option(argc, argv, "--layers", "4"));
    DeviceConfig config = {atoi(bench_option(argc, argv, "--threads", "0")), precision,
                           bench_option(argc, argv, "--isa", "auto")};
    const char *lengths = bench_option(argc, argv, "--M", "256,1024,4096");
    bench_options_end(argc, argv);
    Error err;
    if (rounds < 1 || rounds > ROUNDS_MAX || layers < 1) {
        fprintf(stderr, "--rounds: 1 to %d; --layers: 1 or more\n", ROUNDS_MAX);
        return EXIT_USAGE;
    }
    if (!device_open(&config, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return EXIT_USAGE;
    }
    fprintf(stderr, "%s\n", device_describe());
    for (const char *m = lengths; *m; m = strchr(m, ',') ? strchr(m, ',') + 1 : "") {
        Shape shapes[] = {{.name = "qkv", .C = 768, .OC = 2304, .per_step = 12},
                          {.name = "attn", .C = 768, .OC = 768, .per_step = 12},
                          {.name = "fc", .C = 768, .OC = 3072, .per_step = 12},
                          {.name = "proj", .C = 3072, .OC = 768, .per_step = 12},
                          {.name = "head", .C = 768, .OC = 50304, .per_step = 1}};
        bench(shapes, 5, (size_t)atoi(m), precision, rounds, layers);
    }
    return 0;
}
