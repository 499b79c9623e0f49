/* test_loader.c: what is in a batch, the order of samples, many shards, and bad data. */
#define _POSIX_C_SOURCE 200809L
#include "data/loader.h"
#include "data/token_file.h"
#include "test.h"
#include <unistd.h>

static Error err;
static char folder[256], pattern[300];

enum { FILES_MAX = 100 };

static const char *shard_path(int shard) {
    static char path[300];
    snprintf(path, sizeof path, "%s/x_%03d.bin", folder, shard);
    return path;
}

/* Shard s gets `count` tokens: token i is (100 s + i) mod 60000. */
static void write_shard(int s, size_t count, int vocab_size, uint32_t fingerprint) {
    TokenFileWriter w;
    uint16_t *ids = malloc(2 * count + 2);
    for (size_t i = 0; i < count; i++) ids[i] = (uint16_t)((100 * (size_t)s + i) % 60000);
    bool ok = token_file_writer_open(&w, shard_path(s), vocab_size, fingerprint, &err) &&
              token_file_writer_write(&w, ids, count, &err) && token_file_writer_commit(&w, &err);
    TEST_CHECK(ok, "%s", err.text);
    token_file_writer_abort(&w);
    free(ids);
}

static void remove_shards(void) {
    for (int s = 0; s < FILES_MAX; s++) unlink(shard_path(s));
}

static void test_order(void) {
    int32_t x[3 * 10], y[3 * 10];
    /* T = 10: 2 + 0 + 0 + 3 windows; a window needs one token more than T */
    write_shard(0, 21, 0, 0);
    write_shard(1, 10, 0, 0);
    write_shard(2, 0, 0, 0);
    write_shard(3, 40, 0, 0);
    Loader *l = loader_open(pattern, 10, 1, false, 0, &err);
    TEST_CHECK(l, "%s", err.text);
    if (!l) return;
    TEST_CHECK(loader_samples(l) == 5 && loader_tokens(l) == 71 && loader_shards(l) == 4, "%llu %llu %d",
               (unsigned long long)loader_samples(l), (unsigned long long)loader_tokens(l), loader_shards(l));
    static const int starts[] = {0, 10, 300, 310, 320, 0, 10}; /* goes round after an epoch */
    for (uint64_t first = 0; first < 5; first++) {
        test_poison(x, sizeof x);
        test_poison(y, sizeof y);
        TEST_CHECK(loader_batch(l, first, 3, x, y, &err), "%s", err.text);
        for (int b = 0; b < 3; b++)
            for (int t = 0; t < 10; t++)
                TEST_CHECK(
                    x[b * 10 + t] == starts[first + (uint64_t)b] + t && y[b * 10 + t] == x[b * 10 + t] + 1,
                    "sample %d of %llu: %d %d", b, (unsigned long long)first, x[b * 10 + t], y[b * 10 + t]);
    }
    LoaderPlace place = loader_place(l, 13);
    TEST_CHECK(place.epoch == 2 && place.token == 10 && !strcmp(place.path, shard_path(3)), "%llu %llu %s",
               (unsigned long long)place.epoch, (unsigned long long)place.token, place.path);
    loader_close(l);
    remove_shards();
}

/* In each epoch every window comes once; the orders of epochs and seeds differ; any split among ranks, and
 * starting anywhere, gives the same samples. More shards than are kept open. */
