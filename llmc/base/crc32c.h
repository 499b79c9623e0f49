/* crc32c.h: the CRC-32C checksum (Castagnoli, polynomial 0x1EDC6F41, RFC 3720) of files and records.
 *
 * The value is the same whichever way it is computed: by the processor's instruction where there is one
 * (SSE 4.2, ARMv8 CRC), on long data by folding where there is AVX-512 with VPCLMULQDQ, else by tables, eight bytes at a
 * time. */
#ifndef LLMC_CRC32C_H
#define LLMC_CRC32C_H
#include <stddef.h>
#include <stdint.h>

/* Checksum of `bytes` bytes after data whose checksum is `crc` (0: nothing before):
 * crc32c(crc32c(0, a), b) is the checksum of a followed by b. Safe to call from any thread. */
uint32_t crc32c(uint32_t crc, const void *data, size_t bytes);

/* The same by tables only: what the fast paths are tested against; and by the instruction, where there is one. */
uint32_t crc32c_portable(uint32_t crc, const void *data, size_t bytes);
uint32_t crc32c_unfolded(uint32_t crc, const void *data, size_t bytes);

/* The rotated and offset form in which TFRecord files store a CRC-32C. */
uint32_t crc32c_mask(uint32_t crc);
#endif
