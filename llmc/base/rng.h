/* rng.h: counter-based random numbers: a value is a pure function of (seed, stream, index).
 *
 * Nothing is carried from draw to draw, so any rank, thread or resumed run can make exactly its own part:
 * element i of tensor s at initialisation, the sample at global index i of epoch s, the i-th sampled token.
 * Philox4x32-10: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. */
#ifndef LLMC_RNG_H
#define LLMC_RNG_H
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

/* Streams keep the users of one seed apart; the low 48 bits are free for the user (tensor, layer, epoch). */
enum { RNG_INIT = 1, RNG_SHUFFLE = 2, RNG_SAMPLE = 3, RNG_TEST = 4, RNG_ROUND = 5 };
#define RNG_STREAM(user, sub) (((uint64_t)(user) << 48) | (uint64_t)(sub))

void rng_block(uint64_t seed, uint64_t stream, uint64_t index, uint32_t out[4]);

/* Uniform in [0, 1) with 53 bits. */
double rng_uniform(uint64_t seed, uint64_t stream, uint64_t index);

/* Standard normal (Box-Muller in double). */
double rng_normal(uint64_t seed, uint64_t stream, uint64_t index);

/* A bijection of [0, n) chosen by (seed, stream): the place of index i; n >= 1, i < n.
 * A balanced Feistel network over the next even number of bits, walked until it lands inside. */
uint64_t rng_permute(uint64_t seed, uint64_t stream, uint64_t n, uint64_t i);
#ifdef __cplusplus
}
#endif
#endif
