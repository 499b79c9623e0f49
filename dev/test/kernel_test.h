/* kernel_test.h: what the kernel tests share: memory of exact size (so that a sanitizer sees a step outside it),
 * the same run for every instruction set and number of threads, and the comparison with the oracle.
 *
 * With TEST_CUDA they test the CUDA kernels (cuda_test.cu): one "instruction set", and instead of numbers of threads,
 * orders in which the shim runs the threads of a block; on a GPU, the same again. */
#ifndef KERNEL_TEST_H
#define KERNEL_TEST_H
#include "model/kernels.h"
#include "naive.h"
#include "test.h"
#ifdef TEST_CUDA
#include "cuda_test.h"
#else
#include "cpu/dispatch.h"
#include <omp.h>
#endif

static void *test_blocks[256];
static size_t test_block_count;
static uint64_t test_seed = 1;

#ifdef TEST_CUDA
#define TEST_MALLOC cuda_test_alloc
#define TEST_FREE   cuda_test_free
#else
#define TEST_MALLOC malloc
#define TEST_FREE   free
#endif
/* What was launched is done: results may be read, inputs changed. */
static inline void test_sync(void) {
#ifdef TEST_CUDA
    cuda_test_sync();
#endif
}

/* Of host and device; lives until test_free_all. */
static inline void *test_alloc(size_t bytes) {
    void *p = TEST_MALLOC(bytes ? bytes : 1);
    if (!p || test_block_count == sizeof test_blocks / sizeof *test_blocks) abort();
    return test_blocks[test_block_count++] = p;
}
static inline void test_free_all(void) {
    test_sync();
    while (test_block_count) TEST_FREE(test_blocks[--test_block_count]);
}
static inline float *test_poisoned(size_t n) {
    float *x = test_alloc(n * sizeof *x);
    test_poison(x, n * sizeof *x);
    return x;
}
static inline float *test_random(size_t n, float scale) {
    float *x = test_alloc(n * sizeof *x);
    test_fill(x, n, scale, test_seed++);
    return x;
}
static inline float *test_copy(const float *x, size_t n) {
    float *copy = test_alloc(n * sizeof *copy);
    test_sync();
    if (n) memcpy(copy, x, n * sizeof *copy);
    return copy;
}
static inline double *test_doubles(const float *x, size_t n) {
    double *wide = test_alloc(n * sizeof *wide);
    for (size_t i = 0; i < n; i++) wide[i] = x ? (double)x[i] : 0;
    return wide;
}

static inline void test_threads(int n) {
#ifdef TEST_CUDA
    cuda_test_order(n);
#else
    cpu_threads = n;
    omp_set_num_threads(n);
#endif
}

/* Calls run() once for every instruction set that this processor has. */
static inline void test_every_isa(void (*run)(const char *isa)) {
    Error err;
    const DeviceConfig config = {.threads = 1};
    if (!device_open(&config, &err)) {
        puts(err.text);
        exit(1);
    }
#ifdef TEST_CUDA
    run("cuda");
#else
    for (int i = 0; i < cpu_isa_count; i++) {
        if (!cpu_isas[i].supported()) continue;
        cpu_kernels = cpu_isas[i].kernels;
        run(cpu_isas[i].name);
    }
#endif
}

static inline void test_near(const char *isa, const char *what, const float *got, const double *want,
                             size_t n, double bound) {
    test_sync();
    double distance = test_rel_l2(got, want, n);
    TEST_CHECK(distance <= bound, "%s %s: relative distance %.3g, bound %.3g", isa, what, distance, bound);
}

static inline void test_same_bits(const char *isa, const char *what, const float *a, const float *b, size_t n,
                                  int threads) {
    test_sync();
    TEST_CHECK(!memcmp(a, b, n * sizeof *a), "%s %s: other bits with %d threads than with 1", isa, what,
               threads);
}
#endif
