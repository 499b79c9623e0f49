/* s3_call.c: one request to S3 (s3.h): signed, sent, judged, tried again with growing pauses, explained. */
#define _POSIX_C_SOURCE 200809L
#include "base/check.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/sha256.h"
#include "ckpt/s3.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PATH_BYTES = 1600, URL_BYTES = 8192, ERROR_TEXT_BYTES = 16 << 10, HEADERS_MAX = 12 };
static const double BACKOFF_SECONDS_MAX = 20;
/* A broken answer that brought at least so much is no failed attempt: the next one begins behind it. */
enum { PROGRESS_BYTES = 64 << 10 };

bool s3_open(S3 *s3, const char *place, const StoreConfig *limits, StoreRate *rate, Error *err) {
    memset(s3, 0, sizeof *s3);
    if (!s3_config_read(&s3->config, place, err)) return false;
    if (!http_open(&s3->http, s3->config.ca_bundle, rate, err)) return false;
    CHECK(pthread_mutex_init(&s3->lock, NULL) == 0);
    const S3Config *c = &s3->config;
    s3->limits = *limits;
    s3->keys = c->keys;
    snprintf(s3->host, sizeof s3->host, "%s%s%s", c->path_style ? "" : c->bucket, c->path_style ? "" : ".",
             c->host);
    snprintf(s3->where, sizeof s3->where, "s3://%s at %s://%s%s", c->bucket, c->scheme, c->host, c->base);
    return true;
}

void s3_close(S3 *s3) {
    http_close(s3->http);
    pthread_mutex_destroy(&s3->lock);
    memset(s3, 0, sizeof *s3);
}

/* The path in the URL of a key (not encoded): base, bucket if by path, key. False: too long. */
static bool path_of(const S3 *s3, const char *key, char *path, size_t size) {
    const S3Config *c = &s3->config;
    bool by_path = c->path_style;
    int n = snprintf(path, size, "%s%s%s/%s", c->base, by_path ? "/" : "", by_path ? c->bucket : "", key);
    if (n > 1 && !*key && by_path) path[--n] = 0; /* the bucket is /bucket, without a slash behind */
    return n > 0 && (size_t)n < size;
}

/* ---- one attempt ---- */

typedef struct {
    char url[URL_BYTES], stamp[S3_TIME_BYTES], authorization[S3_AUTHORIZATION_BYTES], range[64];
    char payload[SHA256_HEX_BYTES];
    char lines[HEADERS_MAX][S3_TOKEN_BYTES + 64];
    const char *headers[HEADERS_MAX];
    S3Keys keys;
    char text[ERROR_TEXT_BYTES];
} Attempt;

static bool make_url(const S3 *s3, const S3Call *call, const char *path, Attempt *a) {
    int n = snprintf(a->url, sizeof a->url, "%s://%s", s3->config.scheme, s3->host);
    if (n < 0 || n >= (int)sizeof a->url) return false;
    size_t used = s3_encode(a->url, sizeof a->url, (size_t)n, path, true);
    if (used == SIZE_MAX) return false;
    if (!call->num_query) return true;
    if (used + 2 >= sizeof a->url) return false;
    a->url[used++] = '?';
    return s3_encode_query(a->url + used, sizeof a->url - used, call->query, call->num_query);
}

