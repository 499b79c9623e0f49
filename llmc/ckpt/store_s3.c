/* store_s3.c: a store in S3-compatible storage (store.h), on the client s3.h. */
#define _POSIX_C_SOURCE 200809L
#include "base/check.h"
#include "base/log.h"
#include "ckpt/s3.h"
#include "ckpt/store_body.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct {
    S3 s3;
} StoreS3;

enum { KEY_BYTES = STORE_KEY_BYTES + 520 };

/* The bucket's key of a store's key (or of a prefix of one). */
static const char *whole_key(const StoreS3 *store, const char *key, char out[KEY_BYTES]) {
    const char *prefix = store->s3.config.prefix;
    int n = snprintf(out, KEY_BYTES, "%s%s%s", prefix, *prefix ? "/" : "", key);
    CHECK(n >= 0 && n < KEY_BYTES);
    return out;
}

static bool head(StoreS3 *store, const char *key, uint64_t *bytes, bool *found, Error *err) {
    char whole[KEY_BYTES];
    S3Answer answer;
    S3Call call = {.method = "HEAD", .key = whole_key(store, key, whole)};
    if (!s3_call(&store->s3, &call, &answer, err)) return false;
    *found = answer.headers.status / 100 == 2;
    if (*found && !answer.headers.has_length)
        return error_set(err, "%s: '%.200s' has no length", store->s3.where, whole);
    *bytes = answer.headers.content_length;
    return *found || answer.headers.status == 404 || s3_unexpected(&store->s3, "HEAD", whole, &answer, err);
}

static bool s3_stat(void *state, const char *key, uint64_t *bytes, bool *found, Error *err) {
    return head(state, key, bytes, found, err);
}

static bool s3_put(void *state, const char *key, StoreSource *source, Error *err) {
    char whole[KEY_BYTES];
    StoreS3 *store = state;
    return s3_upload(&store->s3, whole_key(store, key, whole), source, err);
}

static bool s3_get_range(void *state, const char *key, void *data, size_t bytes, uint64_t offset,
                         Error *err) {
    char whole[KEY_BYTES];
    StoreS3 *store = state;
    return s3_get(&store->s3, whole_key(store, key, whole), data, bytes, offset, err);
}

/* Does the object hold these bytes? An earlier attempt of ours may have put it, its answer lost. */
static bool holds(StoreS3 *store, const char *key, const void *data, size_t bytes, bool *same, Error *err) {
    char whole[KEY_BYTES];
    uint64_t there = 0;
    bool found = false;
    *same = false;
    if (!head(store, key, &there, &found, err)) return false;
    if (!found || there != bytes) return true;
    unsigned char *copy = malloc(bytes ? bytes : 1);
    if (!copy) return error_set(err, "no memory for an object of %zu bytes", bytes);
    bool ok = !bytes || s3_get(&store->s3, whole_key(store, key, whole), copy, bytes, 0, err);
    *same = ok && !memcmp(copy, data, bytes);
    free(copy);
    return ok;
}

static bool refuse_existing(StoreS3 *store, const char *key, const void *data, size_t bytes, bool *existed,
                            Error *err) {
    bool same;
    if (!holds(store, key, data, bytes, &same, err)) return false;
    *existed = !same;
    return same || error_set(err, "%s: there is another '%.200s' already", store->s3.where, key);
}

/* A server that does not know If-None-Match may ignore it, so the object is asked for in any case. */
static bool s3_put_small(void *state, const char *key, const void *data, size_t bytes, bool only_if_absent,
                         bool *existed, Error *err) {
    StoreS3 *store = state;
    char whole[KEY_BYTES];
    const S3Pair if_absent = {"if-none-match", "*"};
    S3Answer answer;
    uint64_t there = 0;
    bool found = false;
    if (only_if_absent && !head(store, key, &there, &found, err)) return false;
    if (found) return refuse_existing(store, key, data, bytes, existed, err);
    S3Call call = {.method = "PUT",
                   .key = whole_key(store, key, whole),
                   .body = data,
                   .body_bytes = bytes,
                   .headers = &if_absent,
                   .num_headers = only_if_absent ? 1 : 0};
    if (!s3_call(&store->s3, &call, &answer, err)) return false;
    if (only_if_absent && answer.headers.status == 501) {
        call.num_headers = 0;
        if (!s3_call(&store->s3, &call, &answer, err)) return false;
    }
    if (only_if_absent && answer.headers.status == 412)
        return refuse_existing(store, key, data, bytes, existed, err);
    return answer.headers.status / 100 == 2 || s3_unexpected(&store->s3, "PUT", whole, &answer, err);
}

