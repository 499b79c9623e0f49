/* s3_sign.h: AWS Signature Version 4, as S3 wants it.
 *
 * https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html. A pure function of its arguments: no
 * clock, no environment. The path is encoded once and not normalised (S3's rule; other services differ). */
#ifndef LLMC_S3_SIGN_H
#define LLMC_S3_SIGN_H
#include "base/error.h"
#include <stdbool.h>
#include <stddef.h>

enum { S3_PAIRS_MAX = 24, S3_AUTHORIZATION_BYTES = 1024, S3_TIME_BYTES = 17 };

/* A header (lower-case name) or a parameter of a query (not encoded; value "" for none). */
typedef struct {
    const char *name, *value;
} S3Pair;

typedef struct {
    const char *access_key, *secret_key, *region, *service; /* service: "s3" */
    const char *time;                                       /* 20130524T000000Z */
} S3Signer;

typedef struct {
    const char *method;
    const char *path; /* not encoded, begins with '/' */
    const S3Pair *query;
    int num_query; /* <= S3_PAIRS_MAX, in any order */
    const S3Pair *headers;
    int num_headers;            /* <= S3_PAIRS_MAX, all that are to be signed, in any order; host is needed */
    const char *payload_sha256; /* 64 hex digits, or UNSIGNED-PAYLOAD */
} S3Request;

/* Value of the Authorization header. Fails only if it does not fit. */
bool s3_sign(const S3Signer *signer, const S3Request *request, char authorization[S3_AUTHORIZATION_BYTES],
             Error *err);

/* YYYYMMDDTHHMMSSZ of seconds since 1970. */
void s3_time(long long unix_seconds, char time[S3_TIME_BYTES]);

/* Percent-encodes all but unreserved characters (and '/', if keep_slash) behind out[used]; the new length. SIZE_MAX: it
 * did not fit in `size` with its NUL; used SIZE_MAX: stays so. */
size_t s3_encode(char *out, size_t size, size_t used, const char *text, bool keep_slash);
/* name=value&... sorted and encoded, as signed and as sent; false if it does not fit. */
bool s3_encode_query(char *out, size_t size, const S3Pair *query, int num_query);
#endif