/* Signs the request for now, and makes the lines of its head. */
static bool prepare(S3 *s3, const S3Call *call, size_t got, Attempt *a, int *num_headers, Error *err) {
    char path[PATH_BYTES];
    S3Pair pairs[HEADERS_MAX] = {
        {"host", s3->host}, {"x-amz-content-sha256", a->payload}, {"x-amz-date", a->stamp}};
    int num = 3;
    pthread_mutex_lock(&s3->lock);
    a->keys = s3->keys;
    pthread_mutex_unlock(&s3->lock);
    s3_time((long long)time(NULL) + atomic_load(&s3->clock_offset), a->stamp);
    if (a->keys.token[0]) pairs[num++] = (S3Pair){"x-amz-security-token", a->keys.token};
    if (call->data) {
        uint64_t begin = call->range_begin + got;
        snprintf(a->range, sizeof a->range, "bytes=%llu-%llu", (unsigned long long)begin,
                 (unsigned long long)(call->range_begin + call->data_bytes - 1));
        pairs[num++] = (S3Pair){"range", a->range};
    }
    CHECK(num + call->num_headers < HEADERS_MAX);
    for (int i = 0; i < call->num_headers; i++) pairs[num++] = call->headers[i];
    if (!path_of(s3, call->key, path, sizeof path) || !make_url(s3, call, path, a))
        return error_set(err, "%s: the key '%.100s' is too long", s3->where, call->key);
    const S3Signer signer = {a->keys.access_key, a->keys.secret_key, s3->config.region, "s3", a->stamp};
    const S3Request request = {call->method, path, call->query, call->num_query, pairs, num, a->payload};
    if (!s3_sign(&signer, &request, a->authorization, err)) return false;
    pairs[num++] = (S3Pair){"Authorization", a->authorization};
    for (int i = 0; i < num; i++) {
        snprintf(a->lines[i], sizeof a->lines[i], "%s: %s", pairs[i].name, pairs[i].value);
        a->headers[i] = a->lines[i];
    }
    *num_headers = num;
    return true;
}

/* ---- what an answer means ---- */

typedef enum { VERDICT_DONE, VERDICT_AGAIN, VERDICT_FAILED } Verdict;

static bool is_one_of(const char *code, const char *const *list) {
    for (; *list; list++)
        if (!strcmp(code, *list)) return true;
    return false;
}

/* Our clock is off: sign with the server's from now on, and say so once. */
static bool adopt_clock(S3 *s3, const HttpHeaders *headers) {
    long long server, now = (long long)time(NULL);
    if (!http_date_read(headers->date, &server)) return false;
    long long before = atomic_exchange(&s3->clock_offset, server - now);
    if (llabs(before - (server - now)) < 60) return false; /* that was not it */
    if (!before)
        log_warn("%s: this machine's clock is %lld seconds %s the server's, whose time is used for signing "
                 "(set the "
                 "clock: chronyc makestep, or timedatectl set-ntp true)",
                 s3->where, llabs(server - now), server < now ? "before" : "behind");
    return true;
}

/* Temporary keys have run out: those in the files may have been renewed. */
static bool adopt_keys(S3 *s3, const S3Keys *used) {
    S3Keys keys;
    Error ignored;
    if (!s3_config_read_keys(&s3->config, &keys, &ignored)) return false;
    bool same = !strcmp(keys.access_key, used->access_key) && !strcmp(keys.secret_key, used->secret_key) &&
                !strcmp(keys.token, used->token);
    if (same) return false;
    pthread_mutex_lock(&s3->lock);
    s3->keys = keys;
    pthread_mutex_unlock(&s3->lock);
    return true;
}

static Verdict judge(S3 *s3, const HttpHeaders *headers, const S3Error *error, const Attempt *a) {
    static const char *const again[] = {"InternalError",
                                        "SlowDown",
                                        "ServiceUnavailable",
                                        "RequestTimeout",
                                        "OperationAborted",
                                        "ConditionalRequestConflict",
                                        "Throttling",
                                        "503 SlowDown",
                                        "ThrottlingException",
                                        "RequestLimitExceeded",
                                        "BandwidthLimitExceeded",
                                        "XAmzContentSHA256Mismatch",
                                        "IncompleteBody",
                                        "BadDigest",
                                        NULL};
    static const char *const renewed[] = {"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", NULL};
    int status = headers->status;
    if (status / 100 == 2)
        return error->code[0] ? VERDICT_AGAIN : VERDICT_DONE; /* Complete says 200, then fails */
    if (status >= 500 && status != 501) return VERDICT_AGAIN;
    if (status == 408 || status == 425 || status == 429 || is_one_of(error->code, again))
        return VERDICT_AGAIN;
    if (!strcmp(error->code, "RequestTimeTooSkewed"))
        return adopt_clock(s3, headers) ? VERDICT_AGAIN : VERDICT_FAILED;
    if (is_one_of(error->code, renewed)) return adopt_keys(s3, &a->keys) ? VERDICT_AGAIN : VERDICT_FAILED;
    if (status == 404) return strcmp(error->code, "NoSuchBucket") ? VERDICT_DONE : VERDICT_FAILED;
    return status == 412 || status == 416 || status == 501 ? VERDICT_DONE : VERDICT_FAILED;
}

