/* bench_walk.cu: every kind of work in a training step of GPT-2 124M: how often, bytes that memory must move, FLOP, the time
 * that the slower of the two bounds it to, and the time that it takes here. Where measured is far above the bound is
 * where to look.
 *
 *   bench_walk [--B=64] [--T=1024] [--batches=8] [--head-rows=16384] [--bandwidth=4.0] [--tflops=700] [--runs=10]
 * --batches: micro-batches of a step. --bandwidth in TB/s and --tflops: what can be reached; the defaults are an H200's.
 * --runs=0: the bounds only, which needs no GPU. Bytes count each input and output once, and nothing twice. */
#include "bench_gpu.h"
#include "cuda/adamw.cuh"
#include "cuda/attention.cuh"
#include "cuda/classifier.cuh"
#include "cuda/device.cuh"
#include "cuda/encoder.cuh"
#include "cuda/layernorm.cuh"
#include "cuda/matmul.cuh"
#include "cuda/norm.cuh"
#include <functional>
#include <vector>

static const size_t C = 768, NH = 12, L = 12, V = 50257, Vp = 50304, CONTEXT = 1024;
static const size_t PARAMS = Vp * C + CONTEXT * C + L * (12 * C * C + 13 * C) + 2 * C;

struct Work {
    const char *name;
    double times, bytes, flop; /* in a step; of one time */
    std::function<void()> run;
};

/* Memory that the work is tried on: the largest of each kind; what is in it does not matter. */
struct Arrays {
    floatX *wide[3], *narrow[4], *logits, *params, *grads;
    float *stats[2], *lse, *moments[3];
    int32_t *tokens;
};

static void *take(size_t bytes) {
    void *memory = device_alloc(bytes);
    if (memory) return memory;
    fprintf(stderr, "bench_walk: no memory for %zu bytes (use a smaller --B)\n", bytes);
    exit(EXIT_FAILED);
}
static floatX *take_values(size_t n) {
    return static_cast<floatX *>(take(n * sizeof(floatX)));
}
static float *take_floats(size_t n) {
    return static_cast<float *>(take(n * sizeof(float)));
}

/* Values of normal size, since zeros multiply with less power, and so at higher clocks; tokens as often as in text: a
 * few of them very often. */
static __global__ void fill_kernel(floatX *x, int32_t *tokens, size_t n, float scale) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    uint32_t h = (uint32_t)i * 0x9e3779b9u;
    h = (h ^ h >> 16) * 0x85ebca6bu, h = (h ^ h >> 13) * 0xc2b2ae35u, h ^= h >> 16;
    float u = (float)(h >> 8) * 0x1p-24f;
    if (x) x[i] = from_float<floatX>((2 * u - 1) * scale);
    if (tokens) tokens[i] = (int32_t)(powf((float)V, u) - 1);
}
static floatX *take_random(size_t n, float scale) {
    floatX *x = take_values(n);
    LAUNCH(fill_kernel, blocks_for(n, 256), 256, 0, gpu.stream, x, (int32_t *)NULL, n, scale);
    return x;
}

static Arrays arrays_open(size_t N, size_t head_rows) {
    Arrays a = {};
    for (floatX *&x : a.wide) x = take_random(N * 4 * C, 1);
    for (floatX *&x : a.narrow) x = take_random(N * C, 1);
    a.logits = take_random(head_rows * Vp, 1);
    a.params = take_random(PARAMS, 0.02f), a.grads = take_values(PARAMS);
    for (float *&x : a.stats) x = take_floats(N);
    a.lse = take_floats(N * NH);
    for (float *&x : a.moments) x = take_floats(PARAMS);
    a.tokens = static_cast<int32_t *>(take(N * sizeof(int32_t)));
    LAUNCH(fill_kernel, blocks_for(N, 256), 256, 0, gpu.stream, (floatX *)NULL, a.tokens, N, 0.0f);
    return a;
}

/* The products of one matmul's backward, apart; epilogue and pre as in matmul_gelu_backward. */
static void input_gradient(floatX *dx, const floatX *dout, const floatX *w, floatX *pre, size_t N, size_t in,
                           size_t out) {
    Gemm g = {};
    g.out = dx, g.a = dout, g.b = w, g.rows = N, g.cols = in, g.inner = out;
    g.pre = pre, g.epilogue = pre ? EPILOGUE_DGELU : EPILOGUE_NONE;
    gemm(g);
}

