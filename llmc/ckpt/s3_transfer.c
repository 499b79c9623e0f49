/* s3_transfer.c: several threads at once, and downloads in ranges by them (s3.h). */
#define _POSIX_C_SOURCE 200809L
#include "base/check.h"
#include "ckpt/s3.h"
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GET_BYTES = 8 << 20, GET_THREADS = 4 };

/* ---- threads ---- */

typedef struct {
    pthread_mutex_t lock;
    S3Work work;
    void *ctx;
    int items, next, workers;
    bool failed;
    Error error;
} Parallel;

static void *run_worker(void *user) {
    Parallel *p = user;
    pthread_mutex_lock(&p->lock);
    int worker = p->workers++;
    while (!p->failed && p->next < p->items) {
        Error err = {""};
        int item = p->next++;
        pthread_mutex_unlock(&p->lock);
        bool ok = p->work(p->ctx, worker, item, &err);
        pthread_mutex_lock(&p->lock);
        if (!ok && !p->failed) {
            p->failed = true;
            p->error = err;
        }
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

bool s3_parallel(int threads, int items, S3Work work, void *ctx, Error *err) {
    Parallel p = {.work = work, .ctx = ctx, .items = items};
    pthread_t thread[S3_THREADS_MAX];
    sigset_t all, before;
    int started = 0;
    CHECK(threads >= 1 && threads <= S3_THREADS_MAX && pthread_mutex_init(&p.lock, NULL) == 0);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the threads of the trainer */
    while (started < threads - 1 && started < items - 1 &&
           pthread_create(&thread[started], NULL, run_worker, &p) == 0)
        started++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    run_worker(&p);
    while (started) pthread_join(thread[--started], NULL);
    pthread_mutex_destroy(&p.lock);
    if (p.failed) *err = p.error;
    return !p.failed;
}

/* ---- downloads ---- */

typedef struct {
    S3 *s3;
    const char *key;
    unsigned char *data;
    size_t bytes;
    uint64_t offset;
} Download;

static bool get_range(void *ctx, int worker, int item, Error *err) {
    Download *d = ctx;
    size_t begin = (size_t)item * GET_BYTES, left = d->bytes - begin;
    S3Answer answer;
    (void)worker;
    S3Call call = {.method = "GET",
                   .key = d->key,
                   .data = d->data + begin,
                   .data_bytes = left < GET_BYTES ? left : GET_BYTES,
                   .range_begin = d->offset + begin};
    if (!s3_call(d->s3, &call, &answer, err)) return false;
    int status = answer.headers.status;
    if (status == 404) return error_set(err, "%s: there is no '%.200s'", d->s3->where, d->key);
    if (status == 416)
        return error_set(err, "%s: '%.200s' ends before byte %" PRIu64, d->s3->where, d->key,
                         call.range_begin + call.data_bytes);
    return status / 100 == 2 || s3_unexpected(d->s3, "GET", d->key, &answer, err);
}

bool s3_get(S3 *s3, const char *key, void *data, size_t bytes, uint64_t offset, Error *err) {
    Download d = {s3, key, data, bytes, offset};
    size_t items = (bytes + GET_BYTES - 1) / GET_BYTES;
    if (items > INT32_MAX) return error_set(err, "%s: '%.200s': too many bytes at once", s3->where, key);
    return s3_parallel(GET_THREADS, (int)items, get_range, &d, err);
}
