/* test_drain.c: the drain with a folder as the store: what arrives reads as it was written; a corrupt chunk never arrives;
 * several nodes; retention in the store; a store that is down; another run in the same place; stopped and started again. */
#define _GNU_SOURCE
#include "base/file.h"
#include "base/log.h"
#include "ckpt/drain.h"
#include "ckpt_lab.h"

static Error err;

static Drain *start(const char *directory, const char *place, const char *node, int keep, uint64_t rate) {
    Drain *drain = NULL;
    DrainConfig config = {
        .directory = directory, .place = place, .node = node, .keep_remote = keep, .poll_seconds = 0.02};
    config.store.bytes_per_second_max = rate;
    TEST_CHECK(drain_open(&drain, &config, &err), "%s", err.text);
    CHECK(drain != NULL);
    return drain;
}

/* "1.5cu 1.3cp ": attempt.step of those in a place, newest first; c committed, u uploaded, p pinned, - not restorable. */
static const char *list(const char *place) {
    static char text[1024];
    CkptReader *reader;
    const CkptInfo *info;
    text[0] = 0;
    if (!ckpt_reader_open(&reader, place, &err)) return err.text;
    size_t n = ckpt_reader_list(reader, &info);
    for (size_t i = 0; i < n; i++) {
        size_t used = strlen(text);
        snprintf(text + used, sizeof text - used, "%u.%d%s%s%s%s ", (unsigned)info[i].id.attempt,
                 (int)info[i].id.step, info[i].state == CKPT_RESTORABLE ? "" : "-",
                 info[i].committed ? "c" : "", info[i].uploaded ? "u" : "", info[i].pinned ? "p" : "");
    }
    ckpt_reader_close(reader);
    return text;
}

static void check_place(Lab *lab, const char *place, CkptId id, uint64_t seed) {
    CkptReader *reader;
    uint64_t bad = 1;
    bool ok = ckpt_reader_open(&reader, place, &err);
    TEST_CHECK(ok, "%s", err.text);
    if (!ok) return;
    lab_check_reader(lab, reader, id, seed);
    TEST_CHECK(ckpt_reader_verify(reader, id, &bad, NULL, &err) && bad == 0, "%s", err.text);
    ckpt_reader_close(reader);
}

static void test_upload(void) {
    Lab lab;
    TestPath store = test_path("store1");
    lab_open(&lab, 1, 3, CKPT_POLICY_AUTO);
    Drain *drain = start(lab.directory, store.path, NULL, 0, 0), *second;
    DrainConfig same = {.directory = lab.directory, .place = store.path};
    TEST_CHECK(!drain_open(&second, &same, &err) && strstr(err.text, "another process"), "%s", err.text);
    TEST_CHECK(drain_wait(drain, 60), "nothing to do");
    for (uint64_t step = 1; step <= 3; step++) {
        lab_change(&lab, step);
        lab_save(&lab, step, step != 2);
        if (step == 1) TEST_CHECK(drain_wait(drain, 60), "%s", drain_status(drain).error.text);
    }
    TEST_CHECK(drain_wait(drain, 60), "%s", drain_status(drain).error.text);
    DrainStatus s = drain_status(drain);
    TEST_CHECK(s.uploaded_checkpoints == 2 && s.newest_uploaded.step == 3 && !s.behind_checkpoints &&
                   !s.failing,
               "%d, %d", (int)s.uploaded_checkpoints, (int)s.newest_uploaded.step);
    TEST_CHECK(!strcmp(list(store.path), "1.3cu 1.1cu "), "%s", list(store.path));
    TEST_CHECK(!strncmp(list(lab.directory), "1.3cu ", 6) && strstr(list(lab.directory), "1.1cu"), "%s",
               list(lab.directory));
    check_place(&lab, store.path, (CkptId){1, 3}, 3);
    check_place(&lab, store.path, (CkptId){1, 1}, 1);
    TEST_CHECK(drain_close(drain, 60), "left over");
    drain = start(lab.directory, store.path, NULL, 0, 0);
    TEST_CHECK(drain_close(drain, 60) && drain_close(NULL, 0), "left over");
    lab_close(&lab);
}