static const char *hint_of(const HttpHeaders *headers, const S3Error *error) {
    static const struct {
        const char *code, *hint;
    } hints[] = {
        {"NoSuchBucket", "make the bucket, or check its name and AWS_ENDPOINT_URL"},
        {"SignatureDoesNotMatch",
         "AWS_SECRET_ACCESS_KEY does not belong to AWS_ACCESS_KEY_ID, or the region is wrong"},
        {"InvalidAccessKeyId",
         "the server does not know this AWS_ACCESS_KEY_ID: check it, and AWS_ENDPOINT_URL"},
        {"ExpiredToken", "get new temporary keys; where they are in ~/.aws/credentials, renew them there"},
        {"InvalidToken", "AWS_SESSION_TOKEN does not belong to these keys"},
        {"RequestTimeTooSkewed",
         "this machine's clock is wrong: chronyc makestep, or timedatectl set-ntp true"},
        {"AccessDenied",
         "these keys may not do this: the policy must allow s3:ListBucket, s3:GetObject, s3:PutObject, "
         "s3:DeleteObject, s3:AbortMultipartUpload and s3:ListMultipartUploadParts here"},
        {"AuthorizationHeaderMalformed", "the bucket is in another region: set AWS_REGION"},
        {"PermanentRedirect", "the bucket is in another region: set AWS_REGION"},
        {"QuotaExceeded", "the quota of the bucket or user is used up"},
        {"InvalidBucketName", "check the bucket's name"},
        {"EntityTooLarge", "the server wants smaller objects"},
    };
    for (size_t i = 0; i < sizeof hints / sizeof *hints; i++)
        if (!strcmp(error->code, hints[i].code)) return hints[i].hint;
    if (headers->status / 100 == 3)
        return "the bucket is in another region, or AWS_ENDPOINT_URL is not S3's: set AWS_REGION";
    if (headers->status == 403) return "check the keys, and what they may do with this bucket";
    if (headers->status == 429 || headers->status == 503)
        return "the server is busy: fewer or slower uploads";
    return "";
}

static bool explain(const S3 *s3, const S3Call *call, const S3Answer *answer, const char *why, Error *err) {
    const HttpHeaders *h = &answer->headers;
    char tries[48] = "";
    if (answer->attempts > 1) snprintf(tries, sizeof tries, ", after %d attempts", answer->attempts);
    if (!h->status || *why) {
        bool unknown_host = strstr(why, "resolve host"),
             refused = strstr(why, " connect ") || strstr(why, "refused"), tls = strstr(why, "certificate");
        return error_set(err, "%s: %s '%.120s'%s: %s%s", s3->where, call->method, call->key, tries,
                         *why ? why : "no answer",
                         unknown_host ? " (check AWS_ENDPOINT_URL and AWS_REGION, and this machine's DNS)"
                         : tls        ? " (a private authority is named by AWS_CA_BUNDLE)"
                         : refused    ? " (is this the right AWS_ENDPOINT_URL, and is the network up?)"
                                      : "");
    }
    const char *hint = hint_of(h, &answer->error);
    return error_set(err, "%s: %s '%.120s'%s: %d%s%s%s%s%s%s%s%s%s", s3->where, call->method, call->key,
                     tries, h->status, answer->error.code[0] ? " " : "", answer->error.code,
                     answer->error.message[0] ? ": " : "", answer->error.message, *hint ? " (" : "", hint,
                     *h->region ? ": the bucket's region is " : "", h->region, *hint ? ")" : "");
}

bool s3_unexpected(const S3 *s3, const char *what, const char *key, const S3Answer *answer, Error *err) {
    return error_set(err, "%s: %s '%.120s': %d %s %s", s3->where, what, key, answer->headers.status,
                     answer->error.code, answer->error.message);
}

/* ---- attempts ---- */

static const atomic_bool *stop_of(const S3 *s3, const S3Call *call) {
    return call->stop ? call->stop : s3->limits.stop;
}

