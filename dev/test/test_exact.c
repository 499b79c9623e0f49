/* test_exact.c: sums without an order: gradients on grids (kernels exact_add, exact_read) against sums in double, their
 * bound, every order and every cut among ranks; what does not fit or is not finite is seen; levels and their prediction;
 * ExactSum against sums of integers; bf16. */
#include "kernel_test.h"
#include "run/exact_sum.h"
#include <float.h>

enum { TERMS = 8 };

static size_t blocks_of(size_t n) {
    return (n + EXACT_BLOCK - 1) / EXACT_BLOCK;
}

static float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static int field_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (int)(bits >> 23 & 255);
}

/* The step of the grid of a level. */
static double step_of(int level, int bits) {
    return ldexp(1, (level > 32 ? level : 32) - 126 - bits);
}

/* What the kernel promises, said naively. */
static int32_t round_to_grid(float x, int level, int bits) {
    return (int32_t)nearbyint((double)x / step_of(level, bits));
}

/* --- one call against the naive form --- */

/* kind: what magnitudes there are within a block. */
static float value_of(int kind, size_t i, uint64_t seed) {
    double u = 2 * rng_uniform(seed, RNG_STREAM(RNG_TEST, 1), i) - 1;
    double v = rng_uniform(seed, RNG_STREAM(RNG_TEST, 2), i);
    switch (kind) {
    case 0: return (float)u;
    case 1: return (float)ldexp(u, (int)(v * 250) - 140);                          /* from denormal to huge */
    case 2: return float_of((uint32_t)(v * 0x7fffff) | (u < 0 ? 0x80000000u : 0)); /* denormal */
    case 3: return i % 97 ? 0.0f : (float)u;
    default: return (float)(u * 1e-6 * (i / EXACT_BLOCK % 2 ? 1e9 : 1));
    }
}

static void test_against_naive(const char *isa, int kind, size_t n, int bits, int threads) {
    size_t blocks = blocks_of(n);
    float *g = test_alloc(n * sizeof *g), *back = test_poisoned(n);
    int32_t *sums = test_alloc(n * sizeof *sums), *want = test_alloc(n * sizeof *want);
    uint8_t *levels = test_alloc(blocks), *most = test_alloc(blocks), *want_most = test_alloc(blocks);
    double *squares = test_alloc(blocks * sizeof *squares);
    test_threads(threads);
    test_poison(sums, n * sizeof *sums);
    test_poison(most, blocks);
    test_poison(squares, blocks * sizeof *squares);
    memset(want, 0, n * sizeof *want);
    memset(want_most, 0, blocks);
    memset(levels, 0, blocks);
    for (int term = 0; term < 2; term++)
        for (size_t i = 0; i < n; i++) {
            int field = field_of(value_of(kind, i, (uint64_t)term));
            if (field > want_most[i / EXACT_BLOCK]) want_most[i / EXACT_BLOCK] = (uint8_t)field;
        }
    for (size_t b = 0; b < blocks; b++)
        levels[b] = (uint8_t)(want_most[b] + b % 3 < 255 ? want_most[b] + b % 3 : 254);
    for (int term = 0; term < 2; term++) {
        for (size_t i = 0; i < n; i++) {
            g[i] = value_of(kind, i, (uint64_t)term);
            want[i] += round_to_grid(g[i], levels[i / EXACT_BLOCK], bits);
        }
        exact_add(sums, g, most, levels, n, bits, term == 0);
        size_t left = 0;
        for (size_t i = 0; i < n; i++) left += g[i] != 0.0f;
        TEST_CHECK(!left, "%s: %zu of %zu gradients are not zeroed", isa, left, n);
    }
    TEST_CHECK(!memcmp(sums, want, n * sizeof *sums), "%s: kind %d, %zu elements, %d bits: sums", isa, kind,
               n, bits);
    TEST_CHECK(!memcmp(most, want_most, blocks), "%s: kind %d, %zu elements: most", isa, kind, n);
    exact_read(back, squares, sums, levels, n, bits);
    size_t wrong = 0;
    for (size_t b = 0; b < blocks; b++) {
        double sum = 0;
        for (size_t i = b * EXACT_BLOCK; i < n && i < (b + 1) * EXACT_BLOCK; i++) {
            wrong += back[i] != (float)(want[i] * step_of(levels[b], bits));
            sum += (double)back[i] * (double)back[i];
        }
        TEST_CHECK(fabs(squares[b] - sum) <= 1e-14 * sum, "%s: block %zu: squares %g, not %g", isa, b,
                   squares[b], sum);
    }
    TEST_CHECK(!wrong, "%s: kind %d, %zu elements: %zu read back wrong", isa, kind, n, wrong);
    test_free_all();
}