static std::vector<Work> walk(const Arrays &a, size_t B, size_t T, double batches, size_t rows) {
    const size_t N = B * T;
    const double X = sizeof(floatX), NC = X * (double)(N * C), CC = X * (double)(C * C), layers = L * batches;
    const double flop = 2 * (double)(N * C * C), logits = X * (double)(rows * Vp),
                 head = X * (double)(Vp * C);
    const double head_flop = 2 * (double)(rows * C) * Vp, parts = batches * (double)N / (double)rows;
    const double pairs_flop = 2 * (double)(N * C) * (double)(T + 1), all = (double)PARAMS;
    floatX *const *x = a.narrow, *const *y = a.wide, *p = a.params, *g = a.grads, *bias = p + 1024;
    auto forward = [=](floatX *out, floatX *in, floatX *residual, size_t from, size_t to) {
        return [=] { matmul_forward(out, in, p, bias, residual, N, from, to); };
    };
    auto weights = [=](floatX *dout, floatX *in, size_t from, size_t to) {
        return [=] { matmul::add_weight_gradient(g, NULL, dout, in, N, from, to); };
    };
    auto sums = [=](size_t cols) { return [=] { matmul::add_column_sums<WIDE>(g, y[0], N, cols); }; };
    auto inputs = [=](floatX *dx, floatX *dout, floatX *pre, size_t from, size_t to) {
        return [=] { input_gradient(dx, dout, p, pre, N, from, to); };
    };
    AdamWArgs step = {};
    step.lr = 1e-4f, step.beta1 = 0.9f, step.beta2 = 0.95f, step.eps = 1e-8f, step.grad_scale = 1,
    step.step = 1;
    return {
        {"encoder forward", batches, 2 * NC, 0,
         [=] { encoder_forward(x[0], a.tokens, p, p + Vp * C, B, T, C); }},
        {"LayerNorm forward", 2 * layers + batches, 2 * NC, 0,
         [=] { layernorm_forward(x[0], a.stats[0], a.stats[1], x[1], bias, bias, N, C); }},
        {"qkv", layers, 4 * NC + 3 * CC, 3 * flop, forward(y[0], x[0], NULL, C, 3 * C)},
        {"attention forward", layers, 4 * NC, pairs_flop,
         [=] { attention_forward(x[0], a.lse, y[0], B, T, NH, C / NH, 0); }},
        {"attention projection + residual", layers, 3 * NC + CC, flop, forward(x[0], x[1], x[2], C, C)},
        {"up + GELU", layers, 9 * NC + 4 * CC, 4 * flop,
         [=] { matmul_gelu_forward(y[0], y[1], x[0], p, bias, N, C, 4 * C); }},
        {"down + residual", layers, 6 * NC + 4 * CC, 4 * flop, forward(x[0], y[0], x[1], 4 * C, C)},
        {"head: logits", parts, X * (double)(rows * C) + head + logits, head_flop,
         [=] { matmul_forward(a.logits, x[0], p, NULL, NULL, rows, C, Vp); }},
        {"head: classifier", parts, 2 * logits, 0,
         [=] { classifier(a.logits, a.lse, a.tokens, 1e-6f, rows, V, Vp); }},
        {"head: dx and dw", parts, 2 * (X * (double)(rows * C) + logits) + 3 * head, 2 * head_flop,
         [=] { matmul_backward(x[0], g, NULL, a.logits, x[1], p, rows, C, Vp); }},
        {"down: dGELU", layers, 9 * NC + 4 * CC, 4 * flop, inputs(y[0], x[0], y[1], 4 * C, C)},
        {"down: dw", layers, 5 * NC + 8 * CC, 4 * flop, weights(x[0], y[0], 4 * C, C)},
        {"up: dx", layers, 5 * NC + 4 * CC, 4 * flop, inputs(x[0], y[0], NULL, C, 4 * C)},
        {"up: dw", layers, 5 * NC + 8 * CC, 4 * flop, weights(y[0], x[0], C, 4 * C)},
        {"attention projection: dx", layers, 2 * NC + CC, flop, inputs(x[0], x[1], NULL, C, C)},
        {"attention projection: dw", layers, 2 * NC + 2 * CC, flop, weights(x[0], x[1], C, C)},
        {"attention backward", layers, 8 * NC, 2.5 * pairs_flop,
         [=] { attention_backward(y[0], x[0], x[1], a.lse, y[1], B, T, NH, C / NH, 0); }},
        {"qkv: dx", layers, 4 * NC + 3 * CC, 3 * flop, inputs(x[0], y[0], NULL, C, 3 * C)},
        {"qkv: dw", layers, 4 * NC + 6 * CC, 3 * flop, weights(y[0], x[0], C, 3 * C)},
        {"bias gradients of width C", 2 * layers, NC, 0, sums(C)},
        {"bias gradients of width 3C", layers, 3 * NC, 0, sums(3 * C)},
        {"bias gradients of width 4C", layers, 4 * NC, 0, sums(4 * C)},
        {"LayerNorm backward", 2 * layers + batches, 4 * NC, 0,
         [=] { layernorm_backward(x[0], g, g + C, x[1], x[2], bias, a.stats[0], a.stats[1], N, C); }},
        {"encoder backward", batches, 2 * NC, 0,
         [=] { encoder_backward(g, g + Vp * C, x[0], a.tokens, B, T, C); }},
        {"gradient norm", 1, X * all, 0, [=] { sum_of_squares(g, PARAMS); }},
        {"AdamW", 1, (3 * X + 6 * 4) * all, 0,
         [=] { adamw_kernel(p, X < 4 ? a.moments[0] : NULL, g, a.moments[1], a.moments[2], PARAMS, &step); }},
    };
}

