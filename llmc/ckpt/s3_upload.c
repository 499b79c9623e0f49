/* s3_upload.c: objects of S3 put whole or, if large, in parts (s3.h), so that a crash costs only the parts under way. */
#define _POSIX_C_SOURCE 200809L
#include "base/check.h"
#include "base/sha256.h"
#include "ckpt/s3.h"
#include "ckpt/s3_resume.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    S3 *s3;
    const char *key;
    StoreSource *source;
    S3Progress progress;
    pthread_mutex_t read_lock, file_lock;
    unsigned char *buffers[S3_THREADS_MAX];
    char *text;       /* [S3_ANSWER_BYTES] */
    atomic_bool lost; /* the server does not know the upload's id any more */
} Upload;

static bool is_stopped(const StoreSource *source) {
    return source->stop && atomic_load(source->stop);
}

static bool put_whole(S3 *s3, const char *key, StoreSource *source, Error *err) {
    unsigned char *data = malloc(source->bytes ? source->bytes : 1);
    S3Answer answer;
    if (!data) return error_set(err, "no memory for %" PRIu64 " bytes to be uploaded", source->bytes);
    S3Call call = {
        .method = "PUT", .key = key, .body = data, .body_bytes = source->bytes, .stop = source->stop};
    bool ok = (!source->bytes || store_source_read(source, data, source->bytes, 0, err)) &&
              s3_call(s3, &call, &answer, err);
    if (ok && answer.headers.status / 100 != 2) ok = s3_unexpected(s3, "PUT", key, &answer, err);
    free(data);
    return ok;
}

static bool find_id(void *ctx, const char *path, const char *text) {
    S3Progress *progress = ctx;
    if (text && !strcmp(path, "InitiateMultipartUploadResult/UploadId") && strlen(text) < S3_ID_BYTES)
        memcpy(progress->id, text, strlen(text) + 1);
    return true;
}

static bool abort_all(void *ctx, const char *key, const char *id, const char *initiated, Error *err) {
    Upload *u = ctx;
    (void)initiated;
    if (strcmp(key, u->key) || !strcmp(id, u->progress.id)) return true;
    return s3_abort_upload(u->s3, key, id, err);
}

/* What an earlier process began for this key and could not even write down is ended first: one key has one writer. A
 * server, or a policy, that does not list uploads is no reason not to upload. */
static bool begin_upload(Upload *u, Error *err) {
    const S3Pair query = {"uploads", ""};
    S3Answer answer;
    Error ignored;
    S3Progress *progress = &u->progress;
    progress->id[0] = 0;
    if (u->source->resume_path) s3_each_upload(u->s3, u->key, abort_all, u, &ignored);
    uint64_t least = (u->source->bytes + S3_PARTS_MAX - 1) / S3_PARTS_MAX, mebibyte = 1 << 20;
    progress->bytes = u->source->bytes;
    progress->part_bytes = u->s3->limits.part_bytes;
    if (progress->part_bytes < least)
        progress->part_bytes = (size_t)((least + mebibyte - 1) / mebibyte * mebibyte);
    progress->num_parts = (int)((progress->bytes + progress->part_bytes - 1) / progress->part_bytes);
    memset(progress->parts, 0, S3_PARTS_MAX * sizeof *progress->parts);
    S3Call call = {.method = "POST",
                   .key = u->key,
                   .query = &query,
                   .num_query = 1,
                   .text = u->text,
                   .text_size = S3_ANSWER_BYTES,
                   .stop = u->source->stop};
    if (!s3_call(u->s3, &call, &answer, err)) return false;
    if (answer.headers.status / 100 != 2)
        return s3_unexpected(u->s3, "begin the upload of", u->key, &answer, err);
    if (!s3_xml_read(u->text, answer.text_bytes, find_id, progress, err)) return false;
    if (!progress->id[0]) return error_set(err, "%s: the upload of '%.120s' got no id", u->s3->where, u->key);
    /* the answer to an earlier attempt was lost, but perhaps an upload begun */
    if (answer.attempts > 1) s3_each_upload(u->s3, u->key, abort_all, u, &ignored);
    if (!u->source->resume_path ||
        s3_resume_begin(progress, u->source->resume_path, u->s3->where, u->key, err))
        return true;
    s3_abort_upload(u->s3, u->key, progress->id, &ignored);
    return false;
}

