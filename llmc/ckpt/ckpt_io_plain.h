/* ckpt_io_plain.h: the file operations that both real bodies of ckpt_io.h share: the pread/pwrite body is all of them,
 * the io_uring body replaces how writes are begun and waited for.
 *
 * What always holds: a CkptFile has O_DIRECT on its descriptor if and only if `direct` says so; it only ever goes from
 * direct to not. */
#ifndef LLMC_CKPT_IO_PLAIN_H
#define LLMC_CKPT_IO_PLAIN_H
#include "ckpt/ckpt_io.h"

struct CkptFile {
    int fd;
    bool aligned; /* the caller asked for CKPT_IO_DIRECT: keeps to CKPT_IO_ALIGN */
    bool direct;
    char *path;
    void *bounce; /* aligned blocks on their way to memory that is not; NULL: not needed yet */
};

extern const CkptIoBody ckpt_io_plain_body;

/* All bytes with pwrite; drops O_DIRECT where the file system takes it back. */
bool ckpt_io_plain_write(CkptFile *file, const void *data, size_t bytes, uint64_t offset, Error *err);
/* Bugs of the caller: memory, offset and length that O_DIRECT cannot take. */
void ckpt_io_plain_check_aligned(const CkptFile *file, const void *data, size_t bytes, uint64_t offset);
#endif