/* One bit on the disk, in the middle of the first shard. */
static void flip(Lab *lab, CkptId id) {
    CkptReader *reader;
    const CkptShard *shards;
    size_t count;
    char path[1024];
    bool ok = ckpt_reader_open(&reader, lab->directory, &err) &&
              ckpt_reader_shards(reader, id, &shards, &count, &err);
    TEST_CHECK(ok && count > 0, "%s", err.text);
    if (!ok) return;
    snprintf(path, sizeof path, "%s/%s", lab->directory, shards[0].name);
    uint64_t at = shards[0].bytes / 2; /* among tensors, for sure */
    ckpt_reader_close(reader);
    FILE *f = fopen(path, "r+b");
    CHECK(f != NULL);
    CHECK(fseek(f, (long)at, SEEK_SET) == 0);
    int c = fgetc(f);
    CHECK(fseek(f, (long)at, SEEK_SET) == 0);
    fputc(c ^ 4, f);
    fclose(f);
}

static void test_corrupt(void) {
    Lab lab;
    TestPath store = test_path("store2");
    lab_open(&lab, 2, 2, CKPT_POLICY_AUTO);
    lab_save(&lab, 1, true);
    flip(&lab, (CkptId){1, 1});
    Drain *drain = start(lab.directory, store.path, NULL, 0, 0);
    drain_wait(drain, 60);
    DrainStatus s = drain_status(drain);
    TEST_CHECK(s.corrupt == 1 && s.uploaded_checkpoints == 0 && !s.failing, "%d corrupt", (int)s.corrupt);
    TEST_CHECK(!file_exists(test_path("store2/ckpt/000001.000000000001/COMMIT").path),
               "what is corrupt is committed");
    TEST_CHECK(!file_exists(test_path("store2/ckpt/000001.000000000001/host-example.0.seg").path),
               "what is corrupt is uploaded");
    TEST_CHECK(!strstr(list(lab.directory), "1.1cu"), "marked before a newer one is there: %s",
               list(lab.directory));
    lab_change(&lab, 2);
    lab_save(&lab, 2, true);
    TEST_CHECK(drain_wait(drain, 60), "%s", drain_status(drain).error.text);
    check_place(&lab, store.path, (CkptId){1, 2}, 2);
    TEST_CHECK(drain_wait(drain, 60) && strstr(list(lab.directory), "1.1cu"), "staging keeps it for ever: %s",
               list(lab.directory));
    TEST_CHECK(drain_status(drain).corrupt == 1, "said more than once");
    drain_close(drain, 60);
    lab_close(&lab);
}

/* A second store gets what it lacks, whatever the first one has; what it has is not sent again. */
static void test_second_store(void) {
    Lab lab;
    TestPath first = test_path("store8"), second = test_path("store9");
    lab_open(&lab, 8, 2, CKPT_POLICY_AUTO);
    Drain *drain = start(lab.directory, first.path, NULL, 0, 0);
    for (uint64_t step = 1; step <= 3; step++) {
        lab_change(&lab, step);
        lab_save(&lab, step, true);
        if (step == 1)
            TEST_CHECK(ckpt_mark(lab.directory, (CkptId){1, 1}, CKPT_MARK_PIN, &err), "%s", err.text);
        if (step < 3) TEST_CHECK(drain_wait(drain, 60), "%s", drain_status(drain).error.text);
    }
    drain_close(drain, 60);
    const int keeps[] = {0, 0, 1};
    const uint64_t sent[] = {3, 0, 0};
    const char *all = "1.3cu 1.2cu 1.1cup ";
    for (int i = 0; i < 3; i++) {
        DrainConfig config = {
            .directory = lab.directory, .place = second.path, .all = true, .keep_remote = keeps[i]};
        TEST_CHECK(drain_open(&drain, &config, &err), "%s", err.text);
        TEST_CHECK(drain_wait(drain, 60), "%s", drain_status(drain).error.text);
        TEST_CHECK(drain_status(drain).uploaded_checkpoints == sent[i], "%d: %d are sent", i,
                   (int)drain_status(drain).uploaded_checkpoints);
        TEST_CHECK(!strcmp(list(second.path), all), "%d: %s", i, list(second.path));
        drain_close(drain, 60);
    }
    check_place(&lab, second.path, (CkptId){1, 1}, 1);
    TEST_CHECK(unlink(test_path("store9/ckpt/000001.000000000002/COMMIT").path) == 0, "no COMMIT");
    drain = start(lab.directory, second.path, NULL, 0, 0); /* what was uploaded once counts as done */
    TEST_CHECK(drain_close(drain, 60) && !strstr(list(second.path), "1.2cu"), "%s", list(second.path));
    lab_close(&lab);
}

