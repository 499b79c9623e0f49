/* sha256.c: see sha256.h. */
#define _POSIX_C_SOURCE 200809L
#include "base/sha256.h"
#include <pthread.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <arm_neon.h>
#include <sys/auxv.h>
#endif

/* Hashes whole blocks into state. */
typedef void BlocksFunction(uint32_t state[8], const unsigned char *data, size_t blocks);

static const uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotate(uint32_t x, int n) {
    return x >> n | x << (32 - n);
}

static uint32_t load_u32(const unsigned char *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* Round i; instead of moving the eight variables along, the rounds that follow name them one further. */
#define ROUND(a, b, c, d, e, f, g, h, i)                                                                     \
    do {                                                                                                     \
        uint32_t sum1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);                                        \
        uint32_t sum0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);                                        \
        uint32_t t = h + sum1 + ((e & f) ^ (~e & g)) + K[i] + w[i];                                          \
        d += t;                                                                                              \
        h = t + sum0 + ((a & b) ^ (a & c) ^ (b & c));                                                        \
    } while (0)

static void blocks_portable(uint32_t state[8], const unsigned char *data, size_t blocks) {
    for (; blocks; blocks--, data += SHA256_BLOCK_BYTES) {
        uint32_t w[64];
        uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
        uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
        for (int i = 0; i < 16; i++) w[i] = load_u32(data + 4 * i);
        for (int i = 16; i < 64; i++) {
            uint32_t x = w[i - 15], y = w[i - 2];
            w[i] = w[i - 16] + (rotate(x, 7) ^ rotate(x, 18) ^ x >> 3) + w[i - 7] +
                   (rotate(y, 17) ^ rotate(y, 19) ^ y >> 10);
        }
        for (int i = 0; i < 64; i += 8) {
            ROUND(a, b, c, d, e, f, g, h, i);
            ROUND(h, a, b, c, d, e, f, g, i + 1);
            ROUND(g, h, a, b, c, d, e, f, i + 2);
            ROUND(f, g, h, a, b, c, d, e, i + 3);
            ROUND(e, f, g, h, a, b, c, d, i + 4);
            ROUND(d, e, f, g, h, a, b, c, i + 5);
            ROUND(c, d, e, f, g, h, a, b, i + 6);
            ROUND(b, c, d, e, f, g, h, a, i + 7);
        }
        state[0] += a, state[1] += b, state[2] += c, state[3] += d;
        state[4] += e, state[5] += f, state[6] += g, state[7] += h;
    }
}

#if defined(__x86_64__)
/* The instructions want the state as (a b e f) and (c d g h). */
__attribute__((target("sha,sse4.1,ssse3"))) static void blocks_hardware(uint32_t state[8],
                                                                        const unsigned char *p,
                                                                        size_t blocks) {
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0bll, 0x0405060700010203ll);
    __m128i dcba = _mm_loadu_si128((const __m128i *)state);
    __m128i hgfe = _mm_loadu_si128((const __m128i *)(state + 4));
    __m128i cdab = _mm_shuffle_epi32(dcba, 0xb1), efgh = _mm_shuffle_epi32(hgfe, 0x1b);
    __m128i abef = _mm_alignr_epi8(cdab, efgh, 8), cdgh = _mm_blend_epi16(efgh, cdab, 0xf0);
    for (; blocks; blocks--, p += SHA256_BLOCK_BYTES) {
        __m128i saved_abef = abef, saved_cdgh = cdgh, w[4];
        for (int i = 0; i < 4; i++)
            w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)p + i), big_endian);
        for (int i = 0; i < 16; i++) {
            __m128i now = w[i & 3];
            if (i >= 4) {
                now = _mm_sha256msg1_epu32(now, w[(i + 1) & 3]);
                now = _mm_add_epi32(now, _mm_alignr_epi8(w[(i + 3) & 3], w[(i + 2) & 3], 4));
                now = w[i & 3] = _mm_sha256msg2_epu32(now, w[(i + 3) & 3]);
            }
            __m128i wk = _mm_add_epi32(now, _mm_loadu_si128((const __m128i *)(K + 4 * i)));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, wk);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(wk, 0x0e));
        }
        abef = _mm_add_epi32(abef, saved_abef);
        cdgh = _mm_add_epi32(cdgh, saved_cdgh);
    }
    __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128((__m128i *)state, _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_storeu_si128((__m128i *)(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}
static int hardware_here(void) {
    unsigned a, b = 0, c, d;
    return __builtin_cpu_supports("sse4.1") && __builtin_cpu_supports("ssse3") &&
           __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 29 & 1);
}
#elif defined(__aarch64__) && defined(__linux__) && !defined(__clang__)
__attribute__((target("+crypto"))) static void blocks_hardware(uint32_t state[8], const unsigned char *p,
                                                               size_t blocks) {
    uint32x4_t abcd = vld1q_u32(state), efgh = vld1q_u32(state + 4);
    for (; blocks; blocks--, p += SHA256_BLOCK_BYTES) {
        uint32x4_t saved_abcd = abcd, saved_efgh = efgh, w[4];
        for (int i = 0; i < 4; i++) w[i] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(p + 16 * i)));
        for (int i = 0; i < 16; i++) {
            if (i >= 4)
                w[i & 3] = vsha256su1q_u32(vsha256su0q_u32(w[i & 3], w[(i + 1) & 3]), w[(i + 2) & 3],
                                           w[(i + 3) & 3]);
            uint32x4_t wk = vaddq_u32(w[i & 3], vld1q_u32(K + 4 * i)), before = abcd;
            abcd = vsha256hq_u32(abcd, efgh, wk);
            efgh = vsha256h2q_u32(efgh, before, wk);
        }
        abcd = vaddq_u32(abcd, saved_abcd);
        efgh = vaddq_u32(efgh, saved_efgh);
    }
    vst1q_u32(state, abcd);
    vst1q_u32(state + 4, efgh);
}
static int hardware_here(void) {
    return (getauxval(AT_HWCAP) & (1ul << 6)) != 0; /* HWCAP_SHA2 */
}
#else
#define blocks_hardware blocks_portable
static int hardware_here(void) {
    return 0;
}
#endif

