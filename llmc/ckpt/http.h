/* http.h: one HTTP request and its answer, over libcurl, with nothing about S3 in it.
 *
 * What always holds: an answer never writes behind the memory it was given; redirects are not followed, so a signed
 * request goes to nobody else; a request ends when nothing moved for the timeout, or soon after *stop; SIGPIPE is not
 * raised. Built without libcurl (HAVE_CURL), http_open fails with a line that says so. */
#ifndef LLMC_HTTP_H
#define LLMC_HTTP_H
#include "base/error.h"
#include "ckpt/store_rate.h"
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    int status; /* 0: no answer */
    uint64_t content_length;
    bool has_length;
    /* as sent, cut where too long, "" if absent */
    char etag[128], content_range[96], retry_after[64], date[64],
        region[64]; /* region: x-amz-bucket-region */
} HttpHeaders;

/* One line of an answer's head; a status line starts anew. Never fails: what it does not know it passes over. */
void http_header_read(HttpHeaders *headers, const char *line, size_t bytes);
/* "bytes BEGIN-LAST/TOTAL"; *total UINT64_MAX for '*'. */
bool http_range_read(const char *value, uint64_t *begin, uint64_t *last, uint64_t *total);
/* "Sun, 06 Nov 1994 08:49:37 GMT" */
bool http_date_read(const char *value, long long *unix_seconds);
/* Seconds to wait by Retry-After (seconds or a date): 0 .. 3600; 0 if there is none or it makes no sense. */
double http_retry_after(const char *value, long long unix_seconds_now);

typedef struct {
    const char *method, *url;
    const char *const *headers; /* "name: value" */
    int num_headers;
    const void *body;
    size_t body_bytes;
    /* The body of a 2xx answer, exactly data_bytes: the range from range_begin of what the URL names. NULL: into text. */
    void *data;
    size_t data_bytes;
    uint64_t range_begin;
    char *text; /* any other body, with a NUL; never NULL */
    size_t text_size;
    double timeout_seconds;  /* without progress */
    const atomic_bool *stop; /* may be NULL */
} HttpRequest;

typedef enum {
    HTTP_ANSWERED, /* status says how */
    HTTP_AGAIN,    /* no whole answer: why; may go better next time */
    HTTP_NEVER,    /* it would fail again: why */
    HTTP_STOPPED,
} HttpResult;

typedef struct {
    HttpHeaders headers;
    size_t data_bytes, text_bytes; /* received; data is good as far as it came, whatever the result */
    char why[256];
} HttpAnswer;

typedef struct Http Http;

/* rate (may be NULL) limits what is sent. An Http may be used by several threads at once; connections are kept. */
bool http_open(Http **http, const char *ca_bundle, StoreRate *rate, Error *err);
void http_close(Http *http);
HttpResult http_do(Http *http, const HttpRequest *request, HttpAnswer *answer);
#endif
