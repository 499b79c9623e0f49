/* fuzz.h: a small driver for the fuzz_*.c targets, so that every test run fuzzes a little with any compiler: seeds,
 * mutated by flips, cuts, copies and splices. The inputs are a pure function of the round, so a failure repeats.
 * The same targets run under libFuzzer: clang -fsanitize=fuzzer,address -Illmc -Idev/test dev/test/fuzz_X.c LIB. */
#ifndef FUZZ_H
#define FUZZ_H
#include "base/rng.h"
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int FuzzTarget(const uint8_t *data, size_t bytes);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { FUZZ_BYTES_MAX = 4096 };

static inline size_t fuzz_mutate(uint8_t *data, size_t bytes, const char *other, uint64_t round,
                                 uint64_t index) {
    static const char spice[] = "{}[]\",:\\=#-0919eE.\n\r\t \0\xff\x80uU/";
    uint32_t r[4];
    rng_block(round, RNG_STREAM(RNG_TEST, 1), index, r);
    size_t at = bytes ? r[1] % bytes : 0, run = bytes ? 1 + r[2] % (bytes - at < 64 ? bytes - at : 64) : 0;
    size_t target = bytes ? r[3] % bytes : 0;
    if (run > bytes - target) run = bytes - target;
    size_t other_bytes = strlen(other), other_at = other_bytes ? r[2] % other_bytes : 0;
    switch (r[0] % 6) {
    case 0:
        if (bytes) data[at] ^= (uint8_t)(1u << (r[2] & 7));
        return bytes;
    case 1:
        if (bytes) data[at] = (uint8_t)spice[r[2] % (sizeof spice - 1)];
        return bytes;
    case 2: return at; /* cut off */
    case 3:            /* take a piece out */
        if (at + run > bytes) run = bytes - at;
        memmove(data + at, data + at + run, bytes - at - run);
        return bytes - run;
    case 4: /* put one character in */
        if (bytes == FUZZ_BYTES_MAX) return bytes;
        memmove(data + at + 1, data + at, bytes - at);
        data[at] = (uint8_t)spice[r[2] % (sizeof spice - 1)];
        return bytes + 1;
    default: /* go on as another seed does */
        other_bytes -= other_at;
        if (other_bytes > FUZZ_BYTES_MAX - at) other_bytes = FUZZ_BYTES_MAX - at;
        memcpy(data + at, other + other_at, other_bytes);
        return at + other_bytes;
    }
}

/* Calls target `rounds` times, each with its input in an allocation of exactly its size, so that ASan sees every
 * read behind the end; the target aborts when it finds something. Returns the rounds done. */
static inline int fuzz_run(FuzzTarget *target, const char *const *seeds, int num_seeds, int rounds) {
    static uint8_t data[FUZZ_BYTES_MAX];
    for (int round = 0; round < rounds; round++) {
        const char *seed = seeds[round % num_seeds];
        size_t bytes = strlen(seed) < FUZZ_BYTES_MAX ? strlen(seed) : FUZZ_BYTES_MAX;
        memcpy(data, seed, bytes);
        for (int i = 0, n = round / num_seeds % 8; i < n; i++)
            bytes = fuzz_mutate(data, bytes, seeds[(round + i) % num_seeds], (uint64_t)round, (uint64_t)i);
        uint8_t *exact = malloc(bytes ? bytes : 1);
        if (!exact) return round;
        memcpy(exact, data, bytes);
        target(exact, bytes);
        free(exact);
    }
    return rounds;
}
#endif