static bool s3_remove(void *state, const char *key, Error *err) {
    StoreS3 *store = state;
    char whole[KEY_BYTES];
    S3Answer answer;
    S3Call call = {.method = "DELETE", .key = whole_key(store, key, whole)};
    if (!s3_call(&store->s3, &call, &answer, err)) return false;
    return answer.headers.status / 100 == 2 || answer.headers.status == 404 ||
           s3_unexpected(&store->s3, "DELETE", whole, &answer, err);
}

/* ---- listing ---- */

typedef struct {
    char key[KEY_BYTES];
    uint64_t bytes;
} Listed;

typedef struct {
    const StoreS3 *store;
    Listed *items;
    size_t count, size;
    Listed now;
    bool truncated, no_memory;
    char token[S3_XML_TEXT_BYTES];
} Listing;

static void add_item(Listing *list) {
    if (list->count == list->size) {
        size_t size = list->size ? 2 * list->size : 256;
        Listed *grown = realloc(list->items, size * sizeof *grown);
        if (!grown) {
            list->no_memory = true;
            return;
        }
        list->items = grown;
        list->size = size;
    }
    list->items[list->count++] = list->now;
}

static bool list_element(void *ctx, const char *path, const char *text) {
    Listing *list = ctx;
    if (strncmp(path, "ListBucketResult", 16)) return false;
    path += 16;
    if (text && !strcmp(path, "/Contents/Key")) snprintf(list->now.key, sizeof list->now.key, "%s", text);
    if (text && !strcmp(path, "/Contents/Size")) list->now.bytes = strtoull(text, NULL, 10);
    if (text && !strcmp(path, "/IsTruncated")) list->truncated = !strcmp(text, "true");
    if (text && !strcmp(path, "/NextContinuationToken"))
        snprintf(list->token, sizeof list->token, "%s", text);
    if (!strcmp(path, "/Contents")) {
        if (list->now.key[0]) add_item(list);
        memset(&list->now, 0, sizeof list->now);
    }
    return !list->no_memory;
}

static bool list_page(StoreS3 *store, const char *prefix, const char *token, char *text, Listing *list,
                      Error *err) {
    const S3Pair query[] = {
        {"list-type", "2"}, {"prefix", prefix}, {"max-keys", "1000"}, {"continuation-token", token}};
    S3Answer answer;
    S3Call call = {.method = "GET",
                   .key = "",
                   .query = query,
                   .num_query = *token ? 4 : 3,
                   .text = text,
                   .text_size = S3_ANSWER_BYTES};
    list->truncated = false;
    list->token[0] = 0;
    list->count = 0;
    if (!s3_call(&store->s3, &call, &answer, err)) return false;
    if (answer.headers.status / 100 != 2) return s3_unexpected(&store->s3, "list", prefix, &answer, err);
    if (!s3_xml_read(text, answer.text_bytes, list_element, list, err)) return false;
    if (list->no_memory) return error_set(err, "no memory for a list of %zu objects", list->count);
    if (list->truncated && (!list->token[0] || !strcmp(list->token, token)))
        return error_set(err, "%s: the list of '%.200s' does not go on as it says", store->s3.where, prefix);
    return true;
}

