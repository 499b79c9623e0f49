/* test_run_state.c: a run's state comes back as it was saved; any damaged bit is found; a crash at any point
 * of a save leaves a state. */
#define _XOPEN_SOURCE 700
#include "base/crc32c.h"
#include "base/log.h"
#include "run/run_state.h"
#include "test.h"
#include "test_folder.h"

enum { FLOATS = 1000, BIG = (3 << 20) + 17 };
static float weights[FLOATS];
static uint8_t big[BIG];
static struct {
    int64_t step;
    double loss;
} progress;

static RunRecord records[] = {{"progress", &progress, sizeof progress, false},
                              {"params", weights, sizeof weights, true},
                              {"empty", weights, 0, false},
                              {"big", big, 300, false}};
enum { COUNT = 4 };

static void fill(int64_t step) {
    progress.step = step, progress.loss = 1.0 / (double)step;
    test_fill(weights, FLOATS, 1, (uint64_t)step);
    for (size_t i = 0; i < BIG; i++) big[i] = (uint8_t)(i * 7 + (size_t)step);
}

/* The step whose state loads, checked in every byte; 0: none, with err. */
static int64_t load(const char *run, Error *err) {
    size_t bytes = records[3].bytes;
    progress.step = 0;
    test_poison(weights, sizeof weights), test_poison(big, sizeof big);
    if (!run_state_load(run, records, COUNT, err)) return 0;
    int64_t step = progress.step;
    float w[FLOATS];
    static uint8_t b[BIG];
    memcpy(w, weights, sizeof w), memcpy(b, big, bytes);
    double loss = progress.loss;
    fill(step);
    CHECK(!memcmp(w, weights, sizeof w) && !memcmp(b, big, bytes) && loss == progress.loss);
    return step;
}

static void save(const char *run, int64_t step) {
    Error err;
    fill(step);
    bool ok = run_state_save(run, records, COUNT, &err);
    TEST_CHECK(ok, "%s", err.text);
}

static void expect(const char *run, int64_t step, const char *when) {
    Error err = {""};
    int64_t have = load(run, &err);
    TEST_CHECK(have == step, "%s: step %lld, not %lld: %s", when, (long long)have, (long long)step, err.text);
    TEST_CHECK(!strchr(err.text, '\n'), "%s", err.text);
}

static void test_round_trip(void) {
    TestPath run = test_path("a/run");
    Error err = {""};
    TEST_CHECK(!run_state_exists(run.path), "exists before");
    TEST_CHECK(!load(run.path, &err) && strstr(err.text, "no run state"), "%s", err.text);
    save(run.path, 1);
    TEST_CHECK(run_state_exists(run.path), "does not exist");
    expect(run.path, 1, "first");
    records[3].bytes = BIG; /* several blocks */
    save(run.path, 2);
    expect(run.path, 2, "second, larger");
    records[3].bytes = 300;
    RunRecord wrong = {"params", weights, sizeof weights - 4, false},
              unknown = {"momentum", weights, 4, false};
    TEST_CHECK(!run_state_load(run.path, &wrong, 1, &err) && strstr(err.text, "not 3996"), "%s", err.text);
    TEST_CHECK(!run_state_load(run.path, &unknown, 1, &err) && strstr(err.text, "no record 'momentum'"), "%s",
               err.text);
    RunRecord one = {"progress", &progress, sizeof progress, false};
    progress.step = 0;
    TEST_CHECK(run_state_load(run.path, &one, 1, &err) && progress.step == 2, "one record: %s", err.text);
    RunStatePlace place;
    TEST_CHECK(run_state_find(run.path, "params", &place, &err) && place.bytes == sizeof weights, "%s",
               err.text);
    size_t bytes;
    uint8_t *data = test_file_read(place.file.path, &bytes);
    TEST_CHECK(!memcmp(data + place.offset, weights, sizeof weights), "params are not where they should be");
    tensor_file_close(&place.file);
    free(data);
}

/* With no other state there, every cut and every changed bit must be an error. */
static void test_damage(void) {
    TestPath run = test_path("damage"), state = test_path("damage/state.bin"),
             old = test_path("damage/state.prev.bin");
    save(run.path, 3);
    size_t bytes, table = 32 + 64 * COUNT;
    uint8_t *data = test_file_read(state.path, &bytes);
    size_t cuts[] = {0,
                     1,
                     7,
                     31,
                     32,
                     33,
                     95,
                     96,
                     table - 1,
                     table,
                     table + 15,
                     table + 16,
                     table + 17,
                     table + 16 + 3999,
                     table + 16 + 4000,
                     table + 16 + 4001,
                     bytes - 1};
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        test_file_write(state.path, data, cuts[i]);
        expect(run.path, 0, "cut");
    }
    for (uint64_t i = 0; i < 200; i++) {
        test_file_write(state.path, data,
                        (size_t)(rng_uniform(1, RNG_STREAM(RNG_TEST, 1), i) * (double)bytes));
        expect(run.path, 0, "random cut");
    }
    data = realloc(data, bytes + 1);
    test_file_write(state.path, data, bytes + 1);
    expect(run.path, 0, "a byte more");
    for (size_t bit = 0; bit < 8 * bytes; bit += bit < 8 * table ? 1 : 61) {
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        test_file_write(state.path, data, bytes);
        expect(run.path, 0, "a changed bit");
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    test_file_write(state.path, data, bytes);
    expect(run.path, 3, "whole again");
    TEST_CHECK(access(old.path, F_OK) != 0, "a previous state from nowhere");
    free(data);
}

