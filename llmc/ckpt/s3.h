/* s3.h: a client of S3: one request, signed, tried again while that makes sense; uploads in parts; ranges.
 *
 * Keys of objects here are whole (with the place's prefix). An S3 may be used by several threads at once. */
#ifndef LLMC_S3_H
#define LLMC_S3_H
#include "ckpt/http.h"
#include "ckpt/s3_config.h"
#include "ckpt/s3_sign.h"
#include "ckpt/s3_xml.h"
#include "ckpt/store_body.h"

enum { S3_THREADS_MAX = 16, S3_ANSWER_BYTES = 2 << 20 };

typedef struct {
    S3Config config; /* but its keys are below */
    StoreConfig limits;
    Http *http;
    pthread_mutex_t lock; /* over keys */
    S3Keys keys;
    atomic_llong
        clock_offset; /* the server's clock minus ours, seconds; 0 until a request was refused for it */
    char host[400];   /* as in the Host header: with the bucket if addressed virtually */
    char where[640];  /* for messages: s3://bucket at https://host */
} S3;

typedef struct {
    const char *method;
    const char *key;     /* "": the bucket */
    const S3Pair *query; /* at most 8 */
    int num_query;
    const S3Pair *headers; /* beyond those of every request; at most 4 */
    int num_headers;
    const void *body;
    size_t body_bytes;
    const unsigned char *body_hash; /* SHA-256 of body, NULL: it is computed */
    void *data;                     /* as in HttpRequest: the range of the object that is wanted */
    size_t data_bytes;
    uint64_t range_begin;
    char *text; /* any other body, with a NUL; NULL: nobody wants it, but for errors */
    size_t text_size;
    double patience; /* times the timeout; 0: 1 */
    const atomic_bool *stop;
} S3Call;

typedef struct {
    HttpHeaders headers; /* of the last answer; status 2xx, 404 (no such key or upload), 412, 416, 501 */
    size_t text_bytes;
    S3Error error; /* of a status that is not 2xx */
    int attempts;
} S3Answer;

bool s3_open(S3 *s3, const char *place, const StoreConfig *limits, StoreRate *rate, Error *err);
void s3_close(S3 *s3);

/* True: there is an answer with one of the statuses above. False: err says what to do about it. */
bool s3_call(S3 *s3, const S3Call *call, S3Answer *answer, Error *err);
/* Says that the answer has a status that is not for this request; false. */
bool s3_unexpected(const S3 *s3, const char *what, const char *key, const S3Answer *answer, Error *err);

/* The object of these bytes, in parts if larger than one. */
bool s3_upload(S3 *s3, const char *key, StoreSource *source, Error *err);
/* Bytes of an object, several ranges at once if there are many. */
bool s3_get(S3 *s3, const char *key, void *data, size_t bytes, uint64_t offset, Error *err);

/* Calls with each upload in parts that is open for keys under prefix. */
typedef bool (*S3EachUpload)(void *ctx, const char *key, const char *id, const char *initiated, Error *err);
bool s3_each_upload(S3 *s3, const char *prefix, S3EachUpload each, void *ctx, Error *err);
bool s3_abort_upload(S3 *s3, const char *key, const char *id, Error *err);

/* work(ctx, worker, item) for items 0 .. items - 1, workers 0 .. threads - 1 each a thread, until one fails. */
typedef bool (*S3Work)(void *ctx, int worker, int item, Error *err);
bool s3_parallel(int threads, int items, S3Work work, void *ctx, Error *err);
#endif