static void test_rounding(const char *isa) {
    const float cases[] = {0.5f,          1.5f,           2.5f,       -0.5f,       -1.5f,       -2.5f,
                           0.49999997f,   8388607.5f,     8388608.0f, 16777215.0f, -8388607.5f, -16777216.0f,
                           1073741760.0f, -1073741760.0f, 0.0f,       -0.0f};
    enum { N = sizeof cases / sizeof *cases };
    float g[N];
    int32_t sums[N];
    uint8_t most, level = 126 + 30; /* step 1 */
    memcpy(g, cases, sizeof g);
    exact_add(sums, g, &most, &level, N, 30, true);
    for (int i = 0; i < N; i++)
        TEST_CHECK(sums[i] == (int32_t)nearbyintf(cases[i]), "%s: %.9g became %d", isa, (double)cases[i],
                   sums[i]);
    TEST_CHECK(most == 156, "%s: most %d", isa, most);
}

/* --- the bound, and that no order changes anything --- */

/* Magnitudes of eight terms that differ from block to block; the sum of all, and its distance from the sum in double. */
static void test_any_order(const char *isa) {
    enum { N = 10 * EXACT_BLOCK + 77, BLOCKS = 11, ORDERS = 6 };
    const int bits = exact_bits(TERMS);
    static float terms[TERMS][N], result[N], first_result[N];
    static int32_t sums[N], part[N];
    static double exact[N];
    uint8_t levels[BLOCKS] = {0}, most[BLOCKS];
    double squares[BLOCKS];
    memset(exact, 0, sizeof exact);
    for (int t = 0; t < TERMS; t++)
        for (size_t i = 0; i < N; i++) {
            double size = ldexp(1, (int)(i / EXACT_BLOCK) * 5 - 40),
                   u = rng_uniform(7 + (uint64_t)t, RNG_STREAM(RNG_TEST, 3), i);
            terms[t][i] = (float)(size * (2 * u - 1));
            exact[i] += (double)terms[t][i];
            int field = field_of(terms[t][i]);
            if (field > levels[i / EXACT_BLOCK]) levels[i / EXACT_BLOCK] = (uint8_t)field;
        }
    for (int order = 0; order < ORDERS; order++) {
        const int ranks = (const int[]){1, 2, 3, 4, 8, 1}[order];
        memset(sums, 0, sizeof sums);
        for (int rank = 0; rank < ranks; rank++) {
            bool first = true;
            for (int k = 0; k < TERMS; k++) {
                int t = order == ORDERS - 1 ? (k * 5 + 3) % TERMS : k;
                static float g[N];
                if (t % ranks != rank) continue;
                memcpy(g, terms[t], sizeof g);
                exact_add(part, g, most, levels, N, bits, first);
                first = false;
            }
            for (size_t i = 0; i < N; i++) sums[i] += part[i];
        }
        test_poison(result, sizeof result);
        exact_read(result, squares, sums, levels, N, bits);
        if (order == 0) memcpy(first_result, result, sizeof result);
        TEST_CHECK(!memcmp(first_result, result, sizeof result), "%s: other bits in order %d", isa, order);
    }
    double worst = 0;
    for (size_t i = 0; i < N; i++) { /* half a step for every term, and one rounding */
        double bound = TERMS * 0.5 * step_of(levels[i / EXACT_BLOCK], bits) + 0x1p-24 * fabs(exact[i]);
        double error = fabs((double)result[i] - exact[i]) / bound;
        worst = error > worst || error != error ? error : worst;
    }
    TEST_CHECK(worst <= 1, "%s: an error of %g of its bound", isa, worst);
    double distance = test_rel_l2(result, exact, N);
    TEST_CHECK(distance < 4e-8, "%s: relative distance %g from the sum in double", isa, distance);
}

/* --- what does not fit --- */

