/* test_ckpt_retain.c: what stays and what goes: the newest, pinned, best, not yet uploaded; what readers hold; recycled
 * segments; other numbers of writers; a disk that is full, once or from the start. */
#define _GNU_SOURCE
#include "base/log.h"
#include "ckpt_lab.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>

static uint64_t seed_of(uint64_t step) {
    return 1000 + step;
}

static void save(Lab *lab, uint64_t step, bool best) {
    lab_change(lab, seed_of(step));
    lab_save(lab, step, false);
    for (int w = 0; w < lab->writers; w++) {
        ckpt_commit(lab->ckpt[w], step, best);
        TEST_CHECK(ckpt_wait(lab->ckpt[w], 60), "commit of step %d", (int)step);
    }
}

/* The restorable checkpoints, newest first, as "9 8 3", after each was read. */
static const char *steps(Lab *lab) {
    static char text[256];
    CkptReader *reader;
    const CkptInfo *list;
    Error err = {""};
    text[0] = 0;
    if (!ckpt_reader_open(&reader, lab->directory, &err)) return "no reader";
    size_t count = ckpt_reader_list(reader, &list), used = 0;
    for (size_t i = 0; i < count; i++) {
        if (list[i].state != CKPT_RESTORABLE) continue;
        lab_check_reader(lab, reader, list[i].id, seed_of(list[i].id.step));
        used +=
            (size_t)snprintf(text + used, sizeof text - used, "%s%d", used ? " " : "", (int)list[i].id.step);
    }
    ckpt_reader_close(reader);
    return text;
}

#define TEST_STEPS(lab, expected)                                                                            \
    do {                                                                                                     \
        const char *there = steps(lab);                                                                      \
        TEST_CHECK(!strcmp(there, expected), "'%s' are there, not '%s'", there, expected);                   \
    } while (0)

static void mark(Lab *lab, uint64_t step, CkptMark what, bool expected) {
    Error err = {""};
    bool ok = ckpt_mark(lab->directory, (CkptId){1, step}, what, &err);
    TEST_CHECK(ok == expected, "step %d: %s", (int)step, err.text);
}

static void test_keep(void) {
    Lab lab;
    lab_open(&lab, 31, 3, CKPT_POLICY_LAZY);
    for (uint64_t step = 1; step <= 4; step++) save(&lab, step, false);
    TEST_STEPS(&lab, "4 3");
    mark(&lab, 2, CKPT_MARK_PIN, false); /* is gone */
    mark(&lab, 3, CKPT_MARK_PIN, true);
    mark(&lab, 3, CKPT_MARK_PIN, true);
    save(&lab, 5, true);
    save(&lab, 6, false);
    save(&lab, 7, false);
    save(&lab, 8, false);
    TEST_STEPS(&lab, "8 7 5 3");
    mark(&lab, 3, CKPT_MARK_UNPIN, true);
    save(&lab, 9, true);
    TEST_STEPS(&lab, "9 8");
    save(&lab, 10, false);
    save(&lab, 11, false);
    TEST_STEPS(&lab, "11 10 9");
    /* not committed: stays while nothing newer is, then goes */
    lab_change(&lab, seed_of(12));
    lab_save(&lab, 12, false);
    TEST_STEPS(&lab, "12 11 10 9");
    save(&lab, 13, false);
    TEST_STEPS(&lab, "13 11 9");
    lab_close(&lab);
}

/* More marks than marks.log has room for. */
static void test_many_marks(void) {
    Lab lab;
    lab_open(&lab, 39, 1, CKPT_POLICY_LAZY);
    for (uint64_t step = 1; step <= 3; step++) save(&lab, step, false);
    for (int i = 0; i < 200; i++) {
        mark(&lab, 2, CKPT_MARK_PIN, true);
        mark(&lab, 3, CKPT_MARK_UPLOADED, true);
        if (i < 199) mark(&lab, 2, CKPT_MARK_UNPIN, true);
    }
    for (uint64_t step = 4; step <= 6; step++) save(&lab, step, false);
    TEST_STEPS(&lab, "6 5 2");
    lab_close(&lab);
}