static pthread_once_t prepared = PTHREAD_ONCE_INIT;
static BlocksFunction *fastest = blocks_portable;

static void prepare(void) {
    if (hardware_here()) fastest = blocks_hardware;
}

void sha256_open(Sha256 *s) {
    static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memcpy(s->state, start, sizeof start);
    s->bytes = 0;
}

static void update(Sha256 *s, const void *data, size_t bytes, BlocksFunction *hash_blocks) {
    const unsigned char *p = data;
    size_t held = s->bytes % SHA256_BLOCK_BYTES;
    if (!bytes) return;
    s->bytes += bytes;
    if (held) {
        size_t n = bytes < SHA256_BLOCK_BYTES - held ? bytes : SHA256_BLOCK_BYTES - held;
        memcpy(s->block + held, p, n);
        if (held + n < SHA256_BLOCK_BYTES) return;
        hash_blocks(s->state, s->block, 1);
        p += n, bytes -= n;
    }
    hash_blocks(s->state, p, bytes / SHA256_BLOCK_BYTES);
    memcpy(s->block, p + bytes / SHA256_BLOCK_BYTES * SHA256_BLOCK_BYTES, bytes % SHA256_BLOCK_BYTES);
}

static void finish(Sha256 *s, unsigned char hash[SHA256_BYTES], BlocksFunction *hash_blocks) {
    unsigned char tail[2 * SHA256_BLOCK_BYTES] = {0};
    size_t held = s->bytes % SHA256_BLOCK_BYTES;
    size_t blocks = held + 9 > SHA256_BLOCK_BYTES ? 2 : 1;
    uint64_t bits = s->bytes * 8;
    memcpy(tail, s->block, held);
    tail[held] = 0x80;
    for (size_t i = 0; i < 8; i++) tail[blocks * SHA256_BLOCK_BYTES - 1 - i] = (unsigned char)(bits >> 8 * i);
    hash_blocks(s->state, tail, blocks);
    for (int i = 0; i < SHA256_BYTES; i++) hash[i] = (unsigned char)(s->state[i / 4] >> (24 - 8 * (i % 4)));
}

void sha256_update(Sha256 *s, const void *data, size_t bytes) {
    pthread_once(&prepared, prepare);
    update(s, data, bytes, fastest);
}

void sha256_close(Sha256 *s, unsigned char hash[SHA256_BYTES]) {
    pthread_once(&prepared, prepare);
    finish(s, hash, fastest);
}

void sha256(const void *data, size_t bytes, unsigned char hash[SHA256_BYTES]) {
    Sha256 s;
    sha256_open(&s);
    sha256_update(&s, data, bytes);
    sha256_close(&s, hash);
}

void sha256_portable(const void *data, size_t bytes, unsigned char hash[SHA256_BYTES]) {
    Sha256 s;
    sha256_open(&s);
    update(&s, data, bytes, blocks_portable);
    finish(&s, hash, blocks_portable);
}

void hmac_sha256(const void *key, size_t key_bytes, const void *data, size_t bytes,
                 unsigned char mac[SHA256_BYTES]) {
    unsigned char padded[SHA256_BLOCK_BYTES] = {0}, inner[SHA256_BYTES];
    Sha256 s;
    if (key_bytes > SHA256_BLOCK_BYTES)
        sha256(key, key_bytes, padded);
    else if (key_bytes)
        memcpy(padded, key, key_bytes);
    for (int i = 0; i < SHA256_BLOCK_BYTES; i++) padded[i] ^= 0x36;
    sha256_open(&s);
    sha256_update(&s, padded, sizeof padded);
    sha256_update(&s, data, bytes);
    sha256_close(&s, inner);
    for (int i = 0; i < SHA256_BLOCK_BYTES; i++) padded[i] ^= 0x36 ^ 0x5c;
    sha256_open(&s);
    sha256_update(&s, padded, sizeof padded);
    sha256_update(&s, inner, sizeof inner);
    sha256_close(&s, mac);
}

void sha256_hex(const unsigned char hash[SHA256_BYTES], char hex[SHA256_HEX_BYTES]) {
    for (int i = 0; i < SHA256_BYTES; i++) {
        hex[2 * i] = "0123456789abcdef"[hash[i] >> 4];
        hex[2 * i + 1] = "0123456789abcdef"[hash[i] & 15];
    }
    hex[2 * SHA256_BYTES] = 0;
}
