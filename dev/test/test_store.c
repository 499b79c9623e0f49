/* test_store.c: the store in a folder: round trips, objects that appear whole or not at all, lists, what is unfinished,
 * sources that fail or are stopped; keys; and what every kind of store refuses. */
#define _XOPEN_SOURCE 700
#include "base/file.h"
#include "ckpt/store_body.h"
#include "test.h"
#include "test_folder.h"

enum { BIG_BYTES = (3 << 20) + 12345 };

static Error err;
static unsigned char *source_bytes;

typedef struct {
    uint64_t fail_at; /* a read that reaches it fails; UINT64_MAX: none */
    atomic_bool *stop_at_second;
    int reads;
} Source;

static bool read_source(void *ctx, void *data, size_t bytes, uint64_t offset, Error *e) {
    Source *s = ctx;
    if (++s->reads == 2 && s->stop_at_second) atomic_store(s->stop_at_second, true);
    if (offset + bytes > s->fail_at) return error_set(e, "the source is broken");
    memcpy(data, source_bytes + offset, bytes);
    return true;
}

static bool put(Store *store, const char *key, uint64_t bytes) {
    Source s = {.fail_at = UINT64_MAX};
    bool failed = true, ok = store_put(store, key, bytes, read_source, &s, NULL, NULL, &failed, &err);
    return ok && !failed;
}

static bool holds(Store *store, const char *key, size_t bytes) {
    unsigned char *data = malloc(bytes + 1);
    uint64_t there = 0;
    bool found = false;
    test_poison(data, bytes + 1);
    bool ok = store_stat(store, key, &there, &found, &err) && found && there == bytes &&
              store_get(store, key, data, bytes, 0, &err) && !memcmp(data, source_bytes, bytes) &&
              data[bytes] == 0xff;
    free(data);
    return ok;
}

typedef struct {
    char text[4096];
} Keys;

static void add_key(void *ctx, const char *key, uint64_t bytes) {
    Keys *k = ctx;
    size_t used = strlen(k->text);
    snprintf(k->text + used, sizeof k->text - used, "%s:%llu ", key, (unsigned long long)bytes);
}

static const char *list(Store *store, const char *prefix) {
    static Keys keys;
    keys.text[0] = 0;
    return store_list(store, prefix, add_key, &keys, &err) ? keys.text : err.text;
}

static void test_objects(Store *store) {
    static const size_t sizes[] = {0, 1, 4095, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, BIG_BYTES};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        TEST_CHECK(put(store, "ckpt/000001.000000000005/node-1.0.seg", sizes[i]), "%zu: %s", sizes[i],
                   err.text);
        TEST_CHECK(holds(store, "ckpt/000001.000000000005/node-1.0.seg", sizes[i]), "%zu: %s", sizes[i],
                   err.text);
    }
    unsigned char three[3] = {0};
    TEST_CHECK(store_get(store, "ckpt/000001.000000000005/node-1.0.seg", three, 3, BIG_BYTES - 3, &err) &&
                   !memcmp(three, source_bytes + BIG_BYTES - 3, 3),
               "%s", err.text);
    TEST_CHECK(!store_get(store, "ckpt/000001.000000000005/node-1.0.seg", three, 3, BIG_BYTES - 2, &err) &&
                   strstr(err.text, "ends before"),
               "%s", err.text);
    TEST_CHECK(!store_get(store, "nothing", three, 3, 0, &err), "an absent object is read");
    uint64_t bytes = 1;
    bool found = true;
    TEST_CHECK(store_stat(store, "ckpt/nothing", &bytes, &found, &err) && !found && !bytes, "%s", err.text);
    TEST_CHECK(store_stat(store, "ckpt", &bytes, &found, &err) && !found, "a folder is no object");
}

