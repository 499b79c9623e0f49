/* crc32c.c: see crc32c.h. Slicing-by-8: Kounavis, Berry, "A systematic approach to building high performance,
 * software-based, CRC generators", ISCC 2005.
 *
 * The processor's instruction gives its result three cycles later and can begin every cycle, so long data goes as three
 * lanes side by side. A checksum's register is linear in what it was: three registers become one by moving the first two
 * behind the zeros that stand for the lanes after them, which is a table look-up for a lane of fixed length.
 *
 * Where there are carry-less products of 64 bytes at a time (VPCLMULQDQ), long data is folded first: Gopal et al., "Fast
 * CRC computation for generic polynomials using PCLMULQDQ instruction", Intel 2009. A block of 256 bytes is replaced by
 * another one that has the same remainder together with the block behind it; the last one's is the data's. */
#define _POSIX_C_SOURCE 200809L
#include "base/crc32c.h"
#include <pthread.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

#define POLYNOMIAL 0x82F63B78u /* its bits in reverse */

typedef uint32_t CrcFunction(uint32_t crc, const void *data, size_t bytes);

static pthread_once_t prepared = PTHREAD_ONCE_INIT;
static uint32_t table[8][256]; /* table[k][b]: the register after byte b and then k zero bytes */
static CrcFunction *fastest = crc32c_portable;

static uint64_t load_u64(const unsigned char *p) {
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

/* Long lanes, and short ones for what is left. */
enum { LANES = 2, LANE_LONG = 4096, LANE_SHORT = 256, LINE = 64 };
static const size_t lane_bytes[LANES] = {LANE_LONG, LANE_SHORT};
static uint32_t beyond[LANES][4][256]; /* byte k of a register with this value, after a lane of zeros */

#if defined(__x86_64__)
#define CRC_TARGET    __attribute__((target("sse4.2")))
#define CRC_U64(c, v) (uint32_t) _mm_crc32_u64(c, v)
#define CRC_U8(c, v)  _mm_crc32_u8(c, v)
static int hardware_here(void) {
    return __builtin_cpu_supports("sse4.2");
}
#elif defined(__aarch64__) && defined(__linux__)
#if defined(__clang__)
#define CRC_TARGET __attribute__((target("crc")))
#define CRC_U64    __builtin_arm_crc32cd
#define CRC_U8     __builtin_arm_crc32cb
#else
#define CRC_TARGET __attribute__((target("+crc")))
#define CRC_U64    __builtin_aarch64_crc32cx
#define CRC_U8     __builtin_aarch64_crc32cb
#endif
static int hardware_here(void) {
    return (getauxval(AT_HWCAP) & (1ul << 7)) != 0;
} /* HWCAP_CRC32 */
#endif

#ifdef CRC_TARGET
static uint32_t after_lane(uint32_t t[4][256], uint32_t c) {
    return t[0][c & 0xff] ^ t[1][c >> 8 & 0xff] ^ t[2][c >> 16 & 0xff] ^ t[3][c >> 24];
}

/* The same place in the next three lanes: the processor's own prefetching ends where a page does, as a lane may. */
static void prefetch_lanes(const unsigned char *p) {
    uintptr_t next = (uintptr_t)p + 3 * LANE_LONG; /* perhaps behind the data, which does no harm */
    __builtin_prefetch((const void *)next);
    __builtin_prefetch((const void *)(next + LANE_LONG));
    __builtin_prefetch((const void *)(next + 2 * LANE_LONG));
}

CRC_TARGET static uint32_t crc32c_hardware(uint32_t crc, const void *data, size_t bytes) {
    const unsigned char *p = data;
    uint32_t c = ~crc;
    for (int lane = 0; lane < LANES; lane++) {
        const size_t n = lane_bytes[lane];
        for (; bytes >= 3 * n; bytes -= 3 * n, p += 3 * n) {
            uint32_t second = 0, third = 0;
            for (size_t i = 0; i < n; i += 8) {
                if (n == LANE_LONG && i % LINE == 0) prefetch_lanes(p + i);
                c = CRC_U64(c, load_u64(p + i));
                second = CRC_U64(second, load_u64(p + n + i));
                third = CRC_U64(third, load_u64(p + 2 * n + i));
            }
            c = after_lane(beyond[lane], after_lane(beyond[lane], c) ^ second) ^ third;
        }
    }
    for (; bytes >= 8; bytes -= 8, p += 8) c = CRC_U64(c, load_u64(p));
    for (; bytes; bytes--) c = CRC_U8(c, *p++);
    return ~c;
}
#else
#define crc32c_hardware crc32c_portable
static int hardware_here(void) {
    return 0;
}
#endif

/* ---- folding ---- */

enum { FOLD_BYTES = 256, FOLD_FROM = 1024, FOLD_AHEAD = 4096 };

#if defined(__x86_64__)
/* What moves the first and the second 8 bytes of 16 behind the FOLD_BYTES after them. */
static uint64_t fold_by[2];

static int folding_here(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq");
}

/* x^n modulo the polynomial, bits as in a register, as a factor of 33 bits. */
static uint64_t factor(int n) {
    uint32_t v = 0x80000000u;
    for (; n > 0; n--) v = (v >> 1) ^ (POLYNOMIAL & (0u - (v & 1)));
    return (uint64_t)v << 1;
}

__attribute__((target("avx512f,vpclmulqdq"))) static __m512i fold(__m512i sum, __m512i by,
                                                                  const unsigned char *next) {
    __m512i first = _mm512_clmulepi64_epi128(sum, by, 0x00), second = _mm512_clmulepi64_epi128(sum, by, 0x11);
    return _mm512_ternarylogic_epi64(first, second, _mm512_loadu_si512(next), 0x96); /* xor of three */
}

__attribute__((target("avx512f,vpclmulqdq"))) static uint32_t crc32c_folded(uint32_t crc, const void *data,
                                                                            size_t bytes) {
    const unsigned char *p = data;
    unsigned char block[FOLD_BYTES];
    if (bytes < FOLD_FROM) return crc32c_hardware(crc, data, bytes);
    const __m512i by = _mm512_broadcast_i32x4(_mm_set_epi64x((long long)fold_by[1], (long long)fold_by[0]));
    __m512i a = _mm512_loadu_si512(p), b = _mm512_loadu_si512(p + 64), c = _mm512_loadu_si512(p + 128),
            d = _mm512_loadu_si512(p + 192);
    a = _mm512_xor_si512(a, _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)~crc)));
    for (p += FOLD_BYTES, bytes -= FOLD_BYTES; bytes >= FOLD_BYTES; p += FOLD_BYTES, bytes -= FOLD_BYTES) {
        uintptr_t ahead = (uintptr_t)p + FOLD_AHEAD; /* perhaps behind the data, which does no harm */
        for (uintptr_t i = 0; i < FOLD_BYTES; i += LINE) __builtin_prefetch((const void *)(ahead + i));
        a = fold(a, by, p);
        b = fold(b, by, p + 64);
        c = fold(c, by, p + 128);
        d = fold(d, by, p + 192);
    }
    _mm512_storeu_si512(block, a);
    _mm512_storeu_si512(block + 64, b);
    _mm512_storeu_si512(block + 128, c);
    _mm512_storeu_si512(block + 192, d);
    return crc32c_hardware(crc32c_hardware(~0u, block, FOLD_BYTES), p, bytes);
}