static bool s3_list(void *state, const char *prefix, StoreEach *each, void *ctx, Error *err) {
    StoreS3 *store = state;
    char whole[KEY_BYTES], token[S3_XML_TEXT_BYTES] = "";
    Listing list = {.store = store};
    char *text = malloc(S3_ANSWER_BYTES);
    bool ok = text != NULL;
    size_t skip = store->s3.config.prefix[0] ? strlen(store->s3.config.prefix) + 1 : 0;
    if (!ok) error_set(err, "no memory for a list of objects");
    whole_key(store, prefix, whole);
    while (ok && (ok = list_page(store, whole, token, text, &list, err))) {
        for (size_t i = 0; i < list.count; i++) {
            const char *key = list.items[i].key;
            if (!strncmp(key, whole, strlen(whole)) && store_key_is_valid(key + skip))
                each(ctx, key + skip, list.items[i].bytes);
        }
        if (!list.truncated) break;
        memcpy(token, list.token, sizeof token);
    }
    free(list.items);
    free(text);
    return ok;
}

static bool s3_check(void *state, Error *err) {
    StoreS3 *store = state;
    char whole[KEY_BYTES];
    const S3Pair query[] = {{"list-type", "2"}, {"prefix", whole_key(store, "", whole)}, {"max-keys", "1"}};
    S3Answer answer;
    S3Call call = {.method = "GET", .key = "", .query = query, .num_query = 3};
    char *text = call.text = malloc(S3_ANSWER_BYTES);
    if (!text) return error_set(err, "no memory for an answer");
    call.text_size = S3_ANSWER_BYTES;
    bool ok = s3_call(&store->s3, &call, &answer, err);
    if (ok && answer.headers.status / 100 != 2)
        ok = error_set(err, "%s: %d %s (is this the right bucket and AWS_ENDPOINT_URL?)", store->s3.where,
                       answer.headers.status, answer.error.code);
    free(text);
    return ok;
}

/* ---- uploads that were never finished ---- */

typedef struct {
    StoreS3 *store;
    double age_seconds;
    int aborted;
} Orphans;

/* 2013-05-24T00:00:00.000Z */
static bool read_time(const char *text, long long *seconds) {
    int y, mo, d, h, mi, s;
    char http[64];
    static const char *const months[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                         "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    if (sscanf(text, "%4d-%2d-%2dT%2d:%2d:%2d", &y, &mo, &d, &h, &mi, &s) != 6 || mo < 1 || mo > 12)
        return false;
    snprintf(http, sizeof http, "Day, %d %s %d %02d:%02d:%02d GMT", d, months[mo - 1], y, h, mi, s);
    return http_date_read(http, seconds);
}

static bool abort_orphan(void *ctx, const char *key, const char *id, const char *initiated, Error *err) {
    Orphans *o = ctx;
    long long begun = 0, now = (long long)time(NULL) + atomic_load(&o->store->s3.clock_offset);
    bool old =
        o->age_seconds <= 0 || (read_time(initiated, &begun) && (double)(now - begun) >= o->age_seconds);
    if (!old) return true;
    if (!s3_abort_upload(&o->store->s3, key, id, err)) return false;
    o->aborted++;
    return true;
}

static bool s3_abort_orphans(void *state, const char *prefix, double age_seconds, int *aborted, Error *err) {
    char whole[KEY_BYTES];
    Orphans o = {state, age_seconds, 0};
    bool ok = s3_each_upload(&o.store->s3, whole_key(state, prefix, whole), abort_orphan, &o, err);
    *aborted = o.aborted;
    return ok;
}

static void s3_close_state(void *state) {
    StoreS3 *store = state;
    s3_close(&store->s3);
    free(store);
}

bool store_s3_open(Store *store, const char *place, Error *err) {
    static const StoreBody body = {s3_close_state, s3_check, s3_put,    s3_put_small,    s3_get_range,
                                   s3_stat,        s3_list,  s3_remove, s3_abort_orphans};
    StoreS3 *s = calloc(1, sizeof *s);
    if (!s) return error_set(err, "%s: no memory", place);
    if (!s3_open(&s->s3, place, &store->config, &store->rate, err)) {
        free(s);
        return false;
    }
    store->body = &body;
    store->state = s;
    const S3Config *c = &s->s3.config;
    snprintf(store->describe, sizeof store->describe, "%.300s at %s://%s%s, region %s", place, c->scheme,
             c->host, c->base, c->region);
    return true;
}
