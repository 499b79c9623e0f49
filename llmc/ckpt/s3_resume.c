/* s3_resume.c: see s3_resume.h. */
#define _POSIX_C_SOURCE 200809L
#include "ckpt/s3_resume.h"
#include "base/check.h"
#include "base/crc32c.h"
#include "base/file.h"
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LINE_BYTES = 4096, FILE_BYTES_MAX = 8 << 20 };

/* No blank, nothing unprintable: such an id or tag would break the line. */
static bool is_word(const char *text) {
    for (const char *p = text; *p; p++)
        if (*p <= ' ' || *p >= 0x7f) return false;
    return *text;
}

/* Adds the CRC in front and the line's end. */
static size_t make_line(char out[LINE_BYTES], const char *content) {
    int n = snprintf(out, LINE_BYTES, "%08" PRIx32 " %s\n", crc32c(0, content, strlen(content)), content);
    CHECK(n > 0 && n < LINE_BYTES);
    return (size_t)n;
}

static bool read_hex(const char *text, unsigned char *out, size_t bytes) {
    for (size_t i = 0; i < 2 * bytes; i++) {
        int c = text[i], d = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (d < 0) return false;
        out[i / 2] = (unsigned char)(i % 2 ? out[i / 2] * 16 + d : d);
    }
    return true;
}

static bool read_upload(S3Progress *progress, const char *content, const char *where, const char *key,
                        uint64_t bytes) {
    char expected[LINE_BYTES], *end;
    int n = snprintf(expected, sizeof expected, "upload %s %s %" PRIu64 " ", where, key, bytes);
    if (n < 0 || n >= LINE_BYTES || strncmp(content, expected, (size_t)n)) return false;
    unsigned long long part_bytes = strtoull(content + n, &end, 10);
    if (end == content + n || *end != ' ' || part_bytes < 1 || part_bytes > SIZE_MAX / 2) return false;
    uint64_t parts = bytes / part_bytes + (bytes % part_bytes != 0);
    if (parts < 1 || parts > S3_PARTS_MAX || !is_word(end + 1) || strlen(end + 1) >= S3_ID_BYTES)
        return false;
    progress->bytes = bytes;
    progress->part_bytes = (size_t)part_bytes;
    progress->num_parts = (int)parts;
    memcpy(progress->id, end + 1, strlen(end + 1) + 1);
    return true;
}

static bool read_part(S3Progress *progress, const char *content) {
    char *end;
    if (strncmp(content, "part ", 5)) return false;
    long number = strtol(content + 5, &end, 10);
    if (end == content + 5 || *end != ' ' || number < 1 || number > progress->num_parts) return false;
    const char *hex = end + 1;
    if (strlen(hex) < 66 || hex[64] != ' ' || !is_word(hex + 65) || strlen(hex + 65) >= S3_ETAG_BYTES)
        return false;
    S3Part *part = &progress->parts[number - 1];
    if (!read_hex(hex, part->hash, SHA256_BYTES)) return false;
    memcpy(part->etag, hex + 65, strlen(hex + 65) + 1);
    part->done = true;
    return true;
}

void s3_resume_parse(S3Progress *progress, const char *text, size_t text_bytes, const char *where,
                     const char *key, uint64_t bytes) {
    char line[LINE_BYTES];
    bool first = true;
    progress->id[0] = 0;
    memset(progress->parts, 0, S3_PARTS_MAX * sizeof *progress->parts);
    for (const char *p = text, *end = text + text_bytes; p < end; first = false) {
        const char *newline = memchr(p, '\n', (size_t)(end - p));
        size_t n = newline ? (size_t)(newline - p) : LINE_BYTES;
        unsigned char crc[4];
        if (n >= LINE_BYTES || n < 10 || p[8] != ' ' || memchr(p, 0, n) || !read_hex(p, crc, 4)) return;
        memcpy(line, p + 9, n - 9);
        line[n - 9] = 0;
        uint32_t stored = (uint32_t)crc[0] << 24 | (uint32_t)crc[1] << 16 | (uint32_t)crc[2] << 8 | crc[3];
        if (crc32c(0, line, n - 9) != stored) return;
        if (!(first ? read_upload(progress, line, where, key, bytes) : read_part(progress, line))) return;
        p = newline + 1;
    }
}

void s3_resume_read(S3Progress *progress, const char *path, const char *where, const char *key,
                    uint64_t bytes) {
    char *text = NULL;
    size_t text_bytes = 0;
    Error ignored;
    progress->id[0] = 0;
    if (!file_exists(path) || !file_read(path, FILE_BYTES_MAX, &text, &text_bytes, &ignored)) return;
    s3_resume_parse(progress, text, text_bytes, where, key, bytes);
    free(text);
}

/* False: the tag cannot be kept, so the part would be sent again. */
static bool make_part_line(char line[LINE_BYTES], size_t *bytes, int number, const S3Part *part) {
    char content[LINE_BYTES - 16], hex[SHA256_HEX_BYTES];
    if (!is_word(part->etag)) return false;
    sha256_hex(part->hash, hex);
    snprintf(content, sizeof content, "part %d %s %s", number, hex, part->etag);
    *bytes = make_line(line, content);
    return true;
}

bool s3_resume_begin(const S3Progress *progress, const char *path, const char *where, const char *key,
                     Error *err) {
    char content[LINE_BYTES - 16], line[LINE_BYTES];
    FileWriter writer;
    size_t bytes;
    if (!is_word(progress->id))
        return error_set(err, "%s: the id of the upload of '%.100s' is no word", where, key);
    int n = snprintf(content, sizeof content, "upload %s %s %" PRIu64 " %zu %s", where, key, progress->bytes,
                     progress->part_bytes, progress->id);
    CHECK(n > 0 && n < (int)sizeof content);
    bool ok = file_writer_open(&writer, path, err) &&
              file_writer_write(&writer, line, make_line(line, content), err);
    for (int i = 0; ok && i < progress->num_parts; i++)
        if (progress->parts[i].done && make_part_line(line, &bytes, i + 1, &progress->parts[i]))
            ok = file_writer_write(&writer, line, bytes, err);
    ok = ok && file_writer_commit(&writer, err);
    file_writer_abort(&writer);
    return ok;
}

bool s3_resume_part(const char *path, int number, const S3Part *part, Error *err) {
    char line[LINE_BYTES];
    size_t bytes;
    if (!make_part_line(line, &bytes, number, part)) return true;
    int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (fd < 0) return file_error(err, path, "open");
    bool ok = write(fd, line, bytes) == (ssize_t)bytes && fdatasync(fd) == 0;
    if (!ok) file_error(err, path, "write");
    close(fd);
    return ok;
}
