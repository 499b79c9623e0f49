/* bench_kernels.c: the kernels besides the matmuls at GPT-2 124M shapes, against what bounds them.
 *
 *   build/bench/bench_kernels [--rounds=9] [--threads=0] [--isa=auto] [--precision=fp32|bf16] [--window=0] [--only=T]
 * Every round measures the bounds and then each kernel once, so that both see the same machine. Printed: the median ms
 * of one call, its useful GB/s or GFLOP/s, and the median share of the bound: `read` (all threads read memory),
 * `update` (they read 16 and write 16 bytes per element, as AdamW must), `peak` (multiply-adds on registers; exponentials
 * count as nothing). Tensors that fit into the caches may pass 100% of `read` and `update`.
 * Last: the 49 matvecs of one generated token, as tokens/s, against bandwidth / bytes of the weights. */
#define _POSIX_C_SOURCE 200809L
#include "base/log.h"
#include "bench.h"
#include "model/kernels.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    B = 4,
    NH = 12,
    HS = 64,
    C = NH * HS,
    V = 50257,
    Vp = 50304,
    LAYERS = 12,
    ROUNDS_MAX = 101,
    OPS_MAX = 40
};
typedef enum { BOUND_READ, BOUND_UPDATE, BOUND_PEAK, BOUNDS } Bound;

typedef struct {
    char name[48];
    void (*run)(size_t T);
    size_t T;
    Bound bound;
    double work; /* bytes, or FLOPs for BOUND_PEAK */
    double seconds[ROUNDS_MAX], share[ROUNDS_MAX];
} Op;

static Op ops[OPS_MAX];
static int op_count;
static size_t window;
static const size_t PARAMS = 124475904, ROWS_MAX = B * 1024, LOGIT_ROWS = 1024, SLOTS = 1024;

/* Each is large enough for every op that uses it. */
static float *big[4], *hidden[4], *qkv, *dqkv, *lse, *losses, *cache[2];
static int32_t *tokens, *targets;

/* --- bounds --- */

/* One word of every cache line, so that nothing but memory can be the limit. */
static double measure_read(void) {
    enum { LINE = 8, LINES = 8 };
    const uint64_t *words = (const uint64_t *)(const void *)big[0];
    double start = log_seconds();
    uint64_t sum = 0;
#pragma omp parallel for schedule(static) reduction(+ : sum)
    for (size_t i = 0; i < PARAMS / 2; i += LINE * LINES)
        for (size_t k = 0; k < LINES; k++) sum += words[i + k * LINE];
    volatile uint64_t sink = sum;
    (void)sink;
    return (double)PARAMS * 4 / (log_seconds() - start);
}
static double measure_update(void) {
    float *a = big[0], *b = big[1], *c = big[2], *d = big[3];
    double start = log_seconds();
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < PARAMS; i++) {
        float sum = (a[i] + b[i]) * 0.5f + (c[i] + d[i]) * 0.25f;
        a[i] = sum;
        b[i] = sum * 0.5f;
        c[i] = sum * 0.25f;
        d[i] = 0.1f;
    }
    return (double)PARAMS * 32 / (log_seconds() - start);
}

/* --- ops --- */

static void encoder_f(size_t T) {
    encoder_forward(hidden[0], tokens, big[0], big[1], B, T, C);
}
static void encoder_b(size_t T) {
    encoder_backward(big[0], big[1], hidden[0], tokens, B, T, C);
}
static void layernorm_f(size_t T) {
    layernorm_forward(hidden[1], lse, lse + ROWS_MAX, hidden[0], big[0], big[1], B * T, C);
}
static void layernorm_b(size_t T) {
    layernorm_backward(hidden[2], big[2], big[3], hidden[1], hidden[0], big[0], lse, lse + ROWS_MAX, B * T,
                       C);
}
static void attention_f(size_t T) {
    attention_forward(hidden[0], lse, qkv, B, T, NH, HS, window);
}
static void attention_b(size_t T) {
    attention_backward(dqkv, hidden[1], hidden[0], lse, qkv, B, T, NH, HS, window);
}
static void classify(size_t T) {
    size_t rows = B * T < LOGIT_ROWS ? B * T : LOGIT_ROWS;
    classifier(big[1], losses, targets, 1e-3f, rows, V, Vp);
}
static void adamw(size_t T) {
    const AdamWArgs args = {1e-4f, 0.9f, 0.95f, 1e-8f, 0.1f, 1, 3, 0, 0};
    (void)T;
    adamw_kernel(big[0], NULL, big[1], big[2], big[3], PARAMS, &args);
}
static void norm(size_t T) {
    (void)T;
    (void)sum_of_squares(big[1], PARAMS);
}
static void decode_attention(size_t T) {
    for (size_t l = 0; l < LAYERS; l++)
        attention_decode(hidden[0], cache[0] + l * SLOTS * C, cache[1] + l * SLOTS * C, qkv, T - 1, SLOTS, NH,
                         HS, 0);
}