static void test_only_if_absent(Store *store) {
    bool existed = true;
    TEST_CHECK(store_put_small(store, "c/COMMIT", "abc", 3, true, &existed, &err) && !existed, "%s",
               err.text);
    TEST_CHECK(store_put_small(store, "c/COMMIT", "abc", 3, true, &existed, &err) && !existed, "the same: %s",
               err.text);
    TEST_CHECK(!store_put_small(store, "c/COMMIT", "abd", 3, true, &existed, &err) && existed, "another");
    TEST_CHECK(!store_put_small(store, "c/COMMIT", "abcd", 4, true, &existed, &err) && existed,
               "a longer one");
    char data[4] = "";
    TEST_CHECK(store_get(store, "c/COMMIT", data, 3, 0, &err) && !strcmp(data, "abc"), "%s", data);
    TEST_CHECK(store_put_small(store, "c/COMMIT", "xyz", 3, false, NULL, &err), "%s", err.text);
    TEST_CHECK(store_get(store, "c/COMMIT", data, 3, 0, &err) && !strcmp(data, "xyz"), "%s", data);
    TEST_CHECK(store_delete(store, "c/COMMIT", &err), "%s", err.text);
}

static void test_broken_sources(Store *store) {
    Source broken = {.fail_at = 2 << 20};
    bool failed = false;
    TEST_CHECK(put(store, "f/one", 100), "%s", err.text);
    TEST_CHECK(!store_put(store, "f/one", BIG_BYTES, read_source, &broken, NULL, NULL, &failed, &err) &&
                   failed && strstr(err.text, "the source is broken"),
               "%s", err.text);
    TEST_CHECK(holds(store, "f/one", 100), "the old object is gone");
    atomic_bool stop = false;
    Source stopped = {.fail_at = UINT64_MAX, .stop_at_second = &stop};
    TEST_CHECK(!store_put(store, "f/two", BIG_BYTES, read_source, &stopped, NULL, &stop, &failed, &err) &&
                   !failed && strstr(err.text, "stopped"),
               "%s", err.text);
    TEST_CHECK(!strcmp(list(store, "f/"), "f/one:100 "), "%s", list(store, "f/"));
    store_delete(store, "f/one", &err);
}

static void test_lists(Store *store) {
    static const char *const keys[] = {"l/b/2", "l/b/10", "l/b-x", "l/a", "l/c/d/e/f", "l/b.0"};
    for (int i = 0; i < 6; i++) TEST_CHECK(put(store, keys[i], (uint64_t)i), "%s", err.text);
    TEST_CHECK(!strcmp(list(store, "l/"), "l/a:3 l/b-x:2 l/b.0:5 l/b/10:1 l/b/2:0 l/c/d/e/f:4 "), "%s",
               list(store, "l/"));
    TEST_CHECK(!strcmp(list(store, "l/b/"), "l/b/10:1 l/b/2:0 "), "%s", list(store, "l/b/"));
    TEST_CHECK(!strcmp(list(store, "l/b/1"), "l/b/10:1 "), "%s", list(store, "l/b/1"));
    TEST_CHECK(!strcmp(list(store, "nowhere/"), ""), "%s", list(store, "nowhere/"));
    for (int i = 0; i < 6; i++) TEST_CHECK(store_delete(store, keys[i], &err), "%s", err.text);
    TEST_CHECK(store_delete(store, "l/a", &err), "absent: %s", err.text);
    TEST_CHECK(!file_exists(test_path("store/l").path), "empty folders are left");
    TEST_CHECK(!strcmp(list(store, "l"), ""), "%s", list(store, "l"));
}

