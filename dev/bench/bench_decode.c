/* bench_decode.c: generation with GPT-2 124M, one token at a time, random weights: tokens/s and the share of the time that
 * reading every weight once would take at the bandwidth given.
 *
 *   bench_decode [--tokens=256] [--type=bf16|fp32|int8] [--threads=0] [--bandwidth=0]     (bandwidth in GB/s)
 * Prints a line of the median step. */
#include "base/log.h"
#include "bench.h"
#include "model/generate.h"

int main(int argc, char **argv) {
    int tokens = atoi(bench_option(argc, argv, "--tokens", "256"));
    double bandwidth = atof(bench_option(argc, argv, "--bandwidth", "0"));
    const char *type = bench_option(argc, argv, "--type", "bf16");
    WeightType weights = !strcmp(type, "fp32")   ? WEIGHT_FP32
                         : !strcmp(type, "int8") ? WEIGHT_INT8
                                                 : WEIGHT_BF16;
    const GPT2Config config = {
        .context = 1024, .vocab = 50257, .vocab_padded = 50304, .layers = 12, .heads = 12, .channels = 768};
    const DeviceConfig device = {.threads = atoi(bench_option(argc, argv, "--threads", "0")),
                                 .precision = PRECISION_BF16,
                                 .isa = "auto"};
    bench_options_end(argc, argv);
    enum { WARM_UP = 8, TOKENS_MAX = 1000 };
    static double ms[TOKENS_MAX];
    GPT2 m;
    Generator g;
    Error err;
    if (tokens < 1 || tokens > TOKENS_MAX || !device_open(&device, &err) ||
        !gpt2_init(&m, &config, 1, 1, 1, GPT2_INFERENCE, &err)) {
        fprintf(stderr, "bench_decode: %s\n",
                tokens < 1 || tokens > TOKENS_MAX ? "tokens: 1 to 1000" : err.text);
        return EXIT_FAILED;
    }
    gpt2_init_weights(&m, 1);
    if (!generator_init(&g, &m, weights, &err)) {
        fprintf(stderr, "bench_decode: %s\n", err.text);
        return EXIT_FAILED;
    }
    for (int i = -WARM_UP; i < tokens; i++) {
        double start = log_seconds();
        generator_step(&g, (i + WARM_UP) * 97 % config.vocab);
        if (i >= 0) ms[i] = 1e3 * (log_seconds() - start);
    }
    double typical = bench_median(ms, tokens);
    double bytes = 0, L = config.layers, C = config.channels;
    bytes = (12 * L * C * C + config.vocab_padded * C) * (weights == WEIGHT_FP32   ? 4
                                                          : weights == WEIGHT_BF16 ? 2
                                                                                   : 1);
    printf("%s\ndecode 124M, %s weights: median %.3f ms, %.0f tokens/s, weights at %.0f GB/s",
           device_describe(), type, typical, 1e3 / typical, 1e-6 * bytes / typical);
    if (bandwidth > 0) printf(" (%.0f%% of %.0f)", 1e-4 * bytes / typical / bandwidth, bandwidth);
    printf("\n");
    generator_free(&g);
    gpt2_free(&m);
    return EXIT_DONE;
}