/* One weight of each kind per layer and the head, for one token. */
static PackedWeight packed[LAYERS * 4 + 1];
static const size_t SHAPES[4][2] = {{3 * C, C}, {C, C}, {4 * C, C}, {C, 4 * C}};

static double pack_all(WeightType type, char *memory) {
    double bytes = 0;
    for (size_t i = 0; i <= LAYERS * 4; i++) {
        size_t OC = i < LAYERS * 4 ? SHAPES[i % 4][0] : Vp, in = i < LAYERS * 4 ? SHAPES[i % 4][1] : C;
        packed[i] = packed_weight_make(type, memory, big[0], OC, in);
        memory += (packed_weight_bytes(type, OC, in) + 63) / 64 * 64;
        bytes += (double)packed_weight_bytes(type, OC, in);
    }
    return bytes;
}
static void decode_token(size_t T) {
    (void)T;
    for (size_t i = 0; i <= LAYERS * 4; i++) matvec_forward(hidden[1], hidden[0], packed[i], NULL, NULL);
}

/* --- table --- */

static void add(const char *name, void (*run)(size_t), size_t T, Bound bound, double work) {
    Op *op = &ops[op_count++];
    snprintf(op->name, sizeof op->name, "%s", name);
    op->run = run, op->T = T, op->bound = bound, op->work = work;
}
static void add_ops(size_t only) {
    const size_t lengths[] = {64, 256, 1024};
    for (int i = 0; i < 3; i++) {
        size_t T = lengths[i], W = window && window < T ? window : T;
        if (only && only != T) continue;
        double hidden_bytes = (double)(B * T * C * 4),
               logit_rows = (double)(B * T < LOGIT_ROWS ? B * T : LOGIT_ROWS);
        double pairs = (double)(B * NH) * ((double)(W * (W + 1)) / 2 + (double)((T - W) * W)); /* seen */
        add("encoder_forward", encoder_f, T, BOUND_UPDATE, 2 * hidden_bytes);
        add("encoder_backward", encoder_b, T, BOUND_UPDATE, 3 * hidden_bytes);
        add("layernorm_forward", layernorm_f, T, BOUND_UPDATE, 2 * hidden_bytes);
        add("layernorm_backward", layernorm_b, T, BOUND_UPDATE, 4 * hidden_bytes);
        add("attention_forward", attention_f, T, BOUND_PEAK, pairs * HS * 4);
        add("attention_backward", attention_b, T, BOUND_PEAK, pairs * HS * 10);
        add("classifier", classify, T, BOUND_UPDATE, 2 * logit_rows * Vp * 4);
    }
    if (only) return;
    add("adamw_kernel 124M", adamw, 0, BOUND_UPDATE, 32.0 * (double)PARAMS);
    add("sum_of_squares 124M", norm, 0, BOUND_READ, 4.0 * (double)PARAMS);
    add("attention_decode x12", decode_attention, 64, BOUND_READ, 2.0 * LAYERS * 64 * C * 4);
    add("attention_decode x12", decode_attention, 1024, BOUND_READ, 2.0 * LAYERS * 1024 * C * 4);
}

static void run_once(Op *op, int round, double bound) {
    double start = log_seconds(), took;
    int times = 0;
    do {
        op->run(op->T);
        took = log_seconds() - start;
    } while (++times < 12 && took < 0.02);
    op->seconds[round] = took / times;
    op->share[round] = op->work / op->seconds[round] / bound;
}