/* What a killed process leaves aside is no object, and goes when it is old enough. */
static void test_unfinished(Store *store) {
    int aborted = -1;
    TEST_CHECK(put(store, "o/x/one", 1), "%s", err.text);
    test_file_write(test_path("store/o/x/.4711.0.aside").path, "half", 4);
    TEST_CHECK(!strcmp(list(store, "o/"), "o/x/one:1 "), "%s", list(store, "o/"));
    TEST_CHECK(store_abort_orphans(store, "o/", 3600, &aborted, &err) && aborted == 0, "%d", aborted);
    TEST_CHECK(store_abort_orphans(store, "other/", 0, &aborted, &err) && aborted == 0, "%d", aborted);
    TEST_CHECK(store_abort_orphans(store, "o/", 0, &aborted, &err) && aborted == 1, "%d", aborted);
    TEST_CHECK(!file_exists(test_path("store/o/x/.4711.0.aside").path) && holds(store, "o/x/one", 1), "%s",
               err.text);
}

static void test_places(void) {
    Store *store = NULL;
    TEST_CHECK(!store_open(&store, "gs://bucket/x", NULL, &err) && !store && strstr(err.text, "s3://"), "%s",
               err.text);
    TEST_CHECK(!store_open(&store, "", NULL, &err) && !store, "no name");
    TEST_CHECK(!store_open(&store, "s3://", NULL, &err) && !store, "%s", err.text);
    TEST_CHECK(store_open(&store, "/proc/no/such/folder", NULL, &err), "%s", err.text);
    TEST_CHECK(!store_check(store, &err) && strstr(err.text, "/proc/no"), "%s", err.text);
    TEST_CHECK(!put(store, "a", 1) && strstr(err.text, "/proc/no"), "%s", err.text);
    TEST_CHECK(!strcmp(list(store, ""), ""), "%s", list(store, ""));
    store_close(store);
    store_close(NULL);
}

static void test_keys(void) {
    static const char *const good[] = {"a", "a/b", "A-z_0.9/x", "a.b/c..d"};
    static const char *const bad[] = {"",     "/a",  "a/",   "a//b", ".a",   "a/.b",
                                      "a/..", "a b", "a\\b", "a%b",  "a\nb", "\xc3\xa9"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        TEST_CHECK(store_key_is_valid(good[i]), "%s is refused", good[i]);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        TEST_CHECK(!store_key_is_valid(bad[i]), "'%s'", bad[i]);
    char longest[STORE_KEY_BYTES + 1];
    memset(longest, 'k', sizeof longest);
    longest[STORE_KEY_BYTES] = 0;
    TEST_CHECK(!store_key_is_valid(longest) && store_key_is_valid(longest + 1), "length");
}

/* The cap: what was taken so far never runs ahead of the time by more than the bucket holds. */
static void test_rate(void) {
    StoreRate rate;
    size_t taken = 0;
    store_rate_open(&rate, 0);
    TEST_CHECK(store_rate_take(&rate, 1 << 30, NULL) == 1 << 30, "no cap");
    store_rate_close(&rate);
    store_rate_open(&rate, 1000);
    for (int i = 0; i < 3; i++) {
        size_t n = store_rate_take(&rate, 1 << 20, NULL);
        TEST_CHECK(n >= 1 && n <= 126, "%zu at once", n);
        taken += n;
    }
    double paid = rate.next;
    size_t more = store_rate_take(&rate, 50, NULL);
    TEST_CHECK(more == 50 && fabs(rate.next - paid - 0.05) < 1e-6 && taken, "%zu, %g", more,
               rate.next - paid);
    store_rate_close(&rate);
}

int main(void) {
    test_folder_open();
    source_bytes = malloc(BIG_BYTES);
    for (size_t i = 0; i < BIG_BYTES; i++) source_bytes[i] = (unsigned char)(i * 7 + (i >> 9));
    Store *store = NULL;
    StoreConfig config = {.bytes_per_second_max = 1ull << 40};
    TEST_CHECK(store_open(&store, test_path("store//").path, &config, &err) && store_check(store, &err), "%s",
               err.text);
    test_objects(store);
    test_only_if_absent(store);
    test_broken_sources(store);
    test_lists(store);
    test_unfinished(store);
    store_close(store);
    test_places();
    test_keys();
    test_rate();
    free(source_bytes);
    test_folder_close();
    return test_end("store");
}