/* Writers 0 and 1 on nodes of their own, with folders of their own. */
static void test_nodes(void) {
    static const char *const nodes[] = {"node.a", "node.b"};
    Lab lab;
    TestPath store = test_path("store3"), folders[2] = {test_path("a"), test_path("b")};
    lab_open(&lab, 3, 2, CKPT_POLICY_AUTO);
    lab_stop(&lab);
    for (int w = 0; w < 2; w++) {
        CkptConfig config = lab.config;
        config.directory = folders[w].path;
        config.node = nodes[w];
        config.rank = w;
        config.attempt = 1;
        config.node_first = config.newest_agreed = true;
        config.payload_bytes = lab.arena_bytes;
        TEST_CHECK(ckpt_open(&lab.ckpt[w], &config, &err), "%s", err.text);
        CHECK(lab.ckpt[w] != NULL);
    }
    lab_save(&lab, 7, true);
    Drain *a = start(folders[0].path, store.path, nodes[0], 0, 0);
    TEST_CHECK(!drain_wait(a, 1), "complete without the other node");
    TEST_CHECK(!file_exists(test_path("store3/ckpt/000001.000000000007/COMMIT").path), "committed without b");
    TEST_CHECK(drain_status(a).behind_checkpoints == 1 && !drain_status(a).failing, "%s",
               drain_status(a).error.text);
    Drain *b = start(folders[1].path, store.path, nodes[1], 0, 0);
    TEST_CHECK(drain_wait(a, 60) && drain_wait(b, 60), "%s %s", drain_status(a).error.text,
               drain_status(b).error.text);
    TEST_CHECK(!strcmp(list(store.path), "1.7cu "), "%s", list(store.path));
    TEST_CHECK(!strcmp(list(folders[0].path), "1.7-cu "), "%s", list(folders[0].path));
    TEST_CHECK(!strcmp(list(folders[1].path), "1.7-cu "), "%s", list(folders[1].path));
    check_place(&lab, store.path, (CkptId){1, 7}, 3);
    TEST_CHECK(drain_close(a, 60) && drain_close(b, 60), "left over");
    lab_close(&lab);
}

static void save_next(Lab *lab, Drain *drain, uint64_t step) {
    lab_change(lab, step);
    lab_save(lab, step, true);
    TEST_CHECK(drain_wait(drain, 60), "%s", drain_status(drain).error.text);
}

/* What the store holds as pinned stays whatever staging says, until it is unpinned there. */
static void check_pins(Lab *lab, TestPath *store, Drain *drain) {
    const CkptId pinned = {2, 3}, other = {2, 6};
    TEST_CHECK(ckpt_mark(lab->directory, pinned, CKPT_MARK_UNPIN, &err), "%s", err.text);
    TEST_CHECK(ckpt_mark(store->path, other, CKPT_MARK_PIN, &err), "%s", err.text);
    TEST_CHECK(ckpt_mark(store->path, other, CKPT_MARK_PIN, &err), "twice: %s", err.text);
    TEST_CHECK(!ckpt_mark(store->path, (CkptId){2, 5}, CKPT_MARK_PIN, &err) && strstr(err.text, "000005"),
               "%s", err.text);
    for (uint64_t step = 8; step <= 10; step++) save_next(lab, drain, step);
    TEST_CHECK(!strcmp(list(store->path), "2.10cu 2.9cu 2.6cup 2.3cup 2.2cu "), "%s", list(store->path));
    check_place(lab, store->path, pinned, 3);
    TEST_CHECK(ckpt_mark(store->path, pinned, CKPT_MARK_UNPIN, &err), "%s", err.text);
    TEST_CHECK(ckpt_mark(store->path, other, CKPT_MARK_UNPIN, &err), "%s", err.text);
    save_next(lab, drain, 11);
    TEST_CHECK(!strcmp(list(store->path), "2.11cu 2.10cu 2.2cu "), "%s", list(store->path));
}