/* More checkpoints than a manifest has room for. */
static void test_long_manifest(void) {
    Lab lab;
    static float x[16];
    Error err = {""};
    lab_open(&lab, 40, 1, CKPT_POLICY_LAZY);
    TensorView v = {"x", CKPT_FP32, 1, {16}, 0, 16, x, true};
    for (uint64_t step = 1; step <= 200; step++) {
        TEST_CHECK(ckpt_begin(lab.ckpt[0], step, &v, 1, &err) && ckpt_wait(lab.ckpt[0], 60), "%s", err.text);
        ckpt_commit(lab.ckpt[0], step, step == 3);
        TEST_CHECK(ckpt_wait(lab.ckpt[0], 60), "commit of step %d", (int)step);
    }
    CkptReader *reader = NULL;
    const CkptInfo *list;
    TEST_CHECK(ckpt_reader_open(&reader, lab.directory, &err), "%s", err.text);
    if (reader) {
        size_t count = ckpt_reader_list(reader, &list);
        TEST_CHECK(count == 3 && list[0].id.step == 200 && list[1].id.step == 199 && list[2].id.step == 3,
                   "%d checkpoints", (int)count);
    }
    ckpt_reader_close(reader);
    lab_close(&lab);
}

static void test_uploads(void) {
    Lab lab;
    lab_open(&lab, 32, 2, CKPT_POLICY_LAZY);
    lab_stop(&lab);
    lab.config.keep = 1;
    lab.config.keep_until_uploaded = true;
    lab.config.segments_max = 6;
    lab_start(&lab, 2, (CkptId){0, 0});
    for (uint64_t step = 1; step <= 6; step++) save(&lab, step, false);
    TEST_STEPS(&lab, "6 5 4 3 2 1");
    TEST_CHECK(ckpt_status(lab.ckpt[0]).backlog == 6, "%d", (int)ckpt_status(lab.ckpt[0]).backlog);
    /* no room until something is uploaded: the save fails, says why, and nothing is lost */
    lab_begin(&lab, 7);
    for (int w = 0; w < 2; w++) {
        ckpt_fence(lab.ckpt[w]);
        TEST_CHECK(!ckpt_wait(lab.ckpt[w], 60), "saved");
        CkptStatus s = ckpt_status(lab.ckpt[w]);
        TEST_CHECK(s.failed && !s.writing && strstr(s.error.text, "await their upload"), "%s", s.error.text);
    }
    TEST_STEPS(&lab, "6 5 4 3 2 1");
    Error err = {""};
    for (uint64_t step = 2; step <= 5; step += 3)
        TEST_CHECK(ckpt_mark(lab.directory, (CkptId){2, step}, CKPT_MARK_UPLOADED, &err), "%s", err.text);
    save(&lab, 8, false);
    TEST_STEPS(&lab, "8 6 4 3 1");
    TEST_CHECK(!ckpt_status(lab.ckpt[0]).failed, "%s", ckpt_status(lab.ckpt[0]).error.text);
    lab_close(&lab);
}

/* A reader's checkpoints stay readable whatever is saved meanwhile. */
static void test_reader_holds(void) {
    Lab lab;
    CkptReader *reader = NULL;
    Error err = {""};
    lab_open(&lab, 33, 2, CKPT_POLICY_SNAPSHOT);
    save(&lab, 1, false);
    save(&lab, 2, false);
    TEST_CHECK(ckpt_reader_open(&reader, lab.directory, &err), "%s", err.text);
    if (!reader) return;
    for (uint64_t step = 3; step <= 9; step++) save(&lab, step, false);
    TEST_STEPS(&lab, "9 8");
    lab_check_reader(&lab, reader, (CkptId){1, 1}, seed_of(1));
    lab_check_reader(&lab, reader, (CkptId){1, 2}, seed_of(2));
    ckpt_reader_close(reader);
    for (uint64_t step = 10; step <= 14; step++) save(&lab, step, false);
    TEST_STEPS(&lab, "14 13");
    lab_close(&lab);
}

typedef struct {
    char path[600];
    uint8_t *data;
    size_t bytes;
} Kept;

static void keep_file(Kept *kept, const char *folder, const char *name) {
    snprintf(kept->path, sizeof kept->path, "%s/%s", folder, name);
    kept->data = test_file_read(kept->path, &kept->bytes);
    CHECK(kept->data != NULL);
}