static void pause_before(const S3 *s3, const S3Call *call, int attempt, const HttpHeaders *headers) {
    static atomic_uint draws;
    double most = s3->limits.backoff_seconds;
    for (int i = 1; i < attempt && most < BACKOFF_SECONDS_MAX; i++) most *= 2;
    if (most > BACKOFF_SECONDS_MAX) most = BACKOFF_SECONDS_MAX;
    /* Many ranks fail at once; they should not come back at once: anything between nothing and the most. */
    uint64_t seed = (uint64_t)getpid() ^ (uint64_t)(log_seconds() * 1e6);
    double seconds = most * rng_uniform(seed, 0, atomic_fetch_add(&draws, 1));
    double asked = http_retry_after(headers->retry_after, (long long)time(NULL));
    if (asked > 60) asked = 60;
    store_sleep(seconds > asked ? seconds : asked + seconds, stop_of(s3, call));
}

static HttpResult send_once(S3 *s3, const S3Call *call, size_t got, Attempt *a, HttpAnswer *http,
                            Error *err) {
    int num_headers = 0;
    if (!prepare(s3, call, got, a, &num_headers, err)) return HTTP_NEVER;
    HttpRequest request = {.method = call->method,
                           .url = a->url,
                           .headers = a->headers,
                           .num_headers = num_headers,
                           .body = call->body,
                           .body_bytes = call->body_bytes,
                           .data = call->data ? (char *)call->data + got : NULL,
                           .data_bytes = call->data_bytes - got,
                           .range_begin = call->range_begin + got,
                           .text = call->text ? call->text : a->text,
                           .text_size = call->text ? call->text_size : sizeof a->text,
                           .timeout_seconds =
                               s3->limits.timeout_seconds * (call->patience > 0 ? call->patience : 1),
                           .stop = stop_of(s3, call)};
    return http_do(s3->http, &request, http);
}

bool s3_call(S3 *s3, const S3Call *call, S3Answer *answer, Error *err) {
    memset(answer, 0, sizeof *answer);
    Attempt *a = malloc(sizeof *a);
    if (!a) return error_set(err, "%s: no memory for a request", s3->where);
    unsigned char hash[SHA256_BYTES];
    if (!call->body_hash) sha256(call->body, call->body_bytes, hash);
    sha256_hex(call->body_hash ? call->body_hash : hash, a->payload);
    size_t got = 0;
    bool ok = false;
    for (int attempt = 1;; attempt++) {
        HttpAnswer http;
        Error signing = {""};
        memset(&http, 0, sizeof http);
        HttpResult result = send_once(s3, call, got, a, &http, &signing);
        answer->headers = http.headers;
        answer->text_bytes = http.text_bytes;
        answer->attempts++;
        if (http.data_bytes >= PROGRESS_BYTES) attempt = 0;
        got += http.data_bytes;
        memset(&answer->error, 0, sizeof answer->error);
        if (result == HTTP_ANSWERED && !(call->data && http.headers.status / 100 == 2))
            s3_xml_error(call->text ? call->text : a->text, http.text_bytes, &answer->error);
        Verdict verdict = result == HTTP_ANSWERED ? judge(s3, &http.headers, &answer->error, a)
                          : result == HTTP_AGAIN  ? VERDICT_AGAIN
                                                  : VERDICT_FAILED;
        /* all came, then the connection broke: done as well */
        ok = verdict == VERDICT_DONE || (call->data && got == call->data_bytes);
        if (ok) break;
        bool stopped = result == HTTP_STOPPED || (stop_of(s3, call) && atomic_load(stop_of(s3, call)));
        if (stopped)
            error_set(err, "%s: %s '%.120s': stopped before it was done", s3->where, call->method, call->key);
        else if (*signing.text)
            *err = signing;
        else if (verdict == VERDICT_FAILED || attempt >= s3->limits.attempts_max)
            explain(s3, call, answer, result == HTTP_ANSWERED ? "" : http.why, err);
        else {
            pause_before(s3, call, attempt ? attempt : 1, &http.headers);
            continue;
        }
        break;
    }
    free(a);
    return ok;
}
