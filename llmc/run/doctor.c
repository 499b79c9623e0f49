/* doctor.c: see doctor.h. */
#define _POSIX_C_SOURCE 200809L
#include "run/doctor.h"
#include "base/log.h"
#include "base/machine.h"
#include "model/adamw.h"
#include "run/presets.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* GB/s of reading memory that no cache holds, and of copying it, all threads together. */
static double copy_gigabytes_per_second(void) {
    const size_t bytes = (size_t)256 << 20;
    float *a = device_alloc(bytes), *b = device_alloc(bytes);
    double best = 0;
    for (int i = 0; a && b && i < 4; i++) {
        double start = log_seconds();
#pragma omp parallel for schedule(static)
        for (size_t at = 0; at < bytes; at += 1 << 20) memcpy((char *)b + at, (char *)a + at, 1 << 20);
        double rate = 2e-9 * (double)bytes / (log_seconds() - start);
        if (rate > best) best = rate;
    }
    device_free(a, bytes);
    device_free(b, bytes);
    return best;
}

/* The largest power-of-two batch of a preset's full sequences that fits, or 0. */
static int largest_batch(const GPT2Config *config, double available) {
    int best = 0;
    double optimizer = (double)adamw_bytes(gpt2_param_count(config));
    for (int B = 1; B <= 4096; B *= 2) {
        size_t T = (size_t)config->context;
        if ((double)gpt2_bytes(config, (size_t)B, T, 1024, GPT2_TRAINING_RECOMPUTING) + optimizer <
            0.95 * available)
            best = B;
    }
    return best;
}

static void print_what_fits(double available) {
    const char *const names[] = {"tiny", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        Options o;
        options_default(&o, COMMAND_TRAIN);
        o.preset = names[i];
        presets_apply(&o);
        GPT2Config config = presets_config(&o, i ? 50257 : 257, NULL);
        int B = largest_batch(&config, available);
        if (B)
            printf("             %-12s --batch-size %d of %d tokens\n", names[i], B, config.context);
        else
            printf("             %-12s does not fit\n", names[i]);
    }
}

bool doctor_run(const Options *o, Error *err) {
    (void)o;
    (void)err;
    double available = device_available_bytes();
    printf("device       %s\n", device_describe());
    printf("peak         %.0f GFLOP/s fp32, %.0f GFLOP/s bf16 (%s)\n",
           1e-9 * device_peak_flops(PRECISION_FP32, 0.2), 1e-9 * device_peak_flops(PRECISION_BF16, 0.2),
           device_memory_is_host() ? "multiply-adds on registers, all threads" : "data sheet");
    printf("memory       %.1f GB available", 1e-9 * available);
    if (device_memory_is_host()) printf(", copied at %.1f GB/s (read + write)", copy_gigabytes_per_second());
    printf("\n");
    printf("mpirun       %s\n", machine_has_program("mpirun") ? "found" : "not found (only for many ranks)");
    printf("nvcc         %s\n", machine_has_program("nvcc") ? "found" : "not found (only for GPUs)");
    printf("gpu          %s\n", access("/dev/nvidia0", R_OK) == 0 ? "found" : "none");
    printf("largest batch that fits in training:\n");
    print_what_fits(available);
    return true;
}