static void test_flags(const char *isa) {
    enum { N = 3 * EXACT_BLOCK + 5, BLOCKS = 4 };
    const float bad[] = {NAN, INFINITY, -INFINITY, 4.0f, -4.0f, FLT_MAX, -FLT_MAX, float_of(0x7f800001)};
    const size_t places[] = {0, 255, 256, 300, 3 * EXACT_BLOCK - 1, 3 * EXACT_BLOCK, N - 1};
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++)
        for (size_t j = 0; j < sizeof places / sizeof *places; j++) {
            float g[N];
            int32_t sums[N];
            uint8_t most[BLOCKS], levels[BLOCKS] = {128, 128, 128, 128}; /* below 4 */
            for (size_t i = 0; i < N; i++) g[i] = i == places[j] ? bad[k] : 3.5f;
            test_poison(most, sizeof most);
            exact_add(sums, g, most, levels, N, 27, true);
            ExactVerdict want = isfinite(bad[k]) ? EXACT_TOO_LARGE : EXACT_NOT_FINITE;
            TEST_CHECK(exact_judge(most, levels, BLOCKS) == want, "%s: %g at %zu: verdict", isa,
                       (double)bad[k], places[j]);
            for (size_t b = 0; b < BLOCKS; b++)
                TEST_CHECK((b == places[j] / EXACT_BLOCK) == (most[b] > 128), "%s: block %zu has %d", isa, b,
                           most[b]);
            memset(g, 0, sizeof g); /* later micro-batches do not hide it */
            exact_add(sums, g, most, levels, N, 27, false);
            TEST_CHECK(exact_judge(most, levels, BLOCKS) == want, "%s: %g is forgotten", isa, (double)bad[k]);
            if (want == EXACT_NOT_FINITE) continue;
            memcpy(levels, most, BLOCKS);
            TEST_CHECK(exact_judge(most, levels, BLOCKS) == EXACT_FITS, "%s: raised levels do not hold", isa);
        }
}

/* As many of the largest terms as there may be stay within int32. */
static void test_headroom(const char *isa) {
    const int64_t counts[] = {1, 2, 3, 4, 5, 1000, EXACT_TERMS_MAX};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        uint8_t most, level = 127;
        int32_t sum = 0;
        int bits = exact_bits(counts[c]);
        float x = 0, largest = 1.9999999f;
        double squares;
        for (int64_t k = 0; k < counts[c]; k++) {
            float g = largest;
            exact_add(&sum, &g, &most, &level, 1, bits, k == 0);
        }
        exact_read(&x, &squares, &sum, &level, 1, bits);
        double want = (double)largest * (double)counts[c], bound = (double)counts[c] * step_of(level, bits);
        TEST_CHECK(fabs((double)x - want) <= bound + 0x1p-24 * want, "%s: %lld terms: %g, not %g", isa,
                   (long long)counts[c], (double)x, want);
    }
    TEST_CHECK(exact_bits(1) == 30 && exact_bits(2) == 29 && exact_bits(3) == 28 &&
                   exact_bits(EXACT_TERMS_MAX) == 15,
               "bits");
}

static void test_isa(const char *isa) {
    const size_t sizes[] = {1, 7, 255, 256, 257, 1000, 64 * EXACT_BLOCK * 2 + 300};
    for (int kind = 0; kind < 5; kind++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            test_against_naive(isa, kind, sizes[s], 27, 1);
            test_against_naive(isa, kind, sizes[s], 15, 2);
        }
    test_threads(1);
    test_rounding(isa);
    test_any_order(isa);
    test_flags(isa);
    test_headroom(isa);
}

/* --- sums of doubles --- */

static double sum_in_parts(const double *x, size_t n, size_t parts, size_t stride) {
    static int32_t digits[EXACT_DIGITS], one[EXACT_DIGITS];
    memset(digits, 0, sizeof digits);
    for (size_t p = 0; p < parts; p++) {
        ExactSum sum = {{0}};
        for (size_t k = 0; k < n; k++)
            if ((k * stride) % n % parts == p) exact_sum_add(&sum, x[(k * stride) % n]);
        exact_sum_write(&sum, one);
        for (int i = 0; i < EXACT_DIGITS; i++) digits[i] += one[i];
    }
    return exact_sum_read(digits);
}