int main(int argc, char **argv) {
    Error err;
    DeviceConfig config = {};
    config.precision = PRECISION_BF16;
    auto number = [&](const char *name, const char *fallback) {
        return atof(bench_option(argc, argv, name, fallback));
    };
    size_t B = (size_t)number("--B", "64"), T = (size_t)number("--T", "1024");
    size_t rows = (size_t)number("--head-rows", "16384");
    double batches = number("--batches", "8"), bandwidth = 1e12 * number("--bandwidth", "4.0");
    double peak = 1e12 * number("--tflops", "700"), bounds = 0, total = 0;
    int runs = (int)number("--runs", "10");
    bench_options_end(argc, argv);
    bool good = B && T && T <= CONTEXT && rows && batches >= 1 && bandwidth > 0 && peak > 0 && runs >= 0;
    if (!good || (runs && !device_open(&config, &err))) {
        fprintf(stderr, "bench_walk: %s\n", good ? err.text : "bad option");
        return EXIT_FAILED;
    }
    if (rows > B * T) rows = B * T;
    printf("GPT-2 124M, B %zu, T %zu, %.0f batches a step; bounds at %.2f TB/s, %.0f TFLOP/s\n", B, T,
           batches, 1e-12 * bandwidth, 1e-12 * peak);
    printf("%-32s %6s %9s %9s %9s %9s %6s\n", "", "times", "MB", "GFLOP", "bound ms", "ms", "part");
    Arrays arrays = {};
    if (runs) arrays = arrays_open(B * T, rows);
    for (const Work &work : walk(arrays, B, T, batches, rows)) {
        double bound = work.times * fmax(work.bytes / bandwidth, work.flop / peak);
        double took = runs ? work.times * seconds_of(work.run, runs) : 0;
        bounds += bound, total += took;
        printf("%-32s %6.0f %9.1f %9.1f %9.2f", work.name, work.times, 1e-6 * work.bytes, 1e-9 * work.flop,
               1e3 * bound);
        if (runs)
            printf(" %9.2f %5.0f%%\n", 1e3 * took, 100 * bound / took);
        else
            printf("\n");
    }
    double tokens = batches * (double)(B * T);
    printf("%-32s %36.2f", "step", 1e3 * bounds);
    if (runs) printf(" %9.2f %5.0f%%", 1e3 * total, 100 * bounds / total);
    printf("\ntokens/s %60.0f", tokens / bounds);
    if (runs) printf(" %9.0f", tokens / total);
    printf("\n");
    return EXIT_DONE;
}
