/* test.h: the few macros that the unit tests share. A test program runs all its checks, prints each failure
 * with its values and ends with `return test_end("module");`: one line "module: N checks, M failed", exit 1
 * if any failed. */
#ifndef TEST_H
#define TEST_H
#include "base/rng.h"
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int test_checks, test_failures;

#define TEST_CHECK(condition, ...)                                                                           \
    do {                                                                                                     \
        test_checks++;                                                                                       \
        if (!(condition)) {                                                                                  \
            test_failures++;                                                                                 \
            printf("%s:%d: %s: ", __FILE__, __LINE__, #condition);                                           \
            printf(__VA_ARGS__);                                                                             \
            printf("\n");                                                                                    \
        }                                                                                                    \
    } while (0)

/* Under TEST_QUICK=1 tests leave out what takes long and is unlikely to differ from the full run: for a second compiler, and
 * for sanitizers. */
static inline bool test_quick(void) {
    return getenv("TEST_QUICK") != NULL;
}

static inline int test_end(const char *module) {
    printf("%s: %d checks, %d failed\n", module, test_checks, test_failures);
    return test_failures || !test_checks ? 1 : 0;
}

/* Relative L2 distance ||a - b|| / ||b||; infinite if either has a NaN, so that NaN never passes a bound. */
static inline double test_rel_l2(const float *a, const double *b, size_t n) {
    double num = 0, den = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)a[i] - b[i];
        num += d * d;
        den += b[i] * b[i];
    }
    double r = den > 0 ? sqrt(num / den) : sqrt(num);
    return isfinite(r) ? r : INFINITY;
}

/* n floats, uniform in [-scale, scale), a pure function of the seed. */
static inline void test_fill(float *x, size_t n, float scale, uint64_t seed) {
    for (size_t i = 0; i < n; i++)
        x[i] = scale * (float)(2 * rng_uniform(seed, RNG_STREAM(RNG_TEST, 0), i) - 1);
}

/* All bits set: a quiet NaN in every float, so that an output nobody wrote is seen. */
static inline void test_poison(void *x, size_t bytes) {
    memset(x, 0xff, bytes);
}
#endif
