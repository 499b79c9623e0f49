/* crc32c.c: see crc32c.h. Slicing-by-8: Kounavis, Berry, "A systematic approach to building high performance,
 * software-based, CRC generators", ISCC 2005.
 *
 * The processor's instruction gives its result three cycles later and can begin every cycle, so long data goes as three
 * lanes side by side. A checksum's register is linear in what it was: three registers become one by moving the first two
 * behind the zeros that stand for the lanes after them, which is a table look-up for a lane of fixed length. */
#define _POSIX_C_SOURCE 200809L
#include "base/crc32c.h"
#include <pthread.h>
#include <string.h>
#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

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
        for (int bit = 0; bit < 8; bit++) c = (c >> 1) ^ (0x82F63B78u & (0u - (c & 1)));
        table[0][b] = c;
    }
    for (int k = 1; k < 8; k++)
        for (uint32_t b = 0; b < 256; b++)
            table[k][b] = (table[k - 1][b] >> 8) ^ table[0][table[k - 1][b] & 0xff];
    prepare_lanes();
    if (hardware_here()) fastest = crc32c_hardware;
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

uint32_t crc32c(uint32_t crc, const void *data, size_t bytes) {
    pthread_once(&prepared, prepare);
    return fastest(crc, data, bytes);
}

uint32_t crc32c_mask(uint32_t crc) {
    return ((crc >> 15) | (crc << 17)) + 0xA282EAD8u;
}
