/* crc32c.c: see crc32c.h. Slicing-by-8: Kounavis, Berry, "A systematic approach to building high performance,
 * software-based, CRC generators", ISCC 2005. */
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

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc32c_hardware(uint32_t crc, const void *data,
                                                                  size_t bytes) {
    const unsigned char *p = data;
    uint64_t c = ~crc;
    for (; bytes >= 8; bytes -= 8, p += 8) c = _mm_crc32_u64(c, load_u64(p));
    uint32_t tail = (uint32_t)c;
    for (; bytes; bytes--) tail = _mm_crc32_u8(tail, *p++);
    return ~tail;
}
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
CRC_TARGET static uint32_t crc32c_hardware(uint32_t crc, const void *data, size_t bytes) {
    const unsigned char *p = data;
    uint32_t c = ~crc;
    for (; bytes >= 8; bytes -= 8, p += 8) c = CRC_U64(c, load_u64(p));
    for (; bytes; bytes--) c = CRC_U8(c, *p++);
    return ~c;
}
static int hardware_here(void) {
    return (getauxval(AT_HWCAP) & (1ul << 7)) != 0;
} /* HWCAP_CRC32 */
#else
#define crc32c_hardware crc32c_portable
static int hardware_here(void) {
    return 0;
}
#endif

static void prepare(void) {
    for (uint32_t b = 0; b < 256; b++) {
        uint32_t c = b;
        for (int bit = 0; bit < 8; bit++) c = (c >> 1) ^ (0x82F63B78u & (0u - (c & 1)));
        table[0][b] = c;
    }
    for (int k = 1; k < 8; k++)
        for (uint32_t b = 0; b < 256; b++)
            table[k][b] = (table[k - 1][b] >> 8) ^ table[0][table[k - 1][b] & 0xff];
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