static void report(Op *op, int rounds) {
    static const char *const names[BOUNDS] = {"read", "update", "peak"};
    double seconds = bench_median(op->seconds, rounds), share = bench_median(op->share, rounds);
    char name[64];
    snprintf(name, sizeof name, "%s%s%.0zu", op->name, op->T ? " T=" : "", op->T);
    printf("%-28s %9.3f ms  %7.1f %s  %5.1f%% of %s\n", name, seconds * 1e3, op->work / seconds * 1e-9,
           op->bound == BOUND_PEAK ? "GFLOP/s" : "GB/s   ", share * 100, names[op->bound]);
}

static void bench_training(int rounds, size_t only) {
    double bounds[BOUNDS][ROUNDS_MAX];
    add_ops(only);
    for (int i = 0; i < op_count; i++) ops[i].run(ops[i].T);
    for (int round = 0; round < rounds; round++) {
        bounds[BOUND_READ][round] = measure_read();
        bounds[BOUND_UPDATE][round] = measure_update();
        bounds[BOUND_PEAK][round] = device_peak_flops(PRECISION_FP32, 0.05);
        for (int i = 0; i < op_count; i++) run_once(&ops[i], round, bounds[ops[i].bound][round]);
    }
    for (int i = 0; i < op_count; i++) report(&ops[i], rounds);
    printf("bounds: read %.1f GB/s, update %.1f GB/s, peak %.0f GFLOP/s\n",
           bench_median(bounds[BOUND_READ], rounds) * 1e-9, bench_median(bounds[BOUND_UPDATE], rounds) * 1e-9,
           bench_median(bounds[BOUND_PEAK], rounds) * 1e-9);
}

static void bench_decode(int rounds) {
    static const char *const names[] = {"fp32", "bf16", "int8"};
    for (int type = WEIGHT_FP32; type <= WEIGHT_INT8; type++) {
        Op op = {.run = decode_token, .work = pack_all((WeightType)type, (char *)big[1])};
        decode_token(0);
        for (int round = 0; round < rounds; round++) run_once(&op, round, measure_read());
        double seconds = bench_median(op.seconds, rounds);
        printf("matvecs of a token, %s: %7.1f tokens/s, %6.1f GB/s, %5.1f%% of read (%.0f MB)\n", names[type],
               1 / seconds, op.work / seconds * 1e-9, bench_median(op.share, rounds) * 100, op.work * 1e-6);
    }
}

int main(int argc, char **argv) {
    int rounds = atoi(bench_option(argc, argv, "--rounds", "9"));
    window = (size_t)atoi(bench_option(argc, argv, "--window", "0"));
    Precision precision =
        strcmp(bench_option(argc, argv, "--precision", "fp32"), "bf16") ? PRECISION_FP32 : PRECISION_BF16;
    DeviceConfig config = {atoi(bench_option(argc, argv, "--threads", "0")), precision,
                           bench_option(argc, argv, "--isa", "auto")};
    size_t only = (size_t)atoi(bench_option(argc, argv, "--only", "0"));
    bench_options_end(argc, argv);
    Error err;
    if (rounds < 1 || rounds > ROUNDS_MAX || !device_open(&config, &err)) {
        fprintf(stderr, "bench_kernels: %s\n", rounds < 1 || rounds > ROUNDS_MAX ? "bad --rounds" : err.text);
        return 1;
    }
    printf("%s\n", device_describe());
    for (int i = 0; i < 4; i++) big[i] = bench_floats(PARAMS);
    for (int i = 0; i < 4; i++) hidden[i] = bench_floats(ROWS_MAX * C);
    for (int i = 0; i < 2; i++) cache[i] = bench_floats(LAYERS * SLOTS * C);
    qkv = bench_floats(ROWS_MAX * 3 * C), dqkv = bench_floats(ROWS_MAX * 3 * C);
    lse = bench_floats(ROWS_MAX * NH), losses = bench_floats(ROWS_MAX);
    tokens = device_alloc(ROWS_MAX * sizeof *tokens), targets = device_alloc(ROWS_MAX * sizeof *targets);
    if (!tokens || !targets) return 1;
    for (size_t i = 0; i < ROWS_MAX; i++) tokens[i] = targets[i] = (int32_t)(i * 7919 % V);
    bench_training(rounds, only);
    if (!only) bench_decode(rounds);
    return 0;
}
