/* http.c: see http.h. */
#define _POSIX_C_SOURCE 200809L
#include "ckpt/http.h"
#ifndef HAVE_CURL
bool http_open(Http **http, const char *ca_bundle, StoreRate *rate, Error *err) {
    (void)ca_bundle, (void)rate;
    *http = NULL;
    return error_set(err, "s3:// needs libcurl, without which this program was built (install "
                          "libcurl4-openssl-dev and run make again)");
}
void http_close(Http *http) {
    (void)http;
}
HttpResult http_do(Http *http, const HttpRequest *request, HttpAnswer *answer) {
    (void)http, (void)request, (void)answer;
    return HTTP_NEVER;
}
#else
#include "base/check.h"
#include "base/log.h"
#include <curl/curl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { CONNECTIONS_KEPT = 16 };

struct Http {
    pthread_mutex_t lock;
    CURL *idle[CONNECTIONS_KEPT]; /* handles hold the connection they used last */
    int num_idle;
    StoreRate *rate;
    char ca_bundle[1024];
};

/* One request under way: what the callbacks of libcurl see. */
typedef struct {
    const HttpRequest *request;
    HttpAnswer *answer;
    StoreRate *rate;
    size_t sent;
    bool refused;   /* by us: answer->why */
    bool too_short; /* what the URL names ends before the range does: it would again */
    double moved;   /* when bytes last moved, or had to wait for the cap */
    curl_off_t bytes_moved;
} Exchange;

static pthread_once_t curl_ready = PTHREAD_ONCE_INIT;
static bool curl_failed;

static void prepare_curl(void) {
    curl_failed = curl_global_init(CURL_GLOBAL_ALL) != 0;
}

bool http_open(Http **http, const char *ca_bundle, StoreRate *rate, Error *err) {
    pthread_once(&curl_ready, prepare_curl);
    *http = NULL;
    if (curl_failed) return error_set(err, "libcurl does not start");
    Http *h = calloc(1, sizeof *h);
    if (!h) return error_set(err, "no memory for a client of S3");
    CHECK(pthread_mutex_init(&h->lock, NULL) == 0);
    h->rate = rate;
    snprintf(h->ca_bundle, sizeof h->ca_bundle, "%s", ca_bundle);
    *http = h;
    return true;
}

void http_close(Http *http) {
    if (!http) return;
    while (http->num_idle) curl_easy_cleanup(http->idle[--http->num_idle]);
    pthread_mutex_destroy(&http->lock);
    free(http);
}

static CURL *take_handle(Http *http) {
    pthread_mutex_lock(&http->lock);
    CURL *curl = http->num_idle ? http->idle[--http->num_idle] : NULL;
    pthread_mutex_unlock(&http->lock);
    return curl ? curl : curl_easy_init();
}

static void give_handle(Http *http, CURL *curl) {
    curl_easy_reset(curl);
    pthread_mutex_lock(&http->lock);
    bool keep = http->num_idle < CONNECTIONS_KEPT;
    if (keep) http->idle[http->num_idle++] = curl;
    pthread_mutex_unlock(&http->lock);
    if (!keep) curl_easy_cleanup(curl);
}

static size_t refuse(Exchange *x, const char *why) {
    snprintf(x->answer->why, sizeof x->answer->why, "%s", why);
    x->refused = true;
    return 0;
}

static size_t on_send(char *out, size_t size, size_t count, void *user) {
    Exchange *x = user;
    size_t room = size * count, left = x->request->body_bytes - x->sent;
    size_t n = left < room ? left : room;
    if (!n) return 0;
    if (x->rate) n = store_rate_take(x->rate, n, x->request->stop);
    memcpy(out, (const char *)x->request->body + x->sent, n);
    x->sent += n;
    x->moved = log_seconds();
    return n;
}

