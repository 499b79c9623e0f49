/* sha256.h: SHA-256 (FIPS 180-4) and HMAC-SHA-256 (RFC 2104): what requests to S3 are signed with.
 *
 * Our own, so that a signed upload needs no cryptographic library; by the processor's instructions where there are any
 * (x86 SHA, ARMv8 SHA2), else in plain C. Not hardened against timing attacks by other users of the same processor. */
#ifndef LLMC_SHA256_H
#define LLMC_SHA256_H
#include <stddef.h>
#include <stdint.h>

enum { SHA256_BYTES = 32, SHA256_BLOCK_BYTES = 64, SHA256_HEX_BYTES = 65 };

typedef struct {
    uint32_t state[8];
    uint64_t bytes; /* hashed so far */
    unsigned char block[SHA256_BLOCK_BYTES];
} Sha256;

void sha256_open(Sha256 *s);
void sha256_update(Sha256 *s, const void *data, size_t bytes);
/* The hash of all updates; s may then only be opened again. */
void sha256_close(Sha256 *s, unsigned char hash[SHA256_BYTES]);

void sha256(const void *data, size_t bytes, unsigned char hash[SHA256_BYTES]);
/* The same without the processor's instructions: what they are tested against. */
void sha256_portable(const void *data, size_t bytes, unsigned char hash[SHA256_BYTES]);

/* mac may be the memory of key or data. */
void hmac_sha256(const void *key, size_t key_bytes, const void *data, size_t bytes,
                 unsigned char mac[SHA256_BYTES]);

/* 64 lower-case digits and a NUL. */
void sha256_hex(const unsigned char hash[SHA256_BYTES], char hex[SHA256_HEX_BYTES]);
#endif
