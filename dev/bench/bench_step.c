/* bench_step.c: a whole training step of GPT-2 on random tokens, against the peak measured in the same minute.
 *
 *   build/bench/bench_step [--B=4] [--T=256] [--steps=10] [--precision=fp32|bf16] [--threads=0] [--window=0]
 *                          [--isa=auto] [--layers=12] [--head-rows=1024 (on a GPU 16384)] [--recompute=yes (no)]
 *                          [--accumulate=1]
 * A step is --accumulate batches of B sequences. Prints one line per step and one line of medians: ms, tokens/s, useful
 * MFU (formula: gpt2_flops_per_token), peak memory of the process or on the GPU. */
#define _POSIX_C_SOURCE 200809L
#include "base/log.h"
#include "base/machine.h"
#include "base/rng.h"
#include "bench.h"
#include "model/adamw.h"
#include "model/kernels.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
    machine_spin_briefly(argv);
    int B = atoi(bench_option(argc, argv, "--B", "4")), T = atoi(bench_option(argc, argv, "--T", "256"));
    int steps = atoi(bench_option(argc, argv, "--steps", "10")),
        layers = atoi(bench_option(argc, argv, "--layers", "12")),
        batches = atoi(bench_option(argc, argv, "--accumulate", "1"));
    Precision precision =
        !strcmp(bench_option(argc, argv, "--precision", "fp32"), "bf16") ? PRECISION_BF16 : PRECISION_FP32;
    GPT2Config config = {.context = 1024,
                         .vocab = 50257,
                         .vocab_padded = 50304,
                         .layers = layers,
                         .heads = 12,
                         .channels = 768,
                         .window = atoi(bench_option(argc, argv, "--window", "0"))};
    DeviceConfig device = {atoi(bench_option(argc, argv, "--threads", "0")), precision,
                           bench_option(argc, argv, "--isa", "auto")};
    AdamWConfig adamw = {0.9f, 0.95f, 1e-8f, 0.1f, 0};
    bool is_gpu = !device_memory_is_host();
    bool again = !strcmp(bench_option(argc, argv, "--recompute", is_gpu ? "no" : "yes"), "yes");
    int head_rows = atoi(bench_option(argc, argv, "--head-rows", is_gpu ? "16384" : "1024"));
    bench_options_end(argc, argv);
    GPT2 m;
    AdamW o;
    Error err;
    bool bad = steps < 1 || steps > 10000 || B < 1 || T < 1 || batches < 1 || head_rows < 1;
    if (bad || !device_open(&device, &err) ||
        !gpt2_init(&m, &config, (size_t)B, (size_t)T, (size_t)head_rows,
                   again ? GPT2_TRAINING_RECOMPUTING : GPT2_TRAINING, &err) ||
        !adamw_init(&o, &adamw, &(AdamWRange){0, m.param_count}, 1, &err)) {
        fprintf(stderr, "bench_step: %s\n", bad ? "bad option" : err.text);
        return EXIT_FAILED;
    }
    gpt2_init_weights(&m, 1);
    size_t N = (size_t)B * (size_t)T, all = N * (size_t)batches; /* tokens of a batch, of a step */
    int32_t *host = malloc(2 * N * sizeof *host), *tokens = device_alloc(2 * N * sizeof *tokens);
    double *ms = malloc((size_t)steps * sizeof *ms), *mfu = malloc((size_t)steps * sizeof *mfu);
    if (!host || !tokens || !ms || !mfu) return EXIT_FAILED;
    for (size_t i = 0; i < 2 * N; i++)
        host[i] = (int32_t)(rng_uniform(1, RNG_STREAM(RNG_TEST, 0), i) * config.vocab);
    device_write(tokens, host, 2 * N * sizeof *tokens);
    printf("%s; B %d, T %d, %d a step\n", device_describe(), B, T, batches);
    double flops = gpt2_flops_per_token(&config, (size_t)T) * (double)all;
    for (int s = -1; s < steps; s++) { /* step -1 touches the memory first */
        double peak = device_peak_flops(precision, 0.02), start = log_seconds();
        for (int i = 0; i < batches; i++) {
            gpt2_forward(&m, tokens);
            gpt2_loss(&m, tokens + N, 1.0f / (float)all);
            gpt2_backward(&m, tokens);
        }
        double norm = sqrt(sum_of_squares(m.grads, m.param_count));
        adamw_update(&o, &m, 1e-4, norm > 1 ? 1 / norm : 1);
        device_read(host, tokens, sizeof *host); /* waits for all that */
        double took = log_seconds() - start, after = device_peak_flops(precision, 0.02);
        if (s < 0) continue;
        ms[s] = 1e3 * took;
        mfu[s] = 100 * flops / took / (after > peak ? after : peak);
        printf("step %d  loss %.6f  %.1f ms  peak %.0f GFLOP/s  mfu %.1f%%\n", s,
               gpt2_loss_sum(&m) / (double)N, ms[s], 1e-9 * (after > peak ? after : peak), mfu[s]);
    }
    double typical = bench_median(ms, steps);
    printf("median %.1f ms  best %.1f ms  %.1f tok/s  mfu %.1f%%  peak memory %.2f GB\n", typical, ms[0],
           1e3 * (double)all / typical, bench_median(mfu, steps), 1e-9 * device_peak_bytes());
    return EXIT_DONE;
}
