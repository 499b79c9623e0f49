/* s3_resume.h: the small file that lets another process go on with an upload in parts.
 *
 * Lines, each after its CRC-32C in 8 hex digits: first "upload WHERE KEY BYTES PART_BYTES ID", then for each finished
 * part "part NUMBER SHA256 ETAG". A line is durable before its call returns; a reader takes the longest valid prefix. */
#ifndef LLMC_S3_RESUME_H
#define LLMC_S3_RESUME_H
#include "base/error.h"
#include "base/sha256.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { S3_PARTS_MAX = 10000, S3_ID_BYTES = 1024, S3_ETAG_BYTES = 128 };

typedef struct {
    bool done;
    char etag[S3_ETAG_BYTES];
    unsigned char hash[SHA256_BYTES];
} S3Part;

typedef struct {
    char id[S3_ID_BYTES]; /* "": no upload is open */
    uint64_t bytes;
    size_t part_bytes;
    int num_parts;
    S3Part *parts; /* [S3_PARTS_MAX] */
} S3Progress;

/* What the file says about this object at this place; progress->id "" if it says nothing, something else or is absent
 * (no error). */
void s3_resume_read(S3Progress *progress, const char *path, const char *where, const char *key,
                    uint64_t bytes);
/* The same for text, which need not end with a NUL. */
void s3_resume_parse(S3Progress *progress, const char *text, size_t text_bytes, const char *where,
                     const char *key, uint64_t bytes);
/* A new file with the first line and those of the parts that are done, in place of what was there. */
bool s3_resume_begin(const S3Progress *progress, const char *path, const char *where, const char *key,
                     Error *err);
bool s3_resume_part(const char *path, int number, const S3Part *part, Error *err);
#endif
