/* token_file.c: see token_file.h. */
#define _POSIX_C_SOURCE   200809L
#define _FILE_OFFSET_BITS 64
#include "data/token_file.h"
#include "base/check.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static uint32_t u32_at(const unsigned char *bytes, int index) {
    const unsigned char *p = bytes + 4 * index;
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static void put_u32(unsigned char *bytes, int index, uint32_t value) {
    for (int i = 0; i < 4; i++) bytes[4 * index + i] = (unsigned char)(value >> (8 * i));
}

/* What a file that is no token file seems to be, for the error line. */
static const char *looks_like(const unsigned char *bytes, size_t count) {
    static const struct {
        uint32_t magic;
        const char *name;
    } known[] = {
        {20240326, "a model file of llm.c"},
        {20240327, "a debug state of llm.c"},
        {20240328, "a tokenizer file of llm.c"},
        {20240522, "an evaluation file (HellaSwag, MMLU) of llm.c"},
        {20240801, "a token file for Llama 3 with uint32 tokens"},
        {0x31524150, "a parquet file"},
        {0xfd2fb528, "a zstd-compressed file"},
        {0x46554747, "a GGUF model file"},
        {0x04034b50, "a zip file"},
    };
    uint32_t magic = count >= 4 ? u32_at(bytes, 0) : 0;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (count >= 4 && magic == known[i].magic) return known[i].name;
    if (count >= 4 && magic == 0x88d83401) return "a token file of a big-endian machine";
    if (count >= 2 && bytes[0] == 0x1f && bytes[1] == 0x8b) return "a gzip-compressed file";
    if (count >= 9 && bytes[8] == '{' && !bytes[7]) return "a safetensors model file";
    for (size_t i = 0; i < count; i++)
        if (bytes[i] < 32 && !strchr("\t\n\r\f", bytes[i])) return "something else";
    return count ? "a text file" : "empty";
}

bool token_file_check(const void *header, size_t header_bytes, uint64_t file_bytes, const char *path,
                      TokenFileInfo *info, Error *err) {
    const unsigned char *bytes = header;
    if (header_bytes > TOKEN_FILE_HEADER_BYTES) header_bytes = TOKEN_FILE_HEADER_BYTES;
    if (header_bytes < 4 || u32_at(bytes, 0) != TOKEN_FILE_MAGIC)
        return error_set(err, "%s: not a token file: it is %s (make token files with 'train_gpt2 tokenize')",
                         path, looks_like(bytes, header_bytes));
    if (header_bytes < TOKEN_FILE_HEADER_BYTES || file_bytes < TOKEN_FILE_HEADER_BYTES)
        return error_set(err, "%s: truncated inside its header: %llu of %d bytes (make or download it again)",
                         path, (unsigned long long)file_bytes, TOKEN_FILE_HEADER_BYTES);
    uint32_t version = u32_at(bytes, 1), tokens = u32_at(bytes, 2), vocab_size = u32_at(bytes, 3);
    if (version != TOKEN_FILE_VERSION)
        return error_set(err, "%s: token file of version %u; only version %d is known (make it again)", path,
                         version, TOKEN_FILE_VERSION);
    if (tokens > TOKEN_FILE_TOKENS_MAX || vocab_size > TOKEN_FILE_VOCAB_MAX)
        return error_set(err, "%s: damaged header: %u tokens, vocabulary of %u (make or download it again)",
                         path, tokens, vocab_size);
    uint64_t expected = TOKEN_FILE_HEADER_BYTES + 2 * (uint64_t)tokens;
    if (file_bytes != expected)
        return error_set(err,
                         "%s: %s: its header says %u tokens, %llu bytes, but it has %llu bytes "
                         "(make or download it again)",
                         path, file_bytes < expected ? "truncated" : "too long", tokens,
                         (unsigned long long)expected, (unsigned long long)file_bytes);
    info->tokens = tokens;
    info->vocab_size = (int)vocab_size;
    info->fingerprint = u32_at(bytes, 4);
    return true;
}

