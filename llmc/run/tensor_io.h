/* tensor_io.h: numbers in files: reading at an offset with the size checked, and fp32 from and to the stored
 * types.
 *
 * What model files, safetensors and run states share. All of them are little-endian, as every machine that
 * this builds for. */
#ifndef LLMC_TENSOR_IO_H
#define LLMC_TENSOR_IO_H
#include "base/file.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum { TENSOR_F32, TENSOR_BF16, TENSOR_F16 } TensorType;

/* Bytes of one element. */
size_t tensor_type_bytes(TensorType type);

/* Elements that callers convert at a time: what bounds the memory of reading and writing a model. */
enum { TENSOR_IO_BLOCK = 1 << 16 };

typedef struct {
    char path[FILE_PATH_BYTES];
    int fd; /* -1: not open */
    uint64_t bytes;
} TensorFile;

/* Opens an ordinary file for reading. A folder, a pipe or a missing file is an error. */
bool tensor_file_open(TensorFile *file, const char *path, Error *err);
/* Also of a file that was never opened, if fd is -1. */
void tensor_file_close(TensorFile *file);
/* Exactly `bytes` bytes at `offset`; a file that ends before is an error that says where. Safe from any
 * thread. */
bool tensor_file_read(const TensorFile *file, uint64_t offset, void *data, size_t bytes, Error *err);
/* n elements stored at byte `offset`, as fp32. n <= TENSOR_IO_BLOCK unless the type is TENSOR_F32. */
bool tensor_file_read_floats(const TensorFile *file, uint64_t offset, TensorType type, float *out, size_t n,
                             Error *err);
/* n floats stored as `type` (F32 or BF16, rounded to nearest even). */
bool tensor_write_floats(FileWriter *writer, TensorType type, const float *x, size_t n, Error *err);

uint16_t tensor_bf16_from_float(float x);
float tensor_float_from_bf16(uint16_t bits);
float tensor_float_from_f16(uint16_t bits);
#endif