static void prepare_folding(void) {
    fold_by[0] = factor(8 * FOLD_BYTES + 32);
    fold_by[1] = factor(8 * FOLD_BYTES - 32);
    if (hardware_here() && folding_here()) fastest = crc32c_folded;
}
#else
static void prepare_folding(void) {}
#endif

/* The tables of `beyond`, from what a lane of zeros makes of each single bit. */
static void prepare_lanes(void) {
    for (int lane = 0; lane < LANES; lane++)
        for (int bit = 0; bit < 32; bit++) {
            uint32_t c = (uint32_t)1 << bit, *to = beyond[lane][bit / 8], half = (uint32_t)1 << bit % 8;
            for (size_t i = 0; i < lane_bytes[lane]; i++) c = (c >> 8) ^ table[0][c & 0xff];
            for (uint32_t b = half; b < 2 * half; b++) to[b] = to[b - half] ^ c;
        }
}

static void prepare(void) {
    for (uint32_t b = 0; b < 256; b++) {
        uint32_t c = b;
        for (int bit = 0; bit < 8; bit++) c = (c >> 1) ^ (POLYNOMIAL & (0u - (c & 1)));
        table[0][b] = c;
    }
    for (int k = 1; k < 8; k++)
        for (uint32_t b = 0; b < 256; b++)
            table[k][b] = (table[k - 1][b] >> 8) ^ table[0][table[k - 1][b] & 0xff];
    prepare_lanes();
    if (hardware_here()) fastest = crc32c_hardware;
    prepare_folding();
}

uint32_t crc32c_portable(uint32_t crc, const void *data, size_t bytes) {
    pthread_once(&prepared, prepare);
    const unsigned char *p = data;
    uint32_t c = ~crc;
    for (; bytes >= 8; bytes -= 8, p += 8) {
        c ^= (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
        c = table[7][c & 0xff] ^ table[6][c >> 8 & 0xff] ^ table[5][c >> 16 & 0xff] ^ table[4][c >> 24] ^
            table[3][p[4]] ^ table[2][p[5]] ^ table[1][p[6]] ^ table[0][p[7]];
    }
    for (; bytes; bytes--) c = (c >> 8) ^ table[0][(c ^ *p++) & 0xff];
    return ~c;
}

uint32_t crc32c_unfolded(uint32_t crc, const void *data, size_t bytes) {
    pthread_once(&prepared, prepare);
    return hardware_here() ? crc32c_hardware(crc, data, bytes) : crc32c_portable(crc, data, bytes);
}

uint32_t crc32c(uint32_t crc, const void *data, size_t bytes) {
    pthread_once(&prepared, prepare);
    return fastest(crc, data, bytes);
}

uint32_t crc32c_mask(uint32_t crc) {
    return ((crc >> 15) | (crc << 17)) + 0xA282EAD8u;
}
