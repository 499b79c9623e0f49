/* test_rng.c: Philox against its authors' known answers; uniformity, normality and permutations. */
#include "base/rng.h"
#include "test.h"

/* Random123's kat_vectors, philox4x32-10: counter, key, result. */
static void known_answers(void) {
    const struct {
        uint64_t seed, stream, index;
        uint32_t out[4];
    } cases[] = {
        {0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {UINT64_MAX, UINT64_MAX, UINT64_MAX, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {0x299f31d0a4093822,
         0x0370734413198a2e,
         0x85a308d3243f6a88,
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint32_t out[4];
        rng_block(cases[i].seed, cases[i].stream, cases[i].index, out);
        TEST_CHECK(!memcmp(out, cases[i].out, sizeof out), "case %zu: %08x %08x %08x %08x", i, out[0], out[1],
                   out[2], out[3]);
    }
}

static void moments(void) {
    enum { N = 200000 };
    double u1 = 0, u2 = 0, n1 = 0, n2 = 0, n4 = 0;
    for (uint64_t i = 0; i < N; i++) {
        double u = rng_uniform(7, 1, i), z = rng_normal(7, 2, i);
        TEST_CHECK(u >= 0 && u < 1 && isfinite(z), "%llu: %g %g", (unsigned long long)i, u, z);
        u1 += u / N;
        u2 += u * u / N;
        n1 += z / N;
        n2 += z * z / N;
        n4 += z * z * z * z / N;
    }
    TEST_CHECK(fabs(u1 - 0.5) < 3e-3 && fabs(u2 - 1.0 / 3) < 3e-3, "uniform moments %g %g", u1, u2);
    TEST_CHECK(fabs(n1) < 1e-2 && fabs(n2 - 1) < 1e-2 && fabs(n4 - 3) < 0.1, "normal moments %g %g %g", n1,
               n2, n4);
}

static void permutations(void) {
    const uint64_t sizes[] = {1, 2, 3, 4, 5, 16, 17, 255, 256, 257, 1000, 65537};
    static unsigned char seen[65537];
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        uint64_t n = sizes[s], fixed = 0;
        memset(seen, 0, sizeof seen);
        for (uint64_t i = 0; i < n; i++) {
            uint64_t j = rng_permute(3, 9, n, i);
            TEST_CHECK(j < n && !seen[j], "n %llu: %llu comes twice", (unsigned long long)n,
                       (unsigned long long)j);
            if (j < n) seen[j] = 1;
            fixed += i == j;
        }
        if (n > 200)
            TEST_CHECK(fixed < 12, "n %llu: %llu fixed points", (unsigned long long)n,
                       (unsigned long long)fixed);
    }
    uint64_t huge = (uint64_t)1 << 62;
    TEST_CHECK(rng_permute(1, 1, huge, huge - 1) < huge, "huge");
}

int main(void) {
    known_answers();
    moments();
    permutations();
    return test_end("rng");
}