static void test_retention(void) {
    Lab lab;
    TestPath store = test_path("store4");
    lab_open(&lab, 4, 2, CKPT_POLICY_AUTO);
    lab_stop(&lab);
    lab.config.keep_until_uploaded = true;
    lab_start(&lab, 2, (CkptId){0, 0});
    Drain *drain = start(lab.directory, store.path, NULL, 2, 0);
    for (uint64_t step = 1; step <= 7; step++) {
        lab_change(&lab, step);
        lab_save(&lab, step, false);
        for (int w = 0; w < 2; w++) ckpt_commit(lab.ckpt[w], step, step == 2);
        for (int w = 0; w < 2; w++) TEST_CHECK(ckpt_wait(lab.ckpt[w], 60), "commit");
        if (step == 3)
            TEST_CHECK(ckpt_mark(lab.directory, (CkptId){2, 3}, CKPT_MARK_PIN, &err), "%s", err.text);
        TEST_CHECK(drain_wait(drain, 60), "%s", drain_status(drain).error.text);
    }
    TEST_CHECK(!strcmp(list(store.path), "2.7cu 2.6cu 2.3cup 2.2cu "), "%s", list(store.path));
    check_place(&lab, store.path, (CkptId){2, 2}, 2);
    check_place(&lab, store.path, (CkptId){2, 6}, 6);
    check_pins(&lab, &store, drain);
    drain_close(drain, 60);
    lab_close(&lab);
}

/* The store is down; saves go on; it comes back. */
static void test_down(void) {
    Lab lab;
    TestPath store = test_path("store5");
    lab_open(&lab, 5, 2, CKPT_POLICY_AUTO);
    test_file_write(store.path, "no folder", 9);
    Drain *drain = start(lab.directory, store.path, NULL, 0, 0);
    for (uint64_t step = 1; step <= 3; step++) {
        lab_change(&lab, step);
        lab_save(&lab, step, true);
    }
    TEST_CHECK(!drain_wait(drain, 1) && drain_status(drain).failing &&
                   strstr(drain_status(drain).error.text, "store5"),
               "%s", drain_status(drain).error.text);
    TEST_CHECK(drain_status(drain).behind_checkpoints >= 2 && drain_status(drain).behind_bytes > 0, "%d",
               (int)drain_status(drain).behind_checkpoints);
    unlink(store.path);
    TEST_CHECK(drain_wait(drain, 60) && !drain_status(drain).failing, "%s", drain_status(drain).error.text);
    TEST_CHECK(!strncmp(list(store.path), "1.3cu 1.2cu ", 12), "%s", list(store.path));
    check_place(&lab, store.path, (CkptId){1, 3}, 3);
    drain_close(drain, 60);
    lab_close(&lab);
}

static void test_other_run(void) {
    Lab lab;
    TestPath store = test_path("store5"); /* of the run before */
    lab_open(&lab, 6, 2, CKPT_POLICY_AUTO);
    lab_save(&lab, 3, true);
    Drain *drain = start(lab.directory, store.path, NULL, 0, 0);
    TEST_CHECK(!drain_wait(drain, 1) && strstr(drain_status(drain).error.text, "another run"), "%s",
               drain_status(drain).error.text);
    TEST_CHECK(!drain_close(drain, 0), "nothing left");
    TEST_CHECK(!strstr(list(lab.directory), "u"), "%s", list(lab.directory));
    lab_close(&lab);
}

static void test_stopped(void) {
    Lab lab;
    TestPath store = test_path("store7");
    lab_open(&lab, 7, 2, CKPT_POLICY_AUTO);
    lab_save(&lab, 1, true);
    for (int i = 0; i < 5; i++) { /* hardly anything gets through */
        Drain *drain = start(lab.directory, store.path, "host.example", 0, 2000);
        TEST_CHECK(!drain_close(drain, 0), "%d: all is there at 2 KB/s", i);
    }
    TEST_CHECK(!strstr(list(lab.directory), "u"), "%s", list(lab.directory));
    Drain *drain = start(lab.directory, store.path, "host.example", 0, 0);
    TEST_CHECK(drain_close(drain, 60), "left over");
    check_place(&lab, store.path, (CkptId){1, 1}, 7);
    lab_close(&lab);
}

static void test_refusals(void) {
    Drain *drain;
    DrainConfig config = {.directory = test_path("x").path, .place = "gs://bucket"};
    TEST_CHECK(!drain_open(&drain, &config, &err) && !drain && strstr(err.text, "s3://"), "%s", err.text);
    config.directory = "/proc/none";
    config.place = "/tmp";
    TEST_CHECK(!drain_open(&drain, &config, &err) && !drain, "%s", err.text);
}

int main(void) {
    log_open(0, true);
    test_folder_open();
    test_upload();
    test_corrupt();
    test_second_store();
    test_nodes();
    test_retention();
    test_down();
    test_other_run();
    test_stopped();
    test_refusals();
    test_folder_close();
    return test_end("drain");
}