/* libcurl sends again from the start when a kept connection turned out to be closed. */
static int on_seek(void *user, curl_off_t offset, int origin) {
    Exchange *x = user;
    if (origin != SEEK_SET || offset < 0 || (uint64_t)offset > x->request->body_bytes)
        return CURL_SEEKFUNC_FAIL;
    x->sent = (size_t)offset;
    return CURL_SEEKFUNC_OK;
}

static size_t on_header(char *line, size_t size, size_t count, void *user) {
    Exchange *x = user;
    http_header_read(&x->answer->headers, line, size * count);
    return size * count;
}

/* Is what begins to arrive the range that was asked for? */
static bool is_our_range(Exchange *x) {
    const HttpRequest *r = x->request;
    const HttpHeaders *h = &x->answer->headers;
    uint64_t begin, last, total;
    if (h->status == 206) {
        if (!http_range_read(h->content_range, &begin, &last, &total) || begin != r->range_begin)
            return false;
        x->too_short = last - begin < r->data_bytes - 1 && last + 1 == total;
        return last - begin == r->data_bytes - 1;
    }
    return h->status == 200 && r->range_begin == 0 && h->has_length && h->content_length == r->data_bytes;
}

static size_t on_receive(char *bytes, size_t size, size_t count, void *user) {
    Exchange *x = user;
    const HttpRequest *r = x->request;
    HttpAnswer *a = x->answer;
    size_t n = size * count;
    if (r->data && a->headers.status / 100 == 2) {
        if (!a->data_bytes && !is_our_range(x))
            return refuse(x, x->too_short ? "it ends before the bytes that are wanted"
                                          : "the answer is not the range of bytes that was asked for");
        if (n > r->data_bytes - a->data_bytes) return refuse(x, "the answer is longer than it should be");
        memcpy((char *)r->data + a->data_bytes, bytes, n);
        a->data_bytes += n;
    } else {
        if (n > r->text_size - 1 - a->text_bytes) return refuse(x, "the answer is too long");
        memcpy(r->text + a->text_bytes, bytes, n);
        a->text_bytes += n;
    }
    return n;
}

/* Called often, also when nothing moves: nonzero ends the request. */
static int on_progress(void *user, curl_off_t down_total, curl_off_t down, curl_off_t up_total,
                       curl_off_t up) {
    Exchange *x = user;
    double now = log_seconds();
    (void)down_total, (void)up_total;
    if (x->request->stop && atomic_load(x->request->stop)) return 1;
    if (down + up != x->bytes_moved) {
        x->bytes_moved = down + up;
        x->moved = now;
    }
    if (now - x->moved <= x->request->timeout_seconds) return 0;
    snprintf(x->answer->why, sizeof x->answer->why, "nothing moved for %.3g seconds",
             x->request->timeout_seconds);
    x->refused = true;
    return 1;
}

static void set_common(Http *http, CURL *curl, Exchange *x) {
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_PATH_AS_IS, 1L);
    curl_easy_setopt(curl, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
#if LIBCURL_VERSION_NUM >= 0x075500
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
#else
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS, (long)(CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
    curl_easy_setopt(curl, CURLOPT_TCP_KEEPALIVE, 1L);
    curl_easy_setopt(curl, CURLOPT_BUFFERSIZE, 512L * 1024);
    curl_easy_setopt(curl, CURLOPT_UPLOAD_BUFFERSIZE, 1024L * 1024);
    curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, (long)(x->request->timeout_seconds * 1000) + 1);
    if (http->ca_bundle[0]) curl_easy_setopt(curl, CURLOPT_CAINFO, http->ca_bundle);
    curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(curl, CURLOPT_HEADERDATA, x);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_receive);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, x);
    curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(curl, CURLOPT_XFERINFODATA, x);
}

