/* drain_tool.c: small runs with checkpoints, and drains of them, from the command line: for tests that kill drains and
 * break stores.
 *
 *   drain_tool save DIRECTORY SEED ATTEMPT FIRST LAST   saves checkpoints FIRST .. LAST, contents by step, 3 writers
 *   drain_tool drain DIRECTORY PLACE SECONDS [KEEP]     uploads for at most so long; exit 0: all is there
 *   drain_tool check PLACE SEED ATTEMPT STEP            reads all of a checkpoint and compares
 *   drain_tool list PLACE                               attempt.step state committed uploaded
 * Settings from the environment: STORE_RATE, STORE_TIMEOUT, STORE_BACKOFF, STORE_ATTEMPTS, STORE_PART. */
#define _GNU_SOURCE
#include "base/log.h"
#include "ckpt/drain.h"
#include "ckpt_lab.h"

static Error err;

static double setting(const char *name) {
    const char *text = getenv(name);
    return text ? strtod(text, NULL) : 0;
}

/* What the ranks of a restarted run agree on. */
static CkptId newest_in(const char *directory) {
    CkptReader *reader;
    const CkptInfo *info;
    CkptId newest = {0, 0};
    if (!ckpt_reader_open(&reader, directory, &err)) return newest;
    size_t n = ckpt_reader_list(reader, &info);
    for (size_t i = n; i-- > 0;)
        if (info[i].state == CKPT_RESTORABLE) newest = info[i].id;
    ckpt_reader_close(reader);
    return newest;
}

static Lab *open_lab(const char *directory, uint64_t seed, uint32_t attempt) {
    Lab *lab = calloc(1, sizeof *lab);
    CHECK(lab != NULL);
    *lab = (Lab){.seed = seed, .writers = 3};
    snprintf(lab->directory, sizeof lab->directory, "%s", directory);
    lab->config = (CkptConfig){.directory = lab->directory,
                               .node = "host",
                               .io = "auto",
                               .size = 3,
                               .run = {9, 9, 9, (uint8_t)seed},
                               .views_max = LAB_VIEWS,
                               .keep = 2,
                               .keep_until_uploaded = true};
    lab_shapes(lab);
    lab_cut(lab);
    if (attempt) lab_start(lab, attempt, newest_in(directory));
    return lab;
}

static int save(char **argv) {
    uint64_t seed = strtoull(argv[1], NULL, 10), last = strtoull(argv[4], NULL, 10);
    Lab *lab = open_lab(argv[0], seed, (uint32_t)strtoul(argv[2], NULL, 10));
    for (uint64_t step = strtoull(argv[3], NULL, 10); step <= last; step++) {
        lab_change(lab, step);
        lab_save(lab, step, true);
    }
    lab_close(lab);
    free(lab);
    return test_failures ? EXIT_FAILED : EXIT_DONE;
}

static int drain(int argc, char **argv) {
    Drain *d;
    DrainConfig config = {.directory = argv[0],
                          .place = argv[1],
                          .node = "host",
                          .poll_seconds = 0.05,
                          .keep_remote = argc > 3 ? atoi(argv[3]) : 0,
                          .store = {.bytes_per_second_max = (uint64_t)setting("STORE_RATE"),
                                    .timeout_seconds = setting("STORE_TIMEOUT"),
                                    .attempts_max = (int)setting("STORE_ATTEMPTS"),
                                    .backoff_seconds = setting("STORE_BACKOFF"),
                                    .part_bytes = (size_t)setting("STORE_PART")}};
    if (!drain_open(&d, &config, &err)) {
        fprintf(stderr, "drain_tool: %s\n", err.text);
        return EXIT_FAILED;
    }
    bool all = drain_wait(d, strtod(argv[2], NULL));
    DrainStatus s = drain_status(d);
    printf("uploaded %d, behind %d, corrupt %d%s%s\n", (int)s.uploaded_checkpoints, (int)s.behind_checkpoints,
           (int)s.corrupt, s.failing ? ", failing: " : "", s.failing ? s.error.text : "");
    drain_close(d, 0);
    return all ? EXIT_DONE : EXIT_FAILED;
}

/* All of every tensor, once. */
static void check_tensors(Lab *lab, CkptReader *reader, CkptId id) {
    for (int t = 0; t < LAB_TENSORS; t++) {
        const TensorView *v = &lab->tensors[t].tensor;
        if (!v->end) continue;
        unsigned char *data = malloc(lab->tensors[t].bytes + 1);
        uint64_t wrong = 0;
        CHECK(data != NULL);
        test_poison(data, lab->tensors[t].bytes + 1);
        TEST_CHECK(ckpt_reader_read(reader, id, v->name, v->type, 0, v->end, data, &err), "%s", err.text);
        for (uint64_t i = 0; i < lab->tensors[t].bytes; i++) wrong += data[i] != lab_byte(id.step, t, i);
        TEST_CHECK(wrong == 0, "%s: %d bytes are wrong", v->name, (int)wrong);
        free(data);
    }
}

static int check(char **argv) {
    CkptReader *reader;
    uint64_t step = strtoull(argv[3], NULL, 10);
    CkptId id = {(uint32_t)strtoul(argv[2], NULL, 10), step};
    Lab *lab = open_lab("", strtoull(argv[1], NULL, 10), 0);
    if (!ckpt_reader_open(&reader, argv[0], &err)) {
        fprintf(stderr, "drain_tool: %s\n", err.text);
        return EXIT_FAILED;
    }
    check_tensors(lab, reader, id);
    ckpt_reader_close(reader);
    munmap(lab->arena, lab->arena_bytes);
    free(lab);
    return test_end("check");
}

static int list(char **argv) {
    CkptReader *reader;
    const CkptInfo *info;
    if (!ckpt_reader_open(&reader, argv[0], &err)) {
        fprintf(stderr, "drain_tool: %s\n", err.text);
        return EXIT_FAILED;
    }
    size_t n = ckpt_reader_list(reader, &info);
    for (size_t i = 0; i < n; i++)
        printf("%u.%d %s %d %d\n", (unsigned)info[i].id.attempt, (int)info[i].id.step,
               info[i].state == CKPT_RESTORABLE ? "restorable" : "not", info[i].committed, info[i].uploaded);
    ckpt_reader_close(reader);
    return EXIT_DONE;
}

int main(int argc, char **argv) {
    if (argc == 7 && !strcmp(argv[1], "save")) return save(argv + 2);
    if ((argc == 5 || argc == 6) && !strcmp(argv[1], "drain")) return drain(argc - 2, argv + 2);
    if (argc == 6 && !strcmp(argv[1], "check")) return check(argv + 2);
    if (argc == 3 && !strcmp(argv[1], "list")) return list(argv + 2);
    fprintf(stderr, "usage: drain_tool save|drain|check|list ... (see the file's head)\n");
    return EXIT_USAGE;
}
