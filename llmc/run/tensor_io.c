/* tensor_io.c: see tensor_io.h. */
#define _POSIX_C_SOURCE   200809L
#define _FILE_OFFSET_BITS 64
#include "run/tensor_io.h"
#include "base/check.h"
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined __BYTE_ORDER__ && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "model files are little-endian; this machine needs byte swaps here"
#endif

size_t tensor_type_bytes(TensorType type) {
    return type == TENSOR_F32 ? 4 : 2;
}

bool tensor_file_open(TensorFile *file, const char *path, Error *err) {
    memset(file, 0, sizeof *file);
    file->fd = -1;
    size_t length = strlen(path);
    if (length >= sizeof file->path)
        return error_set(err, "%.200s...: the path is longer than %d bytes", path, FILE_PATH_BYTES - 1);
    memcpy(file->path, path, length + 1);
    struct stat s;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe without a writer must not block */
    if (fd < 0) return file_error(err, path, "open");
    if (fstat(fd, &s) != 0) {
        file_error(err, path, "read");
        close(fd);
        return false;
    }
    if (!S_ISREG(s.st_mode)) {
        close(fd);
        return error_set(err, "%s: is %s, not an ordinary file", path,
                         S_ISDIR(s.st_mode) ? "a folder" : "a device or pipe");
    }
    file->fd = fd;
    file->bytes = (uint64_t)s.st_size;
    return true;
}

void tensor_file_close(TensorFile *file) {
    if (file->fd >= 0) close(file->fd);
    file->fd = -1;
}

bool tensor_file_read(const TensorFile *file, uint64_t offset, void *data, size_t bytes, Error *err) {
    CHECK(file->fd >= 0);
    unsigned char *at = data;
    while (bytes) {
        size_t chunk = bytes < (1u << 30) ? bytes : 1u << 30;
        ssize_t n = pread(file->fd, at, chunk, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return file_error(err, file->path, "read");
        if (n == 0)
            return error_set(err, "%s: ends at byte %llu, %zu bytes too early (copy it again)", file->path,
                             (unsigned long long)offset, bytes);
        at += n, offset += (uint64_t)n, bytes -= (size_t)n;
    }
    return true;
}

/* --- the stored types --- */

static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

uint16_t tensor_bf16_from_float(float x) {
    uint32_t bits = bits_of(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u); /* NaN stays NaN */
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

float tensor_float_from_bf16(uint16_t bits) {
    return float_of((uint32_t)bits << 16);
}

float tensor_float_from_f16(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000u) << 16, exponent = bits >> 10 & 31u, mantissa = bits & 0x3ffu;
    if (exponent == 31) return float_of(sign | 0x7f800000u | mantissa << 13);
    if (exponent == 0) return copysignf(ldexpf((float)mantissa, -24), float_of(sign | bits_of(1)));
    return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
}

bool tensor_file_read_floats(const TensorFile *file, uint64_t offset, TensorType type, float *out, size_t n,
                             Error *err) {
    if (type == TENSOR_F32) return tensor_file_read(file, offset, out, n * sizeof *out, err);
    CHECK_OP(n, <=, TENSOR_IO_BLOCK);
    uint16_t block[TENSOR_IO_BLOCK];
    if (!tensor_file_read(file, offset, block, n * sizeof *block, err)) return false;
    for (size_t i = 0; i < n; i++)
        out[i] = type == TENSOR_BF16 ? tensor_float_from_bf16(block[i]) : tensor_float_from_f16(block[i]);
    return true;
}

bool tensor_write_floats(FileWriter *writer, TensorType type, const float *x, size_t n, Error *err) {
    if (type == TENSOR_F32) return file_writer_write(writer, x, n * sizeof *x, err);
    CHECK(type == TENSOR_BF16);
    enum { BLOCK = 4096 };
    uint16_t block[BLOCK];
    for (size_t at = 0; at < n; at += BLOCK) {
        size_t count = n - at < BLOCK ? n - at : BLOCK;
        for (size_t i = 0; i < count; i++) block[i] = tensor_bf16_from_float(x[at + i]);
        if (!file_writer_write(writer, block, count * sizeof *block, err)) return false;
    }
    return true;
}