static void test_sums_of_doubles(void) {
    enum { N = 1009 }; /* prime: every stride meets every element */
    static double x[N];
    for (int kind = 0; kind < 4; kind++) {
        double whole = 0;
        for (size_t i = 0; i < N; i++) {
            double u = 2 * rng_uniform(5, RNG_STREAM(RNG_TEST, 4), i) - 1,
                   v = rng_uniform(5, RNG_STREAM(RNG_TEST, 5), i);
            x[i] = kind == 0   ? rint(u * 1e12)                       /* sums of these are exact in double */
                   : kind == 1 ? ldexp(fabs(u), (int)(v * 600) - 300) /* a wide range */
                   : kind == 2 ? ldexp(u, (int)(v * 2000) - 1060)     /* all of it, with cancellation */
                               : ldexp(rint(u * 1000), -1074);        /* denormal */
            whole += x[i];
        }
        double want = sum_in_parts(x, N, 1, 1);
        if (kind != 2)
            TEST_CHECK(fabs(want - whole) <= (kind == 1) * 1e-13 * whole, "kind %d: %g, not %g", kind, want,
                       whole);
        for (size_t parts = 1; parts <= 8; parts++) {
            double got = sum_in_parts(x, N, parts, 1 + parts * 37);
            TEST_CHECK(!memcmp(&got, &want, sizeof got), "kind %d in %zu parts: %.17g, not %.17g", kind,
                       parts, got, want);
        }
    }
    const double cancel[] = {1e300, 1, -1e300, 1e-300, -1, DBL_TRUE_MIN};
    TEST_CHECK(sum_in_parts(cancel, 6, 1, 1) == 1e-300, "cancellation: %g", sum_in_parts(cancel, 6, 1, 1));
    const double borders[] = {DBL_MAX, -DBL_MAX, DBL_MIN, DBL_TRUE_MIN, -DBL_TRUE_MIN, 0.1, -3};
    for (size_t i = 0; i < sizeof borders / sizeof *borders; i++)
        TEST_CHECK(sum_in_parts(borders + i, 1, 1, 1) == borders[i], "%g becomes %g", borders[i],
                   sum_in_parts(borders + i, 1, 1, 1));
    const double specials[][2] = {{NAN, 1}, {INFINITY, -INFINITY}, {1, -INFINITY}};
    for (size_t i = 0; i < 3; i++)
        TEST_CHECK(isnan(sum_in_parts(specials[i], 2, 2, 1)), "%g + %g is finite", specials[i][0],
                   specials[i][1]);
    TEST_CHECK(sum_in_parts((const double[]){0}, 1, 1, 1) == 0, "zero");
}

/* --- prediction --- */

static void test_predict(void) {
    enum { BLOCKS = 64 };
    uint8_t levels[BLOCKS] = {0}, most[BLOCKS];
    for (int step = 0; step < 200; step++) {
        for (size_t i = 0; i < BLOCKS; i++)
            most[i] = (uint8_t)(i == 0 ? 0
                                       : 100 + 60 * rng_uniform(3, RNG_STREAM(RNG_TEST, 6),
                                                                (uint64_t)step * BLOCKS + i));
        most[1] = 158; /* so that not all of them fall */
        exact_predict(levels, most, BLOCKS);
        TEST_CHECK(exact_judge(most, levels, BLOCKS) == EXACT_FITS, "step %d: what was does not fit again",
                   step);
        most[2] = 160;
        TEST_CHECK(exact_judge(most, levels, BLOCKS) == EXACT_FITS, "step %d: a still block has no room",
                   step);
    }
    memset(most, 140, sizeof most);
    TEST_CHECK(exact_judge(most, levels, BLOCKS) == EXACT_TOO_COARSE, "levels 20 above fit");
    memset(most, 0, sizeof most);
    TEST_CHECK(exact_judge(most, levels, BLOCKS) == EXACT_FITS, "zeros do not fit");
    most[5] = 255, most[6] = 254;
    TEST_CHECK(exact_judge(most, levels, BLOCKS) == EXACT_NOT_FINITE,
               "not finite matters less than too large");
    memset(most, 254, sizeof most);
    exact_predict(levels, most, BLOCKS);
    TEST_CHECK(levels[0] == 254 && levels[63] == 254, "the highest level is %d", levels[0]);
    memset(most, 0, sizeof most);
    for (int step = 0; step < 300; step++) exact_predict(levels, most, BLOCKS);
    TEST_CHECK(levels[0] < 20, "still gradients keep level %d", levels[0]);
}

/* --- bf16 --- */

static void test_bf16(const char *isa) {
    const uint32_t cases[][2] = {{0x3f800000, 0x3f80}, {0x3f808000, 0x3f80}, {0x3f818000, 0x3f82},
                                 {0x3f808001, 0x3f81}, {0x7f800000, 0x7f80}, {0xff800000, 0xff80},
                                 {0x7f7fffff, 0x7f80}, {0x00000001, 0x0000}, {0x80000000, 0x8000},
                                 {0x7f800001, 0x7fc0}, {0xffc12345, 0xffc1}};
    enum { N = sizeof cases / sizeof *cases };
    float x[N], back[N];
    uint16_t out[N];
    for (int i = 0; i < N; i++) x[i] = float_of(cases[i][0]);
    bf16_from_floats(out, x, N);
    bf16_to_floats(back, out, N);
    for (int i = 0; i < N; i++) {
        float want = float_of(cases[i][1] << 16);
        TEST_CHECK(out[i] == cases[i][1], "%s: %08x became %04x", isa, (unsigned)cases[i][0], out[i]);
        TEST_CHECK(!memcmp(&back[i], &want, sizeof want), "%s: %04x became %g", isa, out[i], (double)back[i]);
    }
}

int main(void) {
    test_every_isa(test_isa);
    test_every_isa(test_bf16);
    test_sums_of_doubles();
    test_predict();
    return test_end("exact");
}