/* Reads until `bytes` bytes are there or the file ends; the number read, or -1 with errno. */
static ssize_t read_at(int fd, uint64_t offset, unsigned char *out, size_t bytes) {
    size_t got = 0;
    while (got < bytes) {
        ssize_t n = pread(fd, out + got, bytes - got, (off_t)(offset + got));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -1;
        if (n == 0) break;
        got += (size_t)n;
    }
    return (ssize_t)got;
}

bool token_file_open(const char *path, int *fd, TokenFileInfo *info, Error *err) {
    unsigned char header[TOKEN_FILE_HEADER_BYTES];
    struct stat s;
    /* O_NONBLOCK: a named pipe is to be refused below, not waited for. */
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0) return file_error(err, path, "open");
    bool ok = false;
    if (fstat(*fd, &s) != 0) {
        file_error(err, path, "read");
        goto out;
    }
    if (!S_ISREG(s.st_mode)) {
        error_set(err, "%s: not a token file: it is %s", path,
                  S_ISDIR(s.st_mode) ? "a folder" : "no regular file");
        goto out;
    }
    ssize_t n = read_at(*fd, 0, header, sizeof header);
    ok = n < 0 ? file_error(err, path, "read")
               : token_file_check(header, (size_t)n, (uint64_t)s.st_size, path, info, err);
out:
    if (!ok) {
        close(*fd);
        *fd = -1;
    }
    return ok;
}

bool token_file_read(int fd, const char *path, uint64_t first, size_t count, uint16_t *out, Error *err) {
    CHECK(first + count <= TOKEN_FILE_TOKENS_MAX);
    ssize_t n = read_at(fd, TOKEN_FILE_HEADER_BYTES + 2 * first, (unsigned char *)out, 2 * count);
    if (n < 0) return file_error(err, path, "read");
    if ((size_t)n < 2 * count)
        return error_set(err, "%s: ends before token %llu: it shrank while it was in use (make it again)",
                         path, (unsigned long long)(first + count));
    return true;
}

bool token_file_writer_open(TokenFileWriter *writer, const char *path, int vocab_size, uint32_t fingerprint,
                            Error *err) {
    unsigned char header[TOKEN_FILE_HEADER_BYTES] = {0};
    memset(writer, 0, sizeof *writer);
    if (vocab_size < 0 || vocab_size > TOKEN_FILE_VOCAB_MAX)
        return error_set(err, "%s: a vocabulary of %d does not fit uint16 tokens (at most %d)", path,
                         vocab_size, TOKEN_FILE_VOCAB_MAX);
    writer->info.vocab_size = vocab_size;
    writer->info.fingerprint = fingerprint;
    return file_writer_open(&writer->file, path, err) &&
           file_writer_write(&writer->file, header, sizeof header, err);
}

bool token_file_writer_write(TokenFileWriter *writer, const uint16_t *ids, size_t count, Error *err) {
    if (count > TOKEN_FILE_TOKENS_MAX - writer->info.tokens)
        return error_set(err, "%s: more than %d tokens do not fit one file (use smaller shards)",
                         writer->file.path, TOKEN_FILE_TOKENS_MAX);
    writer->info.tokens += count;
    return file_writer_write(&writer->file, ids, 2 * count, err);
}

bool token_file_writer_commit(TokenFileWriter *writer, Error *err) {
    unsigned char header[TOKEN_FILE_HEADER_BYTES] = {0};
    put_u32(header, 0, TOKEN_FILE_MAGIC);
    put_u32(header, 1, TOKEN_FILE_VERSION);
    put_u32(header, 2, (uint32_t)writer->info.tokens);
    put_u32(header, 3, (uint32_t)writer->info.vocab_size);
    put_u32(header, 4, writer->info.fingerprint);
    return file_writer_rewrite(&writer->file, 0, header, sizeof header, err) &&
           file_writer_commit(&writer->file, err);
}

void token_file_writer_abort(TokenFileWriter *writer) {
    file_writer_abort(&writer->file);
}