/* Parts that the server has, of those that our file says are done. */
typedef struct {
    const S3Progress *progress;
    bool *here;
    long number, next;
    uint64_t bytes;
    char etag[S3_ETAG_BYTES];
    bool truncated;
} PartList;

static bool same_etag(const char *a, const char *b) {
    size_t n = strlen(a), m = strlen(b);
    if (n >= 2 && a[0] == '"' && a[n - 1] == '"') a++, n -= 2;
    if (m >= 2 && b[0] == '"' && b[m - 1] == '"') b++, m -= 2;
    return n == m && !memcmp(a, b, n);
}

static bool find_part(void *ctx, const char *path, const char *text) {
    PartList *list = ctx;
    if (strncmp(path, "ListPartsResult", 15)) return false;
    path += 15;
    if (text && !strcmp(path, "/Part/PartNumber")) list->number = strtol(text, NULL, 10);
    if (text && !strcmp(path, "/Part/Size")) list->bytes = strtoull(text, NULL, 10);
    if (text && !strcmp(path, "/Part/ETag")) snprintf(list->etag, sizeof list->etag, "%s", text);
    if (text && !strcmp(path, "/NextPartNumberMarker")) list->next = strtol(text, NULL, 10);
    if (text && !strcmp(path, "/IsTruncated")) list->truncated = !strcmp(text, "true");
    if (!strcmp(path, "/Part") && list->number >= 1 && list->number <= list->progress->num_parts) {
        const S3Progress *p = list->progress;
        uint64_t begin = (uint64_t)(list->number - 1) * p->part_bytes, left = p->bytes - begin;
        const S3Part *part = &p->parts[list->number - 1];
        list->here[list->number - 1] = list->bytes == (left < p->part_bytes ? left : p->part_bytes) &&
                                       part->done && same_etag(part->etag, list->etag);
    }
    if (!strcmp(path, "/Part")) list->number = 0;
    return true;
}

/* False with u->lost: the upload is not there any more; without: err. */
static bool check_parts(Upload *u, Error *err) {
    S3Progress *p = &u->progress;
    PartList list = {.progress = p, .here = calloc((size_t)p->num_parts, sizeof(bool))};
    bool ok = list.here != NULL;
    long after = 0;
    if (!ok) error_set(err, "no memory for %d parts", p->num_parts);
    while (ok) {
        char marker[32];
        S3Answer answer;
        snprintf(marker, sizeof marker, "%ld", after);
        const S3Pair query[] = {{"uploadId", p->id}, {"part-number-marker", marker}};
        S3Call call = {.method = "GET",
                       .key = u->key,
                       .query = query,
                       .num_query = 2,
                       .text = u->text,
                       .text_size = S3_ANSWER_BYTES,
                       .stop = u->source->stop};
        list.truncated = false;
        list.next = 0;
        ok = s3_call(u->s3, &call, &answer, err);
        if (ok && answer.headers.status == 404) {
            u->lost = true;
            ok = false;
        } else if (ok && answer.headers.status / 100 != 2)
            ok = s3_unexpected(u->s3, "list the parts of", u->key, &answer, err);
        ok = ok && s3_xml_read(u->text, answer.text_bytes, find_part, &list, err);
        if (!ok || !list.truncated || list.next <= after) break;
        after = list.next;
    }
    for (int i = 0; ok && i < p->num_parts; i++) p->parts[i].done = list.here[i];
    free(list.here);
    return ok;
}

