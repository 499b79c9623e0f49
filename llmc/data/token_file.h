/* token_file.h: llm.c's `.bin` token files: 256 little-endian int32 of header, then the tokens as uint16.
 *
 *   header[0] magic 20240520   header[1] version 1   header[2] number of tokens
 *   header[3] vocabulary size and header[4] tokenizer fingerprint: our addition; 0 in llm.c's files = unknown
 *
 * A file is accepted only if its size is exactly what its header says. Files are written aside and renamed
 * when complete (base/file.h), so a file that is there under its name is whole. */
#ifndef LLMC_TOKEN_FILE_H
#define LLMC_TOKEN_FILE_H
#include "base/error.h"
#include "base/file.h"
#include <stddef.h>
#include <stdint.h>

enum {
    TOKEN_FILE_MAGIC = 20240520,
    TOKEN_FILE_VERSION = 1,
    TOKEN_FILE_HEADER_BYTES = 1024,
    TOKEN_FILE_VOCAB_MAX = 65535,
    TOKEN_FILE_TOKENS_MAX = 2147483647 /* header[2] is an int32 */
};

typedef struct {
    uint64_t tokens;
    int vocab_size;       /* 0: unknown */
    uint32_t fingerprint; /* of the tokenizer that wrote it (tokenizer.h); 0: unknown */
} TokenFileInfo;

/* Checks the first header_bytes bytes (at most TOKEN_FILE_HEADER_BYTES are looked at) of a file of file_bytes
 * bytes. On failure one line with `path`, what the file looks like instead or what is missing, and a hint. */
bool token_file_check(const void *header, size_t header_bytes, uint64_t file_bytes, const char *path,
                      TokenFileInfo *info, Error *err);

/* Opens for reading and checks it: *fd (close it with close(2)) and *info. */
bool token_file_open(const char *path, int *fd, TokenFileInfo *info, Error *err);

/* Reads `count` tokens from token `first` on. The caller stays below info.tokens; reaching the end of the
 * file all the same means that it shrank since it was opened, and is an error. */
bool token_file_read(int fd, const char *path, uint64_t first, size_t count, uint16_t *out, Error *err);

typedef struct {
    FileWriter file;
    TokenFileInfo info; /* info.tokens counts what was written so far */
} TokenFileWriter;

/* As the functions of FileWriter: after a failure only abort may follow, and abort may always follow.
 * vocab_size 0..TOKEN_FILE_VOCAB_MAX (0: unknown); a larger one does not fit uint16 tokens and is an error.
 */
bool token_file_writer_open(TokenFileWriter *writer, const char *path, int vocab_size, uint32_t fingerprint,
                            Error *err);
bool token_file_writer_write(TokenFileWriter *writer, const uint16_t *ids, size_t count, Error *err);
bool token_file_writer_commit(TokenFileWriter *writer, Error *err);
void token_file_writer_abort(TokenFileWriter *writer);
#endif