/* Blocks of an earlier checkpoint in place of those of a later one in the same segment: never taken for them. */
static void test_stale_blocks(void) {
    Lab lab;
    Kept old, new;
    Error err = {""};
    CkptReader *reader = NULL;
    const CkptInfo *list;
    lab_open(&lab, 34, 1, CKPT_POLICY_LAZY);
    lab_stop(&lab);
    lab.config.keep = 1; /* three segments */
    lab_start(&lab, 2, (CkptId){0, 0});
    for (uint64_t step = 1; step <= 2; step++) save(&lab, step, false);
    const char *name = "seg/host-example.0.1.seg";
    size_t used = (size_t)ckpt_status(lab.ckpt[0]).bytes, next = 3, wrong = 0, blocks = 0;
    keep_file(&old, lab.directory, name);
    for (; next < 9; next++) { /* until the segment is used again by the newest */
        save(&lab, next, false);
        keep_file(&new, lab.directory, name);
        bool again = memcmp(new.data, old.data, 4096) != 0;
        if (again) break;
        free(new.data);
    }
    lab_stop(&lab);
    CHECK(next < 9 && old.bytes == new.bytes);
    int fd = open(new.path, O_WRONLY);
    CHECK(fd >= 0);
    for (size_t at = 0; at + 4096 <= used; at += 4096) { /* each block alone */
        if (!memcmp(old.data + at, new.data + at, 4096)) continue;
        CHECK(pwrite(fd, old.data + at, 4096, (off_t)at) == 4096);
        uint64_t bad = 0;
        blocks++;
        if (!ckpt_reader_open(&reader, lab.directory, &err)) continue;
        ckpt_reader_list(reader, &list);
        wrong += ckpt_reader_verify(reader, list[0].id, &bad, NULL, &err);
        ckpt_reader_close(reader);
        CHECK(pwrite(fd, new.data + at, 4096, (off_t)at) == 4096);
        if (blocks > 200 && at + 65536 < used) at += 97 * 4096; /* and the rest by samples */
    }
    TEST_CHECK(blocks > 10 && wrong == 0, "%d of %d stale blocks were believed", (int)wrong, (int)blocks);
    /* all of it stale, but for the manifest; and without the merged table */
    CHECK(pwrite(fd, old.data, used, 0) == (ssize_t)used);
    close(fd);
    struct {
        char path[700];
    } table;
    snprintf(table.path, sizeof table.path, "%s/table/000002.%012d.tab", lab.directory, (int)next);
    CHECK(unlink(table.path) == 0);
    TEST_CHECK(ckpt_reader_open(&reader, lab.directory, &err), "%s", err.text);
    size_t count = ckpt_reader_list(reader, &list);
    TEST_CHECK(count >= 1 && list[0].id.step == next && list[0].state == CKPT_CORRUPT && list[0].why[0],
               "state %d", (int)list[0].state);
    ckpt_reader_close(reader);
    free(old.data);
    free(new.data);
    lab_close(&lab);
}

/* Fewer writers, then more, on the same folder: what the others left goes when nothing in it is kept any more. */
static void test_other_sizes(void) {
    Lab lab, fewer;
    CkptReader *reader = NULL;
    Error err = {""};
    lab_open(&lab, 35, 5, CKPT_POLICY_LAZY);
    for (uint64_t step = 1; step <= 3; step++) save(&lab, step, false);
    lab_stop(&lab);
    fewer = lab; /* the same tensors, cut for two */
    fewer.writers = fewer.config.size = 2;
    memset(fewer.num_views, 0, sizeof fewer.num_views);
    lab_cut(&fewer);
    lab_start(&fewer, 2, (CkptId){1, 3});
    TEST_STEPS(&fewer, "3 2");
    save(&fewer, 4, false);
    TEST_STEPS(&fewer, "4 3");
    save(&fewer, 5, false);
    TEST_STEPS(&fewer, "5 4");
    save(&fewer, 6, false);
    size_t files = 0;
    for (int rank = 0; rank < 5; rank++) {
        struct {
            char path[700];
        } path;
        snprintf(path.path, sizeof path.path, "%s/manifest/host-example.%d.log", lab.directory, rank);
        files += access(path.path, F_OK) == 0;
    }
    TEST_CHECK(files == 2, "%d manifests are left", (int)files);
    lab_stop(&fewer);
    lab_start(&lab, 3, (CkptId){2, 6});
    save(&lab, 7, false);
    TEST_STEPS(&lab, "7 6");
    TEST_CHECK(ckpt_reader_open(&reader, lab.directory, &err), "%s", err.text);
    uint8_t run[16] = {0};
    TEST_CHECK(ckpt_reader_run(reader, run) && !memcmp(run, lab.config.run, 16), "the run's id");
    ckpt_reader_close(reader);
    /* not another run's folder, nor one in use */
    CkptConfig config = lab.config;
    config.directory = lab.directory;
    Ckpt *second = NULL;
    config.attempt = 4;
    config.node_first = true;
    config.payload_bytes = 1000;
    TEST_CHECK(!ckpt_open(&second, &config, &err) && strstr(err.text, "another process"), "%s", err.text);
    lab_stop(&lab);
    config.run[0] ^= 1;
    TEST_CHECK(!ckpt_open(&second, &config, &err) && strstr(err.text, "another run"), "%s", err.text);
    config.run[0] ^= 1;
    config.attempt = 3;
    TEST_CHECK(!ckpt_open(&second, &config, &err) && strstr(err.text, "000003"), "%s", err.text);
    lab_close(&lab);
}

