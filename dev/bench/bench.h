/* bench.h: what the benchmark programs share: --name=value, medians, floats to compute with. */
#ifndef BENCH_H
#define BENCH_H
#include "model/device.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t bench_options_read; /* bit i: argv[i] was asked for */

/* The value of `--name=value` on the command line, or the fallback; name with its dashes. */
static inline const char *bench_option(int argc, char **argv, const char *name, const char *fallback) {
    size_t length = strlen(name);
    for (int i = 1; i < argc && i < 64; i++)
        if (!strncmp(argv[i], name, length) && argv[i][length] == '=') {
            bench_options_read |= (uint64_t)1 << i;
            return argv[i] + length + 1;
        }
    return fallback;
}

/* After the last bench_option: ends the program if there is anything on the command line that none of them read. */
static inline void bench_options_end(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        if (i < 64 && bench_options_read >> i & 1) continue;
        fprintf(stderr,
                "error: '%.100s' is no option of this benchmark, or stands twice (the head of its source "
                "lists them)\n",
                argv[i]);
        exit(1);
    }
}

static inline int bench_compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts the n >= 1 values. */
static inline double bench_median(double *values, int n) {
    qsort(values, (size_t)n, sizeof *values, bench_compare);
    return values[n / 2];
}

/* n floats in [-0.5, 0.5) in device memory: any will do, quickly. Ends the program if there is no memory. */
static inline float *bench_floats(size_t n) {
    float *x = (float *)device_alloc(n * sizeof(float));
    if (!x) {
        fprintf(stderr, "error: no memory for %zu floats\n", n);
        exit(1);
    }
    uint32_t state = 1;
    for (size_t i = 0; i < n; i++)
        x[i] = (float)((state = state * 1664525u + 1013904223u) >> 8) * 0x1p-24f - 0.5f;
    return x;
}
#endif