static void test_shuffle(void) {
    enum { SHARDS = 100, T = 4, N = SHARDS * 5 };
    int32_t x[7 * T], y[7 * T];
    int first_token[3 * N];
    for (int s = 0; s < SHARDS; s++) write_shard(s, 5 * T + 1, 50000, 77);
    Loader *l = loader_open(pattern, T, 42, true, 50000, &err),
           *other = loader_open(pattern, T, 43, true, 0, &err);
    TEST_CHECK(l && other, "%s", err.text);
    if (!l || !other) return;
    TEST_CHECK(loader_samples(l) == N && loader_vocab_size(l) == 50000 && loader_fingerprint(l) == 77,
               "header");
    for (int i = 0; i < 3 * N; i++) {
        TEST_CHECK(loader_batch(l, (uint64_t)i, 1, x, y, &err), "%s", err.text);
        first_token[i] = x[0];
        LoaderPlace place = loader_place(l, (uint64_t)i);
        TEST_CHECK(place.epoch == (uint64_t)i / N && (int)place.token == x[0] % 100, "place of %d", i);
    }
    int same_epoch = 0, same_seed = 0, in_order = 0;
    for (int epoch = 0; epoch < 3; epoch++) {
        unsigned char seen[SHARDS * 100] = {0};
        int twice = 0;
        for (int i = 0; i < N; i++) twice += seen[first_token[epoch * N + i]]++;
        TEST_CHECK(!twice, "%d samples come twice in epoch %d", twice, epoch);
    }
    for (int i = 0; i < N; i++) {
        TEST_CHECK(loader_batch(other, (uint64_t)i, 1, x, y, &err), "%s", err.text);
        same_seed += x[0] == first_token[i];
        same_epoch += first_token[i] == first_token[N + i];
        in_order += i > 0 && first_token[i] == first_token[i - 1] + T;
    }
    TEST_CHECK(same_seed < N / 10 && same_epoch < N / 10 && in_order < N / 10, "%d %d %d", same_seed,
               same_epoch, in_order);
    for (int i = 0; i + 7 <= 2 * N; i += 131) { /* a batch of 7 = 7 of one */
        TEST_CHECK(loader_batch(l, (uint64_t)i, 7, x, y, &err), "%s", err.text);
        for (int b = 0; b < 7; b++) TEST_CHECK(x[b * T] == first_token[i + b], "sample %d", i + b);
    }
    TEST_CHECK(loader_batch(l, UINT64_MAX - 100, 7, x, y, &err), "%s", err.text);
    loader_close(l);
    loader_close(other);
    remove_shards();
}

static void expect_refused(const char *what, int T, int vocab_size, const char *phrase) {
    Loader *l = loader_open(what, T, 1, true, vocab_size, &err);
    TEST_CHECK(!l && strstr(err.text, phrase), "%s, not: %s", err.text, phrase);
    loader_close(l);
}

static void test_bad_data(void) {
    int32_t x[40], y[40];
    expect_refused(pattern, 4, 0, "no such token file");
    write_shard(0, 41, 300, 0);
    expect_refused(pattern, 41, 0, "41 tokens are too few for one sequence of 41");
    expect_refused(pattern, 4, 257, "vocabulary of 300, but the model has one of 257");
    write_shard(1, 41, 300, 5);
    write_shard(2, 41, 300, 6);
    expect_refused(pattern, 4, 300, "another tokenizer");
    unlink(shard_path(2));
    TEST_CHECK(file_write(shard_path(2), "text", 4, &err), "%s", err.text);
    expect_refused(pattern, 4, 0, "a text file");
    unlink(shard_path(2));

    write_shard(1, 41, 0, 0); /* llm.c's own: no vocabulary in the header; ids 100 to 140 */
    Loader *l = loader_open(pattern, 40, 1, false, 140, &err);
    TEST_CHECK(!l, "a header with a larger vocabulary is accepted");
    write_shard(0, 41, 0, 0);
    l = loader_open(pattern, 40, 1, false, 140, &err);
    TEST_CHECK(l, "%s", err.text);
    if (!l) return;
    TEST_CHECK(loader_batch(l, 0, 1, x, y, &err), "%s", err.text);
    TEST_CHECK(!loader_batch(l, 1, 1, x, y, &err) && strstr(err.text, "x_001.bin: token 40 has id 140"), "%s",
               err.text);
    loader_set_vocab_size(l, 141);
    TEST_CHECK(loader_batch(l, 1, 1, x, y, &err), "%s", err.text);
    loader_close(l);

    l = loader_open(pattern, 40, 1, false, 0, &err); /* a file that shrinks, or changes, while in use */
    TEST_CHECK(l && loader_batch(l, 0, 1, x, y, &err), "%s", err.text);
    TEST_CHECK(truncate(shard_path(0), 1030) == 0 && !loader_batch(l, 0, 1, x, y, &err) &&
                   strstr(err.text, "shrank"),
               "%s", err.text);
    loader_close(l);
    write_shard(0, 41, 0, 0);
    l = loader_open(pattern, 40, 1, false, 0, &err);
    write_shard(1, 10, 0, 0);
    TEST_CHECK(l && !loader_batch(l, 1, 1, x, y, &err) && strstr(err.text, "changed"), "%s", err.text);
    loader_close(l);
    remove_shards();
}

int main(void) {
    const char *temporary = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/test_loader.XXXXXX", temporary ? temporary : "/tmp");
    if (!mkdtemp(folder)) return 1;
    snprintf(pattern, sizeof pattern, "%s/x_*.bin", folder);
    test_order();
    test_shuffle();
    test_bad_data();
    TEST_CHECK(rmdir(folder) == 0, "something is left in %s", folder);
    return test_end("loader");
}