static void set_method(CURL *curl, Exchange *x) {
    const HttpRequest *r = x->request;
    if (!strcmp(r->method, "HEAD"))
        curl_easy_setopt(curl, CURLOPT_NOBODY, 1L);
    else if (!strcmp(r->method, "PUT") || !strcmp(r->method, "POST")) {
        curl_easy_setopt(curl, CURLOPT_UPLOAD, 1L);
        curl_easy_setopt(curl, CURLOPT_INFILESIZE_LARGE, (curl_off_t)r->body_bytes);
        curl_easy_setopt(curl, CURLOPT_READFUNCTION, on_send);
        curl_easy_setopt(curl, CURLOPT_READDATA, x);
        curl_easy_setopt(curl, CURLOPT_SEEKFUNCTION, on_seek);
        curl_easy_setopt(curl, CURLOPT_SEEKDATA, x);
    }
    if (strcmp(r->method, "HEAD")) curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, r->method);
}

/* OpenSSL writes to sockets without MSG_NOSIGNAL: the signal is held back, and taken if it came. */
static CURLcode perform_without_sigpipe(CURL *curl) {
    sigset_t pipe_only, before, pending;
    const struct timespec now = {0, 0};
    sigemptyset(&pipe_only);
    sigaddset(&pipe_only, SIGPIPE);
    sigpending(&pending);
    bool was_pending = sigismember(&pending, SIGPIPE) == 1;
    pthread_sigmask(SIG_BLOCK, &pipe_only, &before);
    CURLcode code = curl_easy_perform(curl);
    if (!was_pending)
        while (sigtimedwait(&pipe_only, NULL, &now) == SIGPIPE) {
        }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return code;
}

static HttpResult result_of(CURLcode code, const Exchange *x, const char *detail) {
    HttpAnswer *a = x->answer;
    if (x->request->stop && atomic_load(x->request->stop)) return HTTP_STOPPED;
    if (x->refused) return x->too_short ? HTTP_NEVER : HTTP_AGAIN;
    if (code == CURLE_OK) {
        if (x->request->data && a->headers.status / 100 == 2 && a->data_bytes < x->request->data_bytes) {
            snprintf(a->why, sizeof a->why, "the answer ended after %zu of %zu bytes", a->data_bytes,
                     x->request->data_bytes);
            return HTTP_AGAIN;
        }
        return a->headers.status ? HTTP_ANSWERED : HTTP_AGAIN;
    }
    snprintf(a->why, sizeof a->why, "%s", *detail ? detail : curl_easy_strerror(code));
    switch (code) {
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_ENGINE_NOTFOUND: return HTTP_NEVER;
    default: return HTTP_AGAIN;
    }
}

HttpResult http_do(Http *http, const HttpRequest *request, HttpAnswer *answer) {
    Exchange x = {.request = request, .answer = answer, .rate = http->rate, .moved = log_seconds()};
    char detail[CURL_ERROR_SIZE] = "";
    struct curl_slist *list = NULL;
    bool complete = true;
    memset(answer, 0, sizeof *answer);
    CURL *curl = take_handle(http);
    /* no 100-continue, which costs a round trip or a second; no Content-Type of libcurl's, which is not signed */
    static const char *const none[] = {"Expect:", "Content-Type:", "Accept:"};
    for (int i = 0; i < 3 + request->num_headers; i++) {
        struct curl_slist *grown = curl_slist_append(list, i < 3 ? none[i] : request->headers[i - 3]);
        complete &= grown != NULL;
        if (grown) list = grown;
    }
    HttpResult result = HTTP_AGAIN;
    if (curl && complete) {
        set_common(http, curl, &x);
        set_method(curl, &x);
        curl_easy_setopt(curl, CURLOPT_URL, request->url);
        curl_easy_setopt(curl, CURLOPT_HTTPHEADER, list);
        curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, detail);
        result = result_of(perform_without_sigpipe(curl), &x, detail);
    } else
        snprintf(answer->why, sizeof answer->why, "no memory");
    request->text[answer->text_bytes] = 0;
    curl_slist_free_all(list);
    if (curl) give_handle(http, curl);
    return result;
}
#endif