static bool put_part(void *ctx, int worker, int item, Error *err) {
    Upload *u = ctx;
    S3Progress *p = &u->progress;
    S3Part *part = &p->parts[item];
    uint64_t begin = (uint64_t)item * p->part_bytes, left = p->bytes - begin;
    size_t bytes = left < p->part_bytes ? (size_t)left : p->part_bytes;
    unsigned char *data = u->buffers[worker], hash[SHA256_BYTES];
    char number[16];
    S3Answer answer;
    if (!data && !(data = u->buffers[worker] = malloc(p->part_bytes)))
        return error_set(err, "no memory for a part of %zu bytes (smaller or fewer parts)", p->part_bytes);
    if (is_stopped(u->source)) return error_set(err, "%s: '%.120s': stopped", u->s3->where, u->key);
    pthread_mutex_lock(&u->read_lock);
    bool ok = store_source_read(u->source, data, bytes, begin, err);
    pthread_mutex_unlock(&u->read_lock);
    if (!ok) return false;
    sha256(data, bytes, hash);
    if (part->done && !memcmp(part->hash, hash, sizeof hash)) return true;
    snprintf(number, sizeof number, "%d", item + 1);
    const S3Pair query[] = {{"partNumber", number}, {"uploadId", p->id}};
    S3Call call = {.method = "PUT",
                   .key = u->key,
                   .query = query,
                   .num_query = 2,
                   .body = data,
                   .body_bytes = bytes,
                   .body_hash = hash,
                   .stop = u->source->stop};
    if (!s3_call(u->s3, &call, &answer, err)) return false;
    if (answer.headers.status == 404) u->lost = true;
    if (answer.headers.status / 100 != 2) return s3_unexpected(u->s3, "PUT a part of", u->key, &answer, err);
    if (!answer.headers.etag[0])
        return error_set(err, "%s: a part of '%.120s' got no ETag", u->s3->where, u->key);
    memcpy(part->etag, answer.headers.etag, sizeof part->etag);
    memcpy(part->hash, hash, sizeof hash);
    part->done = true;
    if (!u->source->resume_path) return true;
    pthread_mutex_lock(&u->file_lock);
    ok = s3_resume_part(u->source->resume_path, item + 1, part, err);
    pthread_mutex_unlock(&u->file_lock);
    return ok;
}

static bool object_is_whole(Upload *u, bool *whole, Error *err) {
    S3Answer answer;
    S3Call call = {.method = "HEAD", .key = u->key, .stop = u->source->stop};
    *whole = false;
    if (!s3_call(u->s3, &call, &answer, err)) return false;
    *whole = answer.headers.status == 200 && answer.headers.has_length &&
             answer.headers.content_length == u->source->bytes;
    return true;
}

/* Does the server know the upload no more? Then it was completed, if the object is there. */
static bool upload_is_gone(Upload *u, bool *gone, Error *err) {
    const S3Pair query = {"uploadId", u->progress.id};
    S3Answer answer;
    S3Call call = {.method = "GET",
                   .key = u->key,
                   .query = &query,
                   .num_query = 1,
                   .text = u->text,
                   .text_size = S3_ANSWER_BYTES,
                   .stop = u->source->stop};
    if (!s3_call(u->s3, &call, &answer, err)) return false;
    *gone = answer.headers.status == 404;
    return true;
}

