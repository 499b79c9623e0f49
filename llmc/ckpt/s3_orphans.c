/* s3_orphans.c: uploads in parts that are open in a bucket (s3.h): listed, ended. */
#define _POSIX_C_SOURCE 200809L
#include "base/check.h"
#include "ckpt/s3.h"
#include "ckpt/s3_resume.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_BYTES = 1200, UPLOADS_MAX = 1000 }; /* of one page */

typedef struct {
    char key[KEY_BYTES], id[S3_ID_BYTES], initiated[64];
} OpenUpload;

typedef struct {
    OpenUpload *uploads; /* [UPLOADS_MAX] */
    int count;
    OpenUpload now;
    bool truncated;
    char next_key[KEY_BYTES], next_id[S3_ID_BYTES];
} Page;

static bool upload_element(void *ctx, const char *path, const char *text) {
    Page *page = ctx;
    const struct {
        const char *path;
        char *out;
        size_t size;
    } known[] = {
        {"/Upload/Key", page->now.key, sizeof page->now.key},
        {"/Upload/UploadId", page->now.id, sizeof page->now.id},
        {"/Upload/Initiated", page->now.initiated, sizeof page->now.initiated},
        {"/NextKeyMarker", page->next_key, sizeof page->next_key},
        {"/NextUploadIdMarker", page->next_id, sizeof page->next_id},
    };
    if (strncmp(path, "ListMultipartUploadsResult", 26)) return false;
    path += 26;
    for (size_t i = 0; text && i < sizeof known / sizeof *known; i++)
        if (!strcmp(path, known[i].path) && strlen(text) < known[i].size)
            memcpy(known[i].out, text, strlen(text) + 1);
    if (text && !strcmp(path, "/IsTruncated")) page->truncated = !strcmp(text, "true");
    if (!strcmp(path, "/Upload")) {
        if (page->count < UPLOADS_MAX && page->now.key[0] && page->now.id[0])
            page->uploads[page->count++] = page->now;
        memset(&page->now, 0, sizeof page->now);
    }
    return true;
}

/* One page behind (next_key, next_id). */
static bool read_page(S3 *s3, const char *prefix, Page *page, char *text, Error *err) {
    char key[KEY_BYTES], id[S3_ID_BYTES];
    S3Answer answer;
    memcpy(key, page->next_key, sizeof key);
    memcpy(id, page->next_id, sizeof id);
    const S3Pair query[] = {
        {"uploads", ""}, {"prefix", prefix}, {"key-marker", key}, {"upload-id-marker", id}};
    S3Call call = {.method = "GET",
                   .key = "",
                   .query = query,
                   .num_query = *key ? 4 : 2,
                   .text = text,
                   .text_size = S3_ANSWER_BYTES};
    page->count = 0;
    page->truncated = false;
    page->next_key[0] = page->next_id[0] = 0;
    if (!s3_call(s3, &call, &answer, err)) return false;
    if (answer.headers.status / 100 != 2)
        return s3_unexpected(s3, "list the uploads of", prefix, &answer, err);
    if (!s3_xml_read(text, answer.text_bytes, upload_element, page, err)) return false;
    if (page->truncated &&
        (!page->next_key[0] || (!strcmp(key, page->next_key) && !strcmp(id, page->next_id))))
        page->truncated = false; /* a server that does not go on */
    return true;
}

bool s3_each_upload(S3 *s3, const char *prefix, S3EachUpload each, void *ctx, Error *err) {
    Page page = {.uploads = malloc(UPLOADS_MAX * sizeof(OpenUpload))};
    char *text = malloc(S3_ANSWER_BYTES);
    bool ok = page.uploads && text;
    if (!ok) error_set(err, "no memory for a list of uploads");
    while (ok && (ok = read_page(s3, prefix, &page, text, err))) {
        for (int i = 0; ok && i < page.count; i++) {
            const OpenUpload *u = &page.uploads[i];
            if (!strncmp(u->key, prefix, strlen(prefix))) ok = each(ctx, u->key, u->id, u->initiated, err);
        }
        if (!page.truncated) break;
    }
    free(page.uploads);
    free(text);
    return ok;
}

bool s3_abort_upload(S3 *s3, const char *key, const char *id, Error *err) {
    const S3Pair query = {"uploadId", id};
    S3Answer answer;
    S3Call call = {.method = "DELETE", .key = key, .query = &query, .num_query = 1};
    if (!s3_call(s3, &call, &answer, err)) return false;
    return answer.headers.status / 100 == 2 || answer.headers.status == 404 ||
           s3_unexpected(s3, "abort the upload of", key, &answer, err);
}