/* A file may not grow beyond this: what a full disk or a quota looks like, for this process alone. */
static void limit_files(rlim_t bytes) {
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_FSIZE, &limit) == 0);
    limit.rlim_cur = bytes;
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
}

static void test_full_disk(const char *io) {
    Lab lab;
    Error err = {""};
    signal(SIGXFSZ, SIG_IGN);
    lab_open(&lab, io[0] == 'p' ? 36 : 37, 1, CKPT_POLICY_LAZY);
    lab_stop(&lab);
    lab.config.io = io;
    lab_start(&lab, 2, (CkptId){0, 0});
    save(&lab, 1, false);
    limit_files(1 << 16);
    lab_begin(&lab, 2);
    ckpt_fence(lab.ckpt[0]);
    TEST_CHECK(!ckpt_wait(lab.ckpt[0], 60), "saved");
    CkptStatus s = ckpt_status(lab.ckpt[0]);
    TEST_CHECK(s.failed && strstr(s.error.text, "seg/"), "%s", s.error.text);
    TEST_CHECK(ckpt_id_compare(s.newest_durable, (CkptId){2, 1}) == 0, "durable %d",
               (int)s.newest_durable.step);
    limit_files(RLIM_INFINITY);
    TEST_STEPS(&lab, "1");
    save(&lab, 3, false);
    TEST_STEPS(&lab, "3 1");
    lab_stop(&lab);
    /* from the start: refused before any step, with the numbers */
    CkptConfig config = lab.config;
    config.directory = lab.directory;
    Ckpt *never = NULL;
    config.attempt = 3;
    config.payload_bytes = (uint64_t)1 << 43;
    config.policy = CKPT_POLICY_LAZY;
    TEST_CHECK(!ckpt_open(&never, &config, &err) && strstr(err.text, "GB are free"), "%s", err.text);
    TEST_STEPS(&lab, "3 1");
    lab_close(&lab);
}

/* What a caller may not do, and what it may. */
static void test_begin(void) {
    Lab lab;
    Error err = {""};
    static float data[3000];
    lab_open(&lab, 38, 1, CKPT_POLICY_LAZY);
    TensorView v[3] = {{"a", CKPT_FP32, 1, {3000}, 0, 2000, data, false},
                       {"a", CKPT_FP32, 1, {3000}, 1999, 3000, data, false},
                       {"b", CKPT_FP32, 1, {3000}, 0, 0, NULL, false}};
    TEST_CHECK(!ckpt_begin(lab.ckpt[0], 1, v, 3, &err) && strstr(err.text, "1999"), "%s", err.text);
    v[1].begin = 2000;
    v[1].shape[0] = 3001;
    TEST_CHECK(!ckpt_begin(lab.ckpt[0], 1, v, 3, &err) && strstr(err.text, "shape"), "%s", err.text);
    v[1].shape[0] = 3000;
    v[1].end = 3001;
    TEST_CHECK(!ckpt_begin(lab.ckpt[0], 1, v, 3, &err) && strstr(err.text, "3001"), "%s", err.text);
    v[1].end = 3000;
    TEST_CHECK(ckpt_begin(lab.ckpt[0], 1, v, 3, &err), "%s", err.text);
    ckpt_fence(lab.ckpt[0]);
    TEST_CHECK(ckpt_wait(lab.ckpt[0], 60), "saved");
    TEST_CHECK(ckpt_begin(lab.ckpt[0], 2, NULL, 0, &err), "nothing to save: %s", err.text);
    ckpt_fence(lab.ckpt[0]);
    TEST_CHECK(ckpt_wait(lab.ckpt[0], 60) && ckpt_status(lab.ckpt[0]).newest_durable.step == 2, "saved");
    uint64_t skipped = 0; /* begins that come too early are counted, and do no harm */
    for (uint64_t step = 3; step < 40; step++) lab_begin(&lab, step);
    TEST_CHECK(ckpt_wait(lab.ckpt[0], 60), "saved");
    skipped = ckpt_status(lab.ckpt[0]).skipped;
    TEST_CHECK(skipped > 0 && skipped < 37, "%d", (int)skipped);
    lab_close(&lab);
}

int main(void) {
    log_open(1, true);
    test_folder_open();
    test_keep();
    test_many_marks();
    test_long_manifest();
    test_uploads();
    test_reader_holds();
    test_stale_blocks();
    test_other_sizes();
    test_full_disk("plain");
    test_full_disk("auto");
    test_begin();
    test_folder_close();
    return test_end("ckpt_retain");
}