/* The answer may be 200 with an error inside, or be lost after the server was done: whether the object is there decides. */
static bool complete_upload(Upload *u, Error *err) {
    const S3Progress *p = &u->progress;
    const S3Pair query = {"uploadId", p->id}, header = {"content-type", "application/xml"};
    S3Answer answer = {0};
    size_t size = 64 + (size_t)p->num_parts * (S3_ETAG_BYTES + 80), used = 0;
    char *body = malloc(size);
    if (!body) return error_set(err, "no memory for a list of %d parts", p->num_parts);
    used += (size_t)snprintf(body, size, "<CompleteMultipartUpload>");
    for (int i = 0; i < p->num_parts; i++)
        used += (size_t)snprintf(body + used, size - used,
                                 "<Part><PartNumber>%d</PartNumber><ETag>%s</ETag></Part>", i + 1,
                                 p->parts[i].etag);
    used += (size_t)snprintf(body + used, size - used, "</CompleteMultipartUpload>");
    CHECK(used < size);
    S3Call call = {.method = "POST",
                   .key = u->key,
                   .query = &query,
                   .num_query = 1,
                   .headers = &header,
                   .num_headers = 1,
                   .body = body,
                   .body_bytes = used,
                   .text = u->text,
                   .text_size = S3_ANSWER_BYTES,
                   .patience = 10,
                   .stop = u->source->stop};
    bool answered = s3_call(u->s3, &call, &answer, err), whole = false;
    free(body);
    if (!answered && is_stopped(u->source)) return false;
    if (answered && answer.headers.status == 404) u->lost = true;
    Error asking;
    bool clean = answered && answer.headers.status / 100 == 2, gone = clean;
    bool asked =
        object_is_whole(u, &whole, &asking) && (!whole || clean || upload_is_gone(u, &gone, &asking));
    if (whole && gone) return true;
    if (answered && !asked) {
        *err = asking;
        return false;
    }
    if (!answered) return false;
    if (answer.headers.status / 100 != 2) return s3_unexpected(u->s3, "complete", u->key, &answer, err);
    return error_set(err, "%s: '%.120s' was completed, but is not there or has another size", u->s3->where,
                     u->key);
}

/* Goes on where the resume file says, or begins; *all_done: the object is there already. */
static bool prepare_upload(Upload *u, bool *all_done, Error *err) {
    *all_done = false;
    u->lost = false;
    if (u->source->resume_path && !u->progress.id[0])
        s3_resume_read(&u->progress, u->source->resume_path, u->s3->where, u->key, u->source->bytes);
    if (!u->progress.id[0]) return begin_upload(u, err);
    if (check_parts(u, err)) /* written anew: lines behind a torn one would never be read */
        return !u->source->resume_path ||
               s3_resume_begin(&u->progress, u->source->resume_path, u->s3->where, u->key, err);
    if (!u->lost) return false;
    bool every_part = true;
    for (int i = 0; i < u->progress.num_parts; i++) every_part &= u->progress.parts[i].done;
    /* no such upload, though all its parts were sent: it was completed just before the crash */
    if (every_part && !object_is_whole(u, all_done, err)) return false;
    return *all_done || begin_upload(u, err);
}

static bool upload_in_parts(Upload *u, Error *err) {
    bool all_done = false, ok = false;
    for (int round = 0; !ok && round < 2;
         round++) { /* again from the start if the server forgot the upload */
        if (!prepare_upload(u, &all_done, err)) break;
        u->lost = false;
        ok = all_done ||
             (s3_parallel(u->s3->limits.parts_in_flight, u->progress.num_parts, put_part, u, err) &&
              complete_upload(u, err));
        if (ok || !u->lost || is_stopped(u->source)) break;
        u->progress.id[0] = 0;
        if (u->source->resume_path) unlink(u->source->resume_path);
    }
    Error ignored;
    if (ok && u->source->resume_path) unlink(u->source->resume_path);
    if (!ok && !u->source->resume_path && u->progress.id[0])
        s3_abort_upload(u->s3, u->key, u->progress.id, &ignored);
    return ok;
}

bool s3_upload(S3 *s3, const char *key, StoreSource *source, Error *err) {
    if (source->bytes <= s3->limits.part_bytes) return put_whole(s3, key, source, err);
    Upload u = {.s3 = s3, .key = key, .source = source};
    bool ok = false;
    CHECK(pthread_mutex_init(&u.read_lock, NULL) == 0 && pthread_mutex_init(&u.file_lock, NULL) == 0);
    u.text = malloc(S3_ANSWER_BYTES);
    u.progress.parts = calloc(S3_PARTS_MAX, sizeof *u.progress.parts);
    if (u.text && u.progress.parts)
        ok = upload_in_parts(&u, err);
    else
        error_set(err, "no memory for an upload");
    for (int i = 0; i < S3_THREADS_MAX; i++) free(u.buffers[i]);
    free(u.progress.parts);
    free(u.text);
    pthread_mutex_destroy(&u.read_lock);
    pthread_mutex_destroy(&u.file_lock);
    return ok;
}