/* A header and a table that lie, with the right checksums. */
static void test_lies(void) {
    TestPath run = test_path("lies"), state = test_path("lies/state.bin");
    save(run.path, 12);
    size_t bytes, table = 64 * COUNT;
    int loaded = 0;
    uint8_t *data = test_file_read(state.path, &bytes), *copy = malloc(bytes);
    for (uint64_t round = 0; round < 1000; round++) {
        memcpy(copy, data, bytes);
        size_t size = test_mutate(copy, bytes, 32 + table, round);
        if (size >= 32 + table) {
            uint32_t records_there, crc;
            memcpy(&records_there, copy + 12, 4);
            crc = crc32c(0, copy + 32, records_there <= COUNT ? 64 * records_there : table);
            memcpy(copy + 24, &crc, 4);
            crc = crc32c(0, copy, 28);
            memcpy(copy + 28, &crc, 4);
        }
        test_file_write(state.path, copy, size);
        Error err = {""};
        progress.step = 0;
        loaded += run_state_load(run.path, records, COUNT, &err);
        CHECK(!strchr(err.text, '\n'));
    }
    TEST_CHECK(loaded > 0 && loaded < 500, "%d of 1000 loaded",
               loaded); /* many changes hit nothing that counts */
    free(data), free(copy);
}

/* A damaged newest falls back to the one before. */
static void test_fall_back(void) {
    TestPath run = test_path("back"), state = test_path("back/state.bin");
    size_t bytes;
    save(run.path, 4);
    save(run.path, 5);
    expect(run.path, 5, "newest");
    uint8_t *data = test_file_read(state.path, &bytes);
    for (size_t at = 0; at < bytes; at += 37) {
        data[at] ^= 16;
        test_file_write(state.path, data, bytes);
        expect(run.path, 4, "fallen back");
        data[at] ^= 16;
    }
    save(run.path, 6); /* over a damaged one: the good one before is not lost before 6 is durable */
    expect(run.path, 6, "after falling back");
    unlink(state.path);
    TEST_CHECK(run_state_exists(run.path), "state.prev.bin counts");
    free(data);
}

/* What a crash can leave, between any two steps of a save. */
static void test_crash(void) {
    TestPath run = test_path("crash"), state = test_path("crash/state.bin"),
             old = test_path("crash/state.prev.bin");
    TestPath new = test_path("crash/state.new.bin"), aside = test_path("crash/state.new.bin.tmp.999");
    size_t bytes;
    save(run.path, 7);
    save(run.path, 8);
    uint8_t *data = test_file_read(state.path, &bytes);
    test_file_write(aside.path, data, bytes / 2);
    expect(run.path, 8, "crash while writing aside");
    save(run.path, 9);
    CHECK(rename(state.path, new.path) == 0 && rename(old.path, state.path) == 0);
    expect(run.path, 9, "crash before the first rename");
    CHECK(rename(state.path, old.path) == 0);
    expect(run.path, 9, "crash between the renames");
    save(run.path, 10);
    expect(run.path, 10, "saved after that crash");
    TEST_CHECK(access(new.path, F_OK) != 0, "state.new.bin is left over");
    CHECK(rename(state.path, new.path) == 0);
    test_file_write(new.path, data, bytes - 1);
    expect(run.path, 8, "the newest is damaged in between"); /* what was before 10 */
    free(data);
}

static void test_disk_full(void) {
    if (access("/dev/full", W_OK) != 0) return;
    TestPath run = test_path("full");
    Error err = {""};
    save(run.path, 11);
    CHECK(chmod(run.path, 0555) == 0);
    if (geteuid() != 0) {
        TEST_CHECK(!run_state_save(run.path, records, COUNT, &err) && !strchr(err.text, '\n'), "%s",
                   err.text);
    }
    CHECK(chmod(run.path, 0755) == 0);
    CHECK(mkdir(test_path("full/state.new.bin").path, 0777) == 0);
    TEST_CHECK(!run_state_save(run.path, records, COUNT, &err) && strstr(err.text, "folder"), "%s", err.text);
    CHECK(rmdir(test_path("full/state.new.bin").path) == 0);
    expect(run.path, 11, "after a failed save");
}

int main(void) {
    log_open(1, true);
    if (!freopen("/dev/null", "w", stderr)) return 1; /* the warnings about damaged states */
    test_folder_open();
    test_round_trip();
    test_damage();
    test_lies();
    test_fall_back();
    test_crash();
    test_disk_full();
    test_folder_close();
    return test_end("run_state");
}
